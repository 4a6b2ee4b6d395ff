//! The TLB against the walker: whatever happened before, an access gives what a fresh walk gives, and so do the checks
//! of translated code and its reliance on fetch translations.

use super::*;
use crate::hostmem::HostAccess;
use crate::mmu::{FetchPage, PagingRegisters};
use crate::walk::{Paging, Tables};
use crate::{PhysicalMap, Scalar};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Address spaces, each with its own user half; the kernel half is shared.
const ROOTS: u64 = 3;
/// 2 MiB regions in each half.
const REGIONS: u64 = 2;
/// Pages used in each region.
const PAGES: u64 = 4;
const KERNEL: u64 = 0xffff_8000_0000_0000;
const USER: u64 = 0x4000_0000;
/// Frames that pages map.
const FRAMES: u64 = 0x40_0000;

/// A region of the kernel's half (0) or of the user half of root `n - 1`.
#[derive(Clone, Copy, Debug)]
struct Place {
    half: u64,
    region: u64,
    page: u64,
}

impl Place {
    fn gva(self) -> u64 {
        // Regions are far enough apart for their pages to share slots.
        let base = if self.half == 0 { KERNEL } else { USER };
        base + self.region * (1 << 21) + self.page * 0x1000
    }

    /// Fixed places: roots at 0x1000, then for each half a PDPT, a PD and a PT for each region.
    fn pde(self) -> u64 {
        0x1_0000 + self.half * 0x1_0000 + 0x1000 + self.region * 8
    }

    fn pt(self) -> u64 {
        0x1_0000 + self.half * 0x1_0000 + 0x2000 + self.region * 0x1000
    }

    fn pte(self) -> u64 {
        self.pt() + self.page * 8
    }
}

#[derive(Clone, Debug)]
enum Op {
    Access { half: bool, region: u64, page: u64, space: u8, want: u8, crossing: bool },
    SetPage { place: Place, bits: u64, frame: u64 },
    SetRegion { place: Place, bits: u64, large: bool, frame: u64 },
    Switch { root: u64, keep: bool },
    Toggle(u8),
    Keys { pkru: u32, pkrs: u32 },
    Invpcid(u8, u64),
    Code(u64),
}

fn place() -> impl Strategy<Value = Place> {
    (0..=ROOTS, 0..REGIONS, 0..PAGES).prop_map(|(half, region, page)| Place { half, region, page })
}

/// P, R/W, U/S, G, NX and a key out of four, mostly present.
fn bits() -> impl Strategy<Value = u64> {
    (0..10u8, any::<[bool; 4]>(), 0..4u64).prop_map(|(p, [w, u, g, nx], key)| {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        bit(p > 0, P) | bit(w, W) | bit(u, U) | bit(g, G) | bit(nx, NX) | key << 59
    })
}

fn op() -> impl Strategy<Value = Op> {
    let access = (any::<(bool, bool)>(), 0..REGIONS, 0..PAGES, 0..3u8, 0..3u8);
    prop_oneof![
        20 => access.prop_map(|((half, crossing), region, page, space, want)| {
            Op::Access { half, region, page, space, want, crossing }
        }),
        4 => (place(), bits(), 0..32u64).prop_map(|(place, bits, frame)| Op::SetPage { place, bits, frame }),
        2 => (place(), bits(), any::<bool>(), 0..4u64)
            .prop_map(|(place, bits, large, frame)| Op::SetRegion { place, bits, large, frame }),
        3 => (0..ROOTS, any::<bool>()).prop_map(|(root, keep)| Op::Switch { root, keep }),
        2 => (0..8u8).prop_map(Op::Toggle),
        1 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Op::Keys { pkru: u32::from(a), pkrs: u32::from(b) }),
        1 => (0..4u8, 0..ROOTS).prop_map(|(kind, root)| Op::Invpcid(kind, root)),
        1 => (0..32u64).prop_map(Op::Code),
    ]
}

/// Page tables as the reference walk sees them: what it would set is forgotten.
struct ReadOnly<'a>(&'a PhysicalMap);

impl Tables for ReadOnly<'_> {
    fn read(&mut self, gpa: Gpa, _size: u64) -> u64 {
        peek(self.0, gpa.0)
    }
    fn replace(&mut self, _: Gpa, _: u64, _: u64, _: u64) -> bool {
        true
    }
}

struct World {
    map: Arc<PhysicalMap>,
    mmu: Mmu,
    pcid: bool,
    root: u64,
    /// Every site there was, in whatever table.
    sites: BTreeSet<u32>,
    /// Every reliance there was: the stamp, on whose behalf, the page, and where it was.
    relied: Vec<(u64, Space, u64, Hva)>,
}

