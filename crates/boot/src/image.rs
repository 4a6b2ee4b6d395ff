//! Files that go into guest memory. Their contents are input: every offset is checked against the file's length, and
//! nothing is allocated because a file says so.

use crate::BootError;
use crate::ram::{Ram, to_u64};
use memory::Gpa;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes moved at a time.
const CHUNK: usize = 1 << 17;

/// An open kernel file.
#[derive(Debug)]
pub(crate) struct Image {
    name: String,
    file: File,
    len: u64,
}

impl Image {
    /// Opens `path`, which must be a regular file: kernels are not read in order.
    pub(crate) fn open(path: &Path) -> Result<Self, BootError> {
        let name = path.display().to_string();
        let read = |source| BootError::Read { file: name.clone(), source };
        let file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if metadata.is_dir() {
            return Err(read(io::ErrorKind::IsADirectory.into()));
        }
        if !metadata.is_file() {
            return Err(BootError::Bad { file: name, what: "it is not a regular file".into() });
        }
        if metadata.len() == 0 {
            return Err(BootError::Bad { file: name, what: "it is empty".into() });
        }
        Ok(Self { name, file, len: metadata.len() })
    }

    /// The file's name as the user gave it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Bytes in the file.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// What is wrong with this file, as an error.
    pub(crate) fn bad(&self, what: impl Into<String>) -> BootError {
        BootError::Bad { file: self.name.clone(), what: what.into() }
    }

    /// An error unless the file has the `size` bytes at `offset` that make up `what`.
    pub(crate) fn check(&self, what: &str, offset: u64, size: u64) -> Result<(), BootError> {
        match offset.checked_add(size) {
            Some(end) if end <= self.len => Ok(()),
            Some(end) => {
                Err(self.bad(format!("it is truncated: {what} ends at byte {end}, the file has {} bytes", self.len)))
            }
            None => {
                Err(self.bad(format!("{what} is said to have {size:#x} bytes at byte {offset:#x}, which no file has")))
            }
        }
    }

    /// The first bytes of the file, up to `limit`.
    pub(crate) fn head(&self, limit: u64) -> Result<Vec<u8>, BootError> {
        self.bytes("the header", 0, self.len.min(limit))
    }

    /// The `size` bytes at `offset`. For headers; the caller bounds `size`.
    pub(crate) fn bytes(&self, what: &str, offset: u64, size: u64) -> Result<Vec<u8>, BootError> {
        self.check(what, offset, size)?;
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| self.bad(format!("{what} is too large")))?];
        self.read_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Puts the `size` bytes at `offset` into guest memory at `gpa`.
    pub(crate) fn load(&self, ram: &dyn Ram, what: &str, offset: u64, size: u64, gpa: Gpa) -> Result<(), BootError> {
        self.check(what, offset, size)?;
        let mut chunk = vec![0; CHUNK];
        let mut done = 0;
        while done < size {
            let length = usize::try_from(size - done).unwrap_or(CHUNK).min(CHUNK);
            let Some(part) = chunk.get_mut(..length) else { break };
            self.read_at(part, offset + done)?;
            ram.put(&self.name, gpa.wrapping_add(done), part)?;
            done += to_u64(length);
        }
        Ok(())
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), BootError> {
        self.file.read_exact_at(bytes, offset).map_err(|source| BootError::Read { file: self.name.clone(), source })
    }
}

/// Zeroes guest memory.
pub(crate) fn clear(ram: &dyn Ram, what: &str, gpa: Gpa, size: u64) -> Result<(), BootError> {
    let zeros = vec![0; CHUNK];
    let mut done = 0;
    while done < size {
        let length = usize::try_from(size - done).unwrap_or(CHUNK).min(CHUNK);
        ram.put(what, gpa.wrapping_add(done), zeros.get(..length).unwrap_or_default())?;
        done += to_u64(length);
    }
    Ok(())
}

/// Reads a whole file (or pipe), but not more than `limit` bytes, which is the room that guest memory has at most:
/// a larger one is answered with the number of bytes it has at least.
pub(crate) fn read_whole(path: &Path, limit: u64) -> Result<Result<Vec<u8>, u64>, BootError> {
    let read = |source| BootError::Read { file: path.display().to_string(), source };
    let file = File::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    if length > limit {
        return Ok(Err(length));
    }
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(read)?;
    if to_u64(bytes.len()) > limit {
        return Ok(Err(to_u64(bytes.len())));
    }
    if bytes.is_empty() {
        return Err(BootError::Bad { file: path.display().to_string(), what: "it is empty".into() });
    }
    Ok(Ok(bytes))
}
