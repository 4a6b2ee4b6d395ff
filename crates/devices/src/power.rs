//! What devices ask of the machine as a whole: power off, reset, end; and the A20 gate.

use crate::hpet::Hpet;
use crate::ioapic::IoApic;
use crate::lapic::LocalApic;
use crate::pic::Pic;
use crate::pit::Pit;
use crate::rtc::Rtc;
use crate::sync::lock;
use std::fmt::{self, Debug};
use std::sync::Mutex;

/// What a guest asks of the machine through a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Soft off (ACPI S5).
    PowerOff,
    /// Suspend to RAM (ACPI S3).
    Suspend,
    /// The end of that.
    Wake,
    /// A reset of the whole machine.
    Reset,
    /// The debug exit device was written: end with this status.
    DebugExit(u32),
}

/// Takes power requests. Implemented by the machine.
///
/// Called on the vCPU thread that made the port access, or on whichever has raised the line that wakes the machine: the
/// lock of a device may be held, so it must not touch one. It returns at once; the vCPUs stop at their next poll, so the
/// guest may run on for a few instructions.
pub trait PowerSwitch: Send + Sync + Debug {
    /// Notes the request. The first one counts, until the machine has acted on it.
    fn request(&self, request: PowerRequest);
}

/// What the machine's reset does to a device.
pub trait Reset {
    /// Puts every register to its reset value and drives every line accordingly. Connections to the world outside the
    /// machine stay.
    fn reset(&self);
}

macro_rules! reset {
    ($($device:ty)*) => {$(
        impl Reset for $device {
            fn reset(&self) {
                // The device's own method, which is found first.
                <$device>::reset(self);
            }
        }
    )*};
}
reset!(Hpet IoApic LocalApic Pic Pit Rtc);

/// Told of the A20 gate's new position.
type Moved = Box<dyn Fn(bool) + Send + Sync>;

/// The A20 gate: whether bit 20 of physical addresses reaches memory. Two devices drive it (8042 and port 92h).
///
/// Open from reset, as firmware leaves it.
pub struct A20 {
    /// Held while `moved` is called, so that the calls come in the order of the changes. Lock order: after every device's.
    open: Mutex<bool>,
    moved: Moved,
}

impl A20 {
    /// An open gate. `moved` is called with each new position; it must not touch a device.
    #[must_use]
    pub fn new(moved: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Self { open: Mutex::new(true), moved: Box::new(moved) }
    }

    /// Whether bit 20 is passed on.
    #[must_use]
    pub fn open(&self) -> bool {
        *lock(&self.open)
    }

    /// Opens or closes the gate.
    pub fn set(&self, open: bool) {
        let mut position = lock(&self.open);
        if std::mem::replace(&mut *position, open) != open {
            tracing::debug!(target: "guest_errors", open, "A20 gate");
            (self.moved)(open);
        }
    }
}

impl Default for A20 {
    fn default() -> Self {
        Self::new(|_| ())
    }
}

impl Debug for A20 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("A20").field("open", &self.open()).finish_non_exhaustive()
    }
}

impl Reset for A20 {
    fn reset(&self) {
        self.set(true);
    }
}

/// A switch that keeps what it was asked, for tests.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Asked(Mutex<Vec<PowerRequest>>);

#[cfg(test)]
impl Asked {
    /// The requests since the last call.
    pub(crate) fn take(&self) -> Vec<PowerRequest> {
        std::mem::take(&mut *lock(&self.0))
    }
}

#[cfg(test)]
impl PowerSwitch for Asked {
    fn request(&self, request: PowerRequest) {
        lock(&self.0).push(request);
    }
}
