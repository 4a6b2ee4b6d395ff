//! The watch itself: compares accesses with what is watched, byte by byte, and writes a line for each that touches it.
//!
//! A line that cannot be written (closed stderr, full disk) ends the watch: that is said once, and the guest goes on.

use crate::format::{Format, Host};
use crate::ranges::Ranges;
use crate::symbols::{Table, kallsyms};
use crate::watch::{Kinds, Start, Watch};
use memory::observe::Interest;
use memory::pagemap::HostPage;
use memory::{Access, AccessKind, Gpa, Gva, Observer, Pagemap, PhysicalMap};
use std::fmt;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use x86::PAGE_SIZE;

/// Bytes of a guest's pointer.
const POINTER: usize = 8;
/// How often a guest may say that a kernel is there and have it looked for.
const ATTEMPTS: u32 = 64;

/// Said once, where host physical addresses are not shown.
const HIDDEN: &str =
    "watch: the host's kernel hides page frame numbers from this process (it takes CAP_SYS_ADMIN), so hpa is ?\n";

/// Where lines go.
struct Output {
    sink: Box<dyn Write + Send>,
    /// The line being made; kept, so that it is allocated once.
    line: String,
    /// Whether it has been said that host physical addresses are hidden.
    said: bool,
    /// Told why no more lines come.
    broken: Option<Box<dyn FnOnce(io::Error) + Send>>,
}

/// What is watched, as far as it is known where that is.
#[derive(Debug, Default)]
struct Targets {
    virtually: Ranges,
    /// The pointers among the symbols that are watched: where they are in guest physical memory.
    pointers: Vec<Gpa>,
    symbols: Arc<Table>,
    /// Where system calls enter, and where that is in guest physical memory.
    entry: Option<(Gva, Gpa)>,
    /// The memory of the machine whose kernel that is.
    map: Option<Arc<PhysicalMap>>,
}

/// Watches accesses. One for all vCPUs: lines are whole, and in the order in which they were made.
///
/// Watches that name a symbol of the guest's kernel watch nothing until the kernel has told where its system calls enter;
/// its own table of symbols is read then.
pub struct Watcher {
    watches: Vec<Watch>,
    targets: RwLock<Targets>,
    physically: Ranges,
    /// Other pages are watched than before.
    changed: AtomicBool,
    /// How often a kernel will still be looked for.
    attempts: AtomicU32,
    format: Format,
    /// `None` where there is no pagemap: every host physical address is unknown.
    pagemap: Option<Pagemap>,
    /// No more lines: the sink is broken.
    quiet: AtomicBool,
    output: Mutex<Output>,
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("watches", &self.watches)
            .field("format", &self.format)
            .field("quiet", &self.quiet)
            .finish_non_exhaustive()
    }
}

impl Watcher {
    /// Watches for `watches` and writes to `sink`, which is flushed after each line. `broken` is called, at most
    /// once, if that fails.
    #[must_use]
    pub fn new(
        watches: &[Watch],
        format: Format,
        sink: Box<dyn Write + Send>,
        broken: impl FnOnce(io::Error) + Send + 'static,
    ) -> Self {
        let physically = watches.iter().filter_map(|watch| match watch.start {
            Start::Physical(Gpa(first)) => Some((first, last(first, watch), watch.kinds)),
            Start::Virtual(_) | Start::Symbol { .. } => None,
        });
        let watcher = Self {
            watches: watches.to_vec(),
            targets: RwLock::default(),
            physically: Ranges::new(physically),
            changed: AtomicBool::new(false),
            attempts: AtomicU32::new(ATTEMPTS),
            format,
            pagemap: Pagemap::open().ok(),
            quiet: AtomicBool::new(false),
            output: Mutex::new(Output {
                sink,
                line: String::with_capacity(256),
                said: false,
                broken: Some(Box::new(broken)),
            }),
        };
        watcher.locate(|_| {});
        watcher.changed.store(false, Ordering::Relaxed);
        watcher
    }

