//! The demo, with a kernel and a busybox at hand instead of fetched ones: both sides agree, then there is a shell.

use std::process::{Command, Stdio};
use std::time::Duration;

use guests::pty::Terminal;
use guests::session::{Session, argument};
use guests::{PATIENCE, find, image, initramfs, skipped};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const SOON: Duration = Duration::from_secs(30);

/// The demo's arguments for files at hand: any kernel with serial console, devtmpfs and pagemap, so Debian's.
fn arguments(test: &str) -> Option<[String; 5]> {
    let Some(kernel) = find::debian_kernels().into_iter().next() else {
        skipped(test, "no kernel of Debian's in .cache (cargo run fetches one)");
        return None;
    };
    let Some(busybox) = find::busybox() else {
        skipped(test, "no static busybox (package busybox-static)");
        return None;
    };
    let (kernel, busybox) = (argument(&kernel), argument(&busybox));
    Some(["-demo", "-kernel", kernel, "-busybox", busybox].map(str::to_owned))
}

#[test]
fn both_sides_agree_and_the_guest_powers_off() {
    let Some(arguments) = arguments("demo") else { return };
    let cache = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(VITRINE);
    command.args(arguments).env("XDG_CACHE_HOME", cache.path()).env_remove("CARGO_MANIFEST_DIR");
    command.current_dir(cache.path()).stdin(Stdio::null());
    let output = command.output().expect("it starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout}\n--\n{stderr}");
    assert_eq!(stdout.matches('✓').count(), 3, "{stdout}");
    // The guest's line and ours, and the numbers that they share.
    let guest = stdout.lines().find(|line| line.contains("GVA: 1000000000, GPA: ")).expect("the guest's view");
    let gpa = guest.split("GPA: ").nth(1).and_then(|rest| rest.split(',').next()).expect("a number");
    let ours = stdout.lines().find(|line| line.contains("watch r4 cpu0 rip ")).expect("Vitrine's view");
    for part in ["gva 1000000000 ", &format!("gpa {gpa} "), " hva 7f", " hpa ", "val 736e6f63"] {
        assert!(ours.contains(part), "{part} in {ours}");
    }
    // Not on a terminal, progress is plain lines.
    assert!(stderr.contains("Booting vmlinuz") && !stderr.contains('\x1b'), "{stderr}");
}

#[test]
fn at_a_terminal_it_leaves_the_user_in_the_guests_shell() {
    let Some(arguments) = arguments("demo's shell") else { return };
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut terminal = Terminal::start(VITRINE, &arguments);
    terminal.expect("guest# ", PATIENCE);
    assert!(terminal.changed(), "the terminal is raw while the guest has it");
    terminal.type_keys("echo answer=$((6*7))\r");
    terminal.expect("answer=42", PATIENCE);
    // It can be done again, and the watch is still there.
    let seen = terminal.screen.text().matches("gva 1000000000").count();
    terminal.type_keys("peek\r");
    let again = terminal.screen.wait(PATIENCE, |text| text.matches("gva 1000000000").count() > seen);
    assert!(again, "{}", terminal.screen.text());
    terminal.type_keys("poweroff\r");
    assert!(terminal.end(PATIENCE).success(), "{}", terminal.screen.text());
    assert!(!terminal.changed(), "the terminal is as it was");
}

#[test]
fn a_guest_that_is_no_linux_is_told_of() {
    let Some(busybox) = find::busybox() else { return skipped("demo's failure", "no static busybox") };
    let kernel = initramfs::file_of(&image::triple_faults());
    let arguments = ["-demo", "-kernel", argument(kernel.path()), "-busybox", argument(&busybox)];
    let ended = Session::start(VITRINE, &arguments).end(SOON);
    ended.no_panic();
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains("triple fault") && ended.stderr.contains("console.log"), "{ended:?}");
}

#[test]
fn what_it_has_no_use_for_is_refused() {
    let ended = Session::start(VITRINE, &["-demo", "-watch", "r:1000"]).end(SOON);
    assert!(ended.refusal().contains("-watch"));
    let ended = Session::start(VITRINE, &["-demo", "-busybox", "/bin/sh"]).end(SOON);
    assert!(ended.refusal().contains("static"), "{ended:?}");
}
