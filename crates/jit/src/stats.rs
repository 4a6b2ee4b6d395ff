//! What the translator counts.

use std::time::Duration;

/// Counters of one vCPU's translator.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// Regions translated.
    pub regions: u64,
    /// Guest instructions translated.
    pub instructions: u64,
    /// Bytes of host code made from them.
    pub bytes: u64,
    /// Time that took.
    pub time: Duration,
    /// Regions that could not be translated.
    pub refused: u64,
    /// Ways into code that was overwritten.
    pub dropped: u64,
    /// Times that everything was dropped for want of room.
    pub flushes: u64,
    /// Jumps made straight.
    pub links: u64,
    /// Times that translated code was entered.
    pub entered: u64,
    /// Instructions left to the interpreter because they always are, or because a jump was not in the jump cache.
    pub interpreted: u64,
    /// Accesses left to the interpreter.
    pub accesses: u64,
    /// Jumps to code that was not translated.
    pub exits: u64,
    /// Faults of the host and answered polls.
    pub faults: u64,
    /// Blocks that were interpreted.
    pub cold: u64,
}
