//! Names for the guest's addresses, and what else its kernel says of itself: its processes.

pub mod btf;
pub mod kallsyms;
pub mod processes;
mod table;

pub use processes::{Process, Processes, Unlisted, by_cr3};
pub use table::{Named, Table};

use memory::{Gpa, Gva, PhysicalMap};
use std::sync::{Arc, Mutex, PoisonError};

/// What is known of a kernel.
#[derive(Debug)]
struct Known {
    /// Where its system calls enter, and where that is in guest physical memory.
    entry: (Gva, Gpa),
    symbols: Arc<Table>,
    /// `None`: not asked for yet.
    processes: Option<Result<Arc<Processes>, Unlisted>>,
}

/// The symbols of the guest's kernel, kept from one question to the next.
#[derive(Debug, Default)]
pub struct Kernel(Mutex<Option<Known>>);

impl Kernel {
    /// The symbols of the kernel whose system calls enter at `entry`, which is at `gpa`; an empty table if it has none. It
    /// is asked for them once.
    pub fn symbols(&self, map: &PhysicalMap, entry: Gva, gpa: Gpa) -> Arc<Table> {
        self.with(map, entry, gpa, |known| known.symbols.clone()).unwrap_or_default()
    }

    /// How the processes of that kernel are listed.
    ///
    /// # Errors
    /// It lacks something that it takes.
    pub fn processes(&self, map: &PhysicalMap, entry: Gva, gpa: Gpa) -> Result<Arc<Processes>, Unlisted> {
        let processes = self.with(map, entry, gpa, |known| {
            let Known { symbols, processes, .. } = known;
            processes.get_or_insert_with(|| Processes::of(map, symbols, entry, gpa).map(Arc::new)).clone()
        });
        processes.unwrap_or(Err(Unlisted::NoSymbols))
    }

    /// Asks what is known of that kernel, if it has symbols.
    fn with<R>(&self, map: &PhysicalMap, entry: Gva, gpa: Gpa, ask: impl FnOnce(&mut Known) -> R) -> Option<R> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = last.take().filter(|known| known.entry == (entry, gpa));
        let read = || {
            let symbols = Arc::new(kallsyms::read(map, gpa)?);
            Some(Known { entry: (entry, gpa), symbols, processes: None })
        };
        *last = known.or_else(read);
        last.as_mut().map(ask)
    }
}
