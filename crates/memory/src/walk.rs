//! The page walker: GVA → GPA in every paging mode, with permissions and exact error codes.
//!
//! APM vol. 2, chapter 5 and SDM vol. 3A, chapter 4. Where they differ the SDM is followed, since it says more:
//! - bit 8 (G) of entries that map no page is ignored (AMD reserves it in the two top levels);
//! - PAE page-directory pointers are registers, loaded and checked by MOV CR3 (AMD may read them on use);
//! - bits 62:52 are reserved in PAE paging and ignored in 4- and 5-level paging (the manuals agree).
//!
//! Accessed and dirty bits are set only when the whole translation succeeds and the access is allowed, by
//! compare-exchange on the entry that was read; if an entry has changed meanwhile the walk starts again.
//!
//! Left out: memory types (PWT, PCD, PAT are ignored), shadow stacks, nested paging.
//! 1 GiB pages are always supported.

use crate::mmu::{MemoryFault, PagingRegisters, Space};
use crate::{Gpa, Gva};
use x86::{PageFaultCode, Pte, is_canonical};

mod denial;
pub mod spans;
pub use denial::Denial;

/// Bits of CR3 and of 64-bit entries that can hold an address.
const ADDRESS: u64 = x86::paging::TABLE_ADDRESS;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Want {
    /// Read data.
    Read = 0,
    /// Write data.
    Write = 1,
    /// Fetch an instruction.
    Execute = 2,
}

/// Which paging mode is active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// CR0.PG = 0: linear addresses are physical.
    #[default]
    Off,
    /// 32-bit paging (CR4.PAE = 0).
    Legacy,
    /// PAE paging (CR4.PAE = 1 outside long mode).
    Pae,
    /// 4-level paging (long mode).
    Level4,
    /// 5-level paging (long mode with CR4.LA57).
    Level5,
}

/// How one level of a page table is indexed and checked.
#[derive(Clone, Copy, Debug)]
struct Level {
    /// The lowest bit of the linear address that this level indexes.
    shift: u32,
    /// Reserved bits of an entry that points to a table.
    reserved: u64,
    /// Reserved bits of an entry that maps a page; `None` where no entry can (PS is then reserved or ignored).
    reserved_page: Option<u64>,
}

/// What a translation allows, before the space and the control registers decide: as the TLB keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rights {
    /// U/S is set at all levels.
    pub user: bool,
    /// R/W is set at all levels.
    pub writable: bool,
    /// NX is set at some level.
    pub no_execute: bool,
    /// The leaf is dirty: a write needs no walk.
    pub dirty: bool,
    /// The leaf is global and CR4.PGE is set.
    pub global: bool,
    /// Protection key.
    pub key: u8,
}

/// A successful walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address, with the offset within the page. The A20 gate is not applied.
    pub gpa: Gpa,
    /// log2 of the page's size: 12, 21, 22 or 30.
    pub shift: u32,
    /// What the tables allow.
    pub rights: Rights,
}

/// One table entry that a walk reads: for inspection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The lowest bit of the linear address that the entry's table indexes: 48, 39, 30, 21 or 22, 12.
    pub shift: u32,
    /// Where the entry is. For a PAE page-directory pointer: where the register was loaded from.
    pub gpa: Gpa,
    /// The entry; 32-bit entries are zero-extended.
    pub entry: u64,
}

/// What a walk without side effects sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Each entry from the root down, ending with the one that maps the page or stops the walk.
    pub steps: Vec<Step>,
    /// The translation, unless an entry is not present or has a reserved bit set, or the address is not canonical.
    pub translation: Option<Translation>,
}

/// Memory as the walker sees it. Page tables that are not in memory read as all ones and take no writes.
pub trait Tables {
    /// Reads an entry of `size` (4 or 8) bytes.
    fn read(&mut self, gpa: Gpa, size: u64) -> u64;
    /// Replaces `old` by `new`; false if the entry is no longer `old`.
    fn replace(&mut self, gpa: Gpa, size: u64, old: u64, new: u64) -> bool;
}

/// CR3.LAM_U57 and CR3.LAM_U48.
const CR3_LAM_U57: u64 = 1 << 61;
const CR3_LAM_U48: u64 = 1 << 62;

/// Control-register state in the form in which the walker uses it.
#[derive(Clone, Debug)]
pub struct Paging {
    registers: PagingRegisters,
    mode: Mode,
    levels: [Level; 5],
    depth: usize,
    physical_bits: u32,
    pdptes: [u64; 4],
    /// Linear-address masking: which bits of a data access's address are metadata, where bit 63 is clear and where it is set.
    metadata: [u64; 2],
}

