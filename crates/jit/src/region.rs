//! What is translated together: the code in one page that can be reached from an entry by jumps within the page.
//!
//! Instructions are decoded once, cut into basic blocks, and the blocks joined to a graph. A pass against the flow
//! tells for each point what becomes of the status flags (see `flags`).

use crate::classify::{Class, Mode, Units, classify};
use crate::flags::{Effect, Recipe};
use crate::translate::fits;
use cpu::cpuid::Model;
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic};
use iced_x86::{OpAccess, OpKind};
use std::collections::BTreeMap;
use x86::PAGE_SIZE;

/// The most instructions in a region.
const MAX_INSTRUCTIONS: usize = 400;

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

    /// Where a near branch goes, counted from the start of the page. (Targets that are not 64 bits wide wrap.)
    #[must_use]
    pub fn target(&self) -> i64 {
        let target = self.i.near_branch_target();
        match self.i.op0_kind() {
            OpKind::NearBranch16 => (target as u16).cast_signed().into(),
            OpKind::NearBranch32 => (target as u32).cast_signed().into(),
            _ => target.cast_signed(),
        }
    }

    /// Whether the host's flags are lost on the way to it.
    #[must_use]
    pub fn clobbers(&self) -> bool {
        self.memory.is_some()
            || matches!(self.class, Class::Pop | Class::Leave | Class::Ret | Class::Push | Class::System)
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
        future
    }
}

/// Where the flags are when a block is entered from within the region. (Who comes from elsewhere has them in the
/// frame.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nobody asks.
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

/// A basic block.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its instructions.
    pub insns: Vec<Insn>,
    /// Entered from elsewhere.
    pub root: bool,
    /// The block at which it goes on when it does not jump, if that is in the region.
    pub next: Option<usize>,
    /// The block to which its last instruction jumps, if that is in the region.
    pub target: Option<usize>,
    /// Convention of its entry.
    pub entry: Entry,
}

impl Block {
    /// Where it starts.
    #[must_use]
    pub fn offset(&self) -> u16 {
        self.insns.first().map_or(0, |insn| insn.offset)
    }

    /// The last instruction.
    #[must_use]
    pub fn last(&self) -> Option<&Insn> {
        self.insns.last()
    }

    /// Whether its last instruction jumps backwards within the page: the place to poll at.
    #[must_use]
    pub fn loops(&self) -> bool {
        self.last().is_some_and(|insn| {
            matches!(insn.class, Class::Jcc | Class::Jmp | Class::Call | Class::Loop)
                && insn.target() <= i64::from(insn.offset)
        })
    }

    fn before(&self) -> Future {
        self.insns.first().map(|insn| insn.before).unwrap_or_default()
    }
}

/// Decoded code with its graph, blocks in the order of their addresses.
#[derive(Clone, Debug)]
pub struct Region {
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Whether any instruction uses vector or x87 registers.
    pub units: Units,
    /// Where an instruction begins that goes on in the next page.
    pub cut: Option<u16>,
    /// What it was read for.
    pub mode: Mode,
}

impl Region {
    /// The region around `entry` in a page's `bytes`. `known` says which other places in the page are worth having:
    /// code that has run. If the bytes go on into the next page, it may be one instruction that does so too.
    #[must_use]
    pub fn build(bytes: &[u8], entry: u16, model: &Model, mode: Mode, known: impl Fn(u16) -> bool) -> Option<Self> {
        let mut insns: BTreeMap<u16, Insn> = BTreeMap::new();
        let mut leaders: BTreeMap<u16, bool> = BTreeMap::from([(entry, true)]);
        let mut work = vec![entry];
        let page = bytes.get(..PAGE_SIZE as usize)?;
        let mut decoder = Reader::new(page, model, mode);
        if decoder.read(entry).is_none() && bytes.len() > page.len() {
            decoder = Reader::new(bytes, model, mode);
        }
        let mut cut = None;
        while let Some(start) = work.pop() {
            let mut at = start;
            loop {
                // Running into code that is there already makes a block begin there.
                if insns.contains_key(&at) {
                    leaders.entry(at).or_insert(false);
                    break;
                }
                if insns.len() == MAX_INSTRUCTIONS {
                    break;
                }
                let Some(insn) = decoder.read(at) else {
                    cut = Some(at);
                    break;
                };
                let (end, class) = (insn.end(), insn.class);
                let target = match class {
                    Class::Jcc | Class::Jmp | Class::Loop => u16::try_from(insn.target()).ok(),
                    _ => None,
                };
                insns.insert(at, insn);
                for place in target.into_iter().filter(|place| u64::from(*place) < PAGE_SIZE) {
                    if !leaders.contains_key(&place) && (known(place) || insns.contains_key(&place)) {
                        leaders.insert(place, false);
                        work.push(place);
                    }
                }
                let more = u64::from(end) < PAGE_SIZE;
                match class {
                    Class::Jcc | Class::Loop if more && known(end) => {
                        leaders.entry(end).or_insert(false);
                    }
                    Class::Jcc | Class::Loop => break,
                    // Where a call returns to, or an interpreted instruction goes on, is entered from outside.
                    Class::Call | Class::CallIndirect | Class::Interpret if more && known(end) => {
                        leaders.insert(end, true);
                        work.push(end);
                        break;
                    }
                    class if class.ends() => break,
                    _ if more => {}
                    _ => break,
                }
                at = end;
            }
        }
        let mut region = Self { cut, mode, ..Self::divide(insns, &leaders)? };
        region.solve();
        Some(region)
    }

