//! Which accesses give a line, and what becomes of a watch whose lines cannot be written.

use super::*;
use crate::symbols::kallsyms::tests::{BASE, kernel};
use memory::{AccessKind, Agent, Hva, Origin};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// A sink that can be read while it is written, and broken.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>, Arc<AtomicBool>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.1.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    /// The lines so far, without the note on hidden addresses.
    fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        let text = String::from_utf8(bytes).unwrap();
        text.lines().filter(|line| !line.starts_with("watch:")).map(str::to_owned).collect()
    }
}

fn watcher(watches: &[&str]) -> (Watcher, Shared) {
    let sink = Shared::default();
    let broken = |_| panic!("the sink is broken");
    let watcher = Watcher::new(Format::Vitrine, Arc::default(), Box::new(sink.clone()), broken);
    for watch in watches {
        watcher.add(watch.parse().unwrap()).unwrap();
    }
    assert!(watcher.interest_changed());
    (watcher, sink)
}

/// An access to memory whose physical address is the virtual one's low 16 bits at 100000h.
fn access(kind: AccessKind, gva: u64, size: u8) -> Access {
    let gpa = Gpa(0x10_0000 | gva & 0xffff);
    let origin = Origin { cpu: 1, rip: 0x42, ..Origin::default() };
    let agent = Agent::Vcpu { origin, cr3: 0 };
    Access { kind, agent, gva: Some(Gva(gva)), gpa, hva: None, size, value: 0x99, old: None }
}

#[test]
fn only_the_watched_bytes_count() {
    let (watcher, sink) = watcher(&["r:5004+4"]);
    // (address, size, touches 5004 to 5007)
    let cases = [
        (0x5003, 1, false),
        (0x5000, 4, false),
        (0x5000, 8, true),
        (0x5001, 4, true),
        (0x5004, 1, true),
        (0x5007, 1, true),
        (0x5007, 16, true),
        (0x5008, 8, false),
        (0x4ff8, 8, false),
        (0x4ff8, 16, true),
        (0x6004, 4, false),
    ];
    for (gva, size, touches) in cases {
        watcher.access(&access(AccessKind::Read, gva, size));
        assert_eq!(sink.take().len(), usize::from(touches), "{gva:#x} {size}");
    }
}

#[test]
fn only_the_watched_kinds_count() {
    use AccessKind::{Fetch, Read, WalkRead, WalkWrite, Write};
    for (expression, expected) in [
        ("r:5000", vec![Read]),
        ("w:5000", vec![Write]),
        ("x:5000", vec![Fetch]),
        ("5000", vec![Read, Write]),
        ("r:gpa:105000", vec![Read, WalkRead]),
        ("w:gpa:105000", vec![Write, WalkWrite]),
        ("rwx:gpa:105000", vec![Read, Write, Fetch, WalkRead, WalkWrite]),
    ] {
        let (watcher, sink) = watcher(&[expression]);
        for kind in [Read, Write, Fetch, WalkRead, WalkWrite] {
            let mut access = access(kind, 0x5000, 8);
            if matches!(kind, WalkRead | WalkWrite) {
                access.gva = None;
            }
            watcher.access(&access);
            assert_eq!(sink.take().len(), usize::from(expected.contains(&kind)), "{expression} {kind:?}");
        }
    }
}

#[test]
fn pieces_of_an_access_that_crosses_a_page_are_seen_where_they_lie() {
    let (watcher, sink) = watcher(&["rw:5ffe+4"]);
    // Eight bytes at 5ffc: four on each page.
    watcher.access(&access(AccessKind::Write, 0x5ffc, 4));
    watcher.access(&access(AccessKind::Write, 0x6000, 4));
    let lines = sink.take();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].starts_with("watch w4 cpu1 rip 42 gva 5ffc gpa 105ffc "), "{}", lines[0]);
    assert!(lines[1].starts_with("watch w4 cpu1 rip 42 gva 6000 gpa 106000 "), "{}", lines[1]);
    assert_eq!(watcher.interest(Gva(0x5000), Gpa(0)), Interest { read: true, write: true, fetch: false });
    assert_eq!(watcher.interest(Gva(0x6000), Gpa(0)), Interest { read: true, write: true, fetch: false });
    assert_eq!(watcher.interest(Gva(0x7000), Gpa(0)), Interest::default());
}

