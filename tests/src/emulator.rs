//! Emulators that run the same guests in turn, and how long they take.

use crate::measure::{Taken, cpu_seconds, spread};
use crate::session::argument;
use crate::{image, initramfs};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// QEMU's command.
pub const QEMU: &str = "qemu-system-x86_64";
/// Rounds of the integer loop. The difference of the two is what counts.
const SHORT: u32 = 200_000;
const LONG: u32 = 400_200_000;

/// One emulator.
#[derive(Clone, Debug)]
pub struct Emulator {
    /// What it is called.
    pub name: String,
    program: PathBuf,
    /// What it needs beyond what all get.
    options: Vec<String>,
}

impl Emulator {
    /// A program with options of its own.
    #[must_use]
    pub fn new(name: &str, program: impl Into<PathBuf>, options: &[&str]) -> Self {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Self { name: name.to_owned(), program: program.into(), options }
    }

    /// QEMU's TCG with these options more, if it is installed.
    #[must_use]
    pub fn tcg(name: &str, options: &[&str]) -> Option<Self> {
        let there = Command::new(QEMU).arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
        there.then(|| Self::new(name, QEMU, &[&["-accel", "tcg", "-cpu", "max"], options].concat()))
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(&self.program);
        command.args(&self.options).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.program.display()))
    }

    /// Runs to the line that contains `mark`; the guest is then left to end by itself.
    #[must_use]
    pub fn until(&self, arguments: &[&str], mark: &str) -> Option<Taken> {
        let begun = Instant::now();
        let mut child = self.start(arguments);
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

    /// Boots a kernel to the `GUEST-READY` of its initramfs.
    #[must_use]
    pub fn boot(&self, kernel: &Path, initrd: &Path, memory: &str) -> Option<Taken> {
        let arguments = ["-kernel", argument(kernel), "-initrd", argument(initrd), "-append", "console=ttyS0"];
        self.until(&[&arguments[..], &["-m", memory, "-nographic", "-no-reboot"]].concat(), "GUEST-READY")
    }

    /// Seconds that a loop of `rounds` rounds takes, start-up included, if its result is right.
    fn integer_loop(&self, rounds: u32) -> Option<Taken> {
        let kernel = initramfs::file_of(&image::integer_loop(rounds));
        let device = "isa-debug-exit,iobase=0xf4,iosize=0x4";
        let begun = Instant::now();
        let mut child = self.start(&["-kernel", argument(kernel.path()), "-display", "none", "-device", device]);
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
            eprintln!("{}: the loop of {rounds} rounds ended with {status}", self.name);
        }
        right.then(|| Taken { wall: begun.elapsed().as_secs_f64(), cpu })
    }

    /// Millions of guest instructions a second on an integer loop: the difference of a long and a short run, so that
    /// start-up does not count; by the clock, and by CPU time.
    #[must_use]
    pub fn integer_rate(&self) -> Option<(f64, f64)> {
        let instructions = f64::from(LONG - SHORT) * image::LOOP_INSTRUCTIONS as f64;
        let short = self.integer_loop(SHORT)?;
        let long = self.integer_loop(LONG)?;
        let rate = |seconds: f64| instructions / seconds.max(1e-9) / 1e6;
        Some((rate(long.wall - short.wall), rate(long.cpu - short.cpu)))
    }
}

/// Measures each emulator `rounds` times in turn: a figure by the clock, and one by CPU time. Prints a line for each, with
/// the ratio of its CPU time to that of the first in the same round: the median, the least and the greatest.
pub fn compare(
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
    let first: Vec<f64> = figures.first().into_iter().flatten().map(|figure| figure.1).collect();
    for (n, (emulator, mine)) in emulators.iter().zip(&figures).enumerate() {
        let by_cpu = spread(mine.iter().map(|figure| figure.1).collect()).map_or(f64::NAN, |figure| figure.0);
        let Some((median, least, most)) = spread(mine.iter().map(|figure| figure.0).collect()) else {
            println!("  {:24} failed", emulator.name);
            continue;
        };
        print!("  {:24} {median:9.2} {unit} ({least:.2} to {most:.2}), by CPU time {by_cpu:9.2}", emulator.name);
        let ratios = mine.iter().zip(&first).map(|(figure, first)| figure.1 / first).collect();
        match spread(ratios).filter(|_| n > 0 && mine.len() == first.len()) {
            Some((median, least, most)) => {
                println!(", {median:.3} times {} ({least:.3} to {most:.3})", emulators[0].name);
            }
            None => println!(),
        }
    }
}
