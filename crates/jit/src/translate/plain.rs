//! Instructions that the host executes: registers renamed, the memory operand replaced.

use super::legacy::adapt;
use super::memory::Address;
use super::{Job, Refused};
use crate::asm::{Mem, Reg};
use crate::classify::Mode;
use crate::flags::Undefined;
use crate::frame::Frame;
use crate::region::Insn;
use crate::regs::{Place, T0, T1, field, place};
use crate::thunks::SIZES;
use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register};
use std::mem::offset_of;

/// Whether the instruction can be expressed with the registers that there are: at most as many operands without a
/// host register as there are scratch registers, and AH, CH, DH, BH only where no REX prefix is needed, or where they
/// can be exchanged.
#[must_use]
pub fn fits(i: &Instruction, memory: bool, mode: Mode) -> bool {
    if memory && (Address::of(i, mode).is_none() || !SIZES.contains(&(i.memory_size().size() as u32))) {
        return false;
    }
    let registers = || (0..i.op_count()).filter(|n| i.op_kind(*n) == OpKind::Register).map(|n| i.op_register(n));
    let general = || registers().filter(|register| register.is_gpr());
    let homed = general().fold(0u16, |set, register| match place(guest(register)) {
        Place::Home(_) => set | 1 << guest(register),
        Place::Host(_) => set,
    });
    if homed.count_ones() > if memory { 1 } else { 2 } {
        return false;
    }
    let high = general().any(is_high);
    let low = |register: Register| matches!(place(guest(register)), Place::Host(host) if host < 8);
    if memory { !high || exchanges(i, mode) } else { !high || general().all(low) }
}

/// Whether a high byte and the low one of its register can be exchanged for as long as `i` takes, which has a memory
/// operand: where that cannot fault, no register is part of it, and no other operand is in either.
fn exchanges(i: &Instruction, mode: Mode) -> bool {
    mode.legacy.is_some() && i.mnemonic() != Mnemonic::Cmpxchg
}

pub(super) fn is_high(register: Register) -> bool {
    cpu::operand::is_high_byte(register)
}

/// Encoding of the guest register that `register` is, or is part of.
pub(super) fn guest(register: Register) -> Reg {
    register.full_register().number() as Reg
}

/// The part of host register `host` that is like `like`.
pub(super) fn rename(like: Register, host: Reg) -> Register {
    let number = u32::from(host);
    match like.size() {
        1 if is_high(like) => like,
        1 if host < 4 => Register::AL + number,
        1 if host < 8 => Register::SPL + (number - 4),
        1 => Register::R8L + (number - 8),
        2 => Register::AX + number,
        4 => Register::EAX + number,
        _ => Register::RAX + number,
    }
}

/// Makes the memory operand of `i` the host's.
fn set_memory(i: &mut Instruction, operand: Mem) {
    let register = |host: Reg| Register::RAX + u32::from(host);
    i.set_segment_prefix(Register::None);
    i.set_memory_base(operand.base.map_or(Register::None, register));
    i.set_memory_index(operand.index.map_or(Register::None, |(index, _)| register(index)));
    i.set_memory_index_scale(1 << operand.index.map_or(0, |(_, shift)| shift));
    i.set_memory_displacement64(i64::from(operand.disp).cast_unsigned());
    i.set_memory_displ_size(u32::from(operand.disp != 0));
}

