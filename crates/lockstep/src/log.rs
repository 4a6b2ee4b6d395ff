//! The guest's own log of exceptions, software interrupts and system calls: see `kernel`.

use crate::kernel::{ENTRY, LIMIT};
use crate::lane::Lane;
use crate::layout::{LOG, get};
use std::fmt;

/// One line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    words: [u64; 8],
}

impl Entry {
    /// How many there are.
    #[must_use]
    pub fn count(lane: &Lane) -> u64 {
        let mut count = [0; 4];
        lane.peek(LOG, &mut count);
        u32::from_le_bytes(count).into()
    }

    /// The entries in an image of RAM.
    #[must_use]
    pub fn all(image: &[u8]) -> Vec<Self> {
        let count = get(image, LOG) & 0xffff_ffff;
        let entry = |n: u64| Self { words: std::array::from_fn(|i| get(image, LOG + ENTRY * (n + 1) + 8 * i as u64)) };
        (0..count.min(LIMIT)).map(entry).collect()
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [vector, code, rip, cs, flags, rsp, _, cr2] = self.words;
        write!(f, "vector {vector:#x} code {code:#x} at {cs:x}:{rip:x} flags {flags:#x} rsp {rsp:x} cr2 {cr2:x}")
    }
}
