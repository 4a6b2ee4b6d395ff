//! The command `vitrine`: flags and wiring only.

mod convert;
mod demo;
mod explain;
mod feed;
mod flags;
mod keyboard;
mod logs;
mod plan;
mod run;
mod sandbox;
mod say;
mod session;
mod timeline;
mod top;

use std::io::{self, Write};
use std::process::exit;

use anyhow::{Context, Result};

use flags::{Flags, Request, UsageError};
use logs::Log;
use session::End;

/// Exit status when something fails.
const FAILURE: u8 = 1;
/// Exit status when the command line is wrong.
const USAGE: u8 = 2;

fn main() {
    let end = command().unwrap_or_else(|error| {
        view::terminal::restore();
        say::say(format_args!("{error:#}"));
        End::Status(if error.is::<UsageError>() { USAGE } else { FAILURE })
    });
    match end {
        // At once: the guest may still run, held up in writing to a reader that does not read.
        End::Status(status) => exit(status.into()),
        End::Signal(signal) => view::signals::die_of(signal),
    }
}

fn command() -> Result<End> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.split_first() {
        Some((word, rest)) if word == "top" => return top::run(rest).map(|()| End::Status(0)),
        Some((word, rest)) if word == "explain" => return explain::run(rest).map(|()| End::Status(0)),
        Some((word, rest)) if word == "convert" => return convert::run(rest).map(|()| End::Status(0)),
        _ => {}
    }
    let demo = arguments.iter().all(|argument| argument == "view");
    let flags = match flags::parse(arguments)? {
        Request::Print(text) => {
            io::stdout().write_all(text.as_bytes()).context("standard output cannot be written")?;
            return Ok(End::Status(0));
        }
        Request::Boot(flags) => flags,
    };
    boot(&flags, demo || flags.demo)
}

fn boot(flags: &Flags, demo: bool) -> Result<End> {
    host::features::require()?;
    let log = Log::start(flags.log.as_ref(), flags.log_file.as_deref())?;
    let end = if demo { demo::run(flags) } else { run::run(flags) };
    log.flush();
    end
}
