//! Runs of pages against page tables made for them, and against the walker.

use super::*;
use crate::mmu::PagingRegisters;
use crate::testing::{A, D, G, NX, P, PS, U, W};
use crate::walk::{Inspection, Tables};
use std::collections::BTreeMap;
use x86::{Cr0, Cr4, Efer};

const ROOT: u64 = 0x1000;
const ALL: (Gva, Gva) = (Gva(0), Gva(u64::MAX));

/// Pages of entries; what is not there is all zeros.
#[derive(Default)]
struct Memory(BTreeMap<u64, u64>);

impl Memory {
    fn put(&mut self, table: u64, index: u64, entry: u64) {
        self.0.insert(table + 8 * index, entry);
    }

    fn fill(&mut self, table: u64, entry: impl Fn(u64) -> u64) {
        (0..512).for_each(|i| self.put(table, i, entry(i)));
    }
}

impl ReadTable for &Memory {
    fn read_table(&mut self, gpa: Gpa, page: &mut [u8; 4096]) {
        let (words, _) = page.as_chunks_mut::<8>();
        for (i, word) in (0..).zip(words) {
            *word = self.0.get(&(gpa.0 + 8 * i)).copied().unwrap_or(0).to_le_bytes();
        }
    }
}

impl Tables for &Memory {
    fn read(&mut self, gpa: Gpa, _size: u64) -> u64 {
        self.0.get(&gpa.0).copied().unwrap_or(0)
    }

    fn replace(&mut self, _gpa: Gpa, _size: u64, _old: u64, _new: u64) -> bool {
        unreachable!("nothing is written by looking")
    }
}

fn paging(la57: bool) -> Paging {
    let mut paging = Paging::new(40);
    paging.set(PagingRegisters {
        cr0: Cr0::new().with_protection(true).with_paging(true).with_write_protect(true),
        cr3: ROOT,
        cr4: Cr4::new().with_physical_address_extension(true).with_global_pages(true).with_la57(la57),
        efer: Efer::new().with_long_mode_active(true).with_no_execute(true),
        ..PagingRegisters::default()
    });
    paging
}

fn spans(memory: &Memory, alike: Alike, (first, last): (Gva, Gva), most: usize) -> Spans {
    paging(false).spans(memory, alike, first, last, most)
}

/// Start, length and physical address of each span.
fn plain(spans: &Spans) -> Vec<(u64, u64, u64)> {
    spans.spans.iter().map(|span| (span.gva.0, span.len, span.gpa.0)).collect()
}

#[test]
fn pages_that_are_alike_are_one_run() {
    let mut memory = Memory::default();
    memory.put(ROOT, 0, 0x2000 | P | W | U);
    memory.put(ROOT, 511, 0x2000 | P | W);
    memory.put(0x2000, 0, 0x3000 | P | W | U);
    memory.put(0x3000, 0, 0x4000 | P | W | U);
    memory.put(0x3000, 1, 0x20_0000 | P | W | U | PS | A | D);
    for i in 0..4 {
        memory.put(0x4000, i, (0x10_0000 + 0x1000 * i) | P | W | U);
    }
    memory.put(0x4000, 4, 0x50_0000 | P | W | U);
    memory.put(0x4000, 5, 0x51_0000 | P | U);
    memory.put(0x4000, 6, 0x52_0000 | P | W | U | NX | G);
    memory.put(0x4000, 7, (1 << 45) | P | W | U);

    let rights = spans(&memory, Alike::Rights, ALL, 100);
    let high = 0xffff_ff80_0000_0000;
    let want = [(0, 0x5000), (0x5000, 0x1000), (0x6000, 0x1000), (0x20_0000, 0x20_0000)];
    let want: Vec<_> = want.into_iter().chain(want.map(|(gva, len)| (high + gva, len))).collect();
    let got: Vec<_> = plain(&rights).into_iter().map(|(gva, len, _)| (gva, len)).collect();
    assert_eq!(got, want, "a page with a reserved bit is not mapped");
    assert_eq!(rights.rest, None);
    assert!(rights.spans[0].rights.user && !rights.spans[4].rights.user);

    let pages = spans(&memory, Alike::Pages, (Gva(0), Gva(0x7fff_ffff_ffff)), 100);
    let want = [
        (0, 0x4000, 0x10_0000),
        (0x4000, 0x1000, 0x50_0000),
        (0x5000, 0x1000, 0x51_0000),
        (0x6000, 0x1000, 0x52_0000),
        (0x20_0000, 0x20_0000, 0x20_0000),
    ];
    assert_eq!(plain(&pages), want);
    assert_eq!((pages.spans[3].flags, pages.spans[4].shift), (P | W | U | NX | G, 21));
}

