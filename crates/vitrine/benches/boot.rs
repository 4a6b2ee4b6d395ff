//! How fast the machine is, next to QEMU's TCG where `qemu-system-x86_64` is installed: guest instructions a second
//! on an integer loop, and the time from start to `GUEST-READY` for each kernel at hand.
//!
//! `cargo bench -p vitrine` runs all; a word (`integer`, `seed`, `6.12`) chooses. `BENCH_ROUNDS` (3) rounds are
//! interleaved, ours and QEMU's in turn, and the median is shown with the spread. Loop figures are the difference
//! of a long and a short run, so that start-up does not count. Wall and CPU seconds are the process's own.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use guests::measure::{Taken, cpu_seconds, spread};
use guests::session::argument;
use guests::{find, image, initramfs};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const QEMU: &str = "qemu-system-x86_64";
const SHORT: u32 = 200_000;
const LONG: u32 = 400_200_000;

/// One emulator: its name, program, and what it needs beyond the common options.
struct Emulator {
    name: &'static str,
    program: &'static str,
    options: &'static [&'static str],
}

const OURS: Emulator = Emulator { name: "vitrine", program: VITRINE, options: &[] };
const THEIRS: Emulator = Emulator { name: "QEMU TCG", program: QEMU, options: &["-accel", "tcg", "-cpu", "max"] };

fn start(emulator: &Emulator, arguments: &[&str]) -> Child {
    let mut command = Command::new(emulator.program);
    command.args(emulator.options).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("{}: {error}", emulator.program))
}

/// Runs to the line that contains `mark`; the guest is then left to end by itself.
fn until(emulator: &Emulator, arguments: &[&str], mark: &str) -> Option<Taken> {
    let begun = Instant::now();
    let mut child = start(emulator, arguments);
    let lines = child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).split(b'\n'));
    let mut taken = None;
    for line in lines.map_while(Result::ok) {
        if taken.is_none() && String::from_utf8_lossy(&line).contains(mark) {
            taken = Some(Taken { wall: begun.elapsed().as_secs_f64(), cpu: cpu_seconds(child.id()) });
        }
    }
    let _ = child.wait();
    taken
}

/// Seconds that a loop of `rounds` rounds takes, start-up included, if its result is right.
fn integer_loop(emulator: &Emulator, rounds: u32) -> Option<Taken> {
    let kernel = initramfs::file_of(&image::integer_loop(rounds));
    let device = "isa-debug-exit,iobase=0xf4,iosize=0x4";
    let begun = Instant::now();
    let mut child = start(emulator, &["-kernel", argument(kernel.path()), "-display", "none", "-device", device]);
    let id = child.id();
    let mut cpu = 0.0;
    let status = loop {
        // A process that ended and is not yet waited for keeps its times.
        cpu = cpu_seconds(id).max(cpu);
        if let Ok(Some(status)) = child.try_wait() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let right = status.code() == Some(image::integer_loop_status(rounds));
    if !right {
        eprintln!("{}: the loop of {rounds} rounds ended with {status}", emulator.name);
    }
    right.then(|| Taken { wall: begun.elapsed().as_secs_f64(), cpu })
}

/// Measures each emulator `rounds` times in turn and prints a line for each with the ratio to ours.
fn compare(
    title: &str,
    unit: &str,
    rounds: usize,
    emulators: &[&Emulator],
    measure: impl Fn(&Emulator) -> Option<(f64, f64)>,
) {
    println!("{title}");
    let mut figures: Vec<Vec<(f64, f64)>> = vec![Vec::new(); emulators.len()];
    for _ in 0..rounds {
        for (emulator, mine) in emulators.iter().zip(&mut figures) {
            mine.extend(measure(emulator));
        }
    }
    let mut ours = None;
    for (emulator, mine) in emulators.iter().zip(figures) {
        let by_cpu = spread(mine.iter().map(|figure| figure.1).collect()).map_or(f64::NAN, |figure| figure.0);
        let Some((median, least, most)) = spread(mine.iter().map(|figure| figure.0).collect()) else {
            println!("  {:10} failed", emulator.name);
            continue;
        };
        print!("  {:10} {median:9.2} {unit} ({least:.2} to {most:.2}), by CPU time {by_cpu:9.2}", emulator.name);
        match ours {
            Some(ours) => println!(", {:.2} times {}", by_cpu / ours, OURS.name),
            None => println!(),
        }
        if emulator.name == OURS.name {
            ours = Some(by_cpu);
        }
    }
}

fn kernels() -> Vec<(String, PathBuf, &'static str)> {
    let mut all: Vec<(String, PathBuf, &str)> = Vec::new();
    all.extend(find::seed_kernel().map(|path| ("seed kernel".to_owned(), path, "128M")));
    for path in find::debian_kernels() {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        all.push((name, path, "512M"));
    }
    all
}

fn boot(emulator: &Emulator, kernel: &Path, initrd: &Path, memory: &str) -> Option<(f64, f64)> {
    let arguments = ["-kernel", argument(kernel), "-initrd", argument(initrd), "-append", "console=ttyS0"];
    let arguments = [&arguments[..], &["-m", memory, "-nographic", "-no-reboot"]].concat();
    until(emulator, &arguments, "GUEST-READY").map(|taken| (taken.wall, taken.cpu))
}

fn main() {
    // Cargo adds `--bench`; other words choose what runs.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let wanted = |title: &str| words.is_empty() || words.iter().any(|word| title.contains(word.as_str()));
    let rounds = std::env::var("BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let has_qemu = Command::new(QEMU).arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let emulators: &[&Emulator] = if has_qemu { &[&OURS, &THEIRS] } else { &[&OURS] };
    if !has_qemu {
        println!("{QEMU} is not installed: no comparison");
    }

    if wanted("integer loop") {
        let instructions = f64::from(LONG - SHORT) * image::LOOP_INSTRUCTIONS as f64;
        compare("integer loop, guest MIPS (more is better)", "MIPS", rounds, emulators, |emulator| {
            let short = integer_loop(emulator, SHORT)?;
            let long = integer_loop(emulator, LONG)?;
            let rate = |seconds: f64| instructions / seconds.max(1e-9) / 1e6;
            Some((rate(long.wall - short.wall), rate(long.cpu - short.cpu)))
        });
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
        compare(&format!("{name} to GUEST-READY, seconds (less is better)"), "s", rounds, emulators, |emulator| {
            boot(emulator, &kernel, initrd.path(), memory)
        });
    }
}
