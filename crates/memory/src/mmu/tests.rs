//! What the slow path does: page crossings, MMIO, ROM, code, watching, runs.

use super::*;
use crate::observe::{Access, AccessKind, Interest};
use crate::testing::*;

/// A machine with two pages at [`HERE`] that are not adjacent in physical memory, a device and a ROM after them.
fn machine() -> (Builder, Mmu, Arc<Device>) {
    let (map, device) = map();
    let mut tables = Builder::new(&map);
    tables.page(HERE, 0x20_0000, W | U);
    tables.page(HERE + 0x1000, 0x30_0000, W | U);
    tables.page(HERE + 0x2000, DEVICE.0, W | U);
    tables.page(HERE + 0x3000, ROM.0, W | U);
    let mmu = tables.mmu();
    (tables, mmu, device)
}

const HERE: u64 = 0x7fff_0000_0000;
const K: Space = Space::Kernel;

fn fault(gva: u64, code: u16) -> MemoryFault {
    MemoryFault::Page { gva: Gva(gva), code: PageFaultCode::from_bits(code) }
}

fn round_trip<T: Scalar + fmt::Debug>(mmu: &mut Mmu, pattern: u128) {
    let value = T::from_wide(pattern);
    for offset in (0..40).chain(0xff0 - 16..0x1010) {
        let gva = Gva(HERE + offset);
        mmu.write(BY, K, gva, value).expect("writable");
        assert_eq!(mmu.read::<T>(BY, K, gva), Ok(value), "{offset:x}");
        let inside = offset / 4096 == (offset + T::SIZE - 1) / 4096;
        assert_eq!(mmu.read_fast::<T>(gva), inside.then_some(value), "{offset:x}");
        assert_eq!(mmu.write_fast(gva, value), inside, "{offset:x}");
        let mut bytes = [0; 16];
        mmu.read_bytes(BY, K, gva, &mut bytes[..size_of::<T>()]).expect("readable");
        assert_eq!(T::from_wide(u128::from_le_bytes(bytes)), value);
        for locked in [false, true] {
            let old = mmu.modify(gva, locked, |old: T| (T::from_wide(!old.to_wide()), old));
            assert_eq!(old, Ok(value));
            assert_eq!(mmu.read::<T>(BY, K, gva), Ok(T::from_wide(!pattern)));
            mmu.write(BY, K, gva, value).expect("writable");
        }
    }
}

#[test]
fn scalars_of_all_sizes_at_all_alignments() {
    let (_, mut mmu, _) = machine();
    let pattern = 0xfedc_ba98_7654_3210_0123_4567_89ab_cdef;
    round_trip::<u8>(&mut mmu, pattern);
    round_trip::<u16>(&mut mmu, pattern);
    round_trip::<u32>(&mut mmu, pattern);
    round_trip::<u64>(&mut mmu, pattern);
    round_trip::<u128>(&mut mmu, pattern);
}

#[test]
fn a_crossing_write_that_faults_changes_nothing() {
    let (tables, mut mmu, _) = machine();
    mmu.set_space(Space::User);
    for start in [HERE - 4, HERE + 0x4000 - 4] {
        mmu.write(BY, K, Gva(HERE + 0xff8), 0x1111_1111_1111_1111u64).expect("writable");
        let missing = if start < HERE { start } else { start + 4 };
        let expected = Err(fault(missing, 2));
        assert_eq!(mmu.write(BY, K, Gva(start), u64::MAX), expected);
        assert_eq!(mmu.write_bytes(BY, K, Gva(start), &[0xff; 64]), expected);
        assert_eq!(mmu.modify(Gva(start), true, |_: u64| (0, ())), Err(fault(missing, 6)));
        assert_eq!(mmu.probe(BY, K, Gva(start), 8, true), expected);
        assert_eq!(mmu.read::<u64>(BY, K, Gva(start)), Err(fault(missing, 0)));
    }
    assert_eq!(peek(&tables.map, 0x20_0000), 0);
    assert_eq!(peek(&tables.map, 0x30_0ff8), 0);
    assert!(mmu.probe(BY, K, Gva(HERE), 0x4000, true).is_ok());
    assert_eq!(mmu.probe(BY, K, Gva(HERE), 0x4001, false), Err(fault(HERE + 0x4000, 0)));
    assert!(mmu.probe(BY, K, Gva(HERE + 0x5000), 0, true).is_ok(), "nothing is always allowed");
}

