//! Control and debug register moves: what they accept, and what they change.

use super::*;
use crate::state::{CodeSize, RAX};
use crate::testing::{TABLES, board};
use std::sync::atomic::Ordering::SeqCst;
use x86::msr;

const GP: Result<(), Exception> = Err(Exception::GP0);

#[test]
fn cr0_refuses_what_makes_no_sense() {
    let mut board = board("max");
    let before = board.cpu.cr0;
    for value in [1 << 32, 0x8000_0000, 0x2000_0000, 0xa000_0001] {
        assert_eq!(board.cpu.set_cr0(value), GP, "{value:#x}");
        assert_eq!(board.cpu.cr0, before);
    }
    board.cpu.set_cr0(0x1ff8_ffc1).unwrap();
    assert_eq!(board.cpu.cr0.into_bits(), 0x11, "undefined bits are ignored, ET is one");
}

#[test]
fn long_mode_is_entered_and_left() {
    let mut board = board("max");
    board.long_mode(0);
    assert!(board.cpu.long_mode());
    assert_eq!(board.cpu.code_size, CodeSize::Bits64);
    assert_eq!(board.cpu.set_cr0(0x11), GP, "not out of 64-bit mode");
    assert_eq!(board.cpu.set_cr4(0), GP, "PAE stays in long mode");
    assert_eq!(board.cpu.set_cr4(0x1020), GP, "so does LA57");
    board.cpu.seg[CS].attributes = board.cpu.seg[CS].attributes.with_long(false).with_big(true);
    board.cpu.update_mode();
    board.cpu.set_cr0(0x11).unwrap();
    assert!(!board.cpu.long_mode());
    assert_eq!(board.cpu.read_msr(msr::EFER), Ok(0x901));
}

#[test]
fn long_mode_needs_pae_and_no_64_bit_code_segment() {
    let mut board = board("max");
    board.protected_mode();
    board.cpu.write_msr(msr::EFER, 0x100).unwrap();
    assert_eq!(board.cpu.set_cr0(0x8000_0011), GP);
    board.cpu.set_cr4(0x20).unwrap();
    board.cpu.seg[CS].attributes.set_long(true);
    assert_eq!(board.cpu.set_cr0(0x8000_0011), GP);
    assert!(!board.cpu.long_mode() && !board.cpu.cr0.paging());
}

#[test]
fn pae_pointers_with_reserved_bits_are_refused() {
    let mut board = board("max");
    board.protected_mode();
    board.poke(0x3000, &[0x4001 | 1 << 1]);
    board.poke(0x5000, &[0x4001, 0, 0, 0]);
    board.cpu.set_cr4(0x20).unwrap();
    board.cpu.set_cr3(0x3000).unwrap();
    assert_eq!(board.cpu.set_cr0(0x8000_0011), GP);
    assert!(!board.cpu.cr0.paging());
    board.cpu.set_cr3(0x5000).unwrap();
    board.cpu.set_cr0(0x8000_0011).unwrap();
    assert_eq!(board.cpu.set_cr3(0x3000), GP);
    assert_eq!(board.cpu.cr3, 0x5000);
}

#[test]
fn cr4_takes_what_the_model_has() {
    let mut plain = board("qemu64");
    for bit in [0, 1, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 28, 32, 63] {
        assert_eq!(plain.cpu.set_cr4(1 << bit), GP, "bit {bit}");
    }
    for bit in [2, 3, 4, 5, 6, 7, 8, 9, 10] {
        assert_eq!(plain.cpu.set_cr4(1 << bit), Ok(()), "bit {bit}");
    }
    let mut full = board("max");
    for bit in [11, 12, 16, 20, 21, 24] {
        assert_eq!(full.cpu.set_cr4(1 << bit), Ok(()), "bit {bit}");
    }
}

#[test]
fn address_masking_is_there_if_the_model_has_it() {
    for (model, expected) in [("max", Ok(())), ("max,-lam", GP)] {
        let mut board = board(model);
        board.long_mode(0);
        for bits in [1 << 61, 1 << 62, 3 << 61] {
            assert_eq!(board.cpu.set_cr3(TABLES | bits), expected, "{model} {bits:x}");
        }
        assert_eq!(board.cpu.set_cr3(TABLES | 1 << 60), GP);
        assert_eq!(board.cpu.set_cr4(1 << 28 | 0x20), expected, "{model}");
    }
}

#[test]
fn pcid_needs_long_mode_and_pcid_zero() {
    let mut board = board("max");
    board.protected_mode();
    assert_eq!(board.cpu.set_cr4(0x2_0020), GP);
    board.long_mode(0);
    board.cpu.set_cr3(TABLES | 8).unwrap();
    assert_eq!(board.cpu.set_cr4(0x2_0020), GP, "CR3 bits 11:0");
    board.cpu.set_cr3(TABLES).unwrap();
    assert_eq!(board.cpu.set_cr3(TABLES | 1 << 63), GP, "no keep bit yet");
    board.cpu.set_cr4(0x2_0020).unwrap();
    board.cpu.set_cr3(TABLES | 5 | 1 << 63).unwrap();
    assert_eq!(board.cpu.cr3, TABLES | 5);
    board.cpu.seg[CS].attributes = board.cpu.seg[CS].attributes.with_long(false).with_big(true);
    board.cpu.update_mode();
    assert_eq!(board.cpu.set_cr0(0x11), GP, "paging stays on with PCIDE");
}

