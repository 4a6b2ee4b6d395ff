//! `vitrine explain`: what follows the word.

use crate::flags::{UsageError, values};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

/// Prints the way of the address that the arguments name, in a machine that runs or one that was saved.
///
/// # Errors
/// They name none ([`UsageError`]); nobody answers, or the file is something else.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let usage = || {
        let what = "vitrine explain ADDR unix:PATH follows an address in a machine that runs with -qmp or -monitor \
                    unix:PATH, vitrine explain ADDR FILE in one that dump-guest-memory has saved";
        UsageError(what.to_owned())
    };
    let [address, of] = arguments else { return Err(usage().into()) };
    let address = address.to_str().ok_or_else(usage)?;
    let text = match of.to_str().filter(|of| of.starts_with("unix:")) {
        Some(of) => {
            let path = values::socket(of).map_err(UsageError)?;
            control::ask(&path, &format!("explain {address}")).with_context(|| path.display().to_string())?
        }
        None => {
            let path = Path::new(of);
            control::explain_snapshot(path, address).with_context(|| path.display().to_string())?
        }
    };
    io::stdout().write_all(text.as_bytes()).context("standard output cannot be written")
}