#[test]
fn long_byte_runs_cross_many_pages_or_none() {
    let (map, _) = map();
    let mut tables = Builder::new(&map);
    for page in 0..4 {
        tables.page(HERE + page * 0x1000, 0x20_0000 + (3 - page) * 0x1000, W);
    }
    let mut mmu = tables.mmu();
    let bytes: Vec<u8> = (0..0x2fff).map(|i| (i % 251) as u8).collect();
    mmu.write_bytes(BY, K, Gva(HERE + 0x123), &bytes).expect("writable");
    let mut back = vec![0; bytes.len()];
    mmu.read_bytes(BY, K, Gva(HERE + 0x123), &mut back).expect("readable");
    assert_eq!(bytes, back);
    assert!(mmu.write_bytes(BY, K, Gva(HERE + 0x1800), &[0; 0x2fff]).is_err());
    mmu.read_bytes(BY, K, Gva(HERE + 0x123), &mut back).expect("readable");
    assert_eq!(bytes, back);
    mmu.read_bytes(BY, K, Gva(HERE), &mut []).expect("nothing to do");
}

#[test]
fn canonical_form_comes_before_pages() {
    let (_, mut mmu, _) = machine();
    let edge = 0x7fff_ffff_fffc;
    assert_eq!(mmu.read::<u64>(BY, K, Gva(edge)), Err(MemoryFault::NonCanonical));
    assert_eq!(mmu.read::<u32>(BY, K, Gva(edge)), Err(fault(edge, 0)));
    assert_eq!(mmu.read::<u8>(BY, K, Gva(0x8000_0000_0000)), Err(MemoryFault::NonCanonical));
    assert_eq!(mmu.write(BY, K, Gva(1 << 63), 0u8), Err(MemoryFault::NonCanonical));
    assert_eq!(mmu.fetch_page(BY, Gva(1 << 63)), Err(MemoryFault::NonCanonical));
    assert_eq!(mmu.translate(Gva(1 << 63)), None);
    assert_eq!(mmu.virtual_bits(), 48);
}

#[test]
fn outside_long_mode_addresses_wrap_at_4_gib() {
    let (map, _) = map();
    let mut mmu = Mmu::new(Arc::clone(&map), 0);
    poke(&map, 0, 0x1122_3344);
    assert_eq!(mmu.read::<u32>(BY, K, Gva(0xffff_fffe)), Ok(0x3344_5a5a));
    assert_eq!(mmu.read::<u32>(BY, K, Gva(0x1_0000_0000)), Ok(0x1122_3344));
}

#[test]
fn devices_see_accesses_in_their_own_sizes() {
    let (_, mut mmu, device) = machine();
    let gva = Gva(HERE + 0x2010);
    assert_eq!(mmu.read::<u32>(BY, K, gva), Ok(0x4433_2211));
    assert_eq!(mmu.read_fast::<u32>(gva), None, "never by the fast path");
    mmu.write(BY, K, gva, 0xabcdu16).expect("writable");
    assert!(!mmu.write_fast(gva, 0u16));
    assert_eq!(mmu.modify(gva, true, |old: u8| (old + 1, old)), Ok(0x11));
    assert_eq!(
        device.take(),
        [(false, 0x10, 4, 0), (true, 0x10, 2, 0xabcd), (false, 0x10, 1, 0), (true, 0x10, 1, 0x12)]
    );
    mmu.read::<u128>(BY, K, gva).expect("readable");
    assert_eq!(device.take(), [(false, 0x10, 8, 0), (false, 0x18, 8, 0)]);
    mmu.read_bytes(BY, K, gva.wrapping_add(1), &mut [0; 10]).expect("readable");
    let sizes: Vec<_> = device.take().iter().map(|(_, offset, size, _)| (*offset, *size)).collect();
    assert_eq!(sizes, [(0x11, 1), (0x12, 2), (0x14, 4), (0x18, 2), (0x1a, 1)]);
    // Half in RAM, half in the device.
    mmu.write(BY, K, Gva(HERE + 0x1ffc), 0x8877_6655_4433_2211u64).expect("writable");
    assert_eq!(device.take(), [(true, 0, 4, 0x8877_6655)]);
    assert_eq!(mmu.run(BY, gva, false).expect("mapped").map(|run| run.len()), None);
    assert_eq!(mmu.fetch_page(BY, gva), Ok(FetchPage::Uncached));
    let mut bytes = [0; 15];
    assert_eq!(mmu.fetch_bytes(BY, Gva(HERE + 0x2ff8), &mut bytes), Ok(8));
    assert_eq!(bytes[..8], 0x8877_6655_4433_2211u64.to_le_bytes());
}

