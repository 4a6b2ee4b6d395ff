//! What is cached, where, and until when; `random` holds the TLB against the walker.

use super::*;
use crate::mmu::{Invpcid, MemoryFault, Mmu};
use crate::testing::*;
use std::sync::Arc;

#[test]
fn the_layout_is_what_translated_code_expects() {
    assert_eq!((size_of::<Entry>(), align_of::<Entry>()), (32, 32));
    assert_eq!((Entry::READ, Entry::WRITE, Entry::EXECUTE, Entry::ADDEND), (0, 8, 16, 24));
    assert_eq!((std::mem::offset_of!(View, base), std::mem::offset_of!(View, mask)), (0, 8));
    assert_eq!((Mmu::VIEW, Mmu::FETCH_STAMP), (0, 16));
}

/// What translated code does at a site that remembers the offset of an entry: the host address, if the check passes.
fn inline_check(mmu: &Mmu, site: u32, ea: u64, size: u64, write: bool) -> Option<Hva> {
    let field = |at: usize| {
        // SAFETY: a field of an entry within the room that every table has.
        unsafe { mmu.view().base.byte_add(site as usize + at).cast::<u64>().read() }
    };
    let comparator = field(if write { Entry::WRITE } else { Entry::READ });
    (ea.wrapping_sub(comparator) <= 4096 - size).then(|| Hva(ea.wrapping_add(field(Entry::ADDEND))))
}

fn read(mmu: &mut Mmu, gva: u64) -> Result<u64, MemoryFault> {
    mmu.read(BY, Space::Kernel, Gva(gva))
}

#[test]
fn what_is_cached_stays_until_it_is_invalidated() {
    let (map, _) = map();
    let mut tables = Builder::new(&map);
    let slot = tables.page(0x40_0000, 0x20_0000, W);
    poke(&map, 0x20_0000, 1);
    poke(&map, 0x30_0000, 2);
    let mut mmu = tables.mmu();
    assert_eq!(read(&mut mmu, 0x40_0000), Ok(1));
    assert_eq!(mmu.read_fast::<u64>(Gva(0x40_0000)), Some(1));
    poke(&map, slot, 0x30_0000 | P);
    assert_eq!(read(&mut mmu, 0x40_0000), Ok(1));
    mmu.invlpg(Gva(0x40_0fff));
    assert_eq!(mmu.read_fast::<u64>(Gva(0x40_0000)), None);
    assert_eq!(read(&mut mmu, 0x40_0000), Ok(2));
    assert_eq!(mmu.stats().walks, 2);
}

#[test]
fn invlpg_of_any_address_drops_a_whole_large_page() {
    for (shift, gva) in [(21, 0xffff_8000_0020_0000), (30, 0xffff_8000_4000_0000)] {
        let (map, _) = map();
        let mut tables = Builder::new(&map);
        let slot = tables.slot(gva, shift);
        poke(&map, slot, P | PS | G);
        tables.page(gva - 0x1000, 0x5000, G);
        let mut mmu = tables.mmu();
        // More pages than a new table has entries, so that victims and growth have their part.
        for page in 0..512 {
            assert!(read(&mut mmu, gva + page * 0x1000).is_ok());
        }
        assert!(read(&mut mmu, gva - 8).is_ok());
        poke(&map, slot, 0);
        let walks = mmu.stats().walks;
        assert!(read(&mut mmu, gva + 5 * 0x1000).is_ok(), "still cached");
        assert_eq!(mmu.stats().walks, walks);
        mmu.invlpg(Gva(gva + 300 * 0x1000 + 77));
        for page in 0..512 {
            assert_eq!(mmu.read_fast::<u64>(Gva(gva + page * 0x1000)), None, "page {page}");
            assert!(read(&mut mmu, gva + page * 0x1000).is_err(), "page {page}");
        }
        let walks = mmu.stats().walks;
        assert!(read(&mut mmu, gva - 8).is_ok(), "the page before it is another");
        assert_eq!(mmu.stats().walks, walks);
    }
}

