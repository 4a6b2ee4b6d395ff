//! Deadlines of devices on the machine's one clock.
//!
//! [`Timers`] is a queue of absolute deadlines in nanoseconds of [`cpu::Clock`]. In a machine that runs in real time
//! one thread sits in [`Timers::run`] and sleeps until the next of them; in a deterministic machine, and in tests,
//! [`Timers::fire_due`] is called when the clock has moved.
//!
//! An expiry may come late (the host was busy) and may come after the timer was disarmed or moved (another thread did
//! it while the expiry was on its way). A device therefore takes its own lock, reads the clock and decides from its
//! own registers what is due; an expiry says "look", not "it is time".

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::num::NonZeroU64;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use cpu::Clock;

use crate::sync::lock;

/// Something that wants to be told when its deadline has come.
pub trait Expire: Send + Sync {
    /// Called at or after the armed deadline, with no lock of the queue held; `now` is the clock's time in nanoseconds.
    fn expire(&self, now: u64);
}

/// The queue of deadlines.
pub struct Timers {
    clock: Arc<dyn Clock>,
    /// Lock order: a device's lock, then this one. [`Expire::expire`] is called with neither held.
    queue: Mutex<Queue>,
    /// The first deadline, `paused` or `stopped` changed.
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Armed deadlines with the slots they belong to. A slot is in here once at most.
    armed: BTreeSet<(u64, usize)>,
    slots: Vec<Slot>,
    free: Vec<usize>,
    paused: bool,
    stopped: bool,
}

struct Slot {
    target: Weak<dyn Expire>,
    deadline: Option<u64>,
}

/// One timer of a device. Dropping it disarms it.
pub struct Timer {
    timers: Arc<Timers>,
    slot: usize,
}

impl Timers {
    /// The longest sleep without looking at the clock again.
    const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
    /// How late the host may wake the thread, in nanoseconds (Linux's default is 50 µs).
    const SLACK: NonZeroU64 = NonZeroU64::MIN;

    /// An empty queue on `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, queue: Mutex::default(), changed: Condvar::new() })
    }

    /// The clock that deadlines are counted on.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// A new timer, disarmed, that tells `target`.
    #[must_use]
    pub fn register(self: &Arc<Self>, target: Weak<dyn Expire>) -> Timer {
        let mut queue = lock(&self.queue);
        let slot = Slot { target, deadline: None };
        let index = match queue.free.pop() {
            Some(index) => {
                queue.slots[index] = slot;
                index
            }
            None => {
                queue.slots.push(slot);
                queue.slots.len() - 1
            }
        };
        Timer { timers: Arc::clone(self), slot: index }
    }

    /// The earliest armed deadline.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        lock(&self.queue).armed.first().map(|&(deadline, _)| deadline)
    }

    /// Tells every device whose deadline is at or before `now`, earliest first, each at most once.
    pub fn fire_due(&self, now: u64) {
        let due = lock(&self.queue).take_due(now);
        for target in due {
            if let Some(target) = target.upgrade() {
                target.expire(now);
            }
        }
    }

    /// Sleeps from deadline to deadline and tells the devices, until [`Self::stop`].
    pub fn run(&self) {
        // Better precision where the host grants it; the timers work without.
        let _ = rustix::thread::set_current_timer_slack(Some(Self::SLACK));
        let mut queue = lock(&self.queue);
        while !queue.stopped {
            let now = self.clock.now();
            let sleep = match queue.armed.first() {
                _ if queue.paused => Self::LONGEST_SLEEP,
                None => Self::LONGEST_SLEEP,
                Some(&(deadline, _)) if deadline > now => Duration::from_nanos(deadline - now),
                Some(_) => {
                    drop(queue);
                    self.fire_due(now);
                    queue = lock(&self.queue);
                    continue;
                }
            };
            let sleep = sleep.min(Self::LONGEST_SLEEP);
            queue = self.changed.wait_timeout(queue, sleep).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes [`Self::run`] return, now and ever after.
    pub fn stop(&self) {
        lock(&self.queue).stopped = true;
        self.changed.notify_all();
    }

    /// While paused, [`Self::run`] tells nobody. To be set around the time in which the clock stands still, so that the
    /// thread need not look at it again and again.
    pub fn set_paused(&self, paused: bool) {
        lock(&self.queue).paused = paused;
        self.changed.notify_all();
    }

    fn set(&self, slot: usize, deadline: Option<u64>) {
        let mut queue = lock(&self.queue);
        let first = queue.armed.first().copied();
        queue.set(slot, deadline);
        // The thread need not know of a deadline that it will not sleep until.
        if queue.armed.first().copied() != first && deadline.is_some() {
            drop(queue);
            self.changed.notify_all();
        }
    }
}

impl Queue {
    fn set(&mut self, index: usize, deadline: Option<u64>) {
        let Some(slot) = self.slots.get_mut(index) else { return };
        if slot.deadline == deadline {
            return;
        }
        if let Some(old) = slot.deadline {
            self.armed.remove(&(old, index));
        }
        slot.deadline = deadline;
        if let Some(deadline) = deadline {
            self.armed.insert((deadline, index));
        }
    }

    fn take_due(&mut self, now: u64) -> Vec<Weak<dyn Expire>> {
        let mut due = Vec::new();
        while let Some(&(deadline, index)) = self.armed.first().filter(|&&(deadline, _)| deadline <= now) {
            self.armed.remove(&(deadline, index));
            if let Some(slot) = self.slots.get_mut(index) {
                slot.deadline = None;
                due.push(Weak::clone(&slot.target));
            }
        }
        due
    }
}

impl Timer {
    /// Sets the deadline (nanoseconds of the machine's clock) in place of the one before. One in the past is due at
    /// once.
    pub fn arm(&self, deadline_ns: u64) {
        self.timers.set(self.slot, Some(deadline_ns));
    }

    /// Takes the deadline back.
    pub fn disarm(&self) {
        self.timers.set(self.slot, None);
    }

    /// Arms or disarms.
    pub fn set(&self, deadline_ns: Option<u64>) {
        self.timers.set(self.slot, deadline_ns);
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let mut queue = lock(&self.timers.queue);
        queue.set(self.slot, None);
        queue.free.push(self.slot);
    }
}

impl Debug for Timers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timers").field("next_deadline", &self.next_deadline()).finish_non_exhaustive()
    }
}

impl Debug for Timer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timer").field("slot", &self.slot).finish_non_exhaustive()
    }
}
