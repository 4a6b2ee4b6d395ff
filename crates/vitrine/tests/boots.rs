//! Guests booted end to end: real kernels to user space and back, tiny guests to their exit, and how each ends.
//!
//! Kernels that are not at hand are skipped with a line that says so; see `guests::find`.

use std::path::Path;
use std::time::Duration;

use guests::session::{Ended, Session, argument};
use guests::{PATIENCE, find, image, initramfs, skipped};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const EXIT_DEVICE: &str = "isa-debug-exit,iobase=0xf4,iosize=0x4";
/// What executes a guest: the translator, and the interpreter that it is held to.
const TIERS: [&str; 2] = ["jit", "interp"];
/// For guests of a few instructions.
const SOON: Duration = Duration::from_secs(30);

/// Boots `kernel` with busybox and waits for its end; nothing where there is no busybox.
fn boot(test: &str, kernel: &Path, append: &str, more: &[&str]) -> Option<Ended> {
    let Some(initrd) = initramfs::build(initramfs::INIT) else {
        skipped(test, "no static busybox (package busybox-static)");
        return None;
    };
    let mut arguments = vec!["-kernel", argument(kernel), "-initrd", argument(initrd.path())];
    arguments.extend(["-append", append, "-nographic"]);
    arguments.extend(more);
    Some(Session::start(VITRINE, &arguments).end(PATIENCE))
}

/// What must be true of any boot that powered off.
fn assert_booted(ended: &Ended, append: &str) {
    ended.no_panic();
    assert_eq!(ended.status.code(), Some(0), "power off exits 0: {ended:?}");
    assert!(ended.stdout.contains("GUEST-READY"), "user space runs: {ended:?}");
    let shown = ended.stdout.lines().any(|line| line.trim_end() == append);
    assert!(shown, "/proc/cmdline is {append:?}: {ended:?}");
}

#[test]
fn the_seed_kernel_boots_and_powers_off() {
    let Some(kernel) = find::seed_kernel() else { return skipped("seed kernel", "no seed-bzImage at hand") };
    let append = "console=ttyS0 one=two  three";
    for tier in TIERS {
        let Some(ended) = boot("seed kernel", &kernel, append, &["-m", "128M", "-accel", tier]) else { return };
        assert_booted(&ended, append);
    }
}

#[test]
fn options_may_have_two_dashes() {
    let Some(kernel) = find::seed_kernel() else { return skipped("two dashes", "no seed-bzImage at hand") };
    let Some(initrd) = initramfs::build(initramfs::INIT) else { return skipped("two dashes", "no static busybox") };
    let arguments = ["--kernel", argument(&kernel), "--initrd", argument(initrd.path())];
    let arguments = [&arguments[..], &["--append", "console=ttyS0 quiet", "--nographic", "-m", "128"]].concat();
    assert_booted(&Session::start(VITRINE, &arguments).end(PATIENCE), "console=ttyS0 quiet");
}

#[test]
fn debians_kernels_boot_without_complaint() {
    let kernels = find::debian_kernels();
    if kernels.is_empty() {
        return skipped("Debian's kernels", "none in .cache (cargo run fetches one)");
    }
    for (kernel, tier) in kernels.iter().flat_map(|kernel| TIERS.map(|tier| (kernel, tier))) {
        let append = "console=ttyS0 dmesg";
        let options = ["-m", "512M", "-accel", tier];
        let Some(ended) = boot("Debian's kernels", kernel, append, &options) else { return };
        assert_booted(&ended, append);
        for complaint in ["Oops", "BUG:", "WARNING: CPU", "unexpected trap", "Marking clocksource", "Call Trace"] {
            let line = ended.stdout.lines().find(|line| line.contains(complaint));
            assert_eq!(line, None, "{} has no complaint ({tier})", kernel.display());
        }
    }
}

#[test]
fn debians_kernels_start_all_processors() {
    let kernels = find::debian_kernels();
    if kernels.is_empty() {
        return skipped("several processors", "none in .cache (cargo run fetches one)");
    }
    for (kernel, cpus) in kernels.iter().flat_map(|kernel| ["2", "5"].map(|cpus| (kernel, cpus))) {
        let append = "console=ttyS0 dmesg";
        let Some(ended) = boot("several processors", kernel, append, &["-m", "512M", "-smp", cpus]) else { return };
        assert_booted(&ended, append);
        assert!(ended.stdout.contains(&format!("Brought up 1 node, {cpus} CPUs")), "{ended:?}");
        for complaint in ["Oops", "BUG:", "WARNING: CPU", "unexpected trap", "Marking clocksource", "Call Trace"] {
            let line = ended.stdout.lines().find(|line| line.contains(complaint));
            assert_eq!(line, None, "{} has no complaint (-smp {cpus})", kernel.display());
        }
    }
}