#[test]
fn a_cr3_write_without_pcid_keeps_global_pages_only() {
    let (map, _) = map();
    let mut tables = Builder::new(&map);
    tables.page(0x40_0000, 0x20_0000, 0);
    tables.page(0xffff_8000_0000_0000, 0x30_0000, G);
    let mut mmu = tables.mmu();
    for gva in [0x40_0000, 0xffff_8000_0000_0000] {
        read(&mut mmu, gva).expect("mapped");
    }
    assert_eq!(mmu.stats().walks, 2);
    mmu.load_cr3(tables.root, false).expect("no PAE");
    for gva in [0x40_0000, 0xffff_8000_0000_0000] {
        read(&mut mmu, gva).expect("mapped");
    }
    assert_eq!((mmu.stats().walks, mmu.stats().global_hits), (3, 1));
    // INVLPG takes the global page from the store as well; a change of CR4.PGE takes them all.
    mmu.invlpg(Gva(0xffff_8000_0000_0000));
    read(&mut mmu, 0xffff_8000_0000_0000).expect("mapped");
    assert_eq!(mmu.stats().walks, 4);
    let mut registers = *mmu.registers();
    registers.cr4.set_global_pages(false);
    mmu.set_registers(registers);
    registers.cr4.set_global_pages(true);
    mmu.set_registers(registers);
    read(&mut mmu, 0xffff_8000_0000_0000).expect("mapped");
    assert_eq!(mmu.stats().walks, 5);
}

#[test]
fn pcids_keep_their_entries_when_asked() {
    let (map, _) = map();
    let mut tables = Builder::new(&map);
    tables.page(0x40_0000, 0x20_0000, 0);
    let root = tables.root;
    let mut mmu = tables.mmu();
    let mut registers = *mmu.registers();
    registers.cr4.set_pcid(true);
    mmu.set_registers(registers);
    let walks = |mmu: &mut Mmu| {
        let before = mmu.stats().walks;
        read(mmu, 0x40_0000).expect("mapped");
        mmu.stats().walks - before
    };
    for pcid in 1..=4 {
        mmu.load_cr3(root | pcid, false).expect("no PAE");
        assert_eq!(walks(&mut mmu), 1);
    }
    for pcid in 1..=4 {
        mmu.load_cr3(root | pcid, true).expect("no PAE");
        assert_eq!(walks(&mut mmu), 0, "pcid {pcid} was kept");
    }
    mmu.load_cr3(root | 1, false).expect("no PAE");
    assert_eq!(walks(&mut mmu), 1);
    mmu.invpcid(Invpcid::SingleContext { pcid: 2 });
    mmu.invpcid(Invpcid::Address { pcid: 3, gva: Gva(0x40_0123) });
    for (pcid, expected) in [(1, 0), (2, 1), (3, 1), (4, 0)] {
        mmu.load_cr3(root | pcid, true).expect("no PAE");
        assert_eq!(walks(&mut mmu), expected, "pcid {pcid}");
    }
    // More PCIDs than there are tables: the oldest is forgotten, never mixed up.
    for pcid in 10..30 {
        mmu.load_cr3(root | pcid, true).expect("no PAE");
        assert_eq!(walks(&mut mmu), 1);
    }
    mmu.load_cr3(root | 1, true).expect("no PAE");
    assert_eq!(walks(&mut mmu), 1);
}

#[test]
fn tables_grow_with_use_and_shrink_without() {
    let (map, _) = map();
    let mut tables = Builder::new(&map);
    for page in 0..4096 {
        tables.page(0x4000_0000 + page * 0x1000, 0x10_0000 + page % 16 * 0x1000, 0);
    }
    let mut mmu = tables.mmu();
    for page in 0..4096 {
        read(&mut mmu, 0x4000_0000 + page * 0x1000).expect("mapped");
    }
    assert!(mmu.stats().grown >= 1, "{:?}", mmu.stats());
    let before = mmu.stats().walks;
    for page in 0..512 {
        read(&mut mmu, 0x4000_0000 + (4095 - page) * 0x1000).expect("mapped");
    }
    assert_eq!(mmu.stats().walks, before, "a grown table holds them all");
    let mut tlb = Tlb::new();
    let full = |page: u64| Full {
        gva: Gva(page * 0x1000),
        gpa: Gpa(0),
        memory: Page::Io,
        rights: Rights::default(),
        shift: 12,
        record: false,
        watch: Interest::default(),
        touched: Interest::ALL,
    };
    let fill = |tlb: &mut Tlb, page: u64| {
        tlb.fill(Space::User, Entry { read: Comparator::new(Gva(page * 0x1000), 0), ..Entry::EMPTY }, full(page));
    };
    (0..20000).for_each(|page| fill(&mut tlb, page));
    assert_eq!(tlb.size(Space::User), 16384);
    for _ in 0..400 {
        tlb.flush_all();
        fill(&mut tlb, 1);
    }
    assert_eq!(tlb.size(Space::User), 2048);
}