/// A mask of bits `low` to `high`, inclusive; empty if `low > high`.
const fn bits(low: u32, high: u32) -> u64 {
    if low > high { 0 } else { (u64::MAX >> (63 - high)) & (u64::MAX << low) }
}

impl Paging {
    /// With all registers zero: paging off. `physical_bits` is the physical-address width, 32 to 52.
    #[must_use]
    pub fn new(physical_bits: u32) -> Self {
        let level = Level { shift: 0, reserved: 0, reserved_page: None };
        let mut paging = Self {
            registers: PagingRegisters::default(),
            mode: Mode::Off,
            levels: [level; 5],
            depth: 0,
            physical_bits: physical_bits.clamp(32, 52),
            pdptes: [0; 4],
            metadata: [0; 2],
        };
        paging.set(PagingRegisters::default());
        paging
    }

    /// Takes new registers. PAE page-directory pointers stay as they are.
    pub fn set(&mut self, registers: PagingRegisters) {
        let PagingRegisters { cr0, cr4, efer, .. } = registers;
        self.registers = registers;
        self.mode = match (cr0.paging(), cr4.physical_address_extension(), efer.long_mode_active(), cr4.la57()) {
            (false, ..) => Mode::Off,
            (true, false, ..) => Mode::Legacy,
            (true, true, false, _) => Mode::Pae,
            (true, true, true, false) => Mode::Level4,
            (true, true, true, true) => Mode::Level5,
        };
        let width = self.physical_bits;
        let nx = if efer.no_execute() { 0 } else { 1 << 63 };
        // Bits of an address that the machine does not have: to 51 in long mode, to 62 in PAE paging.
        let high = nx | bits(width, if self.mode == Mode::Pae { 62 } else { 51 });
        let table = |shift, reserved, reserved_page| Level { shift, reserved, reserved_page };
        let pt = table(12, high, Some(high));
        let pd = table(21, high, Some(high | bits(13, 20)));
        let levels: &[Level] = match self.mode {
            Mode::Off => &[],
            Mode::Legacy => {
                // PSE-36: bits 20:13 are address bits 39:32; those the machine does not have, and bit 21, are reserved.
                let large = bits(width.min(40) - 19, 21);
                &[table(22, 0, cr4.page_size_extensions().then_some(large)), table(12, 0, Some(0))]
            }
            Mode::Pae => &[pd, pt],
            Mode::Level4 | Mode::Level5 => {
                let pdpt = table(30, high, Some(high | bits(13, 29)));
                let pml4 = table(39, high | 1 << 7, None);
                let pml5 = table(48, high | 1 << 7, None);
                if self.mode == Mode::Level5 { &[pml5, pml4, pdpt, pd, pt] } else { &[pml4, pdpt, pd, pt] }
            }
        };
        let below = |bit: u32| bits(bit, 62);
        self.metadata = match self.mode {
            Mode::Level4 | Mode::Level5 => [
                match registers.cr3 & (CR3_LAM_U48 | CR3_LAM_U57) {
                    0 => 0,
                    CR3_LAM_U48 => below(48),
                    // Both: LAM_U48 has no effect.
                    _ => below(57),
                },
                if cr4.lam_supervisor() { below(self.virtual_bits()) } else { 0 },
            ],
            _ => [0; 2],
        };
        self.depth = levels.len();
        for (slot, level) in self.levels.iter_mut().zip(levels) {
            *slot = *level;
        }
    }

    /// The registers last taken.
    #[inline]
    #[must_use]
    pub fn registers(&self) -> &PagingRegisters {
        &self.registers
    }

    /// The paging mode that the registers select.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Implemented virtual-address bits: 57 in 5-level paging, else 48.
    #[inline]
    #[must_use]
    pub fn virtual_bits(&self) -> u32 {
        if self.mode == Mode::Level5 { 57 } else { 48 }
    }

    /// Physical-address width.
    #[must_use]
    pub fn physical_bits(&self) -> u32 {
        self.physical_bits
    }

    /// Changes the physical-address width (32 to 52).
    pub fn set_physical_bits(&mut self, bits: u32) {
        self.physical_bits = bits.clamp(32, 52);
        self.set(self.registers);
    }

    /// Linear addresses are 32 bits wide outside long mode.
    #[inline]
    #[must_use]
    pub fn linear(&self, gva: Gva) -> Gva {
        if self.registers.efer.long_mode_active() { gva } else { Gva(gva.0 & 0xffff_ffff) }
    }

