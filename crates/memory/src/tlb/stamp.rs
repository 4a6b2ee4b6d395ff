//! Fetch stamps: names for the fetch translations that somebody outside the TLB relies on.
//!
//! Translated code finds the code of a virtual address in a cache of its own, and does not ask the TLB for the page's
//! translation each time. Whatever it puts there it marks with the stamp that is current, after it has said on which
//! page it relies; whatever it finds with another stamp than the current one is not to be used. So all that the TLB
//! must do when it drops a translation on which somebody relies is to take a new stamp. No stamp comes twice.
//!
//! A stamp belongs to the user or the supervisor side of a context (PCID), and is current again when the context is.
//! What a supervisor relies on is global as a rule: then one stamp serves the supervisors of all contexts.

use super::Full;
use super::filter::{Bloom, LargePages};
use crate::Gva;
use std::hash::{BuildHasher, RandomState};
use x86::PAGE_SHIFT;

/// Where stamps come from: a sequence that a guest cannot foresee.
#[derive(Debug)]
pub(super) struct Names {
    state: u64,
}

impl Names {
    pub fn new() -> Self {
        Self { state: RandomState::new().hash_one(()) }
    }

    /// The next one (Steele, Lea and Flood's SplitMix64: it goes through all 2^64 values before one comes again).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

/// A stamp, and the pages of which it names the translation. A stamp on which nobody relies never needs renewing.
#[derive(Debug)]
pub(super) struct Relied {
    stamp: u64,
    pages: Box<Bloom<512>>,
    large: LargePages,
}

impl Relied {
    pub fn new(names: &mut Names) -> Self {
        Self { stamp: names.next(), pages: Box::default(), large: LargePages::default() }
    }

    #[inline]
    pub fn stamp(&self) -> u64 {
        self.stamp
    }

    /// Somebody relies on this translation now.
    pub fn insert(&mut self, full: &Full) {
        self.pages.insert(full.gva.0 >> PAGE_SHIFT);
        self.large.insert(full);
    }

    /// Any of the translations may have been dropped.
    pub fn flush(&mut self, names: &mut Names) {
        if !self.pages.is_empty() {
            self.stamp = names.next();
            self.pages.clear();
            self.large.clear();
        }
    }

    /// The page that holds `gva`, of whatever size, has been dropped.
    pub fn invalidate(&mut self, gva: Gva, names: &mut Names) {
        if self.pages.may_hold(gva.0 >> PAGE_SHIFT) || self.large.around(gva) {
            self.flush(names);
        }
    }
}

#[cfg(test)]
mod tests;
