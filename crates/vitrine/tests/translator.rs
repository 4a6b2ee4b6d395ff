//! What can be seen of the translator from outside: its counters, its code, its names for `perf`.

use std::fs;
use std::process::Command;
use std::time::Duration;

use guests::session::{Session, argument};
use guests::{image, initramfs};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const EXIT_DEVICE: &str = "isa-debug-exit,iobase=0xf4,iosize=0x4";
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_loop_is_translated_reported_and_named() {
    let rounds = 200_000;
    let kernel = initramfs::file_of(&image::integer_loop(rounds));
    let log = tempfile::NamedTempFile::new().expect("a log");
    let arguments = [
        "-kernel",
        argument(kernel.path()),
        "-display",
        "none",
        "-device",
        EXIT_DEVICE,
        "-accel",
        "jit",
        "-d",
        "jit,out_asm",
        "-D",
        argument(log.path()),
        "-perfmap",
    ];
    let session = Session::start(VITRINE, &arguments);
    let names = format!("/tmp/perf-{}.map", session.id());
    let ended = session.end(SOON);
    let map = fs::read_to_string(&names).expect("the map is there");
    let _ = fs::remove_file(&names);
    assert_eq!(ended.status.code(), Some(image::integer_loop_status(rounds)), "{ended:?}");
    let log = fs::read_to_string(log.path()).expect("the log is there");
    assert!(log.contains("bytes of host code at"), "code is listed:\n{log}");
    let count = |name: &str| {
        let line = log.lines().find(|line| line.trim_start().starts_with(name));
        let count = line.and_then(|line| line.trim_start().strip_prefix(name)?.split_whitespace().next()?.parse().ok());
        count.unwrap_or_else(|| panic!("{name} is missing in\n{log}"))
    };
    let (regions, cold): (u64, u64) = (count("regions translated"), count("blocks interpreted while cold"));
    assert!(regions > 0 && cold < rounds as u64, "the loop is translated: {regions} {cold}");
    let (cold, hot): (Vec<_>, Vec<_>) =
        map.lines().filter(|line| line.contains(" guest:")).partition(|line| line.ends_with(".cold"));
    assert_eq!(hot.len() as u64, regions, "each region has its name:\n{map}");
    assert!(cold.len() <= hot.len(), "and what is rarely run of it another:\n{map}");
}

#[test]
fn the_report_comes_however_it_ends() {
    let kernel = initramfs::file_of(&image::waits());
    let arguments = ["-kernel", argument(kernel.path()), "-nographic", "-accel", "jit", "-d", "jit"];
    for keys in [true, false] {
        let mut session = Session::start(VITRINE, &arguments);
        if keys {
            session.send("\u{1}x");
        } else {
            // Not before it handles signals.
            std::thread::sleep(Duration::from_millis(500));
            let sent = Command::new("kill").args(["-s", "TERM", &session.id().to_string()]).status();
            assert!(sent.is_ok_and(|status| status.success()), "kill works");
        }
        let ended = session.end(SOON);
        assert!(ended.stderr.contains("translator of cpu0"), "{ended:?}");
        assert!(ended.stderr.contains("left: instruction"), "it is whole: {ended:?}");
    }
}
