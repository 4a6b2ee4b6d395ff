//! A vCPU's MMU: softmmu TLBs in front of the page walker and the physical map.
//!
//! The fast path is here: one index, one compare, one load or store. Everything that it cannot do (misses, page
//! crossings, MMIO, ROM, code pages, watched pages) is in `slow`; instruction fetches in `fetch`; what the
//! control registers and the invalidating instructions do to the TLB in `control`; runs for string instructions
//! in `run`.
//!
//! Left out: memory types (all memory is coherent and ordered as the host's), and the wrap of a page-crossing
//! access at 4 GiB in compatibility mode (it continues above; outside long mode it wraps).

use crate::code::{News, Notices};
use crate::hostmem;
use crate::observe::{Batch, Observer, Record};
use crate::space::AddressSpace;
use crate::tally::{Share, Tally};
use crate::tlb::{Cached, Entry, Stats, Tlb, View};
use crate::touched::Touched;
use crate::walk::{Inspection, Mode, Paging};
use crate::{Gpa, Gva, Hva, PhysicalMap, Scalar};
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use x86::{Cr0, Cr4, Efer, PAGE_OFFSET, PageFaultCode};

mod control;
mod fetch;
mod run;
mod slow;

pub use run::HostRun;
pub(crate) use slow::MapTables;

/// Physical-address width until [`Mmu::set_physical_bits`] says otherwise.
const PHYSICAL_BITS: u32 = 40;

/// On whose behalf an access is made: goes into every access record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// Which vCPU.
    pub cpu: u32,
    /// Its current privilege level, which for an implicit access is not the one that rights are checked with.
    pub cpl: u8,
    /// The access is to a descriptor table or the TSS.
    pub descriptor: bool,
    /// RIP of the instruction.
    pub rip: u64,
    /// Instructions that the vCPU had executed, as far as they have been counted: the interpreter counts at the end of
    /// straight-line code, translated code only where it is asked to.
    pub instructions: u64,
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
    /// None of the guest's: the page is trapped ([`Mmu::set_trapped`]).
    Trapped,
}

/// The registers that decide how addresses are translated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagingRegisters {
    /// CR0: PG, WP.
    pub cr0: Cr0,
    /// CR3 as written by the guest, without bit 63; with CR4.PCIDE its low 12 bits are the PCID. LAM_U48, LAM_U57.
    pub cr3: u64,
    /// CR4: PSE, PAE, PGE, LA57, PCIDE, SMEP, SMAP, PKE, PKS, LAM_SUP.
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
    /// The page is not plain memory, or somebody wants to know of its fetches: read bytes with [`Mmu::fetch_bytes`],
    /// one instruction at a time, and cache nothing.
    Uncached,
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
///
/// `repr(C)`: translated code reads the first fields, the current table and the fetch stamp.
#[repr(C)]
pub struct Mmu {
    /// The main table of the current PCID and space. Invariant: it points to entries that `tlb` owns; renewed by
    /// [`Mmu::renew`] after anything that may change which table is current, or its size.
    view: View,
    /// The current [`Mmu::fetch_stamp`], renewed with `view`.
    stamp: u64,
    /// The current space.
    space: Space,
    /// Which vCPU.
    cpu: usize,
    notices: Arc<Notices>,
    map: Arc<PhysicalMap>,
    paging: Paging,
    tlb: Tlb,
    tally: Tally,
    observer: Option<Arc<dyn Observer>>,
    /// It is content with records that translated code makes.
    records: bool,
    /// What was touched, while that is noted.
    touched: Option<Box<Touched>>,
    /// PAE page-directory pointers were loaded, of which the observer was not told.
    pdptes_loaded: bool,
    /// Pages from which each fetch has to be made.
    uncached: BTreeSet<Gva>,
    /// Addresses to whose pages no data access is made while `trapping`.
    trapped: Vec<RangeInclusive<u64>>,
    trapping: bool,
}

// SAFETY: the pointer in `view` is into tables that `tlb` owns; the rest is Send by itself.
unsafe impl Send for Mmu {}

