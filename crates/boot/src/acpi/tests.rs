//! The tables as a guest finds them: by scanning for the RSDP and following addresses.

use super::*;
use crate::ram::TestRam;
use std::collections::BTreeMap;

/// All tables by signature, each with a right checksum, followed from the RSDP.
fn tables(ram: &TestRam) -> BTreeMap<String, Vec<u8>> {
    let rsdp = (0xe_0000..0x10_0000u64).step_by(16).find(|at| ram.bytes(*at, 8) == b"RSD PTR ").expect("no RSDP");
    let bytes = ram.bytes(rsdp, 36);
    assert_eq!(checksum(&bytes[..20]), 0);
    assert_eq!(checksum(&bytes), 0);
    assert_eq!(bytes[15], 2);

    let table = |at: u64| {
        let length = usize::try_from(ram.u32(at + 4)).unwrap();
        let bytes = ram.bytes(at, length);
        assert!(at + to_u64(length) <= 0x10_0000);
        (String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes)
    };
    let (rsdt, xsdt) = (table(ram.u32(rsdp + 16).into()), table(ram.u64(rsdp + 24)));
    let from_rsdt: Vec<u64> =
        rsdt.1[36..].chunks(4).map(|c| u32::from_le_bytes(c.try_into().unwrap()).into()).collect();
    let from_xsdt: Vec<u64> = xsdt.1[36..].chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(from_rsdt, from_xsdt);

    let mut all: BTreeMap<_, _> = from_xsdt.into_iter().map(table).collect();
    all.extend([rsdt, xsdt]);
    let fadt = all["FACP"].clone();
    let dsdt = u32::from_le_bytes(fadt[40..44].try_into().unwrap());
    assert_eq!(u64::from(dsdt), u64::from_le_bytes(fadt[140..148].try_into().unwrap()), "DSDT and X_DSDT");
    all.extend([table(dsdt.into())]);
    for (name, bytes) in &all {
        assert_eq!(checksum(bytes), 0, "{name}");
    }
    let facs = u64::from(u32::from_le_bytes(fadt[36..40].try_into().unwrap()));
    assert_eq!(facs % 64, 0);
    assert_eq!(ram.bytes(facs, 4), b"FACS");
    all
}

fn written(config: &Config, board: &BoardInfo) -> BTreeMap<String, Vec<u8>> {
    let ram = TestRam::new(1);
    write(&ram, config, board).unwrap();
    tables(&ram)
}

/// The structures of a MADT: (type, bytes).
fn structures(madt: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut rest = &madt[44..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (one, after) = rest.split_at(usize::from(rest[1]));
        found.push((one[0], one.to_vec()));
        rest = after;
    }
    found
}

#[test]
fn a_guest_finds_every_table() {
    let config = Config { cpus: 1, hpet: true, ..Config::default() };
    let all = written(&config, &BoardInfo::default());
    let names: Vec<&str> = all.keys().map(String::as_str).collect();
    assert_eq!(names, ["APIC", "DSDT", "FACP", "HPET", "RSDT", "XSDT"]);
    assert_eq!(all["FACP"].len(), 276);
    assert!(!written(&Config { hpet: false, ..config }, &BoardInfo::default()).contains_key("HPET"));
}

#[test]
fn the_fadt_says_what_the_board_is() {
    let board = BoardInfo { pm1a_event: 0x1234, reset: (0xcf9, 6), i8042: false, ..BoardInfo::default() };
    let fadt = written(&Config::default(), &board).remove("FACP").unwrap();
    assert_eq!(fadt[46..48], [9, 0], "SCI");
    assert_eq!(fadt[56..60], [0x34, 0x12, 0, 0], "PM1a event");
    assert_eq!(fadt[148..160], [1, 32, 0, 2, 0x34, 0x12, 0, 0, 0, 0, 0, 0], "X PM1a event");
    assert_eq!(fadt[109..111], [0b101, 0], "boot architecture: legacy devices, no 8042, no VGA");
    let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
    assert_eq!(flags, 1 | 1 << 2 | 1 << 5 | 1 << 8 | 1 << 10, "the clock is a power event");
    assert_eq!(fadt[116..129], [1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0, 6], "reset register and value");
}

#[test]
fn the_madt_names_processors_and_wiring() {
    let config = Config { cpus: 2, ..Config::default() };
    let madt = written(&config, &BoardInfo::default()).remove("APIC").unwrap();
    assert_eq!(madt[36..44], [0, 0, 0xe0, 0xfe, 1, 0, 0, 0]);
    let found = structures(&madt);
    assert_eq!(found.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [0, 0, 1, 2, 2, 4]);
    assert_eq!(found[1].1, [0, 8, 1, 1, 1, 0, 0, 0]);
    assert_eq!(found[3].1, [2, 10, 0, 0, 2, 0, 0, 0, 0, 0], "the PIT at input 2");
    assert_eq!(found[4].1, [2, 10, 0, 9, 9, 0, 0, 0, 0b1101, 0], "the SCI: level, active high");
}

#[test]
fn large_apic_ids_get_x2apic_structures() {
    let board = BoardInfo { apic_ids: vec![0, 254, 255, 1000], ..BoardInfo::default() };
    let found = structures(&written(&Config::default(), &board)["APIC"]);
    let count = |kind| found.iter().filter(|(k, _)| *k == kind).count();
    assert_eq!((count(0), count(9), count(4), count(10)), (2, 2, 1, 1));
    assert_eq!(
        found.iter().rfind(|(kind, _)| *kind == 9).unwrap().1,
        [9, 16, 0, 0, 0xe8, 3, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]
    );
}

#[test]
fn many_processors_fit_and_absurdly_many_are_refused() {
    let ram = TestRam::new(1);
    write(&ram, &Config { cpus: 1024, ..Config::default() }, &BoardInfo::default()).unwrap();
    tables(&ram);
    let error = write(&ram, &Config { cpus: 100_000, ..Config::default() }, &BoardInfo::default()).unwrap_err();
    assert!(error.to_string().contains("-smp"), "{error}");
}

#[test]
fn the_dsdt_has_soft_off_and_the_devices() {
    let config = Config { hpet: true, ..Config::default() };
    let dsdt = written(&config, &BoardInfo::default()).remove("DSDT").unwrap();
    let has = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
    // Name(_S3_, Package(4) { 1, 1, 0, 0 }), Name(_S5_, Package(4) { 5, 5, 0, 0 })
    assert!(has(b"\x08\\_S3_\x12\x06\x04\x01\x01\x00\x00"));
    assert!(has(b"\x08\\_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"));
    for name in ["PCI0", "_CRS", "_PRT", "RTC_", "COM1", "COM4", "KBD_", "HPET", "C000"] {
        assert!(has(name.as_bytes()), "{name}");
    }
    // IRQ 4, edge-triggered.
    assert!(has(&[0x22, 0x10, 0x00, 0x79]));
}
