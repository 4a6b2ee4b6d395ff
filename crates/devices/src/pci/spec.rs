//! PCI configuration mechanism #1 and the configuration header (PCI Local Bus Specification 3.0, 3.2.2.3.2 and 6.1).

use bitfield_struct::bitfield;

/// Configuration address: 32-bit accesses only.
pub const ADDRESS: u16 = 0xcf8;
/// Configuration data: 8, 16 or 32 bits.
pub const DATA: u16 = 0xcfc;

/// The configuration address register.
#[bitfield(u32)]
pub struct Address {
    #[bits(2)]
    __: u8,
    /// Which 32-bit register.
    #[bits(6)]
    pub register: u8,
    /// Function.
    #[bits(3)]
    pub function: u8,
    /// Device.
    #[bits(5)]
    pub device: u8,
    /// Bus.
    pub bus: u8,
    #[bits(7)]
    __: u8,
    /// Accesses to the data port are configuration accesses.
    pub enable: bool,
}

/// Offsets in the configuration header.
pub mod header {
    /// Vendor ID.
    pub const VENDOR: usize = 0x00;
    /// Device ID.
    pub const DEVICE: usize = 0x02;
    /// Command.
    pub const COMMAND: usize = 0x04;
    /// Status.
    pub const STATUS: usize = 0x06;
    /// Revision; programming interface, sub-class and class follow.
    pub const REVISION: usize = 0x08;
    /// Latency timer.
    pub const LATENCY: usize = 0x0d;
    /// Subsystem vendor ID.
    pub const SUBSYSTEM_VENDOR: usize = 0x2c;
    /// Subsystem ID.
    pub const SUBSYSTEM: usize = 0x2e;
}
