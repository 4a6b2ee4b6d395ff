//! What is watched: the expressions of `-watch`.
//!
//! ```text
//! [KINDS:][gpa:]ADDRESS[+LENGTH]
//! [KINDS:][*]SYMBOL[+LENGTH]
//! ```
//!
//! KINDS are one or more of `r`, `w` and `x`, and `rw` if they are left out. ADDRESS is a guest virtual address, after
//! `gpa:` a guest physical one; LENGTH is in bytes, 1 if it is left out. Both are hexadecimal, with or without `0x`.
//! SYMBOL is one of the guest's kernel; after `*` what the pointer of that name points to. What is nothing but
//! hexadecimal digits, or begins with a digit, is an address.

use memory::{Gpa, Gva};
use std::fmt;
use std::str::FromStr;

/// The highest bit that a physical address can have, plus one (APM vol. 2, 5.1).
const PHYSICAL_BITS: u32 = 52;
/// The most bits that a virtual address can have.
const VIRTUAL_BITS: u32 = 57;

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

/// Bytes that are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// For which accesses.
    pub kinds: Kinds,
    /// The first byte.
    pub start: Start,
    /// How many bytes, at least 1; the last one's address does not wrap.
    pub len: u64,
}

/// What is wrong with an expression, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("watch {expression:?}, column {}: {what}", .column + 1)]
pub struct WatchError {
    /// The whole expression.
    pub expression: String,
    /// Where it goes wrong: characters before that place.
    pub column: usize,
    /// What is wrong there, and what would be right.
    pub what: String,
}

/// An expression and how much of it has been read.
struct Parser<'a> {
    text: &'a str,
    /// Bytes read.
    at: usize,
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn error<T>(&self, what: impl Into<String>) -> Result<T, WatchError> {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        Err(WatchError { expression: self.text.to_owned(), column: before.chars().count(), what: what.into() })
    }

    /// Reads `token` if it is next.
    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    /// Reads `rwx:` in any selection and order.
    fn kinds(&mut self) -> Result<Kinds, WatchError> {
        let both = Kinds { read: true, write: true, fetch: false };
        let Some((word, _)) = self.rest().split_once(':') else { return Ok(both) };
        if word.eq_ignore_ascii_case("gpa") {
            return Ok(both);
        }
        let mut kinds = Kinds::default();
        for letter in word.chars() {
            let kind = match letter {
                'r' => &mut kinds.read,
                'w' => &mut kinds.write,
                'x' => &mut kinds.fetch,
                _ => {
                    return self.error(format!(
                        "{letter:?} is not a kind of access; r, w, x or several of them would be right"
                    ));
                }
            };
            if std::mem::replace(kind, true) {
                return self.error(format!("{letter:?} is there twice"));
            }
            self.at += letter.len_utf8();
        }
        if word.is_empty() {
            return self.error("r, w, x or several of them would be right before the colon");
        }
        self.at += 1;
        Ok(kinds)
    }

    /// Reads a symbol, if one is next.
    fn symbol(&mut self) -> Option<String> {
        let rest = self.rest();
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$'))).unwrap_or(rest.len());
        let name = rest.get(..end).filter(|name| name.contains(|c: char| !c.is_ascii_hexdigit()))?;
        let name = name.strip_prefix(|c: char| !c.is_ascii_digit()).map(|_| name.to_owned())?;
        self.at += end;
        Some(name)
    }

    /// Reads `+` and a length, if they are next.
    fn length(&mut self, first: u64) -> Result<u64, WatchError> {
        if !self.take("+") {
            return Ok(1);
        }
        let place = self.at;
        let len = self.number("the length")?;
        let end = std::mem::replace(&mut self.at, place);
        if len == 0 {
            return self.error("the length is to be at least 1");
        }
        if first.checked_add(len - 1).is_none() {
            return self.error("the last byte would lie past the highest address");
        }
        self.at = end;
        Ok(len)
    }

    /// Nothing else may come.
    fn finish(&self) -> Result<(), WatchError> {
        self.rest().chars().next().map_or(Ok(()), |c| {
            self.error(format!(
                "{c:?} is too much; [r|w|x|rw:][gpa:]ADDRESS[+LENGTH], in hexadecimal, or [r|w|x|rw:][*]SYMBOL[+LENGTH] \
                 would be right"
            ))
        })
    }

    /// Reads a hexadecimal number.
    fn number(&mut self, name: &str) -> Result<u64, WatchError> {
        let _ = self.take("0x") || self.take("0X");
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
        let digits = rest.get(..end).unwrap_or_default();
        if digits.is_empty() {
            let found = rest.chars().next().map_or("nothing".to_owned(), |c| format!("{c:?}"));
            return self.error(format!("{name} is to be hexadecimal digits, as in ffff888007edec80; there is {found}"));
        }
        match u64::from_str_radix(digits, 16) {
            Ok(number) => {
                self.at += end;
                Ok(number)
            }
            Err(_) => self.error(format!("{name} has more than 64 bits")),
        }
    }
}

impl FromStr for Watch {
    type Err = WatchError;

