//! What the end-to-end tests and the benchmarks boot, and how they talk to it.
//!
//! [`image`] assembles tiny multiboot guests, [`initramfs`] packs busybox and an init script, [`find`] knows where
//! real kernels may lie, [`tree`] has guests made of packages, [`session`] and [`pty`] run the command over pipes and over a pseudo-terminal, and [`watch`]
//! reads the lines of the lens, [`timeline`] those for Perfetto. [`browser`] looks at the page. [`emulator`], [`measure`]
//! and [`comparison`] are for the benchmarks. Nothing here uses a crate of the house: tests see the command as a user does.
//!
//! Helpers panic with a message where a test would have to give up anyway.

pub mod browser;
pub mod comparison;
pub mod emulator;
pub mod find;
pub mod image;
pub mod initramfs;
pub mod measure;
pub mod pty;
pub mod session;
pub mod timeline;
pub mod tree;
pub mod watch;

use std::io::Write as _;
use std::time::Duration;

/// How long a guest may take for anything before a test gives up: generous, since CI machines are slow and shared.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Says on the terminal, past the test harness's capture, that a test did not run and what it lacks.
pub fn skipped(test: &str, why: &str) {
    // The `eprintln!` of a passing test is captured; a write to the stream itself is not.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}
