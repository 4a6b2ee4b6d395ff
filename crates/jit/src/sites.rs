//! What is known of the places at which translated code can be left.

use crate::classify::{Class, Units};
use crate::flags::Recipe;
use crate::region::{Future, Region};
use cpu::op::Op;
use iced_x86::Mnemonic;
use rustc_hash::FxHashMap;

/// Where the status flags are at a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// In the frame.
    Frame,
    /// In the host's RFLAGS, when the fault happens.
    Host,
    /// To be made again.
    Recipe(Recipe),
    /// As the recipe says whose number is in the frame, or in the frame themselves if that is 0.
    Numbered,
}

/// What a site does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An instruction that may fault or be interpreted.
    Instruction,
    /// An instruction before which requests are looked for.
    Poll,
    /// It accesses memory through a remembered TLB entry.
    Access {
        /// Bytes.
        size: u8,
        /// Whether it writes.
        write: bool,
        /// See [`Group::ahead`].
        ahead: u8,
    },
    /// A jump by the jump cache.
    Jump {
        /// What it has added to RSP when it is left.
        pops: i32,
    },
    /// The first of a group of accesses, which checks for all of them.
    Group(Group),
    /// A jump within the page, made by the host jump whose displacement is at `patch` in the code buffer.
    Direct {
        /// Where in the page it goes.
        target: u16,
        /// Offset in the code buffer.
        patch: u32,
    },
}

/// What the first of a group of accesses checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Bytes from the lowest to the highest of all.
    pub span: u16,
    /// Whether any of them writes.
    pub write: bool,
    /// Bytes from the lowest of all to the first one's own.
    pub own: u16,
    /// Whether that one writes.
    pub own_write: bool,
    /// The first one's address must be a multiple of this for the TLB to be filled before the instruction is executed,
    /// which then cannot fault before its access. 0: not even then.
    pub ahead: u8,
    /// What becomes of the flags.
    pub flags: Future,
    /// Offset in the code buffer of the displacement of the jump that is made when the group has no page in common.
    pub patch: u32,
}

/// A site: an instruction that can leave translated code.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Where in its page the guest instruction is.
    pub offset: u16,
    /// The units whose registers must be loaded to go on behind it.
    pub units: Units,
    /// Where the status flags are.
    pub flags: Flags,
    /// What it does.
    pub kind: Kind,
    /// Where the code for what follows it is in the code buffer; 0: nowhere.
    pub next: u32,
    /// Where that of an access is tried again.
    pub again: u32,
    /// Where in the page that is.
    pub following: u16,
}

/// All sites of a vCPU, and which of them host code belongs to.
#[derive(Debug, Default)]
pub struct Sites {
    all: Vec<Site>,
    /// Each one's instruction, for counting.
    named: Vec<(Mnemonic, Class)>,
    /// Host code from this offset on belongs to this site: for each of the two parts of the code buffer, ascending.
    faults: [Vec<(u32, u32)>; 2],
    /// Where the second part begins.
    middle: usize,
    /// Recipes, numbered from 1.
    recipes: Vec<Recipe>,
    numbers: FxHashMap<Recipe, u32>,
    /// The instructions that were interpreted so far.
    ops: Vec<Option<Box<Op>>>,
}

impl Sites {
    /// None, for a code buffer whose second part begins at offset `middle`.
    #[must_use]
    pub fn new(middle: usize) -> Self {
        Self { middle, ..Self::default() }
    }

    /// Number of sites.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Adds one and gives its number.
    pub fn add(&mut self, site: Site) -> u32 {
        self.all.push(site);
        self.all.len() as u32 - 1
    }

    /// The number of a recipe.
    pub fn number(&mut self, recipe: Recipe) -> u32 {
        *self.numbers.entry(recipe).or_insert_with(|| {
            self.recipes.push(recipe);
            self.recipes.len() as u32
        })
    }

    /// The recipe of a number.
    #[must_use]
    pub fn recipe(&self, number: u32) -> Option<&Recipe> {
        self.recipes.get((number as usize).checked_sub(1)?)
    }

    /// A site by its number.
    #[must_use]
    pub fn get(&self, number: u32) -> Option<&Site> {
        self.all.get(number as usize)
    }

    /// A site's instruction, decoded by `decode` if it was not before.
    pub fn op(&mut self, number: u32, decode: impl FnOnce() -> Option<Op>) -> Option<&Op> {
        let number = number as usize;
        if self.ops.len() <= number {
            self.ops.resize_with(number + 1, || None);
        }
        let slot = self.ops.get_mut(number)?;
        if slot.is_none() {
            *slot = decode().map(Box::new);
        }
        slot.as_deref()
    }

