//! The CMOS clock of a PC: an MC146818 with 128 bytes of memory, ports 70h and 71h.
//!
//! After the Motorola data sheet: time in BCD or binary and 12 or 24 hours, SET and the divider's reset, update in
//! progress for the 244 µs before an update, periodic, alarm and update-ended interrupts. The time is that which the
//! machine was made with plus what its clock has counted. Deadlines are kept only for interrupts that are enabled and
//! whose flag is not up yet. Left out: daylight saving, the square wave, the NMI mask (bit 7 of port 70h), an alarm
//! by date.

mod calendar;
mod clock;
mod spec;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use cpu::Clock;

use self::clock::{Timekeeper, date_register};
use self::spec::{
    A, B, BASE_MEMORY, C, CHECKSUM, CHECKSUM_OF, D, D_VALUE, DATA_PORT, EQUIPMENT, EQUIPMENT_VALUE, EXTENDED_MEMORY,
    HOURS_ALARM, INDEX_PORT, MEMORY_ABOVE_4G, MEMORY_ABOVE_16M, MINUTES_ALARM, RegisterA, RegisterB, RegisterC,
    SECONDS_ALARM, SHUTDOWN_STATUS,
};
use crate::bus::PortDevice;
use crate::bytes::{read_ports, write_ports};
use crate::line::Pin;
use crate::sync::lock;
use crate::timer::{Expire, Timer, Timers};

/// What the CMOS memory tells firmware and kernels of the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CmosConfig {
    /// Bytes of RAM below 4 GiB, from 0 on.
    pub ram_below_4g: u64,
    /// Bytes of RAM from 4 GiB on.
    pub ram_above_4g: u64,
}

/// The clock and its memory.
#[derive(Debug)]
pub struct Rtc {
    clock: Arc<dyn Clock>,
    /// IRQ8. Driven with the lock held.
    irq8: Pin,
    timer: Timer,
    /// Lock order: before the interrupt lines' and the timer queue's.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    index: u8,
    memory: [u8; 128],
    a: RegisterA,
    b: RegisterB,
    c: RegisterC,
    time: Timekeeper,
}

impl Rtc {
    /// The ports it answers at.
    pub const PORTS: [u16; 2] = [INDEX_PORT, DATA_PORT];
    /// The byte of the century, for the FADT.
    pub const CENTURY: u8 = spec::CENTURY as u8;

    /// A clock that showed `wall_clock` (since 1970, in the guest's time zone) when the machine's clock was zero.
    #[must_use]
    pub fn new(timers: &Arc<Timers>, irq8: Pin, wall_clock: Duration, config: &CmosConfig) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            clock: Arc::clone(timers.clock()),
            irq8,
            timer: timers.register(this.clone()),
            state: Mutex::new(State::new(wall_clock, config)),
        })
    }

    /// The machine was reset: interrupts are off, the time and the memory stay.
    pub fn reset(&self) {
        self.at_now(|state, _| {
            let off = state.b.with_update_interrupt(false).with_alarm_interrupt(false).with_periodic_interrupt(false);
            state.b = off.with_square_wave(false);
            state.c = RegisterC::new();
        });
    }

    /// The byte that tells firmware why the processor was reset (0Fh).
    #[must_use]
    pub fn shutdown_status(&self) -> u8 {
        lock(&self.state).memory[SHUTDOWN_STATUS]
    }

    /// Sets a byte of CMOS memory, as firmware would (0Eh–7Fh; others are registers and stay).
    pub fn set_memory(&self, index: u8, value: u8) {
        let index = usize::from(index & 0x7f);
        if index > D {
            lock(&self.state).memory[index] = value;
        }
    }

    /// Runs `f` on the state brought up to now (nanoseconds), then drives the line and the deadline.
    fn at_now<T>(&self, f: impl FnOnce(&mut State, u64) -> T) -> T {
        let mut state = lock(&self.state);
        let now = self.clock.now();
        state.advance(now);
        self.irq8.set(state.interrupt());
        let result = f(&mut state, now);
        self.irq8.set(state.interrupt());
        self.timer.set(state.next_deadline());
        result
    }
}

impl State {
    fn new(wall_clock: Duration, config: &CmosConfig) -> Self {
        let mut state = Self {
            index: 0,
            memory: [0; 128],
            a: RegisterA::new().with_divider(2).with_rate(6),
            b: RegisterB::new().with_hours_24(true),
            c: RegisterC::new(),
            time: Timekeeper::new(wall_clock),
        };
        state.describe(config);
        state.set_alarm();
        state
    }

