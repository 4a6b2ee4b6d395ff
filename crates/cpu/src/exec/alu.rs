//! Integer arithmetic and logic. The host CPU computes result and flags (`host::alu`); this module routes operands.
//!
//! One generic handler a shape; the instruction, width, destination and source are type parameters, and the tables at
//! the end pick the instance when an instruction is decoded.

use super::{Flow, by_wide, by_width};
use crate::Cpu;
use crate::op::{Exec, Op, Width};
use host::alu::{self, Wide};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86::Exception;

/// An instruction with two inputs and one output.
pub trait Binary {
    /// CMP and TEST only set flags.
    const STORES: bool = true;
    /// Result and flags from both operands and the flags before.
    fn apply<W: Width>(a: W, b: W, flags: u64) -> (W, u64);
}

macro_rules! binary {
    ($($name:ident $stores:literal |$a:ident, $b:ident, $f:ident| $e:expr;)*) => {$(
        struct $name;
        impl Binary for $name {
            const STORES: bool = $stores;
            #[inline(always)]
            fn apply<W: Width>($a: W, $b: W, $f: u64) -> (W, u64) { $e }
        }
    )*};
}
binary! {
    Add true |a, b, _f| alu::add(a, b);
    Or true |a, b, _f| alu::or(a, b);
    Adc true |a, b, f| alu::adc(a, b, f);
    Sbb true |a, b, f| alu::sbb(a, b, f);
    And true |a, b, _f| alu::and(a, b);
    Sub true |a, b, _f| alu::sub(a, b);
    Xor true |a, b, _f| alu::xor(a, b);
    Cmp false |a, b, _f| alu::sub(a, b);
    Test false |a, b, _f| alu::and(a, b);
}

/// An instruction with one input and output.
pub trait Unary {
    /// Result and flags from the operand and the flags before.
    fn apply<W: Width>(a: W, flags: u64) -> (W, u64);
}

macro_rules! unary {
    ($($name:ident |$a:ident, $f:ident| $e:expr;)*) => {$(
        struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<W: Width>($a: W, $f: u64) -> (W, u64) { $e }
        }
    )*};
}
unary! {
    Inc |a, f| alu::inc(a, f);
    Dec |a, f| alu::dec(a, f);
    Neg |a, _f| alu::neg(a);
    Not |a, f| (W::low(!a.into()), f);
}

/// A shift or rotate.
pub trait Shift {
    /// Result and flags from the operand, the raw count and the flags before.
    fn apply<W: Width>(a: W, count: u8, flags: u64) -> (W, u64);
}

macro_rules! shift {
    ($($name:ident $f:ident;)*) => {$(
        struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<W: Width>(a: W, count: u8, flags: u64) -> (W, u64) { alu::$f(a, count, flags) }
        }
    )*};
}
shift! { Rol rol; Ror ror; Rcl rcl; Rcr rcr; Shl shl; Shr shr; Sar sar; }

/// Where a second operand comes from.
pub trait Source {
    /// Fetches it.
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<W, Exception>;
}
/// The register in [`Op::src`].
pub struct Reg;
/// The memory operand.
pub struct Mem;
/// The immediate.
pub struct Imm;

impl Source for Reg {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<W, Exception> {
        Ok(W::get(cpu, op.src))
    }
}
impl Source for Mem {
    #[inline(always)]
    fn get<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<W, Exception> {
        cpu.load(usize::from(op.seg), cpu.ea(op))
    }
}
impl Source for Imm {
    #[inline(always)]
    fn get<W: Width>(_: &mut Cpu, op: &Op) -> Result<W, Exception> {
        Ok(W::low(op.imm()))
    }
}

/// `op reg, reg|mem|imm`
fn binary_reg<O: Binary, W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let b = S::get::<W>(cpu, op)?;
    let (result, flags) = O::apply(W::get(cpu, op.dst), b, cpu.status);
    cpu.status = flags;
    if O::STORES {
        W::set(cpu, op.dst, result);
    }
    Ok(Flow::Next)
}

