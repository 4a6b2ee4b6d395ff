//! The high precision event timer: a 64-bit counter at 100 MHz and three comparators.
//!
//! After the IA-PC HPET specification 1.0a: one-shot and periodic timers (all three can be periodic), 32-bit mode,
//! edge and level interrupts, legacy replacement routing. The 8254's and the clock's lines run through this device
//! ([`Hpet::pit_input`], [`Hpet::rtc_input`]), since legacy routing cuts them off. Left out: message (FSB) interrupts.
//!
//! The counter and the comparators follow from the machine's clock; a deadline is kept for enabled timers only. An edge
//! interrupt is a fall and a rise of the line, which then stays high until the next one, so that an 8259 that has the
//! interrupt masked does not lose it.

mod spec;
#[cfg(test)]
mod tests;
mod timer;

use std::sync::{Arc, Mutex, Weak};

use cpu::Clock;
use memory::Mmio;

use self::spec::{
    CAPABILITIES, CAPABILITIES_VALUE, CONFIGURATION, COUNTER, Configuration, FIRST_TIMER, STATUS, TICK_NS,
    TIMER_COMPARATOR, TIMER_CONFIGURATION, TIMER_STRIDE, TIMERS,
};
use self::timer::Comparator;
use crate::bytes::all_ones;
use crate::line::{IrqLine, Pin};
use crate::sync::lock;
use crate::timer::{Expire, Timer, Timers};

/// Where the HPET is (guest physical).
pub const HPET_ADDRESS: u64 = 0xfed0_0000;

/// The lines an HPET drives.
#[derive(Debug)]
pub struct HpetLines {
    /// IRQ0 (the 8259's input 0 and the IOAPIC's input 2): the 8254's, or with legacy routing timer 0's.
    pub irq0: Pin,
    /// IRQ8: the clock's, or with legacy routing timer 1's.
    pub irq8: Pin,
    /// The IOAPIC's inputs 16–23.
    pub gsi16: [Pin; 8],
}

/// The event timer.
#[derive(Debug)]
pub struct Hpet {
    clock: Arc<dyn Clock>,
    /// Driven with the lock held.
    lines: HpetLines,
    timer: Timer,
    /// Lock order: after the 8254's and the clock's; before the interrupt controllers' and the timer queue's.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    configuration: Configuration,
    /// Interrupts of level triggered timers, a bit each.
    status: u8,
    /// The counter at `since`, or where it stands while disabled.
    counter: u64,
    /// Nanoseconds of the clock.
    since: u64,
    timers: [Comparator; TIMERS],
    /// What the 8254 and the clock drive.
    pit: bool,
    rtc: bool,
    /// The levels that the lines were driven to.
    driven: u16,
}

/// The lines that timers can be on: IRQ0, IRQ8, and interrupts 16–23.
const LINES: usize = 10;

impl Hpet {
    /// Bytes of guest physical space that it takes.
    pub const SIZE: u64 = 0x400;
    /// Number of comparators.
    pub const TIMERS: usize = TIMERS;

