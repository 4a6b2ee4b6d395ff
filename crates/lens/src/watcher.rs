//! The watch itself: compares accesses with what is watched, byte by byte, and writes a line for each that touches it.
//!
//! A line that cannot be written (closed stderr, full disk) ends the watch: that is said once, and the guest goes on.

use crate::filter::{Entry, Filter, WatchesFull};
use crate::format::{Format, Host};
use crate::symbols::Kernel;
use crate::watch::{Action, Watch};
use memory::observe::Interest;
use memory::pagemap::HostPage;
use memory::{Access, Gpa, Gva, Hpa, Observer, Pagemap, PhysicalMap};
use std::fmt;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

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

/// An access that was reported, with all that was said of it.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The number of the watch; the first of those that it touched.
    pub watch: u32,
    /// The access, with three of its addresses.
    pub access: Access,
    /// The fourth; `None`: the host's kernel hides it, or a device answered.
    pub hpa: Option<Hpa>,
    /// The function of the instruction, if there is one, with the distance from its beginning.
    pub by: Option<String>,
    /// The symbol of the guest virtual address, likewise.
    pub at: Option<String>,
}

/// A watch, and what has become of it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its number.
    pub id: u32,
    /// What it is for.
    pub watch: Watch,
    /// The first and the last address that it is for now, virtual or physical as it says, or why it is nowhere.
    pub place: Result<(u64, u64), String>,
    /// Whether it has not been turned off.
    pub enabled: bool,
    /// How many accesses it is still for, if it has a limit.
    pub left: Option<u64>,
    /// How many accesses it was for.
    pub hits: u64,
    /// The last of them.
    pub last: Option<Access>,
}

/// Watches accesses. One for all vCPUs: lines are whole, and in the order in which they were made.
pub struct Watcher {
    filter: Filter,
    format: Format,
    /// `None` where there is no pagemap: every host physical address is unknown.
    pagemap: Option<Arc<Pagemap>>,
    /// No more lines: the sink is broken.
    quiet: AtomicBool,
    output: Mutex<Output>,
    last: Mutex<Option<Hit>>,
    stop: OnceLock<Box<StopHook>>,
}

/// Stops a machine for a watch: the numbers of the vCPU and of the watch.
type StopHook = dyn Fn(u32, u32) + Send + Sync;

/// What is to be done about an access.
#[derive(Default)]
struct Verdict {
    print: bool,
    log: bool,
    /// The first watch that wants it told, and the first that wants the machine to stop.
    told: Option<u32>,
    stop: Option<u32>,
}

impl Verdict {
    fn add(&mut self, entry: &Entry, spent: bool) {
        let action = entry.watch.action;
        self.print |= matches!(action, Action::Print | Action::Stop);
        self.log |= action == Action::Log;
        let first = |of: Option<u32>| Some(of.map_or(entry.id, |id| id.min(entry.id)));
        if action != Action::Count {
            self.told = first(self.told);
        }
        if action == Action::Stop && (entry.watch.limit.is_none() || spent) {
            self.stop = first(self.stop);
        }
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("filter", &self.filter)
            .field("format", &self.format)
            .field("quiet", &self.quiet)
            .finish_non_exhaustive()
    }
}

impl Watcher {
    /// Writes lines to `sink`, which is flushed after each. `broken` is called, at most once, if that fails. `kernel` is
    /// asked for symbols.
    #[must_use]
    pub fn new(
        format: Format,
        kernel: Arc<Kernel>,
        sink: Box<dyn Write + Send>,
        broken: impl FnOnce(io::Error) + Send + 'static,
    ) -> Self {
        Self {
            filter: Filter::new(kernel, true),
            format,
            pagemap: Pagemap::of_this_process(),
            quiet: AtomicBool::new(false),
            output: Mutex::new(Output {
                sink,
                line: String::with_capacity(256),
                said: false,
                broken: Some(Box::new(broken)),
            }),
            last: Mutex::default(),
            stop: OnceLock::new(),
        }
    }

    /// What is asked for symbols.
    #[must_use]
    pub fn kernel(&self) -> &Arc<Kernel> {
        self.filter.kernel()
    }

    /// Whether anything is watched.
    pub(crate) fn wants_any(&self) -> bool {
        self.filter.wants_any()
    }

    /// One more watch. Its number is its own for ever.
    ///
    /// # Errors
    /// There are as many as can be.
    pub fn add(&self, watch: Watch) -> Result<u32, WatchesFull> {
        self.filter.add(watch)
    }

    /// See [`crate::Lens::unwatch`].
    pub(crate) fn remove(&self, id: u32) -> bool {
        self.filter.remove(id)
    }