#[test]
fn a_site_is_where_a_plain_access_finds_its_entry() {
    let (map, _) = map();
    let mut tables = Builder::new(&map);
    tables.page(0x40_0000, 0x20_0000, W);
    tables.page(0x40_1000, DEVICE.0, W);
    let mut mmu = tables.mmu();
    let hva = map.hva_of(Gpa(0x20_0000)).expect("ram");
    assert_eq!(mmu.site(Gva(0x40_0000), 1, false), None, "not cached");
    read(&mut mmu, 0x40_0000).expect("mapped");
    read(&mut mmu, 0x40_1000).expect("mapped");
    let site = mmu.site(Gva(0x40_0ff8), 8, false).expect("cached");
    assert_eq!(mmu.site(Gva(0x40_0ff8), 8, true), None, "not dirty yet");
    mmu.write(BY, Space::Kernel, Gva(0x40_0000), 1u8).expect("writable");
    assert_eq!(mmu.site(Gva(0x40_0000), 4096, true), Some(site));
    assert_eq!((mmu.site(Gva(0x40_0ff9), 8, false), mmu.site(Gva(0x40_1000), 1, false)), (None, None));
    for write in [false, true] {
        assert_eq!(inline_check(&mmu, site, 0x40_0ff8, 8, write), Some(hva.wrapping_add(0xff8)));
        for (ea, size) in [(0x40_0ff9, 8), (0x3f_ffff, 1), (0x40_1000, 1), (0x40_0000 ^ 1 << 47, 1)] {
            assert_eq!(inline_check(&mmu, site, ea, size, write), None, "{ea:x}");
        }
    }
    // In no other table, whatever its size, and not after a flush.
    mmu.set_space(Space::User);
    for site in (0..View::RESERVED as u32).step_by(32) {
        assert_eq!(inline_check(&mmu, site, 0x40_0000, 1, false), None);
    }
    mmu.set_space(Space::Kernel);
    mmu.flush_all();
    assert_eq!(inline_check(&mmu, site, 0x40_0000, 1, false), None);
}

#[test]
fn a_table_that_grows_and_shrinks_stays_where_it_is() {
    let (map, _) = map();
    let mut mmu = Mmu::new(Arc::clone(&map), 0);
    let base = mmu.view().base;
    let mut sites = Vec::new();
    for page in 0..8192 {
        read(&mut mmu, page * 0x1000).expect("ram");
        sites.extend(mmu.site(Gva(page * 0x1000), 1, false));
    }
    assert!(mmu.view().mask >= 4095 * 32, "{:?}", mmu.view());
    assert_eq!(sites.len(), 8192);
    for page in 0..8192 {
        let hit = inline_check(&mmu, (page as u32 * 32) & mmu.view().mask as u32, page * 0x1000, 1, false);
        assert!(hit.is_none() || hit == map.hva_of(Gpa(page * 0x1000)));
    }
    for _ in 0..200 {
        mmu.flush_all();
        read(&mut mmu, 0x5000).expect("ram");
    }
    assert_eq!((mmu.view().base, mmu.view().mask), (base, 2047 * 32));
    // Sites that remember entries which the table no longer has find nothing in them.
    for (page, site) in (0..).zip(sites) {
        let expected = if page == 5 { map.hva_of(Gpa(0x5000)) } else { None };
        assert_eq!(inline_check(&mmu, site, page * 0x1000, 1, false), expected, "{page}");
    }
}

