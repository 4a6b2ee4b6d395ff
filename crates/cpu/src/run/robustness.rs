//! Random bytes as code in every mode, with random registers, tables, breakpoints and interrupts: whatever a guest
//! does, the interpreter neither panics nor hangs nor harms the process it runs in.
//!
//! `VITRINE_CASES` makes it longer, `VITRINE_SEED` repeats a case: each case has a seed of its own, printed when it
//! fails (a panic) or takes too long (the watchdog prints it and ends the process).

use super::*;
use crate::cpuid::Model;
use crate::hooks::{LocalApic, PortIo};
use crate::reset::Connections;
use crate::state::{RAX, RSP};
use crate::testing::TestClock;
use memory::observe::{Access, Interest, Observer};
use memory::ram::GuestRam;
use memory::{Gpa, Gva, Mmio, PhysicalMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use x86::{Attributes, Cr4, Rflags, Segment, Selector, TableRegister, msr};

/// RAM from address zero.
const RAM: u64 = 2 << 20;
/// A device right behind RAM, and a ROM right behind the device.
const DEVICE: u64 = RAM;
const ROM: u64 = DEVICE + 0x2000;
/// How long one case may take before the watchdog calls it a hang: some thousand times what it takes.
const PATIENCE: Duration = Duration::from_secs(30);

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
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
    /// A register's value: mostly an address in RAM, often near the end of a page, a segment or the address space.
    fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => self.next() & 0xffff_ffff,
            2 => self.next() & 0xffff,
            3 => self
                .pick(&[0, 1, 0xffff, 0x1_0000, 0xffff_ffff, 1 << 47, 0xffff_8000_0000_0000, u64::MAX, RAM])
                .wrapping_sub(self.below(20)),
            4 => (self.below(RAM + 0x4000) & !0xfff).wrapping_sub(self.below(20)),
            _ => self.below(RAM + 0x4000),
        }
    }
}

/// Ports and a device that answer with something else each time.
#[derive(Debug, Default)]
struct Noise(AtomicU64);

impl Noise {
    fn next(&self) -> u64 {
        self.0.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }
}

impl PortIo for Noise {
    fn read(&self, _: u16, _: usize) -> u32 {
        (self.next() >> 32) as u32
    }
    fn write(&self, _: u16, _: usize, _: u32) {}
}

impl Mmio for Noise {
    fn read(&self, _: usize, _: u64, _: usize) -> u64 {
        self.next()
    }
    fn write(&self, _: usize, _: u64, _: usize, _: u64) {}
}

impl Observer for Noise {
    fn interest(&self, _: Gva, gpa: Gpa) -> Interest {
        let watched = gpa.0 & 0x3000 == 0;
        Interest { read: watched, write: watched, fetch: gpa.0 & 0x7000 == 0 }
    }
    fn wants_walks(&self, _: Gpa) -> bool {
        true
    }
    fn access(&self, _: &Access) {}
}

/// Always has an interrupt for who asks.
impl LocalApic for Noise {
    fn acknowledge(&self) -> Option<u8> {
        let vector = self.next() >> 32;
        (vector & 15 != 0).then_some((vector >> 8) as u8)
    }
    fn task_priority(&self) -> u8 {
        self.next() as u8 & 15
    }
    fn set_task_priority(&self, _: u8) {}
    fn read_msr(&self, number: u32) -> Option<u64> {
        (number == msr::APIC_BASE).then_some(0xfee0_0900)
    }
    fn write_msr(&self, _: u32, value: u64) -> Option<()> {
        (value & 1 == 0).then_some(())
    }
    fn set_deadline(&self, _: Option<u64>) {}
    fn deadline(&self) -> Option<u64> {
        Some(self.next())
    }
    fn init(&self) {}
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    Real,
    Virtual8086,
    Protected16,
    Protected32,
    Compatibility,
    Long,
}

const MODES: [Mode; 6] =
    [Mode::Real, Mode::Virtual8086, Mode::Protected16, Mode::Protected32, Mode::Compatibility, Mode::Long];

struct Fuzz {
    cpu: Cpu,
    clock: Arc<TestClock>,
    noise: Arc<Noise>,
    random: Random,
    /// Mode of the last case.
    last: Option<Mode>,
}

