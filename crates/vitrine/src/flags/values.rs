//! What the value of each flag may be. Every refusal says what would be right; the caller puts the flag before it.

use std::path::PathBuf;

use control::Address;
use cpu::cpuid::{Model, ModelError};
use lens::trace::{Spec, SpecError};
use lens::{Watch, WatchError};
use machine::{Accel, BoardKind, DebugExitPorts};

const MIB: u64 = 1 << 20;
/// How large a timeline may be unless told otherwise, in bytes.
const TIMELINE_LIMIT: u64 = 512 << 20;
/// Where servers are unless told otherwise.
const LOOPBACK: &str = "127.0.0.1";

/// The least memory that the smallest of guests can start in.
const MEMORY_LEAST: u64 = 2 * MIB;
/// The most: 40 bits of guest physical address, of which the hole below 4 GiB takes some.
const MEMORY_MOST: u64 = 1 << 40;

/// Memory when `-m` does not say: QEMU's default.
pub const MEMORY_DEFAULT: u64 = 128 * MIB;

/// Where a serial port leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serial {
    /// Standard input and output; Ctrl-C ends Vitrine.
    Stdio,
    /// Standard input and output with the Ctrl-A keys; Ctrl-C is the guest's.
    MonStdio,
    /// Output to a file, no input.
    File(PathBuf),
    /// Output nowhere, no input.
    Null,
    /// There is no such port.
    None,
}

/// Where the debug console leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DebugConsole {
    /// Standard output.
    Stdio,
    /// A file.
    File(PathBuf),
}

/// Where the monitor is, beside Ctrl-A c.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Monitor {
    /// Nowhere.
    None,
    /// On standard input and output.
    Stdio,
    /// At a Unix socket.
    Unix(PathBuf),
}

/// The only value of a flag that turns off what is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nothing;

/// The value of `-machine`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Board {
    /// Which board; `None` if only properties were given.
    pub kind: Option<BoardKind>,
    /// `accel=`.
    pub accel: Option<Accel>,
    /// `hpet=off`.
    pub no_hpet: bool,
    /// `pit=off`.
    pub no_pit: bool,
}

/// The value of `-device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// `isa-debug-exit`.
    DebugExit(DebugExitPorts),
    /// `pc-testdev`, which test kernels talk to.
    TestDevice,
}

/// The value of `-d`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogItems(pub Vec<&'static str>);

/// The log items, with their texts for `-d help`.
pub const LOG_ITEMS: [(&str, &str); 7] = [
    ("int", "interrupts and exceptions as they are delivered"),
    ("guest_errors", "when the guest does something invalid, such as accessing a register that does not exist"),
    ("cpu_reset", "the processor's state at each reset"),
    ("mmu", "what the guest does to its address translation"),
    ("in_asm", "guest code, each block when it is first decoded"),
    ("out_asm", "translated code, each region when it is translated: guest and host"),
    ("jit", "what the translator counted, when the machine ends (counting makes it slower)"),
];

/// The list that flag `id` prints when its value is `help`, if it has one.
pub fn help(id: &str, value: &str) -> Option<String> {
    if !matches!(value, "help" | "?") {
        return None;
    }
    let (head, rows): (_, &[(&str, &str)]) = match id {
        "log" => ("Log items (comma separated):", &LOG_ITEMS),
        "machine" => (
            "Supported machines are:",
            &[("pc", "the usual PC (default)"), ("q35", "the same with the Q35 host bridge")],
        ),
        "accel" => (
            "Accelerators supported:",
            &[
                ("jit", "the translator (default): cache=SIZE bounds its code (default 256M)"),
                ("interp", "the interpreter, the translator's reference"),
            ],
        ),
        "device" => (
            "Devices:",
            &[
                ("isa-debug-exit", "iobase=PORT,iosize=N: a write ends Vitrine with status VALUE * 2 + 1"),
                ("pc-testdev", "what test kernels ask for"),
            ],
        ),
        "cpu" => (
            "Available CPUs (features are added and taken away by name: max,-avx2):",
            &[
                ("max", "all that the host has and Vitrine passes through (default)"),
                ("qemu64", "what QEMU's has: the least x86-64"),
            ],
        ),
        _ => return None,
    };
    let rows = rows.iter().map(|(name, text)| format!("{name:15} {text}\n"));
    Some(format!("{head}\n{}", rows.collect::<String>()))
}

