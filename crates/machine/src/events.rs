//! What happens to a machine, for those outside who want to be told.

use devices::sync::lock;
use std::sync::{Arc, Mutex};

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The machine has been paused, and its clock.
    Stop,
    /// It runs again.
    Resume,
    /// The guest has suspended it to RAM.
    Suspend,
    /// It has woken from that.
    Wakeup,
    /// It is being reset.
    Reset {
        /// Whether the guest asked for it, or crashed.
        guest: bool,
    },
    /// It is at its end: the guest's own, or one that the user wants.
    Shutdown {
        /// Whether the guest asked for it.
        guest: bool,
    },
}

/// Whether a machine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    /// It has not run yet, and waits for [`Handle::resume`](crate::Handle::resume).
    Prelaunch,
    /// It runs.
    Running,
    /// The user has it stand.
    Paused,
    /// The guest has suspended it to RAM.
    Suspended,
    /// The guest has powered off, or the machine has ended.
    Shutdown,
}

type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// Who listens.
#[derive(Default)]
pub(crate) struct Events(Mutex<Vec<Listener>>);

impl Events {
    pub fn listen(&self, listener: Listener) {
        lock(&self.0).push(listener);
    }

    /// Called with no lock held.
    pub fn tell(&self, event: &Event) {
        let listeners = lock(&self.0).clone();
        for listener in listeners {
            listener(event);
        }
    }
}
