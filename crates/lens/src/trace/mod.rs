//! The trace: accesses as rows of Parquet files, which databases and data-frame libraries open as they are.
//!
//! `boot.parquet` becomes `boot.cpu0.parquet` and so on, a file a vCPU, sorted by the order in which accesses were made,
//! `boot.dma.parquet` with those that devices made by themselves, and `boot.pages.parquet`. A row of the latter says where
//! a page was at each level, and is written when an access shows a pair of guest virtual and guest physical page that is
//! not there yet; a row of the others names one. So GPA, HVA and HPA are the page's plus the lowest 12 bits of `address`.
//! That is the guest virtual address, or the guest physical one of an access by the page walker or a device, which has no
//! other.
//!
//! Rows are written in groups by a thread a file. Memory is bounded: when a file is slower than the guest, the guest waits,
//! or rows are lost, a group at a time, and counted. What cannot be written ends the trace; what was written until then
//! can be read.
//!
//! Left out: a host physical page that changes while the guest runs (its row has what it was when it was first
//! accessed), and a file of a process that was killed, which lacks its footer.

mod encode;
pub mod export;
mod feed;
mod lot;
pub mod read;
mod rows;
mod span;
mod spec;
mod table;

use crate::filter::{Filter, WatchesFull};
use crate::symbols::Kernel;
use crate::watch::Kinds;
use feed::{Expand, Feed};
use lot::{Deeds, DeviceDeeds, Expander, Moment};
use memory::observe::{Batch, Interest};
use memory::{Access, Agent, Gpa, Gva, Hva, Observer, Pagemap, PhysicalMap};
use parquet::errors::ParquetError;
use rows::{Pages, Transfers};
use span::Span;
pub use span::When;
pub use spec::{Spec, SpecError};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// Rows of a group, roughly: some ten MiB in memory. Of a file one grows, one waits, one is made rows, and each thread that
/// packs has one.
const GROUP: usize = 1 << 17;
/// Pages that are known before all are forgotten, and get new rows.
const KNOWN: usize = 1 << 20;
/// So many accesses have the same time.
const TICK: u64 = 64;
/// The most threads that pack the rows of a file.
const PACKERS: usize = 4;

/// What happens when the disk is slower than the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Full {
    /// The guest waits.
    #[default]
    Wait,
    /// Rows are lost, and counted.
    Drop,
}

/// Why a trace cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// A file cannot be made.
    #[error("{} cannot be written", .path.display())]
    Create {
        /// Which.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// A filter cannot be.
    #[error("a filter of the trace cannot be: {0}")]
    Filters(#[source] WatchesFull),
    /// The thread that writes a file cannot be started.
    #[error("a thread for the trace cannot be started")]
    Thread(#[source] io::Error),
    /// A row group or a footer cannot be written.
    #[error("{} cannot be written: {source}", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ParquetError,
    },
}

/// What a trace came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Rows of accesses that are in the files.
    pub records: u64,
    /// Accesses that are not.
    pub dropped: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// How a trace is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// It is turned on.
    pub on: bool,
    /// Nothing can be written any more.
    pub over: bool,
    /// Accesses so far.
    pub accesses: u64,
    /// How many of them were lost.
    pub dropped: u64,
    /// After how many instructions of the first vCPU it is turned on or off next, and which.
    pub next: Option<(u64, bool)>,
}

/// What is told of why a trace ends early.
type Broken = dyn Fn(&TraceError) + Send + Sync;

/// A pair of pages: that of the guest virtual address, where there is one, and that of the guest physical one.
type Pair = (Option<Gva>, Gpa);

/// The pages that have rows.
struct Known {
    rows: HashMap<Pair, u64>,
    next: u64,
    feed: Feed<Pages>,
    pagemap: Option<Arc<Pagemap>>,
}

impl Known {
    /// The row of these pages, to which access number `seq` was, at `hva`.
    fn row(&mut self, pair: Pair, seq: u64, hva: Option<Hva>) -> u64 {
        if let Some(row) = self.rows.get(&pair) {
            return *row;
        }
        if self.rows.len() >= KNOWN {
            self.rows.clear();
        }
        let row = self.next;
        self.next += 1;
        self.rows.insert(pair, row);
        let hpa = hva.and_then(|hva| self.pagemap.as_ref()?.hpa(hva)).map(|hpa| hpa.page());
        self.feed.lot.push(row, seq, pair.0, pair.1, hva.map(Hva::page), hpa);
        self.feed.pass(GROUP);
        row
    }
}