#[test]
fn rom_is_read_and_run_but_not_written() {
    let (_, mut mmu, _) = machine();
    let gva = Gva(HERE + 0x3800);
    mmu.write(BY, K, gva, 0u64).expect("ignored");
    mmu.write_bytes(BY, K, gva, &[0; 32]).expect("ignored");
    assert_eq!(mmu.modify(gva, true, |old: u16| (0, old)), Ok(0x5a5a));
    assert!(!mmu.write_fast(gva, 0u8));
    assert_eq!(mmu.read::<u64>(BY, K, gva), Ok(0x5a5a_5a5a_5a5a_5a5a));
    assert_eq!(mmu.read_fast::<u8>(gva), Some(0x5a));
    assert!(mmu.run(BY, gva, true).expect("mapped").is_none());
    assert_eq!(mmu.run(BY, gva, false).expect("mapped").map(|run| run.len()), Some(0x800));
    let hva = mmu.map().hva_of(ROM).expect("rom");
    assert_eq!(mmu.fetch_page(BY, gva), Ok(FetchPage::Memory(hva)));
    assert_eq!(mmu.fetch_fast(gva), Some(hva));
}

#[test]
fn unassigned_memory_reads_as_ones_even_as_page_tables() {
    let (_, mut mmu, _) = machine();
    let mut registers = *mmu.registers();
    registers.cr0.set_paging(false);
    registers.efer.set_long_mode_active(false);
    mmu.set_registers(registers);
    assert_eq!(mmu.read::<u64>(BY, K, Gva(0xd000_0000)), Ok(u64::MAX));
    mmu.write(BY, K, Gva(0xd000_0000), 0u64).expect("ignored");
    mmu.set_registers(long_mode(0xd000_0000));
    assert_eq!(mmu.read::<u8>(BY, K, Gva(HERE)), Err(fault(HERE, 9)));
}

#[test]
fn page_tables_in_rom_are_walked_without_marks() {
    let (ram, _) = map();
    let mut tables = Builder::new(&ram);
    tables.page(HERE, 0x20_0000, W);
    let mut rom = vec![0; tables.next as usize];
    ram.read(Gpa(0), &mut rom).expect("ram");
    let mut map = PhysicalMap::new(crate::GuestRam::new(32 << 20).expect("ram")).expect("map");
    map.add_rom(Gpa(0), &rom).expect("rom");
    let mut mmu = Mmu::new(Arc::new(map), 0);
    mmu.set_registers(long_mode(0x1000));
    mmu.write(BY, K, Gva(HERE), 5u8).expect("mapped");
    assert_eq!(mmu.read::<u8>(BY, K, Gva(HERE)), Ok(5));
    assert_eq!(mmu.inspect(Gva(HERE)).steps[3].entry & (A | D), 0);
}

// --- code

fn hva(mmu: &Mmu, gpa: u64) -> Hva {
    mmu.map().hva_of(Gpa(gpa)).expect("ram")
}

#[test]
fn only_a_store_that_changes_decoded_code_is_noted() {
    let (tables, mut mmu, _) = machine();
    let gva = Gva(HERE + 0x100);
    mmu.write(BY, K, gva, 0x90u8).expect("writable");
    assert!(mmu.write_fast(gva, 0x90u8));
    let page = hva(&mmu, 0x20_0000);
    mmu.protect_code(page.wrapping_add(0x100), 5);
    assert!(!mmu.write_fast(gva, 0x90u8), "the comparator changed under a cached entry");
    assert_eq!(mmu.read_fast::<u8>(gva), Some(0x90), "reads stay fast");
    assert!(mmu.run(BY, gva, true).expect("mapped").is_none());
    // The same value; another chunk; both ways of writing.
    mmu.write(BY, K, gva, 0x90u8).expect("writable");
    mmu.write(BY, K, Gva(HERE + 0x140), 1u64).expect("writable");
    mmu.write_bytes(BY, K, Gva(HERE + 0xe0), &[7; 32]).expect("writable");
    assert_eq!(mmu.modify(gva, true, |old: u8| (old, old)), Ok(0x90));
    assert!(!mmu.code_modified());
    mmu.write(BY, K, gva, 0xccu8).expect("writable");
    assert!(mmu.code_modified());
    assert_eq!(mmu.take_modified_code(), [page]);
    assert!(!mmu.code_modified());
    assert!(mmu.write_fast(gva, 0x90u8), "no code is left in the page");
    assert_eq!(tables.map.code().bitmap(Gpa(0x20_0000)), 0);
}

