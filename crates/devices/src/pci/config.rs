//! A function's configuration space, and the host bridges that have nothing else.

use super::PciFunction;
use super::spec::header;
use crate::Reset;
use crate::sync::lock;
use std::sync::Mutex;

/// 256 bytes, each with a mask of the bits that the guest can write.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; 256],
    writable: [u8; 256],
}

impl Default for ConfigSpace {
    fn default() -> Self {
        Self { bytes: [0; 256], writable: [0; 256] }
    }
}

impl ConfigSpace {
    /// Sets the bytes from `offset` on; those past the end are dropped.
    pub fn set(&mut self, offset: usize, bytes: &[u8]) {
        for (at, byte) in self.bytes.iter_mut().skip(offset).zip(bytes) {
            *at = *byte;
        }
    }

    /// Sets which bits from `offset` on the guest can write.
    pub fn set_writable(&mut self, offset: usize, masks: &[u8]) {
        for (at, mask) in self.writable.iter_mut().skip(offset).zip(masks) {
            *at = *mask;
        }
    }

    /// Reads `size` (1, 2, 4) bytes.
    #[must_use]
    pub fn read(&self, offset: u8, size: usize) -> u32 {
        let mut value = [0; 4];
        for (to, from) in value.iter_mut().zip(self.bytes.iter().skip(offset.into())).take(size) {
            *to = *from;
        }
        u32::from_le_bytes(value)
    }

    /// Writes the writable bits of `size` (1, 2, 4) bytes.
    pub fn write(&mut self, offset: u8, size: usize, value: u32) {
        let at = self.bytes.iter_mut().zip(self.writable).skip(offset.into());
        for ((byte, mask), new) in at.zip(value.to_le_bytes()).take(size) {
            *byte = (*byte & !mask) | (new & mask);
        }
    }
}

/// Which chipset's host bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bridge {
    /// Intel 82441FX ("i440FX").
    I440fx,
    /// Intel Q35.
    Q35,
}

/// A host bridge: identity, command and status; of the chipset's own registers those that software stores into and
/// reads back (PAM: shadow RAM, which is always RAM here).
#[derive(Debug)]
pub struct HostBridge {
    bridge: Bridge,
    space: Mutex<ConfigSpace>,
}

impl HostBridge {
    /// The bridge in its reset state.
    #[must_use]
    pub fn new(bridge: Bridge) -> Self {
        Self { bridge, space: Mutex::new(Self::initial(bridge)) }
    }

    fn initial(bridge: Bridge) -> ConfigSpace {
        // Device, revision, the first of the PAM registers.
        let (device, revision, pam) = match bridge {
            Bridge::I440fx => (0x1237u16, 0x02, 0x59),
            Bridge::Q35 => (0x29c0, 0x00, 0x90),
        };
        let mut space = ConfigSpace::default();
        space.set(header::VENDOR, &0x8086u16.to_le_bytes());
        space.set(header::DEVICE, &device.to_le_bytes());
        // Memory and bus-master are hard-wired on; parity and SERR can be switched.
        space.set(header::COMMAND, &0x0006u16.to_le_bytes());
        space.set_writable(header::COMMAND, &0x0140u16.to_le_bytes());
        // Medium DEVSEL timing.
        space.set(header::STATUS, &0x0200u16.to_le_bytes());
        // Class 06h (bridge), sub-class 00h (host).
        space.set(header::REVISION, &[revision, 0x00, 0x00, 0x06]);
        space.set_writable(header::LATENCY, &[0xf8]);
        // QEMU's subsystem, by which guests know a virtual board.
        space.set(header::SUBSYSTEM_VENDOR, &0x1af4u16.to_le_bytes());
        space.set(header::SUBSYSTEM, &0x1100u16.to_le_bytes());
        space.set(pam, &[0x33; 7]);
        space.set_writable(pam, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
        space
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u8, size: usize) -> u32 {
        lock(&self.space).read(offset, size)
    }

    fn write_config(&self, offset: u8, size: usize, value: u32) {
        lock(&self.space).write(offset, size, value);
    }
}

impl Reset for HostBridge {
    fn reset(&self) {
        *lock(&self.space) = Self::initial(self.bridge);
    }
}
