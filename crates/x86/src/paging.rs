//! Page-table entries and the page-fault error code (APM vol. 2, 5.3 to 5.6 and 8.4.2).

use bitfield_struct::bitfield;

/// Where in CR3 and in a 64-bit entry the physical address is.
pub const TABLE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// A page-table entry of any level, in the 64-bit format of PAE, 4-level and 5-level paging.
///
/// 32-bit entries have the same low twelve bits.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Pte {
    /// P: the entry maps something.
    pub present: bool,
    /// R/W: writes are allowed.
    pub writable: bool,
    /// U/S: user mode may access.
    pub user: bool,
    /// PWT.
    pub write_through: bool,
    /// PCD.
    pub cache_disable: bool,
    /// A: set by the walker.
    pub accessed: bool,
    /// D: set by the walker in the entry that maps the page.
    pub dirty: bool,
    /// PS in an upper level (maps a large page), PAT in the last.
    pub large: bool,
    /// G: the translation survives CR3 writes.
    pub global: bool,
    /// Available to software.
    #[bits(3)]
    pub available: u8,
    /// Physical page number; bit 0 is PAT in a large-page entry.
    #[bits(40)]
    pub frame: u64,
    /// Available to software.
    #[bits(7)]
    pub available_high: u8,
    /// Protection key (user pages PKRU, supervisor pages PKRS).
    #[bits(4)]
    pub key: u8,
    /// NX.
    pub no_execute: bool,
}

/// The page-fault error code.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct PageFaultCode {
    /// P: a protection violation (0: page not present).
    pub present: bool,
    /// R/W: the access was a write.
    pub write: bool,
    /// U/S: the access was made in user mode (CPL 3 and not an implicit system access).
    pub user: bool,
    /// RSV: a reserved bit was set.
    pub reserved: bool,
    /// I/D: the access was an instruction fetch (only with NX or SMEP enabled).
    pub fetch: bool,
    /// PK: a protection key denied the access.
    pub protection_key: bool,
    /// SS: shadow stack access.
    pub shadow_stack: bool,
    #[bits(9)]
    __: u16,
}
