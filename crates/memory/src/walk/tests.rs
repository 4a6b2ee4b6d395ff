//! The walker against the manual's rules.
//!
//! [`verdict`] is a second statement of SDM vol. 3A, 4.6.1 and 4.7, one `if` a sentence, written without looking at
//! the walker's tables. Every combination of rights, privilege, control bits, access and page size is compared.

use super::*;
use std::collections::BTreeMap;
use x86::{Cr0, Cr4, Efer};

/// Page tables in a map; what is not there reads as not present.
#[derive(Default)]
struct Memory {
    entries: BTreeMap<u64, u64>,
    replaced: Vec<(u64, u64)>,
    /// Another processor's store, made just before the first compare-exchange.
    interference: Option<(u64, u64)>,
}

impl Tables for Memory {
    fn read(&mut self, gpa: Gpa, _size: u64) -> u64 {
        self.entries.get(&gpa.0).copied().unwrap_or(0)
    }

    fn replace(&mut self, gpa: Gpa, _size: u64, old: u64, new: u64) -> bool {
        if let Some((gpa, entry)) = self.interference.take() {
            self.entries.insert(gpa, entry);
        }
        let now = self.read(gpa, 8);
        if now == old {
            self.entries.insert(gpa.0, new);
            self.replaced.push((gpa.0, new));
        }
        now == old
    }
}

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;
const GVA: Gva = Gva(0x0000_1234_5678_9abc);
const FRAME: u64 = 0x40_c000_0000 & 0xff_ffff_ffff;

/// A paging mode and a page size.
#[derive(Clone, Copy, Debug)]
struct Shape {
    mode: Mode,
    leaf: u32,
}

const SHAPES: [Shape; 10] = [
    Shape { mode: Mode::Legacy, leaf: 12 },
    Shape { mode: Mode::Legacy, leaf: 22 },
    Shape { mode: Mode::Pae, leaf: 12 },
    Shape { mode: Mode::Pae, leaf: 21 },
    Shape { mode: Mode::Level4, leaf: 12 },
    Shape { mode: Mode::Level4, leaf: 21 },
    Shape { mode: Mode::Level4, leaf: 30 },
    Shape { mode: Mode::Level5, leaf: 12 },
    Shape { mode: Mode::Level5, leaf: 21 },
    Shape { mode: Mode::Level5, leaf: 30 },
];

fn registers(mode: Mode) -> PagingRegisters {
    let long = matches!(mode, Mode::Level4 | Mode::Level5);
    PagingRegisters {
        cr0: Cr0::new().with_protection(true).with_paging(mode != Mode::Off),
        cr3: 0x1000,
        cr4: Cr4::new()
            .with_page_size_extensions(true)
            .with_physical_address_extension(!matches!(mode, Mode::Off | Mode::Legacy))
            .with_la57(mode == Mode::Level5),
        efer: Efer::new().with_long_mode_active(long).with_long_mode_enable(long),
        ..PagingRegisters::default()
    }
}

impl Shape {
    fn linear(self) -> Gva {
        if matches!(self.mode, Mode::Level4 | Mode::Level5) { GVA } else { Gva(GVA.0 & 0xffff_ffff) }
    }

    /// The levels that are read from memory, root first.
    fn shifts(self) -> Vec<u32> {
        let all: &[u32] = match self.mode {
            Mode::Off => &[],
            Mode::Legacy => &[22, 12],
            Mode::Pae => &[21, 12],
            Mode::Level4 => &[39, 30, 21, 12],
            Mode::Level5 => &[48, 39, 30, 21, 12],
        };
        all.iter().copied().filter(|shift| *shift >= self.leaf).collect()
    }

    /// Where the entries for [`GVA`] are: level `i`'s table is at 0x1000 × (i + 1).
    fn entries(self) -> Vec<u64> {
        let (size, bits) = if self.mode == Mode::Legacy { (4, 10) } else { (8, 9) };
        let index = |shift: u32| (self.linear().0 >> shift) & ((1 << bits) - 1);
        (1..).zip(self.shifts()).map(|(i, shift)| 0x1000 * i + index(shift) * size).collect()
    }

