//! What is watched: the expressions of `-watch`, of the monitor's `watch`, and of a trace's filters.
//!
//! ```text
//! [KINDS:][gpa:]ADDRESS[+LENGTH] [if CONDITION [and CONDITION]…] [count N] [then ACTION]
//! [KINDS:][*]SYMBOL[+LENGTH]     …
//! ```
//!
//! KINDS are one or more of `r`, `w` and `x`, and `rw` if they are left out. ADDRESS is a guest virtual address, after
//! `gpa:` a guest physical one; LENGTH is in bytes, 1 if it is left out. Both are hexadecimal, with or without `0x`.
//! SYMBOL is one of the guest's kernel; after `*` what the pointer of that name points to. What is nothing but
//! hexadecimal digits, or begins with a digit, is an address. `docs/watch.md` explains the rest with examples.

mod parser;

use memory::{Access, Gpa, Gva};
use std::fmt;

/// Kinds of access.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds {
    /// Data reads, and for physical addresses those of the page walker.
    pub read: bool,
    /// Data writes, and for physical addresses those of the page walker.
    pub write: bool,
    /// Instruction fetches.
    pub fetch: bool,
}

impl Kinds {
    /// Kinds that are in either.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self { read: self.read | other.read, write: self.write | other.write, fetch: self.fetch | other.fetch }
    }
}

/// The first byte that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// By virtual address, whatever is mapped there.
    Virtual(Gva),
    /// By physical address, through whatever virtual address, and by the page walker.
    Physical(Gpa),
    /// By a symbol of the guest's kernel.
    Symbol {
        /// Its name.
        name: String,
        /// Not the symbol itself, but what it points to.
        pointer: bool,
    },
}

/// A number that an access has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// What was read or written, as it is reported: little endian.
    Value,
    /// What a write replaced. Nothing else has one.
    Old,
    /// How many bytes.
    Size,
    /// The number of the vCPU.
    Cpu,
    /// The address in CR3, without its low 12 bits.
    Cr3,
    /// The address of the instruction.
    Rip,
}

impl Field {
    const ALL: [(&str, Self); 6] = [
        ("value", Self::Value),
        ("old", Self::Old),
        ("size", Self::Size),
        ("cpu", Self::Cpu),
        ("cr3", Self::Cr3),
        ("rip", Self::Rip),
    ];

    /// Whether its numbers are written in decimal rather than in hexadecimal: those that count something.
    fn decimal(self) -> bool {
        matches!(self, Self::Size | Self::Cpu)
    }

    fn of(self, access: &Access) -> Option<u128> {
        Some(match self {
            Self::Value => access.value,
            Self::Old => return access.old,
            Self::Size => access.size.into(),
            Self::Cpu => access.origin()?.cpu.into(),
            Self::Cr3 => (access.cr3()? & !CR3_FLAGS).into(),
            Self::Rip => access.origin()?.rip.into(),
        })
    }
}

/// The bits of CR3 that are no part of the address: the PCID or flags, and LAM's.
const CR3_FLAGS: u64 = 3 << 61 | 0xfff;

/// How two numbers are to stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Relation {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Relation {
    /// Those that begin as others do come first.
    const ALL: [(&str, Self); 6] = [
        ("==", Self::Equal),
        ("!=", Self::NotEqual),
        ("<=", Self::LessOrEqual),
        (">=", Self::GreaterOrEqual),
        ("<", Self::Less),
        (">", Self::Greater),
    ];

    fn holds(self, a: u128, b: u128) -> bool {
        match self {
            Self::Equal => a == b,
            Self::NotEqual => a != b,
            Self::Less => a < b,
            Self::LessOrEqual => a <= b,
            Self::Greater => a > b,
            Self::GreaterOrEqual => a >= b,
        }
    }
}

/// What a field is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A number.
    Number(u128),
    /// What the write replaced.
    Old,
}

/// Instructions, by their addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// The first byte.
    pub start: CodeStart,
    /// How many bytes. `None`: up to the next symbol.
    pub len: Option<u64>,
}

/// Where instructions begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodeStart {
    /// At an address.
    Address(Gva),
    /// At a symbol of the guest's kernel.
    Symbol(String),
}

/// What an access has to meet besides touching the bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `FIELD [& MASK] RELATION NUMBER`
    Compare {
        /// Which number of the access.
        field: Field,
        /// The bits of it that count, and of what it is compared with.
        mask: Option<u128>,
        /// How they are to stand to each other.
        relation: Relation,
        /// What it is compared with.
        with: Operand,
    },
    /// `rip in CODE`, `rip not in CODE`
    Rip {
        /// Whether the instruction is to begin there, or not.
        inside: bool,
        /// Where.
        code: Code,
    },
    /// `process == NAME`, `process != NAME`
    Process {
        /// Whether it is to be that one, or not.
        is: bool,
        /// Its name, as the kernel has it (`comm`).
        name: String,
    },
    /// `user` (at CPL 3) or `kernel` (at any other).
    User(bool),
}

