//! System instructions: privilege, flags, hints and what is not offered.

use super::*;
use crate::state::{CS, RSP};
use crate::testing::{TABLES, board};

const UD: Result<Flow, Exception> = Err(Exception::UNDEFINED);
const GP: Result<Flow, Exception> = Err(Exception::GP0);

#[test]
fn privileged_instructions_fault_in_user_mode() {
    let mut board = board("max");
    board.long_mode(3);
    let privileged: [&[u8]; 12] = [
        &[0xf4],
        &[0xfa],
        &[0xfb],
        &[0x0f, 0x08],
        &[0x0f, 0x09],
        &[0xf3, 0x0f, 0x09],
        &[0x0f, 0x01, 0x38],
        &[0x66, 0x0f, 0x38, 0x82, 0x00],
        &[0x0f, 0x32],
        &[0x0f, 0x30],
        &[0x0f, 0x01, 0xf8],
        &[0x0f, 0x33],
    ];
    for bytes in privileged {
        assert_eq!(board.execute(bytes), GP, "{bytes:02x?}");
    }
    let undefined: [&[u8]; 9] = [
        &[0x0f, 0x0b],
        &[0x0f, 0xb9, 0xc0],
        &[0x0f, 0xff, 0xc0],
        &[0x0f, 0xaa],
        &[0x0f, 0x01, 0xca],
        &[0x0f, 0x01, 0xcb],
        &[0x0f, 0x01, 0xc1],
        &[0x0f, 0x01, 0xd9],
        &[0x0f, 0x01, 0xc8],
    ];
    for bytes in undefined {
        assert_eq!(board.execute(bytes), UD, "{bytes:02x?}");
    }
}

#[test]
fn popf_changes_what_the_level_may() {
    let mut board = board("max");
    board.long_mode(3);
    board.cpu.regs[RSP] = 0x10_0000;
    let pop = |board: &mut crate::testing::Board, value: u64| {
        board.poke(0x10_0000, &[value]);
        board.cpu.regs[RSP] = 0x10_0000;
        board.execute(&[0x9d])
    };
    assert_eq!(pop(&mut board, u64::MAX), Ok(Flow::Break), "TF and AC changed");
    assert_eq!(board.cpu.rflags().into_bits(), 0x24_4dd7, "neither IF nor IOPL, VM, RF");
    assert_eq!(pop(&mut board, 2), Ok(Flow::Break));
    assert_eq!(pop(&mut board, 0x47), Ok(Flow::Next));
    board.cpu.system_flags.set_iopl(3);
    assert_eq!(pop(&mut board, 0x202), Ok(Flow::Break));
    assert_eq!(board.cpu.rflags().into_bits(), 0x3202, "IF, but not IOPL");
    board.long_mode(0);
    assert_eq!(pop(&mut board, 0x1002), Ok(Flow::Next));
    assert_eq!(board.cpu.rflags().into_bits(), 0x1002);
    assert_eq!(pop(&mut board, 0x24_0002), Ok(Flow::Break));
    board.cpu.system_flags.set_resume(true);
    board.execute(&[0x9c]).unwrap();
    let pushed: u64 = board.cpu.load(crate::state::SS, board.cpu.regs[RSP]).unwrap();
    assert_eq!(pushed, 0x24_0002, "RF is not shown");
    // A 16-bit POPF leaves the upper half alone.
    board.execute(&[0x66, 0x9d]).unwrap();
    assert_eq!(board.cpu.rflags().into_bits() & 0x24_0000, 0x24_0000);
}

#[test]
fn sti_shadows_one_instruction() {
    let mut board = board("max");
    board.long_mode(0);
    assert_eq!(board.execute(&[0xfb]), Ok(Flow::Break));
    assert_eq!(board.cpu.shadow, Shadow::Sti);
    board.cpu.shadow = Shadow::None;
    board.execute(&[0xfb]).unwrap();
    assert_eq!(board.cpu.shadow, Shadow::None, "IF was set already");
    board.execute(&[0xfa]).unwrap();
    assert!(!board.cpu.system_flags.interrupt());
    assert_eq!(board.execute(&[0xf4]), Ok(Flow::Halt));
}

