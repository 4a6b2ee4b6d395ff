//! A set of watches that may change at any time: where each of them is, and which of them an access touches. The watch
//! and the trace have one each.
//!
//! Watches that name a symbol of the guest's kernel are nowhere until the kernel has told where its system calls enter.
//! What a pointer points to is looked up again whenever the pointer is written, so that page is watched, too.

use crate::ranges::{Range, Ranges};
use crate::symbols::{Kernel, Table};
use crate::watch::{Kinds, Start, Watch};
use memory::observe::Interest;
use memory::{Access, AccessKind, Gpa, Gva, PhysicalMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use x86::PAGE_SIZE;

/// Bytes of a guest's pointer.
const POINTER: u64 = 8;
/// How often a guest may say that a kernel is there and have it looked for.
const ATTEMPTS: u32 = 64;
/// The most watches of a set.
const WATCHES: usize = 1024;

/// There are as many watches as can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {WATCHES} watches, which is as many as there can be")]
pub struct WatchesFull;

/// A watch of a set.
#[derive(Debug)]
pub(crate) struct Entry {
    pub id: u32,
    pub watch: Watch,
    /// The address of its symbol, if it has one and that is known.
    symbol: Option<Gva>,
    /// The first and last address, virtual or physical, if it is anywhere.
    pub place: Option<(u64, u64)>,
    /// Accesses that touched it, and the last of them.
    pub hits: AtomicU64,
    pub last: Mutex<Option<Access>>,
}

impl Entry {
    /// Counts an access that touches it.
    pub fn hit(&self, access: &Access) {
        self.hits.fetch_add(1, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(*access);
    }
}

/// Where a kernel is.
#[derive(Clone, Debug)]
struct Image {
    /// Where system calls enter, and where that is in guest physical memory.
    entry: Gva,
    gpa: Gpa,
    map: Arc<PhysicalMap>,
}

impl Image {
    /// The guest physical address of something in the image, which is in one piece.
    fn gpa(&self, gva: Gva) -> Gpa {
        self.gpa.wrapping_add(gva.0.wrapping_sub(self.entry.0))
    }

    /// Where the pointer at `gpa` points to. A null pointer points nowhere.
    fn follow(&self, gpa: Gpa) -> Option<Gva> {
        let mut bytes = [0; POINTER as usize];
        self.map.read(gpa, &mut bytes).ok()?;
        Some(Gva(u64::from_le_bytes(bytes))).filter(|gva| gva.0 != 0)
    }
}

/// The set as it is at some moment.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub entries: Vec<Entry>,
    /// The number of the last watch that was added.
    last_id: u32,
    /// Where the entries are; the owner is an index of `entries`.
    virtually: Ranges,
    physically: Ranges,
    /// The pointers among the symbols: where they are in guest physical memory.
    pointers: Vec<Gpa>,
    image: Option<Image>,
    pub symbols: Arc<Table>,
}

impl State {
    /// Finds where everything is.
    fn locate(&mut self) {
        let (mut virtually, mut physically, mut pointers) = (Vec::new(), Vec::new(), Vec::new());
        for (owner, entry) in self.entries.iter_mut().enumerate() {
            let Watch { kinds, start, len } = &entry.watch;
            let (ranges, first) = match start {
                Start::Physical(gpa) => (&mut physically, Some(gpa.0)),
                Start::Virtual(gva) => (&mut virtually, Some(gva.0)),
                Start::Symbol { name, pointer } => {
                    entry.symbol = entry.symbol.or_else(|| self.symbols.find(name));
                    let mut gva = entry.symbol;
                    if let (true, Some(symbol), Some(image)) = (*pointer, gva, &self.image) {
                        let gpa = image.gpa(symbol);
                        pointers.push(gpa);
                        gva = image.follow(gpa);
                    }
                    (&mut virtually, gva.map(|gva| gva.0))
                }
            };
            entry.place = first.map(|first| (first, first.saturating_add(len.saturating_sub(1))));
            ranges.extend(entry.place.map(|(first, last)| Range::new(first, last, *kinds, owner)));
        }
        (self.virtually, self.physically) = (Ranges::new(virtually), Ranges::new(physically));
        self.pointers = pointers;
    }

    /// The kinds of access that are all wanted, if nothing else is but fetches.
    fn all(&self) -> Option<Kinds> {
        let kinds = self.physically.everywhere()?;
        let nothing_else = self.virtually.is_empty() && self.pointers.is_empty();
        (nothing_else && (kinds.read || kinds.write)).then_some(kinds)
    }

    /// The kinds of access for which any of `size` bytes is watched.
    fn kinds(&self, gva: Option<Gva>, gpa: Gpa, size: u64) -> Kinds {
        let by_gpa = self.physically.kinds(gpa.0, last(gpa.0, size));
        gva.map_or(by_gpa, |gva| by_gpa.or(self.virtually.kinds(gva.0, last(gva.0, size))))
    }

    /// The watches that want `access`.
    fn wanting(&self, access: &Access) -> impl Iterator<Item = &Entry> {
        let size = access.size.into();
        let by_gpa = self.physically.overlapping(access.gpa.0, last(access.gpa.0, size));
        let by_gva = access.gva.map(|gva| self.virtually.overlapping(gva.0, last(gva.0, size)));
        let wants = |range: &&Range| match access.kind {
            AccessKind::Fetch => range.kinds.fetch,
            kind if kind.is_write() => range.kinds.write,
            _ => range.kinds.read,
        };
        by_gpa.chain(by_gva.into_iter().flatten()).filter(wants).filter_map(|range| self.entries.get(range.owner))
    }

    /// Whether a pointer has any of `size` bytes at `gpa`.
    fn has_pointer(&self, gpa: Gpa, size: u64) -> bool {
        let touches =
            |pointer: &Gpa| gpa.0 < pointer.0.saturating_add(POINTER) && pointer.0 < gpa.0.saturating_add(size);
        self.pointers.iter().any(touches)
    }

    /// Whether any watch names a symbol.
    fn names(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry.watch.start, Start::Symbol { .. }))
    }

    /// Why a watch is nowhere.
    pub fn missing(&self, entry: &Entry) -> Option<String> {
        let Start::Symbol { name, .. } = &entry.watch.start else { return None };
        match entry.symbol {
            Some(_) if entry.place.is_some() => None,
            Some(_) => Some(format!("the pointer {name} points nowhere yet")),
            None if self.image.is_none() => Some("no kernel of the guest has begun yet".to_owned()),
            None if self.symbols.is_empty() => Some("no symbols are found in the guest's kernel".to_owned()),
            None => Some(format!("the guest's kernel has no symbol {name}")),
        }
    }
}

