//! QEMU's `pc-testdev`: what test kernels use to try out ports, interrupt lines and memory-mapped access.
//!
//! Ports E0h–E3h are a latch for accesses of any size; E8h–EBh the same, byte by byte; a write to E4h would remap a page
//! (nothing to do: no page of this machine moves). Writing to port 2000h + n drives interrupt line n. [`TestMemory`] is
//! 64 KiB that behave as RAM but are reached as a device's registers are.

use crate::sync::lock;
use crate::{Pin, PortDevice, Reset};
use memory::Mmio;
use std::sync::{Arc, Mutex};

/// The latch, and the page port after it.
pub const LATCH: u16 = 0xe0;
/// Ports of both.
pub const LATCH_PORTS: u16 = 8;
/// The latch of byte ports.
pub const BYTES: u16 = 0xe8;
/// Its ports.
pub const BYTE_PORTS: u16 = 4;
/// The port of interrupt line 0.
pub const LINES: u16 = 0x2000;
/// How many lines.
pub const LINE_COUNT: u16 = 24;
/// Where [`TestMemory`] lies (guest physical).
pub const MEMORY: u64 = 0xff00_0000;
/// Its size in bytes.
pub const MEMORY_SIZE: usize = 0x1_0000;

/// The ports of the test device.
#[derive(Debug)]
pub struct TestDevice {
    /// The latch and the latch of byte ports.
    latches: Mutex<[[u8; 4]; 2]>,
    lines: Vec<Pin>,
}

impl TestDevice {
    /// A device that drives `lines`.
    #[must_use]
    pub fn new(lines: Vec<Pin>) -> Self {
        Self { latches: Mutex::default(), lines }
    }
}

/// Which latch a port belongs to, and the byte in it.
fn latch(port: u16) -> Option<(usize, usize)> {
    match port {
        LATCH..0xe4 => Some((0, usize::from(port & 3))),
        BYTES..0xec => Some((1, usize::from(port & 3))),
        _ => None,
    }
}

impl PortDevice for TestDevice {
    fn name(&self) -> &str {
        "testdev"
    }

    fn read(&self, port: u16, size: usize) -> u32 {
        let latches = lock(&self.latches);
        let mut value = [0xff; 4];
        for (byte, port) in value.iter_mut().zip(port..).take(size) {
            let held = latch(port).and_then(|(which, at)| latches.get(which)?.get(at));
            *byte = held.copied().unwrap_or(0xff);
        }
        u32::from_le_bytes(value)
    }

    fn write(&self, port: u16, size: usize, value: u32) {
        if let Some(line) = port.checked_sub(LINES).and_then(|n| self.lines.get(usize::from(n))) {
            line.set(value != 0);
            return;
        }
        let mut latches = lock(&self.latches);
        for (byte, port) in value.to_le_bytes().into_iter().zip(port..).take(size) {
            if let Some(held) = latch(port).and_then(|(which, at)| latches.get_mut(which)?.get_mut(at)) {
                *held = byte;
            }
        }
    }
}

impl Reset for TestDevice {
    fn reset(&self) {
        *lock(&self.latches) = Default::default();
        for line in &self.lines {
            line.set(false);
        }
    }
}

/// Memory behind a device.
#[derive(Debug)]
pub struct TestMemory(Mutex<Box<[u8]>>);

impl Default for TestMemory {
    fn default() -> Self {
        Self(Mutex::new(vec![0; MEMORY_SIZE].into()))
    }
}

impl TestMemory {
    /// The memory, zero.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
}

impl Mmio for TestMemory {
    fn read(&self, _cpu: usize, offset: u64, size: usize) -> u64 {
        let memory = lock(&self.0);
        let from = memory.iter().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        let mut value = [0; 8];
        for (to, from) in value.iter_mut().zip(from).take(size) {
            *to = *from;
        }
        u64::from_le_bytes(value)
    }

    fn write(&self, _cpu: usize, offset: u64, size: usize, value: u64) {
        let mut memory = lock(&self.0);
        let to = memory.iter_mut().skip(usize::try_from(offset).unwrap_or(usize::MAX));
        for (to, from) in to.zip(value.to_le_bytes()).take(size) {
            *to = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::IrqLine;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Debug, Default)]
    struct Line(AtomicBool);

    impl IrqLine for Line {
        fn set(&self, high: bool) {
            self.0.store(high, Ordering::SeqCst);
        }
    }

    #[test]
    fn the_latches_hold_what_is_written() {
        let device = TestDevice::new(Vec::new());
        device.write(0xe0, 4, 0x4433_2211);
        device.write(0xe1, 2, 0xbbaa);
        assert_eq!(device.read(0xe0, 4), 0x44bb_aa11);
        assert_eq!(device.read(0xe3, 1) & 0xff, 0x44);
        device.write(0xe9, 1, 0x77);
        assert_eq!(device.read(0xe8, 4), 0x7700);
        device.write(0xe4, 4, 0);
        device.write(0xe2, 4, 0);
        assert_eq!(device.read(0xe0, 4), 0xaa11, "what runs over the latch is lost");
        device.reset();
        assert_eq!(device.read(0xe0, 4), 0);
    }

    #[test]
    fn lines_follow_their_ports() {
        let lines = [Arc::new(Line::default()), Arc::new(Line::default())];
        let device = TestDevice::new(lines.iter().map(|line| line.clone() as Pin).collect());
        device.write(0x2001, 1, 1);
        device.write(0x2002, 1, 1);
        assert_eq!(lines.each_ref().map(|line| line.0.load(Ordering::SeqCst)), [false, true]);
        device.write(0x2001, 4, 0);
        assert!(!lines[1].0.load(Ordering::SeqCst));
    }

    #[test]
    fn memory_keeps_its_bounds() {
        let memory = TestMemory::new();
        memory.write(0, 0xfffc, 8, 0x8877_6655_4433_2211);
        assert_eq!(memory.read(0, 0xfffc, 8), 0x4433_2211);
        assert_eq!(memory.read(0, 0xfffd, 2), 0x3322);
        assert_eq!(memory.read(0, u64::MAX, 8), 0);
    }
}