#[test]
fn every_way_of_writing_is_noticed() {
    let (tables, mut mmu, _) = machine();
    let map = Arc::clone(&tables.map);
    let page = hva(&mmu, 0x20_0000);
    let mut check = |what: &str, write: &mut dyn FnMut(&mut Mmu)| {
        mmu.protect_code(page.wrapping_add(0xff0), 0x10);
        write(&mut mmu);
        assert_eq!(mmu.take_modified_code(), [page], "{what}");
    };
    check("scalar", &mut |mmu| mmu.write(BY, K, Gva(HERE + 0xff8), 1u64).expect("writable"));
    check("crossing", &mut |mmu| mmu.write(BY, K, Gva(HERE + 0xffc), u64::MAX).expect("writable"));
    check("bytes", &mut |mmu| mmu.write_bytes(BY, K, Gva(HERE + 0xf00), &[3; 0x100]).expect("writable"));
    check("update", &mut |mmu| mmu.modify(Gva(HERE + 0xff0), false, |old: u32| (!old, ())).expect("writable"));
    check("locked", &mut |mmu| mmu.modify(Gva(HERE + 0xff0), true, |old: u128| (!old, ())).expect("writable"));
    check("crossing update", &mut |mmu| {
        mmu.modify(Gva(HERE + 0xfff), true, |old: u16| (!old, ())).expect("writable");
    });
    check("device", &mut |_| map.write(Gpa(0x20_0ff0), &[9]).expect("ram"));
}

#[test]
fn the_walkers_marks_count_as_writes() {
    let (mut tables, mut mmu, _) = machine();
    let slot = tables.slot(HERE, 12);
    let table = hva(&mmu, slot);
    mmu.protect_code(table, 8);
    mmu.read::<u8>(BY, K, Gva(HERE)).expect("readable");
    assert_eq!(mmu.take_modified_code(), [table.page()], "accessed");
    mmu.protect_code(table, 8);
    mmu.write(BY, K, Gva(HERE), 1u8).expect("writable");
    assert_eq!(mmu.take_modified_code(), [table.page()], "dirty");
}

#[test]
fn aliases_of_a_page_are_all_protected() {
    let (mut tables, mut mmu, _) = machine();
    tables.page(HERE + 0x10_0000, 0x20_0000, W | U);
    for (gva, space) in [(HERE, K), (HERE + 0x10_0000, K), (HERE, Space::User)] {
        mmu.write(BY, space, Gva(gva), 1u8).expect("writable");
    }
    let page = hva(&mmu, 0x20_0000);
    mmu.protect_code(page, 1);
    for (gva, space) in [(HERE, K), (HERE + 0x10_0000, K), (HERE, Space::User)] {
        mmu.set_space(space);
        assert!(!mmu.write_fast(Gva(gva), 1u8), "{gva:x} {space:?}");
    }
    // A new entry made after the marking is slow as well.
    mmu.flush_all();
    mmu.write(BY, Space::User, Gva(HERE), 1u8).expect("writable");
    assert!(!mmu.write_fast(Gva(HERE), 1u8));
    // Code that goes away through one alias lets the others go, each at its next write.
    mmu.write(BY, K, Gva(HERE + 0x10_0000), 2u8).expect("writable");
    mmu.write(BY, Space::User, Gva(HERE), 3u8).expect("writable");
    assert!(mmu.write_fast(Gva(HERE), 1u8));
    // Marked again, the entry that was let go is found again.
    mmu.protect_code(page, 1);
    assert!(!mmu.write_fast(Gva(HERE), 1u8));
}

#[test]
fn one_vcpus_store_is_another_vcpus_notice() {
    let (tables, mut one, _) = machine();
    let mut two = tables.mmu();
    let page = hva(&one, 0x20_0000);
    one.protect_code(page, 64);
    two.write(BY, K, Gva(HERE), 0xccu8).expect("writable");
    assert!(one.code_modified() && two.code_modified());
    assert_eq!(one.take_modified_code(), two.take_modified_code());
    two.protect_code(Hva(0x1000), 64);
}

// --- watching

