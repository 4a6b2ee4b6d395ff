//! The watch itself: compares accesses with what is watched, byte by byte, and writes a line for each that touches it.
//!
//! A line that cannot be written (closed stderr, full disk) ends the watch: that is said once, and the guest goes on.

use crate::format::{Format, Host};
use crate::ranges::Ranges;
use crate::watch::{Kinds, Start, Watch};
use memory::observe::Interest;
use memory::pagemap::HostPage;
use memory::{Access, AccessKind, Gpa, Gva, Observer, Pagemap};
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use x86::PAGE_OFFSET;

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

/// Watches accesses. One for all vCPUs: lines are whole, and in the order in which they were made.
pub struct Watcher {
    virtually: Ranges,
    physically: Ranges,
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
            .field("virtually", &self.virtually)
            .field("physically", &self.physically)
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
        let last = |first: u64, watch: &Watch| first.saturating_add(watch.len.saturating_sub(1));
        let virtually = watches.iter().filter_map(|watch| match watch.start {
            Start::Virtual(Gva(first)) => Some((first, last(first, watch), watch.kinds)),
            Start::Physical(_) => None,
        });
        let physically = watches.iter().filter_map(|watch| match watch.start {
            Start::Physical(Gpa(first)) => Some((first, last(first, watch), watch.kinds)),
            Start::Virtual(_) => None,
        });
        Self {
            virtually: Ranges::new(virtually),
            physically: Ranges::new(physically),
            format,
            pagemap: Pagemap::open().ok(),
            quiet: AtomicBool::new(false),
            output: Mutex::new(Output {
                sink,
                line: String::with_capacity(256),
                said: false,
                broken: Some(Box::new(broken)),
            }),
        }
    }

    /// The kinds of access for which any of `size` bytes is watched.
    fn watched(&self, gva: Option<Gva>, gpa: Gpa, size: u64) -> Kinds {
        let kinds = |ranges: &Ranges, first: u64| ranges.kinds(first, first.saturating_add(size.saturating_sub(1)));
        let by_gpa = kinds(&self.physically, gpa.0);
        gva.map_or(by_gpa, |gva| by_gpa.or(kinds(&self.virtually, gva.0)))
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
        let Output { sink, line, said, broken } = &mut *output;
        line.clear();
        if hidden && self.format == Format::Vitrine && !std::mem::replace(said, true) {
            line.push_str(HIDDEN);
        }
        // Writing to a string does not fail.
        let _ = self.format.line(line, access, host);
        if let Err(error) = sink.write_all(line.as_bytes()).and_then(|()| sink.flush()) {
            self.quiet.store(true, Ordering::Relaxed);
            if let Some(broken) = broken.take() {
                broken(error);
            }
        }
    }
}

impl Observer for Watcher {
    fn interest(&self, gva: Gva, gpa: Gpa) -> Interest {
        let kinds = self.watched(Some(gva.page()), gpa.page(), PAGE_OFFSET + 1);
        Interest { read: kinds.read, write: kinds.write, fetch: kinds.fetch }
    }

    fn wants_walks(&self, gpa: Gpa) -> bool {
        if self.physically.is_empty() {
            return false;
        }
        let kinds = self.watched(None, gpa.page(), PAGE_OFFSET + 1);
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
    }
}

#[cfg(test)]
mod tests;