    /// Tables with `upper` bits in all entries but the last, which has `leaf` bits and maps [`Shape::frame`].
    fn tables(self, upper: u64, leaf: u64) -> Memory {
        let entries = self.entries();
        let mut memory = Memory::default();
        for (i, gpa) in (2..).zip(&entries) {
            memory.entries.insert(*gpa, (0x1000 * i) | upper);
        }
        let large = if self.leaf == 12 { 0 } else { PS };
        memory.entries.insert(entries[entries.len() - 1], self.frame() | large | leaf);
        memory
    }

    fn frame(self) -> u64 {
        if self.mode == Mode::Legacy { 0xc0c0_0000 } else { FRAME }
    }

    fn paging(self, change: impl FnOnce(&mut PagingRegisters)) -> Paging {
        let mut registers = registers(self.mode);
        change(&mut registers);
        let mut paging = Paging::new(40);
        paging.set(registers);
        let mut pdptes = [0; 4];
        pdptes[(self.linear().0 >> 30) as usize & 3] = 0x1001;
        paging.set_pdptes(pdptes);
        paging
    }
}

/// One access and everything that decides about it.
#[derive(Clone, Copy, Debug)]
struct Case {
    legacy: bool,
    user_page: bool,
    writable: bool,
    no_execute: bool,
    space: Space,
    want: Want,
    wp: bool,
    smep: bool,
    smap: bool,
    nxe: bool,
}

/// `None`: allowed. Else the error code.
fn verdict(c: Case) -> Option<u16> {
    let mut code = 1;
    if c.want == Want::Write {
        code |= 2;
    }
    if c.space == Space::User {
        code |= 4;
    }
    if c.want == Want::Execute && (c.smep || (c.nxe && !c.legacy)) {
        code |= 16;
    }
    if c.no_execute && !c.legacy && !c.nxe {
        return Some(code | 8);
    }
    let allowed = if c.space == Space::User {
        // User-mode accesses: never to supervisor-mode addresses.
        if !c.user_page {
            false
        } else if c.want == Want::Write {
            c.writable
        } else if c.want == Want::Execute {
            !c.no_execute || c.legacy
        } else {
            true
        }
    } else if c.user_page {
        // Supervisor-mode accesses to user-mode addresses.
        if c.want == Want::Read {
            if c.smap { c.space == Space::KernelAc } else { true }
        } else if c.want == Want::Write {
            if !c.wp {
                if c.smap { c.space == Space::KernelAc } else { true }
            } else if !c.writable {
                false
            } else if c.smap {
                c.space == Space::KernelAc
            } else {
                true
            }
        } else if c.smep {
            false
        } else {
            !c.no_execute || c.legacy
        }
    } else {
        // Supervisor-mode accesses to supervisor-mode addresses.
        if c.want == Want::Read {
            true
        } else if c.want == Want::Write {
            if c.wp { c.writable } else { true }
        } else {
            !c.no_execute || c.legacy
        }
    };
    if allowed { None } else { Some(code) }
}

fn flags(n: u32) -> [bool; 6] {
    [0, 1, 2, 3, 4, 5].map(|bit| n >> bit & 1 != 0)
}

const SPACES: [Space; 3] = [Space::Kernel, Space::KernelAc, Space::User];
const WANTS: [Want; 3] = [Want::Read, Want::Write, Want::Execute];

fn fault_code(result: Result<Translation, MemoryFault>) -> Option<u16> {
    match result {
        Ok(_) => None,
        Err(MemoryFault::Page { code, .. }) => Some(code.into_bits()),
        Err(MemoryFault::NonCanonical) => Some(0xffff),
        Err(MemoryFault::Trapped) => unreachable!("the walker traps nothing"),
    }
}