/// `op mem, reg|imm`
fn binary_mem<O: Binary, W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let b = S::get::<W>(cpu, op)?;
    let (seg, ea, flags) = (usize::from(op.seg), cpu.ea(op), cpu.status);
    cpu.status = if O::STORES {
        cpu.update(seg, ea, op.locked, |a: W| O::apply(a, b, flags))?
    } else {
        O::apply(cpu.load::<W>(seg, ea)?, b, flags).1
    };
    Ok(Flow::Next)
}

/// `op reg`
fn unary_reg<O: Unary, W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let (result, flags) = O::apply(W::get(cpu, op.dst), cpu.status);
    cpu.status = flags;
    W::set(cpu, op.dst, result);
    Ok(Flow::Next)
}

/// `op mem`
fn unary_mem<O: Unary, W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let (seg, ea, flags) = (usize::from(op.seg), cpu.ea(op), cpu.status);
    cpu.status = cpu.update(seg, ea, op.locked, |a: W| O::apply(a, flags))?;
    Ok(Flow::Next)
}

/// The shift count: an immediate, or CL.
#[inline(always)]
fn count<S: Source>(cpu: &mut Cpu, op: &Op) -> Result<u8, Exception> {
    S::get::<u8>(cpu, op)
}

fn shift_reg<O: Shift, W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let count = count::<S>(cpu, op)?;
    let (result, flags) = O::apply(W::get(cpu, op.dst), count, cpu.status);
    cpu.status = flags;
    W::set(cpu, op.dst, result);
    Ok(Flow::Next)
}

fn shift_mem<O: Shift, W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let count = count::<S>(cpu, op)?;
    let (seg, ea, flags) = (usize::from(op.seg), cpu.ea(op), cpu.status);
    cpu.status = cpu.update(seg, ea, false, |a: W| O::apply(a, count, flags))?;
    Ok(Flow::Next)
}

/// SHLD (`LEFT`) and SHRD: the count is CL, or the immediate when `S` is [`Imm`].
fn double_shift<const LEFT: bool, const MEMORY: bool, W: Width + Wide, S: DoubleCount>(
    cpu: &mut Cpu,
    op: &Op,
) -> Result<Flow, Exception> {
    let (fill, count, flags) = (W::get(cpu, op.src), S::count(cpu, op), cpu.status);
    let apply = |a: W| if LEFT { alu::shld(a, fill, count, flags) } else { alu::shrd(a, fill, count, flags) };
    cpu.status = if MEMORY {
        let (seg, ea) = (usize::from(op.seg), cpu.ea(op));
        cpu.update(seg, ea, false, apply)?
    } else {
        let (result, flags) = apply(W::get(cpu, op.dst));
        W::set(cpu, op.dst, result);
        flags
    };
    Ok(Flow::Next)
}

