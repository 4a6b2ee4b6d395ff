//! Debian's own programs (compressors, interpreters, a compiler, a database, OpenSSL, text tools) as fixed jobs in a
//! guest, on several emulators and on the host, interleaved.
//!
//! `cargo bench -p vitrine --bench programs -- --help` says how. The guest is a tree of packages that `make-tree` makes
//! in `.cache/programs`; `guest/jobs` lists the jobs. CPU seconds are those of the emulator's process between the marks
//! of a job; they suffer less than the clock's from whatever else the machine does. The exit status is 0 only if every
//! job ended everywhere with the same checksum.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use guests::comparison::{Comparison, Mark};
use guests::measure::{Taken, cpu_seconds};
use guests::{find, tree};

const OPTIONS: &str = "-cpu max -m 1G -nographic -no-reboot -kernel {kernel} -initrd {initrd} -append {append}";

/// Times Debian's programs on several emulators, interleaved. Paths are relative to the workspace.
#[derive(Parser)]
#[command(name = "programs")]
struct Arguments {
    /// Emulators as NAME='COMMAND with {kernel} {initrd} {append}', the base of the ratios first; {tree} and {jobs}
    /// are for the host's own: native='chroot {tree} /data/jobs {jobs}'. QEMU's TCG, Vitrine and native if none is given
    #[arg(value_name = "NAME=COMMAND")]
    emulators: Vec<String>,
    /// Kernel to boot; by default Debian's from .cache
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Another initramfs whose init prints BEGIN and END around its jobs
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// Only these jobs, separated by commas
    #[arg(long, default_value = "")]
    jobs: String,
    /// How many times each emulator runs
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds after which a run is given up
    #[arg(long, default_value_t = 1800)]
    timeout: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

struct Emulator {
    name: String,
    command: String,
}

impl Emulator {
    fn parse(text: &str) -> Result<Self> {
        let (name, command) = text.split_once('=').with_context(|| format!("{text}: NAME=COMMAND is due"))?;
        Ok(Self { name: name.to_owned(), command: command.to_owned() })
    }

    /// Those that are at hand: QEMU's TCG, Vitrine, the host.
    fn all() -> Vec<Self> {
        let new = |name: &str, command: String| Self { name: name.to_owned(), command };
        let qemu = "qemu-system-x86_64";
        let installed = Command::new(qemu).arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
        let qemu = installed.then(|| new("QEMU TCG", format!("{qemu} -accel tcg {OPTIONS}")));
        let ours = new("Vitrine", format!("{} {OPTIONS}", env!("CARGO_BIN_EXE_vitrine")));
        // Who is not root may change the root folder in a user namespace.
        let root = if rustix::process::geteuid().is_root() { "" } else { "unshare --map-root-user " };
        let native = new("native", format!("{root}chroot {{tree}} /data/jobs {{jobs}}"));
        qemu.into_iter().chain([ours, native]).collect()
    }
}

/// What the commands' words in braces stand for.
struct Guest {
    kernel: PathBuf,
    initrd: PathBuf,
    tree: PathBuf,
    jobs: String,
}

impl Guest {
    fn new(arguments: &Arguments) -> Result<Self> {
        let known = || find::debian_kernels().into_iter().next();
        let kernel = arguments.kernel.clone().or_else(known).context("no kernel at hand: give one by --kernel")?;
        let folder = find::workspace().join(".cache/programs");
        let initrd = match &arguments.initrd {
            Some(given) => given.clone(),
            None => made(&folder)?,
        };
        Ok(Self { kernel, initrd, tree: folder.join("tree"), jobs: arguments.jobs.clone() })
    }

    /// The shell expands the words, so that no value needs quoting, and then becomes the emulator.
    fn command(&self, emulator: &Emulator) -> Command {
        let mut line = format!("exec {}", emulator.command);
        let mut command = Command::new("sh");
        for (word, variable) in [
            ("{kernel}", "KERNEL"),
            ("{initrd}", "INITRD"),
            ("{append}", "APPEND"),
            ("{tree}", "TREE"),
            ("{jobs}", "JOBS"),
        ] {
            line = line.replace(word, &format!("\"${variable}\""));
        }
        command.arg("-c").arg(line).env("KERNEL", &self.kernel).env("INITRD", &self.initrd).env("TREE", &self.tree);
        command.env("JOBS", &self.jobs).env("APPEND", format!("console=ttyS0 quiet panic=-1 JOBS={}", self.jobs));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }
}

/// The initramfs in `folder`, made anew if it is older than what it is made from.
fn made(folder: &Path) -> Result<PathBuf> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/programs");
    let script = sources.join("make-tree");
    let mut make = Command::new(&script);
    tree::made(folder, &[&sources.join("guest"), &script], make.arg(folder)).context("packages cannot be had")
}

/// Runs an emulator to its end, or until time is up, and tells of every mark and when it came.
fn run(mut command: Command, patience: Duration, mut tell: impl FnMut(Mark<'_>, Taken)) -> Result<()> {
    let begun = Instant::now();
    let mut child = command.spawn().context("sh cannot be started")?;
    let id = child.id();
    let lines = child.stdout.take().into_iter().flat_map(|stdout| BufReader::new(stdout).split(b'\n'));
    let (to, from) = mpsc::channel();
    // Times are taken where the line comes in; the other end may be late.
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let now = Taken { wall: begun.elapsed().as_secs_f64(), cpu: cpu_seconds(id) };
            if to.send((String::from_utf8_lossy(&line).into_owned(), now)).is_err() {
                return;
            }
        }
    });
    let result = loop {
        match from.recv_timeout(patience.saturating_sub(begun.elapsed())) {
            Ok((line, now)) => {
                if let Some(mark) = Mark::find(&line) {
                    tell(mark, now);
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break Ok(()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let _ = child.kill();
                break Err(anyhow::anyhow!("given up after {} s", patience.as_secs()));
            }
        }
    };
    let _ = child.wait();
    result
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    // Cargo runs a benchmark in its package's folder.
    std::env::set_current_dir(find::workspace())?;
    let given: Vec<Emulator> = arguments.emulators.iter().map(|text| Emulator::parse(text)).collect::<Result<_>>()?;
    let emulators = if given.is_empty() { Emulator::all() } else { given };
    let guest = Guest::new(&arguments)?;
    let patience = Duration::from_secs(arguments.timeout);
    let mut comparison = Comparison::new(emulators.iter().map(|emulator| emulator.name.clone()).collect());
    let mut wrong = Vec::new();
    for round in 1..=arguments.rounds {
        for (place, emulator) in emulators.iter().enumerate() {
            let name = &emulator.name;
            let mut since = None;
            let ended = run(guest.command(emulator), patience, |mark, now| match mark {
                Mark::Begin(job) => {
                    comparison.begin(job);
                    since = Some(now);
                }
                Mark::End(job, checksum) => {
                    let Some(then) = since.take() else { return };
                    let taken = Taken { wall: now.wall - then.wall, cpu: now.cpu - then.cpu };
                    eprintln!("round {round}, {name}: {job} {:.2} s of CPU, {:.2} s", taken.cpu, taken.wall);
                    wrong.extend(comparison.end(place, job, checksum, taken).err());
                }
            });
            wrong.extend(ended.err().map(|error| format!("{name}: {error}")));
        }
    }
    println!("CPU time:\n\n{}\nBy the clock:\n\n{}", comparison.table(|it| it.cpu), comparison.table(|it| it.wall));
    wrong.extend(comparison.missing(arguments.rounds));
    for line in &wrong {
        eprintln!("{line}");
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