#[test]
fn every_combination_of_rights_agrees_with_the_manual() {
    let mut cases = 0;
    for shape in SHAPES {
        for control in 0..16 {
            let [wp, smep, smap, nxe, ..] = flags(control);
            let paging = shape.paging(|r| {
                r.cr0.set_write_protect(wp);
                r.cr4.set_smep(smep);
                r.cr4.set_smap(smap);
                r.efer.set_no_execute(nxe);
            });
            for rights in 0..64 {
                let [w1, u1, nx1, w2, u2, nx2] = flags(rights);
                let legacy = shape.mode == Mode::Legacy;
                let bits =
                    |w, u, nx| P | if w { W } else { 0 } | if u { U } else { 0 } | if nx && !legacy { NX } else { 0 };
                // A large page in the root's level has no upper entries.
                let alone = shape.shifts().len() == 1;
                let (user, writable, nx) = if alone { (u2, w2, nx2) } else { (u1 && u2, w1 && w2, nx1 || nx2) };
                for (space, want) in SPACES.into_iter().flat_map(|space| WANTS.map(|want| (space, want))) {
                    let mut memory = shape.tables(bits(w1, u1, nx1), bits(w2, u2, nx2));
                    let case =
                        Case { legacy, user_page: user, writable, no_execute: nx, space, want, wp, smep, smap, nxe };
                    let result = paging.walk(&mut memory, shape.linear(), space, want);
                    assert_eq!(fault_code(result), verdict(case), "{shape:?} {case:?}");
                    cases += 1;
                    if let Ok(translation) = result {
                        let offset = shape.linear().0 & ((1 << shape.leaf) - 1);
                        assert_eq!(translation.gpa.0, shape.frame() | offset, "{shape:?}");
                        assert_eq!(translation.shift, shape.leaf);
                        let entries = shape.entries();
                        for (i, gpa) in entries.iter().enumerate() {
                            let dirty = i + 1 == entries.len() && want == Want::Write;
                            let marks = memory.entries[gpa] & (A | D);
                            assert_eq!(marks, if dirty { A | D } else { A }, "{shape:?} {case:?} level {i}");
                        }
                    } else {
                        assert!(memory.replaced.is_empty(), "{shape:?} {case:?}: a fault sets no bits");
                    }
                }
            }
        }
    }
    assert_eq!(cases, 10 * 16 * 64 * 9);
}

#[test]
fn protection_keys_agree_with_the_manual() {
    for (shape, key) in SHAPES.into_iter().flat_map(|shape| [0u64, 5, 15].map(|key| (shape, key))) {
        for n in 0..64 {
            let [ad, wd, pke, pks, wp, user_page] = flags(n);
            let rights = (u32::from(ad) | u32::from(wd) << 1) << (2 * key);
            let paging = shape.paging(|r| {
                r.cr4.set_protection_keys(pke);
                r.cr4.set_supervisor_keys(pks);
                r.cr0.set_write_protect(wp);
                (r.pkru, r.pkrs) = if user_page { (rights, !rights) } else { (!rights, rights) };
            });
            let long = matches!(shape.mode, Mode::Level4 | Mode::Level5);
            let bits = P | W | if user_page { U } else { 0 };
            let leaf = bits | if long { key << 59 } else { 0 };
            for (space, want) in SPACES.into_iter().flat_map(|space| WANTS.map(|want| (space, want))) {
                if space == Space::User && !user_page {
                    continue;
                }
                let on = long && if user_page { pke } else { pks };
                let denied = on
                    && match want {
                        Want::Read => ad,
                        Want::Write => ad || (wd && (space == Space::User || wp)),
                        Want::Execute => false,
                    };
                let mut code = 1 | 32;
                if want == Want::Write {
                    code |= 2;
                }
                if space == Space::User {
                    code |= 4;
                }
                let result = paging.walk(&mut shape.tables(bits, leaf), shape.linear(), space, want);
                assert_eq!(fault_code(result), denied.then_some(code), "{shape:?} {n:06b} {space:?} {want:?}");
            }
        }
    }
}

