//! Arithmetic in monitor commands, as QEMU has it: 64 bits that wrap, and from weakest to strongest `+ -`, then
//! `& | ^`, then `* / %`, then the signs `+ - ~`.
//!
//! An operand is a number (C's prefixes), a character in quotes, `$register`, a symbol, or an expression in parentheses. An
//! expression ends where no operator follows, so that several may stand side by side.

use machine::InspectError;

/// How much of an unknown name is shown.
const NAME_SHOWN: usize = 40;
/// Parentheses and signs within each other.
const DEPTH_MAX: u32 = 100;

/// What is wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExpressionError {
    #[error("unexpected end of expression")]
    End,
    #[error("invalid char '{0}' in expression")]
    Character(char),
    #[error("')' expected")]
    Parenthesis,
    #[error("missing terminating ' character")]
    Quote,
    #[error("number too large")]
    TooLarge,
    #[error("division by zero")]
    Division,
    #[error("unknown register '${0}'; there are $rax … $r15, $rip, $eflags, $cr0 … $cr8, $efer, $cs.base, …")]
    Register(String),
    #[error("unknown symbol '{0}': it is none of the guest's kernel, or that has no symbols (yet)")]
    Symbol(String),
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error("expression with more than {DEPTH_MAX} parentheses or signs within each other")]
    Depth,
}

type Result = std::result::Result<u64, ExpressionError>;

/// Where the values of symbols, and of registers (behind `$`) come from; `None`: there is none of that name.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> std::result::Result<Option<u64>, InspectError>;

struct Parser<'a, 'b> {
    rest: &'a str,
    depth: u32,
    values: Lookup<'b>,
}

/// Takes an expression off the beginning of `text`.
pub(crate) fn take(text: &mut &str, values: Lookup<'_>) -> Result {
    let mut parser = Parser { rest: text.trim_start(), depth: 0, values };
    let value = parser.sum();
    *text = parser.rest;
    value
}

impl Parser<'_, '_> {
    /// Takes one of `operators`, if it is next.
    fn operator(&mut self, operators: &[char]) -> Option<char> {
        let next = self.rest.chars().next().filter(|next| operators.contains(next))?;
        self.skip(1);
        Some(next)
    }

    /// Passes over `bytes`, which end a character, and the spaces behind.
    fn skip(&mut self, bytes: usize) {
        self.rest = self.rest.get(bytes..).unwrap_or_default().trim_start();
    }

    fn sum(&mut self) -> Result {
        let mut value = self.logic()?;
        while let Some(operator) = self.operator(&['+', '-']) {
            let other = self.logic()?;
            value = if operator == '+' { value.wrapping_add(other) } else { value.wrapping_sub(other) };
        }
        Ok(value)
    }

    fn logic(&mut self) -> Result {
        let mut value = self.product()?;
        while let Some(operator) = self.operator(&['&', '|', '^']) {
            let other = self.product()?;
            value = match operator {
                '&' => value & other,
                '|' => value | other,
                _ => value ^ other,
            };
        }
        Ok(value)
    }

    fn product(&mut self) -> Result {
        let mut value = self.operand()?;
        while let Some(operator) = self.operator(&['*', '/', '%']) {
            let other = self.operand()?;
            value = match operator {
                '*' => value.wrapping_mul(other),
                '/' => value.checked_div(other).ok_or(ExpressionError::Division)?,
                _ => value.checked_rem(other).ok_or(ExpressionError::Division)?,
            };
        }
        Ok(value)
    }

