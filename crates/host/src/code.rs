//! Executable memory that is never writable and executable at once.
//!
//! Shared anonymous memory, mapped twice: code is written through one view and executed through the other. The whole
//! range is reserved at once and its pages come as they are written, so a small program costs a few pages and a pointer
//! into the executable view stays good until [`CodeBuffer::seek`]. (Not a memfd: Linux `perf` looks for names of
//! generated code only where memory is anonymous.)

use crate::{Error, signal};
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, MremapFlags, ProtFlags, mmap_anonymous, mprotect, mremap, munmap};
use std::ffi::c_void;
use std::ops::Range;
use std::ptr::{NonNull, null_mut};

/// Code starts at multiples of this, so that a short stub touches as few cache lines as it can.
const ALIGN: usize = 32;

/// A bounded region of executable memory. Code is written to two places in it, so that what is rarely run takes no room
/// between what often is.
#[derive(Debug)]
pub struct CodeBuffer {
    writable: Mapping,
    executable: Mapping,
    /// What is left of the place that is written.
    hot: Range<usize>,
    /// And of that for code that is rarely run.
    cold: Range<usize>,
    /// Tells the signal handler that faults in the executable view are ours, as long as it lives.
    _region: signal::Region,
}

impl CodeBuffer {
    /// Reserves `capacity` bytes, rounded up to pages, for stubs whose faults come back as a [`signal::Frame`] tells.
    pub fn new(capacity: usize) -> Result<Self, Error> {
        Self::with_faults(capacity, signal::Kind::Stubs)
    }

    /// Reserves `capacity` bytes, rounded up to pages, for translated code. While it runs RSP is the address of a
    /// [`signal::Landing`], which gets its faults.
    pub fn translated(capacity: usize) -> Result<Self, Error> {
        Self::with_faults(capacity, signal::Kind::Translated)
    }

    fn with_faults(capacity: usize, kind: signal::Kind) -> Result<Self, Error> {
        let capacity = capacity.next_multiple_of(4096);
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing else is affected.
        let writable = Mapping::new(unsafe { mmap_anonymous(null_mut(), capacity, protection, flags) }, capacity)?;
        // SAFETY: an old size of 0 makes a second mapping of the same shared pages and leaves the first (mremap(2)).
        let second = unsafe { mremap(writable.pointer.as_ptr().cast(), 0, capacity, MremapFlags::MAYMOVE) };
        let executable = Mapping::new(second, capacity)?;
        let protection = MprotectFlags::READ | MprotectFlags::EXEC;
        // SAFETY: the range was just mapped, and nobody else knows of it.
        unsafe { mprotect(executable.pointer.as_ptr().cast(), capacity, protection) }.map_err(refused)?;
        let region = signal::Region::new(executable.pointer.as_ptr().addr(), capacity, kind)?;
        Ok(Self { writable, executable, hot: 0..capacity, cold: capacity..capacity, _region: region })
    }

    /// Appends code and returns its offset; `None` when there is no room for it.
    pub fn append(&mut self, code: &[u8]) -> Option<usize> {
        let Range { start, end } = self.hot;
        let used = start.checked_add(code.len()).filter(|&used| used <= end)?;
        self.write(start, code);
        self.hot.start = used.next_multiple_of(ALIGN).min(end);
        Some(start)
    }

    /// The same for code that is rarely run.
    pub fn append_cold(&mut self, code: &[u8]) -> Option<usize> {
        let Range { start, end } = self.cold;
        self.cold.start = start.checked_add(code.len()).filter(|&used| used <= end)?;
        self.write(start, code);
        Some(start)
    }

    /// Writes `code` to offset `start`. All of it must lie in the mapping, and nothing there be running.
    fn write(&mut self, start: usize, code: &[u8]) {
        assert!(start.checked_add(code.len()).is_some_and(|end| end <= self.writable.len));
        // SAFETY: the range lies in the mapping, which this value owns and nobody else writes.
        unsafe { self.writable.pointer.add(start).copy_from_nonoverlapping(NonNull::from(code).cast(), code.len()) };
    }

    /// Overwrites code at `offset`. False: not all of it lies in the buffer, and nothing was written.
    ///
    /// Nothing may be running the bytes: the thread that does must be the one that calls this.
    pub fn patch(&mut self, offset: usize, code: &[u8]) -> bool {
        let fits = offset.checked_add(code.len()).is_some_and(|end| end <= self.writable.len);
        if fits {
            self.write(offset, code);
        }
        fits
    }