fn watched(interest: Interest) -> (Builder, Mmu, Arc<Watcher>) {
    let (tables, mut mmu, _) = machine();
    let watcher = Arc::new(Watcher { pages: vec![(0x30_0000, interest)], ..Watcher::default() });
    mmu.set_observer(Some(Arc::<Watcher>::clone(&watcher)));
    (tables, mmu, watcher)
}

fn brief(access: &Access) -> (AccessKind, u64, u64, u8, u128) {
    (access.kind, access.gva.map_or(0, |gva| gva.0), access.gpa.0, access.size, access.value)
}

#[test]
fn a_watch_sees_every_access_exactly_and_no_other() {
    let (_, mut mmu, watcher) = watched(Interest { read: true, write: true, fetch: false });
    let gva = HERE + 0x1010;
    mmu.write(BY, K, Gva(gva), 0x736e_6f63u32).expect("writable");
    mmu.read::<u16>(BY, K, Gva(gva + 1)).expect("readable");
    let seen = watcher.take();
    assert_eq!(
        seen.iter().map(brief).collect::<Vec<_>>(),
        [(AccessKind::Write, gva, 0x30_0010, 4, 0x736e_6f63), (AccessKind::Read, gva + 1, 0x30_0011, 2, 0x6e6f),]
    );
    assert!(seen.iter().all(|access| access.origin == BY && access.hva == mmu.map().hva_of(access.gpa)));
    // The fast paths do not take it, so that nothing escapes; the page beside it stays fast.
    assert_eq!(mmu.read_fast::<u8>(Gva(gva)), None);
    assert!(!mmu.write_fast(Gva(gva), 0u8));
    assert!(mmu.run(BY, Gva(gva), false).expect("mapped").is_none());
    mmu.write(BY, K, Gva(HERE), 1u64).expect("writable");
    assert!(mmu.write_fast(Gva(HERE), 1u64) && watcher.take().is_empty());
    // Crossing into the page: only what lies there.
    mmu.write(BY, K, Gva(HERE + 0xffd), 0x8877_6655_4433_2211u64).expect("writable");
    assert_eq!(
        watcher.take().iter().map(brief).collect::<Vec<_>>(),
        [(AccessKind::Write, HERE + 0x1000, 0x30_0000, 5, 0x88_7766_5544)]
    );
    // A read-modify-write is a read and a write.
    mmu.modify(Gva(gva), true, |old: u32| (old + 1, ())).expect("writable");
    assert_eq!(
        watcher.take().iter().map(brief).collect::<Vec<_>>(),
        [(AccessKind::Read, gva, 0x30_0010, 4, 0x736e_6f63), (AccessKind::Write, gva, 0x30_0010, 4, 0x736e_6f64),]
    );
    // Long accesses come in pieces of 16.
    mmu.read_bytes(BY, K, Gva(gva), &mut [0; 40]).expect("readable");
    let sizes: Vec<_> = watcher.take().iter().map(|a| (a.gpa.0, a.size)).collect();
    assert_eq!(sizes, [(0x30_0010, 16), (0x30_0020, 16), (0x30_0030, 8)]);
    // A fault is no access.
    assert!(mmu.write(BY, K, Gva(HERE + 0x4000 - 4), 0u64).is_err());
    let registers = *mmu.registers();
    mmu.set_registers(PagingRegisters { cr4: registers.cr4.with_smap(true), ..registers });
    assert!(mmu.read::<u8>(BY, K, Gva(gva)).is_err());
    assert!(watcher.take().is_empty());
    // Nobody looks any more: fast again.
    mmu.set_observer(None);
    mmu.set_registers(registers);
    mmu.write(BY, K, Gva(gva), 1u8).expect("writable");
    assert!(mmu.write_fast(Gva(gva), 1u8) && watcher.take().is_empty());
}

