//! That faults are found: a tier with one deliberate fault against one without, and what the minimiser makes of it.

use cpu::Cpu;
use iced_x86::{ConditionCode, Instruction, Mnemonic};
use lockstep::differences::Options;
use lockstep::layout::{DATA_GPA, IDT, MMIO};
use lockstep::report::Report;
use lockstep::sequence::Generator;
use lockstep::session::{Make, Session, Settings};
use lockstep::tier::{Stepped, Tier};
use memory::{Gpa, Gva};
use std::sync::atomic::AtomicUsize;

use crate::interpreted;

/// Compares a faulty tier with the interpreter until the fault shows.
fn find(faulty: Make) -> Report {
    let generator = Generator::new(Options { x87_pointers: true, accesses: false });
    let mut session = Session::new([interpreted, faulty], generator);
    let settings = Settings { seed: 1, cases: 50_000, failures: 1, trace: false, mode: None };
    let reports = session.run_all("find", Generator::sequence, settings, &AtomicUsize::new(settings.failures));
    let [report] = reports.try_into().expect("the fault is found");
    println!("{report}");
    report
}

/// A tier that does `spoil` after each instruction with this mnemonic.
fn after(mnemonic: Mnemonic, spoil: fn(&mut Cpu)) -> Box<dyn Tier> {
    let after = move |instruction: &Instruction, cpu: &mut Cpu| {
        if instruction.mnemonic() == mnemonic {
            spoil(cpu);
        }
    };
    Box::new(Stepped::corrupted(after))
}

#[test]
fn a_wrong_flag_is_traced_to_its_instruction() {
    let report = find(|| after(Mnemonic::Sbb, |cpu| cpu.status ^= 0x10));
    assert_eq!(report.code.len(), 1, "{report}");
    assert!(report.code[0].contains("sbb"), "{report}");
    assert!(report.differences.iter().any(|difference| difference.to_string().starts_with("rflags")), "{report}");
}

#[test]
fn a_wrong_vector_register_is_traced_to_its_instruction() {
    let report = find(|| after(Mnemonic::Vpaddd, |cpu| cpu.vector.ymm[5][3] ^= 1));
    assert_eq!(report.code.len(), 1, "{report}");
    assert!(report.code[0].contains("vpaddd") && report.to_string().contains("ymm5"), "{report}");
}

#[test]
fn a_wrong_sticky_flag_is_traced_to_its_instruction() {
    let report = find(|| after(Mnemonic::Fmul, |cpu| cpu.vector.set_fsw(cpu.vector.fsw() ^ 0x20)));
    assert!(report.code.len() <= 2 && report.code.iter().any(|line| line.contains("fmul")), "{report}");
}

#[test]
fn a_wrong_byte_in_memory_is_found() {
    let report =
        find(|| after(Mnemonic::Movsxd, |cpu| cpu.mmu.map().write(Gpa(DATA_GPA), &[0x77]).expect("RAM is there")));
    assert_eq!(report.code.len(), 1, "{report}");
    assert!(report.to_string().contains("memory at guest physical 0x20000"), "{report}");
}

#[test]
fn a_wrong_byte_where_no_guest_can_write_is_traced_to_its_case() {
    let report =
        find(|| after(Mnemonic::Xadd, |cpu| cpu.mmu.map().write(Gpa(IDT + 0x800), &[1]).expect("RAM is there")));
    assert_eq!(report.code.len(), 1, "{report}");
    assert!(report.code[0].contains("xadd"), "{report}");
}

#[test]
fn an_access_too_many_to_a_device_is_found() {
    let report = find(|| {
        after(Mnemonic::Xadd, |cpu| {
            // A second read of what may be a device.
            let (origin, space) = (cpu.origin(), cpu.mmu.space());
            let _ = cpu.mmu.read::<u8>(origin, space, Gva(MMIO));
        })
    });
    assert_eq!(report.code.len(), 1, "{report}");
    assert!(report.code[0].contains("xadd") && report.to_string().contains("to the device"), "{report}");
}

#[test]
fn a_fault_that_needs_an_earlier_instruction_keeps_it() {
    let report = find(|| {
        let mut last = None;
        Box::new(Stepped::corrupted(move |instruction: &Instruction, cpu: &mut Cpu| {
            let conditional = instruction.condition_code() != ConditionCode::None;
            if conditional && last == Some(Mnemonic::Xor) {
                cpu.status ^= 1;
            }
            last = Some(instruction.mnemonic());
        }))
    });
    assert_eq!(report.code.len(), 2, "{report}");
    assert!(report.code[0].contains("xor"), "{report}");
}

#[test]
fn a_fault_that_needs_an_earlier_case_is_repeated_with_it() {
    // Stale translations show in a later case only.
    let report = find(|| {
        let mut seen = 0;
        Box::new(Stepped::corrupted(move |instruction: &Instruction, cpu: &mut Cpu| {
            if instruction.mnemonic() == Mnemonic::Popcnt {
                seen += 1;
                if seen == 3 {
                    cpu.regs[2] ^= 1;
                }
            }
        }))
    });
    assert!(report.code.len() <= 3, "{report}");
    assert!(report.to_string().contains("only after the cases"), "{report}");
}
