//! A vCPU whose translated code has been tampered with.

use super::*;
use cpu::cpuid::Model;
use cpu::hooks::{Clock, LocalApic, PortIo, Signals};
use cpu::reset::Connections;
use cpu::state::CS;
use memory::ram::GuestRam;
use memory::{Gpa, PhysicalMap};
use x86::{Attributes, Cr0, Cr4, Efer, Segment};

const CODE: u64 = 0x8000;
const TABLES: u64 = 0x1000;

/// Any port write stops the vCPU.
#[derive(Debug)]
struct Stop(Arc<Signals>);

impl PortIo for Stop {
    fn read(&self, _: u16, _: usize) -> u32 {
        0
    }
    fn write(&self, _: u16, _: usize, _: u32) {
        self.0.raise(Signals::STOP);
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

/// A vCPU in 64-bit mode, whose first 2 MiB are mapped, about to run `code`.
fn vcpu(code: &[u8]) -> Cpu {
    let map = PhysicalMap::new(GuestRam::new(2 << 20).unwrap()).unwrap();
    for (level, entry) in [TABLES + 0x1003, TABLES + 0x2003, 0x83].into_iter().enumerate() {
        map.write(Gpa(TABLES + 0x1000 * level as u64), &u64::to_le_bytes(entry)).unwrap();
    }
    map.write(Gpa(CODE), code).unwrap();
    let signals = Arc::<Signals>::default();
    let (ports, apic, clock) = (Arc::new(Stop(signals.clone())), Arc::new(Nothing), Arc::new(Nothing));
    let connections = Connections { map: Arc::new(map), signals, ports, apic, clock };
    let mut cpu = Cpu::new(0, Arc::new(Model::max()), connections);
    cpu.reset();
    cpu.cr0 = Cr0::from_bits(0x8000_0011);
    cpu.cr4 = Cr4::from_bits(0x20);
    cpu.efer = Efer::from_bits(0x500);
    cpu.cr3 = TABLES;
    cpu.update_paging();
    let attributes = Attributes::new().with_code_or_data(true).with_present(true).with_granular(true);
    cpu.seg = [Segment { limit: u32::MAX, attributes: attributes.with_kind(3), ..Segment::default() }; 6];
    cpu.seg[CS].attributes = attributes.with_kind(11).with_long(true);
    cpu.update_mode();
    cpu.regs[RIP] = CODE;
    cpu
}

#[test]
fn a_fault_that_belongs_to_no_instruction_is_reported() {
    // out 0, al; jmp to it
    let mut cpu = vcpu(&[0xe6, 0, 0xeb, 0xfc]);
    let (mut jit, mut interpreter) = (Jit::new(Config { cache: 0, threshold: 1 }).unwrap(), Interpreter::default());
    assert!(matches!(jit.run(&mut cpu, &mut interpreter), Exit::Stopped));
    let page = cpu.mmu.fetch_fast(Gva(CODE)).unwrap();
    let door = jit.cache.door(Key::new(page, Mode::of(&cpu))).expect("it is translated");
    let block = (door.inner as usize..).find(|place| jit.cache.block(*place) == Some(0)).unwrap();
    // push rax, as code that was called would leave the stack; mov eax, [10h]
    assert!(jit.cache.code.patch(block, &[0x50, 0x8b, 4, 0x25, 0x10, 0, 0, 0]));
    cpu.signals.lower(Signals::STOP);
    cpu.regs[RIP] = CODE;
    let Exit::Bug(report) = jit.run(&mut cpu, &mut interpreter) else { panic!("it is no bug") };
    for part in ["exception 14 ", "accessed is 0x10\n", "guest rip 0x8000 ", "with e6 00 eb fc", " 50 > 8b 04 25 10"] {
        assert!(report.contains(part), "{part} is missing in\n{report}");
    }
    assert_eq!(cpu.rip(), CODE);
}

#[test]
fn code_that_goes_on_where_no_address_is_faults_there() {
    let mut cpu = vcpu(&[]);
    let map = cpu.mmu.map().clone();
    // The last 2 MiB of the lower half are the first of memory, too.
    for (entry, value) in [(255, TABLES + 0x1003), (512 + 511, TABLES + 0x2003), (1024 + 511, 0x83)] {
        map.write(Gpa(TABLES + 8 * entry), &u64::to_le_bytes(value)).unwrap();
    }
    // inc eax
    map.write(Gpa((2 << 20) - 2), &[0xff, 0xc0]).unwrap();
    cpu.regs[RIP] = 0x7fff_ffff_fffe;
    let (mut jit, mut interpreter) = (Jit::new(Config { cache: 0, threshold: 1 }).unwrap(), Interpreter::default());
    let Exit::TripleFault(fault) = jit.run(&mut cpu, &mut interpreter) else { panic!("there is no IDT") };
    assert_eq!((fault.rip, cpu.regs[0]), (0x8000_0000_0000, 1));
    assert_eq!(jit.stats().instructions, 1, "it was translated");
}

#[test]
fn addresses_with_metadata_are_accessed_as_without() {
    // add eax, [rsi]; mov [rdi], eax; dec ecx; jnz to the start; out 0, al
    let single: &[u8] = &[0x03, 0x06, 0x89, 0x07, 0xff, 0xc9, 0x75, 0xf8, 0xe6, 0];
    // rep movsd; out 0, al
    let string: &[u8] = &[0xf3, 0xa5, 0xe6, 0];
    const LAM_U48: u64 = 1 << 62;
    // Copied ahead of itself in steps of 16 bytes, the first word repeats.
    for (code, place, expected) in [(single, 0x9010, 300), (string, 0x9190, 3)] {
        // The last one is as far away as a comparator is that has something against it.
        for tag in [0, 1 << 48, 0x2a << 57, 1 << 62] {
            let mut cpu = vcpu(code);
            let map = cpu.mmu.map().clone();
            map.write(Gpa(0x9000), &3u32.to_le_bytes()).unwrap();
            cpu.set_cr3(TABLES | LAM_U48).unwrap();
            let (mut jit, mut interpreter) =
                (Jit::new(Config { cache: 0, threshold: 1 }).unwrap(), Interpreter::default());
            for _ in 0..2 {
                (cpu.regs[0], cpu.regs[1], cpu.regs[6], cpu.regs[7]) = (0, 100, 0x9000 | tag, 0x9010 | tag);
                cpu.regs[RIP] = CODE;
                cpu.signals.lower(Signals::STOP);
                assert!(matches!(jit.run(&mut cpu, &mut interpreter), Exit::Stopped), "{tag:x}");
            }
            let mut word = [0; 4];
            map.read(Gpa(place), &mut word).unwrap();
            assert_eq!(u32::from_le_bytes(word), expected, "{tag:x}");
            assert!(jit.stats().instructions > 0, "it was translated");
        }
    }
}
