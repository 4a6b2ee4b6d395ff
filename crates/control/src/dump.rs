//! Memory and values for people and for files: `x`, `xp`, `print`, `memsave`, `pmemsave`.
//!
//! Devices are never read: what is not memory cannot be accessed.

use crate::arguments::{Arguments, Format};
use crate::monitor::{Monitor, MonitorError, Outcome};
use cpu::state::CodeSize;
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter, SymbolResolver, SymbolResult};
use lens::symbols::Table;
use memory::{AddressSpace, Gpa, Gva};
use std::fmt::Write;
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::Arc;

/// Bytes that are shown at once.
const SHOWN_MAX: u64 = 1 << 18;
/// Instructions and strings that are shown at once.
const ITEMS_MAX: u64 = 1 << 14;
/// Bytes of a string that are shown.
const STRING_MAX: usize = 4096;
/// The longest instruction.
const INSTRUCTION_MAX: usize = 15;
/// Bytes that are copied to a file at once.
const CHUNK: usize = 1 << 16;

/// Memory by virtual or by physical address.
struct Memory<'a> {
    space: &'a AddressSpace,
    physical: bool,
}

impl Memory<'_> {
    /// Reads all of `bytes`, or gives the first address that cannot be.
    fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), u64> {
        if !self.physical {
            return self.space.read(Gva(at), bytes).map_err(|gva| gva.0);
        }
        match self.space.map().read(Gpa(at), bytes) {
            Ok(()) => Ok(()),
            Err(memory::MapError::NotMemory { gpa, .. }) => Err(gpa.0),
            Err(_) => Err(at),
        }
    }

    /// As many bytes as can be read, up to the length of `bytes`.
    fn read_some(&self, at: u64, bytes: &mut [u8]) -> usize {
        match self.read(at, bytes) {
            Ok(()) => bytes.len(),
            Err(stop) => usize::try_from(stop.wrapping_sub(at)).unwrap_or(0).min(bytes.len()),
        }
    }
}

/// `x`.
pub(crate) fn virtually(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    dump(monitor, arguments, false)
}

/// `xp`.
pub(crate) fn physically(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    dump(monitor, arguments, true)
}

fn dump(monitor: &mut Monitor, arguments: &mut Arguments<'_>, physical: bool) -> Outcome {
    let format = arguments.format(monitor.format)?;
    let at = arguments.expression()?;
    arguments.end()?;
    monitor.format = format;
    let snapshot = monitor.snapshot()?;
    let memory = Memory { space: &snapshot.space, physical };
    let limit = if matches!(format.kind, 'i' | 's') { ITEMS_MAX } else { SHOWN_MAX / format.size as u64 };
    if format.count > limit {
        let what = format!("{} are too many to show: {limit} at most; memsave takes any number of bytes", format.count);
        return Err(MonitorError::Other(what));
    }
    // Physical addresses have none.
    let symbols = if physical { Arc::default() } else { monitor.symbols(snapshot) };
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = match format.kind {
        'i' => disassemble(&mut text, &memory, at, format.count, snapshot.code_size, symbols),
        's' => strings(&mut text, &memory, at, format.count),
        _ => values(&mut text, &memory, at, format, &symbols),
    };
    Ok(text)
}

fn cannot(text: &mut String, at: u64) -> std::fmt::Result {
    writeln!(text, "{at:016x}: Cannot access memory")
}

/// The symbol of an address as gdb writes it behind that.
fn label(symbols: &Table, at: u64) -> String {
    symbols.at(Gva(at)).map(|named| format!(" <{named}>")).unwrap_or_default()
}

