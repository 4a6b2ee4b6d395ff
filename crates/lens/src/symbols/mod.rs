//! Names for the guest's addresses.

pub mod kallsyms;
mod table;

pub use table::{Named, Table};

use memory::{Gpa, Gva, PhysicalMap};
use std::sync::{Arc, Mutex, PoisonError};

/// The symbols of the guest's kernel, kept from one question to the next.
#[derive(Debug, Default)]
pub struct Kernel(Mutex<Option<(Gva, Gpa, Arc<Table>)>>);

impl Kernel {
    /// The symbols of the kernel whose system calls enter at `entry`, which is at `gpa`; an empty table if it has none. It
    /// is asked for them once.
    pub fn symbols(&self, map: &PhysicalMap, entry: Gva, gpa: Gpa) -> Arc<Table> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, physically, table)) = &*last
            && (*at, *physically) == (entry, gpa)
        {
            return table.clone();
        }
        let Some(table) = kallsyms::read(map, gpa) else { return Arc::default() };
        let table = Arc::new(table);
        *last = Some((entry, gpa, table.clone()));
        table
    }
}
