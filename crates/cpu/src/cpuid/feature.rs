//! CPUID feature bits: their names (QEMU's), where they are reported, and whose they are.
//!
//! One table for everything: the model's defaults, `-cpu`'s `+name` and `-name`, and what depends on what.
//! Bits of AVX-512, AMX, VMX, SVM, CET, performance monitoring and the like have entries only so that asking for them
//! gets a clear answer.

/// A register of a CPUID leaf that holds feature bits. The discriminant indexes [`super::Model`]'s words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Word {
    /// 1, ECX.
    L1Ecx,
    /// 1, EDX.
    L1Edx,
    /// 6, EAX.
    L6Eax,
    /// 7.0, EBX.
    L7Ebx,
    /// 7.0, ECX.
    L7Ecx,
    /// 7.0, EDX.
    L7Edx,
    /// 7.1, EAX.
    L71Eax,
    /// Dh.1, EAX.
    LD1Eax,
    /// 8000_0001h, ECX.
    X1Ecx,
    /// 8000_0001h, EDX.
    X1Edx,
    /// 8000_0007h, EDX.
    X7Edx,
    /// 8000_0008h, EBX.
    X8Ebx,
    /// 8000_0021h, EAX.
    X21Eax,
    /// 8000_0021h, ECX.
    X21Ecx,
}

/// Number of words.
pub(super) const WORDS: usize = 14;

/// Leaf, subleaf and register (0 = EAX … 3 = EDX) of each word, in the order of [`Word`].
pub(super) const PLACES: [(u32, u32, usize); WORDS] = [
    (1, 0, 2),
    (1, 0, 3),
    (6, 0, 0),
    (7, 0, 1),
    (7, 0, 2),
    (7, 0, 3),
    (7, 1, 0),
    (0xd, 1, 0),
    (0x8000_0001, 0, 2),
    (0x8000_0001, 0, 3),
    (0x8000_0007, 0, 3),
    (0x8000_0008, 0, 1),
    (0x8000_0021, 0, 0),
    (0x8000_0021, 0, 2),
];

/// One CPUID feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Feature(u16);

impl Feature {
    const fn new(word: Word, bit: u16) -> Self {
        Self((word as u16) << 5 | bit)
    }

    /// Index into a model's words.
    pub(super) const fn word(self) -> usize {
        (self.0 >> 5) as usize
    }

    /// Mask within the word.
    pub(super) const fn mask(self) -> u32 {
        1 << (self.0 & 31)
    }

    /// The name by which `-cpu` knows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().and_then(|entry| entry.names.first()).copied().unwrap_or("?")
    }

    /// The feature of that name (underscores count as hyphens).
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = name.replace('_', "-");
        ENTRIES.iter().find(|entry| entry.names.contains(&name.as_str())).map(|entry| entry.feature)
    }

    /// The table's line.
    pub(super) fn entry(self) -> Option<&'static Entry> {
        ENTRIES.iter().find(|entry| entry.feature == self)
    }

    /// Features without which this one makes no sense.
    pub(super) fn requires(self) -> impl Iterator<Item = Self> {
        REQUIRES.iter().filter(move |(feature, _)| *feature == self).map(|(_, needed)| *needed)
    }

    /// Features that make no sense without this one.
    pub(super) fn dependants(self) -> impl Iterator<Item = Self> {
        REQUIRES.iter().filter(move |(_, needed)| *needed == self).map(|(feature, _)| *feature)
    }
}

/// Who provides a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The host executes it: there if the host has it.
    Host,
    /// Vitrine implements it by itself.
    Own,
    /// Vitrine implements it, and only AMD's processors report it.
    OwnAmd,
    /// Vitrine implements it, and only Intel's processors report it.
    OwnIntel,
    /// Vitrine implements it, but it is offered only when asked for.
    Choice,
    /// Known, not implemented.
    Missing,
}

/// A line of the table.
#[derive(Debug)]
pub(super) struct Entry {
    /// Which bit.
    pub(super) feature: Feature,
    /// Its names, the preferred one first.
    pub(super) names: &'static [&'static str],
    /// Who provides it.
    pub(super) source: Source,
}

macro_rules! features {
    ($($word:ident { $($id:ident $bit:literal $source:ident $($name:literal)+;)* })*) => {
        #[expect(missing_docs, reason = "the constants are the manuals' own names")]
        impl Feature {
            $($(pub const $id: Self = Self::new(Word::$word, $bit);)*)*
        }

        /// Every feature that has a name.
        pub(super) const ENTRIES: &[Entry] = &[
            $($(Entry { feature: Feature::$id, names: &[$($name),+], source: Source::$source },)*)*
        ];
    };
}

