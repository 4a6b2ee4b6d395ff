//! Which pages a vCPU touches: read, written, fetched, and through which page tables.
//!
//! While this is noted, a TLB entry lets pass only those kinds of access that have been made since the entry's page was
//! noted last; the first access of each other kind misses, and is noted on its way. So what is asked of an access is
//! what is asked anyway, and a page costs up to three misses from one [`Mmu::take_touched`](crate::Mmu::take_touched)
//! to the next. Where nothing is noted entries let pass whatever is allowed.
//!
//! A read-modify-write counts as a write, and what is only checked beforehand (the second page of an access that faults in
//! the first) as touched. Left out: what the page walker reads.

use crate::Gpa;
use crate::observe::Interest;
use crate::walk::Want;
use std::collections::HashMap;

/// The most pages that are noted at once, each with its address space: 4 GiB.
pub const PAGES_MAX: usize = 1 << 20;

/// A page as seen from an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seen {
    /// Where the root of the page tables is: the address in CR3, without PCID.
    pub root: Gpa,
    /// The page's guest physical address.
    pub page: Gpa,
}

/// What was touched.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    /// Each page, with how it was touched.
    pub pages: HashMap<Seen, Interest>,
    /// How often there was no room for another page.
    pub lost: u64,
}

impl Touched {
    /// Notes that a page was touched in these ways. `most` pages are kept.
    pub fn note(&mut self, seen: Seen, kinds: Interest, most: usize) {
        if let Some(known) = self.pages.get_mut(&seen) {
            *known = known.or(kinds);
        } else if self.pages.len() < most {
            self.pages.insert(seen, kinds);
        } else {
            self.lost += 1;
        }
    }
}

impl Interest {
    /// Every kind.
    pub const ALL: Self = Self { read: true, write: true, fetch: true };

    /// Both together.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { read: self.read || other.read, write: self.write || other.write, fetch: self.fetch || other.fetch }
    }

    pub(crate) fn only(want: Want) -> Self {
        Self { read: want == Want::Read, write: want == Want::Write, fetch: want == Want::Execute }
    }

    pub(crate) fn has(self, want: Want) -> bool {
        match want {
            Want::Read => self.read,
            Want::Write => self.write,
            Want::Execute => self.fetch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mmu::Mmu;
    use crate::testing::{BY, Builder, G, U, W, map};
    use crate::{Gva, Space};

    const HERE: u64 = 0x40_0000;
    const THERE: u64 = 0x41_0000;
    const GLOBAL: u64 = 0x42_0000;

    fn machine() -> (u64, Mmu) {
        let (map, _) = map();
        let mut tables = Builder::new(&map);
        tables.page(HERE, 0x20_0000, W | U);
        tables.page(THERE, 0x30_0000, W | U);
        tables.page(GLOBAL, 0x31_0000, W | U | G);
        (tables.root, tables.mmu())
    }

    /// What was touched, as letters by physical page.
    fn letters(touched: &Touched, root: u64) -> Vec<(u64, String)> {
        let mut all: Vec<_> = touched.pages.iter().map(|(seen, kinds)| (*seen, *kinds)).collect();
        all.sort_by_key(|(seen, _)| *seen);
        let text = |kinds: Interest| -> String {
            let named = [(kinds.read, 'r'), (kinds.write, 'w'), (kinds.fetch, 'x')];
            named.iter().filter(|(set, _)| *set).map(|(_, letter)| *letter).collect()
        };
        all.iter()
            .inspect(|(seen, _)| assert_eq!(seen.root, Gpa(root)))
            .map(|(seen, kinds)| (seen.page.0, text(*kinds)))
            .collect()
    }

    fn read(mmu: &mut Mmu, gva: u64) {
        mmu.read::<u8>(BY, Space::Kernel, Gva(gva)).expect("readable");
    }

    #[test]
    fn each_kind_of_access_is_noted_once_a_round() {
        let (root, mut mmu) = machine();
        mmu.note_touched(true);
        for _ in 0..2 {
            read(&mut mmu, HERE);
            assert_eq!(mmu.read_fast::<u8>(Gva(HERE + 1)), Some(0), "now it is plain");
            assert!(!mmu.write_fast(Gva(THERE), 1u8), "not yet");
            mmu.write(BY, Space::Kernel, Gva(THERE), 1u8).expect("writable");
            assert!(mmu.write_fast(Gva(THERE), 1u8));
            assert_eq!(mmu.read_fast::<u8>(Gva(THERE)), None, "reads are another kind");
            mmu.fetch_page(BY, Gva(HERE)).expect("executable");
            assert_eq!(mmu.read_fast::<u8>(Gva(HERE)), Some(0), "which takes none away");
            let touched = mmu.take_touched(true);
            assert_eq!(letters(&touched, root), [(0x20_0000, "rx".to_owned()), (0x30_0000, "w".to_owned())]);
        }
        assert!(mmu.take_touched(true).pages.is_empty());
    }

    #[test]
    fn global_pages_are_noted_like_others() {
        let (root, mut mmu) = machine();
        read(&mut mmu, GLOBAL);
        mmu.note_touched(true);
        read(&mut mmu, GLOBAL);
        mmu.load_cr3(root, false).expect("no PAE");
        mmu.write(BY, Space::Kernel, Gva(GLOBAL), 1u8).expect("writable");
        assert_eq!(mmu.read_fast::<u8>(Gva(GLOBAL)), None, "the entry is a new one");
        assert_eq!(letters(&mmu.take_touched(true), root), [(0x31_0000, "rw".to_owned())]);
    }

    #[test]
    fn without_a_new_round_only_others_are_noted() {
        let (root, mut mmu) = machine();
        mmu.note_touched(true);
        read(&mut mmu, HERE);
        assert_eq!(mmu.take_touched(false).pages.len(), 1);
        read(&mut mmu, HERE);
        read(&mut mmu, THERE);
        assert_eq!(letters(&mmu.take_touched(false), root), [(0x30_0000, "r".to_owned())]);
    }

    #[test]
    fn nothing_is_noted_when_it_is_off() {
        let (_, mut mmu) = machine();
        read(&mut mmu, HERE);
        assert!(mmu.write_fast(Gva(HERE), 1u8) || mmu.write(BY, Space::Kernel, Gva(HERE), 1u8).is_ok());
        assert_eq!(mmu.read_fast::<u8>(Gva(HERE)), Some(1), "a write's entry lets reads pass");
        mmu.note_touched(true);
        read(&mut mmu, HERE);
        mmu.note_touched(false);
        assert!(mmu.take_touched(true).pages.is_empty());
        mmu.write(BY, Space::Kernel, Gva(HERE), 1u8).expect("writable");
        assert_eq!(mmu.read_fast::<u8>(Gva(HERE)), Some(1));
    }

    #[test]
    fn there_is_an_end_to_what_is_kept() {
        let mut touched = Touched::default();
        let seen = |n: u64| Seen { root: Gpa(0), page: Gpa(n << 12) };
        (0..5).for_each(|n| touched.note(seen(n), Interest::only(Want::Read), 3));
        touched.note(seen(1), Interest::only(Want::Write), 3);
        assert_eq!((touched.pages.len(), touched.lost), (3, 2));
        assert_eq!(touched.pages[&seen(1)], Interest { read: true, write: true, fetch: false });
    }
}
