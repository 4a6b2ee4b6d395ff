//! Which accesses a lens wants: those that touch watched bytes, whose addresses do not change.

use crate::ranges::Ranges;
use crate::watch::{Kinds, Start, Watch};
use memory::observe::Interest;
use memory::{Access, AccessKind, Gpa, Gva};
use x86::PAGE_OFFSET;

/// What is watched, asked by page and by access.
#[derive(Debug)]
pub(crate) struct Filter {
    virtually: Ranges,
    physically: Ranges,
}

impl Filter {
    pub(crate) fn new(watches: &[Watch]) -> Self {
        let last = |first: u64, watch: &Watch| first.saturating_add(watch.len.saturating_sub(1));
        let virtually = watches.iter().filter_map(|watch| match watch.start {
            Start::Virtual(Gva(first)) => Some((first, last(first, watch), watch.kinds)),
            Start::Physical(_) | Start::Symbol { .. } => None,
        });
        let physically = watches.iter().filter_map(|watch| match watch.start {
            Start::Physical(Gpa(first)) => Some((first, last(first, watch), watch.kinds)),
            Start::Virtual(_) | Start::Symbol { .. } => None,
        });
        Self { virtually: Ranges::new(virtually), physically: Ranges::new(physically) }
    }

    /// The kinds of access that are all wanted, if nothing else is but fetches.
    pub(crate) fn all(&self) -> Option<Kinds> {
        let kinds = self.physically.everywhere()?;
        (self.virtually.is_empty() && (kinds.read || kinds.write)).then_some(kinds)
    }

    /// The kinds of access for which any of `size` bytes is watched.
    fn watched(&self, gva: Option<Gva>, gpa: Gpa, size: u64) -> Kinds {
        let kinds = |ranges: &Ranges, first: u64| ranges.kinds(first, first.saturating_add(size.saturating_sub(1)));
        let by_gpa = kinds(&self.physically, gpa.0);
        gva.map_or(by_gpa, |gva| by_gpa.or(kinds(&self.virtually, gva.0)))
    }

    /// See [`memory::Observer::interest`].
    pub(crate) fn interest(&self, gva: Gva, gpa: Gpa) -> Interest {
        let kinds = self.watched(Some(gva.page()), gpa.page(), PAGE_OFFSET + 1);
        Interest { read: kinds.read, write: kinds.write, fetch: kinds.fetch, ..Interest::default() }
    }

    /// See [`memory::Observer::wants_walks`].
    pub(crate) fn wants_walks(&self, gpa: Gpa) -> bool {
        if self.physically.is_empty() {
            return false;
        }
        let kinds = self.watched(None, gpa.page(), PAGE_OFFSET + 1);
        kinds.read || kinds.write
    }

    /// Whether `access` touches a byte that is watched for such accesses.
    pub(crate) fn wants(&self, access: &Access) -> bool {
        let kinds = self.watched(access.gva, access.gpa, access.size.into());
        match access.kind {
            AccessKind::Fetch => kinds.fetch,
            kind if kind.is_write() => kinds.write,
            _ => kinds.read,
        }
    }
}
