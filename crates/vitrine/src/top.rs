//! `vitrine top`: what follows the word.

use crate::flags::{UsageError, values};
use anyhow::Result;
use std::ffi::OsString;
use std::path::PathBuf;

/// Shows the machine that the arguments name.
///
/// # Errors
/// They name none ([`UsageError`]), or it cannot be shown.
pub fn run(arguments: &[OsString]) -> Result<()> {
    let [address] = arguments else {
        let what = "top shows a machine that runs with -qmp unix:PATH: vitrine top unix:PATH";
        return Err(UsageError(what.to_owned()).into());
    };
    let path = match address.to_str().filter(|text| text.starts_with("unix:")) {
        Some(text) => values::socket(text).map_err(UsageError)?,
        None => PathBuf::from(address),
    };
    Ok(view::top::run(&path)?)
}
