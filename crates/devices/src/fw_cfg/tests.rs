//! The configuration device by scripts of port accesses and requests in memory.

use super::*;
use memory::{GuestRam, PhysicalMap};
use std::sync::Arc;

/// Bytes of RAM.
const RAM: u64 = 1 << 20;
/// Where a page of it is ROM.
const ROM: u64 = 0x8_0000;
/// Where requests are.
const REQUEST: u64 = 0x1000;
const ERROR: u32 = 1;
const READ: u32 = 2;
const SKIP: u32 = 4;
const WRITE: u32 = 16;

/// A request that first selects an item.
fn selecting(key: u16, control: u32) -> u32 {
    u32::from(key) << 16 | 8 | control
}

fn device(items: Items) -> FwCfg {
    let mut map = PhysicalMap::new(GuestRam::new(RAM).unwrap()).unwrap();
    map.add_rom(Gpa(ROM), &[0x5a; 4096]).unwrap();
    let map = Arc::new(map);
    map.write(Gpa(0), &[0xcc; ROM as usize]).unwrap();
    FwCfg::new(items, Dma::new(map, NAME))
}

fn memory(device: &FwCfg, gpa: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    device.dma.read(Gpa(gpa), &mut bytes).unwrap();
    bytes
}

/// Has a request done that is at `at`; what its control says then.
fn request_at(device: &FwCfg, at: u64, control: u32, length: u32, address: u64) -> u32 {
    let fields = u128::from(control) << 96 | u128::from(length) << 64 | u128::from(address);
    device.dma.write(Gpa(at), &fields.to_be_bytes()).unwrap();
    device.write(DMA + 4, 4, (at as u32).swap_bytes());
    u32::from_be_bytes(memory(device, at, 4).try_into().unwrap())
}

fn request(device: &FwCfg, control: u32, length: u32, address: u64) -> u32 {
    request_at(device, REQUEST, control, length, address)
}

/// A device with one file of 10 bytes.
fn ten() -> FwCfg {
    let mut items = Items::new();
    items.add_file("opt/ten", (1..=10).collect()).unwrap();
    device(items)
}

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
    let device = device(items);
    assert_eq!(bytes(&device, 0, 6), b"QEMU\0\0");
    assert_eq!(bytes(&device, 1, 4), [3, 0, 0, 0], "ports and DMA");
    assert_eq!(bytes(&device, 3, 9), [0, 0, 0, 8, 0, 0, 0, 0, 0]);
    assert_eq!(bytes(&device, 5, 2), [4, 0]);
    assert_eq!(bytes(&device, 0x4005, 2), [4, 0], "the write bit is ignored");
    assert_eq!(bytes(&device, 0x19, 5), [0; 5], "an empty directory");
    assert_eq!(bytes(&device, 0x8005, 2), [0; 2]);
    assert_eq!(bytes(&device, 0xffff, 2), [0; 2]);
}

#[test]
fn odd_accesses_do_nothing() {
    let device = device(Items::new());
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
    let device = device(items);
    let directory = bytes(&device, 0x19, 4 + 3 * 64);
    assert_eq!(directory[..4], [0, 0, 0, 3]);
    assert_eq!(directory[4..12], [0, 0, 0, 5, 0, 0x20, 0, 0]);
    assert_eq!(&directory[12..18], b"opt/a\0");
    assert_eq!(directory[68..76], [0, 0, 0, 6, 0, 0x21, 0, 0]);
    assert_eq!(bytes(&device, 0x20, 6), b"first\0");
    assert_eq!(bytes(&device, 0x21, 6), b"second");
}

#[test]
fn requests_copy_items_to_memory() {
    let device = ten();
    assert_eq!(request(&device, selecting(0x20, READ), 4, 0x2ffe), 0);
    assert_eq!(memory(&device, 0x2ffd, 6), [0xcc, 1, 2, 3, 4, 0xcc]);
    // It goes on there, also by the port; what is behind the end is zeros.
    assert_eq!(device.read(DATA, 1), 5);
    assert_eq!(request(&device, SKIP, 2, 0), 0);
    assert_eq!(request(&device, READ, 0x2000, 0x4000), 0);
    let read = memory(&device, 0x4000, 0x2001);
    assert_eq!((&read[..4], &read[0x2000..]), (&[8, 9, 10, 0][..], &[0xcc][..]));
    assert!(read[3..0x2000].iter().all(|byte| *byte == 0));
    assert_eq!(device.read(DATA, 1), 0);
    // Passing over more than there is; an item that is not there; nothing.
    assert_eq!(request(&device, selecting(0x4020, SKIP), u32::MAX, 0), 0);
    assert_eq!(device.read(DATA, 1), 0);
    assert_eq!(request(&device, selecting(0xffff, READ), 2, 0x3000), 0);
    assert_eq!(memory(&device, 0x3000, 3), [0, 0, 0xcc]);
    assert_eq!(request(&device, selecting(0x20, 0), 5, 0x3000), 0);
    assert_eq!(request(&device, selecting(0x20, READ), 0, 0x3000), 0);
    assert_eq!((device.read(DATA, 1), memory(&device, 0x3000, 1)), (1, vec![0]));
    // Reading comes before all else.
    assert_eq!(request(&device, selecting(0x20, READ | SKIP | WRITE), 1, 0x3000), 0);
    assert_eq!((device.read(DATA, 1), memory(&device, 0x3000, 2)), (2, vec![1, 0]));
}