    fn operand(&mut self) -> Result {
        if self.depth == DEPTH_MAX {
            return Err(ExpressionError::Depth);
        }
        if let Some(rest) = self.rest.strip_prefix('\'') {
            // What follows may be a space.
            self.rest = rest;
            return self.character();
        }
        self.depth += 1;
        let value = match self.operator(&['+', '-', '~', '(', '$']) {
            Some('+') => self.operand(),
            Some('-') => self.operand().map(u64::wrapping_neg),
            Some('~') => self.operand().map(|value| !value),
            Some('(') => {
                let value = self.sum()?;
                self.operator(&[')']).map(|_| value).ok_or(ExpressionError::Parenthesis)
            }
            Some(_) => self.named("$", ExpressionError::Register),
            None if self.rest.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') => {
                self.named("", ExpressionError::Symbol)
            }
            None => self.number(),
        };
        self.depth -= 1;
        value
    }

    fn character(&mut self) -> Result {
        let character = self.rest.chars().next().ok_or(ExpressionError::End)?;
        let behind = self.rest.get(character.len_utf8()..).unwrap_or_default();
        if !behind.starts_with('\'') {
            return Err(ExpressionError::Quote);
        }
        self.skip(character.len_utf8() + 1);
        Ok(u32::from(character).into())
    }

    /// A symbol, or what follows `$`, by `error` if there is none.
    fn named(&mut self, mark: &str, error: fn(String) -> ExpressionError) -> Result {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
        let len = self.rest.find(|c| !is_name(c)).unwrap_or(self.rest.len());
        let name = self.rest.get(..len).unwrap_or_default();
        let value =
            (self.values)(&format!("{mark}{name}"))?.ok_or_else(|| error(name.chars().take(NAME_SHOWN).collect()))?;
        self.skip(len);
        Ok(value)
    }

    fn number(&mut self) -> Result {
        let next = self.rest.chars().next().ok_or(ExpressionError::End)?;
        if !next.is_ascii_digit() {
            return Err(ExpressionError::Character(next));
        }
        let (digits, base) = match self.rest.get(..2) {
            Some("0x" | "0X") => (self.rest.get(2..).unwrap_or_default(), 16),
            _ if next == '0' => (self.rest, 8),
            _ => (self.rest, 10),
        };
        let len = digits.find(|c: char| !c.is_digit(base)).unwrap_or(digits.len());
        let start = self.rest.len() - digits.len();
        if len == 0 {
            return Err(digits.chars().next().map_or(ExpressionError::End, ExpressionError::Character));
        }
        let value = u64::from_str_radix(digits.get(..len).unwrap_or_default(), base);
        let behind = digits.get(len..).and_then(|rest| rest.chars().next());
        if let Some(wrong) = behind.filter(char::is_ascii_alphanumeric) {
            return Err(ExpressionError::Character(wrong));
        }
        self.skip(start + len);
        value.map_err(|_| ExpressionError::TooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Result {
        let mut rest = text;
        let value = take(&mut rest, &|name| {
            Ok(match name {
                "$rip" => Some(0x1000),
                "_text" => Some(0x2000),
                _ => None,
            })
        })?;
        assert_eq!(rest, "", "{text}");
        Ok(value)
    }

    #[test]
    fn arithmetic_is_qemus() {
        for (text, want) in [
            ("10", 10),
            ("0x10", 16),
            ("010", 8),
            ("0", 0),
            (" 1+2*3 ", 7),
            ("1 + 3 & 2", 3),
            ("(1+3)&2", 0),
            ("7 % 4 ^ 1", 2),
            ("-1", u64::MAX),
            ("~0x0f", !15),
            ("- -5", 5),
            ("'a'+1", 98),
            ("' '", 32),
            ("$rip + 8", 0x1008),
            ("_text+$rip", 0x3000),
            ("0xffffffffffffffff + 2", 1),
        ] {
            assert_eq!(value(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        use ExpressionError::*;
        for (text, want) in [
            ("", End),
            ("1 +", End),
            ("foo", Symbol("foo".into())),
            ("rip", Symbol("rip".into())),
            ("0x", End),
            ("0xg", Character('g')),
            ("12ab", Character('a')),
            ("09", Character('9')),
            ("ö", Character('ö')),
            ("(1", Parenthesis),
            ("'a", Quote),
            ("'ö", Quote),
            ("1/0", Division),
            ("1%(2-2)", Division),
            ("0x10000000000000000", TooLarge),
            ("$foo", Register("foo".into())),
            ("$", Register(String::new())),
        ] {
            assert_eq!(value(text), Err(want), "{text}");
        }
        assert_eq!(value(&"(".repeat(1 << 20)), Err(Depth));
        assert_eq!(value(&"-".repeat(1 << 20)), Err(Depth));
        assert_eq!(value(&"1+".repeat(1 << 19)), Err(End));
    }

    #[test]
    fn expressions_stand_side_by_side() {
        let mut text = "0x10 4 rest";
        assert_eq!((take(&mut text, &|_| Ok(None)), take(&mut text, &|_| Ok(None)), text), (Ok(16), Ok(4), "rest"));
    }
}
