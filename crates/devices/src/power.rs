//! What devices ask of the machine as a whole: power off, reset, end; and the A20 gate.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a guest asks of the machine through a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Soft off (ACPI S5).
    PowerOff,
    /// A reset of the whole machine.
    Reset,
    /// The debug exit device was written: end with this status.
    DebugExit(u32),
}

/// Takes power requests. Implemented by the machine.
///
/// Called on the vCPU thread that made the port access, with no device lock held. It returns at once; the vCPUs stop at
/// their next poll, so the guest may run on for a few instructions.
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

/// The A20 gate: whether bit 20 of physical addresses reaches memory. Two devices drive it (8042 and port 92h).
///
/// Open from reset, as firmware leaves it. The gate's state can be read back by the guest; whether addresses are
/// masked is up to who asks [`A20::open`].
#[derive(Debug)]
pub struct A20(AtomicBool);

impl Default for A20 {
    fn default() -> Self {
        Self(AtomicBool::new(true))
    }
}

impl A20 {
    /// Whether bit 20 is passed on.
    #[must_use]
    pub fn open(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Opens or closes the gate.
    pub fn set(&self, open: bool) {
        if self.0.swap(open, Ordering::SeqCst) != open {
            tracing::debug!(target: "guest_errors", open, "A20 gate");
        }
    }
}

impl Reset for A20 {
    fn reset(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A switch that keeps what it was asked, for tests.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Asked(std::sync::Mutex<Vec<PowerRequest>>);

#[cfg(test)]
impl Asked {
    /// The requests since the last call.
    pub(crate) fn take(&self) -> Vec<PowerRequest> {
        std::mem::take(&mut *crate::sync::lock(&self.0))
    }
}

#[cfg(test)]
impl PowerSwitch for Asked {
    fn request(&self, request: PowerRequest) {
        crate::sync::lock(&self.0).push(request);
    }
}
