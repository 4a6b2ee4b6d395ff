//! Devices' own accesses to memory: DMA.
//!
//! They see guest physical addresses as they are: no paging, no A20, no IOMMU. RAM and ROM can be read, RAM be written;
//! another device's registers are out of reach. Whoever watches is told of what was read and written. Loaders and
//! debuggers use [`PhysicalMap`] itself, and nobody is told of that.

use crate::map::MapError;
use crate::observe::{self, Access, AccessKind, Agent, Observer, REPORTED, wide};
use crate::{Gpa, PhysicalMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use x86::PAGE_SIZE;

/// A device's way to memory.
#[derive(Clone, Debug)]
pub struct Dma {
    map: Arc<PhysicalMap>,
    device: &'static str,
}

/// The observer of all DMA, if there is one.
#[derive(Default)]
pub(crate) struct Audience {
    /// Whether there is one: nothing else is looked at where there is none.
    there: AtomicBool,
    observer: RwLock<Option<Arc<dyn Observer>>>,
}

impl Audience {
    pub fn set(&self, observer: Option<Arc<dyn Observer>>) {
        let mut place = self.observer.write().unwrap_or_else(PoisonError::into_inner);
        self.there.store(observer.is_some(), Ordering::Release);
        *place = observer;
    }

    fn get(&self) -> Option<Arc<dyn Observer>> {
        if !self.there.load(Ordering::Acquire) {
            return None;
        }
        self.observer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Debug for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Audience").field(&self.there).finish()
    }
}

impl Dma {
    /// For the device of this name.
    #[must_use]
    pub fn new(map: Arc<PhysicalMap>, device: &'static str) -> Self {
        Self { map, device }
    }

    /// Reads RAM and ROM.
    ///
    /// # Errors
    /// As [`PhysicalMap::read`].
    pub fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), MapError> {
        let Some(observer) = self.map.dma_audience().get() else { return self.map.read(gpa, bytes) };
        self.pieces(&*observer, gpa, bytes.len(), |at, done, len, wanted| {
            let piece = bytes.get_mut(done..done + len).unwrap_or_default();
            let (made, result) = made(len, self.map.read(at, piece));
            if wanted {
                self.tell(&*observer, AccessKind::DmaRead, at, piece.get(..made).unwrap_or_default(), None);
            }
            result
        })
    }

    /// Writes RAM. Decoded code that is hit is invalidated on every vCPU.
    ///
    /// # Errors
    /// As [`PhysicalMap::write`].
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), MapError> {
        let Some(observer) = self.map.dma_audience().get() else { return self.map.write(gpa, bytes) };
        self.pieces(&*observer, gpa, bytes.len(), |at, done, len, wanted| {
            let piece = bytes.get(done..done + len).unwrap_or_default();
            if !wanted {
                return self.map.write(at, piece);
            }
            let mut old = [0; REPORTED];
            // What cannot be read cannot be written either, and is cut off below.
            let _ = self.map.read(at, old.get_mut(..len).unwrap_or_default());
            let (made, result) = made(len, self.map.write(at, piece));
            let old = wide(old.get(..made).unwrap_or_default());
            self.tell(&*observer, AccessKind::DmaWrite, at, piece.get(..made).unwrap_or_default(), Some(old));
            result
        })
    }

    /// Gives `access` pieces that do not cross a page, none of which is larger than what is reported at once where
    /// `observer` wants that: where it is, the bytes before it, its length, and whether it is wanted.
    fn pieces(
        &self,
        observer: &dyn Observer,
        gpa: Gpa,
        len: usize,
        mut access: impl FnMut(Gpa, usize, usize, bool) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        let (mut done, mut result) = (0, Ok(()));
        while done < len && result.is_ok() {
            let page = gpa.wrapping_add(done as u64);
            let end = len.min(done + (PAGE_SIZE - page.offset()) as usize);
            let wanted = observer.wants_dma(page.page());
            let most = if wanted { REPORTED } else { end - done };
            while done < end && result.is_ok() {
                let piece = most.min(end - done);
                result = access(gpa.wrapping_add(done as u64), done, piece, wanted).map_err(|error| error.after(done));
                done += piece;
            }
        }
        observe::heed(observer, &self.map);
        result
    }

    /// Tells `observer` of the bytes that were read or written at `gpa`, if there are any.
    fn tell(&self, observer: &dyn Observer, kind: AccessKind, gpa: Gpa, bytes: &[u8], old: Option<u128>) {
        if !bytes.is_empty() {
            let (agent, hva) = (Agent::Device(self.device), self.map.hva_of(gpa));
            let (size, value) = (bytes.len() as u8, wide(bytes));
            observer.access(&Access { kind, agent, gva: None, gpa, hva, size, value, old });
        }
    }
}

/// How many of `len` bytes were accessed.
fn made(len: usize, result: Result<(), MapError>) -> (usize, Result<(), MapError>) {
    let made = match &result {
        Ok(()) => len,
        Err(MapError::NotMemory { done, .. }) => *done,
        Err(_) => 0,
    };
    (made, result)
}

#[cfg(test)]
mod tests;