#[test]
fn an_entry_that_is_not_present_gives_a_code_without_p() {
    for shape in SHAPES {
        let paging = shape.paging(|r| r.efer.set_no_execute(true));
        for (level, gpa) in shape.entries().into_iter().enumerate() {
            let mut memory = shape.tables(P | W | U, P | W | U);
            // All other bits set: nothing else of a not-present entry counts.
            memory.entries.insert(gpa, !P);
            let code = |space, want, memory: &mut Memory| fault_code(paging.walk(memory, shape.linear(), space, want));
            assert_eq!(code(Space::Kernel, Want::Read, &mut memory), Some(0), "{shape:?} level {level}");
            assert_eq!(code(Space::User, Want::Write, &mut memory), Some(6));
            let fetch = if shape.mode == Mode::Legacy { 4 } else { 20 };
            assert_eq!(code(Space::User, Want::Execute, &mut memory), Some(fetch));
            assert!(memory.replaced.is_empty());
        }
    }
}

/// Reserved bits for 40 address bits, as in the SDM's figures 4-4 to 4-11.
fn reserved(shape: Shape, shift: u32, leaf: bool) -> Vec<u32> {
    let page = leaf && shift > 12;
    match (shape.mode, shift, page) {
        (Mode::Legacy, 22, true) => vec![21],
        (Mode::Legacy, ..) => vec![],
        (Mode::Pae, _, true) => (13..=20).chain(40..=63).collect(),
        (Mode::Pae, ..) => (40..=63).collect(),
        (_, 39 | 48, _) => std::iter::once(7).chain(40..=51).chain([63]).collect(),
        (_, 30, true) => (13..=29).chain(40..=51).chain([63]).collect(),
        (_, 21, true) => (13..=20).chain(40..=51).chain([63]).collect(),
        _ => (40..=51).chain([63]).collect(),
    }
}

#[test]
fn exactly_the_reserved_bits_are_reserved() {
    for shape in SHAPES {
        let paging = shape.paging(|_| ());
        let shifts = shape.shifts();
        for (level, (gpa, shift)) in shape.entries().into_iter().zip(&shifts).enumerate() {
            let leaf = level + 1 == shifts.len();
            let width = if shape.mode == Mode::Legacy { 32 } else { 64 };
            for bit in 1..width {
                // A change of PS changes what the entry is, but for the top levels; address bits of a table move it.
                let moves = !leaf && (12..40).contains(&bit);
                let ps = bit == 7 && matches!(*shift, 21 | 22 | 30);
                let rights = bit == 1 || bit == 2;
                if moves || ps || rights {
                    continue;
                }
                let mut memory = shape.tables(P | W | U, P | W | U);
                *memory.entries.get_mut(&gpa).expect("entry") |= 1 << bit;
                let expected = reserved(shape, *shift, leaf).contains(&bit).then_some(9);
                let result = paging.walk(&mut memory, shape.linear(), Space::Kernel, Want::Read);
                assert_eq!(fault_code(result), expected, "{shape:?} level {level} bit {bit}");
            }
        }
    }
}

#[test]
fn the_physical_address_width_moves_the_reserved_bits() {
    let shape = SHAPES[4];
    for width in [36, 40, 46, 52] {
        let mut paging = shape.paging(|_| ());
        paging.set_physical_bits(width);
        for bit in 36..52 {
            let mut memory = shape.tables(P, P | 1 << bit);
            memory.entries.insert(shape.entries()[3], 0x5000 | P | 1 << bit);
            let result = paging.walk(&mut memory, shape.linear(), Space::Kernel, Want::Read);
            assert_eq!(fault_code(result), (bit >= width).then_some(9), "width {width} bit {bit}");
        }
    }
}

