//! An address space to look at: page tables and physical memory, without rights, TLB or side effects.
//!
//! It is what a vCPU's registers said at one instant. Memory is the guest's own and goes on changing if that runs.

use crate::map::Page;
use crate::mmu::MapTables;
use crate::walk::spans::{Alike, ReadTable, Spans};
use crate::walk::{Inspection, Paging};
use crate::{Gpa, Gva, PhysicalMap};
use std::sync::Arc;

/// A virtual address space, with the physical one behind it.
#[derive(Clone, Debug)]
pub struct AddressSpace {
    map: Arc<PhysicalMap>,
    paging: Paging,
}

impl AddressSpace {
    pub(crate) fn new(map: Arc<PhysicalMap>, paging: Paging) -> Self {
        Self { map, paging }
    }

    /// The physical address space.
    #[must_use]
    pub fn map(&self) -> &Arc<PhysicalMap> {
        &self.map
    }

    /// The registers and their rules.
    #[must_use]
    pub fn paging(&self) -> &Paging {
        &self.paging
    }

    /// The physical address that a vCPU reaches at `gva`, if there is one.
    #[must_use]
    pub fn translate(&self, gva: Gva) -> Option<Gpa> {
        self.inspect(gva).translation.map(|translation| self.map.gated(translation.gpa.0))
    }

    /// Every table entry that translates `gva`.
    #[must_use]
    pub fn inspect(&self, gva: Gva) -> Inspection {
        self.paging.inspect(&mut MapTables::silent(&self.map), gva)
    }

    /// What is mapped from `first` to `last`, as [`Paging::spans`] finds it.
    #[must_use]
    pub fn spans(&self, alike: Alike, first: Gva, last: Gva, most: usize) -> Spans {
        self.paging.spans(&*self.map, alike, first, last, most)
    }

    /// Reads RAM and ROM at `gva`; never a device.
    ///
    /// # Errors
    /// The first address that is not mapped or not memory; the bytes before it have been read.
    pub fn read(&self, gva: Gva, bytes: &mut [u8]) -> Result<(), Gva> {
        self.by_page(gva, bytes.len(), |gpa, range| {
            bytes.get_mut(range).is_some_and(|piece| self.map.read(gpa, piece).is_ok())
        })
    }

    /// Writes RAM at `gva`, whatever its rights; never a device. Decoded code that is hit is invalidated.
    ///
    /// # Errors
    /// The first address that is not mapped or not RAM; what lies before its page has been written.
    pub fn write(&self, gva: Gva, bytes: &[u8]) -> Result<(), Gva> {
        self.by_page(gva, bytes.len(), |gpa, range| {
            bytes.get(range).is_some_and(|piece| self.map.write(gpa, piece).is_ok())
        })
    }

    fn by_page(
        &self,
        gva: Gva,
        len: usize,
        mut each: impl FnMut(Gpa, std::ops::Range<usize>) -> bool,
    ) -> Result<(), Gva> {
        let mut done = 0;
        while done < len {
            let at = gva.wrapping_add(done as u64);
            let left = usize::try_from(x86::PAGE_SIZE - at.offset()).unwrap_or(1);
            let end = len.min(done + left);
            let gpa = self.translate(at).ok_or(at)?;
            if !each(gpa, done..end) {
                return Err(at);
            }
            done = end;
        }
        Ok(())
    }
}

impl ReadTable for &PhysicalMap {
    fn read_table(&mut self, gpa: Gpa, page: &mut [u8; 4096]) {
        let gpa = self.gated(gpa.0);
        // As the walker sees it: tables that are not in memory read as all ones.
        if matches!(self.page(gpa), Page::Io) || self.read(gpa.page(), page).is_err() {
            page.fill(0xff);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{A, DEVICE, P, ROM, U, W, map, poke};
    use crate::{Mmu, mmu::PagingRegisters};
    use x86::{Cr0, Cr4, Efer};

    const TABLE: u64 = 0x10_0000;

    /// A space whose first pages are RAM, ROM, a device and nothing.
    fn space() -> AddressSpace {
        let (map, _) = map();
        for (level, next) in [(0, 0x1000), (0x1000, 0x2000), (0x2000, 0x3000)] {
            poke(&map, TABLE + level, (TABLE + next) | P | W | U | A);
        }
        for (i, page) in [0x5000, ROM.0, DEVICE.0].into_iter().enumerate() {
            poke(&map, TABLE + 0x3000 + 8 * i as u64, page | P | W);
        }
        let mut mmu = Mmu::new(map, 0);
        mmu.set_registers(PagingRegisters {
            cr0: Cr0::new().with_protection(true).with_paging(true),
            cr3: TABLE,
            cr4: Cr4::new().with_physical_address_extension(true),
            efer: Efer::new().with_long_mode_active(true),
            ..PagingRegisters::default()
        });
        mmu.address_space()
    }

    #[test]
    fn bytes_are_read_and_written_across_pages() {
        let space = space();
        let mut bytes = [0; 6];
        assert_eq!(space.write(Gva(0xffc), &[1, 2, 3, 4]), Ok(()));
        assert_eq!(space.read(Gva(0xffc), &mut bytes), Ok(()));
        assert_eq!(bytes, [1, 2, 3, 4, 0x5a, 0x5a]);
        assert_eq!(space.translate(Gva(0x123)), Some(Gpa(0x5123)));
    }

    #[test]
    fn what_is_no_memory_is_named() {
        let space = space();
        let mut bytes = [0; 32];
        assert_eq!(space.read(Gva(0x1ff0), &mut bytes), Err(Gva(0x2000)), "a device");
        assert_eq!(space.read(Gva(0x3000), &mut bytes), Err(Gva(0x3000)), "not mapped");
        assert_eq!(space.read(Gva(0x8000_0000_0000), &mut bytes), Err(Gva(0x8000_0000_0000)), "not canonical");
        assert_eq!(space.write(Gva(0xfff), &[1, 2]), Err(Gva(0x1000)), "ROM");
        assert_eq!(space.read(Gva(u64::MAX), &mut bytes), Err(Gva(u64::MAX)));
    }
}
