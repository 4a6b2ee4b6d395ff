//! What is known of the places at which translated code can be left.

use crate::classify::{Class, Units};
use crate::flags::Recipe;
use crate::region::{Future, Region};
use crate::segments;
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
    /// The first one of a block that has more than may still be executed.
    Meter,
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
    /// How many instructions of its block are not executed yet: from this one to the last.
    pub left: u16,
}

/// All sites of a vCPU, and which of them host code belongs to. Each segment of the code buffer has a range of numbers
/// for its sites; all of them are forgotten at once.
#[derive(Debug)]
pub struct Sites {
    segments: Vec<Segment>,
    /// The segment that gets what is added.
    current: usize,
    /// Recipes are numbered across segments, since code of one may jump to code of another with a number. Of these
    /// tables one gets what is added, the other is as it was when segment 0 began anew: see [`Sites::begin`].
    recipes: [Recipes; 2],
    /// Which one gets what is added.
    turn: usize,
}

/// The sites of a segment.
#[derive(Debug, Default)]
struct Segment {
    all: Vec<Site>,
    /// Each one's instruction, for counting.
    named: Vec<(Mnemonic, Class)>,
    /// Host code from this offset on belongs to this site, or to none: for each of its two parts, ascending.
    faults: [Vec<(u32, Option<u32>)>; 2],
    /// The instructions that were interpreted so far.
    ops: Vec<Option<Box<Op>>>,
}

#[derive(Debug, Default)]
struct Recipes {
    all: Vec<Recipe>,
    indices: FxHashMap<Recipe, u32>,
}

impl Sites {
    /// Without sites, for so many segments of code.
    #[must_use]
    pub fn new(segments: usize) -> Self {
        let segments = std::iter::repeat_with(Segment::default).take(segments).collect();
        Self { segments, current: 0, recipes: Default::default(), turn: 0 }
    }

    /// Number of sites in the current segment.
    #[must_use]
    pub fn len(&self) -> usize {
        self.segment().all.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the current segment has more sites than numbers, so that those that were added last must go.
    #[must_use]
    pub fn is_overfull(&self) -> bool {
        self.len() > segments::SITES
    }

    /// Forgets the sites of segment `segment`, which gets what is added from now on. Segments are to begin in turn.
    pub fn begin(&mut self, segment: usize) {
        self.current = segment;
        let Segment { all, named, faults, ops } = self.segment_mut();
        all.clear();
        named.clear();
        faults.iter_mut().for_each(Vec::clear);
        ops.clear();
        if segment == 0 {
            // Code lives until its segment begins anew. So what was in use two turns ago is in no code any more.
            self.turn ^= 1;
            self.recipes[self.turn] = Recipes::default();
        }
    }

    fn segment(&self) -> &Segment {
        &self.segments[self.current]
    }

    fn segment_mut(&mut self) -> &mut Segment {
        &mut self.segments[self.current]
    }

    /// Adds one and gives its number.
    pub fn add(&mut self, site: Site) -> u32 {
        self.segment_mut().all.push(site);
        segments::number(self.current, self.len() - 1)
    }

    /// The number of a recipe: not 0.
    pub fn number(&mut self, recipe: Recipe) -> u32 {
        let Recipes { all, indices } = &mut self.recipes[self.turn];
        let index = *indices.entry(recipe).or_insert_with(|| {
            all.push(recipe);
            all.len() as u32
        });
        index << 1 | self.turn as u32
    }

    /// The recipe of a number.
    #[must_use]
    pub fn recipe(&self, number: u32) -> Option<&Recipe> {
        self.recipes[(number & 1) as usize].all.get((number as usize >> 1).checked_sub(1)?)
    }

    /// A site by its number.
    #[must_use]
    pub fn get(&self, number: u32) -> Option<&Site> {
        let (segment, at) = segments::site(number);
        self.segments.get(segment)?.all.get(at)
    }

    /// A site to be completed.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut Site> {
        let (segment, at) = segments::site(number);
        self.segments.get_mut(segment)?.all.get_mut(at)
    }

    /// A site's instruction, decoded by `decode` if it was not before. `None`: it cannot be, or there is no such site.
    pub fn op(&mut self, number: u32, decode: impl FnOnce() -> Option<Op>) -> Option<&Op> {
        let (segment, at) = segments::site(number);
        let Segment { all, ops, .. } = self.segments.get_mut(segment)?;
        if ops.len() <= at {
            ops.resize_with(all.len(), || None);
        }
        let slot = ops.get_mut(at)?;
        if slot.is_none() {
            *slot = decode().map(Box::new);
        }
        slot.as_deref()
    }

    /// Notes the instructions of all sites that were added since the last time, for `region`.
    pub fn name(&mut self, region: &Region) {
        let insn = |offset: u16| {
            let block = region.blocks.partition_point(|block| block.offset <= offset).checked_sub(1)?;
            region.insns(region.blocks.get(block)?).iter().find(|insn| insn.offset == offset)
        };
        let Segment { all, named, .. } = self.segment_mut();
        for site in all.get(named.len()..).into_iter().flatten() {
            let name = insn(site.offset).map(|insn| (insn.i.mnemonic(), insn.class));
            named.push(name.unwrap_or((Mnemonic::INVALID, Class::Interpret)));
        }
    }

    /// A site's instruction.
    #[must_use]
    pub fn named(&self, number: u32) -> Option<(Mnemonic, Class)> {
        let (segment, at) = segments::site(number);
        self.segments.get(segment)?.named.get(at).copied()
    }

    /// Faults of host code from `host` on, in the current segment, belong to `site`.
    pub fn covers(&mut self, host: usize, site: u32) {
        let faults = self.faults(host);
        faults.pop_if(|(start, _)| *start as usize == host);
        faults.push((host as u32, Some(site)));
    }

