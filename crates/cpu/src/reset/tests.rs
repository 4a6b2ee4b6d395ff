//! Power-up, INIT and start-up IPIs.

use crate::state::{CS, CodeSize, RAX, RDX, RIP, SS, Shadow};
use crate::testing::board;
use x86::msr;

#[test]
fn power_on() {
    let board = board("qemu64");
    let cpu = &board.cpu;
    assert_eq!((cpu.seg[CS].base, cpu.seg[CS].selector.into_bits(), cpu.regs[RIP]), (0xffff_0000, 0xf000, 0xfff0));
    assert_eq!((cpu.regs[RDX], cpu.rflags().into_bits()), (0x0006_0fb1, 2));
    assert_eq!((cpu.cr0.into_bits(), cpu.cr4.into_bits(), cpu.efer.into_bits()), (0x6000_0010, 0, 0));
    assert_eq!((cpu.dr[6], cpu.dr[7], cpu.xcr0.into_bits()), (0xffff_0ff0, 0x400, 1));
    assert_eq!((cpu.code_size, cpu.cpl, cpu.seg[SS].limit, cpu.idtr.limit), (CodeSize::Bits16, 0, 0xffff, 0xffff));
    assert!(!cpu.waiting_for_sipi);
}

#[test]
fn init_keeps_more_than_reset() {
    let mut board = board("max");
    board.long_mode(0);
    let cpu = &mut board.cpu;
    cpu.write_msr(msr::LSTAR, 0x1234).unwrap();
    cpu.vector.set_xmm(3, 5);
    cpu.regs[RAX] = 7;
    cpu.shadow = Shadow::Sti;
    cpu.nmi_blocked = true;
    cpu.init();
    assert_eq!((cpu.msrs.lstar, cpu.vector.xmm(3)), (0x1234, 5));
    assert_eq!((cpu.regs[RAX], cpu.regs[RIP], cpu.cr0.into_bits()), (0, 0xfff0, 0x10));
    assert!(!cpu.long_mode() && !cpu.nmi_blocked && cpu.shadow == Shadow::None);
    assert_eq!(cpu.code_size, CodeSize::Bits16);
    cpu.reset();
    assert_eq!((cpu.msrs.lstar, cpu.vector.xmm(3), cpu.cr0.into_bits()), (0, 0, 0x6000_0010));
}

#[test]
fn start_up_only_when_waited_for() {
    let mut board = board("max");
    let cpu = &mut board.cpu;
    cpu.start_up(0x9a);
    assert_eq!(cpu.regs[RIP], 0xfff0);
    cpu.waiting_for_sipi = true;
    cpu.start_up(0x9a);
    assert_eq!((cpu.seg[CS].base, cpu.seg[CS].selector.into_bits(), cpu.regs[RIP]), (0x9_a000, 0x9a00, 0));
    assert!(!cpu.waiting_for_sipi);
}

#[test]
fn memory_types_begin_as_firmware_leaves_them() {
    let mut board = board("qemu64");
    let cpu = &mut board.cpu;
    assert_eq!(cpu.read_msr(msr::MTRR_DEF_TYPE), Ok(0xc06));
    assert_eq!(cpu.read_msr(msr::MTRR_FIX_64K_00000), Ok(0x0606_0606_0606_0606));
    assert_eq!(cpu.read_msr(msr::MTRR_FIX_16K_80000), Ok(0x0606_0606_0606_0606));
    assert_eq!(cpu.read_msr(msr::MTRR_FIX_16K_A0000), Ok(0));
    assert_eq!(cpu.read_msr(msr::MTRR_PHYS_BASE0), Ok(0xc000_0000));
    assert_eq!(cpu.read_msr(msr::MTRR_PHYS_BASE0 + 1), Ok(0xff_c000_0800));
}
