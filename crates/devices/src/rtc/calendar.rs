//! Seconds since 1970 as a date, in the forms that the clock's registers take.

use super::spec::{PM, RegisterB};

const DAY: i64 = 86_400;

/// A date and time of day; fields out of range are allowed and carry over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DateTime {
    /// With the century.
    pub year: i64,
    /// 1–12.
    pub month: i64,
    /// 1–31.
    pub day: i64,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
}

/// Days since 1970-01-01 of a date in the Gregorian calendar (years start in March, so that the leap day is the last).
fn days(year: i64, month: i64, day: i64) -> i64 {
    let month = month - 1;
    let (year, month) = (year + month.div_euclid(12), month.rem_euclid(12) + 1);
    let shifted = if month > 2 { year } else { year - 1 };
    let era = shifted.div_euclid(400);
    let year_of_era = shifted.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

impl DateTime {
    /// The date of `seconds` since 1970.
    pub fn from_seconds(seconds: i64) -> Self {
        let (day_number, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let day_of_epoch = day_number + 719_468;
        let era = day_of_epoch.div_euclid(146_097);
        let day_of_era = day_of_epoch.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month,
            day: day_of_year - (153 * shifted_month + 2) / 5 + 1,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }

    pub fn to_seconds(self) -> i64 {
        days(self.year, self.month, self.day) * DAY + self.hour * 3600 + self.minute * 60 + self.second
    }
}

/// 1 (Sunday) to 7.
pub(super) fn day_of_week(seconds: i64) -> i64 {
    (seconds.div_euclid(DAY) + 4).rem_euclid(7) + 1
}

/// A number below 100 as a register shows it.
pub(super) fn encode(value: i64, form: RegisterB) -> u8 {
    let value = u8::try_from(value.rem_euclid(100)).unwrap_or(0);
    if form.binary() { value } else { ((value / 10) << 4) | (value % 10) }
}

/// A register as a number.
pub(super) fn decode(register: u8, form: RegisterB) -> i64 {
    if form.binary() { register.into() } else { i64::from(register >> 4) * 10 + i64::from(register & 0xf) }
}

/// An hour (0–23) as a register shows it.
pub(super) fn encode_hour(hour: i64, form: RegisterB) -> u8 {
    if form.hours_24() {
        encode(hour, form)
    } else {
        let half = (hour + 11).rem_euclid(12) + 1;
        encode(half, form) | if hour >= 12 { PM } else { 0 }
    }
}

/// A register as an hour.
pub(super) fn decode_hour(register: u8, form: RegisterB) -> i64 {
    if form.hours_24() {
        decode(register, form)
    } else {
        decode(register & !PM, form) % 12 + if register & PM != 0 { 12 } else { 0 }
    }
}
