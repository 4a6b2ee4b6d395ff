//! Hours under load: `stress-ng` in a guest with two processors, while the guest's clock and Vitrine's memory are
//! compared with what they are to be.
//!
//! `cargo bench -p vitrine --bench endurance -- --minutes 30`. The exit status is 0 only if the load's own checks hold,
//! the kernel has no complaint, the guest's clock stays within 100 ms of the host's, and Vitrine takes no more memory than
//! the guest's, that of translated code, and 32 MiB.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::Parser;
use guests::{find, tree};

/// MiB of guest memory, of translated code, and of all else that Vitrine may take.
const MEMORY: [u64; 3] = [1024, 256, 32];
/// Seconds that the guest's clock may gain or lose.
const DRIFT: f64 = 0.1;
/// Lines of the clock among which the least delayed is looked for.
const WINDOW: usize = 60;

/// Runs stress-ng in a guest, and compares its clock and Vitrine's memory with what they are to be.
#[derive(Parser)]
#[command(name = "endurance")]
struct Arguments {
    /// How long
    #[arg(long, default_value_t = 30)]
    minutes: u32,
    /// Kernel to boot; by default Debian's from .cache
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// KiB of memory that process `id` has, each page counted once however often it is mapped.
fn memory(id: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{id}/smaps_rollup")).unwrap_or_default();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// What the clock gains from the first window of offsets to the last. In each the least delayed counts: a guest under load
/// says late what time it was.
fn drift(offsets: &[f64]) -> Option<f64> {
    let most = |window: &[f64]| window.iter().copied().max_by(f64::total_cmp);
    let window = WINDOW.min(offsets.len() / 2);
    Some(most(&offsets[offsets.len() - window..])? - most(&offsets[..window])?)
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let (folder, sources) = (find::workspace().join(".cache/guest-stress"), find::workspace().join("tests/guest"));
    let (script, programs) = (sources.join("make-tree"), sources.join("programs"));
    let mut make = Command::new(&script);
    make.arg(&folder).arg(&programs).args(["coreutils", "dash", "grep", "stress-ng"]);
    let initrd = tree::made(&folder, &[&script, &programs], &mut make).context("packages cannot be had")?;
    let kernel = arguments.kernel.or_else(|| find::debian_kernels().into_iter().next());
    let kernel = kernel.context("no kernel of Debian's in .cache: cargo run fetches one, or give --kernel")?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_vitrine"));
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd).arg("-append");
    command.arg(format!("console=ttyS0 JOBS=endure STRESS={}m", arguments.minutes));
    command.args(["-nographic", "-smp", "2", "-m", &format!("{}M", MEMORY[0])]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let start = Instant::now();
    let (mut offsets, mut most, mut endured, mut complaints) = (Vec::new(), 0, false, Vec::new());
    for line in BufReader::new(child.stdout.take().context("a pipe")?).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim();
        let Some(clock) = line.strip_prefix("CLOCK ") else {
            endured |= line.starts_with("END endure");
            if ["lockup", "stall", "BUG:", "Oops", "WARNING: ", "hung task", "FAILED"]
                .iter()
                .any(|bad| line.contains(bad))
            {
                complaints.push(line.to_owned());
            }
            continue;
        };
        offsets.push(clock.parse::<f64>()? - SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64());
        most = most.max(memory(child.id()));
        if offsets.len() % WINDOW == 0 {
            let drift = drift(&offsets).unwrap_or(0.0) * 1e3;
            println!("{:5.0} s: drift {drift:+.1} ms, memory {} MiB", start.elapsed().as_secs_f64(), most >> 10);
        }
    }
    let status = child.wait()?;
    let drift = drift(&offsets).context("the guest said no time")?;
    let bound: u64 = MEMORY.iter().sum();
    println!("{} lines of the clock, drift {:+.1} ms (bound {:.0})", offsets.len(), drift * 1e3, DRIFT * 1e3);
    println!("memory at most {} MiB (bound {bound})", most >> 10);
    println!("stress-ng's checks: {}", if endured { "passed" } else { "not passed" });
    for complaint in &complaints {
        println!("complaint: {complaint}");
    }
    let fine = status.success() && endured && complaints.is_empty() && drift.abs() <= DRIFT && most >> 10 <= bound;
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