fn values(text: &mut String, memory: &Memory<'_>, mut at: u64, format: Format, symbols: &Table) -> std::fmt::Result {
    let size = if format.kind == 'c' { 1 } else { format.size };
    let line = if format.size == 1 { 8 } else { 16 };
    let mut left = usize::try_from(format.count).unwrap_or(0) * size;
    let mut bytes = [0; 16];
    while left > 0 {
        let Some(piece) = bytes.get_mut(..left.min(line)) else { break };
        if memory.read(at, piece).is_err() {
            return cannot(text, at);
        }
        write!(text, "{at:016x}{}:", label(symbols, at))?;
        for value in piece.chunks(size) {
            let mut word = [0; 8];
            word.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
            write!(text, " {}", shown(u64::from_le_bytes(word), format.kind, size, true))?;
        }
        text.push('\n');
        left -= piece.len();
        at = at.wrapping_add(piece.len() as u64);
    }
    Ok(())
}

/// A value of `size` bytes as C's `printf` shows it; `aligned` to the width of the largest.
fn shown(value: u64, kind: char, size: usize, aligned: bool) -> String {
    let bits = 8 * size;
    let digits = |bits_each: usize, per: usize| if aligned { (bits * per).div_ceil(bits_each) } else { 0 };
    match kind {
        'c' => character(value),
        'o' => {
            let octal = if value == 0 { "0".to_owned() } else { format!("0{value:o}") };
            format!("{octal:>0$}", digits(3, 1))
        }
        'u' => format!("{value:0$}", digits(33, 10)),
        'd' => {
            let value = (value << (64 - bits)) as i64 >> (64 - bits);
            format!("{value:0$}", digits(33, 10))
        }
        _ if aligned => format!("0x{value:00$x}", bits / 4),
        _ if value == 0 => "0".to_owned(),
        _ => format!("{value:#x}"),
    }
}

fn character(value: u64) -> String {
    match value {
        0x27 => "'\\''".to_owned(),
        0x5c => "'\\\\'".to_owned(),
        0x0a => "'\\n'".to_owned(),
        0x0d => "'\\r'".to_owned(),
        0x20..=0x7e => format!("'{}'", char::from(value.to_le_bytes()[0])),
        _ => format!("'\\x{:02x}'", value & 0xffff_ffff),
    }
}

fn strings(text: &mut String, memory: &Memory<'_>, mut at: u64, count: u64) -> std::fmt::Result {
    for _ in 0..count {
        let mut bytes = [0; STRING_MAX];
        let readable = memory.read_some(at, &mut bytes);
        let bytes = bytes.get(..readable).unwrap_or_default();
        if bytes.is_empty() {
            return cannot(text, at);
        }
        let end = bytes.iter().position(|byte| *byte == 0);
        let (string, more) = (bytes.get(..end.unwrap_or(readable)).unwrap_or_default(), end.is_none());
        writeln!(text, "{at:016x}: \"{}\"{}", string.escape_ascii(), if more { "..." } else { "" })?;
        at = at.wrapping_add(string.len() as u64 + u64::from(!more));
    }
    Ok(())
}

/// Names for the formatter.
struct Names(Arc<Table>);

impl SymbolResolver for Names {
    fn symbol(&mut self, _: &Instruction, _: u32, _: Option<u32>, address: u64, _: u32) -> Option<SymbolResult<'_>> {
        let named = self.0.at(Gva(address))?;
        Some(SymbolResult::with_string(address, named.to_string()))
    }
}

fn disassemble(
    text: &mut String,
    memory: &Memory<'_>,
    mut at: u64,
    count: u64,
    size: CodeSize,
    symbols: Arc<Table>,
) -> std::fmt::Result {
    let mut formatter = NasmFormatter::with_options(Some(Box::new(Names(symbols.clone()))), None);
    formatter.options_mut().set_show_symbol_address(true);
    for _ in 0..count {
        let mut bytes = [0; INSTRUCTION_MAX];
        let readable = memory.read_some(at, &mut bytes);
        let bytes = bytes.get(..readable).unwrap_or_default();
        if bytes.is_empty() {
            return cannot(text, at);
        }
        let instruction = Decoder::with_ip(size as u32, bytes, at, DecoderOptions::NONE).decode();
        let mut named = String::new();
        let len = if instruction.is_invalid() { 1 } else { instruction.len() };
        if instruction.is_invalid() {
            named.push_str("(bad)");
        } else {
            formatter.format(&instruction, &mut named);
        }
        let raw: String = bytes.iter().take(len).map(|byte| format!(" {byte:02x}")).collect();
        writeln!(text, "0x{at:08x}{}: {raw:<25} {named}", label(&symbols, at))?;
        at = at.wrapping_add(len as u64);
    }
    Ok(())
}

