//! What the fast path and translated code read: comparators, entries, and where a table is.

use super::{ASIDE, INVALID, RECORD, SLOW};
use crate::Gva;
use crate::walk::Want;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::alloc::Layout;
use std::mem::offset_of;
use std::ptr::NonNull;
use x86::PAGE_OFFSET;

/// Page address and slow-path flags of one kind of access.
///
/// It can be asked in two ways, and for every canonical address both say the same:
/// - Rust code has taken the slot that belongs to the address, and compares with the page of the access's last byte:
///   [`Comparator::hits`];
/// - translated code may hold the entry of any address, and asks whether `address − comparator ≤ 4096 − size`,
///   unsigned.
///
/// Invariant: [`SLOW`] is flipped exactly if a low bit is set, unless it is [`RECORD`] alone: then [`ASIDE`] is. It takes
/// the comparator 2^62 or 2^63 away from where it belongs, so that the difference to a canonical address is never small.
/// An address that is not canonical, or is only without its metadata, may match. It is then as far from the page as the
/// comparator, and address plus addend as far from the host's page: not canonical for the host either, which faults
/// instead of touching memory.
///
/// Translated code that makes records asks whether `(address − comparator) ^ ASIDE + RECORD ≤ 4096 − size`. For a
/// comparator with [`RECORD`] alone that is the address's offset in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Comparator(u64);

impl Comparator {
    /// Matches nothing.
    pub const NOTHING: Self = Self::new(Gva(0), INVALID);

    /// For accesses to `page`, a page address. `flags`: why they are slow, 0 if they are plain.
    #[must_use]
    pub const fn new(page: Gva, flags: u64) -> Self {
        Self((page.0 | flags) ^ Self::flipped(flags))
    }

    const fn flipped(flags: u64) -> u64 {
        match flags {
            0 => 0,
            RECORD => ASIDE,
            _ => SLOW,
        }
    }

    /// Whether an access of `size` (1 to 4096) bytes at `gva` is plain and within one page, for the comparator in the
    /// slot of `gva`: the next page has another slot or another tag.
    #[inline(always)]
    #[must_use]
    pub const fn hits(self, gva: Gva, size: u64) -> bool {
        self.0 == gva.0.wrapping_add(size - 1) & !PAGE_OFFSET
    }

    /// The same for an access of which a record can be made: whether nothing but that is to be said against it.
    #[inline(always)]
    #[must_use]
    pub const fn hits_recorded(self, gva: Gva, size: u64) -> bool {
        Self(self.0 ^ (RECORD | ASIDE)).hits(gva, size)
    }

    /// The slow-path flags, if this is for `page` and not invalid.
    #[inline]
    pub(crate) const fn flags(self, page: Gva) -> Option<u64> {
        match self.0 ^ page.0 {
            0 => Some(0),
            difference if difference == RECORD | ASIDE => Some(RECORD),
            // With RECORD alone it would be for an address that is as far away as both together.
            difference if difference == RECORD | SLOW => None,
            difference if difference > SLOW && difference ^ SLOW < INVALID => Some(difference ^ SLOW),
            _ => None,
        }
    }

    /// Whether any of `flags` is set.
    pub(super) const fn has(self, flags: u64) -> bool {
        self.0 & PAGE_OFFSET & flags != 0
    }

    /// With `flags` set and all others as they are.
    #[must_use]
    pub(super) const fn with(self, flags: u64) -> Self {
        Self::new(self.page(), self.0 & PAGE_OFFSET | flags)
    }

    /// With `flags` clear and all others as they are.
    #[must_use]
    pub(super) const fn without(self, flags: u64) -> Self {
        Self::new(self.page(), self.0 & PAGE_OFFSET & !flags)
    }

    const fn page(self) -> Gva {
        Gva(self.0 & !PAGE_OFFSET ^ Self::flipped(self.0 & PAGE_OFFSET))
    }
}

/// A TLB entry, as the fast path and translated code see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(32))]
pub struct Entry {
    /// For reads.
    pub read: Comparator,
    /// For writes.
    pub write: Comparator,
    /// For instruction fetches.
    pub execute: Comparator,
    /// Host address minus guest virtual address; 0 where a comparator has the IO flag.
    pub addend: u64,
}

impl Entry {
    /// Where in an entry the comparator for reads is, in bytes.
    pub const READ: usize = offset_of!(Self, read);
    /// Where the comparator for writes is.
    pub const WRITE: usize = offset_of!(Self, write);
    /// Where the comparator for instruction fetches is.
    pub const EXECUTE: usize = offset_of!(Self, execute);
    /// Where the addend is.
    pub const ADDEND: usize = offset_of!(Self, addend);

