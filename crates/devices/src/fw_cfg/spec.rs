//! Ports and keys of fw_cfg (QEMU's `docs/specs/fw_cfg.rst`).

/// Selector, 16 bits, write only.
pub const SELECTOR: u16 = 0x510;
/// Data, 8 bits, read only.
pub const DATA: u16 = 0x511;

/// Selector bit that asked for write access.
pub const WRITE: u16 = 1 << 14;
/// The signature item.
pub const SIGNATURE: [u8; 4] = *b"QEMU";
/// The ID item: bit 0, the traditional interface; bit 1 (DMA) is not set.
pub const FEATURES: u32 = 1;
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