    /// The timer as it is after power-on: halted, legacy routing off.
    #[must_use]
    pub fn new(timers: &Arc<Timers>, lines: HpetLines) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            clock: Arc::clone(timers.clock()),
            lines,
            timer: timers.register(this.clone()),
            state: Mutex::new(State::new(false, false)),
        })
    }

    /// Where the 8254's counter 0 is to be plugged in.
    #[must_use]
    pub fn pit_input(self: &Arc<Self>) -> Pin {
        Arc::new(Legacy { hpet: Arc::downgrade(self), rtc: false })
    }

    /// Where the clock's interrupt is to be plugged in.
    #[must_use]
    pub fn rtc_input(self: &Arc<Self>) -> Pin {
        Arc::new(Legacy { hpet: Arc::downgrade(self), rtc: true })
    }

    /// Back to the state of power-on. The legacy inputs stay as they are driven.
    pub fn reset(&self) {
        self.at_now(|state, _| *state = State { driven: state.driven, ..State::new(state.pit, state.rtc) });
    }

    /// Runs `f` on the state brought up to now (nanoseconds), then drives the lines and the deadline.
    fn at_now<T>(&self, f: impl FnOnce(&mut State, u64) -> T) -> T {
        let mut state = lock(&self.state);
        let now = self.clock.now();
        let edges = state.advance(now);
        self.drive(&mut state, edges);
        let result = f(&mut state, now);
        // What `f` wrote may be due at once.
        let edges = state.advance(now);
        self.drive(&mut state, edges);
        self.timer.set(state.next_deadline(now));
        result
    }

    fn line(&self, n: usize) -> &Pin {
        match n {
            0 => &self.lines.irq0,
            1 => &self.lines.irq8,
            n => &self.lines.gsi16[(n - 2) & 7],
        }
    }

    /// Drives all lines to their levels. `edges`: lines that are to fall first, since an edge triggered timer fired.
    fn drive(&self, state: &mut State, edges: u16) {
        let levels = state.levels();
        let falling = state.driven & (edges | !levels);
        let rising = levels & (edges | !state.driven);
        for n in 0..LINES {
            if falling & 1 << n != 0 {
                self.line(n).set(false);
            }
            if rising & 1 << n != 0 {
                self.line(n).set(true);
            }
        }
        state.driven = levels;
    }

    fn set_legacy(&self, rtc: bool, high: bool) {
        let mut state = lock(&self.state);
        *(if rtc { &mut state.rtc } else { &mut state.pit }) = high;
        self.drive(&mut state, 0);
    }
}

impl State {
    fn new(pit: bool, rtc: bool) -> Self {
        let timers = [0; TIMERS].map(|_: u8| Comparator::new());
        Self { configuration: Configuration::new(), status: 0, counter: 0, since: 0, timers, pit, rtc, driven: 0 }
    }

    fn counter_at(&self, now: u64) -> u64 {
        let ticks = if self.configuration.enabled() { now.saturating_sub(self.since) / TICK_NS } else { 0 };
        self.counter.wrapping_add(ticks)
    }

    /// Brings the timers to `now`. The lines on which an edge triggered timer fired.
    fn advance(&mut self, now: u64) -> u16 {
        let counter = self.counter_at(now);
        let mut edges = 0;
        if !self.configuration.enabled() {
            return edges;
        }
        for n in 0..TIMERS {
            let line = self.line_of(n);
            let timer = &mut self.timers[n];
            if !timer.advance(counter) {
                continue;
            }
            if timer.configuration.level() {
                self.status |= 1 << n;
            } else if timer.configuration.enabled() {
                timer.high = true;
                edges |= line.map_or(0, |line| 1 << line);
            }
        }
        edges
    }

    /// When the next enabled timer fires.
    fn next_deadline(&self, now: u64) -> Option<u64> {
        if !self.configuration.enabled() {
            return None;
        }
        let counter = self.counter_at(now);
        // The start of the tick that is under way.
        let tick = now - now.saturating_sub(self.since) % TICK_NS;
        let timers = self.timers.iter().filter(|timer| timer.configuration.enabled());
        let ticks = timers.map(|timer| timer.ticks_left(counter)).min()?;
        ticks.checked_mul(TICK_NS)?.checked_add(tick)
    }

    /// The line that timer `n` is on.
    fn line_of(&self, n: usize) -> Option<usize> {
        match (n, self.timers[n].configuration.route()) {
            (0 | 1, _) if self.configuration.legacy() => Some(n),
            (_, 2) => Some(0),
            (_, 8) => Some(1),
            (_, route @ 16..=23) => Some(usize::from(route) - 14),
            _ => None,
        }
    }

