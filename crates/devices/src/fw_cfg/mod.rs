//! fw_cfg: the items that QEMU hands to firmware, by two I/O ports (QEMU's `docs/specs/fw_cfg.rst`).
//!
//! A 16-bit write to port 510h selects an item, byte reads of port 511h give its bytes one after the other, and zeros
//! after its end. There is no DMA interface, and items cannot be written.

mod spec;
#[cfg(test)]
mod tests;

use crate::sync::lock;
use crate::{PortDevice, Reset};
use std::collections::BTreeMap;
use std::sync::Mutex;

pub use spec::{DATA, Key, SELECTOR};

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
    /// The items that are always there: the signature, the interface's features (ports only), an empty file directory.
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
}

/// The device at ports 510h and 511h.
#[derive(Debug)]
pub struct FwCfg {
    entries: BTreeMap<u16, Vec<u8>>,
    cursor: Mutex<Cursor>,
}

impl FwCfg {
    /// A device that offers `items`.
    #[must_use]
    pub fn new(items: Items) -> Self {
        Self { entries: items.finish(), cursor: Mutex::default() }
    }
}

impl PortDevice for FwCfg {
    fn name(&self) -> &str {
        "fw_cfg"
    }

    fn read(&self, _port: u16, size: usize) -> u32 {
        if size != 1 {
            return 0;
        }
        let mut cursor = lock(&self.cursor);
        let byte = self.entries.get(&cursor.key).and_then(|item| item.get(cursor.offset)).copied();
        if byte.is_some() {
            cursor.offset += 1;
        }
        byte.unwrap_or(0).into()
    }

    fn write(&self, port: u16, size: usize, value: u32) {
        if port == SELECTOR && size == 2 {
            let [low, high, ..] = value.to_le_bytes();
            // Bit 14 asks for writing, which QEMU took back in version 2.4 too.
            let key = u16::from_le_bytes([low, high]) & !spec::WRITE;
            *lock(&self.cursor) = Cursor { key, offset: 0 };
        }
    }
}

impl Reset for FwCfg {
    fn reset(&self) {
        *lock(&self.cursor) = Cursor::default();
    }
}
