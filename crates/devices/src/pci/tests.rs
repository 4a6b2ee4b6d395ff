//! Configuration mechanism #1 by scripts of port accesses.

use super::*;
use crate::pm::ResetControl;
use crate::power::{Asked, PowerRequest};

fn bus(bridge: Bridge) -> (PciBus, Arc<Asked>) {
    let asked = Arc::new(Asked::default());
    (PciBus::new(Arc::new(HostBridge::new(bridge)), Arc::new(ResetControl::new(asked.clone()))), asked)
}

fn select(bus: &PciBus, device: u32, function: u32, offset: u32) {
    bus.write(ADDRESS, 4, 0x8000_0000 | (device << 11) | (function << 8) | offset);
}

/// What Linux's `pci_check_type1` does.
#[test]
fn linux_finds_mechanism_1() {
    let (bus, _) = bus(Bridge::I440fx);
    bus.write(0xcfb, 1, 1);
    let old = bus.read(ADDRESS, 4);
    bus.write(ADDRESS, 4, 0x8000_0000);
    assert_eq!(bus.read(ADDRESS, 4), 0x8000_0000);
    bus.write(ADDRESS, 4, old);
    assert_eq!(bus.read(ADDRESS, 4), 0);
}

#[test]
fn the_bridge_has_its_chipsets_identity() {
    for (bridge, id, class) in [(Bridge::I440fx, 0x1237_8086, 0x0600_0002), (Bridge::Q35, 0x29c0_8086, 0x0600_0000)] {
        let (bus, _) = bus(bridge);
        select(&bus, 0, 0, 0);
        assert_eq!(bus.read(DATA, 4), id);
        assert_eq!(bus.read(DATA, 2), id & 0xffff);
        assert_eq!(bus.read(DATA + 2, 2), id >> 16);
        assert_eq!(bus.read(DATA + 3, 1), id >> 24);
        select(&bus, 0, 0, 8);
        assert_eq!(bus.read(DATA, 4), class);
        select(&bus, 0, 0, 0xc);
        assert_eq!(bus.read(DATA + 2, 1), 0, "a single function, header type 0");
        select(&bus, 0, 0, 0x10);
        bus.write(DATA, 4, u32::MAX);
        assert_eq!(bus.read(DATA, 4), 0, "no base addresses");
    }
}

#[test]
fn absent_functions_read_as_ones() {
    let (bus, _) = bus(Bridge::Q35);
    for (device, function) in [(0, 1), (1, 0), (31, 7)] {
        select(&bus, device, function, 0);
        assert_eq!(bus.read(DATA, 4), u32::MAX);
        bus.write(DATA, 4, 0);
    }
    bus.write(ADDRESS, 4, 0x8001_0000);
    assert_eq!(bus.read(DATA, 4), u32::MAX, "bus 1");
    bus.write(ADDRESS, 4, 0);
    assert_eq!(bus.read(DATA, 4), u32::MAX, "not enabled");
    assert_eq!(bus.read(0xcff, 2), u32::MAX, "past the register");
}

#[test]
fn writes_change_what_can_be_written() {
    let (bus, _) = bus(Bridge::I440fx);
    select(&bus, 0, 0, 4);
    bus.write(DATA, 2, 0xffff);
    assert_eq!(bus.read(DATA, 4), 0x0200_0146);
    select(&bus, 0, 0, 0x58);
    bus.write(DATA + 2, 1, 0);
    assert_eq!(bus.read(DATA, 4), 0x3300_3300);
    bus.reset();
    assert_eq!(bus.read(ADDRESS, 4), 0);
    select(&bus, 0, 0, 4);
    assert_eq!(bus.read(DATA, 4), 0x0200_0006);
}

#[test]
fn the_reset_register_lies_within_the_address() {
    let (bus, asked) = bus(Bridge::Q35);
    bus.write(ADDRESS, 4, 0x8000_0654);
    assert_eq!(asked.take(), [], "a 32-bit write is an address");
    bus.write(0xcf9, 1, 6);
    assert_eq!(asked.take(), [PowerRequest::Reset]);
    assert_eq!((bus.read(0xcf9, 1), bus.read(ADDRESS, 4)), (6, 0x8000_0654));
}
