//! What loaders need of guest memory: where there is RAM, and to write there.

use crate::BootError;
use memory::{Gpa, PhysicalMap};

/// Guest RAM as loaders see it. A trait, so that loaders can be tried without a machine.
pub(crate) trait Ram {
    /// Ranges of RAM as (first address, bytes), ascending, not overlapping. Video and firmware holes below 1 MiB are
    /// not left out.
    fn ranges(&self) -> Vec<(Gpa, u64)>;

    /// Writes all of `bytes`, or says that not all of them would lie in RAM.
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool;

    /// The end of the RAM that begins at 0: with 4 GiB and more of RAM, the hole for devices.
    fn low_end(&self) -> u64 {
        self.ranges().first().filter(|(start, _)| start.0 == 0).map_or(0, |(_, size)| *size)
    }

    /// All RAM in bytes.
    fn total(&self) -> u64 {
        self.ranges().iter().fold(0, |sum, (_, size)| sum.saturating_add(*size))
    }

    /// Writes `bytes` where a loader has chosen to put `what`.
    fn put(&self, what: &str, gpa: Gpa, bytes: &[u8]) -> Result<(), BootError> {
        if self.write(gpa, bytes) { Ok(()) } else { Err(self.too_large(what, gpa.0, to_u64(bytes.len()))) }
    }

    /// The error for `what`, of `size` bytes, having no room at `address`, which is where it must be.
    fn too_large(&self, what: &str, address: u64, size: u64) -> BootError {
        let needed = address.saturating_add(size);
        let have = mib(self.total());
        let detail = if needed <= HOLE {
            format!(
                "it needs {} at {address:#x} and there are {have} MiB; -m {} would do",
                amount(size),
                mib_up(needed)
            )
        } else {
            format!(
                "it needs {} at {address:#x}, which is more than the {} MiB below the device hole",
                amount(size),
                mib(HOLE)
            )
        };
        BootError::TooLarge { what: what.to_owned(), detail }
    }
}

impl Ram for PhysicalMap {
    fn ranges(&self) -> Vec<(Gpa, u64)> {
        // Without regard to what a board lays over the holes below 1 MiB.
        self.ram().regions().iter().map(|region| (region.gpa, region.len)).collect()
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        // The inherent method.
        PhysicalMap::write(self, gpa, bytes).is_ok()
    }
}

/// Where RAM ends at the latest and the hole for devices begins.
pub(crate) const HOLE: u64 = memory::ram::HOLE_START;

/// Whole MiB in `bytes`.
pub(crate) fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

/// `bytes` in MiB, rounded up.
pub(crate) fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// A size as a person reads it.
pub(crate) fn amount(bytes: u64) -> String {
    if bytes < 1 << 20 {
        format!("{bytes} bytes")
    } else {
        format!("{}.{} MiB", bytes >> 20, ((bytes & 0xf_ffff) * 10) >> 20)
    }
}

/// A length as a `u64`; lossless on every host Vitrine runs on.
pub(crate) fn to_u64(length: usize) -> u64 {
    length.try_into().unwrap_or(u64::MAX)
}

/// RAM for tests: one range from 0, and nothing behind it.
#[cfg(test)]
pub(crate) struct TestRam(std::cell::RefCell<Vec<u8>>);

#[cfg(test)]
impl TestRam {
    pub(crate) fn new(mib: usize) -> Self {
        Self(vec![0; mib << 20].into())
    }

    pub(crate) fn bytes(&self, gpa: u64, length: usize) -> Vec<u8> {
        let start = usize::try_from(gpa).unwrap();
        self.0.borrow()[start..start + length].to_vec()
    }

    pub(crate) fn u32(&self, gpa: u64) -> u32 {
        u32::from_le_bytes(self.bytes(gpa, 4).try_into().unwrap())
    }

    pub(crate) fn u64(&self, gpa: u64) -> u64 {
        u64::from_le_bytes(self.bytes(gpa, 8).try_into().unwrap())
    }

    pub(crate) fn string(&self, gpa: u64) -> String {
        let bytes = self.bytes(gpa, 4096);
        String::from_utf8(bytes.split(|b| *b == 0).next().unwrap().to_vec()).unwrap()
    }
}

#[cfg(test)]
impl Ram for TestRam {
    fn ranges(&self) -> Vec<(Gpa, u64)> {
        vec![(Gpa(0), to_u64(self.0.borrow().len()))]
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> bool {
        let mut ram = self.0.borrow_mut();
        let Some(end) = gpa.0.checked_add(to_u64(bytes.len())) else { return false };
        if end > to_u64(ram.len()) {
            return false;
        }
        let start = usize::try_from(gpa.0).unwrap();
        ram[start..start + bytes.len()].copy_from_slice(bytes);
        true
    }
}
