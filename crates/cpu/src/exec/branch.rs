//! Near control flow: Jcc, JMP, CALL, RET, LOOP, JCXZ. Far transfers are in `far`.

use super::alu::{Mem, Reg, Source};
use super::moves::{by_condition, condition_bits};
use super::{Flow, operands};
use crate::Cpu;
use crate::op::{Exec, Op, Width};
use crate::state::{CS, CodeSize, RCX, RIP};
use iced_x86::{FlowControl, Instruction, Mnemonic, OpKind};
use x86::{Exception, Rflags};

/// Evaluates a condition code (the low four bits of its encoding) on the arithmetic flags.
#[inline(always)]
#[must_use]
pub fn condition<const CC: u8>(status: u64) -> bool {
    let f = Rflags::from_bits(status);
    let holds = match CC >> 1 {
        0 => f.overflow(),
        1 => f.carry(),
        2 => f.zero(),
        3 => f.carry() || f.zero(),
        4 => f.sign(),
        5 => f.parity(),
        6 => f.sign() != f.overflow(),
        _ => f.zero() || f.sign() != f.overflow(),
    };
    holds != (CC & 1 != 0)
}

impl Cpu {
    /// Continues at `target`, an absolute offset in the current code segment already truncated to the operand size.
    ///
    /// Errors: #GP(0) beyond the segment limit, or for an address that is not canonical in 64-bit mode.
    #[inline(always)]
    fn jump_to(&mut self, target: u64) -> Result<Flow, Exception> {
        if self.code_size == CodeSize::Bits64 && !x86::is_canonical(target, self.mmu.virtual_bits()) {
            return Err(Exception::GP0);
        }
        self.jump_near(target)
    }

    /// As `jump_to` for a target relative to the instruction, which leaves the canonical range only by running over its
    /// edge; that faults when it is fetched from.
    #[inline(always)]
    pub fn jump_near(&mut self, target: u64) -> Result<Flow, Exception> {
        if self.code_size != CodeSize::Bits64 && target > u64::from(self.seg[CS].limit) {
            return Err(Exception::GP0);
        }
        self.regs[RIP] = target;
        Ok(Flow::Near)
    }

    /// The target of a relative branch, truncated to operand width `W`.
    #[inline(always)]
    fn relative<W: Width>(&self, op: &Op) -> u64 {
        W::low(self.regs[RIP].wrapping_add(u64::from(op.len)).wrapping_add(op.imm())).into()
    }

    /// The return address, in operand width `W`.
    #[inline(always)]
    fn after<W: Width>(&self, op: &Op) -> W {
        W::low(self.regs[RIP].wrapping_add(u64::from(op.len)))
    }
}

fn jcc<const CC: u8, W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    if condition::<CC>(cpu.status) { cpu.jump_near(cpu.relative::<W>(op)) } else { Ok(Flow::Next) }
}

fn jmp<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    cpu.jump_near(cpu.relative::<W>(op))
}

fn jmp_indirect<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let target = S::get::<W>(cpu, op)?;
    cpu.jump_to(target.into())
}

fn call<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    call_to::<W>(cpu, op, cpu.relative::<W>(op))
}

fn call_indirect<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let target: u64 = S::get::<W>(cpu, op)?.into();
    if cpu.code_size == CodeSize::Bits64 && !x86::is_canonical(target, cpu.mmu.virtual_bits()) {
        return Err(Exception::GP0);
    }
    call_to::<W>(cpu, op, target)
}

/// The limit is checked before the push, so that a faulting call leaves the stack alone.
#[inline(always)]
fn call_to<W: Width>(cpu: &mut Cpu, op: &Op, target: u64) -> Result<Flow, Exception> {
    if cpu.code_size != CodeSize::Bits64 && target > u64::from(cpu.seg[CS].limit) {
        return Err(Exception::GP0);
    }
    cpu.push(cpu.after::<W>(op))?;
    cpu.jump_near(target)
}

/// RET, with the immediate released from the stack after the pop.
fn ret<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let sp = cpu.stack_pointer();
    let target: u64 = cpu.load::<W>(crate::state::SS, sp)?.into();
    let flow = cpu.jump_to(target)?;
    cpu.set_stack_pointer(sp.wrapping_add(W::SIZE).wrapping_add(op.imm()));
    Ok(flow)
}