#[test]
fn a_physical_watch_sees_through_every_alias() {
    let (watcher, sink) = watcher(&["r:gpa:105000+4"]);
    for alias in [0x5000, 0xffff_8880_0000_5000] {
        assert!(watcher.interest(Gva(alias), Gpa(0x10_5000)).read);
        watcher.access(&access(AccessKind::Read, alias, 4));
        let lines = sink.take();
        assert_eq!(lines.len(), 1);
        assert!(lines[0].contains(&format!(" gva {alias:x} gpa 105000 ")), "{}", lines[0]);
    }
    assert!(!watcher.interest(Gva(0x5000), Gpa(0x20_0000)).read, "the virtual address alone is of no interest");
    assert!(watcher.wants_walks(Gpa(0x10_5000)) && !watcher.wants_walks(Gpa(0x10_6000)));
}

#[test]
fn a_virtual_watch_wants_no_walks() {
    let (watcher, sink) = watcher(&["rw:105000"]);
    assert!(!watcher.wants_walks(Gpa(0x10_5000)));
    watcher.access(&Access { gva: None, ..access(AccessKind::WalkRead, 0x5000, 8) });
    assert!(sink.take().is_empty());
}

#[test]
fn devices_are_seen_by_physical_address() {
    let (watcher, sink) = watcher(&["w:gpa:105004", "rw:5000+8", "rw:gpa:106000+10"]);
    let dma = |kind, gva| Access { agent: Agent::Device("disk"), gva: None, ..access(kind, gva, 8) };
    assert!(watcher.wants_dma(Gpa(0x10_5000)) && !watcher.wants_dma(Gpa(0x10_4000)));
    watcher.access(&dma(AccessKind::DmaWrite, 0x5000));
    assert_eq!(sink.take(), ["watch dmaw8 disk gva - gpa 105000 hva - hpa - val 99"]);
    watcher.access(&dma(AccessKind::DmaRead, 0x5000));
    watcher.access(&dma(AccessKind::DmaWrite, 0x5008));
    assert!(sink.take().is_empty());
    watcher.access(&dma(AccessKind::DmaRead, 0x6000));
    assert_eq!(sink.take().len(), 1);
    let hit = watcher.last_hit().unwrap();
    assert_eq!((hit.watch, hit.access.agent, hit.by), (3, Agent::Device("disk"), None));
}

#[test]
fn devices_meet_no_condition_on_a_processor() {
    for (condition, met) in [
        ("value == 99 and size == 8", true),
        ("cpu == 0", false),
        ("cpu != 0", false),
        ("cr3 == 0", false),
        ("cr3 != 1000", false),
        ("rip in 0+100", false),
        ("rip not in 1000+100", false),
        ("rip != 1000", false),
        ("user", false),
        ("kernel", false),
        ("process == cat", false),
        ("process != cat", false),
    ] {
        let (watcher, sink) = watcher(&[&format!("rw:gpa:105000 if {condition}")]);
        let dma = Access { agent: Agent::Device("disk"), gva: None, ..access(AccessKind::DmaWrite, 0x5000, 8) };
        watcher.access(&dma);
        assert_eq!(sink.take().len(), usize::from(met), "{condition}");
    }
}

#[test]
fn an_access_that_several_watches_want_is_one_line() {
    let (watcher, sink) = watcher(&["r:5000", "rw:5000+8", "r:gpa:105000", "w:5004"]);
    watcher.access(&access(AccessKind::Read, 0x5000, 8));
    assert_eq!(sink.take().len(), 1);
}

#[test]
fn the_highest_address_can_be_watched() {
    let (watcher, sink) = watcher(&["r:ffffffffffffffff"]);
    assert!(watcher.interest(Gva(u64::MAX).page(), Gpa(0)).read);
    watcher.access(&access(AccessKind::Read, u64::MAX - 7, 8));
    watcher.access(&access(AccessKind::Read, u64::MAX - 7, 4));
    assert_eq!(sink.take().len(), 1);
}

