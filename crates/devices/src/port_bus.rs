//! The I/O port space: 65,536 ports, each of which belongs to one device or to none.
//!
//! An access that lies within one device and is no wider than the device's registers reaches it in one piece. Any other
//! is split as an ISA bus would split it: into pieces that each lie within one device, or within none, which reads as all
//! ones. An access that runs past port FFFFh goes on at port 0.

use crate::PortDevice;
use memory::map::Counts;
use memory::witness::{DeviceAccess, Place, Seat};
use std::sync::Arc;

/// A range of ports.
#[derive(Debug)]
struct Range {
    /// First port.
    base: u16,
    /// Last port.
    last: u16,
    /// The widest access that the device takes in one piece: 1, 2 or 4 bytes.
    width: usize,
    /// What answers.
    device: Arc<dyn PortDevice>,
    /// How often it was accessed here.
    counts: Counts,
}

/// Why a device could not be put on the bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PortBusError {
    /// Some of the ports are taken, or there are none, or they run past FFFFh.
    #[error("I/O ports {base:#x} to {:#x} cannot be used: {reason}", base.saturating_add(len.saturating_sub(1)))]
    Range {
        /// First port.
        base: u32,
        /// How many.
        len: u32,
        /// What is wrong with them.
        reason: &'static str,
    },
}

/// The table of devices by port.
#[derive(Debug, Default)]
pub struct PortBus {
    /// Sorted by `base`, no two overlap.
    ranges: Vec<Range>,
    witness: Seat,
}

impl PortBus {
    /// A bus with nothing on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `len` ports from `base` on, whose registers are `width` (1, 2 or 4) bytes wide: wider accesses
    /// are split.
    ///
    /// # Errors
    /// A range that is empty, runs past port FFFFh, or overlaps a device's.
    pub fn add(&mut self, base: u16, len: u16, width: usize, device: Arc<dyn PortDevice>) -> Result<(), PortBusError> {
        let refuse = |reason| PortBusError::Range { base: base.into(), len: len.into(), reason };
        let beyond = len.checked_sub(1).ok_or_else(|| refuse("the range is empty"))?;
        let last = base.checked_add(beyond).ok_or_else(|| refuse("the range runs past port 0xffff"))?;
        let at = self.ranges.partition_point(|r| r.last < base);
        if self.ranges.get(at).is_some_and(|r| r.base <= last) {
            return Err(refuse("another device has ports there"));
        }
        self.ranges.insert(at, Range { base, last, width, device, counts: Counts::default() });
        Ok(())
    }

    /// How often each device was read from and written to since the bus was made, by name.
    #[must_use]
    pub fn counts(&self) -> Vec<(String, u64, u64)> {
        let mut all: Vec<(String, u64, u64)> = Vec::new();
        for range in &self.ranges {
            let (name, (reads, writes)) = (range.device.name(), range.counts.get());
            match all.iter_mut().find(|(known, ..)| known == name) {
                Some(known) => (known.1, known.2) = (known.1 + reads, known.2 + writes),
                None => all.push((name.to_owned(), reads, writes)),
            }
        }
        all
    }

    /// Where somebody sits who wants to know of accesses.
    #[must_use]
    pub fn witness(&self) -> &Seat {
        &self.witness
    }

    fn tell(&self, range: &Range, port: u16, size: usize, value: u32, write: bool) {
        if let Some(witness) = self.witness.get() {
            let (device, place, value) = (range.device.name(), Place::Port(port), value.into());
            witness.device(&DeviceAccess { device, place, size, value, write });
        }
    }

    /// The range that `port` lies in.
    fn find(&self, port: u16) -> Option<&Range> {
        let at = self.ranges.partition_point(|r| r.last < port);
        self.ranges.get(at).filter(|r| r.base <= port)
    }

    /// Cuts an access into pieces: calls `piece` with the device if there is one, the port, and offset and size in bytes.
    fn pieces(&self, port: u16, size: usize, mut piece: impl FnMut(Option<&Range>, u16, usize, usize)) {
        let mut offset = 0;
        let mut port = port;
        while offset < size {
            let range = self.find(port);
            // Bytes until the access or the device ends.
            let room = range.map_or(1, |r| usize::from(r.last - port) + 1).min(size - offset);
            let width = range.map_or(1, |r| r.width);
            let (step, wide) = match room {
                4.. if width >= 4 => (4, 4u16),
                2.. if width >= 2 => (2, 2),
                _ => (1, 1),
            };
            piece(range, port, offset, step);
            offset += step;
            port = port.wrapping_add(wide);
        }
    }
}

