//! Far transfers, call gates and returns.

use super::*;
use crate::testing::*;

const STACK: u64 = 0x2_0000;
const INNER: u64 = 0x3_0000;
const POINTER: u64 = 0x4_0000;

/// Protected mode or (with `long`) 64-bit mode at CPL 0 or 3, with the selectors of the GDT loaded.
fn machine(long: bool, cpl: u8) -> Board {
    let mut board = board("max");
    if long {
        board.long_mode(cpl);
    } else {
        board.protected_mode();
    }
    board.system_tables();
    let (code, data) = if cpl == 3 { (CODE3, DATA3) } else { (CODE0, DATA0) };
    board.cpu.seg = [flat(data, 3, cpl, false); 6];
    board.cpu.seg[CS] = flat(code, 11, cpl, long);
    board.cpu.update_mode();
    board.cpu.regs[RSP] = STACK;
    board.poke(TSS + 4, &[if long { INNER } else { u64::from(DATA0) << 32 | INNER }]);
    board
}

/// `jmp far [POINTER]` or `call far [POINTER]`: 32-bit operands.
fn indirect(board: &mut Board, call: bool, selector: u16, offset: u32) -> Result<Flow, Exception> {
    board.poke(POINTER, &[u64::from(selector) << 32 | u64::from(offset)]);
    let modrm = if call { 0x1c } else { 0x2c };
    board.execute(&[0xff, modrm, 0x25, 0, 0, 4, 0])
}

/// A call gate in the GDT at [`FREE`].
fn call_gate(board: &Board, selector: u16, target: u64, access: u64, parameters: u64) {
    let low =
        target & 0xffff | u64::from(selector) << 16 | parameters << 32 | access << 40 | (target >> 16 & 0xffff) << 48;
    board.poke(GDT + u64::from(FREE), &[low, target >> 32]);
}

fn at(board: &Board) -> (u16, u64, u8) {
    (board.cpu.seg[CS].selector.into_bits(), board.cpu.rip(), board.cpu.cpl)
}

#[test]
fn direct_transfers_check_type_and_level() {
    for long in [false, true] {
        for (selector, expected) in [
            (0u16, Err(Exception::GP0)),
            (CODE0, Ok(Flow::Jump)),
            (DATA0, Err(Exception::gp(DATA0))),
            (CODE3, Err(Exception::gp(CODE3 & !3))),
            (CONFORMING, Ok(Flow::Jump)),
            (ABSENT_CODE, Err(Exception::coded(Vector::SegmentNotPresent, ABSENT_CODE))),
            (0x80, Err(Exception::gp(0x80))),
            (TASK, Err(Exception::gp(TASK))),
        ] {
            let mut board = machine(long, 0);
            assert_eq!(indirect(&mut board, false, selector, 0x9000), expected, "{selector:x}, long {long}");
            if expected.is_ok() {
                assert_eq!(at(&board), (selector, 0x9000, 0));
            }
        }
        // CPL 3 may jump to conforming code of level 0 and stays at its level.
        let mut board = machine(long, 3);
        assert_eq!(indirect(&mut board, false, CODE0, 0x9000), Err(Exception::gp(CODE0)));
        assert_eq!(indirect(&mut board, false, CONFORMING, 0x9000), Ok(Flow::Jump));
        assert_eq!(at(&board), (CONFORMING | 3, 0x9000, 3));
    }
}

#[test]
fn a_far_call_is_undone_by_a_far_return() {
    let mut board = machine(false, 0);
    // call CODE16:1234 with 32-bit operands.
    assert_eq!(board.execute(&[0x9a, 0x34, 0x12, 0, 0, CODE16 as u8, 0]), Ok(Flow::Jump));
    assert_eq!((at(&board), board.cpu.code_size), ((CODE16, 0x1234, 0), CodeSize::Bits16));
    assert_eq!(board.words(STACK - 8, 4), [0x8007, CODE0.into()]);
    // retf 4, with a 32-bit operand from 16-bit code.
    assert_eq!(board.execute(&[0x66, 0xca, 4, 0]), Ok(Flow::Jump));
    assert_eq!((at(&board), board.cpu.regs[RSP]), ((CODE0, 0x8007, 0), STACK + 4));
    // The offset lies beyond the limit.
    assert_eq!(board.execute(&[0x9a, 0, 0, 1, 0, CODE16 as u8, 0]), Err(Exception::GP0));
    assert_eq!(board.cpu.regs[RSP], STACK + 4);
}

