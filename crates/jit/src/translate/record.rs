//! What code does that makes a record of each access: see `record`.
//!
//! Everything is done by moves, so that it can stand anywhere.

use super::{Job, Refused};
use crate::asm::{Asm, Mem, Reg};
use crate::frame::Frame;
use crate::region::Insn;
use crate::regs::{T0, T1, field};
use iced_x86::{OpAccess, OpKind};
use memory::observe::{Record, What};
use std::mem::offset_of;

/// Which eight bytes, or what is left, an access of `size` bytes consists of.
fn pieces(size: u32) -> impl DoubleEndedIterator<Item = (u32, u32)> + ExactSizeIterator {
    (0..size.div_ceil(8) as usize).map(move |piece| (piece as u32, (size - 8 * piece as u32).min(8)))
}

/// Loads 1, 2, 4 or 8 bytes, zero-extended.
fn load(asm: &mut Asm, to: Reg, from: Mem, size: u32) -> Result<(), Refused> {
    match size {
        1 => asm.rm(false, &[0x0f, 0xb6], to, from),
        2 => asm.rm(false, &[0x0f, 0xb7], to, from),
        4 => asm.load32(to, from),
        8 => asm.load(to, from),
        _ => return Err(Refused),
    }
    Ok(())
}

impl Job<'_> {
    /// Behind the check of an access, whose address is in the frame, with the addend in T1, which stays. `write`: it is
    /// not a mere read.
    pub(super) fn record(&mut self, insn: &Insn, size: u32, write: bool) -> Result<(), Refused> {
        let reads = !write || self.reads_memory(insn);
        for write in [false, true].into_iter().filter(|kind| if *kind { write } else { reads }) {
            for (piece, part) in pieces(size) {
                let what = What::new(insn.offset, self.left, size, piece, write, self.region.mode.user);
                self.asm.load(T0, field(offset_of!(Frame, accessed)));
                // If this faults, so would the instruction.
                load(self.asm, T0, Mem::at(T0, 8 * piece as i32).index(T1, 0), part)?;
                self.asm.store_imm32(field(offset_of!(Frame, what)), what.bits());
                self.asm.call_to(self.thunks.record);
            }
        }
        Ok(())
    }

    /// Leaves `insn` to the interpreter: one of which is not known here how many accesses it makes. (That of an x87
    /// instruction that stores is none where an exception is not masked.)
    pub(super) fn not_recorded(&mut self, insn: &Insn) {
        self.lose_flags(insn);
        let at = self.leave_by(insn);
        self.asm.jmp(at);
    }

    /// Behind the instruction that wrote `size` bytes, its last access. T0 and T1 must be free.
    pub(super) fn recorded(&mut self, size: u32) -> Result<(), Refused> {
        if !self.region.mode.records {
            return Ok(());
        }
        let count = pieces(size).len() as i32;
        self.asm.load(T0, field(offset_of!(Frame, records)));
        for (piece, part) in pieces(size) {
            let record = |field: usize| Mem::at(T0, (piece as i32 - count) * size_of::<Record>() as i32 + field as i32);
            self.asm.load(T1, record(Record::HVA));
            load(self.asm, T1, Mem::at(T1, 8 * piece as i32), part)?;
            self.asm.store(record(Record::AFTER), T1);
        }
        Ok(())
    }

    /// Whether `insn`, whose memory operand is written, reads it too.
    fn reads_memory(&mut self, insn: &Insn) -> bool {
        let info = self.factory.info(&insn.i);
        let operand = (0..insn.i.op_count()).find(|n| insn.i.op_kind(*n) == OpKind::Memory);
        operand.is_some_and(|n| matches!(info.op_access(n), OpAccess::ReadWrite | OpAccess::ReadCondWrite))
    }
}
