//! A set of watches that may change at any time: where each of them is, and which of them an access touches. The watch
//! and the trace have one each.
//!
//! Watches that name a symbol of the guest's kernel are nowhere until the kernel has told where its system calls enter.
//! What a pointer points to is looked up again whenever the pointer is written, so that page is watched, too.

use crate::ranges::{Range, Ranges};
use crate::symbols::{Kernel, Process, Processes, Table, Unlisted, by_cr3, in_modules};
use crate::watch::{Code, CodeStart, Condition, Kinds, Start, Watch};
use memory::observe::Interest;
use memory::{Access, AccessKind, Gpa, Gva, PhysicalMap};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use x86::PAGE_SIZE;

/// Bytes of a guest's pointer.
const POINTER: u64 = 8;
/// How often a guest may say that a kernel is there and have it looked for.
const ATTEMPTS: u32 = 64;
/// Processes that are remembered.
const RUNNING: usize = 1024;
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
    /// It has not been turned off.
    pub enabled: bool,
    /// The address of its symbol, if it has one and that is known.
    symbol: Option<Gva>,
    /// The first and last address, virtual or physical, if it is anywhere.
    pub place: Option<(u64, u64)>,
    /// For each condition on code the first and last address of that, if it is anywhere.
    codes: Vec<Option<(u64, u64)>>,
    /// Accesses that it was for, and the last of them.
    pub hits: AtomicU64,
    pub last: Mutex<Option<Access>>,
    /// How many it is still for, if it has a limit.
    pub left: AtomicU64,
}

impl Entry {
    fn new(id: u32, watch: Watch) -> Self {
        let left = AtomicU64::new(watch.limit.unwrap_or(u64::MAX));
        let (hits, last) = Default::default();
        Self { id, watch, enabled: true, symbol: None, place: None, codes: Vec::new(), hits, last, left }
    }

    /// Whether it is for any access at all.
    fn open(&self) -> bool {
        self.enabled && self.left.load(Ordering::Relaxed) != 0
    }

    /// Whether an access that touches its bytes meets its conditions.
    fn met(&self, access: &Access) -> bool {
        self.watch.conditions.iter().zip(&self.codes).all(|(condition, code)| match condition {
            Condition::Rip { inside, .. } => {
                let within = |rip| code.is_some_and(|(first, last)| (first..=last).contains(&rip));
                access.origin().is_some_and(|origin| within(origin.rip) == *inside)
            }
            condition => condition.met(access),
        })
    }

    /// Takes off one of its limit: whether that was the last. `None`: there was none left.
    fn spend(&self) -> Option<bool> {
        if self.watch.limit.is_none() {
            return Some(false);
        }
        let spent = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        spent.ok().map(|before| before == 1)
    }

    /// Counts an access.
    fn hit(&self, access: &Access) {
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
    /// How its processes are listed, if that has been asked for, and those that were seen, by CR3.
    processes: Option<Result<Arc<Processes>, Unlisted>>,
    running: Mutex<HashMap<u64, Process>>,
}

impl State {
    /// Finds where everything is.
    fn locate(&mut self) {
        let (mut virtually, mut physically, mut pointers) = (Vec::new(), Vec::new(), Vec::new());
        for (owner, entry) in self.entries.iter_mut().enumerate() {
            let open = entry.open();
            let Watch { kinds, start, len, conditions, .. } = &entry.watch;
            entry.codes = conditions.iter().map(|condition| extent(condition, &self.symbols)).collect();
            let (ranges, first) = match start {
                Start::Physical(gpa) => (&mut physically, Some(gpa.0)),
                Start::Virtual(gva) => (&mut virtually, Some(gva.0)),
                Start::Symbol { name, pointer } => {
                    entry.symbol = entry.symbol.or_else(|| self.symbols.find(name));
                    let mut gva = entry.symbol;
                    if let (true, Some(symbol), Some(image)) = (*pointer, gva, &self.image) {
                        let gpa = image.gpa(symbol);
                        pointers.extend(open.then_some(gpa));
                        gva = image.follow(gpa);
                    }
                    (&mut virtually, gva.map(|gva| gva.0))
                }
            };
            entry.place = first.map(|first| (first, first.saturating_add(len.saturating_sub(1))));
            ranges.extend(entry.place.filter(|_| open).map(|(first, last)| Range::new(first, last, *kinds, owner)));
        }
        (self.virtually, self.physically) = (Ranges::new(virtually), Ranges::new(physically));
        self.pointers = pointers;
    }