impl Job<'_> {
    pub(super) fn plain(&mut self, insn: &Insn) -> Result<(), Refused> {
        let mut out = insn.i;
        if self.region.mode.records && insn.units.x87 && insn.memory == Some(true) {
            self.not_recorded(insn);
            return Ok(());
        }
        if let Some(write) = insn.memory {
            let address = Address::of(&insn.i, self.region.mode).ok_or(Refused)?;
            let reads = self.reads_flags(insn);
            if reads && self.checks() {
                self.keep_flags();
            }
            let operand = self.access(insn, &address, insn.i.memory_size().size() as u32, write)?;
            set_memory(&mut out, operand);
            if let (Some(_), Some((bits, _))) = (address.narrow, address.bits) {
                self.bit_in_word(bits)?;
            }
            if reads {
                self.need_flags();
            }
        } else {
            if self.reads_flags(insn) {
                self.need_flags();
            }
            if insn.faults {
                let site = self.site(insn.offset, insn.end(), crate::sites::Kind::Instruction);
                self.sites.covers(self.asm.here(), site);
            }
        }
        let stores = self.operands(insn, &mut out)?;
        let undefined = Undefined::of(&insn.i).filter(|_| insn.after.needed || insn.after.seen);
        if undefined == Some(Undefined::Before) {
            self.asm.compare_equals();
        }
        let exchange = if self.region.mode.legacy.is_some() { adapt(insn, &mut out) } else { None };
        self.asm.raw(exchange.as_ref().map_or(&[], |exchange| exchange));
        self.asm.instruction(self.encoder, &out).map_err(|_| Refused)?;
        self.asm.raw(exchange.as_ref().map_or(&[], |exchange| exchange));
        if undefined == Some(Undefined::Behind) {
            self.asm.compare_equals();
        }
        for (home, from) in stores.into_iter().flatten() {
            self.asm.store(home, from);
        }
        if insn.memory == Some(true) {
            self.recorded(insn.i.memory_size().size() as u32)?;
        }
        Ok(())
    }

    fn reads_flags(&self, insn: &Insn) -> bool {
        insn.effect.reads || (insn.effect.partly && (insn.after.needed || insn.after.seen))
    }

    /// Renames the register operands of `out`; loads those that live in the frame, and gives those to be stored there.
    fn operands(&mut self, insn: &Insn, out: &mut Instruction) -> Result<[Option<(Mem, Reg)>; 2], Refused> {
        let mut stores = [None; 2];
        let mut taken: [Option<Reg>; 2] = [None; 2];
        for n in 0..insn.i.op_count() {
            if insn.i.op_kind(n) != OpKind::Register || !insn.i.op_register(n).is_gpr() {
                continue;
            }
            let register = insn.i.op_register(n);
            match place(guest(register)) {
                Place::Host(host) => out.set_op_register(n, rename(register, host)),
                Place::Home(home) => {
                    let known = taken.iter().position(|it| *it == Some(guest(register)));
                    let slot = known.or_else(|| taken.iter().position(Option::is_none)).ok_or(Refused)?;
                    let scratch = if slot == 0 { T0 } else { T1 };
                    if scratch == T1 {
                        self.resident = None;
                    }
                    let access = self.factory.info(&insn.i).op_access(n);
                    // What is not written whole must be there before.
                    let whole = access == OpAccess::Write && register.size() >= 4;
                    if known.is_none() {
                        // Another operand may read the same register.
                        let read = !whole || self.reads_elsewhere(insn, n);
                        if read {
                            self.asm.load(scratch, home);
                        }
                    }
                    if matches!(
                        access,
                        OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
                    ) {
                        *stores.get_mut(slot).ok_or(Refused)? = Some((home, scratch));
                    }
                    *taken.get_mut(slot).ok_or(Refused)? = Some(guest(register));
                    out.set_op_register(n, rename(register, scratch));
                }
            }
        }
        Ok(stores)
    }

    fn reads_elsewhere(&self, insn: &Insn, operand: u32) -> bool {
        let same = |n: u32| {
            n != operand
                && insn.i.op_kind(n) == OpKind::Register
                && insn.i.op_register(n).is_gpr()
                && guest(insn.i.op_register(n)) == guest(insn.i.op_register(operand))
        };
        (0..insn.i.op_count()).any(same)
    }

    /// LEA: no access, any number of registers without a host register.
    pub(super) fn lea(&mut self, insn: &Insn) -> Result<(), Refused> {
        if let Some(address) = self.region.mode.legacy.and(Address::of(&insn.i, self.region.mode))
            && let Some(narrow) = address.narrow
        {
            return self.lea_narrow(insn, &address, narrow);
        }
        let mut out = insn.i;
        let i = &insn.i;
        let take = |job: &mut Self, register: Register, scratch: Reg| match place(guest(register)) {
            Place::Host(host) => rename(register, host),
            Place::Home(home) => {
                job.asm.load(scratch, home);
                rename(register, scratch)
            }
        };
        match i.memory_base() {
            Register::None => {}
            Register::RIP => {
                let disp = i32::try_from(i.memory_displacement64().cast_signed()).map_err(|_| Refused)?;
                self.asm.load(T0, field(offset_of!(Frame, base)));
                set_memory(&mut out, Mem::at(T0, disp));
            }
            register => {
                let renamed = take(self, register, T0);
                out.set_memory_base(renamed);
            }
        }
        if i.memory_index() != Register::None {
            if matches!(place(guest(i.memory_index())), Place::Home(_)) {
                self.resident = None;
            }
            let renamed = take(self, i.memory_index(), T1);
            out.set_memory_index(renamed);
        }
        out.set_segment_prefix(Register::None);
        if i.memory_base() != Register::RIP {
            out.set_memory_displ_size(u32::from(i.memory_displacement64() != 0));
        }
        let register = i.op0_register();
        match place(guest(register)) {
            Place::Host(host) => {
                out.set_op0_register(rename(register, host));
                self.asm.instruction(self.encoder, &out).map_err(|_| Refused)?;
            }
            Place::Home(home) => {
                if register.size() == 2 {
                    // The rest of the register stays: computed in T1, which the address has no more need of then.
                    self.resident = None;
                    out.set_op0_register(rename(register, T1));
                    self.asm.instruction(self.encoder, &out).map_err(|_| Refused)?;
                    self.asm.rm(false, &[0x66, 0x89], T1, home);
                } else {
                    out.set_op0_register(rename(register, T0));
                    self.asm.instruction(self.encoder, &out).map_err(|_| Refused)?;
                    self.asm.store(home, T0);
                }
            }
        }
        Ok(())
    }
}
