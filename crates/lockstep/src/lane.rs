//! One machine: a vCPU, its memory and devices, brought into a start state and run by a tier.
//!
//! A lane lives through many cases. Between two of them only what changed is restored, code by the way that DMA goes,
//! so that what a tier remembers of earlier code is put to the test.

use crate::case::Program;
use crate::hooks::{Control, Recorder, Script, Standstill};
use crate::kernel::{self, Entries, RETURN_TO, TSS_LEN};
use crate::layout::{
    ASYNC_STACK, CODE_GPA, COUNTERS, COUNTERS_GPA, DATA_GPA, DEVICE_GPA, FUEL, GDT, IDT, IDT_32, PAGE, RAM, SKIP,
    SYSTEM, TANK, TSS, TSS_32, WRITABLE, case_pages, get, leaf, page_tables, put,
};
use crate::mode::{GDT_LEN, Mode, TASK};
use crate::random::Random;
use crate::start::Start;
use crate::tier::Tier;
use crate::watchdog::Watchdog;
use crate::witness::Witness;
use cpu::Cpu;
use cpu::cpuid::Model;
use cpu::exec::interrupt::TripleFault;
use cpu::hooks::Signals;
use cpu::reset::Connections;
use cpu::run::Exit;
use cpu::state::{FS, Msrs, RIP, Shadow};
use memory::ram::GuestRam;
use memory::{Gpa, PhysicalMap};
use std::sync::Arc;
use x86::{Attributes, Cr0, Cr4, Efer, Rflags, Segment, Selector, TableRegister};

/// PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
/// PAE, PGE, OSFXSR, OSXMMEXCPT, FSGSBASE, PCIDE, OSXSAVE, PKE; less what the model does not have.
const CR4: u64 = 1 << 5 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 22;
/// CR0.PE and CR0.PG.
const PROTECTION: u64 = 1 | 1 << 31;
/// CR4.PCIDE.
const PCIDE: u64 = 1 << 17;
/// SCE, NXE.
const EFER: u64 = 0x801;
/// The same with LME and LMA.
const EFER_LONG: u64 = EFER | 0x500;
/// In a value for CR3: keep the address space's translations.
const KEEP: u64 = 1 << 63;
/// STAR: SYSCALL loads CS and SS from 08h, SYSRET from 1Bh.
const STAR: u64 = 0x001b_0008 << 32;
/// SYSCALL clears TF, IF, DF, NT and AC.
const SFMASK: u64 = 0x4_4700;

/// The machine before any case: contents of RAM, and where the kernel is entered.
#[derive(Clone, Debug)]
pub struct Image {
    /// RAM from address zero.
    pub ram: Vec<u8>,
    /// Where SYSCALL goes.
    pub entries: Entries,
    /// The CPU model: the fullest.
    pub model: Arc<Model>,
}

impl Image {
    /// Page tables, kernel, and data of all kinds.
    ///
    /// # Panics
    /// The kernel does not assemble, which is an error in it.
    #[must_use]
    pub fn new() -> Self {
        let mut ram = vec![0; RAM];
        let mut random = Random::new(0x1a9e);
        for (start, len) in WRITABLE.into_iter().filter(|(start, _)| (DATA_GPA..COUNTERS_GPA).contains(start)) {
            for word in 0..len / 8 {
                let value = match random.below(4) {
                    0 => crate::layout::spot(&mut random),
                    1 => f64::from(random.bits() as i32).to_bits(),
                    _ => random.value(),
                };
                put(&mut ram, start + 8 * word, value);
            }
        }
        // Whoever leaves the code finds INT3, which is a line in the log.
        ram[CODE_GPA as usize..][..3 * PAGE as usize].fill(0xcc);
        put(&mut ram, COUNTERS_GPA + FUEL - COUNTERS, TANK);
        page_tables(&mut ram);
        let entries = kernel::write(&mut ram).expect("the kernel assembles");
        Self { ram, entries, model: Arc::new(Model::max()) }
    }
}

impl Default for Image {
    fn default() -> Self {
        Self::new()
    }
}

/// How a case ended.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// The guest said so.
    Ended,
    /// The processor shut down.
    Shutdown(TripleFault),
    /// The case did not end in time.
    Endless,
    /// The tier returned though nothing asked it to.
    Astray,
}

impl PartialEq for Outcome {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Shutdown(a), Self::Shutdown(b)) => (a.cs, a.rip, a.first) == (b.cs, b.rip, b.first),
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// A machine that cases run on.
#[derive(Debug)]
pub struct Lane {
    /// The vCPU.
    pub cpu: Cpu,
    /// The recording device.
    pub recorder: Arc<Recorder>,
    /// The local APIC.
    pub apic: Arc<Script>,
    /// Who sees all accesses, if somebody does.
    pub witness: Option<Arc<Witness>>,
    control: Arc<Control>,
    image: Arc<Image>,
    /// As they are after reset.
    msrs: Msrs,
    /// Page-table entries whose accessed and dirty bits were cleared.
    cold: Vec<u64>,
    /// After how many instructions interrupts are still to be asked for.
    interrupts: std::vec::IntoIter<u64>,
    /// Entries of the table of lengths that are set.
    lengths: Vec<usize>,
}

