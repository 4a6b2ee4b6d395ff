//! `-perfetto`: a timeline of a whole boot, and of one that is cut.

use std::time::Duration;

use guests::session::{Session, argument};
use guests::timeline::read;
use guests::{PATIENCE, find, image, initramfs, skipped};
use rustix::process::{Pid, Signal, kill_process};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_boot_is_on_it() {
    let Some(kernel) = find::seed_kernel() else { return skipped("a boot's timeline", "no seed-bzImage at hand") };
    let Some(initrd) = initramfs::build(initramfs::INIT) else {
        return skipped("a boot's timeline", "no static busybox");
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("boot.pftrace");
    let arguments =
        ["-kernel", argument(&kernel), "-initrd", argument(initrd.path()), "-append", "console=ttyS0 quiet"];
    let more = ["-nographic", "-m", "128M", "-perfetto", argument(&file)];
    let ended = Session::start(VITRINE, &[&arguments[..], &more].concat()).end(PATIENCE);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let bytes = std::fs::read(&file).unwrap();
    let (events, whole) = read(&bytes);
    assert_eq!(whole, bytes.len());
    let said = format!("timeline: {} events in {} bytes", events.len(), bytes.len());
    assert!(ended.stderr.contains(&said), "{said}: {}", ended.stderr);
    let count = |track: &str, name: &str| {
        events.iter().filter(|event| event.track.ends_with(track) && event.name.starts_with(name)).count()
    };
    assert!(count("cpu0 exceptions", "#PF page fault") > 10);
    assert!(count("cpu0 interrupts", "interrupt ") > 10);
    assert!(count("cpu0 page tables", "CR3 ") > 2);
    assert!(count("devices/serial (ports)", "write") > 20);
    assert!(count("devices/lapic (memory)", "") + count("devices/hpet (memory)", "") > 5);
    assert!(count("cpu0 page walks", "") > 3);
    // What the guest wrote to its console is on it, byte by byte.
    let console: Vec<u8> = events
        .iter()
        .filter(|event| event.track.ends_with("serial (ports)") && event.name == "write")
        .filter(|event| event.values.contains(&("address".to_owned(), "3f8".to_owned())))
        .filter_map(|event| u8::from_str_radix(&event.values.iter().find(|(name, _)| name == "value")?.1, 16).ok())
        .collect();
    assert!(String::from_utf8_lossy(&console).contains("GUEST-READY"), "the console's bytes are on it");
}

#[test]
fn one_that_is_cut_is_whole_as_far_as_it_goes() {
    let kernel = initramfs::file_of(&image::writes_for_ever(u32::from(b'.')));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cut.pftrace");
    let arguments = ["-kernel", argument(kernel.path()), "-nographic", "-perfetto", argument(&file)];
    let session = Session::start(VITRINE, &arguments);
    session.expect("....", SOON);
    std::thread::sleep(Duration::from_millis(500));
    let process = Pid::from_raw(session.id().try_into().unwrap()).unwrap();
    kill_process(process, Signal::KILL).unwrap();
    drop(session);
    let bytes = std::fs::read(&file).unwrap();
    let (events, whole) = read(&bytes);
    assert!(whole == bytes.len() && events.len() > 100, "{} events, {whole} of {} bytes", events.len(), bytes.len());
}

#[test]
fn what_is_wrong_is_said() {
    let kernel = initramfs::file_of(&image::waits());
    for (value, status, word) in [
        ("/nonexistent/t.pftrace", 1, "/nonexistent/t.pftrace"),
        (",size=1M", 2, "name of a file"),
        ("f,size=x", 2, "'x' is no size"),
    ] {
        let ended =
            Session::start(VITRINE, &["-kernel", argument(kernel.path()), "-nographic", "-perfetto", value]).end(SOON);
        assert!(ended.status.code() == Some(status) && ended.refusal().contains(word), "{value}: {ended:?}");
    }
}
