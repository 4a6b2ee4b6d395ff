//! Task switches by far transfers, task gates and IRET, their checks, and faults of the new task's own.

use super::*;
use crate::state::{RAX, RSP};
use crate::testing::*;
use memory::Gpa;

const STACK: u64 = 0x2_0000;
/// Another task: its TSS, its selector, its stack, and a gate to it.
const OTHER: u64 = 0x1_0000;
const OTHER_TASK: u16 = FREE;
const GATE: u16 = FREE + 8;
const OTHER_STACK: u64 = 0x3_0000;
/// Type and P of an available and of a busy TSS, DPL 0.
const AVAILABLE: u64 = 0x89;
const BUSY: u64 = 0x8b;
const NT: u64 = 1 << 14;

fn other_descriptor(board: &Board, access: u64, limit: u64) {
    board.poke(GDT + u64::from(OTHER_TASK), &[descriptor(OTHER, limit, access, 0)]);
}

/// A 32-bit TSS at [`OTHER`]: code at 9000h, EAX 1 to EDI 8 but for the stack pointer, all flat.
fn other_task(board: &Board, flags: u32, code: u16, data: u16) {
    let mut words = [0u32; 26];
    (words[8], words[9]) = (0x9000, flags);
    for (n, word) in (1..).zip(&mut words[10..18]) {
        *word = n;
    }
    words[14] = OTHER_STACK as u32;
    for word in &mut words[18..24] {
        *word = data.into();
    }
    words[19] = code.into();
    words[25] = 0x68 << 16;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    board.poke_bytes(OTHER, &bytes);
}

/// Protected mode in a task whose TSS is loaded, with another one available, and a task gate to that.
fn machine() -> Board {
    let mut board = board("max");
    board.protected_mode();
    board.system_tables();
    board.cpu.seg = [flat(DATA0, 3, 0, false); 6];
    board.cpu.seg[CS] = flat(CODE0, 11, 0, false);
    board.cpu.regs[RSP] = STACK;
    board.cpu.update_mode();
    other_descriptor(&board, AVAILABLE, 0x67);
    board.poke(GDT + u64::from(GATE), &[u64::from(OTHER_TASK) << 16 | 0x85 << 40]);
    other_task(&board, 2, CODE0, DATA0);
    board
}

/// `jmp` or `call` far to a selector, with an offset that means nothing.
fn transfer(board: &mut Board, call: bool, selector: u16) -> Result<Flow, Exception> {
    let [low, high] = selector.to_le_bytes();
    board.execute(&[if call { 0x9a } else { 0xea }, 0xf4, 0xf4, 0xf4, 0xf4, low, high])
}

fn busy(board: &Board, selector: u16) -> bool {
    board.peek(GDT + u64::from(selector)) >> 41 & 1 != 0
}

fn ts(code: u16) -> Exception {
    Exception::coded(Vector::InvalidTss, code)
}

#[test]
fn a_jump_leaves_the_old_task_and_loads_the_new_one() {
    for selector in [OTHER_TASK, GATE] {
        let mut board = machine();
        board.cpu.regs[RAX] = 0x1234_5678;
        board.cpu.set_debug_register(7, 0x3ff);
        assert_eq!(transfer(&mut board, false, selector), Ok(Flow::Jump));
        let cpu = &board.cpu;
        assert_eq!(cpu.regs[..8], [1, 2, 3, 4, OTHER_STACK, 6, 7, 8]);
        assert_eq!((cpu.rip(), cpu.cpl, cpu.rflags().into_bits()), (0x9000, 0, 2));
        assert_eq!((cpu.tr.selector.into_bits(), cpu.tr.base), (OTHER_TASK, OTHER));
        assert!(cpu.cr0.task_switched());
        assert_eq!(cpu.dr[7], 0x6aa, "local breakpoints are the old task's");
        // EIP behind the jump, EFLAGS, EAX; CS.
        assert_eq!(board.words(TSS + 0x20, 4), [0x8007, 2, 0x1234_5678]);
        assert_eq!(board.words(TSS + 0x38, 4), [STACK]);
        assert_eq!(board.words(TSS + 0x4c, 2), [u64::from(CODE0)]);
        assert_eq!((busy(&board, TASK), busy(&board, OTHER_TASK)), (false, true));
        assert_eq!(board.words(OTHER, 2), [0], "no link");
    }
}