impl Condition {
    /// Whether `access` meets it, as far as that can be told by the access alone. What no vCPU made meets nothing that is
    /// said of one.
    pub(crate) fn met(&self, access: &Access) -> bool {
        match self {
            Self::Compare { field, mask, relation, with } => {
                let with = match with {
                    Operand::Number(number) => Some(*number),
                    Operand::Old => access.old,
                };
                let (Some(have), Some(with)) = (field.of(access), with) else { return false };
                let mask = mask.unwrap_or(u128::MAX);
                relation.holds(have & mask, with & mask)
            }
            Self::User(user) => access.origin().is_some_and(|origin| (origin.cpl == 3) == *user),
            Self::Rip { .. } | Self::Process { .. } => true,
        }
    }
}

/// What becomes of an access that a watch is for. Each counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// It is a line of the watch.
    #[default]
    Print,
    /// It is a line of the log.
    Log,
    /// Nothing else.
    Count,
    /// It is a line of the watch, and the machine stops behind the instruction; with a limit, at the last access.
    Stop,
}

impl Action {
    const ALL: [(&str, Self); 4] =
        [("print", Self::Print), ("log", Self::Log), ("count", Self::Count), ("stop", Self::Stop)];
}

/// Bytes that are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// For which accesses.
    pub kinds: Kinds,
    /// The first byte.
    pub start: Start,
    /// How many bytes, at least 1; the last one's address does not wrap.
    pub len: u64,
    /// What an access has to meet, all of it.
    pub conditions: Vec<Condition>,
    /// With how many accesses it ends, if it does.
    pub limit: Option<u64>,
    /// What becomes of an access.
    pub action: Action,
}

impl Watch {
    /// A watch for all accesses of these kinds to `len` bytes, whose lines are printed.
    #[must_use]
    pub fn new(kinds: Kinds, start: Start, len: u64) -> Self {
        Self { kinds, start, len, conditions: Vec::new(), limit: None, action: Action::Print }
    }

    /// The names of the processes that it asks for, and whether it is to be that one.
    pub(crate) fn processes(&self) -> impl Iterator<Item = (bool, &str)> {
        self.conditions.iter().filter_map(|condition| match condition {
            Condition::Process { is, name } => Some((*is, name.as_str())),
            _ => None,
        })
    }

    /// The names of symbols that it has to do with.
    pub(crate) fn symbols(&self) -> impl Iterator<Item = &str> {
        let code = self.conditions.iter().filter_map(|condition| match condition {
            Condition::Rip { code: Code { start: CodeStart::Symbol(name), .. }, .. } => Some(name.as_str()),
            _ => None,
        });
        let start = if let Start::Symbol { name, .. } = &self.start { Some(name.as_str()) } else { None };
        start.into_iter().chain(code)
    }
}

/// What is wrong with an expression, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("watch {expression:?}, column {}: {what}", .column + 1)]
pub struct WatchError {
    /// The whole expression, or its beginning.
    pub expression: String,
    /// Where it goes wrong: characters before that place.
    pub column: usize,
    /// What is wrong there, and what would be right.
    pub what: String,
}

/// The word for `value` in a table.
fn word<T: PartialEq>(table: &[(&'static str, T)], value: &T) -> &'static str {
    table.iter().find(|(_, one)| one == value).map_or("", |(word, _)| word)
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compare { field, mask, relation, with } => {
                f.write_str(word(&Field::ALL, field))?;
                if let Some(mask) = mask {
                    write!(f, " & {mask:x}")?;
                }
                write!(f, " {} ", word(&Relation::ALL, relation))?;
                match with {
                    Operand::Old => f.write_str("old"),
                    Operand::Number(number) if field.decimal() => write!(f, "{number}"),
                    Operand::Number(number) => write!(f, "{number:x}"),
                }
            }
            Self::Rip { inside, code: Code { start, len } } => {
                write!(f, "rip {}in ", if *inside { "" } else { "not " })?;
                match start {
                    CodeStart::Address(gva) => write!(f, "{gva:x}"),
                    CodeStart::Symbol(name) => f.write_str(name),
                }?;
                len.map_or(Ok(()), |len| write!(f, "+{len:x}"))
            }
            Self::Process { is, name } => write!(f, "process {} \"{name}\"", if *is { "==" } else { "!=" }),
            Self::User(user) => f.write_str(if *user { "user" } else { "kernel" }),
        }
    }
}

impl fmt::Display for Watch {
    /// An expression that gives this watch again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (is, letter) in [(self.kinds.read, 'r'), (self.kinds.write, 'w'), (self.kinds.fetch, 'x')] {
            if is {
                write!(f, "{letter}")?;
            }
        }
        match &self.start {
            Start::Virtual(gva) => write!(f, ":{gva:x}+{:x}", self.len),
            Start::Physical(gpa) => write!(f, ":gpa:{gpa:x}+{:x}", self.len),
            Start::Symbol { name, pointer } => {
                write!(f, ":{}{name}+{:x}", if *pointer { "*" } else { "" }, self.len)
            }
        }?;
        for (n, condition) in self.conditions.iter().enumerate() {
            write!(f, " {} {condition}", if n == 0 { "if" } else { "and" })?;
        }
        if let Some(limit) = self.limit {
            write!(f, " count {limit}")?;
        }
        match self.action {
            Action::Print => Ok(()),
            action => write!(f, " then {}", word(&Action::ALL, &action)),
        }
    }
}

#[cfg(test)]
mod tests;