/// `128` is MiB; suffixes B, K, M, G and T; `size=` may stand before. Rounded up to 8 KiB as QEMU does.
pub fn memory(text: &str) -> Result<u64, String> {
    if let Some((_, name)) = text.split_once(',') {
        let name = name.split('=').next().unwrap_or(name);
        return Err(format!("'{name}' is not there yet: memory cannot be added later; -m takes a size alone"));
    }
    let size = size(text.strip_prefix("size=").unwrap_or(text))
        .ok_or("a size is a number of MiB or has a suffix K, M, G or T, such as 512 or 2G")?;
    if size < MEMORY_LEAST {
        return Err(format!("no guest fits into that; give at least {}, for Linux 64 or more", MEMORY_LEAST / MIB));
    }
    if size > MEMORY_MOST {
        return Err("the processor has 40 bits of physical address; give at most 1T".to_owned());
    }
    Ok(size.next_multiple_of(8192))
}

fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)? {
        "b" | "B" => 1,
        "k" | "K" => 1 << 10,
        "" | "m" | "M" => MIB,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = whole.parse().unwrap_or(u64::MAX);
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let bytes = u128::from(whole) * u128::from(unit) + fraction * u128::from(unit) / scale;
    Some(u64::try_from(bytes).unwrap_or(u64::MAX))
}

/// A model's name, then features to add and to take away.
pub fn cpu(text: &str) -> Result<Model, ModelError> {
    Model::parse(text)
}

/// `[KINDS:][gpa:]ADDR[+LEN]`.
pub fn watch(text: &str) -> Result<Watch, String> {
    text.parse().map_err(|error: WatchError| format!("{} (column {})", error.what, error.column + 1))
}

/// `FILE[,WHAT…][,wait|drop]`.
pub fn trace(text: &str) -> Result<Spec, String> {
    text.parse().map_err(|error: SpecError| format!("{} (column {})", error.what, error.column + 1))
}

/// What `-perfetto` is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// The file.
    pub file: PathBuf,
    /// The most bytes that it may have.
    pub limit: u64,
}

/// `FILE[,size=SIZE]`.
pub fn timeline(text: &str) -> Result<Timeline, String> {
    let (file, limit) = match text.split_once(",size=") {
        None => (text, TIMELINE_LIMIT),
        Some((file, text)) => (file, size(text).ok_or_else(|| format!("'{text}' is no size: 512M would be one"))?),
    };
    if file.is_empty() {
        return Err("the name of a file is to come first, as in boot.pftrace".to_owned());
    }
    Ok(Timeline { file: file.into(), limit })
}

/// Whether there is a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// All of it, or Vitrine does not start.
    On,
    /// None.
    Off,
}

/// `on` or `off`. What QEMU's other properties deny is always denied here.
pub fn sandbox(text: &str) -> Result<Sandbox, String> {
    const RIGHT: &str = "on, or off for debugging Vitrine; obsolete, elevateprivileges, spawn and resourcecontrol may \
                         stand behind on with =deny";
    let (state, properties) = text.split_once(',').unwrap_or((text, ""));
    let denied = |property: &str| {
        let names = ["obsolete", "elevateprivileges", "spawn", "resourcecontrol"];
        property.split_once('=').is_some_and(|(name, value)| names.contains(&name) && value == "deny")
    };
    match state {
        "on" if properties.is_empty() || properties.split(',').all(denied) => Ok(Sandbox::On),
        "off" if properties.is_empty() => Ok(Sandbox::Off),
        _ => Err(RIGHT.to_owned()),
    }
}

/// `pc` or `q35`, and properties.
pub fn board(text: &str) -> Result<Board, String> {
    const RIGHT: &str = "the boards are pc and q35, and the properties accel=jit or accel=interp, hpet=off and pit=off";
    let mut board = Board::default();
    for (position, part) in text.split(',').enumerate() {
        match part.split_once('=') {
            None if position == 0 => board.kind = Some(board_kind(part).ok_or(RIGHT)?),
            Some(("type", name)) => board.kind = Some(board_kind(name).ok_or(RIGHT)?),
            Some(("accel", name)) => board.accel = Some(accel(name)?),
            Some(("hpet", switch @ ("on" | "off"))) => board.no_hpet = switch == "off",
            Some(("pit", switch @ ("on" | "off"))) => board.no_pit = switch == "off",
            // What these turn off is not there.
            Some(("usb" | "graphics" | "vmport" | "dump-guest-core" | "mem-merge", "off")) => {}
            _ => return Err(RIGHT.to_owned()),
        }
    }
    Ok(board)
}

