//! Scripts of register accesses against the HPET, on a clock moved by hand.

use super::*;
use crate::line::NoLine;
use crate::testing::{Probe, Time};

const ENABLED: u64 = 1 << 2;
const LEVEL: u64 = 1 << 1;
const PERIODIC: u64 = 1 << 3;
const SET_VALUE: u64 = 1 << 6;
const NARROW: u64 = 1 << 8;

struct Board {
    time: Time,
    hpet: Arc<Hpet>,
    irq0: Arc<Probe>,
    irq8: Arc<Probe>,
    gsi17: Arc<Probe>,
}

impl Board {
    fn new() -> Self {
        let time = Time::new();
        let [irq0, irq8, gsi17] = [(); 3].map(|()| Probe::new(&time));
        let mut gsi16 = [(); 8].map(|()| NoLine::pin());
        gsi16[1] = gsi17.clone();
        let lines = HpetLines { irq0: irq0.clone(), irq8: irq8.clone(), gsi16 };
        let hpet = Hpet::new(&time.timers, lines);
        time.jump(12_345);
        Self { time, hpet, irq0, irq8, gsi17 }
    }

    fn write(&self, offset: u64, value: u64) {
        self.hpet.write(0, offset, 8, value);
    }

    fn read(&self, offset: u64) -> u64 {
        self.hpet.read(0, offset, 8)
    }

    /// Starts the counter; the clock's time at which it was zero.
    fn start(&self, configuration: u64) -> u64 {
        self.write(0x10, configuration | 1);
        self.time.clock.now()
    }
}

#[test]
fn capabilities() {
    let b = Board::new();
    assert_eq!(b.read(0), 10_000_000 << 32 | 0x8086_a201);
    assert_eq!(b.hpet.read(0, 4, 4), 10_000_000);
    b.write(0, 0);
    assert_eq!(b.read(0) >> 32, 10_000_000);
    assert_eq!(b.read(0x100), 0x00ff_0104_0000_0030);
    b.write(0x100, !SET_VALUE);
    assert_eq!(b.read(0x100), 0x00ff_0104_0000_3f3e, "no message interrupts");
    assert_eq!((b.read(0x160), b.read(0x3f8), b.read(0x118)), (0, 0, 0));
}

#[test]
fn the_counter_runs_while_enabled() {
    let b = Board::new();
    assert_eq!(b.read(0xf0), 0);
    b.write(0xf0, 0xffff_ffff);
    b.time.run(1000);
    assert_eq!(b.read(0xf0), 0xffff_ffff);
    b.start(0);
    b.time.run(9);
    assert_eq!(b.read(0xf0), 0xffff_ffff);
    b.time.run(1);
    assert_eq!(b.read(0xf0), 0x1_0000_0000);
    assert_eq!((b.hpet.read(0, 0xf0, 4), b.hpet.read(0, 0xf4, 4)), (0, 1));
    b.time.run(100);
    b.write(0x10, 0);
    b.time.run(100);
    assert_eq!(b.read(0xf0), 0x1_0000_000a);
}

#[test]
fn one_shot_fires_at_its_tick() {
    let b = Board::new();
    b.write(0x120, ENABLED | 17 << 9);
    b.write(0x128, 1000);
    assert_eq!(b.time.timers.next_deadline(), None, "the counter stands");
    let zero = b.start(0);
    assert_eq!(b.time.timers.next_deadline(), Some(zero + 10_000));
    b.time.run(20_000);
    assert_eq!(b.gsi17.take_rises(), [zero + 10_000]);
    b.time.run(5);
    b.write(0x128, 3000);
    b.time.run(20_000);
    assert_eq!(b.gsi17.take_rises(), [zero + 30_000], "a write in the middle of a tick does not shift it");
    b.write(0x128, 5000);
    b.write(0x120, 17 << 9);
    assert_eq!(b.time.timers.next_deadline(), None);
    assert!(!b.gsi17.high());
}

#[test]
fn writing_the_present_count_matches_and_the_past_does_not() {
    let b = Board::new();
    b.write(0x120, ENABLED | 17 << 9);
    b.start(0);
    b.time.run(1000);
    b.write(0x128, 100);
    assert_eq!(b.gsi17.rises(), 1);
    b.write(0x128, 99);
    b.time.run(1_000_000);
    assert_eq!(b.gsi17.rises(), 1);
    assert_eq!(b.time.timers.next_deadline(), None, "5,800 years are beyond the clock");
}

#[test]
fn periodic_with_the_value_set_bit() {
    let b = Board::new();
    let zero = b.start(0);
    // As Linux sets it up: the first match, then the period.
    b.write(0x120, ENABLED | PERIODIC | SET_VALUE | NARROW | 17 << 9);
    b.write(0x128, 500);
    assert_eq!(b.read(0x120) & SET_VALUE, 0);
    b.write(0x128, 200);
    assert_eq!(b.read(0x128), 500, "without the bit only the period is written");
    b.time.run(10_000);
    assert_eq!(b.gsi17.take_rises(), [5000, 7000, 9000].map(|t| zero + t));
    assert_eq!(b.read(0x128), 1100);
    b.time.jump(zero + 25_500);
    b.time.timers.fire_due(b.time.clock.now());
    assert_eq!(b.gsi17.take_rises().len(), 1, "missed periods count once");
    assert_eq!(b.time.timers.next_deadline(), Some(zero + 27_000));
}