#[test]
fn pse36_takes_address_bits_from_the_entry() {
    let shape = SHAPES[1];
    let offset = shape.linear().0 & 0x3f_ffff;
    let mut paging = shape.paging(|_| ());
    let entry = 0xc0c0_0000 | 0xa5 << 13 | 1 << 12 | PS | P;
    let mut memory = shape.tables(0, 0);
    memory.entries.insert(shape.entries()[0], entry);
    let translation = paging.walk(&mut memory, shape.linear(), Space::Kernel, Want::Read).expect("allowed");
    assert_eq!(translation.gpa.0, 0xa5_c0c0_0000 | offset);
    // With 36 address bits, entry bits 21:17 are reserved.
    paging.set_physical_bits(36);
    assert_eq!(fault_code(paging.walk(&mut memory, shape.linear(), Space::Kernel, Want::Read)), Some(9));
    memory.entries.insert(shape.entries()[0], 0xc0c0_0000 | 0xf << 13 | PS | P);
    let translation = paging.walk(&mut memory, shape.linear(), Space::Kernel, Want::Read).expect("allowed");
    assert_eq!(translation.gpa.0, 0xf_c0c0_0000 | offset);
}

#[test]
fn without_pse_the_size_bit_is_ignored() {
    let shape = SHAPES[0];
    let paging = shape.paging(|r| r.cr4.set_page_size_extensions(false));
    let mut memory = shape.tables(P | PS, P);
    let translation = paging.walk(&mut memory, shape.linear(), Space::Kernel, Want::Read).expect("allowed");
    assert_eq!(translation.shift, 12);
}

#[test]
fn pae_pointers_are_registers_and_checked_when_loaded() {
    let mut paging = SHAPES[2].paging(|_| ());
    let mut memory = Memory::default();
    for (i, pdpte) in [0x1001, 0, 0x3019, 0xffff_ffff_ffff_fffe].into_iter().enumerate() {
        memory.entries.insert(0x8020 + 8 * i as u64, pdpte);
    }
    // P, PWT and PCD may be set; an entry that is not present may have anything.
    let pdptes = paging.read_pdptes(&mut memory, 0x8020 | 0x18).expect("valid");
    assert_eq!(pdptes, [0x1001, 0, 0x3019, 0xffff_ffff_ffff_fffe]);
    for bit in [1, 2, 5, 6, 7, 8, 40, 62, 63] {
        memory.entries.insert(0x8020, 0x1001 | 1 << bit);
        assert_eq!(paging.read_pdptes(&mut memory, 0x8020), None, "bit {bit}");
    }
    paging.set_pdptes(pdptes);
    // 0x4000_0000 goes by the second pointer, which is not present.
    let result = paging.walk(&mut memory, Gva(0x4000_0000), Space::User, Want::Write);
    assert_eq!(fault_code(result), Some(6));
}

#[test]
fn canonical_form_depends_on_the_levels() {
    let walk = |shape: Shape, gva| {
        let mut memory = shape.tables(P, P);
        shape.paging(|_| ()).walk(&mut memory, Gva(gva), Space::Kernel, Want::Read)
    };
    for (gva, four, five) in [
        (0x0000_7fff_ffff_ffff, true, true),
        (0x0000_8000_0000_0000, false, true),
        (0xffff_7fff_ffff_ffff, false, true),
        (0xffff_8000_0000_0000, true, true),
        (0x00ff_ffff_ffff_ffff, false, true),
        (0x0100_0000_0000_0000, false, false),
        (0xff00_0000_0000_0000, false, true),
        (0xfeff_ffff_ffff_ffff, false, false),
    ] {
        assert_eq!(walk(SHAPES[4], gva) != Err(MemoryFault::NonCanonical), four, "{gva:x}");
        assert_eq!(walk(SHAPES[7], gva) != Err(MemoryFault::NonCanonical), five, "{gva:x}");
    }
}

#[test]
fn without_paging_addresses_are_32_bits_and_all_is_allowed() {
    let paging = Paging::new(40);
    for (space, want) in SPACES.into_iter().flat_map(|space| WANTS.map(|want| (space, want))) {
        let result = paging.walk(&mut Memory::default(), Gva(0x1_8765_4321), space, want).expect("allowed");
        assert_eq!((result.gpa, result.shift), (Gpa(0x8765_4321), 12));
    }
}