impl Fuzz {
    fn new(model: &str) -> Self {
        let mut map = PhysicalMap::new(GuestRam::new(RAM).unwrap()).unwrap();
        let noise = Arc::<Noise>::default();
        map.add_mmio(Gpa(DEVICE)..Gpa(ROM), noise.clone()).unwrap();
        map.add_rom(Gpa(ROM), &[0xf3, 0xa4, 0x0f, 0xae, 0x90, 0x66, 0xeb, 0xf0].repeat(512)).unwrap();
        let clock = Arc::<TestClock>::default();
        let connections = Connections {
            map: Arc::new(map),
            signals: Arc::new(Signals::default()),
            ports: noise.clone(),
            apic: noise.clone(),
            clock: clock.clone(),
        };
        let model = Arc::new(Model::parse(model).unwrap());
        Self { cpu: Cpu::new(0, model, connections), clock, noise, random: Random(1), last: None }
    }

    fn page(&mut self) -> u64 {
        self.random.below(RAM >> 12) << 12
    }

    fn poke(&mut self, gpa: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        // What lies beyond RAM is left out.
        let _ = self.cpu.mmu.map().write(Gpa(gpa), &bytes);
    }

    /// Random bytes everywhere, in different mixtures.
    fn fill(&mut self) {
        let random = &mut self.random;
        for page in 0..RAM >> 12 {
            let mut bytes = [0u8; 4096];
            for chunk in bytes.chunks_exact_mut(8) {
                let mut word = random.next();
                if page & 1 == 0 && random.one_in(3) {
                    let first = [
                        0x0f, 0x66, 0xf3, 0xf2, 0x67, 0x2e, 0x64, 0xf0, 0x48, 0x41, 0xc4, 0xc5, 0x62, 0x8f, 0xcd, 0xcf,
                        0x9d, 0x8e, 0x17, 0xea, 0xca, 0xc8, 0xa4, 0xa5, 0xab, 0xe4, 0xef, 0x6d, 0xfb, 0xf4, 0x60, 0x61,
                    ];
                    word = word & !0xff | random.pick::<u64>(&first);
                    if random.one_in(4) {
                        let second = [0x00, 0x01, 0x05, 0x07, 0x20, 0x22, 0x21, 0x23, 0x30, 0x32, 0xa2, 0xae, 0xc7];
                        word = word & !0xffff | 0x0f | random.pick::<u64>(&second) << 8;
                    }
                }
                chunk.copy_from_slice(&word.to_le_bytes());
            }
            self.cpu.mmu.map().write(Gpa(page << 12), &bytes).unwrap();
        }
    }

    fn descriptor(&mut self, long: bool) -> u64 {
        let random = &mut self.random;
        if random.one_in(8) {
            return random.next();
        }
        let base = if random.one_in(2) { 0 } else { random.below(RAM) };
        let kind = match random.below(3) {
            0 => 0x10 | 3,
            1 => 0x10 | 11,
            _ => random.below(32),
        };
        let present = u64::from(!random.one_in(8));
        let access = kind | random.below(4) << 5 | present << 7;
        let flags = match random.below(4) {
            0 => random.below(16),
            1 => 0,
            _ if long && kind & 8 != 0 => 0xa,
            _ => 0xc,
        };
        let limit = if random.one_in(2) { 0xf_ffff } else { random.below(0x10_0000) };
        limit & 0xffff
            | (base & 0xff_ffff) << 16
            | access << 40
            | (limit >> 16) << 48
            | flags << 52
            | (base >> 24) << 56
    }

