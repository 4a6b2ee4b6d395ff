//! Scripts of register accesses and line changes against the IOAPIC and two local APICs.

use cpu::{LocalApic as _, Signals};

use super::*;
use crate::lapic::{APIC_BASE_ADDRESS, ApicConfig, ApicMmio, LocalApic};
use crate::testing::Time;

const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const REMOTE_IRR: u64 = 1 << 14;
const ACTIVE_LOW: u64 = 1 << 13;

struct Board {
    ioapic: Arc<IoApic>,
    apics: Vec<Arc<LocalApic>>,
    signals: Vec<Arc<Signals>>,
    page: ApicMmio,
}

impl Board {
    fn new() -> Self {
        let (time, bus) = (Time::new(), ApicBus::new());
        let signals: Vec<Arc<Signals>> = vec![Arc::default(), Arc::default()];
        let apics = signals
            .iter()
            .zip(0..)
            .map(|(signals, id)| {
                let config = ApicConfig { id, bsp: id == 0, x2apic: true, tsc_deadline: true, physical_bits: 40 };
                LocalApic::new(config, &bus, &time.timers, Arc::clone(signals))
            })
            .collect();
        let page = ApicMmio::new(Arc::clone(&bus), APIC_BASE_ADDRESS);
        for cpu in 0..2 {
            page.write(cpu, 0xf0, 4, 0x1ff);
        }
        Self { ioapic: IoApic::new(&bus), apics, signals, page }
    }

    fn read(&self, index: u8) -> u32 {
        self.ioapic.write(0, 0, 4, index.into());
        self.ioapic.read(0, 0x10, 4) as u32
    }

    fn write(&self, index: u8, value: u32) {
        self.ioapic.write(0, 0, 4, index.into());
        self.ioapic.write(0, 0x10, 4, value.into());
    }

    fn entry(&self, n: u8) -> u64 {
        u64::from(self.read(0x10 + 2 * n)) | u64::from(self.read(0x11 + 2 * n)) << 32
    }

    fn set_entry(&self, n: u8, value: u64) {
        self.write(0x11 + 2 * n, (value >> 32) as u32);
        self.write(0x10 + 2 * n, value as u32);
    }

    fn set(&self, n: usize, high: bool) {
        self.ioapic.pin(n).set(high);
    }

    fn take(&self, cpu: usize) -> Option<u8> {
        if self.signals[cpu].raised() & Signals::INTERRUPT == 0 { None } else { self.apics[cpu].acknowledge() }
    }

    fn eoi(&self, cpu: usize) {
        self.page.write(cpu, 0xb0, 4, 0);
    }
}

#[test]
fn identity_registers() {
    let b = Board::new();
    assert_eq!(b.read(1), 0x0017_0020);
    b.write(1, 0);
    assert_eq!(b.read(1), 0x0017_0020);
    b.write(0, u32::MAX);
    assert_eq!((b.read(0), b.read(2)), (0x0f00_0000, 0x0f00_0000));
    b.write(2, 0);
    assert_eq!(b.read(2), 0x0f00_0000);
    assert_eq!((b.read(3), b.read(0x40), b.read(0xff)), (0, 0, 0));
    assert_eq!(b.entry(23), MASKED);
}

#[test]
fn an_edge_is_one_message() {
    let b = Board::new();
    b.set_entry(14, 0x76);
    b.set(14, true);
    assert_eq!(b.take(0), Some(0x76));
    b.eoi(0);
    b.set(14, true);
    assert_eq!(b.take(0), None);
    b.set(14, false);
    assert_eq!(b.take(0), None);
    b.set(14, true);
    assert_eq!(b.take(0), Some(0x76));
    assert_eq!(b.entry(14), 0x76, "no remote IRR for edges");
}

#[test]
fn a_masked_edge_is_lost_and_a_masked_level_waits() {
    let b = Board::new();
    b.set_entry(5, MASKED | 0x50);
    b.set(5, true);
    b.set_entry(5, 0x50);
    assert_eq!(b.take(0), None);
    b.set(5, false);
    b.set_entry(5, MASKED | LEVEL | 0x50);
    b.set(5, true);
    assert_eq!(b.take(0), None);
    b.set_entry(5, LEVEL | 0x50);
    assert_eq!(b.take(0), Some(0x50));
}

#[test]
fn a_level_comes_again_after_each_eoi() {
    let b = Board::new();
    b.set_entry(14, LEVEL | 0x9a);
    b.set(14, true);
    b.set(14, true);
    assert_eq!(b.take(0), Some(0x9a));
    assert_eq!(b.entry(14), LEVEL | REMOTE_IRR | 0x9a);
    b.set(14, false);
    b.set(14, true);
    assert_eq!(b.take(0), None, "coalesced while in service");
    b.eoi(0);
    assert_eq!(b.take(0), Some(0x9a));
    b.set(14, false);
    b.eoi(0);
    assert_eq!((b.take(0), b.entry(14)), (None, LEVEL | 0x9a));
}

