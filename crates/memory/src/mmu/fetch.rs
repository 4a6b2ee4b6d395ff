//! Instruction fetches.

use super::{FetchPage, MemoryFault, Mmu, Origin};
use crate::Gva;
use crate::Space;
use crate::map::Page;
use crate::observe::AccessKind;
use crate::tlb::WATCH;
use crate::walk::Want;

impl Mmu {
    /// A number that names what [`Mmu::rely_on_fetch`] has promised and still holds for the current PCID and
    /// privilege: as long as it is the same, every page that was relied on while it was current would be fetched from
    /// the same host page. No two such sets ever have the same number, and a guest cannot guess it.
    #[inline(always)]
    #[must_use]
    pub fn fetch_stamp(&self) -> u64 {
        self.stamp
    }

    /// What [`Mmu::fetch_stamp`] would be now for a supervisor, and for a program.
    #[inline]
    #[must_use]
    pub fn fetch_stamps(&self) -> [u64; 2] {
        [Space::Kernel, Space::User].map(|space| self.tlb.stamp(space))
    }

    /// Lets the caller rely on the translation of the page of `gva`, which it has just fetched from in the current
    /// space, as long as [`Mmu::fetch_stamp`] is what it is now, which is returned. `None`: there is no such
    /// translation, or each fetch has to be made (not plain memory, or an observer wants to see it).
    #[must_use]
    pub fn rely_on_fetch(&mut self, gva: Gva) -> Option<u64> {
        let page = self.paging.linear(gva).page();
        let stamp = self.tlb.rely(self.effective(self.space), page);
        self.renew();
        stamp
    }

    /// Translates for an instruction fetch in the current space.
    ///
    /// # Errors
    /// The fault that the fetch raises.
    pub fn fetch_page(&mut self, origin: Origin, gva: Gva) -> Result<FetchPage, MemoryFault> {
        let hit = self.lookup(origin, self.space, gva, Want::Execute)?;
        Ok(match hit.memory {
            Page::Ram(hva) | Page::Rom(hva) if hit.flags == 0 => FetchPage::Memory(hva),
            _ => FetchPage::Uncached,
        })
    }

    /// Reads instruction bytes at `gva`, as many as can be had before the end of the page; further pages are up to the
    /// caller. The observer sees nothing from this; the CPU reports the fetch by
    /// [`Mmu::observe_fetch`] once it knows the length.
    ///
    /// # Errors
    /// The fault that the fetch raises.
    pub fn fetch_bytes(&mut self, origin: Origin, gva: Gva, bytes: &mut [u8]) -> Result<usize, MemoryFault> {
        let hit = self.lookup(origin, self.space, gva, Want::Execute)?;
        let n = bytes.len().min((x86::PAGE_SIZE - gva.offset()) as usize);
        if let Some(bytes) = bytes.get_mut(..n) {
            self.read_piece(&hit, bytes);
        }
        Ok(n)
    }

    /// Reports an executed instruction's bytes to the observer, if its page is watched for fetches.
    pub fn observe_fetch(&mut self, origin: Origin, gva: Gva, bytes: &[u8]) {
        if self.observer.is_none() {
            return;
        }
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let at = gva.wrapping_add(done as u64);
            let n = rest.len().min((x86::PAGE_SIZE - at.offset()) as usize);
            // The instruction was fetched from here just now, so that this rarely walks and hardly ever faults.
            if let (Ok(hit), Some(piece)) = (self.lookup(origin, self.space, at, Want::Execute), rest.get(..n))
                && hit.flags & WATCH != 0
            {
                self.report(AccessKind::Fetch, origin, &hit, piece);
            }
            done += n;
        }
    }
}