impl Lane {
    /// A machine with the fullest CPU model.
    ///
    /// # Panics
    /// The host gives no memory.
    #[must_use]
    pub fn new(image: Arc<Image>) -> Self {
        let ram = GuestRam::new(RAM as u64).expect("the host has memory");
        let mut map = PhysicalMap::new(ram).expect("the host has memory");
        let signals = Arc::new(Signals::default());
        let apic = Arc::new(Script::new(signals.clone()));
        let recorder = Arc::<Recorder>::default();
        map.add_mmio(Gpa(DEVICE_GPA)..Gpa(DEVICE_GPA + PAGE), recorder.clone()).expect("a range");
        map.write(Gpa(0), &image.ram).expect("RAM is there");
        let map = Arc::new(map);
        let control = Arc::new(Control::new(signals.clone(), apic.clone(), map.clone()));
        let (ports, clock) = (control.clone(), Arc::new(Standstill));
        let connections = Connections { map, signals, ports, apic: apic.clone(), clock };
        let mut cpu = Cpu::new(0, image.model.clone(), connections);
        cpu.reset();
        let msrs = cpu.msrs;
        let (cold, lengths, interrupts) = (Vec::new(), Vec::new(), Vec::new().into_iter());
        Self { cpu, recorder, apic, witness: None, control, image, msrs, cold, interrupts, lengths }
    }

    /// Has all accesses seen from now on; `records`: translated code may make records of them.
    #[must_use]
    pub fn observed(mut self, records: bool) -> Self {
        let witness = Arc::new(Witness::new(records));
        self.cpu.mmu.set_observer(Some(witness.clone()));
        self.witness = Some(witness);
        self
    }

    /// Puts a program and the state it begins with in place.
    pub fn load(&mut self, program: &Program, start: &Start) {
        self.load_memory(program, start);
        self.load_cpu(program, start);
        self.apic.reset(start.storm);
        self.control.reset();
        self.recorder.records().clear();
        if let Some(witness) = &self.witness {
            witness.seen().clear();
            // Interrupts at other times have left other values, and what a write replaces is seen too.
            self.poke(ASYNC_STACK, &[0; PAGE as usize]);
        }
        self.cpu.instructions = 0;
        self.cpu.stop_at = (!start.interrupts.is_empty()).then_some(0);
        self.interrupts = start.interrupts.clone().into_iter();
    }

    fn load_memory(&mut self, program: &Program, start: &Start) {
        if start.mode == Mode::Real {
            // Here also that is seen which is the kernel's own elsewhere.
            self.restore(0, &self.ram(), &self.image.ram);
        }
        let map = self.cpu.mmu.map().clone();
        let write = |gpa: u64, bytes: &[u8]| map.write(Gpa(gpa), bytes).expect("RAM is there");
        for at in self.lengths.drain(..) {
            write(SKIP + at as u64, &[0]);
        }
        for &(at, len) in &program.lengths {
            self.lengths.push(program.offset + at);
            write(SKIP + (program.offset + at) as u64, &[len]);
        }
        write(CODE_GPA + program.offset as u64, &program.code);
        write(RETURN_TO, &[start.cpl]);
        let mut flush = !self.cold.is_empty();
        for at in self.cold.drain(..) {
            write(at, &get(&self.image.ram, at).to_le_bytes());
        }
        for (n, va) in case_pages().enumerate().filter(|(n, _)| start.cold >> n & 1 != 0) {
            let at = leaf(start.world, start.mode.linear(va));
            // Half of them have been read before.
            let clear = if n & 1 == 0 { 0x60 } else { 0x40 };
            write(at, &(get(&self.image.ram, at) & !clear).to_le_bytes());
            self.cold.push(at);
            flush = true;
        }
        if flush {
            self.cpu.mmu.flush_all();
        }
    }

