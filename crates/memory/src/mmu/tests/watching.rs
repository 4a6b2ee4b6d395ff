//! What an observer is told.

use super::*;
use std::sync::atomic::Ordering;

fn watched(interest: Interest) -> (Builder, Mmu, Arc<Watcher>) {
    let (tables, mut mmu, _) = machine();
    let watcher = Arc::new(Watcher { pages: vec![(0x30_0000, interest)], ..Watcher::default() });
    mmu.set_observer(Some(Arc::<Watcher>::clone(&watcher)));
    (tables, mmu, watcher)
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
    assert!(seen.iter().all(|access| access.origin() == Some(&BY) && access.hva == mmu.map().hva_of(access.gpa)));
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
    assert!(seen.iter().all(|access| access.cr3() == Some(mmu.registers().cr3)));
    assert!(seen.iter().all(|access| access.gva.is_none() && access.origin() == Some(&BY)));
    mmu.write(BY, K, Gva(HERE), 2u8).expect("writable");
    let _ = mmu.translate(Gva(HERE));
    assert!(watcher.take().is_empty(), "a hit walks nothing, and looking is no access");
    assert!(!mmu.code_modified());
    watcher.anew.store(true, Ordering::Relaxed);
    mmu.flush_all();
    mmu.read::<u8>(BY, K, Gva(HERE)).expect("mapped");
    assert!(mmu.code_modified(), "the vCPU is told that the observer wants something else");
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
