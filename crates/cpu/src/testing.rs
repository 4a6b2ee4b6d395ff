//! A board for tests: RAM at zero, ports that answer with their number, a clock that is set by hand, a local APIC of a few fields.

use crate::cpuid::Model;
use crate::exec::Flow;
use crate::hooks::{Clock, LocalApic, PortIo, Signals};
use crate::msr::{APIC_BASE_BSP, APIC_BASE_ENABLE};
use crate::reset::Connections;
use crate::state::{CS, Cpu, RIP};
use memory::ram::GuestRam;
use memory::{Gpa, PhysicalMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use x86::{Attributes, Exception, Segment, Selector, TableRegister, msr};

/// A clock that a test moves.
#[derive(Debug, Default)]
pub struct TestClock(pub AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

/// Every port reads as its own number and swallows writes.
#[derive(Debug)]
pub struct TestPorts;

impl PortIo for TestPorts {
    fn read(&self, port: u16, _: usize) -> u32 {
        port.into()
    }
    fn write(&self, _: u16, _: usize, _: u32) {}
}

/// APIC_BASE, TPR and the deadline.
#[derive(Debug, Default)]
pub struct TestApic {
    /// TPR bits 7–4.
    pub priority: AtomicU8,
    /// Armed deadline, zero: none.
    pub deadline: AtomicU64,
}

impl LocalApic for TestApic {
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn task_priority(&self) -> u8 {
        self.priority.load(SeqCst)
    }
    fn set_task_priority(&self, class: u8) {
        self.priority.store(class, SeqCst);
    }
    fn read_msr(&self, number: u32) -> Option<u64> {
        (number == msr::APIC_BASE).then_some(0xfee0_0000 | APIC_BASE_ENABLE | APIC_BASE_BSP)
    }
    fn write_msr(&self, number: u32, _: u64) -> Option<()> {
        (number == msr::APIC_BASE).then_some(())
    }
    fn set_deadline(&self, deadline: Option<u64>) {
        self.deadline.store(deadline.unwrap_or(0), SeqCst);
    }
    fn deadline(&self) -> Option<u64> {
        Some(self.deadline.load(SeqCst)).filter(|&deadline| deadline != 0)
    }
    fn init(&self) {}
}

/// A vCPU and what it is connected to.
pub struct Board {
    /// The vCPU, as reset leaves it.
    pub cpu: Cpu,
    /// Its clock.
    pub clock: Arc<TestClock>,
    /// Its local APIC.
    pub apic: Arc<TestApic>,
}

/// A board with the given CPU model (as `-cpu` takes it) and 2 MiB of RAM from address zero.
pub fn board(model: &str) -> Board {
    let (clock, apic) = <(Arc<TestClock>, Arc<TestApic>)>::default();
    let connections = Connections {
        map: Arc::new(PhysicalMap::new(GuestRam::new(2 << 20).unwrap()).unwrap()),
        signals: Arc::new(Signals::default()),
        ports: Arc::new(TestPorts),
        apic: apic.clone(),
        clock: clock.clone(),
    };
    let model = Arc::new(Model::parse(model).unwrap());
    Board { cpu: Cpu::new(0, model, connections), clock, apic }
}

/// Where [`Board::long_mode`] puts its page tables: 16 KiB.
pub const TABLES: u64 = 0x1000;

/// A flat segment of the given privilege level.
pub fn flat(selector: u16, kind: u8, dpl: u8, long: bool) -> Segment {
    let attributes = Attributes::new()
        .with_kind(kind)
        .with_code_or_data(true)
        .with_present(true)
        .with_dpl(dpl)
        .with_granular(true)
        .with_long(long)
        .with_big(!long);
    Segment { base: 0, limit: u32::MAX, selector: Selector::from_bits(selector), attributes }
}

/// A segment or system descriptor: `access` is type, S, DPL and P; `flags` are AVL, L, D/B and G.
pub fn descriptor(base: u64, limit: u64, access: u64, flags: u64) -> u64 {
    let high = (base >> 24 & 0xff) << 56 | flags << 52 | (limit >> 16 & 15) << 48 | access << 40;
    high | (base & 0xff_ffff) << 16 | limit & 0xffff
}

/// Where [`Board::system_tables`] puts the GDT, the IDT and the TSS.
pub const GDT: u64 = 0x5000;
/// See [`GDT`].
pub const IDT: u64 = 0x6000;
/// See [`GDT`].
pub const TSS: u64 = 0x5800;
/// Selectors in that GDT: code and data for CPL 0, code and data for CPL 3 (with their RPL), 16-bit code (and at 30h data) for
/// CPL 0, conforming code, code that is not present, data for CPL 0 that is not present, the TSS.
pub const CODE0: u16 = 0x08;
/// See [`CODE0`].
pub const DATA0: u16 = 0x10;
/// See [`CODE0`].
pub const CODE3: u16 = 0x1b;
/// See [`CODE0`].
pub const DATA3: u16 = 0x23;
/// See [`CODE0`].
pub const CODE16: u16 = 0x28;
/// See [`CODE0`].
pub const CONFORMING: u16 = 0x38;
/// See [`CODE0`].
pub const ABSENT_CODE: u16 = 0x40;
/// See [`CODE0`].
pub const ABSENT_DATA: u16 = 0x48;
/// See [`CODE0`].
pub const TASK: u16 = 0x50;
/// The first free selector.
pub const FREE: u16 = 0x60;

impl Board {
    /// A GDT with the selectors above (flat; 64-bit code in long mode, else 32-bit), an empty IDT with room for all
    /// vectors, and a loaded TSS of 104 bytes of zeros without a permission bitmap.
    pub fn system_tables(&mut self) {
        let long = self.cpu.long_mode();
        let flat = |access, flags| descriptor(0, 0xf_ffff, access, flags);
        let code = if long { 0xa } else { 0xc };
        let gdt = [
            0,
            flat(0x9b, code),
            flat(0x93, 0xc),
            flat(0xfb, code),
            flat(0xf3, 0xc),
            descriptor(0, 0xffff, 0x9b, 0),
            descriptor(0, 0xffff, 0x93, 0),
            flat(0x9f, code),
            flat(0x1b, code),
            flat(0x13, 0xc),
            descriptor(TSS, 0x67, 0x8b, 0),
            0,
        ];
        self.poke(GDT, &gdt);
        self.poke(IDT, &[0; 512]);
        self.poke(TSS, &[0; 16]);
        self.poke(TSS + 0x60, &[0x68 << 48]);
        self.cpu.gdtr = TableRegister { base: GDT, limit: 0x7f };
        self.cpu.idtr = TableRegister { base: IDT, limit: 0xfff };
        self.cpu.tr = Segment {
            base: TSS,
            limit: 0x67,
            selector: Selector::from_bits(TASK),
            attributes: Attributes::new().with_kind(11).with_present(true),
        };
    }

    /// An IDT gate; `access` is type, DPL and P.
    pub fn gate(&self, vector: u8, selector: u16, target: u64, access: u64, ist: u64) {
        let low =
            target & 0xffff | u64::from(selector) << 16 | ist << 32 | access << 40 | (target >> 16 & 0xffff) << 48;
        if self.cpu.long_mode() {
            self.poke(IDT + u64::from(vector) * 16, &[low, target >> 32]);
        } else {
            self.poke(IDT + u64::from(vector) * 8, &[low]);
        }
    }

    /// A 64-bit word of guest memory.
    pub fn peek(&self, gpa: u64) -> u64 {
        let mut bytes = [0; 8];
        self.cpu.mmu.map().read(Gpa(gpa), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// `N` words of `size` bytes from guest memory.
    pub fn words<const N: usize>(&self, gpa: u64, size: u64) -> [u64; N] {
        std::array::from_fn(|n| self.peek(gpa + n as u64 * size) & (u64::MAX >> (64 - 8 * size)))
    }

    /// Writes bytes to guest memory.
    pub fn poke_bytes(&self, gpa: u64, bytes: &[u8]) {
        self.cpu.mmu.map().write(Gpa(gpa), bytes).unwrap();
    }

    /// Writes 64-bit words to guest memory.
    pub fn poke(&self, gpa: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.cpu.mmu.map().write(Gpa(gpa), &bytes).unwrap();
    }

    /// Flat 32-bit protected mode without paging, CPL 0, from reset.
    pub fn protected_mode(&mut self) {
        let cpu = &mut self.cpu;
        cpu.reset();
        cpu.set_cr0(0x11).unwrap();
        cpu.seg = [flat(0x10, 3, 0, false); 6];
        cpu.seg[CS] = flat(8, 11, 0, false);
        cpu.regs[RIP] = 0x8000;
        cpu.update_mode();
    }

    /// 64-bit mode at privilege level `cpl`, from reset; the first 2 MiB are mapped to themselves, for user mode too.
    pub fn long_mode(&mut self, cpl: u8) {
        let rights = 7;
        self.poke(TABLES, &[(TABLES + 0x1000) | rights]);
        self.poke(TABLES + 0x1000, &[(TABLES + 0x2000) | rights]);
        self.poke(TABLES + 0x2000, &[0x80 | rights]);
        self.protected_mode();
        let cpu = &mut self.cpu;
        cpu.set_cr4(0x20).unwrap();
        cpu.set_cr3(TABLES).unwrap();
        cpu.write_msr(msr::EFER, 0x901).unwrap();
        cpu.set_cr0(0x8001_0011).unwrap();
        let rpl = u16::from(cpl);
        cpu.seg = [flat(0x10 | rpl, 3, cpl, false); 6];
        cpu.seg[CS] = flat(8 | rpl, 11, cpl, true);
        cpu.update_mode();
    }

    /// Decodes and executes one instruction, as the run loop would; faults are returned, not delivered.
    pub fn execute(&mut self, bytes: &[u8]) -> Result<Flow, Exception> {
        let cpu = &mut self.cpu;
        let model = cpu.model.clone();
        let decoded = crate::decode::block(bytes, cpu.code_size, &model, 1);
        let op = &decoded.ops[0];
        let flow = (op.exec)(cpu, op)?;
        if !matches!(flow, Flow::Near | Flow::Jump | Flow::Repeat) {
            cpu.regs[RIP] += u64::from(op.len);
        }
        Ok(flow)
    }
}
