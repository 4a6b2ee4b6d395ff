//! MSRs: what reads back, what is refused, and by which CPU model.

use super::*;
use crate::testing::{Board, board};
use std::sync::atomic::Ordering::SeqCst;

const UNKNOWN: Result<u64, Exception> = Err(Exception::GP0);

fn round_trip(board: &mut Board, number: u32, value: u64) {
    board.cpu.write_msr(number, value).unwrap();
    assert_eq!(board.cpu.read_msr(number), Ok(value), "{number:#x}");
}

#[test]
fn unknown_registers_fault() {
    let mut board = board("max");
    for number in [0, 0x400, 0x401, 0x570, 0xc000_0104, 0xc001_0200, 0xc001_0200, 0x4000_0000, u32::MAX] {
        assert_eq!(board.cpu.read_msr(number), UNKNOWN, "{number:#x}");
        assert_eq!(board.cpu.write_msr(number, 0), Err(Exception::GP0), "{number:#x}");
    }
}

/// What Linux reads without expecting a fault while it boots.
#[test]
fn linux_finds_what_it_reads() {
    let common = [
        msr::TSC,
        msr::APIC_BASE,
        msr::TSC_ADJUST,
        msr::BIOS_SIGN_ID,
        msr::MTRR_CAP,
        msr::MCG_CAP,
        msr::MCG_STATUS,
        msr::MISC_ENABLE,
        msr::PAT,
        msr::MTRR_DEF_TYPE,
        msr::TSC_DEADLINE,
        msr::EFER,
        msr::TSC_AUX,
        msr::DEBUG_CTL,
    ];
    let amd = [msr::SYSCFG, msr::HWCR, msr::NB_CFG, msr::TOP_MEM, msr::TOP_MEM2, msr::DE_CFG, msr::MMIO_CONFIG_BASE];
    let intel = [msr::PLATFORM_ID, msr::FEATURE_CONTROL, msr::ARCH_CAPABILITIES];
    let mut on_amd = board("max,vendor=AuthenticAMD");
    let mut on_intel = board("max,vendor=GenuineIntel");
    for number in common {
        assert!(on_amd.cpu.read_msr(number).is_ok() && on_intel.cpu.read_msr(number).is_ok(), "{number:#x}");
    }
    for number in amd {
        assert!(on_amd.cpu.read_msr(number).is_ok() && on_intel.cpu.read_msr(number).is_err(), "{number:#x}");
    }
    for number in intel {
        assert!(on_amd.cpu.read_msr(number).is_err() && on_intel.cpu.read_msr(number).is_ok(), "{number:#x}");
    }
    assert_ne!(on_amd.cpu.read_msr(msr::HWCR).unwrap() & 1 << 24, 0, "the TSC counts at the P0 frequency");
}

#[test]
fn bases_must_be_canonical() {
    let mut board = board("qemu64");
    for number in [msr::FS_BASE, msr::GS_BASE, msr::KERNEL_GS_BASE, msr::LSTAR, msr::CSTAR, msr::SYSENTER_EIP] {
        round_trip(&mut board, number, 0x1234_5678_9abc);
        round_trip(&mut board, number, 0xffff_8000_0000_0000);
        assert_eq!(board.cpu.write_msr(number, 0x0000_8000_0000_0000), Err(Exception::GP0), "{number:#x}");
        assert_eq!(board.cpu.read_msr(number), Ok(0xffff_8000_0000_0000));
    }
    assert_eq!(board.cpu.seg_base[GS], 0xffff_8000_0000_0000);
}

#[test]
fn a_model_with_la57_takes_57_bits_whatever_cr4_says() {
    let mut board = board("max");
    round_trip(&mut board, msr::KERNEL_GS_BASE, 0x00ff_0000_0000_0000);
    assert!(board.cpu.write_msr(msr::KERNEL_GS_BASE, 0x0100_0000_0000_0000).is_err());
}

#[test]
fn efer_refuses_reserved_bits() {
    let mut board = board("qemu64");
    round_trip(&mut board, msr::EFER, 0x901);
    for bit in [1, 9, 12, 13, 14, 15, 63] {
        assert_eq!(board.cpu.write_msr(msr::EFER, 0x901 | 1 << bit), Err(Exception::GP0), "bit {bit}");
    }
    board.cpu.write_msr(msr::EFER, 0xd01).unwrap();
    assert_eq!(board.cpu.read_msr(msr::EFER), Ok(0x901), "LMA is the processor's own");
}

#[test]
fn lme_stays_while_paging_is_on() {
    let mut board = board("qemu64");
    board.long_mode(0);
    assert_eq!(board.cpu.read_msr(msr::EFER), Ok(0xd01));
    assert_eq!(board.cpu.write_msr(msr::EFER, 0xc01), Err(Exception::GP0));
    assert_eq!(board.cpu.write_msr(msr::EFER, 0xd00), Ok(()));
}

