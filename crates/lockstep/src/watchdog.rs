//! Ends cases that do not end by themselves: programs are bounded by how they are made, but a return to the wrong
//! place or changed code can make a loop.
//!
//! What counts is the processor time of the thread that runs the case, so that a busy machine makes no difference.

use cpu::hooks::Signals;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the watchdog looks.
const PERIOD: Duration = Duration::from_millis(5);
/// A thread that does not run at all, in HLT, is given up after so many times its patience.
const ASLEEP: u32 = 20;

/// What is being watched.
#[derive(Debug, Default)]
struct Watched {
    /// The vCPU's signals, and which case it is.
    case: Option<(Arc<Signals>, u64)>,
    cases: u64,
    patience: Duration,
    expired: bool,
}

/// A thread that raises [`Signals::STOP`] when a case takes longer than it may. It watches the thread that made it.
#[derive(Debug)]
pub struct Watchdog {
    watched: Arc<Mutex<Watched>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// While this lives, a case is watched.
#[derive(Debug)]
pub struct Guard<'a>(&'a Watchdog);

fn lock(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Processor time of a thread, from its `/proc` folder.
fn processor_time(thread: &PathBuf) -> Duration {
    let text = std::fs::read_to_string(PathBuf::from("/proc").join(thread).join("schedstat")).unwrap_or_default();
    let first = text.split(' ').next().and_then(|number| number.parse().ok());
    Duration::from_nanos(first.unwrap_or(0))
}

impl Watchdog {
    /// One that lets a case take `patience`.
    #[must_use]
    pub fn new(patience: Duration) -> Self {
        let watched = Arc::new(Mutex::new(Watched { patience, ..Watched::default() }));
        let stop = Arc::<AtomicBool>::default();
        let (shared, stopped) = (watched.clone(), stop.clone());
        let runner = std::fs::read_link("/proc/thread-self").unwrap_or_default();
        let thread = std::thread::spawn(move || {
            let mut last = (0, Duration::ZERO, Instant::now());
            while !stopped.load(SeqCst) {
                std::thread::park_timeout(PERIOD);
                let mut watched = lock(&shared);
                let Some((signals, case)) = watched.case.clone() else { continue };
                let now = processor_time(&runner);
                if last.0 != case {
                    last = (case, now, Instant::now());
                } else if now - last.1 > watched.patience || last.2.elapsed() > watched.patience * ASLEEP {
                    signals.raise(Signals::STOP);
                    watched.expired = true;
                }
            }
        });
        Self { watched, stop, thread: Some(thread) }
    }

    /// Watches the vCPU that `signals` reach.
    #[must_use]
    pub fn watch(&self, signals: &Arc<Signals>) -> Guard<'_> {
        let mut watched = lock(&self.watched);
        watched.cases += 1;
        watched.case = Some((signals.clone(), watched.cases));
        watched.expired = false;
        Guard(self)
    }

    /// Changes what a case may take.
    pub fn set_patience(&self, patience: Duration) {
        lock(&self.watched).patience = patience;
    }
}

impl Guard<'_> {
    /// Whether the case has been told to stop.
    #[must_use]
    pub fn expired(&self) -> bool {
        lock(&self.0.watched).expired
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        lock(&self.0.watched).case = None;
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It panics only with the process.
            let _ = thread.join();
        }
    }
}
