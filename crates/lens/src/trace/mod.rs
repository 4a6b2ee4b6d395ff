//! The trace: accesses as rows of Parquet files, which databases and data-frame libraries open as they are.
//!
//! `boot.parquet` becomes `boot.cpu0.parquet` and so on, a file a vCPU, sorted by the order in which accesses were made,
//! and `boot.pages.parquet`. A row of the latter says where a page was at each level, and is written when an access shows
//! a pair of guest virtual and guest physical page that is not there yet; a row of the former names one. So GPA, HVA and
//! HPA are the page's plus the lowest 12 bits of `address`. That is the guest virtual address, or the guest physical one
//! of an access by the page walker, which has no other.
//!
//! Rows are written in groups by a thread a file. Memory is bounded: when a file is slower than the guest, the guest waits,
//! or rows are lost, a group at a time, and counted. What cannot be written ends the trace; what was written until then
//! can be read.
//!
//! Left out: a host physical page that changes while the guest runs (its row has what it was when it was first
//! accessed), and a file of a process that was killed, which lacks its footer.

mod rows;
mod spec;
mod table;

use crate::filter::{Filter, WatchesFull};
use crate::symbols::Kernel;
use memory::observe::Interest;
use memory::{Access, Gpa, Gva, Observer, Pagemap, PhysicalMap};
use parquet::errors::ParquetError;
use rows::{Accesses, Pages, Rows};
pub use spec::{Spec, SpecError};
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use table::{Store, Table};

/// Rows of a group: a few MiB in memory. At most three are there for a file: one grows, one waits, one is written.
const GROUP: usize = 1 << 17;
/// Pages that are known before all are forgotten, and get new rows.
const KNOWN: usize = 1 << 20;
/// Pages that a vCPU finds without asking for the lock.
const NEAR: usize = 1 << 10;

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
    /// It has too many filters.
    #[error("the trace has too many filters: {0}")]
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

/// What is told of why a trace ends early.
type Broken = dyn Fn(&TraceError) + Send + Sync;

/// A file: the rows that are being gathered for it, and the thread that writes them.
struct Feed<R> {
    rows: R,
    /// `None`: the trace is over.
    sender: Option<SyncSender<R>>,
    full: Full,
    dropped: Arc<AtomicU64>,
    writer: Option<JoinHandle<Result<Summary, TraceError>>>,
}

impl<R: Rows> Feed<R> {
    fn new(path: PathBuf, full: Full, broken: Arc<Broken>) -> Result<Self, TraceError> {
        let store = File::create(&path).map_err(|source| TraceError::Create { path: path.clone(), source })?;
        let (sender, receiver) = sync_channel(1);
        let dropped = Arc::<AtomicU64>::default();
        let lost = Arc::clone(&dropped);
        let writer = thread::Builder::new()
            .name("trace".to_owned())
            .spawn(move || {
                let result = write(store, &receiver, &lost);
                drop(receiver);
                result.map_err(|source| TraceError::Write { path, source }).inspect_err(|error| broken(error))
            })
            .map_err(TraceError::Thread)?;
        Ok(Self { rows: R::default(), sender: Some(sender), full, dropped, writer: Some(writer) })
    }

    /// Hands the rows over if they make a group.
    fn pass(&mut self) {
        if self.rows.len() >= GROUP {
            self.hand_over(self.full);
        }
    }

    fn hand_over(&mut self, full: Full) {
        let rows = std::mem::take(&mut self.rows);
        let Some(sender) = &self.sender else { return };
        let lost = match full {
            Full::Wait => sender.send(rows).err().map(|error| error.0),
            Full::Drop => sender.try_send(rows).err().map(|error| match error {
                TrySendError::Full(rows) | TrySendError::Disconnected(rows) => rows,
            }),
        };
        if let Some(rows) = lost {
            self.dropped.fetch_add(rows.len() as u64, Ordering::Relaxed);
        }
    }

    /// Writes what is left and ends the file.
    fn finish(&mut self) -> Result<Summary, TraceError> {
        if self.rows.len() != 0 {
            self.hand_over(Full::Wait);
        }
        self.sender = None;
        match self.writer.take().map(JoinHandle::join) {
            Some(Ok(result)) => {
                let dropped = self.dropped.load(Ordering::Relaxed);
                result.map(|summary| Summary { dropped, ..summary })
            }
            // Finished before, or a panic, of which the hook has told.
            None | Some(Err(_)) => Ok(Summary::default()),
        }
    }
}

/// Writes what comes until no more does, or it cannot be written.
fn write<R: Rows>(store: impl Store, receiver: &Receiver<R>, lost: &AtomicU64) -> Result<Summary, ParquetError> {
    let names = rows::kinds();
    let mut table = Table::new(store, &R::LAYOUT)?;
    let mut records = 0;
    let mut failed = None;
    for rows in receiver {
        if let Err(error) = table.append(&rows.columns(&names)) {
            lost.fetch_add(rows.len() as u64, Ordering::Relaxed);
            failed = Some(error);
            break;
        }
        records += rows.len() as u64;
    }
    let facts = [("records", records), ("dropped", lost.load(Ordering::Relaxed))];
    let bytes = table.finish(&facts);
    match failed {
        Some(error) => Err(error),
        None => Ok(Summary { records, dropped: 0, bytes: bytes? }),
    }
}

