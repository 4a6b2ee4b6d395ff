//! Sets of address ranges with kinds of access, asked quickly which of them overlap a given range.

use crate::watch::Kinds;

/// The highest physical address that there can be (APM vol. 2, 5.1).
const PHYSICAL_LAST: u64 = (1 << 52) - 1;

/// An address range, both ends included.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub first: u64,
    pub last: u64,
    pub kinds: Kinds,
    /// Whose it is.
    pub owner: usize,
    /// The highest `last` of this range and all before it: no range up to here reaches further.
    reach: u64,
}

impl Range {
    pub fn new(first: u64, last: u64, kinds: Kinds, owner: usize) -> Self {
        Self { first, last, kinds, owner, reach: last }
    }
}

/// Ranges in order of their first address.
#[derive(Debug, Default)]
pub(crate) struct Ranges(Vec<Range>);

impl Ranges {
    pub(crate) fn new(mut ranges: Vec<Range>) -> Self {
        ranges.sort_by_key(|range| range.first);
        let mut reach = 0;
        for range in &mut ranges {
            reach = range.last.max(reach);
            range.reach = reach;
        }
        Self(ranges)
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The kinds of all of them together, if each has all physical addresses.
    pub(crate) fn everywhere(&self) -> Option<Kinds> {
        let all = self.0.iter().all(|range| range.first == 0 && range.last >= PHYSICAL_LAST);
        all.then(|| self.0.iter().fold(Kinds::default(), |kinds, range| kinds.or(range.kinds)))
    }

    /// All ranges that have an address from `first` to `last`.
    #[inline]
    pub(crate) fn overlapping(&self, first: u64, last: u64) -> impl Iterator<Item = &Range> {
        let before = self.0.partition_point(|range| range.first <= last);
        let before = self.0.get(..before).unwrap_or_default();
        before.iter().rev().take_while(move |range| range.reach >= first).filter(move |range| range.last >= first)
    }

    /// The kinds of all ranges that have an address from `first` to `last`.
    pub(crate) fn kinds(&self, first: u64, last: u64) -> Kinds {
        self.overlapping(first, last).fold(Kinds::default(), |kinds, range| kinds.or(range.kinds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: Kinds = Kinds { read: true, write: false, fetch: false };
    const W: Kinds = Kinds { read: false, write: true, fetch: false };
    const X: Kinds = Kinds { read: false, write: false, fetch: true };
    const NONE: Kinds = Kinds { read: false, write: false, fetch: false };

    fn ranges(all: &[(u64, u64, Kinds)]) -> Ranges {
        let all = all.iter().enumerate();
        Ranges::new(all.map(|(owner, (first, last, kinds))| Range::new(*first, *last, *kinds, owner)).collect())
    }

    #[test]
    fn edges_are_exact() {
        let ranges = ranges(&[(0x1000, 0x1003, R)]);
        assert_eq!(ranges.kinds(0xff8, 0xfff), NONE);
        assert_eq!(ranges.kinds(0xffd, 0x1000), R);
        assert_eq!(ranges.kinds(0x1003, 0x1003), R);
        assert_eq!(ranges.kinds(0x1004, 0x2000), NONE);
        assert_eq!(ranges.kinds(0, u64::MAX), R);
    }

    #[test]
    fn a_long_range_is_found_behind_short_ones() {
        let ranges = ranges(&[(0x30, 0x30, X), (0x10, 0x100, R), (0x20, 0x2f, W), (u64::MAX, u64::MAX, X)]);
        assert_eq!(ranges.kinds(0x80, 0x80), R);
        assert_eq!(ranges.kinds(0x2f, 0x30), R.or(W).or(X));
        assert_eq!(ranges.kinds(0x101, 0x200), NONE);
        assert_eq!(ranges.kinds(u64::MAX, u64::MAX), X);
        assert_eq!(Ranges::default().kinds(0, u64::MAX), NONE);
        let mut owners: Vec<_> = ranges.overlapping(0x2f, 0x30).map(|range| range.owner).collect();
        owners.sort_unstable();
        assert_eq!(owners, [0, 1, 2]);
    }
}
