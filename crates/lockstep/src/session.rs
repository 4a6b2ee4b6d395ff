//! Runs cases on two lanes and compares them; on a difference finds the smallest case and says how to repeat it.

use crate::case::{Case, Program};
use crate::catalogue;
use crate::differences::{Buffers, Differences, Options};
use crate::lane::{Image, Lane, Outcome};
use crate::log::Entry;
use crate::minimise::{minimise, shrink};
use crate::mode::Mode;
use crate::report::Report;
use crate::sequence::Generator;
use crate::start::Start;
use crate::tier::{Stepped, Tier};
use crate::watchdog::Watchdog;
use std::cell::Cell;
use std::ops::AddAssign;
use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// How long the reference may take for a case before it counts as endless: some hundred times what it takes.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long the other tier may take for a case that the reference has ended.
const LONG_PATIENCE: Duration = Duration::from_secs(5);
/// The same while a failing case is made smaller.
const BRISK_PATIENCE: Duration = Duration::from_millis(200);
/// After so many cases the pages that no guest can write are compared too, and in cases that are repeated.
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
    /// Run in this mode only.
    pub mode: Option<Mode>,
}

impl Settings {
    /// `VITRINE_SEED`, `VITRINE_CASES`, `VITRINE_FAILURES`, `VITRINE_TRACE` and `VITRINE_MODE`, or else this seed and as
    /// many times `cases` as `VITRINE_EFFORT` says.
    #[must_use]
    pub fn from_environment(seed: u64, cases: u64) -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok())
        };
        Self {
            seed: number("VITRINE_SEED").unwrap_or(seed),
            cases: number("VITRINE_CASES").unwrap_or_else(|| cases * number("VITRINE_EFFORT").unwrap_or(1)),
            failures: number("VITRINE_FAILURES").map_or(1, |count| count as usize),
            trace: std::env::var_os("VITRINE_TRACE").is_some(),
            mode: std::env::var("VITRINE_MODE").ok().and_then(|name| Mode::named(&name)),
        }
    }

    /// Parts of it for so many threads.
    fn divide(self, threads: u64) -> impl Iterator<Item = Self> {
        let endless = self.cases == 0;
        let each = if endless { u64::MAX / threads } else { self.cases.div_ceil(threads) };
        (0..threads).filter_map(move |n| {
            let cases = if endless { 0 } else { each.min(self.cases.saturating_sub(n * each)) };
            let seed = self.seed.wrapping_add(n * each);
            (endless || cases > 0).then_some(Self { seed, cases, ..self })
        })
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

impl AddAssign for Statistics {
    fn add_assign(&mut self, other: Self) {
        self.compared += other.compared;
        self.unfit += other.unfit;
        self.endless += other.endless;
        self.shutdowns += other.shutdowns;
        self.instructions += other.instructions;
        self.events += other.events;
        self.interrupts += other.interrupts;
    }
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
    /// All memory is compared after each case.
    thorough: bool,
    /// A case that does not end differs from one that does. While a shorter case is looked for it is only given little time,
    /// so that this is no difference then, unless it is the one that was found.
    endless: bool,
    /// What became of the cases.
    pub statistics: Statistics,
}

impl Session {
    /// Lanes for the tiers that the functions make: the reference, and the one that is compared with it.
    #[must_use]
    pub fn new(make: [Make; 2], generator: Generator) -> Self {
        let image = Arc::<Image>::default();
        let options = generator.options();
        let runner = |n: usize, patience| Runner {
            lane: lane(&image, n, options),
            tier: make[n](),
            watchdog: Watchdog::new(patience),
        };
        let runners = [runner(0, PATIENCE), runner(1, LONG_PATIENCE)];
        let (buffers, statistics) = (Buffers::default(), Statistics::default());
        Self { make, runners, image, generator, buffers, thorough: false, endless: true, statistics }
    }

    /// New machines and tiers, as if no case had been run.
    fn renew(&mut self) {
        for (n, (runner, make)) in self.runners.iter_mut().zip(self.make).enumerate() {
            runner.lane = lane(&self.image, n, self.generator.options());
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
        let mut differences = self.compare(&case.start, outcomes);
        if outcomes[1] == Outcome::Endless && !self.endless {
            differences = Differences::default();
        }
        let excused = !differences.0.is_empty() && self.may_differ(&program, &case.start);
        (!excused).then_some(differences)
    }

    /// Whether an instruction is executed that is never generated because tiers may disagree about it: code that changes
    /// itself, or is entered in the middle of an instruction, may become one.
    fn may_differ(&self, program: &Program, start: &Start) -> bool {
        let options = self.generator.options();
        let found = Rc::new(Cell::new(false));
        let seen = found.clone();
        let mut tier = Stepped::corrupted(move |instruction, _| {
            seen.set(seen.get() || catalogue::may_differ(instruction.code(), options));
        });
        let mut lane = Lane::new(self.image.clone());
        lane.load(program, start);
        lane.run(&mut tier, &self.runners[0].watchdog);
        found.get()
    }

    fn execute(&mut self, case: &Case, program: &Program) -> Option<[Outcome; 2]> {
        let [reference, other] = &mut self.runners;
        reference.lane.load(program, &case.start);
        let expected = reference.lane.run(&mut *reference.tier, &reference.watchdog);
        self.statistics.instructions += reference.lane.cpu.instructions;
        if expected == Outcome::Endless {
            self.statistics.endless += 1;
            let lanes = [&reference.lane, &other.lane];
            Differences::default().compare_memory(lanes, case.start.mode, &self.image, &mut self.buffers, false);
            return None;
        }
        other.lane.load(program, &case.start);
        Some([expected, other.lane.run(&mut *other.tier, &other.watchdog)])
    }

    fn compare(&mut self, start: &Start, outcomes: [Outcome; 2]) -> Differences {
        let [a, b] = [&self.runners[0].lane, &self.runners[1].lane];
        let statistics = &mut self.statistics;
        statistics.compared += 1;
        statistics.shutdowns += u64::from(matches!(outcomes[0], Outcome::Shutdown(_)));
        statistics.events += Entry::count(a);
        statistics.interrupts += u64::from(a.apic.taken.swap(0, Relaxed));
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
        if start.storm == 0 {
            differences.compare_accesses([a, b]);
        }
        differences.compare_page_tables([a, b]);
        let all = self.thorough || statistics.compared.is_multiple_of(ALL_MEMORY);
        differences.compare_memory([a, b], start.mode, &self.image, &mut self.buffers, all);
        differences
    }

    /// Runs one case. Whether anything differs.
    fn differs(&mut self, case: &Case) -> bool {
        self.run(case).is_some_and(|differences| !differences.0.is_empty())
    }

    /// Runs one case on new machines, after the cases of `history`. Whether it fails.
    fn fails(&mut self, generate: Generate, history: &[u64], case: &Case) -> bool {
        // The machines do not agree from an earlier difference on.
        self.fails_before(generate, history).is_none() && self.differs(case)
    }

    /// Runs the cases of `history` on new machines. Which of them is the first to fail.
    fn fails_before(&mut self, generate: Generate, history: &[u64]) -> Option<usize> {
        self.renew();
        history.iter().position(|&seed| {
            let case = generate(&mut self.generator, seed);
            self.differs(&case)
        })
    }

    /// The case that fails, and the earlier ones without which it does not: `case`, or one before it after which not all
    /// memory was compared. `None`: it does not fail again at all.
    fn history(&mut self, generate: Generate, first: u64, case: &Case) -> Option<(Case, Vec<u64>)> {
        let available = case.seed.wrapping_sub(first).min(HISTORY);
        let mut count = 0;
        loop {
            let mut history: Vec<u64> = (0..count).rev().map(|n| case.seed.wrapping_sub(n + 1)).collect();
            let found = match self.fails_before(generate, &history) {
                Some(n) => {
                    let earlier = generate(&mut self.generator, history[n]);
                    history.truncate(n);
                    Some(earlier)
                }
                None => self.differs(case).then(|| case.clone()),
            };
            if let Some(case) = found {
                let until = Instant::now() + EFFORT;
                let fails = &mut |history: &[u64]| Instant::now() < until && self.fails(generate, history, &case);
                let history = shrink(history, fails);
                return Some((case, history));
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
        self.thorough = true;
        self.endless = found.0.iter().any(|difference| difference.what == "outcome");
        let report = self.shortest(name, generate, first, case, found);
        (self.thorough, self.endless) = (false, true);
        self.runners[1].watchdog.set_patience(LONG_PATIENCE);
        report
    }

    fn shortest(&mut self, name: &str, generate: Generate, first: u64, case: Case, found: Differences) -> Report {
        let Some((case, history)) = self.history(generate, first, &case) else {
            let program = self.generator.assembler.assemble(&case).unwrap_or_default();
            let earlier = HISTORY.min(case.seed.wrapping_sub(first));
            let note = format!("it did not fail again, not even after {earlier} earlier cases");
            return Report::new(name, first, &case, &program, found).note(note);
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
        let differences = outcomes.map_or(found, |outcomes| self.compare(&small.start, outcomes));
        let report = Report::new(name, first, &small, &program, differences).logs(logs);
        match history.as_slice() {
            [] => report,
            [first, _, .., _] if history.len() > 16 => {
                report.note(format!("only after {} cases from {first:#x} on", history.len()))
            }
            few => report.note(format!("only after the cases {few:x?}")),
        }
    }

    /// Runs cases one after the other, until all of `failures` have been found, here or elsewhere. Each failure comes in
    /// its smallest form, and the next case finds new machines.
    pub fn run_all(
        &mut self,
        name: &str,
        generate: Generate,
        settings: Settings,
        failures: &AtomicUsize,
    ) -> Vec<Report> {
        let mut reports = Vec::new();
        self.generator.only = settings.mode;
        let mut first = settings.seed;
        for seed in settings.seeds() {
            if failures.load(Relaxed) == 0 {
                break;
            }
            if settings.trace {
                eprintln!("VITRINE_SEED={seed:#x}");
            }
            let last_words = LastWords(seed);
            let case = generate(&mut self.generator, seed);
            let found = self.run(&case).filter(|differences| !differences.0.is_empty());
            drop(last_words);
            if let Some(found) = found {
                let left = |count: usize| Some(count.saturating_sub(1));
                let _ = failures.fetch_update(Relaxed, Relaxed, left);
                reports.push(self.explain(name, generate, first, case, found));
                self.renew();
                first = seed.wrapping_add(1);
            }
        }
        reports
    }
}

/// Lane `n` of two.
fn lane(image: &Arc<Image>, n: usize, options: Options) -> Lane {
    let lane = Lane::new(image.clone());
    if options.accesses { lane.observed(n == 1) } else { lane }
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

/// Compares two tiers, on all processors, over as many cases as the environment or else `cases` says, and prints what was
/// done.
///
/// # Panics
/// They differ: the message has the smallest case. Or so few cases could be compared that the test is worth nothing.
pub fn check(name: &str, make: [Make; 2], options: Options, generate: Generate, cases: u64) -> Statistics {
    let settings = Settings::from_environment(0x5eed_0000, cases);
    println!("{name}: VITRINE_SEED={:#x} VITRINE_CASES={}", settings.seed, settings.cases);
    let begin = Instant::now();
    let failures = AtomicUsize::new(settings.failures);
    let part = |part| {
        let mut session = Session::new(make, Generator::new(options));
        (session.run_all(name, generate, part, &failures), session.statistics)
    };
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let parts: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = settings.divide(threads).map(|settings| scope.spawn(move || part(settings))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let (mut reports, mut statistics) = (Vec::new(), Statistics::default());
    for (found, done) in parts {
        reports.extend(found);
        statistics += done;
    }
    if !reports.is_empty() {
        let text: Vec<String> = reports.iter().map(|report| format!("\n{report}\n")).collect();
        panic!("{} failures, {statistics:?}\n{}", reports.len(), text.concat());
    }
    let each = begin.elapsed().as_secs_f64() / settings.cases.max(1) as f64;
    println!("{name}: {:.0} cases/s, {statistics:?}", 1.0 / each);
    assert!(settings.cases < 100 || statistics.compared * 10 > settings.cases * 9, "{statistics:?}");
    statistics
}
