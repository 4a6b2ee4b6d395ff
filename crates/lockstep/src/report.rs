//! Says in what two tiers differ: the smallest case as disassembly, the state before it, and how to repeat it.

use crate::case::{Case, Program};
use crate::differences::{Difference, Differences};
use crate::log::Entry;
use crate::start::Start;
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use std::fmt::{self, Write};

/// How many differences are worth reading.
const SHOWN: usize = 16;

/// How many lines of a log are, around the first that differs.
const LINES: usize = 6;

/// A case on which two tiers differ.
#[derive(Clone, Debug)]
pub struct Report {
    /// The case's seed.
    pub seed: u64,
    /// The differences, after the smallest case that has any.
    pub differences: Vec<Difference>,
    /// Its instructions, without the end that all cases have.
    pub code: Vec<String>,
    start: String,
    repeat: String,
    notes: Vec<String>,
}

impl Report {
    /// Describes `case`, in a run that began with `first`.
    #[must_use]
    pub fn new(name: &str, first: u64, case: &Case, program: &Program, found: Differences) -> Self {
        let seed = case.seed;
        let mode = std::env::var("VITRINE_MODE").map_or_else(|_| String::new(), |mode| format!("VITRINE_MODE={mode} "));
        let mut repeat =
            format!("{mode}VITRINE_SEED={seed:#x} VITRINE_CASES=1 cargo test -p lockstep --release -- {name}");
        if first != seed {
            let cases = seed.wrapping_sub(first).wrapping_add(1);
            let _ = write!(repeat, "\n  with all before it: VITRINE_SEED={first:#x} VITRINE_CASES={cases}");
        }
        Self {
            seed,
            differences: found.0,
            code: disassemble(case.start.mode.bits(), program),
            start: describe(&case.start),
            repeat,
            notes: Vec::new(),
        }
    }

    /// Adds a line.
    #[must_use]
    pub fn note(mut self, note: String) -> Self {
        self.notes.push(note);
        self
    }

    /// Adds the exception logs.
    #[must_use]
    pub fn logs(mut self, [a, b]: [Vec<Entry>; 2]) -> Self {
        let same = a == b;
        let first = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(a.len().min(b.len()));
        let skipped = if same { 0 } else { first.saturating_sub(LINES / 2) };
        for (n, log) in [a, b].into_iter().enumerate().take(if same { 1 } else { 2 }) {
            let title = if same { "log" } else { ["log of the reference", "log of the other"][n] };
            let lines = log.iter().skip(skipped).take(LINES).map(|entry| format!("\n    {entry}"));
            let lines: Vec<String> = lines.collect();
            self.notes.push(format!("{title} ({} lines, from line {skipped}):{}", log.len(), lines.concat()));
        }
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the tiers differ (reference / other):")?;
        for difference in self.differences.iter().take(SHOWN) {
            writeln!(f, "  {difference}")?;
        }
        if self.differences.len() > SHOWN {
            writeln!(f, "  and {} more", self.differences.len() - SHOWN)?;
        }
        writeln!(f, "after\n  {}", self.code.join("\n  "))?;
        writeln!(f, "from {}", self.start)?;
        for note in &self.notes {
            writeln!(f, "  {note}")?;
        }
        write!(f, "repeat: {}", self.repeat)
    }
}

/// The instructions of a program; a row of NOPs is one line.
fn disassemble(bits: u32, program: &Program) -> Vec<String> {
    let mut formatter = NasmFormatter::new();
    let mut lines = Vec::new();
    let mut nops = 0;
    for &(at, len) in &program.lengths {
        let bytes = program.code.get(at..at + usize::from(len)).unwrap_or_default();
        for instruction in &mut Decoder::with_ip(bits, bytes, program.entry() + at as u64, DecoderOptions::NONE) {
            let start = (instruction.ip() - program.entry()) as usize - at;
            let raw = bytes.get(start..start + instruction.len()).unwrap_or_default();
            if raw == [0x90] {
                nops += 1;
                continue;
            }
            lines.extend(row(&mut nops));
            let mut text = String::new();
            formatter.format(&instruction, &mut text);
            let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
            lines.push(format!("{:x}  {hex:<24} {text}", instruction.ip()));
        }
    }
    lines.extend(row(&mut nops));
    lines
}

/// The line for so many NOPs, of which there are then none.
fn row(nops: &mut usize) -> Option<String> {
    let count = std::mem::take(nops);
    (count > 0).then(|| format!("  {count} bytes of nop"))
}

/// What a start state has beyond the plainest.
fn describe(start: &Start) -> String {
    let plain = Start::plain(start.mode);
    let mut text = format!("{:?} mode, cpl {}, {:?}, flags {:#x}", start.mode, start.cpl, start.world, start.flags);
    for (n, (value, usual)) in start.gpr.iter().zip(plain.gpr).enumerate() {
        if *value != usual {
            let _ = write!(text, "\n  r{n} = {value:#x}");
        }
    }
    for (n, ymm) in start.vector.ymm.iter().enumerate().filter(|(_, ymm)| ymm.iter().any(|&lane| lane != 0)) {
        let _ = write!(text, "\n  ymm{n} = {ymm:x?}");
    }
    if start.vector.x87 != plain.vector.x87 {
        let vector = &start.vector;
        let _ = write!(text, "\n  fcw {:#x} fsw {:#x} ftw {:#x}", vector.fcw(), vector.fsw(), vector.ftw());
        for i in 0..8 {
            let mut value = vector.st(i);
            value.reverse();
            let _ = write!(text, "\n  st{i} = {value:02x?}");
        }
    }
    let rest = [
        ("mxcsr", u64::from(start.vector.mxcsr), u64::from(plain.vector.mxcsr)),
        ("fs base", start.bases[0], 0),
        ("gs base", start.bases[1], 0),
        ("cr0 differs by", start.cr0, 0),
        ("cr4 differs by", start.cr4, 0),
        ("pkru", start.pkru.into(), 0),
        ("dr7", start.armed, 0),
        ("dr0", start.breakpoints[0], 0),
        ("dr1", start.breakpoints[1], 0),
        ("dr2", start.breakpoints[2], 0),
        ("dr3", start.breakpoints[3], 0),
        ("cold pages", start.cold.into(), 0),
        ("waiting interrupts", start.storm.into(), 0),
    ];
    for (name, value, _) in rest.into_iter().filter(|(_, value, usual)| value != usual) {
        let _ = write!(text, "\n  {name} {value:#x}");
    }
    if !start.interrupts.is_empty() {
        let _ = write!(text, "\n  interrupts, each after so many instructions: {:?}", start.interrupts);
    }
    text
}
