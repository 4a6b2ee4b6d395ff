//! A trace in the formats of other tools.
//!
//! | format | whose | what is in it |
//! |---|---|---|
//! | `csv` | everybody's | each access with all its addresses, hexadecimal |
//! | `lackey` | Valgrind's Lackey with `--trace-mem=yes` | fetches, loads, stores, and both to one place as a modification |
//! | `drmemtrace-text` | DynamoRIO's `view` of a drmemtrace trace | fetches with the instruction, reads, writes |
//! | `champsim` | ChampSim's binary trace, 64 bytes an instruction | instructions with registers, branches and addresses |
//!
//! Addresses are the guest's virtual ones, but for `csv`. What the page walker, the processor and devices do by themselves
//! is left out there. Without fetches in the trace, an instruction is what accesses memory, and nothing is known of it but that.

use super::read::{ReadError, Row};
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory, NasmFormatter, OpAccess,
    Register,
};
use memory::AccessKind;
use std::io::{self, Write};
use std::str::FromStr;

/// Which.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated values.
    #[default]
    Csv,
    /// Valgrind's Lackey.
    Lackey,
    /// DynamoRIO's drmemtrace.
    DrmemtraceText,
    /// ChampSim.
    Champsim,
}

impl Format {
    /// What they are called.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("csv", Self::Csv),
        ("lackey", Self::Lackey),
        ("drmemtrace-text", Self::DrmemtraceText),
        ("champsim", Self::Champsim),
    ];
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(name, _)| *name == text);
        let names = || Self::NAMES.map(|(name, _)| name).join(", ");
        found
            .map(|(_, format)| *format)
            .ok_or_else(|| format!("{text:?} is no format of a trace; there are {}", names()))
    }
}

/// Why a trace is not there whole.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What is made of it cannot be written.
    #[error("what is made of it cannot be written")]
    Write(#[from] io::Error),
}

/// Writes `rows` in a format.
///
/// # Errors
/// They cannot be read, or not be written.
pub fn export(
    rows: impl Iterator<Item = Result<Row, ReadError>>,
    format: Format,
    mut to: impl Write,
) -> Result<(), ExportError> {
    match format {
        Format::Csv => csv(rows, &mut to)?,
        Format::Lackey => each(rows, |deed, _| lackey(&deed, &mut to))?,
        Format::DrmemtraceText => {
            let (mut record, mut number) = (0u64, 0u64);
            let mut text = NasmFormatter::new();
            each(rows, |deed, _| drmemtrace(&deed, (&mut record, &mut number), &mut text, &mut to))?;
        }
        Format::Champsim => {
            let mut factory = InstructionInfoFactory::new();
            each(rows, |deed, next| to.write_all(&champsim(&deed, next, &mut factory)))?;
        }
    }
    Ok(to.flush()?)
}

fn csv(rows: impl Iterator<Item = Result<Row, ReadError>>, to: &mut impl Write) -> Result<(), ExportError> {
    writeln!(to, "seq,time,device,instructions,cpu,cpl,cr3,rip,kind,gva,gpa,hva,hpa,size,value,old")?;
    let hex = |number: Option<u128>| number.map(|number| format!("{number:#x}")).unwrap_or_default();
    for row in rows {
        let row = row?;
        let Row { seq, time, instructions, cpu, cpl, cr3, rip, gpa, size, value, .. } = row;
        match &row.device {
            Some(device) => write!(to, "{seq},{time},{device},,,,,")?,
            None => write!(to, "{seq},{time},,{instructions},{cpu},{cpl},{cr3:#x},{rip:#x}")?,
        }
        let kind = super::rows::name(row.kind);
        let [gva, hva, hpa] = [row.gva.map(|gva| gva.0), row.hva.map(|hva| hva.0), row.hpa.map(|hpa| hpa.0)]
            .map(|at| hex(at.map(u128::from)));
        writeln!(to, ",{kind},{gva},{:#x},{hva},{hpa},{size},{value:#x},{}", gpa.0, hex(row.old),)?;
    }
    Ok(())
}

