//! 32- and 16-bit code: protected mode without long mode, compatibility mode, real and virtual-8086 mode.
//!
//! Nearly all of its instructions are 64-bit instructions too, with other encodings for a few of them. What differs is
//! around them: addresses wrap at 4 GiB or 64 KiB, segments have bases and limits, stack slots have four or two bytes.
//! Upper halves of registers are zero while such code runs, as the interpreter keeps them.
//!
//! Left to the interpreter: what has no 64-bit encoding (PUSHA, BOUND, INTO, decimal adjustment), jumps whose
//! operand size is not the code's, and everything about segment registers themselves.

use crate::classify::Class;
use cpu::Cpu;
use cpu::state::{CS, CodeSize, DS, ES, SS};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use x86::Segment;

/// What decides how code is translated that is not 64-bit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Legacy {
    /// 32-bit code, else 16-bit.
    pub wide: bool,
    /// CS, DS, ES and SS are all of the 4 GiB of addresses, the last three writable; the stack pointer is ESP.
    pub flat: bool,
    /// The stack pointer is ESP, else SP.
    pub wide_stack: bool,
}

impl Legacy {
    /// The vCPU's; `None`: in 64-bit mode.
    #[must_use]
    pub fn of(cpu: &Cpu) -> Option<Self> {
        let wide = match cpu.code_size {
            CodeSize::Bits64 => return None,
            size => size == CodeSize::Bits32,
        };
        let wide_stack = cpu.seg[SS].attributes.big();
        let whole = |n: usize| cpu.seg[n].base == 0 && cpu.seg[n].limit == u32::MAX;
        let data = |n: usize| whole(n) && Bounds::of(cpu, &cpu.seg[n]).write != 0;
        let flat = wide_stack && whole(CS) && [DS, ES, SS].into_iter().all(data);
        Some(Self { wide, flat, wide_stack })
    }

    /// As a small number.
    #[must_use]
    pub fn bits(self) -> u64 {
        u64::from(self.wide) | u64::from(self.flat) << 1 | u64::from(self.wide_stack) << 2
    }

    /// Default size of code.
    #[must_use]
    pub fn code_size(self) -> CodeSize {
        if self.wide { CodeSize::Bits32 } else { CodeSize::Bits16 }
    }
}

/// What translated code knows of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bounds {
    /// Linear address of its first byte.
    pub base: u64,
    /// What may be read ends before this offset. Zero also where only the interpreter knows what may be (segments
    /// that expand down).
    pub read: u64,
    /// The same for writing.
    pub write: u64,
}

impl Bounds {
    /// Of `segment`.
    #[must_use]
    pub fn of(cpu: &Cpu, segment: &Segment) -> Self {
        let Segment { base, limit, attributes, .. } = *segment;
        let usable = !cpu.protected() || (attributes.present() && !attributes.is_expand_down());
        let end = |allowed: bool| if usable && (allowed || !cpu.protected()) { u64::from(limit) + 1 } else { 0 };
        Self { base, read: end(attributes.is_readable()), write: end(attributes.is_writable()) }
    }
}

/// Gives `i` an encoding that 64-bit mode has too, if it means the same in one.
pub fn rewrite(i: &mut Instruction) {
    let code = match i.code() {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
        Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
        Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
        Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
        Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
        Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
        Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
        Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
        code => code,
    };
    i.set_code(code);
}

/// The class of an instruction that differs from 64-bit code; `user`: at CPL 1 to 3.
#[must_use]
pub fn classify(i: &Instruction, legacy: Legacy, user: bool) -> Option<Class> {
    let near = match i.op_count() {
        0 => false,
        _ => i.op0_kind() == if legacy.wide { OpKind::NearBranch32 } else { OpKind::NearBranch16 },
    };
    Some(match i.code() {
        Code::Push_r16 | Code::Push_r32 | Code::Push_rm16 | Code::Push_rm32 => Class::Push,
        Code::Push_imm16 | Code::Pushw_imm8 | Code::Pushd_imm32 | Code::Pushd_imm8 => Class::Push,
        Code::Pop_r16 if i.op0_register() == Register::SP => return None,
        Code::Pop_r16 | Code::Pop_r32 => Class::Pop,
        Code::Leavew | Code::Leaved => Class::Leave,
        Code::Retnw | Code::Retnw_imm16 | Code::Retnd | Code::Retnd_imm16 => Class::Ret,
        Code::Jmp_rm16 | Code::Jmp_rm32 => Class::JmpIndirect,
        Code::Call_rm16 | Code::Call_rm32 => Class::CallIndirect,
        // In virtual-8086 mode it depends on the I/O privilege level.
        Code::Pushfw | Code::Pushfd if legacy.wide || !user => Class::System,
        // In 64-bit mode they change eight registers more.
        _ if matches!(i.mnemonic(), Mnemonic::Vzeroall | Mnemonic::Vzeroupper) => Class::Interpret,
        _ if !near => return None,
        _ if i.is_jmp_short_or_near() => Class::Jmp,
        _ if i.is_call_near() => Class::Call,
        _ if i.code().is_jcc_short_or_near() => Class::Jcc,
        _ if matches!(i.mnemonic(), Mnemonic::Loop | Mnemonic::Jcxz | Mnemonic::Jecxz) => Class::Loop,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