/// A pair of pages: that of the guest virtual address, where there is one, and that of the guest physical one.
type Pair = (Option<Gva>, Gpa);

/// The pages that have rows.
struct Known {
    rows: HashMap<Pair, u64>,
    next: u64,
    feed: Feed<Pages>,
    pagemap: Option<Pagemap>,
}

impl Known {
    /// The row of the pages of `access`, which is number `seq`.
    fn row(&mut self, pair: Pair, seq: u64, access: &Access) -> u64 {
        if let Some(row) = self.rows.get(&pair) {
            return *row;
        }
        if self.rows.len() >= KNOWN {
            self.rows.clear();
        }
        let row = self.next;
        self.next += 1;
        self.rows.insert(pair, row);
        let hva = access.hva.map(|hva| hva.page());
        let hpa = access.hva.and_then(|hva| self.pagemap.as_ref()?.hpa(hva)).map(|hpa| hpa.page());
        self.feed.rows.push(row, seq, pair.0, pair.1, hva, hpa);
        self.feed.pass();
        row
    }
}

/// The accesses of a vCPU.
struct Stream {
    feed: Feed<Accesses>,
    /// Rows of pages, by the lowest bits of the page's number.
    near: Vec<Option<(Pair, u64)>>,
}

/// A trace of all vCPUs.
pub struct Trace {
    filter: Filter,
    began: Instant,
    /// The number of the next access.
    seq: AtomicU64,
    /// No more rows are taken.
    over: Arc<AtomicBool>,
    streams: Vec<Mutex<Stream>>,
    known: Mutex<Known>,
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
        let stream = |cpu| {
            let feed = Feed::new(part(&spec.file, &format!("cpu{cpu}")), spec.full, Arc::clone(&broken))?;
            Ok(Mutex::new(Stream { feed, near: vec![None; NEAR] }))
        };
        let streams = (0..cpus).map(stream).collect::<Result<_, _>>()?;
        // Rows of pages are few, and others would be useless without them.
        let feed = Feed::new(part(&spec.file, "pages"), Full::Wait, Arc::clone(&broken))?;
        let known = Known { rows: HashMap::new(), next: 0, feed, pagemap: Pagemap::open().ok() };
        Ok(Self { filter, began: Instant::now(), seq: AtomicU64::new(0), over, streams, known: Mutex::new(known) })
    }

    /// Whether anything is traced.
    pub(crate) fn wants_any(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// As [`Observer::system_calls_enter`]; what there is to say of symbols that are not found.
    pub(crate) fn kernel_begins(&self, map: &Arc<PhysicalMap>, entry: Gva, gpa: Gpa) -> Vec<String> {
        if self.filter.system_calls_enter(map, entry, gpa) { self.filter.missing() } else { Vec::new() }
    }

    /// Ends the trace: what is left is written, the files are whole afterwards.
    ///
    /// # Errors
    /// A file could not be written; the others are whole.
    pub fn finish(&self) -> Result<Summary, TraceError> {
        self.over.store(true, Ordering::Relaxed);
        let streams: Vec<_> = self.streams.iter().map(|stream| lock(stream).feed.finish()).collect();
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

impl Observer for Trace {
    fn interest(&self, gva: Gva, gpa: Gpa) -> Interest {
        self.filter.interest(gva, gpa)
    }

    fn wants_walks(&self, gpa: Gpa) -> bool {
        self.filter.wants_walks(gpa)
    }

    fn access(&self, access: &Access) {
        let Some(stream) = self.streams.get(access.origin.cpu as usize) else { return };
        if self.over.load(Ordering::Relaxed) || !self.filter.sift(access, |_| {}) {
            return;
        }
        let mut stream = lock(stream);
        let Stream { feed, near } = &mut *stream;
        if feed.sender.is_none() {
            return;
        }
        let seq = self.seq.fetch_add(1, Ordering::Relaxed);
        let time = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let pair = (access.gva.map(Gva::page), access.gpa.page());
        let slot = (pair.0.map_or(pair.1.0, |gva| gva.0) >> x86::PAGE_SHIFT) as usize % NEAR;
        let page = match near.get(slot) {
            Some(Some((known, row))) if *known == pair => *row,
            _ => {
                let row = lock(&self.known).row(pair, seq, access);
                if let Some(slot) = near.get_mut(slot) {
                    *slot = Some((pair, row));
                }
                row
            }
        };
        feed.rows.push(seq, time, access, page);
        feed.pass();
    }

    fn interest_changed(&self) -> bool {
        self.filter.interest_changed()
    }
}

#[cfg(test)]
mod tests;
