//! What the host's CPUID says, in the shape of a [`super::Model`].

use super::feature::{Feature, PLACES, WORDS};
use std::arch::x86_64::__cpuid_count;

/// The host's processor.
#[derive(Clone, Debug)]
pub(super) struct HostCpu {
    /// Vendor string.
    pub(super) vendor: [u8; 12],
    /// Family, model and stepping.
    pub(super) signature: u32,
    /// Feature words.
    pub(super) words: [u32; WORDS],
    /// Physical address width, at most 48: the walker's page-table entries have room for 52, hosts map less.
    pub(super) physical_bits: u32,
}

impl HostCpu {
    /// Reads it.
    pub(super) fn read() -> Self {
        let cpuid = |leaf, subleaf| {
            let out = __cpuid_count(leaf, subleaf);
            [out.eax, out.ebx, out.ecx, out.edx]
        };
        let (base, extended) = (cpuid(0, 0), cpuid(0x8000_0000, 0));
        let mut vendor = [0; 12];
        for (to, word) in vendor.chunks_exact_mut(4).zip([base[1], base[3], base[2]]) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let mut words = [0; WORDS];
        for (word, (leaf, subleaf, register)) in words.iter_mut().zip(PLACES) {
            let highest = if leaf >= 0x8000_0000 { extended[0] } else { base[0] };
            let has_subleaf = subleaf == 0 || leaf != 7 || cpuid(7, 0)[0] >= subleaf;
            if leaf <= highest && has_subleaf {
                *word = cpuid(leaf, subleaf)[register & 3];
            }
        }
        let physical = if extended[0] >= 0x8000_0008 { cpuid(0x8000_0008, 0)[0] & 0xff } else { 36 };
        Self { vendor, signature: cpuid(1, 0)[0] & 0x0fff_3fff, words, physical_bits: physical.clamp(36, 48) }
    }

    /// Whether the host has a feature, and (for those of AVX) lets programs use it.
    pub(super) const fn has(&self, feature: Feature) -> bool {
        self.words[feature.word() % WORDS] & feature.mask() != 0
    }
}
