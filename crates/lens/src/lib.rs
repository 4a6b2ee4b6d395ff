//! Ways to look at what a guest does. Now: the watch, a line for every access to chosen bytes, with all four of its
//! addresses; the trace, accesses as rows of files; the pages that are touched; a timeline of what else
//! happens.
//!
//! Lenses implement the hook traits of `memory` and `cpu`. What nobody looks at costs nothing: a watched page has flags
//! in its TLB entry, other pages have not.

mod filter;
pub mod format;
mod lens;
pub mod perfetto;
mod ranges;
pub mod symbols;
pub mod touched;
pub mod trace;
pub mod watch;
mod watcher;

pub use filter::WatchesFull;
pub use format::Format;
pub use lens::Lens;
pub use perfetto::Perfetto;
pub use trace::Trace;
pub use watch::{Watch, WatchError};
pub use watcher::{Hit, Listed, Watcher};
