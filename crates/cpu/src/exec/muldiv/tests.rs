//! Division at its edges, and the flags of multiplication.

use super::*;
use crate::state::RCX;
use crate::testing::{Board, board};

fn long() -> Board {
    let mut board = board("max");
    board.long_mode(0);
    board
}

/// DIV (or IDIV) of xDX:xAX by xCX with operands of `size` bytes; AX is the dividend of the byte form.
fn divide(
    board: &mut Board,
    signed: bool,
    size: u32,
    dividend: i128,
    divisor: i128,
) -> Result<(i128, i128), Exception> {
    let bits = size * 8;
    let mask = (1u128 << bits) - 1;
    let (low, high) = (dividend as u128 & mask, (dividend >> bits) as u128 & mask);
    let modrm = if signed { 0xf9 } else { 0xf1 };
    let code: &[u8] = match size {
        1 => &[0xf6, modrm],
        2 => &[0x66, 0xf7, modrm],
        4 => &[0xf7, modrm],
        _ => &[0x48, 0xf7, modrm],
    };
    board.cpu.regs[RCX] = divisor as u64;
    if size == 1 {
        board.cpu.regs[RAX] = (high << 8 | low) as u64;
    } else {
        (board.cpu.regs[RAX], board.cpu.regs[RDX]) = (low as u64, high as u64);
    }
    let before = board.cpu.regs;
    if let Err(exception) = board.execute(code) {
        assert_eq!(board.cpu.regs, before, "nothing changes when it faults");
        return Err(exception);
    }
    let (rax, rdx) = (board.cpu.regs[RAX], board.cpu.regs[RDX]);
    let (quotient, remainder) = if size == 1 { (rax & 0xff, rax >> 8 & 0xff) } else { (rax, rdx) };
    let extend = |value: u64| {
        let value = i128::from(value) & mask as i128;
        if signed { value << (128 - bits) >> (128 - bits) } else { value }
    };
    Ok((extend(quotient), extend(remainder)))
}

#[test]
fn quotients_that_do_not_fit_are_divide_errors() {
    let mut board = long();
    for size in [1, 2, 4, 8] {
        let bits = size * 8;
        let most = (1i128 << bits) - 1;
        for divisor in [1, 2, 3, 7, most >> 1, most] {
            if divisor >> 63 != 0 {
                continue; // beyond what this test's integers hold
            }
            // The largest dividend whose quotient fits, and the next.
            let largest = divisor * most + divisor - 1;
            assert_eq!(divide(&mut board, false, size, largest, divisor), Ok((most, divisor - 1)), "{size} {divisor}");
            if (largest + 1) >> bits >> bits == 0 {
                assert_eq!(divide(&mut board, false, size, largest + 1, divisor), Err(Exception::DIVIDE));
            }
            assert_eq!(divide(&mut board, false, size, 0, divisor), Ok((0, 0)));
        }
        assert_eq!(divide(&mut board, false, size, 5, 0), Err(Exception::DIVIDE));
        let (least, most) = (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1);
        for (dividend, divisor) in [
            (7, 2),
            (-7, 2),
            (7, -2),
            (-7, -2),
            (most, 1),
            (most, -1),
            (least, 1),
            (least * 2 - 1, 2),
            (most * 5 + 4, 5),
            (least * 5 - 4, 5),
            (0, -1),
        ] {
            assert_eq!(
                divide(&mut board, true, size, dividend, divisor),
                Ok((dividend / divisor, dividend % divisor)),
                "{size}: {dividend} / {divisor}"
            );
        }
        for (dividend, divisor) in
            [(least, -1), (most + 1, 1), (least - 1, 1), (most * 5 + 5, 5), (least * 5 - 5, 5), (1, 0)]
        {
            assert_eq!(
                divide(&mut board, true, size, dividend, divisor),
                Err(Exception::DIVIDE),
                "{size}: {dividend} / {divisor}"
            );
        }
    }
    // The least of all dividends.
    assert_eq!(divide(&mut board, true, 8, i128::MIN, -1), Err(Exception::DIVIDE));
    assert_eq!(divide(&mut board, true, 4, i64::MIN.into(), -1), Err(Exception::DIVIDE));
}

#[test]
fn a_32_bit_division_clears_the_upper_halves() {
    let mut board = long();
    board.cpu.regs[RAX] = 0xffff_ffff_0000_0064;
    board.cpu.regs[RDX] = 0xffff_ffff_0000_0000;
    board.cpu.regs[RCX] = 0xffff_ffff_0000_0007;
    board.execute(&[0xf7, 0xf1]).unwrap();
    assert_eq!((board.cpu.regs[RAX], board.cpu.regs[RDX]), (14, 2));
    // 16 bits merge.
    (board.cpu.regs[RAX], board.cpu.regs[RDX]) = (0xffff_0064, 0xffff_0000);
    board.execute(&[0x66, 0xf7, 0xf1]).unwrap();
    assert_eq!((board.cpu.regs[RAX], board.cpu.regs[RDX]), (0xffff_000e, 0xffff_0002));
}

#[test]
fn the_byte_forms_take_high_registers() {
    let mut board = long();
    // div ah: AX by its own upper byte.
    board.cpu.regs[RAX] = 0x0305;
    board.execute(&[0xf6, 0xf4]).unwrap_err();
    board.cpu.regs[RAX] = 0x2030;
    board.cpu.regs[RCX] = 0x8100;
    // div ch
    board.execute(&[0xf6, 0xf5]).unwrap();
    assert_eq!(board.cpu.regs[RAX], (0x2030 % 0x81) << 8 | (0x2030 / 0x81));
    // mul ah
    board.cpu.regs[RAX] = 0xffff_1213;
    board.execute(&[0xf6, 0xe4]).unwrap();
    assert_eq!(board.cpu.regs[RAX], 0xffff_0000 | (0x12 * 0x13));
}

#[test]
fn multiplications_say_whether_the_upper_half_matters() {
    let mut board = long();
    for (a, b, unsigned, signed) in [
        (2u64, 3, false, false),
        (u64::MAX, 1, false, false),
        (u64::MAX, u64::MAX, true, false),
        (1 << 32, 1 << 32, true, true),
        (1 << 62, 2, false, true),
        (1 << 63, u64::MAX, true, true),
    ] {
        for (modrm, expected) in [(0xe1, unsigned), (0xe9, signed)] {
            (board.cpu.regs[RAX], board.cpu.regs[RCX]) = (a, b);
            board.execute(&[0x48, 0xf7, modrm]).unwrap();
            let flags = board.cpu.rflags();
            assert_eq!((flags.carry(), flags.overflow()), (expected, expected), "{a:x} * {b:x}");
        }
        // imul rax, rcx
        (board.cpu.regs[RAX], board.cpu.regs[RCX]) = (a, b);
        board.execute(&[0x48, 0x0f, 0xaf, 0xc1]).unwrap();
        assert_eq!((board.cpu.regs[RAX], board.cpu.rflags().overflow()), (a.wrapping_mul(b), signed));
    }
}
