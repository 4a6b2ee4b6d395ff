//! What of the TLB's figures belongs to which address space: differences of the vCPU's totals, taken where CR3 changes, so
//! that nothing else counts for it.

use crate::Gpa;
use crate::tlb::Stats;
use x86::paging::TABLE_ADDRESS;

/// How many address spaces are told apart. Others are added up.
const KEPT: usize = 64;

/// The figures of an address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Where the root of its page tables is, guest physical. `None`: all those that are no longer told apart.
    pub root: Option<Gpa>,
    /// How often CR3 was loaded with that.
    pub loads: u64,
    /// What happened while it was there.
    pub stats: Stats,
}

/// An address space and when its root was last loaded, in loads of all.
#[derive(Clone, Copy, Debug)]
struct Kept {
    share: Share,
    last: u64,
}

/// The figures of all address spaces of a vCPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Never more than [`KEPT`].
    kept: Vec<Kept>,
    /// Which of them is current.
    current: usize,
    others: Share,
    loads: u64,
    /// The vCPU's totals when the current one's root was loaded.
    since: Stats,
}

impl Tally {
    /// CR3 is loaded with `cr3`, when the vCPU's totals are `now`.
    pub fn load(&mut self, cr3: u64, now: Stats) {
        self.settle(now);
        self.loads += 1;
        let root = Some(Gpa(cr3 & TABLE_ADDRESS));
        let known = self.kept.iter().position(|kept| kept.share.root == root);
        self.current = known.unwrap_or_else(|| self.add(root));
        if let Some(kept) = self.kept.get_mut(self.current) {
            (kept.share.loads, kept.last) = (kept.share.loads + 1, self.loads);
        }
    }

    /// Gives the current space what has happened since its root was loaded.
    fn settle(&mut self, now: Stats) {
        let grown = now.less(std::mem::replace(&mut self.since, now));
        let share = self.kept.get_mut(self.current).map_or(&mut self.others, |kept| &mut kept.share);
        share.stats = share.stats.plus(grown);
    }

    /// A place for another space: that of the one which was not loaded for the longest time, if there is no other.
    fn add(&mut self, root: Option<Gpa>) -> usize {
        let new = Kept { share: Share { root, ..Share::default() }, last: 0 };
        if self.kept.len() < KEPT {
            self.kept.push(new);
            return self.kept.len() - 1;
        }
        let oldest = self.kept.iter_mut().enumerate().min_by_key(|(_, kept)| kept.last);
        oldest.map_or(0, |(at, kept)| {
            let old = std::mem::replace(kept, new).share;
            self.others.loads += old.loads;
            self.others.stats = self.others.stats.plus(old.stats);
            at
        })
    }

    /// Each space, that with the most walks first, and the sum of those that are no longer told apart last.
    pub fn shares(&self, now: Stats) -> Vec<Share> {
        let mut settled = self.clone();
        settled.settle(now);
        let mut shares: Vec<Share> = settled.kept.iter().map(|kept| kept.share).collect();
        shares.sort_by_key(|share| std::cmp::Reverse(share.stats.walks));
        shares.extend((settled.others != Share::default()).then_some(settled.others));
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walks(walks: u64) -> Stats {
        Stats { walks, ..Stats::default() }
    }

    #[test]
    fn each_space_has_what_happened_in_it() {
        let mut tally = Tally::default();
        tally.load(0x1003, walks(10));
        tally.load(0x2000, walks(15));
        tally.load(1 << 63 | 0x1000, walks(35));
        let share = |root, loads, count| Share { root: Some(Gpa(root)), loads, stats: walks(count) };
        let before = Share { root: None, loads: 0, stats: walks(10) };
        assert_eq!(tally.shares(walks(36)), [share(0x2000, 1, 20), share(0x1000, 2, 6), before]);
        assert_eq!(tally.shares(walks(136)), [share(0x1000, 2, 106), share(0x2000, 1, 20), before]);
    }

    #[test]
    fn spaces_that_were_left_long_ago_are_added_up() {
        let mut tally = Tally::default();
        let many = 3 * KEPT as u64;
        for n in 0..many {
            tally.load(n << 12, walks(n));
        }
        let shares = tally.shares(walks(many));
        assert_eq!(shares.len(), KEPT + 1);
        let (others, kept) = shares.split_last().unwrap();
        assert!(kept.iter().all(|share| share.root >= Some(Gpa((many - KEPT as u64) << 12)) && share.loads == 1));
        assert_eq!((others.root, others.loads, others.stats), (None, many - KEPT as u64, walks(many - KEPT as u64)));
    }
}
