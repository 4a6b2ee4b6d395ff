//! One main table with its victim table.

use super::{CODE, Full, INVALID};
use crate::Gva;
use crate::map::Page;
use crate::observe::Interest;
use crate::walk::{Rights, Want};
use std::ptr::NonNull;
use x86::PAGE_SHIFT;

/// Entries of a new main table.
const SMALLEST: usize = 256;
/// Entries up to which a main table grows.
const LARGEST: usize = 16384;
/// Entries of a victim table.
const VICTIMS: usize = 8;
/// After how many flushes a table that was mostly empty at each of them is halved.
const SHRINK_AFTER: u32 = 16;

/// A TLB entry, as the fast path and translated code see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(32))]
pub struct Entry {
    /// Comparator for reads: page address and slow-path flags.
    pub read: u64,
    /// Comparator for writes.
    pub write: u64,
    /// Comparator for instruction fetches.
    pub execute: u64,
    /// Host address minus guest virtual address. Means nothing where a comparator has the IO flag.
    pub addend: u64,
}

impl Entry {
    /// Matches nothing.
    pub const EMPTY: Self = Self { read: u64::MAX, write: u64::MAX, execute: u64::MAX, addend: 0 };

    /// The comparator for `want`.
    #[inline]
    #[must_use]
    pub const fn comparator(&self, want: Want) -> u64 {
        match want {
            Want::Read => self.read,
            Want::Write => self.write,
            Want::Execute => self.execute,
        }
    }

    /// The comparator's flags, if it is for `page`.
    #[inline]
    fn flags(&self, page: Gva, want: Want) -> Option<u64> {
        let difference = self.comparator(want) ^ page.0;
        (difference < INVALID).then_some(difference)
    }

    fn holds(&self, page: Gva) -> bool {
        [Want::Read, Want::Write, Want::Execute].iter().any(|want| self.flags(page, *want).is_some())
    }

    fn is_empty(&self) -> bool {
        self.read & self.write & self.execute & INVALID != 0
    }

    /// Makes it match nothing.
    pub fn invalidate(&mut self) {
        *self = Self::EMPTY;
    }
}

/// What stands in for the entries of a table that has none yet. Never written.
static NO_ENTRY: Entry = Entry::EMPTY;

/// Where the fast path finds a table: the entry for an address is at `base` plus `(gva >> 7) & mask` bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct View {
    /// The first entry.
    pub base: *const Entry,
    /// (Number of entries − 1) × 32.
    pub mask: u64,
}

impl View {
    /// A table with nothing in it.
    pub const EMPTY: Self = Self { base: &raw const NO_ENTRY, mask: 0 };
}

/// Owns the entries through a raw pointer, so that a [`View`] of them stays usable beside it.
#[derive(Debug)]
struct Entries(NonNull<[Entry]>);

// SAFETY: it owns its entries, which are plain data.
unsafe impl Send for Entries {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Entries {}

impl Entries {
    fn new(n: usize) -> Self {
        Self(NonNull::from(Box::leak(vec![Entry::EMPTY; n].into_boxed_slice())))
    }

    fn all(&self) -> &[Entry] {
        // SAFETY: the slice lives as long as `self`, and is written only through `&mut self`.
        unsafe { self.0.as_ref() }
    }

