//! The softmmu TLB: what a vCPU remembers of its page walks.
//!
//! One direct-mapped main table for each PCID kept and each [`Space`], with a small fully associative victim table
//! behind it. An entry has a comparator each for reading, writing and executing. Its upper bits are the page
//! address, its low twelve bits are zero or say why the access must take the slow path, so that one compare with
//! `gva & !0xfff` decides:
//!
//! | bit | meaning |
//! |---|---|
//! | [`INVALID`] | no such access: not cached, not allowed, or (for writes) the page is not yet dirty |
//! | [`IO`] | not plain memory: the physical map dispatches each access |
//! | [`ROM`] | (write) memory that ignores writes |
//! | [`CODE`] | (write) the page holds decoded code |
//! | [`WATCH`] | an observer wants to see the access |
//! | [`RECORD`] | an observer wants to see the access, and a record made by translated code will do |
//!
//! Translated code asks by subtraction instead, of an entry that it remembers: for its sake a comparator with flags has
//! [`SLOW`] flipped as well, or [`ASIDE`] if [`RECORD`] is the only one (see [`Comparator`]).
//!
//! Entries are derived: comparators follow from the page's own rights (`Full`) and the control registers. What
//! changes only the registers' part therefore drops tables without forgetting translations of global pages, which
//! live in a store of their own and are consulted before a walk. So do the tables of the same context's other
//! spaces, since a hardware TLB keeps one translation for all privilege levels.
//!
//! Invalidations (SDM vol. 3A, 4.10.4; APM vol. 2, 5.5) may always drop more than is asked, never less. An entry is
//! for 4 KiB even when the page is larger; `LargePages` remembers which large pages have entries, so that INVLPG
//! finds all of them.

use crate::map::Page;
use crate::mmu::Space;
use crate::observe::Interest;
use crate::walk::{Rights, Want};
use crate::{Gpa, Gva, Hva};

mod cached;
mod entry;
mod filter;
mod stamp;
mod table;
pub use cached::{Cached, Place};
pub use entry::{Comparator, Entry, View};
use filter::{LargePages, Writer, Writers};
use stamp::{Names, Relied};
use table::Table;

/// The comparator matches nothing.
pub const INVALID: u64 = 1 << 11;
/// The page is not plain memory.
pub const IO: u64 = 1 << 0;
/// The page ignores writes.
pub const ROM: u64 = 1 << 1;
/// The page holds decoded code.
pub const CODE: u64 = 1 << 2;
/// An observer wants to see the access.
pub const WATCH: u64 = 1 << 3;
/// An observer wants to see the access, and is content with a [`Record`](crate::observe::Record).
pub const RECORD: u64 = 1 << 4;
/// Flipped in every comparator that has one of these flags, but for those that have [`RECORD`] alone.
pub const SLOW: u64 = 1 << 62;
/// Flipped in those.
pub const ASIDE: u64 = 1 << 63;

/// How many PCIDs have tables.
const CONTEXTS: usize = 8;
/// Entries in the store of global pages.
const GLOBALS: usize = 4096;

/// What is known of a cached 4 KiB page, beside what the fast path needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Full {
    /// Page address.
    pub gva: Gva,
    /// Page address, A20 gate applied.
    pub gpa: Gpa,
    pub memory: Page,
    pub rights: Rights,
    /// log2 of the size of the page that the tables map.
    pub shift: u8,
    pub watch: Interest,
    /// A record will do of what is watched.
    pub record: bool,
    /// The kinds of access that have been noted, if they are (see [`crate::touched`]); else all. Not for global pages.
    pub touched: Interest,
}

/// How often the slow path found what where. Hits of the fast path are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Found in the main table: slow for another reason (flags, page crossing, byte runs).
    pub hits: u64,
    /// Found in the victim table.
    pub victim_hits: u64,
    /// Found in the store of global pages.
    pub global_hits: u64,
    /// Walks of the page tables.
    pub walks: u64,
    /// Walks that ended in a fault.
    pub faults: u64,
    /// Pages invalidated by INVLPG and INVPCID.
    pub page_flushes: u64,
    /// Contexts (PCIDs) flushed.
    pub context_flushes: u64,
    /// Flushes of everything, global pages included.
    pub full_flushes: u64,
    /// Main tables that grew.
    pub grown: u64,
}

