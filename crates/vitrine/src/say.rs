//! Vitrine's own words on standard error. They are never worth a panic: a closed standard error is let be.

use std::fmt::Display;
use std::io::{self, Write};

/// Prints `vitrine: …` as one line.
pub fn say(what: impl Display) {
    line(format_args!("vitrine: {what}"));
}

/// Prints a line.
pub fn line(what: impl Display) {
    let _ = writeln!(io::stderr(), "{what}");
}
