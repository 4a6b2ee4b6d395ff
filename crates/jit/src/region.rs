//! What is translated together: the code in one page that can be reached from an entry by jumps within the page, as far
//! as it was not translated before.
//!
//! Instructions are decoded once, cut into basic blocks, and the blocks joined to a graph (`explore`). A pass against the
//! flow tells for each point what becomes of the status flags (see `flags`).

mod explore;

pub use explore::{Explorer, Source};

use crate::asm::Cond;
use crate::classify::{Class, Mode, Units, classify};
use crate::flags::{Effect, Recipe};
use crate::graph::Way;
use crate::translate::fits;
use cpu::cpuid::Model;
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic};
use iced_x86::{OpAccess, OpKind};
use std::ops::Range;
use x86::PAGE_SIZE;

/// What is known of the status flags' future at a point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Future {
    /// They are read, or leave the region, before they are overwritten.
    pub needed: bool,
    /// They would be seen if an instruction faults before they are overwritten.
    pub seen: bool,
    /// They are read before anything changes the host's flags.
    pub soon: bool,
    /// Guest registers that change while the flags can be seen, as a set.
    pub changed: u16,
}

impl Future {
    /// Flags that are to be complete here, in the frame.
    pub const KEPT: Self = Self { needed: true, seen: true, soon: false, changed: 0 };

    fn join(self, other: Self) -> Self {
        Self {
            needed: self.needed | other.needed,
            seen: self.seen | other.seen,
            soon: self.soon | other.soon,
            changed: self.changed | other.changed,
        }
    }
}

/// A decoded instruction.
#[derive(Clone, Debug)]
pub struct Insn {
    /// Decoded as if the page were at address 0.
    pub i: Instruction,
    /// Where in the page it starts.
    pub offset: u16,
    /// What to do with it.
    pub class: Class,
    /// The units it uses.
    pub units: Units,
    /// Bytes that it moves between the stack and elsewhere.
    pub word: u8,
    /// What it does with flags.
    pub effect: Effect,
    /// How its flags can be made again.
    pub recipe: Option<Recipe>,
    /// It reads memory, or writes it (`Some(true)`).
    pub memory: Option<bool>,
    /// It may fault, on the host or in the check of its access.
    pub faults: bool,
    /// General registers that it changes, as a set.
    pub changes: u16,
    /// Flags before it.
    pub before: Future,
    /// Flags after it.
    pub after: Future,
}

impl Insn {
    /// Where the next one starts.
    #[must_use]
    pub fn end(&self) -> u16 {
        self.offset + self.i.len() as u16
    }

    /// Where in the page it jumps.
    #[must_use]
    pub fn target(&self) -> Option<u16> {
        let jumps = matches!(self.class, Class::Jcc | Class::Jmp | Class::Loop);
        u16::try_from(self.destination()).ok().filter(|at| jumps && u64::from(*at) < PAGE_SIZE)
    }

    /// Where a near branch goes, counted from the start of the page. (Targets that are not 64 bits wide wrap.)
    #[must_use]
    pub fn destination(&self) -> i64 {
        let target = self.i.near_branch_target();
        match self.i.op0_kind() {
            OpKind::NearBranch16 => (target as u16).cast_signed().into(),
            OpKind::NearBranch32 => (target as u32).cast_signed().into(),
            _ => target.cast_signed(),
        }
    }

    /// When a conditional jump jumps.
    #[must_use]
    pub fn condition(&self) -> Cond {
        Cond((self.i.condition_code() as u8).saturating_sub(1))
    }

    /// Whether the host's flags are lost on the way to it.
    #[must_use]
    pub fn clobbers(&self) -> bool {
        self.memory.is_some()
            || matches!(
                self.class,
                Class::Pop | Class::Leave | Class::Ret | Class::Push | Class::String | Class::System
            )
    }

    fn transfer(&self, after: Future) -> Future {
        let mut future = after;
        match self.class {
            Class::Interpret | Class::Leaves => return Future::KEPT,
            Class::Call | Class::CallIndirect | Class::JmpIndirect | Class::Ret => return Future::KEPT,
            _ => {}
        }
        if self.effect.writes {
            future = Future::default();
        } else if self.effect.partly {
            let wanted = after.needed || after.seen;
            future = Future { needed: wanted, seen: wanted, soon: wanted, changed: 0 };
        } else if after.seen || after.needed {
            future.changed |= self.changes;
        }
        if self.effect.reads {
            (future.needed, future.seen, future.soon) = (true, true, true);
        }
        if self.clobbers() {
            future.soon = false;
        }
        future.seen |= self.faults;
        // It may fault when it has already changed registers, so no recipe tells what the flags are then.
        future.needed |= self.repeats();
        future
    }