    /// The kinds of access that are all wanted, on no condition, if nothing else is but fetches.
    fn all(&self) -> Option<Kinds> {
        let kinds = self.physically.everywhere()?;
        let nothing_else = self.virtually.is_empty() && self.pointers.is_empty();
        let plain = self.entries.iter().all(|entry| entry.watch.conditions.is_empty() && entry.watch.limit.is_none());
        (nothing_else && plain && (kinds.read || kinds.write)).then_some(kinds)
    }

    /// The kinds of access for which any of `size` bytes is watched.
    fn kinds(&self, gva: Option<Gva>, gpa: Gpa, size: u64) -> Kinds {
        let by_gpa = self.physically.kinds(gpa.0, last(gpa.0, size));
        gva.map_or(by_gpa, |gva| by_gpa.or(self.virtually.kinds(gva.0, last(gva.0, size))))
    }

    /// Whether reads or writes in the page of `gpa` are wanted that have no virtual address.
    fn wants_physically(&self, gpa: Gpa) -> bool {
        if self.physically.is_empty() {
            return false;
        }
        let kinds = self.kinds(None, gpa.page(), PAGE_SIZE);
        kinds.read || kinds.write
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

    /// Whether any watch names a symbol, or needs those by which processes are found.
    fn names(&self) -> bool {
        self.wants_processes() || self.entries.iter().any(|entry| entry.watch.symbols().next().is_some())
    }

    /// Whether any watch asks for a process.
    fn wants_processes(&self) -> bool {
        self.entries.iter().any(|entry| entry.watch.processes().next().is_some())
    }

    /// Whether `access` is by the processes that `entry` asks for.
    fn by_process(&self, entry: &Entry, access: &Access) -> bool {
        let runs = |name| self.runs(access.cr3()?, name);
        entry.watch.processes().all(|(is, name)| runs(name) == Some(is))
    }

    /// Whether CR3 belongs to a process of this name. `None`: nothing tells.
    fn runs(&self, cr3: u64, name: &str) -> Option<bool> {
        let map = &self.image.as_ref()?.map;
        let processes = self.processes.as_ref()?.as_ref().ok()?;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(now) = running.get(&cr3).and_then(|process| processes.again(map, process))
            && by_cr3(std::slice::from_ref(&now), cr3).is_some()
        {
            return Some(now.name == name);
        }
        if running.len() >= RUNNING {
            running.clear();
        }
        let all = processes.list(map);
        let process = by_cr3(&all, cr3);
        running.extend(process.map(|process| (cr3, process.clone())));
        Some(process.is_some_and(|process| process.name == name))
    }

    /// What a watch asks for that nothing is known of.
    fn unknown(&self, entry: &Entry) -> Option<String> {
        let name = entry.watch.symbols().find(|name| self.symbols.find(name).is_none());
        let by_process = entry.watch.processes().next().is_some();
        match (name, &self.processes) {
            (None, _) if !by_process => None,
            _ if self.image.is_none() => Some("no kernel of the guest has begun yet".to_owned()),
            _ if self.symbols.is_empty() => Some("no symbols are found in the guest's kernel".to_owned()),
            (Some(name), _) => Some(format!("the guest's kernel has no symbol {name}")),
            (None, processes) => processes.as_ref()?.as_ref().err().map(Unlisted::to_string),
        }
    }

    /// What a watch lacks to be somewhere.
    pub fn missing(&self, entry: &Entry) -> Option<String> {
        self.unknown(entry).or_else(|| match &entry.watch.start {
            Start::Symbol { name, pointer: true } if entry.place.is_none() => {
                Some(format!("the pointer {name} points nowhere yet"))
            }
            _ => None,
        })
    }
}

/// Where the code is that `condition` is about: its first and last address.
fn extent(condition: &Condition, symbols: &Table) -> Option<(u64, u64)> {
    let Condition::Rip { code: Code { start, len }, .. } = condition else { return None };
    let (first, end) = match start {
        CodeStart::Address(gva) => (gva.0, gva.0),
        CodeStart::Symbol(name) => symbols.extent(name).map(|(first, last)| (first.0, last.0))?,
    };
    Some((first, len.map_or(end, |len| last(first, len))))
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
    /// Hits are counted and told, so that symbols are wanted even if no watch names one.
    told: bool,
    /// Other pages are of interest than before.
    changed: AtomicBool,
    /// How often a kernel will still be looked for.
    attempts: AtomicU32,
}

impl Filter {
    /// An empty set. `told`: hits are counted and told, so that symbols are wanted even if no watch names one.
    pub fn new(kernel: Arc<Kernel>, told: bool) -> Self {
        let (changed, attempts) = (AtomicBool::new(false), AtomicU32::new(ATTEMPTS));
        Self { state: RwLock::default(), kernel, told, changed, attempts }
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

    /// Whether any watch is for anything.
    pub fn wants_any(&self) -> bool {
        self.state().entries.iter().any(Entry::open)
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
            state.entries.push(Entry::new(id, watch));
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

    /// Turns the watch of this number on, with its whole limit, or off; false: there is none.
    pub fn enable(&self, id: u32, on: bool) -> bool {
        self.change(|state| {
            let Some(entry) = state.entries.iter_mut().find(|entry| entry.id == id) else { return false };
            entry.enabled = on;
            entry.left = AtomicU64::new(entry.watch.limit.unwrap_or(u64::MAX));
            true
        })
    }

    /// Looks again where everything is.
    pub fn look_anew(&self) {
        self.change(|_| ());
    }

    /// Has the vCPU that asks next whether interest has changed end what it is at.
    pub fn interrupt(&self) {
        self.changed.store(true, Ordering::Release);
    }

    /// The kinds of access that are all wanted, on no condition, if nothing else is but fetches.
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
        self.state().wants_physically(gpa)
    }

    /// See [`memory::Observer::wants_dma`].
    pub fn wants_dma(&self, gpa: Gpa) -> bool {
        let state = self.state();
        state.wants_physically(gpa) || state.has_pointer(gpa.page(), PAGE_SIZE)
    }

    /// See [`memory::Observer::interest_changed`].
    pub fn interest_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    /// Gives `each` the watches that `access` is for, of all accesses for which there was interest, and whether they have
    /// come to their limits; whether there is any.
    pub fn sift(&self, access: &Access, mut each: impl FnMut(&Entry, bool)) -> bool {
        let state = self.state();
        let (mut wanted, mut spent) = (false, false);
        for entry in state.wanting(access).filter(|entry| entry.met(access) && state.by_process(entry, access)) {
            let Some(last) = entry.spend() else { continue };
            (wanted, spent) = (true, spent || last);
            if self.told {
                entry.hit(access);
            }
            each(entry, last);
        }
        let writes = matches!(access.kind, AccessKind::Write | AccessKind::DmaWrite);
        let moved = writes && state.has_pointer(access.gpa, access.size.into());
        drop(state);
        if moved || spent {
            self.look_anew();
        }
        wanted
    }

    /// See [`memory::Observer::system_calls_enter`]. True: symbols have been looked for.
    pub fn system_calls_enter(&self, map: &Arc<PhysicalMap>, entry: Gva, gpa: Gpa) -> bool {
        let state = self.state();
        let same = state.image.as_ref().is_some_and(|image| (image.entry, image.gpa) == (entry, gpa));
        let wanted = state.names() || self.told && !state.entries.is_empty();
        let listed = !state.wants_processes() || state.processes.is_some();
        let settled = same && (!wanted || !state.symbols.is_empty() && listed);
        let lists = state.wants_processes();
        drop(state);
        if settled {
            return false;
        }
        let fewer = |left: u32| left.checked_sub(1);
        let looked = wanted && self.attempts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok();
        let symbols = if looked { self.kernel.symbols(map, entry, gpa) } else { Arc::default() };
        let processes = (looked && lists).then(|| self.kernel.processes(map, entry, gpa));
        self.change(|state| {
            (state.processes, state.running) = (processes, Mutex::default());
            state.image = Some(Image { entry, gpa, map: Arc::clone(map) });
            state.symbols = symbols;
            for entry in &mut state.entries {
                entry.symbol = None;
            }
        });
        looked
    }

    /// The symbols for an access: those of modules are asked for anew, since they come and go.
    pub fn symbols_for(&self, access: &Access) -> Arc<Table> {
        let state = self.state();
        let rip = access.origin().map(|origin| Gva(origin.rip));
        let in_module = rip.into_iter().chain(access.gva).any(in_modules);
        let image = state.image.as_ref().filter(|_| in_module && !state.symbols.is_empty());
        match image {
            Some(Image { entry, gpa, map }) => self.kernel.symbols(map, *entry, *gpa),
            None => state.symbols.clone(),
        }
    }

    /// What there is to say of watches when symbols have been looked for.
    pub fn missing(&self) -> Vec<String> {
        let state = self.state();
        let unknown = |entry: &Entry| Some(format!("{}: {}", entry.watch, state.unknown(entry)?));
        state.entries.iter().filter_map(unknown).collect()
    }
}
