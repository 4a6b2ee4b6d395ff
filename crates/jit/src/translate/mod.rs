//! From a region to host code.
//!
//! Between instructions the guest's registers are where `regs` says, and its status flags where [`State`] says. An
//! instruction changes them last: whatever can fault or miss before leaves them as they were before the instruction,
//! so that any instruction can be left to the interpreter at any time.

mod cold;
mod control;
pub mod groups;
mod legacy;
mod memory;
mod plain;
mod record;
mod runs;
mod special;
mod strings;
mod system;

pub use plain::fits;

use crate::asm::{Asm, Label, RAX};
use crate::classify::{Class, Units};
use crate::flags::Recipe;
use crate::frame::Frame;
use crate::graph::{Node, Way};
use crate::log::{Listing, Part};
use crate::region::{Block, Entry, Goal, Insn, Region};
use crate::regs::{T0, T1, field};
use crate::sites::{Flags, Kind, Site, Sites};
use crate::thunks::{Thunks, restore_flags, save_flags};
use ::memory::Hva;
use cold::Cold;
use groups::Plan;
use iced_x86::{Encoder, InstructionInfoFactory};
use std::mem::offset_of;
use x86::PAGE_SIZE;

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
    /// For who comes from the same page, with the flags in the frame.
    pub inner: u32,
    /// The host page in which its one instruction goes on.
    pub second: Option<Hva>,
}

/// A translation.
#[derive(Debug)]
pub struct Made<'a> {
    /// The code: what is often run, and what is not.
    pub code: [&'a [u8]; 2],
    /// The ways in.
    pub doors: Vec<Door>,
    /// The blocks.
    pub nodes: Vec<Node>,
    /// What is where in it.
    pub listing: &'a Listing,
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

    /// Translates `region` for `origins` in the code buffer; `careful`: with a check for each access.
    ///
    /// # Errors
    /// Something does not fit; nothing is left in `sites` then.
    pub fn translate(
        &mut self,
        region: &Region,
        careful: bool,
        origins: [usize; 2],
        thunks: &Thunks,
        sites: &mut Sites,
    ) -> Result<Made<'_>, Refused> {
        let before = sites.len();
        // What groups cannot express is translated without them.
        let alone = careful || region.mode.counts;
        for grouping in [true, false].into_iter().filter(|grouping| !(alone && *grouping)) {
            let mut job = Job::new(self, region, origins, thunks, sites);
            (job.grouping, job.careful) = (grouping, careful);
            match job.run() {
                Ok(()) => {
                    let nodes = if region.crosses() { Vec::new() } else { job.nodes() };
                    let doors = job.doors;
                    let code = self.asm.finish().map(|(hot, cold)| [hot, cold]).ok_or(Refused)?;
                    return Ok(Made { code, doors, nodes, listing: &self.listing });
                }
                Err(Refused) => sites.truncate(before, origins),
            }
        }
        Err(Refused)
    }

    /// Makes a door to the block at `offset` of the page, which was translated before.
    ///
    /// # Errors
    /// None is to be expected.
    pub fn door(
        &mut self,
        (offset, way): (u16, &Way),
        origins: [usize; 2],
        thunks: &Thunks,
        sites: &mut Sites,
    ) -> Result<Made<'_>, Refused> {
        let region = Region::default();
        let mut job = Job::new(self, &region, origins, thunks, sites);
        job.door(offset, way.entry, way.units);
        job.asm.jmp_to(way.place as usize);
        let doors = job.doors;
        let code = self.asm.finish().map(|(hot, cold)| [hot, cold]).ok_or(Refused)?;
        Ok(Made { code, doors, nodes: Vec::new(), listing: &self.listing })
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
    pending: Vec<(u32, Goal)>,
    /// Sites behind which execution goes on at a label.
    resumes: Vec<(u32, Label)>,
    /// Sites of the current instruction's accesses.
    accesses: Vec<u32>,
    cold: Vec<Cold>,
    doors: Vec<Door>,
    state: State,
    /// Accesses may share checks.
    grouping: bool,
    /// They do not, since they could not.
    careful: bool,
    plan: Plan,
    /// The current instruction's number in its block.
    at: usize,
    /// How many of its block's instructions are not executed yet.
    left: u16,
    /// Loops that can run without checks.
    runs: Vec<runs::Run>,
    /// What is emitted is their copies.
    running: bool,
    /// The sites of accesses that are checked, by where in the page the instruction is.
    checked: Vec<(u16, u32)>,
    /// The group whose addend T1 holds, and the distance of the base that has been added to it, if one has.
    resident: Option<(usize, Option<i32>)>,
}

