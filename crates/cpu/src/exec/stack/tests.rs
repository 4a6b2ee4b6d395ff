//! The stack pointer before, after and in the middle of stack instructions.

use super::*;
use crate::state::{RAX, RBX, RCX, RDI, RDX, RIP, RSI};
use crate::testing::{Board, board};

const STACK: u64 = 0x2_0000;

fn long() -> Board {
    let mut board = board("max");
    board.long_mode(0);
    board.cpu.regs[RSP] = STACK;
    board
}

/// Protected mode with a 32-bit or 16-bit stack and code of the same size.
fn protected(big: bool) -> Board {
    let mut board = board("max");
    board.protected_mode();
    for segment in &mut board.cpu.seg {
        segment.attributes.set_big(big);
        segment.limit = if big { u32::MAX } else { 0xffff };
    }
    board.cpu.update_mode();
    board.cpu.regs[RSP] = STACK;
    board
}

#[test]
fn push_and_pop_of_the_stack_pointer_itself() {
    let mut board = long();
    board.execute(&[0x54]).unwrap();
    assert_eq!((board.cpu.regs[RSP], board.peek(STACK - 8)), (STACK - 8, STACK), "PUSH RSP: the old value");
    board.poke(STACK - 8, &[0x1234]);
    board.execute(&[0x5c]).unwrap();
    assert_eq!(board.cpu.regs[RSP], 0x1234, "POP RSP: the value");
}

#[test]
fn memory_operands_see_the_stack_pointer_of_their_moment() {
    let mut board = long();
    board.poke(STACK, &[0xaaaa, 0xbbbb, 0xcccc]);
    // push qword [rsp+8]: the address before the push.
    board.execute(&[0xff, 0x74, 0x24, 8]).unwrap();
    assert_eq!(board.peek(STACK - 8), 0xbbbb);
    // pop qword [rsp+8]: the address after the pop.
    board.execute(&[0x8f, 0x44, 0x24, 8]).unwrap();
    assert_eq!(board.words(STACK, 8), [0xaaaa, 0xbbbb, 0xcccc]);
    assert_eq!(board.cpu.regs[RSP], STACK);
    // pop word [rsp]
    board.execute(&[0x66, 0x8f, 0x04, 0x24]).unwrap();
    assert_eq!((board.cpu.regs[RSP], board.peek(STACK)), (STACK + 2, 0xaaaa_aaaa), "two bytes up");
}

#[test]
fn immediates_are_sign_extended_to_the_operand_size() {
    let mut board = long();
    board.execute(&[0x6a, 0x80]).unwrap();
    assert_eq!(board.peek(STACK - 8), 0xffff_ffff_ffff_ff80);
    board.execute(&[0x68, 0, 0, 0, 0x80]).unwrap();
    assert_eq!(board.peek(STACK - 16), 0xffff_ffff_8000_0000);
    board.execute(&[0x66, 0x6a, 0xff]).unwrap();
    assert_eq!(board.cpu.regs[RSP], STACK - 18);
    let mut board = protected(true);
    board.execute(&[0x6a, 0x80]).unwrap();
    assert_eq!((board.cpu.regs[RSP], board.peek(STACK - 4)), (STACK - 4, 0xffff_ff80));
}

#[test]
fn faults_leave_the_stack_pointer() {
    let mut board = long();
    let unmapped = 0x4000_0000;
    board.cpu.regs[RSP] = unmapped;
    let codes: [&[u8]; 7] = [&[0x50], &[0x58], &[0x6a, 0], &[0x8f, 0], &[0xc8, 8, 0, 2], &[0x9c], &[0x9d]];
    for code in codes {
        assert!(board.execute(code).is_err(), "{code:x?}");
        assert_eq!((board.cpu.regs[RSP], board.cpu.regs[RIP]), (unmapped, 0x8000), "{code:x?}");
    }
    board.cpu.regs[RBP] = unmapped;
    assert!(board.execute(&[0xc9]).is_err());
    assert_eq!((board.cpu.regs[RSP], board.cpu.regs[RBP]), (unmapped, unmapped));
    // pop [rax] with a good stack and a bad destination.
    board.cpu.regs[RSP] = STACK;
    board.cpu.regs[RAX] = unmapped;
    assert!(board.execute(&[0x8f, 0]).is_err());
    assert_eq!(board.cpu.regs[RSP], STACK);
    // A non-canonical stack is #SS, a non-canonical operand #GP.
    board.cpu.regs[RSP] = 1 << 63;
    assert_eq!(board.execute(&[0x50]), Err(Exception::SS0));
    assert_eq!(board.execute(&[0x58]), Err(Exception::SS0));
    board.cpu.regs[RSP] = STACK;
    board.cpu.regs[RAX] = 1 << 63;
    assert_eq!(board.execute(&[0xff, 0x30]), Err(Exception::GP0));
}

const GENERAL: [usize; 8] = [RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI];

