//! What the slow path does: page crossings, MMIO, ROM; code, watching and runs have files of their own.

use super::*;
use crate::observe::{Access, AccessKind, Interest};
use crate::testing::*;

mod code;
mod masking;
mod runs;
mod watching;

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

fn hva(mmu: &Mmu, gpa: u64) -> Hva {
    mmu.map().hva_of(Gpa(gpa)).expect("ram")
}

fn brief(access: &Access) -> (AccessKind, u64, u64, u8, u128) {
    (access.kind, access.gva.map_or(0, |gva| gva.0), access.gpa.0, access.size, access.value)
}

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
    let (mut tables, _, _) = machine();
    tables.page(HERE + 0x1000, 0x20_1000, W | U);
    let tables = tables;
    let bump = |(gva, times): (u64, u64)| {
        let mut mmu = tables.mmu();
        move || {
            for _ in 0..times {
                mmu.modify(Gva(gva), true, |old: u64| (old + 1, ())).expect("writable");
            }
        }
    };
    // One that is aligned, one across two pages, and one across two cache lines: few of those, since some hosts slow split
    // locks down.
    std::thread::scope(|scope| {
        let split = (HERE + 0xffd, 20_000);
        for what in [(HERE, 20_000), (HERE, 20_000), split, split, (HERE + 0x7d, 20), (HERE + 0x7d, 20)] {
            scope.spawn(bump(what));
        }
    });
    assert_eq!(peek(&tables.map, 0x20_0000), 40_000);
    assert_eq!(peek(&tables.map, 0x20_007d), 40);
    assert_eq!(peek(&tables.map, 0x20_0ffd), 40_000);
}