impl World {
    fn new(pcid: bool) -> Self {
        let (map, _) = map();
        for root in 0..ROOTS {
            let table = 0x1000 * (root + 1);
            poke(&map, table, (0x1_0000 + (root + 1) * 0x1_0000) | P | W | U);
            poke(&map, table + 256 * 8, 0x1_0000 | P | W | U);
        }
        for half in 0..=ROOTS {
            let pdpt = 0x1_0000 + half * 0x1_0000;
            poke(&map, pdpt + if half == 0 { 0 } else { 8 }, (pdpt + 0x1000) | P | W | U);
            for region in 0..REGIONS {
                let place = Place { half, region, page: 0 };
                poke(&map, place.pde(), place.pt() | P | W | U);
            }
        }
        // Each page of RAM that can be mapped says at its start and at its end where it is.
        let small = (0..32).map(|frame| FRAMES + frame * 0x1000);
        let large = (0..4).flat_map(|frame| [0, 1, 2, 3, 511].map(|page| FRAMES + (frame << 21) + page * 0x1000));
        for page in small.chain(large) {
            poke(&map, page, page);
            poke(&map, page + 4088, page);
        }
        let mut mmu = Mmu::new(Arc::clone(&map), 0);
        let mut registers = long_mode(0x1000);
        registers.cr4.set_pcid(pcid);
        mmu.set_registers(registers);
        Self { map, mmu, pcid, root: 0, sites: BTreeSet::new(), relied: Vec::new() }
    }

    fn reference(&self, gva: u64, space: Space, want: Want) -> Result<u64, MemoryFault> {
        let mut paging = Paging::new(40);
        paging.set(*self.mmu.registers());
        paging.walk(&mut ReadOnly(&self.map), Gva(gva), space, want).map(|translation| translation.gpa.0)
    }

    /// As an operating system would: the page that holds `gva`, in every context that can see it.
    fn invalidate(&mut self, half: u64, gva: u64) {
        if half == 0 || half == self.root + 1 {
            self.mmu.invlpg(Gva(gva));
        }
        if self.pcid {
            for root in (0..ROOTS).filter(|root| half == 0 || half == root + 1) {
                self.mmu.invpcid(Invpcid::Address { pcid: root as u16 + 1, gva: Gva(gva) });
            }
        }
    }

    fn toggle(&mut self, n: u8) {
        let mut r = *self.mmu.registers();
        match n {
            0 => r.cr0.set_write_protect(!r.cr0.write_protect()),
            1 => r.cr4.set_smep(!r.cr4.smep()),
            2 => r.cr4.set_smap(!r.cr4.smap()),
            3 => r.cr4.set_global_pages(!r.cr4.global_pages()),
            4 => r.efer.set_no_execute(!r.efer.no_execute()),
            5 => r.cr4.set_protection_keys(!r.cr4.protection_keys()),
            6 => r.cr4.set_supervisor_keys(!r.cr4.supervisor_keys()),
            _ => return self.mmu.flush_all(),
        }
        self.mmu.set_registers(r);
    }

    fn apply(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match *op {
            Op::Access { half, region, page, space, want, crossing } => {
                let place = Place { half: u64::from(half), region, page };
                let space = [Space::Kernel, Space::KernelAc, Space::User][usize::from(space)];
                let want = [Want::Read, Want::Write, Want::Execute][usize::from(want)];
                return self.access(place.gva(), space, want, crossing);
            }
            Op::SetPage { place, bits, frame } => {
                let bits = if place.half == 0 { bits } else { bits & !G };
                poke(&self.map, place.pte(), (FRAMES + frame * 0x1000) | bits);
                self.invalidate(place.half, place.gva());
            }
            Op::SetRegion { place, bits, large, frame } => {
                let bits = if place.half == 0 { bits } else { bits & !G };
                let was_large = peek(&self.map, place.pde()) & PS != 0;
                let entry = if large { (FRAMES + (frame << 21)) | PS | bits } else { place.pt() | bits | P };
                poke(&self.map, place.pde(), entry);
                if was_large {
                    // One address will do, and not even one that was used.
                    self.invalidate(place.half, place.gva() + 0x10_0000);
                } else {
                    for page in 0..=PAGES {
                        self.invalidate(place.half, Place { page, ..place }.gva());
                    }
                }
            }
            Op::Switch { root, keep } => {
                self.root = root;
                let cr3 = (0x1000 * (root + 1)) | if self.pcid { root + 1 } else { 0 };
                prop_assert!(self.mmu.load_cr3(cr3, keep).is_ok());
            }
            Op::Toggle(n) => self.toggle(n),
            Op::Keys { pkru, pkrs } => {
                let registers = PagingRegisters { pkru, pkrs, ..*self.mmu.registers() };
                self.mmu.set_registers(registers);
            }
            Op::Invpcid(kind, root) => self.mmu.invpcid(match kind {
                0 => Invpcid::Address { pcid: root as u16 + 1, gva: Gva(USER) },
                1 => Invpcid::SingleContext { pcid: root as u16 + 1 },
                2 => Invpcid::AllContextsGlobal,
                _ => Invpcid::AllContexts,
            }),
            Op::Code(frame) => {
                let hva = self.map.hva_of(Gpa(FRAMES + frame * 0x1000)).expect("ram");
                self.mmu.protect_code(hva, 64);
            }
        }
        Ok(())
    }

