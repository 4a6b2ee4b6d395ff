//! Which pages a guest touches: round by round for a heat map, and all since a mark as its working set.
//!
//! vCPUs note pages while somebody wants to know ([`memory::touched`]); whoever collects what they have noted gives it
//! to the [`Book`], which keeps it for both. A page belongs to an address space by the root of its page tables. Where a
//! kernel keeps two for a process (page-table isolation), those are two address spaces.
//!
//! Left out: what devices touch; none of this machine's accesses memory.

use memory::observe::Interest;
use memory::touched::{Seen, Touched};
use memory::{Gpa, PhysicalMap};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use x86::PAGE_SHIFT;

/// Pages of a working set, each with its address space: 16 GiB.
const WORKING_SET_MAX: usize = 1 << 22;
/// The most runs of a round.
const RUNS_MAX: usize = 1 << 15;

/// How many pages were touched, and how. A page counts for each way in which it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// In whatever way.
    pub all: u64,
    /// Read.
    pub read: u64,
    /// Written.
    pub written: u64,
    /// Fetched from.
    pub fetched: u64,
}

impl Pages {
    fn count(&mut self, kinds: Interest) {
        self.all += 1;
        self.read += u64::from(kinds.read);
        self.written += u64::from(kinds.write);
        self.fetched += u64::from(kinds.fetch);
    }
}

/// The pages touched since a mark.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkingSet {
    /// When the mark was set, in nanoseconds of the machine's clock.
    pub since: u64,
    /// By the root of the page tables, the largest first.
    pub spaces: Vec<(Gpa, Pages)>,
    /// Each page once, whoever touched it.
    pub total: Pages,
    /// How often there was no room for another page.
    pub lost: u64,
}

/// Pages side by side that were touched in the same ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of the first unit: its guest physical address, shifted right by [`Round::shift`].
    pub first: u64,
    /// How many units.
    pub len: u64,
    /// In which ways.
    pub kinds: Interest,
}

/// What was touched from one collection to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// log2 of the size of a unit: that of a page, or more where there would be too many runs.
    pub shift: u32,
    /// Ascending.
    pub runs: Vec<Run>,
    /// Pages touched.
    pub pages: Pages,
    /// How often there was no room for another page.
    pub lost: u64,
}

impl Default for Round {
    fn default() -> Self {
        Self { shift: PAGE_SHIFT, runs: Vec::new(), pages: Pages::default(), lost: 0 }
    }
}

#[derive(Debug, Default)]
struct State {
    /// When the mark was set, and what has been touched since.
    marked: Option<(u64, Touched)>,
    /// How many want rounds.
    watchers: usize,
    /// This round.
    round: HashMap<Gpa, Interest>,
    lost: u64,
}

/// What has been touched, as far as somebody wants to know.
#[derive(Debug, Default)]
pub struct Book(Mutex<State>);

impl Book {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody wants to know.
    #[must_use]
    pub fn wanted(&self) -> bool {
        let state = self.state();
        state.marked.is_some() || state.watchers > 0
    }

    /// Whether a mark is set.
    #[must_use]
    pub fn is_marked(&self) -> bool {
        self.state().marked.is_some()
    }

    /// Begins a working set at `now`, in nanoseconds of the machine's clock; the one before is forgotten.
    pub fn mark(&self, now: u64) {
        self.state().marked = Some((now, Touched::default()));
    }

    /// Ends the working set.
    pub fn unmark(&self) {
        self.state().marked = None;
    }

    /// Somebody wants rounds from now on.
    pub fn watch(&self) {
        self.state().watchers += 1;
    }

    /// Somebody wants none any more.
    pub fn unwatch(&self) {
        let mut state = self.state();
        state.watchers = state.watchers.saturating_sub(1);
        if state.watchers == 0 {
            (state.round, state.lost) = (HashMap::new(), 0);
        }
    }

    /// Takes what a vCPU has noted.
    pub fn add(&self, touched: Touched) {
        let mut state = self.state();
        if let Some((_, all)) = &mut state.marked {
            all.lost += touched.lost;
            for (seen, kinds) in &touched.pages {
                all.note(*seen, *kinds, WORKING_SET_MAX);
            }
        }
        if state.watchers > 0 {
            state.lost += touched.lost;
            for (Seen { page, .. }, kinds) in touched.pages {
                let known = state.round.entry(page).or_default();
                *known = known.or(kinds);
            }
        }
    }

    /// The working set, if a mark is set.
    #[must_use]
    pub fn working_set(&self) -> Option<WorkingSet> {
        let state = self.state();
        let (since, touched) = state.marked.as_ref()?;
        let (mut spaces, mut pages) = (HashMap::<Gpa, Pages>::new(), HashMap::<Gpa, Interest>::new());
        for (Seen { root, page }, kinds) in &touched.pages {
            spaces.entry(*root).or_default().count(*kinds);
            let known = pages.entry(*page).or_default();
            *known = known.or(*kinds);
        }
        let mut spaces: Vec<_> = spaces.into_iter().collect();
        spaces.sort_by_key(|(root, pages)| (std::cmp::Reverse(pages.all), *root));
        let mut total = Pages::default();
        pages.values().for_each(|kinds| total.count(*kinds));
        Some(WorkingSet { since: *since, spaces, total, lost: touched.lost })
    }