#[test]
fn cr3_is_as_wide_as_physical_addresses() {
    let mut board = board("qemu64");
    board.long_mode(0);
    assert_eq!(board.cpu.set_cr3(TABLES | 1 << 40), GP);
    assert_eq!(board.cpu.set_cr3(TABLES | 1 << 63), GP);
    board.cpu.set_cr3(TABLES | 0x18).unwrap();
}

#[test]
fn moves_check_privilege_and_number() {
    let mut board = board("max");
    board.long_mode(3);
    assert_eq!(board.execute(&[0x0f, 0x20, 0xc0]), Err(Exception::GP0), "mov rax, cr0");
    assert_eq!(board.execute(&[0x0f, 0x22, 0xe0]), Err(Exception::GP0), "mov cr4, rax");
    assert_eq!(board.execute(&[0x0f, 0x23, 0xf8]), Err(Exception::GP0), "mov dr7, rax");
    assert_eq!(board.execute(&[0x0f, 0x06]), Err(Exception::GP0), "clts");
    board.long_mode(0);
    assert_eq!(board.execute(&[0x0f, 0x20, 0xc8]), Err(Exception::UNDEFINED), "mov rax, cr1");
    assert_eq!(board.execute(&[0x0f, 0x22, 0xe8]), Err(Exception::UNDEFINED), "mov cr5, rax");
    assert_eq!(board.execute(&[0x0f, 0x20, 0xc0]), Ok(Flow::Next));
    assert_eq!(board.cpu.regs[RAX], 0x8001_0011);
}

#[test]
fn cr8_is_the_task_priority() {
    let mut board = board("max");
    board.long_mode(0);
    board.cpu.regs[RAX] = 9;
    assert_eq!(board.execute(&[0x44, 0x0f, 0x22, 0xc0]), Ok(Flow::Break));
    assert_eq!(board.apic.priority.load(SeqCst), 9);
    board.cpu.regs[RAX] = 16;
    assert_eq!(board.execute(&[0x44, 0x0f, 0x22, 0xc0]), Err(Exception::GP0));
    assert_eq!(board.execute(&[0x44, 0x0f, 0x20, 0xc0]), Ok(Flow::Next));
    assert_eq!(board.cpu.regs[RAX], 9);
}

#[test]
fn debug_registers_keep_their_fixed_bits() {
    let mut board = board("max");
    board.long_mode(0);
    board.cpu.regs[RAX] = 0;
    board.execute(&[0x0f, 0x23, 0xf0]).unwrap();
    board.execute(&[0x0f, 0x23, 0xf8]).unwrap();
    assert_eq!((board.cpu.dr[6], board.cpu.dr[7]), (0xffff_0ff0, 0x400));
    board.cpu.regs[RAX] = 0xffff_ffff;
    board.execute(&[0x0f, 0x23, 0xf0]).unwrap();
    assert_eq!(board.cpu.dr[6], 0xffff_efff);
    board.cpu.regs[RAX] = 1 << 32;
    assert_eq!(board.execute(&[0x0f, 0x23, 0xf0]), Err(Exception::GP0));
    assert_eq!(board.execute(&[0x0f, 0x23, 0xf8]), Err(Exception::GP0));
    assert_eq!(board.execute(&[0x0f, 0x23, 0xc0]), Ok(Flow::Break), "DR0 takes 64 bits");
    assert_eq!(board.cpu.dr[0], 1 << 32);
}

#[test]
fn dr4_is_dr6_until_de() {
    let mut board = board("max");
    board.long_mode(0);
    board.cpu.regs[RAX] = 0x4002;
    board.execute(&[0x0f, 0x23, 0xe0]).unwrap();
    assert_eq!(board.cpu.dr[6], 0xffff_4ff2);
    board.cpu.set_cr4(0x28).unwrap();
    assert_eq!(board.execute(&[0x0f, 0x21, 0xe0]), Err(Exception::UNDEFINED), "mov rax, dr4");
}

#[test]
fn general_detect_is_a_fault() {
    let mut board = board("max");
    board.long_mode(0);
    board.cpu.regs[RAX] = 0x2400;
    board.execute(&[0x0f, 0x23, 0xf8]).unwrap();
    assert_eq!(board.execute(&[0x0f, 0x21, 0xc0]), Err(Exception::plain(Vector::Debug)));
    assert_eq!(board.cpu.dr[6], 0xffff_0ff0 | DR6_BD);
}

#[test]
fn machine_status_word() {
    let mut board = board("max");
    board.protected_mode();
    board.cpu.regs[RAX] = 0xffff_0008;
    board.execute(&[0x0f, 0x01, 0xf0]).unwrap();
    assert_eq!(board.cpu.cr0.into_bits(), 0x19, "lmsw sets TS and cannot clear PE");
    board.execute(&[0x66, 0x0f, 0x01, 0xe0]).unwrap();
    assert_eq!(board.cpu.regs[RAX], 0xffff_0019, "16-bit smsw keeps the rest");
    board.execute(&[0x0f, 0x01, 0xe0]).unwrap();
    assert_eq!(board.cpu.regs[RAX], 0x19);
    board.execute(&[0x0f, 0x06]).unwrap();
    assert_eq!(board.cpu.cr0.into_bits(), 0x11, "clts");
    board.long_mode(3);
    assert_eq!(board.execute(&[0x0f, 0x01, 0xe0]), Ok(Flow::Next));
    board.long_mode(0);
    board.cpu.set_cr4(0x820).unwrap();
    board.cpu.cpl = 3;
    assert_eq!(board.execute(&[0x0f, 0x01, 0xe0]), Err(Exception::GP0), "UMIP");
}
