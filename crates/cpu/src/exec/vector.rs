//! MMX, SSE and AVX instructions. Nearly all of them run on the host by [`native`](super::native).
//!
//! What is here moves data without arithmetic, or touches memory in ways that no single host operand can stand for: the
//! plain moves (for speed), MXCSR, VZEROUPPER and VZEROALL, and the stores of single bytes by a mask. Masked moves and
//! gathers are in [`masked`]. EVEX encodings are not offered.

mod masked;

use crate::Cpu;
use crate::exec::native::{check, clear_high};
use crate::exec::{Flow, Slow};
use crate::state::CodeSize;
use host::native::Needs;
use host::vector::mxcsr_mask;
use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpKind, Register};
use memory::Scalar;
use std::sync::atomic::{Ordering, fence};
use x86::Exception;

/// The handler of an MMX, SSE or AVX instruction that is not left to the host.
#[must_use]
pub fn select(instruction: &Instruction) -> Option<Slow> {
    let handler: Slow = match instruction.mnemonic() {
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => load_mxcsr,
        Mnemonic::Stmxcsr | Mnemonic::Vstmxcsr => store_mxcsr,
        Mnemonic::Vzeroupper => zero_upper,
        Mnemonic::Vzeroall => zero_all,
        Mnemonic::Lfence | Mnemonic::Mfence | Mnemonic::Sfence => barrier,
        _ => return select_move(instruction).or_else(|| masked::select(instruction)),
    };
    Some(handler)
}

/// The most frequent moves between memory and XMM registers, legacy encodings.
fn select_move(instruction: &Instruction) -> Option<Slow> {
    let handler: Slow = match instruction.code() {
        Code::Movups_xmm_xmmm128 | Code::Movupd_xmm_xmmm128 | Code::Movdqu_xmm_xmmm128 => load_xmm::<false>,
        Code::Movaps_xmm_xmmm128 | Code::Movapd_xmm_xmmm128 | Code::Movdqa_xmm_xmmm128 => load_xmm::<true>,
        Code::Movups_xmmm128_xmm | Code::Movupd_xmmm128_xmm | Code::Movdqu_xmmm128_xmm => store_xmm::<false>,
        Code::Movaps_xmmm128_xmm | Code::Movapd_xmmm128_xmm | Code::Movdqa_xmmm128_xmm => store_xmm::<true>,
        Code::Movq_xmm_xmmm64 => load_low::<u64>,
        Code::Movsd_xmm_xmmm64 if instruction.op1_kind() == OpKind::Memory => load_low::<u64>,
        Code::Movss_xmm_xmmm32 if instruction.op1_kind() == OpKind::Memory => load_low::<u32>,
        Code::Movd_xmm_rm32 if instruction.op1_kind() == OpKind::Memory => load_low::<u32>,
        Code::Movq_xmmm64_xmm | Code::Movsd_xmmm64_xmm if instruction.op0_kind() == OpKind::Memory => store_low::<u64>,
        Code::Movss_xmmm32_xmm | Code::Movd_rm32_xmm if instruction.op0_kind() == OpKind::Memory => store_low::<u32>,
        _ => return None,
    };
    Some(handler)
}

/// Number of the vector register that operand `n` is.
fn register(instruction: &Instruction, n: u32) -> usize {
    instruction.op_register(n).number()
}

/// The 16-byte memory operand's place, with the alignment check of the aligned moves.
fn place<const ALIGNED: bool>(cpu: &Cpu, instruction: &Instruction) -> Result<(usize, u64), Exception> {
    let (seg, ea) = cpu.effective_address(instruction);
    let linear = ea.wrapping_add(cpu.seg_base[seg & 7]);
    if ALIGNED && linear & 15 != 0 { Err(Exception::GP0) } else { Ok((seg, ea)) }
}

fn load_xmm<const ALIGNED: bool>(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check(cpu, Needs::SSE)?;
    let value = if instruction.op1_kind() == OpKind::Register {
        cpu.vector.xmm(register(instruction, 1))
    } else {
        let (seg, ea) = place::<ALIGNED>(cpu, instruction)?;
        cpu.load(seg, ea)?
    };
    cpu.vector.set_xmm(register(instruction, 0), value);
    Ok(Flow::Next)
}

fn store_xmm<const ALIGNED: bool>(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check(cpu, Needs::SSE)?;
    let value = cpu.vector.xmm(register(instruction, 1));
    if instruction.op0_kind() == OpKind::Register {
        cpu.vector.set_xmm(register(instruction, 0), value);
    } else {
        let (seg, ea) = place::<ALIGNED>(cpu, instruction)?;
        cpu.store(seg, ea, value)?;
    }
    Ok(Flow::Next)
}

/// MOVQ, MOVSD, MOVSS and MOVD from memory, and MOVQ from a register: the rest of the XMM register is zeroed.
fn load_low<T: Scalar>(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check(cpu, Needs::SSE)?;
    let value = if instruction.op1_kind() == OpKind::Register {
        T::from_wide(cpu.vector.xmm(register(instruction, 1)))
    } else {
        let (seg, ea) = cpu.effective_address(instruction);
        cpu.load::<T>(seg, ea)?
    };
    cpu.vector.set_xmm(register(instruction, 0), value.to_wide());
    Ok(Flow::Next)
}

fn store_low<T: Scalar>(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check(cpu, Needs::SSE)?;
    let value = T::from_wide(cpu.vector.xmm(register(instruction, 1)));
    let (seg, ea) = cpu.effective_address(instruction);
    cpu.store(seg, ea, value)?;
    Ok(Flow::Next)
}

/// What an instruction of this room needs that has the encoding of `instruction`.
fn needs(instruction: &Instruction) -> Needs {
    match instruction.code().encoding() {
        EncodingKind::VEX => Needs::AVX | Needs::VEX,
        _ => Needs::SSE,
    }
}

fn load_mxcsr(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check(cpu, needs(instruction))?;
    let (seg, ea) = cpu.effective_address(instruction);
    let value: u32 = cpu.load(seg, ea)?;
    if value & !mxcsr_mask() != 0 {
        return Err(Exception::GP0);
    }
    cpu.vector.mxcsr = value;
    Ok(Flow::Next)
}

fn store_mxcsr(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check(cpu, needs(instruction))?;
    let (seg, ea) = cpu.effective_address(instruction);
    cpu.store(seg, ea, cpu.vector.mxcsr)?;
    Ok(Flow::Next)
}

/// Vector registers that the current mode has.
fn registers(cpu: &Cpu) -> usize {
    if cpu.code_size == CodeSize::Bits64 { 16 } else { 8 }
}

fn zero_upper(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check(cpu, needs(instruction))?;
    for i in 0..registers(cpu) {
        clear_high(&mut cpu.vector, i);
    }
    Ok(Flow::Next)
}

fn zero_all(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check(cpu, needs(instruction))?;
    let count = registers(cpu);
    for register in cpu.vector.ymm.iter_mut().take(count) {
        *register = [0; 4];
    }
    Ok(Flow::Next)
}

/// The fences: ordering towards other vCPUs, which are other threads.
fn barrier(_: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    fence(Ordering::SeqCst);
    Ok(Flow::Next)
}

/// Whether an operand is a YMM register.
fn is_ymm(instruction: &Instruction, n: u32) -> bool {
    (Register::YMM0..=Register::YMM15).contains(&instruction.op_register(n))
}
