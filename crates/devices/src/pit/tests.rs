//! Scripts of port accesses against the 8254, on a clock moved by hand.

use std::sync::Arc;

use super::*;
use crate::testing::{Probe, Time};

struct Board {
    time: Time,
    pit: Arc<Pit>,
    irq0: Arc<Probe>,
}

impl Board {
    fn new() -> Self {
        let time = Time::new();
        let irq0 = Probe::new(&time);
        let pit = Pit::new(&time.timers, irq0.clone());
        let board = Self { time, pit, irq0 };
        // Not at the start of time, and in the middle of a tick.
        board.time.jump(at(1000) + 100);
        board
    }

    fn out(&self, port: u16, value: u8) {
        self.pit.write(port, 1, value.into());
    }

    fn inb(&self, port: u16) -> u8 {
        self.pit.read(port, 1) as u8
    }

    fn load(&self, port: u16, count: u16) {
        let [low, high] = count.to_le_bytes();
        self.out(port, low);
        self.out(port, high);
    }

    /// Goes on by `n` ticks, firing the deadlines.
    fn ticks(&self, n: u64) {
        let tick = tick_at(self.time.clock.now()) - FIRST_TICK;
        self.time.run_to(at(tick + n) + 100);
    }

    fn count(&self, port: u16) -> u16 {
        u16::from_le_bytes([self.inb(port), self.inb(port)])
    }

    fn out2(&self) -> bool {
        self.inb(0x61) & 0x20 != 0
    }

    /// OUT2 for each of the next `n` ticks, starting with this one.
    fn wave(&self, n: usize) -> String {
        (0..n)
            .map(|_| {
                let level = if self.out2() { '^' } else { '_' };
                self.ticks(1);
                level
            })
            .collect()
    }
}

/// The first nanosecond of tick `n`.
fn at(n: u64) -> u64 {
    time_of(FIRST_TICK + n)
}

#[test]
fn ticks_and_nanoseconds_agree() {
    for n in [0, 1, 2, 3, 1_193_181, 1_193_182, 1_193_183, 987_654_321_987] {
        assert_eq!(tick_at(at(n)), FIRST_TICK + n);
        if n > 0 {
            assert_eq!(tick_at(at(n) - 1), FIRST_TICK + n - 1);
        }
    }
    assert_eq!(at(1_193_182), SECOND);
    assert!(tick_at(u64::MAX) > FIRST_TICK);
}

#[test]
fn mode_0_rises_once_at_terminal_count() {
    let b = Board::new();
    b.out(0x43, 0x30);
    b.load(0x40, 1000);
    assert_eq!(b.time.timers.next_deadline(), Some(at(2001)), "loaded at the next tick, then 1000 more");
    b.ticks(1);
    assert_eq!(b.count(0x40), 1000);
    b.ticks(999);
    assert_eq!(b.count(0x40), 1);
    assert_eq!(b.irq0.rises(), 0);
    b.ticks(1);
    assert_eq!(b.irq0.take_rises(), [at(2001)]);
    assert_eq!(b.count(0x40), 0);
    b.ticks(1);
    assert_eq!(b.count(0x40), 0xffff, "it goes on round");
    assert_eq!(b.time.timers.next_deadline(), None);
    assert!(b.irq0.high());
    b.load(0x40, 5);
    assert!(!b.irq0.high(), "a new count lowers the output");
    b.ticks(6);
    assert_eq!(b.irq0.rises(), 2);
}

#[test]
fn mode_0_gate_pauses() {
    let b = Board::new();
    b.out(0x61, 0x01);
    b.out(0x43, 0xb0);
    b.load(0x42, 10);
    b.ticks(4);
    b.out(0x61, 0x00);
    b.ticks(100);
    assert_eq!(b.count(0x42), 7);
    assert!(!b.out2());
    b.out(0x61, 0x01);
    b.ticks(6);
    assert!(!b.out2());
    b.ticks(1);
    assert!(b.out2());
    b.out(0x61, 0x00);
    b.out(0x61, 0x01);
    b.ticks(3);
    assert!(b.out2(), "high stays high");
}

