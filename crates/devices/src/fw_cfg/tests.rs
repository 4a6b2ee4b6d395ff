//! The configuration device by scripts of port accesses.

use super::*;

fn select(device: &FwCfg, key: u16) {
    device.write(SELECTOR, 2, key.into());
}

fn bytes(device: &FwCfg, key: u16, count: usize) -> Vec<u8> {
    select(device, key);
    (0..count).map(|_| u8::try_from(device.read(DATA, 1)).unwrap()).collect()
}

#[test]
fn the_usual_items() {
    let mut items = Items::new();
    items.add_entry(Key::RamSize, (128u64 << 20).to_le_bytes().to_vec());
    items.add_entry(Key::Cpus, 4u16.to_le_bytes().to_vec());
    let device = FwCfg::new(items);
    assert_eq!(bytes(&device, 0, 6), b"QEMU\0\0");
    assert_eq!(bytes(&device, 1, 4), [1, 0, 0, 0], "no DMA");
    assert_eq!(bytes(&device, 3, 9), [0, 0, 0, 8, 0, 0, 0, 0, 0]);
    assert_eq!(bytes(&device, 5, 2), [4, 0]);
    assert_eq!(bytes(&device, 0x4005, 2), [4, 0], "the write bit is ignored");
    assert_eq!(bytes(&device, 0x19, 5), [0; 5], "an empty directory");
    assert_eq!(bytes(&device, 0x8005, 2), [0; 2]);
    assert_eq!(bytes(&device, 0xffff, 2), [0; 2]);
}

#[test]
fn odd_accesses_do_nothing() {
    let device = FwCfg::new(Items::new());
    assert_eq!(bytes(&device, 0, 1), b"Q");
    device.write(SELECTOR, 1, 1);
    device.write(DATA, 1, 1);
    assert_eq!(device.read(DATA, 2), 0);
    assert_eq!(device.read(DATA, 1), u32::from(b'E'));
    device.reset();
    assert_eq!(device.read(DATA, 1), u32::from(b'Q'));
}

#[test]
fn files_are_found_by_the_directory() {
    let mut items = Items::new();
    items.add_file("opt/b", b"second".to_vec()).unwrap();
    items.add_file("opt/a", b"first".to_vec()).unwrap();
    assert_eq!(items.add_file("opt/a", Vec::new()), Err(FwCfgError::Twice("opt/a".into())));
    assert!(items.add_file("", Vec::new()).is_err());
    assert!(items.add_file(&"x".repeat(56), Vec::new()).is_err());
    items.add_file(&"x".repeat(55), Vec::new()).unwrap();
    let device = FwCfg::new(items);
    let directory = bytes(&device, 0x19, 4 + 3 * 64);
    assert_eq!(directory[..4], [0, 0, 0, 3]);
    assert_eq!(directory[4..12], [0, 0, 0, 5, 0, 0x20, 0, 0]);
    assert_eq!(&directory[12..18], b"opt/a\0");
    assert_eq!(directory[68..76], [0, 0, 0, 6, 0, 0x21, 0, 0]);
    assert_eq!(bytes(&device, 0x20, 6), b"first\0");
    assert_eq!(bytes(&device, 0x21, 6), b"second");
}
