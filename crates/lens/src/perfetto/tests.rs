//! Timelines, read back.

use super::{Perfetto, PerfettoError, Written};
use crate::symbols::Table;
use guests::timeline::{Event, read};
use memory::witness::{Delivery, DeviceAccess, Place, Witness};
use memory::{Gpa, Gva};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use tempfile::TempDir;

const PLENTY: u64 = 1 << 30;

fn begun(limit: u64) -> (TempDir, PathBuf, Perfetto) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("t.pftrace");
    let perfetto = Perfetto::create(&path, limit, |_| {}).unwrap();
    (folder, path, perfetto)
}

fn write_to_port(perfetto: &Perfetto, value: u64) {
    let place = Place::Port(0x3f8);
    perfetto.device(&DeviceAccess { device: "serial", place, size: 1, value, write: true });
}

fn page_fault() -> Delivery {
    Delivery { cpu: 0, vector: 14, code: Some(6), rip: Gva(0x1010), cpl: 3, address: Some(Gva(0xbeef)) }
}

fn values(event: &Event) -> Vec<(&str, &str)> {
    event.values.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

#[test]
fn everything_that_happened_is_there_in_order() {
    let (_folder, path, perfetto) = begun(PLENTY);
    write_to_port(&perfetto, 0x41);
    let place = Place::Memory(Gpa(0xfed0_00f0));
    perfetto.device(&DeviceAccess { device: "hpet", place, size: 8, value: u64::MAX, write: false });
    perfetto.delivered(&page_fault());
    perfetto.name_by(Arc::new(Table::new([(Gva(0x1000), "work"), (Gva(0x2000), "_end")])));
    perfetto.delivered(&page_fault());
    perfetto.delivered(&Delivery { vector: 0xec, code: None, address: None, cpl: 0, rip: Gva(0x9000), ..page_fault() });
    perfetto.switched(0, Gpa(0x1000));
    perfetto.switched(0, Gpa(0x1000));
    perfetto.switched(1, Gpa(0x1000));
    perfetto.switched(0, Gpa(0x2000));
    perfetto.counters(0, &[("page walks", 12.5), ("TLB flushes", 0.0)]);
    write_to_port(&perfetto, 0x42);
    let written = perfetto.finish().unwrap();
    let bytes = fs::read(path).unwrap();
    let (events, whole) = read(&bytes);
    assert_eq!((whole, written), (bytes.len(), Written { events: 12, bytes: bytes.len() as u64 }));

    let lines: Vec<(&str, u64, &str)> = events.iter().map(|e| (e.track.as_str(), e.kind, e.name.as_str())).collect();
    assert_eq!(
        lines,
        [
            ("guest/devices/serial (ports)", 3, "write"),
            ("guest/devices/hpet (memory)", 3, "read"),
            ("guest/cpu0/cpu0 exceptions", 3, "#PF page fault"),
            ("guest/cpu0/cpu0 exceptions", 3, "#PF page fault"),
            ("guest/cpu0/cpu0 interrupts", 3, "interrupt ech"),
            ("guest/cpu0/cpu0 page tables", 1, "CR3 1000"),
            ("guest/cpu1/cpu1 page tables", 1, "CR3 1000"),
            ("guest/cpu0/cpu0 page tables", 2, ""),
            ("guest/cpu0/cpu0 page tables", 1, "CR3 2000"),
            ("guest/cpu0/cpu0 page walks", 4, ""),
            ("guest/cpu0/cpu0 TLB flushes", 4, ""),
            ("guest/devices/serial (ports)", 3, "write"),
        ]
    );
    assert_eq!(values(&events[0]), [("address", "3f8"), ("value", "41"), ("size", "1")]);
    assert_eq!(values(&events[1]), [("address", "fed000f0"), ("value", "ffffffffffffffff"), ("size", "8")]);
    assert_eq!(values(&events[2]), [("rip", "1010"), ("cpl", "3"), ("error code", "6"), ("address", "beef")]);
    assert_eq!(values(&events[3])[2], ("by", "work+0x10"));
    assert_eq!(values(&events[4]), [("rip", "9000"), ("cpl", "0")]);
    assert_eq!((events[9].counter, events[10].counter), (Some(12.5), Some(0.0)));
}

#[test]
fn wherever_it_is_cut_the_rest_is_a_timeline() {
    let (_folder, path, perfetto) = begun(PLENTY);
    (0..20).for_each(|n| write_to_port(&perfetto, n));
    perfetto.switched(0, Gpa(0x1000));
    perfetto.flush();
    let bytes = fs::read(path).unwrap();
    let (all, whole) = read(&bytes);
    assert_eq!((all.len(), whole), (21, bytes.len()));
    for len in 0..bytes.len() {
        let (events, whole) = read(&bytes[..len]);
        assert!(whole <= len && events == all[..events.len()], "{len}");
    }
}

#[test]
fn at_its_limit_it_ends_with_whole_packets() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("t.pftrace");
    let (sender, said) = mpsc::channel();
    let perfetto = Perfetto::create(&path, 100_000, move |error| sender.send(error.to_string()).unwrap()).unwrap();
    (0..10_000).for_each(|n| write_to_port(&perfetto, n));
    let said: Vec<String> = said.try_iter().collect();
    assert!(said.len() == 1 && said[0].contains("size=") && said[0].contains("100000"), "{said:?}");
    assert!(matches!(perfetto.finish(), Err(PerfettoError::Full { limit: 100_000, .. })));
    let bytes = fs::read(path).unwrap();
    let (events, whole) = read(&bytes);
    assert!(bytes.len() <= 100_000 && whole == bytes.len() && events.len() > 1000, "{} events", events.len());
}

#[test]
fn a_full_disk_is_told_of_once() {
    static TOLD: AtomicUsize = AtomicUsize::new(0);
    let told = |_: &PerfettoError| {
        TOLD.fetch_add(1, Ordering::Relaxed);
    };
    let perfetto = Perfetto::create(Path::new("/dev/full"), PLENTY, told).unwrap();
    for n in 0..5 {
        write_to_port(&perfetto, n);
        perfetto.flush();
    }
    assert!(matches!(perfetto.finish(), Err(PerfettoError::Write { .. })));
    assert_eq!(TOLD.load(Ordering::Relaxed), 1);
    let error = Perfetto::create(Path::new("/nonexistent/t"), PLENTY, |_| {}).unwrap_err().to_string();
    assert!(error.contains("/nonexistent/t"), "{error}");
}
