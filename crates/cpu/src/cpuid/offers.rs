//! Which instructions a model has: what the decoder must turn into #UD.
//!
//! An instruction that sits in hint or reserved-NOP space (ENDBR, BND*, CLDEMOTE, PREFETCH*, RDSSP) stays valid without its
//! feature: it then does nothing. TZCNT, LZCNT and WBNOINVD without their features are BSF, BSR and WBINVD: see
//! [`Model::decoder_options`].

use super::{Feature, Model};
use iced_x86::{Code, CpuidFeature, DecoderOptions, Instruction};

impl Model {
    /// Whether instructions of this class exist, if only as NOPs.
    #[must_use]
    pub fn offers(&self, class: CpuidFeature) -> bool {
        use CpuidFeature as C;
        let feature = match class {
            C::ADX => Feature::ADX,
            C::AES => Feature::AES,
            C::AVX => Feature::AVX,
            C::AVX2 => Feature::AVX2,
            C::AVX_VNNI => Feature::AVX_VNNI,
            C::AVX_IFMA => Feature::AVX_IFMA,
            C::BMI1 => Feature::BMI1,
            C::BMI2 => Feature::BMI2,
            C::CLFLUSHOPT => Feature::CLFLUSHOPT,
            C::CLFSH => Feature::CLFLUSH,
            C::CLWB => Feature::CLWB,
            C::CMOV => Feature::CMOV,
            C::CMPXCHG16B => Feature::CX16,
            C::CX8 => Feature::CX8,
            C::F16C => Feature::F16C,
            C::FMA => Feature::FMA,
            C::FPU | C::FPU287 | C::FPU387 => Feature::FPU,
            C::FSGSBASE => Feature::FSGSBASE,
            C::FXSR => Feature::FXSR,
            C::GFNI => Feature::GFNI,
            C::INVPCID => Feature::INVPCID,
            C::LZCNT => Feature::ABM,
            C::MMX => Feature::MMX,
            C::MOVBE => Feature::MOVBE,
            C::MSR => Feature::MSR,
            C::PCLMULQDQ => Feature::PCLMULQDQ,
            C::PKU => Feature::PKU,
            C::POPCNT => Feature::POPCNT,
            C::RDPID => Feature::RDPID,
            C::RDRAND => Feature::RDRAND,
            C::RDSEED => Feature::RDSEED,
            C::RDTSCP => Feature::RDTSCP,
            C::SEP => Feature::SEP,
            C::SERIALIZE => Feature::SERIALIZE,
            C::SHA => Feature::SHA,
            C::SMAP => Feature::SMAP,
            C::SSE => Feature::SSE,
            C::SSE2 => Feature::SSE2,
            C::SSE3 => Feature::SSE3,
            C::SSSE3 => Feature::SSSE3,
            C::SSE4_1 => Feature::SSE4_1,
            C::SSE4_2 => Feature::SSE4_2,
            C::SSE4A => Feature::SSE4A,
            C::SYSCALL => Feature::SYSCALL,
            C::TSC => Feature::TSC,
            C::VAES => Feature::VAES,
            C::VPCLMULQDQ => Feature::VPCLMULQDQ,
            C::XSAVE => Feature::XSAVE,
            C::XSAVEC => Feature::XSAVEC,
            C::XSAVEOPT => Feature::XSAVEOPT,
            // The base architecture, and hints that are NOPs where they mean nothing.
            C::INTEL8086
            | C::INTEL186
            | C::INTEL286
            | C::INTEL386
            | C::INTEL486
            | C::X64
            | C::CPUID
            | C::PAUSE
            | C::MULTIBYTENOP
            | C::RDPMC
            | C::SMM
            | C::CET_IBT
            | C::CLDEMOTE
            | C::MPX
            | C::PREFETCHW
            | C::PREFETCHWT1
            | C::PREFETCHITI
            | C::WBNOINVD
            | C::HLE
            | C::HLE_or_RTM => return true,
            _ => return false,
        };
        self.has(feature)
    }

    /// Whether the instruction exists for the guest; if not it is #UD.
    ///
    /// This is [`Model::offers`] for all its classes, with the exceptions that only the instruction itself can tell.
    #[must_use]
    pub fn executes(&self, instruction: &Instruction) -> bool {
        match instruction.code() {
            // Reserved NOPs without shadow stacks.
            Code::Rdsspd_r32 | Code::Rdsspq_r64 => true,
            // XACQUIRE and XRELEASE are prefixes; these are instructions.
            Code::Xabort_imm8 | Code::Xbegin_rel16 | Code::Xbegin_rel32 | Code::Xend | Code::Xtest => false,
            // #UD by definition, in the handler, which also knows their memory operand.
            Code::Ud0_r16_rm16 | Code::Ud0_r32_rm32 | Code::Ud0_r64_rm64 | Code::Ud0 => true,
            // MMX registers, but SSE's (or AMD's MMXEXT's).
            code => code.cpuid_features().iter().all(|&class| {
                self.offers(class) || (class == CpuidFeature::SSE && self.has(Feature::MMXEXT) && is_mmxext(code))
            }),
        }
    }

    /// Options for `iced-x86`'s decoder.
    ///
    /// `DecoderOptions::AMD` is left out on purpose: it would make REX.W meaningless for far pointers in memory and give
    /// near branches 16-bit operands. Vitrine follows Intel there for every vendor, as QEMU does.
    #[must_use]
    pub fn decoder_options(&self) -> u32 {
        let mut options = DecoderOptions::NONE;
        if !self.has(Feature::BMI1) {
            options |= DecoderOptions::NO_MPFX_0FBC;
        }
        if !self.has(Feature::ABM) {
            options |= DecoderOptions::NO_MPFX_0FBD;
        }
        if !self.has(Feature::WBNOINVD) {
            options |= DecoderOptions::NO_WBNOINVD;
        }
        options
    }
}

/// Whether an SSE instruction on MMX registers belongs to AMD's older subset.
fn is_mmxext(code: Code) -> bool {
    matches!(
        code,
        Code::Pavgb_mm_mmm64
            | Code::Pavgw_mm_mmm64
            | Code::Pextrw_r32_mm_imm8
            | Code::Pextrw_r64_mm_imm8
            | Code::Pinsrw_mm_r32m16_imm8
            | Code::Pinsrw_mm_r64m16_imm8
            | Code::Pmaxsw_mm_mmm64
            | Code::Pmaxub_mm_mmm64
            | Code::Pminsw_mm_mmm64
            | Code::Pminub_mm_mmm64
            | Code::Pmovmskb_r32_mm
            | Code::Pmovmskb_r64_mm
            | Code::Pmulhuw_mm_mmm64
            | Code::Psadbw_mm_mmm64
            | Code::Pshufw_mm_mmm64_imm8
            | Code::Maskmovq_rDI_mm_mm
            | Code::Movntq_m64_mm
            | Code::Prefetchnta_m8
            | Code::Prefetcht0_m8
            | Code::Prefetcht1_m8
            | Code::Prefetcht2_m8
            | Code::Sfence
    )
}
