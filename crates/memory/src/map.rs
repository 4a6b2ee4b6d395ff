//! The guest's physical address space: RAM, ROM, MMIO, and nothing.
//!
//! A sorted list of sections that do not overlap; what is added later lies on top of what was there. It is built
//! once and then shared. Unassigned addresses read as all ones and ignore writes, as an unclaimed bus cycle does.
//! Memory types (MTRR, PAT, cache disable) are left out: nothing in this machine can tell them apart.

use crate::code::CodePages;
use crate::dma::Audience;
use crate::hostmem;
use crate::ram::{GuestRam, RamError, RamRegion, map_forever};
use crate::witness::{DeviceAccess, Place, Seat};
use crate::{Gpa, Hva, Observer};
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_memory::GuestMemoryMmap;

/// A device's memory-mapped registers.
pub trait Mmio: Send + Sync {
    /// Reads `size` (1, 2, 4 or 8) bytes at `offset` into the region, on behalf of vCPU `cpu`.
    fn read(&self, cpu: usize, offset: u64, size: usize) -> u64;

    /// Writes the low `size` (1, 2, 4 or 8) bytes of `value` at `offset` into the region, on behalf of vCPU `cpu`.
    fn write(&self, cpu: usize, offset: u64, size: usize, value: u64);

    /// What a listing of the address space calls it.
    fn name(&self) -> &str {
        "mmio"
    }
}

/// How often a device was accessed.
#[derive(Debug, Default)]
pub struct Counts {
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Counts {
    /// Counts a read.
    pub fn read(&self) {
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a write.
    pub fn wrote(&self) {
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// How many reads and writes there were.
    #[must_use]
    pub fn get(&self) -> (u64, u64) {
        (self.reads.load(Ordering::Relaxed), self.writes.load(Ordering::Relaxed))
    }
}

/// A device, and how often it was accessed.
struct Device {
    mmio: Arc<dyn Mmio>,
    counts: Counts,
}

/// Why the map could not be made, or an access to it not be done whole.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// A region is empty, or its end is beyond 2^64.
    #[error("a region of {len} bytes at guest physical address {gpa:#x} is empty or wraps", gpa = gpa.0)]
    Range {
        /// Its first address.
        gpa: Gpa,
        /// Its length.
        len: u64,
    },
    /// The host gave no memory.
    #[error(transparent)]
    Memory(#[from] RamError),
    /// The access ran into something that is not memory.
    #[error("guest physical address {gpa:#x} is not memory ({done} bytes before it were done)", gpa = gpa.0)]
    NotMemory {
        /// The first address that is not.
        gpa: Gpa,
        /// How many bytes were done before it.
        done: usize,
    },
}

impl MapError {
    /// The error of an access of which this is a part that comes behind `before` bytes.
    pub(crate) fn after(self, before: usize) -> Self {
        match self {
            Self::NotMemory { gpa, done } => Self::NotMemory { gpa, done: before + done },
            other => other,
        }
    }
}

/// What answers in a section.
#[derive(Clone)]
enum Backing {
    Ram(Hva),
    Rom(Hva),
    /// The device, and the section's offset into the device's region.
    Mmio(Arc<Device>, u64),
}

impl Backing {
    fn advanced(&self, by: u64) -> Self {
        match self {
            Self::Ram(hva) => Self::Ram(hva.wrapping_add(by)),
            Self::Rom(hva) => Self::Rom(hva.wrapping_add(by)),
            Self::Mmio(device, offset) => Self::Mmio(Arc::clone(device), offset + by),
        }
    }
}

/// `start` to `end` (exclusive).
#[derive(Clone)]
struct Section {
    start: u64,
    end: u64,
    backing: Backing,
}

/// What kind of thing a region of the listing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionKind {
    /// RAM, at this host address.
    Ram(Hva),
    /// ROM, at this host address.
    Rom(Hva),
    /// A device.
    Mmio,
}

/// One line of the address space's listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Guest physical addresses, end exclusive.
    pub range: Range<Gpa>,
    /// What it is.
    pub kind: RegionKind,
    /// Its name.
    pub name: String,
}

/// What is behind a whole 4 KiB page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Ram(Hva),
    Rom(Hva),
    /// MMIO, nothing, or a mixture: each access asks the map.
    Io,
}

/// The map from guest physical addresses to what answers there.
pub struct PhysicalMap {
    sections: Vec<Section>,
    ram: GuestRam,
    code: CodePages,
    a20_mask: AtomicU64,
    witness: Seat,
    dma: Audience,
    bus: Mutex<()>,
}

