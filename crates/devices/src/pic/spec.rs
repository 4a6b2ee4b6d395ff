//! The command words of the 8259A (data sheet 231468, "Programming the 8259A") and its ports on a PC.

use bitfield_struct::bitfield;

pub(super) const MASTER_COMMAND: u16 = 0x20;
pub(super) const MASTER_DATA: u16 = 0x21;
pub(super) const SLAVE_COMMAND: u16 = 0xa0;
pub(super) const SLAVE_DATA: u16 = 0xa1;
/// Edge/level control, master (PIIX, ICH).
pub(super) const MASTER_ELCR: u16 = 0x4d0;
/// Edge/level control, slave.
pub(super) const SLAVE_ELCR: u16 = 0x4d1;

/// The inputs whose trigger ELCR may change: the timer, the keyboard and the cascade are always edge triggered.
pub(super) const MASTER_ELCR_MASK: u8 = 0b1111_1000;
/// The clock's and the coprocessor's inputs are always edge triggered.
pub(super) const SLAVE_ELCR_MASK: u8 = 0b1101_1110;

/// The master's input that the slave's output is wired to.
pub(super) const CASCADE: u8 = 2;

/// Initialization command word 1 (command port, bit 4 set).
#[bitfield(u8)]
pub(super) struct Icw1 {
    /// ICW4 follows.
    pub icw4: bool,
    /// No cascade, and no ICW3.
    pub single: bool,
    /// Call address interval, 8080 only.
    pub interval: bool,
    /// All inputs are level triggered.
    pub level: bool,
    pub is_icw1: bool,
    /// Address of the vectors, 8080 only.
    #[bits(3)]
    pub address: u8,
}

/// Initialization command word 4 (data port).
#[bitfield(u8)]
pub(super) struct Icw4 {
    /// 8086 mode. The other mode has no meaning in a PC and is taken for this one.
    pub x86: bool,
    /// The in-service bit goes with the acknowledge.
    pub auto_eoi: bool,
    pub buffered_master: bool,
    pub buffered: bool,
    /// Special fully nested: the slave's requests are not blocked by its in-service bit in the master.
    pub special_nested: bool,
    #[bits(3)]
    pub zero: u8,
}

/// Operation command word 2 (command port, bits 4 and 3 clear).
#[bitfield(u8)]
pub(super) struct Ocw2 {
    #[bits(3)]
    pub level: u8,
    #[bits(2)]
    pub zero: u8,
    pub eoi: bool,
    /// `level` counts.
    pub specific: bool,
    pub rotate: bool,
}

/// Operation command word 3 (command port, bit 3 set).
#[bitfield(u8)]
pub(super) struct Ocw3 {
    /// With `select`: in-service register rather than request register.
    pub in_service: bool,
    /// The register to read changes.
    pub select: bool,
    /// The next read is an acknowledge.
    pub poll: bool,
    pub is_ocw3: bool,
    pub zero: bool,
    pub special_mask: bool,
    /// The special mask mode changes.
    pub change_special_mask: bool,
    pub zero7: bool,
}
