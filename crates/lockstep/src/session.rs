//! Runs cases on two lanes and compares them; on a difference finds the smallest case and says how to repeat it.

use crate::case::{Case, Program};
use crate::differences::{Buffers, Differences};
use crate::lane::{Image, Lane, Outcome};
use crate::log::Entry;
use crate::minimise::{minimise, shrink};
use crate::report::Report;
use crate::sequence::Generator;
use crate::tier::Tier;
use crate::watchdog::Watchdog;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How long the reference may take for a case before it counts as endless: some hundred times what it takes.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long the other tier may take for a case that the reference has ended.
const LONG_PATIENCE: Duration = Duration::from_secs(5);
/// The same while a failing case is made smaller.
const BRISK_PATIENCE: Duration = Duration::from_millis(200);
/// After so many cases the pages that no guest can write are compared too.
const ALL_MEMORY: u64 = 64;
/// How many earlier cases are tried to repeat what one case alone does not show.
const HISTORY: u64 = 1 << 14;

/// How long is spent on each step of making a failing case smaller.
const EFFORT: Duration = Duration::from_secs(15);

/// Makes a tier.
pub type Make = fn() -> Box<dyn Tier>;
/// Makes a case of a seed.
pub type Generate = fn(&mut Generator, u64) -> Case;

/// What is run: from the environment.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Seed of the first case; the next one's is one more.
    pub seed: u64,
    /// How many cases; 0: without end.
    pub cases: u64,
    /// How many failures to find before giving up.
    pub failures: usize,
    /// Say each seed before its case.
    pub trace: bool,
}

impl Settings {
    /// `VITRINE_SEED`, `VITRINE_CASES`, `VITRINE_FAILURES` and `VITRINE_TRACE`, or else these.
    #[must_use]
    pub fn from_environment(seed: u64, cases: u64) -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
        };
        Self {
            seed: number("VITRINE_SEED").unwrap_or(seed),
            cases: number("VITRINE_CASES").unwrap_or(cases),
            failures: number("VITRINE_FAILURES").map_or(1, |count| count as usize),
            trace: std::env::var_os("VITRINE_TRACE").is_some(),
        }
    }

    fn seeds(&self) -> impl Iterator<Item = u64> + use<> {
        let count = if self.cases == 0 { u64::MAX } else { self.cases };
        let first = self.seed;
        (0..count).map(move |n| first.wrapping_add(n))
    }
}

/// What became of the cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Cases that were compared.
    pub compared: u64,
    /// Cases that did not fit into their pages.
    pub unfit: u64,
    /// Cases that the reference did not end.
    pub endless: u64,
    /// Cases in which the processor shut down.
    pub shutdowns: u64,
    /// Instructions that the reference executed.
    pub instructions: u64,
    /// Lines in the log: exceptions, software interrupts and system calls.
    pub events: u64,
    /// Interrupts taken.
    pub interrupts: u64,
}

/// A lane and who runs it.
struct Runner {
    lane: Lane,
    tier: Box<dyn Tier>,
    watchdog: Watchdog,
}

/// Two lanes.
#[allow(missing_debug_implementations, reason = "the encoder has none")]
pub struct Session {
    make: [Make; 2],
    image: Arc<Image>,
    runners: [Runner; 2],
    generator: Generator,
    buffers: Buffers,
    /// What became of the cases.
    pub statistics: Statistics,
}

impl Session {
    /// Lanes for the tiers that the functions make: the reference, and the one that is compared with it.
    #[must_use]
    pub fn new(make: [Make; 2], generator: Generator) -> Self {
        let image = Arc::<Image>::default();
        let runner = |make: Make, patience| Runner {
            lane: Lane::new(image.clone()),
            tier: make(),
            watchdog: Watchdog::new(patience),
        };
        let runners = [runner(make[0], PATIENCE), runner(make[1], LONG_PATIENCE)];
        Self { make, runners, image, generator, buffers: Buffers::default(), statistics: Statistics::default() }
    }