fn board_kind(name: &str) -> Option<BoardKind> {
    match name {
        "pc" => Some(BoardKind::Pc),
        "q35" => Some(BoardKind::Q35),
        _ => None,
    }
}

/// `jit[,cache=SIZE]` or `interp`.
pub fn accel(text: &str) -> Result<Accel, String> {
    let (name, options) = text.strip_prefix("accel=").unwrap_or(text).split_once(',').unzip();
    let name = name.unwrap_or(text.strip_prefix("accel=").unwrap_or(text));
    match (name, options) {
        ("interp", None) => Ok(Accel::Interp),
        ("interp", Some(_)) => Err("interp takes no options".to_owned()),
        ("jit", options) => {
            let mut config = jit::Config::default();
            for option in options.into_iter().flat_map(|options| options.split(',')) {
                config.cache = option
                    .strip_prefix("cache=")
                    .and_then(size)
                    .and_then(|bytes| usize::try_from(bytes).ok())
                    .filter(|bytes| CACHE.contains(bytes))
                    .ok_or("jit takes cache=SIZE, from 4M to 1G")?;
            }
            Ok(Accel::Jit(config))
        }
        ("kvm", _) => Err("Vitrine emulates every instruction itself and needs no KVM; write jit or interp".to_owned()),
        ("tcg", _) => Err("that is QEMU's translator; write jit or interp".to_owned()),
        _ => Err("the accelerators are jit and interp".to_owned()),
    }
}

/// Sizes that the translator's code memory may have.
const CACHE: std::ops::RangeInclusive<usize> = 4 << 20..=1 << 30;

/// `isa-debug-exit[,iobase=PORT][,iosize=N]`, with QEMU's defaults, or `pc-testdev`.
pub fn device(text: &str) -> Result<Device, String> {
    const RIGHT: &str = "the devices are isa-debug-exit,iobase=0xf4,iosize=0x4 and pc-testdev";
    if text == "pc-testdev" {
        return Ok(Device::TestDevice);
    }
    let mut parts = text.split(',');
    if parts.next() != Some("isa-debug-exit") {
        return Err(RIGHT.to_owned());
    }
    let DebugExitPorts { mut iobase, mut iosize } = DebugExitPorts::default();
    for part in parts {
        let (name, number) = part.split_once('=').ok_or(RIGHT)?;
        let number = port(number).ok_or("a port is a number up to 0xffff, such as 0xf4")?;
        match name {
            "iobase" => iobase = number,
            "iosize" if (1..=8).contains(&number) => iosize = number,
            "iosize" => return Err("iosize is 1 to 8".to_owned()),
            _ => return Err(RIGHT.to_owned()),
        }
    }
    if u32::from(iobase) + u32::from(iosize) > 0x1_0000 {
        return Err("the ports end at 0xffff".to_owned());
    }
    Ok(Device::DebugExit(DebugExitPorts { iobase, iosize }))
}

fn port(text: &str) -> Option<u16> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u16::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// `stdio`, `mon:stdio`, `file:PATH`, `null` or `none`.
pub fn serial(text: &str) -> Result<Serial, String> {
    match text {
        "stdio" => Ok(Serial::Stdio),
        "mon:stdio" => Ok(Serial::MonStdio),
        "null" => Ok(Serial::Null),
        "none" => Ok(Serial::None),
        _ => match text.strip_prefix("file:") {
            Some(path) if !path.is_empty() => Ok(Serial::File(path.into())),
            _ => Err("a serial port leads to stdio, mon:stdio, file:PATH, null or none".to_owned()),
        },
    }
}

/// `stdio` or `file:PATH`.
pub fn debug_console(text: &str) -> Result<DebugConsole, String> {
    match text.strip_prefix("file:") {
        _ if text == "stdio" => Ok(DebugConsole::Stdio),
        Some(path) if !path.is_empty() => Ok(DebugConsole::File(path.into())),
        _ => Err("the debug console leads to stdio or file:PATH".to_owned()),
    }
}

