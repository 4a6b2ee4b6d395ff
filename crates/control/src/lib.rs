//! How one asks a machine: the monitor with QEMU's commands, QEMU's machine protocol, and gdb's remote protocol.
//!
//! [`Monitor::execute`] takes a line and gives a text. All that it knows of a vCPU it sees on that vCPU's own thread
//! ([`machine::Handle::inspect`]), so that the machine may run meanwhile; memory goes on changing then. What a client
//! writes is input: lines, counts and what a guest's tables make of an address are bounded.

mod arguments;
mod ask;
mod client;
mod command;
mod core_file;
mod dump;
mod explain;
mod expression;
pub mod figures;
mod gdb;
mod info;
mod lines;
pub mod look;
mod monitor;
mod paging;
mod qmp;
mod registers;
mod snapshot;
mod touched;
mod tracing;
mod watching;

pub use ask::ask;
pub use client::{Address, Server, SocketError};
pub use gdb::serve_gdb;
pub use lines::{Lines, PROMPT, banner, serve_monitor};
pub use monitor::{LINE_MAX, Monitor, MonitorError};
pub use qmp::serve_qmp;
pub use snapshot::{SnapshotError, explain_snapshot};

#[cfg(test)]
mod tests;
