//! Two lenses at once.

use memory::observe::{Batch, Interest};
use memory::{Access, Gpa, Gva, Observer, PhysicalMap};
use std::sync::Arc;

/// Shows each access to both; each takes what it wants, as all observers do.
#[derive(Debug)]
pub struct Both<A, B>(pub A, pub Arc<B>);

impl<A: Observer, B: Observer> Observer for Both<A, B> {
    fn interest(&self, gva: Gva, gpa: Gpa) -> Interest {
        let (a, b) = (self.0.interest(gva, gpa), self.1.interest(gva, gpa));
        // Records must do for whoever has an interest.
        let record = [a, b].into_iter().all(|of| of.record || !(of.read || of.write));
        Interest { read: a.read || b.read, write: a.write || b.write, fetch: a.fetch || b.fetch, record }
    }

    fn wants_walks(&self, gpa: Gpa) -> bool {
        self.0.wants_walks(gpa) || self.1.wants_walks(gpa)
    }

    fn access(&self, access: &Access) {
        self.0.access(access);
        self.1.access(access);
    }

    fn records(&self) -> bool {
        self.0.records() || self.1.records()
    }

    fn recorded(&self, batch: &Batch<'_>) {
        self.0.recorded(batch);
        self.1.recorded(batch);
    }

    fn system_calls_enter(&self, map: &Arc<PhysicalMap>, entry: Gva, gpa: Gpa) {
        self.0.system_calls_enter(map, entry, gpa);
        self.1.system_calls_enter(map, entry, gpa);
    }

    fn interest_changed(&self) -> bool {
        // Both are asked, since each answers once.
        self.0.interest_changed() | self.1.interest_changed()
    }
}
