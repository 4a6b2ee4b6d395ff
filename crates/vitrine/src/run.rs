//! `vitrine -kernel …`: from flags to a machine.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use anyhow::{Context, Result};
use control::Address;
use cpu::cpuid::Model;
use devices::Sink;
use jit::perf::{Perf, Wanted};
use lens::symbols::{self, Kernel};
use lens::trace::{Spec, Summary, TraceError};
use lens::{Lens, Trace, Watcher};
use machine::{Accel, Config, DebugConsole};

use crate::flags::smp::Processors;
use crate::flags::values::{self, Device, Monitor, Serial};
use crate::flags::{Flags, UsageError};
use crate::plan::Console;
use crate::sandbox;
use crate::say::say;
use crate::session::{End, Event, Session, To};
use crate::timeline;

/// Port of the debug console, as QEMU's `-debugcon` has it.
const DEBUGCON: u16 = 0xe9;
/// TCP port of `-s`.
const GDB_PORT: u16 = 1234;

/// Boots what the flags say and stays until it ends.
///
/// # Errors
/// Wrong combinations of flags ([`UsageError`]), files that cannot be read or written, a machine that cannot be made.
pub fn run(flags: &Flags) -> Result<End> {
    let console = Console::of(flags)?;
    let Some(kernel) = &flags.kernel else {
        return Err(UsageError(
            "nothing to boot: give a kernel by -kernel FILE, or no flag at all for the demo".to_owned(),
        )
        .into());
    };
    if flags.busybox.is_some() {
        return Err(UsageError("-busybox is for the demo: vitrine -demo -busybox FILE".to_owned()).into());
    }
    sandbox::prepare(flags, kernel, flags.initrd.as_deref())?;
    let mut trace = None;
    let perfetto = flags.perfetto.as_ref().map(timeline::create).transpose()?;
    let kernel = symbols(flags)?;
    let mut session = Session::new(|events| {
        let mut config = config(flags)?;
        config.serials = console.serial.iter().map(|to| serial(to, events)).collect::<Result<_>>()?;
        config.debugcon = flags.debugcon.as_ref().map(|to| debug_console(to, events)).transpose()?;
        trace = flags.trace.as_ref().map(|spec| tracer(spec, config.cpus, &kernel)).transpose()?;
        config.trace_port = flags.trace.as_ref().and_then(|spec| spec.when.port);
        config.lens = Arc::new(Lens::new(watcher(flags, &kernel)?, trace.clone()));
        config.witness = perfetto.clone().map(|perfetto| perfetto as _);
        Ok(config)
    })?;
    // Before anybody can ask.
    if flags.stopped {
        session.hold();
    }
    if console.assumed {
        say("there is no display yet, so the terminal is used as with -nographic: Ctrl-A x quits, Ctrl-A h helps");
    }
    if let Some(page) = &flags.view {
        session.serve_page(page)?;
    }
    if let Some(mode) = console.terminal {
        session.attach(mode, console.input)?;
    }
    if let Some(Monitor::Unix(path)) = &flags.monitor {
        session.serve_monitor(path)?;
    }
    for path in &flags.qmp {
        session.serve_qmp(path)?;
    }
    let here = flags.gdb_here.then(|| Address::Tcp("127.0.0.1".to_owned(), GDB_PORT));
    for address in flags.gdb.iter().chain(&here) {
        session.serve_gdb(address)?;
    }
    if let Some(perfetto) = &perfetto {
        session.follow(perfetto, kernel)?;
    }
    sandbox::bound(flags.sandbox, flags.smp.map_or(1, |smp| smp.cpus))?;
    session.start()?;
    let end = session.wait();
    let end = trace.map_or(end, |trace| finish(&trace, end));
    Ok(perfetto.map_or(end, |perfetto| timeline::finish(&perfetto, end)))
}

/// What is asked for symbols, with the files that `-symbols` names.
pub fn symbols(flags: &Flags) -> Result<Arc<Kernel>> {
    let files =
        flags.symbols.iter().map(|source| symbols::File::open(source).context("-symbols")).collect::<Result<_>>()?;
    Ok(Arc::new(Kernel::new(files, |what| say(what))))
}

/// The trace that `-trace` asks for.
fn tracer(spec: &Spec, cpus: u32, kernel: &Arc<Kernel>) -> Result<Arc<Trace>> {
    let broken = |error: &TraceError| say(format_args!("the trace ends here: {error}"));
    Ok(Arc::new(Trace::create(spec, cpus, Arc::clone(kernel), broken)?))
}

