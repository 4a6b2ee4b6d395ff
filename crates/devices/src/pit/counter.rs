//! One counter of the 8254, as a function of the ticks of its clock.
//!
//! Nothing happens tick by tick. A counter knows at which tick its counting element was loaded, and with what; the
//! count and the output at any later tick follow from the mode. [`Counter::advance`] brings the rare changes of
//! course up to date: a new count that takes over at the end of a period.
//!
//! Tick numbers are absolute. An event at tick `t` (a write, a gate edge) loads the counting element at `t + 1`, the
//! next falling edge of the clock, as the data sheet's diagrams have it.

use super::spec::{Access, Control, Status};

/// Where the counting element gets its value from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    /// It stands still: no count was written since the control word, no trigger came, or the gate is low.
    Held,
    /// It was (or will be) loaded with the initial count at this tick. In mode 3 this is the start of a high half.
    From(u64),
}

/// What is latched for reading: bytes, low first, and how many of them are still to be read.
#[derive(Debug, Clone, Copy)]
struct Latched {
    bytes: [u8; 2],
    next: u8,
    left: u8,
}

#[derive(Debug)]
pub(super) struct Counter {
    control: Control,
    gate: bool,
    /// The count register: what was written, 1–65536 (or 10000).
    count: u64,
    /// A new count and the tick at which it takes over (modes 2 and 3 while counting).
    next: Option<(u64, u64)>,
    /// The count that the counting element now runs with.
    initial: u64,
    run: Run,
    /// The counting element's value while it stands still or waits for its first tick.
    held: u64,
    /// The output while it stands still.
    held_out: bool,
    /// The counting element was loaded with the count last written, or will be at the next tick.
    loaded: bool,
    /// Terminal count was reached before the last stop: mode 0's output is high, mode 4's strobe is over.
    done: bool,
    low_byte: Option<u8>,
    read_high: bool,
    latched_count: Option<Latched>,
    latched_status: Option<u8>,
}

