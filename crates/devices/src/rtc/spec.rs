//! Registers of the MC146818 (Motorola data sheet) and the bytes of CMOS memory that PC firmware gives a meaning.

use bitfield_struct::bitfield;

pub(super) const INDEX_PORT: u16 = 0x70;
pub(super) const DATA_PORT: u16 = 0x71;

pub(super) const SECONDS: usize = 0x00;
pub(super) const SECONDS_ALARM: usize = 0x01;
pub(super) const MINUTES: usize = 0x02;
pub(super) const MINUTES_ALARM: usize = 0x03;
pub(super) const HOURS: usize = 0x04;
pub(super) const HOURS_ALARM: usize = 0x05;
pub(super) const DAY_OF_WEEK: usize = 0x06;
pub(super) const DAY_OF_MONTH: usize = 0x07;
pub(super) const MONTH: usize = 0x08;
pub(super) const YEAR: usize = 0x09;
pub(super) const A: usize = 0x0a;
pub(super) const B: usize = 0x0b;
pub(super) const C: usize = 0x0c;
pub(super) const D: usize = 0x0d;
/// Why the processor was reset, for the firmware.
pub(super) const SHUTDOWN_STATUS: usize = 0x0f;
pub(super) const EQUIPMENT: usize = 0x14;
/// The first megabyte in KiB, low byte first.
pub(super) const BASE_MEMORY: usize = 0x15;
/// Above 1 MiB in KiB, 65535 at most; firmware tests it and repeats it.
pub(super) const EXTENDED_MEMORY: [usize; 2] = [0x17, 0x30];
/// Sum of 10h–2Dh, high byte first.
pub(super) const CHECKSUM: usize = 0x2e;
pub(super) const CHECKSUM_OF: std::ops::RangeInclusive<usize> = 0x10..=0x2d;
/// The FADT names it.
pub(super) const CENTURY: usize = 0x32;
/// Above 16 MiB and below 4 GiB in units of 64 KiB.
pub(super) const MEMORY_ABOVE_16M: usize = 0x34;
/// Above 4 GiB in units of 64 KiB, three bytes.
pub(super) const MEMORY_ABOVE_4G: usize = 0x5b;

/// A coprocessor and a pointing device; no floppy, and a display that is not of old.
pub(super) const EQUIPMENT_VALUE: u8 = 0b0000_0110;
/// An alarm byte from here on matches anything.
pub(super) const ALARM_ANY: u8 = 0xc0;
/// Hours in 12-hour form: afternoon.
pub(super) const PM: u8 = 0x80;
/// Valid RAM and time.
pub(super) const D_VALUE: u8 = 0x80;

/// Register A.
#[bitfield(u8)]
pub(super) struct RegisterA {
    /// Periodic interrupt rate.
    #[bits(4)]
    pub rate: u32,
    /// 2: a 32 kHz crystal; 6 and 7 hold the divider in reset.
    #[bits(3)]
    pub divider: u8,
    /// Update in progress (or about to be); read only.
    pub updating: bool,
}

/// Register B.
#[bitfield(u8)]
pub(super) struct RegisterB {
    /// Kept, without effect.
    pub daylight_saving: bool,
    pub hours_24: bool,
    pub binary: bool,
    /// Kept, without effect.
    pub square_wave: bool,
    pub update_interrupt: bool,
    pub alarm_interrupt: bool,
    pub periodic_interrupt: bool,
    /// The time stands still to be set.
    pub set: bool,
}

/// Register C. A read clears it.
#[bitfield(u8)]
pub(super) struct RegisterC {
    #[bits(4)]
    pub zero: u8,
    pub update: bool,
    pub alarm: bool,
    pub periodic: bool,
    /// One of the above, and its enable bit.
    pub interrupt: bool,
}
