//! The time of day: a divider chain that steps once a second, the date it steps, and what falls due on the way.

use std::time::Duration;

use super::calendar::{DateTime, day_of_week, decode, decode_hour, encode, encode_hour};
use super::spec::{
    ALARM_ANY, CENTURY, DAY_OF_MONTH, DAY_OF_WEEK, HOURS, MINUTES, MONTH, RegisterB, RegisterC, SECONDS, YEAR,
};

const SECOND: i64 = 1_000_000_000;
/// Update in progress is up for so long before each update.
const UPDATE_AHEAD: i64 = 244_000;
/// Crystal ticks a second.
const CRYSTAL: i128 = 32_768;
/// Seconds.
const DAY: i64 = 86_400;
/// The last second of the year 9999, the last year that the registers show.
const LAST: i64 = 253_402_300_799;

/// A register of the date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Second,
    Minute,
    Hour,
    DayOfWeek,
    Day,
    Month,
    Year,
    Century,
}

/// The part of the date at a CMOS index.
pub(super) fn date_register(index: usize) -> Option<Part> {
    Some(match index {
        SECONDS => Part::Second,
        MINUTES => Part::Minute,
        HOURS => Part::Hour,
        DAY_OF_WEEK => Part::DayOfWeek,
        DAY_OF_MONTH => Part::Day,
        MONTH => Part::Month,
        YEAR => Part::Year,
        CENTURY => Part::Century,
        _ => return None,
    })
}

#[derive(Debug)]
pub(super) struct Timekeeper {
    /// A time of the machine's clock (nanoseconds, may lie before its zero) at which the divider chain stepped.
    step: i64,
    /// The time of the machine's clock up to which all is accounted for.
    seen: i64,
    /// Seconds since 1970.
    seconds: i64,
    /// While the date is being set, and may not exist: its parts as they were written.
    date: Option<DateTime>,
    /// SET: the chain runs, the date stands still.
    halted: bool,
    /// The chain is held in reset.
    divider_reset: bool,
    /// What to add to the day of the week, since a guest may set it to anything.
    week_shift: i64,
    /// The next second (since 1970) that matches the alarm.
    alarm: Option<i64>,
    /// The alarm's bytes (second, minute, hour) and the form that they are in.
    alarm_bytes: [u8; 3],
    alarm_form: RegisterB,
}