    fn from_str(text: &str) -> Result<Self, WatchError> {
        let mut parser = Parser { text, at: 0 };
        let kinds = parser.kinds()?;
        let physical = parser.take("gpa:") || parser.take("GPA:");
        let place = parser.at;
        let pointer = !physical && parser.take("*");
        if !physical && let Some(name) = parser.symbol() {
            let len = parser.length(0)?;
            parser.finish()?;
            return Ok(Self { kinds, start: Start::Symbol { name, pointer }, len });
        }
        if pointer {
            return parser.error("the name of a symbol would be right behind *");
        }
        let address = parser.number("the address")?;
        let end = std::mem::replace(&mut parser.at, place);
        if physical && address >> PHYSICAL_BITS != 0 {
            return parser.error(format!("a physical address has at most {PHYSICAL_BITS} bits"));
        }
        if !physical && !x86::is_canonical(address, VIRTUAL_BITS) {
            return parser
                .error("the address is not canonical, so no access can have it (for a physical address: gpa:)");
        }
        parser.at = end;
        let len = parser.length(address)?;
        parser.finish()?;
        let start = if physical { Start::Physical(Gpa(address)) } else { Start::Virtual(Gva(address)) };
        Ok(Self { kinds, start, len })
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Watch {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    fn watch(kinds: &str, start: Start, len: u64) -> Watch {
        let kinds = Kinds { read: kinds.contains('r'), write: kinds.contains('w'), fetch: kinds.contains('x') };
        Watch { kinds, start, len }
    }

    #[test]
    fn every_form_is_understood() {
        let gva = || Start::Virtual(Gva(0xffff_8880_07ed_ec80));
        let gpa = || Start::Physical(Gpa(0x7e_dec8));
        let symbol = |name: &str, pointer| Start::Symbol { name: name.to_owned(), pointer };
        let cases = [
            ("r:ffff888007edec80", watch("r", gva(), 1)),
            ("w:0xffff888007edec80", watch("w", gva(), 1)),
            ("x:0XFFFF888007EDEC80", watch("x", gva(), 1)),
            ("rw:ffff888007edec80+4", watch("rw", gva(), 4)),
            ("xr:ffff888007edec80+0x10", watch("rx", gva(), 16)),
            ("ffff888007edec80+10", watch("rw", gva(), 16)),
            ("gpa:7edec8", watch("rw", gpa(), 1)),
            ("GPA:7edec8", watch("rw", gpa(), 1)),
            ("r:gpa:0x7edec8+4", watch("r", gpa(), 4)),
            ("rwx:gpa:7edec8+1000", watch("rwx", gpa(), 4096)),
            ("0", watch("rw", Start::Virtual(Gva(0)), 1)),
            ("r:ffffffffffffffff+1", watch("r", Start::Virtual(Gva(u64::MAX)), 1)),
            ("saved_command_line", watch("rw", symbol("saved_command_line", false), 1)),
            ("r:*saved_command_line+10", watch("r", symbol("saved_command_line", true), 16)),
            ("w:x86_init.c$1+8", watch("w", symbol("x86_init.c$1", false), 8)),
            ("x:_text", watch("x", symbol("_text", false), 1)),
            ("face", watch("rw", Start::Virtual(Gva(0xface)), 1)),
        ];
        for (text, watch) in cases {
            assert_eq!(parsed(text), watch, "{text}");
            assert_eq!(parsed(&watch.to_string()), watch, "{watch}");
        }
    }

    #[test]
    fn errors_say_where_and_what_would_be_right() {
        let cases = [
            ("", 0, "nothing"),
            ("q:1000", 0, "'q' is not a kind"),
            ("rq:1000", 1, "'q' is not a kind"),
            ("rr:1000", 1, "twice"),
            (":1000", 0, "before the colon"),
            ("r:", 2, "nothing"),
            ("r:*", 3, "name of a symbol"),
            ("r:*ffff", 3, "name of a symbol"),
            ("r:**p", 3, "name of a symbol"),
            ("r:gpa:xyz", 6, "'x'"),
            ("r:xyz+", 6, "nothing"),
            ("r:xyz+0", 6, "at least 1"),
            ("r:xyz-1", 5, "'-' is too much"),
            ("r:12z4", 4, "'z' is too much"),
            ("r:1000+", 7, "nothing"),
            ("r:1000+0", 7, "at least 1"),
            ("r:1000+4 ", 8, "' ' is too much"),
            ("r:gpa:", 6, "nothing"),
            ("gva:1000", 0, "'g' is not a kind"),
            ("r:0x", 4, "nothing"),
            ("r:11112222333344445", 2, "64 bits"),
            ("r:8000000000000000", 2, "not canonical"),
            ("r:gpa:10000000000000", 6, "52 bits"),
            ("r:ffffffffffffffff+2", 19, "past the highest"),
            ("\u{e4}:1000", 0, "is not a kind"),
            ("r:\u{e4}", 2, "'\u{e4}'"),
        ];
        for (text, column, word) in cases {
            let error = text.parse::<Watch>().expect_err(text);
            assert_eq!(error.column, column, "{error}");
            assert!(error.to_string().contains(word), "{error}");
            assert_eq!(error.to_string().lines().count(), 1);
        }
        let text = "r:12z4".parse::<Watch>().unwrap_err().to_string();
        assert!(text.starts_with("watch \"r:12z4\", column 5: "), "{text}");
    }
}
