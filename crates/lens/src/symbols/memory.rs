//! Memory of a Linux kernel without its page tables: those of a program may not map the kernel.
//!
//! The kernel's image is in one piece of physical memory, and what it allocates for itself is in its map of all memory,
//! which is at `page_offset_base`. Modules are mapped page by page: there its own page tables are walked, which are part of the
//! image. Left out: what else it maps so (`vmalloc`).

use super::Table;
use memory::{Gpa, Gva, PhysicalMap};
use x86::PAGE_SIZE;
use x86::paging::TABLE_ADDRESS;

/// Where kernels' images are mapped, up to where modules are.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// Where modules are mapped.
pub(super) const MODULES: u64 = 0xffff_ffff_c000_0000;
/// In an entry of a page table: it is there, and it maps a large page.
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Where all of memory is mapped, if the kernel does not say (without `CONFIG_DYNAMIC_MEMORY_LAYOUT`).
const DIRECT: u64 = 0xffff_8880_0000_0000;

/// Where a kernel has what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// The address of a byte of its image, and where that is in physical memory.
    image: (Gva, Gpa),
    /// The variable that says where all of memory is mapped.
    direct: Option<Gva>,
    /// The kernel's own top page table.
    tables: Option<Gva>,
    /// The variable that says whether there are five levels of them.
    five: Option<Gva>,
}

impl Places {
    /// Those of the kernel with these symbols, the byte at `entry` of whose image is at `gpa`.
    pub fn of(symbols: &Table, entry: Gva, gpa: Gpa) -> Self {
        let tables = symbols.find("init_top_pgt");
        let five = symbols.find("__pgtable_l5_enabled");
        Self { image: (entry, gpa), direct: symbols.find("page_offset_base"), tables, five }
    }

    /// Memory as the kernel has it now.
    pub fn look<'a>(&self, map: &'a PhysicalMap) -> Memory<'a> {
        let memory = Memory { map, image: self.image, direct: DIRECT, tables: None };
        let direct = self.direct.and_then(|gva| memory.word(gva)).unwrap_or(DIRECT);
        let five = self.five.and_then(|gva| memory.bytes(gva)).is_some_and(|value| u32::from_le_bytes(value) != 0);
        let tables = self.tables.and_then(|gva| Some((memory.physical(gva)?, if five { 48 } else { 39 })));
        Memory { direct, tables, ..memory }
    }
}

/// Memory of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory<'a> {
    map: &'a PhysicalMap,
    image: (Gva, Gpa),
    /// Where all of memory is mapped.
    direct: u64,
    /// The kernel's own top page table, and the number of the lowest bit of an address that chooses among its entries.
    tables: Option<(Gpa, u32)>,
}

impl Memory<'_> {
    /// The physical address of what the kernel has at `gva`.
    pub fn physical(&self, gva: Gva) -> Option<Gpa> {
        let (from, to) = self.image;
        match gva.0 {
            MODULES.. => self.walk(gva),
            IMAGE.. => Some(to.wrapping_add(gva.0.wrapping_sub(from.0))),
            _ => gva.0.checked_sub(self.direct).map(Gpa),
        }
    }

    /// What the kernel's own page tables map `gva` to.
    fn walk(&self, gva: Gva) -> Option<Gpa> {
        let (mut table, top) = self.tables?;
        for shift in [48, 39, 30, 21, 12].into_iter().filter(|shift| *shift <= top) {
            let mut entry = [0; 8];
            self.map.read(table.wrapping_add((gva.0 >> shift & 0x1ff) * 8), &mut entry).ok()?;
            let entry = Some(u64::from_le_bytes(entry)).filter(|entry| entry & PRESENT != 0)?;
            table = Gpa(entry & TABLE_ADDRESS);
            let offset = (1 << shift) - 1;
            if shift == 12 || shift < 39 && entry & LARGE != 0 {
                return Some(Gpa(table.0 & !offset | gva.0 & offset));
            }
        }
        None
    }

    /// Reads bytes, if they are in memory.
    pub fn read(&self, gva: Gva, bytes: &mut [u8]) -> Option<()> {
        (self.read_some(gva, bytes) == bytes.len()).then_some(())
    }

    /// Reads bytes as far as they are in memory, and says how many.
    pub fn read_some(&self, gva: Gva, bytes: &mut [u8]) -> usize {
        if gva.0 < MODULES {
            let read = self.physical(gva).map(|gpa| self.map.read(gpa, bytes));
            return if read.is_some_and(|read| read.is_ok()) { bytes.len() } else { 0 };
        }
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = gva.wrapping_add(done as u64);
            let count = rest.len().min((PAGE_SIZE - at.offset()) as usize);
            let piece = rest.get_mut(..count).unwrap_or_default();
            if self.physical(at).is_none_or(|gpa| self.map.read(gpa, piece).is_err()) {
                break;
            }
            done += count;
        }
        done
    }

    /// So many bytes.
    pub fn bytes<const N: usize>(&self, gva: Gva) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read(gva, &mut bytes)?;
        Some(bytes)
    }

    /// Eight bytes as a number.
    pub fn word(&self, gva: Gva) -> Option<u64> {
        self.bytes(gva).map(u64::from_le_bytes)
    }
}
