//! Ports and keys of fw_cfg (QEMU's `docs/specs/fw_cfg.rst`).

use bitfield_struct::bitfield;
use memory::Gpa;

/// Selector, 16 bits, write only.
pub const SELECTOR: u16 = 0x510;
/// Data, 8 bits, read only.
pub const DATA: u16 = 0x511;

/// The address register of the DMA interface: the higher four bytes, then the lower four, each big endian.
pub const DMA: u16 = 0x514;
/// Bytes of that register.
pub const DMA_PORTS: u16 = 8;
/// What it reads as.
pub const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// Where its lower half is, whose write begins a transfer.
pub const DMA_LOW: u16 = DMA + 4;

/// A request, as it lies in memory: all fields are big endian.
pub struct Request {
    /// What is to be done.
    pub control: Control,
    /// How many bytes.
    pub length: u32,
    /// Where they are.
    pub address: Gpa,
}

impl Request {
    /// Bytes of a request.
    pub const SIZE: usize = 16;

    /// From its bytes.
    pub fn new(bytes: [u8; Self::SIZE]) -> Self {
        let all = u128::from_be_bytes(bytes);
        let control = Control::from_bits((all >> 96) as u32);
        Self { control, length: (all >> 64) as u32, address: Gpa(all as u64) }
    }
}

/// What a request asks for, at its beginning; and afterwards, but for the error, zero.
#[bitfield(u32)]
pub struct Control {
    /// It could not be done whole.
    pub error: bool,
    /// The item is to be written to memory.
    pub read: bool,
    /// Bytes of the item are to be passed over.
    pub skip: bool,
    /// First another item is to be selected.
    pub select: bool,
    /// The item is to be read from memory.
    pub write: bool,
    #[bits(11)]
    __: u16,
    /// Which item.
    pub key: u16,
}

/// Selector bit that asked for write access.
pub const WRITE: u16 = 1 << 14;
/// The signature item.
pub const SIGNATURE: [u8; 4] = *b"QEMU";
/// The ID item: bit 0, the traditional interface; bit 1, DMA.
pub const FEATURES: u32 = 3;
/// Key of the first file.
pub const FIRST_FILE: u16 = 0x20;
/// How many files there can be below the architecture's own keys.
pub const MAX_FILES: usize = 0x1000;
/// Length of a name in the directory, with its closing zero.
pub const NAME: usize = 56;

/// Items with a fixed key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Key {
    /// "QEMU".
    Signature = 0x00,
    /// Features of the interface.
    Id = 0x01,
    /// The machine's UUID, 16 bytes.
    Uuid = 0x02,
    /// RAM in bytes, 64 bits.
    RamSize = 0x03,
    /// Whether there is no display, 16 bits.
    NoGraphic = 0x04,
    /// vCPUs at start, 16 bits.
    Cpus = 0x05,
    /// The kernel's command line, as bytes.
    CommandLine = 0x15,
    /// vCPUs that there may be, 16 bits.
    MaxCpus = 0x0f,
    /// The file directory. Made by the device.
    FileDirectory = 0x19,
}