#[test]
fn memory_types_are_checked() {
    let mut board = board("qemu64");
    let cpu = &mut board.cpu;
    assert_eq!(cpu.read_msr(msr::PAT), Ok(0x0007_0406_0007_0406));
    assert_eq!(cpu.write_msr(msr::PAT, 0x0207_0406_0007_0406), Err(Exception::GP0));
    assert_eq!(cpu.write_msr(msr::MTRR_DEF_TYPE, 2), Err(Exception::GP0));
    assert_eq!(cpu.write_msr(msr::MTRR_DEF_TYPE, 0x1006), Err(Exception::GP0));
    assert_eq!(cpu.write_msr(msr::MTRR_PHYS_BASE0 + 2, 0x106), Err(Exception::GP0));
    assert_eq!(cpu.write_msr(msr::MTRR_PHYS_BASE0 + 3, 1 << 41), Err(Exception::GP0), "40 bits wide");
    assert_eq!(cpu.write_msr(msr::MTRR_CAP, 0), Err(Exception::GP0));
    assert_eq!(cpu.read_msr(msr::MTRR_PHYS_LAST + 1), UNKNOWN);
    assert_eq!(cpu.read_msr(0x251), UNKNOWN);
    for number in [msr::MTRR_FIX_64K_00000, msr::MTRR_FIX_16K_A0000, msr::MTRR_FIX_4K_F8000] {
        round_trip(&mut board, number, 0x0606);
    }
    round_trip(&mut board, msr::MTRR_PHYS_LAST - 1, 0x8000_0006);
    assert_eq!(board.cpu.msrs.mtrr_fixed[10], 0x0606);
}

#[test]
fn misc_enable_keeps_what_only_the_processor_sets() {
    let mut board = board("qemu64");
    board.cpu.write_msr(msr::MISC_ENABLE, 0x4_00c5_0809 & !0x1880).unwrap();
    assert_eq!(board.cpu.read_msr(msr::MISC_ENABLE), Ok(0x4_00c5_0009 | 0x1800));
    assert_eq!(board.cpu.write_msr(msr::MISC_ENABLE, 2), Err(Exception::GP0));
}

#[test]
fn time_stamp_counter_and_adjustment_move_together() {
    let mut board = board("max");
    board.clock.0.store(1000, SeqCst);
    assert_eq!(board.cpu.read_msr(msr::TSC), Ok(1000));
    board.cpu.write_msr(msr::TSC, 5000).unwrap();
    assert_eq!(board.cpu.read_msr(msr::TSC_ADJUST), Ok(4000));
    board.cpu.write_msr(msr::TSC_ADJUST, 0).unwrap();
    board.clock.0.store(1500, SeqCst);
    assert_eq!(board.cpu.read_msr(msr::TSC), Ok(1500));
}

#[test]
fn deadline_is_a_tsc_value() {
    let mut board = board("max");
    board.clock.0.store(1000, SeqCst);
    board.cpu.write_msr(msr::TSC, 50_000).unwrap();
    board.cpu.write_msr(msr::TSC_DEADLINE, 50_700).unwrap();
    assert_eq!(board.apic.deadline.load(SeqCst), 1700);
    assert_eq!(board.cpu.read_msr(msr::TSC_DEADLINE), Ok(50_700));
    // A new TSC does not move the deadline's own value.
    board.cpu.write_msr(msr::TSC, 50_500).unwrap();
    assert_eq!(board.apic.deadline.load(SeqCst), 1200);
    // In the past: now. Far away: never wraps.
    board.cpu.write_msr(msr::TSC_DEADLINE, 1).unwrap();
    assert_eq!(board.apic.deadline.load(SeqCst), 1000);
    board.cpu.write_msr(msr::TSC_DEADLINE, u64::MAX).unwrap();
    assert!(board.apic.deadline.load(SeqCst) > 1 << 62);
    board.cpu.write_msr(msr::TSC_DEADLINE, 0).unwrap();
    assert_eq!(board.cpu.read_msr(msr::TSC_DEADLINE), Ok(0));
}

#[test]
fn speculation_controls_follow_cpuid() {
    let mut plain = board("max");
    assert_eq!(plain.cpu.read_msr(msr::SPEC_CTRL), UNKNOWN);
    assert_eq!(plain.cpu.write_msr(msr::PRED_CMD, 1), Err(Exception::GP0));
    let mut guarded = board("max,+spec-ctrl,+ssbd");
    round_trip(&mut guarded, msr::SPEC_CTRL, 5);
    assert_eq!(guarded.cpu.write_msr(msr::SPEC_CTRL, 2), Err(Exception::GP0), "no STIBP");
    assert_eq!(guarded.cpu.write_msr(msr::PRED_CMD, 1), Ok(()));
    assert_eq!(guarded.cpu.write_msr(msr::PRED_CMD, 3), Err(Exception::GP0));
    assert_eq!(guarded.cpu.read_msr(msr::PRED_CMD), UNKNOWN);
}
