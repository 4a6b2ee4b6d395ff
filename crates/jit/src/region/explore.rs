//! Which code of a page belongs to a region, and where its blocks begin.
//!
//! From the entry all ways are followed as far as they lead within the page into code that has run. They end at blocks
//! that have been translated before; but those from which a way leads back to the new code are translated again, so
//! that a loop is in one region.

use super::{Block, Goal, Insn, Reader, Region};
use crate::classify::{Class, Mode};
use crate::graph::{Graph, Places};
use cpu::cpuid::Model;
use iced_x86::InstructionInfoFactory;
use x86::PAGE_SIZE;

/// The most instructions in a region.
pub(super) const MAX_INSTRUCTIONS: usize = 400;

/// How many blocks that were translated before are looked at in search of a way back to the new code. Hardly any region
/// needs more than a few dozen; without a bound a page full of tiny blocks would take a second.
const EFFORT: usize = 512;

/// The code that a region is made of.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The page. If it goes on into the next one, the region may be one instruction that does so too.
    pub bytes: &'a [u8],
    /// What instructions there are.
    pub model: &'a Model,
    /// What the code is translated for.
    pub mode: Mode,
    /// What was translated of the page.
    pub graph: &'a Graph,
}

/// Finds regions. Kept between them, for its buffers.
pub struct Explorer {
    factory: InstructionInfoFactory,
    /// For each place in the page the number of the instruction there, counted from 1.
    numbers: Box<[u16; PAGE_SIZE as usize]>,
    leaders: Places,
    roots: Places,
    /// Where blocks are translated again.
    again: Places,
    /// Blocks that were translated before at which ways end.
    ends: Vec<u16>,
    work: Vec<u16>,
    cut: Option<u16>,
    /// How many blocks may still be looked at in search of a way back.
    effort: usize,
}

impl std::fmt::Debug for Explorer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Explorer").finish_non_exhaustive()
    }
}

impl Default for Explorer {
    fn default() -> Self {
        Self {
            factory: InstructionInfoFactory::new(),
            numbers: Box::new([0; PAGE_SIZE as usize]),
            leaders: Places::NONE,
            roots: Places::NONE,
            again: Places::NONE,
            ends: Vec::new(),
            work: Vec::new(),
            cut: None,
            effort: 0,
        }
    }
}

impl Explorer {
    /// The region around `entry`. `known` says which other places in the page are worth having: code that has run.
    #[must_use]
    pub fn region(&mut self, source: &Source<'_>, entry: u16, known: impl Fn(u16) -> bool) -> Option<Region> {
        self.numbers.fill(0);
        for places in [&mut self.leaders, &mut self.roots, &mut self.again] {
            places.clear();
        }
        self.ends.clear();
        self.cut = None;
        self.effort = EFFORT;
        self.leaders.insert(entry);
        self.roots.insert(entry);
        self.work.clear();
        self.work.push(entry);
        let mut insns = Vec::with_capacity(64);
        self.explore(source, &known, &mut insns)?;
        while self.find_cycles(source.graph, &insns) {
            self.explore(source, &known, &mut insns)?;
        }
        let mut region = self.divide(source.graph, insns)?;
        region.mode = source.mode;
        region.solve();
        Some(region)
    }

    /// Whether a way ends at `place`, which was translated before.
    fn is_end(&self, graph: &Graph, place: u16) -> bool {
        graph.enters(place) && !self.again.has(place)
    }

    fn number(&self, place: u16) -> Option<usize> {
        usize::from(*self.numbers.get(usize::from(place))?).checked_sub(1)
    }

    /// Follows the ways from all places in `work`.
    fn explore(&mut self, source: &Source<'_>, known: &impl Fn(u16) -> bool, insns: &mut Vec<Insn>) -> Option<()> {
        let Source { bytes, model, mode, graph } = *source;
        let page = bytes.get(..PAGE_SIZE as usize)?;
        let reader = Reader::new(page, model, mode);
        if let Some(&entry) = self.work.first().filter(|_| insns.is_empty())
            && reader.read(entry, &mut self.factory).is_none()
        {
            // One that goes on in the next page stays alone.
            let reader = Reader::new(bytes, model, mode);
            let insn = reader.read(entry, &mut self.factory);
            insns.push(insn?);
            self.cut = Some(entry);
            *self.numbers.get_mut(usize::from(entry))? = 1;
            self.work.clear();
            return Some(());
        }
        while let Some(start) = self.work.pop() {
            let mut at = start;
            loop {
                if at != start && self.is_end(graph, at) {
                    self.ends.push(at);
                    break;
                }
                // Running into code that is there already makes a block begin there.
                if self.number(at).is_some() {
                    self.leaders.insert(at);
                    break;
                }
                if insns.len() == MAX_INSTRUCTIONS {
                    break;
                }
                let Some(insn) = reader.read(at, &mut self.factory) else {
                    self.cut = Some(at);
                    break;
                };
                let (end, class) = (insn.end(), insn.class);
                let target = insn.target();
                insns.push(insn);
                *self.numbers.get_mut(usize::from(at))? = insns.len() as u16;
                if let Some(place) = target {
                    if self.is_end(graph, place) {
                        self.ends.push(place);
                    } else if (known(place) || self.number(place).is_some()) && self.leaders.insert(place) {
                        self.work.push(place);
                    }
                }
                let more = u64::from(end) < PAGE_SIZE;
                match class {
                    Class::Jcc | Class::Loop if more && self.is_end(graph, end) => {
                        self.ends.push(end);
                        break;
                    }
                    Class::Jcc | Class::Loop if more && known(end) => {
                        self.leaders.insert(end);
                    }
                    Class::Jcc | Class::Loop => break,
                    // Where a call returns to, or an interpreted instruction goes on, is entered from outside.
                    Class::Call | Class::CallIndirect | Class::Interpret if more && known(end) => {
                        if !self.is_end(graph, end) {
                            self.leaders.insert(end);
                            self.roots.insert(end);
                            self.work.push(end);
                        }
                        break;
                    }
                    class if class.ends() => break,
                    _ if more => {}
                    _ => break,
                }
                at = end;
            }
        }
        Some(())
    }

