//! String instructions across pages, at faults, and at the ends of their addresses.

use super::*;
use crate::state::{DS, FS, RIP};
use crate::testing::{Board, TABLES, board, flat};
use x86::PageFaultCode;

/// A page whose successor is not mapped, in [`paged`].
const LAST: u64 = 0x10_0000;

fn long() -> Board {
    let mut board = board("max");
    board.long_mode(0);
    board
}

/// Long mode with 4 KiB pages, in which the page after [`LAST`] is missing.
fn paged() -> Board {
    let mut board = long();
    let entries: Vec<u64> = (0..512).map(|n| if n << 12 == LAST + 0x1000 { 0 } else { n << 12 | 7 }).collect();
    board.poke(TABLES + 0x3000, &entries);
    board.poke(TABLES + 0x2000, &[(TABLES + 0x3000) | 7]);
    board.cpu.set_cr3(TABLES).unwrap();
    board
}

fn registers(board: &mut Board, count: u64, source: u64, destination: u64) {
    board.cpu.regs[RCX] = count;
    board.cpu.regs[RSI] = source;
    board.cpu.regs[RDI] = destination;
}

fn state(board: &Board) -> [u64; 3] {
    [board.cpu.regs[RCX], board.cpu.regs[RSI], board.cpu.regs[RDI]]
}

/// Executes until the instruction is done or faults.
fn finish(board: &mut Board, bytes: &[u8]) -> Result<(), Exception> {
    while board.execute(bytes)? == Flow::Repeat {}
    Ok(())
}

fn bytes(board: &Board, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    board.cpu.mmu.map().read(memory::Gpa(at), &mut bytes).unwrap();
    bytes
}

#[test]
fn copies_cross_pages_at_any_alignment() {
    for (from, to, count) in [(0x2_0ffd, 0x4_0ffe, 5000u64), (0x2_0001, 0x4_0000, 8191), (0x2_0ff9, 0x4_0ff1, 3000)] {
        for (code, size) in
            [(&[0xf3, 0xa4][..], 1), (&[0xf3, 0x66, 0xa5], 2), (&[0xf3, 0xa5], 4), (&[0xf3, 0x48, 0xa5], 8)]
        {
            let mut board = long();
            let data: Vec<u8> = (0..count * size).map(|n| (n * 31 / 8) as u8).collect();
            board.poke_bytes(from, &data);
            registers(&mut board, count, from, to);
            finish(&mut board, code).unwrap();
            assert_eq!(bytes(&board, to, data.len()), data, "{code:x?} {from:x} {to:x}");
            assert_eq!(bytes(&board, to + count * size, 8), [0; 8]);
            assert_eq!(state(&board), [0, from + count * size, to + count * size]);
        }
    }
}

#[test]
fn a_copy_onto_its_own_source_repeats_it() {
    let mut board = long();
    board.poke_bytes(0x2_0ffe, b"ab");
    registers(&mut board, 6000, 0x2_0ffe, 0x2_1000);
    finish(&mut board, &[0xf3, 0xa4]).unwrap();
    assert_eq!(bytes(&board, 0x2_0ffe, 6002), b"ab".repeat(3001));
    registers(&mut board, 3, 0x2_0ffe, 0x2_0fff);
    finish(&mut board, &[0xf3, 0xa5]).unwrap();
    assert_eq!(bytes(&board, 0x2_0ffe, 13), b"aababbbabbbab");
}

#[test]
fn a_fault_in_the_middle_leaves_exact_registers() {
    // The destination ends first, then the source; with an element that is cut by the page's end.
    for (code, size) in [(&[0xf3, 0xa4][..], 1u64), (&[0xf3, 0xa5], 4), (&[0xf3, 0x48, 0xa5], 8)] {
        for cut in [0, size - 1] {
            let mut board = paged();
            let start = LAST + 0x1000 - 5 * size - cut;
            registers(&mut board, 100, 0x2_0000, start);
            let fault = finish(&mut board, code).unwrap_err();
            assert_eq!(fault, Exception::page_fault(PageFaultCode::new().with_write(true)));
            assert_eq!(state(&board), [95, 0x2_0000 + 5 * size, start + 5 * size], "{size} {cut}");
            assert_eq!(board.cpu.fault_address, LAST + 0x1000);
            assert_eq!(board.cpu.regs[RIP], 0x8000);
            let mut board = paged();
            registers(&mut board, 100, start, 0x2_0000);
            assert_eq!(finish(&mut board, code).unwrap_err(), Exception::page_fault(PageFaultCode::new()));
            assert_eq!(state(&board), [95, start + 5 * size, 0x2_0000 + 5 * size], "{size} {cut}");
        }
    }
    let mut board = paged();
    board.cpu.regs[RAX] = 0x55;
    registers(&mut board, 9000, 0, LAST - 10);
    finish(&mut board, &[0xf3, 0xaa]).unwrap_err();
    assert_eq!(state(&board), [9000 - 4106, 0, LAST + 0x1000]);
    assert_eq!(bytes(&board, LAST - 10, 4106), [0x55; 4106]);
}