#[test]
fn a_call_nests_and_iret_goes_back() {
    let mut board = machine();
    assert_eq!(transfer(&mut board, true, OTHER_TASK), Ok(Flow::Jump));
    assert_eq!(board.cpu.rflags().into_bits(), NT | 2);
    assert_eq!(board.words(OTHER, 2), [u64::from(TASK)], "the link");
    assert_eq!((busy(&board, TASK), busy(&board, OTHER_TASK)), (true, true));
    assert_eq!(transfer(&mut board, true, OTHER_TASK), Err(Exception::gp(OTHER_TASK)), "it is busy");
    assert_eq!(board.cpu.rip(), 0x9000);

    board.cpu.regs[RAX] = 77;
    assert_eq!(board.execute(&[0xcf]), Ok(Flow::Jump));
    assert_eq!((board.cpu.rip(), board.cpu.regs[RSP], board.cpu.tr.selector.into_bits()), (0x8007, STACK, TASK));
    assert_eq!((busy(&board, TASK), busy(&board, OTHER_TASK)), (true, false));
    // It goes on behind the IRET when it is called again, and NT is not kept.
    assert_eq!(board.words(OTHER + 0x20, 4), [0x9001, 2, 77]);
    assert_eq!(board.cpu.rflags().into_bits(), 2);
    // The link leads nowhere.
    board.cpu.set_rflags(NT, NT);
    board.poke(TSS, &[OTHER_TASK.into()]);
    assert_eq!(board.execute(&[0xcf]), Err(ts(OTHER_TASK)), "not busy");
    board.poke(TSS, &[DATA0.into()]);
    assert_eq!(board.execute(&[0xcf]), Err(ts(DATA0)), "no TSS");
}

#[test]
fn an_event_through_a_task_gate_pushes_its_error_code_there() {
    for (exception, pushed) in [(Exception::UNDEFINED, None), (Exception::gp(0x1230), Some(0x1230))] {
        let mut board = machine();
        board.gate(exception.vector as u8, OTHER_TASK, 0, 0x85, 0);
        board.cpu.deliver_exception(exception).unwrap();
        assert_eq!((board.cpu.rip(), board.cpu.rflags().into_bits()), (0x9000, NT | 2));
        assert_eq!(board.cpu.regs[RSP], OTHER_STACK - if pushed.is_some() { 4 } else { 0 });
        assert_eq!(board.words(OTHER_STACK - 4, 4), [pushed.unwrap_or(0)]);
        assert_eq!(board.words(TSS + 0x20, 4), [0x8000, 1 << 16 | 2], "a fault is tried again, with RF");
    }
    // INT n checks the gate's level, and goes on behind itself.
    let mut board = machine();
    board.gate(0x40, OTHER_TASK, 0, 0x85, 0);
    assert_eq!(board.execute(&[0xcd, 0x40]), Ok(Flow::Jump));
    assert_eq!(board.words(TSS + 0x20, 4), [0x8002, 2]);
}

#[test]
fn the_descriptor_is_checked_in_the_old_task() {
    let absent = Exception::coded(Vector::SegmentNotPresent, OTHER_TASK);
    for (access, limit, expected) in [
        (0x09, 0x67, absent),
        (AVAILABLE, 0x66, ts(OTHER_TASK)),
        (0x81, 0x2a, ts(OTHER_TASK)),
        (BUSY, 0x67, Exception::gp(OTHER_TASK)),
        (0x82, 0x67, Exception::gp(OTHER_TASK)),
    ] {
        let mut board = machine();
        other_descriptor(&board, access, limit);
        assert_eq!(transfer(&mut board, true, GATE), Err(expected), "access {access:x}, limit {limit:x}");
        assert_eq!((board.cpu.rip(), board.cpu.tr.selector.into_bits()), (0x8000, TASK));
        assert_eq!(board.words(TSS + 0x20, 4), [0], "nothing was saved");
    }
    // Privilege: of the TSS, or of the gate alone.
    let mut board = machine();
    board.cpu.seg = [flat(DATA3, 3, 3, false); 6];
    board.cpu.seg[CS] = flat(CODE3, 11, 3, false);
    board.cpu.update_mode();
    assert_eq!(transfer(&mut board, true, OTHER_TASK), Err(Exception::gp(OTHER_TASK)));
    assert_eq!(transfer(&mut board, true, GATE), Err(Exception::gp(GATE)));
    board.poke(GDT + u64::from(GATE), &[u64::from(OTHER_TASK) << 16 | 0xe5 << 40]);
    assert_eq!(transfer(&mut board, true, GATE), Ok(Flow::Jump));
    assert_eq!(board.cpu.cpl, 0);
}