    /// See [`crate::Lens::enable`].
    pub(crate) fn enable(&self, id: u32, on: bool) -> bool {
        self.filter.enable(id, on)
    }

    /// See [`crate::Lens::on_stop`].
    pub(crate) fn on_stop(&self, stop: Box<StopHook>) {
        // A lens is of one machine.
        let _ = self.stop.set(stop);
    }

    /// See [`crate::Lens::watches`].
    pub(crate) fn list(&self) -> Vec<Listed> {
        let state = self.filter.state();
        let listed = state.entries.iter().map(|entry| Listed {
            id: entry.id,
            watch: entry.watch.clone(),
            place: state.missing(entry).map_or_else(|| entry.place.ok_or_else(String::new), Err),
            enabled: entry.enabled,
            left: entry.watch.limit.map(|_| entry.left.load(Ordering::Relaxed)),
            hits: entry.hits.load(Ordering::Relaxed),
            last: *lock(&entry.last),
        });
        listed.collect()
    }

    /// See [`crate::Lens::last_hit`].
    pub(crate) fn last_hit(&self) -> Option<Hit> {
        let hit = lock(&self.last).clone()?;
        let symbols = self.filter.symbols_for(&hit.access);
        let named = |gva: Gva| symbols.at(gva).map(|named| named.to_string());
        let by = hit.access.origin().and_then(|origin| named(Gva(origin.rip)));
        Some(Hit { by, at: hit.access.gva.and_then(named), ..hit })
    }

    /// Writes a message, which is no line of the watch.
    pub(crate) fn tell(&self, message: fmt::Arguments<'_>) {
        if self.quiet.load(Ordering::Relaxed) {
            return;
        }
        let mut output = lock(&self.output);
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
    fn report(&self, access: &Access, watch: u32, verdict: &Verdict) {
        let (host, hidden) = self.host(access);
        let hpa = if let Host::Known(hpa) = host { Some(hpa) } else { None };
        *lock(&self.last) = Some(Hit { watch, access: *access, hpa, by: None, at: None });
        let mut output = lock(&self.output);
        let Output { line, said, .. } = &mut *output;
        line.clear();
        let print = verdict.print && !self.quiet.load(Ordering::Relaxed);
        if print && hidden && self.format == Format::Vitrine && !std::mem::replace(said, true) {
            line.push_str(HIDDEN);
        }
        let start = line.len();
        // Writing to a string does not fail.
        let _ = self.format.line(line, access, host, &self.filter.symbols_for(access));
        if verdict.log {
            tracing::trace!(target: "watch", "{}", line.get(start..).unwrap_or_default().trim_end());
        }
        if print {
            self.put(&mut output);
        }
    }

    #[cold]
    fn stop(&self, access: &Access, id: u32) {
        // Who reads that it stops finds it stopped.
        if let Some(stop) = self.stop.get() {
            stop(access.origin().map_or(0, |origin| origin.cpu), id);
        }
        let state = self.filter.state();
        let expression = state.entries.iter().find(|entry| entry.id == id).map(|entry| entry.watch.to_string());
        drop(state);
        self.tell(format_args!("{id} stops the machine: {}", expression.unwrap_or_default()));
        self.filter.interrupt();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Observer for Watcher {
    fn interest(&self, gva: Gva, gpa: Gpa) -> Interest {
        self.filter.interest(gva, gpa)
    }

    fn wants_walks(&self, gpa: Gpa) -> bool {
        self.filter.wants_walks(gpa)
    }

    fn wants_dma(&self, gpa: Gpa) -> bool {
        self.filter.wants_dma(gpa)
    }

    fn access(&self, access: &Access) {
        let mut verdict = Verdict::default();
        self.filter.sift(access, |entry, spent| verdict.add(entry, spent));
        if let Some(watch) = verdict.told {
            self.report(access, watch, &verdict);
        }
        if let Some(watch) = verdict.stop {
            self.stop(access, watch);
        }
    }

    fn system_calls_enter(&self, map: &Arc<PhysicalMap>, entry: Gva, gpa: Gpa) {
        if self.filter.system_calls_enter(map, entry, gpa) {
            for missing in self.filter.missing() {
                self.tell(format_args!("{missing}"));
            }
        }
    }

    fn interest_changed(&self) -> bool {
        self.filter.interest_changed()
    }
}

impl Default for Watcher {
    /// Lines go to standard error.
    fn default() -> Self {
        Self::new(Format::default(), Arc::default(), Box::new(io::stderr()), |_| {})
    }
}

#[cfg(test)]
mod tests;
