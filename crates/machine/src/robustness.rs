//! Random accesses to every port, device window and APIC register of a whole board, and requests for DMA, from two vCPUs at
//! once while time goes on: no panic, no deadlock.
//!
//! `VITRINE_CASES` makes it longer, `VITRINE_SEED` repeats a script (as far as two threads and a running clock can).

use crate::board::{self, Made};
use crate::{BoardKind, Config, DebugConsole, DebugExitPorts, Serial};
use cpu::Cpu;
use cpu::cpuid::Model;
use devices::Sink;
use lens::Lens;
use memory::{Gpa, Gva, Origin, Space};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// Bytes of RAM.
const RAM: u64 = 2 << 20;
/// Accesses in one script.
const STEPS: u64 = 20_000;
/// How long a script may take before it counts as a deadlock.
const PATIENCE: Duration = Duration::from_secs(60);

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        let n = self.below(of.len() as u64);
        of[usize::try_from(n).unwrap()]
    }
    /// Often few bits, or many.
    fn value(&mut self) -> u64 {
        match self.below(4) {
            0 => self.next() & self.next() & self.next(),
            1 => self.next() | self.next(),
            2 => self.below(256),
            _ => self.next(),
        }
    }
    fn port(&mut self) -> u16 {
        let known = [
            0x20, 0xa0, 0x40, 0x60, 0x64, 0x70, 0x92, 0xb2, 0x2e8, 0x2f8, 0x3e8, 0x3f8, 0x402, 0x4d0, 0x501, 0x510,
            0x514, 0x518, 0x600, 0x608, 0x620, 0xcf8, 0xcfc, 0x2000, 0xe0, 0xf4, 0xffff,
        ];
        let port = if self.below(4) == 0 { self.below(0x1_0000) } else { self.pick(&known) + self.below(8) };
        (port & 0xffff) as u16
    }
    fn address(&mut self) -> u64 {
        let windows = [0xfee0_0000, 0xfec0_0000, 0xfed0_0000, 0xff00_0000, 0xa_0000, 0xffff_f000, 0];
        let window = self.pick(&windows);
        let offset = if self.below(2) == 0 { self.below(0x400) & !0xf } else { self.below(0x1000) };
        (window + offset).min(0xffff_fff0)
    }
}

#[derive(Debug)]
struct Nowhere;

impl Sink for Nowhere {
    fn write(&mut self, _: &[u8]) {}
}

/// Now and then all of memory is watched.
fn lens(random: &mut Random) -> Lens {
    let lens = Lens::default();
    if random.below(4) == 0 {
        let watch = "rw:gpa:0+400000 then count".parse().unwrap();
        lens.watch(watch).unwrap();
    }
    lens
}

fn config(random: &mut Random) -> Config {
    Config {
        memory: RAM,
        cpus: 2,
        board: if random.below(2) == 0 { BoardKind::Pc } else { BoardKind::Q35 },
        serials: (0..4).map(|_| Serial::Port(Box::new(Nowhere))).collect(),
        debugcon: Some(DebugConsole { iobase: 0x402, sink: Box::new(Nowhere) }),
        isa_debug_exit: Some(DebugExitPorts::default()),
        pc_testdev: true,
        hpet: random.below(4) != 0,
        fw_cfg: vec![("opt/test".into(), vec![1, 2, 3])],
        lens: Arc::new(lens(random)),
        ..Config::new(Arc::new(Model::max()))
    }
}

/// Has fw_cfg do a request that is somewhere in RAM, or nearly.
fn request(cpu: &Cpu, random: &mut Random) {
    let near = |random: &mut Random| match random.below(4) {
        0 => random.value(),
        1 => RAM.wrapping_sub(random.below(32)),
        _ => random.below(RAM),
    };
    let (at, to) = (near(random), near(random));
    let key = random.pick(&[0x19, 0x20, 0, 0x8003, 0xffff]);
    let control = key << 16 | random.below(32);
    let length = if random.below(64) == 0 { random.value() & 0xffff_ffff } else { random.below(0x2000) };
    let fields = u128::from(control) << 96 | u128::from(length) << 64 | u128::from(to);
    // It may be nowhere.
    let _ = cpu.mmu.map().write(Gpa(at), &fields.to_be_bytes());
    cpu.ports.write(0x514, 4, ((at >> 32) as u32).swap_bytes());
    cpu.ports.write(0x518, 4, ((at & 0xffff_ffff) as u32).swap_bytes());
}