#[test]
fn the_new_tasks_segments_are_checked_in_the_new_task() {
    let absent = |code| Exception::coded(Vector::SegmentNotPresent, code);
    let stack = Exception::coded(Vector::Stack, ABSENT_DATA);
    // The offset of a selector in the TSS, the selector, and what it raises.
    for (offset, selector, expected) in [
        (0x60, DATA0, ts(DATA0)),
        (0x60, 4, ts(4)),
        (0x4c, 0, ts(0)),
        (0x4c, DATA0, ts(DATA0)),
        (0x4c, CODE3 & !3, ts(CODE3 & !3)),
        (0x4c, ABSENT_CODE, absent(ABSENT_CODE)),
        (0x50, 0, ts(0)),
        (0x50, DATA3, ts(DATA3 & !3)),
        (0x50, ABSENT_DATA, stack),
        (0x48, 0x7ff8, ts(0x7ff8)),
        (0x54, CODE0 | 3, ts(CODE0)),
        (0x58, ABSENT_DATA, absent(ABSENT_DATA)),
    ] {
        let mut board = machine();
        board.poke_bytes(OTHER + offset, &selector.to_le_bytes());
        assert_eq!(transfer(&mut board, false, OTHER_TASK), Err(expected), "{selector:x} at {offset:x}");
        assert_eq!((board.cpu.rip(), board.cpu.tr.selector.into_bits()), (0x9000, OTHER_TASK));
        assert_eq!((busy(&board, TASK), busy(&board, OTHER_TASK)), (false, true));
    }
    // An instruction pointer beyond the limit.
    let mut board = machine();
    board.poke_bytes(OTHER + 0x4c, &CODE16.to_le_bytes());
    board.poke_bytes(OTHER + 0x20, &0x1_0000u32.to_le_bytes());
    assert_eq!(transfer(&mut board, false, OTHER_TASK), Err(Exception::GP0));
}

#[test]
fn a_fault_of_the_new_task_is_delivered_at_its_first_instruction() {
    let mut board = machine();
    board.gate(Vector::InvalidTss as u8, CODE0, 0xa000, 0x8e, 0);
    board.poke_bytes(OTHER + 0x48, &[0xf8, 0x7f]);
    board.poke_bytes(0x8000, &[0xea, 0, 0, 0, 0, OTHER_TASK as u8, 0]);
    board.cpu.single_step(&mut crate::run::Interpreter::default()).unwrap();
    assert_eq!((board.cpu.rip(), board.cpu.tr.selector.into_bits()), (0xa000, OTHER_TASK));
    assert_eq!(board.words(OTHER_STACK - 16, 4), [0x7ff8, 0x9000, CODE0.into()]);
}

#[test]
fn a_conforming_code_segment_runs_at_the_selectors_level() {
    let mut board = machine();
    other_task(&board, 0x3002, CONFORMING | 3, DATA3);
    assert_eq!(transfer(&mut board, true, OTHER_TASK), Ok(Flow::Jump));
    assert_eq!((board.cpu.cpl, board.cpu.seg[CS].selector.into_bits()), (3, CONFORMING | 3));
}

