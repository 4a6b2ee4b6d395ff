//! The complete path: hit or miss, MMIO, ROM, page crossings, code pages, observers.

use super::{MemoryFault, Mmu, Origin, Space};
use crate::hostmem::{self, HostAccess};
use crate::map::Page;
use crate::observe::{self, Access, AccessKind, Agent, Interest, Observer, REPORTED, wide};
use crate::tlb::{CODE, Comparator, Entry, Full, INVALID, IO, RECORD, ROM, WATCH};
use crate::touched::{PAGES_MAX, Seen};
use crate::walk::{Tables, Want};
use crate::{Gpa, Gva, Hva, PhysicalMap, Scalar};
use std::sync::Arc;
use x86::PAGE_SIZE;
use x86::paging::TABLE_ADDRESS;

/// A translated access within one page.
#[derive(Clone, Copy)]
pub(super) struct Hit {
    pub gva: Gva,
    pub gpa: Gpa,
    pub memory: Page,
    /// The slow-path flags of the comparator.
    pub flags: u64,
    pub watch: Interest,
    /// Whose table it is in.
    space: Space,
}

impl Hit {
    /// The host address, where there is memory behind the whole page.
    fn hva(&self) -> Option<Hva> {
        match self.memory {
            Page::Ram(hva) | Page::Rom(hva) => Some(hva.wrapping_add(self.gva.offset())),
            Page::Io => None,
        }
    }

    /// The same access, `by` bytes further on in the page.
    fn advanced(&self, by: u64) -> Self {
        Self { gva: self.gva.wrapping_add(by), gpa: self.gpa.wrapping_add(by), ..*self }
    }
}

/// Guest memory as the page walker sees it.
pub(crate) struct MapTables<'a> {
    map: &'a PhysicalMap,
    /// Who is told, on whose behalf, and CR3.
    observer: Option<(&'a dyn Observer, Origin, u64)>,
}

impl<'a> MapTables<'a> {
    /// Without an observer.
    pub fn silent(map: &'a PhysicalMap) -> Self {
        Self { map, observer: None }
    }

    /// With one who is told, on whose behalf, and CR3.
    pub fn told(map: &'a PhysicalMap, who: (&'a dyn Observer, Origin, u64)) -> Self {
        Self { map, observer: Some(who) }
    }

    fn report(&self, kind: AccessKind, gpa: Gpa, hva: Option<Hva>, size: u64, value: u64, old: Option<u64>) {
        if let Some((observer, origin, cr3)) = self.observer
            && observer.wants_walks(gpa.page())
        {
            let (size, value, old) = (size as u8, u128::from(value), old.map(u128::from));
            let agent = Agent::Vcpu { origin, cr3 };
            observer.access(&Access { kind, agent, gva: None, gpa, hva, size, value, old });
            observe::heed(observer, self.map);
        }
    }
}

impl Tables for MapTables<'_> {
    fn read(&mut self, gpa: Gpa, size: u64) -> u64 {
        let gpa = self.map.gated(gpa.0);
        let (hva, value) = match self.map.page(gpa) {
            Page::Ram(page) | Page::Rom(page) => {
                let hva = page.wrapping_add(gpa.offset());
                // SAFETY: an entry is aligned, so it lies whole in the page, which is guest memory.
                let value = unsafe { if size == 4 { u64::from(u32::load(hva.0, 0)) } else { u64::load(hva.0, 0) } };
                (Some(hva), value)
            }
            Page::Io => (None, u64::MAX >> (64 - 8 * size)),
        };
        self.report(AccessKind::WalkRead, gpa, hva, size, value, None);
        value
    }

    fn replace(&mut self, gpa: Gpa, size: u64, old: u64, new: u64) -> bool {
        let gpa = self.map.gated(gpa.0);
        let Page::Ram(page) = self.map.page(gpa) else { return true };
        let hva = page.wrapping_add(gpa.offset());
        // SAFETY: an entry is aligned, so it lies whole in the page, which is RAM.
        let done = unsafe {
            if size == 4 {
                u32::compare_exchange(hva.0, old as u32, new as u32).is_ok()
            } else {
                u64::compare_exchange(hva.0, old, new).is_ok()
            }
        };
        if done {
            self.map.code().written(hva, size);
            self.report(AccessKind::WalkWrite, gpa, Some(hva), size, new, Some(old));
        }
        done
    }
}