/// Nanoseconds of the machine's clock; it will not come to 292 years.
fn signed(now: u64) -> i64 {
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// A time as the timer queue takes it.
fn unsigned(at: i64) -> Option<u64> {
    u64::try_from(at).ok()
}

impl Timekeeper {
    pub fn new(wall_clock: Duration) -> Self {
        Self {
            step: -i64::from(wall_clock.subsec_nanos()),
            seen: 0,
            seconds: i64::try_from(wall_clock.as_secs()).unwrap_or(LAST).min(LAST),
            date: None,
            halted: false,
            divider_reset: false,
            week_shift: 0,
            alarm: None,
            alarm_bytes: [0; 3],
            alarm_form: RegisterB::new(),
        }
    }

    /// Brings the time to `now`; the flags that came up on the way.
    pub fn advance(&mut self, now: u64, rate: u32) -> RegisterC {
        let now = signed(now).max(self.seen);
        let mut flags = RegisterC::new();
        if !self.divider_reset {
            let (before, after) = (self.steps(self.seen), self.steps(now));
            if after > before && !self.halted {
                flags.set_update(true);
                self.seconds = self.seconds.saturating_add(after - before);
                if self.alarm.is_some_and(|alarm| alarm <= self.seconds) {
                    flags.set_alarm(true);
                    self.find_alarm();
                }
            }
            if let Some(shift) = rate_shift(rate) {
                flags.set_periodic(self.crystal(now) >> shift != self.crystal(self.seen) >> shift);
            }
        }
        self.seen = now;
        flags
    }

    /// How often the chain has stepped.
    fn steps(&self, at: i64) -> i64 {
        at.saturating_sub(self.step).div_euclid(SECOND)
    }

    /// Ticks of the crystal.
    fn crystal(&self, at: i64) -> i128 {
        ((i128::from(at) - i128::from(self.step)) * CRYSTAL).div_euclid(SECOND.into())
    }

    /// Whether an update is in progress, or is about to be.
    pub fn updating(&self, now: u64) -> bool {
        let left = SECOND - signed(now).saturating_sub(self.step).rem_euclid(SECOND);
        !self.halted && !self.divider_reset && left <= UPDATE_AHEAD
    }

    /// When the next update ends.
    pub fn next_update(&self) -> Option<u64> {
        self.at_step(1)
    }

    /// When the chain will have stepped `steps` more times, if the date goes with it.
    fn at_step(&self, steps: i64) -> Option<u64> {
        if self.halted || self.divider_reset {
            return None;
        }
        let total = self.steps(self.seen).checked_add(steps)?;
        unsigned(total.checked_mul(SECOND)?.checked_add(self.step)?)
    }

    /// When the alarm comes.
    pub fn next_alarm(&self) -> Option<u64> {
        self.at_step(self.alarm?.saturating_sub(self.seconds).max(1))
    }

    /// When the next periodic interrupt comes.
    pub fn next_period(&self, rate: u32) -> Option<u64> {
        if self.divider_reset {
            return None;
        }
        let shift = rate_shift(rate)?;
        let tick = ((self.crystal(self.seen) >> shift) + 1) << shift;
        let after = (tick * i128::from(SECOND) + CRYSTAL - 1).div_euclid(CRYSTAL);
        u64::try_from(after + i128::from(self.step)).ok()
    }

    /// Holds the divider chain in reset, or lets it go; its first step then comes after half a second.
    pub fn set_divider(&mut self, reset: bool, now: u64) {
        if self.divider_reset && !reset {
            self.step = signed(now).saturating_sub(SECOND / 2);
            self.seen = signed(now);
        }
        self.divider_reset = reset;
        self.settle();
    }

    /// The SET bit.
    pub fn set_halted(&mut self, halted: bool) {
        self.halted = halted;
        self.settle();
    }

    /// A date that was being set begins to run.
    fn settle(&mut self) {
        if !self.halted
            && !self.divider_reset
            && let Some(date) = self.date.take()
        {
            self.seconds = date.to_seconds();
            self.find_alarm();
        }
    }

    fn date(&self) -> DateTime {
        self.date.unwrap_or_else(|| DateTime::from_seconds(self.seconds))
    }

    pub fn read(&self, part: Part, form: RegisterB) -> u8 {
        let date = self.date();
        match part {
            Part::Second => encode(date.second, form),
            Part::Minute => encode(date.minute, form),
            Part::Hour => encode_hour(date.hour, form),
            Part::DayOfWeek => encode((self.weekday() - 1 + self.week_shift).rem_euclid(7) + 1, form),
            Part::Day => encode(date.day, form),
            Part::Month => encode(date.month, form),
            Part::Year => encode(date.year, form),
            Part::Century => encode(date.year.div_euclid(100), form),
        }
    }

    /// By the calendar.
    fn weekday(&self) -> i64 {
        day_of_week(self.date().to_seconds())
    }

    pub fn write(&mut self, part: Part, register: u8, form: RegisterB) {
        let mut date = self.date();
        let value = decode(register, form);
        match part {
            Part::Second => date.second = value,
            Part::Minute => date.minute = value,
            Part::Hour => date.hour = decode_hour(register, form),
            Part::DayOfWeek => {
                self.week_shift = value - self.weekday();
                return;
            }
            Part::Day => date.day = value,
            Part::Month => date.month = value,
            Part::Year => date.year = date.year.div_euclid(100) * 100 + value,
            Part::Century => date.year = value * 100 + date.year.rem_euclid(100),
        }
        self.date = Some(date);
        self.settle();
    }

    /// Sets the alarm bytes: second, minute, hour.
    pub fn set_alarm(&mut self, bytes: [u8; 3], form: RegisterB) {
        self.alarm_bytes = bytes;
        self.alarm_form = form;
        self.find_alarm();
    }

    /// Looks for the next second that the alarm bytes match.
    fn find_alarm(&mut self) {
        let ([second, minute, hour], form) = (self.alarm_bytes, self.alarm_form);
        let wanted = |register: u8, value: i64| register >= ALARM_ANY || decode(register, form) == value;
        let wanted_hour = |value: i64| hour >= ALARM_ANY || decode_hour(hour, form) == value;
        let start = self.seconds.saturating_add(1);
        let midnight = start - start.rem_euclid(DAY);
        // From the hour under way once round the clock; only its first pass starts in the middle.
        self.alarm = (0..=24).find_map(|ahead| {
            let hours = start.rem_euclid(DAY) / 3600 + ahead;
            if !wanted_hour(hours % 24) {
                return None;
            }
            (0..60).filter(|&m| wanted(minute, m)).find_map(|m| {
                let minutes = midnight + hours * 3600 + m * 60;
                (0..60).find(|&s| wanted(second, s) && minutes + s >= start).map(|s| minutes + s)
            })
        });
    }
}

/// A periodic interrupt comes each time bit `shift` of the crystal's count carries.
fn rate_shift(rate: u32) -> Option<u32> {
    match rate {
        0 => None,
        // The two slowest of these settings repeat others, for a crystal of 32 kHz.
        1 | 2 => Some(rate + 6),
        rate => Some(rate - 1),
    }
}
