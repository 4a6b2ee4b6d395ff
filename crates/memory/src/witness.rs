//! The hook for what happens to a machine beside its accesses to memory: devices accessed, exceptions and interrupts
//! delivered, page tables changed. All of that is on slow paths; where nobody wants to know, it costs a load there.

use crate::{Gpa, Gva};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// Where a device was accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// By memory, at this address.
    Memory(Gpa),
    /// By this I/O port.
    Port(u16),
}

/// An access to a device that was made.
#[derive(Clone, Copy, Debug)]
pub struct DeviceAccess<'a> {
    /// What the device is called.
    pub device: &'a str,
    /// Where.
    pub place: Place,
    /// How many bytes: 1, 2, 4 or 8.
    pub size: usize,
    /// What was read or written.
    pub value: u64,
    /// Whether it was a write.
    pub write: bool,
}

/// An exception or interrupt that is being delivered.
#[derive(Clone, Copy, Debug)]
pub struct Delivery {
    /// Which vCPU.
    pub cpu: u32,
    /// Its vector.
    pub vector: u8,
    /// The error code, where there is one.
    pub code: Option<u16>,
    /// Where it returns to.
    pub rip: Gva,
    /// At which privilege level that is.
    pub cpl: u8,
    /// For a page fault, the address.
    pub address: Option<Gva>,
}

/// Somebody who wants to know. Called on vCPUs' threads, which wait meanwhile.
pub trait Witness: Send + Sync {
    /// A device was accessed.
    fn device(&self, access: &DeviceAccess<'_>);

    /// An exception or interrupt is being delivered, or faults on its way.
    fn delivered(&self, delivery: &Delivery);

    /// A vCPU has other page tables, the root of which is at `root`.
    fn switched(&self, cpu: u32, root: Gpa);
}

/// A place for a witness, empty or taken for good.
#[derive(Default)]
pub struct Seat(OnceLock<Arc<dyn Witness>>);

impl Seat {
    /// Gives the place to `witness`, unless it is taken.
    pub fn take(&self, witness: Arc<dyn Witness>) {
        let _ = self.0.set(witness);
    }

    /// Who is there.
    #[inline]
    #[must_use]
    pub fn get(&self) -> Option<&dyn Witness> {
        self.0.get().map(|witness| &**witness)
    }
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Seat").field(&self.0.get().is_some()).finish()
    }
}
