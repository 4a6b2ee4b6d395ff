//! Scripts of port accesses against the CMOS clock, on a clock moved by hand.

use super::*;
use crate::testing::{Probe, Time};

const SECOND: u64 = 1_000_000_000;
const GIB: u64 = 1 << 30;

/// 2023-12-31 23:59:58.25 UTC, a Sunday.
const EVE: Duration = Duration::new(1_704_067_198, 250_000_000);

struct Board {
    time: Time,
    rtc: Arc<Rtc>,
    irq8: Arc<Probe>,
}

impl Board {
    fn new(wall_clock: Duration) -> Self {
        let time = Time::new();
        let irq8 = Probe::new(&time);
        let config = CmosConfig { ram_below_4g: 3 * GIB, ram_above_4g: 5 * GIB };
        let rtc = Rtc::new(&time.timers, irq8.clone(), wall_clock, &config);
        Self { time, rtc, irq8 }
    }

    fn read(&self, index: u8) -> u8 {
        self.rtc.write(0x70, 1, index.into());
        self.rtc.read(0x71, 1) as u8
    }

    fn write(&self, index: u8, value: u8) {
        self.rtc.write(0x70, 1, index.into());
        self.rtc.write(0x71, 1, value.into());
    }

    /// Century, year, month, day, hour, minute, second, day of the week, as they read.
    fn date(&self) -> [u8; 8] {
        [0x32, 9, 8, 7, 4, 2, 0, 6].map(|index| self.read(index))
    }

    fn set_date(&self, date: [u8; 7]) {
        for (index, value) in [0x32, 9, 8, 7, 4, 2, 0].into_iter().zip(date) {
            self.write(index, value);
        }
    }

    fn word(&self, index: u8) -> u16 {
        u16::from_le_bytes([self.read(index), self.read(index + 1)])
    }
}

#[test]
fn the_calendar_goes_both_ways() {
    use super::calendar::DateTime;
    for (seconds, date) in [
        (0, (1970, 1, 1)),
        (-1, (1969, 12, 31)),
        (951_782_400, (2000, 2, 29)),
        (951_868_800, (2000, 3, 1)),
        (4_107_542_400, (2100, 3, 1)),
        (1_709_164_800, (2024, 2, 29)),
    ] {
        let found = DateTime::from_seconds(seconds);
        assert_eq!((found.year, found.month, found.day), date);
    }
    for day in -200_000..400_000_i64 {
        let seconds = day * 86_400 + day.rem_euclid(86_400);
        assert_eq!(DateTime::from_seconds(seconds).to_seconds(), seconds);
    }
}

#[test]
fn bcd_time_goes_on_into_the_new_year() {
    let b = Board::new(EVE);
    assert_eq!(b.date(), [0x20, 0x23, 0x12, 0x31, 0x23, 0x59, 0x58, 1]);
    b.time.run(SECOND * 3 / 4 - 1);
    assert_eq!(b.read(0), 0x58);
    b.time.run(1);
    assert_eq!(b.read(0), 0x59);
    b.time.run(SECOND);
    assert_eq!(b.date(), [0x20, 0x24, 0x01, 0x01, 0x00, 0x00, 0x00, 2]);
    b.time.run(59 * 86_400 * SECOND);
    assert_eq!(b.date()[..4], [0x20, 0x24, 0x02, 0x29]);
}

#[test]
fn binary_and_12_hour_forms() {
    let b = Board::new(EVE);
    b.write(0xb, 0x06);
    assert_eq!(b.date(), [20, 23, 12, 31, 23, 59, 58, 1]);
    b.write(0xb, 0x04);
    assert_eq!(b.read(4), 0x8b);
    b.write(0xb, 0x00);
    assert_eq!(b.read(4), 0x91);
    for (register, hour) in [(0x12, 0), (0x01, 1), (0x11, 11), (0x92, 12), (0x81, 13), (0x91, 23)] {
        b.write(0xb, 0x00);
        b.write(4, register);
        assert_eq!(b.read(4), register);
        b.write(0xb, 0x06);
        assert_eq!(b.read(4), hour);
    }
}