    /// Finds where everything is that is watched by virtual address, after `change`.
    fn locate(&self, change: impl FnOnce(&mut Targets)) {
        let mut targets = self.targets.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut targets);
        let mut pointers = Vec::new();
        let Targets { symbols, entry, map, .. } = &*targets;
        let mut start = |watch: &Watch| match &watch.start {
            Start::Virtual(gva) => Some(*gva),
            Start::Physical(_) => None,
            Start::Symbol { name, pointer } => {
                let gva = symbols.find(name)?;
                if !pointer {
                    return Some(gva);
                }
                // The kernel's image is in one piece.
                let (entry, at) = (*entry)?;
                let gpa = at.wrapping_add(gva.0.wrapping_sub(entry.0));
                pointers.push(gpa);
                let mut bytes = [0; POINTER];
                map.as_ref()?.read(gpa, &mut bytes).ok()?;
                Some(Gva(u64::from_le_bytes(bytes))).filter(|gva| gva.0 != 0)
            }
        };
        let ranges: Vec<_> = self
            .watches
            .iter()
            .filter_map(|watch| start(watch).map(|Gva(first)| (first, last(first, watch), watch.kinds)))
            .collect();
        targets.virtually = Ranges::new(ranges);
        targets.pointers = pointers;
        drop(targets);
        self.changed.store(true, Ordering::Release);
    }

    /// Says which symbols that are watched there are not.
    fn tell_missing(&self) {
        for watch in &self.watches {
            if let Start::Symbol { name, .. } = &watch.start {
                let (found, any) = (self.targets().symbols.find(name).is_some(), !self.targets().symbols.is_empty());
                match (found, any) {
                    (true, _) => {}
                    (false, true) => self.tell(format_args!("{watch}: the guest's kernel has no symbol {name}")),
                    (false, false) => self.tell(format_args!("{watch}: no symbols are found in the guest's kernel")),
                }
            }
        }
    }

    fn targets(&self) -> RwLockReadGuard<'_, Targets> {
        self.targets.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kinds of access for which any of `size` bytes is watched.
    fn watched(&self, gva: Option<Gva>, gpa: Gpa, size: u64) -> Kinds {
        let kinds = |ranges: &Ranges, first: u64| ranges.kinds(first, first.saturating_add(size.saturating_sub(1)));
        let by_gpa = kinds(&self.physically, gpa.0);
        gva.map_or(by_gpa, |gva| by_gpa.or(kinds(&self.targets().virtually, gva.0)))
    }

    /// Whether a pointer has any of `size` bytes at `gpa`.
    fn has_pointer(&self, gpa: Gpa, size: u64) -> bool {
        let touches =
            |pointer: &Gpa| gpa.0 < pointer.0.saturating_add(POINTER as u64) && pointer.0 < gpa.0.saturating_add(size);
        self.targets().pointers.iter().any(touches)
    }

    /// Writes a message, which is no line of the watch.
    fn tell(&self, message: fmt::Arguments<'_>) {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.line.clear();
        let _ = writeln!(output.line, "watch: {message}");
        self.put(&mut output);
    }

    /// Writes out the line.
    fn put(&self, output: &mut Output) {
        let Output { sink, line, broken, .. } = output;
        if let Err(error) = sink.write_all(line.as_bytes()).and_then(|()| sink.flush()) {
            self.quiet.store(true, Ordering::Relaxed);
            if let Some(broken) = broken.take() {
                broken(error);
            }
        }
    }

    /// The host physical address of an access, and whether it is one that the kernel hides.
    fn host(&self, access: &Access) -> (Host, bool) {
        let Some(hva) = access.hva else { return (Host::None, false) };
        match self.pagemap.as_ref().map(|pagemap| pagemap.page(hva)) {
            Some(Ok(HostPage::Present(hpa))) => (Host::Known(hpa), false),
            Some(Ok(HostPage::Hidden)) => (Host::Unknown, true),
            _ => (Host::Unknown, false),
        }
    }

    #[cold]
    fn report(&self, access: &Access) {
        let (host, hidden) = self.host(access);
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let Output { line, said, .. } = &mut *output;
        line.clear();
        if hidden && self.format == Format::Vitrine && !std::mem::replace(said, true) {
            line.push_str(HIDDEN);
        }
        // Writing to a string does not fail.
        let _ = self.format.line(line, access, host, &self.targets().symbols);
        self.put(&mut output);
    }
}

/// The last byte of a watch whose first one is `first`.
fn last(first: u64, watch: &Watch) -> u64 {
    first.saturating_add(watch.len.saturating_sub(1))
}

impl Observer for Watcher {
    fn interest(&self, gva: Gva, gpa: Gpa) -> Interest {
        let kinds = self.watched(Some(gva.page()), gpa.page(), PAGE_SIZE);
        let pointer = self.has_pointer(gpa.page(), PAGE_SIZE);
        Interest { read: kinds.read, write: kinds.write | pointer, fetch: kinds.fetch, ..Interest::default() }
    }

    fn wants_walks(&self, gpa: Gpa) -> bool {
        if self.physically.is_empty() {
            return false;
        }
        let kinds = self.watched(None, gpa.page(), PAGE_SIZE);
        kinds.read || kinds.write
    }

    fn access(&self, access: &Access) {
        if self.quiet.load(Ordering::Relaxed) {
            return;
        }
        let kinds = self.watched(access.gva, access.gpa, access.size.into());
        let watched = match access.kind {
            AccessKind::Fetch => kinds.fetch,
            kind if kind.is_write() => kinds.write,
            _ => kinds.read,
        };
        if watched {
            self.report(access);
        }
        if access.kind == AccessKind::Write && self.has_pointer(access.gpa, access.size.into()) {
            self.locate(|_| {});
        }
    }

    fn system_calls_enter(&self, map: &Arc<PhysicalMap>, entry: Gva, gpa: Gpa) {
        let again = self.targets().entry == Some((entry, gpa)) && !self.targets().symbols.is_empty();
        let fewer = |left: u32| left.checked_sub(1);
        if again || self.attempts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_err() {
            return;
        }
        let symbols = kallsyms::read(map, gpa).unwrap_or_default();
        self.locate(|targets| {
            targets.symbols = Arc::new(symbols);
            (targets.entry, targets.map) = (Some((entry, gpa)), Some(map.clone()));
        });
        self.tell_missing();
    }

    fn interest_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests;
