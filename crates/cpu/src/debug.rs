//! Debug registers and single step (APM vol. 2, 13.1; SDM vol. 3B, chapter 18).
//!
//! Nothing here runs unless TF, RF or an enabled breakpoint asks for it: then [`Cpu::careful`] makes the run loop go one
//! instruction at a time, and an armed data breakpoint makes every access take the checked path
//! ([`Cpu::checked`]), where it is compared.

use crate::Cpu;
use crate::cpuid::Vendor;
use crate::exec::interrupt::TripleFault;
use crate::state::Shadow;
use x86::{Exception, Vector};

/// DR6 bits that read as one.
pub const DR6_ONES: u64 = 0xffff_0ff0;
/// DR6.BD: a debug register was accessed while DR7.GD was set.
pub const DR6_BD: u64 = 1 << 13;
/// DR6.BS: single step.
pub const DR6_BS: u64 = 1 << 14;
/// DR6.BT: a task switch to a TSS with T set.
pub const DR6_BT: u64 = 1 << 15;
/// DR7.GD: accesses to debug registers raise #DB.
pub const DR7_GD: u64 = 1 << 13;
/// DR7 bits that read as one.
pub const DR7_ONES: u64 = 1 << 10;

/// What a breakpoint waits for: DR7.R/W.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Execute,
    Write,
    Io,
    ReadWrite,
}

/// One enabled breakpoint.
#[derive(Clone, Copy, Debug)]
struct Breakpoint {
    number: usize,
    condition: Condition,
    address: u64,
    len: u64,
}

impl Cpu {
    /// The enabled breakpoints.
    fn breakpoints(&self) -> impl Iterator<Item = Breakpoint> + use<> {
        let (control, addresses, io) = (self.dr[7], self.dr, self.cr4.debugging_extensions());
        (0..4).filter(move |n| control >> (2 * n) & 3 != 0).map(move |number| {
            let field = control >> (16 + 4 * number);
            let condition = match field & 3 {
                0 => Condition::Execute,
                1 => Condition::Write,
                2 if io => Condition::Io,
                _ => Condition::ReadWrite,
            };
            let len = match field >> 2 & 3 {
                0 => 1,
                1 => 2,
                2 => 8,
                _ => 4,
            };
            Breakpoint { number, condition, address: addresses[number] & !(len - 1), len }
        })
    }

    /// Whether any breakpoint in DR7 is enabled.
    #[must_use]
    pub fn breakpoints_armed(&self) -> bool {
        self.dr[7] & 0xff != 0
    }

    /// Whether a breakpoint on data is enabled, so that every access must be looked at.
    #[must_use]
    pub fn data_breakpoints_armed(&self) -> bool {
        self.breakpoints_armed()
            && self.breakpoints().any(|b| matches!(b.condition, Condition::Write | Condition::ReadWrite))
    }

    /// Notes the data breakpoints (and a debugger's watchpoints) that an access to linear addresses hits; they trap after the instruction.
    pub fn note_data_access(&mut self, gva: u64, len: u64, write: bool) {
        self.debugger.note(gva, len, write);
        self.note_hits(gva, len, |condition| match condition {
            Condition::ReadWrite => true,
            Condition::Write => write,
            Condition::Execute | Condition::Io => false,
        });
    }

    /// Notes the I/O breakpoints that a port access hits.
    pub fn note_io_access(&mut self, port: u16, len: u64) {
        if self.breakpoints_armed() {
            self.note_hits(u64::from(port), len, |condition| condition == Condition::Io);
        }
    }

    fn note_hits(&mut self, start: u64, len: u64, applies: impl Fn(Condition) -> bool) {
        for b in self.breakpoints() {
            let overlap = start < b.address.wrapping_add(b.len) && b.address < start.wrapping_add(len);
            if overlap && applies(b.condition) {
                self.debug_pending |= 1 << b.number;
            }
        }
    }

    /// Before an instruction on the careful path: instruction breakpoints, and RF, which covers one instruction.
    ///
    /// Errors: #DB as a fault, with DR6 set.
    pub(crate) fn before_instruction(&mut self) -> Result<(), Exception> {
        self.stepping = self.system_flags.trap();
        if self.system_flags.resume() {
            self.system_flags.set_resume(false);
            self.update_mode();
        } else if self.breakpoints_armed() && !self.code_breakpoints_shadowed() {
            let Ok(gva) = self.code_address() else { return Ok(()) };
            let hits: u64 = self
                .breakpoints()
                .filter(|b| b.condition == Condition::Execute && b.address == gva.0)
                .map(|b| 1 << b.number)
                .sum();
            if hits != 0 {
                self.dr[6] = self.dr[6] & !0xf | hits;
                return Err(Exception::plain(Vector::Debug));
            }
        }
        Ok(())
    }

    /// Intel's processors hold off instruction breakpoints after MOV SS as well, AMD's do not.
    fn code_breakpoints_shadowed(&self) -> bool {
        self.shadow == Shadow::MovSs && self.model.vendor() == Vendor::Intel
    }

    /// After an instruction on the careful path: traps for single step and for data and I/O breakpoints.
    ///
    /// A MOV SS or POP SS holds them off until the next instruction has completed.
    pub(crate) fn after_instruction(&mut self) -> Result<(), TripleFault> {
        if self.stepping {
            self.debug_pending |= DR6_BS;
        }
        if self.shadow == Shadow::MovSs || self.debug_pending == 0 {
            return Ok(());
        }
        self.dr[6] = self.dr[6] & !0xf | self.debug_pending;
        self.debug_pending = 0;
        self.halted = false;
        self.deliver_exception(Exception::plain(Vector::Debug))
    }
}

#[cfg(test)]
mod tests;