impl Stats {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.with(other, u64::wrapping_add)
    }

    /// What is more in these than in `other`, which were taken before.
    #[must_use]
    pub fn less(self, other: Self) -> Self {
        self.with(other, u64::wrapping_sub)
    }

    fn with(self, other: Self, apply: fn(u64, u64) -> u64) -> Self {
        Self {
            hits: apply(self.hits, other.hits),
            victim_hits: apply(self.victim_hits, other.victim_hits),
            global_hits: apply(self.global_hits, other.global_hits),
            walks: apply(self.walks, other.walks),
            faults: apply(self.faults, other.faults),
            page_flushes: apply(self.page_flushes, other.page_flushes),
            context_flushes: apply(self.context_flushes, other.context_flushes),
            full_flushes: apply(self.full_flushes, other.full_flushes),
            grown: apply(self.grown, other.grown),
        }
    }
}

/// The tables of one PCID, and which of its fetch translations somebody relies on.
#[derive(Debug)]
struct Context {
    pcid: u16,
    last_used: u64,
    spaces: [Table; 3],
    user: Relied,
    /// While `Tlb::split`.
    supervisor: Relied,
}

impl Context {
    fn new(names: &mut Names) -> Self {
        Self {
            pcid: 0,
            last_used: 0,
            spaces: [Table::new(), Table::new(), Table::new()],
            user: Relied::new(names),
            supervisor: Relied::new(names),
        }
    }

    fn flush(&mut self, names: &mut Names) {
        self.spaces.iter_mut().for_each(Table::flush);
        self.user.flush(names);
        self.supervisor.flush(names);
    }

    /// Drops the page that holds `gva`.
    fn invalidate(&mut self, gva: Gva, names: &mut Names) {
        self.spaces.iter_mut().for_each(|table| table.invalidate(gva));
        self.user.invalidate(gva, names);
        self.supervisor.invalidate(gva, names);
    }
}

/// Translations of global pages, whatever the context. Emptied by counting up `generation`.
#[derive(Debug)]
struct Globals {
    slots: Vec<(u64, Full)>,
    generation: u64,
    large: LargePages,
}

impl Globals {
    fn index(gva: Gva) -> usize {
        (gva.0 >> x86::PAGE_SHIFT) as usize % GLOBALS
    }

    fn get(&self, page: Gva) -> Option<Full> {
        let (generation, full) = self.slots.get(Self::index(page))?;
        (*generation == self.generation && full.gva == page).then_some(*full)
    }

    fn insert(&mut self, full: Full) {
        if self.slots.is_empty() {
            self.slots = vec![(0, full); GLOBALS];
        }
        if let Some(slot) = self.slots.get_mut(Self::index(full.gva)) {
            *slot = (self.generation, full);
            self.large.insert(&full);
        }
    }

    fn clear(&mut self) {
        self.generation += 1;
        self.large.clear();
    }

    fn invalidate(&mut self, gva: Gva) {
        for (first, count, shift) in self.large.ranges(gva, GLOBALS) {
            for i in 0..count {
                if let Some(slot) = self.slots.get_mut((Self::index(first) + i) % GLOBALS)
                    && LargePages::same(&slot.1, gva, shift)
                {
                    slot.0 = 0;
                }
            }
        }
        if let Some(slot) = self.slots.get_mut(Self::index(gva))
            && slot.1.gva == gva.page()
        {
            slot.0 = 0;
        }
    }
}

/// All of a vCPU's tables.
#[derive(Debug)]
pub(crate) struct Tlb {
    /// One at least, [`CONTEXTS`] at most.
    contexts: Vec<Context>,
    current: usize,
    clock: u64,
    globals: Globals,
    names: Names,
    /// Global pages that a supervisor of whatever context relies on for fetches.
    supervisor: Relied,
    /// Supervisors rely on pages that are not global: each context has a stamp of its own for them, until all stamps
    /// are renewed.
    split: bool,
    /// Which host pages may have a plain write comparator: see [`Tlb::protect`].
    writers: Writers,
    /// Protection keys of which entries may be cached, user and supervisor pages alike.
    keys: u16,
    pub stats: Stats,
}

impl Tlb {
    /// With nothing in it; the current context is that of PCID 0.
    pub fn new() -> Self {
        let mut names = Names::new();
        Self {
            contexts: vec![Context::new(&mut names)],
            current: 0,
            clock: 0,
            globals: Globals { slots: Vec::new(), generation: 1, large: LargePages::default() },
            supervisor: Relied::new(&mut names),
            names,
            split: false,
            writers: Writers::default(),
            keys: 0,
            stats: Stats::default(),
        }
    }

    /// The current context's main table for `space`. Outdated by anything that takes `&mut self`.
    pub fn view(&self, space: Space) -> View {
        self.contexts[self.current].spaces[space as usize].view()
    }