#[test]
fn a_call_gate_copies_parameters_to_the_inner_stack() {
    let mut board = machine(false, 3);
    call_gate(&board, CODE0, 0x9000, 0xec, 2);
    board.poke(STACK, &[0xbbbb_bbbb_aaaa_aaaa]);
    assert_eq!(indirect(&mut board, true, FREE | 3, 0xdead), Ok(Flow::Jump), "the pointer's offset is ignored");
    assert_eq!(at(&board), (CODE0, 0x9000, 0));
    let frame: [u64; 6] = board.words(INNER - 24, 4);
    assert_eq!(frame, [0x8007, CODE3.into(), 0xaaaa_aaaa, 0xbbbb_bbbb, STACK, DATA3.into()]);
    // retf 8 releases the parameters on both stacks, and drops what CPL 3 may not keep.
    board.cpu.seg[DS] = flat(DATA0, 3, 0, false);
    board.cpu.update_mode();
    assert_eq!(board.execute(&[0xca, 8, 0]), Ok(Flow::Jump));
    assert_eq!((at(&board), board.cpu.regs[RSP]), ((CODE3, 0x8007, 3), STACK + 8));
    assert!(board.cpu.seg[DS].selector.is_null() && !board.cpu.seg[DS].attributes.present());
    assert_eq!(board.cpu.seg[ES].selector.into_bits(), DATA3);
}

#[test]
fn call_gates_check_their_own_level_and_presence() {
    for long in [false, true] {
        for (access, expected) in
            [(0x8c, Exception::gp(FREE)), (0x6c, Exception::coded(Vector::SegmentNotPresent, FREE))]
        {
            let mut board = machine(long, 3);
            call_gate(&board, CODE0, 0x9000, access, 0);
            assert_eq!(indirect(&mut board, true, FREE | 3, 0), Err(expected), "access {access:x}, long {long}");
        }
        // A jump never changes the level.
        let mut board = machine(long, 3);
        call_gate(&board, CODE0, 0x9000, 0xec, 0);
        assert_eq!(indirect(&mut board, false, FREE | 3, 0), Err(Exception::gp(CODE0)));
        call_gate(&board, CONFORMING, 0x9000, 0xec, 0);
        assert_eq!(indirect(&mut board, false, FREE | 3, 0), Ok(Flow::Jump));
    }
}

#[test]
fn a_64_bit_call_gate_pushes_quadwords() {
    let mut board = machine(true, 3);
    call_gate(&board, CODE0, 0xffff_8000_0000_9000, 0xec, 0);
    assert_eq!(indirect(&mut board, true, FREE | 3, 0), Ok(Flow::Jump));
    assert_eq!(at(&board), (CODE0, 0xffff_8000_0000_9000, 0));
    assert_eq!(board.words(INNER - 32, 8), [0x8007, CODE3.into(), STACK, DATA3.into()]);
    assert_eq!(board.cpu.seg[SS].selector.into_bits(), 0);
    // retfq
    assert_eq!(board.execute(&[0x48, 0xcb]), Ok(Flow::Jump));
    assert_eq!((at(&board), board.cpu.regs[RSP]), ((CODE3, 0x8007, 3), STACK));
}

