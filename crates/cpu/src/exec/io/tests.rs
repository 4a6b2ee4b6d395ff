//! Permission to use a port, and the widths of IN and OUT.

use super::*;
use crate::testing::{Board, TSS, board};

/// CPL 3 with IOPL 0 and a permission bitmap at offset 68h of the TSS that denies everything.
fn user() -> Board {
    let mut board = board("max");
    board.long_mode(3);
    board.system_tables();
    board.cpu.tr.limit = 0x68 + 0x2000;
    board.poke_bytes(TSS + 0x68, &[0xff; 0x2001]);
    board
}

fn allow(board: &mut Board, ports: std::ops::Range<u64>) {
    for port in ports {
        let at = TSS + 0x68 + port / 8;
        board.poke_bytes(at, &[board.peek(at) as u8 & !(1 << (port & 7))]);
    }
}

/// `in al/ax/eax, dx`
fn input(board: &mut Board, port: u64, size: u64) -> Result<Flow, Exception> {
    board.cpu.regs[RDX] = 0xffff_0000 | port;
    let code: &[u8] = match size {
        1 => &[0xec],
        2 => &[0x66, 0xed],
        _ => &[0xed],
    };
    board.execute(code)
}

#[test]
fn every_byte_of_an_access_needs_its_bit() {
    let mut board = user();
    allow(&mut board, 0x60..0x64);
    for (port, size, allowed) in [
        (0x60, 1, true),
        (0x63, 1, true),
        (0x5f, 1, false),
        (0x64, 1, false),
        (0x60, 4, true),
        (0x5f, 2, false),
        (0x62, 2, true),
        (0x63, 2, false),
        (0x61, 4, false),
    ] {
        let expected = if allowed { Ok(Flow::Next) } else { Err(Exception::GP0) };
        assert_eq!(input(&mut board, port, size), expected, "{size} bytes from {port:x}");
    }
    // Bits in two bytes of the bitmap.
    allow(&mut board, 0x106..0x10a);
    assert_eq!(input(&mut board, 0x106, 4), Ok(Flow::Next));
    assert_eq!(input(&mut board, 0x107, 4), Err(Exception::GP0));
    // The last port: the byte after its own must lie within the limit.
    allow(&mut board, 0xffff..0x1_0000);
    assert_eq!(input(&mut board, 0xffff, 1), Ok(Flow::Next));
    board.cpu.tr.limit -= 1;
    assert_eq!(input(&mut board, 0xffff, 1), Err(Exception::GP0));
    assert_eq!(input(&mut board, 0x60, 1), Ok(Flow::Next));
}

#[test]
fn the_bitmap_is_found_by_the_tss_and_asked_only_above_iopl() {
    let mut board = user();
    allow(&mut board, 0x60..0x61);
    board.cpu.set_rflags(3 << 12, 3 << 12);
    assert_eq!(input(&mut board, 0x80, 1), Ok(Flow::Next), "IOPL 3");
    board.cpu.set_rflags(2 << 12, 3 << 12);
    assert_eq!(input(&mut board, 0x80, 1), Err(Exception::GP0));
    assert_eq!(input(&mut board, 0x60, 1), Ok(Flow::Next));
    // No bitmap: its base beyond the limit.
    board.poke_bytes(TSS + 0x66, &[0xff, 0xff]);
    assert_eq!(input(&mut board, 0x60, 1), Err(Exception::GP0));
    // A TSS that is too short to have a base, and one of 16 bits, which has none.
    board.poke_bytes(TSS + 0x66, &[0x68, 0]);
    let limit = board.cpu.tr.limit;
    board.cpu.tr.limit = 0x66;
    assert_eq!(input(&mut board, 0x60, 1), Err(Exception::GP0));
    board.cpu.tr.limit = limit;
    board.cpu.tr.attributes.set_kind(3);
    assert_eq!(input(&mut board, 0x60, 1), Err(Exception::GP0));
    board.cpu.tr.attributes.set_kind(11);
    assert_eq!(input(&mut board, 0x60, 1), Ok(Flow::Next));
}

#[test]
fn virtual_8086_mode_always_asks_the_bitmap() {
    let mut board = board("max");
    board.protected_mode();
    board.system_tables();
    board.cpu.tr.limit = 0x68 + 0x20;
    board.poke_bytes(TSS + 0x68, &[0xff; 0x20]);
    allow(&mut board, 0x60..0x61);
    board.cpu.set_rflags(0x2_3000, u64::MAX);
    board.cpu.regs[RDX] = 0x80;
    assert_eq!(board.execute(&[0xec]), Err(Exception::GP0), "IOPL 3 does not help");
    board.cpu.regs[RDX] = 0x60;
    assert_eq!(board.execute(&[0xec]), Ok(Flow::Next));
}

#[test]
fn values_have_the_width_of_the_register() {
    let mut board = board("max");
    board.long_mode(0);
    board.cpu.regs[RAX] = u64::MAX;
    // in al, 80h; in ax, 80h; in eax, 80h: a port reads as its number.
    for (code, expected) in [
        (&[0xe4, 0x80][..], 0xffff_ffff_ffff_ff80),
        (&[0x66, 0xe5, 0x80], 0xffff_ffff_ffff_0080),
        (&[0xe5, 0x80], 0x80),
    ] {
        board.execute(code).unwrap();
        assert_eq!(board.cpu.regs[RAX], expected);
    }
    assert_eq!(board.execute(&[0xe7, 0x80]), Ok(Flow::Break), "events are looked at after OUT");
}
