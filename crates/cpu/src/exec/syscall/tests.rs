//! SYSCALL, SYSRET, SYSENTER, SYSEXIT and SWAPGS: where they go and what they refuse.

use super::*;
use crate::state::CodeSize;
use crate::testing::{Board, board};
use x86::msr;

const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSRETQ: &[u8] = &[0x48, 0x0f, 0x07];
const SYSRETL: &[u8] = &[0x0f, 0x07];
const SYSENTER: &[u8] = &[0x0f, 0x34];
const SYSEXITQ: &[u8] = &[0x48, 0x0f, 0x35];

fn ready(vendor: &str, cpl: u8) -> Board {
    let mut board = board(&format!("max,vendor={vendor}"));
    board.long_mode(cpl);
    let cpu = &mut board.cpu;
    cpu.write_msr(msr::STAR, 0x0023_0010_0000_7000).unwrap();
    cpu.write_msr(msr::LSTAR, 0xffff_8000_0000_1000).unwrap();
    cpu.write_msr(msr::CSTAR, 0x9000).unwrap();
    cpu.write_msr(msr::SFMASK, 0x4_0700).unwrap();
    cpu.write_msr(msr::SYSENTER_CS, 0x13).unwrap();
    cpu.write_msr(msr::SYSENTER_EIP, 0xffff_8000_0000_2000).unwrap();
    cpu.write_msr(msr::SYSENTER_ESP, 0xffff_8000_0000_3000).unwrap();
    cpu.regs[RIP] = 0x8000;
    board
}

fn selectors(board: &Board) -> (u16, u16, u8) {
    let cpu = &board.cpu;
    (cpu.seg[CS].selector.into_bits(), cpu.seg[SS].selector.into_bits(), cpu.cpl)
}

#[test]
fn there_and_back() {
    let mut board = ready("AuthenticAMD", 3);
    board.cpu.set_rflags(0x4_0246, u64::MAX);
    assert_eq!(board.execute(SYSCALL), Ok(Flow::Jump));
    assert_eq!(selectors(&board), (0x10, 0x18, 0));
    assert_eq!((board.cpu.regs[RCX], board.cpu.regs[R11]), (0x8002, 0x4_0246));
    assert_eq!(board.cpu.regs[RIP], 0xffff_8000_0000_1000);
    assert_eq!(board.cpu.rflags().into_bits(), 0x46);
    assert_eq!(board.cpu.mmu.space(), memory::Space::Kernel);
    assert_eq!(board.execute(SYSRETQ), Ok(Flow::Jump));
    assert_eq!(selectors(&board), (0x33, 0x2b, 3));
    assert_eq!((board.cpu.regs[RIP], board.cpu.rflags().into_bits()), (0x8002, 0x4_0246));
    assert_eq!(board.cpu.code_size, CodeSize::Bits64);
}

#[test]
fn sysret_to_compatibility_mode_and_back_by_cstar() {
    let mut board = ready("AuthenticAMD", 0);
    board.cpu.regs[RCX] = 0x1_0000_8000;
    board.cpu.regs[R11] = !0x100;
    board.execute(SYSRETL).unwrap();
    assert_eq!(selectors(&board), (0x23, 0x2b, 3));
    assert_eq!((board.cpu.regs[RIP], board.cpu.code_size), (0x8000, CodeSize::Bits32));
    assert_eq!(board.cpu.rflags().into_bits(), 0x003c_7ed7, "neither RF nor VM");
    board.execute(SYSCALL).unwrap();
    assert_eq!((board.cpu.regs[RIP], board.cpu.code_size), (0x9000, CodeSize::Bits64));
}

#[test]
fn intel_has_syscall_in_64_bit_mode_only() {
    let mut board = ready("GenuineIntel", 0);
    board.cpu.regs[RCX] = 0x8000;
    board.execute(SYSRETL).unwrap();
    assert_eq!(board.execute(SYSCALL), Err(Exception::UNDEFINED));
    assert_eq!(board.cpu.cpl, 3);
}

#[test]
fn only_intel_checks_where_sysret_goes() {
    let mut intel = ready("GenuineIntel", 0);
    intel.cpu.regs[RCX] = 0x8000_0000_0000_0000;
    assert_eq!(intel.execute(SYSRETQ), Err(Exception::GP0));
    assert_eq!(intel.cpu.cpl, 0);
    let mut amd = ready("AuthenticAMD", 0);
    amd.cpu.regs[RCX] = 0x8000_0000_0000_0000;
    assert_eq!(amd.execute(SYSRETQ), Ok(Flow::Jump));
    assert_eq!((amd.cpu.cpl, amd.cpu.regs[RIP]), (3, 0x8000_0000_0000_0000));
}

#[test]
fn sce_and_privilege() {
    let mut board = ready("AuthenticAMD", 3);
    assert_eq!(board.execute(SYSRETQ), Err(Exception::GP0));
    board.cpu.efer.set_syscall(false);
    assert_eq!(board.execute(SYSCALL), Err(Exception::UNDEFINED));
    assert_eq!(board.execute(SYSRETQ), Err(Exception::UNDEFINED));
}

#[test]
fn single_step_follows_the_new_flags() {
    let mut board = ready("AuthenticAMD", 3);
    board.cpu.set_rflags(0x100, 0x100);
    board.cpu.stepping = true;
    board.execute(SYSCALL).unwrap();
    assert!(!board.cpu.stepping && board.cpu.debug_pending == 0, "SFMASK clears TF");
    board.execute(SYSRETQ).unwrap();
    assert_eq!(board.cpu.debug_pending, DR6_BS, "R11 sets it again");
}

#[test]
fn sysenter_differs_by_vendor() {
    let mut amd = ready("AuthenticAMD", 3);
    assert_eq!(amd.execute(SYSENTER), Err(Exception::UNDEFINED));
    let mut intel = ready("GenuineIntel", 3);
    intel.cpu.set_rflags(0x200, 0x200);
    intel.execute(SYSENTER).unwrap();
    assert_eq!(selectors(&intel), (0x10, 0x18, 0));
    assert_eq!((intel.cpu.regs[RIP], intel.cpu.regs[RSP]), (0xffff_8000_0000_2000, 0xffff_8000_0000_3000));
    assert!(!intel.cpu.system_flags.interrupt());
    (intel.cpu.regs[RDX], intel.cpu.regs[RCX]) = (0x8000, 0x9000);
    intel.execute(SYSEXITQ).unwrap();
    assert_eq!(selectors(&intel), (0x33, 0x3b, 3));
    assert_eq!((intel.cpu.regs[RIP], intel.cpu.regs[RSP]), (0x8000, 0x9000));
}

#[test]
fn sysenter_in_protected_mode() {
    let mut board = board("max,vendor=AuthenticAMD");
    board.protected_mode();
    assert_eq!(board.execute(SYSENTER), Err(Exception::GP0), "SYSENTER_CS is null");
    board.cpu.write_msr(msr::SYSENTER_CS, 8).unwrap();
    board.cpu.write_msr(msr::SYSENTER_EIP, 0x1234).unwrap();
    board.execute(SYSENTER).unwrap();
    assert_eq!(selectors(&board), (8, 0x10, 0));
    assert_eq!((board.cpu.regs[RIP], board.cpu.code_size), (0x1234, CodeSize::Bits32));
}
