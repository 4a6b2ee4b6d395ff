//! When a trace is taken: from the start on or not, turned on and off by a user or by the guest, and at counts of
//! instructions.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// When to begin and to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct When {
    /// Not before somebody says so.
    pub off: bool,
    /// Not before the first vCPU has executed so many instructions.
    pub from: Option<u64>,
    /// No longer when it has executed so many.
    pub to: Option<u64>,
    /// The port by which the guest says so: bit 0 of what it writes. Not before it does.
    pub port: Option<u16>,
}

/// Whether it is time.
#[derive(Debug)]
pub(super) struct Span {
    on: AtomicBool,
    /// What is to come: after how many instructions, and whether to be on then.
    marks: Mutex<Vec<(u64, bool)>>,
}

impl Span {
    pub fn new(when: When) -> Self {
        let from = when.from.filter(|from| *from > 0);
        let on = !when.off && from.is_none() && when.port.is_none();
        let marks = from.map(|from| (from, true)).into_iter().chain(when.to.map(|to| (to, false)));
        Self { on: AtomicBool::new(on), marks: Mutex::new(marks.collect()) }
    }

    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    pub fn turn(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
    }

    /// After how many instructions it is turned on or off next, and which.
    pub fn next(&self) -> Option<(u64, bool)> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).first().copied()
    }

    /// So many instructions have been executed. What it is turned to, if that is so now.
    pub fn pass(&self, instructions: u64) -> Option<bool> {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = marks.iter().take_while(|(at, _)| *at <= instructions).count();
        marks.drain(..passed).next_back().map(|(_, on)| on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_and_ends_where_it_is_to() {
        let all = Span::new(When::default());
        assert!(all.is_on() && all.next().is_none());
        for when in [
            When { off: true, ..When::default() },
            When { port: Some(1), ..When::default() },
            When { from: Some(5), ..When::default() },
        ] {
            assert!(!Span::new(when).is_on(), "{when:?}");
        }
        let span = Span::new(When { from: Some(10), to: Some(20), ..When::default() });
        assert_eq!((span.pass(9), span.next()), (None, Some((10, true))));
        assert_eq!((span.pass(10), span.next()), (Some(true), Some((20, false))));
        assert_eq!((span.pass(10), span.pass(25), span.next()), (None, Some(false), None));
        let span = Span::new(When { from: Some(0), to: Some(20), ..When::default() });
        assert!(span.is_on());
    }
}
