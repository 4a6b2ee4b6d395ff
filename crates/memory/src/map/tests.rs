//! Layers, loaders' accesses, dispatch.

use super::*;
use std::sync::Mutex;

/// Remembers what it is asked.
#[derive(Default)]
struct Device(Mutex<Vec<(bool, u64, usize, u64)>>);

impl Mmio for Device {
    fn read(&self, cpu: usize, offset: u64, size: usize) -> u64 {
        self.0.lock().expect("lock").push((false, offset, size, cpu as u64));
        0x8877_6655_4433_2211
    }
    fn write(&self, _cpu: usize, offset: u64, size: usize, value: u64) {
        self.0.lock().expect("lock").push((true, offset, size, value));
    }
    fn name(&self) -> &str {
        "device"
    }
}

fn map(size: u64) -> PhysicalMap {
    PhysicalMap::new(GuestRam::new(size).expect("ram")).expect("map")
}

#[test]
fn ram_is_split_around_the_hole() {
    let map = map(5 << 30);
    assert_eq!(map.ram_ranges(), [(Gpa(0), 3 << 30), (Gpa(4 << 30), 2 << 30)]);
    assert!(map.hva_of(Gpa(0xbfff_ffff)).is_some());
    assert!(map.hva_of(Gpa(0xc000_0000)).is_none());
    let high = map.hva_of(Gpa(0x1_0000_0123)).expect("ram");
    map.write(Gpa(0x1_0000_0123), b"x").expect("ram");
    // SAFETY: guest RAM of this test.
    assert_eq!(unsafe { <u8 as hostmem::HostAccess>::load(high.0, 0) }, b'x');
    let mut back = [0; 1];
    vm_memory::Bytes::read_slice(map.vm_memory(), &mut back, vm_memory::GuestAddress(0x1_0000_0123)).expect("ram");
    assert_eq!(&back, b"x");
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    for size in [0, 1, 4095, 4097] {
        assert!(matches!(GuestRam::new(size), Err(RamError::Size(_))), "{size}");
    }
    assert!(matches!(GuestRam::new(1 << 60), Err(RamError::TooLarge(_))));
}

#[test]
fn much_more_ram_than_the_host_has_starts_and_costs_nothing() {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
    };
    let before = resident();
    let map = map(64 << 30);
    map.write(Gpa(0x1000), &[1; 4096]).expect("ram");
    map.write(Gpa(64 << 30), &[1; 4096]).expect("ram");
    map.code().mark(map.hva_of(Gpa(0x1000)).expect("ram"), 1);
    assert!(resident() < before + (32 << 20), "{} → {}", before, resident());
}

#[test]
fn later_layers_lie_on_top() {
    let mut map = map(16 << 20);
    map.add_mmio(Gpa(0xa_0000)..Gpa(0xc_0000), Arc::new(Device::default())).expect("range");
    map.add_rom(Gpa(0xf_0000), &[0x5a; 0x1_0000]).expect("rom");
    map.add_rom(Gpa(0xb_f000), b"on top").expect("rom");
    let kinds: Vec<_> = map.regions().into_iter().map(|r| (r.range.start.0, r.range.end.0, r.name)).collect();
    let expected = [
        (0, 0xa_0000, "ram"),
        (0xa_0000, 0xb_f000, "device"),
        (0xb_f000, 0xb_f006, "rom"),
        (0xb_f006, 0xc_0000, "device"),
        (0xc_0000, 0xf_0000, "ram"),
        (0xf_0000, 0x10_0000, "rom"),
        (0x10_0000, 0x100_0000, "ram"),
    ];
    assert_eq!(kinds, expected.map(|(start, end, name)| (start, end, name.to_owned())));
    // RAM on both sides of what covers it keeps its host addresses.
    let base = map.hva_of(Gpa(0)).expect("ram");
    assert_eq!(map.hva_of(Gpa(0xc_0000)), Some(base.wrapping_add(0xc_0000)));
    assert_eq!(map.hva_of(Gpa(0x10_0000)), Some(base.wrapping_add(0x10_0000)));
    // A page that is not all one thing is dispatched access by access.
    assert_eq!(map.page(Gpa(0xb_f000)), Page::Io);
    assert!(matches!(map.page(Gpa(0xf_f123)), Page::Rom(hva) if hva.offset() == 0));
    assert_eq!(map.ram_ranges().len(), 3);
}

