//! One main table with its victim table.

use super::entry::{Entries, Entry, View};
use super::filter::LargePages;
use super::{CODE, Full};
use crate::Gva;
use crate::map::Page;
use crate::observe::Interest;
use crate::walk::{Rights, Want};
use x86::PAGE_SHIFT;

/// Entries of a main table from its first fill on.
const SMALLEST: usize = 2048;
/// Entries up to which a main table grows: pages of 512 MiB.
pub(super) const LARGEST: usize = 1 << 17;
/// Entries of a victim table.
const VICTIMS: usize = 8;
/// After how many flushes a table that was mostly empty at each of them is halved.
const SHRINK_AFTER: u32 = 16;

/// A main table, its victims, and what is known of each entry.
#[derive(Debug)]
pub(super) struct Table {
    entries: Entries,
    /// As many as entries.
    full: Vec<Full>,
    victims: Vec<(Entry, Full)>,
    next_victim: usize,
    large: LargePages,
    /// Slots that were filled since the flush, each once, unless they are more than a quarter.
    touched: Vec<u32>,
    /// A bit a slot: whether it is in `touched`.
    listed: Vec<u64>,
    /// Slots in use.
    used: usize,
    /// How often since the flush (or growth) a page has pushed another one out.
    conflicts: usize,
    /// Whether anything was filled since the flush.
    dirty: bool,
    /// Most slots in use at any of the last flushes, and how many flushes those are.
    peak: usize,
    flushes: u32,
}

/// What is known of the page in an empty slot.
const NOTHING: Full = Full {
    gva: Gva(0),
    gpa: crate::Gpa(0),
    memory: Page::Io,
    rights: Rights { user: false, writable: false, no_execute: false, dirty: false, global: false, key: 0 },
    shift: 0,
    watch: Interest { read: false, write: false, fetch: false },
    touched: Interest::ALL,
    record: false,
};

impl Table {
    pub fn new() -> Self {
        Self {
            entries: Entries::new(),
            full: vec![NOTHING],
            victims: Vec::new(),
            next_victim: 0,
            large: LargePages::default(),
            touched: Vec::new(),
            listed: vec![0],
            used: 0,
            conflicts: 0,
            dirty: false,
            peak: 0,
            flushes: 0,
        }
    }

    pub fn size(&self) -> usize {
        self.full.len()
    }

    pub fn is_clean(&self) -> bool {
        !self.dirty
    }

    pub fn view(&self) -> View {
        self.entries.view()
    }

    fn index(&self, page: Gva) -> usize {
        (page.0 >> PAGE_SHIFT) as usize & (self.size() - 1)
    }

    fn slot(&self, page: Gva) -> Option<(&Entry, &Full)> {
        let index = self.index(page);
        Some((self.entries.all().get(index)?, self.full.get(index)?))
    }

    fn slot_mut(&mut self, index: usize) -> Option<(&mut Entry, &mut Full)> {
        Some((self.entries.all_mut().get_mut(index)?, self.full.get_mut(index)?))
    }

    /// What there is for `page`: in the main table, and among the victims.
    pub fn entries_for(&self, page: Gva) -> (Option<(&Entry, &Full)>, impl Iterator<Item = (&Entry, &Full)>) {
        let is = move |(entry, full): &(&Entry, &Full)| full.gva == page && !entry.is_empty();
        (self.slot(page).filter(is), self.victims.iter().map(|(entry, full)| (entry, full)).filter(is))
    }

    /// The main table's entry for `page`, if it matches for `want`.
    pub fn find(&self, page: Gva, want: Want) -> Option<(u64, Full)> {
        let (entry, full) = self.slot(page)?;
        Some((entry.comparator(want).flags(page)?, *full))
    }

    /// Looks among the victims; what is found changes places with what the main table has in its slot. No page is in
    /// both: a fill takes it from the victims.
    pub fn recall(&mut self, page: Gva, want: Want) -> Option<(u64, Full)> {
        let i = self.victims.iter().position(|(entry, _)| entry.comparator(want).flags(page).is_some())?;
        let index = self.index(page);
        let (entry, full) = (self.entries.all_mut().get_mut(index)?, self.full.get_mut(index)?);
        let victim = self.victims.get_mut(i)?;
        if entry.is_empty() {
            self.used += 1;
        }
        std::mem::swap(entry, &mut victim.0);
        std::mem::swap(full, &mut victim.1);
        let found = (entry.comparator(want).flags(page)?, *full);
        self.touch(index);
        self.conflicts += 1;
        Some(found)
    }

    fn touch(&mut self, index: usize) {
        self.dirty = true;
        let bit = 1 << (index % 64);
        if let Some(word) = self.listed.get_mut(index / 64).filter(|word| **word & bit == 0)
            && self.touched.len() <= self.full.len() / 4
        {
            *word |= bit;
            self.touched.push(index as u32);
        }
    }

    /// Whether `touched` has all slots in use.
    fn all_listed(&self) -> bool {
        self.touched.len() <= self.size() / 4
    }

    /// Makes the list anew.
    fn list(&mut self) {
        self.touched.clear();
        self.listed.clear();
        self.listed.resize(self.size().div_ceil(64), 0);
        for index in 0..self.size() {
            if self.entries.all().get(index).is_some_and(|entry| !entry.is_empty()) {
                self.touch(index);
            }
        }
    }