#[test]
fn a_range_cuts_what_is_found() {
    let mut memory = Memory::default();
    memory.put(ROOT, 256, 0x2000 | P | W);
    memory.put(0x2000, 0, 0x4000_0000 | P | W | PS);
    let base = 0xffff_8000_0000_0000;
    let range = (Gva(base + 0x1000), Gva(base + 0x2fff));
    assert_eq!(plain(&spans(&memory, Alike::Pages, range, 9)), [(base + 0x1000, 0x2000, 0x4000_1000)]);
    assert_eq!(plain(&spans(&memory, Alike::Pages, (Gva(0), Gva(base - 1)), 9)), []);
    assert_eq!(plain(&spans(&memory, Alike::Pages, (Gva(base + (1 << 30)), Gva(u64::MAX)), 9)), []);
}

/// Tables that contain themselves map 2^36 pages with one page.
#[test]
fn tables_within_themselves_take_no_time() {
    let mut memory = Memory::default();
    memory.fill(ROOT, |_| ROOT | P | W | U);
    let all = spans(&memory, Alike::Rights, ALL, 10);
    assert_eq!(plain(&all), [(0, 1 << 47, ROOT), (0xffff_8000_0000_0000, 1 << 47, ROOT)]);
    let pages = spans(&memory, Alike::Pages, ALL, 1000);
    assert_eq!((pages.spans.len(), pages.rest), (1000, Some(Gva(1000 << 12))));

    memory.fill(ROOT, |i| if i % 2 == 0 { ROOT | P | W } else { 0 });
    // Every other page of every other table: 256 a table.
    let some = spans(&memory, Alike::Rights, ALL, 1000);
    let rest = Gva((1000 / 256 * 2) << 21 | (1000 % 256 * 2) << 12);
    assert_eq!((some.spans.len(), some.rest), (1000, Some(rest)));
}

#[test]
fn empty_tables_by_the_million_are_passed_over() {
    let mut memory = Memory::default();
    memory.fill(ROOT, |_| 0x2000 | P);
    memory.fill(0x2000, |_| 0x3000 | P);
    memory.fill(0x3000, |_| 0x4000 | P);
    assert_eq!(spans(&memory, Alike::Pages, ALL, 10), Spans::default());
    assert_eq!(paging(true).spans(&memory, Alike::Pages, ALL.0, ALL.1, 10), Spans::default());
}

#[test]
fn each_page_is_where_the_walker_finds_it() {
    let mut memory = Memory::default();
    let mut random = 0x1234_5678_9abc_def1_u64;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let tables = [ROOT, 0x2000, 0x3000, 0x4000, 0x5000, 0x6000];
    for table in tables {
        for _ in 0..60 {
            let frame = if next(3) == 0 { next(1 << 10) << 30 } else { tables[next(6) as usize] };
            let bits = P | next(8) << 1 | if next(4) == 0 { PS } else { 0 } | if next(4) == 0 { NX } else { 0 };
            memory.put(table, next(512), (frame | bits) & !(0xff << 40));
        }
    }
    let paging = paging(false);
    for alike in [Alike::Rights, Alike::Pages] {
        let found = paging.spans(&memory, alike, ALL.0, ALL.1, 3000);
        assert!(found.spans.len() > 100, "something is mapped");
        for span in &found.spans {
            for offset in [0, span.len / 2, span.len - 1] {
                let Inspection { translation, .. } = paging.inspect(&mut &memory, span.gva.wrapping_add(offset));
                let translation = translation.expect("it is mapped");
                let rights = |rights: Rights| (rights.user, rights.writable, rights.no_execute);
                assert_eq!(rights(translation.rights), rights(span.rights));
                if alike == Alike::Pages {
                    assert_eq!(translation.gpa, span.gpa.wrapping_add(offset));
                }
            }
        }
        // Nothing is mapped between two spans, and right behind one nothing that is like it.
        for pair in found.spans.windows(2) {
            let end = pair[0].gva.0 + pair[0].len;
            assert!(end <= pair[1].gva.0);
            let between = paging.inspect(&mut &memory, Gva(end)).translation;
            assert_eq!(between.is_some(), end == pair[1].gva.0, "{end:x}");
        }
    }
}