    /// Ends a round and gives it.
    #[must_use]
    pub fn turn(&self) -> Round {
        let (pages, lost) = {
            let mut state = self.state();
            (std::mem::take(&mut state.round), std::mem::take(&mut state.lost))
        };
        let mut round = Round { lost, ..Round::default() };
        pages.values().for_each(|kinds| round.pages.count(*kinds));
        let mut pages: Vec<_> = pages.into_iter().map(|(gpa, kinds)| (gpa.0 >> PAGE_SHIFT, kinds)).collect();
        pages.sort_by_key(|(page, _)| *page);
        round.runs = runs(&pages);
        while round.runs.len() > RUNS_MAX {
            round.shift += 1;
            for (page, _) in &mut pages {
                *page >>= 1;
            }
            pages.dedup_by(|next, kept| {
                let same = next.0 == kept.0;
                if same {
                    kept.1 = kept.1.or(next.1);
                }
                same
            });
            round.runs = runs(&pages);
        }
        round
    }
}

/// Units that are side by side and alike, as one.
fn runs(units: &[(u64, Interest)]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (unit, kinds) in units {
        match runs.last_mut() {
            Some(run) if run.first + run.len == *unit && run.kinds == *kinds => run.len += 1,
            _ => runs.push(Run { first: *unit, len: 1, kinds: *kinds }),
        }
    }
    runs
}

/// The most of guest physical memory that a map of it shows: up to where the last RAM ends.
#[must_use]
pub fn extent(map: &PhysicalMap) -> Gpa {
    map.ram_ranges().iter().map(|(start, len)| start.wrapping_add(*len)).max().unwrap_or(Gpa(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: Interest = Interest { read: true, write: false, fetch: false };
    const W: Interest = Interest { read: false, write: true, fetch: false };

    fn touched(pages: impl IntoIterator<Item = (u64, u64, Interest)>) -> Touched {
        let mut touched = Touched::default();
        for (root, page, kinds) in pages {
            touched.note(Seen { root: Gpa(root), page: Gpa(page << PAGE_SHIFT) }, kinds, usize::MAX);
        }
        touched
    }

    #[test]
    fn a_working_set_is_counted_by_address_space() {
        let book = Book::default();
        assert!(!book.wanted());
        assert_eq!(book.working_set(), None);
        book.add(touched([(0x1000, 9, R)]));
        book.mark(77);
        assert!(book.wanted());
        book.add(touched([(0x1000, 1, R), (0x2000, 1, W), (0x2000, 2, R)]));
        book.add(touched([(0x2000, 2, W)]));
        let set = book.working_set().expect("marked");
        let pages = |all, read, written| Pages { all, read, written, fetched: 0 };
        assert_eq!(set.spaces, [(Gpa(0x2000), pages(2, 1, 2)), (Gpa(0x1000), pages(1, 1, 0))]);
        assert_eq!((set.since, set.total, set.lost), (77, pages(2, 2, 2), 0));
        book.mark(88);
        assert_eq!(book.working_set().expect("marked").total.all, 0, "a new mark begins anew");
        book.unmark();
        assert!(!book.wanted());
    }

    #[test]
    fn a_round_is_what_came_since_the_last_one_as_runs() {
        let book = Book::default();
        book.add(touched([(0, 1, R)]));
        book.watch();
        book.add(touched([(0, 4, R), (7, 5, R), (0, 6, W), (7, 6, R), (0, 9, W)]));
        let round = book.turn();
        let run = |first, len, kinds| Run { first, len, kinds };
        assert_eq!(round.runs, [run(4, 2, R), run(6, 1, R.or(W)), run(9, 1, W)]);
        assert_eq!((round.shift, round.pages.all, round.pages.written), (12, 4, 2));
        assert_eq!(book.turn(), Round::default());
        book.add(touched([(0, 1, R)]));
        book.unwatch();
        book.watch();
        assert_eq!(book.turn(), Round::default(), "nothing is kept for nobody");
    }

    #[test]
    fn a_round_of_too_many_runs_is_made_coarser() {
        let book = Book::default();
        book.watch();
        let sparse = (0..RUNS_MAX as u64 + 1).map(|n| (0, n * 4, if n % 2 == 0 { R } else { W }));
        book.add(touched(sparse));
        let round = book.turn();
        assert_eq!((round.shift, round.pages.all), (PAGE_SHIFT + 3, RUNS_MAX as u64 + 1));
        assert_eq!(
            round.runs,
            [
                Run { first: 0, len: RUNS_MAX as u64 / 2, kinds: R.or(W) },
                Run { first: RUNS_MAX as u64 / 2, len: 1, kinds: R }
            ]
        );
    }
}
