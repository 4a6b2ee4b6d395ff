//! Differential tests: two tiers run the same guest code, and everything that a guest can see must come out the same.
//!
//! A *case* is a start state and a piece of guest code: a [sequence](sequence) of instructions of any kind that the
//! CPU model offers, or a [program](program) of loops, calls, faults, interrupts and code that changes itself. Each of two
//! [lanes](lane) is a machine with page tables, a small [kernel] and devices, and has a [tier] that runs it. A [session]
//! makes cases from seeds, runs them on both lanes and [compares](differences) them; when they differ, the
//! [minimiser](minimise) finds the smallest case that still does.
//!
//! To put another tier to the test, implement [`tier::Tier`] for it and give [`session::check`] a function that makes
//! one; see `tests/tiers.rs`. `VITRINE_SEED` and `VITRINE_CASES` say what is run (0 cases: without end),
//! `VITRINE_EFFORT` how many times as much as usual, `VITRINE_FAILURES` how many differences are to be found before a
//! test gives up, `VITRINE_MODE` names the one [mode](mode::Mode) that cases are to run in, and `VITRINE_TRACE` prints
//! each seed before its case, which shows where a process was lost.
//!
//! Left out: page tables other than those of four levels and of PAE, more than one vCPU.

pub mod case;
pub mod catalogue;
pub mod differences;
pub mod hooks;
pub mod kernel;
pub mod lane;
pub mod layout;
pub mod log;
pub mod minimise;
pub mod mode;
pub mod operands;
pub mod program;
pub mod random;
pub mod report;
pub mod sequence;
pub mod session;
pub mod start;
pub mod tier;
pub mod watchdog;
pub mod witness;
