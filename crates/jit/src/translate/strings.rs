//! String instructions (APM vol. 3, chapter 3): one element in the way of other accesses, repeated ones by a thunk.
//!
//! They count upwards; where DF says otherwise the interpreter executes them.

use super::memory::Address;
use super::{Cold, Job, Refused};
use crate::asm::{Cond, Mem, RAX, RDI, RSI, Reg};
use crate::frame::Frame;
use crate::region::Insn;
use crate::regs::{T0, field};
use crate::sites::Kind;
use iced_x86::Mnemonic;
use std::mem::offset_of;

impl Job<'_> {
    pub(super) fn string(&mut self, insn: &Insn) -> Result<(), Refused> {
        let repeated = insn.i.has_rep_prefix() || insn.i.has_repne_prefix();
        if repeated && self.region.mode.records {
            self.not_recorded(insn);
            return Ok(());
        }
        self.lose_flags(insn);
        let site = self.site(insn.offset, insn.end(), Kind::Instruction);
        self.accesses.push(site);
        self.resident = None;
        let downwards = self.asm.label();
        self.cold.push(Cold::Interpret { at: downwards, site });
        self.test_flag(super::system::DF);
        self.asm.jcc(Cond::NE, downwards);
        if repeated {
            let thunk = self.thunks.strings.of(&insn.i).ok_or(Refused)?;
            self.asm.push_imm(site);
            self.asm.call_to(thunk);
            return Ok(());
        }
        let size = insn.i.memory_size().size() as u32;
        match insn.i.mnemonic() {
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
                let to = self.access(insn, &Address::off(RDI, 0, self.region.mode), size, true)?;
                self.sized(size, 0x88, RAX, to);
                self.recorded(size)?;
                self.advance(RDI, size);
            }
            Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => {
                let from = self.access(insn, &Address::off(RSI, 0, self.region.mode), size, false)?;
                self.sized(size, 0x8a, RAX, from);
                self.advance(RSI, size);
            }
            Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => {
                self.source(insn, size)?;
                let to = self.access(insn, &Address::off(RDI, 0, self.region.mode), size, true)?;
                self.asm.load(T0, field(offset_of!(Frame, scratch)));
                self.sized(size, 0x88, T0, to);
                self.recorded(size)?;
                self.advance(RSI, size);
                self.advance(RDI, size);
            }
            Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => {
                let with = self.access(insn, &Address::off(RDI, 0, self.region.mode), size, false)?;
                self.sized(size, 0x3a, RAX, with);
                self.advance(RDI, size);
            }
            Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => {
                self.source(insn, size)?;
                let with = self.access(insn, &Address::off(RDI, 0, self.region.mode), size, false)?;
                self.asm.load(T0, field(offset_of!(Frame, scratch)));
                self.sized(size, 0x3a, T0, with);
                self.advance(RSI, size);
                self.advance(RDI, size);
            }
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// Puts the element at RSI where it is found again after another access has been checked.
    fn source(&mut self, insn: &Insn, size: u32) -> Result<(), Refused> {
        let from = self.access(insn, &Address::off(RSI, 0, self.region.mode), size, false)?;
        self.sized(size, 0x8a, T0, from);
        self.asm.store(field(offset_of!(Frame, scratch)), T0);
        Ok(())
    }

    /// An instruction on `register` and memory, `size` bytes; `opcode` is that for bytes.
    fn sized(&mut self, size: u32, opcode: u8, register: Reg, memory: Mem) {
        match size {
            1 => self.asm.rm(false, &[opcode], register, memory),
            2 => self.asm.rm(false, &[0x66, opcode + 1], register, memory),
            _ => self.asm.rm(size == 8, &[opcode + 1], register, memory),
        }
    }

    /// Moves a pointer on, and leaves the flags alone.
    fn advance(&mut self, pointer: Reg, size: u32) {
        self.asm.lea(pointer, Mem::at(pointer, size as i32));
    }
}