#[test]
fn mode_0_loads_with_the_gate_low() {
    let b = Board::new();
    b.out(0x43, 0xb0);
    b.load(0x42, 0);
    b.ticks(10);
    assert!(!b.out2());
    b.out(0x61, 0x01);
    b.ticks(0xffff);
    assert!(!b.out2());
    b.ticks(1);
    assert!(b.out2());
}

/// Linux (`pit_calibrate_tsc`, `quick_pit_calibrate`) polls this bit or the count's high byte.
#[test]
fn out2_is_exact_on_the_clock() {
    let b = Board::new();
    b.out(0x61, 0x01);
    b.out(0x43, 0xb0);
    let count = 59_659;
    b.load(0x42, count);
    let end = at(1000 + 1 + u64::from(count));
    b.time.jump(end - 1);
    assert!(!b.out2());
    b.time.jump(end);
    assert!(b.out2());
    assert_eq!(b.time.timers.next_deadline(), None, "nobody waits for counter 2");
}

#[test]
fn mode_1_is_a_retriggerable_one_shot() {
    let b = Board::new();
    b.out(0x43, 0xb2);
    b.load(0x42, 3);
    assert_eq!(b.wave(3), "^^^", "no trigger, no shot");
    b.out(0x61, 1);
    assert_eq!(b.wave(6), "^___^^");
    b.out(0x61, 0);
    b.out(0x61, 1);
    assert_eq!(b.wave(3), "^__");
    b.out(0x61, 0);
    b.out(0x61, 1);
    assert_eq!(b.wave(6), "____^^", "triggered anew while low");
    b.load(0x42, 1);
    b.out(0x61, 0);
    b.out(0x61, 1);
    assert_eq!(b.wave(3), "^_^");
}

#[test]
fn mode_2_divides_the_clock() {
    let b = Board::new();
    b.out(0x43, 0x34);
    b.load(0x40, 1193);
    b.irq0.take_rises();
    b.ticks(3 * 1193 + 5);
    let start = 1001;
    assert_eq!(b.irq0.take_rises(), [at(start + 1193), at(start + 2 * 1193), at(start + 3 * 1193)]);
    b.ticks(10);
    let first = b.count(0x40);
    b.ticks(100);
    assert_eq!(b.count(0x40), first - 100);
    // A busy host: late by many periods, one interrupt, and the phase is kept.
    b.time.jump(at(start + 10 * 1193 + 7));
    b.time.timers.fire_due(b.time.clock.now());
    assert_eq!(b.irq0.take_rises().len(), 1);
    assert_eq!(b.time.timers.next_deadline(), Some(at(start + 11 * 1193)));
}

#[test]
fn mode_2_wave_gate_and_new_count() {
    let b = Board::new();
    b.out(0x61, 1);
    b.out(0x43, 0xb4);
    b.load(0x42, 3);
    assert_eq!(b.wave(8), "^^^_^^_^");
    b.load(0x42, 2);
    assert_eq!(b.wave(6), "^_^_^_", "the new count starts with the next period");
    b.load(0x42, 4);
    b.out(0x61, 0);
    assert_eq!(b.wave(3), "^^^");
    b.out(0x61, 1);
    assert_eq!(b.wave(6), "^^^^_^");
}

#[test]
fn mode_3_is_a_square_wave() {
    let b = Board::new();
    b.out(0x61, 1);
    b.out(0x43, 0xb6);
    b.load(0x42, 4);
    assert_eq!(b.wave(9), "^^^__^^__");
    b.load(0x42, 5);
    assert_eq!(b.wave(12), "^^__^^^__^^^", "the new count starts with the next half");
    b.out(0x43, 0xbe);
    b.load(0x42, 4);
    assert_eq!(b.wave(5), "^^^__", "mode 7 is mode 3");
    b.ticks(2);
    b.out(0x61, 0);
    assert!(b.out2());
}