features! {
    L1Ecx {
        SSE3 0 Host "pni" "sse3";
        PCLMULQDQ 1 Host "pclmulqdq" "pclmuldq";
        DTES64 2 Missing "dtes64";
        MONITOR 3 Missing "monitor";
        DS_CPL 4 Missing "ds-cpl";
        VMX 5 Missing "vmx";
        SMX 6 Missing "smx";
        EST 7 Missing "est";
        TM2 8 Missing "tm2";
        SSSE3 9 Host "ssse3";
        CID 10 Missing "cid";
        FMA 12 Host "fma";
        CX16 13 Host "cx16";
        XTPR 14 Missing "xtpr";
        PDCM 15 Missing "pdcm";
        PCID 17 Own "pcid";
        DCA 18 Missing "dca";
        SSE4_1 19 Host "sse4.1" "sse4-1";
        SSE4_2 20 Host "sse4.2" "sse4-2";
        X2APIC 21 Own "x2apic";
        MOVBE 22 Host "movbe";
        POPCNT 23 Host "popcnt";
        TSC_DEADLINE 24 Own "tsc-deadline";
        AES 25 Host "aes";
        XSAVE 26 Host "xsave";
        AVX 28 Host "avx";
        F16C 29 Host "f16c";
        RDRAND 30 Host "rdrand";
        HYPERVISOR 31 Own "hypervisor";
    }
    L1Edx {
        FPU 0 Host "fpu";
        VME 1 Missing "vme";
        DE 2 Own "de";
        PSE 3 Own "pse";
        TSC 4 Own "tsc";
        MSR 5 Own "msr";
        PAE 6 Own "pae";
        MCE 7 Own "mce";
        CX8 8 Own "cx8";
        APIC 9 Own "apic";
        SEP 11 Own "sep";
        MTRR 12 Own "mtrr";
        PGE 13 Own "pge";
        MCA 14 Own "mca";
        CMOV 15 Own "cmov";
        PAT 16 Own "pat";
        PSE36 17 Own "pse36";
        PN 18 Missing "pn";
        CLFLUSH 19 Own "clflush";
        DS 21 Missing "ds";
        ACPI 22 Missing "acpi";
        MMX 23 Host "mmx";
        FXSR 24 Own "fxsr";
        SSE 25 Host "sse";
        SSE2 26 Host "sse2";
        SS 27 Missing "ss";
        HT 28 Missing "ht";
        TM 29 Missing "tm";
        IA64 30 Missing "ia64";
        PBE 31 Missing "pbe";
    }
    L6Eax {
        ARAT 2 Own "arat";
    }
    L7Ebx {
        FSGSBASE 0 Own "fsgsbase";
        TSC_ADJUST 1 Own "tsc-adjust";
        SGX 2 Missing "sgx";
        BMI1 3 Host "bmi1";
        HLE 4 Missing "hle";
        AVX2 5 Host "avx2";
        FDP_EXCPTN_ONLY 6 Missing "fdp-excptn-only";
        SMEP 7 Own "smep";
        BMI2 8 Host "bmi2";
        ERMS 9 Own "erms";
        INVPCID 10 Own "invpcid";
        RTM 11 Missing "rtm";
        ZERO_FCS_FDS 13 Missing "zero-fcs-fds";
        MPX 14 Missing "mpx";
        AVX512F 16 Missing "avx512f";
        AVX512DQ 17 Missing "avx512dq";
        RDSEED 18 Host "rdseed";
        ADX 19 Host "adx";
        SMAP 20 Own "smap";
        AVX512IFMA 21 Missing "avx512ifma";
        PCOMMIT 22 Missing "pcommit";
        CLFLUSHOPT 23 Own "clflushopt";
        CLWB 24 Own "clwb";
        INTEL_PT 25 Missing "intel-pt";
        AVX512PF 26 Missing "avx512pf";
        AVX512ER 27 Missing "avx512er";
        AVX512CD 28 Missing "avx512cd";
        SHA 29 Host "sha-ni";
        AVX512BW 30 Missing "avx512bw";
        AVX512VL 31 Missing "avx512vl";
    }
    L7Ecx {
        AVX512VBMI 1 Missing "avx512vbmi" "avx512-vbmi";
        UMIP 2 Own "umip";
        PKU 3 Own "pku";
        WAITPKG 5 Missing "waitpkg";
        AVX512VBMI2 6 Missing "avx512vbmi2" "avx512-vbmi2";
        SHSTK 7 Missing "shstk";
        GFNI 8 Host "gfni";
        VAES 9 Host "vaes";
        VPCLMULQDQ 10 Host "vpclmulqdq";
        AVX512VNNI 11 Missing "avx512vnni";
        AVX512BITALG 12 Missing "avx512bitalg";
        AVX512_VPOPCNTDQ 14 Missing "avx512-vpopcntdq";
        LA57 16 Own "la57";
        RDPID 22 Own "rdpid";
        BUS_LOCK_DETECT 24 Missing "bus-lock-detect";
        CLDEMOTE 25 Missing "cldemote";
        MOVDIRI 27 Missing "movdiri";
        MOVDIR64B 28 Missing "movdir64b";
        SGXLC 30 Missing "sgxlc";
        PKS 31 Own "pks";
    }
    L7Edx {
        AVX512_4VNNIW 2 Missing "avx512-4vnniw";
        AVX512_4FMAPS 3 Missing "avx512-4fmaps";
        FSRM 4 Own "fsrm";
        AVX512_VP2INTERSECT 8 Missing "avx512-vp2intersect";
        MD_CLEAR 10 Choice "md-clear";
        SERIALIZE 14 Own "serialize";
        TSX_LDTRK 16 Missing "tsx-ldtrk";
        ARCH_LBR 19 Missing "arch-lbr";
        IBT 20 Missing "ibt";
        AMX_BF16 22 Missing "amx-bf16";
        AVX512_FP16 23 Missing "avx512-fp16";
        AMX_TILE 24 Missing "amx-tile";
        AMX_INT8 25 Missing "amx-int8";
        SPEC_CTRL 26 Choice "spec-ctrl";
        STIBP 27 Choice "stibp";
        FLUSH_L1D 28 Choice "flush-l1d";
        ARCH_CAPABILITIES 29 OwnIntel "arch-capabilities";
        CORE_CAPABILITY 30 Missing "core-capability";
        SSBD 31 Choice "ssbd";
    }
    L71Eax {
        SHA512 0 Missing "sha512";
        SM3 1 Missing "sm3";
        SM4 2 Missing "sm4";
        AVX_VNNI 4 Host "avx-vnni";
        AVX512_BF16 5 Missing "avx512-bf16";
        CMPCCXADD 7 Missing "cmpccxadd";
        FZRM 10 Own "fzrm";
        FSRS 11 Own "fsrs";
        FSRC 12 Own "fsrc";
        FRED 17 Missing "fred";
        LKGS 18 Missing "lkgs";
        WRMSRNS 19 Missing "wrmsrns";
        AMX_FP16 21 Missing "amx-fp16";
        AVX_IFMA 23 Host "avx-ifma";
        LAM 26 Own "lam";
    }
    LD1Eax {
        XSAVEOPT 0 Own "xsaveopt";
        XSAVEC 1 Own "xsavec";
        XGETBV1 2 Own "xgetbv1";
        XSAVES 3 Missing "xsaves";
        XFD 4 Missing "xfd";
    }
    X1Ecx {
        LAHF_LM 0 Own "lahf-lm";
        CMP_LEGACY 1 Missing "cmp-legacy";
        SVM 2 Missing "svm";
        EXTAPIC 3 Missing "extapic";
        CR8LEGACY 4 Missing "cr8legacy";
        ABM 5 Host "abm" "lzcnt";
        SSE4A 6 Host "sse4a";
        MISALIGNSSE 7 Missing "misalignsse";
        PREFETCHW 8 Own "3dnowprefetch";
        OSVW 9 Missing "osvw";
        IBS 10 Missing "ibs";
        XOP 11 Missing "xop";
        SKINIT 12 Missing "skinit";
        WDT 13 Missing "wdt";
        LWP 15 Missing "lwp";
        FMA4 16 Missing "fma4";
        TCE 17 Missing "tce";
        NODEID_MSR 19 Missing "nodeid-msr";
        TBM 21 Missing "tbm";
        TOPOEXT 22 OwnAmd "topoext";
        PERFCTR_CORE 23 Missing "perfctr-core";
        PERFCTR_NB 24 Missing "perfctr-nb";
        MONITORX 29 Missing "monitorx";
    }
    X1Edx {
        SYSCALL 11 Own "syscall";
        NX 20 Own "nx" "xd";
        MMXEXT 22 Host "mmxext";
        FXSR_OPT 25 Missing "fxsr-opt" "ffxsr";
        PDPE1GB 26 Own "pdpe1gb";
        RDTSCP 27 Own "rdtscp";
        LM 29 Own "lm" "i64";
        D3NOWEXT 30 Missing "3dnowext";
        D3NOW 31 Missing "3dnow";
    }
    X7Edx {
        INVTSC 8 Own "invtsc";
    }
    X8Ebx {
        CLZERO 0 Missing "clzero";
        XSAVEERPTR 2 Missing "xsaveerptr";
        RDPRU 4 Missing "rdpru";
        WBNOINVD 9 Own "wbnoinvd";
        IBPB 12 Choice "ibpb";
        IBRS 14 Choice "ibrs";
        AMD_STIBP 15 Choice "amd-stibp";
        STIBP_ALWAYS_ON 17 Missing "stibp-always-on";
        AMD_SSBD 24 Choice "amd-ssbd";
        VIRT_SSBD 25 Missing "virt-ssbd";
        AMD_NO_SSB 26 OwnAmd "amd-no-ssb";
        AMD_PSFD 28 Missing "amd-psfd";
        BTC_NO 29 OwnAmd "btc-no";
    }
    X21Eax {
        NO_NESTED_DATA_BP 0 OwnAmd "no-nested-data-bp";
        LFENCE_SERIALIZING 2 OwnAmd "lfence-always-serializing";
        NULL_SEL_CLR_BASE 6 OwnAmd "null-sel-clr-base";
        AUTO_IBRS 8 Missing "auto-ibrs";
        PREFETCHI 20 Missing "prefetchi";
        SBPB 27 Missing "sbpb";
        IBPB_BRTYPE 28 Missing "ibpb-brtype";
        SRSO_NO 29 OwnAmd "srso-no";
    }
    X21Ecx {
        TSA_SQ_NO 1 OwnAmd "tsa-sq-no";
        TSA_L1_NO 2 OwnAmd "tsa-l1-no";
    }
}

