//! From a region to host code.
//!
//! Between instructions the guest's registers are where `regs` says, and its status flags where [`State`] says. An
//! instruction changes them last: whatever can fault or miss before leaves them as they were before the instruction,
//! so that any instruction can be left to the interpreter at any time.

mod control;
mod memory;
mod plain;

pub use plain::fits;

use crate::asm::{Asm, Label, RAX};
use crate::classify::{Class, Units};
use crate::flags::Recipe;
use crate::frame::Frame;
use crate::region::{Entry, Insn, Region};
use crate::regs::{T0, T1, field};
use crate::sites::{Flags, Kind, Site, Sites};
use crate::thunks::{Thunks, restore_flags, save_flags};
use iced_x86::{Encoder, InstructionInfoFactory};
use std::mem::offset_of;

/// Why a region was not translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Where the status flags are at a point. All false: nobody will ask.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    rflags: bool,
    frame: bool,
    recipe: Option<Recipe>,
}

impl State {
    const FRAME: Self = Self { rflags: false, frame: true, recipe: None };
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
}

/// Code that is rarely reached, emitted behind the rest.
enum Cold {
    /// An access that missed.
    Access { at: Label, site: u32, thunk: usize, retry: Label },
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

/// Kept between translations, for its buffers.
pub struct Translator {
    asm: Asm,
    encoder: Encoder,
    factory: InstructionInfoFactory,
}

impl std::fmt::Debug for Translator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Translator").finish_non_exhaustive()
    }
}

impl Default for Translator {
    fn default() -> Self {
        Self { asm: Asm::default(), encoder: Encoder::new(64), factory: InstructionInfoFactory::new() }
    }
}

impl Translator {
    /// Translates `region` for `origin` in the code buffer. Gives the code and its doors.
    ///
    /// # Errors
    /// Something does not fit; nothing is left in `sites` then.
    pub fn translate(
        &mut self,
        region: &Region,
        origin: usize,
        thunks: &Thunks,
        sites: &mut Sites,
    ) -> Result<(&[u8], Vec<Door>), Refused> {
        self.asm.reset(origin);
        let before = sites.len();
        let count = region.blocks.len();
        let labels = (0..count).map(|_| self.asm.label()).collect();
        let mut job = Job {
            asm: &mut self.asm,
            encoder: &mut self.encoder,
            factory: &mut self.factory,
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
        };
        let result = job.run();
        let doors = std::mem::take(&mut job.doors);
        match (result, self.asm.finish()) {
            (Ok(()), Some(code)) => Ok((code, doors)),
            _ => {
                sites.truncate(before, origin);
                Err(Refused)
            }
        }
    }
}

/// One translation.
struct Job<'a> {
    asm: &'a mut Asm,
    encoder: &'a mut Encoder,
    factory: &'a mut InstructionInfoFactory,
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
            Entry::Inherited => *self.entry.get(n).ok_or(Refused)?,
        };
        let loops = block.loops();
        for (k, insn) in block.insns.iter().enumerate() {
            if loops && k + 1 == block.insns.len() {
                self.poll(insn);
            }
            self.insn(n, insn)?;
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
        self.doors.push(Door { offset, outer, inner });
        Ok(())
    }

    fn insn(&mut self, n: usize, insn: &Insn) -> Result<(), Refused> {
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
            Class::Interpret | Class::Leaves => self.interpret(insn),
        }
        let accesses = std::mem::take(&mut self.accesses);
        if !accesses.is_empty() && !insn.class.ends() {
            let label = self.asm.label();
            self.asm.bind(label);
            self.resumes.extend(accesses.into_iter().map(|site| (site, label)));
        }
        if self.state.recipe.is_some_and(|recipe| recipe.registers() & insn.changes != 0) {
            self.state.recipe = None;
        }
        if insn.effect.writes {
            self.state = State { rflags: true, frame: false, recipe: insn.recipe };
        } else if insn.effect.partly {
            self.state = State { rflags: true, frame: false, recipe: None };
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

    // --- what is rarely reached

    fn emit_cold(&mut self) -> Result<(), Refused> {
        while let Some(cold) = self.cold.pop() {
            match cold {
                Cold::Access { at, site, thunk, retry } => {
                    self.asm.bind(at);
                    self.asm.push_imm(site);
                    self.asm.call_to(thunk);
                    self.asm.jmp(retry);
                }
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
}
