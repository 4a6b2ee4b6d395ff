//! What `-trace` is given: `FILE[,FILTER…][,wait|drop][,off][,from=N][,to=N][,port[=PORT]]`.

use super::{Full, When};
use crate::watch::{Kinds, Watch};
use std::path::PathBuf;
use std::str::FromStr;

/// What is to be traced, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// The name from which those of the files are made.
    pub file: PathBuf,
    /// What is traced. Accesses that several of these want are there once.
    pub filters: Vec<Watch>,
    /// What happens when the disk is slower than the guest.
    pub full: Full,
    /// When it is traced.
    pub when: When,
}

/// The port by which a guest turns the trace on and off, if it is not told which. No device of a PC has it.
const PORT: u16 = 0xea;

/// What is wrong with it, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("trace {text:?}, column {}: {what}", .column + 1)]
pub struct SpecError {
    /// The whole argument.
    pub text: String,
    /// Where it goes wrong: characters before that place.
    pub column: usize,
    /// What is wrong there, and what would be right.
    pub what: String,
}

impl FromStr for Spec {
    type Err = SpecError;

    /// A filter is what `-watch` takes, or kinds alone: `r`, `w`, `x` or several of them, at any address. Without one all
    /// reads and writes are traced.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut parts = text.split(',');
        let file = parts.next().unwrap_or_default();
        let mut column = file.chars().count() + 1;
        let error = |column, what: &str| SpecError { text: text.to_owned(), column, what: what.to_owned() };
        if file.is_empty() {
            return Err(error(0, "the name of a file is to come first, as in boot.parquet"));
        }
        let (mut filters, mut full, mut when) = (Vec::new(), Full::Wait, When::default());
        for part in parts {
            let value = part.split_once('=').map(|(name, value)| (name, number(value)));
            let behind = column + part.find('=').map_or(0, |at| at + 1);
            match (part, value) {
                ("wait", _) => full = Full::Wait,
                ("drop", _) => full = Full::Drop,
                ("off", _) => when.off = true,
                ("port", _) => when.port = Some(PORT),
                (_, Some(("from" | "to", None))) => {
                    return Err(error(behind, "a count of instructions is a number, decimal or after 0x hexadecimal"));
                }
                (_, Some(("from", from))) => when.from = from,
                (_, Some(("to", to))) => when.to = to,
                (_, Some(("port", port))) => {
                    let port = port.and_then(|port| u16::try_from(port).ok());
                    when.port = Some(port.ok_or_else(|| error(behind, "a port is a number up to 0xffff, as 0xea"))?);
                }
                _ => {
                    let filter = Watch::filter(part).map_err(|inner| error(column + inner.column, &inner.what))?;
                    filters.push(filter);
                }
            }
            column += part.chars().count() + 1;
        }
        if filters.is_empty() {
            filters.push(Watch::everywhere(Kinds { read: true, write: true, fetch: false }));
        }
        if when.to.is_some_and(|to| to <= when.from.unwrap_or(0)) {
            return Err(error(file.chars().count(), "it is to end later than it begins"));
        }
        Ok(Self { file: file.into(), filters, full, when })
    }
}

/// A number as C has them.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    // No sign.
    digits.chars().next().filter(char::is_ascii_hexdigit)?;
    u64::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_filters_and_what_to_do_when_full() {
        let spec: Spec = "a/b.parquet".parse().unwrap();
        let all = Watch::everywhere(Kinds { read: true, write: true, fetch: false });
        assert_eq!(
            spec,
            Spec { file: "a/b.parquet".into(), filters: vec![all], full: Full::Wait, when: When::default() }
        );
        let spec: Spec = "b,xw,r:ffff888007edec80+4,drop,gpa:1000,*rr+8".parse().unwrap();
        let filters = ["r:ffff888007edec80+4", "gpa:1000", "rw:*rr+8"].map(|text| text.parse().unwrap());
        assert_eq!(spec.filters[0], Watch::everywhere(Kinds { read: false, write: true, fetch: true }));
        assert_eq!((&spec.filters[1..], spec.full), (&filters[..], Full::Drop));
    }

    #[test]
    fn beginning_and_end() {
        let when = |text: &str| text.parse::<Spec>().unwrap_or_else(|error| panic!("{error}")).when;
        assert_eq!(when("f,off"), When { off: true, ..When::default() });
        assert_eq!(when("f,from=10,to=0x10"), When { from: Some(10), to: Some(16), ..When::default() });
        assert_eq!(when("f,port"), When { port: Some(0xea), ..When::default() });
        assert_eq!(when("f,w if value == 5,port=0x80"), When { port: Some(0x80), ..When::default() });
    }

    #[test]
    fn errors_say_where() {
        for (text, column, word) in [
            ("", 0, "file"),
            (",r", 0, "file"),
            ("f,w,r:12z", 8, "'z'"),
            ("f,w,", 4, ""),
            ("f,from=x", 7, "instructions"),
            ("f,to=", 5, "instructions"),
            ("f,from=+5", 7, "instructions"),
            ("f,port=0x10000", 7, "0xffff"),
            ("f,from=5,to=5", 1, "later"),
            ("f,w then stop", 4, "no action"),
        ] {
            let error = text.parse::<Spec>().expect_err(text);
            assert_eq!(error.column, column, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