impl<'a> Job<'a> {
    fn new(
        translator: &'a mut Translator,
        region: &'a Region,
        origins: [usize; 2],
        thunks: &'a Thunks,
        sites: &'a mut Sites,
    ) -> Self {
        let Translator { asm, encoder, factory, counting, listing } = translator;
        let [hot, cold] = origins;
        asm.reset(hot, cold);
        listing.reset();
        let count = region.blocks.len();
        let labels = (0..count).map(|_| asm.label()).collect();
        Self {
            asm,
            encoder,
            factory,
            listing,
            counting: *counting,
            region,
            thunks,
            sites,
            labels,
            entry: vec![State::FRAME; count],
            pending: Vec::new(),
            resumes: Vec::new(),
            accesses: Vec::new(),
            cold: Vec::new(),
            doors: Vec::new(),
            state: State::FRAME,
            grouping: false,
            careful: false,
            plan: Plan::default(),
            at: 0,
            left: 0,
            resident: None,
            runs: Vec::new(),
            running: false,
            checked: Vec::new(),
        }
    }

    /// The blocks, which have been emitted.
    fn nodes(&self) -> Vec<Node> {
        let node = |(n, block): (usize, &Block)| {
            let last = self.region.last(block)?;
            let place = self.labels.get(n).and_then(|label| self.asm.place(*label))? as u32;
            let door = self.doors.iter().find(|door| door.offset == block.offset).map(|door| door.inner);
            let (entry, before, units) = (block.entry, self.region.before(n), self.region.units);
            let next = Some(last.end()).filter(|end| !last.class.ends() && u64::from(*end) < PAGE_SIZE);
            let polls = self.region.loops(block) && block.insns.len() == 1;
            let way = (entry != Entry::Inherited).then_some(Way { place, entry, before, units, polls, door });
            Some(Node { offset: block.offset, to: [next, last.target()], way })
        };
        self.region.blocks.iter().enumerate().filter_map(node).collect()
    }

    fn run(&mut self) -> Result<(), Refused> {
        if self.grouping {
            self.runs = runs::find(self.region, || self.asm.label());
        }
        let mut falls = false;
        for n in 0..self.region.blocks.len() {
            falls = self.block(n, falls)?;
        }
        self.emit_runs()?;
        self.emit_cold()?;
        for (site, behind) in std::mem::take(&mut self.pending) {
            let door = match behind {
                Goal::Outside => None,
                Goal::Known(way) => way.door,
                Goal::Block(n) => {
                    let offset = self.region.blocks.get(n).map(|block| block.offset);
                    self.doors.iter().find(|door| Some(door.offset) == offset).map(|door| door.inner)
                }
            };
            if let (Some(site), Some(door)) = (self.sites.get_mut(site), door) {
                site.next = door;
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
                self.door(block.offset, block.entry, region.units);
            }
        }
        let label = *self.labels.get(n).ok_or(Refused)?;
        self.asm.bind(label);
        self.enter_block(n)?;
        let insns = region.insns(block);
        self.plan = if self.grouping { Plan::of(insns, region.mode) } else { Plan::default() };
        self.resident = None;
        self.left = u16::try_from(insns.len()).map_err(|_| Refused)?;
        if region.mode.counts {
            self.meter(insns.first().ok_or(Refused)?);
        }
        for (k, insn) in insns.iter().enumerate() {
            self.at = k;
            self.insn(n, insn)?;
            self.left -= 1;
        }
        let last = insns.last().ok_or(Refused)?;
        if last.class.ends() {
            return Ok(false);
        }
        // On to what follows.
        self.go_on(n, last)
    }

    /// Block `n` begins: the flags are where it expects them.
    fn enter_block(&mut self, n: usize) -> Result<(), Refused> {
        self.state = match self.region.blocks.get(n).ok_or(Refused)?.entry {
            Entry::Dead => State::default(),
            Entry::Rflags => State { rflags: true, ..State::default() },
            Entry::Frame => State::FRAME,
            Entry::Numbered => State { numbered: true, ..State::default() },
            Entry::Inherited => *self.entry.get(n).ok_or(Refused)?,
        };
        Ok(())
    }

