//! Names for Linux `perf`: which host code was made of which guest code.
//!
//! In two forms, after `tools/perf/Documentation/` of Linux:
//! - the map (`jit-interface.txt`): lines `START SIZE name` in `/tmp/perf-PID.map`. When code memory is flushed, other
//!   code comes to the same addresses; the map then has both, and `perf` cannot tell when which was there;
//! - the dump (`jitdump-specification.txt`): `jit-PID.dump` with time stamps and the code itself, for
//!   `perf record -k mono` and `perf inject --jit`. There a name holds from its time on. What is patched later (jumps
//!   made straight) is not recorded again.
//!
//! The name is the guest address of the region's entry as it was first reached: all mappings of a page share its code,
//! so for another one it is not theirs. There are no symbols yet that it could be given with.

use crate::Error;
use memory::Gva;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::process::getpid;
use rustix::thread::gettid;
use rustix::time::{ClockId, clock_gettime};
use std::ffi::c_void;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

/// "JiTD": its byte order is the file's.
const MAGIC: u32 = 0x4a69_5444;
const VERSION: u32 = 1;
/// `EM_X86_64`.
const MACHINE: u32 = 62;
/// Bytes of the file's header.
const HEADER: u32 = 40;
/// `JIT_CODE_LOAD`.
const LOAD: u32 = 0;
/// Bytes of such a record before the name.
const LOAD_FIXED: usize = 56;
/// `JIT_CODE_CLOSE`: a record without more.
const CLOSE: u32 = 3;
/// Bytes of the mapping that has `perf` take notice of the dump.
const NOTICE: usize = 4096;

/// Which files are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The map.
    pub map: bool,
    /// The dump.
    pub dump: bool,
}

impl Wanted {
    /// Whether any is.
    #[must_use]
    pub fn any(self) -> bool {
        self.map || self.dump
    }
}

/// The files, shared by all vCPUs.
#[derive(Debug, Default)]
pub struct Perf(Mutex<Files>);

#[derive(Debug, Default)]
struct Files {
    map: Option<Output>,
    dump: Option<Dump>,
}

#[derive(Debug)]
struct Output {
    file: File,
    path: PathBuf,
}

impl Output {
    fn create(path: PathBuf) -> Result<Self, Error> {
        // Both names can be guessed, and one is in a folder where anybody may put links.
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).custom_flags(libc::O_NOFOLLOW);
        match options.open(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(error) => Err(Error::Profile(path, error)),
        }
    }

    /// Writes `bytes`. False: it cannot, which is said once.
    fn write(&mut self, bytes: &[u8]) -> bool {
        let result = self.file.write_all(bytes);
        if let Err(error) = &result {
            // This target is always shown.
            tracing::warn!(target: "machine", "no more names for perf: {} cannot be written: {error}", self.path.display());
        }
        result.is_ok()
    }
}

#[derive(Debug)]
struct Dump {
    output: Output,
    /// Records so far.
    index: u64,
    _notice: Notice,
}

/// The beginning of the dump, mapped executable: that is how `perf` learns of it.
#[derive(Debug)]
struct Notice(*mut c_void);

// SAFETY: nobody reads or writes through the pointer; it is kept to unmap what is there.
unsafe impl Send for Notice {}

impl Notice {
    fn new(file: &File) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::EXEC, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice, which nobody uses.
        Ok(Self(unsafe { mmap(null_mut(), NOTICE, protection, flags, file, 0) }?))
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        // SAFETY: `new` made the mapping, and nothing refers to it.
        let _ = unsafe { munmap(self.0, NOTICE) };
    }
}

impl Perf {
    /// Creates the files that are wanted: the map in `/tmp`, where `perf` looks for it, the dump in the current folder.
    ///
    /// # Errors
    /// One cannot be created, or (the dump) not mapped executable.
    pub fn create(wanted: Wanted) -> Result<Self, Error> {
        Self::create_in(wanted, Path::new("/tmp"), Path::new("."))
    }

    fn create_in(wanted: Wanted, map: &Path, dump: &Path) -> Result<Self, Error> {
        let pid = getpid().as_raw_pid();
        let map = wanted.map.then(|| Output::create(map.join(format!("perf-{pid}.map")))).transpose()?;
        let dump = wanted.dump.then(|| Dump::create(dump.join(format!("jit-{pid}.dump")))).transpose()?;
        Ok(Self(Mutex::new(Files { map, dump })))
    }

    /// Notes that `code` is at host addresses `starts`, made of the guest's code at `gva`: what is often run, and what is
    /// not.
    pub fn region(&self, gva: Gva, code: [&[u8]; 2], starts: [u64; 2]) {
        for ((code, start), suffix) in
            code.into_iter().zip(starts).zip(["", ".cold"]).filter(|((code, _), _)| !code.is_empty())
        {
            self.add(&format!("guest:{:x}{suffix}", gva.0), start, code);
        }
    }

    /// Notes the code that all regions share.
    pub fn shared(&self, start: u64, code: &[u8]) {
        self.add("vitrine:thunks", start, code);
    }

    fn add(&self, name: &str, start: u64, code: &[u8]) {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let line = format!("{start:x} {:x} {name}\n", code.len());
        files.map.take_if(|map| !map.write(line.as_bytes()));
        files.dump.take_if(|dump| !dump.load(name, start, code));
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Some(dump) = &mut self.dump {
            let mut record = Vec::new();
            prefix(&mut record, CLOSE, 16);
            dump.output.write(&record);
        }
    }
}

impl Dump {
    fn create(path: PathBuf) -> Result<Self, Error> {
        let mut output = Output::create(path)?;
        let mut header = Vec::new();
        for word in [MAGIC, VERSION, HEADER, MACHINE, 0, getpid().as_raw_pid().cast_unsigned()] {
            header.extend_from_slice(&word.to_ne_bytes());
        }
        header.extend_from_slice(&now().to_ne_bytes());
        // No flags: time stamps are those of CLOCK_MONOTONIC.
        header.extend_from_slice(&0u64.to_ne_bytes());
        let notice = output.file.write_all(&header).and_then(|()| Notice::new(&output.file));
        match notice {
            Ok(notice) => Ok(Self { output, index: 0, _notice: notice }),
            Err(error) => Err(Error::Profile(output.path, error)),
        }
    }

    fn load(&mut self, name: &str, start: u64, code: &[u8]) -> bool {
        let total = LOAD_FIXED + name.len() + 1 + code.len();
        let mut record = Vec::with_capacity(total);
        prefix(&mut record, LOAD, total as u32);
        for word in [getpid().as_raw_pid(), gettid().as_raw_pid()] {
            record.extend_from_slice(&word.to_ne_bytes());
        }
        for word in [start, start, code.len() as u64, self.index] {
            record.extend_from_slice(&word.to_ne_bytes());
        }
        record.extend_from_slice(name.as_bytes());
        record.push(0);
        record.extend_from_slice(code);
        self.index += 1;
        self.output.write(&record)
    }
}

/// What every record begins with.
fn prefix(record: &mut Vec<u8>, id: u32, total: u32) {
    record.extend_from_slice(&id.to_ne_bytes());
    record.extend_from_slice(&total.to_ne_bytes());
    record.extend_from_slice(&now().to_ne_bytes());
}

/// Nanoseconds of the clock that `perf record -k mono` takes.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

#[cfg(test)]
mod tests;
