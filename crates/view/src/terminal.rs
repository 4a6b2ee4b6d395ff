//! Raw mode, and the promise that the terminal is left as it was found.
//!
//! The settings to go back to live in one static, since a panic hook and a signal need them as much as the owner's drop
//! does. Modes are set at once (`TCSANOW`): waiting for output to drain would hang on a terminal that is stopped.
//! Nothing is changed when standard input is no terminal or when the process is in its background.

use std::sync::{Mutex, Once, PoisonError};

use rustix::stdio::stdin;
use rustix::termios::{self, InputModes, LocalModes, OptionalActions, SpecialCodeIndex, Termios};

use crate::ViewError;

/// What Ctrl-C and its like do while the guest has the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every key goes to the guest: `-nographic`, `mon:stdio`.
    Raw,
    /// Ctrl-C, Ctrl-\ and Ctrl-Z act on Vitrine; the rest goes to the guest: `-serial stdio`.
    RawWithSignals,
}

struct Held {
    original: Termios,
    raw: Termios,
}

static HELD: Mutex<Option<Held>> = Mutex::new(None);

/// Holds the terminal in raw mode until dropped.
#[derive(Debug)]
pub struct Terminal(());

impl Terminal {
    /// Puts the terminal on standard input into `mode`. `None` if standard input is no terminal: nothing changes.
    ///
    /// # Errors
    /// When the terminal refuses its settings.
    pub fn enter(mode: Mode) -> Result<Option<Self>, ViewError> {
        if !termios::isatty(stdin()) {
            return Ok(None);
        }
        let original = termios::tcgetattr(stdin()).map_err(ViewError::Mode)?;
        let raw = raw(&original, mode);
        restore_on_panic();
        *HELD.lock().unwrap_or_else(PoisonError::into_inner) = Some(Held { original, raw });
        let terminal = Self(());
        resume()?;
        Ok(Some(terminal))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// QEMU's choice of settings: output processing stays on, so a lone line feed of ours still starts a new line.
fn raw(original: &Termios, mode: Mode) -> Termios {
    let mut raw = original.clone();
    raw.input_modes.remove(
        InputModes::IGNBRK
            | InputModes::BRKINT
            | InputModes::PARMRK
            | InputModes::ISTRIP
            | InputModes::INLCR
            | InputModes::IGNCR
            | InputModes::ICRNL
            | InputModes::IXON,
    );
    raw.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::IEXTEN);
    if mode == Mode::Raw {
        raw.local_modes.remove(LocalModes::ISIG);
    }
    raw.special_codes[SpecialCodeIndex::VMIN] = 1;
    raw.special_codes[SpecialCodeIndex::VTIME] = 0;
    raw
}

/// How many columns the terminal on standard input has; 80 if it does not say.
#[must_use]
pub fn width() -> usize {
    let size = termios::tcgetwinsize(stdin()).map(|size| usize::from(size.ws_col));
    size.ok().filter(|columns| *columns > 0).unwrap_or(80)
}

/// Gives the terminal its original settings back for good. Safe to call at any time, from any thread, repeatedly.
pub fn restore() {
    let held = HELD.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(held) = held {
        // Nobody is left to tell when this fails: the terminal is gone.
        let _ = set(&held.original);
    }
}

/// Gives the original settings back for the time that the process is stopped; [`resume`] ends that time.
pub(crate) fn suspend() {
    if let Some(held) = HELD.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        let _ = set(&held.original);
    }
}

/// Puts the settings of [`Terminal::enter`] in force, if it holds.
pub(crate) fn resume() -> Result<(), ViewError> {
    match HELD.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        Some(held) => set(&held.raw).map_err(ViewError::Mode),
        None => Ok(()),
    }
}

/// A background process that sets the terminal's mode is stopped by SIGTTOU, and would spoil it for the foreground.
fn set(settings: &Termios) -> rustix::io::Result<()> {
    if termios::tcgetpgrp(stdin()) != Ok(rustix::process::getpgrp()) {
        return Ok(());
    }
    termios::tcsetattr(stdin(), OptionalActions::Now, settings)
}

/// Restores before the default hook prints, so that the message is readable.
fn restore_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // The panicking thread may hold the lock; then its owner's drop restores while unwinding.
            if let Ok(mut held) = HELD.try_lock()
                && let Some(held) = held.take()
            {
                let _ = set(&held.original);
            }
            next(info);
        }));
    });
}