    /// New machines and tiers, as if no case had been run.
    fn renew(&mut self) {
        for (runner, make) in self.runners.iter_mut().zip(self.make) {
            runner.lane = Lane::new(self.image.clone());
            runner.tier = make();
        }
    }

    /// Runs one case. What differs, if anything; `None` for a case that cannot be compared.
    pub fn run(&mut self, case: &Case) -> Option<Differences> {
        let Some(program) = self.generator.assembler.assemble(case) else {
            self.statistics.unfit += 1;
            return None;
        };
        let outcomes = self.execute(case, &program)?;
        Some(self.compare(outcomes))
    }

    fn execute(&mut self, case: &Case, program: &Program) -> Option<[Outcome; 2]> {
        let [reference, other] = &mut self.runners;
        let before = reference.lane.cpu.instructions;
        reference.lane.load(program, &case.start);
        let expected = reference.lane.run(&mut *reference.tier, &reference.watchdog);
        self.statistics.instructions += reference.lane.cpu.instructions - before;
        if expected == Outcome::Endless {
            self.statistics.endless += 1;
            let lanes = [&reference.lane, &reference.lane];
            Differences::default().compare_memory(lanes, &self.image, &mut self.buffers, false);
            return None;
        }
        other.lane.load(program, &case.start);
        Some([expected, other.lane.run(&mut *other.tier, &other.watchdog)])
    }

    fn compare(&mut self, outcomes: [Outcome; 2]) -> Differences {
        let [a, b] = [&self.runners[0].lane, &self.runners[1].lane];
        let statistics = &mut self.statistics;
        statistics.compared += 1;
        statistics.shutdowns += u64::from(matches!(outcomes[0], Outcome::Shutdown(_)));
        statistics.events += Entry::count(a);
        statistics.interrupts = a.apic.taken.load(Relaxed).into();
        let mut differences = Differences::default();
        differences.add("outcome", outcomes[0], outcomes[1]);
        differences.compare_cpus(&a.cpu, &b.cpu, self.generator.options());
        {
            let (a, b) = (a.recorder.records(), b.recorder.records());
            let first = a.iter().zip(b.iter()).position(|(a, b)| a != b);
            let at = first.or_else(|| (a.len() != b.len()).then_some(a.len().min(b.len())));
            if let Some(at) = at {
                differences.add(format!("access {at} to the device"), a.get(at), b.get(at));
            }
        }
        let all = statistics.compared.is_multiple_of(ALL_MEMORY);
        differences.compare_memory([a, b], &self.image, &mut self.buffers, all);
        differences
    }

    /// Runs one case on new machines, after the cases of `history`. Whether it fails.
    fn fails(&mut self, generate: Generate, history: &[u64], case: &Case) -> bool {
        self.renew();
        for &seed in history {
            let before = generate(&mut self.generator, seed);
            if self.run(&before).is_some_and(|differences| !differences.0.is_empty()) {
                // The machines do not agree from here on.
                return false;
            }
        }
        self.run(case).is_some_and(|differences| !differences.0.is_empty())
    }

    /// The earlier cases without which `case` does not fail; `None` if it does not fail again at all.
    fn history(&mut self, generate: Generate, first: u64, case: &Case) -> Option<Vec<u64>> {
        let available = case.seed.wrapping_sub(first).min(HISTORY);
        let mut count = 0;
        loop {
            let history: Vec<u64> = (0..count).rev().map(|n| case.seed.wrapping_sub(n + 1)).collect();
            if self.fails(generate, &history, case) {
                let until = Instant::now() + EFFORT;
                let fails = &mut |history: &[u64]| Instant::now() < until && self.fails(generate, history, case);
                return Some(shrink(history, fails));
            }
            if count >= available {
                return None;
            }
            count = (count * 4).clamp(1, available);
        }
    }

