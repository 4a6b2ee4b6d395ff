//! Signals that end or stop Vitrine, handled on a thread of their own so that the terminal is restored first.

use std::thread;

use signal_hook::consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use crate::{ViewError, terminal};

/// Calls `ended` with the number of each signal that asks Vitrine to end (INT, TERM, HUP, QUIT).
///
/// Stopping (TSTP) gives the terminal back for as long as it lasts; CONT takes it again. Call once a process.
///
/// # Errors
/// When the handlers or the thread cannot be set up.
pub fn watch(ended: impl Fn(i32) + Send + 'static) -> Result<(), ViewError> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGCONT]).map_err(ViewError::Signals)?;
    let handle = move || {
        jail::enter(jail::Role::Control);
        for signal in signals.forever() {
            match signal {
                SIGTSTP => {
                    terminal::suspend();
                    let _ = low_level::emulate_default_handler(SIGTSTP);
                }
                // A shell may have changed the mode meanwhile. A terminal that is gone will show at the next read.
                SIGCONT => drop(terminal::resume()),
                other => ended(other),
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(handle).map_err(ViewError::Signals)?;
    Ok(())
}

/// The name of a signal, as `SIGTERM`.
#[must_use]
pub fn name(signal: i32) -> &'static str {
    low_level::signal_name(signal).unwrap_or("a signal")
}

/// Restores the terminal and ends the process as `signal` would have, so that the parent sees what happened.
pub fn die_of(signal: i32) -> ! {
    terminal::restore();
    let _ = low_level::emulate_default_handler(signal);
    // Only reached if the signal is blocked or its default is harmless.
    std::process::exit(128_i32.saturating_add(signal))
}