#[test]
fn virtual_8086_mode_needs_iopl_3() {
    let mut board = board("max");
    board.protected_mode();
    board.cpu.system_flags.set_virtual_8086(true);
    board.cpu.update_mode();
    board.cpu.regs[RSP] = 0x1000;
    for bytes in [[0x9c], [0x9d], [0xfa], [0xfb]] {
        assert_eq!(board.execute(&bytes), GP, "{bytes:02x?}");
    }
    board.cpu.system_flags.set_iopl(3);
    for bytes in [[0x9c], [0xfb], [0xfa], [0x9d]] {
        assert!(board.execute(&bytes).is_ok(), "{bytes:02x?}");
    }
}

#[test]
fn smap_override_is_for_supervisors() {
    let mut board = board("max");
    board.long_mode(0);
    board.execute(&[0x0f, 0x01, 0xcb]).unwrap();
    assert_eq!(board.cpu.mmu.space(), memory::Space::KernelAc);
    board.execute(&[0x0f, 0x01, 0xca]).unwrap();
    assert_eq!(board.cpu.mmu.space(), memory::Space::Kernel);
}

#[test]
fn time_is_refused_where_tsd_says_so() {
    let mut board = board("max");
    board.long_mode(3);
    board.clock.0.store(0x1_0000_0002, std::sync::atomic::Ordering::SeqCst);
    board.cpu.msrs.tsc_aux = 7;
    board.execute(&[0x0f, 0x01, 0xf9]).unwrap();
    let [a, c, d, ..] = board.cpu.regs;
    assert_eq!((a, c, d), (2, 7, 1));
    board.execute(&[0xf3, 0x0f, 0xc7, 0xf8]).unwrap();
    assert_eq!(board.cpu.regs[RAX], 7, "rdpid rax");
    board.cpu.cr4.set_time_stamp_disable(true);
    assert_eq!(board.execute(&[0x0f, 0x31]), GP);
    board.cpu.cpl = 0;
    assert_eq!(board.execute(&[0x0f, 0x31]), Ok(Flow::Next));
}

#[test]
fn bases_by_instruction() {
    let mut board = board("max");
    board.long_mode(0);
    assert_eq!(board.execute(&[0xf3, 0x48, 0x0f, 0xae, 0xd0]), UD, "wrfsbase rax without CR4.FSGSBASE");
    board.cpu.set_cr4(0x1_0020).unwrap();
    board.cpu.regs[RAX] = 0xffff_8000_1234_5678;
    board.execute(&[0xf3, 0x48, 0x0f, 0xae, 0xd8]).unwrap();
    assert_eq!((board.cpu.seg[GS].base, board.cpu.seg_base[GS]), (0xffff_8000_1234_5678, 0xffff_8000_1234_5678));
    board.execute(&[0xf3, 0x0f, 0xae, 0xd0]).unwrap();
    assert_eq!(board.cpu.seg[FS].base, 0x1234_5678, "wrfsbase eax");
    board.cpu.msrs.kernel_gs_base = 0x77;
    board.execute(&[0x0f, 0x01, 0xf8]).unwrap();
    assert_eq!((board.cpu.seg_base[GS], board.cpu.msrs.kernel_gs_base), (0x77, 0xffff_8000_1234_5678));
    board.cpu.regs[RAX] = 1 << 62;
    assert_eq!(board.execute(&[0xf3, 0x48, 0x0f, 0xae, 0xd8]), GP);
    board.execute(&[0xf3, 0x48, 0x0f, 0xae, 0xc8]).unwrap();
    assert_eq!(board.cpu.regs[RAX], 0x77, "rdgsbase rax");
}

#[test]
fn protection_keys() {
    let mut board = board("max");
    board.long_mode(3);
    (board.cpu.regs[RCX], board.cpu.regs[RDX]) = (0, 0);
    assert_eq!(board.execute(&[0x0f, 0x01, 0xee]), UD);
    board.cpu.set_cr4(0x40_0020).unwrap();
    board.cpu.regs[RAX] = 0x5555_5554;
    board.execute(&[0x0f, 0x01, 0xef]).unwrap();
    assert_eq!(board.cpu.pkru, 0x5555_5554);
    board.cpu.regs[RDX] = 1;
    assert_eq!(board.execute(&[0x0f, 0x01, 0xef]), GP);
    board.execute(&[0x0f, 0x01, 0xee]).unwrap();
    assert_eq!(board.cpu.regs[RDX], 0);
    board.cpu.regs[RCX] = 1;
    assert_eq!(board.execute(&[0x0f, 0x01, 0xee]), GP);
}