/// A trace of all vCPUs.
pub struct Trace {
    filter: Filter,
    span: Span,
    began: Instant,
    /// The number of the next access.
    seq: AtomicU64,
    /// When it last was asked what time it is: nanoseconds since the trace began.
    time: AtomicU64,
    /// No more rows are taken.
    over: Arc<AtomicBool>,
    /// The accesses of each vCPU.
    streams: Vec<Mutex<Feed<Deeds>>>,
    /// Those of devices.
    dma: Mutex<Feed<DeviceDeeds>>,
    known: Arc<Mutex<Known>>,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("filter", &self.filter).field("seq", &self.seq).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `boot.parquet` with `part` `cpu0` is `boot.cpu0.parquet`.
fn part(file: &Path, part: &str) -> PathBuf {
    match file.extension() {
        Some(extension) => file.with_extension(format!("{part}.{}", extension.display())),
        None => file.with_extension(format!("{part}.parquet")),
    }
}

impl Trace {
    /// Traces what `spec` says of `cpus` vCPUs. `broken` is called when a file cannot be written, which ends the trace.
    /// `kernel` is asked for symbols.
    ///
    /// # Errors
    /// A file cannot be made, or a thread.
    pub fn create(
        spec: &Spec,
        cpus: u32,
        kernel: Arc<Kernel>,
        broken: impl Fn(&TraceError) + Send + Sync + 'static,
    ) -> Result<Self, TraceError> {
        let filter = Filter::new(kernel, false);
        for watch in &spec.filters {
            filter.add(watch.clone()).map_err(TraceError::Filters)?;
        }
        let over = Arc::<AtomicBool>::default();
        let ends = Arc::clone(&over);
        let broken: Arc<Broken> = Arc::new(move |error| {
            // Once, though several files may be on the disk that is full.
            if !ends.swap(true, Ordering::Relaxed) {
                broken(error);
            }
        });
        // Rows of pages are few, and others would be useless without them.
        let rows = Box::new(|pages: &mut Pages, rows: &mut Pages| std::mem::swap(pages, rows));
        let feed = Feed::new(part(&spec.file, "pages"), Full::Wait, Arc::clone(&broken), rows, 1)?;
        let known = Known { rows: HashMap::new(), next: 0, feed, pagemap: Pagemap::of_this_process() };
        let known = Arc::new(Mutex::new(known));
        // A processor for the guest.
        let packers = thread::available_parallelism().map_or(1, usize::from).saturating_sub(1).clamp(1, PACKERS);
        let stream = |cpu| {
            let mut expander = Expander::new(Arc::clone(&known));
            let expand: Expand<Deeds> = Box::new(move |deeds, rows| expander.expand(deeds, rows));
            let path = part(&spec.file, &format!("cpu{cpu}"));
            Feed::new(path, spec.full, Arc::clone(&broken), expand, packers).map(Mutex::new)
        };
        let streams = (0..cpus).map(stream).collect::<Result<_, _>>()?;
        let pages = Arc::clone(&known);
        let expand = Box::new(move |deeds: &mut DeviceDeeds, rows: &mut Transfers| deeds.expand(&pages, rows));
        let dma = Mutex::new(Feed::new(part(&spec.file, "dma"), spec.full, broken, expand, 1)?);
        Ok(Self {
            filter,
            span: Span::new(spec.when),
            began: Instant::now(),
            seq: AtomicU64::new(0),
            time: AtomicU64::new(0),
            over,
            streams,
            dma,
            known,
        })
    }

    /// Whether anything is traced now.
    pub(crate) fn wants_any(&self) -> bool {
        self.span.is_on() && !self.over.load(Ordering::Relaxed)
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.span.is_on()
    }

    /// Turns it on or off. As for [`crate::Lens`], vCPUs are to take their observer anew.
    pub fn turn(&self, on: bool) {
        if on {
            // Pointers may have been written meanwhile.
            self.filter.look_anew();
        }
        self.span.turn(on);
    }

    /// After how many instructions of the first vCPU it is turned on or off next.
    #[must_use]
    pub fn next_mark(&self) -> Option<u64> {
        self.span.next().map(|(at, _)| at)
    }

    /// Turns it on or off if the first vCPU has executed as many instructions as that takes.
    pub fn pass(&self, instructions: u64) {
        if let Some(on) = self.span.pass(instructions) {
            self.turn(on);
        }
    }

