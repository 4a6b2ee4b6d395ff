//! The command line: QEMU's flags, word for word, with one dash or two.
//!
//! `clap` does the parsing. [`normalise`] turns QEMU's style into clap's before, [`message`] turns clap's errors into
//! one line after, and [`values`] says what each value may be. What the flags amount to together is `plan`'s affair.

mod absent;
mod help;
mod message;
mod normalise;
pub mod smp;
pub mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser};

use control::Address;
use cpu::cpuid::Model;
use lens::symbols::Source;
use lens::trace::Spec;
use lens::{Format, Watch};
use machine::Accel;
use values::{Board, DebugConsole, Device, LogItems, Monitor, Nothing, Page, Sandbox, Serial, Timeline};

/// A command line that has been understood.
#[derive(Debug)]
pub enum Request {
    /// Print this and end with status 0.
    Print(String),
    /// Boot what the flags say, or the demo.
    Boot(Box<Flags>),
}

/// A command line that has not been understood: one line that says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);

/// The flags. The first line of each comment is its text in `-help`.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "vitrine", disable_help_flag = true, disable_version_flag = true, args_override_self = true)]
pub struct Flags {
    /// kernel to boot: a Linux bzImage, an ELF file with a PVH note, or a multiboot 1 image
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// initial RAM disk; for multiboot the modules: 'FILE ARGUMENTS,FILE2'
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<String>,
    /// kernel command line
    #[arg(long, value_name = "TEXT")]
    pub append: Option<String>,
    /// memory: MiB, or with a suffix K, M, G or T (default 128M)
    #[arg(long = "m", value_name = "[size=]SIZE", value_parser = values::memory)]
    pub memory: Option<u64>,
    /// processor: max (default) or qemu64, then ,+feature or ,-feature
    #[arg(long, value_name = "MODEL", value_parser = values::cpu)]
    pub cpu: Option<Model>,
    /// number of processors, 1 to 64, also as cpus=4,sockets=2,cores=2
    #[arg(long, value_name = "[cpus=]N", value_parser = smp::smp)]
    pub smp: Option<smp::Processors>,
    /// board: pc (default) or q35, also as type=pc,accel=jit,hpet=off,pit=off
    #[arg(long, visible_alias = "M", value_name = "[type=]NAME", value_parser = values::board)]
    pub machine: Option<Board>,
    /// how guest code is executed: jit[,cache=SIZE] or interp
    #[arg(long, value_name = "NAME", value_parser = values::accel)]
    pub accel: Option<Accel>,
    /// a device: isa-debug-exit,iobase=0xf4,iosize=0x4 or pc-testdev (repeatable)
    #[arg(long, value_name = "NAME[,…]", value_parser = values::device)]
    pub device: Vec<Device>,

    /// no display; the first serial port is the terminal (Ctrl-A x quits, Ctrl-A h helps)
    #[arg(long, action = ArgAction::SetTrue)]
    pub nographic: bool,
    /// display: none
    #[arg(long, value_name = "none", value_parser = values::display)]
    pub display: Option<Nothing>,
    /// next serial port: stdio, mon:stdio (with the Ctrl-A keys), file:PATH, null or none (up to four)
    #[arg(long, value_name = "TO", value_parser = values::serial)]
    pub serial: Vec<Serial>,
    /// debug console, port 0xe9: stdio or file:PATH
    #[arg(long, value_name = "TO", value_parser = values::debug_console)]
    pub debugcon: Option<DebugConsole>,

    /// monitor: stdio, unix:PATH or none (on the terminal Ctrl-A c switches to one)
    #[arg(long, value_name = "TO", value_parser = values::monitor)]
    pub monitor: Option<Monitor>,
    /// QEMU's machine protocol at unix:PATH (repeatable)
    #[arg(long, value_name = "unix:PATH", value_parser = values::socket)]
    pub qmp: Vec<PathBuf>,
    /// serve gdb at tcp:[HOST]:PORT (loopback only without HOST) or unix:PATH (repeatable)
    #[arg(long, value_name = "TO", value_parser = values::gdb)]
    pub gdb: Vec<Address>,
    /// the same as -gdb tcp::1234
    #[arg(long = "s", action = ArgAction::SetTrue)]
    pub gdb_here: bool,
    /// wait before the first instruction until the monitor or a debugger says go on
    #[arg(long = "S", action = ArgAction::SetTrue)]
    pub stopped: bool,

    /// serve the page in the browser at [HOST]:PORT (loopback only without HOST; port 0: a free one); 'vitrine view' does too
    #[arg(long, value_name = "[HOST]:PORT", value_parser = values::page)]
    pub view: Option<Page>,

    /// on: give up what is not needed before the guest starts, or do not start; off: give up nothing (docs/security.md)
    #[arg(long, value_name = "on|off", value_parser = values::sandbox)]
    pub sandbox: Option<Sandbox>,

    /// end where the guest would reset
    #[arg(long, action = ArgAction::SetTrue)]
    pub no_reboot: bool,
    /// stay when the guest powers off
    #[arg(long, action = ArgAction::SetTrue)]
    pub no_shutdown: bool,