/// LOOP (`KIND` 2), LOOPE (1), LOOPNE (0), JrCXZ (3); the count register has the address size.
fn count_branch<const KIND: u8, W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let mask = u64::MAX >> op.narrow;
    let zero = Rflags::from_bits(cpu.status).zero();
    let old = cpu.regs[RCX];
    let count = if KIND == 3 { old } else { old.wrapping_sub(1) } & mask;
    let taken = match KIND {
        0 => count != 0 && !zero,
        1 => count != 0 && zero,
        2 => count != 0,
        _ => count == 0,
    };
    let flow = if taken { cpu.jump_near(cpu.relative::<W>(op))? } else { Flow::Next };
    if KIND != 3 {
        cpu.regs[RCX] = if mask == 0xffff { old & !0xffff | count } else { count };
    }
    Ok(flow)
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Op> {
    macro_rules! by_target {
        ($w:ident => $handler:expr) => {
            match i.op0_kind() {
                OpKind::NearBranch16 => {
                    type $w = u16;
                    $handler
                }
                OpKind::NearBranch32 => {
                    type $w = u32;
                    $handler
                }
                OpKind::NearBranch64 => {
                    type $w = u64;
                    $handler
                }
                _ => return None,
            }
        };
    }
    macro_rules! by_operand {
        ($handler:ident) => {
            match (i.op0_kind(), super::operand_size(i, 0)) {
                (OpKind::Register, 2) => $handler::<u16, Reg>,
                (OpKind::Register, 4) => $handler::<u32, Reg>,
                (OpKind::Register, 8) => $handler::<u64, Reg>,
                (OpKind::Memory, 2) => $handler::<u16, Mem>,
                (OpKind::Memory, 4) => $handler::<u32, Mem>,
                (OpKind::Memory, 8) => $handler::<u64, Mem>,
                _ => return None,
            }
        };
    }
    let exec: Exec = match i.flow_control() {
        FlowControl::ConditionalBranch => match i.mnemonic() {
            Mnemonic::Loopne => by_target!(W => count_branch::<0, W>),
            Mnemonic::Loope => by_target!(W => count_branch::<1, W>),
            Mnemonic::Loop => by_target!(W => count_branch::<2, W>),
            Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => by_target!(W => count_branch::<3, W>),
            _ => {
                let cc = condition_bits(i)?;
                by_target!(W => by_condition!(cc, C => jcc::<C, W>))
            }
        },
        FlowControl::UnconditionalBranch if i.is_jmp_short_or_near() => by_target!(W => jmp::<W>),
        FlowControl::Call if i.is_call_near() => by_target!(W => call::<W>),
        FlowControl::IndirectBranch if i.is_jmp_near_indirect() => {
            let mut op = operands(by_operand!(jmp_indirect), i);
            op.src = op.dst;
            return Some(op);
        }
        FlowControl::IndirectCall if i.is_call_near_indirect() => {
            let mut op = operands(by_operand!(call_indirect), i);
            op.src = op.dst;
            return Some(op);
        }
        FlowControl::Return if i.mnemonic() == Mnemonic::Ret => {
            let size = i.stack_pointer_increment() - i32::from(i.immediate16()) * i32::from(i.op_count() != 0);
            let exec: Exec = match size {
                2 => ret::<u16>,
                4 => ret::<u32>,
                8 => ret::<u64>,
                _ => return None,
            };
            let mut op = Op::new(exec, i);
            op.set_imm(if i.op_count() != 0 { u64::from(i.immediate16()) } else { 0 });
            return Some(op);
        }
        _ => return None,
    };
    let mut op = Op::new(exec, i);
    // Blocks are decoded as if the instruction were at address 0, so the target is relative to the instruction; from
    // its end it fits 32 bits. A 16- or 32-bit target has wrapped; widening it again is harmless since the sum is
    // truncated alike.
    op.set_imm(i.near_branch_target().wrapping_sub(u64::from(op.len)));
    if matches!(i.mnemonic(), Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne)
        || matches!(i.mnemonic(), Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz)
    {
        op.narrow = 64 - count_bits(i);
    }
    Some(op)
}

/// Width of the count register of LOOP and JrCXZ: the address size.
fn count_bits(i: &Instruction) -> u8 {
    use iced_x86::Code;
    match i.code() {
        Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32
        | Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => 16,
        Code::Jecxz_rel8_16
        | Code::Jecxz_rel8_32
        | Code::Jecxz_rel8_64
        | Code::Loop_rel8_16_ECX
        | Code::Loop_rel8_32_ECX
        | Code::Loop_rel8_64_ECX
        | Code::Loope_rel8_16_ECX
        | Code::Loope_rel8_32_ECX
        | Code::Loope_rel8_64_ECX
        | Code::Loopne_rel8_16_ECX
        | Code::Loopne_rel8_32_ECX
        | Code::Loopne_rel8_64_ECX => 32,
        _ => 64,
    }
}
