//! From a region to host code.
//!
//! Between instructions the guest's registers are where `regs` says, and its status flags where [`State`] says. An
//! instruction changes them last: whatever can fault or miss before leaves them as they were before the instruction,
//! so that any instruction can be left to the interpreter at any time.

mod control;
pub mod groups;
mod legacy;
mod memory;
mod plain;
mod system;

pub use plain::fits;

use crate::asm::{Asm, Label, RAX};
use crate::classify::{Class, Units};
use crate::flags::Recipe;
use crate::frame::Frame;
use crate::log::{Listing, Part};
use crate::region::{Block, Entry, Insn, Region};
use crate::regs::{T0, T1, field};
use crate::sites::{Flags, Kind, Site, Sites};
use crate::thunks::{Thunks, restore_flags, save_flags};
use ::memory::Hva;
use groups::Plan;
use iced_x86::{Encoder, InstructionInfoFactory};
use std::mem::offset_of;
use std::ops::RangeInclusive;

/// Why a region was not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Where the status flags are at a point. All false: nobody will ask.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    rflags: bool,
    frame: bool,
    recipe: Option<Recipe>,
    /// As the number in the frame says.
    numbered: bool,
}

impl State {
    const FRAME: Self = Self { rflags: false, frame: true, recipe: None, numbered: false };
}

/// An entry into translated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Door {
    /// Where in the page.
    pub offset: u16,
    /// Offset in the code buffer for who comes from elsewhere, with the tag of the address in T1.
    pub outer: u32,
    /// For who comes from the same page.
    pub inner: u32,
    /// The host page in which its one instruction goes on.
    pub second: Option<Hva>,
}

/// A translation.
#[derive(Debug)]
pub struct Made<'a> {
    /// The code.
    pub code: &'a [u8],
    /// The ways in.
    pub doors: Vec<Door>,
    /// What is where in it.
    pub listing: &'a Listing,
}

/// Code that is rarely reached, emitted behind the rest.
enum Cold {
    /// An access that missed; where to go if that of a group cannot be helped.
    Access { at: Label, site: u32, limit: u32, write: bool, retry: Label, miss: Option<Label> },
    /// A cluster, with a check for each access. `join`: where the other copy ends, and the flags there.
    Cluster { block: usize, slow: Slow, join: Label, state: State },
    /// An instruction that is left to the interpreter.
    Interpret { at: Label, site: u32 },
    /// A jump to code that was not translated.
    Direct { at: Label, site: u32 },
    /// A jump that must put the flags where its target expects them.
    Edge { at: Label, state: State, to: usize },
    /// A jump out of the region, taken when a condition holds.
    Exit { at: Label, state: State, offset: u16, following: u16, target: i64 },
    /// The entry of a block that another one falls into.
    Door { block: usize },
}

/// The copy of a cluster that checks each access, while the other one is translated.
struct Slow {
    range: RangeInclusive<usize>,
    /// Where its instructions begin.
    labels: Vec<Label>,
    /// Where the flags are for who comes from a group's first member.
    enter: Vec<Option<State>>,
}

/// Kept between translations, for its buffers.
pub struct Translator {
    asm: Asm,
    encoder: Encoder,
    factory: InstructionInfoFactory,
    /// Whether translated code is to count, see `stats`.
    counting: bool,
    /// What is where in the code that was made last.
    listing: Listing,
}

impl std::fmt::Debug for Translator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Translator").finish_non_exhaustive()
    }
}

impl Translator {
    /// A translator; `counting`: whose code counts (see `stats`), `listing`: which tells what is where in it.
    #[must_use]
    pub fn new(counting: bool, listing: bool) -> Self {
        let (asm, encoder, factory) = (Asm::default(), Encoder::new(64), InstructionInfoFactory::new());
        Self { asm, encoder, factory, counting, listing: Listing::new(listing) }
    }