    fn all_mut(&mut self) -> &mut [Entry] {
        // SAFETY: as above; a `View` is not read while this borrow lasts, since that too needs the owner.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a leaked box and is freed once.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Which large pages may have entries: a filter for each size, exact where it says no.
#[derive(Debug, Default)]
pub(super) struct LargePages {
    /// For 2 MiB, 4 MiB and 1 GiB pages.
    filters: [Filter; 3],
    any: bool,
}

#[derive(Debug, Default)]
struct Filter([u64; 8]);

impl LargePages {
    const SHIFTS: [u8; 3] = [21, 22, 30];

    fn bit(gva: Gva, shift: u8) -> (usize, u64) {
        let hash = (gva.0 >> shift).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 55;
        ((hash >> 6) as usize, 1 << (hash & 63))
    }

    pub fn insert(&mut self, full: &Full) {
        if u32::from(full.shift) == PAGE_SHIFT {
            return;
        }
        for (filter, shift) in self.filters.iter_mut().zip(Self::SHIFTS).filter(|(_, shift)| *shift == full.shift) {
            let (word, bit) = Self::bit(full.gva, shift);
            filter.0[word] |= bit;
            self.any = true;
        }
    }

    pub fn clear(&mut self) {
        if self.any {
            *self = Self::default();
        }
    }

    /// For each large page around `gva` that may have entries: its first address, how many slots of a direct-mapped
    /// table of `size` entries its pages can be in, and its size.
    pub fn ranges(&self, gva: Gva, size: usize) -> impl Iterator<Item = (Gva, usize, u8)> + use<> {
        let mut found = [None; 3];
        if self.any {
            for ((slot, filter), shift) in found.iter_mut().zip(&self.filters).zip(Self::SHIFTS) {
                let (word, bit) = Self::bit(gva, shift);
                let pages = 1usize << (u32::from(shift) - PAGE_SHIFT);
                *slot =
                    (filter.0[word] & bit != 0).then_some((Gva(gva.0 & (u64::MAX << shift)), pages.min(size), shift));
            }
        }
        found.into_iter().flatten()
    }

    /// Whether `full` is part of the large page of this size around `gva`.
    pub fn same(full: &Full, gva: Gva, shift: u8) -> bool {
        full.shift == shift && (full.gva.0 ^ gva.0) >> shift == 0
    }
}

/// A main table, its victims, and what is known of each entry.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// A power of two of them; `None` until the first fill.
    entries: Option<Entries>,
    full: Vec<Full>,
    victims: Vec<(Entry, Full)>,
    next_victim: usize,
    large: LargePages,
    /// Slots that were filled since the flush, unless they are more than a quarter.
    touched: Vec<u16>,
    /// Slots in use.
    used: usize,
    /// Fills since the flush (or growth) that had to push another page out.
    conflicts: usize,
    /// Whether anything was filled since the flush.
    dirty: bool,
    /// Most slots in use at any of the last flushes, and how many flushes those are.
    peak: usize,
    flushes: u32,
}

impl Table {
    pub fn size(&self) -> usize {
        self.full.len()
    }

    pub fn is_clean(&self) -> bool {
        !self.dirty
    }

    pub fn view(&self) -> View {
        match &self.entries {
            Some(entries) => View { base: entries.0.as_ptr().cast(), mask: (self.size() as u64 - 1) * 32 },
            None => View::EMPTY,
        }
    }

    fn index(&self, page: Gva) -> usize {
        // A table without entries gives an index that no slice has.
        (page.0 >> PAGE_SHIFT) as usize & self.size().wrapping_sub(1)
    }

    fn slot(&self, page: Gva) -> Option<(&Entry, &Full)> {
        let index = self.index(page);
        Some((self.entries.as_ref()?.all().get(index)?, self.full.get(index)?))
    }

    fn slot_mut(&mut self, index: usize) -> Option<(&mut Entry, &mut Full)> {
        Some((self.entries.as_mut()?.all_mut().get_mut(index)?, self.full.get_mut(index)?))
    }

    /// The main table's entry for `page`, if it matches for `want`.
    pub fn find(&self, page: Gva, want: Want) -> Option<(u64, Full)> {
        let (entry, full) = self.slot(page)?;
        Some((entry.flags(page, want)?, *full))
    }

    /// What the main table knows of `page`, whatever it allows.
    pub fn any(&self, page: Gva) -> Option<Full> {
        let (entry, full) = self.slot(page)?;
        entry.holds(page).then_some(*full)
    }

    /// Looks among the victims; what is found changes places with what the main table has in its slot. No page is in
    /// both: a fill takes it from the victims.
    pub fn recall(&mut self, page: Gva, want: Want) -> Option<(u64, Full)> {
        let i = self.victims.iter().position(|(entry, _)| entry.flags(page, want).is_some())?;
        let index = self.index(page);
        let (entry, full) = (self.entries.as_mut()?.all_mut().get_mut(index)?, self.full.get_mut(index)?);
        let victim = self.victims.get_mut(i)?;
        if entry.is_empty() {
            self.used += 1;
        }
        std::mem::swap(entry, &mut victim.0);
        std::mem::swap(full, &mut victim.1);
        let found = (entry.flags(page, want)?, *full);
        self.touch(index);
        Some(found)
    }

    fn touch(&mut self, index: usize) {
        self.dirty = true;
        if self.touched.len() <= self.size() / 4 {
            self.touched.push(index as u16);
        }
    }

    /// Whether the table grew.
    pub fn fill(&mut self, entry: Entry, full: Full) -> bool {
        if self.entries.is_none() {
            self.resize(SMALLEST);
        }
        let grow = self.conflicts > self.size() / 2 && self.size() < LARGEST;
        if grow {
            self.double();
        }
        for (victim, _) in self.victims.iter_mut().filter(|(victim, _)| victim.holds(full.gva)) {
            victim.invalidate();
        }
        self.large.insert(&full);
        self.place(entry, full);
        grow
    }