    /// Matches nothing.
    pub const EMPTY: Self =
        Self { read: Comparator::NOTHING, write: Comparator::NOTHING, execute: Comparator::NOTHING, addend: 0 };

    /// The comparator for `want`.
    #[inline]
    #[must_use]
    pub const fn comparator(&self, want: Want) -> Comparator {
        match want {
            Want::Read => self.read,
            Want::Write => self.write,
            Want::Execute => self.execute,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.read.has(INVALID) && self.write.has(INVALID) && self.execute.has(INVALID)
    }

    /// Makes it match nothing.
    pub(super) fn invalidate(&mut self) {
        *self = Self::EMPTY;
    }
}

/// Where a table is: the entry for an address is at `base` plus `(gva >> 7) & mask` bytes.
///
/// A table keeps its `base` for life, and [`View::RESERVED`] bytes from there may always be read: the offset of any
/// table's entry can be used with any other's base. An entry beyond the table's size matches nothing, or is all zeros
/// where the table has never been that large. That matches page 0 and makes the host address the guest's own, in a
/// page that no host maps.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct View {
    /// The first entry.
    pub base: *const Entry,
    /// (Number of entries − 1) × 32.
    pub mask: u64,
}

impl View {
    /// Bytes of address space that a table has.
    pub const RESERVED: usize = super::table::LARGEST * size_of::<Entry>();
}

/// The entries of a table: room for the largest, of which the first few are in use. Owned through a raw pointer, so
/// that a [`View`] of them stays usable beside it.
#[derive(Debug)]
pub(super) struct Entries {
    /// Invariant: the first of [`View::RESERVED`] bytes that are mapped as long as this lives.
    base: NonNull<Entry>,
    /// Invariant: a power of two of entries in use, not more than there is room for.
    len: usize,
}

// SAFETY: it owns its entries, which are plain data.
unsafe impl Send for Entries {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Entries {}

impl Entries {
    /// One entry, empty, and room for more, which takes no memory yet.
    ///
    /// A host that has no room left ends the process, as with every allocation.
    pub fn new() -> Self {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing object.
        let room = unsafe { mmap_anonymous(std::ptr::null_mut(), View::RESERVED, prot, flags) };
        let Some(base) = room.ok().and_then(|room| NonNull::new(room.cast())) else {
            std::alloc::handle_alloc_error(Layout::new::<[Entry; super::table::LARGEST]>());
        };
        let mut entries = Self { base, len: 1 };
        entries.all_mut().fill(Entry::EMPTY);
        entries
    }

    pub fn view(&self) -> View {
        View { base: self.base.as_ptr(), mask: (self.len as u64 - 1) * 32 }
    }

    pub fn all(&self) -> &[Entry] {
        // SAFETY: by the invariants the slice is mapped as long as `self` lives (zero is a valid entry), and it is
        // written only through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    pub fn all_mut(&mut self) -> &mut [Entry] {
        // SAFETY: as above; a `View` is not read while this borrow lasts, since that too needs the owner.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }

    /// Twice as many entries; the new ones are empty.
    pub fn double(&mut self) {
        let old = self.len;
        self.len = (old * 2).min(super::table::LARGEST);
        self.all_mut()[old..].fill(Entry::EMPTY);
    }

    /// Half as many entries. All must be empty, and stay so beyond the end.
    pub fn halve(&mut self) {
        debug_assert!(self.all().iter().all(Entry::is_empty));
        self.len = (self.len / 2).max(1);
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), View::RESERVED) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tlb::{CODE, IO, RECORD, ROM, WATCH};

    const PAGES: [u64; 7] = [
        0,
        0x40_0000,
        0x7fff_ffff_f000,
        0x00ff_ffff_ffff_f000,
        0xff00_0000_0000_0000,
        0xffff_8000_0000_0000,
        0xffff_ffff_ffff_f000,
    ];

    fn combinations() -> impl Iterator<Item = u64> {
        let flags = [IO, ROM, CODE, WATCH, RECORD, INVALID];
        (0..64).map(move |set| (0..6).filter(|i| set >> i & 1 != 0).map(|i| flags[i]).sum())
    }

    /// What translated code asks.
    fn near(comparator: Comparator, ea: u64, size: u64) -> bool {
        ea.wrapping_sub(comparator.0) <= 4096 - size
    }

    /// What translated code asks that makes records.
    fn near_recorded(comparator: Comparator, ea: u64, size: u64) -> bool {
        (ea.wrapping_sub(comparator.0) ^ ASIDE).wrapping_add(RECORD) <= 4096 - size
    }