    /// A GDT, an LDT, an IDT and a TSS, more or less in order.
    fn tables(&mut self, long: bool) {
        let (gdt, ldt, idt, tss) = (self.page(), self.page(), self.page(), self.page());
        let entries: Vec<u64> = (0..256).map(|_| self.descriptor(long)).collect();
        self.poke(gdt, &entries);
        let entries: Vec<u64> = (0..64).map(|_| self.descriptor(long)).collect();
        self.poke(ldt, &entries);
        for vector in 0..if long { 256 } else { 512 } {
            let random = &mut self.random;
            let target = random.value() & if random.one_in(8) { u64::MAX } else { RAM - 1 };
            let kind = random.pick(&[14, 14, 14, 15, 6, 7, 5, 12]);
            let kind = if long && !random.one_in(8) { kind | 14 } else { kind };
            let access = kind | random.below(4) << 5 | u64::from(!random.one_in(8)) << 7;
            let selector = random.below(64) << 3 | random.below(8);
            let ist = if long && random.one_in(4) { random.below(8) } else { 0 };
            let gate = target & 0xffff | selector << 16 | ist << 32 | access << 40 | (target >> 16 & 0xffff) << 48;
            if long {
                self.poke(idt + vector * 16, &[gate, target >> 32]);
            } else {
                self.poke(idt + vector * 8, &[gate]);
            }
        }
        let stacks: Vec<u64> = (0..16).map(|_| self.random.value()).collect();
        self.poke(tss, &stacks);
        let short = self.random.one_in(4);
        let limit = |random: &mut Random| if short { random.below(0x100) as u16 } else { 0x0fff };
        self.cpu.gdtr = TableRegister { base: gdt, limit: limit(&mut self.random) };
        self.cpu.idtr = TableRegister { base: idt, limit: limit(&mut self.random) };
        let system = |base, kind, limit: u16| Segment {
            base,
            limit: limit.into(),
            selector: Selector::from_bits(0x28),
            attributes: Attributes::new().with_kind(kind).with_present(true),
        };
        let kind = if long || self.random.one_in(2) { 11 } else { 3 };
        self.cpu.tr = system(tss, kind, limit(&mut self.random));
        self.cpu.ldtr = system(ldt, 2, limit(&mut self.random));
    }

    /// Page tables: most of the time RAM onto itself with random rights, else whatever lies in memory.
    fn paging(&mut self, long: bool) {
        let pae = long || self.random.one_in(2);
        let mut cr4 = Cr4::new().with_physical_address_extension(pae).into_bits();
        cr4 |= self.random.next() & self.cpu.model.cr4_supported().into_bits() & !(1 << 5 | 1 << 12);
        let (root, second, third, fourth) = (self.page(), self.page(), self.page(), self.page());
        let rights = |random: &mut Random| {
            let odd = if random.one_in(4) { random.next() & 0xe00 | random.below(16) << 59 } else { 0 };
            odd | random.below(2) << 8 | if random.one_in(4) { random.below(8) } else { 7 }
        };
        let random = &mut self.random;
        if long {
            let top = [second | rights(random)];
            let middle = [third | rights(random)];
            let directory = [if random.one_in(2) { 0x80 | rights(random) } else { fourth | rights(random) }];
            // The whole address space shows the same gigabyte.
            self.poke(root, &top.repeat(512));
            self.poke(second, &middle.repeat(512));
            self.poke(third, &directory.repeat(512));
        } else if pae {
            let directory = [if random.one_in(2) { 0x80 | rights(random) } else { fourth | rights(random) }];
            self.poke(root, &[second | 1; 4]);
            self.poke(second, &directory.repeat(512));
        } else {
            let directory = if random.one_in(2) { 0x80 | rights(random) } else { fourth | rights(random) };
            let directory = directory & 0xffff_ffff;
            self.poke(root, &[directory | directory << 32; 512]);
        }
        let leaves: Vec<u64> = (0..512u64)
            .map(|n| {
                let to = if self.random.one_in(16) { self.random.next() & 0xf_ffff_ffff_f000 } else { n << 12 };
                to | if self.random.one_in(8) { self.random.below(512) } else { 7 }
            })
            .collect();
        self.poke(fourth, &leaves);
        let root = if self.random.one_in(12) { self.page() } else { root };
        let lower = if self.random.one_in(4) { 0x8000_0011 } else { 0x8001_0011 };
        let cr0 =
            lower | self.random.below(2) << 18 | if self.random.one_in(4) { self.random.below(16) << 1 } else { 0 };
        let cpu = &mut self.cpu;
        // A step that is refused leaves a machine that is as good for this.
        let _ = cpu.set_cr4(cr4 & !(1 << 17));
        let _ = cpu.set_cr3(root);
        let _ = cpu.write_msr(msr::EFER, if long { 0xd01 } else { 0x801 });
        let _ = cpu.set_cr0(cr0);
        let _ = cpu.set_cr4(cr4);
    }

