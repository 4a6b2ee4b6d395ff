//! What people see: the host terminal as the guest's console, and a page in the browser that shows a running machine.
//!
//! The terminal (raw mode that is always undone, the Ctrl-A keys, signals, careful output) behaves as with QEMU's
//! `-nographic`, and knows no machine: bytes and keys go to whoever asked for them. The page is in [`web`].

pub mod editor;
pub mod escape;
pub mod input;
pub mod output;
pub mod signals;
pub mod terminal;
pub mod top;
pub mod web;

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
