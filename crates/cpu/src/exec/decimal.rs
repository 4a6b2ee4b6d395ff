//! Decimal adjustment: DAA, DAS, AAA, AAS, AAM, AAD; and BOUND. Not there in 64-bit mode, so the host cannot run them;
//! the formulas are those of APM vol. 3.

use super::{Flow, operands};
use crate::Cpu;
use crate::op::{Exec, Op, Width};
use crate::state::RAX;
use host::alu;
use iced_x86::{Instruction, Mnemonic};
use x86::{Exception, Rflags, Vector};

/// SF, ZF and PF of AL, with CF and AF as given; OF is undefined and cleared.
fn set_flags(cpu: &mut Cpu, al: u8, carry: bool, adjust: bool) {
    let flags = Rflags::from_bits(alu::or(al, al).1).with_carry(carry).with_adjust(adjust).with_overflow(false);
    cpu.status = flags.into_bits();
}

/// DAA, or DAS with `SUBTRACT`.
fn adjust_packed<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    let flags = Rflags::from_bits(cpu.status);
    let old = u8::get(cpu, 0);
    let apply = |al: u8, n: u8| if SUBTRACT { al.wrapping_sub(n) } else { al.wrapping_add(n) };
    let (mut al, mut carry) = (old, false);
    let adjust = old & 15 > 9 || flags.adjust();
    if adjust {
        al = apply(al, 6);
        carry = flags.carry() || if SUBTRACT { old < 6 } else { old > 0xf9 };
    }
    if old > 0x99 || flags.carry() {
        al = apply(al, 0x60);
        carry = true;
    }
    u8::set(cpu, 0, al);
    set_flags(cpu, al, carry, adjust);
    Ok(Flow::Next)
}

/// AAA, or AAS with `SUBTRACT`.
fn adjust_unpacked<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    let adjust = cpu.regs[RAX] & 15 > 9 || Rflags::from_bits(cpu.status).adjust();
    let mut ax = u16::get(cpu, 0);
    if adjust {
        ax = if SUBTRACT { ax.wrapping_sub(0x106) } else { ax.wrapping_add(0x106) };
    }
    ax &= 0xff0f;
    u16::set(cpu, 0, ax);
    set_flags(cpu, ax as u8, adjust, adjust);
    Ok(Flow::Next)
}

fn aam(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let (al, base) = (u8::get(cpu, 0), op.imm() as u8);
    let (quotient, remainder) = al.checked_div(base).zip(al.checked_rem(base)).ok_or(Exception::DIVIDE)?;
    u16::set(cpu, 0, u16::from_be_bytes([quotient, remainder]));
    set_flags(cpu, remainder, false, false);
    Ok(Flow::Next)
}

fn aad(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let [ah, al] = u16::get(cpu, 0).to_be_bytes();
    let al = al.wrapping_add(ah.wrapping_mul(op.imm() as u8));
    u16::set(cpu, 0, u16::from(al));
    set_flags(cpu, al, false, false);
    Ok(Flow::Next)
}

/// BOUND: the pair of bounds is signed and inclusive.
fn bound<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let (seg, ea) = (usize::from(op.seg), cpu.ea(op));
    let lower = cpu.load::<W>(seg, ea)?.sign_extend().cast_signed();
    let upper = cpu.load::<W>(seg, ea.wrapping_add(W::SIZE))?.sign_extend().cast_signed();
    let index = W::get(cpu, op.dst).sign_extend().cast_signed();
    if (lower..=upper).contains(&index) { Ok(Flow::Next) } else { Err(Exception::plain(Vector::BoundRange)) }
}

/// SALC (undocumented): AL = CF ? FFh : 0.
fn salc(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    let al = if Rflags::from_bits(cpu.status).carry() { 0xff } else { 0 };
    u8::set(cpu, 0, al);
    Ok(Flow::Next)
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Op> {
    let exec: Exec = match i.mnemonic() {
        Mnemonic::Daa => adjust_packed::<false>,
        Mnemonic::Das => adjust_packed::<true>,
        Mnemonic::Aaa => adjust_unpacked::<false>,
        Mnemonic::Aas => adjust_unpacked::<true>,
        Mnemonic::Aam => aam,
        Mnemonic::Aad => aad,
        Mnemonic::Salc => salc,
        Mnemonic::Bound if i.op0_register().size() == 2 => bound::<u16>,
        Mnemonic::Bound => bound::<u32>,
        _ => return None,
    };
    let mut op = operands(exec, i);
    if matches!(i.mnemonic(), Mnemonic::Aam | Mnemonic::Aad) {
        op.set_imm(u64::from(i.immediate8()));
    }
    Some(op)
}

#[cfg(test)]
mod tests;
