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

/// Number of slots of [`Writers`]: a power of two.
const WRITERS: usize = 4096;

/// Through which pages a host page may be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// None.
    None,
    /// This one at most.
    One(Gva),
    /// Any.
    Unknown,
}

/// For each host page the one page through which it may be written, as long as there is but one.
#[derive(Debug)]
pub(super) struct Writers {
    /// By a hash of the host page, which is 0 in an empty slot and [`Writers::SEVERAL`] where one was not enough.
    slots: Box<[(Hva, Gva)]>,
}

impl Default for Writers {
    fn default() -> Self {
        Self { slots: vec![Self::EMPTY; WRITERS].into_boxed_slice() }
    }
}

impl Writers {
    const EMPTY: (Hva, Gva) = (Hva(0), Gva(0));
    const SEVERAL: (Hva, Gva) = (Hva(u64::MAX), Gva(0));

    fn slot(&mut self, page: Hva) -> &mut (Hva, Gva) {
        let hash = (page.0 >> PAGE_SHIFT).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - WRITERS.ilog2());
        &mut self.slots[hash as usize & (WRITERS - 1)]
    }

    /// The host page may be written through `gva` from now on.
    pub fn insert(&mut self, page: Hva, gva: Gva) {
        let slot = self.slot(page);
        match *slot {
            Self::EMPTY => *slot = (page, gva),
            known if known == (page, gva) => {}
            _ => *slot = Self::SEVERAL,
        }
    }

    /// Through which page the host page may be written; after that it may not, unless that is unknown.
    pub fn take(&mut self, page: Hva) -> Writer {
        let slot = self.slot(page);
        match *slot {
            Self::SEVERAL => Writer::Unknown,
            (known, gva) if known == page => {
                *slot = Self::EMPTY;
                Writer::One(gva)
            }
            _ => Writer::None,
        }
    }

    pub fn clear(&mut self) {
        self.slots.fill(Self::EMPTY);
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
    fn the_one_writer_of_a_page_is_known() {
        let mut writers = Writers::default();
        let (page, other) = (Hva(0x7000_0000_1000), Hva(0x7000_0000_2000));
        assert_eq!(writers.take(page), Writer::None);
        writers.insert(page, Gva(0x5000));
        writers.insert(page, Gva(0x5000));
        assert_eq!((writers.take(other), writers.take(page)), (Writer::None, Writer::One(Gva(0x5000))));
        assert_eq!(writers.take(page), Writer::None);
        writers.insert(page, Gva(0x5000));
        writers.insert(page, Gva(0x6000));
        assert_eq!(writers.take(page), Writer::Unknown);
        assert_eq!(writers.take(page), Writer::Unknown, "until all are forgotten");
        writers.clear();
        assert_eq!(writers.take(page), Writer::None);
    }
}