    /// The entry from outside of the block at `offset` with these conventions.
    fn door(&mut self, offset: u16, entry: Entry, units: Units) {
        self.listing.mark(self.asm.here(), Part::Door, offset);
        let outer = self.asm.here() as u32;
        self.asm.xor_mem(T1, field(offset_of!(Frame, stamp)));
        self.asm.lea(T1, crate::asm::Mem::at(T1, -i32::from(offset)));
        self.asm.store(field(offset_of!(Frame, base)), T1);
        let inner = self.asm.here() as u32;
        self.load_units(units);
        self.state = State::FRAME;
        if entry == Entry::Rflags {
            self.need_flags();
        }
        if entry == Entry::Numbered {
            self.asm.store_imm32(field(offset_of!(Frame, recipe)), 0);
        }
        self.doors.push(Door { offset, outer, inner, second: None });
    }

    /// Loads the registers of `units` if they are not. Changes the host's flags.
    fn load_units(&mut self, units: Units) {
        let units = [
            (units.x87, offset_of!(Frame, x87_live), self.thunks.load_x87),
            (units.vector, offset_of!(Frame, vector_live), self.thunks.load_vector),
        ];
        for (_, live, load) in units.into_iter().filter(|(used, ..)| *used) {
            let loaded = self.asm.label();
            self.asm.cmp_zero32(field(live));
            self.asm.jcc(crate::asm::Cond::NE, loaded);
            self.asm.call_to(load);
            self.asm.bind(loaded);
        }
    }

    fn insn(&mut self, n: usize, insn: &Insn) -> Result<(), Refused> {
        let block = self.region.blocks.get(n).ok_or(Refused)?;
        let part = match (self.careful, self.running) {
            (true, _) => Part::Alone,
            (_, true) => Part::Run,
            _ => Part::Insn,
        };
        self.listing.mark(self.asm.here(), part, insn.offset);
        if self.at + 1 == block.insns.len() && self.region.loops(block) && !self.running {
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
            Class::String => self.string(insn)?,
            Class::System => self.system(n, insn)?,
            Class::Interpret | Class::Leaves => self.interpret(n, insn),
        }
        self.sites.uncover(self.asm.here());
        let mut accesses = std::mem::take(&mut self.accesses);
        // Within a cluster groups would have to be checked again, since the interpreter may change the TLB.
        if !accesses.is_empty()
            && !insn.class.ends()
            && !self.plan.clusters.iter().any(|range| range.contains(&self.at) && *range.end() != self.at)
        {
            let label = self.asm.label();
            self.asm.bind(label);
            self.resumes.extend(accesses.drain(..).map(|site| (site, label)));
        }
        accesses.clear();
        self.accesses = accesses;
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
    fn interpret(&mut self, n: usize, insn: &Insn) {
        self.keep_flags();
        let site = self.site(insn.offset, insn.end(), Kind::Instruction);
        let thunk = self.crossing(insn).unwrap_or(self.thunks.interpret);
        self.go_out(site, thunk);
        if let Some(block) = self.region.blocks.get(n) {
            self.pending.push((site, block.next));
        }
    }

    /// Leaves translated code at `site` by one of two thunks.
    fn go_out(&mut self, site: u32, thunk: usize) {
        self.asm.push_imm(site);
        self.asm.jmp_to(thunk);
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
        let (units, left) = (self.region.units, self.left);
        let site = Site { offset, units, flags, kind, next: 0, again: 0, following, left };
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
        restore_flags(self.asm, offset_of!(Frame, flags));
        self.asm.mov(RAX, T0);
        self.state.rflags = true;
    }

    /// Lets who expects the flags to be numbered know how to make them again, or where they are; `changed`: the guest
    /// registers that change there while they can be seen.
    fn number_flags(&mut self, changed: u16) {
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

    /// Before the host's flags are changed on the way to `insn`: keeps them if they cannot be made again.
    fn lose_flags(&mut self, insn: &Insn) {
        if self.state.rflags && !self.state.frame {
            let future = insn.before;
            let again = self.state.recipe.is_some_and(|recipe| recipe.registers() & future.changed == 0);
            if future.needed || (future.seen && !again) {
                self.keep_flags();
            }
        }
        self.state.rflags = false;
    }

    /// Counts the instructions of the block that begins with `first`, and leaves them to the interpreter if they are more
    /// than may still be executed.
    fn meter(&mut self, first: &Insn) {
        self.lose_flags(first);
        let (at, site) = (self.asm.label(), self.site(first.offset, first.end(), Kind::Meter));
        self.cold.push(Cold::Interpret { at, site });
        self.asm.sub_imm64(field(offset_of!(Frame, budget)), self.left.into());
        self.asm.jcc(crate::asm::Cond::B, at);
    }

    /// Has translated code count at offset `counter` of the frame's `Inline`, if it does. The host's flags must be dead.
    fn count(&mut self, counter: usize) {
        if self.counting {
            self.asm.inc_mem(field(offset_of!(Frame, inline) + counter));
        }
    }
}