/// The low `size` bytes set.
const fn ones(size: usize) -> u32 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => u32::MAX,
    }
}

impl cpu::PortIo for PortBus {
    fn read(&self, port: u16, size: usize) -> u32 {
        let mut value = 0;
        let mut answered = false;
        self.pieces(port, size, |range, port, offset, size| {
            answered |= range.is_some();
            let read = |range: &Range| {
                range.counts.read();
                let value = range.device.read(port, size) & ones(size);
                self.tell(range, port, size, value, false);
                value
            };
            let part = range.map_or(u32::MAX, read) & ones(size);
            value |= part << (8 * offset);
        });
        if !answered {
            tracing::debug!(target: "guest_errors", port = format_args!("{port:#x}"), size, "read of an unassigned port");
        }
        value
    }

    fn write(&self, port: u16, size: usize, value: u32) {
        let mut answered = false;
        self.pieces(port, size, |range, port, offset, size| {
            if let Some(range) = range {
                answered = true;
                range.counts.wrote();
                let value = (value >> (8 * offset)) & ones(size);
                range.device.write(port, size, value);
                self.tell(range, port, size, value, true);
            }
        });
        if !answered {
            let (port, value) = (format_args!("{port:#x}"), format_args!("{value:#x}"));
            tracing::debug!(target: "guest_errors", port, size, value, "write to an unassigned port");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::lock;
    use cpu::PortIo;
    use std::sync::Mutex;

    /// Remembers accesses; reads give the low byte of each port.
    #[derive(Debug, Default)]
    struct Probe(Mutex<Vec<(u16, usize, u32)>>);

    impl PortDevice for Probe {
        fn read(&self, port: u16, size: usize) -> u32 {
            let bytes: Vec<u8> = (0..4).map(|i| port.wrapping_add(i).to_le_bytes()[0]).collect();
            lock(&self.0).push((port, size, 0));
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        }
        fn write(&self, port: u16, size: usize, value: u32) {
            lock(&self.0).push((port, size, value));
        }
    }

    fn bus() -> (PortBus, Arc<Probe>, Arc<Probe>) {
        let (bytes, words) = (Arc::new(Probe::default()), Arc::new(Probe::default()));
        let mut bus = PortBus::new();
        bus.add(0x12, 2, 4, words.clone()).unwrap();
        bus.add(0x10, 2, 1, bytes.clone()).unwrap();
        bus.add(0x14, 4, 4, words.clone()).unwrap();
        (bus, bytes, words)
    }

    #[test]
    fn unassigned_ports_read_as_ones() {
        let (bus, ..) = bus();
        assert_eq!(bus.read(0x80, 1), 0xff);
        assert_eq!(bus.read(0x80, 2), 0xffff);
        assert_eq!(bus.read(0x80, 4), 0xffff_ffff);
        bus.write(0x80, 4, 1);
        assert_eq!(bus.read(0xfffe, 4), 0xffff_ffff);
    }

    #[test]
    fn an_access_within_a_device_arrives_whole() {
        let (bus, _, words) = bus();
        assert_eq!(bus.read(0x14, 4), 0x1716_1514);
        bus.write(0x16, 2, 0xdead_beef);
        assert_eq!(*lock(&words.0), [(0x14, 4, 0), (0x16, 2, 0xbeef)]);
    }

    #[test]
    fn a_straddling_access_is_split() {
        let (bus, bytes, words) = bus();
        assert_eq!(bus.read(0x0f, 4), 0x1211_10ff);
        assert_eq!(*lock(&bytes.0), [(0x10, 1, 0), (0x11, 1, 0)]);
        assert_eq!(*lock(&words.0), [(0x12, 1, 0)]);
        lock(&words.0).clear();
        bus.write(0x12, 4, 0x4433_2211);
        assert_eq!(*lock(&words.0), [(0x12, 2, 0x2211), (0x14, 2, 0x4433)]);
    }

    #[test]
    fn ranges_do_not_overlap() {
        let (mut bus, bytes, _) = bus();
        for (base, len) in [(0x10, 1), (0xf, 2), (0x11, 1), (0x17, 8), (0, 0x100), (0x20, 0), (0xffff, 2)] {
            assert!(bus.add(base, len, 1, bytes.clone()).is_err(), "{base:#x} {len}");
        }
        bus.add(0xffff, 1, 1, bytes.clone()).unwrap();
        bus.add(0xf, 1, 1, bytes).unwrap();
        assert_eq!(bus.read(0xffff, 2), 0xffff);
    }
}
