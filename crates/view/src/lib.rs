//! The host terminal as the guest's console: raw mode that is always undone, the Ctrl-A keys, signals, careful output.
//!
//! Vitrine's terminal behaves as QEMU's `-nographic` does. Nothing here knows a machine: bytes and keys go to
//! whoever asked for them. A web view will be a sibling of these modules.

pub mod editor;
pub mod escape;
pub mod input;
pub mod output;
pub mod signals;
pub mod terminal;

pub use editor::Editor;
pub use escape::{Action, Escape, HELP};
pub use output::Output;
pub use terminal::{Mode, Terminal};

/// What can go wrong between Vitrine and its terminal.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The terminal's settings could not be read or changed.
    #[error("the terminal's mode cannot be changed: {0}")]
    Mode(#[source] rustix::io::Errno),
    /// The signal handlers or their thread could not be set up.
    #[error("the signal handlers cannot be installed: {0}")]
    Signals(#[source] std::io::Error),
    /// The thread that reads standard input could not be started.
    #[error("the thread that reads standard input cannot be started: {0}")]
    Thread(#[source] std::io::Error),
}
