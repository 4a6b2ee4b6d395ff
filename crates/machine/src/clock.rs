//! The machine's one clock: the host's monotonic clock, less the time in which the machine stood still.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// The clock runs.
const RUNNING: u64 = u64::MAX;

/// Nanoseconds of running since the machine was made. Made standing at zero.
///
/// [`MachineClock::pause`] and [`MachineClock::resume`] are called by one thread, while no vCPU runs: only then does no
/// reader see the clock step back by the time that passes between its look at the host's clock and the pause.
#[derive(Debug)]
pub struct MachineClock {
    made: Instant,
    /// Where the clock stands, or [`RUNNING`].
    stands: AtomicU64,
    /// Host time since `made` in which the clock stood. Valid for those who have seen [`RUNNING`].
    lost: AtomicU64,
}

impl Default for MachineClock {
    fn default() -> Self {
        Self { made: Instant::now(), stands: AtomicU64::new(0), lost: AtomicU64::new(0) }
    }
}

impl MachineClock {
    /// Host nanoseconds since the clock was made: enough for 584 years.
    fn host(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Stops the clock, if it runs.
    pub fn pause(&self) {
        if self.stands.load(Ordering::Relaxed) == RUNNING {
            self.stands.store(self.host() - self.lost.load(Ordering::Relaxed), Ordering::Release);
        }
    }

    /// Lets the clock go on from where it stands, if it does.
    pub fn resume(&self) {
        let stands = self.stands.load(Ordering::Relaxed);
        if stands != RUNNING {
            self.lost.store(self.host() - stands, Ordering::Relaxed);
            self.stands.store(RUNNING, Ordering::Release);
        }
    }
}

impl cpu::Clock for MachineClock {
    fn now(&self) -> u64 {
        match self.stands.load(Ordering::Acquire) {
            RUNNING => self.host() - self.lost.load(Ordering::Relaxed),
            stands => stands,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpu::Clock;
    use std::thread::sleep;
    use std::time::Duration;

    #[test]
    fn it_runs_only_while_the_machine_does() {
        let clock = MachineClock::default();
        assert_eq!(clock.now(), 0, "made standing");
        sleep(Duration::from_millis(2));
        assert_eq!(clock.now(), 0);
        clock.resume();
        clock.resume();
        sleep(Duration::from_millis(2));
        let first = clock.now();
        assert!(first >= 2_000_000);
        clock.pause();
        let stands = clock.now();
        assert!(stands >= first);
        sleep(Duration::from_millis(5));
        clock.pause();
        assert_eq!(clock.now(), stands);
        let host = clock.host();
        clock.resume();
        assert!(clock.now() >= stands);
        assert!(clock.now() - stands <= clock.host() - host, "goes on from where it stood");
    }
}
