//! Data movement: MOV and its extending, conditional, exchanging and swapping relatives; LEA; SETcc; XLAT.

use super::alu::{Imm, Mem, Reg, Source};
use super::branch::condition;
use super::{Flow, by_width, operand_size, operands};
use crate::Cpu;
use crate::op::{Exec, Op, Width};

use crate::state::{RAX, RBX, RCX, RDX};
use host::alu;
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind};
use x86::{Exception, Rflags};

/// How many PAUSEs a vCPU executes before it lets another thread of the host run.
const PAUSES: u32 = 32;

fn mov_reg<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let value = S::get::<W>(cpu, op)?;
    W::set(cpu, op.dst, value);
    Ok(Flow::Next)
}

/// MOV with an immediate that only its 64-bit form can have.
fn mov_wide(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    u64::set(cpu, op.dst, op.disp);
    Ok(Flow::Next)
}

fn mov_mem<W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let value = S::get::<W>(cpu, op)?;
    cpu.store(usize::from(op.seg), cpu.ea(op), value)?;
    Ok(Flow::Next)
}

/// MOVZX (and MOVSX, MOVSXD with `SIGNED`) from `F` to `T`.
fn extend<const SIGNED: bool, F: Width, T: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let value = S::get::<F>(cpu, op)?;
    let wide = if SIGNED { value.sign_extend() } else { value.into() };
    T::set(cpu, op.dst, T::low(wide));
    Ok(Flow::Next)
}

fn lea<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let ea = cpu.ea(op);
    W::set(cpu, op.dst, W::low(ea));
    Ok(Flow::Next)
}

fn xchg_reg<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let (a, b) = (W::get(cpu, op.dst), W::get(cpu, op.src));
    W::set(cpu, op.dst, b);
    W::set(cpu, op.src, a);
    Ok(Flow::Next)
}

/// XCHG with memory is locked whether it says so or not.
fn xchg_mem<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let new = W::get(cpu, op.src);
    let old = cpu.update(usize::from(op.seg), cpu.ea(op), true, |old: W| (new, old))?;
    W::set(cpu, op.src, old);
    Ok(Flow::Next)
}

fn xadd_reg<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let (a, b) = (W::get(cpu, op.dst), W::get(cpu, op.src));
    let (sum, flags) = alu::add(a, b);
    W::set(cpu, op.src, a);
    W::set(cpu, op.dst, sum);
    cpu.status = flags;
    Ok(Flow::Next)
}

fn xadd_mem<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let b = W::get(cpu, op.src);
    let (old, flags) = cpu.update(usize::from(op.seg), cpu.ea(op), op.locked, |a: W| {
        let (sum, flags) = alu::add(a, b);
        (sum, (a, flags))
    })?;
    W::set(cpu, op.src, old);
    cpu.status = flags;
    Ok(Flow::Next)
}

fn cmpxchg_reg<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let (old, new, accumulator) = (W::get(cpu, op.dst), W::get(cpu, op.src), W::get(cpu, 0));
    cpu.status = alu::sub(accumulator, old).1;
    if accumulator == old {
        W::set(cpu, op.dst, new);
    } else {
        W::set(cpu, 0, old);
    }
    Ok(Flow::Next)
}

/// The destination is written in either case (APM vol. 3, CMPXCHG), so it must be writable in either case.
fn cmpxchg_mem<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let (new, accumulator) = (W::get(cpu, op.src), W::get(cpu, 0));
    let old = cpu.update(usize::from(op.seg), cpu.ea(op), op.locked, |old: W| {
        (if old == accumulator { new } else { old }, old)
    })?;
    cpu.status = alu::sub(accumulator, old).1;
    if accumulator != old {
        W::set(cpu, 0, old);
    }
    Ok(Flow::Next)
}

