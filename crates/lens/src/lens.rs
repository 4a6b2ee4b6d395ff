//! All that looks at a machine, as the one observer that it has.

use crate::symbols::Kernel;
use crate::watch::Watch;
use crate::{Hit, Listed, Trace, Watcher, WatchesFull};
use memory::observe::{Batch, Interest};
use memory::{Access, Gpa, Gva, Observer, PhysicalMap};
use std::sync::Arc;

/// The watches, which may change while the guest runs, and the trace if there is one.
///
/// Whoever changes what is wanted has every vCPU take [`Lens::observer`] anew, and the map for devices' accesses: only then
/// is it seen, or costs nothing any more. `machine::Handle` does both.
#[derive(Debug, Default)]
pub struct Lens {
    watcher: Watcher,
    trace: Option<Arc<Trace>>,
}

impl Lens {
    /// With what is watched and traced from the start.
    #[must_use]
    pub fn new(watcher: Watcher, trace: Option<Arc<Trace>>) -> Self {
        Self { watcher, trace }
    }

    /// The observer for a vCPU, and for devices' accesses; none where nothing is wanted.
    #[must_use]
    pub fn observer(self: &Arc<Self>) -> Option<Arc<dyn Observer>> {
        let wanted = self.watcher.wants_any()
            || self.trace.as_ref().is_some_and(|trace| trace.wants_any())
            || self.kernel().has_files();
        wanted.then(|| Arc::clone(self) as Arc<dyn Observer>)
    }

    /// One more watch. Its number is its own for ever.
    ///
    /// # Errors
    /// There are as many as can be.
    pub fn watch(&self, watch: Watch) -> Result<u32, WatchesFull> {
        self.watcher.add(watch)
    }

    /// Ends a watch; false: there is none of that number.
    pub fn unwatch(&self, id: u32) -> bool {
        self.watcher.remove(id)
    }

    /// Turns a watch on, with its whole limit, or off; false: there is none of that number.
    pub fn enable(&self, id: u32, on: bool) -> bool {
        self.watcher.enable(id, on)
    }

    /// Has `stop` called, on the thread of who made the access, when a watch is to stop the machine: with the numbers of the
    /// vCPU (the first one for a device) and of the watch. Once for a lens.
    pub fn on_stop(&self, stop: impl Fn(u32, u32) + Send + Sync + 'static) {
        self.watcher.on_stop(Box::new(stop));
    }

    /// All watches, in the order of their numbers.
    #[must_use]
    pub fn watches(&self) -> Vec<Listed> {
        self.watcher.list()
    }

    /// The last access that was reported.
    #[must_use]
    pub fn last_hit(&self) -> Option<Hit> {
        self.watcher.last_hit()
    }

    /// The guest's kernel, for all who ask for its symbols and processes.
    #[must_use]
    pub fn kernel(&self) -> &Arc<Kernel> {
        self.watcher.kernel()
    }

    /// The trace, if there is one.
    #[must_use]
    pub fn trace(&self) -> Option<&Arc<Trace>> {
        self.trace.as_ref()
    }
}

impl Observer for Lens {
    fn interest(&self, gva: Gva, gpa: Gpa) -> Interest {
        let watched = self.watcher.interest(gva, gpa);
        let Some(trace) = &self.trace else { return watched };
        let traced = trace.interest(gva, gpa);
        Interest {
            read: watched.read || traced.read,
            write: watched.write || traced.write,
            fetch: watched.fetch || traced.fetch,
        }
    }

    fn record_will_do(&self, gva: Gva, gpa: Gpa) -> bool {
        // Watches want to be told at once.
        let watched = self.watcher.interest(gva, gpa);
        self.records() && !(watched.read || watched.write)
    }

    fn wants_walks(&self, gpa: Gpa) -> bool {
        self.watcher.wants_walks(gpa) || self.trace.as_ref().is_some_and(|trace| trace.wants_walks(gpa))
    }

    fn wants_dma(&self, gpa: Gpa) -> bool {
        self.watcher.wants_dma(gpa) || self.trace.as_ref().is_some_and(|trace| trace.wants_dma(gpa))
    }

    fn access(&self, access: &Access) {
        self.watcher.access(access);
        if let Some(trace) = &self.trace {
            trace.access(access);
        }
    }

    fn records(&self) -> bool {
        self.trace.as_ref().is_some_and(|trace| trace.records())
    }

    fn recorded(&self, batch: &Batch<'_>) {
        if let Some(trace) = &self.trace {
            trace.recorded(batch);
        }
    }

    fn system_calls_enter(&self, map: &Arc<PhysicalMap>, entry: Gva, gpa: Gpa) {
        if self.kernel().has_files() {
            // It is told at once which of them are another kernel's.
            let _ = self.kernel().symbols(map, entry, gpa);
        }
        self.watcher.system_calls_enter(map, entry, gpa);
        if let Some(trace) = &self.trace {
            for missing in trace.kernel_begins(map, entry, gpa) {
                self.watcher.tell(format_args!("trace of {missing}"));
            }
        }
    }

    fn interest_changed(&self) -> bool {
        // Both are asked, since each answers once.
        self.watcher.interest_changed() | self.trace.as_ref().is_some_and(|trace| trace.interest_changed())
    }
}
