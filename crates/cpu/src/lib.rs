//! An x86-64 processor: state, decoding, the interpreter, exceptions and interrupts, MSRs, CPUID.
//!
//! The interpreter here is Vitrine's reference tier. Arithmetic is done by the host CPU (crate `host`); this crate
//! implements what the host must not do for us: control flow, segments, privileged instructions, strings, I/O, faults.

pub mod access;
pub mod blocks;
pub mod cpuid;
pub mod debug;
pub mod debugger;
pub mod decode;
pub mod exec;
pub mod hooks;
pub mod msr;
pub mod op;
pub mod operand;
pub mod reset;
pub mod run;
pub mod state;
pub mod tss;

pub use hooks::{Clock, LocalApic, PortIo, Signals};
pub use state::Cpu;

#[cfg(test)]
mod testing;