    /// Doubles a table in which pages have pushed each other out too often. Whether it did.
    pub fn grow(&mut self) -> bool {
        let grow = self.conflicts > self.size() / 2 && self.size() < LARGEST;
        if grow {
            self.double();
        }
        grow
    }

    /// Puts an entry in its slot. Whether the table grew.
    pub fn fill(&mut self, entry: Entry, full: Full) -> bool {
        while self.size() < SMALLEST {
            self.double();
        }
        let grow = self.grow();
        for (victim, _) in self.victims.iter_mut().filter(|(_, victim)| victim.gva == full.gva) {
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

    /// Every page stays in its slot, or goes to the one that is as far into the new half.
    fn double(&mut self) {
        let old = self.size();
        self.entries.double();
        self.full.extend_from_within(..);
        let (low, high) = self.entries.all_mut().split_at_mut(old);
        for ((low, high), full) in low.iter_mut().zip(high).zip(&self.full) {
            if (full.gva.0 >> PAGE_SHIFT) as usize & old != 0 {
                std::mem::swap(low, high);
            }
        }
        self.list();
        (self.conflicts, self.peak, self.flushes) = (0, 0, 0);
    }

    /// Drops all entries. A table that has had no fill since the last flush costs nothing.
    pub fn flush(&mut self) {
        if !self.dirty {
            return;
        }
        self.dirty = false;
        let few = self.all_listed();
        let entries = self.entries.all_mut();
        if few {
            for index in self.touched.iter().map(|index| *index as usize) {
                if let (Some(entry), Some(word)) = (entries.get_mut(index), self.listed.get_mut(index / 64)) {
                    entry.invalidate();
                    *word = 0;
                }
            }
        } else {
            entries.fill(Entry::EMPTY);
            self.listed.fill(0);
        }
        self.peak = self.peak.max(self.used);
        self.flushes += 1;
        if self.flushes >= SHRINK_AFTER {
            if self.peak < self.size() / 8 && self.size() > SMALLEST {
                self.entries.halve();
                self.full.truncate(self.size() / 2);
                self.listed.truncate(self.size() / 64);
            }
            (self.peak, self.flushes) = (0, 0);
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
            let same = |full: &Full| LargePages::same(full, gva, shift);
            if self.all_listed() && self.touched.len() < count {
                let touched = std::mem::take(&mut self.touched);
                touched.iter().for_each(|index| self.drop_if(*index as usize, same));
                self.touched = touched;
            } else {
                let start = self.index(first);
                (start..start + count).for_each(|index| self.drop_if(index & (self.size() - 1), same));
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
        for (entry, full) in self.entries.all_mut().iter_mut().zip(&self.full).filter(|(entry, _)| !entry.is_empty()) {
            change(entry, full);
            if entry.is_empty() {
                self.used -= 1;
            }
        }
        for (entry, full) in self.victims.iter_mut().filter(|(entry, _)| !entry.is_empty()) {
            change(entry, full);
        }
    }

    /// Calls `change` for every entry for `page`.
    pub fn for_page(&mut self, page: Gva, change: impl Fn(&mut Entry, &Full)) {
        let index = self.index(page);
        let (slot, victims) = (self.entries.all_mut().get_mut(index).zip(self.full.get(index)), &mut self.victims);
        let all = slot.into_iter().chain(victims.iter_mut().map(|(entry, full)| (entry, &*full)));
        for (entry, full) in all.filter(|(entry, full)| full.gva == page && !entry.is_empty()) {
            change(entry, full);
        }
    }

    /// Takes the [`CODE`] flag, and no other, off the write comparator for `page`.
    pub fn unprotect(&mut self, page: Gva) -> Option<(Entry, Full)> {
        let index = self.index(page);
        let (entry, full) = self.slot_mut(index)?;
        entry.write.flags(page)?;
        entry.write = entry.write.without(CODE);
        Some((*entry, *full))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Comparator;
    use super::*;

    /// Fills the slots of so many pages of a 2 MiB page and drops that one, as often as there are slots.
    fn filled_and_dropped(pages: u64) -> Table {
        let mut table = Table::new();
        for _ in 0..SMALLEST {
            for page in (0..pages).map(|n| Gva(0x4000_0000 + n * x86::PAGE_SIZE)) {
                let read = Comparator::new(page, 0);
                let full = Full { gva: page, shift: 21, ..NOTHING };
                assert!(!table.fill(Entry { read, ..Entry::EMPTY }, full));
                assert!(table.find(page, Want::Read).is_some());
            }
            table.invalidate(Gva(0x4000_0000));
            assert!((0..pages).all(|n| table.find(Gva(0x4000_0000 + n * x86::PAGE_SIZE), Want::Read).is_none()));
        }
        table
    }

    #[test]
    fn a_large_page_that_is_filled_and_dropped_again_and_again_stays_cheap_to_drop() {
        let table = filled_and_dropped(3);
        assert!(table.all_listed());
        assert_eq!((table.touched.len(), table.used), (3, 0), "each slot is listed once");
    }
}