impl PhysicalMap {
    /// A map with nothing but `ram` in it.
    ///
    /// # Errors
    /// The host gives no room for the bitmaps of decoded code.
    pub fn new(ram: GuestRam) -> Result<Self, MapError> {
        let size = ram.size();
        let code = CodePages::new(ram.regions()).map_err(|e| RamError::Host { size: size / 512, source: e.into() })?;
        let section = |region: &RamRegion| Section {
            start: region.gpa.0,
            end: region.gpa.0 + region.len,
            backing: Backing::Ram(region.hva),
        };
        let sections = ram.regions().iter().map(section).collect();
        let (a20_mask, witness, dma) = (AtomicU64::new(u64::MAX), Seat::default(), Audience::default());
        Ok(Self { sections, ram, code, a20_mask, witness, dma, bus: Mutex::default() })
    }

    /// The bus lock, for locked updates that no instruction of the host can do: across two pages, or of a device.
    pub(crate) fn lock_bus(&self) -> MutexGuard<'_, ()> {
        self.bus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `bytes` at `gpa` as memory that the guest can read and execute but not write, over whatever is there.
    ///
    /// # Errors
    /// An impossible range, or the host gives no memory.
    pub fn add_rom(&mut self, gpa: Gpa, bytes: &[u8]) -> Result<(), MapError> {
        let len = bytes.len() as u64;
        let end = gpa.0.checked_add(len).filter(|_| len > 0).ok_or(MapError::Range { gpa, len })?;
        // The offset within the page is the same in both addresses, as a TLB entry needs it.
        let size = (gpa.offset() + len).next_multiple_of(x86::PAGE_SIZE);
        let hva = map_forever(size)?.wrapping_add(gpa.offset());
        // SAFETY: the range was just mapped and belongs to nobody else.
        unsafe { hostmem::write_bytes(hva.0, bytes) };
        self.overlay(Section { start: gpa.0, end, backing: Backing::Rom(hva) });
        Ok(())
    }

    /// Lets `device` answer in `range`, over whatever is there.
    ///
    /// # Errors
    /// An empty range.
    pub fn add_mmio(&mut self, range: Range<Gpa>, device: Arc<dyn Mmio>) -> Result<(), MapError> {
        let (start, end) = (range.start.0, range.end.0);
        if start >= end {
            return Err(MapError::Range { gpa: range.start, len: 0 });
        }
        let device = Arc::new(Device { mmio: device, counts: Counts::default() });
        self.overlay(Section { start, end, backing: Backing::Mmio(device, 0) });
        Ok(())
    }

    fn overlay(&mut self, new: Section) {
        let mut sections = Vec::with_capacity(self.sections.len() + 2);
        for old in self.sections.drain(..) {
            if old.end <= new.start || old.start >= new.end {
                sections.push(old);
                continue;
            }
            if old.start < new.start {
                sections.push(Section { end: new.start, ..old.clone() });
            }
            if old.end > new.end {
                let backing = old.backing.advanced(new.end - old.start);
                sections.push(Section { start: new.end, end: old.end, backing });
            }
        }
        sections.push(new);
        sections.sort_by_key(|section| section.start);
        self.sections = sections;
    }

    /// The section that holds `gpa`, or else where the next one starts (`u64::MAX`: there is none).
    fn section(&self, gpa: u64) -> Result<&Section, u64> {
        let after = self.sections.partition_point(|section| section.start <= gpa);
        match after.checked_sub(1).and_then(|i| self.sections.get(i)) {
            Some(section) if gpa < section.end => Ok(section),
            _ => Err(self.sections.get(after).map_or(u64::MAX, |section| section.start)),
        }
    }

    /// What is behind the page of `gpa`.
    pub(crate) fn page(&self, gpa: Gpa) -> Page {
        let start = gpa.page().0;
        match self.section(start) {
            Ok(section) if section.end - start >= x86::PAGE_SIZE => match section.backing {
                Backing::Ram(hva) => Page::Ram(hva.wrapping_add(start - section.start)),
                Backing::Rom(hva) => Page::Rom(hva.wrapping_add(start - section.start)),
                Backing::Mmio(..) => Page::Io,
            },
            _ => Page::Io,
        }
    }

    /// The host address behind `gpa`, if there is RAM or ROM.
    #[must_use]
    pub fn hva_of(&self, gpa: Gpa) -> Option<Hva> {
        let section = self.section(gpa.0).ok()?;
        match section.backing {
            Backing::Ram(hva) | Backing::Rom(hva) => Some(hva.wrapping_add(gpa.0 - section.start)),
            Backing::Mmio(..) => None,
        }
    }

    /// Where in guest physical memory the RAM or ROM at `hva` is.
    #[must_use]
    pub fn gpa_of(&self, hva: Hva) -> Option<Gpa> {
        self.sections.iter().find_map(|section| match section.backing {
            Backing::Ram(start) | Backing::Rom(start) => {
                let at = hva.0.checked_sub(start.0).filter(|at| *at < section.end - section.start)?;
                Some(Gpa(section.start + at))
            }
            Backing::Mmio(..) => None,
        })
    }