/// An instruction and what it accessed.
#[derive(Debug)]
struct Deed {
    rip: u64,
    cpu: u32,
    instructions: u64,
    /// Its bytes, if the trace has fetches.
    bytes: Option<([u8; 16], usize)>,
    accesses: Vec<Row>,
}

impl Deed {
    fn new(row: &Row) -> Self {
        let (rip, cpu, instructions) = (row.rip, row.cpu, row.instructions);
        Self { rip, cpu, instructions, bytes: None, accesses: Vec::new() }
    }

    /// Whether `row` belongs to it.
    fn has(&self, row: &Row) -> bool {
        let same = (self.rip, self.cpu, self.instructions) == (row.rip, row.cpu, row.instructions);
        same && row.kind != AccessKind::Fetch
    }

    /// If it has been fetched. All code is taken for 64-bit code.
    fn instruction(&self) -> Option<Instruction> {
        let (bytes, len) = &self.bytes?;
        let mut decoder = Decoder::with_ip(64, bytes.get(..*len)?, self.rip, DecoderOptions::NONE);
        Some(decoder.decode())
    }

    fn len(&self) -> usize {
        self.bytes.map_or(0, |(_, len)| len)
    }
}

/// Gives `each` all instructions, with the address of the one that follows.
fn each(
    rows: impl Iterator<Item = Result<Row, ReadError>>,
    mut each: impl FnMut(Deed, Option<u64>) -> io::Result<()>,
) -> Result<(), ExportError> {
    let mut last: Option<Deed> = None;
    for row in rows {
        let row = row?;
        match row.kind {
            AccessKind::Read | AccessKind::Write => {}
            AccessKind::Fetch => {
                // The rest of one that goes on in the next page.
                let goes_on = |last: &&mut Deed| {
                    last.accesses.is_empty() && last.rip == row.rip && last.instructions == row.instructions
                };
                let bytes = row.value.to_le_bytes();
                if let Some((all, len)) = last.as_mut().filter(goes_on).and_then(|last| last.bytes.as_mut())
                    && row.gva.is_some_and(|gva| gva.0 == row.rip.wrapping_add(*len as u64))
                {
                    for (to, from) in all.iter_mut().skip(*len).zip(bytes.iter().take(row.size.into())) {
                        *to = *from;
                    }
                    *len = (*len + usize::from(row.size)).min(all.len());
                    continue;
                }
                let mut deed = Deed::new(&row);
                deed.bytes = Some((bytes, row.size.into()));
                if let Some(done) = last.replace(deed) {
                    each(done, Some(row.rip))?;
                }
                continue;
            }
            _ => continue,
        }
        if !last.as_ref().is_some_and(|last| last.has(&row))
            && let Some(done) = last.replace(Deed::new(&row))
        {
            each(done, Some(row.rip))?;
        }
        if let Some(last) = &mut last {
            last.accesses.push(row);
        }
    }
    match last {
        Some(done) => Ok(each(done, None)?),
        None => Ok(()),
    }
}

fn lackey(deed: &Deed, to: &mut impl Write) -> io::Result<()> {
    if let Some((_, len)) = deed.bytes {
        writeln!(to, "I  {:08x},{len}", deed.rip)?;
    }
    let mut accesses = deed.accesses.iter().peekable();
    while let Some(access) = accesses.next() {
        let gva = access.gva.map_or(0, |gva| gva.0);
        let write = access.kind == AccessKind::Write;
        let modifies = |next: &&Row| {
            !write && next.kind == AccessKind::Write && (next.gva, next.size) == (access.gva, access.size)
        };
        let letter = match (write, accesses.next_if(modifies)) {
            (true, _) => 'S',
            (false, Some(_)) => 'M',
            (false, None) => 'L',
        };
        writeln!(to, " {letter} {gva:08x},{}", access.size)?;
    }
    Ok(())
}

