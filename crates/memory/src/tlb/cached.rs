//! What the tables remember of one page, for people.

use super::{Entry, Full, Tlb};
use crate::mmu::Space;
use crate::walk::{Rights, Want};
use crate::{Gpa, Gva};

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the main table of this space.
    Main(Space),
    /// In the victim table of this space.
    Victim(Space),
    /// In the store of global pages.
    Global,
}

/// One entry for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached {
    /// Where it is.
    pub place: Place,
    /// The slow-path flags of the comparators for reads, writes and fetches; `None`: it does not match. A global page
    /// has no comparators.
    pub flags: [Option<u64>; 3],
    /// Host address minus guest virtual address; 0 for a global page, and for one that is not memory.
    pub addend: u64,
    /// The physical page.
    pub gpa: Gpa,
    /// log2 of the size of the page that the tables map.
    pub shift: u8,
    /// What the tables allow.
    pub rights: Rights,
}

impl Cached {
    fn new(place: Place, entry: &Entry, full: &Full) -> Self {
        let flags = [Want::Read, Want::Write, Want::Execute].map(|want| entry.comparator(want).flags(full.gva));
        Self { place, flags, addend: entry.addend, gpa: full.gpa, shift: full.shift, rights: full.rights }
    }
}

impl Tlb {
    /// All that is remembered of `page` in the current context.
    pub fn cached(&self, page: Gva) -> Vec<Cached> {
        let mut all = Vec::new();
        for space in [Space::Kernel, Space::KernelAc, Space::User] {
            let table = &self.contexts[self.current].spaces[space as usize];
            let (main, victims) = table.entries_for(page);
            all.extend(main.map(|(entry, full)| Cached::new(Place::Main(space), entry, full)));
            all.extend(victims.map(|(entry, full)| Cached::new(Place::Victim(space), entry, full)));
        }
        all.extend(self.globals.get(page).map(|full| Cached::new(Place::Global, &Entry::EMPTY, &full)));
        all
    }
}
