//! One machine: a vCPU, its memory and devices, brought into a start state and run by a tier.
//!
//! A lane lives through many cases. Between two of them only what changed is restored, code by the way that DMA goes,
//! so that what a tier remembers of earlier code is put to the test.

use crate::case::Program;
use crate::hooks::{Control, NoPorts, Recorder, Script, Standstill};
use crate::kernel::{self, CODE0, CODE0_32, CODE3, CODE3_32, DATA0, DATA3, Entries, GDT_LEN, RETURN_TO, TASK};
use crate::layout::{
    CODE_GPA, CONTROL_GPA, COUNTERS, COUNTERS_GPA, DATA_GPA, DEVICE_GPA, DEVICES_END, FUEL, GDT, IDT, PAGE, RAM, SKIP,
    SYSTEM, TANK, TSS, WRITABLE, World, case_pages, get, leaf, page_tables, put,
};
use crate::random::Random;
use crate::start::Start;
use crate::tier::Tier;
use crate::watchdog::Watchdog;
use cpu::Cpu;
use cpu::cpuid::Model;
use cpu::exec::interrupt::TripleFault;
use cpu::hooks::Signals;
use cpu::reset::Connections;
use cpu::run::Exit;
use cpu::state::{CS, FS, GS, RIP, SS, Shadow};
use memory::ram::GuestRam;
use memory::{Gpa, PhysicalMap};
use std::sync::Arc;
use x86::{Attributes, Cr0, Cr4, Rflags, Segment, Selector, TableRegister, msr};