fn drmemtrace(
    deed: &Deed,
    (record, number): (&mut u64, &mut u64),
    text: &mut NasmFormatter,
    to: &mut impl Write,
) -> io::Result<()> {
    *number += 1;
    let mut line = |what: std::fmt::Arguments<'_>| {
        *record += 1;
        writeln!(to, "{record:>12} {number:>11}: {:>11} {what}", deed.cpu)
    };
    if let (Some(instruction), Some((bytes, len))) = (deed.instruction(), deed.bytes) {
        let bytes: String = bytes.iter().take(len).map(|byte| format!("{byte:02x} ")).collect();
        let mut shown = String::new();
        text.format(&instruction, &mut shown);
        line(format_args!("ifetch      {len:>2} byte(s) @ {:#018x} {bytes:<23} {shown}", deed.rip))?;
    }
    for access in &deed.accesses {
        let what = if access.kind == AccessKind::Write { "write" } else { "read" };
        let gva = access.gva.map_or(0, |gva| gva.0);
        line(format_args!("{what:<11} {:>2} byte(s) @ {gva:#018x} by PC {:#018x}", access.size, deed.rip))?;
    }
    Ok(())
}

/// Numbers that ChampSim knows: the stack pointer, the flags, the instruction pointer.
const SP: u8 = 6;
const FLAGS: u8 = 25;
const IP: u8 = 26;

/// ChampSim's number of a register; it only tells them apart, but for those above.
fn register(register: Register) -> u8 {
    let number = register.full_register().number() as u8;
    match register {
        _ if register.full_register() == Register::RSP => SP,
        // Others than SP, from 7 on; below FLAGS.
        _ if register.is_gpr() => 7 + number - u8::from(number > 4),
        _ if register.is_vector_register() => 64 + number,
        _ => 128 + (number & 63),
    }
}

/// Puts `value` where there is room, if it is not there already.
fn put<T: PartialEq + Default + Copy>(into: &mut [T], value: T) {
    if !into.contains(&value)
        && let Some(free) = into.iter_mut().find(|slot| **slot == T::default())
    {
        *free = value;
    }
}

/// An instruction as ChampSim has it: address, branch, taken, 2 destination and 4 source registers, 2 destination and 4
/// source addresses.
fn champsim(deed: &Deed, next: Option<u64>, factory: &mut InstructionInfoFactory) -> [u8; 64] {
    let (mut branch, mut written, mut read) = (false, [0u8; 2], [0u8; 4]);
    if let Some(instruction) = deed.instruction() {
        branch = !matches!(
            instruction.flow_control(),
            FlowControl::Next | FlowControl::Exception | FlowControl::XbeginXabortXend
        );
        if branch {
            put(&mut written, IP);
            if instruction.is_jmp_short_or_near() || instruction.is_call_near() || instruction.is_jcc_short_or_near() {
                put(&mut read, IP);
            }
        }
        if instruction.rflags_read() != 0 {
            put(&mut read, FLAGS);
        }
        for used in factory.info(&instruction).used_registers() {
            let access = used.access();
            if matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite) {
                put(&mut read, register(used.register()));
            }
            if matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite) {
                put(&mut written, register(used.register()));
            }
        }
        if instruction.rflags_modified() != 0 {
            put(&mut written, FLAGS);
        }
    }
    let taken = branch && next.is_some_and(|next| next != deed.rip.wrapping_add(deed.len() as u64));
    let (mut to, mut from) = ([0u64; 2], [0u64; 4]);
    for access in &deed.accesses {
        let gva = access.gva.map_or(0, |gva| gva.0);
        if access.kind == AccessKind::Write { put(&mut to, gva) } else { put(&mut from, gva) }
    }
    let mut bytes = [0; 64];
    let addresses = to.iter().chain(&from).flat_map(|gva| gva.to_le_bytes());
    let head = deed.rip.to_le_bytes().into_iter().chain([branch.into(), taken.into()]).chain(written).chain(read);
    for (byte, value) in bytes.iter_mut().zip(head.chain(addresses)) {
        *byte = value;
    }
    bytes
}

#[cfg(test)]
mod tests;
