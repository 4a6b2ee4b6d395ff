//! Names for the guest's addresses.

pub mod kallsyms;
mod table;

pub use table::{Named, Table};
