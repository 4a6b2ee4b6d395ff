//! Single bits and bit counts: BT, BTS, BTR, BTC; BSF, BSR, TZCNT, LZCNT, POPCNT; and the flags themselves.

use super::alu::{Mem, Reg, Source};
use super::{Flow, by_wide, by_width, operand_size, operands};
use crate::Cpu;
use crate::op::{Exec, Op, Width};
use host::alu::{self, Wide};
use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::{Exception, Rflags};

/// What a bit instruction does to the bit.
const KEEP: u8 = 0;
const SET: u8 = 1;
const RESET: u8 = 2;
const COMPLEMENT: u8 = 3;

fn change<const WHAT: u8>(value: u64, mask: u64) -> u64 {
    match WHAT {
        SET => value | mask,
        RESET => value & !mask,
        COMPLEMENT => value ^ mask,
        _ => value,
    }
}

/// CF takes the bit; the other flags stay as they were (OF, SF, AF, PF are undefined, ZF unaffected).
fn set_carry(cpu: &mut Cpu, carry: bool) {
    cpu.status = Rflags::from_bits(cpu.status).with_carry(carry).into_bits();
}

fn bit_reg<const WHAT: u8, const BY_REGISTER: bool, W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let number = if BY_REGISTER { W::get(cpu, op.src).into() } else { op.imm() };
    let mask = 1u64 << (number & u64::from(W::BITS - 1));
    let value: u64 = W::get(cpu, op.dst).into();
    set_carry(cpu, value & mask != 0);
    if WHAT != KEEP {
        W::set(cpu, op.dst, W::low(change::<WHAT>(value, mask)));
    }
    Ok(Flow::Next)
}

/// With the bit number in a register, the operand is a bit string: the number is signed and reaches beyond the operand.
fn bit_mem<const WHAT: u8, const BY_REGISTER: bool, W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let (number, mut ea) = (if BY_REGISTER { W::get(cpu, op.src).sign_extend() } else { op.imm() }, cpu.ea(op));
    if BY_REGISTER {
        let element = number.cast_signed() >> W::BITS.trailing_zeros();
        ea = ea.wrapping_add((element * W::SIZE as i64).cast_unsigned()) & (u64::MAX >> op.narrow);
    }
    let mask = 1u64 << (number & u64::from(W::BITS - 1));
    let seg = usize::from(op.seg);
    let carry = if WHAT == KEEP {
        cpu.load::<W>(seg, ea)?.into() & mask != 0
    } else {
        cpu.update(seg, ea, op.locked, |old: W| {
            let old: u64 = old.into();
            (W::low(change::<WHAT>(old, mask)), old & mask != 0)
        })?
    };
    set_carry(cpu, carry);
    Ok(Flow::Next)
}

/// An instruction that finds or counts bits.
trait Scan {
    /// BSF and BSR do not write the destination, not even its upper half, when the source is zero.
    const KEEPS: bool = false;
    fn apply<W: Wide>(source: W, old: W, flags: u64) -> (W, u64);
}
macro_rules! scan {
    ($($name:ident $keeps:literal |$s:ident, $o:ident, $f:ident| $e:expr;)*) => {$(
        struct $name;
        impl Scan for $name {
            const KEEPS: bool = $keeps;
            #[inline(always)]
            fn apply<W: Wide>($s: W, $o: W, $f: u64) -> (W, u64) { $e }
        }
    )*};
}
scan! {
    Bsf true |s, old, f| alu::bsf(s, old, f);
    Bsr true |s, old, f| alu::bsr(s, old, f);
    Tzcnt false |s, _old, _f| alu::tzcnt(s);
    Lzcnt false |s, _old, _f| alu::lzcnt(s);
    Popcnt false |s, _old, _f| alu::popcnt(s);
}

fn scan<O: Scan, W: Width + Wide, S: Source>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let source = S::get::<W>(cpu, op)?;
    let (result, flags) = O::apply(source, W::get(cpu, op.dst), cpu.status);
    cpu.status = flags;
    if !O::KEEPS || !Rflags::from_bits(flags).zero() {
        W::set(cpu, op.dst, result);
    }
    Ok(Flow::Next)
}

fn carry<const VALUE: bool>(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    set_carry(cpu, VALUE);
    Ok(Flow::Next)
}

fn cmc(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    cpu.status ^= Rflags::new().with_carry(true).into_bits() & 1;
    Ok(Flow::Next)
}

fn direction<const VALUE: bool>(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    cpu.system_flags.set_direction(VALUE);
    Ok(Flow::Next)
}

/// SF, ZF, AF, PF, CF in AH; bit 1 reads as one.
const AH_FLAGS: u64 = 0xd5;

fn lahf(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    u8::set(cpu, 1, (cpu.status & AH_FLAGS | 2) as u8);
    Ok(Flow::Next)
}

fn sahf(cpu: &mut Cpu, _: &Op) -> Result<Flow, Exception> {
    cpu.status = cpu.status & !AH_FLAGS | u64::from(u8::get(cpu, 1)) & AH_FLAGS;
    Ok(Flow::Next)
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Op> {
    let exec: Exec = match i.mnemonic() {
        Mnemonic::Bt => select_bit::<KEEP>(i)?,
        Mnemonic::Bts => select_bit::<SET>(i)?,
        Mnemonic::Btr => select_bit::<RESET>(i)?,
        Mnemonic::Btc => select_bit::<COMPLEMENT>(i)?,
        Mnemonic::Bsf => select_scan::<Bsf>(i)?,
        Mnemonic::Bsr => select_scan::<Bsr>(i)?,
        Mnemonic::Tzcnt => select_scan::<Tzcnt>(i)?,
        Mnemonic::Lzcnt => select_scan::<Lzcnt>(i)?,
        Mnemonic::Popcnt => select_scan::<Popcnt>(i)?,
        Mnemonic::Clc => carry::<false>,
        Mnemonic::Stc => carry::<true>,
        Mnemonic::Cmc => cmc,
        Mnemonic::Cld => direction::<false>,
        Mnemonic::Std => direction::<true>,
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        _ => return None,
    };
    Some(operands(exec, i))
}

fn select_bit<const WHAT: u8>(i: &Instruction) -> Option<Exec> {
    let size = operand_size(i, 0);
    match (i.op0_kind() == OpKind::Memory, i.op1_kind() == OpKind::Register) {
        (true, true) => by_width!(size, W => bit_mem::<WHAT, true, W>),
        (true, false) => by_width!(size, W => bit_mem::<WHAT, false, W>),
        (false, true) => by_width!(size, W => bit_reg::<WHAT, true, W>),
        (false, false) => by_width!(size, W => bit_reg::<WHAT, false, W>),
    }
}

fn select_scan<O: Scan>(i: &Instruction) -> Option<Exec> {
    let size = operand_size(i, 0);
    if i.op1_kind() == OpKind::Memory {
        by_wide!(size, W => scan::<O, W, Mem>)
    } else {
        by_wide!(size, W => scan::<O, W, Reg>)
    }
}