    fn load_cpu(&mut self, program: &Program, start: &Start) {
        let (mode, entries) = (start.mode, self.image.entries);
        let cpu = &mut self.cpu;
        let not = if mode == Mode::Real { PROTECTION } else { 0 };
        let (cr0, pcid) = (Cr0::from_bits((CR0 ^ start.cr0) & !not), if mode.is_long() { 0 } else { PCIDE });
        let cr4 = Cr4::from_bits((CR4 ^ start.cr4) & !pcid & cpu.model.cr4_supported().into_bits());
        let efer = Efer::from_bits(if mode.is_long() { EFER_LONG } else { EFER });
        let registers = (cr0, cr4, efer, start.pkru);
        let tables = mode.root(start.world) | if cr4.pcid() { start.world.pcid() } else { 0 };
        if (cpu.cr0, cpu.cr4, cpu.efer, cpu.pkru) != registers {
            if cpu.efer != efer || cpu.cr0.paging() != cr0.paging() || cpu.cr4.pcid() != cr4.pcid() {
                // Whatever the old tables were they are not those of this mode.
                cpu.cr3 = tables;
            }
            (cpu.cr0, cpu.cr4, cpu.efer, cpu.pkru) = registers;
            cpu.update_paging();
        }
        if cpu.cr3 != tables {
            let keep = if cr4.pcid() { KEEP } else { 0 };
            cpu.set_cr3(tables | keep).expect("page tables");
        }
        cpu.seg = mode.segments(start.cpl);
        for (segment, base) in cpu.seg[FS..].iter_mut().zip(start.bases) {
            segment.base = base;
            if mode.is_8086() {
                segment.selector = Selector::from_bits((base >> 4) as u16);
            }
        }
        cpu.regs = [0; 32];
        cpu.regs[..16].copy_from_slice(&start.gpr);
        cpu.regs[RIP] = program.entry();
        cpu.status = start.flags;
        cpu.system_flags = Rflags::from_bits(start.flags | 2).with_virtual_8086(mode == Mode::Virtual8086);
        cpu.vector = (*start.vector).clone();
        cpu.msrs = self.msrs;
        cpu.msrs.star = STAR;
        cpu.msrs.lstar = entries.long;
        cpu.msrs.cstar = entries.compatibility;
        cpu.msrs.sfmask = SFMASK;
        cpu.msrs.kernel_gs_base = start.bases[0];
        cpu.xcr0 = cpu.model.xcr0_supported();
        cpu.dr = [0; 8];
        cpu.dr[6] = cpu::debug::DR6_ONES;
        cpu.dr[..4].copy_from_slice(&start.breakpoints);
        cpu.dr[7] = cpu::debug::DR7_ONES | start.armed;
        cpu.cr2 = 0;
        cpu.fault_address = 0;
        cpu.shadow = Shadow::None;
        (cpu.nmi_blocked, cpu.halted, cpu.stepping, cpu.debug_pending) = (false, false, false, 0);
        let (system, idt, limit, tss) = match mode {
            Mode::Real => (0, 0, 0x3ff, TSS_32),
            _ if mode.is_long() => (SYSTEM, IDT, 0xfff, TSS),
            _ => (SYSTEM & 0xffff_ffff, IDT_32, 0x7ff, TSS_32),
        };
        cpu.gdtr = TableRegister { base: system + GDT, limit: GDT_LEN - 1 };
        cpu.idtr = TableRegister { base: system + idt, limit };
        cpu.ldtr = Segment::default();
        cpu.tr = Segment {
            base: system + tss,
            limit: TSS_LEN as u32 - 1,
            selector: Selector::from_bits(TASK),
            attributes: Attributes::new().with_kind(11).with_present(true),
        };
        cpu.update_mode();
    }

    /// Runs what was loaded to its end.
    ///
    /// # Panics
    /// The tier finds that it has a bug.
    pub fn run(&mut self, tier: &mut dyn Tier, watchdog: &Watchdog) -> Outcome {
        let guard = watchdog.watch(&self.cpu.signals);
        let mut asks = false;
        loop {
            if let Some(stop) = &mut self.cpu.stop_at {
                if std::mem::replace(&mut asks, true) {
                    self.control.ask();
                }
                *stop = self.interrupts.next().map_or(u64::MAX, |gap| *stop + gap);
            }
            match tier.run(&mut self.cpu) {
                Exit::TripleFault(fault) => return Outcome::Shutdown(fault),
                Exit::Bug(report) => panic!("{report}"),
                Exit::Counted if Some(self.cpu.instructions) == self.cpu.stop_at => {}
                Exit::Stopped if self.control.ended() => return Outcome::Ended,
                Exit::Stopped if guard.expired() => return Outcome::Endless,
                Exit::Counted | Exit::Stopped => return Outcome::Astray,
            }
        }
    }

    /// Guest physical addresses of the page-table entries whose accessed and dirty bits the case found clear.
    #[must_use]
    pub fn cold(&self) -> &[u64] {
        &self.cold
    }

    /// Reads RAM.
    ///
    /// # Panics
    /// There is no RAM at `gpa`.
    pub fn peek(&self, gpa: u64, bytes: &mut [u8]) {
        self.cpu.mmu.map().read(Gpa(gpa), bytes).expect("RAM is there");
    }

    /// Writes RAM, as a device would.
    ///
    /// # Panics
    /// There is no RAM at `gpa`.
    pub fn poke(&self, gpa: u64, bytes: &[u8]) {
        self.cpu.mmu.map().write(Gpa(gpa), bytes).expect("RAM is there");
    }

    /// Writes back what differs from the image, and no more: what a tier knows of other code in the page stays.
    pub fn restore(&self, gpa: u64, now: &[u8], clean: &[u8]) {
        const CHUNK: usize = 64;
        if now == clean {
            return;
        }
        for (n, (now, clean)) in now.chunks(CHUNK).zip(clean.chunks(CHUNK)).enumerate() {
            if now != clean {
                self.poke(gpa + (n * CHUNK) as u64, clean);
            }
        }
    }

    /// All of RAM.
    ///
    /// # Panics
    /// Never: RAM is there.
    #[must_use]
    pub fn ram(&self) -> Vec<u8> {
        let mut ram = vec![0; RAM];
        self.peek(0, &mut ram);
        ram
    }
}