/// Ends the trace, and says what it came to.
fn finish(trace: &Trace, end: End) -> End {
    match trace.finish() {
        Ok(Summary { records, dropped, bytes }) => {
            let lost = if dropped == 0 { String::new() } else { format!(", {dropped} lost") };
            say(format_args!("trace: {records} accesses in {bytes} bytes{lost}"));
            end
        }
        // Why has been said when it happened.
        Err(_) if end == End::Status(0) => End::Status(1),
        Err(_) => end,
    }
}

/// What the flags say of the machine apart from where its console and its observers are.
pub fn config(flags: &Flags) -> Result<Config> {
    let processors = flags.smp.unwrap_or(Processors { cpus: 1, cores: 1 });
    let model = flags.cpu.clone().unwrap_or_else(Model::max).with_cores(processors.cores);
    let mut config = Config::new(Arc::new(model));
    config.memory = flags.memory.unwrap_or(values::MEMORY_DEFAULT);
    config.cpus = processors.cpus;
    let board = flags.machine.unwrap_or_default();
    config.accel = flags.accel.or(board.accel).unwrap_or_default();
    config.perf = perf(flags, config.accel)?;
    config.board = board.kind.unwrap_or_default();
    (config.hpet, config.pit) = (!board.no_hpet, !board.no_pit);
    config.kernel = flags.kernel.clone();
    config.initrd = flags.initrd.clone();
    config.append = flags.append.clone().unwrap_or_default();
    config.no_reboot = flags.no_reboot;
    config.no_shutdown = flags.no_shutdown;
    for device in &flags.device {
        let twice = match device {
            Device::DebugExit(ports) => config.isa_debug_exit.replace(*ports).is_some(),
            Device::TestDevice => std::mem::replace(&mut config.pc_testdev, true),
        };
        if twice {
            return Err(UsageError("a -device is there twice; once is enough".to_owned()).into());
        }
    }
    Ok(config)
}

/// The files that `-perfmap` and `-jitdump` ask for.
fn perf(flags: &Flags, accel: Accel) -> Result<Option<Arc<Perf>>> {
    let wanted = Wanted { map: flags.perfmap, dump: flags.jitdump };
    if !wanted.any() {
        return Ok(None);
    }
    if accel == Accel::Interp {
        let flag = if wanted.map { "-perfmap" } else { "-jitdump" };
        return Err(
            UsageError(format!("{flag} names translated code, of which there is none without -accel jit")).into()
        );
    }
    Ok(Some(Arc::new(Perf::create(wanted)?)))
}

fn serial(to: &Serial, events: &Sender<Event>) -> Result<machine::Serial> {
    Ok(match to {
        Serial::None => machine::Serial::None,
        Serial::Null => machine::Serial::Port(Box::new(devices::sink::Null)),
        Serial::Stdio | Serial::MonStdio => machine::Serial::Port(To::stdout(events)?),
        Serial::File(path) => machine::Serial::Port(file(path, events)?),
    })
}

fn debug_console(to: &values::DebugConsole, events: &Sender<Event>) -> Result<DebugConsole> {
    let sink = match to {
        values::DebugConsole::Stdio => To::stdout(events)?,
        values::DebugConsole::File(path) => file(path, events)?,
    };
    Ok(DebugConsole { iobase: DEBUGCON, sink })
}

fn file(path: &Path, events: &Sender<Event>) -> Result<Box<dyn Sink>> {
    let file = create(path)?;
    Ok(To::descriptor(file.into(), path.display().to_string(), events))
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("{} cannot be written", path.display()))
}

/// The watch that `-watch`, `-watch-format` and `-watch-log` ask for.
pub fn watcher(flags: &Flags, kernel: &Arc<Kernel>) -> Result<Watcher> {
    let (to, name): (Box<dyn io::Write + Send>, _) = match &flags.watch_log {
        Some(path) => (Box::new(create(path)?), path.display().to_string()),
        None => (Box::new(io::stderr()), "standard error".to_owned()),
    };
    let format = flags.watch_format.unwrap_or_default();
    let broken = move |error| say(format_args!("no more lines of the watch: {name} cannot be written: {error}"));
    let watcher = Watcher::new(format, Arc::clone(kernel), to, broken);
    for watch in &flags.watch {
        watcher.add(watch.clone()).map_err(|error| UsageError(format!("-watch: {error}")))?;
    }
    Ok(watcher)
}