/// Where a double shift's count comes from (its source register is taken already).
pub trait DoubleCount {
    /// The raw count.
    fn count(cpu: &Cpu, op: &Op) -> u8;
}
impl DoubleCount for Reg {
    fn count(cpu: &Cpu, _: &Op) -> u8 {
        cpu.regs[crate::state::RCX] as u8
    }
}
impl DoubleCount for Imm {
    fn count(_: &Cpu, op: &Op) -> u8 {
        op.imm() as u8
    }
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Op> {
    match i.mnemonic() {
        Mnemonic::Add => select_binary::<Add>(i),
        Mnemonic::Or => select_binary::<Or>(i),
        Mnemonic::Adc => select_binary::<Adc>(i),
        Mnemonic::Sbb => select_binary::<Sbb>(i),
        Mnemonic::And => select_binary::<And>(i),
        Mnemonic::Sub => select_binary::<Sub>(i),
        Mnemonic::Xor => select_binary::<Xor>(i),
        Mnemonic::Cmp => select_binary::<Cmp>(i),
        Mnemonic::Test => select_binary::<Test>(i),
        Mnemonic::Inc => select_unary::<Inc>(i),
        Mnemonic::Dec => select_unary::<Dec>(i),
        Mnemonic::Neg => select_unary::<Neg>(i),
        Mnemonic::Not => select_unary::<Not>(i),
        Mnemonic::Rol => select_shift::<Rol>(i),
        Mnemonic::Ror => select_shift::<Ror>(i),
        Mnemonic::Rcl => select_shift::<Rcl>(i),
        Mnemonic::Rcr => select_shift::<Rcr>(i),
        Mnemonic::Shl | Mnemonic::Sal => select_shift::<Shl>(i),
        Mnemonic::Shr => select_shift::<Shr>(i),
        Mnemonic::Sar => select_shift::<Sar>(i),
        Mnemonic::Shld => select_double::<true>(i),
        Mnemonic::Shrd => select_double::<false>(i),
        _ => None,
    }
}

fn select_binary<O: Binary>(i: &Instruction) -> Option<Op> {
    let size = super::operand_size(i, 0);
    let exec: Exec = match (i.op0_kind(), i.op1_kind()) {
        (OpKind::Register, OpKind::Register) => by_width!(size, W => binary_reg::<O, W, Reg>)?,
        (OpKind::Register, OpKind::Memory) => by_width!(size, W => binary_reg::<O, W, Mem>)?,
        (OpKind::Register, _) => by_width!(size, W => binary_reg::<O, W, Imm>)?,
        (OpKind::Memory, OpKind::Register) => by_width!(size, W => binary_mem::<O, W, Reg>)?,
        (OpKind::Memory, _) => by_width!(size, W => binary_mem::<O, W, Imm>)?,
        _ => return None,
    };
    Some(super::operands(exec, i))
}

fn select_unary<O: Unary>(i: &Instruction) -> Option<Op> {
    let size = super::operand_size(i, 0);
    let exec: Exec = match i.op0_kind() {
        OpKind::Register => by_width!(size, W => unary_reg::<O, W>)?,
        _ => by_width!(size, W => unary_mem::<O, W>)?,
    };
    Some(super::operands(exec, i))
}

fn select_shift<O: Shift>(i: &Instruction) -> Option<Op> {
    let size = super::operand_size(i, 0);
    let by_register = i.op1_kind() == OpKind::Register;
    let exec: Exec = match (i.op0_kind(), by_register) {
        (OpKind::Register, true) => by_width!(size, W => shift_reg::<O, W, Reg>)?,
        (OpKind::Register, false) => by_width!(size, W => shift_reg::<O, W, Imm>)?,
        (_, true) => by_width!(size, W => shift_mem::<O, W, Reg>)?,
        (_, false) => by_width!(size, W => shift_mem::<O, W, Imm>)?,
    };
    let mut op = super::operands(exec, i);
    if by_register {
        op.src = <u8 as Width>::register(Register::CL);
    }
    Some(op)
}

fn select_double<const LEFT: bool>(i: &Instruction) -> Option<Op> {
    let size = super::operand_size(i, 0);
    let memory = i.op0_kind() == OpKind::Memory;
    let by_register = i.op2_kind() == OpKind::Register;
    let exec: Exec = match (memory, by_register) {
        (true, true) => by_wide!(size, W => double_shift::<LEFT, true, W, Reg>)?,
        (true, false) => by_wide!(size, W => double_shift::<LEFT, true, W, Imm>)?,
        (false, true) => by_wide!(size, W => double_shift::<LEFT, false, W, Reg>)?,
        (false, false) => by_wide!(size, W => double_shift::<LEFT, false, W, Imm>)?,
    };
    let mut op = super::operands(exec, i);
    if !by_register {
        op.set_imm(i.immediate(2));
    }
    Some(op)
}
