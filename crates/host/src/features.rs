//! What the host's processor can do (APM vol. 3, appendix D; SDM vol. 2, CPUID).

pub use std::arch::x86_64::CpuidResult;
use std::sync::OnceLock;

/// Executes CPUID. Any leaf may be asked for; what an absent one answers is the processor's affair.
#[must_use]
pub fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    std::arch::x86_64::__cpuid_count(leaf, subleaf)
}

pub use names::Features;

#[expect(missing_docs, reason = "the flags are the manuals' own feature names")]
mod names {
    bitflags::bitflags! {
        /// Features that matter to guests whose instructions run on the host.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Features: u64 {
            const SSE3 = 1 << 0;
            const PCLMULQDQ = 1 << 1;
            const SSSE3 = 1 << 2;
            const FMA = 1 << 3;
            const CX16 = 1 << 4;
            const SSE4_1 = 1 << 5;
            const SSE4_2 = 1 << 6;
            const MOVBE = 1 << 7;
            const POPCNT = 1 << 8;
            const AES = 1 << 9;
            const XSAVE = 1 << 10;
            /// The host's system has enabled XSAVE and the AVX state.
            const AVX = 1 << 11;
            const F16C = 1 << 12;
            const RDRAND = 1 << 13;
            const FSGSBASE = 1 << 14;
            const BMI1 = 1 << 15;
            const AVX2 = 1 << 16;
            const BMI2 = 1 << 17;
            const RDSEED = 1 << 18;
            const ADX = 1 << 19;
            const CLFLUSHOPT = 1 << 20;
            const CLWB = 1 << 21;
            const SHA = 1 << 22;
            const GFNI = 1 << 23;
            const VAES = 1 << 24;
            const VPCLMULQDQ = 1 << 25;
            const LZCNT = 1 << 26;
            const SSE4A = 1 << 27;
            const MISALIGN_SSE = 1 << 28;
            const LAHF_LM = 1 << 29;
            const AVX_VNNI = 1 << 30;
            const XSAVEOPT = 1 << 31;
            const XSAVEC = 1 << 32;
            const XGETBV1 = 1 << 33;
            const RDPID = 1 << 34;
        }
    }
}

/// Which register of which leaf has which bit.
const BITS: [(u32, u32, usize, u32, Features); 35] = [
    (1, 0, 2, 0, Features::SSE3),
    (1, 0, 2, 1, Features::PCLMULQDQ),
    (1, 0, 2, 9, Features::SSSE3),
    (1, 0, 2, 12, Features::FMA),
    (1, 0, 2, 13, Features::CX16),
    (1, 0, 2, 19, Features::SSE4_1),
    (1, 0, 2, 20, Features::SSE4_2),
    (1, 0, 2, 22, Features::MOVBE),
    (1, 0, 2, 23, Features::POPCNT),
    (1, 0, 2, 25, Features::AES),
    (1, 0, 2, 27, Features::XSAVE),
    (1, 0, 2, 28, Features::AVX),
    (1, 0, 2, 29, Features::F16C),
    (1, 0, 2, 30, Features::RDRAND),
    (7, 0, 1, 0, Features::FSGSBASE),
    (7, 0, 1, 3, Features::BMI1),
    (7, 0, 1, 5, Features::AVX2),
    (7, 0, 1, 8, Features::BMI2),
    (7, 0, 1, 18, Features::RDSEED),
    (7, 0, 1, 19, Features::ADX),
    (7, 0, 1, 23, Features::CLFLUSHOPT),
    (7, 0, 1, 24, Features::CLWB),
    (7, 0, 1, 29, Features::SHA),
    (7, 0, 2, 8, Features::GFNI),
    (7, 0, 2, 9, Features::VAES),
    (7, 0, 2, 10, Features::VPCLMULQDQ),
    (7, 0, 2, 22, Features::RDPID),
    (7, 1, 0, 4, Features::AVX_VNNI),
    (0xd, 1, 0, 0, Features::XSAVEOPT),
    (0xd, 1, 0, 1, Features::XSAVEC),
    (0xd, 1, 0, 2, Features::XGETBV1),
    (0x8000_0001, 0, 2, 0, Features::LAHF_LM),
    (0x8000_0001, 0, 2, 5, Features::LZCNT),
    (0x8000_0001, 0, 2, 6, Features::SSE4A),
    (0x8000_0001, 0, 2, 7, Features::MISALIGN_SSE),
];

/// Features that need the AVX state.
const NEED_AVX: Features = Features::AVX
    .union(Features::AVX2)
    .union(Features::FMA)
    .union(Features::F16C)
    .union(Features::VAES)
    .union(Features::VPCLMULQDQ)
    .union(Features::AVX_VNNI);

/// The host's features, found once.
pub fn features() -> Features {
    static FEATURES: OnceLock<Features> = OnceLock::new();
    *FEATURES.get_or_init(|| {
        let (basic, extended) = (cpuid(0, 0).eax, cpuid(0x8000_0000, 0).eax);
        let mut found = Features::empty();
        for (leaf, subleaf, register, bit, feature) in BITS {
            let last = if leaf >= 0x8000_0000 { extended } else { basic };
            if leaf > last || (leaf == 7 && subleaf > cpuid(7, 0).eax) {
                continue;
            }
            let answer = cpuid(leaf, subleaf);
            let registers = [answer.eax, answer.ebx, answer.ecx, answer.edx];
            found.set(feature, registers[register] >> bit & 1 != 0);
        }
        // Whether the system has enabled the AVX state, the standard library finds out by XGETBV.
        if !std::is_x86_feature_detected!("avx") {
            found.remove(NEED_AVX);
        }
        found
    })
}

/// Errors unless the host has what Vitrine itself is built on: x86-64-v3.
pub fn require() -> Result<(), crate::Error> {
    const NEEDED: Features = Features::SSE3
        .union(Features::SSSE3)
        .union(Features::SSE4_1)
        .union(Features::SSE4_2)
        .union(Features::CX16)
        .union(Features::POPCNT)
        .union(Features::LAHF_LM)
        .union(Features::AVX)
        .union(Features::AVX2)
        .union(Features::BMI1)
        .union(Features::BMI2)
        .union(Features::F16C)
        .union(Features::FMA)
        .union(Features::LZCNT)
        .union(Features::MOVBE);
    let missing = NEEDED.difference(features());
    if missing.is_empty() {
        return Ok(());
    }
    Err(crate::Error::Processor(missing.iter_names().map(|(name, _)| name).collect::<Vec<_>>().join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_standard_library() {
        let found = features();
        let cases = [
            (Features::SSE4_2, std::is_x86_feature_detected!("sse4.2")),
            (Features::AVX2, std::is_x86_feature_detected!("avx2")),
            (Features::BMI2, std::is_x86_feature_detected!("bmi2")),
            (Features::SHA, std::is_x86_feature_detected!("sha")),
            (Features::GFNI, std::is_x86_feature_detected!("gfni")),
            (Features::VAES, std::is_x86_feature_detected!("vaes")),
            (Features::ADX, std::is_x86_feature_detected!("adx")),
            (Features::LZCNT, std::is_x86_feature_detected!("lzcnt")),
            (Features::MOVBE, std::is_x86_feature_detected!("movbe")),
            (Features::RDSEED, std::is_x86_feature_detected!("rdseed")),
            (Features::XSAVEC, std::is_x86_feature_detected!("xsavec")),
        ];
        for (feature, detected) in cases {
            assert_eq!(found.contains(feature), detected, "{feature:?}");
        }
    }
}
