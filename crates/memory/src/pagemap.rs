//! Host virtual to host physical addresses, by `/proc/self/pagemap`.
//!
//! Each entry is 64 bits: bit 63 says present in RAM, bit 62 swapped, bits 0–54 are the frame number. Without
//! `CAP_SYS_ADMIN` the kernel shows frame number 0 (Documentation/admin-guide/mm/pagemap.rst).

use crate::{Hpa, Hva};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

/// What the kernel says about a host page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPage {
    /// It is in RAM at this address.
    Present(Hpa),
    /// It is in RAM, but the kernel hides where from this process.
    Hidden,
    /// It is not in RAM now: never touched, or swapped out.
    Absent,
}

/// An open `/proc/self/pagemap`.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
}

impl Pagemap {
    /// That of this process. It is opened once, so that a later sandbox or change of root does not matter. `None`: it cannot
    /// be opened (no `/proc`).
    #[must_use]
    pub fn of_this_process() -> Option<Arc<Self>> {
        static PAGEMAP: OnceLock<Option<Arc<Pagemap>>> = OnceLock::new();
        let open = || Some(Arc::new(Self { file: File::open("/proc/self/pagemap").ok()? }));
        PAGEMAP.get_or_init(open).clone()
    }

    /// What the kernel says about the page of `hva`.
    ///
    /// # Errors
    /// The entry cannot be read (not a user address).
    pub fn page(&self, hva: Hva) -> io::Result<HostPage> {
        let mut entry = [0; 8];
        self.file.read_exact_at(&mut entry, (hva.0 >> x86::PAGE_SHIFT) * 8)?;
        let entry = u64::from_le_bytes(entry);
        let frame = entry & ((1 << 55) - 1);
        Ok(match (entry >> 63 != 0, frame) {
            (false, _) => HostPage::Absent,
            (true, 0) => HostPage::Hidden,
            (true, frame) => HostPage::Present(Hpa(frame << x86::PAGE_SHIFT | hva.offset())),
        })
    }

    /// The host physical address, where it is known.
    #[must_use]
    pub fn hpa(&self, hva: Hva) -> Option<Hpa> {
        match self.page(hva) {
            Ok(HostPage::Present(hpa)) => Some(hpa),
            _ => None,
        }
    }

    /// Whether the kernel hides frame numbers from this process (`CAP_SYS_ADMIN` is missing).
    #[must_use]
    pub fn hidden(&self) -> bool {
        let here = 0u8;
        // A page of the stack is present whenever the code that asks runs on it.
        let hva = Hva((&raw const here).addr() as u64);
        !matches!(self.page(hva), Ok(HostPage::Present(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_present_from_absent() {
        let pagemap = Pagemap::of_this_process().expect("pagemap");
        let ram = crate::ram::GuestRam::new(1 << 20).expect("ram");
        let hva = ram.regions()[0].hva;
        assert_eq!(pagemap.page(hva).expect("entry"), HostPage::Absent);
        assert_eq!(pagemap.hpa(hva), None);
        // SAFETY: the page is guest RAM that only this test uses.
        unsafe { crate::hostmem::write_bytes(hva.0, b"x") };
        let page = pagemap.page(hva.wrapping_add(0x123)).expect("entry");
        match page {
            HostPage::Present(hpa) => assert_eq!((hpa.offset(), pagemap.hidden()), (0x123, false)),
            other => assert_eq!((other, pagemap.hidden()), (HostPage::Hidden, true)),
        }
    }

    #[test]
    fn an_impossible_address_is_an_error() {
        assert!(Pagemap::of_this_process().expect("pagemap").page(Hva(u64::MAX)).is_err());
    }
}