#[test]
fn bits_that_are_set_are_not_written_again() {
    let shape = SHAPES[4];
    let mut memory = shape.tables(P | W | A, P | W | A);
    let paging = shape.paging(|_| ());
    paging.walk(&mut memory, shape.linear(), Space::Kernel, Want::Read).expect("allowed");
    assert!(memory.replaced.is_empty());
    let read = paging.walk(&mut memory, shape.linear(), Space::Kernel, Want::Read).expect("allowed");
    assert!(!read.rights.dirty);
    let write = paging.walk(&mut memory, shape.linear(), Space::Kernel, Want::Write).expect("allowed");
    assert!(write.rights.dirty && memory.replaced.len() == 1);
    assert!(paging.walk(&mut memory, shape.linear(), Space::Kernel, Want::Read).expect("allowed").rights.dirty);
}

#[test]
fn an_entry_that_changes_under_the_walk_is_walked_again() {
    let shape = SHAPES[4];
    let paging = shape.paging(|_| ());
    let last = shape.entries()[3];
    let mut memory = shape.tables(P | W, P | W);
    memory.interference = Some((last, 0x7000 | P | W));
    let result = paging.walk(&mut memory, shape.linear(), Space::Kernel, Want::Write).expect("allowed");
    assert_eq!(result.gpa.page(), Gpa(0x7000));
    assert_eq!(memory.entries[&last], 0x7000 | P | W | A | D);
    // Taken away meanwhile: the fault is that of the new entry, which gets no bits.
    let mut memory = shape.tables(P | W, P | W);
    memory.interference = Some((last, 0x7000));
    let result = paging.walk(&mut memory, shape.linear(), Space::Kernel, Want::Write);
    assert_eq!(fault_code(result), Some(2));
    assert_eq!(memory.entries[&last], 0x7000);
}

#[test]
fn global_needs_pge() {
    let shape = SHAPES[4];
    for pge in [false, true] {
        let paging = shape.paging(|r| r.cr4.set_global_pages(pge));
        let mut memory = shape.tables(P | G, P | G);
        let result = paging.walk(&mut memory, shape.linear(), Space::Kernel, Want::Read).expect("allowed");
        assert_eq!(result.rights.global, pge);
    }
}

#[test]
fn inspection_shows_each_level_and_changes_nothing() {
    for shape in SHAPES {
        let mut memory = shape.tables(P, P);
        let seen = shape.paging(|_| ()).inspect(&mut memory, shape.linear());
        let in_memory: Vec<_> = seen.steps.iter().filter(|s| !(shape.mode == Mode::Pae && s.shift == 30)).collect();
        assert_eq!(in_memory.iter().map(|s| s.shift).collect::<Vec<_>>(), shape.shifts());
        assert_eq!(in_memory.iter().map(|s| s.gpa.0).collect::<Vec<_>>(), shape.entries());
        assert!(in_memory.iter().all(|s| memory.entries[&s.gpa.0] == s.entry));
        assert_eq!(seen.translation.expect("mapped").shift, shape.leaf);
        assert!(memory.replaced.is_empty());
        memory.entries.insert(shape.entries()[0], 0);
        let seen = shape.paging(|_| ()).inspect(&mut memory, shape.linear());
        assert_eq!((seen.translation, seen.steps.last().expect("a step").entry), (None, 0));
    }
}

#[test]
fn tables_of_all_ones_fault_and_do_not_panic() {
    struct Ones;
    impl Tables for Ones {
        fn read(&mut self, _: Gpa, size: u64) -> u64 {
            u64::MAX >> (64 - 8 * size)
        }
        fn replace(&mut self, _: Gpa, _: u64, _: u64, _: u64) -> bool {
            true
        }
    }
    for shape in SHAPES {
        let result = shape.paging(|_| ()).walk(&mut Ones, shape.linear(), Space::Kernel, Want::Read);
        assert!(matches!(fault_code(result), Some(9)), "{shape:?} {result:?}");
    }
}
