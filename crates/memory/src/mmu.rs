//! A vCPU's MMU: softmmu TLBs in front of the page walker and the physical map.

use crate::observe::Observer;
use crate::{Gva, Hva, PhysicalMap, Scalar};
use std::sync::Arc;
use x86::{Cr0, Cr4, Efer, PageFaultCode};

/// On whose behalf an access is made: goes into every access record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Which vCPU.
    pub cpu: u32,
    /// RIP of the instruction.
    pub rip: u64,
}

/// With whose rights an access is made. Each has its own comparators, so that changing between them flushes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Space {
    /// Supervisor, SMAP in force where CR4 enables it. Also every implicit supervisor access.
    Kernel = 0,
    /// Supervisor with RFLAGS.AC set: SMAP does not apply.
    KernelAc = 1,
    /// User mode.
    User = 2,
}

/// Why an access was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryFault {
    /// #PF.
    Page {
        /// The address that goes to CR2.
        gva: Gva,
        /// The error code.
        code: PageFaultCode,
    },
    /// The address is not canonical: #GP(0), or #SS(0) for a stack access.
    NonCanonical,
}

/// The registers that decide how addresses are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagingRegisters {
    /// CR0: PG, WP.
    pub cr0: Cr0,
    /// CR3 as written by the guest, without bit 63; with CR4.PCIDE its low 12 bits are the PCID.
    pub cr3: u64,
    /// CR4: PSE, PAE, PGE, LA57, PCIDE, SMEP, SMAP, PKE, PKS.
    pub cr4: Cr4,
    /// EFER: LMA, NXE.
    pub efer: Efer,
    /// PKRU.
    pub pkru: u32,
    /// PKRS.
    pub pkrs: u32,
}

/// Where instruction bytes are fetched from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchPage {
    /// RAM or ROM: the host address of the page's first byte identifies the code whatever its virtual address.
    Memory(Hva),
    /// The page is not plain memory, or an observer wants to see its fetches: read bytes with [`Mmu::fetch_bytes`], one instruction at a time, and cache nothing.
    Uncached,
}

/// A run of host memory within one guest page that may be read, or read and written, at once.
#[derive(Clone, Copy, Debug)]
pub struct HostRun {
    hva: Hva,
    len: usize,
}

/// What INVPCID does (APM vol. 3, INVPCID).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named as in the manual's table")]
pub enum Invpcid {
    Address { pcid: u16, gva: Gva },
    SingleContext { pcid: u16 },
    AllContextsGlobal,
    AllContexts,
}

/// A vCPU's MMU.
#[repr(C)]
#[derive(Debug)]
pub struct Mmu {
    map: Arc<PhysicalMap>,
}

#[expect(unused_variables, clippy::unimplemented, clippy::missing_errors_doc, missing_docs)]
impl Mmu {
    pub fn new(map: Arc<PhysicalMap>, cpu: usize) -> Self {
        unimplemented!()
    }
    /// Physical memory behind this MMU.
    pub fn map(&self) -> &Arc<PhysicalMap> {
        &self.map
    }
    pub fn set_observer(&mut self, observer: Option<Arc<dyn Observer>>) {}
    /// Takes new CR0/CR4/EFER/PKRU/PKRS values and flushes what the architecture says they flush. Not for CR3 writes.
    pub fn set_registers(&mut self, registers: PagingRegisters) {}
    pub fn registers(&self) -> &PagingRegisters {
        unimplemented!()
    }
    /// MOV CR3 (64-bit and legacy paging; PAE PDPTEs are loaded and checked here). `keep` is bit 63 of the value with PCIDE.
    /// Errors: a reserved bit in a PAE PDPTE, which is #GP(0).
    pub fn load_cr3(&mut self, cr3: u64, keep: bool) -> Result<(), ()> {
        unimplemented!()
    }
    pub fn set_space(&mut self, space: Space) {}
    /// Implemented virtual-address bits in the current paging mode: 48, or 57 with LA57.
    pub fn virtual_bits(&self) -> u32 {
        unimplemented!()
    }
    pub fn space(&self) -> Space {
        unimplemented!()
    }
    pub fn invlpg(&mut self, gva: Gva) {}
    pub fn invpcid(&mut self, what: Invpcid) {}
    pub fn flush_all(&mut self) {}

    // --- the fast path: a TLB hit on plain memory within one page, in the current space
    #[inline(always)]
    pub fn read_fast<T: Scalar>(&self, gva: Gva) -> Option<T> {
        None
    }
    /// False: not done, take the slow path.
    #[inline(always)]
    pub fn write_fast<T: Scalar>(&self, gva: Gva, value: T) -> bool {
        false
    }
    /// Host page of `gva`'s page if the exec comparator hits.
    #[inline(always)]
    pub fn fetch_fast(&self, gva: Gva) -> Option<Hva> {
        None
    }