#[test]
fn pusha_and_popa_in_both_sizes() {
    for (code, size) in [(0u8, 4), (0x66, 2)] {
        let mut board = protected(true);
        for (n, &register) in GENERAL.iter().enumerate() {
            if register != RSP {
                board.cpu.regs[register] = 0x1111_1111 * (n as u64 + 1);
            }
        }
        let before = board.cpu.regs;
        let prefix = |op: u8| if code == 0 { vec![op] } else { vec![code, op] };
        board.execute(&prefix(0x60)).unwrap();
        assert_eq!(board.cpu.regs[RSP], STACK - 8 * size);
        let pushed: [u64; 8] = board.words(STACK - 8 * size, size);
        let mask = u64::MAX >> (64 - 8 * size);
        let expected: Vec<u64> = GENERAL.iter().rev().map(|&register| before[register] & mask).collect();
        assert_eq!(pushed.to_vec(), expected, "ascending: DI, SI, BP, SP (as it was), BX, DX, CX, AX");
        for &register in GENERAL.iter().filter(|&&register| register != RSP) {
            board.cpu.regs[register] = 0xffff_ffff;
        }
        board.poke_bytes(STACK - 8 * size + 3 * size, &[0xee; 2]);
        board.execute(&prefix(0x61)).unwrap();
        for &register in &GENERAL {
            let keep = if size == 2 && register != RSP { 0xffff_0000 } else { 0 };
            let mask = if register == RSP { u64::MAX } else { mask };
            assert_eq!(board.cpu.regs[register], before[register] & mask | keep, "register {register}");
        }
    }
}

#[test]
fn pusha_wraps_a_16_bit_stack_between_its_words() {
    let mut board = protected(false);
    board.cpu.regs[RSP] = 0xabc_0006;
    board.cpu.regs[RDX] = 0x2222;
    board.cpu.regs[RAX] = 0x1111;
    board.cpu.regs[RDI] = 0x8888;
    board.execute(&[0x60]).unwrap();
    assert_eq!(board.cpu.regs[RSP], 0xabc_fff6);
    assert_eq!(board.words(0xfff6, 2), [0x8888, 0, 0, 6, 0]);
    assert_eq!(board.words(0, 2), [0x2222, 0, 0x1111]);
    for register in [RAX, RDI] {
        board.cpu.regs[register] = 0;
    }
    board.execute(&[0x61]).unwrap();
    assert_eq!((board.cpu.regs[RAX], board.cpu.regs[RDI], board.cpu.regs[RSP]), (0x1111, 0x8888, 0xabc_0006));
    // A word that is itself cut is #SS, and nothing changes.
    board.cpu.regs[RSP] = 0xabc_0007;
    assert_eq!(board.execute(&[0x60]), Err(Exception::SS0));
    assert_eq!(board.cpu.regs[RSP], 0xabc_0007);
}

#[test]
fn enter_and_leave_make_and_undo_a_frame() {
    let mut board = long();
    board.cpu.regs[RBP] = 0x1234_5678_9abc;
    board.execute(&[0xc8, 0x20, 0, 0]).unwrap();
    assert_eq!(board.peek(STACK - 8), 0x1234_5678_9abc);
    assert_eq!((board.cpu.regs[RBP], board.cpu.regs[RSP]), (STACK - 8, STACK - 8 - 0x20));
    board.execute(&[0xc9]).unwrap();
    assert_eq!((board.cpu.regs[RBP], board.cpu.regs[RSP]), (0x1234_5678_9abc, STACK));
    // Level 3: two links of the enclosing frames and the new frame's own.
    let outer = 0x3_0000;
    board.poke(outer - 16, &[0xbbbb, 0xaaaa]);
    board.cpu.regs[RBP] = outer;
    board.execute(&[0xc8, 0x10, 0, 0x23]).unwrap();
    assert_eq!(board.words(STACK - 32, 8), [STACK - 8, 0xbbbb, 0xaaaa, outer], "the level is taken modulo 32");
    assert_eq!((board.cpu.regs[RBP], board.cpu.regs[RSP]), (STACK - 8, STACK - 32 - 0x10));
    // The final stack pointer must be writable.
    let mut board = long();
    board.cpu.regs[RSP] = 0x4008;
    board.cpu.regs[RBP] = 0x77;
    board.cpu.regs[RSP] = 0x0008;
    assert!(board.execute(&[0xc8, 0x10, 0, 0]).is_err());
    assert_eq!((board.cpu.regs[RBP], board.cpu.regs[RSP]), (0x77, 8));
}

#[test]
fn a_16_bit_stack_keeps_the_rest_of_the_pointers() {
    let mut board = protected(false);
    board.cpu.regs[RSP] = 0x1234_0000;
    board.cpu.regs[RBP] = 0x5678_4444;
    board.execute(&[0xc8, 4, 0, 0]).unwrap();
    assert_eq!((board.cpu.regs[RBP], board.cpu.regs[RSP]), (0x5678_fffe, 0x1234_fffa));
    assert_eq!(board.peek(0xfffe) & 0xffff, 0x4444);
    board.execute(&[0xc9]).unwrap();
    assert_eq!((board.cpu.regs[RBP], board.cpu.regs[RSP]), (0x5678_4444, 0x1234_0000));
    // A push of four bytes onto SP = 2 does not fit below the limit.
    board.cpu.regs[RSP] = 0x1234_0002;
    assert_eq!(board.execute(&[0x66, 0x50]), Err(Exception::SS0));
}
