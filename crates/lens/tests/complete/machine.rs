//! A vCPU with hand-made page tables, GDT, IDT and TSS, and a device that makes DMA, all of whose accesses are watched; a
//! program for it, and the list of accesses that the manuals say it makes.
//!
//! The list is computed from a copy of memory: what a read finds and a write replaces is not taken from the vCPU.

use cpu::Cpu;
use cpu::cpuid::Model;
use cpu::hooks::{Clock, LocalApic, PortIo, Signals};
use cpu::reset::Connections;
use cpu::run::{Exit, Interpreter};
use cpu::state::{CS, RIP, RSP};
use devices::fw_cfg::{self, FwCfg, Items};
use devices::{PortDevice, Reset};
use iced_x86::code_asm::CodeAssembler;
use iced_x86::{Decoder, IcedError};
use jit::{Config, Jit};
use memory::observe::{Batch, Interest};
use memory::ram::GuestRam;
use memory::{Access, AccessKind, Agent, Dma, Gpa, Gva, Observer, PhysicalMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use x86::{Attributes, Cr0, Cr4, Efer, Segment, Selector, TableRegister, Xcr0};

/// Where programs are; the first 2 MiB are mapped to themselves by a large page.
pub const CODE: u64 = 0x1_0000;
/// The initial stack pointer.
pub const STACK: u64 = 0x2_0800;
/// The stack that the TSS names for CPL 0.
pub const INNER: u64 = 0x3_0000;
/// The GDT: code and data for CPL 0 at 8 and 10h, for CPL 3 at 18h and 20h, data that was never loaded at 28h.
pub const GDT: u64 = 0x5000;
/// The IDT, with gates to what [`Case::handler`] says.
pub const IDT: u64 = 0x6000;
/// The TSS.
pub const TSS: u64 = 0x5800;
/// Eight pages of 4 KiB that are in no order in physical memory, never accessed before.
pub const DATA: u64 = 0x80_0000_0000;
/// Their page tables, from the one that CR3 does not point to downwards.
pub const DATA_TABLES: [u64; 3] = [0xa000, 0xb000, 0xc000];
/// Where RAM ends.
pub const RAM: usize = 4 << 20;
/// The key of fw_cfg's only file, which is [`ITEM`].
pub const ITEM_KEY: u16 = 0x20;
/// What the device has to copy.
pub const ITEM: &[u8] = b"What the guest has not written itself is here, and is longer than three pieces of 16 bytes.";
const TABLES: u64 = 0x1000;
const ORDER: [u64; 8] = [5, 0, 7, 2, 6, 1, 4, 3];

/// The guest physical address of `gva`.
pub fn gpa(gva: u64) -> u64 {
    match gva.checked_sub(DATA) {
        Some(offset) => 0x20_0000 + (ORDER[(offset >> 12) as usize] << 12) + (offset & 0xfff),
        None => gva,
    }
}

/// An access that a program is to make.
#[derive(Clone, Copy, Debug)]
pub enum Spec {
    /// Reads so many bytes.
    R(u64, usize),
    /// Writes so many bytes of the value.
    W(u64, usize, u128),
    /// Writes so many bytes, of which only is known that they are there afterwards.
    Any(u64, usize),
    /// Reads from a descriptor table or the TSS.
    Dr(u64, usize),
    /// Writes there.
    Dw(u64, usize, u128),
    /// The walker reads an entry.
    Pr(u64),
    /// The walker sets bits in an entry.
    Pw(u64, u128),
    /// Fetches the instruction.
    Fetch,
    /// The device reads so many bytes at a physical address.
    DmaR(u64, usize),
    /// The device writes these bytes there.
    DmaW(u64, &'static [u8]),
}

/// What is compared of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    kind: AccessKind,
    /// RIP and CPL, unless the device made it.
    by: Option<(u64, u8)>,
    gva: Option<u64>,
    gpa: u64,
    size: u8,
    value: u128,
    old: Option<u128>,
}

/// A program and what it is to do.
pub struct Case {
    asm: CodeAssembler,
    /// For each access the number of its instruction and the privilege level.
    specs: Vec<(usize, u8, Spec)>,
    instructions: usize,
    /// The privilege level of what follows.
    pub cpl: u8,
    /// Watch fetches.
    pub fetches: bool,
    /// Watch page walks.
    pub walks: bool,
    /// What is to be in memory besides: address and bytes.
    pub memory: Vec<(u64, Vec<u8>)>,
}

impl Case {
    pub fn new() -> Self {
        let asm = CodeAssembler::new(64).expect("64 bits");
        let (specs, memory) = Default::default();
        Self { asm, specs, instructions: 0, cpl: 0, fetches: false, walks: false, memory }
    }

    /// One more instruction, and what it does when it is executed, which is in the order of the program.
    pub fn does(&mut self, add: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>, specs: &[Spec]) {
        add(&mut self.asm).expect("an instruction");
        let fetch = self.fetches.then_some(Spec::Fetch);
        self.specs.extend(fetch.iter().chain(specs).map(|spec| (self.instructions, self.cpl, *spec)));
        self.instructions += 1;
    }

    /// One more instruction, which accesses nothing.
    pub fn just(&mut self, add: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        self.does(add, &[]);
    }

    /// More of what instruction number `instruction` does, after all that was said so far.
    pub fn again(&mut self, instruction: usize, specs: &[Spec]) {
        self.specs.extend(specs.iter().map(|spec| (instruction, self.cpl, *spec)));
    }

    /// The number of the next instruction.
    pub fn next(&self) -> usize {
        self.instructions
    }

    /// The address of the next instruction.
    pub fn address(&mut self) -> u64 {
        CODE + self.asm.assemble(CODE).expect("a program").len() as u64
    }

    pub fn label(&mut self) -> iced_x86::code_asm::CodeLabel {
        self.asm.create_label()
    }

    /// A gate for `vector` that leads to `target`.
    pub fn handler(&mut self, vector: u64, target: u64, dpl: u64) {
        let low = target & 0xffff | 8 << 16 | (0x8e | dpl << 5) << 40 | (target >> 16 & 0xffff) << 48;
        self.memory.push((IDT + vector * 16, [low.to_le_bytes(), (target >> 32).to_le_bytes()].concat()));
    }

    /// Runs the program some times on both tiers, and compares.
    pub fn check(mut self) {
        let add = |a: &mut CodeAssembler| a.out(0x80, iced_x86::code_asm::al);
        self.does(add, &[]);
        let code = self.asm.assemble(CODE).expect("a program");
        let rips: Vec<u64> = Decoder::with_ip(64, &code, CODE, 0).iter().map(|i| i.ip()).collect();
        assert_eq!(rips.len(), self.instructions);
        for (translated, records) in [(false, false), (true, false), (true, true)] {
            let mut machine = Machine::new(&self, &code, records);
            let mut jit = translated.then(|| Jit::new(Config { cache: 0, threshold: 1 }).expect("a translator"));
            let mut interpreter = Interpreter::default();
            for round in 0..4 {
                let before = machine.prepare();
                let exit = match &mut jit {
                    Some(jit) => jit.run(&mut machine.cpu, &mut interpreter),
                    None => machine.cpu.run(&mut interpreter),
                };
                assert!(matches!(exit, Exit::Stopped), "{exit:x?} at {:x}", machine.cpu.rip());
                let expected = self.expected(&rips, before, &machine.memory());
                let seen = machine.seen();
                let differs = seen.iter().zip(&expected).position(|(a, b)| a != b);
                let at = differs.unwrap_or(seen.len().min(expected.len()));
                assert!(
                    seen == expected,
                    "translated {translated}, by records {records}, round {round}: record {at} of {}, expected {}, is\n{:x?}\n, expected\n{:x?}",
                    seen.len(),
                    expected.len(),
                    &seen[at..seen.len().min(at + 3)],
                    &expected[at..expected.len().min(at + 3)],
                );
            }
            assert_eq!(jit.is_some_and(|jit| jit.stats().instructions > 0), translated && !self.fetches);
        }
    }

    /// The records, from what memory was before and is `after`.
    fn expected(&self, rips: &[u64], mut memory: Vec<u8>, after: &[u8]) -> Vec<Record> {
        let mut records = Vec::new();
        for &(number, cpl, spec) in &self.specs {
            let rip = rips[number];
            let length = rips.get(number + 1).map_or(2, |next| next - rip) as usize;
            use AccessKind::*;
            let (kind, start, size, value) = match spec {
                Spec::R(gva, size) => (Read, gva, size, None),
                Spec::W(gva, size, value) => (Write, gva, size, Some(value.to_le_bytes().to_vec())),
                Spec::Any(gva, size) => {
                    (Write, gva, size, Some((gva..).take(size).map(|gva| after[gpa(gva) as usize]).collect()))
                }
                Spec::Dr(gva, size) => (DescriptorRead, gva, size, None),
                Spec::Dw(gva, size, value) => (DescriptorWrite, gva, size, Some(value.to_le_bytes().to_vec())),
                Spec::Pr(gpa) => (WalkRead, gpa, 8, None),
                Spec::Pw(gpa, value) => (WalkWrite, gpa, 8, Some(value.to_le_bytes().to_vec())),
                Spec::Fetch => (Fetch, rip, length, None),
                Spec::DmaR(gpa, size) => (DmaRead, gpa, size, None),
                Spec::DmaW(gpa, bytes) => (DmaWrite, gpa, bytes.len(), Some(bytes.to_vec())),
            };
            let by_device = matches!(kind, DmaRead | DmaWrite);
            let mut done = 0;
            while done < size {
                let at = start + done as u64;
                let piece = (size - done).min(16).min(4096 - (at & 0xfff) as usize);
                let place = gpa(at) as usize;
                let there = &mut memory[place..place + piece];
                let old = number_of(there);
                if let Some(value) = &value {
                    there.copy_from_slice(&value[done..done + piece]);
                }
                records.push(Record {
                    kind,
                    by: (!by_device).then_some((rip, cpl)),
                    gva: (!by_device && !matches!(kind, WalkRead | WalkWrite)).then_some(at),
                    gpa: gpa(at),
                    size: piece as u8,
                    value: number_of(there),
                    old: value.is_some().then_some(old),
                });
                done += piece;
            }
        }
        records
    }
}

fn number_of(bytes: &[u8]) -> u128 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u128::from(*byte))
}