    /// Whether it is a string instruction that works on many elements, and can be interrupted between them.
    fn repeats(&self) -> bool {
        self.class == Class::String && (self.i.has_rep_prefix() || self.i.has_repne_prefix())
    }
}

/// Where the flags are when a block is entered from within the region. (Who comes from elsewhere has them in the
/// frame.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Entry {
    /// Nobody asks.
    #[default]
    Dead,
    /// In RFLAGS.
    Rflags,
    /// In the frame.
    Frame,
    /// To be made again by the recipe whose number is in the frame; only a fault would show them.
    Numbered,
    /// Wherever the one block that leads here, which comes before it, has left them.
    Inherited,
}

/// Where a way out of a block leads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Goal {
    /// Out of the region.
    #[default]
    Outside,
    /// To a block of the region, by its number.
    Block(usize),
    /// To a block that was translated before.
    Known(Way),
}

/// A basic block.
#[derive(Clone, Debug, Default)]
pub struct Block {
    /// Its instructions, among those of the region.
    pub insns: Range<usize>,
    /// Where in the page it starts.
    pub offset: u16,
    /// Entered from elsewhere.
    pub root: bool,
    /// Where it goes on when it does not jump.
    pub next: Goal,
    /// Where its last instruction jumps.
    pub target: Goal,
    /// Convention of its entry.
    pub entry: Entry,
}

/// Decoded code with its graph.
#[derive(Clone, Debug, Default)]
pub struct Region {
    /// The instructions, block by block.
    insns: Vec<Insn>,
    /// The blocks in the order of their addresses.
    pub blocks: Vec<Block>,
    /// Whether any instruction uses vector or x87 registers.
    pub units: Units,
    /// Where an instruction begins that goes on in the next page.
    pub cut: Option<u16>,
    /// What it was read for.
    pub mode: Mode,
}

impl Region {
    /// The instructions of `block`.
    #[must_use]
    pub fn insns(&self, block: &Block) -> &[Insn] {
        self.insns.get(block.insns.clone()).unwrap_or_default()
    }

    /// The last instruction of `block`.
    #[must_use]
    pub fn last(&self, block: &Block) -> Option<&Insn> {
        self.insns(block).last()
    }

    /// Whether its code is the same in two readings of its page.
    #[must_use]
    pub fn same(&self, one: &[u8], other: &[u8]) -> bool {
        self.blocks.iter().all(|block| {
            let range = usize::from(block.offset)..self.last(block).map_or(0, Insn::end) as usize;
            one.get(range.clone()) == other.get(range)
        })
    }

    /// Whether the last instruction of `block` jumps backwards within the page: the place to poll at.
    #[must_use]
    pub fn loops(&self, block: &Block) -> bool {
        self.last(block).is_some_and(|insn| {
            matches!(insn.class, Class::Jcc | Class::Jmp | Class::Call | Class::Loop)
                && insn.destination() <= i64::from(insn.offset)
        })
    }

    /// What becomes of the flags at the beginning of block `n`.
    #[must_use]
    pub fn before(&self, n: usize) -> Future {
        let block = self.blocks.get(n);
        block.and_then(|block| self.insns(block).first()).map(|insn| insn.before).unwrap_or_default()
    }

    /// All instructions.
    #[must_use]
    pub fn all(&self) -> &[Insn] {
        &self.insns
    }

    /// Whether it is one instruction that goes on in the next page.
    #[must_use]
    pub fn crosses(&self) -> bool {
        self.insns.first().is_some_and(|insn| u64::from(insn.end()) > PAGE_SIZE)
    }

    /// Finds what becomes of the flags, and from that the convention of each block's entry.
    fn solve(&mut self) {
        let counts = self.mode.counts;
        let mut ways = vec![0; self.blocks.len()];
        let mut from = vec![usize::MAX; self.blocks.len()];
        for (n, block) in self.blocks.iter().enumerate() {
            for goal in [block.next, block.target] {
                if let Goal::Block(to) = goal {
                    ways[to] += 1;
                    from[to] = n;
                }
            }
        }
        let inherits: Vec<bool> =
            (0..self.blocks.len()).map(|n| !self.blocks[n].root && ways[n] == 1 && from[n] < n).collect();
        // What the last pass found behind each block.
        let mut behind: Vec<Option<Future>> = vec![None; self.blocks.len()];
        let mut stable = false;
        while !stable {
            stable = true;
            for n in (0..self.blocks.len()).rev() {
                let mut future = self.behind(n, &inherits);
                if behind[n].replace(future) == Some(future) {
                    continue;
                }
                stable = false;
                let loops = self.loops(&self.blocks[n]);
                let range = self.blocks[n].insns.clone();
                let count = range.len();
                for (k, insn) in self.insns[range].iter_mut().enumerate().rev() {
                    let mut before = insn.transfer(future);
                    // The poll comes before the last instruction.
                    before.seen |= loops && k + 1 == count;
                    if counts && k == 0 {
                        // What counts the block's instructions comes before the first one.
                        (before.seen, before.soon) = (true, false);
                    }
                    (insn.before, insn.after) = (before, future);
                    future = before;
                }
            }
        }
        for (n, inherits) in inherits.iter().enumerate() {
            let before = self.before(n);
            self.blocks[n].entry = if *inherits {
                Entry::Inherited
            } else if !before.needed && !before.seen {
                Entry::Dead
            } else if before.soon {
                Entry::Rflags
            } else if !before.needed {
                Entry::Numbered
            } else {
                Entry::Frame
            };
        }
    }

