//! Multiplication and division: MUL, IMUL, DIV, IDIV.

use super::alu::{Imm, Mem, Reg, Source};
use super::{Flow, by_wide, by_width, operand_size, operands};
use crate::Cpu;
use crate::op::{Exec, Op, Width};
use crate::state::{RAX, RDX};
use host::alu::{self, Wide};
use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::Exception;

/// Writes a double-width product or quotient/remainder pair: AX, or xDX:xAX.
fn set_pair<W: Width>(cpu: &mut Cpu, low: W, high: W) {
    if W::SIZE == 1 {
        let (low, high): (u64, u64) = (low.into(), high.into());
        u16::set(cpu, RAX as u8, (high << 8 | low) as u16);
    } else {
        W::set(cpu, RAX as u8, low);
        W::set(cpu, RDX as u8, high);
    }
}

/// The high half of the dividend: AH, or xDX.
fn high<W: Width>(cpu: &Cpu) -> W {
    if W::SIZE == 1 { W::low(cpu.regs[RAX] >> 8) } else { W::get(cpu, RDX as u8) }
}

fn multiply<const SIGNED: bool, W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let b = S::get::<W>(cpu, op)?;
    let a = W::low(cpu.regs[RAX]);
    let (low, high, flags) = if SIGNED { alu::imul_wide(a, b) } else { alu::mul(a, b) };
    set_pair(cpu, low, high);
    cpu.status = flags;
    Ok(Flow::Next)
}

fn divide<const SIGNED: bool, W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let divisor = S::get::<W>(cpu, op)?;
    let (high, low) = (high::<W>(cpu), W::low(cpu.regs[RAX]));
    let result = if SIGNED { alu::idiv(high, low, divisor) } else { alu::div(high, low, divisor) };
    let (quotient, remainder) = result.ok_or(Exception::DIVIDE)?;
    set_pair(cpu, quotient, remainder);
    cpu.status = alu::EQUAL;
    Ok(Flow::Next)
}

/// `imul reg, reg|mem`
fn imul2<W: Width + Wide, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let b = S::get::<W>(cpu, op)?;
    let (result, flags) = alu::imul(W::get(cpu, op.dst), b);
    W::set(cpu, op.dst, result);
    cpu.status = flags;
    Ok(Flow::Next)
}

/// `imul reg, reg|mem, imm`
fn imul3<W: Width + Wide, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let a = S::get::<W>(cpu, op)?;
    let (result, flags) = alu::imul(a, Imm::get(cpu, op)?);
    W::set(cpu, op.dst, result);
    cpu.status = flags;
    Ok(Flow::Next)
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Op> {
    let size = operand_size(i, 0);
    macro_rules! one {
        ($handler:ident, $signed:literal) => {{
            let exec: Exec = if i.op0_kind() == OpKind::Memory {
                by_width!(size, W => $handler::<$signed, W, Mem>)?
            } else {
                by_width!(size, W => $handler::<$signed, W, Reg>)?
            };
            let mut op = operands(exec, i);
            op.src = op.dst;
            Some(op)
        }};
    }
    match i.mnemonic() {
        Mnemonic::Mul => one!(multiply, false),
        Mnemonic::Imul if i.op_count() == 1 => one!(multiply, true),
        Mnemonic::Div => one!(divide, false),
        Mnemonic::Idiv => one!(divide, true),
        Mnemonic::Imul => {
            let memory = i.op1_kind() == OpKind::Memory;
            let exec: Option<Exec> = match (i.op_count(), memory) {
                (2, true) => by_wide!(size, W => imul2::<W, Mem>),
                (2, false) => by_wide!(size, W => imul2::<W, Reg>),
                (_, true) => by_wide!(size, W => imul3::<W, Mem>),
                (_, false) => by_wide!(size, W => imul3::<W, Reg>),
            };
            let mut op = operands(exec?, i);
            if i.op_count() == 3 {
                op.set_imm(i.immediate(2));
            }
            Some(op)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