/// Keeps all that it is told.
#[derive(Default)]
struct Everything {
    fetches: bool,
    walks: bool,
    records: bool,
    recorded: AtomicBool,
    seen: Mutex<Vec<Access>>,
}

impl Observer for Everything {
    fn interest(&self, _: Gva, _: Gpa) -> Interest {
        Interest { read: true, write: true, fetch: self.fetches }
    }
    fn wants_walks(&self, gpa: Gpa) -> bool {
        self.walks && DATA_TABLES.contains(&gpa.0)
    }
    fn wants_dma(&self, _: Gpa) -> bool {
        true
    }
    fn access(&self, access: &Access) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(*access);
    }
    fn record_will_do(&self, _: Gva, _: Gpa) -> bool {
        self.records
    }
    fn records(&self) -> bool {
        self.records
    }
    fn recorded(&self, batch: &Batch<'_>) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).extend(batch.accesses());
        self.recorded.store(true, Ordering::Relaxed);
    }
}

/// Any write to a port that is not the device's stops the vCPU.
#[derive(Debug)]
struct Ports {
    signals: Arc<Signals>,
    device: Arc<FwCfg>,
}

impl PortIo for Ports {
    fn read(&self, _: u16, _: usize) -> u32 {
        0x5a
    }
    fn write(&self, port: u16, size: usize, value: u32) {
        if (fw_cfg::DMA..fw_cfg::DMA + fw_cfg::DMA_PORTS).contains(&port) {
            self.device.write(port, size, value);
        } else {
            self.signals.raise(Signals::STOP);
        }
    }
}