#[test]
fn mode_3_counts_by_twos_and_interrupts_once_a_period() {
    let b = Board::new();
    b.out(0x43, 0x36);
    b.load(0x40, 0);
    b.irq0.take_rises();
    b.ticks(1);
    assert_eq!(b.count(0x40), 0);
    b.ticks(1);
    assert_eq!(b.count(0x40), 0xfffe);
    b.ticks(0x7fff);
    assert_eq!(b.count(0x40), 0, "reloaded for the low half");
    b.ticks(3 * 0x1_0000);
    assert_eq!(b.irq0.take_rises(), [1, 2, 3].map(|n| at(1001 + n * 0x1_0000)));

    let b = Board::new();
    b.out(0x43, 0x36);
    b.load(0x40, 7);
    b.ticks(1);
    let seen: Vec<u16> = (0..7)
        .map(|_| {
            let count = b.count(0x40);
            b.ticks(1);
            count
        })
        .collect();
    assert_eq!(seen, [6, 4, 2, 0, 6, 4, 2]);
}

#[test]
fn mode_4_strobes_once() {
    let b = Board::new();
    b.out(0x61, 1);
    b.out(0x43, 0xb8);
    b.load(0x42, 2);
    assert_eq!(b.wave(7), "^^^_^^^");
    b.ticks(0x1_0000);
    assert_eq!(b.wave(4), "^^^^");
    b.load(0x42, 3);
    b.ticks(2);
    b.out(0x61, 0);
    assert_eq!(b.wave(3), "^^^");
    b.out(0x61, 1);
    assert_eq!(b.wave(4), "^^_^");
    b.out(0x61, 0);
    b.out(0x61, 1);
    b.ticks(0xfff0);
    assert!(!b.wave(40).contains('_'), "no second strobe after a pause");

    // As Linux uses counter 0 for one-shot events.
    b.out(0x43, 0x38);
    b.irq0.take_rises();
    b.load(0x40, 100);
    let start = tick_at(b.time.clock.now()) - FIRST_TICK + 1;
    b.ticks(200);
    assert_eq!(b.irq0.take_rises(), [at(start + 101)]);
}

#[test]
fn mode_5_strobes_on_a_trigger() {
    let b = Board::new();
    b.out(0x43, 0xba);
    b.load(0x42, 2);
    assert_eq!(b.wave(4), "^^^^");
    b.out(0x61, 1);
    assert_eq!(b.wave(5), "^^^_^");
    b.out(0x61, 0);
    b.out(0x61, 1);
    assert_eq!(b.wave(2), "^^");
    b.out(0x61, 0);
    b.out(0x61, 1);
    assert_eq!(b.wave(5), "^^^_^");
}

#[test]
fn a_control_word_stops_the_counter() {
    let b = Board::new();
    b.out(0x43, 0x34);
    b.load(0x40, 100);
    b.out(0x43, 0x30);
    assert_eq!(b.time.timers.next_deadline(), None);
    assert!(!b.irq0.high());
    b.out(0x40, 1);
    assert_eq!(b.time.timers.next_deadline(), None, "half a count is none");
    b.out(0x40, 0);
    assert!(b.time.timers.next_deadline().is_some());
}

#[test]
fn latches_hold_until_read() {
    let b = Board::new();
    b.out(0x43, 0x34);
    b.load(0x40, 0x1234);
    b.ticks(1);
    b.out(0x43, 0x00);
    b.ticks(50);
    b.out(0x43, 0x00);
    assert_eq!(b.inb(0x40), 0x34, "the second latch command found the first");
    b.ticks(1);
    assert_eq!(b.inb(0x40), 0x12);
    assert_eq!(b.count(0x40), 0x1234 - 51);
    // One byte read, then a latch: the high byte is next.
    let live = b.inb(0x40);
    assert_eq!(u16::from(live), (0x1234 - 51) & 0xff);
    b.out(0x43, 0x00);
    assert_eq!(b.inb(0x40), 0x12);
    assert_eq!(u16::from(b.inb(0x40)), (0x1234 - 51) & 0xff);
}