impl Mmu {
    /// Where in an `Mmu` the [`View`] of the current table is: translated code reads it there.
    pub const VIEW: usize = std::mem::offset_of!(Self, view);
    /// Where the current [`Mmu::fetch_stamp`] is.
    pub const FETCH_STAMP: usize = std::mem::offset_of!(Self, stamp);

    /// The MMU of vCPU number `cpu`, with all registers zero: paging off.
    #[must_use]
    pub fn new(map: Arc<PhysicalMap>, cpu: usize) -> Self {
        let tlb = Tlb::new();
        Self {
            view: tlb.view(Space::Kernel),
            stamp: tlb.stamp(Space::Kernel),
            space: Space::Kernel,
            cpu,
            notices: map.code().subscribe(),
            map,
            paging: Paging::new(PHYSICAL_BITS),
            tlb,
            tally: Tally::default(),
            observer: None,
            records: false,
            touched: None,
            pdptes_loaded: false,
            uncached: BTreeSet::new(),
            trapped: Vec::new(),
            trapping: true,
        }
    }

    /// Physical memory behind this MMU.
    #[must_use]
    pub fn map(&self) -> &Arc<PhysicalMap> {
        &self.map
    }

    /// Lets `observer` see accesses from now on; `None` ends it. Flushes, since interest is asked at TLB fills.
    pub fn set_observer(&mut self, observer: Option<Arc<dyn Observer>>) {
        self.observer = observer;
        self.ask_anew();
    }

    /// Asks the observer anew what it wants.
    fn ask_anew(&mut self) {
        self.records = self.observer.as_ref().is_some_and(|observer| observer.records());
        self.flush_all();
    }

    /// Whether translated code is to make records of its accesses: see [`Mmu::recorded`].
    #[inline]
    #[must_use]
    pub fn records(&self) -> bool {
        self.records
    }

    /// Hands the observer records of accesses that were made since the last ones, and before any that it is told of from
    /// now on. `origin`: on whose behalf; its instructions are those counted when a record's budget is 0.
    pub fn recorded(&self, origin: Origin, records: &[Record]) {
        if let Some(observer) = &self.observer {
            observer.recorded(&Batch { origin, cr3: self.paging.registers().cr3, records, map: &self.map });
        }
    }

    /// Tells the observer that system calls of the guest enter at `entry`.
    pub fn system_calls_enter(&mut self, entry: Gva) {
        if let (Some(observer), Some(gpa)) = (&self.observer, self.translate(entry)) {
            observer.system_calls_enter(&self.map, entry, gpa);
            if observer.interest_changed() {
                self.ask_anew();
            }
        }
    }

    /// Has code in these virtual pages, and no others, fetched anew for each instruction ([`FetchPage::Uncached`]), so
    /// that a debugger can be asked before it. Flushes if that is a change.
    pub fn set_uncached(&mut self, pages: BTreeSet<Gva>) {
        if self.uncached != pages {
            self.uncached = pages;
            self.flush_all();
        }
    }

    /// Has data accesses to the pages of these addresses, and no others, end in [`MemoryFault::Trapped`] before anything is
    /// done, so that a debugger can look at the instruction: but those to descriptor tables. Flushes if that is a change.
    pub fn set_trapped(&mut self, trapped: Vec<RangeInclusive<u64>>) {
        if self.trapped != trapped {
            self.trapped = trapped;
            self.flush_all();
        }
    }

    /// Whether they do so now, or are made.
    pub fn set_trapping(&mut self, on: bool) {
        self.trapping = on;
    }

    /// Whether the page of `gva` is trapped.
    fn is_trapped(&self, gva: Gva) -> bool {
        let page = gva.page().0;
        self.trapped.iter().any(|range| *range.start() <= page | PAGE_OFFSET && page <= *range.end())
    }

    /// Has touched pages noted from now on, or no longer. Flushes if that is a change.
    pub fn note_touched(&mut self, on: bool) {
        if self.touched.is_some() != on {
            self.touched = on.then(Box::default);
            self.flush_all();
        }
    }

    /// Whether touched pages are noted.
    #[must_use]
    pub fn notes_touched(&self) -> bool {
        self.touched.is_some()
    }