#[test]
fn impossible_regions_are_refused() {
    let mut map = map(4096);
    assert!(map.add_rom(Gpa(0), &[]).is_err());
    assert!(map.add_rom(Gpa(u64::MAX), &[1, 2]).is_err());
    assert!(map.add_mmio(Gpa(5)..Gpa(5), Arc::new(Device::default())).is_err());
}

#[test]
fn loaders_stop_at_what_is_not_memory() {
    let mut map = map(8192);
    let device = Arc::new(Device::default());
    map.add_mmio(Gpa(0x1800)..Gpa(0x1900), Arc::<Device>::clone(&device)).expect("range");
    let mut bytes = [0; 0x1000];
    assert!(matches!(map.read(Gpa(0x1000), &mut bytes), Err(MapError::NotMemory { gpa: Gpa(0x1800), done: 0x800 })));
    assert!(matches!(map.write(Gpa(0x17ff), &[7; 2]), Err(MapError::NotMemory { gpa: Gpa(0x1800), done: 1 })));
    map.read(Gpa(0x17ff), &mut bytes[..1]).expect("ram");
    assert_eq!(bytes[0], 7);
    assert!(map.write(Gpa(u64::MAX), &[1]).is_err());
    assert!(map.read(Gpa(0x2000), &mut bytes[..1]).is_err());
    assert!(device.0.lock().expect("lock").is_empty(), "a loader never reaches a device");
    map.add_rom(Gpa(0xffff_0000), b"rom").expect("rom");
    map.read(Gpa(0xffff_0000), &mut bytes[..3]).expect("rom");
    assert_eq!(&bytes[..3], b"rom");
    assert!(map.write(Gpa(0xffff_0000), b"x").is_err());
}

#[test]
fn accesses_are_dispatched_whole_where_they_can_be() {
    let mut map = map(0x1000);
    let device = Arc::new(Device::default());
    map.add_mmio(Gpa(0x800)..Gpa(0x808), Arc::<Device>::clone(&device)).expect("range");
    map.write(Gpa(0x7fe), &[0xaa, 0xbb]).expect("ram");
    assert_eq!(map.io_read(3, Gpa(0x804), 4), 0x4433_2211);
    map.io_write(3, Gpa(0x801), 2, 0xffff_1234);
    // Two bytes of RAM, then two of the device.
    assert_eq!(map.io_read(0, Gpa(0x7fe), 4), 0x1111_bbaa);
    map.io_write(0, Gpa(0x806), 4, 0x4433_2211);
    assert_eq!(
        *device.0.lock().expect("lock"),
        [
            (false, 4, 4, 3),
            (true, 1, 2, 0x1234),
            (false, 0, 1, 0),
            (false, 1, 1, 0),
            (true, 6, 1, 0x11),
            (true, 7, 1, 0x22)
        ]
    );
    let mut rest = [0; 2];
    map.read(Gpa(0x808), &mut rest).expect("ram");
    assert_eq!(rest, [0x33, 0x44]);
    // Nothing there: all ones, whatever the size; at the end of the address space too.
    assert_eq!(map.io_read(0, Gpa(0x5000), 2), 0xffff);
    assert_eq!(map.io_read(0, Gpa(u64::MAX), 1), 0xff);
    map.io_write(0, Gpa(u64::MAX), 8, 1);
}

#[test]
fn the_a20_gate_says_whether_it_moved() {
    let map = map(4 << 20);
    assert!(map.a20() && !map.set_a20(true));
    assert!(map.set_a20(false) && !map.set_a20(false) && !map.a20());
    assert_eq!(map.gated(0x31_2345), Gpa(0x21_2345));
    assert!(map.set_a20(true));
    assert_eq!(map.gated(0x31_2345), Gpa(0x31_2345));
}

#[test]
fn a_device_that_writes_over_code_is_noticed() {
    let map = map(1 << 20);
    let hears = map.code().subscribe();
    let hva = map.hva_of(Gpa(0x5000)).expect("ram");
    map.code().mark(hva.wrapping_add(0x80), 4);
    map.write(Gpa(0x4000), &[1; 0x1080]).expect("ram");
    assert!(!hears.pending());
    map.write(Gpa(0x4000), &[1; 0x1081]).expect("ram");
    assert_eq!(hears.take().pages, [hva]);
}
