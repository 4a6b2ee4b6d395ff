//! The control words of the 8254 (data sheet 231164) and of port 61h (ICH data sheet, "NMI status and control").

use bitfield_struct::{bitenum, bitfield};

pub(super) const COUNTER0: u16 = 0x40;
pub(super) const COUNTER2: u16 = 0x42;
pub(super) const CONTROL: u16 = 0x43;
pub(super) const PORT_B: u16 = 0x61;

/// The PC's timer clock in hertz: 105/88 MHz.
pub(super) const FREQUENCY: u64 = 1_193_182;
/// How long bit 4 of port 61h keeps its level: one refresh request, 18 ticks of the timer clock, in nanoseconds.
pub(super) const REFRESH_NS: u64 = 15_085;

/// Which bytes of the count an access takes (RW bits).
#[bitenum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Access {
    /// Not an access mode: the counter latch command.
    #[fallback]
    Latch = 0,
    Low = 1,
    High = 2,
    /// Low byte, then high byte.
    Both = 3,
}

/// The control word (port 43h).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub(super) struct Control {
    pub bcd: bool,
    /// 6 and 7 stand for 2 and 3.
    #[bits(3)]
    pub mode: u8,
    #[bits(2)]
    pub access: Access,
    /// The counter; 3 is the read-back command.
    #[bits(2)]
    pub counter: u8,
}

/// The read-back command (port 43h, counter bits 3).
#[bitfield(u8)]
pub(super) struct ReadBack {
    pub zero: bool,
    /// The counters it is for, a bit each.
    #[bits(3)]
    pub counters: u8,
    pub no_status: bool,
    pub no_count: bool,
    #[bits(2)]
    pub three: u8,
}

/// What the read-back command latches beside the count.
#[bitfield(u8)]
pub(super) struct Status {
    pub bcd: bool,
    #[bits(3)]
    pub mode: u8,
    #[bits(2)]
    pub access: Access,
    /// The count last written has not reached the counting element yet.
    pub null_count: bool,
    pub out: bool,
}

/// Port 61h.
#[bitfield(u8)]
pub(super) struct PortB {
    /// Gate of counter 2.
    pub gate2: bool,
    pub speaker: bool,
    /// Error reporting is off. Kept, without effect.
    #[bits(2)]
    pub disable_errors: u8,
    /// Toggles with each memory refresh.
    pub refresh: bool,
    pub out2: bool,
    /// Errors that never happen.
    #[bits(2)]
    pub errors: u8,
}