#[test]
fn remote_irr_outlives_a_new_destination_and_ends_with_an_edge_entry() {
    let b = Board::new();
    b.set_entry(13, LEVEL | 0x64);
    b.set(13, true);
    b.write(0x10 + 26 + 1, 1 << 24);
    assert_eq!(b.entry(13), 1 << 56 | LEVEL | REMOTE_IRR | 0x64);
    b.set(13, false);
    assert_eq!(b.take(0), Some(0x64));
    b.eoi(0);
    assert_eq!(b.entry(13) & REMOTE_IRR, 0, "the EOI goes by vector");
    b.set(13, true);
    assert_eq!(b.take(1), Some(0x64));
    // As kernels do it without an EOI register.
    b.write(0x10 + 26, (MASKED | 0x64) as u32);
    b.write(0x10 + 26, (MASKED | LEVEL | 0x64) as u32);
    assert_eq!(b.entry(13) & REMOTE_IRR, 0);
}

#[test]
fn the_eoi_register_ends_by_vector() {
    let b = Board::new();
    b.set_entry(3, LEVEL | 0x33);
    b.set(3, true);
    b.set(3, false);
    b.ioapic.write(0, 0x40, 4, 0x34);
    assert_eq!(b.entry(3) & REMOTE_IRR, REMOTE_IRR);
    b.ioapic.write(0, 0x40, 4, 0x33);
    assert_eq!(b.entry(3) & REMOTE_IRR, 0);
}

#[test]
fn polarity_turns_the_level_round() {
    let b = Board::new();
    b.set(9, true);
    b.set_entry(9, ACTIVE_LOW | LEVEL | 0x39);
    assert_eq!(b.take(0), None);
    b.set(9, false);
    assert_eq!(b.take(0), Some(0x39));
    b.set(9, true);
    b.eoi(0);
    assert_eq!(b.take(0), None);
}

#[test]
fn destinations_and_delivery_modes() {
    let b = Board::new();
    b.page.write(0, 0xd0, 4, 0x0100_0000);
    b.page.write(1, 0xd0, 4, 0x0200_0000);
    b.set_entry(4, 3 << 56 | 1 << 11 | 0x44);
    b.set(4, true);
    assert_eq!((b.take(0), b.take(1)), (Some(0x44), Some(0x44)));
    b.set_entry(5, 3 << 56 | 1 << 11 | 1 << 8 | 0x55);
    b.set(5, true);
    assert_eq!([b.take(0), b.take(1)].into_iter().flatten().count(), 1, "lowest priority is one");
    b.set_entry(6, 1 << 56 | 4 << 8);
    b.set(6, true);
    assert_eq!(b.signals[1].raised() & Signals::NMI, Signals::NMI);
    b.set_entry(7, 1 << 56 | LEVEL | 5 << 8);
    b.set(7, true);
    assert_eq!(b.signals[1].raised() & Signals::INIT, Signals::INIT);
    assert_eq!(b.entry(7) & REMOTE_IRR, 0);
    b.set_entry(0, 7 << 8);
    b.set(0, true);
    assert_eq!(b.signals[0].raised() & Signals::INTERRUPT, Signals::INTERRUPT, "ExtINT");
}

#[test]
fn nobody_there_is_no_remote_irr() {
    let b = Board::new();
    b.set_entry(4, 9 << 56 | LEVEL | 0x44);
    b.set(4, true);
    assert_eq!(b.entry(4) & REMOTE_IRR, 0);
    b.write(0x10 + 8 + 1, 0);
    assert_eq!(b.take(0), Some(0x44));
}

#[test]
fn bytes_of_the_window() {
    let b = Board::new();
    b.ioapic.write(0, 0, 1, 0x10 + 2 * 8 + 1);
    b.ioapic.write(0, 0x13, 1, 0xab);
    assert_eq!(b.ioapic.read(0, 0x13, 1), 0xab);
    assert_eq!(b.ioapic.read(0, 0x10, 8), 0xab00_0000);
    assert_eq!(b.ioapic.read(0, 0x12, 2), 0xab00);
    b.ioapic.write(0, 0, 1, 0x10 + 2 * 8);
    b.ioapic.write(0, 0x10, 1, 0x5a);
    assert_eq!(b.entry(8), 0xab << 56 | MASKED | 0x5a, "the mask bit was not covered");
    assert_eq!(b.ioapic.read(0, 0, 4), 0x10 + 2 * 8 + 1);
    for offset in (0..0x1000).chain([u64::MAX]) {
        for size in [0, 1, 2, 4, 8, 16] {
            b.ioapic.read(0, offset, size);
            b.ioapic.write(0, offset, size, u64::MAX);
        }
    }
    b.set(24, true);
    b.set(usize::MAX, true);
}

#[test]
fn reset_masks_everything() {
    let b = Board::new();
    b.set_entry(4, LEVEL | 0x44);
    b.ioapic.reset();
    b.set(4, true);
    assert_eq!((b.take(0), b.entry(4)), (None, MASKED));
}