    /// Finds the blocks at which ways end but which lie on a way back to there, and has them explored. Whether there
    /// are any.
    fn find_cycles(&mut self, graph: &Graph, insns: &[Insn]) -> bool {
        let mut ends = std::mem::take(&mut self.ends);
        ends.sort_unstable();
        ends.dedup();
        // Hardly ever any new code is reached from there at all.
        let reached = self.reached(graph, &ends);
        if !reached.is_empty() {
            for end in &ends {
                let reached = self.reached(graph, &[*end]);
                if !reached.is_empty() && self.leads_to(insns, &reached, *end) {
                    self.again.insert(*end);
                    self.leaders.insert(*end);
                    self.work.push(*end);
                }
            }
        }
        self.ends = ends;
        self.ends.retain(|end| !self.again.has(*end));
        !self.work.is_empty()
    }

    /// Places in the new code to which ways lead from translated blocks, as far as the effort reaches.
    fn reached(&mut self, graph: &Graph, from: &[u16]) -> Vec<u16> {
        let (mut seen, mut reached) = (Places::NONE, Vec::new());
        let mut work = from.to_vec();
        while let Some(place) = work.pop() {
            if !seen.insert(place) {
                continue;
            }
            self.effort = self.effort.saturating_sub(1);
            if self.effort == 0 {
                break;
            }
            if self.number(place).is_some() {
                reached.push(place);
            } else if let Some(node) = graph.node(place) {
                work.extend(node.to.into_iter().flatten());
            }
        }
        reached
    }

    /// Whether a way leads through the new code from one of `from` to `end`.
    fn leads_to(&self, insns: &[Insn], from: &[u16], end: u16) -> bool {
        let mut seen = Places::NONE;
        let mut work = from.to_vec();
        while let Some(place) = work.pop() {
            if place == end {
                return true;
            }
            let insn = self.number(place).and_then(|n| insns.get(n)).filter(|_| seen.insert(place));
            if let Some(insn) = insn {
                work.extend(insn.target());
                if !insn.class.ends() {
                    work.push(insn.end());
                }
            }
        }
        false
    }

    fn divide(&mut self, graph: &Graph, insns: Vec<Insn>) -> Option<Region> {
        let mut blocks: Vec<Block> = Vec::with_capacity(16);
        for start in self.leaders.iter() {
            let Some(first) = self.number(start) else { continue };
            let mut next = first;
            let mut at = start;
            while let Some(insn) = insns.get(next).filter(|insn| insn.offset == at) {
                (next, at) = (next + 1, insn.end());
                let stop = insn.class.ends() || matches!(insn.class, Class::Jcc | Class::Loop);
                if stop || self.leaders.has(at) || self.is_end(graph, at) {
                    break;
                }
            }
            let root = self.roots.has(start);
            blocks.push(Block { insns: first..next, offset: start, root, ..Block::default() });
        }
        let goal = |place: u16| match graph.way(place).filter(|_| self.is_end(graph, place)) {
            Some(way) => Goal::Known(*way),
            None => match blocks.binary_search_by_key(&place, |block| block.offset) {
                Ok(n) => Goal::Block(n),
                Err(_) => Goal::Outside,
            },
        };
        let goals: Vec<(Goal, Goal)> = blocks
            .iter()
            .map(|block| match insns.get(block.insns.end.wrapping_sub(1)) {
                Some(last) => {
                    let goes_on = !last.class.ends() || last.class == Class::Interpret;
                    let next = if goes_on { goal(last.end()) } else { Goal::Outside };
                    (next, last.target().map_or(Goal::Outside, goal))
                }
                None => (Goal::Outside, Goal::Outside),
            })
            .collect();
        for (block, goals) in blocks.iter_mut().zip(goals) {
            (block.next, block.target) = goals;
        }
        let mut region = Region { insns, blocks, cut: self.cut, ..Region::default() };
        for insn in region.insns.iter().filter(|insn| insn.class == Class::Plain) {
            region.units = region.units.with(insn.units);
        }
        (!region.blocks.is_empty()).then_some(region)
    }
}
