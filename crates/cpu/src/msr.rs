//! Model-specific registers (APM vol. 2, appendix A; SDM vol. 4): those that Linux touches on AMD and Intel processors,
//! and those that CPUID promises.
//!
//! The memory-type registers hold what is written and change nothing: guest memory is always cached. They begin as
//! firmware leaves them: write-back by default, the legacy video range and the PCI hole below 4 GiB uncached.
//! There are no machine-check banks, no performance counters and no last-branch records. A register that is not listed
//! here raises #GP(0) and leaves a line in the `guest_errors` log.

use crate::Cpu;
use crate::cpuid::{Feature, Vendor};
use crate::state::{CodeSize, FS, GS, Msrs};
use memory::Gva;
use x86::{Efer, Exception, is_canonical, msr};

/// APIC_BASE.BSP: this is the bootstrap processor.
pub const APIC_BASE_BSP: u64 = 1 << 8;
/// APIC_BASE.EN: the local APIC is on.
pub const APIC_BASE_ENABLE: u64 = 1 << 11;

/// PAT at reset: WB, WT, UC−, UC twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// Variable-range pairs.
const MTRR_VARIABLE: u64 = 8;
/// MTRR_CAP: eight variable ranges, fixed ranges, write combining.
const MTRR_CAP: u64 = MTRR_VARIABLE | 1 << 8 | 1 << 10;
/// MTRR_DEF_TYPE: enabled, fixed ranges enabled, write-back.
const MTRR_DEF_TYPE_RESET: u64 = 0xc06;
/// MISC_ENABLE: fast strings; no branch trace, no PEBS.
const MISC_ENABLE_RESET: u64 = 0x1801;
/// MISC_ENABLE bits that only the processor sets: performance monitoring, no branch trace, no PEBS.
const MISC_ENABLE_READ_ONLY: u64 = 0x1880;
/// MISC_ENABLE bits that are defined: 0, 3, 7, 11, 12, 16, 18, 22, 23, 34.
const MISC_ENABLE_DEFINED: u64 = 0x4_00c5_1889;
/// Microcode revisions, where each vendor shows them.
const MICROCODE_AMD: u64 = 0x0100_0065;
const MICROCODE_INTEL: u64 = 1 << 32;
/// FEATURE_CONTROL: locked, nothing enabled.
const FEATURE_CONTROL_LOCKED: u64 = 1;
/// HWCR.TscFreqSel: the TSC counts at the P0 frequency. Linux calls its absence a firmware bug.
const HWCR_TSC_FREQUENCY: u64 = 1 << 24;
/// DE_CFG bit 1: LFENCE serialises.
const DE_CFG_LFENCE: u64 = 1 << 1;
/// VM_CR: SVM is disabled (bit 4), and locked so (bit 3).
const VM_CR_DISABLED: u64 = 0x18;
/// DEBUG_CTL: LBR and BTF may be set. Neither does anything: there are no branch records, BTF steps every instruction.
const DEBUG_CTL_DEFINED: u64 = 3;
/// ARCH_CAPABILITIES: not affected by Meltdown (0), L1TF at VM entry (3), SSB (4), MDS (5), page-size MCE (6), TAA (8),
/// SBDR/SSDP, FBSDP, PSDP (13–15), BHI (20), PBRSB (24), GDS (26), RFDS (27), ITS (62): nothing here speculates across
/// privilege levels.
const ARCH_CAPABILITIES: u64 =
    1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 7 << 13 | 1 << 20 | 1 << 24 | 1 << 26 | 1 << 27 | 1 << 62;

