//! Registers of the IOAPIC (82093AA data sheet 290566; the EOI register is that of version 20h, ICH data sheets).

use bitfield_struct::bitfield;

use crate::lapic::DeliveryMode;

/// Offsets of the directly addressed registers.
pub(super) const INDEX: u64 = 0x00;
pub(super) const WINDOW: u64 = 0x10;
pub(super) const EOI: u64 = 0x40;

/// Indices of the others.
pub(super) const ID: u8 = 0;
pub(super) const VERSION: u8 = 1;
pub(super) const ARBITRATION: u8 = 2;
pub(super) const FIRST_ENTRY: u8 = 0x10;
pub(super) const LAST_ENTRY: u8 = 0x3f;

pub(super) const PINS: usize = 24;
/// Version 20h (with EOI register), 23 is the last redirection entry.
pub(super) const VERSION_VALUE: u32 = 0x0017_0020;
pub(super) const ID_BITS: u32 = 0x0f00_0000;

/// A redirection table entry.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct Entry {
    pub vector: u8,
    #[bits(3)]
    pub mode: DeliveryMode,
    pub logical: bool,
    /// Always idle; read only.
    pub delivery_status: bool,
    pub active_low: bool,
    /// A level triggered interrupt was accepted and waits for its EOI; read only.
    pub remote_irr: bool,
    pub level: bool,
    pub masked: bool,
    #[bits(39)]
    pub reserved: u64,
    pub destination: u8,
}

/// What a write to an entry changes.
pub(super) const ENTRY_BITS: u64 = 0xff00_0000_0001_afff;