#[derive(Debug)]
struct Nothing;

impl Clock for Nothing {
    fn now(&self) -> u64 {
        0
    }
}

impl LocalApic for Nothing {
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn task_priority(&self) -> u8 {
        0
    }
    fn set_task_priority(&self, _: u8) {}
    fn read_msr(&self, _: u32) -> Option<u64> {
        None
    }
    fn write_msr(&self, _: u32, _: u64) -> Option<()> {
        None
    }
    fn set_deadline(&self, _: Option<u64>) {}
    fn deadline(&self) -> Option<u64> {
        None
    }
    fn init(&self) {}
}

struct Machine {
    cpu: Cpu,
    map: Arc<PhysicalMap>,
    device: Arc<FwCfg>,
    observer: Arc<Everything>,
    initial: Vec<u8>,
}

impl Machine {
    fn new(case: &Case, code: &[u8], records: bool) -> Self {
        let map = Arc::new(PhysicalMap::new(GuestRam::new(RAM as u64).expect("RAM")).expect("a map"));
        let signals = Arc::<Signals>::default();
        let mut items = Items::new();
        items.add_file("opt/item", ITEM.to_vec()).expect("a file");
        let device = Arc::new(FwCfg::new(items, Dma::new(Arc::clone(&map), fw_cfg::NAME)));
        let ports = Arc::new(Ports { signals: signals.clone(), device: Arc::clone(&device) });
        let (apic, clock) = (Arc::new(Nothing), Arc::new(Nothing));
        let connections = Connections { map: Arc::clone(&map), signals, ports, apic, clock };
        let mut initial: Vec<u8> =
            (0..RAM).map(|at| if at < 0xd000 { 0 } else { (at * 7 + (at >> 8)) as u8 }).collect();
        let mut put = |at: u64, bytes: &[u8]| initial[at as usize..][..bytes.len()].copy_from_slice(bytes);
        let mut entry = |at: u64, entry: u64| put(at, &entry.to_le_bytes());
        entry(TABLES, (TABLES + 0x1000) | 0x27);
        entry(TABLES + 0x1000, (TABLES + 0x2000) | 0x27);
        entry(TABLES + 0x2000, 0xe7);
        entry(TABLES + 8, DATA_TABLES[0] | 0x27);
        entry(DATA_TABLES[0], DATA_TABLES[1] | 7);
        entry(DATA_TABLES[1], DATA_TABLES[2] | 7);
        for n in 0..8 {
            entry(DATA_TABLES[2] + 8 * n, gpa(DATA + (n << 12)) | 7);
        }
        let code0 = 0x00af_9b00_0000_ffff;
        let data0 = 0x00cf_9300_0000_ffff;
        for (n, descriptor) in (1..).zip([code0, data0, code0 | 3 << 45, data0 | 3 << 45, data0 & !(1 << 40)]) {
            entry(GDT + 8 * n, descriptor);
        }
        entry(TSS + 4, INNER);
        for (at, bytes) in &case.memory {
            for (at, byte) in (*at..).zip(bytes) {
                put(gpa(at), &[*byte]);
            }
        }
        put(CODE, code);
        map.write(Gpa(0), &initial).expect("RAM");

        let mut cpu = Cpu::new(0, Arc::new(Model::max()), connections);
        let observer = Everything { fetches: case.fetches, walks: case.walks, records, ..Everything::default() };
        let observer = Arc::new(observer);
        cpu.mmu.set_observer(Some(Arc::<Everything>::clone(&observer)));
        map.observe_dma(Some(Arc::<Everything>::clone(&observer)));
        Self { cpu, map, device, observer, initial }
    }

