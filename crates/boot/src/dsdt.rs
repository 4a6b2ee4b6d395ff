//! The DSDT: sleep states, the PCI root bridge, and the ISA devices beneath it, in AML (ACPI 6.5, chapters 6, 19 and 20).
//!
//! Left out: PCI interrupt routing (`_PRT` is empty; no device on the bus interrupts), DMA controller, PC speaker.

use crate::board::BoardInfo;
use crate::{Config, acpi};
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name, PackageBuilder, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::{Aml, AmlSink};

/// The last address of the PCI window: the I/O APIC is next.
const WINDOW_END: u32 = 0xfebf_ffff;
/// The first address of the PCI window: RAM below 4 GiB ends here at the latest.
const WINDOW_START: u32 = 0xc000_0000;

/// An ISA interrupt: edge-triggered, active high, not shared (6.4.2.1, without the flags byte).
struct Irq(u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1u16.checked_shl(self.0.into()).unwrap_or(0));
    }
}

/// `length` I/O ports from `port`.
fn io(port: u16, length: u8) -> IO {
    IO::new(port, port, 1, length)
}

/// A device with resources.
fn device(name: &str, hid: &str, uid: u8, resources: Vec<&dyn Aml>) -> Vec<u8> {
    acpi::bytes(&Device::new(
        name.into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new(hid)),
            &Name::new("_UID".into(), &uid),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    ))
}

/// AML that is already bytes.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The whole table.
pub(crate) fn table(config: &Config, board: &BoardInfo, apic_ids: &[u32]) -> Vec<u8> {
    let mut aml = Vec::new();
    for (name, value) in [("\\_S3_", board.s3), ("\\_S5_", board.s5)] {
        sleep_state(name, value).to_aml_bytes(&mut aml);
    }
    let root = Raw(root_bridge(config, board));
    let cpus = Raw(processors(apic_ids));
    Scope::new("\\_SB_".into(), vec![&cpus, &root]).to_aml_bytes(&mut aml);

    let mut table = acpi::sdt(*b"DSDT", 36, 2);
    table.append_slice(&aml);
    table.as_slice().to_vec()
}

/// `\_S3` or `\_S5`: what to write to SLP_TYP of PM1a and PM1b.
fn sleep_state(name: &str, value: u8) -> Name {
    let mut values = PackageBuilder::new();
    for value in [value, value, 0, 0] {
        values.add_element(&value);
    }
    Name::new(Path::new(name), &values)
}

/// A device for each vCPU, tied to the MADT by `_UID`.
fn processors(apic_ids: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (uid, _) in (0u32..).zip(apic_ids) {
        let name = format!("C{:03X}", uid & 0xfff);
        Device::new(
            name.as_str().into(),
            vec![&Name::new("_HID".into(), &"ACPI0007"), &Name::new("_UID".into(), &uid)],
        )
        .to_aml_bytes(&mut bytes);
    }
    bytes
}

/// The PCI root bridge and what is beneath it.
fn root_bridge(config: &Config, board: &BoardInfo) -> Vec<u8> {
    let windows = Raw(acpi::bytes(&ResourceTemplate::new(vec![
        &AddressSpace::<u16>::new_bus_number(0, 0xff),
        // The configuration mechanism's own ports, and the windows around them.
        &IO::new(0xcf8, 0xcf8, 1, 8),
        &AddressSpace::<u16>::new_io(0, 0xcf7, None),
        &AddressSpace::<u16>::new_io(0xd00, 0xffff, None),
        &AddressSpace::<u32>::new_memory(AddressSpaceCacheable::NotCacheable, true, 0xa_0000, 0xb_ffff, None),
        &AddressSpace::<u32>::new_memory(AddressSpaceCacheable::NotCacheable, true, WINDOW_START, WINDOW_END, None),
    ])));
    let isa = Raw(isa_devices(config, board));
    acpi::bytes(&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_BBN".into(), &0u8),
            &Name::new("_CRS".into(), &windows),
            &Name::new("_PRT".into(), &PackageBuilder::new()),
            &isa,
        ],
    ))
}

fn isa_devices(config: &Config, board: &BoardInfo) -> Vec<u8> {
    let mut bytes = device("RTC_", "PNP0B00", 0, vec![&io(0x70, 2), &Irq(8)]);
    for (number, com) in (1u8..=9).zip(&board.coms) {
        let name = format!("COM{number}");
        bytes.extend(device(&name, "PNP0501", number, vec![&io(com.port, 8), &Irq(com.irq)]));
    }
    if board.i8042 {
        bytes.extend(device("KBD_", "PNP0303", 0, vec![&io(0x60, 1), &io(0x64, 1), &Irq(1)]));
        bytes.extend(device("MOU_", "PNP0F13", 0, vec![&Irq(12)]));
    }
    if config.hpet {
        bytes.extend(device("HPET", "PNP0103", 0, vec![&Memory32Fixed::new(true, board.hpet, 0x400)]));
    }
    // The power management ports, so that nobody else is given them.
    let pm1a = io(board.pm1a_event, 4);
    let control = io(board.pm1a_control, 2);
    let timer = io(board.pm_timer, 4);
    let gpe0 = board.gpe0.map(|(port, length)| io(port, length));
    let mut ports: Vec<&dyn Aml> = vec![&pm1a, &control, &timer];
    ports.extend(gpe0.iter().map(|ports| ports as &dyn Aml));
    bytes.extend(device("PWRM", "PNP0C02", 0, ports));
    bytes
}