impl Mmu {
    /// Makes the TLB entry by which a plain read of (or write to) `size` (1 to 4096) bytes at `gva` in the current space
    /// is done, walking if need be: where it is in the current table, in bytes. `None`: the access takes the slow path,
    /// which begins anew. Nothing is done for one that may be reported to an observer otherwise than by a record.
    #[must_use]
    pub fn refill(&mut self, origin: Origin, gva: Gva, size: u64, write: bool) -> Option<u32> {
        let metadata = self.paging.masked(gva) != gva;
        if metadata || (self.observer.is_some() && !self.records) || gva.offset() + size > PAGE_SIZE {
            return None;
        }
        let want = if write { Want::Write } else { Want::Read };
        self.lookup(origin, self.space, gva, want).ok()?;
        self.site(gva, size, write)
    }

    /// The linear address of an access, without the metadata of a data access: no TLB entry is made for an address with
    /// any, so all that look for one come here.
    fn accessed(&self, origin: Origin, gva: Gva, want: Want) -> Gva {
        let gva = self.paging.linear(gva);
        if want == Want::Execute || origin.descriptor { gva } else { self.paging.masked(gva) }
    }

    /// Finds or makes the TLB entry for an access to the page of `gva`.
    pub(super) fn lookup(&mut self, origin: Origin, space: Space, gva: Gva, want: Want) -> Result<Hit, MemoryFault> {
        let gva = self.accessed(origin, gva, want);
        let space = self.effective(space);
        let asked = self.trapping && want != Want::Execute && !origin.descriptor;
        if asked && self.is_trapped(gva) {
            return Err(MemoryFault::Trapped);
        }
        let (flags, full) = match self.tlb.probe(space, gva.page(), want) {
            Some(found) => {
                self.renew();
                found
            }
            None => self.miss(origin, space, gva, want)?,
        };
        let gpa = full.gpa.wrapping_add(gva.offset());
        let mut hit = Hit { gva, gpa, memory: full.memory, flags, watch: full.watch, space };
        if flags & CODE != 0
            && let Page::Ram(hva) = full.memory
            && !self.map.code().marked(hva)
        {
            // Somebody has overwritten the code: the page is plainly writable again.
            self.tlb.unprotect(space, gva.page());
            hit.flags &= !CODE;
        }
        Ok(hit)
    }

    #[cold]
    fn miss(&mut self, origin: Origin, space: Space, gva: Gva, want: Want) -> Result<(u64, Full), MemoryFault> {
        if !self.paging.canonical(gva) {
            return Err(MemoryFault::NonCanonical);
        }
        let suits =
            |full: &Full| (full.rights.dirty || want != Want::Write) && self.paging.allows(full.rights, space, want);
        let mut full = match self.tlb.known(gva.page()).filter(suits) {
            Some(full) => full,
            None => self.walk(origin, space, gva, want)?,
        };
        full.touched = self.touch(space, &full, want);
        let entry = self.derive(space, &full);
        let flags = entry.comparator(want).flags(full.gva).unwrap_or(INVALID);
        self.tlb.fill(space, entry, full);
        self.renew();
        Ok((flags, full))
    }

    /// Notes that a page is touched, if that is wanted. The kinds of access that its entry is to let pass.
    fn touch(&mut self, space: Space, full: &Full, want: Want) -> Interest {
        let Some(touched) = &mut self.touched else { return Interest::ALL };
        let root = Gpa(self.paging.registers().cr3 & TABLE_ADDRESS);
        touched.note(Seen { root, page: full.gpa }, Interest::only(want), PAGES_MAX);
        self.tlb.touched(space, full.gva, full.gpa).or(Interest::only(want))
    }

