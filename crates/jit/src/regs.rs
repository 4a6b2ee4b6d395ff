//! Where the guest's general registers are while translated code runs.
//!
//! Most are in the host register of the same name, so that implicit operands (MUL, shifts by CL, CMPXCHG, …) need no
//! care. The host's RSP points to the frame, so the guest's is in R13; R14 and R15 are the translator's; the guest's own
//! R13, R14 and R15 have a home in the frame. 32- and 16-bit code has eight registers, so there R8 to R12 are free.

use crate::asm::{Mem, RSP, Reg};
use crate::frame::Frame;
use std::mem::offset_of;

/// First scratch register.
pub const T0: Reg = 14;
/// Second scratch register.
pub const T1: Reg = 15;
/// Third scratch register, outside 64-bit mode only: the guest's R8 to R15 stay in the vCPU there.
pub const T2: Reg = 8;
/// Fourth scratch register, likewise.
pub const T3: Reg = 9;
/// Where the guest's RSP is.
pub const STACK_POINTER: Reg = 13;

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
        13..=15 => Place::Home(field(offset_of!(Frame, homes) + 8 * (usize::from(guest) - 13))),
        other => Place::Host(other),
    }
}

/// The frame's field at `offset`.
#[must_use]
pub const fn field(offset: usize) -> Mem {
    Mem::at(RSP, offset as i32)
}
