//! `vitrine convert`: what follows the word.

use crate::flags::UsageError;
use anyhow::{Context, Result};
use lens::trace::export::{ExportError, Format, export};
use lens::trace::read::Reader;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;

const USAGE: &str =
    "vitrine convert [-trace-format csv|lackey|drmemtrace-text|champsim] TRACE [FILE], where TRACE was -trace's";

/// Writes the trace that the arguments name in the format that they name, to a file or to standard output.
///
/// # Errors
/// They name none ([`UsageError`]); the trace cannot be read, or the file not be written.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let usage = |what: &str| UsageError(format!("{what}: {USAGE}"));
    let (mut format, mut names) = (Format::default(), Vec::new());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("-trace-format" | "--trace-format") => {
                let name = rest.next().and_then(|name| name.to_str());
                let name = name.ok_or_else(|| usage("-trace-format takes the name of a format"))?;
                format = name.parse().map_err(|error: String| usage(&error))?;
            }
            Some(flag) if flag.starts_with('-') && flag != "-" => {
                return Err(usage(&format!("there is no flag {flag}")).into());
            }
            _ => names.push(Path::new(argument)),
        }
    }
    let (trace, to) = match names[..] {
        [trace] => (trace, None),
        [trace, to] => (trace, Some(to).filter(|to| *to != Path::new("-"))),
        _ => return Err(usage("convert takes a trace and a file").into()),
    };
    let rows = Reader::open(trace)?;
    let to: Box<dyn Write> = match to {
        Some(to) => Box::new(File::create(to).with_context(|| format!("{} cannot be written", to.display()))?),
        None => Box::new(io::stdout().lock()),
    };
    match export(rows, format, BufWriter::with_capacity(1 << 16, to)) {
        // Whoever reads has enough.
        Err(ExportError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