#[test]
fn a_page_fault_drops_what_was_cached_of_its_page() {
    let (map, _) = map();
    let mut tables = Builder::new(&map);
    let slot = tables.page(0x40_0000, 0x20_0000, G);
    tables.page(0x40_1000, 0x21_0000, 0);
    poke(&map, 0x30_0000, 7);
    let mut mmu = tables.mmu();
    for page in [0x40_0000, 0x40_1000] {
        read(&mut mmu, page).expect("mapped");
    }
    // As for copy on write, but without INVLPG.
    assert!(mmu.write(BY, Space::Kernel, Gva(0x40_0000), 1u8).is_err());
    poke(&map, slot, 0x30_0000 | P | W | G);
    assert_eq!(read(&mut mmu, 0x40_0000), Ok(7));
    let walks = mmu.stats().walks;
    read(&mut mmu, 0x40_1000).expect("mapped");
    assert_eq!(mmu.stats().walks, walks, "its neighbour is still cached");
}

#[test]
fn two_pages_in_one_slot_take_turns_without_walks() {
    let (map, _) = map();
    let mut tables = Builder::new(&map);
    let far = 16384 * 4096;
    for i in 0..4 {
        tables.page(0x40_0000 + i * far, 0x20_0000 + i * 0x1000, W);
        poke(&map, 0x20_0000 + i * 0x1000, i);
    }
    let mut mmu = tables.mmu();
    for _ in 0..10 {
        for i in 0..4 {
            assert_eq!(read(&mut mmu, 0x40_0000 + i * far), Ok(i));
        }
    }
    assert_eq!(mmu.stats().walks, 4);
    // A store needs a walk for the dirty bit; the read-only entry among the victims must not come back after it.
    for i in 0..4 {
        mmu.write(BY, Space::Kernel, Gva(0x40_0000 + i * far), i + 10).expect("writable");
    }
    for _ in 0..3 {
        for i in 0..4 {
            mmu.write(BY, Space::Kernel, Gva(0x40_0000 + i * far), i + 20).expect("writable");
        }
    }
    assert_eq!(mmu.stats().walks, 8);
}

#[test]
fn the_a20_gate_needs_a_flush_and_then_holds() {
    let (map, _) = map();
    let mut mmu = Mmu::new(Arc::clone(&map), 0);
    poke(&map, 0x1234, 1);
    poke(&map, 0x10_1234, 2);
    assert_eq!(read(&mut mmu, 0x10_1234), Ok(2));
    assert!(map.set_a20(false));
    mmu.flush_all();
    assert_eq!(read(&mut mmu, 0x10_1234), Ok(1));
    assert_eq!(mmu.translate(Gva(0x10_1234)), Some(Gpa(0x1234)));
}

mod random;

#[test]
fn what_is_cached_of_a_page_can_be_seen() {
    let (map, _) = map();
    let mut tables = Builder::new(&map);
    let conflict = 0x40_0000 + (2048 << 12);
    tables.page(0x40_0000, 0x20_0000, W | G);
    tables.page(conflict, 0x30_0000, 0);
    let mut mmu = tables.mmu();
    assert_eq!(mmu.cached(Gva(0x40_0000)), []);
    assert!(read(&mut mmu, 0x40_0123).is_ok());
    let places = |mmu: &Mmu, gva| mmu.cached(Gva(gva)).iter().map(|cached| cached.place).collect::<Vec<_>>();
    let all = mmu.cached(Gva(0x40_0fff));
    assert_eq!(places(&mmu, 0x40_0fff), [Place::Main(Space::Kernel), Place::Global]);
    assert_eq!(all[0].flags, [Some(0), None, Some(0)], "not yet dirty");
    assert_eq!((all[0].gpa, all[0].shift, all[1].flags), (Gpa(0x20_0000), 12, [None; 3]));
    assert_eq!(map.hva_of(Gpa(0x20_0000)), Some(Hva(all[0].addend.wrapping_add(0x40_0000))));
    // The same slot.
    assert!(read(&mut mmu, conflict).is_ok());
    assert_eq!(places(&mmu, 0x40_0000), [Place::Victim(Space::Kernel), Place::Global]);
    mmu.invlpg(Gva(0x40_0000));
    assert_eq!((places(&mmu, 0x40_0000), places(&mmu, conflict)), (vec![], vec![Place::Main(Space::Kernel)]));
}