    fn walk(&mut self, origin: Origin, space: Space, gva: Gva, want: Want) -> Result<Full, MemoryFault> {
        self.tlb.stats.walks += 1;
        let observer = self.observer.as_deref();
        let cr3 = self.paging.registers().cr3;
        let mut tables = MapTables { map: &self.map, observer: observer.map(|observer| (observer, origin, cr3)) };
        let translation = match self.paging.walk(&mut tables, gva, space, want) {
            Ok(translation) => translation,
            Err(fault) => {
                self.tlb.fault(gva);
                self.renew();
                tracing::debug!(target: "mmu", "rip {:x} {want:?} {:x} {space:?}: {fault:?}", origin.rip, gva);
                return Err(fault);
            }
        };
        let gpa = self.map.gated(translation.gpa.page().0);
        let gva = gva.page();
        let mut watch = observer.map(|observer| observer.interest(gva, gpa)).unwrap_or_default();
        watch.fetch |= self.uncached.contains(&gva);
        let trapped = self.is_trapped(gva);
        (watch.read, watch.write) = (watch.read || trapped, watch.write || trapped);
        let record = !trapped && self.records && observer.is_some_and(|observer| observer.record_will_do(gva, gpa));
        Ok(Full {
            gva,
            gpa,
            memory: self.map.page(gpa),
            rights: translation.rights,
            shift: translation.shift as u8,
            watch,
            record,
            touched: Interest::ALL,
        })
    }

    /// The TLB entry for a page in `space`: what is allowed there now, and what must be slow.
    fn derive(&self, space: Space, full: &Full) -> Entry {
        let Full { gva, memory, rights, watch, record, touched, .. } = *full;
        let io = if memory == Page::Io { IO } else { 0 };
        let flag = |on: bool, flag: u64| if on { flag } else { 0 };
        let comparator = |want: Want, flags: u64| {
            let passes = touched.has(want) && self.paging.allows(rights, space, want);
            if passes { Comparator::new(gva, io | flags) } else { Comparator::NOTHING }
        };
        let write_flags = match memory {
            Page::Ram(hva) => flag(self.map.code().marked(hva), CODE),
            Page::Rom(_) => ROM,
            Page::Io => 0,
        };
        // A read-modify-write goes by the write comparator alone, so that a watch for reads must show there too.
        let watched = watch.write || watch.read;
        let (read, write) = if watched && record {
            // Translated code that makes records makes them of all accesses.
            (RECORD, RECORD)
        } else {
            (flag(watch.read, WATCH), flag(watched, WATCH))
        };
        let write_flags = write_flags | write | flag(!rights.dirty, INVALID);
        let addend = match memory {
            Page::Ram(hva) | Page::Rom(hva) => hva.0.wrapping_sub(gva.0),
            Page::Io => 0,
        };
        Entry {
            read: comparator(Want::Read, read),
            write: comparator(Want::Write, write_flags),
            execute: comparator(Want::Execute, flag(watch.fetch, WATCH)),
            addend,
        }
    }

    /// Translates an access of `len` (1 to 4096) bytes that may cross into a second page: the first page's part, and
    /// if there is one the second's, with how many bytes lie in the first.
    fn span(
        &mut self,
        origin: Origin,
        space: Space,
        gva: Gva,
        len: usize,
        want: Want,
    ) -> Result<(Hit, Option<Hit>, usize), MemoryFault> {
        let left = (PAGE_SIZE - gva.offset()) as usize;
        if len <= left {
            return Ok((self.lookup(origin, space, gva, want)?, None, len));
        }
        let next = gva.page().wrapping_add(PAGE_SIZE);
        // Canonical form is checked for the whole access before any page is.
        if !self.paging.canonical(self.accessed(origin, next, want)) {
            return Err(MemoryFault::NonCanonical);
        }
        let first = self.lookup(origin, space, gva, want)?;
        let second = self.lookup(origin, space, next, want)?;
        Ok((first, Some(second), left))
    }

    /// Reads within one page, reporting nothing.
    pub(super) fn read_piece(&self, hit: &Hit, bytes: &mut [u8]) {
        match hit.hva() {
            // SAFETY: the bytes lie in one page, all of which is guest memory.
            Some(hva) => unsafe { hostmem::read_bytes(hva.0, bytes) },
            None => {
                let mut rest = bytes;
                let mut gpa = hit.gpa;
                while let n @ 1.. = piece(gpa, rest.len())
                    && let Some((now, later)) = rest.split_at_mut_checked(n)
                {
                    now.copy_from_slice(&self.map.io_read(self.cpu, gpa, n).to_le_bytes()[..n]);
                    (rest, gpa) = (later, gpa.wrapping_add(n as u64));
                }
            }
        }
    }