    fn place(&mut self, entry: Entry, full: Full) {
        let index = self.index(full.gva);
        let Some((slot, slot_full)) = self.slot_mut(index) else { return };
        let old = (*slot, *slot_full);
        (*slot, *slot_full) = (entry, full);
        if old.0.is_empty() {
            self.used += 1;
            self.touch(index);
        } else if old.1.gva != full.gva {
            self.conflicts += 1;
            self.evict(old);
        }
    }

    fn evict(&mut self, old: (Entry, Full)) {
        if self.victims.len() < VICTIMS {
            self.victims.push(old);
        } else if let Some(victim) = self.victims.get_mut(self.next_victim % VICTIMS) {
            *victim = old;
            self.next_victim += 1;
        }
    }

    /// Makes the main table empty, with `n` entries.
    fn resize(&mut self, n: usize) {
        let nothing = Full {
            gva: Gva(0),
            gpa: crate::Gpa(0),
            memory: Page::Io,
            rights: Rights::default(),
            shift: 0,
            watch: Interest::default(),
        };
        self.entries = Some(Entries::new(n));
        self.full = vec![nothing; n];
        self.touched.clear();
        (self.used, self.conflicts, self.peak, self.flushes) = (0, 0, 0, 0);
    }

    fn double(&mut self) {
        let old = self.entries.take();
        let old_full = std::mem::take(&mut self.full);
        self.resize(old_full.len() * 2);
        for (entry, full) in old.iter().flat_map(Entries::all).zip(old_full).filter(|(entry, _)| !entry.is_empty()) {
            self.place(*entry, full);
        }
        self.conflicts = 0;
    }

    /// Drops all entries. A table that has had no fill since the last flush costs nothing.
    pub fn flush(&mut self) {
        if !self.dirty {
            return;
        }
        self.dirty = false;
        self.peak = self.peak.max(self.used);
        self.flushes += 1;
        if self.flushes >= SHRINK_AFTER && self.peak < self.size() / 8 && self.size() > SMALLEST {
            self.resize(self.size() / 2);
        } else {
            let all = self.touched.len() > self.size() / 4;
            let entries = self.entries.as_mut().map(Entries::all_mut).unwrap_or_default();
            if all {
                entries.fill(Entry::EMPTY);
            } else {
                for index in &self.touched {
                    if let Some(entry) = entries.get_mut(usize::from(*index)) {
                        entry.invalidate();
                    }
                }
            }
            if self.flushes >= SHRINK_AFTER {
                (self.peak, self.flushes) = (0, 0);
            }
        }
        self.touched.clear();
        self.victims.clear();
        self.large.clear();
        (self.used, self.conflicts) = (0, 0);
    }

    /// Drops every entry of the page, of whatever size, that holds `gva`.
    pub fn invalidate(&mut self, gva: Gva) {
        if !self.dirty {
            return;
        }
        for (first, count, shift) in self.large.ranges(gva, self.size()) {
            let start = self.index(first);
            for i in 0..count {
                self.drop_if((start + i) & (self.size() - 1), |full| LargePages::same(full, gva, shift));
            }
        }
        self.drop_if(self.index(gva), |full| full.gva == gva.page());
        for (victim, full) in &mut self.victims {
            if full.gva == gva.page() || LargePages::same(full, gva, full.shift) {
                victim.invalidate();
            }
        }
    }

    fn drop_if(&mut self, index: usize, condition: impl Fn(&Full) -> bool) {
        if let Some((entry, full)) = self.slot_mut(index)
            && !entry.is_empty()
            && condition(full)
        {
            entry.invalidate();
            self.used -= 1;
        }
    }

    /// Calls `change` for every entry there is.
    pub fn for_each(&mut self, mut change: impl FnMut(&mut Entry, &Full)) {
        if !self.dirty {
            return;
        }
        let entries = self.entries.as_mut().map(Entries::all_mut).unwrap_or_default();
        for (entry, full) in entries.iter_mut().zip(&self.full).filter(|(entry, _)| !entry.is_empty()) {
            change(entry, full);
            if entry.is_empty() {
                self.used -= 1;
            }
        }
        for (entry, full) in self.victims.iter_mut().filter(|(entry, _)| !entry.is_empty()) {
            change(entry, full);
        }
    }

    /// Takes the [`CODE`] flag, and no other, off the write comparator for `page`.
    pub fn unprotect(&mut self, page: Gva) -> Option<(Entry, Full)> {
        let index = self.index(page);
        let (entry, full) = self.slot_mut(index)?;
        entry.flags(page, Want::Write)?;
        entry.write &= !CODE;
        Some((*entry, *full))
    }
}