    /// The host address behind `gpa`, if there is RAM, and how many bytes of RAM follow.
    fn ram_at(&self, gpa: u64) -> Option<(Hva, u64)> {
        let section = self.section(gpa).ok()?;
        match section.backing {
            Backing::Ram(hva) => Some((hva.wrapping_add(gpa - section.start), section.end - gpa)),
            _ => None,
        }
    }

    /// Reads RAM and ROM for loaders and debuggers; devices have [`Dma`](crate::Dma). Never reaches a device; A20 does not
    /// apply.
    ///
    /// # Errors
    /// [`MapError::NotMemory`] at the first byte that is neither; the bytes before it have been read.
    pub fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), MapError> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = gpa.wrapping_add(done as u64);
            let stop = MapError::NotMemory { gpa: at, done };
            let Ok(section) = self.section(at.0) else { return Err(stop) };
            let (Backing::Ram(hva) | Backing::Rom(hva)) = section.backing else { return Err(stop) };
            let n = usize::try_from(section.end - at.0).unwrap_or(usize::MAX).min(rest.len());
            if let Some(piece) = rest.get_mut(..n) {
                // SAFETY: the section has at least `n` bytes from here.
                unsafe { hostmem::read_bytes(hva.0 + (at.0 - section.start), piece) };
            }
            done += n;
        }
        Ok(())
    }

    /// Writes RAM for loaders and debuggers; devices have [`Dma`](crate::Dma). Decoded code that is hit is invalidated on
    /// every vCPU. Never reaches a device, does not write ROM; A20 does not apply.
    ///
    /// # Errors
    /// [`MapError::NotMemory`] at the first byte that is not RAM; the bytes before it have been written.
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), MapError> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let at = gpa.wrapping_add(done as u64);
            let Some((hva, left)) = self.ram_at(at.0) else { return Err(MapError::NotMemory { gpa: at, done }) };
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            if let Some(piece) = rest.get(..n) {
                // SAFETY: the section has at least `n` bytes from here.
                unsafe { hostmem::write_bytes(hva.0, piece) };
            }
            self.code.written_range(hva, n as u64);
            done += n;
        }
        Ok(())
    }

    /// Lets `observer` see devices' accesses ([`Dma`](crate::Dma)) from now on; `None` ends it.
    pub fn observe_dma(&self, observer: Option<Arc<dyn Observer>>) {
        self.dma.set(observer);
    }

    pub(crate) fn dma_audience(&self) -> &Audience {
        &self.dma
    }

    /// Where somebody sits who wants to know what happens to the machine.
    #[must_use]
    pub fn witness(&self) -> &Seat {
        &self.witness
    }

    fn tell(&self, device: &Device, gpa: Gpa, size: usize, value: u64, write: bool) {
        if let Some(witness) = self.witness.get() {
            let (device, place) = (device.mmio.name(), Place::Memory(gpa));
            witness.device(&DeviceAccess { device, place, size, value, write });
        }
    }

    /// One read of `size` (1, 2, 4 or 8) bytes on behalf of vCPU `cpu`, whatever answers.
    pub(crate) fn io_read(&self, cpu: usize, gpa: Gpa, size: usize) -> u64 {
        let ones = u64::MAX >> (64 - 8 * size);
        match self.section(gpa.0) {
            Ok(section) if section.end - gpa.0 >= size as u64 => {
                let offset = gpa.0 - section.start;
                match &section.backing {
                    Backing::Ram(hva) | Backing::Rom(hva) => {
                        let mut bytes = [0; 8];
                        if let Some(piece) = bytes.get_mut(..size) {
                            // SAFETY: the section has at least `size` bytes from here.
                            unsafe { hostmem::read_bytes(hva.0 + offset, piece) };
                        }
                        u64::from_le_bytes(bytes)
                    }
                    Backing::Mmio(device, start) => {
                        device.counts.read();
                        let value = device.mmio.read(cpu, start + offset, size) & ones;
                        self.tell(device, gpa, size, value, false);
                        value
                    }
                }
            }
            Err(next) if size == 1 || next - gpa.0 >= size as u64 => {
                tracing::debug!(target: "guest_errors", "read of {size} at unassigned {:#x}", gpa.0);
                ones
            }
            // The access straddles two sections.
            _ => (0..size).fold(0, |value, i| value | self.io_read(cpu, gpa.wrapping_add(i as u64), 1) << (8 * i)),
        }
    }

    /// One write of `size` (1, 2, 4 or 8) bytes on behalf of vCPU `cpu`, whatever answers.
    pub(crate) fn io_write(&self, cpu: usize, gpa: Gpa, size: usize, value: u64) {
        match self.section(gpa.0) {
            Ok(section) if section.end - gpa.0 >= size as u64 => {
                let offset = gpa.0 - section.start;
                match &section.backing {
                    Backing::Ram(hva) => {
                        let hva = hva.wrapping_add(offset);
                        if let Some(piece) = value.to_le_bytes().get(..size) {
                            // SAFETY: the section has at least `size` bytes from here.
                            unsafe { hostmem::write_bytes(hva.0, piece) };
                        }
                        self.code.written_range(hva, size as u64);
                    }
                    Backing::Rom(_) => {
                        tracing::debug!(target: "guest_errors", "write of {size} to ROM at {:#x}", gpa.0);
                    }
                    Backing::Mmio(device, start) => {
                        device.counts.wrote();
                        let value = value & (u64::MAX >> (64 - 8 * size));
                        device.mmio.write(cpu, start + offset, size, value);
                        self.tell(device, gpa, size, value, true);
                    }
                }
            }
            Err(next) if size == 1 || next - gpa.0 >= size as u64 => {
                tracing::debug!(target: "guest_errors", "write of {size} at unassigned {:#x}", gpa.0);
            }
            _ => {
                for (i, byte) in (0..size as u64).zip(value.to_le_bytes()) {
                    self.io_write(cpu, gpa.wrapping_add(i), 1, u64::from(byte));
                }
            }
        }
    }

    /// Opens (`true`) or closes the A20 gate: while it is closed, vCPUs see bit 20 of every physical address as zero.
    /// Returns whether that changed anything: then every vCPU must [`flush_all`](crate::Mmu::flush_all).
    pub fn set_a20(&self, open: bool) -> bool {
        let mask = if open { u64::MAX } else { !(1 << 20) };
        self.a20_mask.swap(mask, Ordering::SeqCst) != mask
    }

    /// Whether the A20 gate is open.
    #[must_use]
    pub fn a20(&self) -> bool {
        self.a20_mask.load(Ordering::Relaxed) == u64::MAX
    }

    /// The address that a vCPU's access to `gpa` reaches.
    pub(crate) fn gated(&self, gpa: u64) -> Gpa {
        Gpa(gpa & self.a20_mask.load(Ordering::Relaxed))
    }

    /// The marks of decoded code.
    #[must_use]
    pub fn code(&self) -> &CodePages {
        &self.code
    }

    /// The RAM, as it was before anything was laid over it.
    #[must_use]
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// RAM as rust-vmm's crates take it (see [`GuestRam::vm_memory`]).
    #[must_use]
    pub fn vm_memory(&self) -> &GuestMemoryMmap {
        self.ram.vm_memory()
    }

    /// Where there is RAM and nothing over it: start and length, ascending; what an e820 map is made of.
    #[must_use]
    pub fn ram_ranges(&self) -> Vec<(Gpa, u64)> {
        let ram = |section: &&Section| matches!(section.backing, Backing::Ram(_));
        self.sections.iter().filter(ram).map(|s| (Gpa(s.start), s.end - s.start)).collect()
    }

    /// How often each device was read from and written to since the map was made.
    #[must_use]
    pub fn mmio_counts(&self) -> Vec<(String, u64, u64)> {
        let mut devices: Vec<&Arc<Device>> = Vec::new();
        for section in &self.sections {
            // What is laid over a device's middle leaves two sections of it.
            if let Backing::Mmio(device, _) = &section.backing
                && !devices.iter().any(|known| Arc::ptr_eq(known, device))
            {
                devices.push(device);
            }
        }
        let count = |device: &Arc<Device>| {
            let (reads, writes) = device.counts.get();
            (device.mmio.name().to_owned(), reads, writes)
        };
        devices.into_iter().map(count).collect()
    }

    /// Everything that is mapped, ascending.
    #[must_use]
    pub fn regions(&self) -> Vec<Region> {
        let region = |section: &Section| {
            let (kind, name) = match &section.backing {
                Backing::Ram(hva) => (RegionKind::Ram(*hva), "ram".to_owned()),
                Backing::Rom(hva) => (RegionKind::Rom(*hva), "rom".to_owned()),
                Backing::Mmio(device, _) => (RegionKind::Mmio, device.mmio.name().to_owned()),
            };
            Region { range: Gpa(section.start)..Gpa(section.end), kind, name }
        };
        self.sections.iter().map(region).collect()
    }
}

impl fmt::Debug for PhysicalMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PhysicalMap").field("regions", &self.regions()).field("a20", &self.a20()).finish()
    }
}

#[cfg(test)]
mod tests;