    /// As at the beginning, but for what tiers know. Gives what is in memory.
    fn prepare(&mut self) -> Vec<u8> {
        // The program's page is left alone, lest its translations be dropped.
        let (low, high) = (CODE as usize, CODE as usize + 0x2000);
        self.map.write(Gpa(0), &self.initial[..low]).expect("RAM");
        self.map.write(Gpa(high as u64), &self.initial[high..]).expect("RAM");
        self.device.reset();
        let cpu = &mut self.cpu;
        cpu.reset();
        cpu.cr0 = Cr0::from_bits(0x8001_0033);
        cpu.cr4 = Cr4::from_bits(0x4_0620);
        cpu.efer = Efer::from_bits(0x500);
        cpu.xcr0 = Xcr0::from_bits(7);
        cpu.cr3 = TABLES;
        cpu.gdtr = TableRegister { base: GDT, limit: 0x7f };
        cpu.idtr = TableRegister { base: IDT, limit: 0xfff };
        let busy = Attributes::new().with_kind(11).with_present(true);
        cpu.tr = Segment { base: TSS, limit: 0x67, attributes: busy, ..Segment::default() };
        cpu.update_paging();
        let attributes = Attributes::new().with_code_or_data(true).with_present(true).with_granular(true);
        let data = Segment {
            selector: Selector::from_bits(0x10),
            limit: u32::MAX,
            attributes: attributes.with_kind(3).with_big(true),
            ..Segment::default()
        };
        cpu.seg = [data; 6];
        cpu.seg[CS].selector = Selector::from_bits(8);
        cpu.seg[CS].attributes = attributes.with_kind(11).with_long(true);
        cpu.set_rflags(2, u64::MAX);
        cpu.update_mode();
        cpu.regs = [0; 32];
        (cpu.regs[RIP], cpu.regs[RSP]) = (CODE, STACK);
        cpu.signals.lower(Signals::STOP);
        cpu.mmu.flush_all();
        self.initial.clone()
    }

    fn memory(&self) -> Vec<u8> {
        let mut memory = vec![0; RAM];
        self.map.read(Gpa(0), &mut memory).expect("RAM");
        memory
    }

    /// What was seen since last asked; what is the same in all records is checked here.
    fn seen(&self) -> Vec<Record> {
        let seen = std::mem::take(&mut *self.observer.seen.lock().unwrap_or_else(PoisonError::into_inner));
        let record = |access: &Access| {
            let by = match access.agent {
                Agent::Vcpu { origin, cr3 } => {
                    assert_eq!((origin.cpu, cr3), (0, TABLES));
                    Some((origin.rip, origin.cpl))
                }
                Agent::Device(name) => {
                    assert_eq!(name, fw_cfg::NAME);
                    None
                }
            };
            assert_eq!(access.hva, self.map.hva_of(access.gpa));
            Record {
                kind: access.kind,
                by,
                gva: access.gva.map(|gva| gva.0),
                gpa: access.gpa.0,
                size: access.size,
                value: access.value,
                old: access.old,
            }
        };
        seen.iter().map(record).collect()
    }
}