#[test]
fn a_period_of_zero_is_harmless() {
    let b = Board::new();
    b.start(0);
    b.write(0x120, ENABLED | PERIODIC | SET_VALUE | 17 << 9);
    b.write(0x128, 0);
    b.write(0x120, ENABLED | PERIODIC | SET_VALUE | NARROW | 17 << 9);
    b.write(0x128, 100);
    b.write(0x128, 0);
    b.time.run(10_000_000);
    assert_eq!(b.gsi17.rises(), 2, "once for the count it had, once for the next");
}

#[test]
fn narrow_timers_wrap_at_32_bits() {
    let b = Board::new();
    b.write(0xf0, 0x7_ffff_ff00);
    let zero = b.start(0);
    b.write(0x120, ENABLED | NARROW | 17 << 9);
    b.write(0x128, 0xabcd_0000_0010);
    assert_eq!(b.read(0x128), 0x10);
    b.time.run(10_000);
    assert_eq!(b.gsi17.take_rises(), [zero + 2720]);
    assert_eq!(b.time.timers.next_deadline(), Some(zero + 2720 + (10 << 32)), "and again each time round");
}

#[test]
fn the_counter_wraps_at_64_bits() {
    let b = Board::new();
    b.write(0xf0, u64::MAX - 1);
    b.write(0x128, 1);
    b.write(0x120, ENABLED | 17 << 9);
    let zero = b.start(0);
    b.time.run(1000);
    assert_eq!(b.gsi17.take_rises(), [zero + 30]);
    assert_eq!(b.read(0xf0), 98);
}

#[test]
fn level_interrupts_stay_until_cleared() {
    let b = Board::new();
    b.start(0);
    b.write(0x120, ENABLED | LEVEL | 17 << 9);
    b.write(0x128, 10);
    b.time.run(1000);
    assert!(b.gsi17.high());
    assert_eq!(b.read(0x20), 2);
    b.write(0x20, 1);
    assert!(b.gsi17.high());
    b.hpet.write(0, 0x20, 4, 2);
    assert!(!b.gsi17.high());
    assert_eq!(b.read(0x20), 0);
}

#[test]
fn legacy_routing_takes_irq0_and_irq8_over() {
    let b = Board::new();
    let (pit, rtc) = (b.hpet.pit_input(), b.hpet.rtc_input());
    pit.set(true);
    rtc.set(true);
    assert!(b.irq0.high() && b.irq8.high());
    let zero = b.start(2);
    assert!(!b.irq0.high() && !b.irq8.high(), "cut off");
    pit.set(false);
    pit.set(true);
    assert!(!b.irq0.high());
    b.write(0x100, ENABLED);
    b.write(0x108, 100);
    b.write(0x120, ENABLED | 17 << 9);
    b.write(0x128, 200);
    b.irq0.take_rises();
    b.irq8.take_rises();
    b.time.run(10_000);
    assert_eq!((b.irq0.take_rises(), b.irq8.take_rises()), (vec![zero + 1000], vec![zero + 2000]));
    assert_eq!(b.gsi17.rises(), 0, "the route does not count for timers 0 and 1");
    // Edges come one by one though the line is never acknowledged.
    b.write(0x108, 1500);
    b.time.run(10_000);
    assert_eq!(b.irq0.take_rises(), [zero + 15_000]);
    b.write(0x10, 0);
    assert!(b.irq0.high() && b.irq8.high(), "the old lines are back");
}

#[test]
fn routes_to_the_isa_lines() {
    let b = Board::new();
    b.start(0);
    b.write(0x140, ENABLED | 2 << 9);
    b.write(0x148, 10);
    b.time.run(1000);
    assert_eq!(b.irq0.rises(), 1);
    b.write(0x140, ENABLED | 8 << 9);
    b.write(0x148, 200);
    b.time.run(2000);
    assert_eq!((b.irq0.rises(), b.irq8.rises()), (1, 1));
    b.write(0x140, ENABLED | 5 << 9);
    b.write(0x148, 500);
    b.time.run(10_000);
    assert_eq!((b.irq0.rises(), b.irq8.rises()), (1, 1), "a route that is none");
}

#[test]
fn halves_of_registers() {
    let b = Board::new();
    b.hpet.write(0, 0xf0, 4, 0x1111_1111);
    b.hpet.write(0, 0xf4, 4, 0x2222_2222);
    assert_eq!(b.read(0xf0), 0x2222_2222_1111_1111);
    b.hpet.write(0, 0x10c, 4, 7);
    assert_eq!(b.read(0x108), 0x7_ffff_ffff);
    b.hpet.write(0, 0x100, 1, ENABLED);
    assert_eq!(b.hpet.read(0, 0x100, 1), ENABLED | 0x30);
    b.start(0);
    for offset in (0..0x500).chain([u64::MAX, u64::MAX - 7]) {
        for size in [0, 1, 2, 4, 8, 9] {
            b.hpet.read(0, offset, size);
            b.hpet.write(0, offset, size, 0xdead_beef_0bad_cafe_u64.rotate_left(offset as u32));
            b.time.jump(b.time.clock.now() + 777);
        }
    }
    b.time.jump(u64::MAX);
    b.time.timers.fire_due(u64::MAX);
    b.read(0xf0);
}

#[test]
fn reset_halts() {
    let b = Board::new();
    b.start(2);
    b.write(0x100, ENABLED);
    b.write(0x108, 100);
    b.time.run(2000);
    assert!(b.irq0.high());
    b.hpet.reset();
    assert!(!b.irq0.high());
    assert_eq!((b.read(0x10), b.read(0xf0), b.time.timers.next_deadline()), (0, 0, None));
}