#[test]
fn returns_check_the_level_and_the_stack() {
    let mut board = machine(false, 3);
    let mut far_return = |cs: u16, ss: u16| {
        board.poke_bytes(STACK, &[0, 0x90, 0, 0, cs as u8, 0, 0, 0, 0, 0, 2, 0, ss as u8, 0, 0, 0]);
        board.execute(&[0xcb])
    };
    assert_eq!(far_return(CODE0, 0), Err(Exception::gp(CODE0)), "to an inner level");
    assert_eq!(far_return(0, 0), Err(Exception::GP0));
    assert_eq!(far_return(DATA3, 0), Err(Exception::gp(DATA3 & !3)));
    let mut board = machine(false, 0);
    let mut far_return = |cs: u16, ss: u16| {
        board.poke_bytes(STACK, &[0, 0x90, 0, 0, cs as u8, 0, 0, 0, 0, 0, 2, 0, ss as u8, 0, 0, 0]);
        board.execute(&[0xcb])
    };
    assert_eq!(far_return(CODE3, 0), Err(Exception::GP0), "a null stack");
    assert_eq!(far_return(CODE3, DATA0), Err(Exception::gp(DATA0)), "a stack of another level");
    assert_eq!(far_return(CODE0 | 3, DATA3), Err(Exception::gp(CODE0)), "RPL above DPL");
    assert_eq!(far_return(CODE3, DATA3), Ok(Flow::Jump));
    assert_eq!(at(&board), (CODE3, 0x9000, 3));
}

#[test]
fn iret_changes_what_the_level_may() {
    for (cpl, iopl, kept, expected) in [(0u8, 0u64, 0u64, 0x3202u64), (3, 0, 0x202, 0x202), (3, 3, 0x3202, 0x3002)] {
        let mut board = machine(true, cpl);
        board.cpu.set_rflags(kept | iopl << 12, u64::MAX);
        let (code, data) = if cpl == 3 { (CODE3, DATA3) } else { (CODE0, DATA0) };
        let image = if cpl == 0 { 0x3202 } else { 0 };
        board.poke(STACK, &[0x9000, code.into(), image, STACK, data.into()]);
        assert_eq!(board.execute(&[0x48, 0xcf]), Ok(Flow::Jump));
        assert_eq!(board.cpu.rflags().into_bits(), expected, "CPL {cpl}, IOPL {iopl}");
    }
    // NT in long mode is #GP; the NMI is unblocked all the same.
    let mut board = machine(true, 0);
    board.cpu.nmi_blocked = true;
    board.cpu.set_rflags(1 << 14, u64::MAX);
    assert_eq!(board.execute(&[0x48, 0xcf]), Err(Exception::GP0));
    assert!(!board.cpu.nmi_blocked);
}

#[test]
fn iretq_may_go_to_compatibility_mode() {
    let mut board = machine(true, 0);
    board.poke(GDT + u64::from(FREE), &[descriptor(0, 0xf_ffff, 0xfb, 0xc)]);
    let code = FREE | 3;
    board.poke(STACK, &[0x9000, code.into(), 0x202, 0x1_0005_0000, DATA3.into()]);
    (board.cpu.regs[0], board.cpu.regs[7], board.cpu.regs[8]) = (1 << 32, (1 << 32) - 1, 1 << 32);
    assert_eq!(board.execute(&[0x48, 0xcf]), Ok(Flow::Jump));
    assert_eq!([0, 7, 8].map(|n| board.cpu.regs[n]), [0, (1 << 32) - 1, 1 << 32], "upper halves, R8");
    assert_eq!((at(&board), board.cpu.code_size, board.cpu.regs[RSP]), ((code, 0x9000, 3), CodeSize::Bits32, 0x5_0000));
    // A null SS is for 64-bit code below level 3 only.
    let mut board = machine(true, 0);
    board.poke(STACK, &[0x9000, CODE0.into(), 2, 0x5_0000, 0]);
    assert_eq!(board.execute(&[0x48, 0xcf]), Ok(Flow::Jump));
    board.cpu.regs[RSP] = STACK;
    board.poke(STACK, &[0x9000, CODE3.into(), 2, 0x5_0000, 0]);
    assert_eq!(board.execute(&[0x48, 0xcf]), Err(Exception::GP0));
    board.poke(STACK, &[1 << 47, CODE0.into(), 2, 0x5_0000, 0]);
    assert_eq!(board.execute(&[0x48, 0xcf]), Err(Exception::GP0), "not canonical");
}
