//! CPU models: what their leaves say, what `-cpu` may ask for, and what is refused.

use super::feature::{ENTRIES, Source};
use super::host::HostCpu;
use super::*;
use iced_x86::{Code, CpuidFeature, Instruction};

/// A host that has everything, whatever machine runs the tests.
fn full_host() -> HostCpu {
    HostCpu { vendor: *b"AuthenticAMD", signature: 0x00a1_0f11, words: [u32::MAX; WORDS], physical_bits: 48 }
}

fn bare_host() -> HostCpu {
    let mut host = full_host();
    host.words[Word::L7Ebx as usize] &= !(Feature::AVX2.mask() | Feature::SHA.mask());
    host.words[Word::L1Ecx as usize] &= !Feature::AVX.mask();
    host
}

fn parse(spec: &str) -> Result<Model, ModelError> {
    parse::parse(spec, &full_host())
}

fn on() -> Dynamic {
    Dynamic { apic_enabled: true, ..Dynamic::default() }
}

#[test]
fn each_feature_has_its_own_bit_and_name() {
    for (i, a) in ENTRIES.iter().enumerate() {
        for b in &ENTRIES[i + 1..] {
            assert_ne!(a.feature, b.feature, "{:?}", a.names);
            assert!(a.names.iter().all(|name| !b.names.contains(name)), "{:?}", a.names);
        }
    }
    assert_eq!(PLACES[Word::X21Ecx as usize], (0x8000_0021, 0, 2));
    assert_eq!(Word::X21Ecx as usize + 1, WORDS);
}

#[test]
fn max_offers_nothing_that_is_missing() {
    let model = parse("max").unwrap();
    for entry in ENTRIES {
        assert!(!(model.has(entry.feature) && entry.source == Source::Missing), "{:?}", entry.names);
        for needed in entry.feature.requires() {
            assert!(!model.has(entry.feature) || model.has(needed), "{:?}", entry.names);
        }
    }
    assert_eq!(model.query(1, 0, &on())[2] & (1 << 5 | 1 << 3 | 1 << 27), 0, "no VMX, MONITOR, OSXSAVE yet");
    assert_eq!(model.query(0xa, 0, &on()), [0; 4]);
    assert_eq!(model.query(7, 0, &on())[1] >> 16 & 1, 0, "no AVX-512");
}

#[test]
fn a_host_without_avx_loses_what_builds_on_it() {
    let model = parse::parse("max", &bare_host()).unwrap();
    for feature in [Feature::AVX, Feature::AVX2, Feature::FMA, Feature::F16C, Feature::VAES, Feature::SHA] {
        assert!(!model.has(feature), "{}", feature.name());
    }
    assert!(model.has(Feature::SSE4_2) && model.has(Feature::XSAVE));
    assert_eq!(parse::parse("max,+avx2", &bare_host()), Err(ModelError::HostLacks { name: "avx2" }));
}

#[test]
fn taking_away_and_adding_follow_dependencies() {
    let model = parse("max,-avx").unwrap();
    assert!(!model.has(Feature::AVX2) && !model.has(Feature::FMA) && model.has(Feature::SSE4_2));
    let model = parse("max,xsave=off").unwrap();
    assert!(!model.has(Feature::AVX) && !model.has(Feature::PKU) && !model.has(Feature::XSAVEOPT));
    let model = parse("qemu64,+avx2").unwrap();
    assert!(model.has(Feature::AVX) && model.has(Feature::XSAVE) && model.has(Feature::SSE4_1));
    assert_eq!(model.query(7, 0, &on())[1], Feature::AVX2.mask());
}

#[test]
fn qemu64_is_what_qemu_says() {
    let model = parse("qemu64").unwrap();
    let leaf = model.query(1, 0, &on());
    assert_eq!(leaf[0], 0x0006_0fb1, "family 15, model 107, stepping 1");
    assert_eq!(leaf[3], 0x078b_fbfd);
    assert_eq!(leaf[2], 0x8000_2001);
    assert_eq!(model.query(0x8000_0001, 0, &on())[2], 1);
    assert_eq!(model.query(0, 0, &on())[0], 0xd);
    assert_eq!(model.physical_bits(), 40);
    assert_eq!(model.virtual_bits(), 48);
}

#[test]
fn errors_say_what_would_be_right() {
    let message = |spec| parse(spec).unwrap_err().to_string();
    assert_eq!(message("pentium9"), "no CPU model 'pentium9'; there are max, host, qemu64, Opteron_G1");
    assert_eq!(message("max,+avx3"), "no CPU feature 'avx3'; did you mean avx, avx2?");
    assert_eq!(message("max,+svm"), "CPU feature 'svm' is not implemented");
    assert_eq!(message("max,avx=maybe"), "'avx=maybe': on or off would be right");
    assert_eq!(message("max,vendor=me"), "'vendor=me': a string of 12 characters would be right");
    assert_eq!(message("max,phys-bits=8"), "'phys-bits=8': a width from 32 to 52 would be right");
    assert!(message("max,+zzzzzzzzzz").ends_with("'zzzzzzzzzz'"));
    assert!(parse("max,-svm,+sse4_1,+3dnowprefetch,host-phys-bits,migratable=no").is_ok());
}

