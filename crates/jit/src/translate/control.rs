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
use iced_x86::{Mnemonic, OpKind, Register};
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
            } else {
                self.target(place)?;
                self.look_up(last.offset, end, 0);
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
    fn target(&mut self, place: i64) -> Result<(), Refused> {
        let disp = i32::try_from(place).map_err(|_| Refused)?;
        self.asm.load(T1, field(offset_of!(Frame, base)));
        self.asm.lea(T1, Mem::at(T1, disp));
        Ok(())
    }

    /// To the address in T1, if the jump cache knows it; `pops` is added to the guest's RSP on the way. If not, the
    /// jump at `offset`, of which nothing else is left to do, is completed outside.
    fn look_up(&mut self, offset: u16, following: u16, pops: i32) {
        let at = self.asm.label();
        let site = self.site(offset, following, Kind::Jump { pops });
        self.cold.push(Cold::Jump { at, site, pops });
        self.find(at);
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

    pub(super) fn move_stack(&mut self, by: i32) {
        if by != 0 {
            self.asm.lea(STACK_POINTER, Mem::at(STACK_POINTER, by));
        }
    }

    pub(super) fn jcc(&mut self, n: usize, insn: &Insn) -> Result<(), Refused> {
        self.need_flags();
        let cond = Cond(insn.i.condition_code() as u8 - 1);
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
            self.jump_if(cond, to)?;
        }
        Ok(())
    }

    fn taken_exit(&mut self, insn: &Insn) -> Label {
        let at = self.asm.label();
        let target = insn.i.near_branch_target().cast_signed();
        let (offset, following) = (insn.offset, insn.end());
        self.cold.push(Cold::Exit { at, state: self.state, offset, following, target });
        at
    }

    /// LOOP and JRCXZ: by JRCXZ itself, which reads no flag and only jumps short.
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
        if insn.i.mnemonic() == Mnemonic::Loop {
            self.asm.lea(RCX, Mem::at(RCX, -1));
            // JRCXZ over the jump.
            self.asm.raw(&[0xe3, 5]);
        } else {
            // JRCXZ to the jump, JMP over it.
            self.asm.raw(&[0xe3, 2, 0xeb, 5]);
        }
        self.asm.jmp(at);
        Ok(())
    }

    pub(super) fn jmp(&mut self, n: usize, insn: &Insn) -> Result<(), Refused> {
        match self.region.blocks.get(n).map(|block| block.target).unwrap_or_default() {
            Goal::Outside => self.exit(insn.offset, insn.end(), insn.i.near_branch_target().cast_signed()),
            to => {
                self.arrange(to)?;
                self.jump(to)
            }
        }
    }

    /// Stores the address behind the call below the guest's RSP, which does not move yet.
    fn push_return(&mut self, insn: &Insn) -> Result<(), Refused> {
        let slot = self.access(insn, &Address::off(RSP, -8), 8, true)?;
        self.asm.load(T0, field(offset_of!(Frame, base)));
        self.asm.lea(T0, Mem::at(T0, insn.end().into()));
        self.asm.store(slot, T0);
        Ok(())
    }

    pub(super) fn call(&mut self, insn: &Insn) -> Result<(), Refused> {
        self.keep_flags();
        self.push_return(insn)?;
        let target = insn.i.near_branch_target().cast_signed();
        match u16::try_from(target) {
            Ok(near) if self.near(target) => {
                self.move_stack(-8);
                self.direct(insn.offset, near);
            }
            _ => {
                self.target(target)?;
                self.look_up(insn.offset, insn.end(), -8);
            }
        }
        Ok(())
    }

    pub(super) fn call_indirect(&mut self, insn: &Insn) -> Result<(), Refused> {
        self.keep_flags();
        if insn.i.op0_kind() == OpKind::Memory {
            let operand = self.operand(insn, 8, false)?;
            self.asm.load(T1, operand);
        } else {
            self.read(T1, insn.i.op0_register());
        }
        // The target may be no address, and the interpreter would read it anew: nothing is pushed before it is found.
        let miss = self.miss(insn.offset, insn.end());
        let scratch = field(offset_of!(Frame, scratch));
        self.find(miss);
        self.asm.store(scratch, T0);
        self.push_return(insn)?;
        self.asm.load(T0, scratch);
        self.asm.load(T1, jump(TAGS));
        self.move_stack(-8);
        self.asm.jmp_mem(jump(HOSTS));
        Ok(())
    }

    pub(super) fn jmp_indirect(&mut self, insn: &Insn) -> Result<(), Refused> {
        self.keep_flags();
        if insn.i.op0_kind() == OpKind::Memory {
            let operand = self.operand(insn, 8, false)?;
            self.asm.load(T1, operand);
        } else {
            self.read(T1, insn.i.op0_register());
        }
        self.look_up(insn.offset, insn.end(), 0);
        Ok(())
    }

    pub(super) fn ret(&mut self, insn: &Insn) -> Result<(), Refused> {
        self.keep_flags();
        let slot = self.access(insn, &Address::off(RSP, 0), 8, false)?;
        self.asm.load(T1, slot);
        let dropped = if insn.i.op_count() > 0 { i32::from(insn.i.immediate16()) } else { 0 };
        self.look_up(insn.offset, insn.end(), 8 + dropped);
        Ok(())
    }

    fn operand(&mut self, insn: &Insn, size: u32, write: bool) -> Result<Mem, Refused> {
        let address = Address::of(&insn.i).ok_or(Refused)?;
        self.access(insn, &address, size, write)
    }

    /// Reads a 64-bit guest register.
    fn read(&mut self, to: Reg, register: Register) {
        match place(register.number() as Reg) {
            Place::Host(from) => self.asm.mov(to, from),
            Place::Home(home) => self.asm.load(to, home),
        }
    }

    pub(super) fn push(&mut self, insn: &Insn) -> Result<(), Refused> {
        let below = Address::off(RSP, -8);
        match insn.i.op0_kind() {
            OpKind::Register => {
                let slot = self.access(insn, &below, 8, true)?;
                match place(insn.i.op0_register().number() as Reg) {
                    Place::Host(from) => self.asm.store(slot, from),
                    Place::Home(home) => {
                        self.asm.load(T0, home);
                        self.asm.store(slot, T0);
                    }
                }
            }
            OpKind::Memory => {
                let scratch = field(offset_of!(Frame, scratch));
                let operand = self.operand(insn, 8, false)?;
                self.asm.load(T0, operand);
                self.asm.store(scratch, T0);
                let slot = self.access(insn, &below, 8, true)?;
                self.asm.load(T0, scratch);
                self.asm.store(slot, T0);
            }
            _ => {
                let value = i32::try_from(insn.i.immediate(0).cast_signed()).map_err(|_| Refused)?;
                let slot = self.access(insn, &below, 8, true)?;
                // MOV of a sign-extended immediate.
                self.asm.rm(true, &[0xc7], 0, slot);
                self.asm.raw(&value.to_le_bytes());
            }
        }
        self.move_stack(-8);
        Ok(())
    }

    pub(super) fn pop(&mut self, insn: &Insn) -> Result<(), Refused> {
        let slot = self.access(insn, &Address::off(RSP, 0), 8, false)?;
        match place(insn.i.op0_register().number() as Reg) {
            Place::Host(STACK_POINTER) => {
                self.asm.load(STACK_POINTER, slot);
                return Ok(());
            }
            Place::Host(to) => self.asm.load(to, slot),
            Place::Home(home) => {
                self.asm.load(T0, slot);
                self.asm.store(home, T0);
            }
        }
        self.move_stack(8);
        Ok(())
    }

    pub(super) fn leave(&mut self, insn: &Insn) -> Result<(), Refused> {
        let slot = self.access(insn, &Address::off(RBP, 0), 8, false)?;
        self.asm.load(T0, slot);
        self.asm.lea(STACK_POINTER, Mem::at(RBP, 8));
        self.asm.mov(RBP, T0);
        Ok(())
    }
}
