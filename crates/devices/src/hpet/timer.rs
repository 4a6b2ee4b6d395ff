//! One comparator of the HPET.

use super::spec::{ROUTES, TIMER_BITS, TimerConfiguration};

#[derive(Debug)]
pub(super) struct Comparator {
    pub configuration: TimerConfiguration,
    /// The value that the counter is compared with (the accumulator of a periodic timer).
    comparator: u64,
    period: u64,
    /// The counter up to which (inclusive) matches have been seen.
    seen: u64,
    /// The comparator was written with the very value that the counter has.
    due: bool,
    /// The line of an edge triggered timer: it fired and has not been switched off since.
    pub high: bool,
}

impl Comparator {
    pub fn new() -> Self {
        let configuration = TimerConfiguration::new().with_can_be_periodic(true).with_wide(true).with_routes(ROUTES);
        Self { configuration, comparator: u64::MAX, period: 0, seen: 0, due: false, high: false }
    }

    fn mask(&self) -> u64 {
        if self.configuration.narrow() { u32::MAX.into() } else { u64::MAX }
    }

    /// What the comparator register reads as.
    pub fn comparator(&self) -> u64 {
        self.comparator & self.mask()
    }

    /// Ticks from `from` to the next match after it: all the way round (less one for 64 bits) if they are equal.
    fn distance(&self, from: u64) -> u64 {
        match self.comparator.wrapping_sub(from) & self.mask() {
            0 if self.configuration.narrow() => 1 << 32,
            0 => u64::MAX,
            distance => distance,
        }
    }

    /// Ticks from `counter` (to which the timer was brought) to the next match.
    pub fn ticks_left(&self, counter: u64) -> u64 {
        if self.due { 0 } else { self.distance(counter) }
    }

    /// Brings the timer to `counter`; whether it matched on the way. Several matches count once.
    pub fn advance(&mut self, counter: u64) -> bool {
        let passed = counter.wrapping_sub(self.seen);
        let distance = self.distance(self.seen);
        self.seen = counter;
        let due = std::mem::take(&mut self.due);
        if !due && passed < distance {
            return false;
        }
        let period = self.period & self.mask();
        if self.configuration.periodic() && period != 0 {
            let late = if due { passed } else { passed - distance };
            let step = (late / period).wrapping_add(1).wrapping_mul(period);
            self.comparator = self.comparator.wrapping_add(step) & self.mask();
        }
        true
    }

    pub fn configure(&mut self, value: u64, counter: u64) {
        let kept = u64::from(self.configuration) & !TIMER_BITS;
        let old = self.configuration;
        self.configuration = TimerConfiguration::from(kept | value & TIMER_BITS);
        if self.configuration.message() {
            self.configuration.set_message(false);
        }
        let new = self.configuration;
        if !new.enabled() || new.level() || new.route() != old.route() {
            self.high = false;
        }
        if self.configuration.narrow() {
            self.comparator &= self.mask();
            self.period &= self.mask();
        }
        self.seen = counter;
    }

    /// Writes the comparator. A periodic timer takes the value as its period, and as its next match only if the
    /// value-set bit was written before.
    pub fn write(&mut self, covered: u64, value: u64, counter: u64) {
        let periodic = self.configuration.periodic();
        if !periodic || self.configuration.set_value() {
            self.comparator = (self.comparator & !covered | value & covered) & self.mask();
            self.due = self.comparator == counter & self.mask();
        }
        if periodic {
            self.period = (self.period & !covered | value & covered) & self.mask();
            self.configuration.set_set_value(false);
        }
        self.seen = counter;
    }

    pub fn start_over(&mut self, counter: u64) {
        self.seen = counter;
        self.due = self.comparator() == counter & self.mask();
    }
}
