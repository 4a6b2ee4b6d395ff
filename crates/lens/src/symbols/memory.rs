//! Memory of a Linux kernel without its page tables: those of a program may not map the kernel.
//!
//! The kernel's image is in one piece of physical memory, and what it allocates for itself is in its map of all memory,
//! which is at `page_offset_base`. Left out: what it maps page by page (`vmalloc`), such as modules.

use super::Table;
use memory::{Gpa, Gva, PhysicalMap};

/// Where kernels' images are mapped.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// Where all of memory is mapped, if the kernel does not say (without `CONFIG_DYNAMIC_MEMORY_LAYOUT`).
const DIRECT: u64 = 0xffff_8880_0000_0000;

/// Where a kernel has what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// The address of a byte of its image, and where that is in physical memory.
    image: (Gva, Gpa),
    /// The variable that says where all of memory is mapped.
    direct: Option<Gva>,
}

impl Places {
    /// Those of the kernel with these symbols, the byte at `entry` of whose image is at `gpa`.
    pub fn of(symbols: &Table, entry: Gva, gpa: Gpa) -> Self {
        Self { image: (entry, gpa), direct: symbols.find("page_offset_base") }
    }

    /// Memory as the kernel has it now.
    pub fn look<'a>(&self, map: &'a PhysicalMap) -> Memory<'a> {
        let memory = Memory { map, image: self.image, direct: DIRECT };
        let direct = self.direct.and_then(|gva| memory.word(gva)).unwrap_or(DIRECT);
        Memory { direct, ..memory }
    }
}

/// Memory of a kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory<'a> {
    map: &'a PhysicalMap,
    image: (Gva, Gpa),
    /// Where all of memory is mapped.
    direct: u64,
}

impl Memory<'_> {
    /// The physical address of what the kernel has at `gva`.
    pub fn physical(&self, gva: Gva) -> Option<Gpa> {
        let (from, to) = self.image;
        let in_image = gva.0 >= IMAGE;
        if in_image {
            Some(to.wrapping_add(gva.0.wrapping_sub(from.0)))
        } else {
            gva.0.checked_sub(self.direct).map(Gpa)
        }
    }

    /// Reads bytes, if they are in memory.
    pub fn read(&self, gva: Gva, bytes: &mut [u8]) -> Option<()> {
        self.map.read(self.physical(gva)?, bytes).ok()
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