#[test]
fn invpcid_checks_its_descriptor() {
    let mut board = board("max");
    board.long_mode(0);
    let at = 0x10_0000;
    let invpcid = |board: &mut crate::testing::Board, kind: u64, descriptor: [u64; 2]| {
        board.poke(at, &descriptor);
        board.cpu.regs[RAX] = at;
        board.cpu.regs[RCX] = kind;
        board.execute(&[0x66, 0x0f, 0x38, 0x82, 0x08])
    };
    for kind in 0..4 {
        assert_eq!(invpcid(&mut board, kind, [0, TABLES]), Ok(Flow::Break));
    }
    assert_eq!(invpcid(&mut board, 4, [0, 0]), GP);
    assert_eq!(invpcid(&mut board, 0, [0x1000, 0]), GP, "reserved");
    assert_eq!(invpcid(&mut board, 0, [0, 1 << 62]), GP, "not canonical");
    assert_eq!(invpcid(&mut board, 1, [1, 0]), GP, "PCID without PCIDE");
    assert_eq!(invpcid(&mut board, 2, [1, 1 << 62]), Ok(Flow::Break), "not looked at");
    board.cpu.set_cr4(0x2_0020).unwrap();
    assert_eq!(invpcid(&mut board, 1, [1, 0]), Ok(Flow::Break));
}

#[test]
fn cpuid_fills_four_registers() {
    let mut board = board("qemu64");
    board.long_mode(3);
    board.cpu.regs[RAX] = u64::MAX << 32;
    board.execute(&[0x0f, 0xa2]).unwrap();
    assert_eq!((board.cpu.regs[RAX], board.cpu.regs[RBX]), (0xd, u64::from(u32::from_le_bytes(*b"Auth"))));
}

#[test]
fn cache_lines_must_be_readable() {
    let mut board = board("max");
    board.long_mode(0);
    board.cpu.regs[RAX] = 0x10_0000;
    assert_eq!(board.execute(&[0x0f, 0xae, 0x38]), Ok(Flow::Next), "clflush [rax]");
    board.cpu.regs[RAX] = 0x4000_0000;
    assert_eq!(board.execute(&[0x0f, 0xae, 0x38]).unwrap_err().vector, x86::Vector::PageFault);
    assert_eq!(board.execute(&[0x66, 0x0f, 0xae, 0x38]).unwrap_err().vector, x86::Vector::PageFault, "clflushopt");
    assert_eq!(board.execute(&[0x0f, 0x18, 0x08]), Ok(Flow::Next), "prefetcht0 never faults");
    assert_eq!(board.execute(&[0x0f, 0x0d, 0x08]), Ok(Flow::Next), "nor does prefetchw");
    assert_eq!(board.execute(&[0xf3, 0x0f, 0x1e, 0xfa]), Ok(Flow::Next), "endbr64");
    assert_eq!(board.cpu.seg[CS].selector.into_bits(), 8);
}

#[test]
fn model_specific_registers_by_instruction() {
    let mut board = board("max");
    board.long_mode(0);
    board.cpu.regs[RCX] = u64::from(msr::LSTAR) | 5 << 32;
    (board.cpu.regs[RAX], board.cpu.regs[RDX]) = (0xffff_ffff_0000_1234, 0x5);
    assert_eq!(board.execute(&[0x0f, 0x30]), Ok(Flow::Break));
    assert_eq!(board.cpu.msrs.lstar, 0x5_0000_1234);
    (board.cpu.regs[RAX], board.cpu.regs[RDX]) = (u64::MAX, u64::MAX);
    assert_eq!(board.execute(&[0x0f, 0x32]), Ok(Flow::Next));
    assert_eq!((board.cpu.regs[RAX], board.cpu.regs[RDX]), (0x1234, 5));
}