#[test]
fn a_write_tells_what_was_there_before() {
    let (_, mut mmu, watcher) = watched(Interest { read: false, write: true, fetch: false });
    let old = |mmu: &mut Mmu, what: &dyn Fn(&mut Mmu)| {
        what(mmu);
        watcher.take().iter().map(|a| (a.gpa.0 & 0xfff, a.size, a.old)).collect::<Vec<_>>()
    };
    let gva = HERE + 0x1010;
    let bytes: Vec<u8> = (1..=40).collect();
    let wide = |from: usize, len: usize| bytes[from..from + len].iter().rev().fold(0, |v, b| v << 8 | u128::from(*b));
    let fill = |mmu: &mut Mmu| mmu.write_bytes(BY, K, Gva(gva), &bytes).expect("writable");
    assert_eq!(old(&mut mmu, &fill), [(0x10, 16, Some(0)), (0x20, 16, Some(0)), (0x30, 8, Some(0))]);
    let pieces = [(0x10, 16, Some(wide(0, 16))), (0x20, 16, Some(wide(16, 16))), (0x30, 8, Some(wide(32, 8)))];
    assert_eq!(old(&mut mmu, &fill), pieces);
    let scalar = |mmu: &mut Mmu| mmu.write(BY, K, Gva(gva + 3), 0u32).expect("writable");
    assert_eq!(old(&mut mmu, &scalar), [(0x13, 4, Some(wide(3, 4)))]);
    for locked in [false, true] {
        let update = |mmu: &mut Mmu| mmu.modify(Gva(gva + 8), locked, |old: u16| (old, ())).expect("writable");
        assert_eq!(old(&mut mmu, &update), [(0x18, 2, Some(wide(8, 2)))]);
        let crossing = |mmu: &mut Mmu| mmu.modify(Gva(HERE + 0xfff), locked, |_: u16| (0x700, ())).expect("writable");
        assert_eq!(old(&mut mmu, &crossing), [(0, 1, Some(if locked { 7 } else { 0 }))]);
    }
}

#[test]
fn accesses_to_descriptor_tables_are_of_a_kind_of_their_own() {
    let (_, mut mmu, watcher) = watched(Interest { read: true, write: true, fetch: false });
    let by = Origin { descriptor: true, ..BY };
    mmu.read::<u64>(by, K, Gva(HERE + 0x1000)).expect("readable");
    mmu.write(by, K, Gva(HERE + 0x1000), 1u8).expect("writable");
    let kinds: Vec<_> = watcher.take().iter().map(|access| access.kind).collect();
    assert_eq!(kinds, [AccessKind::DescriptorRead, AccessKind::DescriptorWrite]);
}

#[test]
fn a_watch_for_reads_sees_the_read_of_a_read_modify_write() {
    let (_, mut mmu, watcher) = watched(Interest { read: true, write: false, fetch: false });
    let gva = Gva(HERE + 0x1000);
    mmu.write(BY, K, gva, 5u8).expect("writable");
    assert!(watcher.take().is_empty());
    mmu.modify(gva, false, |old: u8| (old + 1, ())).expect("writable");
    assert_eq!(
        watcher.take().iter().map(brief).collect::<Vec<_>>(),
        [(AccessKind::Read, HERE + 0x1000, 0x30_0000, 1, 5)]
    );
    let (_, mut mmu, watcher) = watched(Interest { read: false, write: true, fetch: false });
    mmu.read::<u8>(BY, K, gva).expect("readable");
    assert!(mmu.read_fast::<u8>(gva).is_some(), "reads stay fast under a watch for writes");
    mmu.modify(gva, false, |old: u8| (old + 1, ())).expect("writable");
    assert_eq!(watcher.take().len(), 1);
}

#[test]
fn a_watched_page_with_code_stays_watched_without_it() {
    let (_, mut mmu, watcher) = watched(Interest { read: false, write: true, fetch: false });
    let gva = Gva(HERE + 0x1000);
    mmu.protect_code(hva(&mmu, 0x30_0000), 64);
    for value in 1..4u8 {
        mmu.write(BY, K, gva, value).expect("writable");
        assert!(!mmu.write_fast(gva, value));
    }
    assert_eq!((watcher.take().len(), mmu.take_modified_code().len()), (3, 1));
}

#[test]
fn fetches_are_seen_when_they_are_watched() {
    let (_, mut mmu, watcher) = watched(Interest { read: false, write: false, fetch: true });
    assert!(matches!(mmu.fetch_page(BY, Gva(HERE)), Ok(FetchPage::Memory(_))));
    assert_eq!(mmu.fetch_page(BY, Gva(HERE + 0x1000)), Ok(FetchPage::Uncached));
    assert_eq!(mmu.fetch_fast(Gva(HERE + 0x1000)), None);
    mmu.fetch_bytes(BY, Gva(HERE + 0x1000), &mut [0; 15]).expect("executable");
    assert!(watcher.take().is_empty(), "reading ahead is no fetch");
    mmu.observe_fetch(BY, Gva(HERE + 0xffe), &[0x48, 0x89, 0xe5, 0x90]);
    mmu.observe_fetch(BY, Gva(HERE + 0x100), &[0x90]);
    assert_eq!(
        watcher.take().iter().map(brief).collect::<Vec<_>>(),
        [(AccessKind::Fetch, HERE + 0x1000, 0x30_0000, 2, 0x90e5)]
    );
}