    fn access(&mut self, gva: u64, space: Space, want: Want, crossing: bool) -> Result<(), TestCaseError> {
        // What crosses uses the last bytes of the page before.
        let crossing = crossing && want != Want::Execute;
        let at = if crossing { gva.wrapping_sub(4) } else { gva };
        let expected = match (crossing, self.reference(at, space, want)) {
            (true, Ok(_)) => self.reference(gva, space, want),
            (_, first) => first,
        };
        self.mmu.set_space(space);
        self.inline_checks(at, want, expected.ok().filter(|_| !crossing))?;
        match want {
            Want::Read => {
                let fast = self.mmu.read_fast::<u64>(Gva(at));
                let slow = self.mmu.read::<u64>(BY, space, Gva(at));
                prop_assert_eq!(slow.is_ok(), expected.is_ok(), "{:?} {:?}", slow, expected);
                match (slow, expected) {
                    (Ok(value), Ok(gpa)) if !crossing => prop_assert_eq!(value, gpa),
                    (Ok(value), Ok(gpa)) => prop_assert_eq!(value >> 32, gpa & 0xffff_ffff),
                    (slow, expected) => prop_assert_eq!(slow.err(), expected.err()),
                }
                prop_assert!(fast.is_none() || fast == slow.ok(), "{:?} {:?}", fast, slow);
            }
            Want::Write => {
                if let (false, Ok(gpa)) = (crossing, expected) {
                    let hva = self.map.hva_of(Gpa(gpa)).expect("ram");
                    // SAFETY: guest RAM of this test.
                    unsafe { u64::store(hva.0, 0, 0) };
                    let fast = self.mmu.write_fast(Gva(at), gpa);
                    prop_assert!(!(fast && self.map.code().marked(hva)), "a fast write to a page with code");
                    if !fast {
                        self.mmu.write(BY, space, Gva(at), gpa).map_err(|f| TestCaseError::fail(format!("{f:?}")))?;
                    }
                    prop_assert_eq!(peek(&self.map, gpa), gpa);
                    let leaf = self.mmu.inspect(Gva(at)).steps.last().expect("a leaf").entry;
                    prop_assert_eq!(leaf & (A | D), A | D);
                } else if let Err(fault) = expected {
                    prop_assert!(!self.mmu.write_fast(Gva(at), 0u64));
                    prop_assert_eq!(self.mmu.write(BY, space, Gva(at), 0u64), Err(fault));
                    prop_assert_eq!(self.mmu.modify(Gva(at), false, |old: u64| (old, ())), Err(fault));
                } else {
                    let old = self.mmu.modify(Gva(at), true, |old: u64| (old, old));
                    prop_assert_eq!(old.map(|old| old.to_wide() as u64 >> 32), expected.map(|gpa| gpa & 0xffff_ffff));
                }
            }
            Want::Execute => {
                let fast = self.mmu.fetch_fast(Gva(gva));
                let page = self.mmu.fetch_page(BY, Gva(gva));
                let expected = expected.map(|gpa| FetchPage::Memory(self.map.hva_of(Gpa(gpa)).expect("ram")));
                prop_assert_eq!(page, expected);
                prop_assert!(fast.is_none() || fast.map(FetchPage::Memory) == page.ok());
                let relied = self.mmu.rely_on_fetch(Gva(gva));
                prop_assert_eq!(relied, page.is_ok().then_some(self.mmu.fetch_stamp()));
                if let (Some(stamp), Ok(FetchPage::Memory(hva))) = (relied, page) {
                    self.relied.push((stamp, space, gva, hva));
                }
            }
        }
        let write = want == Want::Write;
        self.sites.extend(self.mmu.site(Gva(at), 8, write).filter(|_| want != Want::Execute));
        Ok(())
    }

    /// A site that comes with the entry of whatever page and table finds memory only where there is some.
    fn inline_checks(&self, at: u64, want: Want, gpa: Option<u64>) -> Result<(), TestCaseError> {
        let write = want == Want::Write;
        for site in self.sites.iter().filter(|_| want != Want::Execute) {
            if let Some(hva) = inline_check(&self.mmu, *site, at, 8, write) {
                prop_assert_eq!(Some(hva), gpa.and_then(|gpa| self.map.hva_of(Gpa(gpa))));
                prop_assert!(!write || !self.map.code().marked(hva));
            }
        }
        Ok(())
    }

    /// Whoever relies on a fetch translation, and finds that the stamp has not changed, is right.
    fn check_stamps(&mut self) -> Result<(), TestCaseError> {
        for space in [Space::Kernel, Space::KernelAc, Space::User] {
            self.mmu.set_space(space);
            let stamp = self.mmu.fetch_stamp();
            for (_, by, gva, hva) in self.relied.iter().filter(|relied| relied.0 == stamp) {
                prop_assert_eq!(*by == Space::User, space == Space::User);
                let gpa = self.reference(*gva, space, Want::Execute);
                prop_assert_eq!(gpa.map(|gpa| self.map.hva_of(Gpa(gpa))), Ok(Some(*hva)), "{:x} {:?}", gva, space);
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_access_gives_what_a_fresh_walk_gives(pcid: bool, ops in prop::collection::vec(op(), 1..300)) {
        let mut world = World::new(pcid);
        for op in &ops {
            world.apply(op)?;
            world.check_stamps()?;
        }
    }
}
