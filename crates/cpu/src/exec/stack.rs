//! The stack: PUSH, POP, PUSHA, POPA, ENTER, LEAVE. Segment registers and flags are in `segment` and `system`.

use super::alu::{Imm, Mem, Reg, Source};
use super::{Flow, operand_size, operands};
use crate::Cpu;
use crate::op::{Exec, Op, Width};
use crate::state::{RBP, RSP, SS};
use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::Exception;

fn push<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let value = S::get::<W>(cpu, op)?;
    cpu.push(value)?;
    Ok(Flow::Next)
}

/// The stack pointer moves first, so that POP rSP leaves the popped value.
fn pop_reg<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let value: W = cpu.pop()?;
    W::set(cpu, op.dst, value);
    Ok(Flow::Next)
}

/// The effective address is computed with the stack pointer after the pop (APM vol. 3, POP).
fn pop_mem<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let before = cpu.regs[RSP];
    let value: W = cpu.pop()?;
    let ea = cpu.ea(op);
    cpu.store(usize::from(op.seg), ea, value).inspect_err(|_| cpu.regs[RSP] = before)?;
    Ok(Flow::Next)
}

/// The address of entry `n` of the eight that PUSHA makes and POPA takes. The stack pointer may wrap between them.
fn entry<W: Width>(cpu: &Cpu, start: u64, n: u8) -> u64 {
    start.wrapping_add(u64::from(n) * W::SIZE) & cpu.stack_mask()
}

/// All eight pushes are checked before the first is made.
fn pusha<W: Width>(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    let start = cpu.stack_pointer().wrapping_sub(8 * W::SIZE) & cpu.stack_mask();
    for n in (0..8).rev() {
        cpu.probe(SS, entry::<W>(cpu, start, n), W::SIZE, true)?;
    }
    // Ascending addresses hold DI, SI, BP, SP, BX, DX, CX, AX.
    for n in (0..8).rev() {
        cpu.store(SS, entry::<W>(cpu, start, n), W::get(cpu, 7 - n))?;
    }
    cpu.set_stack_pointer(start);
    Ok(Flow::Next)
}

fn popa<W: Width>(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    let start = cpu.stack_pointer();
    let mut values = [W::low(0); 8];
    for (n, value) in (0..8).zip(&mut values) {
        *value = cpu.load(SS, entry::<W>(cpu, start, n))?;
    }
    cpu.set_stack_pointer(start.wrapping_add(8 * W::SIZE));
    for (n, value) in (0..8).zip(values) {
        if 7 - n != RSP as u8 {
            W::set(cpu, 7 - n, value);
        }
    }
    Ok(Flow::Next)
}

fn leave<W: Width>(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    let frame = cpu.regs[RBP] & cpu.stack_mask();
    let value: W = cpu.load(SS, frame)?;
    cpu.set_stack_pointer(frame.wrapping_add(W::SIZE));
    W::set(cpu, RBP as u8, value);
    Ok(Flow::Next)
}

/// ENTER: nothing is committed before the last access has succeeded.
fn enter<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let (allocate, level, mask) = (op.imm() & 0xffff, op.imm() >> 16 & 31, cpu.stack_mask());
    let mut sp = cpu.stack_pointer().wrapping_sub(W::SIZE) & mask;
    let mut frame = cpu.regs[RBP] & mask;
    cpu.store(SS, sp, W::get(cpu, RBP as u8))?;
    let new_frame = sp;
    if level > 0 {
        for _ in 1..level {
            frame = frame.wrapping_sub(W::SIZE) & mask;
            let link: W = cpu.load(SS, frame)?;
            sp = sp.wrapping_sub(W::SIZE) & mask;
            cpu.store(SS, sp, link)?;
        }
        sp = sp.wrapping_sub(W::SIZE) & mask;
        cpu.store(SS, sp, W::low(new_frame))?;
    }
    sp = sp.wrapping_sub(allocate) & mask;
    cpu.probe(SS, sp, W::SIZE, true)?;
    W::set(cpu, RBP as u8, W::low(new_frame));
    cpu.set_stack_pointer(sp);
    Ok(Flow::Next)
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Op> {
    macro_rules! by_size {
        ($size:expr, $w:ident => $handler:expr) => {
            match $size {
                2 => {
                    type $w = u16;
                    $handler
                }
                4 => {
                    type $w = u32;
                    $handler
                }
                8 => {
                    type $w = u64;
                    $handler
                }
                _ => return None,
            }
        };
    }
    let moved = i.stack_pointer_increment().unsigned_abs() as usize;
    let exec: Exec = match i.mnemonic() {
        Mnemonic::Push => {
            let exec = match i.op0_kind() {
                OpKind::Register if !i.op0_register().is_gpr() => return None,
                OpKind::Register => by_size!(moved, W => push::<W, Reg>),
                OpKind::Memory => by_size!(moved, W => push::<W, Mem>),
                _ => by_size!(moved, W => push::<W, Imm>),
            };
            let mut op = Op::new(exec, i);
            match i.op0_kind() {
                OpKind::Register => op.src = super::register_name(i, 0),
                OpKind::Memory => {}
                _ => op.set_imm(i.immediate(0)),
            }
            return Some(op);
        }
        Mnemonic::Pop => match i.op0_kind() {
            OpKind::Register if !i.op0_register().is_gpr() => return None,
            OpKind::Register => by_size!(moved, W => pop_reg::<W>),
            _ => by_size!(operand_size(i, 0), W => pop_mem::<W>),
        },
        Mnemonic::Pusha | Mnemonic::Pushad => return Some(Op::new(by_size!(moved / 8, W => pusha::<W>), i)),
        Mnemonic::Popa | Mnemonic::Popad => by_size!(moved / 8, W => popa::<W>),
        Mnemonic::Leave => by_size!(leave_size(i), W => leave::<W>),
        Mnemonic::Enter => {
            let mut op = Op::new(by_size!(enter_size(i), W => enter::<W>), i);
            op.set_imm(u64::from(i.immediate16()) | u64::from(i.immediate8_2nd()) << 16);
            return Some(op);
        }
        _ => return None,
    };
    Some(operands(exec, i))
}

fn leave_size(i: &Instruction) -> usize {
    use iced_x86::Code;
    match i.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        _ => 8,
    }
}

fn enter_size(i: &Instruction) -> usize {
    use iced_x86::Code;
    match i.code() {
        Code::Enterw_imm16_imm8 => 2,
        Code::Enterd_imm16_imm8 => 4,
        _ => 8,
    }
}

#[cfg(test)]
mod tests;