#[test]
fn what_cannot_be_done_is_an_error() {
    let device = ten();
    // Items are not written; the offset moves on nevertheless, as QEMU's does.
    assert_eq!(request(&device, selecting(0x20, WRITE), 2, 0x3000), ERROR);
    assert_eq!(request(&device, selecting(0x77, WRITE | SKIP), 2, 0x3000), ERROR);
    assert_eq!(request(&device, selecting(0x20, WRITE), 0, 0x3000), 0);
    assert_eq!(bytes(&device, 0x20, 2), [1, 2]);
    // ROM in the middle of an item, and nothing in the middle of zeros; ROM; nowhere; the end of all addresses.
    for (length, address) in [(10, ROM - 8), (u32::MAX, RAM - 256), (1, ROM), (1, RAM), (9, u64::MAX - 3)] {
        assert_eq!(request(&device, selecting(0x20, READ), length, address), ERROR, "{length:#x} {address:#x}");
    }
    assert_eq!(memory(&device, ROM - 8, 9), [1, 2, 3, 4, 5, 6, 7, 8, 0x5a]);
    assert_eq!(memory(&device, RAM - 256, 11), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0]);
    // All of the rest of RAM, which the request is in itself.
    assert_eq!(request_at(&device, RAM - 64, selecting(0x20, READ), 0x7_0000, RAM - 0x7_0000), 0);
    assert_eq!(memory(&device, RAM - 64, 64), [0; 64]);
}

#[test]
fn requests_are_where_the_address_register_says() {
    let device = ten();
    // Across two pages; half in RAM, which is told at least that; nowhere.
    assert_eq!(request_at(&device, 0x5ff8, selecting(0x20, READ), 1, 0x3000), 0);
    assert_eq!(memory(&device, 0x3000, 2), [1, 0xcc]);
    device.write(DMA + 4, 4, ((RAM - 8) as u32).swap_bytes());
    assert_eq!(memory(&device, RAM - 8, 4), [0, 0, 0, 1]);
    device.write(DMA + 4, 4, (RAM as u32).swap_bytes());
    device
        .dma
        .write(Gpa(REQUEST), &u128::to_be_bytes(u128::from(selecting(0x20, READ)) << 96 | 1 << 64 | 0x3000))
        .unwrap();
    // The higher half is for one request.
    device.write(DMA, 4, 1u32.swap_bytes());
    device.write(DMA + 4, 4, (REQUEST as u32).swap_bytes());
    assert_ne!(memory(&device, REQUEST, 4), [0; 4], "there is no such memory");
    device.write(DMA + 4, 4, (REQUEST as u32).swap_bytes());
    assert_eq!(memory(&device, REQUEST, 4), [0; 4]);
    device.write(DMA, 4, 1u32.swap_bytes());
    device.reset();
    assert_eq!(request(&device, selecting(0x20, READ), 1, 0x3000), 0);
}

#[test]
fn the_address_register_reads_as_its_signature() {
    let device = ten();
    assert_eq!(device.read(DMA, 4).to_le_bytes(), *b"QEMU");
    assert_eq!(device.read(DMA + 4, 4).to_le_bytes(), *b" CFG");
    assert_eq!(device.read(DMA + 1, 2).to_le_bytes()[..2], *b"EM");
    assert_eq!(device.read(DMA + 7, 1), u32::from(b'G'));
    // Writes of other sizes and elsewhere begin nothing.
    let before = memory(&device, 0, 0x8000);
    for (port, size) in [(DMA, 1), (DMA + 4, 1), (DMA + 4, 2), (DMA + 5, 4), (DMA + 7, 1), (DMA + 2, 4)] {
        device.write(port, size, 0);
    }
    assert_eq!(memory(&device, 0, 0x8000), before);
}