/// PE, MP, ET, NE, WP, AM, PG.
const CR0: u64 = 0x8005_0033;
/// PAE, PGE, OSFXSR, OSXMMEXCPT, FSGSBASE, PCIDE, OSXSAVE, PKE; less what the model does not have.
const CR4: u64 = 1 << 5 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 22;
/// SCE, LME, NXE; LMA comes by itself.
const EFER: u64 = 0x901;
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
    control: Arc<Control>,
    image: Arc<Image>,
    /// Page-table entries whose accessed and dirty bits were cleared.
    cold: Vec<u64>,
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
        let control = Arc::new(Control::new(signals.clone(), apic.clone()));
        map.add_mmio(Gpa(DEVICE_GPA)..Gpa(CONTROL_GPA), recorder.clone()).expect("a range");
        map.add_mmio(Gpa(CONTROL_GPA)..Gpa(DEVICES_END), control.clone()).expect("a range");
        map.write(Gpa(0), &image.ram).expect("RAM is there");
        let connections = Connections {
            map: Arc::new(map),
            signals,
            ports: Arc::new(NoPorts),
            apic: apic.clone(),
            clock: Arc::new(Standstill),
        };
        let cpu = Cpu::new(0, image.model.clone(), connections);
        let mut lane = Self { cpu, recorder, apic, control, image, cold: Vec::new(), lengths: Vec::new() };
        lane.power_on();
        lane
    }

    /// From reset to long mode.
    fn power_on(&mut self) {
        let entries = self.image.entries;
        let cpu = &mut self.cpu;
        cpu.reset();
        let cr4 = CR4 & cpu.model.cr4_supported().into_bits();
        let [code, data] = [flat(CODE0, 11, 0, 64), flat(DATA0, 3, 0, 32)];
        cpu.set_cr0(0x11).expect("protected mode");
        cpu.seg = [data; 6];
        cpu.set_cr4(cr4 & !(1 << 17)).expect("PAE");
        cpu.set_cr3(World::Kernel.root()).expect("page tables");
        cpu.write_msr(msr::EFER, EFER).expect("LME");
        cpu.set_cr0(CR0).expect("long mode");
        cpu.seg[CS] = code;
        cpu.update_mode();
        cpu.set_cr4(cr4).expect("PCIDs");
        let values = [(msr::STAR, STAR), (msr::LSTAR, entries.long), (msr::CSTAR, entries.compatibility)];
        for (number, value) in values.into_iter().chain([(msr::SFMASK, SFMASK)]) {
            cpu.write_msr(number, value).expect("an MSR");
        }
        cpu.xcr0 = cpu.model.xcr0_supported();
    }

    /// Puts a program and the state it begins with in place.
    pub fn load(&mut self, program: &Program, start: &Start) {
        self.load_memory(program, start);
        self.load_cpu(program, start);
        self.apic.reset(start.storm);
        self.control.reset();
        self.recorder.records().clear();
    }

    fn load_memory(&mut self, program: &Program, start: &Start) {
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
            let at = leaf(start.world, va);
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
        if !self.cpu.efer.long_mode_active() || self.cpu.efer.into_bits() & !0x400 != EFER {
            self.power_on();
        }
        let entries = self.image.entries;
        let cpu = &mut self.cpu;
        let cr4 = (CR4 ^ start.cr4) & cpu.model.cr4_supported().into_bits();
        let keys = cpu.pkru != start.pkru;
        cpu.pkru = start.pkru;
        if cpu.cr0 != Cr0::from_bits(CR0 ^ start.cr0) || cpu.cr4 != Cr4::from_bits(cr4) || keys {
            cpu.cr0 = Cr0::from_bits(CR0 ^ start.cr0);
            cpu.cr4 = Cr4::from_bits(cr4);
            cpu.update_paging();
        }
        let pcid = if cpu.cr4.pcid() { start.world.pcid() } else { 0 };
        if cpu.cr3 != start.world.root() | pcid {
            let keep = if cpu.cr4.pcid() { KEEP } else { 0 };
            cpu.set_cr3(start.world.root() | pcid | keep).expect("page tables");
        }
        let (code, data) = match (start.cpl, start.bits) {
            (0, 64) => (CODE0, DATA0),
            (0, _) => (CODE0_32, DATA0),
            (_, 64) => (CODE3, DATA3),
            (..) => (CODE3_32, DATA3),
        };
        cpu.seg = [flat(data, 3, start.cpl, 32); 6];
        cpu.seg[CS] = flat(code, 11, start.cpl, start.bits);
        for (n, base) in [FS, GS].into_iter().zip(start.bases) {
            // In 32-bit code a base would come from a descriptor.
            cpu.seg[n].base = if start.bits == 64 { base } else { base & 0xffff_ffff };
        }
        cpu.seg[SS].selector = Selector::from_bits(data);
        cpu.regs = [0; 32];
        cpu.regs[..16].copy_from_slice(&start.gpr);
        cpu.regs[RIP] = program.entry();
        cpu.status = start.flags;
        cpu.system_flags = Rflags::from_bits(start.flags | 2);
        cpu.vector = (*start.vector).clone();
        cpu.msrs.star = STAR;
        cpu.msrs.lstar = entries.long;
        cpu.msrs.cstar = entries.compatibility;
        cpu.msrs.sfmask = SFMASK;
        cpu.msrs.kernel_gs_base = start.bases[0];
        cpu.xcr0 = cpu.model.xcr0_supported();
        cpu.dr = [0; 8];
        cpu.dr[6] = cpu::debug::DR6_ONES;
        cpu.dr[7] = cpu::debug::DR7_ONES;
        cpu.cr2 = 0;
        cpu.fault_address = 0;
        cpu.shadow = Shadow::None;
        (cpu.nmi_blocked, cpu.halted, cpu.stepping, cpu.debug_pending) = (false, false, false, 0);
        cpu.gdtr = TableRegister { base: SYSTEM + GDT, limit: GDT_LEN - 1 };
        cpu.idtr = TableRegister { base: SYSTEM + IDT, limit: 0xfff };
        cpu.ldtr = Segment::default();
        cpu.tr = Segment {
            base: SYSTEM + TSS,
            limit: 0x67,
            selector: Selector::from_bits(TASK),
            attributes: Attributes::new().with_kind(11).with_present(true),
        };
        cpu.update_mode();
    }

    /// Runs what was loaded to its end.
    pub fn run(&mut self, tier: &mut dyn Tier, watchdog: &Watchdog) -> Outcome {
        let guard = watchdog.watch(&self.cpu.signals);
        match tier.run(&mut self.cpu) {
            Exit::TripleFault(fault) => Outcome::Shutdown(fault),
            Exit::Stopped if self.control.ended() => Outcome::Ended,
            Exit::Stopped if guard.expired() => Outcome::Endless,
            Exit::Stopped => Outcome::Astray,
        }
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

/// A segment from 0 to 4 GiB.
fn flat(selector: u16, kind: u8, dpl: u8, bits: u32) -> Segment {
    let attributes = Attributes::new()
        .with_kind(kind)
        .with_code_or_data(true)
        .with_present(true)
        .with_dpl(dpl)
        .with_granular(true)
        .with_long(bits == 64)
        .with_big(bits != 64);
    Segment { base: 0, limit: u32::MAX, selector: Selector::from_bits(selector), attributes }
}
