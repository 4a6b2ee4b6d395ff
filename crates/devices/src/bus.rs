//! What a device on the I/O port bus looks like to the bus.

use std::fmt::Debug;

/// A device that answers at I/O ports.
///
/// Any size (1, 2, 4) may arrive at any port the device was put at; whatever a guest does, the device must not panic.
pub trait PortDevice: Send + Sync + Debug {
    /// Reads `size` (1, 2, 4) bytes at `port` (the absolute port number).
    fn read(&self, port: u16, size: usize) -> u32;
    /// Writes the low `size` (1, 2, 4) bytes of `value` at `port`.
    fn write(&self, port: u16, size: usize, value: u32);

    /// What a listing calls it.
    fn name(&self) -> &str {
        "ports"
    }
}
