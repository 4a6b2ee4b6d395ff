//! The same jobs on several emulators: their marks on the console, and the table of what they took.
//!
//! A guest prints `BEGIN name` before a job and `END name checksum` after it. A job counts only if its checksum is the
//! same everywhere.

use std::fmt::Write as _;

use crate::measure::{Taken, geometric_mean, spread};

/// A mark in a line of the console. Firmware may have left its own characters before it.
#[derive(Debug, PartialEq, Eq)]
pub enum Mark<'a> {
    /// This job begins.
    Begin(&'a str),
    /// This job ended, with this checksum.
    End(&'a str, &'a str),
}

impl<'a> Mark<'a> {
    /// The mark in `line`, if there is one.
    #[must_use]
    pub fn find(line: &'a str) -> Option<Self> {
        let words = |mark: &str| line.split_once(mark).map(|(_, after)| after.split_whitespace());
        if let Some(mut words) = words("BEGIN ") {
            return Some(Self::Begin(words.next()?));
        }
        let mut words = words("END ")?;
        Some(Self::End(words.next()?, words.next()?))
    }
}

struct Job {
    name: String,
    /// The one that came first.
    checksum: Option<String>,
    /// By emulator, then by round.
    taken: Vec<Vec<Taken>>,
}

/// What jobs took on several emulators, in the order in which both were added. The first emulator is the base of all
/// ratios.
pub struct Comparison {
    emulators: Vec<String>,
    jobs: Vec<Job>,
}

impl Comparison {
    /// A comparison of these emulators.
    #[must_use]
    pub fn new(emulators: Vec<String>) -> Self {
        Self { emulators, jobs: Vec::new() }
    }

    /// Notes that some emulator began `job`, and gives its place.
    pub fn begin(&mut self, job: &str) -> usize {
        self.jobs.iter().position(|known| known.name == job).unwrap_or_else(|| {
            let taken = vec![Vec::new(); self.emulators.len()];
            self.jobs.push(Job { name: job.to_owned(), checksum: None, taken });
            self.jobs.len() - 1
        })
    }

    /// Takes down what `job` took on an emulator, given by its place.
    ///
    /// # Errors
    /// If the checksum is not the one that came first; the figure does not count then.
    pub fn end(&mut self, emulator: usize, job: &str, checksum: &str, taken: Taken) -> Result<(), String> {
        let place = self.begin(job);
        let known = &mut self.jobs[place];
        let first = known.checksum.get_or_insert_with(|| checksum.to_owned());
        if first != checksum {
            return Err(format!("{job}: {} computed {checksum}, not {first}", self.emulators[emulator]));
        }
        known.taken[emulator].push(taken);
        Ok(())
    }

    /// What is missing for `rounds` rounds, a line each.
    #[must_use]
    pub fn missing(&self, rounds: usize) -> Vec<String> {
        if self.jobs.is_empty() {
            return vec!["no job began".to_owned()];
        }
        let all = self.jobs.iter().flat_map(|job| std::iter::repeat(job).zip(self.emulators.iter().zip(&job.taken)));
        let short = all.filter(|(_, (_, taken))| taken.len() != rounds);
        short.map(|(job, (name, taken))| format!("{}: {name} counts {} of {rounds}", job.name, taken.len())).collect()
    }