    // --- the complete path: hit or miss, MMIO, ROM, page-crossing, code pages, observers
    #[cold]
    pub fn read<T: Scalar>(&mut self, origin: Origin, space: Space, gva: Gva) -> Result<T, MemoryFault> {
        unimplemented!()
    }
    /// A page-crossing write checks both pages before it changes either.
    #[cold]
    pub fn write<T: Scalar>(&mut self, origin: Origin, space: Space, gva: Gva, value: T) -> Result<(), MemoryFault> {
        unimplemented!()
    }
    /// Read-modify-write, current space. Write permission is checked first. `f` is pure: given the old value it returns the new one and a result
    /// (flags, …); with `locked` it is a host atomic compare-exchange loop on the HVA and `f` may be called again.
    /// Fast path inside (inlined), slow path out of line.
    #[inline(always)]
    pub fn update<T: Scalar, R>(&mut self, origin: Origin, gva: Gva, locked: bool, f: impl FnMut(T) -> (T, R)) -> Result<R, MemoryFault> {
        unimplemented!()
    }
    /// Reads `bytes.len()` (up to 4096) bytes: vector operands, XSAVE areas. Any alignment, may cross pages.
    pub fn read_bytes(&mut self, origin: Origin, space: Space, gva: Gva, bytes: &mut [u8]) -> Result<(), MemoryFault> {
        unimplemented!()
    }
    /// Writes bytes; all pages are checked before the first byte changes.
    pub fn write_bytes(&mut self, origin: Origin, space: Space, gva: Gva, bytes: &[u8]) -> Result<(), MemoryFault> {
        unimplemented!()
    }
    /// Checks that `len` bytes may be written (or read) now, with all side effects of the walk but no data access.
    pub fn probe(&mut self, space: Space, gva: Gva, len: u64, write: bool) -> Result<(), MemoryFault> {
        unimplemented!()
    }
    /// Translates for an instruction fetch in the current space.
    pub fn fetch_page(&mut self, origin: Origin, gva: Gva) -> Result<FetchPage, MemoryFault> {
        unimplemented!()
    }
    /// Reads up to 15 instruction bytes at `gva`, as many as can be had before the end of the page; further pages are up to the caller.
    /// The observer sees nothing from this; the CPU reports the fetch by [`Mmu::observe_fetch`] once it knows the length.
    pub fn fetch_bytes(&mut self, origin: Origin, gva: Gva, bytes: &mut [u8]) -> Result<usize, MemoryFault> {
        unimplemented!()
    }
    /// Reports an executed instruction's bytes to the observer, if its page is watched for fetches.
    pub fn observe_fetch(&mut self, origin: Origin, gva: Gva, bytes: &[u8]) {}

    /// The plain memory from `gva` to the end of its page, for string instructions: `None` when the access must go element by element
    /// (MMIO, ROM writes, code page when writing, watched). Current space.
    pub fn run(&mut self, gva: Gva, write: bool) -> Result<Option<HostRun>, MemoryFault> {
        unimplemented!()
    }

    // --- code pages
    /// Marks the chunks of `len` bytes at host address `hva` as holding decoded code: later writes there go the slow path and are noted.
    pub fn protect_code(&mut self, hva: Hva, len: u64) {}
    /// Whether a write has touched decoded code since the last [`Mmu::take_modified_code`].
    #[inline(always)]
    pub fn code_modified(&self) -> bool {
        false
    }
    /// The host pages in which decoded code was overwritten.
    pub fn take_modified_code(&mut self) -> Vec<Hva> {
        Vec::new()
    }

    /// Translates without side effects on TLB or guest memory, as a debugger would (no permission checks). `None`: not mapped.
    pub fn translate(&self, gva: Gva) -> Option<crate::Gpa> {
        unimplemented!()
    }
}

#[expect(unused_variables, clippy::unimplemented)]
impl HostRun {
    /// Bytes in the run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether the run is empty (it never is).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Copies `n` bytes to the start of `to`, ascending byte order with the overlap semantics of `rep movsb` (so overlapping forward copies replicate).
    pub fn copy_to(&self, to: &HostRun, n: usize) {
        unimplemented!()
    }
    /// Fills `n` elements.
    pub fn fill<T: Scalar>(&self, value: T, n: usize) {
        unimplemented!()
    }
}