    /// The address of a data access without its metadata: with linear-address masking (SDM vol. 3A, 4.4) the bit below
    /// them stands for all of them, so that the address is canonical if that bit is as bit 63.
    #[inline]
    #[must_use]
    pub fn masked(&self, gva: Gva) -> Gva {
        let metadata = self.metadata[(gva.0 >> 63) as usize & 1];
        if metadata == 0 {
            return gva;
        }
        let sign = gva.0 << 1 & metadata & metadata.wrapping_neg();
        Gva(if sign == 0 { gva.0 & !metadata } else { gva.0 | metadata })
    }

    /// Whether the address may be translated at all.
    #[inline]
    #[must_use]
    pub fn canonical(&self, gva: Gva) -> bool {
        !self.registers.efer.long_mode_active() || is_canonical(gva.0, self.virtual_bits())
    }

    /// Reads the four PAE page-directory pointers at `cr3`. `None` if a present one has a reserved bit set.
    pub fn read_pdptes(&self, tables: &mut impl Tables, cr3: u64) -> Option<[u64; 4]> {
        let reserved = bits(1, 2) | bits(5, 8) | bits(self.physical_bits, 63);
        let mut pdptes = [0; 4];
        for (i, pdpte) in (0..).zip(&mut pdptes) {
            *pdpte = tables.read(Gpa((cr3 & 0xffff_ffe0) + i * 8), 8);
            if *pdpte & 1 != 0 && *pdpte & reserved != 0 {
                return None;
            }
        }
        Some(pdptes)
    }

    /// Loads the PAE page-directory pointer registers.
    pub fn set_pdptes(&mut self, pdptes: [u64; 4]) {
        self.pdptes = pdptes;
    }

    /// The error code of a fault, apart from what the entries say (P, RSV, PK).
    fn code(&self, space: Space, want: Want) -> PageFaultCode {
        let PagingRegisters { cr4, efer, .. } = self.registers;
        let fetch_shown = cr4.smep() || (cr4.physical_address_extension() && efer.no_execute());
        PageFaultCode::new()
            .with_write(want == Want::Write)
            .with_user(space == Space::User)
            .with_fetch(want == Want::Execute && fetch_shown)
    }

    /// Whether `want` is allowed in `space` on a page with these rights.
    #[must_use]
    pub fn allows(&self, rights: Rights, space: Space, want: Want) -> bool {
        self.denial(rights, space, want).is_none()
    }

    /// Translates `gva` for `want` in `space`, setting accessed and dirty bits.
    ///
    /// # Errors
    /// The fault that the access raises.
    pub fn walk(
        &self,
        tables: &mut impl Tables,
        gva: Gva,
        space: Space,
        want: Want,
    ) -> Result<Translation, MemoryFault> {
        if !self.canonical(gva) {
            return Err(MemoryFault::NonCanonical);
        }
        loop {
            let mut trail = Trail::default();
            let translation = match self.descend(tables, gva, &mut trail) {
                Ok(translation) => translation,
                Err(reserved) => {
                    let code = self.code(space, want).with_present(reserved).with_reserved(reserved);
                    return Err(MemoryFault::Page { gva, code });
                }
            };
            let rights = translation.rights;
            if !self.allows(rights, space, want) {
                let key = self.key_denial(rights, space, want).is_some();
                let code = self.code(space, want).with_present(true).with_protection_key(key);
                return Err(MemoryFault::Page { gva, code });
            }
            if self.mark(tables, &trail, want) {
                let dirty = rights.dirty || want == Want::Write;
                return Ok(Translation { rights: Rights { dirty, ..rights }, ..translation });
            }
        }
    }

    /// What a walk would see, with no permission checks and no side effects.
    pub fn inspect(&self, tables: &mut impl Tables, gva: Gva) -> Inspection {
        let mut trail = Trail::default();
        let translation = if self.canonical(gva) { self.descend(tables, gva, &mut trail).ok() } else { None };
        let mut steps: Vec<_> = trail.steps.into_iter().take(trail.len).collect();
        if self.mode == Mode::Pae {
            let index = gva.0 >> 30 & 3;
            let gpa = Gpa((self.registers.cr3 & 0xffff_ffe0) + index * 8);
            steps.insert(0, Step { shift: 30, gpa, entry: self.pdptes[index as usize] });
        }
        Inspection { steps, translation }
    }