impl Counter {
    pub fn new(gate: bool) -> Self {
        Self {
            control: Control::new().with_access(Access::Both),
            gate,
            count: 0x1_0000,
            next: None,
            initial: 0x1_0000,
            run: Run::Held,
            held: 0,
            held_out: false,
            loaded: false,
            done: false,
            low_byte: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    fn mode(&self) -> u8 {
        match self.control.mode() {
            mode @ 0..=5 => mode,
            mode => mode & 3,
        }
    }

    fn modulus(&self) -> u64 {
        if self.control.bcd() { 10_000 } else { 0x1_0000 }
    }

    /// The counting element's value at `tick`, 0 for the modulus.
    fn value(&self, tick: u64) -> u64 {
        let Run::From(start) = self.run else { return self.held };
        if tick < start {
            return self.held;
        }
        let passed = tick - start;
        let modulus = self.modulus();
        match self.mode() {
            2 => (self.initial - passed % self.initial) % modulus,
            3 => {
                let even = self.initial & !1;
                let phase = passed % self.initial;
                let high = self.initial.div_ceil(2);
                even.saturating_sub(2 * if phase < high { phase } else { phase - high }) % modulus
            }
            _ => (modulus + self.initial % modulus - passed % modulus) % modulus,
        }
    }

    /// The output at `tick`.
    pub fn out(&self, tick: u64) -> bool {
        let Run::From(start) = self.run else { return self.held_out };
        let Some(passed) = tick.checked_sub(start) else { return self.held_out };
        match self.mode() {
            0 => passed >= self.initial || self.done,
            1 => passed >= self.initial,
            2 => passed % self.initial != self.initial - 1,
            3 => passed % self.initial < self.initial.div_ceil(2),
            _ => passed != self.initial || self.done,
        }
    }

    /// The first tick after `tick` at which the output rises.
    pub fn next_rise(&self, tick: u64) -> Option<u64> {
        let Run::From(start) = self.run else { return None };
        let once = |at: u64| (at > tick).then_some(at);
        match self.mode() {
            0 if self.done => None,
            0 | 1 => once(start + self.initial),
            2 | 3 => {
                // A count in waiting changes the course only at a period's (or in mode 3 a half period's) end.
                if let Some((count, at)) = self.next
                    && at > tick
                {
                    let rises = self.mode() == 2 || (at - start) % self.initial == 0;
                    return Some(if rises { at } else { at + (count / 2) });
                }
                let periods = (tick + 1).saturating_sub(start).div_ceil(self.initial).max(1);
                Some(start + periods * self.initial)
            }
            _ if self.done => None,
            _ => once(start + self.initial + 1),
        }
    }

    /// Lets a count that waited for the end of the period take over, if that was at or before `tick`.
    pub fn advance(&mut self, tick: u64) {
        let Some((count, at)) = self.next.filter(|&(_, at)| at <= tick) else { return };
        let Run::From(start) = self.run else { return };
        self.next = None;
        // Mode 3 may change in the middle of a period; its low half then starts as that of the new count.
        let middle = self.mode() == 3 && (at - start) % self.initial != 0;
        self.run = Run::From(if middle { at.saturating_sub(count.div_ceil(2)) } else { at });
        self.initial = count;
    }

    pub fn write_control(&mut self, control: Control, tick: u64) {
        if control.access() == Access::Latch {
            self.latch_count(tick);
            return;
        }
        self.held = self.value(tick);
        self.control = control;
        self.held_out = self.mode() != 0;
        self.run = Run::Held;
        self.next = None;
        self.loaded = false;
        self.done = false;
        self.low_byte = None;
        self.read_high = false;
        self.latched_count = None;
        self.latched_status = None;
    }

    pub fn write(&mut self, value: u8, tick: u64) {
        let raw = match self.control.access() {
            Access::Latch => return,
            Access::Low => u16::from(value),
            Access::High => u16::from(value) << 8,
            Access::Both => match self.low_byte.take() {
                Some(low) => u16::from_le_bytes([low, value]),
                None => {
                    self.low_byte = Some(value);
                    if self.mode() == 0 {
                        self.hold(tick);
                        self.held_out = false;
                        self.loaded = false;
                    }
                    return;
                }
            },
        };
        self.load(raw, tick);
    }

    fn load(&mut self, raw: u16, tick: u64) {
        let value = if self.control.bcd() {
            (0..4).rev().fold(0, |sum, digit| sum * 10 + u64::from(raw >> (4 * digit) & 0xf)) % 10_000
        } else {
            u64::from(raw)
        };
        self.count = match value {
            0 => self.modulus(),
            // One is illegal in the periodic modes: there is no tick left for the output to be low.
            1 if matches!(self.mode(), 2 | 3) => 2,
            value => value,
        };
        match (self.mode(), self.run) {
            // These wait for a trigger; a running one-shot goes on with the count it has.
            (1 | 5, _) => self.loaded = false,
            (2, Run::From(start)) if tick >= start => {
                self.next = Some((self.count, self.period_end(start, tick)));
            }
            (3, Run::From(start)) if tick >= start => {
                let high = self.initial.div_ceil(2);
                let period = tick - (tick - start) % self.initial;
                let middle = period + high;
                let at = if tick < middle { middle } else { period + self.initial };
                self.next = Some((self.count, at));
            }
            (2 | 3, _) if !self.gate => self.loaded = false,
            (mode, _) => {
                self.held = self.value(tick);
                self.held_out = mode != 0;
                self.start(tick);
            }
        }
    }

    /// The first end of a period after `tick`.
    fn period_end(&self, start: u64, tick: u64) -> u64 {
        start + ((tick - start) / self.initial + 1) * self.initial
    }

    /// Loads the counting element at the next tick, and lets it run if the gate does.
    fn start(&mut self, tick: u64) {
        self.initial = self.count;
        self.next = None;
        self.loaded = true;
        self.done = false;
        if self.gate || matches!(self.mode(), 1 | 5) {
            self.run = Run::From(tick + 1);
        } else {
            // Loaded all the same: a low gate stops counting, not loading.
            self.held = self.count % self.modulus();
            self.run = Run::Held;
        }
    }

    /// Stops the counting element where it is.
    fn hold(&mut self, tick: u64) {
        let reached = matches!(self.run, Run::From(start) if tick >= start + self.initial);
        self.done |= reached;
        self.held = self.value(tick);
        self.held_out = self.mode() != 0 || self.done;
        self.run = Run::Held;
    }

    pub fn set_gate(&mut self, gate: bool, tick: u64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        match (self.mode(), gate) {
            (0 | 4, false) => self.hold(tick),
            (0 | 4, true) if self.loaded => self.resume(tick),
            (1 | 5, true) => {
                self.held_out = self.out(tick);
                self.held = self.value(tick);
                self.start(tick);
            }
            (2 | 3, false) => {
                self.hold(tick);
                self.next = None;
            }
            (2 | 3, true) => self.start(tick),
            _ => {}
        }
    }

    /// Goes on counting down from where a low gate stopped it (modes 0 and 4).
    fn resume(&mut self, tick: u64) {
        // As if loaded with what is left; zero goes all the way round.
        self.initial = if self.held == 0 { self.modulus() } else { self.held };
        self.run = Run::From(tick);
    }

    fn null_count(&self, tick: u64) -> bool {
        match self.run {
            Run::Held => !self.loaded,
            Run::From(start) => tick < start || self.next.is_some() || !self.loaded,
        }
    }

    /// Latches count and status as the read-back command asks.
    pub fn read_back(&mut self, count: bool, status: bool, tick: u64) {
        if status && self.latched_status.is_none() {
            let status = Status::new()
                .with_bcd(self.control.bcd())
                .with_mode(self.control.mode())
                .with_access(self.control.access())
                .with_null_count(self.null_count(tick))
                .with_out(self.out(tick));
            self.latched_status = Some(status.into());
        }
        if count {
            self.latch_count(tick);
        }
    }

    fn latch_count(&mut self, tick: u64) {
        if self.latched_count.is_none() {
            let bytes = self.raw(tick).to_le_bytes();
            let (next, left) = match self.control.access() {
                Access::Low | Access::Latch => (0, 1),
                Access::High => (1, 1),
                // A read that is half way through goes on with the high byte.
                Access::Both if self.read_high => (1, 1),
                Access::Both => (0, 2),
            };
            self.latched_count = Some(Latched { bytes, next, left });
        }
    }

    /// The counting element's value as it reads: binary or four decimal digits.
    fn raw(&self, tick: u64) -> u16 {
        let value = self.value(tick);
        let raw = if self.control.bcd() {
            (0..4).fold((0, value), |(raw, rest), digit| (raw | (rest % 10) << (4 * digit), rest / 10)).0
        } else {
            value
        };
        u16::try_from(raw & 0xffff).unwrap_or(u16::MAX)
    }

    pub fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = match self.latched_count {
            Some(mut latched) => {
                let byte = latched.bytes[usize::from(latched.next & 1)];
                latched.next += 1;
                latched.left -= 1;
                self.latched_count = (latched.left > 0).then_some(latched);
                self.read_high = self.control.access() == Access::Both && latched.left > 0;
                return byte;
            }
            None => self.raw(tick).to_le_bytes(),
        };
        match self.control.access() {
            Access::High => high,
            Access::Both => {
                self.read_high = !self.read_high;
                if self.read_high { low } else { high }
            }
            Access::Low | Access::Latch => low,
        }
    }
}