/// Has the clock wake the machine in two seconds, suspends it, and tells of what came behind.
const SUSPENDS: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
echo +2 > /sys/class/rtc/rtc0/wakealarm
echo mem > /sys/power/state && echo GUEST-WOKE with $(grep -c processor /proc/cpuinfo)
dmesg | grep -e 'PM: suspend' -e 'Oops' -e 'BUG:' -e 'WARNING: CPU' -e 'Call Trace'
poweroff -f
";

#[test]
fn linux_suspends_to_ram_and_is_woken_by_its_clock() {
    let Some(kernel) = find::debian_kernels().pop() else {
        return skipped("suspend", "no kernel of Debian's in .cache (cargo run fetches one)");
    };
    let Some(initrd) = initramfs::build(SUSPENDS) else { return skipped("suspend", "no static busybox") };
    let mut arguments = vec!["-kernel", argument(&kernel), "-initrd", argument(initrd.path()), "-nographic"];
    arguments.extend(["-append", "console=ttyS0 quiet", "-m", "256M", "-smp", "2"]);
    let ended = Session::start(VITRINE, &arguments).end(PATIENCE);
    ended.no_panic();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stdout.contains("GUEST-WOKE with 2"), "both processors are back: {ended:?}");
    assert!(ended.stdout.contains("PM: suspend exit"), "{ended:?}");
    for complaint in ["Oops", "BUG:", "WARNING: CPU", "Call Trace"] {
        assert!(!ended.stdout.contains(complaint), "{complaint}: {ended:?}");
    }
}

#[test]
fn isa_debug_exit_gives_its_status() {
    for (code, status) in [(0, 1), (1, 3), (0x10, 0x21), (0x7f, 0xff)] {
        let kernel = initramfs::file_of(&image::exits(code));
        let arguments = ["-kernel", argument(kernel.path()), "-display", "none", "-device", EXIT_DEVICE];
        let ended = Session::start(VITRINE, &arguments).end(SOON);
        ended.no_panic();
        assert_eq!(ended.status.code(), Some(status), "{ended:?}");
    }
}

#[test]
fn integer_work_in_long_mode_is_right() {
    let rounds = 200_000;
    let kernel = initramfs::file_of(&image::integer_loop(rounds));
    let arguments = ["-kernel", argument(kernel.path()), "-display", "none", "-device", EXIT_DEVICE];
    let ended = Session::start(VITRINE, &arguments).end(SOON);
    assert_eq!(ended.status.code(), Some(image::integer_loop_status(rounds)), "{ended:?}");
}

#[test]
fn memory_comes_on_demand() {
    let kernel = initramfs::file_of(&image::exits(0));
    let arguments = ["-kernel", argument(kernel.path()), "-display", "none", "-device", EXIT_DEVICE, "-m", "64G"];
    let ended = Session::start(VITRINE, &arguments).end(SOON);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
}

#[test]
fn an_idle_machine_is_small() {
    let kernel = initramfs::file_of(&image::waits());
    let session = Session::start(VITRINE, &["-kernel", argument(kernel.path()), "-display", "none", "-m", "1G"]);
    std::thread::sleep(Duration::from_secs(1));
    let status = std::fs::read_to_string(format!("/proc/{}/status", session.id())).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident: u64 = resident.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(u64::MAX);
    // The guest itself touches less than 1 MiB.
    assert!(resident <= 33 * 1024, "{resident} KiB resident with no guest activity");
}

#[test]
fn a_triple_fault_names_the_address() {
    let kernel = initramfs::file_of(&image::triple_faults());
    let session = Session::start(VITRINE, &["-kernel", argument(kernel.path()), "-display", "none", "-no-reboot"]);
    let ended = session.end(SOON);
    ended.no_panic();
    let says = ended.stderr.to_lowercase();
    let address = format!("{:x}", image::ENTRY + 7); // behind the LIDT
    assert!(says.contains("triple fault") && says.contains(&address), "{address} is named: {ended:?}");
}

#[test]
fn a_corrupt_initrd_is_the_guests_business() {
    let Some(kernel) = find::seed_kernel() else { return skipped("corrupt initrd", "no seed-bzImage at hand") };
    let garbage: Vec<u8> = (0_u32..100_000).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let initrd = initramfs::file_of(&garbage);
    let arguments = ["-kernel", argument(&kernel), "-initrd", argument(initrd.path()), "-nographic", "-no-reboot"];
    let arguments = [&arguments[..], &["-append", "console=ttyS0 panic=-1"]].concat();
    let ended = Session::start(VITRINE, &arguments).end(PATIENCE);
    ended.no_panic();
    assert!(ended.stdout.contains("Kernel panic"), "the kernel finds no init: {ended:?}");
}