impl Cpu {
    /// The MSRs after power-on and firmware.
    pub(crate) fn msrs_at_reset(&self) -> Msrs {
        let width = (1u64 << self.model.physical_bits()) - 1;
        let mut msrs = Msrs {
            pat: PAT_RESET,
            misc_enable: MISC_ENABLE_RESET,
            mtrr_def_type: MTRR_DEF_TYPE_RESET,
            hwcr: HWCR_TSC_FREQUENCY,
            ..Msrs::default()
        };
        // 0–9FFFFh write-back, A0000–BFFFFh uncached, C0000–FFFFFh write-protected.
        msrs.mtrr_fixed[..2].fill(0x0606_0606_0606_0606);
        msrs.mtrr_fixed[3..].fill(0x0505_0505_0505_0505);
        // 3–4 GiB uncached: base with type 0, mask with the valid bit.
        msrs.mtrr_variable[0] = 0xc000_0000;
        msrs.mtrr_variable[1] = !0x3fff_ffff & width | 1 << 11;
        msrs.amd_config[(msr::DE_CFG - msr::LS_CFG) as usize] = DE_CFG_LFENCE;
        msrs
    }

    /// RDMSR. Not for the guest's own use of the instruction: privilege is checked there.
    ///
    /// # Errors
    /// #GP(0) for a register that is not there.
    pub fn read_msr(&mut self, number: u32) -> Result<u64, Exception> {
        self.msr_value(number).ok_or_else(|| {
            tracing::debug!(target: "guest_errors", "rdmsr {number:#x} at {:x}: no such register", self.rip());
            Exception::GP0
        })
    }

    /// WRMSR, likewise. The caller leaves the block: almost anything may have changed.
    ///
    /// # Errors
    /// #GP(0) for a register that is not there, read-only, or a value that it does not take.
    pub fn write_msr(&mut self, number: u32, value: u64) -> Result<(), Exception> {
        self.set_msr(number, value).ok_or_else(|| {
            tracing::debug!(target: "guest_errors", "wrmsr {number:#x} = {value:#x} at {:x}: refused", self.rip());
            Exception::GP0
        })
    }

    fn has(&self, feature: Feature) -> bool {
        self.model.has(feature)
    }

    fn amd(&self) -> bool {
        self.model.vendor() == Vendor::Amd
    }

    fn msr_value(&self, number: u32) -> Option<u64> {
        let m = &self.msrs;
        Some(match number {
            msr::TSC => self.tsc(),
            msr::TSC_ADJUST if self.has(Feature::TSC_ADJUST) => m.tsc_offset,
            msr::TSC_DEADLINE if self.has(Feature::TSC_DEADLINE) => {
                self.apic.deadline().map_or(0, |deadline| deadline.wrapping_add(m.tsc_offset))
            }
            msr::TSC_AUX if self.has(Feature::RDTSCP) || self.has(Feature::RDPID) => m.tsc_aux,
            msr::APIC_BASE if self.has(Feature::APIC) => self.apic.read_msr(number)?,
            msr::X2APIC_FIRST..=msr::X2APIC_LAST if self.has(Feature::X2APIC) => self.apic.read_msr(number)?,
            msr::EFER if self.has_efer() => self.efer.into_bits(),
            msr::STAR if self.has(Feature::SYSCALL) => m.star,
            msr::LSTAR if self.has(Feature::LM) => m.lstar,
            msr::CSTAR if self.has(Feature::LM) => m.cstar,
            msr::SFMASK if self.has(Feature::LM) => m.sfmask,
            msr::FS_BASE if self.has(Feature::LM) => self.seg[FS].base,
            msr::GS_BASE if self.has(Feature::LM) => self.seg[GS].base,
            msr::KERNEL_GS_BASE if self.has(Feature::LM) => m.kernel_gs_base,
            msr::SYSENTER_CS if self.has(Feature::SEP) => m.sysenter_cs,
            msr::SYSENTER_ESP if self.has(Feature::SEP) => m.sysenter_esp,
            msr::SYSENTER_EIP if self.has(Feature::SEP) => m.sysenter_eip,
            msr::PAT if self.has(Feature::PAT) => m.pat,
            msr::MTRR_CAP if self.has(Feature::MTRR) => MTRR_CAP,
            msr::MTRR_DEF_TYPE if self.has(Feature::MTRR) => m.mtrr_def_type,
            msr::MTRR_PHYS_BASE0..=msr::MTRR_FIX_4K_F8000 if self.has(Feature::MTRR) => *mtrr(m, number)?,
            msr::MCG_CAP | msr::MCG_STATUS if self.has(Feature::MCA) => {
                // No banks, no MCG_CTL.
                if number == msr::MCG_STATUS { m.mcg_status } else { 0 }
            }
            msr::MISC_ENABLE => m.misc_enable,
            msr::BIOS_SIGN_ID => {
                if self.amd() {
                    MICROCODE_AMD
                } else {
                    MICROCODE_INTEL
                }
            }
            msr::DEBUG_CTL => m.debug_ctl,
            msr::LAST_BRANCH_FROM_IP..=msr::LAST_INT_TO_IP => 0,
            msr::SPEC_CTRL if self.spec_ctrl_bits() != 0 => m.spec_ctrl,
            msr::ARCH_CAPABILITIES if self.has(Feature::ARCH_CAPABILITIES) => ARCH_CAPABILITIES,
            msr::PKRS if self.has(Feature::PKS) => m.pkrs,
            msr::XSS if self.has(Feature::XSAVES) => m.xss,
            _ if self.amd() => return self.amd_msr(number),
            msr::PLATFORM_ID => 0,
            msr::FEATURE_CONTROL => FEATURE_CONTROL_LOCKED,
            _ => return None,
        })
    }