/// `print`.
pub(crate) fn print(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    // What only memory can be shown as is not the last format of a value.
    let last = if matches!(monitor.format.kind, 'i' | 's') { Format::default() } else { monitor.format };
    let format = arguments.format(last)?;
    let value = arguments.expression()?;
    arguments.end()?;
    if matches!(format.kind, 'i' | 's') {
        return Err(MonitorError::Other(format!("print has no format {}: x shows memory", format.kind)));
    }
    monitor.format = Format { count: 1, ..format };
    Ok(format!("{}\n", shown(value, format.kind, 8, false)))
}

/// Why a file that a command is to write is not there.
pub(crate) fn cannot_be_written(name: &str, error: &io::Error) -> MonitorError {
    let jailed = error.kind() == io::ErrorKind::PermissionDenied && jail::entered();
    let why = "; without -sandbox off, files can only be written in the current folder and in that for temporary ones";
    MonitorError::Other(format!("{name} cannot be written: {error}{}", if jailed { why } else { "" }))
}

/// `memsave`.
pub(crate) fn memsave(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    save(monitor, arguments, false)
}

/// `pmemsave`.
pub(crate) fn pmemsave(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    save(monitor, arguments, true)
}

fn save(monitor: &mut Monitor, arguments: &mut Arguments<'_>, physical: bool) -> Outcome {
    let (start, size, name) = (arguments.expression()?, arguments.expression_before_file()?, arguments.word()?);
    arguments.end()?;
    let snapshot = monitor.snapshot()?;
    let memory = Memory { space: &snapshot.space, physical };
    // Before the file is made: a wrong address shall not cost its old content.
    if size > 0
        && let Err(at) = memory.read(start, &mut [0])
    {
        return Err(MonitorError::Other(format!("no memory at {at:#x}")));
    }
    let failed = |error| cannot_be_written(&name, &error);
    let mut file = File::create(&name).map_err(failed)?;
    let mut bytes = vec![0; CHUNK];
    let mut done = 0;
    while done < size {
        let chunk = usize::try_from(size - done).unwrap_or(CHUNK).min(CHUNK);
        let Some(piece) = bytes.get_mut(..chunk) else { break };
        let at = start.wrapping_add(done);
        let some = memory.read_some(at, piece);
        file.write_all(piece.get(..some).unwrap_or_default()).map_err(failed)?;
        if some < chunk {
            let (stop, saved) = (at.wrapping_add(some as u64), done + some as u64);
            return Err(MonitorError::Other(format!("no memory at {stop:#x}; {saved} bytes before it were saved")));
        }
        done += chunk as u64;
    }
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_printf_shows_them() {
        for (value, kind, size, aligned, want) in [
            (0xab, 'x', 1, true, "0xab"),
            (1, 'x', 8, true, "0x0000000000000001"),
            (1, 'x', 8, false, "0x1"),
            (0, 'x', 8, false, "0"),
            (0, 'd', 4, true, "         0"),
            (0xffff_ffff, 'd', 4, true, "        -1"),
            (0xffff_ffff, 'u', 4, true, "4294967295"),
            (u64::MAX, 'd', 8, false, "-1"),
            (10, 'o', 8, false, "012"),
            (0, 'o', 4, true, "          0"),
            (65, 'c', 8, false, "'A'"),
            (0x27, 'c', 1, true, "'\\''"),
            (0xe8, 'c', 1, true, "'\\xe8'"),
        ] {
            assert_eq!(shown(value, kind, size, aligned), want);
        }
    }
}
