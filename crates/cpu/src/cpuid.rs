//! What CPUID answers: the host's features, less what Vitrine does not pass through and what `-cpu` takes away
//! (APM vol. 3, appendix E; SDM vol. 2A, CPUID).
//!
//! A [`Model`] starts from a named one (`max`, `qemu64`, …) and is edited by `+feature` and `-feature`. Feature bits live in
//! one table ([`feature`]); the rest of the leaves (topology, caches, XSAVE sizes, frequencies) is computed here.
//! Left out: performance monitoring (leaf Ah is zero), thermal and power management, MONITOR/MWAIT, resource control.
//!
//! Each vCPU is a package of its own unless [`Model::with_cores`] says otherwise; there is one thread a core.

pub mod feature;
mod host;
mod offers;
mod parse;
#[cfg(test)]
mod tests;

pub use feature::Feature;
use feature::{PLACES, Source, WORDS, Word};
use host::HostCpu;
pub use parse::ModelError;
use x86::{Cr4, Xcr0};

/// Which manual a processor follows where the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// AMD's (also Hygon's).
    Amd,
    /// Intel's, and everybody else's.
    Intel,
}

/// The signature of leaf 4000_0000h.
pub const HYPERVISOR_SIGNATURE: &[u8; 12] = b"VitrineGlass";
/// The brand string of leaves 8000_0002h to 8000_0004h.
pub const BRAND: &str = "Vitrine Virtual CPU";
/// TSC, core and APIC timer frequency that leaves 15h, 16h and 4000_0010h report: the clock counts nanoseconds.
pub const TSC_HERTZ: u32 = 1_000_000_000;
/// Highest leaf in the hypervisor range.
const HYPERVISOR_MAX: u32 = 0x4000_0010;
/// Cache line size in bytes.
const LINE: u32 = 64;

/// A CPU model: every CPUID leaf that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    vendor: [u8; 12],
    /// Leaf 1, EAX.
    signature: u32,
    words: [u32; WORDS],
    basic_max: u32,
    extended_max: u32,
    physical_bits: u32,
    /// Cores in a package.
    cores: u32,
}

/// What CPUID shows of a vCPU's state.
#[derive(Clone, Copy, Debug, Default)]
pub struct Dynamic {
    /// The vCPU's APIC ID.
    pub apic_id: u32,
    /// Whether APIC_BASE enables the local APIC.
    pub apic_enabled: bool,
    /// CR4: OSXSAVE and PKE show.
    pub cr4: Cr4,
    /// XCR0: the size of the XSAVE area shows.
    pub xcr0: Xcr0,
}

/// Offset and size of the XSAVE components beyond the legacy area and its header: (component, offset, size).
const XSAVE_COMPONENTS: [(u32, u32, u32); 2] = [(2, 576, 256), (9, 2688, 8)];

/// Data and unified caches: level, type (1 data, 2 instruction, 3 unified), ways, sets.
const CACHES: [(u32, u32, u32, u32); 4] = [(1, 1, 8, 64), (1, 2, 8, 64), (2, 3, 8, 1024), (3, 3, 16, 16384)];

impl Model {
    /// Everything that this host and Vitrine can do together.
    #[must_use]
    pub fn max() -> Self {
        Self::max_on(&HostCpu::read())
    }

    fn max_on(host: &HostCpu) -> Self {
        let vendor = vendor_of(host.vendor);
        let mut model = Self {
            vendor: host.vendor,
            signature: host.signature,
            words: [0; WORDS],
            basic_max: 0x1f,
            extended_max: match vendor {
                Vendor::Amd => 0x8000_0021,
                Vendor::Intel => 0x8000_0008,
            },
            physical_bits: host.physical_bits,
            cores: 1,
        };
        model.set_defaults(host);
        model
    }

    /// Sets every feature that the vendor in question would show by default.
    fn set_defaults(&mut self, host: &HostCpu) {
        let vendor = self.vendor();
        for entry in feature::ENTRIES {
            let on = match entry.source {
                Source::Host => host.has(entry.feature),
                Source::Own => true,
                Source::OwnAmd => vendor == Vendor::Amd,
                Source::OwnIntel => vendor == Vendor::Intel,
                Source::Choice | Source::Missing => false,
            };
            self.set(entry.feature, on);
        }
        // A host may lack what another feature needs.
        for entry in feature::ENTRIES {
            if self.has(entry.feature) && entry.feature.requires().any(|needed| !self.has(needed)) {
                self.remove(entry.feature);
            }
        }
    }

