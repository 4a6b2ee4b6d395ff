//! From QEMU's style of command line to clap's.
//!
//! QEMU takes `-name` and `--name` alike, and whatever follows a flag that takes a value is its value, dashes or not.
//! Clap wants two dashes and its values attached: `--name=value`.

use std::ffi::OsString;

use clap::{Arg, Command};

use super::{UsageError, absent, values};

/// A command line in clap's style, or a list that was asked for by `help` as the value of a flag.
pub enum Normal {
    /// For clap.
    Arguments(Vec<OsString>),
    /// To be printed.
    Help(String),
}

/// Rewrites `arguments` for `command`.
///
/// # Errors
/// Something that is no flag at all, a flag of QEMU's that is not there yet, or a flag whose value is missing.
pub fn normalise(command: &Command, arguments: impl IntoIterator<Item = OsString>) -> Result<Normal, UsageError> {
    let mut normal = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let shown = argument.to_string_lossy().into_owned();
        if matches!(&*shown, "-" | "--") {
            return Err(UsageError(format!("{shown} alone is no flag; -help lists those there are")));
        }
        let Some(name) = shown.strip_prefix('-').map(|name| name.strip_prefix('-').unwrap_or(name)) else {
            return Err(UsageError(format!(
                "'{shown}' is no flag, and there are no disks yet; a kernel is given by -kernel {shown}"
            )));
        };
        let Some(flag) = find(command, name) else {
            // `--flag=value` is clap's own style; anything else that is unknown is clap's to refuse, and ends the line,
            // since nobody knows whether a value follows.
            let bare = name.split('=').next().unwrap_or(name);
            if let Some(hint) = absent::hint(bare) {
                return Err(UsageError(format!("-{bare} is not there yet: {hint}")));
            }
            normal.push(format!("--{name}").into());
            if find(command, bare).is_none() {
                break;
            }
            continue;
        };
        let mut written = OsString::from(format!("--{name}"));
        if flag.get_action().takes_values() {
            let Some(value) = arguments.next() else {
                return Err(UsageError(format!("-{name} wants a value: -{name} {}", value_name(flag))));
            };
            if let Some(topic) = value.to_str().and_then(|value| values::help(flag.get_id().as_str(), value)) {
                return Ok(Normal::Help(topic));
            }
            written.push("=");
            written.push(value);
        }
        normal.push(written);
    }
    Ok(Normal::Arguments(normal))
}

/// The flag called `name`, in the case it is written in: QEMU's `-d` and `-D` differ.
fn find<'command>(command: &'command Command, name: &str) -> Option<&'command Arg> {
    command.get_arguments().find(|flag| {
        flag.get_long() == Some(name) || flag.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
    })
}

/// What stands for the flag's value in a usage line.
pub fn value_name(flag: &Arg) -> String {
    flag.get_value_names().unwrap_or_default().iter().map(|name| name.as_str()).collect()
}
