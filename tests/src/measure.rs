//! What a process takes, and what to say of several measurements.

/// Seconds that something took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Taken {
    /// By the clock.
    pub wall: f64,
    /// On all processors together, see [`cpu_seconds`].
    pub cpu: f64,
}

/// User and system seconds of a process so far: all its threads, and the children that it has waited for (`proc(5)`,
/// fields 14 to 17 of `stat`). It counts in clock ticks, 10 ms on most systems.
#[must_use]
pub fn cpu_seconds(id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after_name.split_whitespace().skip(11).take(4).filter_map(|word| word.parse::<f64>().ok()).sum();
    let rate = u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100);
    ticks / f64::from(rate)
}

/// The middle of some figures, the least and the greatest.
#[must_use]
pub fn spread(mut figures: Vec<f64>) -> Option<(f64, f64, f64)> {
    figures.sort_by(f64::total_cmp);
    Some((*figures.get(figures.len() / 2)?, *figures.first()?, *figures.last()?))
}

/// The geometric mean.
#[must_use]
pub fn geometric_mean(figures: &[f64]) -> Option<f64> {
    let count = u32::try_from(figures.len()).ok().filter(|&count| count > 0)?;
    let sum: f64 = figures.iter().map(|figure| figure.ln()).sum();
    Some((sum / f64::from(count)).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_takes_cpu_time() {
        let before = cpu_seconds(std::process::id());
        let mut work = 1_u64;
        while cpu_seconds(std::process::id()) <= before {
            work = std::hint::black_box(work.wrapping_mul(3));
        }
        assert!(before.is_finite());
        assert_eq!(cpu_seconds(u32::MAX), 0.0);
    }

    #[test]
    fn figures_have_a_middle_and_a_mean() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0]), Some((2.0, 1.0, 3.0)));
        assert_eq!(spread(Vec::new()), None);
        assert!(geometric_mean(&[2.0, 8.0]).is_some_and(|mean| (mean - 4.0).abs() < 1e-12));
        assert_eq!(geometric_mean(&[]), None);
    }
}