/// The last of `size` (at least 1) bytes.
fn last(first: u64, size: u64) -> u64 {
    first.saturating_add(size.saturating_sub(1))
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Filter {
    state: RwLock<State>,
    kernel: Arc<Kernel>,
    /// Symbols are wanted even if no watch names one.
    named: bool,
    /// Other pages are of interest than before.
    changed: AtomicBool,
    /// How often a kernel will still be looked for.
    attempts: AtomicU32,
}

impl Filter {
    /// An empty set. `named`: symbols are wanted even if no watch names one.
    pub fn new(kernel: Arc<Kernel>, named: bool) -> Self {
        let (changed, attempts) = (AtomicBool::new(false), AtomicU32::new(ATTEMPTS));
        Self { state: RwLock::default(), kernel, named, changed, attempts }
    }

    /// What is asked for symbols.
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.kernel
    }

    /// The set as it is. Not to be held when it is changed.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state);
        state.locate();
        drop(state);
        self.changed.store(true, Ordering::Release);
        result
    }

    /// Whether there is any watch.
    pub fn wants_any(&self) -> bool {
        !self.state().entries.is_empty()
    }

    /// One more watch; its number.
    ///
    /// # Errors
    /// There are as many as can be.
    pub fn add(&self, watch: Watch) -> Result<u32, WatchesFull> {
        // Somebody other than the guest asks.
        self.attempts.store(ATTEMPTS, Ordering::Relaxed);
        self.change(|state| {
            if state.entries.len() >= WATCHES {
                return Err(WatchesFull);
            }
            let id = state.last_id.checked_add(1).ok_or(WatchesFull)?;
            state.last_id = id;
            let (hits, last) = Default::default();
            state.entries.push(Entry { id, watch, symbol: None, place: None, hits, last });
            Ok(id)
        })
    }

    /// Takes the watch of this number out; false: there is none.
    pub fn remove(&self, id: u32) -> bool {
        self.change(|state| {
            let before = state.entries.len();
            state.entries.retain(|entry| entry.id != id);
            state.entries.len() != before
        })
    }

    /// The kinds of access that are all wanted, if nothing else is but fetches.
    pub fn all(&self) -> Option<Kinds> {
        self.state().all()
    }

    /// See [`memory::Observer::interest`].
    pub fn interest(&self, gva: Gva, gpa: Gpa) -> Interest {
        let state = self.state();
        let kinds = state.kinds(Some(gva.page()), gpa.page(), PAGE_SIZE);
        let pointer = state.has_pointer(gpa.page(), PAGE_SIZE);
        Interest { read: kinds.read, write: kinds.write || pointer, fetch: kinds.fetch }
    }

    /// See [`memory::Observer::wants_walks`].
    pub fn wants_walks(&self, gpa: Gpa) -> bool {
        let state = self.state();
        if state.physically.is_empty() {
            return false;
        }
        let kinds = state.kinds(None, gpa.page(), PAGE_SIZE);
        kinds.read || kinds.write
    }

    /// See [`memory::Observer::interest_changed`].
    pub fn interest_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    /// Gives `each` the watches that want `access`, of all accesses for which there was interest; whether there is any.
    pub fn sift(&self, access: &Access, mut each: impl FnMut(&Entry)) -> bool {
        let state = self.state();
        let mut wanted = false;
        for entry in state.wanting(access) {
            wanted = true;
            each(entry);
        }
        let moved = access.kind == AccessKind::Write && state.has_pointer(access.gpa, access.size.into());
        drop(state);
        if moved {
            self.change(|_| ());
        }
        wanted
    }

    /// See [`memory::Observer::system_calls_enter`]. True: symbols have been looked for.
    pub fn system_calls_enter(&self, map: &Arc<PhysicalMap>, entry: Gva, gpa: Gpa) -> bool {
        let state = self.state();
        let same = state.image.as_ref().is_some_and(|image| (image.entry, image.gpa) == (entry, gpa));
        let wanted = state.names() || self.named && !state.entries.is_empty();
        let settled = same && (!wanted || !state.symbols.is_empty());
        drop(state);
        if settled {
            return false;
        }
        let fewer = |left: u32| left.checked_sub(1);
        let looked = wanted && self.attempts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok();
        let symbols = if looked { self.kernel.symbols(map, entry, gpa) } else { Arc::default() };
        self.change(|state| {
            state.image = Some(Image { entry, gpa, map: Arc::clone(map) });
            state.symbols = symbols;
            for entry in &mut state.entries {
                entry.symbol = None;
            }
        });
        looked
    }

    /// What there is to say of watches that are nowhere although symbols have been looked for.
    pub fn missing(&self) -> Vec<String> {
        let state = self.state();
        let lost = state.entries.iter().filter(|entry| entry.symbol.is_none());
        lost.filter_map(|entry| Some(format!("{}: {}", entry.watch, state.missing(entry)?))).collect()
    }
}