#[test]
fn walks_are_seen_when_their_tables_are_watched() {
    let (mut tables, mut mmu, _) = machine();
    let slot = tables.slot(HERE, 12);
    let watcher = Arc::new(Watcher { walks: vec![slot & !0xfff], ..Watcher::default() });
    mmu.set_observer(Some(Arc::<Watcher>::clone(&watcher)));
    let entry = u128::from(peek(&tables.map, slot));
    mmu.write(BY, K, Gva(HERE), 1u8).expect("writable");
    let seen = watcher.take();
    assert_eq!(
        seen.iter().map(brief).collect::<Vec<_>>(),
        [(AccessKind::WalkRead, 0, slot, 8, entry), (AccessKind::WalkWrite, 0, slot, 8, entry | u128::from(A | D)),]
    );
    assert_eq!((seen[0].old, seen[1].old), (None, Some(entry)));
    assert!(seen.iter().all(|access| access.cr3 == mmu.registers().cr3));
    assert!(seen.iter().all(|access| access.gva.is_none() && access.origin == BY));
    mmu.write(BY, K, Gva(HERE), 2u8).expect("writable");
    let _ = mmu.translate(Gva(HERE));
    assert!(watcher.take().is_empty(), "a hit walks nothing, and looking is no access");
}

#[test]
fn a_watched_device_is_seen_too() {
    let (_, mut mmu, _) = machine();
    let interest = Interest { read: true, write: true, fetch: false };
    let watcher = Arc::new(Watcher { pages: vec![(DEVICE.0, interest)], ..Watcher::default() });
    mmu.set_observer(Some(Arc::<Watcher>::clone(&watcher)));
    mmu.read::<u32>(BY, K, Gva(HERE + 0x2000)).expect("readable");
    mmu.modify(Gva(HERE + 0x2004), false, |old: u16| (old + 1, ())).expect("writable");
    let seen = watcher.take();
    assert_eq!(
        seen.iter().map(brief).collect::<Vec<_>>(),
        [
            (AccessKind::Read, HERE + 0x2000, DEVICE.0, 4, 0x4433_2211),
            (AccessKind::Read, HERE + 0x2004, DEVICE.0 + 4, 2, 0x2211),
            (AccessKind::Write, HERE + 0x2004, DEVICE.0 + 4, 2, 0x2212),
        ]
    );
    assert!(seen.iter().all(|access| access.hva.is_none()));
}

// --- runs

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

// --- control registers

#[test]
fn pae_pointers_are_taken_at_mov_cr3_only() {
    let (map, _) = map();
    let mut mmu = Mmu::new(Arc::clone(&map), 0);
    let mut registers = long_mode(0x1020);
    registers.efer = Efer::new();
    poke(&map, 0x1020, 0x2000 | P);
    poke(&map, 0x2000, PS | P | W);
    assert!(mmu.pdptes_valid(&registers));
    mmu.set_registers(registers);
    assert_eq!(mmu.mode(), Mode::Pae);
    poke(&map, 0x5000, 77);
    assert_eq!(mmu.read::<u64>(BY, K, Gva(0x5000)), Ok(77));
    // The pointer in memory goes bad: nobody looks until CR3 is written, which then fails and changes nothing.
    poke(&map, 0x1020, 0x2000 | P | 2);
    mmu.flush_all();
    assert_eq!(mmu.read::<u64>(BY, K, Gva(0x5000)), Ok(77));
    assert_eq!(mmu.load_cr3(0x1020, false), Err(()));
    mmu.flush_all();
    assert_eq!(mmu.read::<u64>(BY, K, Gva(0x5000)), Ok(77));
    assert!(!mmu.pdptes_valid(&PagingRegisters { cr4: registers.cr4.with_smep(true), ..registers }));
    poke(&map, 0x1020, 0);
    assert_eq!(mmu.load_cr3(0x1020, false), Ok(()));
    assert_eq!(mmu.read::<u64>(BY, K, Gva(0x5000)), Err(fault(0x5000, 0)));
}

