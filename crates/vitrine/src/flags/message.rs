//! Clap's errors as one line in QEMU's spelling.

use std::error::Error as _;

use clap::Error;
use clap::error::{ContextKind, ContextValue, ErrorKind};

/// What is wrong and what would be right, on one line.
pub fn one_line(error: &Error) -> String {
    let flag = context(error, ContextKind::InvalidArg).map(|flag| one_dash(&flag)).unwrap_or_default();
    let value = context(error, ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument => match context(error, ContextKind::SuggestedArg) {
            Some(other) => format!("there is no flag {flag}; did you mean {}? -help lists all", one_dash(&other)),
            None => format!("there is no flag {flag}; -help lists those there are"),
        },
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => match error.source() {
            Some(reason) => format!("{flag} {value}: {reason}"),
            None => format!("{flag} wants a value that is not empty"),
        },
        ErrorKind::TooManyValues => format!("{flag} takes no value"),
        ErrorKind::InvalidUtf8 => "a flag's value is not valid UTF-8".to_owned(),
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            one_dash(line.strip_prefix("error: ").unwrap_or(line))
        }
    }
}

/// `text` with its control characters written out: they are what somebody gave, and would break the line or do worse to a
/// terminal.
pub fn printable(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

fn context(error: &Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}

/// `--kernel <FILE>` as `-kernel`.
fn one_dash(text: &str) -> String {
    let name = text.split([' ', '=']).next().unwrap_or(text);
    if name.starts_with("--") { format!("-{}", name.trim_start_matches('-')) } else { text.to_owned() }
}
