//! What translated code notes of its accesses, for an observer that wants to see all of them.

use super::{Access, AccessKind, Agent};
use crate::mmu::Origin;
use crate::{Gva, Hva, PhysicalMap};
use std::mem::offset_of;
use std::sync::Arc;

/// At most eight bytes of an access, as translated code notes it down.
///
/// What an instruction accesses is in order. A read-modify-write is a read and a write, an access of more than eight bytes
/// several records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// What the translator knows.
    pub what: What,
    /// How many instructions might still have been executed after the block, as they are counted down.
    pub budget: u32,
    /// Guest virtual address of the page whose code did it.
    pub page: u64,
    /// Guest virtual address of the whole access's first byte.
    pub gva: u64,
    /// The same byte's host address.
    pub hva: u64,
    /// The bytes before, zero-extended.
    pub before: u64,
    /// For a write, those afterwards.
    pub after: u64,
}

impl Record {
    /// Where [`Record::what`] is, in bytes.
    pub const WHAT: usize = offset_of!(Self, what);
    /// Where [`Record::budget`] is.
    pub const BUDGET: usize = offset_of!(Self, budget);
    /// Where [`Record::page`] is.
    pub const PAGE: usize = offset_of!(Self, page);
    /// Where [`Record::gva`] is.
    pub const GVA: usize = offset_of!(Self, gva);
    /// Where [`Record::hva`] is.
    pub const HVA: usize = offset_of!(Self, hva);
    /// Where [`Record::before`] is.
    pub const BEFORE: usize = offset_of!(Self, before);
    /// Where [`Record::after`] is.
    pub const AFTER: usize = offset_of!(Self, after);

    /// Address of the instruction.
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.page.wrapping_add(self.what.offset().into())
    }
}

/// What is known of an access when its instruction is translated, in 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct What(u32);

impl What {
    /// Of an instruction at `offset` in its page, which `left` (at most 511) instructions of its block follow or are. It
    /// accesses `size` bytes, of which these are from `8 * piece` on; `user`: with CPL 1 to 3.
    #[must_use]
    pub fn new(offset: u16, left: u16, size: u32, piece: u32, write: bool, user: bool) -> Self {
        Self(
            u32::from(offset) & 0xfff
                | (u32::from(left) & 0x1ff) << 12
                | (size & 63) << 21
                | (piece & 3) << 27
                | u32::from(write) << 29
                | u32::from(user) << 30,
        )
    }

    /// As a number.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Where in its page the instruction is.
    #[must_use]
    pub fn offset(self) -> u16 {
        (self.0 & 0xfff) as u16
    }

    /// How many instructions of the block follow or are it.
    #[must_use]
    pub fn left(self) -> u16 {
        (self.0 >> 12 & 0x1ff) as u16
    }

    /// Bytes of the whole access.
    #[must_use]
    pub fn size(self) -> u8 {
        (self.0 >> 21 & 63) as u8
    }

    /// Which eight bytes of it these are.
    #[must_use]
    pub fn piece(self) -> u8 {
        (self.0 >> 27 & 3) as u8
    }

    /// Whether it is a write.
    #[must_use]
    pub fn write(self) -> bool {
        self.0 >> 29 & 1 != 0
    }

    /// Whether it was made with CPL 1 to 3.
    #[must_use]
    pub fn user(self) -> bool {
        self.0 >> 30 & 1 != 0
    }
}

/// Records of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// On whose behalf: which vCPU, with which CPL (SYSCALL and SYSRET may come between), and how many instructions it had
    /// executed when a record's budget is 0.
    pub origin: Origin,
    /// CR3.
    pub cr3: u64,
    /// In order.
    pub records: &'a [Record],
    /// What tells the guest physical address of a host address.
    pub map: &'a Arc<PhysicalMap>,
}

impl Batch<'_> {
    /// How many instructions the vCPU had executed before that of `record`.
    #[must_use]
    pub fn instructions(&self, record: &Record) -> u64 {
        self.origin.instructions.wrapping_sub(u64::from(record.budget) + u64::from(record.what.left()))
    }

    /// Of each of [`Batch::accesses`] whether it is a write.
    pub fn kinds(&self) -> impl Iterator<Item = bool> {
        // Two pieces make an access.
        self.records.iter().filter(|record| record.what.piece() & 1 == 0).map(|record| record.what.write())
    }

    /// The accesses that these records are of, in pieces as all others come: see [`Access`].
    pub fn accesses(&self) -> impl Iterator<Item = Access> {
        let mut records = self.records.iter();
        std::iter::from_fn(move || {
            let first = records.next()?;
            let (what, at) = (first.what, 8 * u64::from(first.what.piece()));
            let size = (u64::from(what.size()) - at).min(16);
            // Pieces of one access follow each other.
            let second = if size > 8 { records.next()? } else { &Record::default() };
            let both = |low: u64, high: u64| u128::from(low) | u128::from(high) << 64;
            let (before, after) = (both(first.before, second.before), both(first.after, second.after));
            let hva = Hva(first.hva + at);
            let origin = Origin {
                cpl: match (what.user(), self.origin.cpl) {
                    (false, _) => 0,
                    (true, 0) => 3,
                    (true, cpl) => cpl,
                },
                rip: first.rip(),
                instructions: self.instructions(first),
                ..self.origin
            };
            Some(Access {
                kind: if what.write() { AccessKind::Write } else { AccessKind::Read },
                agent: Agent::Vcpu { origin, cr3: self.cr3 },
                gva: Some(Gva(first.gva.wrapping_add(at))),
                gpa: self.map.gpa_of(hva)?,
                hva: Some(hva),
                size: size as u8,
                value: if what.write() { after } else { before },
                old: what.write().then_some(before),
            })
        })
    }
}
