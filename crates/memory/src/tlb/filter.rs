//! Sets of pages that are exact where they say no: Bloom filters with one hash.

use super::Full;
use crate::{Gva, Hva};
use x86::PAGE_SHIFT;

/// A filter of `WORDS` (a power of two) × 64 bits.
#[derive(Debug)]
pub(super) struct Bloom<const WORDS: usize> {
    words: [u64; WORDS],
    empty: bool,
}

impl<const WORDS: usize> Default for Bloom<WORDS> {
    fn default() -> Self {
        Self { words: [0; WORDS], empty: true }
    }
}

impl<const WORDS: usize> Bloom<WORDS> {
    fn bit(key: u64) -> (usize, u64) {
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (58 - WORDS.ilog2());
        ((hash >> 6) as usize, 1 << (hash & 63))
    }

    pub fn insert(&mut self, key: u64) {
        let (word, bit) = Self::bit(key);
        self.words[word] |= bit;
        self.empty = false;
    }

    /// False: certainly not.
    #[inline]
    pub fn may_hold(&self, key: u64) -> bool {
        let (word, bit) = Self::bit(key);
        !self.empty && self.words[word] & bit != 0
    }

    pub fn is_empty(&self) -> bool {
        self.empty
    }

    pub fn clear(&mut self) {
        if !self.empty {
            self.words.fill(0);
            self.empty = true;
        }
    }
}

/// Which large pages may have entries: a filter for each size.
#[derive(Debug, Default)]
pub(super) struct LargePages([Bloom<8>; 3]);

impl LargePages {
    const SHIFTS: [u8; 3] = [21, 22, 30];

    pub fn insert(&mut self, full: &Full) {
        if u32::from(full.shift) == PAGE_SHIFT {
            return;
        }
        for (filter, shift) in self.0.iter_mut().zip(Self::SHIFTS).filter(|(_, shift)| *shift == full.shift) {
            filter.insert(full.gva.0 >> shift);
        }
    }

    pub fn clear(&mut self) {
        self.0.iter_mut().for_each(Bloom::clear);
    }

    /// For each large page around `gva` that may have entries: its first address, how many slots of a direct-mapped
    /// table of `size` entries its pages can be in, and its size.
    pub fn ranges(&self, gva: Gva, size: usize) -> impl Iterator<Item = (Gva, usize, u8)> + use<> {
        let mut found = [None; 3];
        for ((slot, filter), shift) in found.iter_mut().zip(&self.0).zip(Self::SHIFTS) {
            let pages = 1usize << (u32::from(shift) - PAGE_SHIFT);
            let first = Gva(gva.0 & (u64::MAX << shift));
            *slot = filter.may_hold(gva.0 >> shift).then_some((first, pages.min(size), shift));
        }
        found.into_iter().flatten()
    }

    /// Whether a large page around `gva` may have entries.
    pub fn around(&self, gva: Gva) -> bool {
        self.0.iter().zip(Self::SHIFTS).any(|(filter, shift)| filter.may_hold(gva.0 >> shift))
    }

    /// Whether `full` is part of the large page of this size around `gva`.
    pub fn same(full: &Full, gva: Gva, shift: u8) -> bool {
        full.shift == shift && (full.gva.0 ^ gva.0) >> shift == 0
    }
}

/// Number of sets of [`Writers`]: a power of two.
const SETS: usize = 4096;
/// Entries in a set.
const WAYS: usize = 4;

/// The pages through which a host page may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// These at most.
    Of([Option<Gva>; WAYS]),
    /// Any.
    Unknown,
}

/// One cache line: every fill of the TLB with a writable page looks at one.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Set([(Hva, Gva); WAYS]);

/// Pairs of a host page and a page through which it may be written, in sets by a hash of the host page.
#[derive(Debug)]
pub(super) struct Writers {
    sets: Box<[Set]>,
}

impl Default for Writers {
    fn default() -> Self {
        Self { sets: vec![Set([Self::EMPTY; WAYS]); SETS].into_boxed_slice() }
    }
}

impl Writers {
    const EMPTY: (Hva, Gva) = (Hva(0), Gva(0));
    /// What a set is filled with that more belongs to than there is room for.
    const MORE: (Hva, Gva) = (Hva(u64::MAX), Gva(0));

    fn set(&mut self, page: Hva) -> &mut [(Hva, Gva); WAYS] {
        let hash = (page.0 >> PAGE_SHIFT).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SETS.ilog2());
        &mut self.sets[hash as usize & (SETS - 1)].0
    }

    /// The host page may be written through `gva` from now on.
    pub fn insert(&mut self, page: Hva, gva: Gva) {
        let set = self.set(page);
        for slot in set.iter_mut() {
            if *slot == (page, gva) {
                return;
            }
            if *slot == Self::EMPTY {
                *slot = (page, gva);
                return;
            }
        }
        *set = [Self::MORE; WAYS];
    }

    /// Through which pages the host page may be written; after that it may not, unless that is unknown.
    pub fn take(&mut self, page: Hva) -> Writer {
        let set = self.set(page);
        if set[0] == Self::MORE {
            return Writer::Unknown;
        }
        Writer::Of(std::array::from_fn(|n| {
            let slot = set.get_mut(n).filter(|slot| slot.0 == page)?;
            Some(std::mem::replace(slot, Self::EMPTY).1)
        }))
    }

    pub fn clear(&mut self) {
        self.sets.fill(Set([Self::EMPTY; WAYS]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_is_held_and_little_else() {
        let mut filter = Bloom::<512>::default();
        assert!(filter.is_empty());
        let pages = |first: u64| (0..1000).map(move |i| (first >> PAGE_SHIFT) + i);
        pages(0xffff_ffff_8100_0000).for_each(|page| filter.insert(page));
        assert!(pages(0xffff_ffff_8100_0000).all(|page| filter.may_hold(page)));
        let false_hits = pages(0x7fff_f000_0000).filter(|page| filter.may_hold(*page)).count();
        assert!(false_hits < 100, "{false_hits} of 1000");
        filter.clear();
        assert!(filter.is_empty() && !pages(0xffff_ffff_8100_0000).any(|page| filter.may_hold(page)));
    }
    #[test]
    fn the_writers_of_a_page_are_known() {
        let mut writers = Writers::default();
        let (page, other) = (Hva(0x7000_0000_1000), Hva(0x7000_0000_2000));
        let none = Writer::Of([None; WAYS]);
        assert_eq!(writers.take(page), none);
        for gva in [0x5000, 0x5000, 0x6000] {
            writers.insert(page, Gva(gva));
        }
        assert_eq!(writers.take(other), none);
        assert_eq!(writers.take(page), Writer::Of([Some(Gva(0x5000)), Some(Gva(0x6000)), None, None]));
        assert_eq!(writers.take(page), none);
        (0..=WAYS as u64).for_each(|n| writers.insert(page, Gva(n << PAGE_SHIFT)));
        assert_eq!((writers.take(page), writers.take(page)), (Writer::Unknown, Writer::Unknown));
        writers.clear();
        assert_eq!(writers.take(page), none);
    }
}