    /// A Markdown table: seconds of each job on each emulator (medians), how many times as fast as the base each other
    /// one is, the geometric mean of that and its least. `of` chooses the clock.
    #[must_use]
    pub fn table(&self, of: fn(&Taken) -> f64) -> String {
        let Some((base, others)) = self.emulators.split_first() else { return String::new() };
        let ratios: Vec<String> = others.iter().map(|other| format!("{base} / {other}")).collect();
        let mut table = format!("| seconds | {} | {} |\n", self.emulators.join(" | "), ratios.join(" | "));
        let _ = writeln!(table, "|---|{}", "---:|".repeat(self.emulators.len() + others.len()));
        let mut by_other = vec![Vec::new(); others.len()];
        for job in &self.jobs {
            let median = |taken: &Vec<Taken>| spread(taken.iter().map(of).collect()).map(|figures| figures.0);
            let medians: Vec<Option<f64>> = job.taken.iter().map(median).collect();
            let ratio = |other: &Option<f64>| Some(medians.first().copied()?? / (*other)?).filter(|it| it.is_finite());
            let ratios: Vec<Option<f64>> = medians.iter().skip(1).map(ratio).collect();
            for (all, ratio) in by_other.iter_mut().zip(&ratios) {
                all.extend(*ratio);
            }
            row(&mut table, &job.name, medians.into_iter().chain(ratios));
        }
        let blank = self.emulators.iter().map(|_| None);
        row(&mut table, "geometric mean", blank.clone().chain(by_other.iter().map(|all| geometric_mean(all))));
        row(&mut table, "least", blank.chain(by_other.into_iter().map(|all| Some(spread(all)?.1))));
        table
    }
}

fn row(table: &mut String, title: &str, figures: impl Iterator<Item = Option<f64>>) {
    let cells = figures.map(|figure| figure.map_or_else(String::new, |figure| format!("{figure:.2}")));
    let _ = writeln!(table, "| {title} | {} |", cells.collect::<Vec<_>>().join(" | "));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(cpu: f64) -> Taken {
        Taken { wall: cpu * 2.0, cpu }
    }

    #[test]
    fn marks_are_found_behind_what_firmware_left() {
        assert_eq!(Mark::find("\u{1b}c\u{1b}[?7lBEGIN xz\r"), Some(Mark::Begin("xz")));
        assert_eq!(Mark::find("END xz 123\r"), Some(Mark::End("xz", "123")));
        for line in ["END xz", "BEGIN ", "FAILED xz", ""] {
            assert_eq!(Mark::find(line), None, "{line}");
        }
    }

    #[test]
    fn medians_are_set_against_the_first_emulator() {
        let mut comparison = Comparison::new(vec!["tcg".to_owned(), "ours".to_owned()]);
        for (emulator, seconds) in [(0, 8.0), (1, 2.0), (0, 9.0), (1, 3.0), (0, 4.0), (1, 1.0)] {
            comparison.end(emulator, "xz", "1", taken(seconds)).unwrap();
        }
        comparison.end(0, "awk", "2", taken(1.0)).unwrap();
        comparison.end(1, "awk", "2", taken(1.0)).unwrap();
        let table = comparison.table(|taken| taken.wall);
        let expected = "| seconds | tcg | ours | tcg / ours |\n|---|---:|---:|---:|\n| xz | 16.00 | 4.00 | 4.00 |\n\
            | awk | 2.00 | 2.00 | 1.00 |\n| geometric mean |  |  | 2.00 |\n| least |  |  | 1.00 |\n";
        assert_eq!(table, expected);
        assert_eq!(comparison.missing(3), ["awk: tcg counts 1 of 3", "awk: ours counts 1 of 3"]);
    }

    #[test]
    fn what_began_and_did_not_end_is_missing() {
        let mut comparison = Comparison::new(vec!["tcg".to_owned()]);
        assert_eq!(comparison.missing(1), ["no job began"]);
        comparison.begin("xz");
        assert_eq!(comparison.missing(1), ["xz: tcg counts 0 of 1"]);
    }

    #[test]
    fn another_checksum_does_not_count() {
        let mut comparison = Comparison::new(vec!["tcg".to_owned(), "ours".to_owned()]);
        comparison.end(0, "xz", "1", taken(1.0)).unwrap();
        let error = comparison.end(1, "xz", "7", taken(1.0)).unwrap_err();
        assert_eq!(error, "xz: ours computed 7, not 1");
        assert_eq!(comparison.missing(1), ["xz: ours counts 0 of 1"]);
        assert!(comparison.table(|taken| taken.cpu).contains("| xz | 1.00 |  |  |\n"));
    }
}
