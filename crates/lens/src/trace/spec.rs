//! What `-trace` is given: `FILE[,FILTER…][,wait|drop]`.

use super::Full;
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
}

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
        let (mut filters, mut full) = (Vec::new(), Full::Wait);
        for part in parts {
            match part {
                "wait" => full = Full::Wait,
                "drop" => full = Full::Drop,
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
        Ok(Self { file: file.into(), filters, full })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_filters_and_what_to_do_when_full() {
        let spec: Spec = "a/b.parquet".parse().unwrap();
        let all = Watch::everywhere(Kinds { read: true, write: true, fetch: false });
        assert_eq!(spec, Spec { file: "a/b.parquet".into(), filters: vec![all], full: Full::Wait });
        let spec: Spec = "b,xw,r:ffff888007edec80+4,drop,gpa:1000,*rr+8".parse().unwrap();
        let filters = ["r:ffff888007edec80+4", "gpa:1000", "rw:*rr+8"].map(|text| text.parse().unwrap());
        assert_eq!(spec.filters[0], Watch::everywhere(Kinds { read: false, write: true, fetch: true }));
        assert_eq!((&spec.filters[1..], spec.full), (&filters[..], Full::Drop));
    }

    #[test]
    fn errors_say_where() {
        for (text, column, word) in [("", 0, "file"), (",r", 0, "file"), ("f,w,r:12z", 8, "'z'"), ("f,w,", 4, "")] {
            let error = text.parse::<Spec>().expect_err(text);
            assert_eq!(error.column, column, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