#[test]
fn the_direction_flag_counts_down() {
    let mut board = paged();
    board.cpu.set_rflags(0x400, 0x400);
    board.poke_bytes(0x2_0000, b"0123456789");
    registers(&mut board, 10, 0x2_0009, 0x3_0009);
    finish(&mut board, &[0xf3, 0xa4]).unwrap();
    assert_eq!(bytes(&board, 0x3_0000, 10), b"0123456789");
    assert_eq!(state(&board), [0, 0x1_ffff, 0x2_ffff]);
    registers(&mut board, 3, LAST + 0x2008, 0x3_0100);
    finish(&mut board, &[0xf3, 0x48, 0xad]).unwrap_err();
    assert_eq!(state(&board), [1, LAST + 0x1ff8, 0x3_0100], "down into the missing page");
}

#[test]
fn addresses_wrap_at_their_size() {
    // 32-bit addresses in 64-bit mode: written registers lose their upper half.
    let mut board = long();
    registers(&mut board, 0xdead_0000_0002, 0xbeef_0002_0000, 0xcafe_0003_0000);
    board.poke(0x2_0000, &[0x1122]);
    finish(&mut board, &[0x67, 0xf3, 0xa4]).unwrap();
    assert_eq!(state(&board), [0, 0x2_0002, 0x3_0002]);
    assert_eq!(board.peek(0x3_0000), 0x1122);
    // 16-bit addresses wrap within the segment and leave the rest of the register.
    let mut board = board_16();
    board.cpu.regs[RAX] = 0x77;
    registers(&mut board, 0x1234_0004, 0, 0x5678_fffe);
    finish(&mut board, &[0xf3, 0xaa]).unwrap();
    assert_eq!(state(&board), [0x1234_0000, 0, 0x5678_0002]);
    assert_eq!(bytes(&board, 0x1_fffe, 3), [0x77, 0x77, 0]);
    assert_eq!(bytes(&board, 0x1_0000, 3), [0x77, 0x77, 0]);
    // An element that is cut by the end of the segment does not wrap: #GP, or #SS for a source in SS.
    registers(&mut board, 2, 0xffff, 0x100);
    assert_eq!(finish(&mut board, &[0xf3, 0xa5]), Err(Exception::GP0));
    assert_eq!(finish(&mut board, &[0x36, 0xf3, 0xa5]), Err(Exception::SS0));
    assert_eq!(state(&board), [2, 0xffff, 0x100]);
}

/// 16-bit protected mode with all segments at 10000h.
fn board_16() -> Board {
    let mut board = board("max");
    board.protected_mode();
    for segment in &mut board.cpu.seg {
        segment.base = 0x1_0000;
        segment.limit = 0xffff;
        segment.attributes.set_big(false);
    }
    board.cpu.update_mode();
    board
}