/// What one vCPU does to the board.
fn step(cpu: &mut Cpu, random: &mut Random) {
    let (size, value, by) = (random.pick(&[1usize, 2, 4]), random.value(), Origin::default());
    match random.below(17) {
        0..4 => drop(cpu.ports.read(random.port(), size)),
        4..8 => cpu.ports.write(random.port(), size, (value & 0xffff_ffff) as u32),
        8 => {
            let at = Gva(random.address());
            // A fault is impossible without paging.
            match size {
                1 => drop(cpu.mmu.read::<u8>(by, Space::Kernel, at).unwrap()),
                2 => drop(cpu.mmu.read::<u16>(by, Space::Kernel, at).unwrap()),
                _ => drop(cpu.mmu.read::<u64>(by, Space::Kernel, at).unwrap()),
            }
        }
        9 => drop(cpu.mmu.read::<u32>(by, Space::Kernel, Gva(random.address())).unwrap()),
        10 => {
            let at = Gva(random.address());
            match size {
                1 => cpu.mmu.write(by, Space::Kernel, at, value as u8).unwrap(),
                2 => cpu.mmu.write(by, Space::Kernel, at, value as u16).unwrap(),
                _ => cpu.mmu.write(by, Space::Kernel, at, value).unwrap(),
            }
        }
        11 | 12 => cpu.mmu.write(by, Space::Kernel, Gva(random.address()), value as u32).unwrap(),
        13 => {
            // The registers of the x2APIC, APIC_BASE, the deadline: a refusal is #GP, and fine.
            let number = random.pick(&[0x1b, 0x6e0, 0x10, 0x3b]);
            let number = if random.below(2) == 0 { number } else { 0x800 + random.below(0x100) as u32 };
            let _ = if random.below(2) == 0 { cpu.read_msr(number) } else { cpu.write_msr(number, value).map(|()| 0) };
        }
        14 => drop(cpu.apic.acknowledge()),
        15 => request(cpu, random),
        _ => {
            cpu.apic.set_task_priority((value & 15) as u8);
            cpu.signals.lower(!cpu::Signals::INTERRUPT);
        }
    }
}

/// Two vCPUs and the timers' thread on one board, which is reset now and then.
fn script(seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let Made { board, control, cpus } = board::make(config(&mut random)).unwrap();
    board.reset();
    board.hand_over();
    board.clock.resume();
    let timers = board.clone();
    let timers = std::thread::spawn(move || timers.timers.run());
    let scripts: Vec<_> = cpus
        .into_iter()
        .map(|mut cpu| {
            let (seed, board) = (random.next() | 1, board.clone());
            std::thread::spawn(move || {
                let mut random = Random(seed);
                for _ in 0..STEPS {
                    step(&mut cpu, &mut random);
                    if random.below(4096) == 0 {
                        board.timers.fire_due(cpu::Clock::now(&*board.clock));
                    }
                    if random.below(8192) == 0 {
                        board.reset();
                    }
                }
            })
        })
        .collect();
    let failed = scripts.into_iter().filter_map(|thread| thread.join().err()).last();
    board.timers.stop();
    let failed = timers.join().err().or(failed);
    drop(control);
    if let Some(panic) = failed {
        eprintln!("VITRINE_SEED={seed}");
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn random_accesses_to_the_board_neither_panic_nor_deadlock() {
    let setting = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seed = setting("VITRINE_SEED");
    let (first, count) = (seed.unwrap_or(1), if seed.is_some() { 1 } else { setting("VITRINE_CASES").unwrap_or(60) });
    let current = Arc::new(AtomicU64::new(first));
    let (done, wait) = mpsc::channel();
    let progress = current.clone();
    let scripts = std::thread::spawn(move || {
        for seed in first..first.saturating_add(count) {
            progress.store(seed, Ordering::Relaxed);
            script(seed);
            // Nobody listens any more after a deadlock has been called.
            let _ = done.send(());
        }
    });
    loop {
        match wait.recv_timeout(PATIENCE) {
            Ok(()) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                panic!("VITRINE_SEED={} does not end", current.load(Ordering::Relaxed))
            }
        }
    }
    if let Err(panic) = scripts.join() {
        std::panic::resume_unwind(panic);
    }
}
