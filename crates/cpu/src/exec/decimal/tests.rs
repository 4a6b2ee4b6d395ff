//! Against the manual's own words (APM vol. 3; SDM vol. 2), for every AL, AF and CF.

use super::*;
use crate::testing::board;

const CF: u64 = 1;
const PF: u64 = 4;
const AF: u64 = 0x10;
const ZF: u64 = 0x40;
const SF: u64 = 0x80;

/// SF, ZF and PF of a byte.
fn result_flags(al: u8) -> u64 {
    let parity = if al.count_ones().is_multiple_of(2) { PF } else { 0 };
    parity | if al == 0 { ZF } else { 0 } | if al & 0x80 != 0 { SF } else { 0 }
}

/// What an instruction makes of AX and the flags that are defined after it.
type Model = fn(u16, bool, bool) -> (u16, u64, u64);

fn with_al(ax: u16, al: u8) -> u16 {
    ax & 0xff00 | u16::from(al)
}

fn daa(ax: u16, af: bool, cf: bool) -> (u16, u64, u64) {
    let old = ax as u8;
    let (mut al, mut flags) = (i32::from(old), 0);
    if old & 15 > 9 || af {
        al += 6;
        flags |= AF;
        if cf || al > 255 {
            flags |= CF;
        }
    }
    if old > 0x99 || cf {
        al += 0x60;
        flags |= CF;
    } else {
        flags &= !CF;
    }
    let al = al as u8;
    (with_al(ax, al), flags | result_flags(al), CF | AF | ZF | SF | PF)
}

fn das(ax: u16, af: bool, cf: bool) -> (u16, u64, u64) {
    let old = ax as u8;
    let (mut al, mut flags) = (i32::from(old), 0);
    if old & 15 > 9 || af {
        al -= 6;
        flags |= AF;
        if cf || al < 0 {
            flags |= CF;
        }
    }
    if old > 0x99 || cf {
        al -= 0x60;
        flags |= CF;
    }
    let al = al as u8;
    (with_al(ax, al), flags | result_flags(al), CF | AF | ZF | SF | PF)
}

fn aaa(ax: u16, af: bool, _: bool) -> (u16, u64, u64) {
    let adjust = ax & 15 > 9 || af;
    let ax = if adjust { ax.wrapping_add(0x106) } else { ax };
    (ax & 0xff0f, if adjust { CF | AF } else { 0 }, CF | AF)
}

fn aas(ax: u16, af: bool, _: bool) -> (u16, u64, u64) {
    let adjust = ax & 15 > 9 || af;
    let ax = if adjust { ax.wrapping_sub(6).wrapping_sub(0x100) } else { ax };
    (ax & 0xff0f, if adjust { CF | AF } else { 0 }, CF | AF)
}

#[test]
fn adjustments_match_the_manuals_formulas() {
    let mut board = board("max");
    board.protected_mode();
    let models: [(u8, Model); 4] = [(0x27, daa), (0x2f, das), (0x37, aaa), (0x3f, aas)];
    for (opcode, model) in models {
        for ax in (0..=0xffu16).flat_map(|al| [0x0000, 0x0300, 0xff00].map(|ah| ah | al)) {
            for (af, cf) in [(false, false), (false, true), (true, false), (true, true)] {
                board.cpu.regs[RAX] = 0xabcd_0000 | u64::from(ax);
                board.cpu.status = u64::from(af) << 4 | u64::from(cf);
                board.execute(&[opcode]).unwrap();
                let (expected, flags, defined) = model(ax, af, cf);
                let what = format!("{opcode:x} of {ax:04x}, AF {af}, CF {cf}");
                assert_eq!(board.cpu.regs[RAX], 0xabcd_0000 | u64::from(expected), "{what}");
                assert_eq!(board.cpu.status & defined, flags, "flags: {what}");
            }
        }
    }
}

#[test]
fn aam_and_aad_take_any_base() {
    let mut board = board("max");
    board.protected_mode();
    for base in [1u8, 2, 10, 16, 255] {
        for al in 0..=255u8 {
            board.cpu.regs[RAX] = u64::from(al) | 0x7700;
            board.execute(&[0xd4, base]).unwrap();
            let ax = board.cpu.regs[RAX] as u16;
            assert_eq!(ax.to_be_bytes(), [al / base, al % base]);
            assert_eq!(board.cpu.status & (ZF | SF | PF), result_flags(al % base));
            board.execute(&[0xd5, base]).unwrap();
            assert_eq!(board.cpu.regs[RAX], u64::from(al));
            assert_eq!(board.cpu.status & (ZF | SF | PF), result_flags(al));
        }
    }
    board.cpu.regs[RAX] = 0x1234;
    assert_eq!(board.execute(&[0xd4, 0]), Err(Exception::DIVIDE));
    assert_eq!(board.cpu.regs[RAX], 0x1234);
    board.execute(&[0xd5, 0]).unwrap();
    assert_eq!(board.cpu.regs[RAX], 0x34);
}

#[test]
fn bounds_are_signed_and_inclusive() {
    let mut board = board("max");
    board.protected_mode();
    board.poke_bytes(0x2000, &[0xfb, 0xff, 0xff, 0xff, 5, 0, 0, 0]);
    for (index, inside) in [(0u32, true), (5, true), (6, false), (0xffff_fffb, true), (0xffff_fffa, false)] {
        board.cpu.regs[RAX] = index.into();
        let outcome = board.execute(&[0x62, 0x05, 0, 0x20, 0, 0]);
        assert_eq!(outcome.is_ok(), inside, "{index:x}");
        assert!(inside || outcome == Err(Exception::plain(Vector::BoundRange)));
    }
    board.poke_bytes(0x2000, &[0xfe, 0xff, 3, 0]);
    board.cpu.regs[RAX] = 0x1_fffd;
    assert!(board.execute(&[0x66, 0x62, 0x05, 0, 0x20, 0, 0]).is_err());
    board.cpu.regs[RAX] = 0x1_0003;
    assert!(board.execute(&[0x66, 0x62, 0x05, 0, 0x20, 0, 0]).is_ok());
}

#[test]
fn decimal_adjustment_is_undefined_in_64_bit_mode() {
    let mut board = board("max");
    board.long_mode(0);
    for opcode in [0x27, 0x2f, 0x37, 0x3f, 0xd4, 0xd5, 0x62, 0xd6] {
        assert_eq!(board.execute(&[opcode, 10, 0, 0, 0, 0, 0]), Err(Exception::UNDEFINED), "{opcode:x}");
    }
}