/// CMPXCHG8B.
fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let pair = |high: u64, low: u64| high << 32 | low & 0xffff_ffff;
    let expected = pair(cpu.regs[RDX], cpu.regs[RAX]);
    let new = pair(cpu.regs[RCX], cpu.regs[RBX]);
    let old = cpu.update(usize::from(op.seg), cpu.ea(op), op.locked, |old: u64| {
        (if old == expected { new } else { old }, old)
    })?;
    set_zero(cpu, old == expected);
    if old != expected {
        cpu.regs[RAX] = old & 0xffff_ffff;
        cpu.regs[RDX] = old >> 32;
    }
    Ok(Flow::Next)
}

/// CMPXCHG16B; a misaligned operand is #GP(0).
fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let ea = cpu.ea(op);
    let seg = usize::from(op.seg);
    if cpu.linear(seg, ea, 16, true)?.0 & 15 != 0 {
        return Err(Exception::GP0);
    }
    let pair = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    let expected = pair(cpu.regs[RDX], cpu.regs[RAX]);
    let new = pair(cpu.regs[RCX], cpu.regs[RBX]);
    let old = cpu.update(seg, ea, op.locked, |old: u128| (if old == expected { new } else { old }, old))?;
    set_zero(cpu, old == expected);
    if old != expected {
        cpu.regs[RAX] = old as u64;
        cpu.regs[RDX] = (old >> 64) as u64;
    }
    Ok(Flow::Next)
}

fn set_zero(cpu: &mut Cpu, zero: bool) {
    cpu.status = Rflags::from_bits(cpu.status).with_zero(zero).into_bits();
}

fn bswap32(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let value = u32::get(cpu, op.dst).swap_bytes();
    u32::set(cpu, op.dst, value);
    Ok(Flow::Next)
}

fn bswap64(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let value = u64::get(cpu, op.dst).swap_bytes();
    u64::set(cpu, op.dst, value);
    Ok(Flow::Next)
}

/// BSWAP of a 16-bit register is undefined; every processor known clears it.
fn bswap16(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    u16::set(cpu, op.dst, 0);
    Ok(Flow::Next)
}

fn swap_bytes<W: Width>(value: W) -> W {
    W::low(value.into().swap_bytes() >> (64 - W::BITS))
}

fn movbe_load<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let value = Mem::get::<W>(cpu, op)?;
    W::set(cpu, op.dst, swap_bytes(value));
    Ok(Flow::Next)
}

fn movbe_store<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let value = swap_bytes(W::get(cpu, op.src));
    cpu.store(usize::from(op.seg), cpu.ea(op), value)?;
    Ok(Flow::Next)
}

/// CMOVcc: the source is always read, and a 32-bit destination is always zero-extended.
fn cmov<const CC: u8, W: Width, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let source = S::get::<W>(cpu, op)?;
    let value = if condition::<CC>(cpu.status) { source } else { W::get(cpu, op.dst) };
    W::set(cpu, op.dst, value);
    Ok(Flow::Next)
}

fn setcc_reg<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let value = u8::from(condition::<CC>(cpu.status));
    u8::set(cpu, op.dst, value);
    Ok(Flow::Next)
}

fn setcc_mem<const CC: u8>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let value = u8::from(condition::<CC>(cpu.status));
    cpu.store(usize::from(op.seg), cpu.ea(op), value)?;
    Ok(Flow::Next)
}

fn cbw(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    u16::set(cpu, 0, u8::get(cpu, 0).sign_extend() as u16);
    Ok(Flow::Next)
}
fn cwde(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    u32::set(cpu, 0, u16::get(cpu, 0).sign_extend() as u32);
    Ok(Flow::Next)
}
fn cdqe(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    cpu.regs[RAX] = u32::get(cpu, 0).sign_extend();
    Ok(Flow::Next)
}
/// CWD, CDQ, CQO: DX:AX, EDX:EAX, RDX:RAX.
fn spread_sign<W: Width>(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    let sign = W::low((W::get(cpu, 0).sign_extend().cast_signed() >> 63).cast_unsigned());
    W::set(cpu, RDX as u8, sign);
    Ok(Flow::Next)
}

