//! Where the guest's general registers are while translated code runs.
//!
//! Most are in the host register of the same name, so that implicit operands (MUL, shifts by CL, CMPXCHG, …) need no
//! care. The host's RSP points to the frame, so the guest's is in R9; R10 and R11 are the translator's; the guest's own
//! R9, R10 and R11 have a home in the frame. Compilers use those three least: in the kernel's code, in a compiler's, in
//! interpreters' and in libraries' they are named a third to a quarter as often as R13, R14 and R15. 32- and 16-bit code
//! has eight registers, so there R8 and R12 to R15 are free as well.

use crate::asm::{Mem, RSP, Reg};
use crate::frame::Frame;
use cpu::Cpu;
use std::mem::offset_of;

/// First scratch register.
pub const T0: Reg = 10;
/// Second scratch register.
pub const T1: Reg = 11;
/// Third scratch register, outside 64-bit mode only: the guest's R8 to R15 stay in the vCPU there.
pub const T2: Reg = 8;
/// Fourth scratch register, likewise.
pub const T3: Reg = 12;
/// Where the guest's RSP is.
pub const STACK_POINTER: Reg = 9;

/// Where a guest register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a host register.
    Host(Reg),
    /// In the frame.
    Home(Mem),
}

/// Where guest register `guest` (encoding order) is.
#[must_use]
pub fn place(guest: u8) -> Place {
    match guest {
        RSP => Place::Host(STACK_POINTER),
        STACK_POINTER | T0 | T1 => {
            Place::Home(field(offset_of!(Frame, homes) + 8 * usize::from(guest - STACK_POINTER)))
        }
        other => Place::Host(other),
    }
}

/// The frame's field at `offset`.
#[must_use]
pub const fn field(offset: usize) -> Mem {
    Mem::at(RSP, offset as i32)
}

/// The vCPU's field at `offset`, when T0 is the address of its general registers.
#[must_use]
pub const fn vcpu(offset: usize) -> Mem {
    Mem::at(T0, offset as i32 - offset_of!(Cpu, regs) as i32)
}