#[test]
fn a_task_may_be_one_of_virtual_8086_mode() {
    let mut board = machine();
    other_task(&board, 0x2_0002, 0x4200, 0x1234);
    assert_eq!(transfer(&mut board, true, OTHER_TASK), Ok(Flow::Jump));
    let cpu = &board.cpu;
    assert_eq!((cpu.cpl, cpu.seg[CS].base, cpu.seg[DS].base), (3, 0x4_2000, 0x1_2340));
    // Back through a task gate, as from any task.
    board.gate(Vector::InvalidOpcode as u8, TASK, 0, 0x85, 0);
    board.poke_bytes(GDT + u64::from(TASK) + 5, &[AVAILABLE as u8]);
    board.poke_bytes(TSS + 0x4c, &CODE0.to_le_bytes());
    board.poke_bytes(TSS + 0x50, &DATA0.to_le_bytes());
    board.cpu.deliver_exception(Exception::UNDEFINED).unwrap();
    assert_eq!((board.cpu.cpl, board.cpu.rip()), (0, 0x8007));
    assert_eq!(board.words(OTHER + 0x24, 4), [0x3_4002], "VM, RF and NT are saved");
    assert_eq!(board.words(OTHER + 0x4c, 4), [0x4200]);
}

#[test]
fn a_16_bit_task_has_half_the_registers() {
    let mut board = machine();
    other_descriptor(&board, 0x81, 0x2b);
    let mut words = [0u16; 22];
    (words[7], words[8], words[9], words[13]) = (0x9000, 2, 0x1111, OTHER_STACK as u16);
    words[17..21].copy_from_slice(&[DATA0, CODE16, DATA0, DATA0]);
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    board.poke_bytes(OTHER, &bytes);
    assert_eq!(transfer(&mut board, true, OTHER_TASK), Ok(Flow::Jump));
    assert_eq!((board.cpu.regs[RAX], board.cpu.rip()), (0xffff_1111, 0x9000));
    assert!(board.cpu.seg[GS].selector.is_null());
    board.cpu.regs[RAX] = 0x2222;
    // IRET with 16-bit operands goes by the link as well.
    assert_eq!(board.execute(&[0xcf]), Ok(Flow::Jump));
    assert_eq!((board.cpu.rip(), board.cpu.tr.selector.into_bits()), (0x8007, TASK));
    assert_eq!(board.words(OTHER + 0xe, 2), [0x9001, 2, 0x2222]);
}

#[test]
fn a_tss_that_is_not_mapped_is_a_fault_of_the_old_task() {
    let mut board = machine();
    // One table of 4 KiB pages for the first 2 MiB; the other TSS is not there.
    let (directory, table) = (0x4_0000, 0x4_1000);
    let entries: Vec<u64> = (0..512).map(|n| (n << 12 | 3) | ((n + 1) << 12 | 3) << 32).step_by(2).collect();
    board.poke(table, &entries);
    board.poke(directory, &[table | 3]);
    let entry = Gpa(table + (OTHER >> 12) * 4);
    board.cpu.set_cr3(directory).unwrap();
    board.cpu.set_cr0(0x8001_0011).unwrap();
    board.poke_bytes(OTHER + 0x1c, &directory.to_le_bytes()[..4]);
    for (bits, code) in [(0u32, 2), (1, 3)] {
        board.cpu.mmu.map().write(entry, &(OTHER as u32 | bits).to_le_bytes()).unwrap();
        board.cpu.mmu.flush_all();
        assert_eq!(transfer(&mut board, true, OTHER_TASK), Err(Exception::coded(Vector::PageFault, code)));
        assert_eq!((board.cpu.fault_address, board.cpu.rip()), (OTHER, 0x8000));
        assert_eq!(board.words(TSS + 0x20, 4), [0]);
    }
    board.cpu.mmu.map().write(entry, &(OTHER as u32 | 3).to_le_bytes()).unwrap();
    board.cpu.mmu.flush_all();
    assert_eq!(transfer(&mut board, true, OTHER_TASK), Ok(Flow::Jump));
    assert_eq!(board.cpu.cr3, directory);
}

#[test]
fn the_trap_bit_stops_before_the_first_instruction() {
    let mut board = machine();
    board.poke_bytes(OTHER + 0x64, &[1]);
    board.gate(Vector::Debug as u8, CODE0, 0xa000, 0x8e, 0);
    board.poke_bytes(0x8000, &[0xea, 0, 0, 0, 0, OTHER_TASK as u8, 0]);
    let mut interpreter = crate::run::Interpreter::default();
    board.cpu.single_step(&mut interpreter).unwrap();
    assert_eq!(board.cpu.dr[6] & DR6_BT, DR6_BT);
    assert_eq!(board.cpu.rip(), 0xa000);
    assert_eq!(board.words(OTHER_STACK - 12, 4), [0x9000, CODE0.into()]);
}