    fn set_up(&mut self, mode: Mode) {
        self.cpu.reset();
        self.cpu.signals.lower(u32::MAX);
        let long = matches!(mode, Mode::Long | Mode::Compatibility);
        let protected = !matches!(mode, Mode::Real);
        let observed = self.random.one_in(8);
        self.cpu.mmu.set_observer(observed.then(|| self.noise.clone() as Arc<dyn Observer>));
        self.cpu.set_cr0(0x10 | u64::from(protected)).unwrap();
        if protected {
            self.tables(long);
            if long || self.random.one_in(2) {
                self.paging(long);
            }
        } else {
            let cr4 = self.random.next() & self.cpu.model.cr4_supported().into_bits() & !(1 << 17 | 1 << 12);
            let _ = self.cpu.set_cr4(cr4);
        }
        let _ = self.cpu.write_msr(msr::EFER, self.cpu.efer.into_bits() | 1);
        self.segments(mode);
        let cpu = &mut self.cpu;
        let random = &mut self.random;
        for (n, register) in cpu.regs.iter_mut().take(16).enumerate() {
            *register = if n == RSP { random.below(RAM) & !7 } else { random.value() };
        }
        cpu.regs[RIP] = random.below(if long { RAM } else { 0x10000 });
        let v86 = matches!(mode, Mode::Virtual8086);
        let flags = random.next() & 0x0020_0ed5
            | random.below(4) << 12
            | u64::from(random.one_in(8)) << 8
            | u64::from(random.one_in(16)) << 16
            | u64::from(v86) << 17
            | random.below(2) << 18;
        cpu.set_rflags(flags, u64::MAX);
        if cpu.cr4.os_xsave() {
            cpu.xcr0 = x86::Xcr0::from_bits(if random.one_in(4) { 3 } else { 7 });
        }
        for number in [msr::LSTAR, msr::CSTAR, msr::STAR, 0x174, 0x175, 0x176, msr::KERNEL_GS_BASE] {
            let _ = cpu.write_msr(number, random.value());
        }
        if random.one_in(4) {
            self.breakpoints();
        }
        self.cpu.update_mode();
    }

    fn segments(&mut self, mode: Mode) {
        let cpl = if self.random.one_in(2) { 0 } else { self.random.below(4) as u8 };
        for register in 0..6 {
            let random = &mut self.random;
            let selector = Selector::from_bits(random.next() as u16);
            self.cpu.seg[register] = match mode {
                Mode::Real | Mode::Virtual8086 => {
                    let segment = Segment::real_mode(selector.into_bits());
                    let dpl = if matches!(mode, Mode::Real) { 0 } else { 3 };
                    Segment { attributes: segment.attributes.with_dpl(dpl), ..segment }
                }
                _ => {
                    let code = register == CS;
                    let wide = match mode {
                        Mode::Protected32 | Mode::Compatibility => !code || !random.one_in(4),
                        _ => !code && random.one_in(2),
                    };
                    let data = if random.one_in(6) { 7 } else { 3 };
                    let attributes = Attributes::new()
                        .with_kind(if code { 11 } else { data })
                        .with_code_or_data(true)
                        .with_present(true)
                        .with_dpl(cpl)
                        .with_long(code && matches!(mode, Mode::Long))
                        .with_big(wide);
                    let flat = random.one_in(2);
                    let base = if flat { 0 } else { random.value() & 0xffff_ffff };
                    let limit = if flat { u32::MAX } else { random.value() as u32 };
                    Segment { base, limit, selector: selector.with_rpl(cpl), attributes }
                }
            };
        }
    }

    fn breakpoints(&mut self) {
        for n in 0..4 {
            let value = self.random.value();
            self.cpu.set_debug_register(n, value);
        }
        let control = self.random.next() & self.random.next();
        self.cpu.set_debug_register(7, control & 0xffff_ffff);
    }

    /// What may happen between two blocks.
    fn disturb(&mut self) {
        let random = &mut self.random;
        self.clock.0.fetch_add(random.below(1000), SeqCst);
        let signals = &self.cpu.signals;
        match random.below(256) {
            0..8 => signals.raise(Signals::INTERRUPT),
            8..12 => signals.lower(Signals::INTERRUPT),
            12..14 => signals.raise(Signals::NMI),
            14 if random.one_in(8) => {
                signals.raise(Signals::INIT);
                signals.raise_sipi(random.next() as u8);
            }
            15..18 => self.cpu.set_rflags(1 << 8, 1 << 8),
            18 => self.breakpoints(),
            19..24 => {
                let (register, value) = (random.below(16) as usize, random.value());
                self.cpu.regs[RAX + register] = value;
            }
            24..32 => {
                let rip = random.below(RAM);
                self.cpu.regs[RIP] = rip;
            }
            32 => {
                let (at, word) = (random.below(RAM - 8), random.next());
                self.poke(at, &[word]);
            }
            _ => {}
        }
    }