#[test]
fn a_broken_sink_is_reported_once_and_the_watch_goes_quiet() {
    let (sink, reports) = (Shared::default(), Arc::new(AtomicUsize::new(0)));
    let count = reports.clone();
    let watcher = Watcher::new(Format::Qemu, Arc::default(), Box::new(sink.clone()), move |error| {
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        count.fetch_add(1, Ordering::Relaxed);
    });
    watcher.add("r:5000".parse().unwrap()).unwrap();
    let access = access(AccessKind::Read, 0x5000, 1);
    watcher.access(&access);
    assert_eq!(sink.take(), ["helper_ret_ldub_mmu eip: 42, vaddr: 5000, haddr: -, Val: 99"]);
    sink.1.store(true, Ordering::Relaxed);
    watcher.access(&access);
    watcher.access(&access);
    sink.1.store(false, Ordering::Relaxed);
    watcher.access(&access);
    assert_eq!(reports.load(Ordering::Relaxed), 1);
    assert!(sink.take().is_empty());
}

#[test]
fn host_physical_addresses_are_the_kernels_or_unknown() {
    let (watcher, sink) = watcher(&["r:5000"]);
    let ram = memory::GuestRam::new(1 << 20).unwrap();
    let hva = ram.regions()[0].hva;
    let map = PhysicalMap::new(ram).unwrap();
    map.write(Gpa(0), b"x").unwrap();
    for _ in 0..2 {
        watcher.access(&Access { hva: Some(hva), ..access(AccessKind::Read, 0x5000, 1) });
    }
    let pagemap = Pagemap::of_this_process().unwrap();
    let expected = pagemap.hpa(hva).map_or("hpa ? ".to_owned(), |hpa| format!("hpa {hpa:x} "));
    let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.lines().filter(|line| line.contains(&expected)).count(), 2, "{text}");
    assert_eq!(text.contains("CAP_SYS_ADMIN"), pagemap.page(hva).unwrap() == HostPage::Hidden, "{text}");
    // What has never been touched has no physical address.
    let untouched = Hva(hva.0 + 0x8000);
    watcher.access(&Access { hva: Some(untouched), ..access(AccessKind::Read, 0x5000, 1) });
    assert!(sink.take().pop().unwrap().contains("hpa ? "));
}

#[test]
fn what_a_pointer_points_to_is_watched_from_when_it_does() {
    let (watcher, sink) = watcher(&["r:*function_2.part.0+4", "w:function_3.part.0", "r:*function_4.part.0"]);
    let map = Arc::new(kernel());
    let (entry, image) = (Gva(BASE), Gpa(0x18_0000));
    let pointer = Gpa(image.0 + 2 * 16);
    map.write(pointer, &0x5000_u64.to_le_bytes()).unwrap();
    let page = |gva: u64| watcher.interest(Gva(gva), Gpa(0x10_0000));
    assert_eq!(page(0x5000), Interest::default(), "nothing is known yet");
    assert!(!watcher.interest_changed());
    watcher.system_calls_enter(&map, entry, image);
    assert!(watcher.interest_changed() && !watcher.interest_changed());
    assert!(page(0x5000).read && !page(0x7000).read && page(BASE).write);
    assert!(!page(0).read, "a null pointer points nowhere");
    watcher.access(&access(AccessKind::Read, 0x5003, 1));
    watcher.access(&access(AccessKind::Read, 0x7000, 1));
    watcher.access(&Access { gva: Some(Gva(BASE + 3 * 16)), ..access(AccessKind::Write, 0, 8) });
    let lines = sink.take();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].ends_with(" at function_3.part.0"), "{lines:?}");
    // Whoever writes the pointer, by whatever address.
    assert!(watcher.interest(Gva(0x9000), pointer.page()).write);
    map.write(pointer, &0x7000_u64.to_le_bytes()).unwrap();
    assert!(watcher.wants_dma(pointer.page()));
    watcher.access(&Access { gpa: pointer.wrapping_add(7), ..access(AccessKind::Write, 0x9027, 1) });
    assert!(watcher.interest_changed());
    watcher.access(&access(AccessKind::Read, 0x5003, 1));
    watcher.access(&access(AccessKind::Read, 0x7000, 1));
    assert_eq!(sink.take().len(), 1);
    map.write(pointer, &0x5000_u64.to_le_bytes()).unwrap();
    let dma = Access { agent: Agent::Device("disk"), gva: None, ..access(AccessKind::DmaWrite, 0, 8) };
    watcher.access(&Access { gpa: pointer, ..dma });
    assert!(watcher.interest_changed());
    watcher.access(&access(AccessKind::Read, 0x5003, 1));
    assert_eq!(sink.take().len(), 1);
    watcher.system_calls_enter(&map, entry, image);
    assert!(!watcher.interest_changed(), "it is the same kernel");
}