/// Items of [`LOG_ITEMS`], separated by commas.
pub fn log_items(text: &str) -> Result<LogItems, String> {
    let mut items = Vec::new();
    for name in text.split(',') {
        match LOG_ITEMS.iter().find(|(item, _)| *item == name) {
            Some((item, _)) => items.push(*item),
            None => {
                let names: Vec<&str> = LOG_ITEMS.iter().map(|(item, _)| *item).collect();
                return Err(format!("'{name}' is no log item; there are {}", names.join(", ")));
            }
        }
    }
    Ok(LogItems(items))
}

/// `none`.
pub fn display(text: &str) -> Result<Nothing, String> {
    nothing(text, "there is no display yet; write -display none or -nographic")
}

/// `stdio`, `unix:PATH` or `none`.
pub fn monitor(text: &str) -> Result<Monitor, String> {
    match text {
        "none" => Ok(Monitor::None),
        "stdio" => Ok(Monitor::Stdio),
        _ if text.starts_with("unix:") => socket(text).map(Monitor::Unix),
        _ => Err("the monitor is at stdio, unix:PATH or none (with -nographic also behind Ctrl-A c)".to_owned()),
    }
}

/// `unix:PATH`, and QEMU's options for a server that does not wait.
pub fn socket(text: &str) -> Result<PathBuf, String> {
    const RIGHT: &str = "clients are served at unix:PATH";
    let mut parts = text.strip_prefix("unix:").ok_or(RIGHT)?.split(',');
    let path = parts.next().filter(|path| !path.is_empty()).ok_or(RIGHT)?;
    for option in parts {
        match option {
            "server" | "server=on" | "nowait" | "wait=off" => {}
            _ => return Err(format!("'{option}': a socket is a server that does not wait; write unix:{path}")),
        }
    }
    Ok(path.into())
}

/// `tcp:[HOST]:PORT`, on the loopback interface if there is no host, or `unix:PATH`.
pub fn gdb(text: &str) -> Result<Address, String> {
    const RIGHT: &str = "gdb is served at tcp:[HOST]:PORT or unix:PATH";
    if text.starts_with("unix:") {
        return socket(text).map(Address::Unix);
    }
    let address = text.strip_prefix("tcp:").ok_or(RIGHT)?;
    // QEMU's options, which say what is so.
    let address = address.split_once(',').map_or(address, |(address, _)| address);
    let (host, port) = address.rsplit_once(':').ok_or(RIGHT)?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or("a TCP port is a number from 1 to 65535")?;
    Ok(Address::Tcp(host_of(host), port))
}

/// Where the page in the browser is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// An address or a name of this host.
    pub host: String,
    /// `None`: the usual port, or another if that is taken.
    pub port: Option<u16>,
}

impl Default for Page {
    fn default() -> Self {
        Self { host: LOOPBACK.to_owned(), port: None }
    }
}

/// `[HOST]:PORT`, on the loopback interface if there is no host.
pub fn page(text: &str) -> Result<Page, String> {
    const RIGHT: &str = "the page is served at [HOST]:PORT, such as :8086";
    let (host, port) = text.rsplit_once(':').ok_or(RIGHT)?;
    let port = port
        .parse()
        .map_err(|_| format!("'{port}' is no port: a number from 1 to 65535, or 0 for one that is free"))?;
    Ok(Page { host: host_of(host), port: Some(port) })
}

/// A host's name or address, without an IPv6 address's brackets; the loopback interface's if there is none.
fn host_of(text: &str) -> String {
    let host = text.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(text);
    if host.is_empty() { LOOPBACK.to_owned() } else { host.to_owned() }
}

/// `none`.
pub fn no_vga(text: &str) -> Result<Nothing, String> {
    nothing(text, "there is no graphics adapter yet; write -vga none")
}

/// `none`.
pub fn no_vnc(text: &str) -> Result<Nothing, String> {
    nothing(text, "there is no display yet; write -vnc none")
}

/// `none`.
pub fn no_net(text: &str) -> Result<Nothing, String> {
    nothing(text, "there is no network yet; write -nic none")
}

/// `none`.
pub fn no_parallel(text: &str) -> Result<Nothing, String> {
    nothing(text, "there is no parallel port; write -parallel none")
}

fn nothing(text: &str, otherwise: &str) -> Result<Nothing, String> {
    if text == "none" { Ok(Nothing) } else { Err(otherwise.to_owned()) }
}
