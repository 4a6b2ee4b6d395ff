//! fw_cfg: the items that QEMU hands to firmware, by two I/O ports (QEMU's `docs/specs/fw_cfg.rst`).
//!
//! A 16-bit write to port 510h selects an item, byte reads of port 511h give its bytes one after the other, and zeros
//! after its end. Ports 514h to 51Bh take the address of a request, which is done at once: to copy the item to RAM, or to
//! pass over some of it. Left out: items cannot be written, which a request is told by its error bit; and no other device's
//! memory is reached by DMA, which ends with an error where it comes to anything but RAM.

mod spec;
#[cfg(test)]
mod tests;

use crate::sync::lock;
use crate::{PortDevice, Reset};
use memory::{Dma, Gpa};
use spec::{Control, Request};
use std::collections::BTreeMap;
use std::sync::Mutex;

pub use spec::{DATA, DMA, DMA_PORTS, Key, SELECTOR};

/// What memory knows the device by.
pub const NAME: &str = "fw_cfg";

/// Zeros that are written to memory at once.
const ZEROS: [u8; 4096] = [0; 4096];

/// Why an item cannot be added.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FwCfgError {
    /// The name of a file is empty, longer than 55 bytes, or has a zero byte in it.
    #[error("fw_cfg file name {0:?} is not 1 to 55 bytes without a zero")]
    Name(String),
    /// There is a file of that name.
    #[error("fw_cfg file {0} is there twice")]
    Twice(String),
    /// An item's length does not fit 32 bits, or there are too many files.
    #[error("fw_cfg has no room for {0}")]
    Full(String),
}

/// The items: what the machine fills in before the guest starts.
#[derive(Debug)]
pub struct Items {
    entries: BTreeMap<u16, Vec<u8>>,
    /// Files by name. Their keys follow this order, as QEMU's do.
    files: BTreeMap<String, Vec<u8>>,
}

impl Default for Items {
    fn default() -> Self {
        Self::new()
    }
}

impl Items {
    /// The items that are always there: the signature, the interface's features, an empty file directory.
    #[must_use]
    pub fn new() -> Self {
        let mut items = Self { entries: BTreeMap::new(), files: BTreeMap::new() };
        items.add_entry(Key::Signature, spec::SIGNATURE.to_vec());
        items.add_entry(Key::Id, spec::FEATURES.to_le_bytes().to_vec());
        items
    }

    /// Sets the item of a known key, little endian where it is a number.
    pub fn add_entry(&mut self, key: Key, bytes: Vec<u8>) {
        self.entries.insert(key as u16, bytes);
    }

    /// Adds a named file, which a guest finds through the directory.
    ///
    /// # Errors
    /// A name that does not fit, one that is taken, or a file that is too large.
    pub fn add_file(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), FwCfgError> {
        if name.is_empty() || name.len() >= spec::NAME || name.contains('\0') {
            return Err(FwCfgError::Name(name.into()));
        }
        if u32::try_from(bytes.len()).is_err() || self.files.len() >= spec::MAX_FILES {
            return Err(FwCfgError::Full(name.into()));
        }
        if self.files.contains_key(name) {
            return Err(FwCfgError::Twice(name.into()));
        }
        self.files.insert(name.into(), bytes);
        Ok(())
    }

    /// Lays the files out behind the directory.
    fn finish(self) -> BTreeMap<u16, Vec<u8>> {
        let Self { mut entries, files } = self;
        let big = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes();
        let mut directory = big(files.len()).to_vec();
        for (key, (name, bytes)) in (spec::FIRST_FILE..).zip(files) {
            directory.extend_from_slice(&big(bytes.len()));
            directory.extend_from_slice(&key.to_be_bytes());
            directory.extend_from_slice(&[0; 2]);
            let mut field = name.into_bytes();
            field.resize(spec::NAME, 0);
            directory.extend_from_slice(&field);
            entries.insert(key, bytes);
        }
        entries.insert(Key::FileDirectory as u16, directory);
        entries
    }
}

/// What is being read.
#[derive(Debug, Default)]
struct Cursor {
    key: u16,
    offset: usize,
    /// The higher half of the address of the next request, which is in the upper 32 bits.
    high: u64,
}

