//! Jumps, calls, returns, the stack.
//!
//! Within a region blocks jump to each other. To other code of the same page a jump is made straight once that code is
//! known: both go when the page's code changes. Everything else goes through the jump cache, whose tags hold the MMU's
//! fetch stamp, so that what it finds is what a fetch would find now. Where it finds nothing the interpreter executes
//! the jump, and the way is remembered.
//!
//! Wherever a region is left the status flags are in the frame.

use super::memory::Address;
use super::{Cold, Job, Refused};
use crate::asm::{Cond, Label, Mem, RCX, RSP, Reg};
use crate::classify::Units;
use crate::frame::{Frame, HOSTS, TAGS};
use crate::region::{Entry, Goal, Insn};
use crate::regs::{Place, STACK_POINTER, T0, T1, field, place};
use crate::sites::Kind;
use crate::stats::Inline;
use cpu::state::CodeSize;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use std::mem::offset_of;
use x86::PAGE_SIZE;

const RBP: Reg = 5;

/// A part of the jump cache's entry for the address whose masked bits are in T0.
const fn jump(table: usize) -> Mem {
    Mem::at(RSP, table as i32).index(T0, 3)
}

impl Job<'_> {
    /// Before a jump backwards: a load that faults when the vCPU is wanted elsewhere. It changes no flag.
    pub(super) fn poll(&mut self, insn: &Insn) {
        let site = self.site(insn.offset, insn.end(), Kind::Poll);
        self.sites.covers(self.asm.here(), site);
        self.asm.load(T0, field(offset_of!(Frame, poll)));
        self.asm.load32(T0, Mem::at(T0, 0));
        self.sites.uncover(self.asm.here());
    }

    /// Puts the flags where `to` expects them, and loads what else it needs.
    pub(super) fn arrange(&mut self, to: Goal) -> Result<(), Refused> {
        let entry = match to {
            Goal::Outside => return Err(Refused),
            Goal::Block(n) if self.convention(to)? == Entry::Inherited => {
                if self.running {
                    return self.inherit(n);
                }
                *self.entry.get_mut(n).ok_or(Refused)? = self.state;
                return Ok(());
            }
            Goal::Block(_) => self.convention(to)?,
            Goal::Known(way) => {
                if self.missing(to) != Units::NONE {
                    // What the flags are worth to the target they are in the frame.
                    match way.entry {
                        Entry::Dead => {}
                        Entry::Numbered => self.number_flags(way.before.changed),
                        _ => self.keep_flags(),
                    }
                    self.state.rflags = false;
                    self.load_units(self.missing(to));
                    if way.entry == Entry::Numbered {
                        return Ok(());
                    }
                }
                way.entry
            }
        };
        match entry {
            Entry::Dead | Entry::Inherited => {}
            Entry::Rflags => self.need_flags(),
            Entry::Frame => self.keep_flags(),
            Entry::Numbered => self.number_flags(self.changed(to)),
        }
        Ok(())
    }

    /// Where `to` expects the flags.
    fn convention(&self, to: Goal) -> Result<Entry, Refused> {
        match to {
            Goal::Outside => Err(Refused),
            Goal::Block(n) => self.region.blocks.get(n).map(|block| block.entry).ok_or(Refused),
            Goal::Known(way) => Ok(way.entry),
        }
    }

    /// The guest registers that change at `to` while the flags can be seen.
    fn changed(&self, to: Goal) -> u16 {
        match to {
            Goal::Outside => 0,
            Goal::Block(n) => self.region.before(n).changed,
            Goal::Known(way) => way.before.changed,
        }
    }

    /// The units that `to` needs and that may not be loaded.
    fn missing(&self, to: Goal) -> Units {
        match to {
            Goal::Known(way) => way.units.without(self.region.units),
            _ => Units::NONE,
        }
    }

    /// Whether `to` comes before block `n` or is it.
    fn is_behind(to: Goal, n: usize) -> bool {
        matches!(to, Goal::Block(to) if to <= n)
    }

    /// Jumps to `to`, for which all is arranged.
    pub(super) fn jump(&mut self, to: Goal) -> Result<(), Refused> {
        match to {
            Goal::Outside => return Err(Refused),
            Goal::Block(n) => self.asm.jmp(*self.labels.get(n).ok_or(Refused)?),
            Goal::Known(way) => self.asm.jmp_to(way.place as usize),
        }
        Ok(())
    }

    /// The same if `cond` holds.
    fn jump_if(&mut self, cond: Cond, to: Goal) -> Result<(), Refused> {
        match to {
            Goal::Outside => return Err(Refused),
            Goal::Block(n) => self.asm.jcc(cond, *self.labels.get(n).ok_or(Refused)?),
            Goal::Known(way) => self.asm.jcc_to(cond, way.place as usize),
        }
        Ok(())
    }

    /// From block `n`, whose last instruction is `last`, to what follows it. Whether the next block does.
    pub(super) fn go_on(&mut self, n: usize, last: &Insn) -> Result<bool, Refused> {
        let to = self.region.blocks.get(n).map(|block| block.next).unwrap_or_default();
        if to == Goal::Outside {
            let (end, place) = (last.end(), i64::from(last.end()));
            self.keep_flags();
            if self.near(place) {
                self.direct(last.offset, end);
            } else if self.limited() {
                // Not the interpreter's: the last instruction is done.
                let (at, site) =
                    (self.asm.label(), self.site(last.offset, end, Kind::Direct { target: end, patch: 0 }));
                self.cold.push(Cold::Direct { at, site });
                self.place(place)?;
                self.known(at, 0);
            } else {
                // If that is no address, the fault is that of a fetch there.
                self.place(place)?;
                self.look_up(end, end, 0);
            }
            return Ok(false);
        }
        self.arrange(to)?;
        if to == Goal::Block(n + 1) {
            return Ok(true);
        }
        self.jump(to)?;
        Ok(false)
    }

    /// Out of the region, by the jump at `offset`.
    pub(super) fn exit(&mut self, offset: u16, following: u16, target: i64) -> Result<(), Refused> {
        self.keep_flags();
        match u16::try_from(target) {
            Ok(near) if self.near(target) => self.direct(offset, near),
            _ => {
                self.target(target)?;
                self.look_up(offset, following, 0);
            }
        }
        Ok(())
    }

    /// Whether a jump to `place`, counted from the start of the page, can be made straight: to code whose
    /// translation depends on no other page.
    fn near(&self, place: i64) -> bool {
        (0..PAGE_SIZE.cast_signed()).contains(&place) && self.region.cut.map(i64::from) != Some(place)
    }

    /// A jump within the page that is to be made straight.
    fn direct(&mut self, offset: u16, target: u16) {
        self.count(offset_of!(Inline, direct));
        let label = self.asm.label();
        self.asm.jmp(label);
        let patch = self.asm.here() as u32 - 4;
        let site = self.site(offset, target, Kind::Direct { target, patch });
        self.cold.push(Cold::Direct { at: label, site });
    }

    /// Where the jump at `offset` is left to the interpreter.
    fn miss(&mut self, offset: u16, following: u16) -> Label {
        let at = self.asm.label();
        let site = self.site(offset, following, Kind::Instruction);
        self.cold.push(Cold::Interpret { at, site });
        at
    }

    /// Puts into T1 the address that is `place` bytes from the start of the page.
    fn place(&mut self, place: i64) -> Result<(), Refused> {
        let disp = i32::try_from(place).map_err(|_| Refused)?;
        self.asm.load(T1, field(offset_of!(Frame, base)));
        self.asm.lea(T1, Mem::at(T1, disp));
        Ok(())
    }

    /// The same for a jump, which wraps.
    fn target(&mut self, place: i64) -> Result<(), Refused> {
        self.place(place)?;
        match self.region.mode.code_size() {
            CodeSize::Bits64 => {}
            CodeSize::Bits32 => self.asm.mov32(T1, T1),
            CodeSize::Bits16 => self.asm.zero_extend16(T1, T1),
        }
        Ok(())
    }

    /// To the address in T1, if the jump cache knows it; `pops` is added to the guest's RSP on the way. If not, the
    /// jump at `offset`, of which nothing else is left to do, is completed outside; where code segments have limits
    /// the interpreter executes it.
    fn look_up(&mut self, offset: u16, following: u16, pops: i32) {
        let at = if self.limited() {
            self.miss(offset, following)
        } else {
            let at = self.asm.label();
            let site = self.site(offset, following, Kind::Jump { pops });
            self.cold.push(Cold::Jump { at, site, pops });
            at
        };
        self.known(at, pops);
    }

    /// To the address in T1; if the jump cache does not know it, to `miss`.
    fn known(&mut self, miss: Label, pops: i32) {
        self.find(miss);
        self.move_stack(pops);
        self.asm.jmp_mem(jump(HOSTS));
    }

    /// Finds the jump cache's entry for the address in T1: leaves the masked bits in T0, the tag in T1.
    fn find(&mut self, miss: Label) {
        self.count(offset_of!(Inline, jumps));
        self.asm.mov32(T0, T1);
        self.asm.and_mem(T0, field(offset_of!(Frame, jump_mask)));
        self.asm.xor_mem(T1, field(offset_of!(Frame, stamp)));
        self.asm.cmp_mem(T1, jump(TAGS));
        self.asm.jcc(Cond::NE, miss);
    }

    /// Calls the address in T1, which may turn out to be none, and which the interpreter would make anew: nothing is
    /// pushed before it is found.
    fn call_known(&mut self, insn: &Insn) -> Result<(), Refused> {
        let miss = self.miss(insn.offset, insn.end());
        let scratch = field(offset_of!(Frame, scratch));
        self.find(miss);
        self.asm.store(scratch, T0);
        self.push_return(insn)?;
        self.asm.load(T0, scratch);
        self.asm.load(T1, jump(TAGS));
        self.move_stack(-i32::from(insn.word));
        self.asm.jmp_mem(jump(HOSTS));
        Ok(())
    }

    /// Whether the code segment may have a limit.
    fn limited(&self) -> bool {
        self.region.mode.legacy.is_some_and(|legacy| !legacy.flat)
    }

    pub(super) fn move_stack(&mut self, by: i32) {
        if by != 0 {
            self.set_stack(Mem::at(STACK_POINTER, by));
        }
    }

    /// Makes the stack pointer what the address is, as far as it addresses the stack.
    fn set_stack(&mut self, address: Mem) {
        match self.region.mode.stack_size() {
            8 => self.asm.lea(STACK_POINTER, address),
            4 => self.asm.rm(false, &[0x8d], STACK_POINTER, address),
            _ => self.asm.rm(false, &[0x66, 0x8d], STACK_POINTER, address),
        }
    }

    /// The word that `insn` pushes, or pops.
    pub(super) fn below(&self, insn: &Insn) -> Address {
        Address::off(RSP, -i32::from(insn.word), self.region.mode)
    }

    /// The word on top of the stack.
    pub(super) fn top(&self) -> Address {
        Address::off(RSP, 0, self.region.mode)
    }

    /// Loads `size` bytes, zero-extended.
    fn load_word(&mut self, to: Reg, from: Mem, size: u8) {
        match size {
            8 => self.asm.load(to, from),
            4 => self.asm.load32(to, from),
            _ => self.asm.rm(false, &[0x0f, 0xb7], to, from),
        }
    }

    /// Loads `size` bytes into a guest register, of which two leave the rest as it is.
    fn load_part(&mut self, to: Reg, from: Mem, size: u8) {
        match size {
            2 => self.asm.rm(false, &[0x66, 0x8b], to, from),
            size => self.load_word(to, from, size),
        }
    }

    pub(super) fn store_word(&mut self, to: Mem, from: Reg, size: u8) {
        match size {
            8 => self.asm.store(to, from),
            4 => self.asm.store32(to, from),
            _ => self.asm.rm(false, &[0x66, 0x89], from, to),
        }
    }

    pub(super) fn jcc(&mut self, n: usize, insn: &Insn) -> Result<(), Refused> {
        self.need_flags();
        let cond = insn.condition();
        let to = self.region.blocks.get(n).map(|block| block.target).unwrap_or_default();
        if to == Goal::Outside {
            let at = self.taken_exit(insn);
            self.asm.jcc(cond, at);
            return Ok(());
        }
        let (entry, back) = (self.convention(to)?, Self::is_behind(to, n));
        if entry == Entry::Frame && back {
            self.keep_flags();
        }
        let arranges = (entry == Entry::Frame && !self.state.frame) || (entry == Entry::Numbered && !back);
        if arranges || self.missing(to) != Units::NONE {
            let at = self.asm.label();
            self.cold.push(Cold::Edge { at, state: self.state, from: insn.offset, to });
            self.asm.jcc(cond, at);
        } else {
            self.arrange(to)?;
            match self.begins_run(n, to) {
                Some(run) => self.asm.jcc(cond, run),
                None => self.jump_if(cond, to)?,
            }
        }
        Ok(())
    }

    fn taken_exit(&mut self, insn: &Insn) -> Label {
        let at = self.asm.label();
        let target = insn.destination();
        let (offset, following) = (insn.offset, insn.end());
        self.cold.push(Cold::Exit { at, state: self.state, offset, following, target });
        at
    }

    /// LOOP and JRCXZ: by JRCXZ itself, which reads no flag and only jumps short. The rest of RCX is zero where the
    /// count is 32 bits wide, and put aside where it is 16.
    pub(super) fn counted(&mut self, n: usize, insn: &Insn) -> Result<(), Refused> {
        let at = match self.region.blocks.get(n).map(|block| block.target).unwrap_or_default() {
            // The interpreter, to which a jump goes that is not in the jump cache, would count once more.
            Goal::Outside if insn.i.mnemonic() == Mnemonic::Loop => return Err(Refused),
            Goal::Outside => self.taken_exit(insn),
            to => {
                let at = self.asm.label();
                self.cold.push(Cold::Edge { at, state: self.state, from: insn.offset, to });
                if self.convention(to)? == Entry::Inherited {
                    self.arrange(to)?;
                }
                at
            }
        };
        let size = count_size(&insn.i);
        let counts = insn.i.mnemonic() == Mnemonic::Loop;
        if counts {
            match size {
                8 => self.asm.lea(RCX, Mem::at(RCX, -1)),
                4 => self.asm.rm(false, &[0x8d], RCX, Mem::at(RCX, -1)),
                _ => self.asm.rm(false, &[0x66, 0x8d], RCX, Mem::at(RCX, -1)),
            }
        }
        // MOV RCX, T0, which three bytes are.
        let (restore, skip) = if size == 2 { (&[0x4c, 0x89, 0xc1 | (T0 & 7) << 3][..], 3) } else { (&[][..], 0) };
        if size == 2 {
            self.asm.mov(T0, RCX);
            self.asm.zero_extend16(RCX, RCX);
        }
        if counts {
            // JRCXZ over the jump.
            self.asm.raw(&[0xe3, 5 + skip]);
        } else {
            // JRCXZ to the jump, JMP over it.
            self.asm.raw(&[0xe3, 2, 0xeb, 5 + skip]);
        }
        self.asm.raw(restore);
        self.asm.jmp(at);
        self.asm.raw(restore);
        Ok(())
    }

    pub(super) fn jmp(&mut self, n: usize, insn: &Insn) -> Result<(), Refused> {
        match self.region.blocks.get(n).map(|block| block.target).unwrap_or_default() {
            Goal::Outside => self.exit(insn.offset, insn.end(), insn.destination()),
            to => {
                self.arrange(to)?;
                self.jump(to)
            }
        }
    }

    /// Stores the address behind the call below the guest's RSP, which does not move yet.
    fn push_return(&mut self, insn: &Insn) -> Result<(), Refused> {
        let slot = self.access(insn, &self.below(insn), insn.word.into(), true)?;
        self.asm.load(T0, field(offset_of!(Frame, base)));
        self.asm.lea(T0, Mem::at(T0, insn.end().into()));
        self.store_word(slot, T0, insn.word);
        self.recorded(insn.word.into())
    }

    pub(super) fn call(&mut self, insn: &Insn) -> Result<(), Refused> {
        self.keep_flags();
        let (target, pushed) = (insn.destination(), -i32::from(insn.word));
        if let Some(near) = u16::try_from(target).ok().filter(|_| self.near(target)) {
            self.push_return(insn)?;
            self.move_stack(pushed);
            self.direct(insn.offset, near);
        } else if self.limited() {
            self.target(target)?;
            self.call_known(insn)?;
        } else {
            self.push_return(insn)?;
            self.target(target)?;
            self.look_up(insn.offset, insn.end(), pushed);
        }
        Ok(())
    }

    pub(super) fn call_indirect(&mut self, insn: &Insn) -> Result<(), Refused> {
        self.keep_flags();
        if insn.i.op0_kind() == OpKind::Memory {
            let operand = self.operand(insn, insn.word)?;
            self.load_word(T1, operand, insn.word);
        } else {
            self.read(T1, insn.i.op0_register());
        }
        self.call_known(insn)
    }

    pub(super) fn jmp_indirect(&mut self, insn: &Insn) -> Result<(), Refused> {
        self.keep_flags();
        if insn.i.op0_kind() == OpKind::Memory {
            let size = insn.i.memory_size().size() as u8;
            let operand = self.operand(insn, size)?;
            self.load_word(T1, operand, size);
        } else {
            self.read(T1, insn.i.op0_register());
        }
        self.look_up(insn.offset, insn.end(), 0);
        Ok(())
    }

    pub(super) fn ret(&mut self, insn: &Insn) -> Result<(), Refused> {
        self.keep_flags();
        let slot = self.access(insn, &self.top(), insn.word.into(), false)?;
        self.load_word(T1, slot, insn.word);
        let dropped = if insn.i.op_count() > 0 { i32::from(insn.i.immediate16()) } else { 0 };
        self.look_up(insn.offset, insn.end(), i32::from(insn.word) + dropped);
        Ok(())
    }

    fn operand(&mut self, insn: &Insn, size: u8) -> Result<Mem, Refused> {
        let address = Address::of(&insn.i, self.region.mode).ok_or(Refused)?;
        self.access(insn, &address, size.into(), false)
    }

    /// Reads a guest register, zero-extended.
    fn read(&mut self, to: Reg, register: Register) {
        match (place(register.number() as Reg), register.size()) {
            (Place::Host(from), 2) => self.asm.zero_extend16(to, from),
            (Place::Host(from), _) => self.asm.mov(to, from),
            (Place::Home(home), _) => self.asm.load(to, home),
        }
    }

    pub(super) fn push(&mut self, insn: &Insn) -> Result<(), Refused> {
        let (below, word) = (self.below(insn), insn.word);
        match insn.i.op0_kind() {
            OpKind::Register => {
                let slot = self.access(insn, &below, word.into(), true)?;
                match place(insn.i.op0_register().number() as Reg) {
                    Place::Host(from) => self.store_word(slot, from, word),
                    Place::Home(home) => {
                        self.asm.load(T0, home);
                        self.asm.store(slot, T0);
                    }
                }
            }
            OpKind::Memory => {
                let scratch = field(offset_of!(Frame, scratch));
                let operand = self.operand(insn, word)?;
                self.load_word(T0, operand, word);
                self.asm.store(scratch, T0);
                let slot = self.access(insn, &below, word.into(), true)?;
                self.asm.load(T0, scratch);
                self.store_word(slot, T0, word);
            }
            _ => {
                let value = (insn.i.immediate(0) as u32).to_le_bytes();
                let slot = self.access(insn, &below, word.into(), true)?;
                if word == 2 {
                    self.asm.rm(false, &[0x66, 0xc7], 0, slot);
                    self.asm.raw(&value[..2]);
                } else {
                    // MOV of a sign-extended immediate.
                    self.asm.rm(word == 8, &[0xc7], 0, slot);
                    self.asm.raw(&value);
                }
            }
        }
        self.recorded(word.into())?;
        self.move_stack(-i32::from(word));
        Ok(())
    }

    pub(super) fn pop(&mut self, insn: &Insn) -> Result<(), Refused> {
        let slot = self.access(insn, &self.top(), insn.word.into(), false)?;
        match place(insn.i.op0_register().number() as Reg) {
            Place::Host(STACK_POINTER) => {
                self.load_word(STACK_POINTER, slot, insn.word);
                return Ok(());
            }
            Place::Host(to) => self.load_part(to, slot, insn.word),
            Place::Home(home) => {
                self.asm.load(T0, slot);
                self.asm.store(home, T0);
            }
        }
        self.move_stack(insn.word.into());
        Ok(())
    }

    pub(super) fn leave(&mut self, insn: &Insn) -> Result<(), Refused> {
        let slot = self.access(insn, &Address::off(RBP, 0, self.region.mode), insn.word.into(), false)?;
        self.load_word(T0, slot, insn.word);
        self.set_stack(Mem::at(RBP, insn.word.into()));
        if insn.word == 2 {
            // MOV of 16 bits.
            self.asm.rr(false, &[0x66, 0x89], T0, RBP);
        } else {
            self.asm.mov(RBP, T0);
        }
        Ok(())
    }
}

/// Bytes of the count that LOOP and its like look at.
fn count_size(i: &Instruction) -> u8 {
    match i.code() {
        Code::Loop_rel8_16_CX | Code::Loop_rel8_32_CX | Code::Jcxz_rel8_16 | Code::Jcxz_rel8_32 => 2,
        Code::Loop_rel8_64_RCX | Code::Jrcxz_rel8_64 => 8,
        _ => 4,
    }
}