    /// Finds the smallest case that fails as this one does, and describes it.
    fn explain(&mut self, name: &str, generate: Generate, first: u64, case: Case, found: Differences) -> Report {
        // A fault that shows as an endless loop is run many times from here on.
        self.runners[1].watchdog.set_patience(BRISK_PATIENCE);
        let report = self.shortest(name, generate, first, case, found);
        self.runners[1].watchdog.set_patience(LONG_PATIENCE);
        report
    }

    fn shortest(&mut self, name: &str, generate: Generate, first: u64, case: Case, found: Differences) -> Report {
        let seed = case.seed;
        let Some(history) = self.history(generate, first, &case) else {
            let program = self.generator.assembler.assemble(&case).unwrap_or_default();
            let note = format!("it did not fail again, not even after {} earlier cases", HISTORY.min(seed - first));
            return Report::new(name, seed, first, &case, &program, found).note(note);
        };
        let until = Instant::now() + EFFORT;
        let small = minimise(case, &mut |case| Instant::now() < until && self.fails(generate, &history, case));
        self.renew();
        for &seed in &history {
            let before = generate(&mut self.generator, seed);
            self.run(&before);
        }
        let program = self.generator.assembler.assemble(&small).unwrap_or_default();
        let outcomes = self.execute(&small, &program);
        let logs = [0, 1].map(|n: usize| Entry::all(&self.runners[n].lane.ram()));
        let differences = outcomes.map_or(found, |outcomes| self.compare(outcomes));
        let report = Report::new(name, seed, first, &small, &program, differences).logs(logs);
        match history.as_slice() {
            [] => report,
            [first, _, .., _] if history.len() > 16 => {
                report.note(format!("only after {} cases from {first:#x} on", history.len()))
            }
            few => report.note(format!("only after the cases {few:x?}")),
        }
    }

    /// Runs cases one after the other, until as many have failed as the settings say. Each failure comes in its
    /// smallest form, and the next case finds new machines.
    pub fn run_all(&mut self, name: &str, generate: Generate, settings: Settings) -> Vec<Report> {
        let mut reports = Vec::new();
        let mut first = settings.seed;
        for seed in settings.seeds() {
            if settings.trace {
                eprintln!("VITRINE_SEED={seed:#x}");
            }
            let last_words = LastWords(seed);
            let case = generate(&mut self.generator, seed);
            let found = self.run(&case).filter(|differences| !differences.0.is_empty());
            drop(last_words);
            if let Some(found) = found {
                reports.push(self.explain(name, generate, first, case, found));
                if reports.len() >= settings.failures {
                    break;
                }
                self.renew();
                first = seed.wrapping_add(1);
            }
        }
        reports
    }
}

/// Names the case in which a tier panicked.
struct LastWords(u64);

impl Drop for LastWords {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("VITRINE_SEED={:#x}", self.0);
        }
    }
}

/// Compares two tiers over as many cases as the environment or else `cases` says, and prints what was done.
///
/// # Panics
/// They differ: the message has the smallest case. Or so few cases could be compared that the test is worth nothing.
pub fn check(name: &str, make: [Make; 2], generator: Generator, generate: Generate, cases: u64) -> Statistics {
    let settings = Settings::from_environment(0x5eed_0000, cases);
    println!("{name}: VITRINE_SEED={:#x} VITRINE_CASES={}", settings.seed, settings.cases);
    let mut session = Session::new(make, generator);
    let begin = Instant::now();
    let reports = session.run_all(name, generate, settings);
    let statistics = session.statistics;
    if !reports.is_empty() {
        let text: Vec<String> = reports.iter().map(|report| format!("\n{report}\n")).collect();
        panic!("{} failures, {statistics:?}\n{}", reports.len(), text.concat());
    }
    let each = begin.elapsed().as_secs_f64() / settings.cases.max(1) as f64;
    println!("{name}: {:.0} cases/s, {statistics:?}", 1.0 / each);
    assert!(settings.cases < 100 || statistics.compared * 10 > settings.cases * 9, "{statistics:?}");
    statistics
}