#[test]
fn setting_the_time_as_linux_does() {
    let b = Board::new(EVE);
    b.time.run(100);
    b.write(0xb, 0x82);
    b.write(0xa, 0x76);
    b.set_date([0x19, 0x99, 0x02, 0x28, 0x23, 0x59, 0x59]);
    b.time.run(10 * SECOND);
    assert_eq!(b.read(0), 0x59, "it stands still");
    b.write(0xb, 0x02);
    b.write(0xa, 0x26);
    b.time.run(SECOND / 2 - 1);
    assert_eq!(b.read(0), 0x59);
    b.time.run(1);
    assert_eq!(b.date(), [0x19, 0x99, 0x03, 0x01, 0, 0, 0, 2], "half a second after the divider was let go");
    b.write(6, 5);
    assert_eq!(b.read(6), 5);
    b.time.run(86_400 * SECOND);
    assert_eq!(b.read(6), 6, "the day of the week is whatever was set");
}

#[test]
fn set_holds_the_date_and_not_the_divider() {
    let b = Board::new(EVE);
    b.write(0xb, 0x82);
    b.time.run(5 * SECOND);
    assert_eq!(b.read(0), 0x58);
    assert_eq!(b.read(0xa) & 0x80, 0);
    b.write(0, 0x10);
    b.write(0xb, 0x02);
    assert_eq!(b.read(0), 0x10);
    b.time.run(SECOND * 3 / 4);
    assert_eq!(b.read(0), 0x11, "the phase stayed");
    b.write(2, 0x30);
    assert_eq!((b.read(2), b.read(0)), (0x30, 0x11), "a write without SET works too");
}

#[test]
fn update_in_progress_announces_the_update() {
    let b = Board::new(EVE);
    let step = SECOND * 3 / 4;
    b.time.run_to(step - 244_001);
    assert_eq!(b.read(0xa), 0x26);
    b.time.run_to(step - 244_000);
    assert_eq!(b.read(0xa), 0xa6);
    b.time.run_to(step - 1);
    assert_eq!((b.read(0xa), b.read(0)), (0xa6, 0x58));
    b.time.run_to(step);
    assert_eq!((b.read(0xa), b.read(0)), (0x26, 0x59));
    b.write(0xa, 0xff);
    assert_eq!(b.read(0xa), 0x7f, "read only");
}

#[test]
fn periodic_interrupts() {
    let b = Board::new(Duration::ZERO);
    b.write(0xb, 0x42);
    assert_eq!(b.time.timers.next_deadline(), Some(976_563), "1024 Hz");
    b.time.run_to(976_563);
    assert!(b.irq8.high());
    assert_eq!(b.time.timers.next_deadline(), None, "the line is up; no more wake-ups");
    b.time.run(10_000_000);
    assert_eq!((b.read(0xc), b.read(0xc), b.irq8.high()), (0xc0, 0, false));
    assert_eq!(b.time.timers.next_deadline(), Some(12 * SECOND / 1024));
    b.irq8.take_rises();
    b.write(0xa, 0x2f);
    for _ in 0..4 {
        b.time.run(SECOND / 2);
        b.read(0xc);
    }
    assert_eq!(b.irq8.take_rises(), [1, 2, 3, 4].map(|n| n * SECOND / 2));
    b.write(0xa, 0x20);
    assert_eq!(b.time.timers.next_deadline(), None, "no rate");
}

#[test]
fn update_ended_interrupts() {
    let b = Board::new(EVE);
    b.write(0xb, 0x12);
    assert_eq!(b.time.timers.next_deadline(), Some(SECOND * 3 / 4));
    b.time.run(SECOND);
    assert_eq!(b.irq8.take_rises(), [SECOND * 3 / 4]);
    assert_eq!(b.read(0xc) & 0xb0, 0x90);
    b.write(0xb, 0x92);
    assert_eq!(b.read(0xb), 0x82, "SET takes the update interrupt's enable bit away");
    assert_eq!(b.time.timers.next_deadline(), None);
}

#[test]
fn flags_come_up_without_their_interrupts() {
    let b = Board::new(EVE);
    b.write(1, 0x00);
    b.write(3, 0x00);
    b.write(5, 0x00);
    b.time.jump(2 * SECOND);
    assert_eq!(b.read(0xc), 0x70);
    assert_eq!(b.irq8.rises(), 0);
}

