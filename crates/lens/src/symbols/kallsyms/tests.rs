//! Tables made by hand.

use super::*;
use memory::ram::GuestRam;

/// Where the kernel is: the address of its first symbol; another one begins every 16 bytes.
pub(crate) const BASE: u64 = 0xffff_ffff_a100_0000;
const AT: u64 = 0x2_0000;
const SYMBOLS: usize = 700;

/// How the parts are arranged.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Early,
    EarlyWithOrder,
    Late,
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

fn name(n: usize) -> String {
    match n {
        0 => "_text".to_owned(),
        // Longer than 127 tokens.
        5 => "x".repeat(300),
        _ => format!("function_{n}.part.0"),
    }
}

/// A kernel's tables; the first symbol is one of a processor's own.
fn tables(layout: Layout) -> Vec<u8> {
    let (mut names, mut markers) = (Vec::new(), Vec::new());
    for n in 0..SYMBOLS {
        if n % MARKED == 0 {
            markers.extend((names.len() as u32).to_le_bytes());
        }
        let text = if n == 0 { "Afixed_percpu_data".to_owned() } else { format!("T{}", name(n - 1)) };
        if text.len() > 127 {
            names.extend([text.len() as u8 | 0x80, (text.len() >> 7) as u8]);
        } else {
            names.push(text.len() as u8);
        }
        names.extend(text.bytes());
    }
    let offsets = (0..SYMBOLS).map(|n| if n == 0 { 0 } else { -(16 * (n as i32 - 1)) - 1 });
    let mut addresses: Vec<u8> = offsets.flat_map(i32::to_le_bytes).collect();
    pad(&mut addresses);
    addresses.extend(BASE.to_le_bytes());
    let (mut texts, mut places) = (Vec::new(), Vec::new());
    for token in 0..=255u8 {
        places.extend((texts.len() as u16).to_le_bytes());
        texts.extend(Some(token).filter(u8::is_ascii_graphic));
        texts.push(0);
    }
    let mut all = vec![0xcc; 64];
    if layout != Layout::Late {
        all.extend(&addresses);
    }
    all.extend((SYMBOLS as u64).to_le_bytes());
    for part in [names, markers] {
        all.extend(part);
        pad(&mut all);
    }
    if layout == Layout::EarlyWithOrder {
        all.extend((0..SYMBOLS).flat_map(|n| [0, (n >> 8) as u8, n as u8]));
        pad(&mut all);
    }
    for part in [texts, places] {
        all.extend(part);
        pad(&mut all);
    }
    if layout == Layout::Late {
        all.extend(&addresses);
    }
    all
}

fn memory(bytes: &[u8]) -> PhysicalMap {
    let map = PhysicalMap::new(GuestRam::new(4 << 20).unwrap()).unwrap();
    map.write(Gpa(AT), bytes).unwrap();
    map
}

/// Guest memory with such a kernel's tables.
pub(crate) fn kernel() -> PhysicalMap {
    memory(&tables(Layout::Late))
}

#[test]
fn every_layout_is_read() {
    for layout in [Layout::Early, Layout::EarlyWithOrder, Layout::Late] {
        let table = read(&memory(&tables(layout)), Gpa(0x10_0000)).expect("it is there");
        assert_eq!(table.len(), SYMBOLS - 1, "a processor's own data is nowhere");
        for n in [0, 1, 5, 6, 254, 255, 256, 600, SYMBOLS - 2] {
            assert_eq!(table.find(&name(n)), Some(Gva(BASE + 16 * n as u64)), "{n}");
        }
        assert_eq!(table.at(Gva(BASE + 0x123)).unwrap().to_string(), "function_18.part.0+0x3");
    }
}

#[test]
fn a_table_that_lies_across_what_is_read_at_a_time_is_found() {
    let bytes = tables(Layout::Late);
    let digits = bytes.windows(DIGITS.len()).position(|window| window == DIGITS).unwrap() as u64;
    for into in [0, 1, DIGITS.len() as u64 - 1] {
        let map = PhysicalMap::new(GuestRam::new(4 << 20).unwrap()).unwrap();
        map.write(Gpa((CHUNK - digits - into) & !7), &bytes).unwrap();
        assert!(read(&map, Gpa(0)).is_some());
    }
}

#[test]
fn what_was_tampered_with_is_no_table_or_another_one() {
    let bytes = tables(Layout::EarlyWithOrder);
    let mut found = 0;
    for at in (0..bytes.len()).step_by(97) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0xff;
        // It is not to panic, nor to take more names than there are.
        found += usize::from(read(&memory(&bytes), Gpa(0)).is_some_and(|table| table.len() <= SYMBOLS));
    }
    assert!(found > 0 && found < bytes.len() / 97, "{found}");
}

#[test]
fn memory_full_of_digits_is_looked_at_in_bounded_time() {
    let map = memory(&DIGITS.repeat(100_000));
    assert!(read(&map, Gpa(0)).is_none());
    assert!(read(&map, Gpa(u64::MAX)).is_none());
}