    fn divide(insns: BTreeMap<u16, Insn>, leaders: &BTreeMap<u16, bool>) -> Option<Self> {
        let mut units = Units::default();
        let mut blocks = Vec::new();
        for (start, root) in leaders.iter().filter(|(start, _)| insns.contains_key(start)) {
            let mut list = Vec::new();
            let mut at = *start;
            while let Some(insn) = insns.get(&at) {
                if at != *start && leaders.contains_key(&at) {
                    break;
                }
                units.vector |= insn.units.vector && insn.class == Class::Plain;
                units.x87 |= insn.units.x87 && insn.class == Class::Plain;
                at = insn.end();
                let stop = insn.class.ends() || matches!(insn.class, Class::Jcc | Class::Loop);
                list.push(insn.clone());
                if stop {
                    break;
                }
            }
            blocks.push(Block { insns: list, root: *root, next: None, target: None, entry: Entry::Frame });
        }
        let starts: BTreeMap<u16, usize> = blocks.iter().enumerate().map(|(n, block)| (block.offset(), n)).collect();
        for block in &mut blocks {
            let last = block.insns.last()?;
            let branches = matches!(last.class, Class::Jcc | Class::Jmp | Class::Loop);
            let target = u16::try_from(last.target()).ok().filter(|_| branches);
            block.target = target.and_then(|target| starts.get(&target).copied());
            block.next = if last.class.ends() { None } else { starts.get(&last.end()).copied() };
        }
        (!blocks.is_empty()).then_some(Self { blocks, units, cut: None, mode: Mode::default() })
    }

    /// Whether it is one instruction that goes on in the next page.
    #[must_use]
    pub fn crosses(&self) -> bool {
        let last = self.blocks.last().and_then(Block::last);
        last.is_some_and(|insn| u64::from(insn.end()) > PAGE_SIZE)
    }

    /// Finds what becomes of the flags, and from that the convention of each block's entry.
    fn solve(&mut self) {
        let mut ways = vec![0; self.blocks.len()];
        let mut from = vec![usize::MAX; self.blocks.len()];
        for (n, block) in self.blocks.iter().enumerate() {
            for to in block.next.into_iter().chain(block.target) {
                ways[to] += 1;
                from[to] = n;
            }
        }
        let inherits: Vec<bool> =
            (0..self.blocks.len()).map(|n| !self.blocks[n].root && ways[n] == 1 && from[n] < n).collect();
        loop {
            let mut stable = true;
            for n in (0..self.blocks.len()).rev() {
                let mut future = self.behind(n, &inherits);
                let loops = self.blocks[n].loops();
                let count = self.blocks[n].insns.len();
                for (k, insn) in self.blocks[n].insns.iter_mut().enumerate().rev() {
                    let mut before = insn.transfer(future);
                    // The poll comes before the last instruction.
                    before.seen |= loops && k + 1 == count;
                    stable &= insn.before == before && insn.after == future;
                    (insn.before, insn.after) = (before, future);
                    future = before;
                }
            }
            if stable {
                break;
            }
        }
        for (n, inherits) in inherits.iter().enumerate() {
            let before = self.blocks[n].before();
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
        let Some(last) = block.last() else { return Future::KEPT };
        let to = |place: Option<usize>| match place {
            None => Future::KEPT,
            Some(to) => {
                let before = self.blocks[to].before();
                if inherits[to] {
                    before
                } else {
                    // At a join flags that are read are where the convention says, whatever made them.
                    let needed = before.needed;
                    Future { changed: if needed { 0 } else { before.changed }, ..before }
                }
            }
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
    factory: InstructionInfoFactory,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], model: &'a Model, mode: Mode) -> Self {
        let options = DecoderOptions::FORCE_RESERVED_NOP | model.decoder_options();
        Self { bytes, model, mode, options, factory: InstructionInfoFactory::new() }
    }

    /// `None`: it does not end within the page, or is too long.
    fn read(&mut self, at: u16) -> Option<Insn> {
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
        let info = self.factory.info(&i);
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
