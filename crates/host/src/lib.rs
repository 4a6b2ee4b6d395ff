//! The host: its CPU as the guest's ALU, memory accesses at host addresses, executable memory, signals.

pub mod alu;
pub mod vector;