    /// Translates `region` for `origin` in the code buffer.
    ///
    /// # Errors
    /// Something does not fit; nothing is left in `sites` then.
    pub fn translate(
        &mut self,
        region: &Region,
        origin: usize,
        thunks: &Thunks,
        sites: &mut Sites,
    ) -> Result<Made<'_>, Refused> {
        let before = sites.len();
        // What groups cannot express is translated without them.
        for grouping in [true, false] {
            match self.attempt(region, origin, thunks, sites, grouping) {
                Ok(doors) => {
                    let code = self.asm.finish().ok_or(Refused)?;
                    return Ok(Made { code, doors, listing: &self.listing });
                }
                Err(Refused) => sites.truncate(before, origin),
            }
        }
        Err(Refused)
    }

    fn attempt(
        &mut self,
        region: &Region,
        origin: usize,
        thunks: &Thunks,
        sites: &mut Sites,
        grouping: bool,
    ) -> Result<Vec<Door>, Refused> {
        self.asm.reset(origin);
        self.listing.reset();
        let count = region.blocks.len();
        let labels = (0..count).map(|_| self.asm.label()).collect();
        let mut job = Job {
            asm: &mut self.asm,
            encoder: &mut self.encoder,
            factory: &mut self.factory,
            listing: &mut self.listing,
            counting: self.counting,
            region,
            thunks,
            sites,
            labels,
            entry: vec![State::FRAME; count],
            pending: vec![Vec::new(); count],
            resumes: Vec::new(),
            accesses: Vec::new(),
            cold: Vec::new(),
            doors: Vec::new(),
            state: State::FRAME,
            grouping,
            careful: false,
            plan: Plan::default(),
            at: 0,
            slow: None,
            resident: None,
        };
        job.run()?;
        Ok(job.doors)
    }
}

/// One translation.
struct Job<'a> {
    asm: &'a mut Asm,
    encoder: &'a mut Encoder,
    factory: &'a mut InstructionInfoFactory,
    listing: &'a mut Listing,
    counting: bool,
    region: &'a Region,
    thunks: &'a Thunks,
    sites: &'a mut Sites,
    /// Where the blocks begin, behind their doors.
    labels: Vec<Label>,
    /// Where the flags are at blocks whose entry is inherited.
    entry: Vec<State>,
    /// Sites behind which a block begins.
    pending: Vec<Vec<u32>>,
    /// Sites behind which execution goes on at a label.
    resumes: Vec<(u32, Label)>,
    /// Sites of the current instruction's accesses.
    accesses: Vec<u32>,
    cold: Vec<Cold>,
    doors: Vec<Door>,
    state: State,
    /// Accesses may share checks.
    grouping: bool,
    /// In the copy of a cluster in which they do not.
    careful: bool,
    plan: Plan,
    /// The current instruction's number in its block.
    at: usize,
    /// The other copy of the current cluster.
    slow: Option<Slow>,
    /// The group whose addend T1 holds, and the distance of the base that has been added to it, if one has.
    resident: Option<(usize, Option<i32>)>,
}