    fn table(&mut self, space: Space) -> &mut Table {
        &mut self.contexts[self.current].spaces[space as usize]
    }

    /// The comparator's flags and the rest, if `want` is cached as possible for `page` in `space`. The table may grow.
    pub fn probe(&mut self, space: Space, page: Gva, want: Want) -> Option<(u64, Full)> {
        let table = &mut self.contexts[self.current].spaces[space as usize];
        if let Some(found) = table.find(page, want) {
            self.stats.hits += 1;
            return Some(found);
        }
        let found = table.recall(page, want)?;
        self.stats.victim_hits += 1;
        self.stats.grown += u64::from(table.grow());
        Some(found)
    }

    /// What is cached of `page` as a global page. Rights are not checked. The tables of the context's other spaces are not
    /// asked: they know one page in a hundred of those that `space` lacks, and to look there costs more than a walk.
    pub fn known(&mut self, page: Gva) -> Option<Full> {
        let global = self.globals.get(page)?;
        self.stats.global_hits += 1;
        Some(global)
    }

    /// The kinds of access to the page at `gpa` that the current context's entry for `page` has noted.
    pub fn touched(&self, space: Space, page: Gva, gpa: Gpa) -> Interest {
        let (main, victims) = self.contexts[self.current].spaces[space as usize].entries_for(page);
        let same = main.into_iter().chain(victims).filter(|(_, full)| full.gpa == gpa);
        same.fold(Interest::default(), |kinds, (_, full)| kinds.or(full.touched))
    }

    /// Caches an entry in the current context, in place of any for the same page.
    pub fn fill(&mut self, space: Space, entry: Entry, full: Full) {
        note_writable(&mut self.writers, &entry, &full);
        self.keys |= 1 << (full.rights.key & 15);
        if full.rights.global {
            self.globals.insert(full);
        }
        if self.table(space).fill(entry, full) {
            self.stats.grown += 1;
        }
    }

    /// The fetch stamp of `space` in the current context.
    #[inline]
    pub fn stamp(&self, space: Space) -> u64 {
        let context = &self.contexts[self.current];
        match space {
            Space::User => context.user.stamp(),
            _ if self.split => context.supervisor.stamp(),
            _ => self.supervisor.stamp(),
        }
    }

    /// Makes the stamp of `space` name the fetch translation of `page` too, if that is plainly in the table.
    pub fn rely(&mut self, space: Space, page: Gva) -> Option<u64> {
        let context = &mut self.contexts[self.current];
        let table = &mut context.spaces[space as usize];
        let found = table.find(page, Want::Execute).or_else(|| table.recall(page, Want::Execute));
        let (_, full) = found.filter(|(flags, _)| *flags == 0)?;
        if space != Space::User && !full.rights.global && !self.split {
            // What this context relies on goes on to hold for it under the same name.
            std::mem::swap(&mut self.supervisor, &mut context.supervisor);
            self.split = true;
        }
        let relied = match space {
            Space::User => &mut context.user,
            _ if self.split => &mut context.supervisor,
            _ => &mut self.supervisor,
        };
        relied.insert(&full);
        Some(relied.stamp())
    }

    /// Makes the context of `pcid` the current one. Whether it had been kept since it was last current.
    pub fn select(&mut self, pcid: u16) -> bool {
        self.clock += 1;
        let found = self.contexts.iter().position(|context| context.pcid == pcid);
        self.current = match found {
            Some(index) => index,
            None if self.contexts.len() < CONTEXTS => {
                self.contexts.push(Context::new(&mut self.names));
                self.contexts.len() - 1
            }
            None => {
                let oldest = self.contexts.iter().enumerate().min_by_key(|(_, context)| context.last_used);
                let oldest = oldest.map_or(0, |(index, _)| index);
                self.flush_context(oldest);
                oldest
            }
        };
        let context = &mut self.contexts[self.current];
        context.pcid = pcid;
        context.last_used = self.clock;
        found.is_some()
    }

    fn flush_context(&mut self, index: usize) {
        if let Some(context) = self.contexts.get_mut(index) {
            context.flush(&mut self.names);
        }
        self.forget_if_clean();
    }

    fn flush_contexts(&mut self) {
        self.contexts.iter_mut().for_each(|context| context.flush(&mut self.names));
        self.supervisor.flush(&mut self.names);
        self.split = false;
        self.forget_if_clean();
    }

    fn forget_if_clean(&mut self) {
        if self.contexts.iter().flat_map(|context| &context.spaces).all(Table::is_clean) {
            self.writers.clear();
            self.keys = 0;
        }
    }