/// The device at ports 510h and 511h, and 514h to 51Bh.
#[derive(Debug)]
pub struct FwCfg {
    entries: BTreeMap<u16, Vec<u8>>,
    dma: Dma,
    /// Held while a request is done.
    cursor: Mutex<Cursor>,
}

impl FwCfg {
    /// A device that offers `items`, and copies them to memory by `dma`.
    #[must_use]
    pub fn new(items: Items, dma: Dma) -> Self {
        Self { entries: items.finish(), dma, cursor: Mutex::default() }
    }

    /// What is left of the item.
    fn rest(&self, cursor: &Cursor) -> &[u8] {
        self.entries.get(&cursor.key).and_then(|item| item.get(cursor.offset..)).unwrap_or_default()
    }

    /// Does the request at `gpa`.
    fn request(&self, gpa: Gpa, cursor: &mut Cursor) {
        let mut bytes = [0; Request::SIZE];
        let done = match self.dma.read(gpa, &mut bytes) {
            Ok(()) => self.transfer(&Request::new(bytes), cursor),
            Err(_) => false,
        };
        if !done {
            tracing::debug!(target: "guest_errors", "fw_cfg cannot do the request at {:#x}", gpa.0);
        }
        let control = Control::new().with_error(!done).into_bits();
        // A request that is nowhere is told nothing.
        let _ = self.dma.write(gpa, &control.to_be_bytes());
    }

    /// Whether all of it could be done.
    fn transfer(&self, Request { control, length, address }: &Request, cursor: &mut Cursor) -> bool {
        if control.select() {
            cursor.select(control.key());
        }
        let asked = control.read() || control.write() || control.skip();
        let length = if asked { usize::try_from(*length).unwrap_or(usize::MAX) } else { 0 };
        let rest = self.rest(cursor);
        let item = rest.get(..length).unwrap_or(rest);
        let done = match () {
            () if control.read() => self.copy(*address, item, length - item.len()),
            () if control.write() => length == 0,
            () => true,
        };
        cursor.offset += item.len();
        done
    }

    /// Writes `bytes` and then so many zeros to memory. Whether all of that is RAM.
    fn copy(&self, to: Gpa, bytes: &[u8], mut zeros: usize) -> bool {
        let mut written = self.dma.write(to, bytes);
        let mut to = to.wrapping_add(bytes.len() as u64);
        while let (Ok(()), 1..) = (&written, zeros) {
            let piece = ZEROS.get(..zeros).unwrap_or(&ZEROS);
            written = self.dma.write(to, piece);
            to = to.wrapping_add(piece.len() as u64);
            zeros -= piece.len();
        }
        written.is_ok()
    }
}

impl Cursor {
    fn select(&mut self, key: u16) {
        // Bit 14 asks for writing, which is decided by the item instead.
        (self.key, self.offset) = (key & !spec::WRITE, 0);
    }
}

impl PortDevice for FwCfg {
    fn name(&self) -> &str {
        NAME
    }

    fn read(&self, port: u16, size: usize) -> u32 {
        if let Some(offset) = port.checked_sub(DMA) {
            let mut bytes = [0; 4];
            for (byte, of) in bytes.iter_mut().zip(spec::DMA_SIGNATURE.iter().skip(offset.into())).take(size) {
                *byte = *of;
            }
            return u32::from_le_bytes(bytes);
        }
        if size != 1 {
            return 0;
        }
        let mut cursor = lock(&self.cursor);
        let byte = self.rest(&cursor).first().copied();
        cursor.offset += usize::from(byte.is_some());
        byte.unwrap_or(0).into()
    }

    fn write(&self, port: u16, size: usize, value: u32) {
        let mut cursor = lock(&self.cursor);
        match (port, size) {
            (SELECTOR, 2) => cursor.select((value & 0xffff) as u16),
            (DMA, 4) => cursor.high = u64::from(value.swap_bytes()) << 32,
            (spec::DMA_LOW, 4) => {
                let gpa = Gpa(std::mem::take(&mut cursor.high) | u64::from(value.swap_bytes()));
                self.request(gpa, &mut cursor);
            }
            _ => {}
        }
    }
}

impl Reset for FwCfg {
    fn reset(&self) {
        *lock(&self.cursor) = Cursor::default();
    }
}
