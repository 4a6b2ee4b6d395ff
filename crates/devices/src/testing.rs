//! What the devices' tests share: a clock that moves by hand and a line that remembers.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use cpu::Clock;

use crate::line::IrqLine;
use crate::sync::lock;
use crate::timer::Timers;

/// A clock that stands where a test puts it.
#[derive(Debug, Default)]
pub(crate) struct ManualClock(AtomicU64);

impl Clock for ManualClock {
    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// A clock, its queue of deadlines, and the way to move both.
#[derive(Debug)]
pub(crate) struct Time {
    pub clock: Arc<ManualClock>,
    pub timers: Arc<Timers>,
}

impl Time {
    pub fn new() -> Self {
        let clock = Arc::new(ManualClock::default());
        let timers = Timers::new(clock.clone());
        Self { clock, timers }
    }

    /// Moves the clock to `now` and on the way fires each deadline at its very time.
    pub fn run_to(&self, now: u64) {
        while let Some(deadline) = self.timers.next_deadline().filter(|&deadline| deadline <= now) {
            self.jump(deadline.max(self.clock.now()));
            self.timers.fire_due(self.clock.now());
        }
        self.jump(now);
    }

    /// Moves the clock by `ns` and on the way fires each deadline at its very time.
    pub fn run(&self, ns: u64) {
        self.run_to(self.clock.now() + ns);
    }

    /// Moves the clock and fires nothing, as a busy host would.
    pub fn jump(&self, now: u64) {
        self.clock.0.store(now, Ordering::SeqCst);
    }
}

/// A line that remembers its level and when it rose.
#[derive(Debug)]
pub(crate) struct Probe {
    clock: Arc<ManualClock>,
    level: AtomicBool,
    rises: AtomicUsize,
    risen_at: Mutex<Vec<u64>>,
}

impl Probe {
    pub fn new(time: &Time) -> Arc<Self> {
        Arc::new(Self {
            clock: Arc::clone(&time.clock),
            level: AtomicBool::new(false),
            rises: AtomicUsize::new(0),
            risen_at: Mutex::default(),
        })
    }

    pub fn high(&self) -> bool {
        self.level.load(Ordering::SeqCst)
    }

    /// Rising edges so far.
    pub fn rises(&self) -> usize {
        self.rises.load(Ordering::SeqCst)
    }

    /// The clock's time of each rising edge since the last call.
    pub fn take_rises(&self) -> Vec<u64> {
        std::mem::take(&mut *lock(&self.risen_at))
    }
}

impl IrqLine for Probe {
    fn set(&self, high: bool) {
        if !self.level.swap(high, Ordering::SeqCst) && high {
            self.rises.fetch_add(1, Ordering::SeqCst);
            lock(&self.risen_at).push(self.clock.now());
        }
    }
}
