//! The translator: guest code re-encoded for the host, which is of the same architecture.
//!
//! Warm code is translated a region at a time ([`region`]): what can be reached within a page. Registers, flags and
//! vectors of the guest stay in those of the host ([`regs`], [`flags`]); an access to memory is checked against the
//! softmmu TLB inline ([`translate`]); whatever the host must not do for the guest, and everything out of the
//! ordinary, is left to the interpreter, which finds the vCPU complete ([`run`]).

pub mod asm;
pub mod bug;
pub mod cache;
pub mod classify;
pub mod flags;
pub mod frame;
pub mod graph;
pub mod legacy;
pub mod log;
pub mod perf;
mod record;
pub mod region;
pub mod regs;
pub mod run;
pub mod segments;
pub mod sites;
pub mod stats;
pub mod thunks;
pub mod translate;

pub use run::{Config, Jit};

/// Why there is no translator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host gives no memory.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// A file for `perf` cannot be written.
    #[error("{0} cannot be written, which is to have names for perf: {1}")]
    Profile(std::path::PathBuf, #[source] std::io::Error),
}