/// XLAT: `AL = [rBX + AL]`; the decoder gives rBX as base and AL as an index that is not a full register.
fn xlat(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let ea = cpu.regs[RBX].wrapping_add(cpu.regs[RAX] & 0xff) & (u64::MAX >> op.narrow);
    let value: u8 = cpu.load(usize::from(op.seg), ea)?;
    u8::set(cpu, 0, value);
    Ok(Flow::Next)
}

fn nop(_: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    Ok(Flow::Next)
}

/// What is waited for may need the host's processor that this thread has.
fn pause(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    std::hint::spin_loop();
    cpu.pauses = cpu.pauses.wrapping_add(1);
    if cpu.pauses.is_multiple_of(PAUSES) && cpu.mmu.shared() {
        std::thread::yield_now();
    }
    Ok(Flow::Next)
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Op> {
    let size = if i.op_count() > 0 { operand_size(i, 0) } else { 0 };
    let memory = i.op_count() > 0 && i.op0_kind() == OpKind::Memory;
    let exec: Exec = match i.mnemonic() {
        Mnemonic::Mov => return select_mov(i),
        Mnemonic::Movzx => select_extend::<false>(i)?,
        Mnemonic::Movsx | Mnemonic::Movsxd => select_extend::<true>(i)?,
        Mnemonic::Lea => by_width!(size, W => lea::<W>)?,
        Mnemonic::Xchg if memory => by_width!(size, W => xchg_mem::<W>)?,
        Mnemonic::Xchg if i.op1_kind() == OpKind::Memory => return None,
        Mnemonic::Xchg => by_width!(size, W => xchg_reg::<W>)?,
        Mnemonic::Xadd if memory => by_width!(size, W => xadd_mem::<W>)?,
        Mnemonic::Xadd => by_width!(size, W => xadd_reg::<W>)?,
        Mnemonic::Cmpxchg if memory => by_width!(size, W => cmpxchg_mem::<W>)?,
        Mnemonic::Cmpxchg => by_width!(size, W => cmpxchg_reg::<W>)?,
        Mnemonic::Cmpxchg8b => cmpxchg8b,
        Mnemonic::Cmpxchg16b => cmpxchg16b,
        Mnemonic::Bswap => match size {
            2 => bswap16,
            4 => bswap32,
            _ => bswap64,
        },
        Mnemonic::Movbe if memory => by_width!(size, W => movbe_store::<W>)?,
        Mnemonic::Movbe => by_width!(size, W => movbe_load::<W>)?,
        Mnemonic::Cbw => cbw,
        Mnemonic::Cwde => cwde,
        Mnemonic::Cdqe => cdqe,
        Mnemonic::Cwd => spread_sign::<u16>,
        Mnemonic::Cdq => spread_sign::<u32>,
        Mnemonic::Cqo => spread_sign::<u64>,
        Mnemonic::Xlatb => xlat,
        Mnemonic::Nop | Mnemonic::Reservednop | Mnemonic::Endbr32 | Mnemonic::Endbr64 => nop,
        Mnemonic::Pause => pause,
        _ => return select_conditional(i, memory),
    };
    Some(operands(exec, i))
}

fn select_mov(i: &Instruction) -> Option<Op> {
    let general = |n| i.op_kind(n) != OpKind::Register || i.op_register(n).is_gpr();
    if !general(0) || !general(1) {
        return None; // segment, control and debug registers
    }
    if i.op1_kind() == OpKind::Immediate64 {
        let mut op = operands(mov_wide, i);
        op.disp = i.immediate64();
        return Some(op);
    }
    let size = operand_size(i, 0);
    let exec: Exec = match (i.op0_kind(), i.op1_kind()) {
        (OpKind::Register, OpKind::Register) => by_width!(size, W => mov_reg::<W, Reg>)?,
        (OpKind::Register, OpKind::Memory) => by_width!(size, W => mov_reg::<W, Mem>)?,
        (OpKind::Register, _) => by_width!(size, W => mov_reg::<W, Imm>)?,
        (_, OpKind::Register) => by_width!(size, W => mov_mem::<W, Reg>)?,
        (_, _) => by_width!(size, W => mov_mem::<W, Imm>)?,
    };
    Some(operands(exec, i))
}

fn select_extend<const SIGNED: bool>(i: &Instruction) -> Option<Exec> {
    macro_rules! to {
        ($from:ty, $source:ty) => {
            by_width!(operand_size(i, 0), T => extend::<SIGNED, $from, T, $source>)
        };
    }
    match (i.op1_kind() == OpKind::Memory, operand_size(i, 1)) {
        (true, 1) => to!(u8, Mem),
        (true, 2) => to!(u16, Mem),
        (true, 4) => to!(u32, Mem),
        (false, 1) => to!(u8, Reg),
        (false, 2) => to!(u16, Reg),
        (false, 4) => to!(u32, Reg),
        _ => None,
    }
}

/// Instantiates a handler for a condition code: the constant parameter is the encoding's low four bits.
macro_rules! by_condition {
    ($cc:expr, $c:ident => $handler:expr) => {{
        macro_rules! case {
            ($value:literal) => {{
                const $c: u8 = $value;
                $handler
            }};
        }
        match $cc {
            0 => case!(0),
            1 => case!(1),
            2 => case!(2),
            3 => case!(3),
            4 => case!(4),
            5 => case!(5),
            6 => case!(6),
            7 => case!(7),
            8 => case!(8),
            9 => case!(9),
            10 => case!(10),
            11 => case!(11),
            12 => case!(12),
            13 => case!(13),
            14 => case!(14),
            _ => case!(15),
        }
    }};
}
pub(crate) use by_condition;

/// The encoding's four condition bits, if the instruction has a condition.
#[must_use]
pub fn condition_bits(i: &Instruction) -> Option<u8> {
    Some(match i.condition_code() {
        ConditionCode::o => 0,
        ConditionCode::no => 1,
        ConditionCode::b => 2,
        ConditionCode::ae => 3,
        ConditionCode::e => 4,
        ConditionCode::ne => 5,
        ConditionCode::be => 6,
        ConditionCode::a => 7,
        ConditionCode::s => 8,
        ConditionCode::ns => 9,
        ConditionCode::p => 10,
        ConditionCode::np => 11,
        ConditionCode::l => 12,
        ConditionCode::ge => 13,
        ConditionCode::le => 14,
        ConditionCode::g => 15,
        ConditionCode::None => return None,
    })
}

fn select_conditional(i: &Instruction, memory: bool) -> Option<Op> {
    let cc = condition_bits(i)?;
    let code = i.code();
    let exec: Exec = if (Code::Seto_rm8..=Code::Setg_rm8).contains(&code) {
        if memory { by_condition!(cc, C => setcc_mem::<C>) } else { by_condition!(cc, C => setcc_reg::<C>) }
    } else if (Code::Cmovo_r16_rm16..=Code::Cmovg_r64_rm64).contains(&code) {
        let from_memory = i.op1_kind() == OpKind::Memory;
        match (operand_size(i, 0), from_memory) {
            (2, true) => by_condition!(cc, C => cmov::<C, u16, Mem>),
            (4, true) => by_condition!(cc, C => cmov::<C, u32, Mem>),
            (8, true) => by_condition!(cc, C => cmov::<C, u64, Mem>),
            (2, false) => by_condition!(cc, C => cmov::<C, u16, Reg>),
            (4, false) => by_condition!(cc, C => cmov::<C, u32, Reg>),
            (8, false) => by_condition!(cc, C => cmov::<C, u64, Reg>),
            _ => return None,
        }
    } else {
        return None;
    };
    Some(operands(exec, i))
}
