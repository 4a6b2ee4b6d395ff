//! Loading segments, what their limits and rights allow, and looking at descriptors.

use super::*;
use crate::state::{RAX, RCX, RSP};
use crate::testing::*;

const DATA: u64 = 0x4_0000;

fn machine(long: bool, cpl: u8) -> Board {
    let mut board = board("max");
    if long {
        board.long_mode(cpl);
    } else {
        board.protected_mode();
    }
    board.system_tables();
    board.cpu.seg = [flat(if cpl == 3 { DATA3 } else { DATA0 }, 3, cpl, false); 6];
    board.cpu.seg[CS] = flat(if cpl == 3 { CODE3 } else { CODE0 }, 11, cpl, long);
    board.cpu.update_mode();
    board.cpu.regs[RSP] = 0x2_0000;
    board
}

/// `mov sreg, eax` by the register's encoding.
fn load(board: &mut Board, register: usize, selector: u16) -> Result<Flow, Exception> {
    board.cpu.regs[RAX] = selector.into();
    board.execute(&[0x8e, 0xc0 | (register as u8) << 3])
}

fn access_byte(board: &Board, selector: u16) -> u64 {
    board.peek(GDT + u64::from(selector & !7)) >> 40 & 0xff
}

#[test]
fn data_segments_check_type_level_and_presence() {
    let mut board = machine(false, 3);
    for (selector, expected) in [
        (0, Ok(Flow::Break)),
        (3, Ok(Flow::Break)),
        (DATA3, Ok(Flow::Break)),
        (DATA3 & !3, Ok(Flow::Break)),
        (CODE3, Ok(Flow::Break)),
        (CONFORMING, Ok(Flow::Break)),
        (DATA0, Err(Exception::gp(DATA0))),
        (TASK, Err(Exception::gp(TASK))),
        (0x80, Err(Exception::gp(0x80))),
        (4, Err(Exception::gp(4))),
    ] {
        board.cpu.ldtr.attributes.set_present(false);
        assert_eq!(load(&mut board, DS, selector), expected, "{selector:x}");
    }
    let mut board = machine(false, 0);
    assert_eq!(load(&mut board, ES, ABSENT_DATA), Err(Exception::coded(Vector::SegmentNotPresent, ABSENT_DATA)));
    assert_eq!(load(&mut board, SS, ABSENT_DATA), Err(Exception::coded(Vector::Stack, ABSENT_DATA)));
    assert_eq!(load(&mut board, ES, DATA0 | 3), Err(Exception::gp(DATA0)), "RPL above DPL");
    assert_eq!(load(&mut board, CS, CODE0), Err(Exception::UNDEFINED));
}

#[test]
fn the_stack_segment_is_writable_and_of_the_level() {
    let mut board = machine(false, 0);
    for (selector, expected) in [
        (DATA0, Ok(Flow::Break)),
        (0, Err(Exception::GP0)),
        (DATA3, Err(Exception::gp(DATA3 & !3))),
        (DATA0 | 3, Err(Exception::gp(DATA0))),
        (CODE0, Err(Exception::gp(CODE0))),
    ] {
        assert_eq!(load(&mut board, SS, selector), expected, "{selector:x}");
    }
    assert_eq!(board.cpu.shadow, Shadow::MovSs);
    // 64-bit mode takes null below level 3, with the level as RPL.
    let mut board = machine(true, 0);
    assert_eq!(load(&mut board, SS, 0), Ok(Flow::Break));
    assert_eq!(load(&mut board, SS, 1), Err(Exception::GP0));
    assert_eq!(load(&mut machine(true, 3), SS, 3), Err(Exception::GP0));
}

#[test]
fn loading_sets_the_accessed_bit_and_the_hidden_part() {
    let mut board = machine(false, 0);
    board.poke(GDT + u64::from(FREE), &[descriptor(0x1234_5678, 0x12345, 0x92, 8)]);
    load(&mut board, FS, FREE).unwrap();
    assert_eq!(access_byte(&board, FREE), 0x93);
    let segment = board.cpu.seg[FS];
    assert_eq!((segment.base, segment.limit), (0x1234_5678, 0x1234_5fff));
    // A failed load sets nothing.
    board.poke(GDT + u64::from(FREE), &[descriptor(0, 0, 0x12, 0)]);
    load(&mut board, FS, FREE).unwrap_err();
    assert_eq!(access_byte(&board, FREE), 0x12);
    assert_eq!(board.cpu.seg[FS], segment);
}

#[test]
fn expand_down_segments_begin_above_their_limit() {
    let mut board = machine(false, 0);
    for (flags, limit, address, allowed) in [
        (4, 0xfff, 0x1000, true),
        (4, 0xfff, 0xfff, false),
        (4, 0xfff, 0xffff_fffc, true),
        (4, 0xfff, 0xffff_fffd, false),
        (0, 0xfff, 0xfffc, true),
        (0, 0xfff, 0xfffd, false),
        (0, 0xfff, 0x1_0000, false),
    ] {
        board.poke(GDT + u64::from(FREE), &[descriptor(0x1_0000, limit, 0x97, flags)]);
        load(&mut board, DS, FREE).unwrap();
        board.cpu.regs[RCX] = address;
        // mov eax, [ecx]
        let outcome = board.execute(&[0x8b, 0x01]);
        assert_eq!(outcome.is_ok(), allowed, "flags {flags}, address {address:x}: {outcome:?}");
    }
}