    /// How it is doing.
    #[must_use]
    pub fn state(&self) -> State {
        State {
            on: self.span.is_on(),
            over: self.over.load(Ordering::Relaxed),
            accesses: self.seq.load(Ordering::Relaxed),
            dropped: {
                let cpus: u64 = self.streams.iter().map(|stream| lock(stream).dropped.load(Ordering::Relaxed)).sum();
                cpus + lock(&self.dma).dropped.load(Ordering::Relaxed)
            },
            next: self.span.next(),
        }
    }

    /// As [`Observer::system_calls_enter`]; what there is to say of symbols that are not found.
    pub(crate) fn kernel_begins(&self, map: &Arc<PhysicalMap>, entry: Gva, gpa: Gpa) -> Vec<String> {
        if self.filter.system_calls_enter(map, entry, gpa) { self.filter.missing() } else { Vec::new() }
    }

    /// The number of the first of so many accesses, and when that is.
    fn moment(&self, accesses: usize) -> Moment {
        let seq = self.seq.fetch_add(accesses as u64, Ordering::Relaxed);
        if seq == 0 || seq / TICK != (seq + accesses as u64) / TICK {
            let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.time.fetch_max(now, Ordering::Relaxed);
        }
        Moment { seq, time: self.time.load(Ordering::Relaxed) }
    }

    /// What takes the accesses of vCPU `cpu`, unless the trace is over.
    fn stream(&self, cpu: u32) -> Option<MutexGuard<'_, Feed<Deeds>>> {
        self.taking(self.streams.get(cpu as usize)?)
    }

    /// A feed, unless the trace is over.
    fn taking<'a, L>(&self, feed: &'a Mutex<Feed<L>>) -> Option<MutexGuard<'a, Feed<L>>> {
        if self.over.load(Ordering::Relaxed) {
            return None;
        }
        Some(lock(feed)).filter(|feed| feed.sender.is_some())
    }

    /// Ends the trace: what is left is written, the files are whole afterwards.
    ///
    /// # Errors
    /// A file could not be written; the others are whole.
    pub fn finish(&self) -> Result<Summary, TraceError> {
        self.over.store(true, Ordering::Relaxed);
        let mut streams: Vec<_> = self.streams.iter().map(|stream| lock(stream).finish()).collect();
        streams.push(lock(&self.dma).finish());
        let pages = lock(&self.known).feed.finish()?;
        streams.into_iter().try_fold(Summary { bytes: pages.bytes, ..Summary::default() }, |sum, next| {
            let next = next?;
            Ok(Summary {
                records: sum.records + next.records,
                dropped: sum.dropped + next.dropped,
                bytes: sum.bytes + next.bytes,
            })
        })
    }
}

/// Whether a read, or a write, is of these kinds.
fn wanted(kinds: Kinds, write: bool) -> bool {
    if write { kinds.write } else { kinds.read }
}

impl Observer for Trace {
    fn interest(&self, gva: Gva, gpa: Gpa) -> Interest {
        if self.wants_any() { self.filter.interest(gva, gpa) } else { Interest::default() }
    }

    fn wants_walks(&self, gpa: Gpa) -> bool {
        self.wants_any() && self.filter.wants_walks(gpa)
    }

    fn wants_dma(&self, gpa: Gpa) -> bool {
        self.wants_any() && self.filter.wants_dma(gpa)
    }

    fn access(&self, access: &Access) {
        if !self.span.is_on() || !self.filter.sift(access, |_, _| {}) {
            return;
        }
        match access.agent {
            Agent::Vcpu { origin, .. } => {
                if let Some(mut feed) = self.stream(origin.cpu) {
                    feed.lot.one(self.moment(1), access);
                    feed.pass(GROUP);
                }
            }
            Agent::Device(device) => {
                if let Some(mut feed) = self.taking(&self.dma) {
                    feed.lot.one(self.moment(1), device, access);
                    feed.pass(GROUP);
                }
            }
        }
    }

    fn record_will_do(&self, _: Gva, _: Gpa) -> bool {
        self.records()
    }

    fn records(&self) -> bool {
        self.wants_any() && self.filter.all().is_some()
    }

    fn recorded(&self, batch: &Batch<'_>) {
        if !self.span.is_on() {
            return;
        }
        let Some(kinds) = self.filter.all() else {
            // It has just changed.
            return batch.accesses().for_each(|access| self.access(&access));
        };
        if let Some(mut feed) = self.stream(batch.origin.cpu) {
            let rows = batch.kinds().filter(|write| wanted(kinds, *write)).count();
            feed.lot.batch(self.moment(rows), batch, kinds, rows);
            feed.pass(GROUP);
        }
    }

    fn interest_changed(&self) -> bool {
        self.filter.interest_changed()
    }
}

#[cfg(test)]
mod tests;