/// (feature, what it needs). Taking the second away takes the first away; asking for the first brings the second.
const REQUIRES: &[(Feature, Feature)] = &[
    (Feature::SSE, Feature::FXSR),
    (Feature::FXSR, Feature::FPU),
    (Feature::MMX, Feature::FPU),
    (Feature::MMXEXT, Feature::MMX),
    (Feature::SSE2, Feature::SSE),
    (Feature::SSE3, Feature::SSE2),
    (Feature::SSSE3, Feature::SSE3),
    (Feature::SSE4_1, Feature::SSSE3),
    (Feature::SSE4_2, Feature::SSE4_1),
    (Feature::SSE4A, Feature::SSE3),
    (Feature::AES, Feature::SSE2),
    (Feature::PCLMULQDQ, Feature::SSE2),
    (Feature::SHA, Feature::SSE2),
    (Feature::GFNI, Feature::SSE2),
    (Feature::XSAVE, Feature::FXSR),
    (Feature::XSAVEOPT, Feature::XSAVE),
    (Feature::XSAVEC, Feature::XSAVE),
    (Feature::XGETBV1, Feature::XSAVE),
    (Feature::AVX, Feature::XSAVE),
    (Feature::AVX, Feature::SSE4_2),
    (Feature::AVX2, Feature::AVX),
    (Feature::FMA, Feature::AVX),
    (Feature::F16C, Feature::AVX),
    (Feature::VAES, Feature::AVX),
    (Feature::VAES, Feature::AES),
    (Feature::VPCLMULQDQ, Feature::AVX),
    (Feature::VPCLMULQDQ, Feature::PCLMULQDQ),
    (Feature::AVX_VNNI, Feature::AVX2),
    (Feature::AVX_IFMA, Feature::AVX2),
    (Feature::PKU, Feature::XSAVE),
    (Feature::PKU, Feature::LM),
    (Feature::PKS, Feature::LM),
    (Feature::PSE36, Feature::PSE),
    (Feature::NX, Feature::PAE),
    (Feature::LM, Feature::PAE),
    (Feature::LM, Feature::MSR),
    (Feature::LM, Feature::SYSCALL),
    (Feature::LA57, Feature::LM),
    (Feature::LAM, Feature::LM),
    (Feature::PDPE1GB, Feature::LM),
    (Feature::LAHF_LM, Feature::LM),
    (Feature::CX16, Feature::LM),
    (Feature::PCID, Feature::LM),
    (Feature::FSGSBASE, Feature::LM),
    (Feature::SYSCALL, Feature::MSR),
    (Feature::SEP, Feature::MSR),
    (Feature::MTRR, Feature::MSR),
    (Feature::PAT, Feature::MSR),
    (Feature::MCA, Feature::MSR),
    (Feature::APIC, Feature::MSR),
    (Feature::X2APIC, Feature::APIC),
    (Feature::TSC_DEADLINE, Feature::APIC),
    (Feature::TSC_DEADLINE, Feature::TSC),
    (Feature::TSC_ADJUST, Feature::TSC),
    (Feature::INVTSC, Feature::TSC),
    (Feature::RDTSCP, Feature::TSC),
];