    /// Writes within one page, reporting nothing.
    fn write_piece(&mut self, hit: &Hit, bytes: &[u8]) {
        match (hit.memory, hit.hva()) {
            (Page::Ram(_), Some(hva)) if hit.flags & CODE == 0 => {
                // SAFETY: the bytes lie in one page, all of which is RAM.
                unsafe { hostmem::write_bytes(hva.0, bytes) };
            }
            (Page::Ram(_), Some(hva)) => {
                let mut old = [0; REPORTED];
                for (i, chunk) in (0..).zip(bytes.chunks(REPORTED)) {
                    let at = hva.wrapping_add(i * REPORTED as u64);
                    let Some(old) = old.get_mut(..chunk.len()) else { continue };
                    // SAFETY: as above.
                    unsafe {
                        hostmem::read_bytes(at.0, old);
                        hostmem::write_bytes(at.0, chunk);
                    }
                    if *old != *chunk {
                        self.wrote_code(hit, at, chunk.len() as u64);
                    }
                }
            }
            (Page::Io, _) => {
                let mut rest = bytes;
                let mut gpa = hit.gpa;
                while let n @ 1.. = piece(gpa, rest.len())
                    && let Some((now, later)) = rest.split_at_checked(n)
                {
                    let mut value = [0; 8];
                    value[..n].copy_from_slice(now);
                    self.map.io_write(self.cpu, gpa, n, u64::from_le_bytes(value));
                    (rest, gpa) = (later, gpa.wrapping_add(n as u64));
                }
            }
            _ => tracing::debug!(target: "guest_errors", "write to ROM at {:#x}", hit.gpa.0),
        }
    }

    /// After a change to `len` bytes at `hva` in a page with the [`CODE`] flag.
    fn wrote_code(&mut self, hit: &Hit, hva: Hva, len: u64) {
        if self.map.code().written(hva, len) {
            self.tlb.unprotect(hit.space, hit.gva.page());
        }
    }

    /// Tells the observer of an access of at most 16 bytes within one page that was made.
    fn tell(&self, kind: AccessKind, origin: Origin, hit: &Hit, value: u128, size: usize, old: Option<u128>) {
        let Some(observer) = &self.observer else { return };
        let kind = match kind {
            AccessKind::Read if origin.descriptor => AccessKind::DescriptorRead,
            AccessKind::Write if origin.descriptor => AccessKind::DescriptorWrite,
            kind => kind,
        };
        observer.access(&Access {
            kind,
            agent: Agent::Vcpu { origin, cr3: self.paging.registers().cr3 },
            gva: Some(hit.gva),
            gpa: hit.gpa,
            hva: self.map.hva_of(hit.gpa),
            size: size as u8,
            value,
            old,
        });
        observe::heed(&**observer, &self.map);
    }

    /// Tells the observer of a read or fetch within one page that was made, in pieces of 16 bytes.
    #[cold]
    pub(super) fn report(&self, kind: AccessKind, origin: Origin, hit: &Hit, bytes: &[u8]) {
        for (i, chunk) in (0..).zip(bytes.chunks(REPORTED)) {
            self.tell(kind, origin, &hit.advanced(i * REPORTED as u64), wide(chunk), chunk.len(), None);
        }
    }

    fn report_read(&self, origin: Origin, hit: &Hit, bytes: &[u8]) {
        if hit.watch.read {
            self.report(AccessKind::Read, origin, hit, bytes);
        }
    }

    fn report_write(&self, origin: Origin, hit: &Hit, value: u128, size: u64, old: Option<u128>) {
        if hit.watch.write {
            self.tell(AccessKind::Write, origin, hit, value, size as usize, old);
        }
    }

