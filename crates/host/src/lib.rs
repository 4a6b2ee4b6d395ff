//! The host: its CPU as the guest's ALU, executable memory, signals, and what the host's processor can do.
//!
//! What runs on the host's own units runs exactly as the guest expects, to the last flag and rounding bit. [`alu`] does
//! this for the common integer instructions by inline assembly, [`native`] for everything else by small stubs
//! that it emits into [`code`] and whose faults [`signal`] turns into values.

pub mod alu;
pub mod code;
pub mod features;
pub mod gs;
pub mod native;
pub mod oracle;
pub mod signal;
pub mod vector;

pub use features::{CpuidResult, Features, cpuid, features};

/// Why the host cannot do what is asked of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The processor lacks instructions that Vitrine itself is built on.
    #[error("the host's processor lacks {0}: an x86-64-v3 processor (AVX2, BMI2; Intel 2013, AMD 2015) is needed")]
    Processor(String),
    /// No memory that can be executed.
    #[error("cannot map executable memory (is PROT_EXEC forbidden by a security policy?)")]
    CodeMemory(#[source] std::io::Error),
    /// A signal handler could not be installed.
    #[error("cannot install a signal handler")]
    Signal(#[source] std::io::Error),
    /// More stub regions than the signal handler knows of.
    #[error("too many vCPUs: only {0} regions of executable memory are possible")]
    Regions(usize),
}
