//! What looking costs: nothing while nobody looks, and what a trace of everything takes, next to a TCG plugin that is
//! told each access's addresses.
//!
//! `cargo bench -p vitrine --bench lens` runs both parts; `off` or `trace` chooses. `BENCH_ROUNDS` (3) rounds are
//! interleaved. `VITRINE_BASE`, the path of another `vitrine`, is what this one is compared with while nothing is watched:
//! the one of the commit before, say. The plugin is built by `cc`.

use guests::emulator::{Emulator, QEMU, compare};
use guests::session::argument;
use guests::{find, initramfs};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const MEMORY: &str = "128M";
/// Addresses in a page that neither kernels nor the integer loop touch.
const UNTOUCHED: &[&str] = &["-watch", "rw:1000+8"];

fn main() {
    // Cargo adds `--bench`; other words choose what runs.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let wanted = |part: &str| words.is_empty() || words.iter().any(|word| word == part);
    let rounds = std::env::var("BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let Some(kernel) = find::debian_kernels().into_iter().next().or_else(find::seed_kernel) else {
        return println!("no kernel at hand to boot (cargo run fetches one)");
    };
    let Some(initrd) = initramfs::build(initramfs::INIT) else {
        return println!("no static busybox (package busybox-static): no boots");
    };
    println!("{}", kernel.display());
    if wanted("off") {
        off(rounds, &kernel, initrd.path());
    }
    if wanted("trace") {
        trace(rounds, &kernel, initrd.path());
    }
}

fn boots(title: &str, rounds: usize, emulators: &[&Emulator], kernel: &Path, initrd: &Path) {
    let title = format!("{title}: to GUEST-READY, seconds (less is better)");
    compare(&title, "s", rounds, emulators, |emulator| {
        emulator.boot(kernel, initrd, MEMORY).map(|taken| (taken.wall, taken.cpu))
    });
}

/// Nobody looks, or not there.
fn off(rounds: usize, kernel: &Path, initrd: &Path) {
    let base = std::env::var_os("VITRINE_BASE").map(|path| Emulator::new("VITRINE_BASE", path, &[]));
    let nothing = Emulator::new("nothing watched", VITRINE, &[]);
    let elsewhere = Emulator::new("another page watched", VITRINE, UNTOUCHED);
    let emulators: Vec<&Emulator> = base.iter().chain([&nothing, &elsewhere]).collect();
    boots("nobody looks", rounds, &emulators, kernel, initrd);
    let title = "nobody looks: integer loop, guest MIPS (more is better)";
    compare(title, "MIPS", rounds, &emulators, Emulator::integer_rate);
}

/// Everything is traced.
fn trace(rounds: usize, kernel: &Path, initrd: &Path) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("boot.parquet");
    for _ in 0..rounds {
        match traced(kernel, initrd, &file) {
            Some((accesses, bytes, seconds)) => println!(
                "traced, to a shell and off: {accesses} accesses in {seconds:.1} s, {:.1} million a second, {:.2} bytes each",
                accesses as f64 / seconds / 1e6,
                bytes as f64 / accesses as f64,
            ),
            None => println!("traced: failed"),
        }
    }
    let plain = Emulator::new("vitrine", VITRINE, &[]);
    let all = Emulator::new("vitrine -trace", VITRINE, &["-trace", argument(&file)]);
    boots("everything is traced", rounds, &[&plain, &all], kernel, initrd);
    let Some(plugin) = plugin(folder.path()) else { return println!("no plugin: cc is missing") };
    let with = Emulator::tcg("QEMU TCG with a plugin", &["-plugin", argument(&plugin)]);
    match (Emulator::tcg("QEMU TCG", &[]), with) {
        (Some(plain), Some(with)) => boots("everything is seen by a plugin", rounds, &[&plain, &with], kernel, initrd),
        _ => println!("{QEMU} is not installed: no comparison"),
    }
}

/// How many accesses a boot makes, in how many bytes, and how many seconds that takes.
fn traced(kernel: &Path, initrd: &Path, file: &Path) -> Option<(u64, u64, f64)> {
    let arguments =
        ["-kernel", argument(kernel), "-initrd", argument(initrd), "-append", "console=ttyS0", "-m", MEMORY];
    let begun = Instant::now();
    let mut command = Command::new(VITRINE);
    command.args(arguments).args(["-nographic", "-no-reboot", "-trace", argument(file)]).stdin(Stdio::null());
    let output = command.output().ok()?;
    let seconds = begun.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let (_, figures) = said.split_once("trace: ")?;
    let mut numbers = figures.split_whitespace().filter_map(|word| word.parse().ok());
    Some((numbers.next()?, numbers.next()?, seconds))
}

/// The plugin, built.
fn plugin(folder: &Path) -> Option<PathBuf> {
    let library = folder.join("plugin.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/lens/plugin.c");
    let built = Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o", argument(&library), source]).status();
    built.is_ok_and(|status| status.success()).then_some(library)
}
