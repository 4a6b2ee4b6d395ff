//! Guest RAM: one memfd, mapped as one region below the hole at 3–4 GiB and one above it.
//!
//! Pages come on demand: neither the memfd nor its mappings reserve anything, so RAM may be larger than the host's.
//!
//! The mappings live until the process ends. What a machine leaves behind when it is dropped is address space, not
//! memory: the pages are given back. In return an [`Hva`] of guest memory never dangles, and code that holds one (a
//! TLB entry, a [`HostRun`](crate::mmu::HostRun), a decoded block) needs no lifetime and no reference count.
//!
//! Left out: huge pages. `madvise` for them costs resident memory that the guest never asked for, and the usual
//! host setting for shared memory (`shmem_enabled` = `never`) ignores it. With private memory that has them, loops over
//! many pages were a tenth faster, but a compiler and shell scripts took 5 to 15 % longer: the first touch of each 2 MiB
//! clears all of it.

use crate::{Gpa, Hva};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap};
use std::fs::File;
use std::sync::Arc;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Where the hole for devices below 4 GiB begins: RAM that does not fit below it continues at [`HOLE_END`].
pub const HOLE_START: u64 = 0xc000_0000;
/// Where the hole for devices ends.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// Why guest RAM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The size is zero or not a whole number of pages.
    #[error("guest RAM of {0} bytes: the size must be a multiple of 4096 and not zero")]
    Size(u64),
    /// The size is more than this process can address.
    #[error("guest RAM of {0} bytes is more than this process can address")]
    TooLarge(u64),
    /// The host refused the memory file or its mapping.
    #[error("cannot get {size} bytes of guest RAM from the host")]
    Host {
        /// How much was asked for.
        size: u64,
        /// The host's answer.
        source: std::io::Error,
    },
    /// vm-memory refused the regions.
    #[error("cannot map guest RAM: {0}")]
    Regions(String),
}

/// A piece of guest RAM that is contiguous in guest physical and host virtual addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRegion {
    /// First guest physical address.
    pub gpa: Gpa,
    /// Size in bytes, a multiple of 4096.
    pub len: u64,
    /// Host address of the first byte.
    pub hva: Hva,
}

/// All of a machine's RAM.
#[derive(Debug)]
pub struct GuestRam {
    regions: Vec<RamRegion>,
    memory: GuestMemoryMmap,
}

impl GuestRam {
    /// RAM of `size` bytes.
    ///
    /// # Errors
    /// A size that is not a positive multiple of 4096 or too large for the process, and what the host refuses.
    pub fn new(size: u64) -> Result<Self, RamError> {
        if size == 0 || size & x86::PAGE_OFFSET != 0 {
            return Err(RamError::Size(size));
        }
        // Half of the user part of a 48-bit address space: beyond it mmap could not succeed.
        if size > 1 << 46 {
            return Err(RamError::TooLarge(size));
        }
        let host = |source: rustix::io::Errno| RamError::Host { size, source: source.into() };
        let fd = memfd_create("guest-ram", MemfdFlags::CLOEXEC).map_err(host)?;
        ftruncate(&fd, size).map_err(host)?;
        let file = Arc::new(File::from(fd));

        let low = size.min(HOLE_START);
        let mut regions = Vec::new();
        let mut mapped = Vec::new();
        for (gpa, offset, len) in [(0, 0, low), (HOLE_END, low, size - low)] {
            if len == 0 {
                continue;
            }
            let bytes = usize::try_from(len).map_err(|_| RamError::TooLarge(size))?;
            let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
            // SAFETY: a new mapping at an address of the kernel's choice touches no existing object.
            let pointer = unsafe { mmap(std::ptr::null_mut(), bytes, prot, flags, &*file, offset) }.map_err(host)?;
            let builder = MmapRegionBuilder::<()>::new(bytes)
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .with_file_offset(FileOffset::from_arc(Arc::clone(&file), offset));
            // SAFETY: the pointer and length are those of the mapping just made, which is never unmapped.
            let region = unsafe { builder.with_raw_mmap_pointer(pointer.cast()) }.build();
            let region = region.map_err(|e| RamError::Regions(e.to_string()))?;
            let region = GuestRegionMmap::new(region, GuestAddress(gpa));
            mapped.push(region.ok_or_else(|| RamError::Regions("the last region wraps".into()))?);
            regions.push(RamRegion { gpa: Gpa(gpa), len, hva: Hva(pointer.expose_provenance() as u64) });
        }
        let memory = GuestMemoryMmap::from_regions(mapped).map_err(|e| RamError::Regions(e.to_string()))?;
        Ok(Self { regions, memory })
    }

    /// The pieces, in ascending order of their guest physical addresses.
    #[must_use]
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// Total size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.regions.iter().map(|region| region.len).sum()
    }

    /// The same memory as rust-vmm's crates take it. Writes through it are not seen by [`crate::code::CodePages`]:
    /// it is for loading before the machine runs.
    #[must_use]
    pub fn vm_memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        for region in &self.regions {
            let pointer = std::ptr::with_exposed_provenance_mut(region.hva.0 as usize);
            // SAFETY: the range is a mapping of ours that nobody else frees; later reads of it give zeros. Failure
            // would leave the pages allocated, which harms nothing but the host's memory.
            let _ = unsafe { madvise(pointer, region.len as usize, Advice::LinuxRemove) };
        }
    }
}

/// Zero-filled private memory that comes on demand and is never unmapped (ROM images; see the module).
///
/// # Errors
/// What the host refuses.
pub(crate) fn map_forever(len: u64) -> Result<Hva, RamError> {
    let host = |source: rustix::io::Errno| RamError::Host { size: len, source: source.into() };
    let bytes = usize::try_from(len).map_err(|_| RamError::TooLarge(len))?;
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing object.
    let pointer = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, prot, flags) }.map_err(host)?;
    Ok(Hva(pointer.expose_provenance() as u64))
}
