//! Where the guest's status flags are, and what must be kept of them.
//!
//! The check of a memory access changes the host's flags. Saving the guest's each time would cost more than the check;
//! but most flags are overwritten before any instruction reads them, and are only ever seen if an instruction in
//! between faults. For those it is enough to know how to make them again: a [`Recipe`], from registers that still
//! hold what made them. So at each point flags are in RFLAGS, in the frame, given by a recipe, or in several of these.

use crate::asm::Reg;
use host::alu;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// All six status flags in iced's notation.
pub const STATUS: u32 = iced_x86::RflagsBits::OF
    | iced_x86::RflagsBits::SF
    | iced_x86::RflagsBits::ZF
    | iced_x86::RflagsBits::AF
    | iced_x86::RflagsBits::CF
    | iced_x86::RflagsBits::PF;

/// What an instruction does with the status flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Reads some.
    pub reads: bool,
    /// Writes all.
    pub writes: bool,
    /// Writes some, or none in some cases.
    pub partly: bool,
}

impl Effect {
    /// Of `i`.
    #[must_use]
    pub fn of(i: &Instruction) -> Self {
        let modified = i.rflags_modified() & STATUS;
        // A count of zero leaves all flags alone.
        let conditional = match i.mnemonic() {
            Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar => shift_may_be_zero(i, 1),
            Mnemonic::Shld | Mnemonic::Shrd => shift_may_be_zero(i, 2),
            // Processors may change OF even where a whole turn leaves the rest as it was.
            Mnemonic::Rcl | Mnemonic::Rcr | Mnemonic::Rol | Mnemonic::Ror => true,
            // What AMD leaves unchanged is undefined by the manual.
            Mnemonic::Bsf | Mnemonic::Bsr | Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc => true,
            _ => false,
        };
        let writes = modified == STATUS && !conditional;
        Self { reads: i.rflags_read() & STATUS != 0, writes, partly: (modified != 0 || conditional) && !writes }
    }
}

/// What becomes of the flags that an instruction leaves undefined where processors leave some as they were and it is not
/// worth keeping them: what the interpreter makes of them, see `host::alu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undefined {
    /// As after a comparison of equals before it.
    Before,
    /// As after a comparison of equals behind it.
    Behind,
}

impl Undefined {
    /// Of `i`. `None`: it is as the host has it, with the flags before it.
    #[must_use]
    pub fn of(i: &Instruction) -> Option<Self> {
        match i.mnemonic() {
            Mnemonic::Mul | Mnemonic::Imul | Mnemonic::Lzcnt | Mnemonic::Tzcnt => Some(Self::Before),
            Mnemonic::Div | Mnemonic::Idiv => Some(Self::Behind),
            _ => None,
        }
    }
}

/// Whether the shift by operand `n` may be by zero.
fn shift_may_be_zero(i: &Instruction, n: u32) -> bool {
    let mask = if i.op0_kind() == OpKind::Register && i.op0_register().is_gpr64() || i.memory_size().size() == 8 {
        63
    } else {
        31
    };
    i.op_kind(n) != OpKind::Immediate8 || i.immediate8() & mask == 0
}

/// The second operand of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A guest register.
    Register(Reg),
    /// An immediate, sign-extended.
    Immediate(i32),
}

/// What the flags are the result of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// CMP of the two as they are.
    Cmp,
    /// TEST of the two as they are.
    Test,
    /// A logical operation, whose result the first holds.
    Logic,
    /// ADD, whose result the first holds.
    Add,
    /// SUB, whose result the first holds.
    Sub,
}

/// How the flags can be made again from guest registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recipe {
    /// What made them.
    pub operation: Operation,
    /// Its first operand.
    pub register: Reg,
    /// Its second.
    pub source: Source,
    /// Operand size in bytes: 4 or 8. (Narrower operations have none: too rare.)
    pub size: u8,
}

impl Recipe {
    /// For `i`, if it has one.
    #[must_use]
    pub fn of(i: &Instruction) -> Option<Self> {
        let operation = match i.mnemonic() {
            Mnemonic::Cmp => Operation::Cmp,
            Mnemonic::Test => Operation::Test,
            Mnemonic::And | Mnemonic::Or | Mnemonic::Xor => Operation::Logic,
            Mnemonic::Add => Operation::Add,
            Mnemonic::Sub => Operation::Sub,
            _ => return None,
        };
        if i.op0_kind() != OpKind::Register {
            return None;
        }
        let first = i.op0_register();
        let size = if first.is_gpr64() {
            8
        } else if first.is_gpr32() {
            4
        } else {
            return None;
        };
        let register = number(first);
        let source = match i.op1_kind() {
            OpKind::Register => Source::Register(number(i.op1_register())),
            // The result is all that a logical operation's flags depend on.
            OpKind::Memory if operation == Operation::Logic => Source::Immediate(0),
            OpKind::Memory => return None,
            _ => {
                Source::Immediate(i32::try_from(i.immediate(1).cast_signed()).unwrap_or(i.immediate32().cast_signed()))
            }
        };
        let same = source == Source::Register(register);
        match operation {
            Operation::Add | Operation::Sub if same => None,
            Operation::Logic => Some(Self { operation, register, source: Source::Immediate(0), size }),
            _ => Some(Self { operation, register, source, size }),
        }
    }

    /// The guest registers that it needs, as a set.
    #[must_use]
    pub fn registers(&self) -> u16 {
        let source = match self.source {
            Source::Register(register) => 1 << register,
            Source::Immediate(_) => 0,
        };
        source | 1 << self.register
    }

    /// The status flags.
    #[must_use]
    pub fn flags(&self, registers: &[u64; 32]) -> u64 {
        let value = |register: Reg| registers[usize::from(register & 15)];
        let source = match self.source {
            Source::Register(register) => value(register),
            Source::Immediate(value) => i64::from(value).cast_unsigned(),
        };
        let first = value(self.register);
        if self.size == 8 { self.apply(first, source) } else { self.apply(first as u32, source as u32) }
    }

    fn apply<T: alu::Word>(&self, first: T, source: T) -> u64 {
        match self.operation {
            Operation::Cmp => alu::cmp(first, source),
            Operation::Test => alu::test(first, source),
            Operation::Logic => alu::test(first, first),
            Operation::Add => alu::add(alu::sub(first, source).0, source).1,
            Operation::Sub => alu::cmp(alu::add(first, source).0, source),
        }
    }
}

/// Encoding of a general register of any width but the high bytes.
fn number(register: Register) -> Reg {
    register.full_register().number() as Reg
}

#[cfg(test)]
mod tests;