#[test]
fn loads_of_pae_pointers_are_reported_once() {
    let (map, _) = map();
    let mut mmu = Mmu::new(Arc::clone(&map), 0);
    let watcher = Arc::new(Watcher { walks: vec![0x1000, 0x3000], ..Watcher::default() });
    mmu.set_observer(Some(Arc::<Watcher>::clone(&watcher)));
    (0..4).for_each(|n| poke(&map, 0x3020 + 8 * n, (0x4000 + (n << 12)) | P));
    mmu.set_registers(PagingRegisters { efer: Efer::new(), ..long_mode(0x1020) });
    mmu.report_pdptes(BY);
    mmu.report_pdptes(BY);
    mmu.load_cr3(0x3020, false).expect("valid pointers");
    mmu.report_pdptes(BY);
    let first = (0..4).map(|n| (AccessKind::WalkRead, 0, 0x1020 + 8 * n, 8, 0));
    let second = (0..4u64).map(|n| (AccessKind::WalkRead, 0, 0x3020 + 8 * n, 8, u128::from((0x4000 + (n << 12)) | P)));
    assert_eq!(watcher.take().iter().map(brief).collect::<Vec<_>>(), first.chain(second).collect::<Vec<_>>());
}

#[test]
fn pkru_acts_on_what_is_cached() {
    let (map, _) = map();
    let mut tables = Builder::new(&map);
    tables.page(HERE, 0x20_0000, W | U | 3 << 59);
    tables.page(HERE + 0x1000, 0x30_0000, W | U);
    let mut mmu = tables.mmu();
    let mut registers = *mmu.registers();
    registers.cr4.set_protection_keys(true);
    mmu.set_registers(registers);
    mmu.set_space(Space::User);
    for gva in [HERE, HERE + 0x1000] {
        mmu.write(BY, Space::User, Gva(gva), 1u8).expect("writable");
    }
    mmu.set_registers(PagingRegisters { pkru: 2 << 6, ..registers });
    assert!(!mmu.write_fast(Gva(HERE), 1u8));
    assert!(mmu.write_fast(Gva(HERE + 0x1000), 1u8), "another key");
    assert_eq!(mmu.write(BY, Space::User, Gva(HERE), 1u8), Err(fault(HERE, 0x27)));
    assert_eq!(mmu.read::<u8>(BY, Space::User, Gva(HERE)), Ok(1));
    mmu.set_registers(PagingRegisters { pkru: 1 << 6, ..registers });
    assert_eq!(mmu.read_fast::<u8>(Gva(HERE)), None);
    assert_eq!(mmu.read::<u8>(BY, Space::User, Gva(HERE)), Err(fault(HERE, 0x25)));
    mmu.set_registers(registers);
    mmu.write(BY, Space::User, Gva(HERE), 1u8).expect("writable");
}

#[test]
fn without_smap_alignment_check_shares_the_kernels_entries() {
    let (_, mut mmu, _) = machine();
    mmu.read::<u8>(BY, K, Gva(HERE)).expect("readable");
    mmu.set_space(Space::KernelAc);
    assert!(mmu.read_fast::<u8>(Gva(HERE)).is_some());
    let registers = *mmu.registers();
    mmu.set_registers(PagingRegisters { cr4: registers.cr4.with_smap(true), ..registers });
    mmu.read::<u8>(BY, Space::KernelAc, Gva(HERE)).expect("AC lifts SMAP");
    mmu.set_space(K);
    assert_eq!(mmu.read_fast::<u8>(Gva(HERE)), None);
    assert_eq!(mmu.read::<u8>(BY, K, Gva(HERE)), Err(fault(HERE, 1)));
}

#[test]
fn locked_updates_from_several_threads_lose_nothing() {
    let (tables, _, _) = machine();
    let bump = |(gva, times): (u64, u64)| {
        let mut mmu = tables.mmu();
        move || {
            for _ in 0..times {
                mmu.modify(Gva(gva), true, |old: u64| (old + 1, ())).expect("writable");
            }
        }
    };
    // One that is aligned, and one across two cache lines: few of those, since some hosts slow split locks down.
    std::thread::scope(|scope| {
        for what in [(HERE, 20_000), (HERE, 20_000), (HERE + 0x7d, 20), (HERE + 0x7d, 20)] {
            scope.spawn(bump(what));
        }
    });
    assert_eq!(peek(&tables.map, 0x20_0000), 40_000);
    assert_eq!(peek(&tables.map, 0x20_007d), 40);
}