    /// Registers of AMD's processors.
    fn amd_msr(&self, number: u32) -> Option<u64> {
        let m = &self.msrs;
        Some(match number {
            msr::SYSCFG => m.syscfg,
            msr::HWCR => m.hwcr,
            msr::NB_CFG => m.nb_cfg,
            msr::MMIO_CONFIG_BASE => m.mmio_config_base,
            msr::IORR_BASE0..=msr::TOP_MEM | msr::TOP_MEM2 => 0,
            msr::PERF_EVT_SEL0..=msr::PERF_CTR3 => 0,
            msr::INT_PENDING | msr::PSTATE_LIMIT | msr::PSTATE_CONTROL | msr::PSTATE_STATUS => 0,
            msr::VM_CR => VM_CR_DISABLED,
            msr::LS_CFG..=0xc001_102f => *m.amd_config.get((number - msr::LS_CFG) as usize)?,
            _ => return None,
        })
    }

    fn set_msr(&mut self, number: u32, value: u64) -> Option<()> {
        let canonical = self.is_canonical_base(value);
        match number {
            msr::TSC => self.set_tsc_offset(value.wrapping_sub(self.clock.now())),
            msr::TSC_ADJUST if self.has(Feature::TSC_ADJUST) => self.set_tsc_offset(value),
            msr::TSC_DEADLINE if self.has(Feature::TSC_DEADLINE) => self.set_tsc_deadline(value),
            msr::TSC_AUX if self.has(Feature::RDTSCP) || self.has(Feature::RDPID) => {
                self.msrs.tsc_aux = fits_u32(value)?;
            }
            msr::APIC_BASE if self.has(Feature::APIC) => self.apic.write_msr(number, value)?,
            msr::X2APIC_FIRST..=msr::X2APIC_LAST if self.has(Feature::X2APIC) => self.apic.write_msr(number, value)?,
            msr::EFER if self.has_efer() => return self.set_efer(value),
            msr::STAR if self.has(Feature::SYSCALL) => self.msrs.star = value,
            msr::LSTAR if self.has(Feature::LM) && canonical => {
                self.msrs.lstar = value;
                self.mmu.system_calls_enter(Gva(value));
            }
            msr::CSTAR if self.has(Feature::LM) && canonical => self.msrs.cstar = value,
            msr::SFMASK if self.has(Feature::LM) => self.msrs.sfmask = fits_u32(value)?,
            msr::FS_BASE if self.has(Feature::LM) && canonical => self.set_segment_base(FS, value),
            msr::GS_BASE if self.has(Feature::LM) && canonical => self.set_segment_base(GS, value),
            msr::KERNEL_GS_BASE if self.has(Feature::LM) && canonical => self.msrs.kernel_gs_base = value,
            msr::SYSENTER_CS if self.has(Feature::SEP) => self.msrs.sysenter_cs = value,
            msr::SYSENTER_ESP if self.has(Feature::SEP) && canonical => self.msrs.sysenter_esp = value,
            msr::SYSENTER_EIP if self.has(Feature::SEP) && canonical => self.msrs.sysenter_eip = value,
            msr::PAT if self.has(Feature::PAT) => {
                if !value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7)) {
                    return None;
                }
                self.msrs.pat = value;
            }
            msr::MTRR_DEF_TYPE if self.has(Feature::MTRR) => {
                if value & !0xcff != 0 || !is_memory_type(value as u8) {
                    return None;
                }
                self.msrs.mtrr_def_type = value;
            }
            msr::MTRR_PHYS_BASE0..=msr::MTRR_FIX_4K_F8000 if self.has(Feature::MTRR) => {
                self.check_mtrr(number, value)?;
                *mtrr_mut(&mut self.msrs, number)? = value;
            }
            msr::MCG_STATUS if self.has(Feature::MCA) => self.msrs.mcg_status = value,
            msr::MISC_ENABLE => {
                if value & !MISC_ENABLE_DEFINED != 0 {
                    return None;
                }
                self.msrs.misc_enable = value & !MISC_ENABLE_READ_ONLY | self.msrs.misc_enable & MISC_ENABLE_READ_ONLY;
            }
            // Loading microcode does nothing, and the revision stays.
            msr::BIOS_UPDT_TRIG | msr::BIOS_SIGN_ID => {}
            msr::DEBUG_CTL if value & !DEBUG_CTL_DEFINED == 0 => self.msrs.debug_ctl = value,
            msr::SPEC_CTRL => {
                let bits = self.spec_ctrl_bits();
                if bits == 0 || value & !bits != 0 {
                    return None;
                }
                self.msrs.spec_ctrl = value;
            }
            // Barriers: nothing here predicts.
            msr::PRED_CMD if (self.has(Feature::SPEC_CTRL) || self.has(Feature::IBPB)) && value & !1 == 0 => {}
            msr::FLUSH_CMD if self.has(Feature::FLUSH_L1D) && value & !1 == 0 => {}
            msr::PKRS if self.has(Feature::PKS) => {
                self.msrs.pkrs = fits_u32(value)?;
                self.update_paging();
            }
            _ if self.amd() => return self.set_amd_msr(number, value),
            _ => return None,
        }
        Some(())
    }

    fn set_amd_msr(&mut self, number: u32, value: u64) -> Option<()> {
        match number {
            msr::SYSCFG => self.msrs.syscfg = value,
            msr::HWCR => self.msrs.hwcr = value | HWCR_TSC_FREQUENCY,
            msr::NB_CFG => self.msrs.nb_cfg = value,
            msr::MMIO_CONFIG_BASE => self.msrs.mmio_config_base = value,
            msr::PATCH_LOADER | msr::INT_PENDING => {}
            // The four legacy counters have no CPUID bit that could hide them: they are there and never count.
            msr::PERF_EVT_SEL0..=msr::PERF_CTR3 => {}
            msr::LS_CFG..=0xc001_102f => *self.msrs.amd_config.get_mut((number - msr::LS_CFG) as usize)? = value,
            _ => return None,
        }
        Some(())
    }

    /// Whether `address` is canonical for the widest paging mode that the model has. MSRs and segment bases follow the
    /// model, whatever CR4.LA57 says (as processors do).
    pub(crate) fn is_canonical_base(&self, address: u64) -> bool {
        is_canonical(address, self.model.virtual_bits())
    }

    /// Writes the hidden base of FS or GS.
    pub(crate) fn set_segment_base(&mut self, register: usize, base: u64) {
        self.seg[register].base = base;
        self.seg_base[register] = base;
    }

    fn has_efer(&self) -> bool {
        self.has(Feature::SYSCALL) || self.has(Feature::LM) || self.has(Feature::NX)
    }

    /// EFER: no reserved bits, LME only without paging; LMA is the processor's own.
    fn set_efer(&mut self, value: u64) -> Option<()> {
        let (syscall, long, nx) = (self.has(Feature::SYSCALL), self.has(Feature::LM), self.has(Feature::NX));
        let allowed = Efer::new()
            .with_syscall(syscall)
            .with_long_mode_enable(long)
            .with_long_mode_active(long)
            .with_no_execute(nx);
        let new = Efer::from_bits(value);
        if value & !allowed.into_bits() != 0
            || (self.cr0.paging() && new.long_mode_enable() != self.efer.long_mode_enable())
        {
            return None;
        }
        self.efer = new.with_long_mode_active(self.efer.long_mode_active());
        self.update_paging();
        Some(())
    }

    /// Changes what is added to the clock; an armed deadline stays at its TSC value.
    fn set_tsc_offset(&mut self, offset: u64) {
        let deadline = self.apic.deadline().map(|deadline| deadline.wrapping_add(self.msrs.tsc_offset));
        self.msrs.tsc_offset = offset;
        if let Some(deadline) = deadline {
            self.set_tsc_deadline(deadline);
        }
    }

    /// Arms the APIC timer for a value of the TSC; zero disarms it.
    fn set_tsc_deadline(&mut self, deadline: u64) {
        let (now, tsc) = (self.clock.now(), self.tsc());
        self.apic.set_deadline((deadline != 0).then(|| now.saturating_add(deadline.saturating_sub(tsc))));
    }

    /// The bits of SPEC_CTRL that CPUID promises: IBRS, STIBP, SSBD.
    fn spec_ctrl_bits(&self) -> u64 {
        let any = |a, b| u64::from(self.has(a) || self.has(b));
        any(Feature::SPEC_CTRL, Feature::IBRS)
            | any(Feature::STIBP, Feature::AMD_STIBP) << 1
            | any(Feature::SSBD, Feature::AMD_SSBD) << 2
    }

    /// Whether a memory-type register takes the value.
    fn check_mtrr(&self, number: u32, value: u64) -> Option<()> {
        let reserved = !((1u64 << self.model.physical_bits()) - 1);
        let good = match number {
            msr::MTRR_PHYS_BASE0..=msr::MTRR_PHYS_LAST if number & 1 == 0 => {
                value & (reserved | 0xf00) == 0 && is_memory_type(value as u8)
            }
            msr::MTRR_PHYS_BASE0..=msr::MTRR_PHYS_LAST => value & (reserved | 0x7ff) == 0,
            _ => value.to_le_bytes().into_iter().all(is_memory_type),
        };
        good.then_some(())
    }

    /// Whether 64-bit mode is executing.
    pub(crate) fn in_64_bit_mode(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }
}