#[test]
fn the_vendor_decides_what_is_shown() {
    let amd = parse("max").unwrap();
    let intel = parse("max,vendor=GenuineIntel").unwrap();
    assert_eq!((amd.vendor(), intel.vendor()), (Vendor::Amd, Vendor::Intel));
    assert!(amd.has(Feature::TOPOEXT) && !intel.has(Feature::TOPOEXT));
    assert!(intel.has(Feature::ARCH_CAPABILITIES) && !amd.has(Feature::ARCH_CAPABILITIES));
    assert_eq!(intel.query(0x15, 0, &on()), [1, 1, 1_000_000_000, 0]);
    assert_eq!(amd.query(0x15, 0, &on()), [0; 4]);
    assert_eq!(intel.query(0, 0, &on())[1], u32::from_le_bytes(*b"Genu"));
    assert_eq!(amd.query(0x8000_0001, 0, &on())[3] & 0x3ff, amd.query(1, 0, &on())[3] & 0x3ff & !2);
}

#[test]
fn state_shows() {
    let model = parse("max").unwrap();
    let mut state = on();
    state.cr4 = Cr4::new().with_os_xsave(true).with_protection_keys(true);
    state.xcr0 = Xcr0::new();
    assert_ne!(model.query(1, 0, &state)[2] & 1 << 27, 0);
    assert_ne!(model.query(7, 0, &state)[2] & 1 << 4, 0);
    assert_eq!(model.query(0xd, 0, &state), [0x207, 576, 2696, 0]);
    state.xcr0 = Xcr0::from_bits(7);
    assert_eq!(model.query(0xd, 0, &state)[1], 832);
    state.xcr0 = Xcr0::from_bits(0x207);
    assert_eq!(model.query(0xd, 0, &state)[1], 2696);
    assert_eq!(model.query(0xd, 1, &state)[1], 840);
    assert_eq!(model.query(0xd, 2, &state), [256, 576, 0, 0]);
    assert_eq!(model.query(0xd, 9, &state), [8, 2688, 0, 0]);
    assert_eq!(model.query(0xd, 5, &state), [0; 4]);
    state.apic_enabled = false;
    assert_eq!(model.query(1, 0, &state)[3] & 1 << 9, 0);
    assert_eq!(model.query(0x8000_0001, 0, &state)[3] & 1 << 9, 0);
}

#[test]
fn topology_follows_the_core_count() {
    let single = parse("max").unwrap();
    let state = Dynamic { apic_id: 3, ..on() };
    assert_eq!(single.query(0xb, 0, &state), [0, 1, 0x100, 3]);
    assert_eq!(single.query(0xb, 1, &state), [0, 1, 0x201, 3]);
    assert_eq!(single.query(0xb, 2, &state), [0, 0, 2, 3]);
    assert_eq!(single.query(1, 0, &state)[1], 0x0301_0800);
    assert_eq!(single.query(1, 0, &state)[3] >> 28 & 1, 0);
    let quad = single.with_cores(4);
    assert_eq!(quad.query(0xb, 1, &state), [2, 4, 0x201, 3]);
    assert_eq!(quad.query(1, 0, &state)[3] >> 28 & 1, 1);
    assert_eq!(quad.query(0x8000_0008, 0, &state)[2], 0x2003);
    assert_eq!(quad.query(0x8000_001d, 3, &state)[0] >> 14, 3);
}

#[test]
fn strings_read_as_written() {
    let model = parse("max").unwrap();
    let bytes: Vec<u8> =
        (0x8000_0002..=0x8000_0004).flat_map(|l| model.query(l, 0, &on())).flat_map(u32::to_le_bytes).collect();
    assert_eq!(bytes.len(), 48);
    assert_eq!(&bytes[..BRAND.len() + 1], b"Vitrine Virtual CPU\0");
    let leaf = model.query(0x4000_0000, 0, &on());
    assert_eq!(leaf[1], u32::from_le_bytes(*b"Vitr"));
    assert_eq!(model.query(0x4000_0011, 0, &on()), [0; 4]);
    assert_eq!(model.query(0xc000_0000, 0, &on()), [0; 4]);
    assert_eq!(parse("max,-hypervisor").unwrap().query(0x4000_0000, 0, &on()), [0; 4]);
}

#[test]
fn instructions_follow_features() {
    let model = parse("qemu64").unwrap();
    assert!(model.offers(CpuidFeature::SSE2) && !model.offers(CpuidFeature::AVX));
    let with = |code| {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        model.executes(&instruction)
    };
    assert!(with(Code::Endbr64) && with(Code::Rdsspq_r64) && with(Code::Cldemote_m8) && with(Code::Ud1_r32_rm32));
    assert!(with(Code::Movaps_xmm_xmmm128) && with(Code::Pshufw_mm_mmm64_imm8) && with(Code::Fadd_m32fp));
    assert!(!with(Code::VEX_Vaddps_ymm_ymm_ymmm256) && !with(Code::Incsspd_r32) && !with(Code::Xbegin_rel32));
    assert!(
        !with(Code::Vmcall) && !with(Code::Vmmcall) && !with(Code::Encls) && !with(Code::Mwait) && !with(Code::Stac)
    );
    assert!(!with(Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er));
    let max = parse("max").unwrap();
    for code in [Code::VEX_Vaddps_ymm_ymm_ymmm256, Code::Stac, Code::Serialize, Code::Rdpid_r64, Code::Xgetbv] {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        assert!(max.executes(&instruction), "{code:?}");
    }
    assert!(!max.offers(CpuidFeature::AVX512F) && !max.offers(CpuidFeature::SVM) && !max.offers(CpuidFeature::RTM));
}