    /// Runs one case: a machine from the seed, `blocks` blocks or instructions on it.
    fn case(&mut self, interpreter: &mut Interpreter, seed: u64, blocks: u64) {
        self.random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        self.noise.0.store(seed, SeqCst);
        self.clock.0.store(0, SeqCst);
        let mode = self.random.pick(&MODES);
        self.last = Some(mode);
        self.fill();
        self.set_up(mode);
        for _ in 0..blocks {
            self.disturb();
            self.cpu.halted = false;
            // INIT comes with a start-up IPI, so that this never waits.
            if self.cpu.must_poll() && self.cpu.poll(interpreter).is_err() {
                self.set_up(mode);
            }
            let careful = self.cpu.careful || self.cpu.shadow != Shadow::None || self.random.one_in(16);
            // With a request waiting the loop ends after one block.
            self.cpu.signals.raise(Signals::STOP);
            let result = if careful { self.cpu.single_step(interpreter) } else { self.cpu.run_blocks(interpreter) };
            self.cpu.signals.lower(Signals::STOP);
            self.invariants();
            // A processor that shut down starts anew, with the same memory.
            if result.is_err() {
                self.set_up(mode);
            }
        }
    }

    /// What must hold however strange the guest.
    fn invariants(&self) {
        let cpu = &self.cpu;
        assert_eq!(cpu.regs[crate::state::ZERO], 0, "the register that is always zero");
        assert_eq!(cpu.rflags().into_bits() & !0x003f_7fd7 | 2, 2, "reserved flags are zero");
        assert!(cpu.cpl <= 3);
        assert!(
            !cpu.system_flags.virtual_8086() || cpu.cpl == 3 || !cpu.cr0.protection(),
            "virtual-8086 mode is CPL 3"
        );
        assert_eq!(cpu.long_mode(), cpu.efer.long_mode_enable() && cpu.cr0.paging(), "LMA = LME and PG");
        assert!(!cpu.cr0.paging() || cpu.cr0.protection());
        assert_eq!(Rflags::from_bits(cpu.status & Rflags::STATUS).into_bits() & 2, 0);
    }
}

/// Ends the process, with the seed, when a case never ends.
struct Watchdog {
    current: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watchdog {
    fn new() -> Self {
        let (current, stop) = <(Arc<AtomicU64>, Arc<AtomicBool>)>::default();
        let (watched, stopped) = (current.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let (mut last, mut since) = (0, std::time::Instant::now());
            while !stopped.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
                let now = watched.load(SeqCst);
                if now != last {
                    (last, since) = (now, std::time::Instant::now());
                } else if since.elapsed() > PATIENCE {
                    eprintln!("VITRINE_SEED={now} does not end");
                    std::process::abort();
                }
            }
        });
        Self { current, stop, thread: Some(thread) }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if std::thread::panicking() {
            eprintln!("VITRINE_SEED={}", self.current.load(SeqCst));
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn cases(model: &str, first: u64, count: u64) {
    let watchdog = Watchdog::new();
    let mut fuzz = Fuzz::new(model);
    let mut interpreter = Interpreter::default();
    let seed = setting("VITRINE_SEED");
    let (first, count) =
        (seed.unwrap_or(first), if seed.is_some() { 1 } else { setting("VITRINE_CASES").unwrap_or(count) });
    for seed in first..first.saturating_add(count) {
        watchdog.current.store(seed, SeqCst);
        // A case does not depend on those before it.
        interpreter.cache.clear();
        let before = fuzz.cpu.instructions;
        fuzz.case(&mut interpreter, seed, 2000);
        if std::env::var_os("VITRINE_TRACE").is_some() {
            eprintln!("seed {seed}: {} instructions, {:?}", fuzz.cpu.instructions - before, fuzz.last);
        }
    }
    let each = fuzz.cpu.instructions / count;
    assert!(each > 1000 || seed.is_some(), "{each} instructions a case: the cases die too soon to test anything");
}

#[test]
fn random_code_is_survived_by_the_fullest_model() {
    cases("max", 1, 160);
}

#[test]
fn random_code_is_survived_by_the_plainest_model() {
    cases("qemu64", 1_000_000, 100);
}
