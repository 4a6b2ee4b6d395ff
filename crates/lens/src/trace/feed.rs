//! From whoever makes rows to a file: a thread that puts them in order and writes, and others that pack them.

use super::rows::Rows;
use super::table::{Encoder, Group, Store, Table};
use super::{Broken, Full, Summary, TraceError};
use parquet::errors::ParquetError;
use std::collections::VecDeque;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::thread::{self, JoinHandle};

/// What is gathered before it is handed over.
pub(super) trait Lot: Default + Send + 'static {
    /// What becomes of it.
    type Rows: Rows;
    /// How many rows it makes.
    fn len(&self) -> usize;
    /// Drops everything and keeps the memory.
    fn clear(&mut self);
}

/// A file: what is being gathered for it, and the threads that write it.
pub(super) struct Feed<L> {
    /// What is being gathered.
    pub lot: L,
    /// `None`: the trace is over.
    pub sender: Option<SyncSender<L>>,
    pub spare: Receiver<L>,
    pub full: Full,
    pub dropped: Arc<AtomicU64>,
    pub writer: Option<JoinHandle<Result<Summary, TraceError>>>,
}

/// What makes rows of lots.
pub(super) type Expand<L> = Box<dyn FnMut(&mut L, &mut <L as Lot>::Rows) + Send>;

impl<L: Lot> Feed<L> {
    /// Writes to `path` what `expand` makes of lots, with the help of so many other threads.
    pub fn new(
        path: PathBuf,
        full: Full,
        broken: Arc<Broken>,
        expand: Expand<L>,
        helpers: usize,
    ) -> Result<Self, TraceError> {
        let store = File::create(&path).map_err(|source| TraceError::Create { path: path.clone(), source })?;
        let (sender, receiver) = sync_channel(1);
        let (back, spare) = channel();
        let dropped = Arc::<AtomicU64>::default();
        let lost = Arc::clone(&dropped);
        let writer = thread::Builder::new()
            .name("trace".to_owned())
            .spawn(move || {
                jail::enter(jail::Role::Io);
                let result = write(store, &receiver, |lot| drop(back.send(lot)), expand, helpers, &lost);
                drop(receiver);
                result.map_err(|source| TraceError::Write { path, source }).inspect_err(|error| broken(error))
            })
            .map_err(TraceError::Thread)?;
        Ok(Self { lot: L::default(), sender: Some(sender), spare, full, dropped, writer: Some(writer) })
    }

    /// Hands over what has been gathered if it makes `enough` rows.
    pub fn pass(&mut self, enough: usize) {
        if self.lot.len() >= enough {
            self.hand_over(self.full);
        }
    }

    fn hand_over(&mut self, full: Full) {
        let lot = std::mem::replace(&mut self.lot, self.spare.try_recv().unwrap_or_default());
        let Some(sender) = &self.sender else { return };
        let lost = match full {
            Full::Wait => sender.send(lot).err().map(|error| error.0),
            Full::Drop => sender.try_send(lot).err().map(|error| match error {
                TrySendError::Full(lot) | TrySendError::Disconnected(lot) => lot,
            }),
        };
        if let Some(mut lot) = lost {
            self.dropped.fetch_add(lot.len() as u64, Ordering::Relaxed);
            lot.clear();
            self.lot = lot;
        }
    }

    /// Writes what is left and ends the file.
    pub fn finish(&mut self) -> Result<Summary, TraceError> {
        if self.lot.len() != 0 {
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

/// Writes what comes until no more does, or it cannot be written. `back` takes lots that have been seen to.
pub(super) fn write<L: Lot>(
    store: impl Store,
    receiver: &Receiver<L>,
    back: impl Fn(L),
    mut expand: Expand<L>,
    helpers: usize,
    lost: &AtomicU64,
) -> Result<Summary, ParquetError> {
    let mut table = Table::new(store, &L::Rows::LAYOUT)?;
    let mut packers = Packers::new(helpers)?;
    let (mut records, mut failed) = (0, None);
    let mut append = |(group, rows): (Result<Group, ParquetError>, u64)| {
        if failed.is_none() {
            match group.and_then(|group| table.append(group)) {
                Ok(()) => records += rows,
                Err(error) => failed = Some(error),
            }
        }
        if failed.is_some() {
            lost.fetch_add(rows, Ordering::Relaxed);
        }
        failed.is_none()
    };
    let mut going = true;
    for mut lot in receiver {
        let mut rows = packers.spare.pop().unwrap_or_default();
        expand(&mut lot, &mut rows);
        lot.clear();
        back(lot);
        if let Some(done) = packers.take(rows) {
            going = append(done);
        }
        if !going {
            break;
        }
    }
    while let Some(done) = packers.wait() {
        append(done);
    }
    let facts = [("records", records), ("dropped", lost.load(Ordering::Relaxed))];
    let bytes = table.finish(&facts);
    match failed {
        Some(error) => Err(error),
        None => Ok(Summary { records, dropped: 0, bytes: bytes? }),
    }
}

/// A row group and how many rows it has.
type Packed = (Result<Group, ParquetError>, u64);

/// A thread that packs rows: what goes to it, and what comes back.
type Packer<R> = (SyncSender<R>, Receiver<(Packed, R)>);

/// Threads that pack rows, each a group at a time; groups come back in order.
struct Packers<R> {
    all: Vec<Packer<R>>,
    /// Those that are at work, in the order in which they were given it.
    busy: VecDeque<usize>,
    /// Whose turn it is.
    next: usize,
    /// Empty ones, whose memory is used again.
    spare: Vec<R>,
}

impl<R: Rows> Packers<R> {
    fn new(count: usize) -> Result<Self, ParquetError> {
        let packer = |_| {
            let (sender, work) = sync_channel::<R>(1);
            let (done, receiver) = sync_channel(1);
            let mut encoder = Encoder::new(&R::LAYOUT)?;
            let work = move || {
                for rows in work {
                    let packed = (encoder.group(&rows.columns()), rows.len() as u64);
                    if done.send((packed, rows)).is_err() {
                        break;
                    }
                }
            };
            thread::Builder::new().name("trace pack".to_owned()).spawn(work)?;
            Ok((sender, receiver))
        };
        let all = (0..count).map(packer).collect::<Result<_, ParquetError>>()?;
        Ok(Self { all, busy: VecDeque::new(), next: 0, spare: Vec::new() })
    }

    /// Has `rows` packed. Gives a group that was to be packed before, if it has to wait for that.
    fn take(&mut self, rows: R) -> Option<Packed> {
        let done = if self.busy.len() == self.all.len() { self.wait() } else { None };
        if let Some((sender, _)) = self.all.get(self.next)
            && sender.send(rows).is_ok()
        {
            self.busy.push_back(self.next);
            self.next = (self.next + 1) % self.all.len();
        }
        done
    }

    /// The next group that was to be packed.
    fn wait(&mut self) -> Option<Packed> {
        let (_, receiver) = self.all.get(self.busy.pop_front()?)?;
        let (packed, mut rows) = receiver.recv().ok()?;
        rows.clear();
        self.spare.push(rows);
        Some(packed)
    }
}