    /// Drops the current context's entries; global pages stay known.
    pub fn flush_current(&mut self) {
        self.stats.context_flushes += 1;
        self.flush_context(self.current);
    }

    /// Drops the entries of `pcid`; global pages stay known.
    pub fn flush_pcid(&mut self, pcid: u16) {
        self.stats.context_flushes += 1;
        if let Some(index) = self.contexts.iter().position(|context| context.pcid == pcid) {
            self.flush_context(index);
        }
    }

    /// Drops the entries of all contexts; global pages stay known, but nobody may rely on what may be fetched.
    pub fn flush_derived(&mut self) {
        self.stats.context_flushes += 1;
        self.flush_contexts();
    }

    /// Drops everything.
    pub fn flush_all(&mut self) {
        self.stats.full_flushes += 1;
        self.flush_contexts();
        self.globals.clear();
    }

    /// INVLPG: drops the page that holds `gva` from every context, and as a global page. (Other contexts need not
    /// lose entries that are not global; telling those apart would cost more than refilling them.)
    pub fn invalidate(&mut self, gva: Gva) {
        self.stats.page_flushes += 1;
        self.globals.invalidate(gva);
        self.supervisor.invalidate(gva, &mut self.names);
        self.contexts.iter_mut().for_each(|context| context.invalidate(gva, &mut self.names));
    }

    /// A page fault drops the page from the current context, as hardware does (SDM vol. 3A, 4.10.4.1): an operating
    /// system may mend the table entry and return without INVLPG.
    pub fn fault(&mut self, gva: Gva) {
        self.stats.faults += 1;
        self.globals.invalidate(gva);
        self.supervisor.invalidate(gva, &mut self.names);
        self.contexts[self.current].invalidate(gva, &mut self.names);
    }

    /// INVPCID of one address: drops the page that holds `gva` from one context. Global pages stay known.
    pub fn invalidate_in(&mut self, pcid: u16, gva: Gva) {
        self.stats.page_flushes += 1;
        for context in self.contexts.iter_mut().filter(|context| context.pcid == pcid) {
            context.invalidate(gva, &mut self.names);
        }
    }

    /// Drops entries of user (or supervisor) pages whose protection key is in the set `keys`, in every context.
    pub fn invalidate_keys(&mut self, keys: u16, user: bool) {
        if self.keys & keys == 0 {
            return;
        }
        let affected = |full: &Full| full.rights.user == user && keys >> (full.rights.key & 15) & 1 != 0;
        for table in self.contexts.iter_mut().flat_map(|context| &mut context.spaces) {
            table.for_each(|entry, full| {
                if affected(full) {
                    entry.invalidate();
                }
            });
        }
    }

    /// Puts the [`CODE`] flag into all write comparators for the page at `hva`. Most pages that get decoded code
    /// have no write comparator anywhere, and pages that a guest generates code in have one: `writers` spares both the
    /// search. Whether the page may have been written without the flag since it was last protected, or all was flushed.
    pub fn protect(&mut self, hva: Hva) -> bool {
        let protect = |entry: &mut Entry, full: &Full| {
            if full.memory == Page::Ram(hva.page()) {
                entry.write = entry.write.with(CODE);
            }
        };
        let tables = self.contexts.iter_mut().flat_map(|context| &mut context.spaces);
        match self.writers.take(hva.page()) {
            Writer::Of(pages) => {
                for table in tables {
                    pages.iter().flatten().for_each(|gva| table.for_page(*gva, protect));
                }
                pages.iter().any(Option::is_some)
            }
            Writer::Unknown => {
                // Everything is looked at, so that it can be noted anew what there is.
                self.writers.clear();
                for table in tables {
                    table.for_each(|entry, full| {
                        protect(entry, full);
                        note_writable(&mut self.writers, entry, full);
                    });
                }
                true
            }
        }
    }

    /// Takes the [`CODE`] flag off the write comparator for `page` in the current context.
    pub fn unprotect(&mut self, space: Space, page: Gva) {
        if let Some((entry, full)) = self.table(space).unprotect(page) {
            note_writable(&mut self.writers, &entry, &full);
        }
    }

    #[cfg(test)]
    pub fn size(&self, space: Space) -> usize {
        self.contexts[self.current].spaces[space as usize].size()
    }
}

/// Notes that `entry` may be written through, if it may.
fn note_writable(writers: &mut Writers, entry: &Entry, full: &Full) {
    if let Page::Ram(hva) = full.memory
        && !entry.write.has(INVALID | CODE)
    {
        writers.insert(hva, full.gva);
    }
}

#[cfg(test)]
mod tests;