    /// Writes within one page and reports that, in pieces of 16 bytes.
    fn write_reported(&mut self, origin: Origin, hit: &Hit, bytes: &[u8]) {
        if !hit.watch.write {
            return self.write_piece(hit, bytes);
        }
        let memory = hit.memory != Page::Io;
        if !memory {
            // A device sees the access as it is, not in pieces.
            self.write_piece(hit, bytes);
        }
        for (i, chunk) in (0..).zip(bytes.chunks(REPORTED)) {
            let hit = hit.advanced(i * REPORTED as u64);
            let old = memory.then(|| {
                let mut old = [0; REPORTED];
                self.read_piece(&hit, old.get_mut(..chunk.len()).unwrap_or_default());
                self.write_piece(&hit, chunk);
                u128::from_le_bytes(old)
            });
            self.report_write(origin, &hit, wide(chunk), chunk.len() as u64, old);
        }
    }

    /// Reads a scalar: hit or miss, MMIO, ROM, page-crossing, observers.
    ///
    /// # Errors
    /// The fault that the access raises.
    #[cold]
    pub fn read<T: Scalar>(&mut self, origin: Origin, space: Space, gva: Gva) -> Result<T, MemoryFault> {
        if gva.offset() + T::SIZE <= PAGE_SIZE {
            let hit = self.lookup(origin, space, gva, Want::Read)?;
            if let Some(hva) = hit.hva() {
                // SAFETY: the bytes lie in one page, all of which is guest memory.
                let value: T = unsafe { T::load(hva.0, 0) };
                self.report_read(origin, &hit, le(&value.to_wide().to_le_bytes(), T::SIZE));
                return Ok(value);
            }
        }
        let mut bytes = [0; 16];
        self.read_bytes_slow(origin, space, gva, &mut bytes[..size_of::<T>()])?;
        Ok(T::from_wide(u128::from_le_bytes(bytes)))
    }

    /// Writes a scalar: hit or miss, MMIO, ROM, page-crossing, code pages, observers. A page-crossing write checks
    /// both pages before it changes either.
    ///
    /// # Errors
    /// The fault that the access raises.
    #[cold]
    pub fn write<T: Scalar>(&mut self, origin: Origin, space: Space, gva: Gva, value: T) -> Result<(), MemoryFault> {
        let wide = value.to_wide().to_le_bytes();
        let bytes = le(&wide, T::SIZE);
        if gva.offset() + T::SIZE <= PAGE_SIZE {
            let hit = self.lookup(origin, space, gva, Want::Write)?;
            if let (Page::Ram(_), Some(hva)) = (hit.memory, hit.hva()) {
                // SAFETY: the bytes lie in one page, all of which is RAM.
                let old: T = unsafe { T::load(hva.0, 0) };
                // SAFETY: as above.
                unsafe { T::store(hva.0, 0, value) };
                if hit.flags & CODE != 0 && old != value {
                    self.wrote_code(&hit, hva, T::SIZE);
                }
                self.report_write(origin, &hit, value.to_wide(), T::SIZE, Some(old.to_wide()));
                return Ok(());
            }
        }
        self.write_bytes_slow(origin, space, gva, bytes)
    }

    /// Read-modify-write, current space: gives the value that was replaced. Write permission is checked first. `f` as
    /// for [`Mmu::update_fast`], without a result: that can be had again from the value that was replaced.
    ///
    /// One that crosses a page is checked on both and then done piecewise, and one of a device is a read and a write;
    /// when locked, no other vCPU does any such meanwhile.
    ///
    /// # Errors
    /// The fault that the access raises; nothing is written then.
    #[cold]
    #[inline(never)]
    pub fn update<T: Scalar>(
        &mut self,
        origin: Origin,
        gva: Gva,
        locked: bool,
        f: &mut dyn FnMut(T) -> T,
    ) -> Result<T, MemoryFault> {
        let (first, second, left) = self.span(origin, self.space, gva, size_of::<T>(), Want::Write)?;
        if let (None, Page::Ram(_), Some(hva)) = (second, first.memory, first.hva()) {
            let (old, new) = if locked {
                let change = |old| {
                    let new = f(old);
                    (new, (old, new))
                };
                // SAFETY: the bytes lie in one page, all of which is RAM.
                unsafe { hostmem::update_locked(hva.0, change) }
            } else {
                // SAFETY: as above.
                let old = unsafe { T::load(hva.0, 0) };
                let new = f(old);
                // SAFETY: as above.
                unsafe { T::store(hva.0, 0, new) };
                (old, new)
            };
            if first.flags & CODE != 0 && old != new {
                self.wrote_code(&first, hva, T::SIZE);
            }
            self.report_read(origin, &first, le(&old.to_wide().to_le_bytes(), T::SIZE));
            self.report_write(origin, &first, new.to_wide(), T::SIZE, Some(old.to_wide()));
            return Ok(old);
        }
        let map = Arc::clone(&self.map);
        let _bus = locked.then(|| map.lock_bus());
        let mut bytes = [0; 16];
        let size = size_of::<T>();
        let (low, high) = bytes[..size].split_at_mut(left);
        self.read_piece(&first, low);
        self.report_read(origin, &first, low);
        if let Some(second) = &second {
            self.read_piece(second, high);
            self.report_read(origin, second, high);
        }
        let old = T::from_wide(u128::from_le_bytes(bytes));
        let bytes = f(old).to_wide().to_le_bytes();
        let (low, high) = bytes[..size].split_at(left);
        self.write_reported(origin, &first, low);
        if let Some(second) = &second {
            self.write_reported(origin, second, high);
        }
        Ok(old)
    }

