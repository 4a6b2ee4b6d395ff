//! ACPI power management by scripts of port accesses.

use super::*;
use crate::line::IrqLine;
use crate::power::Asked;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[derive(Debug, Default)]
struct Line(AtomicBool);

impl IrqLine for Line {
    fn set(&self, high: bool) {
        self.0.store(high, Ordering::SeqCst);
    }
}

#[derive(Debug, Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

struct Bench {
    pm: Arc<Pm>,
    line: Arc<Line>,
    hand: Arc<Hand>,
    timers: Arc<Timers>,
    asked: Arc<Asked>,
}

impl Bench {
    fn new(timer_32: bool) -> Self {
        let (line, hand, asked) = (Arc::new(Line::default()), Arc::new(Hand::default()), Arc::new(Asked::default()));
        let timers = Timers::new(hand.clone());
        let pm = Pm::new(Layout { s3: 1, s5: 5, timer_32 }, &timers, line.clone(), asked.clone());
        Self { pm, line, hand, timers, asked }
    }
    /// Moves the clock on to `now`, by way of all deadlines before.
    fn advance_to(&self, now: u64) {
        self.hand.0.store(now, Ordering::SeqCst);
        self.timers.fire_due(now);
    }
    fn read(&self, port: u16, size: usize) -> u32 {
        self.pm.read(port, size)
    }
    fn write(&self, port: u16, size: usize, value: u32) {
        self.pm.write(port, size, value);
    }
    fn sci(&self) -> bool {
        self.line.0.load(Ordering::SeqCst)
    }
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn the_timer_counts_at_its_rate() {
    let b = Bench::new(true);
    assert_eq!(b.read(TIMER, 4), 0);
    b.advance_to(SECOND);
    assert_eq!(b.read(TIMER, 4), 3_579_545);
    assert_eq!(b.read(TIMER, 2), 3_579_545 & 0xffff);
    assert_eq!(b.read(TIMER + 2, 1), 3_579_545 >> 16);
    b.write(TIMER, 4, 7);
    assert_eq!(b.read(TIMER, 4), 3_579_545, "read only");
    b.advance_to(1200 * SECOND);
    assert_eq!(u64::from(b.read(TIMER, 4)), (3_579_545 * 1200) & 0xffff_ffff);
    let narrow = Bench::new(false);
    narrow.advance_to(5 * SECOND);
    assert_eq!(u64::from(narrow.read(TIMER, 4)), (3_579_545 * 5) & 0xff_ffff);
}

#[test]
fn the_timers_highest_bit_raises_the_sci() {
    let b = Bench::new(false);
    assert_eq!(b.timers.next_deadline(), None, "nobody asked");
    b.write(BASE + 2, 2, 1);
    let first = b.timers.next_deadline().unwrap();
    assert_eq!(first, (u64::from(1u32 << 23) * SECOND).div_ceil(3_579_545));
    b.advance_to(first - 1);
    assert!(!b.sci());
    assert_eq!(b.read(BASE, 2), 0);
    b.advance_to(first);
    assert!(b.sci());
    assert_eq!(b.read(TIMER, 4), 1 << 23);
    assert_eq!(b.read(BASE, 4), 0x1_0001);
    b.write(BASE, 2, 1);
    assert!(!b.sci());
    assert_eq!(b.read(BASE, 2), 0);
    assert_eq!(b.timers.next_deadline(), Some((u64::from(2u32 << 23) * SECOND).div_ceil(3_579_545)));
    b.write(BASE + 2, 2, 0);
    assert_eq!(b.timers.next_deadline(), None);
}

#[test]
fn enabling_late_sees_the_status() {
    let b = Bench::new(false);
    b.advance_to(10 * SECOND);
    assert_eq!(b.read(BASE, 2), 1, "the status bit is set with or without the enable");
    b.write(BASE + 2, 2, 0xffff);
    assert_eq!(b.read(BASE + 2, 2), 0x0721);
    assert!(b.sci());
    b.write(SMI, 1, ACPI_DISABLE.into());
    assert!(!b.sci(), "not in ACPI mode");
    assert_eq!(b.read(CONTROL, 2), 0);
    b.write(SMI, 1, ACPI_ENABLE.into());
    assert!(b.sci());
    assert_eq!(b.read(CONTROL, 2), 1);
}

#[test]
fn the_power_button() {
    let b = Bench::new(true);
    b.write(BASE + 3, 1, 1);
    assert!(!b.sci());
    b.pm.press_power_button();
    assert!(b.sci());
    assert_eq!(b.read(BASE, 2), 0x100);
    b.write(BASE, 2, 0x100);
    assert!(!b.sci());
}

#[test]
fn only_s5_powers_off() {
    let b = Bench::new(true);
    b.write(CONTROL, 2, (5 << 10) | 1);
    assert_eq!(b.read(CONTROL, 2), (5 << 10) | 1);
    assert_eq!(b.asked.take(), [], "not without SLP_EN");
    for other in [0, 2, 3, 4, 6, 7] {
        b.write(CONTROL, 2, (1 << 13) | (other << 10));
    }
    assert_eq!(b.asked.take(), []);
    b.write(CONTROL, 2, (1 << 13) | (5 << 10));
    assert_eq!(b.asked.take(), [PowerRequest::PowerOff]);
    assert_eq!(b.read(CONTROL, 2), (5 << 10) | 1, "SLP_EN reads as zero, SCI_EN stays");
    b.write(CONTROL + 1, 1, 0x34);
    assert_eq!(b.asked.take(), [PowerRequest::PowerOff], "by a byte as well");
}

#[test]
fn events_wake_the_machine_once_it_sleeps() {
    let (rtc, button) = (0x400u16, 0x100u16);
    for (enable, event, wakes) in [(rtc, rtc, true), (0, rtc, false), (0, button, true), (0xffff, 0, false)] {
        // Before it sleeps, and then.
        for early in [true, false] {
            let b = Bench::new(true);
            let clock = b.pm.clock_line();
            let raise = || match event {
                0x400 => clock.set(true),
                0x100 => b.pm.press_power_button(),
                _ => {}
            };
            b.write(BASE + 2, 2, enable.into());
            if early {
                raise();
            }
            b.write(CONTROL, 2, (1 << 13) | (1 << 10));
            assert_eq!(b.asked.take(), [PowerRequest::Suspend]);
            b.pm.sleep();
            if !early {
                assert_eq!(b.asked.take(), []);
                raise();
                raise();
            }
            assert_eq!(b.asked.take(), if wakes { vec![PowerRequest::Wake] } else { vec![] }, "{enable:x} {event:x}");
            b.pm.reset();
            let status = if wakes { 0x8000 | u32::from(event) } else { 0 };
            assert_eq!(b.read(BASE, 2), status, "{enable:x} {event:x}");
            assert_eq!(b.read(CONTROL, 2), 1);
        }
    }
}

#[test]
fn gpe0_and_scratch() {
    let b = Bench::new(true);
    b.write(GPE0, 4, 0xffff_ffff);
    assert_eq!(b.read(GPE0, 4), 0xffff_0000);
    b.write(SMI, 2, 0x4200);
    assert_eq!(b.read(SMI, 2), 0x4200);
    b.pm.reset();
    assert_eq!(b.read(GPE0, 4), 0);
    assert_eq!(b.read(CONTROL, 2), 1);
}

#[test]
fn the_reset_register_acts_on_the_rising_bit() {
    let asked = Arc::new(Asked::default());
    let reset = ResetControl::new(asked.clone());
    reset.write(ResetControl::PORT, 1, 2);
    assert_eq!((reset.read(ResetControl::PORT, 1), asked.take()), (2, vec![]));
    reset.write(ResetControl::PORT, 1, 6);
    assert_eq!(asked.take(), [PowerRequest::Reset]);
    reset.write(ResetControl::PORT, 1, 6);
    assert_eq!(asked.take(), []);
    reset.reset();
    assert_eq!(reset.read(ResetControl::PORT, 1), 0);
}
