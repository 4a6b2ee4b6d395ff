//! Where a debugger wants the vCPU to stop: beside the guest's own debug registers, which know nothing of it.
//!
//! Code in a page with a breakpoint is fetched anew for each instruction, before which it is compared; all other code
//! runs as ever. Data in a page with a watchpoint is trapped ([`memory::Mmu::set_trapped`]): an instruction that is about to
//! access it has done nothing yet, and is executed once more on the careful path, which compares each access exactly, as
//! with the guest's own breakpoints (see [`crate::debug`]). All other code runs as ever, in either tier. Watched are the explicit
//! accesses of instructions and those of the stack; descriptor tables and page tables are not. A read-modify-write counts as both.

use crate::Cpu;
use memory::Gva;
use std::collections::BTreeSet;

/// Which accesses a watchpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WatchFor {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Both.
    Access,
}

/// Linear addresses that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watchpoint {
    /// The first.
    pub gva: Gva,
    /// How many bytes, at least 1.
    pub len: u64,
    /// For what.
    pub what: WatchFor,
}

/// Why a vCPU stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The instruction at RIP, which has not been executed, has a breakpoint.
    Breakpoint,
    /// The instruction before RIP, which has been executed, made an access that this is for.
    Watchpoint(Watchpoint),
    /// An observer asked for it: the number of what it waited for.
    Observer(u32),
}

/// All that a debugger has set on a vCPU.
#[derive(Clone, Debug, Default)]
pub struct Debugger {
    /// Linear addresses of instructions.
    pub breakpoints: BTreeSet<Gva>,
    /// Watched addresses.
    pub watchpoints: BTreeSet<Watchpoint>,
    /// What is to be told, the first if there were several.
    stop: Option<Stop>,
    /// An instruction would have accessed a page with a watchpoint, and is to be executed once more.
    asked: bool,
    /// Accesses are compared now.
    pub(crate) comparing: bool,
}

impl Debugger {
    pub(crate) fn watches(&self) -> bool {
        !self.watchpoints.is_empty()
    }

    pub(crate) fn ask(&mut self) {
        self.asked = true;
    }

    /// Whether the fault that an instruction raised is none, since it is only to be compared.
    pub(crate) fn take_asked(&mut self) -> bool {
        std::mem::take(&mut self.asked)
    }

    pub(crate) fn note(&mut self, start: u64, len: u64, write: bool) {
        let hit = self.watchpoints.iter().find(|watchpoint| {
            let applies = match watchpoint.what {
                WatchFor::Read => !write,
                WatchFor::Write => write,
                WatchFor::Access => true,
            };
            applies
                && start < watchpoint.gva.0.saturating_add(watchpoint.len)
                && watchpoint.gva.0 < start.saturating_add(len)
        });
        self.stop = self.stop.or(hit.map(|hit| Stop::Watchpoint(*hit)));
    }

    pub(crate) fn forget(&mut self) {
        self.stop = None;
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stop.is_some()
    }
}

impl Cpu {
    /// Changes what a debugger has set.
    pub fn set_debugger(&mut self, change: impl FnOnce(&mut Debugger)) {
        change(&mut self.debugger);
        self.mmu.set_uncached(self.debugger.breakpoints.iter().map(|gva| gva.page()).collect());
        let trapped = self.debugger.watchpoints.iter().map(|watchpoint| {
            let Watchpoint { gva, len, .. } = watchpoint;
            gva.0..=gva.0.saturating_add(len.saturating_sub(1))
        });
        self.mmu.set_trapped(trapped.collect());
        self.update_mode();
    }

    /// Calls `act` while accesses are compared with watchpoints, if there are any.
    pub(crate) fn comparing<R>(&mut self, act: impl FnOnce(&mut Self) -> R) -> R {
        if !self.debugger.watches() || self.debugger.comparing {
            return act(self);
        }
        self.compare(true);
        let result = act(self);
        self.compare(false);
        result
    }

    fn compare(&mut self, on: bool) {
        self.debugger.comparing = on;
        self.mmu.set_trapping(!on);
        self.update_mode();
    }

    /// Whether the next instruction has a breakpoint.
    pub(crate) fn at_breakpoint(&self) -> bool {
        !self.debugger.breakpoints.is_empty()
            && self.code_address().is_ok_and(|gva| self.debugger.breakpoints.contains(&gva))
    }

    /// The same, and if so it is to be told.
    pub(crate) fn stop_at_breakpoint(&mut self) -> bool {
        let here = self.at_breakpoint();
        if here {
            self.debugger.stop = Some(Stop::Breakpoint);
        }
        here
    }

    /// Why the vCPU stopped, if it did for a debugger. It is told once.
    pub fn take_stop(&mut self) -> Option<Stop> {
        self.debugger.stop.take()
    }
}

#[cfg(test)]
mod tests;