    #[cold]
    pub(super) fn read_bytes_slow(
        &mut self,
        origin: Origin,
        space: Space,
        gva: Gva,
        bytes: &mut [u8],
    ) -> Result<(), MemoryFault> {
        if bytes.len() > PAGE_SIZE as usize {
            self.probe(origin, space, gva, bytes.len() as u64, false)?;
        }
        for (i, part) in (0..).zip(bytes.chunks_mut(PAGE_SIZE as usize)) {
            let gva = gva.wrapping_add(i * PAGE_SIZE);
            let (first, second, left) = self.span(origin, space, gva, part.len(), Want::Read)?;
            let (low, high) = part.split_at_mut(left);
            self.read_piece(&first, low);
            self.report_read(origin, &first, low);
            if let Some(second) = &second {
                self.read_piece(second, high);
                self.report_read(origin, second, high);
            }
        }
        Ok(())
    }

    #[cold]
    pub(super) fn write_bytes_slow(
        &mut self,
        origin: Origin,
        space: Space,
        gva: Gva,
        bytes: &[u8],
    ) -> Result<(), MemoryFault> {
        if bytes.len() > PAGE_SIZE as usize {
            self.probe(origin, space, gva, bytes.len() as u64, true)?;
        }
        for (i, part) in (0..).zip(bytes.chunks(PAGE_SIZE as usize)) {
            let gva = gva.wrapping_add(i * PAGE_SIZE);
            let (first, second, left) = self.span(origin, space, gva, part.len(), Want::Write)?;
            let (low, high) = part.split_at(left);
            self.write_reported(origin, &first, low);
            if let Some(second) = &second {
                self.write_reported(origin, second, high);
            }
        }
        Ok(())
    }

    /// Checks that `len` bytes may be written (or read) now, with all side effects of the walk but no data access.
    ///
    /// # Errors
    /// The fault that the access would raise.
    pub fn probe(&mut self, origin: Origin, space: Space, gva: Gva, len: u64, write: bool) -> Result<(), MemoryFault> {
        let want = if write { Want::Write } else { Want::Read };
        let mut done = 0;
        while done < len {
            let at = gva.wrapping_add(done);
            self.lookup(origin, space, at, want)?;
            done += (PAGE_SIZE - at.offset()).min(len - done);
        }
        Ok(())
    }
}

/// The first `size` bytes.
fn le(bytes: &[u8; 16], size: u64) -> &[u8] {
    bytes.get(..size as usize).unwrap_or(bytes)
}

/// How many bytes of an access to what is not plain memory go to it at once: an access of 1, 2, 4 or 8 bytes as it
/// is, others in naturally aligned pieces. 0: nothing is left.
fn piece(gpa: Gpa, left: usize) -> usize {
    match left {
        0 | 1 | 2 | 4 | 8 => left,
        _ => {
            let aligned = 1usize << gpa.0.trailing_zeros().min(3);
            let largest = 1usize << left.ilog2().min(3);
            aligned.min(largest)
        }
    }
}