    /// A site to be completed.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut Site> {
        self.all.get_mut(number as usize)
    }

    /// Notes the instructions of all sites that were added since the last time, for `region`.
    pub fn name(&mut self, region: &Region) {
        let insn = |offset: u16| {
            let block = region.blocks.partition_point(|block| block.offset <= offset).checked_sub(1)?;
            region.insns(region.blocks.get(block)?).iter().find(|insn| insn.offset == offset)
        };
        for site in self.all.get(self.named.len()..).into_iter().flatten() {
            let named = insn(site.offset).map(|insn| (insn.i.mnemonic(), insn.class));
            self.named.push(named.unwrap_or((Mnemonic::INVALID, Class::Interpret)));
        }
    }

    /// A site's instruction.
    #[must_use]
    pub fn named(&self, number: u32) -> Option<(Mnemonic, Class)> {
        self.named.get(number as usize).copied()
    }

    /// Faults of host code from `host` on belong to `site`.
    pub fn covers(&mut self, host: usize, site: u32) {
        let part = usize::from(host >= self.middle);
        self.faults[part].push((host as u32, site));
    }

    /// The site that host code at `host` belongs to.
    #[must_use]
    pub fn at(&self, host: usize) -> Option<u32> {
        let faults = &self.faults[usize::from(host >= self.middle)];
        let after = faults.partition_point(|(start, _)| *start as usize <= host);
        faults.get(after.checked_sub(1)?).map(|(_, site)| *site)
    }

    /// Forgets all but the first `sites` and what covers host code from `origins` on, one in each part: a translation
    /// that came to nothing.
    pub fn truncate(&mut self, sites: usize, origins: [usize; 2]) {
        self.all.truncate(sites);
        self.ops.truncate(sites);
        self.named.truncate(sites);
        for (faults, origin) in self.faults.iter_mut().zip(origins) {
            let keep = faults.partition_point(|(start, _)| (*start as usize) < origin);
            faults.truncate(keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(offset: u16) -> Site {
        let kind = Kind::Access { size: 8, write: true, ahead: 1 };
        Site { offset, units: Units::default(), flags: Flags::Frame, kind, next: 0, again: 0, following: offset + 1 }
    }

    #[test]
    fn host_code_belongs_to_the_last_site_that_began() {
        let mut sites = Sites::new(1000);
        assert_eq!(sites.at(5), None);
        let (a, b) = (sites.add(site(1)), sites.add(site(2)));
        sites.covers(100, a);
        sites.covers(1020, b);
        sites.covers(120, b);
        assert_eq!([99, 100, 119, 120, 999].map(|host| sites.at(host)), [None, Some(a), Some(a), Some(b), Some(b)]);
        assert_eq!([1000, 1020, 5000].map(|host| sites.at(host)), [None, Some(b), Some(b)]);
        assert_eq!(sites.get(b).map(|site| site.offset), Some(2));
        assert!(sites.get(2).is_none());
    }

    #[test]
    fn a_translation_that_came_to_nothing_leaves_nothing() {
        let mut sites = Sites::new(1000);
        let kept = sites.add(site(1));
        sites.covers(100, kept);
        sites.covers(1100, kept);
        let gone = sites.add(site(2));
        sites.covers(200, gone);
        sites.covers(1200, gone);
        sites.truncate(1, [200, 1200]);
        assert_eq!((sites.len(), sites.at(250), sites.at(1250)), (1, Some(kept), Some(kept)));
        assert_eq!(sites.add(site(3)), gone);
    }

    #[test]
    fn sites_know_their_instruction() {
        // nop; cpuid; ret
        let mut page = [0x90, 0x0f, 0xa2, 0xc3].to_vec();
        page.resize(4096, 0xcc);
        let model = cpu::cpuid::Model::max();
        let (graph, mode) = (crate::graph::Graph::default(), crate::classify::Mode::default());
        let source = crate::region::Source { bytes: &page, model: &model, mode, graph: &graph };
        let region = crate::region::Explorer::default().region(&source, 0, |_| true).unwrap();
        let mut sites = Sites::default();
        let (ret, cpuid) = (sites.add(site(3)), sites.add(site(1)));
        sites.name(&region);
        assert_eq!(sites.named(ret), Some((Mnemonic::Ret, Class::Ret)));
        assert_eq!(sites.named(cpuid), Some((Mnemonic::Cpuid, Class::Interpret)));
        assert_eq!(sites.named(2), None);
    }
}
