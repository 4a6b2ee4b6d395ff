//! The tiers against each other and against the host, and whether that finds faults.

mod coverage;
mod faults;
mod host;
mod regressions;
mod tiers;

use lockstep::tier::{Interpreted, Stepped, Tier, Translated};

/// The reference.
fn interpreted() -> Box<dyn Tier> {
    Box::<Interpreted>::default()
}

/// The reference, one instruction at a time.
fn stepped() -> Box<dyn Tier> {
    Box::<Stepped>::default()
}

/// The translator, with all code translated when it first runs.
fn translated() -> Box<dyn Tier> {
    Box::new(Translated::new(4 << 20, 1).expect("the host has memory"))
}
