//! What devices read and write, and what is told of it.

use super::*;
use crate::testing::{BY, Builder, DEVICE, ROM, W, Watcher, map, peek, poke};
use crate::{Gva, Space};

/// A device's way to memory, whose accesses to these pages are watched.
fn watched(pages: &[u64]) -> (Arc<PhysicalMap>, Dma, Arc<Watcher>) {
    let (map, _) = map();
    let watcher = Arc::new(Watcher { dma: pages.to_vec(), ..Watcher::default() });
    map.observe_dma(Some(Arc::<Watcher>::clone(&watcher)));
    (Arc::clone(&map), Dma::new(map, "disk"), watcher)
}

/// Kind, address, size, value and what was there before, of all that was seen.
fn brief(watcher: &Watcher) -> Vec<(AccessKind, u64, u8, u128, Option<u128>)> {
    watcher.take().iter().map(|access| (access.kind, access.gpa.0, access.size, access.value, access.old)).collect()
}

#[test]
fn what_is_watched_is_told_in_pieces_within_pages() {
    let (map, dma, watcher) = watched(&[0x5000]);
    let bytes: Vec<u8> = (0..=99).collect();
    let value = |at: u64, size: u64| wide(&bytes[(at - 0x4ff9) as usize..][..size as usize]);
    poke(&map, 0x5000, 0x1122_3344_5566_7788);
    dma.write(Gpa(0x4ff9), &bytes).expect("RAM");
    let pieces = (0..5).map(|n| 0x5000 + 16 * n).map(|at| (at, 16)).chain([(0x5050, 13)]);
    let old = |at: u64| Some(if at == 0x5000 { 0x1122_3344_5566_7788 } else { 0 });
    let written: Vec<_> =
        pieces.clone().map(|(at, size)| (AccessKind::DmaWrite, at, size as u8, value(at, size), old(at))).collect();
    assert_eq!(brief(&watcher), written);
    let mut back = [0; 100];
    dma.read(Gpa(0x4ff9), &mut back).expect("RAM");
    assert_eq!(back, *bytes);
    let seen = watcher.take();
    let hva = |access: &Access| map.hva_of(access.gpa);
    assert!(seen.iter().all(|access| access.agent == Agent::Device("disk") && access.hva == hva(access)));
    assert!(seen.iter().all(|access| access.gva.is_none() && access.origin().is_none() && access.cr3().is_none()));
    let seen: Vec<_> = seen.iter().map(|access| (access.kind, access.gpa.0, access.size, access.value)).collect();
    let read: Vec<_> = pieces.map(|(at, size)| (AccessKind::DmaRead, at, size as u8, value(at, size))).collect();
    assert_eq!(seen, read);
    // From a watched page into one that is not; the whole page; nothing.
    dma.write(Gpa(0x5ffe), &[1; 4]).expect("RAM");
    assert_eq!(brief(&watcher), [(AccessKind::DmaWrite, 0x5ffe, 2, 0x101, Some(0))]);
    dma.read(Gpa(0x5000), &mut [0; 4096]).expect("RAM");
    assert_eq!(brief(&watcher).len(), 256);
    dma.read(Gpa(0x5000), &mut []).expect("nothing");
    assert!(brief(&watcher).is_empty());
    // Loaders and debuggers are no devices; and nobody is told any more.
    map.write(Gpa(0x5000), &[2]).expect("RAM");
    map.observe_dma(None);
    dma.write(Gpa(0x5000), &[3]).expect("RAM");
    assert!(brief(&watcher).is_empty());
    assert_eq!(peek(&map, 0x5000) & 0xff, 3);
}

#[test]
fn what_is_no_memory_ends_it_where_it_begins() {
    for pages in [&[][..], &[0x1ff_f000, ROM.0]] {
        let (_, dma, watcher) = watched(pages);
        let told = !pages.is_empty();
        let stop = |result: Result<(), MapError>| match result {
            Err(MapError::NotMemory { gpa, done }) => (gpa.0, done),
            other => panic!("{other:?}"),
        };
        // 32 MiB of RAM, whose last 20 bytes are reached.
        let end = 0x200_0000;
        assert_eq!(stop(dma.write(Gpa(end - 20), &[7; 64])), (end, 20));
        let written = [
            (AccessKind::DmaWrite, end - 20, 16, wide(&[7; 16]), Some(0)),
            (AccessKind::DmaWrite, end - 4, 4, 0x0707_0707, Some(0)),
        ];
        assert_eq!(brief(&watcher), if told { &written[..] } else { &[] });
        let mut bytes = [1; 64];
        assert_eq!(stop(dma.read(Gpa(end - 20), &mut bytes)), (end, 20));
        assert_eq!((bytes[19], bytes[20]), (7, 1));
        assert_eq!(brief(&watcher).len(), if told { 2 } else { 0 });
        // ROM is read, but not written; it ends where addresses end.
        dma.read(ROM, &mut bytes).expect("ROM");
        assert_eq!((bytes[63], brief(&watcher).len()), (0x5a, if told { 4 } else { 0 }));
        assert_eq!(stop(dma.write(ROM, &[1])), (ROM.0, 0));
        assert_eq!(stop(dma.read(DEVICE, &mut bytes)), (DEVICE.0, 0));
        assert_eq!(stop(dma.write(Gpa(u64::MAX), &[1; 2])), (u64::MAX, 0));
        assert!(brief(&watcher).is_empty());
    }
}

#[test]
fn an_end_within_a_piece_is_told_up_to_there() {
    let mut map = PhysicalMap::new(crate::GuestRam::new(1 << 20).expect("RAM")).expect("a map");
    map.add_rom(Gpa(0x5008), &[9; 8]).expect("a ROM");
    let map = Arc::new(map);
    let watcher = Arc::new(Watcher { dma: vec![0x5000], ..Watcher::default() });
    map.observe_dma(Some(Arc::<Watcher>::clone(&watcher)));
    let dma = Dma::new(Arc::clone(&map), "disk");
    let result = dma.write(Gpa(0x4ffc), &[1; 64]);
    assert!(matches!(result, Err(MapError::NotMemory { gpa: Gpa(0x5008), done: 12 })), "{result:?}");
    assert_eq!(brief(&watcher), [(AccessKind::DmaWrite, 0x5000, 8, wide(&[1; 8]), Some(0))]);
}

#[test]
fn vcpus_hear_of_overwritten_code_and_of_changed_interest() {
    let (map, dma, watcher) = watched(&[0x30_0000]);
    let gva = 0x7fff_0000_0000;
    let mut tables = Builder::new(&map);
    tables.page(gva, 0x20_0000, W);
    let mut mmu = tables.mmu();
    mmu.write(BY, Space::Kernel, Gva(gva), 1u8).expect("mapped");
    let page = map.hva_of(Gpa(0x20_0000)).expect("RAM");
    mmu.protect_code(page, 64);
    dma.write(Gpa(0x20_003c), &[1; 8]).expect("RAM");
    assert_eq!(mmu.take_modified_code(), [page]);
    // A pointer was overwritten, say.
    assert!(mmu.read_fast::<u8>(Gva(gva)).is_some());
    watcher.anew.store(true, Ordering::Relaxed);
    dma.write(Gpa(0x30_0000), &[1; 8]).expect("RAM");
    assert!(mmu.code_modified() && mmu.take_modified_code().is_empty());
    assert!(mmu.read_fast::<u8>(Gva(gva)).is_none(), "the TLB is flushed");
    assert!(!mmu.code_modified());
}