    /// From `host` on they belong to no site.
    pub fn uncover(&mut self, host: usize) {
        let faults = self.faults(host);
        if faults.last().is_some_and(|(_, site)| site.is_some()) {
            faults.push((host as u32, None));
        }
    }

    fn faults(&mut self, host: usize) -> &mut Vec<(u32, Option<u32>)> {
        let (_, part) = segments::place(host);
        &mut self.segment_mut().faults[part]
    }

    /// The site that host code at `host` belongs to.
    #[must_use]
    pub fn at(&self, host: usize) -> Option<u32> {
        let (segment, part) = segments::place(host);
        let faults = &self.segments.get(segment)?.faults[part];
        let after = faults.partition_point(|(start, _)| *start as usize <= host);
        faults.get(after.checked_sub(1)?)?.1
    }

    /// Forgets all but the first `sites` of the current segment and what covers host code from `origins` on, one in each
    /// part: a translation that came to nothing.
    pub fn truncate(&mut self, sites: usize, origins: [usize; 2]) {
        let Segment { all, named, faults, ops } = self.segment_mut();
        all.truncate(sites);
        named.truncate(sites);
        ops.truncate(sites);
        for (faults, origin) in faults.iter_mut().zip(origins) {
            faults.truncate(faults.partition_point(|(start, _)| (*start as usize) < origin));
            if faults.last().is_some_and(|(_, site)| site.is_some()) {
                faults.push((origin as u32, None));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(offset: u16) -> Site {
        let kind = Kind::Access { size: 8, write: true, ahead: 1 };
        Site {
            offset,
            units: Units::default(),
            flags: Flags::Frame,
            kind,
            next: 0,
            again: 0,
            following: offset + 1,
            left: 1,
        }
    }

    #[test]
    fn host_code_belongs_to_the_site_that_covers_it() {
        let mut sites = Sites::new(4);
        assert_eq!(sites.at(5), None);
        let cold = segments::parts(0)[1].start;
        let (a, b) = (sites.add(site(1)), sites.add(site(2)));
        sites.covers(100, a);
        sites.covers(cold + 20, b);
        sites.covers(120, b);
        sites.uncover(130);
        sites.uncover(140);
        assert_eq!([99, 100, 119, 120, 129].map(|host| sites.at(host)), [None, Some(a), Some(a), Some(b), Some(b)]);
        assert_eq!([130, cold - 1, cold, cold + 20].map(|host| sites.at(host)), [None, None, None, Some(b)]);
        sites.covers(130, a);
        assert_eq!(sites.at(130), Some(a));
        assert_eq!(sites.get(b).map(|site| site.offset), Some(2));
        assert!(sites.get(2).is_none());
    }

    #[test]
    fn a_translation_that_came_to_nothing_leaves_nothing() {
        let mut sites = Sites::new(4);
        let cold = segments::parts(0)[1].start;
        let kept = sites.add(site(1));
        sites.covers(100, kept);
        sites.covers(cold, kept);
        let gone = sites.add(site(2));
        sites.covers(200, gone);
        sites.covers(cold + 200, gone);
        sites.truncate(1, [200, cold + 200]);
        assert_eq!(sites.len(), 1);
        assert_eq!([199, 250, cold, cold + 250].map(|host| sites.at(host)), [Some(kept), None, Some(kept), None]);
        assert_eq!(sites.add(site(3)), gone);
    }

    #[test]
    fn segments_forget_their_own_sites() {
        let mut sites = Sites::new(4);
        let start = segments::BYTES;
        let first = sites.add(site(1));
        sites.covers(10, first);
        sites.begin(1);
        let second = sites.add(site(2));
        sites.covers(start + 10, second);
        assert_eq!((first, second), (0, segments::SITES as u32));
        assert_eq!([10, start + 40, 2 * start].map(|host| sites.at(host)), [Some(first), Some(second), None]);
        sites.begin(0);
        assert_eq!((sites.len(), sites.at(10), sites.at(start + 40)), (0, None, Some(second)));
        assert!(sites.get(first).is_none() && sites.get(second).is_some());
        let mut asked = false;
        let decode = || {
            asked = true;
            None
        };
        assert!(sites.op(first, decode).is_none() && !asked, "there is no such site");
        for _ in 0..segments::SITES {
            sites.add(site(3));
        }
        assert!(!sites.is_overfull());
        sites.add(site(3));
        assert!(sites.is_overfull());
    }

    #[test]
    fn recipes_outlive_the_code_that_numbers_them() {
        let recipe = |imm| {
            let i = iced_x86::Instruction::with2(iced_x86::Code::Cmp_rm32_imm32, iced_x86::Register::EAX, imm).unwrap();
            Recipe::of(&i).unwrap()
        };
        let mut sites = Sites::new(4);
        let first = sites.number(recipe(1));
        assert_eq!(sites.number(recipe(1)), first);
        assert!(first != 0 && sites.number(recipe(2)) != first);
        // Segment 1 may hold code with that number until it begins anew.
        for segment in [1, 2, 3, 0] {
            sites.begin(segment);
            assert_eq!(sites.recipe(first), Some(&recipe(1)));
        }
        assert_ne!(sites.number(recipe(3)), first);
        for segment in [1, 2, 3, 0] {
            sites.begin(segment);
        }
        assert_eq!(sites.recipe(first), None);
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
        let mut sites = Sites::new(4);
        let (ret, cpuid) = (sites.add(site(3)), sites.add(site(1)));
        sites.name(&region);
        assert_eq!(sites.named(ret), Some((Mnemonic::Ret, Class::Ret)));
        assert_eq!(sites.named(cpuid), Some((Mnemonic::Cpuid, Class::Interpret)));
        assert_eq!(sites.named(2), None);
    }
}