#[test]
fn read_back_latches_status_before_count() {
    let b = Board::new();
    b.out(0x43, 0x36);
    b.out(0x43, 0xe2);
    assert_eq!(b.inb(0x40), 0b1111_0110, "OUT, null count, both bytes, mode 3");
    b.load(0x40, 0x100);
    b.out(0x43, 0xe2);
    assert_eq!(b.inb(0x40) & 0x40, 0x40, "not loaded before the next tick");
    b.ticks(1);
    b.out(0x43, 0xc2);
    b.ticks(10);
    assert_eq!(b.inb(0x40), 0b1011_0110);
    assert_eq!(b.count(0x40), 0x100);
    b.load(0x40, 0x80);
    b.out(0x43, 0xe2);
    assert_eq!(b.inb(0x40) & 0x40, 0x40, "the new count waits for the end of the half period");
    b.ticks(0x80);
    b.out(0x43, 0xe2);
    assert_eq!(b.inb(0x40) & 0x40, 0);
    b.out(0x43, 0xde);
    for port in 0x40..=0x42 {
        b.count(port);
    }
}

#[test]
fn single_byte_access() {
    let b = Board::new();
    b.out(0x43, 0x10);
    b.out(0x40, 20);
    b.ticks(1);
    assert_eq!((b.inb(0x40), b.inb(0x40)), (20, 20));
    b.out(0x43, 0x20);
    b.out(0x40, 2);
    b.ticks(1);
    assert_eq!(b.inb(0x40), 2);
    b.ticks(1);
    assert_eq!(b.inb(0x40), 1);
}

#[test]
fn bcd_counts_in_decimal() {
    let b = Board::new();
    b.out(0x43, 0x31);
    b.load(0x40, 0x1000);
    b.ticks(2);
    assert_eq!(b.count(0x40), 0x999);
    b.ticks(1000);
    assert_eq!(b.count(0x40), 0x9999, "round at ten thousand");
    assert_eq!(b.irq0.take_rises(), [at(1001 + 1000)]);
    b.load(0x40, 0);
    b.ticks(10_000);
    assert_eq!(b.irq0.rises(), 1);
    b.ticks(1);
    assert_eq!(b.irq0.rises(), 2);
    b.load(0x40, 0xffff);
}

#[test]
fn port_b_keeps_its_bits_and_toggles_refresh() {
    let b = Board::new();
    b.out(0x61, 0xff);
    assert_eq!(b.inb(0x61) & 0b1100_1111, 0b1111);
    b.out(0x61, 0);
    assert_eq!(b.inb(0x61) & 0b1100_1111, 0);
    b.time.jump(REFRESH_NS * 1000);
    assert_eq!(b.inb(0x61) & 0x10, 0);
    b.time.jump(REFRESH_NS * 1001);
    assert_eq!(b.inb(0x61) & 0x10, 0x10);
    assert_eq!(b.inb(0x43), 0xff);
}

#[test]
fn reset_stops_everything() {
    let b = Board::new();
    b.out(0x43, 0x34);
    b.load(0x40, 100);
    b.pit.reset();
    assert!(!b.irq0.high());
    assert_eq!(b.time.timers.next_deadline(), None);
}

#[test]
fn any_size_any_value_any_time_is_safe() {
    let b = Board::new();
    let mut seed = 1_u64;
    for round in 0..20_000_u64 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let port = [0x40, 0x41, 0x42, 0x43, 0x43, 0x61, 0x3f, 0xffff][(seed >> 33) as usize & 7];
        let size = (seed >> 40) as usize % 6;
        if seed & 1 << 50 == 0 {
            b.pit.write(port, size, (seed >> 16) as u32);
        } else {
            b.pit.read(port, size);
        }
        b.time.jump(b.time.clock.now() + (seed >> 44) % 100_000);
        if round % 7 == 0 {
            b.time.timers.fire_due(b.time.clock.now());
        }
    }
    b.time.jump(u64::MAX);
    b.time.timers.fire_due(u64::MAX);
    b.pit.read(0x40, 4);
}