    /// Parses `-cpu`'s argument: a model's name, then `+feature`, `-feature`, `feature=on|off` or `key=value` after commas.
    ///
    /// # Errors
    /// Unknown names, features that the host or Vitrine cannot provide, values out of range.
    pub fn parse(spec: &str) -> Result<Self, ModelError> {
        parse::parse(spec, &HostCpu::read())
    }

    /// The same processor in packages of `cores` cores (at least one).
    #[must_use]
    pub fn with_cores(mut self, cores: u32) -> Self {
        self.cores = cores.clamp(1, 255);
        self
    }

    /// Whether the guest sees the feature.
    #[inline]
    #[must_use]
    pub const fn has(&self, feature: Feature) -> bool {
        self.words[feature.word() % WORDS] & feature.mask() != 0
    }

    /// Whose processor this is.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        vendor_of(self.vendor)
    }

    /// Family, model and stepping as leaf 1 gives them in EAX, and a reset in EDX.
    #[must_use]
    pub const fn signature(&self) -> u32 {
        self.signature
    }

    /// Width of physical addresses.
    #[must_use]
    pub const fn physical_bits(&self) -> u32 {
        self.physical_bits
    }

    /// Width of linear addresses: 57 with LA57, else 48.
    #[must_use]
    pub const fn virtual_bits(&self) -> u32 {
        if self.has(Feature::LA57) { 57 } else { 48 }
    }

    /// The bits of XCR0 that may be set.
    #[must_use]
    pub fn xcr0_supported(&self) -> Xcr0 {
        if !self.has(Feature::XSAVE) {
            return Xcr0::from_bits(0);
        }
        Xcr0::new()
            .with_x87(true)
            .with_sse(self.has(Feature::SSE))
            .with_avx(self.has(Feature::AVX))
            .with_pkru(self.has(Feature::PKU))
    }

    /// The bits of CR4 that may be set.
    #[must_use]
    pub const fn cr4_supported(&self) -> Cr4 {
        Cr4::new()
            .with_vme(self.has(Feature::VME))
            .with_pvi(self.has(Feature::VME))
            .with_time_stamp_disable(self.has(Feature::TSC))
            .with_debugging_extensions(self.has(Feature::DE))
            .with_page_size_extensions(self.has(Feature::PSE))
            .with_physical_address_extension(self.has(Feature::PAE))
            .with_machine_check(self.has(Feature::MCE))
            .with_global_pages(self.has(Feature::PGE))
            .with_performance_counters(true)
            .with_os_fxsr(self.has(Feature::FXSR))
            .with_os_simd_exceptions(self.has(Feature::SSE))
            .with_umip(self.has(Feature::UMIP))
            .with_la57(self.has(Feature::LA57))
            .with_fsgsbase(self.has(Feature::FSGSBASE))
            .with_pcid(self.has(Feature::PCID))
            .with_os_xsave(self.has(Feature::XSAVE))
            .with_smep(self.has(Feature::SMEP))
            .with_smap(self.has(Feature::SMAP))
            .with_protection_keys(self.has(Feature::PKU))
            .with_supervisor_keys(self.has(Feature::PKS))
            .with_lam_supervisor(self.has(Feature::LAM))
    }

    const fn set(&mut self, feature: Feature, on: bool) {
        let word = &mut self.words[feature.word() % WORDS];
        if on {
            *word |= feature.mask();
        } else {
            *word &= !feature.mask();
        }
    }

    /// Takes a feature away, and what makes no sense without it.
    fn remove(&mut self, feature: Feature) {
        self.set(feature, false);
        for dependant in feature.dependants() {
            if self.has(dependant) {
                self.remove(dependant);
            }
        }
    }

    const fn word(&self, word: Word) -> u32 {
        self.words[word as usize % WORDS]
    }

    /// CPUID: EAX, EBX, ECX, EDX.
    ///
    /// A leaf that the model does not have reads as zeros (AMD's rule; Intel's processors repeat the highest basic leaf).
    #[must_use]
    pub fn query(&self, leaf: u32, subleaf: u32, state: &Dynamic) -> [u32; 4] {
        let highest = match leaf >> 28 {
            0 => self.basic_max,
            4 if self.has(Feature::HYPERVISOR) => HYPERVISOR_MAX,
            8 => self.extended_max,
            _ => return [0; 4],
        };
        if leaf > highest {
            return [0; 4];
        }
        let mut out = self.computed(leaf, subleaf, state);
        for ((word_leaf, word_subleaf, register), word) in PLACES.iter().zip(self.words) {
            // Leaf 1 and the extended leaves ignore the subleaf.
            let has_subleaves = matches!(leaf, 7 | 0xd);
            if *word_leaf == leaf && (!has_subleaves || *word_subleaf == subleaf) {
                out[*register & 3] |= word;
            }
        }
        self.adjust(leaf, state, &mut out);
        out
    }

    /// Feature bits that follow the vCPU's state.
    fn adjust(&self, leaf: u32, state: &Dynamic, out: &mut [u32; 4]) {
        let apic = Feature::APIC.mask();
        match leaf {
            1 => {
                if !state.apic_enabled {
                    out[3] &= !apic;
                }
                if state.cr4.os_xsave() {
                    out[2] |= 1 << 27;
                }
                if self.cores > 1 {
                    out[3] |= Feature::HT.mask();
                }
            }
            7 if state.cr4.protection_keys() => out[2] |= 1 << 4,
            0x8000_0001 if self.vendor() == Vendor::Amd => {
                // AMD repeats the old bits of leaf 1.
                let mut old = self.word(Word::L1Edx) & 0x0183_f3ff;
                if !state.apic_enabled {
                    old &= !apic;
                }
                out[3] |= old;
                if self.cores > 1 {
                    out[2] |= Feature::CMP_LEGACY.mask();
                }
            }
            _ => {}
        }
    }

    /// The leaves, without their feature words.
    fn computed(&self, leaf: u32, subleaf: u32, state: &Dynamic) -> [u32; 4] {
        match leaf {
            0 => self.vendor_leaf(self.basic_max),
            1 => [
                self.signature,
                (state.apic_id & 0xff) << 24 | self.cores.next_power_of_two().min(255) << 16 | (LINE / 8) << 8,
                0,
                0,
            ],
            // Descriptor FFh: see leaf 4.
            2 if self.vendor() == Vendor::Intel => [0x00ff_0001, 0, 0, 0],
            4 if self.vendor() == Vendor::Intel => self.cache_leaf(subleaf, true),
            7 if subleaf == 0 => [1, 0, 0, 0],
            0xb | 0x1f => self.topology_leaf(subleaf, state.apic_id),
            0xd => self.xsave_leaf(subleaf, state),
            0x15 if self.vendor() == Vendor::Intel => [1, 1, TSC_HERTZ, 0],
            0x16 if self.vendor() == Vendor::Intel => [TSC_HERTZ / 1_000_000, TSC_HERTZ / 1_000_000, 100, 0],
            0x4000_0000 => {
                let name = HYPERVISOR_SIGNATURE;
                [HYPERVISOR_MAX, le_word(name, 0), le_word(name, 4), le_word(name, 8)]
            }
            0x4000_0010 => [TSC_HERTZ / 1000, TSC_HERTZ / 1000, 0, 0],
            0x8000_0000 => match self.vendor() {
                Vendor::Amd => self.vendor_leaf(self.extended_max),
                Vendor::Intel => [self.extended_max, 0, 0, 0],
            },
            0x8000_0001 if self.vendor() == Vendor::Amd => [self.signature, 0, 0, 0],
            0x8000_0002..=0x8000_0004 => {
                let at = (leaf as usize - 0x8000_0002) * 16;
                [0, 4, 8, 12].map(|offset| le_word(BRAND.as_bytes(), at + offset))
            }
            // L1 TLBs and caches: 32 KiB, 8 ways, one line a tag.
            0x8000_0005 if self.vendor() == Vendor::Amd => [0xff48_ff40, 0xff48_ff40, 0x2008_0140, 0x2008_0140],
            // L2 (512 KiB, 8 ways) and L3 (16 MiB in units of 512 KiB, 16 ways).
            0x8000_0006 => match self.vendor() {
                Vendor::Amd => [0x5c00_2200, 0x6c00_4200, 512 << 16 | 0x6140, 32 << 18 | 0x8140],
                Vendor::Intel => [0, 0, 512 << 16 | 0x6040, 0],
            },
            0x8000_0008 => {
                let size = self.core_bits();
                let cores = if self.vendor() == Vendor::Amd { size << 12 | (self.cores - 1) } else { 0 };
                [self.virtual_bits() << 8 | self.physical_bits, 0, cores, 0]
            }
            0x8000_001d if self.has(Feature::TOPOEXT) => self.cache_leaf(subleaf, false),
            0x8000_001e if self.has(Feature::TOPOEXT) => {
                [state.apic_id, state.apic_id & ((1 << self.core_bits()) - 1), 0, 0]
            }
            _ => [0; 4],
        }
    }

    /// Bits of the APIC ID that number the cores within a package.
    const fn core_bits(&self) -> u32 {
        self.cores.next_power_of_two().trailing_zeros()
    }

    fn vendor_leaf(&self, highest: u32) -> [u32; 4] {
        [highest, le_word(&self.vendor, 0), le_word(&self.vendor, 8), le_word(&self.vendor, 4)]
    }

    /// Leaf 4 (with the core count in bits 31–26) or 8000_001Dh.
    fn cache_leaf(&self, subleaf: u32, with_cores: bool) -> [u32; 4] {
        let Some(&(level, kind, ways, sets)) = CACHES.get(subleaf as usize) else { return [0; 4] };
        let ids = self.cores.next_power_of_two();
        let sharing = if level == 3 { ids - 1 } else { 0 };
        let cores = if with_cores { (ids - 1).min(63) << 26 } else { 0 };
        let self_initialising = 1 << 8;
        [cores | sharing << 14 | self_initialising | level << 5 | kind, (ways - 1) << 22 | (LINE - 1), sets - 1, 0]
    }

    /// Leaves Bh and 1Fh.
    fn topology_leaf(&self, subleaf: u32, apic_id: u32) -> [u32; 4] {
        let (shift, count, kind) = match subleaf {
            0 => (0, 1, 1),
            1 => (self.core_bits(), self.cores, 2),
            _ => (0, 0, 0),
        };
        [shift, count, kind << 8 | (subleaf & 0xff), apic_id]
    }

    fn xsave_leaf(&self, subleaf: u32, state: &Dynamic) -> [u32; 4] {
        let supported = self.xcr0_supported().into_bits() as u32;
        if supported == 0 {
            return [0; 4];
        }
        match subleaf {
            0 => [supported, xsave_size(state.xcr0.into_bits() as u32), xsave_size(supported), 0],
            1 if self.has(Feature::XSAVEC) => [0, compacted_size(state.xcr0.into_bits() as u32), 0, 0],
            _ => XSAVE_COMPONENTS
                .iter()
                .find(|(component, ..)| *component == subleaf && supported >> component & 1 != 0)
                .map_or([0; 4], |&(_, offset, size)| [size, offset, 0, 0]),
        }
    }
}

/// Size of a standard-format XSAVE area for the components in `mask`.
fn xsave_size(mask: u32) -> u32 {
    XSAVE_COMPONENTS
        .iter()
        .filter(|(component, ..)| mask >> component & 1 != 0)
        .fold(576, |size, &(_, offset, length)| size.max(offset + length))
}

/// Size of a compacted XSAVE area (no component asks for alignment).
fn compacted_size(mask: u32) -> u32 {
    XSAVE_COMPONENTS
        .iter()
        .filter(|(component, ..)| mask >> component & 1 != 0)
        .fold(576, |size, &(_, _, length)| size + length)
}

/// Four bytes of a string, missing ones zero.
fn le_word(bytes: &[u8], at: usize) -> u32 {
    (0..4).fold(0, |word, i| word | u32::from(bytes.get(at + i).copied().unwrap_or(0)) << (8 * i))
}

fn vendor_of(name: [u8; 12]) -> Vendor {
    match &name {
        b"AuthenticAMD" | b"HygonGenuine" => Vendor::Amd,
        _ => Vendor::Intel,
    }
}