#[test]
fn alarms() {
    let b = Board::new(EVE);
    for (index, value) in [(1, 0x05), (3, 0x00), (5, 0x00)] {
        b.write(index, value);
    }
    b.write(0xb, 0x22);
    let step = SECOND * 3 / 4;
    assert_eq!(b.time.timers.next_deadline(), Some(step + 6 * SECOND));
    b.time.run(10 * SECOND);
    assert_eq!(b.irq8.take_rises(), [step + 6 * SECOND]);
    assert_eq!(b.read(0xc) & 0xa0, 0xa0);
    assert_eq!(b.time.timers.next_deadline(), Some(step + (6 + 86_400) * SECOND), "a day later again");
    // Each minute, then each second.
    b.write(3, 0xff);
    b.write(5, 0xc0);
    assert_eq!(b.time.timers.next_deadline(), Some(step + 66 * SECOND));
    b.write(1, 0xc0);
    assert_eq!(b.time.timers.next_deadline(), Some(step + 10 * SECOND));
    b.time.run(3 * SECOND);
    b.read(0xc);
    b.time.run(3 * SECOND);
    assert_eq!(b.irq8.take_rises().len(), 2);
    b.read(0xc);
    b.write(1, 0x77);
    assert_eq!(b.time.timers.next_deadline(), None, "no second is 77");
}

#[test]
fn the_alarm_follows_a_new_time() {
    let b = Board::new(EVE);
    b.write(1, 0x00);
    b.write(3, 0x00);
    b.write(5, 0x12);
    b.write(0xb, 0x22);
    b.write(4, 0x11);
    assert_eq!(b.time.timers.next_deadline(), Some(SECOND * 3 / 4 + SECOND));
    b.write(0xa, 0x66);
    assert_eq!(b.time.timers.next_deadline(), None, "the divider is held");
    b.write(0xa, 0x26);
    assert_eq!(b.time.timers.next_deadline(), Some(SECOND / 2 + SECOND));
}

#[test]
fn memory_that_firmware_and_kernels_read() {
    let b = Board::new(EVE);
    assert_eq!((b.word(0x15), b.word(0x17), b.word(0x30)), (640, 0xffff, 0xffff));
    assert_eq!(b.word(0x34), ((3 * GIB - (16 << 20)) >> 16) as u16);
    assert_eq!((b.word(0x5b), b.read(0x5d)), (0x4000, 1));
    assert_eq!((b.read(0x14), b.read(0x10), b.read(0xd)), (6, 0, 0x80));
    let sum: u16 = (0x10..=0x2d).map(|index| u16::from(b.read(index))).sum();
    assert_eq!([b.read(0x2e), b.read(0x2f)], sum.to_be_bytes());
    b.write(0x8f, 0x0a);
    assert_eq!((b.read(0xf), b.rtc.shutdown_status()), (0x0a, 0x0a), "bit 7 of the index is the NMI mask");
    b.rtc.set_memory(0x5f, 3);
    b.rtc.set_memory(0, 3);
    assert_eq!((b.read(0x5f), b.read(0)), (3, 0x58));
    b.rtc.reset();
    assert_eq!((b.read(0xf), b.read(0)), (0x0a, 0x58));
    let small = CmosConfig { ram_below_4g: 1 << 19, ram_above_4g: u64::MAX };
    let late = Rtc::new(&b.time.timers, b.irq8.clone(), Duration::MAX, &small);
    late.write(0x70, 1, 9);
    assert_eq!(late.read(0x71, 1), 0x99, "the year 9999");
}

#[test]
fn any_size_any_value_any_time_is_safe() {
    let b = Board::new(EVE);
    let mut seed = 1_u64;
    for round in 0..20_000_u64 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let port = [0x6f, 0x70, 0x70, 0x71, 0x71, 0x71, 0x72, 0xffff][(seed >> 33) as usize & 7];
        let size = (seed >> 40) as usize % 6;
        let small = if seed & 1 << 51 == 0 { 0xf } else { 0xffff };
        if seed & 1 << 50 == 0 {
            b.rtc.write(port, size, (seed >> 16) as u32 & small);
        } else {
            b.rtc.read(port, size);
        }
        b.time.jump(b.time.clock.now() + (seed >> 44) % (1 << (round % 38)));
        b.time.timers.fire_due(b.time.clock.now());
    }
    b.time.jump(u64::MAX);
    b.time.timers.fire_due(u64::MAX);
    b.date();
}