    fn describe(&mut self, config: &CmosConfig) {
        const MIB: u64 = 1 << 20;
        self.memory[EQUIPMENT] = EQUIPMENT_VALUE;
        self.put(BASE_MEMORY, 2, 640);
        for index in EXTENDED_MEMORY {
            self.put(index, 2, config.ram_below_4g.saturating_sub(MIB) >> 10);
        }
        self.put(MEMORY_ABOVE_16M, 2, config.ram_below_4g.saturating_sub(16 * MIB) >> 16);
        self.put(MEMORY_ABOVE_4G, 3, config.ram_above_4g >> 16);
        let sum: u16 = self.memory[CHECKSUM_OF].iter().map(|&byte| u16::from(byte)).sum();
        self.memory[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
    }

    /// Puts `value`, or the largest that fits, into `size` bytes, low byte first.
    fn put(&mut self, index: usize, size: usize, value: u64) {
        let value = value.min((1 << (8 * size)) - 1);
        self.memory[index..index + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }

    fn advance(&mut self, now: u64) {
        let passed = self.time.advance(now, self.a.rate());
        self.c = RegisterC::from(u8::from(self.c) | u8::from(passed));
    }

    /// Whether IRQ8 is up.
    fn interrupt(&self) -> bool {
        let (b, c) = (self.b, self.c);
        c.update() && b.update_interrupt() || c.alarm() && b.alarm_interrupt() || c.periodic() && b.periodic_interrupt()
    }

    fn next_deadline(&self) -> Option<u64> {
        let (b, c) = (self.b, self.c);
        let update = (b.update_interrupt() && !c.update()).then(|| self.time.next_update()).flatten();
        let alarm = (b.alarm_interrupt() && !c.alarm()).then(|| self.time.next_alarm()).flatten();
        let periodic = b.periodic_interrupt() && !c.periodic();
        let periodic = periodic.then(|| self.time.next_period(self.a.rate())).flatten();
        [update, alarm, periodic].into_iter().flatten().min()
    }

    fn set_alarm(&mut self) {
        let alarm = [SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM].map(|index| self.memory[index]);
        self.time.set_alarm(alarm, self.b);
    }

    fn read(&mut self, port: u16, now: u64) -> u8 {
        if port != DATA_PORT {
            // The index cannot be read.
            return u8::MAX;
        }
        match usize::from(self.index) {
            A => self.a.with_updating(self.time.updating(now)).into(),
            B => self.b.into(),
            C => {
                let c = self.c.with_interrupt(self.interrupt());
                self.c = RegisterC::new();
                c.into()
            }
            D => D_VALUE,
            index => match date_register(index) {
                Some(register) => self.time.read(register, self.b),
                None => self.memory[index & 0x7f],
            },
        }
    }

    fn write(&mut self, port: u16, value: u8, now: u64) {
        match port {
            INDEX_PORT => self.index = value & 0x7f,
            DATA_PORT => self.write_data(usize::from(self.index), value, now),
            _ => {}
        }
    }

    fn write_data(&mut self, index: usize, value: u8, now: u64) {
        match index {
            A => {
                self.a = RegisterA::from(value).with_updating(false);
                self.time.set_divider(matches!(self.a.divider(), 6 | 7), now);
            }
            B => {
                self.b = RegisterB::from(value);
                if self.b.set() {
                    self.b.set_update_interrupt(false);
                }
                self.time.set_halted(self.b.set());
                self.set_alarm();
            }
            C | D => {}
            index => {
                match date_register(index) {
                    Some(register) => self.time.write(register, value, self.b),
                    None => self.memory[index & 0x7f] = value,
                }
                if index < A {
                    self.set_alarm();
                }
            }
        }
    }
}

impl PortDevice for Rtc {
    fn name(&self) -> &str {
        "rtc"
    }

    fn read(&self, port: u16, size: usize) -> u32 {
        self.at_now(|state, now| read_ports(port, size, |port| state.read(port, now)))
    }

    fn write(&self, port: u16, size: usize, value: u32) {
        self.at_now(|state, now| write_ports(port, size, value, |port, byte| state.write(port, byte, now)));
    }
}

impl Expire for Rtc {
    fn expire(&self, _now: u64) {
        self.at_now(|_, _| ());
    }
}
