//! How fast the machine is, next to QEMU's TCG where `qemu-system-x86_64` is installed: guest instructions a second
//! on an integer loop, and the time from start to `GUEST-READY` for each kernel at hand.
//!
//! `cargo bench -p vitrine` runs all; a word (`integer`, `seed`, `6.12`) chooses. `BENCH_ROUNDS` (3) rounds are
//! interleaved, ours and QEMU's in turn, and the median is shown with the spread. Loop figures are the difference
//! of a long and a short run, so that start-up does not count. Wall and CPU seconds are the process's own.

use std::path::PathBuf;

use guests::emulator::{Emulator, QEMU, compare};
use guests::{find, initramfs};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");

fn kernels() -> Vec<(String, PathBuf, &'static str)> {
    let mut all: Vec<(String, PathBuf, &str)> = Vec::new();
    all.extend(find::seed_kernel().map(|path| ("seed kernel".to_owned(), path, "128M")));
    for path in find::debian_kernels() {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        all.push((name, path, "512M"));
    }
    all
}

fn main() {
    // Cargo adds `--bench`; other words choose what runs.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let wanted = |title: &str| words.is_empty() || words.iter().any(|word| title.contains(word.as_str()));
    let rounds = std::env::var("BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let ours = Emulator::new("vitrine", VITRINE, &[]);
    let theirs = Emulator::tcg("QEMU TCG", &[]);
    let emulators: Vec<&Emulator> = [&ours].into_iter().chain(&theirs).collect();
    if theirs.is_none() {
        println!("{QEMU} is not installed: no comparison");
    }

    if wanted("integer loop") {
        let title = "integer loop, guest MIPS (more is better)";
        compare(title, "MIPS", rounds, &emulators, Emulator::integer_rate);
    }
    let chosen: Vec<_> = kernels().into_iter().filter(|(name, ..)| wanted(name)).collect();
    if chosen.is_empty() {
        println!("no kernel at hand to boot (cargo run fetches one)");
        return;
    }
    let Some(initrd) = initramfs::build(initramfs::INIT) else {
        println!("no static busybox (package busybox-static): no boots");
        return;
    };
    for (name, kernel, memory) in chosen {
        compare(&format!("{name} to GUEST-READY, seconds (less is better)"), "s", rounds, &emulators, |emulator| {
            emulator.boot(&kernel, initrd.path(), memory).map(|taken| (taken.wall, taken.cpu))
        });
    }
}