    /// The flags' future behind block `n`.
    fn behind(&self, n: usize, inherits: &[bool]) -> Future {
        let block = &self.blocks[n];
        let Some(last) = self.last(block) else { return Future::KEPT };
        // At a join flags that are read are where the convention says, whatever made them.
        let join = |before: Future| Future { changed: if before.needed { 0 } else { before.changed }, ..before };
        let to = |goal: Goal| match goal {
            Goal::Outside => Future::KEPT,
            Goal::Known(way) => join(way.before),
            Goal::Block(to) if inherits[to] => self.before(to),
            Goal::Block(to) => join(self.before(to)),
        };
        match last.class {
            Class::Jcc | Class::Loop => to(block.next).join(to(block.target)),
            Class::Jmp => to(block.target),
            _ => to(block.next),
        }
    }
}

/// Decodes single instructions of a page.
struct Reader<'a> {
    bytes: &'a [u8],
    model: &'a Model,
    mode: Mode,
    options: u32,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], model: &'a Model, mode: Mode) -> Self {
        let options = DecoderOptions::FORCE_RESERVED_NOP | model.decoder_options();
        Self { bytes, model, mode, options }
    }

    /// `None`: it does not end within the page, or is too long.
    fn read(&self, at: u16, factory: &mut InstructionInfoFactory) -> Option<Insn> {
        let rest = self.bytes.get(usize::from(at)..)?;
        let mut decoder =
            Decoder::with_ip(self.mode.code_size() as u32, rest.get(..15).unwrap_or(rest), at.into(), self.options);
        let mut i = decoder.decode();
        if decoder.last_error() == DecoderError::NoMoreBytes {
            return None;
        }
        if self.mode.legacy.is_some() {
            crate::legacy::rewrite(&mut i);
        }
        let (class, units) = classify(&i, self.model, self.mode);
        let mut insn = Insn {
            i,
            offset: at,
            class,
            units,
            word: 0,
            effect: Effect::default(),
            recipe: None,
            memory: None,
            faults: true,
            changes: 0,
            before: Future::default(),
            after: Future::default(),
        };
        if matches!(class, Class::Nop | Class::Interpret | Class::Leaves) {
            insn.faults = class != Class::Nop;
            return Some(insn);
        }
        insn.effect = Effect::of(&i);
        insn.recipe = Recipe::of(&i);
        insn.word = stack_word(&i);
        let info = factory.info(&i);
        for used in info.used_registers().iter().filter(|used| writes(used.access())) {
            let register = used.register();
            if register.is_gpr() {
                insn.changes |= 1 << register.full_register().number();
            }
        }
        if class != Class::Lea
            && let Some(n) = (0..i.op_count()).find(|n| i.op_kind(*n) == OpKind::Memory)
        {
            insn.memory = Some(writes(info.op_access(n)));
        }
        let memory = insn.memory.is_some();
        let encodable = class != Class::Plain || self.mode.legacy.is_none() || i.op_code().mode64();
        if !encodable || !fits(&i, memory, self.mode) {
            insn.class = if class.ends() { Class::Leaves } else { Class::Interpret };
            (insn.effect, insn.recipe, insn.memory) = (Effect::default(), None, None);
            return Some(insn);
        }
        let divides = matches!(i.mnemonic(), Mnemonic::Div | Mnemonic::Idiv);
        insn.faults = insn.clobbers() || divides || units.vector || units.x87;
        Some(insn)
    }
}

/// What PUSH, POP, CALL, RET, LEAVE and their like move, in bytes.
fn stack_word(i: &Instruction) -> u8 {
    match i.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        Code::Leaveq => 8,
        _ => {
            let released = if i.mnemonic() == Mnemonic::Ret && i.op_count() > 0 { i.immediate16().into() } else { 0 };
            (i.stack_pointer_increment() - released).unsigned_abs() as u8
        }
    }
}

fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

#[cfg(test)]
mod tests;
