//! Two lenses at once.

use memory::observe::Interest;
use memory::{Access, Gpa, Gva, Observer, PhysicalMap};
use std::sync::Arc;

/// Shows each access to both; each takes what it wants, as all observers do.
#[derive(Debug)]
pub struct Both<A, B>(pub A, pub Arc<B>);

impl<A: Observer, B: Observer> Observer for Both<A, B> {
    fn interest(&self, gva: Gva, gpa: Gpa) -> Interest {
        let (a, b) = (self.0.interest(gva, gpa), self.1.interest(gva, gpa));
        Interest { read: a.read || b.read, write: a.write || b.write, fetch: a.fetch || b.fetch, ..Interest::default() }
    }

    fn wants_walks(&self, gpa: Gpa) -> bool {
        self.0.wants_walks(gpa) || self.1.wants_walks(gpa)
    }

    fn access(&self, access: &Access) {
        self.0.access(access);
        self.1.access(access);
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