#[test]
fn limits_and_rights_hold_for_every_byte() {
    let mut board = machine(false, 0);
    // Read-only data of 100h bytes.
    board.poke(GDT + u64::from(FREE), &[descriptor(DATA, 0xff, 0x91, 4)]);
    load(&mut board, DS, FREE).unwrap();
    for (address, allowed) in [(0, true), (0xfc, true), (0xfd, false), (0x100, false), (0xffff_ffff, false)] {
        board.cpu.regs[RCX] = address;
        assert_eq!(board.execute(&[0x8b, 0x01]).is_ok(), allowed, "{address:x}");
    }
    board.cpu.regs[RCX] = 0;
    assert_eq!(board.execute(&[0x89, 0x01]), Err(Exception::GP0), "a write");
    // Execute-only code cannot be read, even through CS.
    board.cpu.seg[CS].attributes.set_kind(9);
    assert_eq!(board.execute(&[0x2e, 0x8b, 0x01]), Err(Exception::GP0));
    // A null segment cannot be used.
    load(&mut board, DS, 0).unwrap();
    assert_eq!(board.execute(&[0x8b, 0x01]), Err(Exception::GP0));
}

#[test]
fn pop_and_far_pointers_load_segments_last() {
    let mut board = machine(false, 0);
    board.poke(0x2_0000, &[u64::from(DATA0 | 3)]);
    assert_eq!(board.execute(&[0x1f]), Err(Exception::gp(DATA0)), "pop ds");
    assert_eq!(board.cpu.regs[RSP], 0x2_0000);
    board.poke(0x2_0000, &[DATA0.into()]);
    board.execute(&[0x1f]).unwrap();
    assert_eq!(board.cpu.regs[RSP], 0x2_0004);
    // les ecx, [DATA]
    board.poke(DATA, &[u64::from(DATA3) << 32 | 0x1234_5678]);
    board.cpu.regs[RCX] = 7;
    board.execute(&[0xc4, 0x0d, 0, 0, 4, 0]).unwrap();
    assert_eq!((board.cpu.regs[RCX], board.cpu.seg[ES].selector.into_bits()), (0x1234_5678, DATA3));
    board.poke(DATA, &[u64::from(TASK) << 32]);
    board.execute(&[0xc4, 0x0d, 0, 0, 4, 0]).unwrap_err();
    assert_eq!(board.cpu.regs[RCX], 0x1234_5678);
}

#[test]
fn lar_lsl_verr_and_verw_say_what_may_be_seen() {
    let mut board = machine(false, 3);
    let zero = |board: &mut Board, code: &[u8], selector: u16| {
        board.cpu.regs[RAX] = selector.into();
        board.cpu.regs[RCX] = 0x5555;
        board.execute(code).unwrap();
        board.cpu.rflags().zero()
    };
    // lar ecx, eax; lsl ecx, eax; verr ax; verw ax
    let (lar, lsl): (&[u8], &[u8]) = (&[0x0f, 0x02, 0xc8], &[0x0f, 0x03, 0xc8]);
    let (verr, verw): (&[u8], &[u8]) = (&[0x0f, 0x00, 0xe0], &[0x0f, 0x00, 0xe8]);
    assert!(zero(&mut board, lar, DATA3));
    assert_eq!(board.cpu.regs[RCX], 0x00c0_f300);
    assert!(zero(&mut board, lsl, DATA3));
    assert_eq!(board.cpu.regs[RCX], 0xffff_ffff);
    assert!(zero(&mut board, lsl, CONFORMING), "conforming code is visible to all");
    assert!(!zero(&mut board, lsl, DATA0));
    assert_eq!(board.cpu.regs[RCX], 0x5555, "nothing is written");
    assert!(!zero(&mut board, lar, 0));
    assert!(!zero(&mut board, lar, 0x80));
    assert!(zero(&mut board, verr, CODE3) && !zero(&mut board, verw, CODE3));
    assert!(zero(&mut board, verw, DATA3) && !zero(&mut board, verw, DATA0));
    let mut board = machine(false, 0);
    assert!(zero(&mut board, lsl, TASK));
    assert_eq!(board.cpu.regs[RCX], 0x67);
    assert!(!zero(&mut board, verr, TASK));
}

#[test]
fn ltr_marks_the_descriptor_busy() {
    for long in [false, true] {
        let mut board = machine(long, 0);
        board.poke(GDT + u64::from(FREE), &[descriptor(0x5_0000, 0x67, 0x89, 0), 0x1]);
        board.cpu.regs[RAX] = FREE.into();
        board.execute(&[0x0f, 0x00, 0xd8]).unwrap();
        assert_eq!(access_byte(&board, FREE), 0x8b);
        let base = if long { 0x1_0005_0000 } else { 0x5_0000 };
        assert_eq!((board.cpu.tr.base, board.cpu.tr.limit, board.cpu.tr.attributes.kind()), (base, 0x67, 11));
        assert_eq!(board.execute(&[0x0f, 0x00, 0xd8]), Err(Exception::gp(FREE)), "busy");
        board.cpu.regs[RAX] = 0;
        assert_eq!(board.execute(&[0x0f, 0x00, 0xd8]), Err(Exception::GP0));
        // lldt 0 is fine.
        assert!(board.execute(&[0x0f, 0x00, 0xd0]).is_ok());
        assert!(!board.cpu.ldtr.attributes.present());
    }
    assert_eq!(machine(true, 3).execute(&[0x0f, 0x00, 0xd8]), Err(Exception::GP0));
}

#[test]
fn arpl_raises_the_privilege_level_of_a_selector() {
    let mut board = machine(false, 3);
    for (target, source, expected, zero) in [(0x10u64, 0x23u64, 0x13u64, true), (0x13, 0x20, 0x13, false)] {
        (board.cpu.regs[RAX], board.cpu.regs[RCX]) = (target, source);
        // arpl ax, cx
        board.execute(&[0x63, 0xc8]).unwrap();
        assert_eq!((board.cpu.regs[RAX], board.cpu.rflags().zero()), (expected, zero));
    }
}