    /// symbols of the kernel or of a program: System.map, vmlinux, or [ADDRESS@]PROGRAM (repeatable)
    #[arg(long, value_name = "FILE", value_parser = Source::from_str)]
    pub symbols: Vec<Source>,
    /// print each access that touches these bytes: [r|w|x|rw:][gpa:]ADDR[+LEN], hexadecimal, or [*]SYMBOL, then
    /// [if CONDITION][count N][then ACTION] (repeatable; docs/watch.md)
    #[arg(long, value_name = "WHAT", value_parser = values::watch)]
    pub watch: Vec<Watch>,
    /// form of these lines: vitrine (default) or qemu
    #[arg(long, value_name = "FORM", value_parser = Format::from_str)]
    pub watch_format: Option<Format>,
    /// write these lines to FILE rather than to stderr
    #[arg(long, value_name = "FILE")]
    pub watch_log: Option<PathBuf>,
    /// write accesses as Parquet: FILE[,WHAT][,drop][,off][,from=N][,to=N][,port], WHAT as for -watch or rwx alone (all
    /// reads and writes by default)
    #[arg(long, value_name = "FILE", value_parser = values::trace)]
    pub trace: Option<Spec>,

    /// write exceptions, interrupts, devices, page tables and counters over time for ui.perfetto.dev: FILE[,size=SIZE]
    #[arg(long, value_name = "FILE[,size=SIZE]", value_parser = values::timeline)]
    pub perfetto: Option<Timeline>,

    /// log these items, separated by commas ('-d help' lists them)
    #[arg(long = "d", value_name = "ITEMS", value_parser = values::log_items)]
    pub log: Option<LogItems>,
    /// write the log to FILE rather than to stderr
    #[arg(long = "D", value_name = "FILE")]
    pub log_file: Option<PathBuf>,

    /// write /tmp/perf-PID.map: names of translated code (-accel jit) for Linux perf
    #[arg(long, action = ArgAction::SetTrue)]
    pub perfmap: bool,
    /// write jit-PID.dump: the same with the code, for perf inject --jit
    #[arg(long, action = ArgAction::SetTrue)]
    pub jitdump: bool,

    /// no default devices: serial ports only where -serial says
    #[arg(long, action = ArgAction::SetTrue)]
    pub nodefaults: bool,
    /// read no configuration file (there is none)
    #[arg(long, action = ArgAction::SetTrue)]
    pub no_user_config: bool,
    /// graphics adapter: none
    #[arg(long, value_name = "none", value_parser = values::no_vga)]
    pub vga: Option<Nothing>,
    /// VNC display: none
    #[arg(long, value_name = "none", value_parser = values::no_vnc)]
    pub vnc: Option<Nothing>,
    /// network: none
    #[arg(long, visible_alias = "net", value_name = "none", value_parser = values::no_net)]
    pub nic: Option<Nothing>,
    /// parallel port: none
    #[arg(long, value_name = "none", value_parser = values::no_parallel)]
    pub parallel: Option<Nothing>,

    /// the demo, as without any flag; -kernel and -busybox give it other files
    #[arg(long, action = ArgAction::SetTrue)]
    pub demo: bool,
    /// a static busybox for the demo
    #[arg(long, value_name = "FILE")]
    pub busybox: Option<PathBuf>,

    /// print this help
    #[arg(long, visible_alias = "h", action = ArgAction::SetTrue)]
    pub help: bool,
    /// print the version
    #[arg(long, action = ArgAction::SetTrue)]
    pub version: bool,
}

/// Understands a command line; `arguments` without the program's name.
///
/// # Errors
/// An unknown flag, a value that it does not take, or flags that do not go together.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, UsageError> {
    understand(arguments).map_err(|UsageError(line)| UsageError(message::printable(&line)))
}

fn understand(arguments: impl IntoIterator<Item = OsString>) -> Result<Request, UsageError> {
    let mut command = Flags::command();
    command.build();
    let mut arguments = arguments.into_iter().peekable();
    let view = arguments.next_if(|first| first == "view").is_some();
    let arguments = match normalise::normalise(&command, arguments)? {
        normalise::Normal::Help(topic) => return Ok(Request::Print(topic)),
        normalise::Normal::Arguments(arguments) => arguments,
    };
    let program = OsString::from("vitrine");
    let matches = command
        .try_get_matches_from_mut(std::iter::once(program).chain(arguments))
        .map_err(|error| UsageError(message::one_line(&error)))?;
    let mut flags = Flags::from_arg_matches(&matches).map_err(|error| UsageError(message::one_line(&error)))?;
    if view {
        flags.view.get_or_insert_default();
    }
    if flags.help {
        return Ok(Request::Print(help::text(&command)));
    }
    if flags.version {
        return Ok(Request::Print(format!("Vitrine {}, an x86-64 machine under glass\n", env!("CARGO_PKG_VERSION"))));
    }
    Ok(Request::Boot(Box::new(flags)))
}

#[cfg(test)]
mod tests;
