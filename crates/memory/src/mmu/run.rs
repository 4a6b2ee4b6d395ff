//! Runs of host memory for string instructions.

use super::{MemoryFault, Mmu, Origin};
use crate::hostmem::HostAccess;
use crate::map::Page;
use crate::observe::{Record, What};
use crate::tlb::RECORD;
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
    /// Where it begins.
    gva: Gva,
    /// Records are to be made of what is accessed.
    records: bool,
}

impl Mmu {
    /// The plain memory from `gva` to the end of its page, for string instructions: `None` when the access must go
    /// element by element (MMIO, ROM writes, code page when writing, watched but for records). Current space.
    ///
    /// # Errors
    /// The fault that an access to `gva` raises.
    pub fn run(&mut self, origin: Origin, gva: Gva, write: bool) -> Result<Option<HostRun>, MemoryFault> {
        let entry = self.entry(gva);
        let len = (x86::PAGE_SIZE - gva.offset()) as usize;
        if if write { entry.write } else { entry.read }.hits(gva, 1) {
            let hva = Hva(gva.0.wrapping_add(entry.addend));
            return Ok(Some(HostRun { hva, len, writable: write, gva, records: false }));
        }
        let hit = self.lookup(origin, self.space, gva, if write { Want::Write } else { Want::Read })?;
        Ok(match hit.memory {
            Page::Ram(hva) | Page::Rom(hva) if hit.flags == 0 || hit.flags == RECORD && self.records => {
                let (hva, gva) = (hva.wrapping_add(gva.offset()), hit.gva);
                Some(HostRun { hva, len, writable: write, gva, records: hit.flags == RECORD })
            }
            _ => None,
        })
    }

    /// [`HostRun::copy_elements_to`], with records of it where they are wanted.
    pub fn copy_run<T: Scalar + Into<u64>>(&mut self, origin: Origin, from: &HostRun, to: &HostRun, n: usize) {
        if !from.records && !to.records {
            return from.copy_elements_to::<T>(to, n);
        }
        self.run_recorded(origin, n, |i, records| {
            let Some(value) = from.get::<T>(i) else { return };
            if from.records {
                records.push(from.record(origin, i, value, None));
            }
            to.put(origin, i, value, records);
        });
    }

    /// [`HostRun::fill`], with records of it where they are wanted.
    pub fn fill_run<T: Scalar + Into<u64>>(&mut self, origin: Origin, to: &HostRun, value: T, n: usize) {
        if !to.records {
            return to.fill(value, n);
        }
        self.run_recorded(origin, n, |i, records| to.put(origin, i, value, records));
    }

    /// Does `step` for each of `n` elements, and hands over the records that it makes.
    fn run_recorded(&self, origin: Origin, n: usize, mut step: impl FnMut(usize, &mut Vec<Record>)) {
        let mut records = Vec::new();
        for i in 0..n {
            step(i, &mut records);
        }
        self.recorded(origin, &records);
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

    /// Whether records are to be made of what is accessed.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.records
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

    /// Writes the element at index `i`, if it lies whole in the run; makes a record of it if that is wanted.
    fn put<T: Scalar + Into<u64>>(&self, origin: Origin, i: usize, value: T, records: &mut Vec<Record>) {
        if let Some(before) = self.get::<T>(i).filter(|_| self.writable) {
            // SAFETY: the run holds that element of RAM, by its invariant.
            unsafe { T::store(self.hva.0, (i * size_of::<T>()) as u64, value) };
            if self.records {
                records.push(self.record(origin, i, before, Some(value)));
            }
        }
    }

    /// The record of an access to the element at index `i`, which was `before`; `after`: it was written.
    fn record<T: Into<u64>>(&self, origin: Origin, i: usize, before: T, after: Option<T>) -> Record {
        let (rip, at, size) = (Gva(origin.rip), (i * size_of::<T>()) as u64, size_of::<T>() as u32);
        Record {
            what: What::new(rip.offset() as u16, 0, size, 0, after.is_some(), origin.cpl != 0),
            budget: 0,
            page: rip.page().0,
            gva: self.gva.0.wrapping_add(at),
            hva: self.hva.0.wrapping_add(at),
            before: before.into(),
            after: after.map_or(0, Into::into),
        }
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