impl Job<'_> {
    fn run(&mut self) -> Result<(), Refused> {
        let mut falls = false;
        for n in 0..self.region.blocks.len() {
            falls = self.block(n, falls)?;
        }
        self.emit_cold()?;
        for door in &self.doors {
            let block = self.region.blocks.iter().position(|block| block.offset() == door.offset);
            for site in block.and_then(|block| self.pending.get(block)).into_iter().flatten() {
                if let Some(site) = self.sites.get_mut(*site) {
                    site.next = door.inner;
                }
            }
        }
        for (site, label) in &self.resumes {
            if let (Some(site), Some(place)) = (self.sites.get_mut(*site), self.asm.place(*label)) {
                site.next = place as u32;
            }
        }
        Ok(())
    }

    /// Emits block `n`; `falls`: the one before goes on here. Whether this one goes on at the next.
    fn block(&mut self, n: usize, falls: bool) -> Result<bool, Refused> {
        let region = self.region;
        let block = region.blocks.get(n).ok_or(Refused)?;
        if block.root {
            if falls {
                self.cold.push(Cold::Door { block: n });
            } else {
                self.door(n)?;
            }
        }
        let label = *self.labels.get(n).ok_or(Refused)?;
        self.asm.bind(label);
        self.state = match block.entry {
            Entry::Dead => State::default(),
            Entry::Rflags => State { rflags: true, ..State::default() },
            Entry::Frame => State::FRAME,
            Entry::Numbered => State { numbered: true, ..State::default() },
            Entry::Inherited => *self.entry.get(n).ok_or(Refused)?,
        };
        self.plan = if self.grouping { Plan::of(block, region.mode) } else { Plan::default() };
        self.resident = None;
        for (k, insn) in block.insns.iter().enumerate() {
            self.at = k;
            if let Some(range) = self.plan.clusters.iter().find(|range| *range.start() == k).cloned() {
                let labels = range.clone().map(|_| self.asm.label()).collect();
                let enter = vec![None; range.clone().count()];
                self.slow = Some(Slow { range, labels, enter });
            }
            self.insn(n, insn)?;
            if let Some(slow) = self.slow.take_if(|slow| *slow.range.end() == k) {
                let join = self.asm.label();
                self.asm.bind(join);
                self.cold.push(Cold::Cluster { block: n, slow, join, state: self.state });
            }
        }
        let last = block.last().ok_or(Refused)?;
        if last.class.ends() {
            return Ok(false);
        }
        // On to what follows.
        self.go_on(n, last)
    }

    /// The entry of block `n` from outside.
    fn door(&mut self, n: usize) -> Result<(), Refused> {
        let block = self.region.blocks.get(n).ok_or(Refused)?;
        let offset = block.offset();
        self.listing.mark(self.asm.here(), Part::Door, offset);
        let outer = self.asm.here() as u32;
        self.asm.xor_mem(T1, field(offset_of!(Frame, stamp)));
        self.asm.lea(T1, crate::asm::Mem::at(T1, -i32::from(offset)));
        self.asm.store(field(offset_of!(Frame, base)), T1);
        let inner = self.asm.here() as u32;
        let Units { vector, x87 } = self.region.units;
        let units = [
            (x87, offset_of!(Frame, x87_live), self.thunks.load_x87),
            (vector, offset_of!(Frame, vector_live), self.thunks.load_vector),
        ];
        for (_, live, load) in units.into_iter().filter(|(used, ..)| *used) {
            let loaded = self.asm.label();
            self.asm.cmp_zero32(field(live));
            self.asm.jcc(crate::asm::Cond::NE, loaded);
            self.asm.call_to(load);
            self.asm.bind(loaded);
        }
        if block.entry == Entry::Rflags {
            self.state = State::FRAME;
            self.need_flags();
        }
        if block.entry == Entry::Numbered {
            self.asm.store_imm32(field(offset_of!(Frame, recipe)), 0);
        }
        self.doors.push(Door { offset, outer, inner, second: None });
        Ok(())
    }

    fn insn(&mut self, n: usize, insn: &Insn) -> Result<(), Refused> {
        let block = self.region.blocks.get(n).ok_or(Refused)?;
        let part = if self.careful { Part::Alone } else { Part::Insn };
        self.listing.mark(self.asm.here(), part, insn.offset);
        if self.at + 1 == block.insns.len() && block.loops() {
            self.poll(insn);
        }
        match insn.class {
            Class::Plain => self.plain(insn)?,
            Class::Nop => {}
            Class::Lea => self.lea(insn)?,
            Class::Push => self.push(insn)?,
            Class::Pop => self.pop(insn)?,
            Class::Leave => self.leave(insn)?,
            Class::Jcc => self.jcc(n, insn)?,
            Class::Loop => self.counted(n, insn)?,
            Class::Jmp => self.jmp(n, insn)?,
            Class::Call => self.call(insn)?,
            Class::CallIndirect => self.call_indirect(insn)?,
            Class::JmpIndirect => self.jmp_indirect(insn)?,
            Class::Ret => self.ret(insn)?,
            Class::System => self.system(n, insn)?,
            Class::Interpret | Class::Leaves => self.interpret(insn),
        }
        let accesses = std::mem::take(&mut self.accesses);
        if !accesses.is_empty() && !insn.class.ends() {
            // Within a cluster groups have to be checked again, for which there is the other copy.
            let other = self.slow.as_ref().and_then(|slow| slow.labels.get(self.at + 1 - slow.range.start()).copied());
            let label = other.unwrap_or_else(|| self.asm.label());
            if other.is_none() {
                self.asm.bind(label);
            }
            self.resumes.extend(accesses.into_iter().map(|site| (site, label)));
        }
        if self.state.recipe.is_some_and(|recipe| recipe.registers() & insn.changes != 0) {
            self.state.recipe = None;
        }
        if insn.effect.writes {
            self.state = State { rflags: true, recipe: insn.recipe, ..State::default() };
        } else if insn.effect.partly {
            self.state = State { rflags: true, ..State::default() };
        }
        Ok(())
    }

    /// Leaves the instruction to the interpreter.
    fn interpret(&mut self, insn: &Insn) {
        self.keep_flags();
        let site = self.site(insn.offset, insn.end(), Kind::Instruction);
        self.asm.store_imm32(field(offset_of!(Frame, site)), site);
        self.asm.jmp_to(self.thunks.interpret);
        let following = self.region.blocks.iter().position(|block| block.root && block.offset() == insn.end());
        if let Some(sites) = following.and_then(|block| self.pending.get_mut(block)) {
            sites.push(site);
        }
    }

    /// A new site for the instruction at `offset`, with the flags where they are now.
    fn site(&mut self, offset: u16, following: u16, kind: Kind) -> u32 {
        let flags = match self.state {
            State { frame: true, .. } => Flags::Frame,
            State { rflags: true, .. } => Flags::Host,
            State { recipe: Some(recipe), .. } => Flags::Recipe(recipe),
            State { numbered: true, .. } => Flags::Numbered,
            _ => Flags::Frame,
        };
        let site = Site { offset, units: self.region.units, flags, kind, next: 0, following };
        self.sites.add(site)
    }

    // --- flags

    /// Puts the flags into the frame, if they are not there. Keeps them in RFLAGS.
    fn keep_flags(&mut self) {
        if self.state.frame || !self.state.rflags {
            return;
        }
        self.asm.mov(T0, RAX);
        save_flags(self.asm, offset_of!(Frame, flags));
        self.asm.mov(RAX, T0);
        self.state.frame = true;
    }

    /// Puts the flags into RFLAGS, if they are not there.
    fn need_flags(&mut self) {
        if self.state.rflags {
            return;
        }
        self.asm.mov(T0, RAX);
        restore_flags(self.asm);
        self.asm.mov(RAX, T0);
        self.state.rflags = true;
    }

    /// Lets block `to` know how to make the flags again, or where they are.
    fn number_flags(&mut self, to: usize) {
        let changed =
            self.region.blocks.get(to).and_then(|block| block.insns.first()).map_or(0, |insn| insn.before.changed);
        let number = match self.state {
            State { frame: true, .. } => 0,
            State { recipe: Some(recipe), .. } if recipe.registers() & changed == 0 => self.sites.number(recipe),
            State { rflags: true, .. } => {
                self.keep_flags();
                0
            }
            // The number that is there holds on.
            _ => return,
        };
        self.asm.store_imm32(field(offset_of!(Frame, recipe)), number);
    }

    /// The label of the current instruction in the cluster's other copy, for who has lost the host's flags.
    fn slow_way(&mut self) -> Result<Label, Refused> {
        let slow = self.slow.as_mut().ok_or(Refused)?;
        let n = self.at - slow.range.start();
        *slow.enter.get_mut(n).ok_or(Refused)? = Some(self.state);
        slow.labels.get(n).copied().ok_or(Refused)
    }

    /// Before the host's flags are changed on the way to `insn`: keeps them if they cannot be made again.
    fn lose_flags(&mut self, insn: &Insn) {
        if self.careful {
            self.keep_flags();
        } else if self.state.rflags && !self.state.frame {
            let future = insn.before;
            let again = self.state.recipe.is_some_and(|recipe| recipe.registers() & future.changed == 0);
            if future.needed || (future.seen && !again) {
                self.keep_flags();
            }
        }
        self.state.rflags = false;
    }

    /// Has translated code count at offset `counter` of the frame's `Inline`, if it does. The host's flags must be dead.
    fn count(&mut self, counter: usize) {
        if self.counting {
            self.asm.inc_mem(field(offset_of!(Frame, inline) + counter));
        }
    }

    // --- what is rarely reached

    /// What cold code is, and the place in the page that it belongs to.
    fn belongs(&self, cold: &Cold) -> (Part, u16) {
        let at = |site: u32| self.sites.get(site).map_or(0, |site| site.offset);
        let block = |block: usize| self.region.blocks.get(block).map_or(0, Block::offset);
        match *cold {
            Cold::Access { site, .. } => (Part::Miss, at(site)),
            Cold::Cluster { block: n, .. } => (Part::Cluster, block(n)),
            Cold::Interpret { site, .. } => (Part::Interpret, at(site)),
            Cold::Direct { site, .. } => (Part::Direct, at(site)),
            Cold::Edge { to, .. } => (Part::Edge, block(to)),
            Cold::Exit { offset, .. } => (Part::Exit, offset),
            Cold::Door { block: to } => (Part::Door, block(to)),
        }
    }

    fn emit_cold(&mut self) -> Result<(), Refused> {
        while let Some(cold) = self.cold.pop() {
            let (part, offset) = self.belongs(&cold);
            self.listing.mark(self.asm.here(), part, offset);
            match cold {
                Cold::Access { at, site, limit, write, retry, miss } => {
                    self.asm.bind(at);
                    self.asm.push_imm(limit);
                    self.asm.push_imm(site);
                    let thunks = if miss.is_some() { self.thunks.group } else { self.thunks.access };
                    self.asm.call_to(thunks[usize::from(write)]);
                    self.asm.jmp(retry);
                    if let Some(miss) = miss {
                        self.asm.jmp(miss);
                    }
                }
                Cold::Cluster { block, slow, join, state } => self.cluster(block, slow, join, state)?,
                Cold::Interpret { at, site } => {
                    self.asm.bind(at);
                    self.asm.store_imm32(field(offset_of!(Frame, site)), site);
                    self.asm.jmp_to(self.thunks.interpret);
                }
                Cold::Direct { at, site } => {
                    self.asm.bind(at);
                    self.asm.store_imm32(field(offset_of!(Frame, site)), site);
                    self.asm.jmp_to(self.thunks.direct);
                }
                Cold::Edge { at, state, to } => {
                    self.asm.bind(at);
                    self.state = state;
                    self.arrange(to)?;
                    let label = *self.labels.get(to).ok_or(Refused)?;
                    self.asm.jmp(label);
                }
                Cold::Exit { at, state, offset, following, target } => {
                    self.asm.bind(at);
                    self.state = state;
                    self.exit(offset, following, target)?;
                }
                Cold::Door { block } => {
                    self.door(block)?;
                    let label = *self.labels.get(block).ok_or(Refused)?;
                    self.asm.jmp(label);
                }
            }
        }
        Ok(())
    }

    /// The copy of a cluster in which each access is checked.
    fn cluster(&mut self, n: usize, slow: Slow, join: Label, end: State) -> Result<(), Refused> {
        let block = self.region.blocks.get(n).ok_or(Refused)?;
        self.careful = true;
        self.state = slow.enter.first().copied().flatten().ok_or(Refused)?;
        for ((at, label), enter) in slow.range.clone().zip(&slow.labels).zip(&slow.enter) {
            if let Some(enter) = enter {
                if enter.frame {
                    self.keep_flags();
                }
                let frame = self.state.frame && enter.frame;
                let recipe = enter.recipe.or(self.state.recipe);
                self.state = State { rflags: false, frame, recipe, numbered: enter.numbered && self.state.numbered };
            }
            self.asm.bind(*label);
            self.at = at;
            self.insn(n, block.insns.get(at).ok_or(Refused)?)?;
        }
        self.careful = false;
        if block.insns.get(*slow.range.end()).is_some_and(|insn| insn.class.ends()) {
            return Ok(());
        }
        if end.frame {
            self.keep_flags();
        }
        if end.rflags && self.state.frame {
            self.need_flags();
        }
        if (end.frame && !self.state.frame) || (end.rflags && !self.state.rflags) {
            return Err(Refused);
        }
        self.asm.jmp(join);
        Ok(())
    }
}
