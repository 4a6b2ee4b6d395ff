//! Runs for string instructions.

use super::*;

#[test]
fn runs_end_with_their_page_and_copy_as_rep_movs() {
    let (tables, mut mmu, _) = machine();
    let mut run = |offset: u64| mmu.run(BY, Gva(HERE + offset), true).expect("mapped").expect("plain");
    let all = run(0);
    assert_eq!((all.len(), run(0xffd).len(), run(0xffd).elements::<u16>()), (4096, 3, 1));
    assert!(!all.is_empty());
    all.fill(0x2211u16, 3);
    assert_eq!(peek(&tables.map, 0x20_0000), 0x2211_2211_2211);
    // Overlapping by one byte: the first byte is replicated.
    all.copy_to(&run(1), 5);
    assert_eq!(peek(&tables.map, 0x20_0000), 0x1111_1111_1111);
    // The same distance in elements of four: the manual's element by element, not byte by byte.
    tables.map.write(Gpa(0x20_0000), &[1, 2, 3, 4, 5, 6, 7, 8, 9]).expect("ram");
    all.copy_elements_to::<u32>(&run(1), 2);
    assert_eq!(peek(&tables.map, 0x20_0000).to_le_bytes(), [1, 1, 2, 3, 4, 4, 6, 7]);
    // Counts beyond the run are cut.
    all.fill(7u8, usize::MAX);
    run(0xffe).fill(8u64, 5);
    all.copy_to(&run(0xfff), 100);
    assert_eq!(peek(&tables.map, 0x20_0ff8), 0x0707_0707_0707_0707);
    assert_eq!(peek(&tables.map, 0x20_1000), 0);
}

#[test]
fn runs_that_may_not_be_written_are_not() {
    let (tables, mut mmu, _) = machine();
    let read_only = mmu.run(BY, Gva(HERE), false).expect("mapped").expect("plain");
    let source = mmu.run(BY, Gva(HERE + 0x1000), true).expect("mapped").expect("plain");
    source.fill(1u8, 10);
    read_only.fill(9u8, 10);
    source.copy_to(&read_only, 10);
    assert_eq!(peek(&tables.map, 0x20_0000), 0);
}

#[test]
fn runs_find_as_scas_and_cmps() {
    let (tables, mut mmu, _) = machine();
    tables.map.write(Gpa(0x20_0000), b"aaab").expect("ram");
    tables.map.write(Gpa(0x30_0000), b"aaxb").expect("ram");
    let a = mmu.run(BY, Gva(HERE), false).expect("mapped").expect("plain");
    let b = mmu.run(BY, Gva(HERE + 0x1000), false).expect("mapped").expect("plain");
    assert_eq!(a.find(b'b', true, 10), 3);
    assert_eq!(a.find(b'a', false, 10), 3);
    assert_eq!(a.find(b'z', true, 10), 10);
    assert_eq!(a.find(0xffu8, true, usize::MAX), 4096);
    assert_eq!(a.find_pair::<u8>(&b, false, 4), 2);
    assert_eq!(a.find_pair::<u8>(&b, true, 4), 0);
    assert_eq!(a.find_pair::<u16>(&b, false, 4), 1);
    assert_eq!((a.get::<u32>(0), a.get::<u8>(4096)), (Some(u32::from_le_bytes(*b"aaab")), None));
}