/// UC, WC, WT, WP, WB.
fn is_memory_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

fn fits_u32(value: u64) -> Option<u64> {
    (value <= u64::from(u32::MAX)).then_some(value)
}

/// Where a memory-type register is kept: variable (`Ok`) or fixed (`Err`), and its index.
fn mtrr_index(number: u32) -> Option<Result<usize, usize>> {
    Some(match number {
        msr::MTRR_PHYS_BASE0..=msr::MTRR_PHYS_LAST => Ok((number - msr::MTRR_PHYS_BASE0) as usize),
        msr::MTRR_FIX_64K_00000 => Err(0),
        msr::MTRR_FIX_16K_80000 | msr::MTRR_FIX_16K_A0000 => Err((number - msr::MTRR_FIX_16K_80000) as usize + 1),
        msr::MTRR_FIX_4K_C0000..=msr::MTRR_FIX_4K_F8000 => Err((number - msr::MTRR_FIX_4K_C0000) as usize + 3),
        _ => return None,
    })
}

fn mtrr(msrs: &Msrs, number: u32) -> Option<&u64> {
    match mtrr_index(number)? {
        Ok(variable) => msrs.mtrr_variable.get(variable),
        Err(fixed) => msrs.mtrr_fixed.get(fixed),
    }
}

fn mtrr_mut(msrs: &mut Msrs, number: u32) -> Option<&mut u64> {
    match mtrr_index(number)? {
        Ok(variable) => msrs.mtrr_variable.get_mut(variable),
        Err(fixed) => msrs.mtrr_fixed.get_mut(fixed),
    }
}

#[cfg(test)]
mod tests;
