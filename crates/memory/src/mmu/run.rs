//! Runs of host memory for string instructions.

use super::{MemoryFault, Mmu, Origin};
use crate::hostmem::HostAccess;
use crate::map::Page;
use crate::walk::Want;
use crate::{Gva, Hva, Scalar};

/// A run of host memory within one guest page that may be read, or read and written, at once.
///
/// All methods work upwards from the run's start (RFLAGS.DF = 0). Instructions that work downwards go element by
/// element. Counts beyond the run are cut to what fits.
#[derive(Clone, Copy, Debug)]
pub struct HostRun {
    /// Invariant: `len` bytes from here are guest memory, and RAM if the run was asked for writing. Guest memory is
    /// never unmapped, so this needs no lifetime.
    hva: Hva,
    len: usize,
    writable: bool,
}

impl Mmu {
    /// The plain memory from `gva` to the end of its page, for string instructions: `None` when the access must go
    /// element by element (MMIO, ROM writes, code page when writing, watched). Current space.
    ///
    /// # Errors
    /// The fault that an access to `gva` raises.
    pub fn run(&mut self, origin: Origin, gva: Gva, write: bool) -> Result<Option<HostRun>, MemoryFault> {
        let entry = self.entry(gva);
        let len = (x86::PAGE_SIZE - gva.offset()) as usize;
        if if write { entry.write } else { entry.read }.hits(gva, 1) {
            return Ok(Some(HostRun { hva: Hva(gva.0.wrapping_add(entry.addend)), len, writable: write }));
        }
        let hit = self.lookup(origin, self.space, gva, if write { Want::Write } else { Want::Read })?;
        Ok(match hit.memory {
            Page::Ram(hva) | Page::Rom(hva) if hit.flags == 0 => {
                Some(HostRun { hva: hva.wrapping_add(gva.offset()), len, writable: write })
            }
            _ => None,
        })
    }
}

impl HostRun {
    /// Bytes in the run.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the run is empty (it never is).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many elements of type `T` lie whole in the run.
    #[must_use]
    pub fn elements<T: Scalar>(&self) -> usize {
        self.len / size_of::<T>()
    }

    /// Copies `n` bytes to the start of `to`, ascending byte order with the overlap semantics of `rep movsb` (so
    /// overlapping forward copies replicate).
    pub fn copy_to(&self, to: &HostRun, n: usize) {
        self.copy_elements_to::<u8>(to, n);
    }

    /// Copies `n` elements to the start of `to` one after the other, as `rep movs` of that size does. Nothing
    /// happens if `to` was not asked for writing.
    pub fn copy_elements_to<T: Scalar>(&self, to: &HostRun, n: usize) {
        let n = n.min(self.elements::<T>()).min(to.elements::<T>());
        if to.writable {
            // SAFETY: both runs hold `n` elements, by their invariant.
            unsafe { <T as HostAccess>::copy_up(self.hva.0, to.hva.0, n) };
        }
    }

    /// Fills `n` elements. Nothing happens if the run was not asked for writing.
    pub fn fill<T: Scalar>(&self, value: T, n: usize) {
        let n = n.min(self.elements::<T>());
        if self.writable {
            // SAFETY: the run holds `n` elements of RAM, by its invariant.
            unsafe { <T as HostAccess>::fill_up(self.hva.0, value, n) };
        }
    }

    /// The element at index `i`, if it lies whole in the run.
    #[inline]
    #[must_use]
    pub fn get<T: Scalar>(&self, i: usize) -> Option<T> {
        // SAFETY: the run holds that element, by its invariant.
        (i < self.elements::<T>()).then(|| unsafe { T::load(self.hva.0, (i * size_of::<T>()) as u64) })
    }

    /// How many of the first `n` elements come before the first one that is equal to `value` (`equal` true) or
    /// differs from it (`equal` false): `n` if there is none. For `repne scas` and `repe scas`.
    #[must_use]
    pub fn find<T: Scalar>(&self, value: T, equal: bool, n: usize) -> usize {
        let n = n.min(self.elements::<T>());
        (0..n).position(|i| self.get(i).is_some_and(|x: T| (x == value) == equal)).unwrap_or(n)
    }

    /// How many of the first `n` pairs of elements come before the first pair that is equal (`equal` true) or
    /// differs (`equal` false): `n` if there is none. For `repne cmps` and `repe cmps`.
    #[must_use]
    pub fn find_pair<T: Scalar>(&self, other: &HostRun, equal: bool, n: usize) -> usize {
        let n = n.min(self.elements::<T>()).min(other.elements::<T>());
        let decides = |i: usize| (self.get::<T>(i) == other.get::<T>(i)) == equal;
        (0..n).position(decides).unwrap_or(n)
    }
}
