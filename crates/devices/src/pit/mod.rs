//! The 8254 programmable interval timer, and port 61h with the speaker's gate.
//!
//! After the 8254 data sheet (Intel 231164): three counters, six modes, binary and BCD, counter latch and read-back.
//! All of it is computed from the machine's clock when somebody looks, so that a guest which polls OUT2 in port 61h to
//! measure its TSC finds the exact frequency. Only counter 0, whose output is IRQ0, has a deadline: its rising edges.
//! Its falling edges, which no interrupt controller hears, reach the line with the next access or edge.
//! Left out: sound, and the NMI sources of port 61h. Counter 1 counts and is connected to nothing.

mod counter;
mod spec;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, Weak};

use cpu::Clock;

use self::counter::Counter;
use self::spec::{CONTROL, COUNTER0, COUNTER2, Control, FREQUENCY, PORT_B, PortB, REFRESH_NS, ReadBack};
use crate::bus::PortDevice;
use crate::bytes::{read_ports, write_ports};
use crate::line::Pin;
use crate::sync::lock;
use crate::timer::{Expire, Timer, Timers};

/// The interval timer and port 61h.
#[derive(Debug)]
pub struct Pit {
    clock: Arc<dyn Clock>,
    /// Counter 0's output. Driven with the lock held.
    irq0: Pin,
    timer: Timer,
    /// Lock order: before the interrupt lines' and the timer queue's.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    counters: [Counter; 3],
    port_b: PortB,
    /// The tick up to which counter 0's edges have gone out on the line.
    seen: u64,
}

impl Pit {
    /// The ports it answers at.
    pub const PORTS: [u16; 5] = [0x40, 0x41, 0x42, 0x43, 0x61];

    /// The timer as it is after power-on: nothing counts, outputs are low.
    #[must_use]
    pub fn new(timers: &Arc<Timers>, irq0: Pin) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            clock: Arc::clone(timers.clock()),
            irq0,
            timer: timers.register(this.clone()),
            state: Mutex::new(State::new()),
        })
    }

    /// Back to the state of power-on.
    pub fn reset(&self) {
        *lock(&self.state) = State::new();
        self.at_now(|_, _| ());
    }

    /// Runs `f` on the state brought up to now (the tick, and nanoseconds), then drives the line and the deadline.
    fn at_now<T>(&self, f: impl FnOnce(&mut State, (u64, u64)) -> T) -> T {
        let mut state = lock(&self.state);
        let now = self.clock.now();
        let tick = tick_at(now);
        let rose = state.counters[0].next_rise(state.seen).is_some_and(|rise| rise <= tick);
        for counter in &mut state.counters {
            counter.advance(tick);
        }
        if rose {
            self.irq0.set(false);
            self.irq0.set(true);
        }
        let result = f(&mut state, (tick, now));
        state.seen = tick;
        self.irq0.set(state.counters[0].out(tick));
        self.timer.set(state.counters[0].next_rise(tick).map(time_of));
        result
    }
}

/// Tick numbers start here, so that the start of a period can lie before the machine's.
const FIRST_TICK: u64 = 1 << 20;
const SECOND: u64 = 1_000_000_000;

/// The tick that is under way at `ns` nanoseconds.
fn tick_at(ns: u64) -> u64 {
    let ticks = u128::from(ns) * u128::from(FREQUENCY) / u128::from(SECOND);
    FIRST_TICK.saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX))
}

/// The first nanosecond of `tick`.
fn time_of(tick: u64) -> u64 {
    let ticks = u128::from(tick.saturating_sub(FIRST_TICK));
    u64::try_from((ticks * u128::from(SECOND)).div_ceil(u128::from(FREQUENCY))).unwrap_or(u64::MAX)
}

impl State {
    fn new() -> Self {
        let counters = [Counter::new(true), Counter::new(true), Counter::new(false)];
        Self { counters, port_b: PortB::new(), seen: 0 }
    }

    fn read(&mut self, port: u16, (tick, now): (u64, u64)) -> u8 {
        match port {
            COUNTER0..=COUNTER2 => self.counters[usize::from(port - COUNTER0)].read(tick),
            PORT_B => {
                self.port_b.with_refresh((now / REFRESH_NS) & 1 != 0).with_out2(self.counters[2].out(tick)).into()
            }
            // The control word cannot be read.
            _ => u8::MAX,
        }
    }

    fn write(&mut self, port: u16, value: u8, tick: u64) {
        match port {
            COUNTER0..=COUNTER2 => self.counters[usize::from(port - COUNTER0)].write(value, tick),
            CONTROL => {
                let control = Control::from(value);
                if let Some(counter) = self.counters.get_mut(usize::from(control.counter())) {
                    counter.write_control(control, tick);
                } else {
                    self.read_back(ReadBack::from(value), tick);
                }
            }
            PORT_B => {
                let written = PortB::from(value);
                self.port_b = PortB::new()
                    .with_gate2(written.gate2())
                    .with_speaker(written.speaker())
                    .with_disable_errors(written.disable_errors());
                self.counters[2].set_gate(written.gate2(), tick);
            }
            _ => {}
        }
    }

    fn read_back(&mut self, command: ReadBack, tick: u64) {
        for (n, counter) in self.counters.iter_mut().enumerate() {
            if command.counters() & (1 << n) != 0 {
                counter.read_back(!command.no_count(), !command.no_status(), tick);
            }
        }
    }
}

impl PortDevice for Pit {
    fn name(&self) -> &str {
        "pit"
    }

    fn read(&self, port: u16, size: usize) -> u32 {
        self.at_now(|state, now| read_ports(port, size, |port| state.read(port, now)))
    }

    fn write(&self, port: u16, size: usize, value: u32) {
        self.at_now(|state, (tick, _)| write_ports(port, size, value, |port, byte| state.write(port, byte, tick)));
    }
}

impl Expire for Pit {
    fn expire(&self, _now: u64) {
        self.at_now(|_, _| ());
    }
}
