//! Sees all reads and writes of a lane: in the reference each as it is made, in the other also by the records of translated
//! code.
//!
//! Left out: the page walker's, which depend on what a TLB still has.

use memory::observe::{Batch, Interest};
use memory::{Access, AccessKind, Agent, Gpa, Gva, Observer};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The most that are kept.
const MOST: usize = 1 << 16;

/// What is the same of an access whoever makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    kind: AccessKind,
    rip: u64,
    cpl: u8,
    cr3: u64,
    gva: Option<Gva>,
    gpa: Gpa,
    size: u8,
    value: u128,
    old: Option<u128>,
}

/// See the module.
#[derive(Debug)]
pub struct Witness {
    records: bool,
    seen: Mutex<Vec<Seen>>,
}

impl Witness {
    /// `records`: translated code is to make records.
    #[must_use]
    pub fn new(records: bool) -> Self {
        Self { records, seen: Mutex::default() }
    }

    /// What was seen since it was last emptied.
    pub fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Witness {
    fn interest(&self, _: Gva, _: Gpa) -> Interest {
        Interest { read: true, write: true, fetch: false }
    }

    fn wants_walks(&self, _: Gpa) -> bool {
        false
    }

    fn access(&self, access: &Access) {
        let mut seen = self.seen();
        if seen.len() < MOST {
            let Access { kind, gva, gpa, size, value, old, .. } = *access;
            // No device is there that accesses memory.
            let Agent::Vcpu { origin, cr3 } = access.agent else { return };
            seen.push(Seen { kind, rip: origin.rip, cpl: origin.cpl, cr3, gva, gpa, size, value, old });
        }
    }

    fn record_will_do(&self, _: Gva, _: Gpa) -> bool {
        self.records
    }
    fn records(&self) -> bool {
        self.records
    }

    fn recorded(&self, batch: &Batch<'_>) {
        batch.accesses().for_each(|access| self.access(&access));
    }
}
