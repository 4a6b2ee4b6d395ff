//! The demo: an unmodified distribution kernel boots, and one access is seen by both sides of the glass.
//!
//! The guest's program (`guest`) says at which addresses it sees its own page and what is in it. Vitrine watches the
//! page and prints what it saw when the program read it again. Then both are compared.

mod apt;
mod console;
mod cpio;
mod files;
mod guest;
mod initramfs;
mod progress;
mod report;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lens::watch::{Kinds, Start, Watch};
use lens::{Lens, Watcher};
use machine::Outcome;
use memory::Gva;
use view::Mode;

use crate::flags::{Flags, UsageError};
use crate::run;
use crate::sandbox;
use crate::say::{line, say};
use crate::session::{End, Event, Session, To};
use console::Console;
pub use console::{Mark, Sight};
use guest::Program;
use progress::Step;
use report::{Lines, Report};

/// Memory unless `-m` says otherwise: enough for kernels that are larger than Debian's.
const MEMORY: u64 = 256 << 20;
/// How long a guest may take to get through the experiment.
const PATIENCE: Duration = Duration::from_secs(900);
/// Lines of the guest's console that are shown when it failed.
const TAIL: usize = 12;

/// Runs the demo.
///
/// # Errors
/// No files to boot, no machine, a guest that does not come through.
pub fn run(flags: &Flags) -> Result<End> {
    refuse(flags)?;
    let cache = files::cache()?;
    let shell = io::stdin().is_terminal();
    let files = files::find(&cache, flags.kernel.as_deref(), flags.busybox.as_deref())?;
    let program = Program::assemble().context("the guest's program cannot be made")?;
    let initramfs = pack(&cache, &files.busybox, &program, shell)?;

    let name = files.kernel.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let booting = Step::begin(format!("Booting {name}"));
    let lines = Lines::default();
    let log = cache.join("console.log");
    sandbox::prepare(flags, &files.kernel, Some(&initramfs))?;
    let mut console = None;
    let mut session = Session::new(|events| {
        let mut config = run::config(flags)?;
        config.memory = flags.memory.unwrap_or(MEMORY);
        config.no_reboot = true;
        config.kernel = Some(files.kernel);
        config.initrd = Some(initramfs);
        config.append = format!("console=ttyS0 panic=-1 {}", flags.append.as_deref().unwrap_or_default());
        let sink = Console::new(events.clone(), fs::File::create(&log).ok());
        config.serials = vec![machine::Serial::Port(Box::new(sink.clone()))];
        let watcher = Watcher::new(lens::Format::Vitrine, Arc::default(), Box::new(lines.clone()), |_| {});
        watcher.add(watch())?;
        config.lens = Arc::new(Lens::new(watcher, None));
        console = Some((sink, events.clone()));
        Ok(config)
    })?;
    if let Some(page) = &flags.view {
        session.serve_page(page)?;
    }
    sandbox::bound(flags.sandbox, 1)?;
    session.start()?;
    let report = match experiment(&session, &booting, &program, &lines) {
        Ok(Ok(report)) => report,
        Ok(Err(end)) => return Ok(end),
        Err(error) => {
            drop(booting);
            session.quit();
            tail(&log);
            bail!("{error:#}; the guest's console is in {}", log.display());
        }
    };
    booting.end(&format!("{name} booted and did the experiment"));
    io::stdout().write_all(report.to_string().as_bytes()).context("standard output cannot be written")?;
    lines.to_stderr();
    if shell && let Some((console, events)) = console {
        line("\nThis is the guest's shell. 'peek' does it again, 'poweroff' ends the guest, Ctrl-A x quits Vitrine.\n");
        let user = To::stdout(&events)?;
        session.attach(Mode::Raw, Some(0))?;
        console.open(user);
    }
    let end = session.wait();
    Ok(if report.agrees() || matches!(end, End::Signal(_)) { end } else { End::Status(1) })
}

/// What the demo has no use for is refused rather than ignored.
fn refuse(flags: &Flags) -> Result<(), UsageError> {
    let unused = [
        (flags.initrd.is_some(), "-initrd"),
        (!flags.serial.is_empty(), "-serial"),
        (!flags.device.is_empty(), "-device"),
        (flags.debugcon.is_some(), "-debugcon"),
        (!flags.watch.is_empty(), "-watch"),
        (flags.watch_format.is_some(), "-watch-format"),
        (flags.watch_log.is_some(), "-watch-log"),
        (flags.trace.is_some(), "-trace"),
        (flags.perfetto.is_some(), "-perfetto"),
        (flags.no_shutdown, "-no-shutdown"),
    ];
    match unused.iter().find(|(given, _)| *given) {
        Some((_, name)) => {
            Err(UsageError(format!("the demo has no use for {name}; it takes -kernel, -busybox, -append, -m and -cpu")))
        }
        None => Ok(()),
    }
}

fn watch() -> Watch {
    let kinds = Kinds { read: true, ..Kinds::default() };
    Watch::new(kinds, Start::Virtual(Gva(guest::PAGE)), 4)
}

/// Packs the initramfs and gives its path.
fn pack(cache: &Path, busybox: &Path, program: &Program, shell: bool) -> Result<String> {
    let step = Step::begin("Packing the initramfs");
    let busybox = fs::read(busybox).with_context(|| format!("{} cannot be read", busybox.display()))?;
    let packed = initramfs::pack(&busybox, &program.file, shell).context("the initramfs cannot be packed")?;
    let place = cache.join(if shell { "initramfs-shell" } else { "initramfs-off" });
    let unfinished = cache.join(format!("initramfs-{}", std::process::id()));
    fs::write(&unfinished, &packed)
        .and_then(|()| fs::rename(&unfinished, &place))
        .with_context(|| format!("{} cannot be written", place.display()))?;
    step.end(&format!("initramfs of {} KiB", packed.len() / 1024));
    place.into_os_string().into_string().ok().context("the cache folder's name is not UTF-8")
}

/// Follows the guest until the experiment is done. The inner error is an end that the user brought about.
fn experiment(session: &Session, step: &Step, program: &Program, lines: &Lines) -> Result<Result<Report, End>> {
    let deadline = Instant::now() + PATIENCE;
    let mut sight = None;
    loop {
        match session.next(deadline) {
            None => bail!("the guest was not ready after {} s", PATIENCE.as_secs()),
            Some(Event::Guest(Mark::Text(text))) => step.detail(text),
            Some(Event::Guest(Mark::Sight(seen))) => sight = Some(seen),
            Some(Event::Guest(Mark::Done(status))) => {
                if status != "0" {
                    bail!("the guest's program failed with exit status {status}");
                }
                let Some(sight) = sight else { bail!("the guest's program said nothing of what it saw") };
                return Ok(Ok(Report::new(sight, &lines.taken(), program.read_again)));
            }
            Some(Event::Ended(outcome)) => match outcome {
                Ok(Outcome::TripleFault(crash)) => bail!(crash),
                Ok(outcome) => bail!("the guest ended before the experiment was done ({outcome:?})"),
                Err(error) => return Err(error.into()),
            },
            Some(event) => {
                step.clear();
                if let Some(end) = session.end_by(event) {
                    return Ok(Err(end));
                }
            }
        }
    }
}

/// Prints the last lines of the guest's console.
fn tail(log: &Path) {
    let Ok(bytes) = fs::read(log) else { return };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    for last in lines.get(lines.len().saturating_sub(TAIL)..).unwrap_or_default() {
        line(format_args!("    {}", last.trim_end()));
    }
    if lines.is_empty() {
        say("the guest printed nothing");
    }
}