    /// Follows the tables to the leaf. `Err`: an entry is not present (false) or has a reserved bit set (true).
    fn descend(&self, tables: &mut impl Tables, gva: Gva, trail: &mut Trail) -> Result<Translation, bool> {
        let gva = self.linear(gva);
        let (size, index_bits, mut table) = match self.mode {
            Mode::Off => {
                let rights = Rights { user: true, writable: true, dirty: true, ..Rights::default() };
                return Ok(Translation { gpa: Gpa(gva.0), shift: x86::PAGE_SHIFT, rights });
            }
            Mode::Legacy => (4, 10, self.registers.cr3 & 0xffff_f000),
            Mode::Pae => {
                let pdpte = self.pdptes[(gva.0 >> 30 & 3) as usize];
                if pdpte & 1 == 0 {
                    return Err(false);
                }
                (8, 9, pdpte & ADDRESS)
            }
            Mode::Level4 | Mode::Level5 => (8, 9, self.registers.cr3 & ADDRESS & bits(0, self.physical_bits - 1)),
        };
        let mut rights = Rights { user: true, writable: true, ..Rights::default() };
        for level in self.levels.iter().take(self.depth) {
            let gpa = Gpa(table + (gva.0 >> level.shift & bits(0, index_bits - 1)) * size);
            let raw = tables.read(gpa, size);
            trail.push(Step { shift: level.shift, gpa, entry: raw });
            match self.meaning(level, raw, rights) {
                Meaning::Absent => return Err(false),
                Meaning::Reserved(_) => return Err(true),
                Meaning::Table(next, so_far) => (table, rights) = (next, so_far),
                Meaning::Page(base, rights) => {
                    let offset = gva.0 & ((1 << level.shift) - 1);
                    return Ok(Translation { gpa: Gpa(base | offset), shift: level.shift, rights });
                }
            }
        }
        // Not reached: the last level of every mode maps pages.
        Err(false)
    }

    /// What entry `raw` of a table at `level` says, `rights` being those of the entries above it.
    #[inline(always)]
    fn meaning(&self, level: &Level, raw: u64, mut rights: Rights) -> Meaning {
        let entry = Pte::from_bits(raw);
        if !entry.present() {
            return Meaning::Absent;
        }
        let page = level.reserved_page.filter(|_| level.shift == x86::PAGE_SHIFT || entry.large());
        let reserved = raw & page.unwrap_or(level.reserved);
        if reserved != 0 {
            return Meaning::Reserved(reserved);
        }
        rights.user &= entry.user();
        rights.writable &= entry.writable();
        rights.no_execute |= entry.no_execute();
        if page.is_none() {
            return Meaning::Table(raw & if self.mode == Mode::Legacy { 0xffff_f000 } else { ADDRESS }, rights);
        }
        rights.dirty = entry.dirty();
        rights.global = entry.global() && self.registers.cr4.global_pages();
        rights.key = entry.key();
        let base = if self.mode == Mode::Legacy && level.shift == 22 {
            (raw & 0xffc0_0000) | (raw >> 13 & 0xff) << 32
        } else {
            raw & ADDRESS & (u64::MAX << level.shift)
        };
        Meaning::Page(base, rights)
    }

    /// The reserved bits that are set in the last entry of an inspection, if these are what stops the walk.
    #[must_use]
    pub fn reserved_bits(&self, step: &Step) -> u64 {
        let level = self.levels.iter().take(self.depth).find(|level| level.shift == step.shift);
        match level.map(|level| self.meaning(level, step.entry, Rights::default())) {
            Some(Meaning::Reserved(bits)) => bits,
            _ => 0,
        }
    }

    /// Sets the accessed bits of all entries and, for a write, the leaf's dirty bit. False: an entry has changed.
    fn mark(&self, tables: &mut impl Tables, trail: &Trail, want: Want) -> bool {
        let size = if self.mode == Mode::Legacy { 4 } else { 8 };
        let steps = trail.steps.get(..trail.len).unwrap_or_default();
        steps.iter().enumerate().all(|(i, step)| {
            let leaf = i + 1 == trail.len;
            let marked = step.entry | ACCESSED | if leaf && want == Want::Write { DIRTY } else { 0 };
            marked == step.entry || tables.replace(step.gpa, size, step.entry, marked)
        })
    }
}

/// What a table entry says, with the rights down to it.
enum Meaning {
    /// P is clear.
    Absent,
    /// These reserved bits are set.
    Reserved(u64),
    /// On at the table at this physical address.
    Table(u64, Rights),
    /// A page at this physical address.
    Page(u64, Rights),
}

/// The entries that a walk has read, from the root down.
#[derive(Default)]
struct Trail {
    steps: [Step; 5],
    len: usize,
}

impl Default for Step {
    fn default() -> Self {
        Self { shift: 0, gpa: Gpa(0), entry: 0 }
    }
}

impl Trail {
    fn push(&mut self, step: Step) {
        if let Some(slot) = self.steps.get_mut(self.len) {
            *slot = step;
            self.len += 1;
        }
    }
}

#[cfg(test)]
mod tests;