    fn levels(&self) -> u16 {
        let mut levels = 0;
        if !self.configuration.legacy() {
            levels = u16::from(self.pit) | u16::from(self.rtc) << 1;
        }
        for n in 0..TIMERS {
            let configuration = self.timers[n].configuration;
            let asks = if configuration.level() { self.status & 1 << n != 0 } else { self.timers[n].high };
            if asks && configuration.enabled() && self.configuration.enabled() {
                levels |= self.line_of(n).map_or(0, |line| 1 << line);
            }
        }
        levels
    }

    fn read(&self, register: u64, now: u64) -> u64 {
        match register {
            CAPABILITIES => CAPABILITIES_VALUE,
            CONFIGURATION => self.configuration.into(),
            STATUS => self.status.into(),
            COUNTER => self.counter_at(now),
            FIRST_TIMER.. => match self.timers.get(timer_index(register)) {
                Some(timer) if register % TIMER_STRIDE == TIMER_CONFIGURATION => timer.configuration.into(),
                Some(timer) if register % TIMER_STRIDE == TIMER_COMPARATOR => timer.comparator(),
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Writes the bits of `register` that are in `covered`.
    fn write(&mut self, register: u64, covered: u64, value: u64, now: u64) {
        let merged = self.read(register, now) & !covered | value & covered;
        let counter = self.counter_at(now);
        match register {
            CONFIGURATION => {
                let new = Configuration::from(merged & 3);
                if new.enabled() != self.configuration.enabled() {
                    self.counter = counter;
                    self.since = now;
                    self.configuration = new;
                    self.start_over(now);
                }
                if new.legacy() != self.configuration.legacy() {
                    for timer in &mut self.timers {
                        timer.high = false;
                    }
                }
                self.configuration = new;
            }
            // Ones clear.
            STATUS => self.status &= !(value & covered).to_le_bytes()[0],
            // The counter is to be written while it stands. A running one is set all the same.
            COUNTER => {
                self.counter = merged;
                self.since = now;
                self.start_over(now);
            }
            FIRST_TIMER.. => {
                let n = timer_index(register);
                let Some(timer) = self.timers.get_mut(n) else { return };
                match register % TIMER_STRIDE {
                    TIMER_CONFIGURATION => {
                        timer.configure(merged, counter);
                        if !timer.configuration.level() {
                            self.status &= !(1 << n);
                        }
                    }
                    TIMER_COMPARATOR => timer.write(covered, value, counter),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// The counter was started or set: matches count from here.
    fn start_over(&mut self, now: u64) {
        let counter = self.counter_at(now);
        for timer in &mut self.timers {
            timer.start_over(counter);
        }
    }
}

/// The timer whose block a register is in.
fn timer_index(register: u64) -> usize {
    usize::try_from((register - FIRST_TIMER) / TIMER_STRIDE).unwrap_or(usize::MAX)
}

impl Mmio for Hpet {
    fn name(&self) -> &str {
        "hpet"
    }

    fn read(&self, _cpu: usize, offset: u64, size: usize) -> u64 {
        let (register, byte) = (offset & !7, offset & 7);
        // An access over the end of a register sees that register only.
        self.at_now(|state, now| state.read(register, now)) >> (8 * byte) & all_ones(size)
    }

    fn write(&self, _cpu: usize, offset: u64, size: usize, value: u64) {
        let (register, byte) = (offset & !7, offset & 7);
        self.at_now(|state, now| state.write(register, all_ones(size) << (8 * byte), value << (8 * byte), now));
    }
}

impl Expire for Hpet {
    fn expire(&self, _now: u64) {
        self.at_now(|_, _| ());
    }
}

/// An input that legacy routing cuts off.
#[derive(Debug)]
struct Legacy {
    hpet: Weak<Hpet>,
    rtc: bool,
}

impl IrqLine for Legacy {
    fn set(&self, high: bool) {
        if let Some(hpet) = self.hpet.upgrade() {
            hpet.set_legacy(self.rtc, high);
        }
    }
}
