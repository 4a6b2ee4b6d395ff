//! Operands of an `iced-x86` instruction, for handlers that work on the decoded instruction itself.

use crate::Cpu;
use crate::state::{CodeSize, RIP};
use iced_x86::{Instruction, OpKind, Register};
use x86::Exception;

/// Index of a general-purpose register (any width) in [`Cpu::regs`]. AH, CH, DH, BH give their full register.
#[must_use]
pub fn gpr(register: Register) -> usize {
    register.full_register().number()
}

/// Index of a segment register in [`Cpu::seg`].
#[must_use]
pub fn segment(register: Register) -> usize {
    register.number()
}

impl Cpu {
    /// Address of the instruction that follows, truncated to the code size.
    #[inline(always)]
    #[must_use]
    pub fn next_rip(&self, instruction: &Instruction) -> u64 {
        self.truncate_rip(self.regs[RIP].wrapping_add(instruction.len() as u64))
    }

    /// Truncates an instruction pointer to the width of the code being executed.
    #[inline(always)]
    #[must_use]
    pub fn truncate_rip(&self, rip: u64) -> u64 {
        if self.code_size == CodeSize::Bits64 { rip } else { rip & 0xffff_ffff }
    }

    /// Reads a general-purpose register of any width, zero-extended.
    #[must_use]
    pub fn read_reg(&self, register: Register) -> u64 {
        let value = self.regs[gpr(register) & 31];
        match register.size() {
            1 if is_high_byte(register) => value >> 8 & 0xff,
            1 => value & 0xff,
            2 => value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        }
    }

    /// Writes a general-purpose register of any width: 32-bit writes clear the upper half, narrower ones merge.
    pub fn write_reg(&mut self, register: Register, value: u64) {
        let slot = &mut self.regs[gpr(register) & 31];
        *slot = match register.size() {
            1 if is_high_byte(register) => *slot & !0xff00 | (value & 0xff) << 8,
            1 => *slot & !0xff | value & 0xff,
            2 => *slot & !0xffff | value & 0xffff,
            4 => value & 0xffff_ffff,
            _ => value,
        };
    }

    /// The instruction's memory operand: index of its segment in [`Cpu::seg`], and the effective address truncated to the address size.
    /// For VSIB operands the index register is left out.
    #[must_use]
    pub fn effective_address(&self, instruction: &Instruction) -> (usize, u64) {
        let displacement = instruction.memory_displacement64();
        let base = match instruction.memory_base() {
            Register::None => 0,
            // iced gives the absolute target for a decoder that was told the address 0 of the instruction.
            Register::RIP | Register::EIP => self.regs[RIP],
            register => self.read_reg(register),
        };
        let index = match instruction.memory_index() {
            Register::None => 0,
            register if register.is_gpr() => self.read_reg(register),
            _ => 0,
        };
        let address = base
            .wrapping_add(index.wrapping_mul(u64::from(instruction.memory_index_scale())))
            .wrapping_add(displacement);
        (segment(instruction.memory_segment()), address & address_mask(instruction))
    }

    /// Reads operand `n` (register, memory or immediate) of `size` bytes (1, 2, 4, 8), zero-extended;
    /// immediates are sign-extended as the encoding says.
    pub fn read_operand(&mut self, instruction: &Instruction, n: u32, size: u64) -> Result<u64, Exception> {
        match instruction.op_kind(n) {
            OpKind::Register => Ok(self.read_reg(instruction.op_register(n))),
            OpKind::Memory => {
                let (seg, ea) = self.effective_address(instruction);
                self.load_sized(seg, ea, size)
            }
            _ => Ok(instruction.immediate(n)),
        }
    }

    /// Writes operand `n` (register or memory) of `size` bytes (1, 2, 4, 8).
    pub fn write_operand(&mut self, instruction: &Instruction, n: u32, size: u64, value: u64) -> Result<(), Exception> {
        if instruction.op_kind(n) == OpKind::Register {
            self.write_reg(instruction.op_register(n), value);
            return Ok(());
        }
        let (seg, ea) = self.effective_address(instruction);
        self.store_sized(seg, ea, size, value)
    }

    /// Reads 1, 2, 4 or 8 bytes, zero-extended.
    pub fn load_sized(&mut self, seg: usize, ea: u64, size: u64) -> Result<u64, Exception> {
        Ok(match size {
            1 => self.load::<u8>(seg, ea)?.into(),
            2 => self.load::<u16>(seg, ea)?.into(),
            4 => self.load::<u32>(seg, ea)?.into(),
            _ => self.load(seg, ea)?,
        })
    }

    /// Writes the low 1, 2, 4 or 8 bytes of `value`.
    pub fn store_sized(&mut self, seg: usize, ea: u64, size: u64, value: u64) -> Result<(), Exception> {
        match size {
            1 => self.store(seg, ea, (value & 0xff) as u8),
            2 => self.store(seg, ea, (value & 0xffff) as u16),
            4 => self.store(seg, ea, (value & 0xffff_ffff) as u32),
            _ => self.store(seg, ea, value),
        }
    }

    /// Pushes 2, 4 or 8 bytes.
    pub fn push_sized(&mut self, size: u64, value: u64) -> Result<(), Exception> {
        match size {
            2 => self.push((value & 0xffff) as u16),
            4 => self.push((value & 0xffff_ffff) as u32),
            _ => self.push(value),
        }
    }

    /// Pops 2, 4 or 8 bytes, zero-extended.
    pub fn pop_sized(&mut self, size: u64) -> Result<u64, Exception> {
        Ok(match size {
            2 => self.pop::<u16>()?.into(),
            4 => self.pop::<u32>()?.into(),
            _ => self.pop()?,
        })
    }
}

/// Whether the register is AH, CH, DH or BH.
#[must_use]
pub fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Mask of the instruction's address size.
#[must_use]
pub fn address_mask(instruction: &Instruction) -> u64 {
    let register = match (instruction.memory_base(), instruction.memory_index()) {
        (Register::None, index) => index,
        (base, _) => base,
    };
    match if register.is_gpr() || register.is_ip() { register.size() } else { instruction.memory_displ_size() as usize }
    {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => u64::MAX,
    }
}