#[test]
fn comparisons_end_where_the_zero_flag_says() {
    let mut board = long();
    board.poke_bytes(0x2_0000, b"abcdefgh");
    board.poke_bytes(0x3_0000, b"abcdxfgh");
    registers(&mut board, 8, 0x2_0000, 0x3_0000);
    finish(&mut board, &[0xf3, 0xa6]).unwrap();
    assert_eq!(state(&board), [3, 0x2_0005, 0x3_0005]);
    let flags = board.cpu.rflags();
    assert!(!flags.zero() && flags.carry(), "e is below x");
    // REPNE: from the difference on, until they are equal again.
    registers(&mut board, 8, 0x2_0004, 0x3_0004);
    finish(&mut board, &[0xf2, 0xa6]).unwrap();
    assert_eq!(state(&board), [6, 0x2_0006, 0x3_0006]);
    assert!(board.cpu.rflags().zero());
    // The count runs out.
    registers(&mut board, 4, 0x2_0000, 0x3_0000);
    finish(&mut board, &[0xf3, 0xa6]).unwrap();
    assert_eq!(state(&board), [0, 0x2_0004, 0x3_0004]);
    board.cpu.regs[RAX] = u64::from(b'f');
    registers(&mut board, u64::MAX, 0, 0x2_0000);
    finish(&mut board, &[0xf2, 0xae]).unwrap();
    assert_eq!(board.cpu.regs[RDI], 0x2_0006);
    assert_eq!(board.cpu.regs[RCX], u64::MAX - 6);
    // A count of zero touches neither flags nor memory.
    board.cpu.set_rflags(0x8d5, 0x8d5);
    registers(&mut board, 0, 1 << 62, 1 << 62);
    finish(&mut board, &[0xf3, 0xa6]).unwrap();
    assert_eq!(board.cpu.rflags().into_bits() & 0x8d5, 0x8d5);
    assert_eq!(state(&board), [0, 1 << 62, 1 << 62]);
}

#[test]
fn only_the_source_takes_a_segment_override() {
    let mut board = long();
    board.cpu.set_segment_base(FS, 0x1_0000);
    board.poke(0x3_0000, &[0xaabb]);
    registers(&mut board, 2, 0x2_0000, 0x4_0000);
    finish(&mut board, &[0x64, 0xf3, 0xa4]).unwrap();
    assert_eq!(board.peek(0x4_0000), 0xaabb);
    let mut board = board_16();
    board.cpu.seg[DS].attributes.set_present(false);
    board.cpu.update_mode();
    registers(&mut board, 1, 0x100, 0x200);
    assert_eq!(finish(&mut board, &[0xf3, 0xa4]), Err(Exception::GP0));
    assert_eq!(finish(&mut board, &[0x2e, 0xf3, 0xa4]), Ok(()));
}

#[test]
fn repeated_elements_are_checked_for_alignment() {
    let mut board = long();
    board.long_mode(3);
    board.cpu.set_cr0(board.cpu.cr0.with_alignment_mask(true).into_bits()).unwrap();
    board.cpu.set_rflags(1 << 18, 1 << 18);
    registers(&mut board, 100, 0x2_0000, 0x3_0001);
    let fault = Exception::coded(x86::Vector::AlignmentCheck, 0);
    assert_eq!(finish(&mut board, &[0xf3, 0xa5]), Err(fault));
    registers(&mut board, 100, 0x2_0001, 0x3_0000);
    assert_eq!(finish(&mut board, &[0xf3, 0xa5]), Err(fault));
    assert_eq!(finish(&mut board, &[0xf3, 0xa4]), Ok(()));
}

#[test]
fn ports_are_read_and_written_element_by_element() {
    let mut board = paged();
    board.cpu.regs[RDX] = 0x1234;
    registers(&mut board, 3, 0, 0x2_0000);
    finish(&mut board, &[0xf3, 0x6d]).unwrap();
    assert_eq!(board.words(0x2_0000, 4), [0x1234, 0x1234, 0x1234, 0]);
    registers(&mut board, 3, 0x2_0000, 0);
    finish(&mut board, &[0xf3, 0x6e]).unwrap();
    assert_eq!(state(&board), [0, 0x2_0003, 0]);
    registers(&mut board, 3, 0, LAST + 0xffe);
    assert_eq!(finish(&mut board, &[0xf3, 0x6c]), Err(Exception::page_fault(PageFaultCode::new().with_write(true))));
    assert_eq!(state(&board), [1, 0, LAST + 0x1000]);
    // At CPL 3 without a permission bitmap.
    board.long_mode(3);
    board.system_tables();
    registers(&mut board, 1, 0, 0x2_0000);
    assert_eq!(finish(&mut board, &[0xf3, 0x6c]), Err(Exception::GP0));
    // 16-bit segments: the same through a limit.
    let mut board = board_16();
    board.cpu.seg[ES] = flat(0x10, 1, 0, false);
    board.cpu.update_mode();
    registers(&mut board, 1, 0, 0);
    assert_eq!(finish(&mut board, &[0x6c]), Err(Exception::GP0), "read-only");
}
