//! The local APIC's timer as a function of the clock: one bus clock is one nanosecond.

use super::spec::{Divide, TimerMode};

/// The counter and the TSC deadline. Which of them runs is the LVT entry's mode, given to each method.
#[derive(Debug, Default)]
pub(super) struct Countdown {
    initial: u32,
    divide: Divide,
    /// When the counter reaches zero next, in nanoseconds of the clock. `None`: it stands at zero.
    zero_at: Option<u64>,
    /// TSC deadline in nanoseconds of the clock.
    pub deadline: Option<u64>,
}

impl Countdown {
    pub fn initial(&self) -> u32 {
        self.initial
    }

    pub fn divide(&self) -> u32 {
        self.divide.into()
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.divide.divisor()
    }

    /// Brings the timer to `now`; whether it ran out on the way. Periods missed by a late look count once.
    pub fn advance(&mut self, mode: TimerMode, now: u64) -> bool {
        if mode == TimerMode::TscDeadline {
            return self.deadline.take_if(|deadline| *deadline <= now).is_some();
        }
        let Some(zero_at) = self.zero_at.filter(|&zero_at| zero_at <= now) else { return false };
        self.zero_at = match (mode, self.period()) {
            (TimerMode::Periodic, 1..) => {
                let period = self.period();
                Some(zero_at.saturating_add(((now - zero_at) / period).saturating_add(1).saturating_mul(period)))
            }
            _ => None,
        };
        true
    }

    /// When the timer runs out next.
    pub fn next(&self, mode: TimerMode) -> Option<u64> {
        if mode == TimerMode::TscDeadline { self.deadline } else { self.zero_at }
    }

    /// The current count at `now`. The timer was advanced to `now` before.
    pub fn current(&self, mode: TimerMode, now: u64) -> u32 {
        match self.zero_at {
            Some(zero_at) if mode != TimerMode::TscDeadline => {
                let left = zero_at.saturating_sub(now).div_ceil(self.divide.divisor());
                u32::try_from(left).unwrap_or(u32::MAX)
            }
            _ => 0,
        }
    }

    /// A write to the initial count starts the counter; zero stops it. Without effect in TSC-deadline mode.
    pub fn start(&mut self, mode: TimerMode, initial: u32, now: u64) {
        if mode != TimerMode::TscDeadline {
            self.initial = initial;
            self.zero_at = (initial != 0).then(|| now.saturating_add(self.period()));
        }
    }

    /// A new divisor applies to what is left of the count.
    pub fn set_divide(&mut self, divide: Divide, now: u64) {
        let left = self.zero_at.map(|zero_at| zero_at.saturating_sub(now).div_ceil(self.divide.divisor()));
        self.divide = divide;
        self.zero_at = left.map(|left| now.saturating_add(left * divide.divisor()));
    }

    /// The mode changed. Between one-shot and periodic the counter goes on; to and from TSC deadline all is disarmed.
    pub fn change_mode(&mut self, from: TimerMode, to: TimerMode) {
        if (from == TimerMode::TscDeadline) != (to == TimerMode::TscDeadline) {
            self.initial = 0;
            self.zero_at = None;
            self.deadline = None;
        }
    }
}