    #[test]
    fn both_ways_to_ask_agree_for_canonical_addresses() {
        let canonical = |ea: &u64| x86::is_canonical(*ea, 57);
        for (page, flags) in PAGES.into_iter().flat_map(|page| combinations().map(move |flags| (page, flags))) {
            let comparator = Comparator::new(Gva(page), flags);
            // Around both ends of the page, and around where the flags alone would move it.
            let middle = [IO, ROM, CODE, WATCH, RECORD, INVALID].map(|flag| flag as i64);
            for offset in (-130..130).chain(4096 - 130..4096 + 130).chain(middle).chain(middle.map(|at| at + 4096)) {
                let ea = page.wrapping_add_signed(offset);
                for size in (1..=64).chain([4095, 4096]).filter(|_| canonical(&ea)) {
                    let inside = (0..=4096 - size as i64).contains(&offset);
                    assert_eq!(near(comparator, ea, size), flags == 0 && inside, "{page:x} {flags:x} {ea:x} {size}");
                    let recorded = flags == RECORD && inside;
                    assert_eq!(near_recorded(comparator, ea, size), recorded, "{page:x} {flags:x} {ea:x} {size}");
                    // The other form is only asked of addresses that belong to the slot.
                    if (0..4096).contains(&offset) {
                        assert_eq!(comparator.hits(Gva(ea), size), flags == 0 && inside, "{page:x} {ea:x} {size}");
                        assert_eq!(comparator.hits_recorded(Gva(ea), size), recorded, "{page:x} {ea:x} {size}");
                    }
                }
            }
            for ea in PAGES.into_iter().filter(|other| *other != page) {
                assert!(!near(comparator, ea, 1) && !comparator.hits(Gva(ea), 1));
            }
        }
        for ea in PAGES {
            assert!(!near(Comparator::NOTHING, ea, 1) && !Comparator::NOTHING.hits(Gva(ea), 1));
        }
    }

    #[test]
    fn what_matches_a_slow_comparator_is_nothing_that_a_host_maps() {
        for (page, flags) in PAGES.into_iter().flat_map(|page| combinations().map(move |flags| (page, flags))) {
            let comparator = Comparator::new(Gva(page), flags);
            for hva in [page, 0x1000, 0x7fff_ffff_e000] {
                let addend = hva.wrapping_sub(page);
                for ea in [comparator.0, comparator.0.wrapping_add(4095)].into_iter().filter(|_| flags != 0) {
                    assert!(!x86::is_canonical(ea, 57));
                    assert!(!x86::is_canonical(ea.wrapping_add(addend), 57), "{page:x} {flags:x} {hva:x}");
                }
                let ea = Comparator::NOTHING.0;
                assert!(!x86::is_canonical(ea.wrapping_add(addend), 57), "{page:x} {hva:x}");
            }
        }
    }

    #[test]
    fn flags_come_and_go_and_the_page_stays() {
        for (page, flags) in PAGES.into_iter().flat_map(|page| combinations().map(move |flags| (page, flags))) {
            let comparator = Comparator::new(Gva(page), flags);
            let valid = flags & INVALID == 0;
            assert_eq!(comparator.flags(Gva(page)), valid.then_some(flags));
            for away in [SLOW, ASIDE, SLOW ^ ASIDE] {
                assert_eq!(comparator.flags(Gva(page ^ away)), None, "not canonical");
            }
            assert_eq!(comparator.flags(Gva(page ^ 0x1000)), None);
            assert_eq!(comparator.page(), Gva(page));
            for more in combinations() {
                assert_eq!(comparator.with(more), Comparator::new(Gva(page), flags | more));
                assert_eq!(comparator.without(more), Comparator::new(Gva(page), flags & !more));
                assert_eq!(comparator.has(more), flags & more != 0);
            }
        }
    }

    #[test]
    fn room_for_the_largest_table_is_there_from_the_start() {
        let mut entries = Entries::new();
        let base = entries.view().base;
        let last = |entries: &Entries| {
            // SAFETY: the last entry that any table can have.
            unsafe { *entries.view().base.byte_add(View::RESERVED - size_of::<Entry>()) }
        };
        let untouched = last(&entries);
        assert_eq!((untouched.read.0, untouched.addend), (0, 0));
        while entries.all().len() < super::super::table::LARGEST {
            entries.double();
            assert!(entries.all().iter().all(|entry| *entry == Entry::EMPTY));
        }
        entries.all_mut()[5].addend = 1;
        entries.all_mut()[5].invalidate();
        entries.halve();
        assert_eq!((entries.view().base, entries.view().mask), (base, View::RESERVED as u64 / 2 - 32));
        assert_eq!(last(&entries), Entry::EMPTY);
    }
}