    /// Bytes that fit in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.writable.len
    }

    /// Bytes that still fit in each of the two places.
    #[must_use]
    pub fn room(&self) -> [usize; 2] {
        [self.hot.len(), self.cold.len()]
    }

    /// Goes on writing to `hot`, which begins where code may, and to `cold` what is rarely run. What was there may not run
    /// any more.
    pub fn seek(&mut self, hot: Range<usize>, cold: Range<usize>) {
        (self.hot, self.cold) = (hot, cold);
        // Code that comes here next is written through another address than it is fetched from: a serializing
        // instruction must come in between (SDM vol. 3A, 10.1.3).
        let _ = crate::cpuid(0, 0);
    }

    /// Forgets all code. Nothing of it may run afterwards.
    pub fn clear(&mut self) {
        let capacity = self.capacity();
        self.seek(0..capacity, capacity..capacity);
    }

    /// Where code comes next that is not rarely run.
    #[must_use]
    pub fn used(&self) -> usize {
        self.hot.start
    }

    /// Where code comes next that is rarely run.
    #[must_use]
    pub fn cold(&self) -> usize {
        self.cold.start
    }

    /// What is there, as far as `range` lies in the buffer.
    #[must_use]
    pub fn bytes(&self, range: Range<usize>) -> &[u8] {
        let Range { start, end } = range;
        let end = end.min(self.capacity());
        let start = start.min(end);
        // SAFETY: the range lies in the mapping, which lives as long as the buffer; to write to it takes `&mut self`.
        unsafe { std::slice::from_raw_parts(self.start().add(start), end - start) }
    }

    /// The executable view's first byte.
    #[inline(always)]
    #[must_use]
    pub fn start(&self) -> *const u8 {
        self.executable.pointer.as_ptr()
    }
}

/// A mapping, unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    pointer: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory that belongs to its owner, whichever thread that is on.
unsafe impl Send for Mapping {}

impl Mapping {
    /// What the kernel answered to a request to map `len` bytes.
    fn new(pointer: rustix::io::Result<*mut c_void>, len: usize) -> Result<Self, Error> {
        let pointer = NonNull::new(pointer.map_err(refused)?.cast()).ok_or(refused(Errno::NOMEM))?;
        Ok(Self { pointer, len })
    }
}

fn refused(errno: Errno) -> Error {
    Error::CodeMemory(errno.into())
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `CodeBuffer::new` and no reference to it outlives its owner. An error would
        // only leak it.
        let _ = unsafe { munmap(self.pointer.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_seen_through_the_executable_view() {
        let mut buffer = CodeBuffer::new(5000).unwrap();
        let first = buffer.append(&[1, 2, 3]).unwrap();
        let second = buffer.append(&[4]).unwrap();
        assert_eq!((first, second), (0, ALIGN));
        assert_eq!((buffer.bytes(0..3), buffer.bytes(second..second + 1)), (&[1, 2, 3][..], &[4][..]));
        assert!(buffer.bytes(8190..9000).len() == 2 && buffer.bytes(9000..9001).is_empty());
    }

    #[test]
    fn capacity_is_a_bound() {
        let mut buffer = CodeBuffer::new(4096).unwrap();
        assert_eq!(buffer.append(&[0; 4097]), None);
        assert_eq!(buffer.append(&[0; 4090]), Some(0));
        assert_eq!(buffer.append(&[0; 1]), None);
        buffer.clear();
        assert_eq!(buffer.append(&[0; 4096]), Some(0));
    }

    #[test]
    fn code_that_is_rarely_run_lies_apart() {
        let mut buffer = CodeBuffer::translated(3 * 4096).unwrap();
        buffer.seek(0..4096, 4096..3 * 4096);
        assert_eq!((buffer.append(&[1; 4000]), buffer.append_cold(&[2; 9])), (Some(0), Some(4096)));
        assert_eq!((buffer.append(&[1; 97]), buffer.append_cold(&[2; 4096])), (None, Some(4105)));
        assert_eq!((buffer.used(), buffer.cold(), buffer.room()), (4000, 8201, [96, 4087]));
        assert!(buffer.patch(12_287, &[3]) && !buffer.patch(12_287, &[3, 3]));
        buffer.seek(64..1000, 1000..1001);
        assert_eq!((buffer.append(&[1]), buffer.append_cold(&[2; 2])), (Some(64), None));
        assert_eq!([63, 64, 4105, 12_287].map(|at| buffer.bytes(at..at + 1)[0]), [1, 1, 2, 3]);
    }
}