    /// What has been touched since this was last asked. With `anew` pages that go on being touched are noted again (which
    /// flushes), else only others are.
    pub fn take_touched(&mut self, anew: bool) -> Touched {
        let Some(touched) = &mut self.touched else { return Touched::default() };
        let taken = std::mem::take(&mut **touched);
        if anew {
            self.flush_all();
        }
        taken
    }

    /// The registers last taken.
    #[inline]
    #[must_use]
    pub fn registers(&self) -> &PagingRegisters {
        self.paging.registers()
    }

    /// The paging mode that the registers select.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.paging.mode()
    }

    /// Chooses with whose rights accesses are made from now on. Flushes nothing.
    #[inline]
    pub fn set_space(&mut self, space: Space) {
        self.space = space;
        self.renew();
    }

    /// With whose rights accesses are made.
    #[inline(always)]
    #[must_use]
    pub fn space(&self) -> Space {
        self.space
    }

    /// Implemented virtual-address bits in the current paging mode: 48, or 57 with LA57.
    #[inline]
    #[must_use]
    pub fn virtual_bits(&self) -> u32 {
        self.paging.virtual_bits()
    }

    /// The address of a data access without the metadata that linear-address masking lets it have.
    #[inline]
    #[must_use]
    pub fn masked(&self, gva: Gva) -> Gva {
        self.paging.masked(gva)
    }

    /// How often the slow path found what where.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.tlb.stats
    }

    /// What of [`Mmu::stats`] happened in which address space.
    #[must_use]
    pub fn shares(&self) -> Vec<Share> {
        self.tally.shares(self.tlb.stats)
    }

    /// The table to use for `space`: without SMAP, RFLAGS.AC makes no difference.
    #[inline]
    fn effective(&self, space: Space) -> Space {
        if space == Space::KernelAc && !self.paging.registers().cr4.smap() { Space::Kernel } else { space }
    }

    /// Restores the invariants of `view` and `stamp`.
    #[inline]
    fn renew(&mut self) {
        self.view = self.tlb.view(self.effective(self.space));
        self.stamp = self.tlb.stamp(self.space);
    }

    /// The main table of the current PCID and space, which translated code searches by itself. Outdated by the next
    /// use of `&mut self`; the entries change only then, too.
    #[inline]
    #[must_use]
    pub fn view(&self) -> View {
        self.view
    }

    /// The main tables of the current PCID for a supervisor with RFLAGS.AC clear, and with it set, and for a program. As
    /// for [`Mmu::view`].
    #[inline]
    #[must_use]
    pub fn views(&self) -> [View; 3] {
        [Space::Kernel, Space::KernelAc, Space::User].map(|space| self.tlb.view(self.effective(space)))
    }

    /// Where in the current table, in bytes from its base, is the entry by which a read (or write) of `size` (1 to
    /// 4096) bytes at `gva` needs nothing but a load (or store), and a record where such are made. `None`: it takes the
    /// slow path.
    #[inline]
    #[must_use]
    pub fn site(&self, gva: Gva, size: u64, write: bool) -> Option<u32> {
        let entry = self.entry(gva);
        let comparator = if write { entry.write } else { entry.read };
        let hits = if self.records { comparator.hits_recorded(gva, size) } else { comparator.hits(gva, size) };
        hits.then_some(self.offset(gva) as u32)
    }

    /// What is against a plain read of (or write to) the page of `gva`: the flags of its entry in the current table
    /// ([`IO`](crate::tlb::IO) and so on), 0 if nothing is. `None`: the table has no such entry. For counting.
    #[must_use]
    pub fn obstacles(&self, gva: Gva, write: bool) -> Option<u64> {
        let entry = self.entry(gva);
        let comparator = if write { entry.write } else { entry.read };
        comparator.flags(gva.page())
    }

    /// Where in the current table the slot of `gva` is.
    #[inline(always)]
    fn offset(&self, gva: Gva) -> u64 {
        (gva.0 >> 7) & self.view.mask
    }

    /// The slot of the current table that `gva` belongs to, whatever is in it.
    #[inline(always)]
    fn entry(&self, gva: Gva) -> &Entry {
        let offset = self.offset(gva);
        // SAFETY: by the invariant of `view` there are `mask / 32 + 1` entries at `base`; the mask makes the offset a
        // multiple of 32 within them. Entries change only through `&mut self`.
        unsafe { &*self.view.base.byte_add(offset as usize) }
    }

    // --- the fast path: a TLB hit on plain memory within one page, in the current space.
    //
    // One compare: the page of the access's last byte against the comparator of its first byte's slot (see
    // `Comparator`).
    //
    // SAFETY, for all of them: a comparator that hits (a page address, no slow flag) is only ever made for a page whose
    // 4096 bytes are guest RAM (or, for reads and fetches, ROM) at that address plus the addend. Guest memory is
    // never unmapped while the process lives (see `ram`), and no Rust object owns any of it.

    /// Reads, if that needs nothing but a load.
    #[inline(always)]
    #[must_use]
    pub fn read_fast<T: Scalar>(&self, gva: Gva) -> Option<T> {
        let entry = self.entry(gva);
        if entry.read.hits(gva, T::SIZE) {
            // SAFETY: a read hit, see above.
            Some(unsafe { T::load(gva.0, entry.addend) })
        } else {
            None
        }
    }

    /// Writes, if that needs nothing but a store. False: not done, take the slow path.
    #[inline(always)]
    #[must_use]
    pub fn write_fast<T: Scalar>(&self, gva: Gva, value: T) -> bool {
        let entry = self.entry(gva);
        let hit = entry.write.hits(gva, T::SIZE);
        if hit {
            // SAFETY: a write hit, see above.
            unsafe { T::store(gva.0, entry.addend, value) };
        }
        hit
    }

    /// Host page of `gva`'s page if the exec comparator hits.
    #[inline(always)]
    #[must_use]
    pub fn fetch_fast(&self, gva: Gva) -> Option<Hva> {
        let (entry, page) = (self.entry(gva), gva.page());
        entry.execute.hits(page, 1).then(|| Hva(page.0.wrapping_add(entry.addend)))
    }

    /// Read-modify-write, if that needs nothing but a load and a store. `f` is pure: given the old value it returns the
    /// new one and a result (flags, …); with `locked` it is a host atomic compare-exchange loop on the HVA and `f` may
    /// be called again. `None`: not done, take [`Mmu::update`].
    #[inline(always)]
    pub fn update_fast<T: Scalar, R>(&mut self, gva: Gva, locked: bool, mut f: impl FnMut(T) -> (T, R)) -> Option<R> {
        let entry = self.entry(gva);
        if entry.write.hits(gva, T::SIZE) {
            if locked {
                // SAFETY: a write hit, see above; what may be written may be read.
                return Some(unsafe { hostmem::update_locked(gva.0.wrapping_add(entry.addend), f) });
            }
            let addend = entry.addend;
            // SAFETY: as above.
            let (new, result) = f(unsafe { T::load(gva.0, addend) });
            // SAFETY: as above.
            unsafe { T::store(gva.0, addend, new) };
            return Some(result);
        }
        None
    }

    /// Reads `bytes.len()` bytes: vector operands, XSAVE areas. Any alignment, may cross pages.
    ///
    /// # Errors
    /// The fault that the access raises; pages are checked before MMIO is touched.
    #[inline]
    pub fn read_bytes(&mut self, origin: Origin, space: Space, gva: Gva, bytes: &mut [u8]) -> Result<(), MemoryFault> {
        let entry = self.entry(gva);
        let fits = (1..=4096).contains(&bytes.len()) && space == self.space;
        if fits && entry.read.hits(gva, bytes.len() as u64) {
            // SAFETY: a read hit, see above.
            unsafe { hostmem::read_bytes(gva.0.wrapping_add(entry.addend), bytes) };
            return Ok(());
        }
        self.read_bytes_slow(origin, space, gva, bytes)
    }

    /// Writes bytes; all pages are checked before the first byte changes.
    ///
    /// # Errors
    /// The fault that the access raises.
    #[inline]
    pub fn write_bytes(&mut self, origin: Origin, space: Space, gva: Gva, bytes: &[u8]) -> Result<(), MemoryFault> {
        let entry = self.entry(gva);
        let fits = (1..=4096).contains(&bytes.len()) && space == self.space;
        if fits && entry.write.hits(gva, bytes.len() as u64) {
            // SAFETY: a write hit, see above.
            unsafe { hostmem::write_bytes(gva.0.wrapping_add(entry.addend), bytes) };
            return Ok(());
        }
        self.write_bytes_slow(origin, space, gva, bytes)
    }

    // --- code pages

    /// Marks the chunks of `len` bytes at host address `hva` as holding decoded code: later writes there go the slow
    /// path and are noted. Host addresses that are not guest RAM are ignored (ROM is never written).
    ///
    /// What other vCPUs store is noticed from then on, but what they have stored meanwhile is not: where there are others
    /// ([`Mmu::shared`]), the bytes are to be read again afterwards ([`crate::code`]).
    pub fn protect_code(&mut self, hva: Hva, len: u64) {
        let mut done = 0;
        while done < len {
            let at = hva.wrapping_add(done);
            let piece = (x86::PAGE_SIZE - at.offset()).min(len - done);
            if self.map.code().mark(at, piece) {
                self.heed_marks();
                self.tlb.protect(at);
                self.map.code().announce(at, &self.notices);
            }
            done += piece;
        }
    }

    /// Whether other vCPUs write the same memory.
    #[must_use]
    pub fn shared(&self) -> bool {
        self.map.code().shared()
    }

    /// Protects the pages in which other vCPUs have found code. To be called before the TLB forgets what it was written
    /// through.
    fn heed_marks(&mut self) {
        let marked = self.notices.take_marked();
        self.protect_marked(marked);
    }

    fn protect_marked(&mut self, pages: BTreeSet<Hva>) {
        // Protecting one may forget what the others were written through, so that the first answer holds for the rest.
        let mut written = false;
        for page in pages {
            written |= self.tlb.protect(page);
            if written {
                self.map.code().suspect(page, &self.notices);
            }
        }
    }

    /// Has `wake` called, on other threads, when there is something new for [`Mmu::take_modified_code`].
    pub fn wake_by(&self, wake: impl Fn() + Send + Sync + 'static) {
        self.notices.set_wake(Box::new(wake));
    }

    /// Whether a write, by whomever, has touched decoded code since the last [`Mmu::take_modified_code`].
    #[inline(always)]
    #[must_use]
    pub fn code_modified(&self) -> bool {
        self.notices.pending()
    }

    /// What [`Mmu::code_modified`] looks at, for translated code.
    #[must_use]
    pub fn code_modified_flag(&self) -> &AtomicBool {
        self.notices.flag()
    }

    /// The host pages in which decoded code was overwritten, each at least once. Their marks are gone: code that
    /// stays decoded must be marked again. What an observer wants to see is asked anew, if that has changed.
    pub fn take_modified_code(&mut self) -> Vec<Hva> {
        let News { pages, marked, interest } = self.notices.take();
        self.protect_marked(marked);
        if interest {
            self.ask_anew();
        }
        pages
    }

    // --- inspection

    /// Translates without side effects on TLB or guest memory, as a debugger would (no permission checks).
    /// `None`: not mapped.
    #[must_use]
    pub fn translate(&self, gva: Gva) -> Option<Gpa> {
        self.inspect(gva).translation.map(|translation| self.map.gated(translation.gpa.0))
    }

    /// The address space as it is now, for those who look at it on another thread or later.
    #[must_use]
    pub fn address_space(&self) -> AddressSpace {
        AddressSpace::new(Arc::clone(&self.map), self.paging.clone())
    }

    /// What the current context's tables remember of the page of `gva`, for inspection.
    #[must_use]
    pub fn cached(&self, gva: Gva) -> Vec<Cached> {
        self.tlb.cached(self.paging.linear(gva).page())
    }

    /// Every table entry that translates `gva`, without side effects.
    #[must_use]
    pub fn inspect(&self, gva: Gva) -> Inspection {
        self.paging.inspect(&mut MapTables::silent(&self.map), gva)
    }
}

impl fmt::Debug for Mmu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mmu")
            .field("cpu", &self.cpu)
            .field("space", &self.space)
            .field("registers", self.paging.registers())
            .field("observed", &self.observer.is_some())
            .field("stats", &self.tlb.stats)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
