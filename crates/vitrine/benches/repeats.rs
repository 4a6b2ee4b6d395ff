//! One kernel booted again and again, with memory, processors and tier by chance: it always ends the same.
//!
//! `cargo bench -p vitrine --bench repeats -- --boots 1000`. A boot ends well if the guest comes to its user space with the
//! memory and the processors that it was given, and powers off, without a complaint of its kernel's. The exit status is 0
//! only if all do; the first that does not is printed, and the seed repeats it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use clap::Parser;
use guests::session::{Session, argument};
use guests::{find, initramfs};

/// Says what there is, and powers off.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
echo \"GUEST-READY processors $(nproc) memory $(sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo)\"
dmesg | grep -E 'Oops|BUG:|WARNING: CPU|Call Trace|soft lockup|rcu.*stall'
poweroff -f
";
const PATIENCE: Duration = Duration::from_secs(600);

/// Boots one kernel many times, with memory, processors and tier by chance.
#[derive(Parser)]
#[command(name = "repeats")]
struct Arguments {
    /// How often
    #[arg(long, default_value_t = 1000)]
    boots: u32,
    /// Kernel to boot; by default Debian's from .cache
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Where chance begins; by default the time
    #[arg(long)]
    seed: Option<u64>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Whether what the guest said and how it ended is as it is to be. It sees less than all memory: the kernel keeps some.
fn well(stdout: &str, status: Option<i32>, megabytes: u64, processors: u64) -> bool {
    let said = stdout.lines().position(|line| line.starts_with("GUEST-READY"));
    let Some(lines) = said.map(|at| stdout.lines().skip(at).collect::<Vec<_>>()) else { return false };
    let words: Vec<&str> = lines[0].split_whitespace().collect();
    let memory = words.get(4).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0) >> 10;
    status == Some(0)
        && words.get(2) == Some(&processors.to_string().as_str())
        && (megabytes / 2..megabytes).contains(&memory)
        && lines.iter().skip(1).all(|line| line.trim().is_empty() || line.contains("reboot: Power down"))
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let kernel = arguments.kernel.or_else(|| find::debian_kernels().into_iter().next());
    let kernel = kernel.context("no kernel of Debian's in .cache: cargo run fetches one, or give --kernel")?;
    let initrd = initramfs::build(INIT).context("no static busybox (package busybox-static)")?;
    let time = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let seed = arguments.seed.unwrap_or(time);
    println!("seed {seed}");
    let begun = Instant::now();
    for boot in 1..=arguments.boots {
        let chance = |what: &str| {
            let mut hasher = DefaultHasher::new();
            (seed, boot, what).hash(&mut hasher);
            hasher.finish()
        };
        let (megabytes, processors) = (96 + chance("memory") % 2000, 1 + chance("processors") % 8);
        let tier = if chance("tier") % 10 == 0 { "interp" } else { "jit" };
        let (m, smp) = (format!("{megabytes}M"), processors.to_string());
        let mut command = vec!["-kernel", argument(&kernel), "-initrd", argument(initrd.path()), "-nographic"];
        command.extend(["-append", "console=ttyS0 quiet", "-m", &m, "-smp", &smp, "-accel", tier]);
        let ended = Session::start(env!("CARGO_BIN_EXE_vitrine"), &command).end(PATIENCE);
        if !well(&ended.stdout, ended.status.code(), megabytes, processors) {
            println!("boot {boot} (-m {m} -smp {smp} -accel {tier}) did not end well: {ended:?}");
            return Ok(ExitCode::FAILURE);
        }
        if boot % 50 == 0 || boot == arguments.boots {
            println!("{boot} boots ended well, {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    Ok(ExitCode::SUCCESS)
}
