//! The hook through which a lens sees accesses: those of vCPUs, and those that devices make by themselves ([`crate::Dma`]).
//! Called on the slow path only: a page that nobody watches costs nothing.

use crate::mmu::Origin;
use crate::{Gpa, Gva, Hva, PhysicalMap};
use std::sync::Arc;

mod record;
pub use record::{Batch, Record, What};

/// The most bytes of an access that are reported at once.
pub(crate) const REPORTED: usize = 16;

/// At most [`REPORTED`] bytes as a little-endian number.
pub(crate) fn wide(bytes: &[u8]) -> u128 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u128::from(*byte))
}

/// Has every vCPU ask its observer anew if `observer`, which was just told something, wants something else than before.
/// This may be in the midst of an instruction: vCPUs hear of it as of overwritten code, behind which a block ends.
pub(crate) fn heed(observer: &dyn Observer, map: &PhysicalMap) {
    if observer.interest_changed() {
        map.code().interest_changed();
    }
}

/// What kind of access was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessKind {
    /// A data read by an instruction or an event, explicit or implicit (stack).
    Read,
    /// A data write by an instruction or an event, explicit or implicit.
    Write,
    /// An instruction fetch: `value` is the first bytes of the instruction.
    Fetch,
    /// The page walker read an entry.
    WalkRead,
    /// The page walker set accessed or dirty bits.
    WalkWrite,
    /// A read of a descriptor table (GDT, LDT, IDT) or the TSS.
    DescriptorRead,
    /// A write to one: accessed and busy bits.
    DescriptorWrite,
    /// A device read memory.
    DmaRead,
    /// A device wrote memory.
    DmaWrite,
}

impl AccessKind {
    /// Whether memory may have been changed.
    #[must_use]
    pub fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::WalkWrite | Self::DescriptorWrite | Self::DmaWrite)
    }
}

/// Who made an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    /// A vCPU.
    Vcpu {
        /// On whose behalf.
        origin: Origin,
        /// CR3 at that moment; with CR4.PCIDE its low 12 bits are the PCID.
        cr3: u64,
    },
    /// The device of this name, by DMA.
    Device(&'static str),
}

/// One access, with every address it had at the instant it was made.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// What was done.
    pub kind: AccessKind,
    /// Who did it.
    pub agent: Agent,
    /// Guest virtual address; `None` for page walks and DMA, which have none.
    pub gva: Option<Gva>,
    /// Guest physical address.
    pub gpa: Gpa,
    /// Host virtual address; `None` where the guest physical address is not memory (MMIO, unassigned).
    pub hva: Option<Hva>,
    /// Size in bytes, 1 to 16 for scalars; larger accesses and runs of string instructions arrive element by element.
    /// An access that crosses a page arrives once for each page, with the bytes that lie there.
    pub size: u8,
    /// The bytes read or written, little endian, zero-extended.
    pub value: u128,
    /// For a write to memory, the bytes that were there before. `None`: it is no write, or a device answered.
    pub old: Option<u128>,
}

impl Access {
    /// On whose behalf, if a vCPU made it.
    #[must_use]
    pub fn origin(&self) -> Option<&Origin> {
        match &self.agent {
            Agent::Vcpu { origin, .. } => Some(origin),
            Agent::Device(_) => None,
        }
    }

    /// CR3 at that moment, if a vCPU made it.
    #[must_use]
    pub fn cr3(&self) -> Option<u64> {
        match self.agent {
            Agent::Vcpu { cr3, .. } => Some(cr3),
            Agent::Device(_) => None,
        }
    }
}

/// Which accesses to a page an observer wants to see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Data reads.
    pub read: bool,
    /// Data writes.
    pub write: bool,
    /// Instruction fetches.
    pub fetch: bool,
}

/// Somebody who wants to see accesses.
pub trait Observer: Send + Sync {
    /// Asked when the page is entered into a TLB. `gva` and `gpa` are page addresses (4 KiB).
    fn interest(&self, gva: Gva, gpa: Gpa) -> Interest;

    /// Whether records will do of the reads and writes of this page, if it is interested in them. Asked as
    /// [`Observer::interest`] is; only those who want records need to say so.
    fn record_will_do(&self, _gva: Gva, _gpa: Gpa) -> bool {
        false
    }

    /// Whether page-table reads and writes that the walker makes in this 4 KiB page of guest physical memory are
    /// wanted.
    fn wants_walks(&self, gpa: Gpa) -> bool;

    /// Whether reads and writes by devices in this 4 KiB page of guest physical memory are wanted.
    fn wants_dma(&self, _gpa: Gpa) -> bool {
        false
    }

    /// Called for each access to a page for which there was interest, after it was made and only if it was made
    /// (an access that faulted is not reported). The observer compares the exact bytes itself. A device's accesses come
    /// on whatever thread the device works on.
    fn access(&self, access: &Access);

    /// Whether records are wanted of what translated code accesses in pages for whose accesses they will do. Asked at first
    /// and when interest has changed.
    fn records(&self) -> bool {
        false
    }

    /// Called with such records, in the order in which they and all other accesses of the vCPU were made.
    fn recorded(&self, _batch: &Batch<'_>) {}

    /// Called when the guest has told where its system calls enter (LSTAR), which is `entry`, at `gpa`: a kernel is there.
    /// The vCPU waits meanwhile.
    fn system_calls_enter(&self, _map: &Arc<PhysicalMap>, _entry: Gva, _gpa: Gpa) {}

    /// Whether interest has changed since this was asked last. Asked after each call of the others but [`Observer::interest`],
    /// [`Observer::wants_walks`] and [`Observer::wants_dma`]; then each vCPU flushes its TLB before its next instruction.
    fn interest_changed(&self) -> bool {
        false
    }
}
