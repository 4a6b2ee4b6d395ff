//! Addresses and accesses of 32- and 16-bit code.
//!
//! Its addresses are sums that wrap, and most are offsets in a segment. Such a sum is made in a register of its own
//! (T2), from which both the check and the access take it, so that what is accessed is what was checked:
//!
//! ```text
//! lea   T2d, [ea]              ; wraps at 4 GiB; MOVZX if at 64 KiB
//! lea   T0, [T2+size-1]        ; unless the segment is flat: within its limit,
//! cmp   T0, [bound]
//! jae   interpret
//! add   T2d, [base]            ; and from its base
//! mov   T0d, T2d
//! ```
//!
//! then as with 64-bit addresses, but for the operand, which is `[T2+T1]`.
//!
//! Of a group of accesses (flat segments only) T1 gets the host's address of the first byte, so that none of the others
//! depends on a register whose value may have wrapped.

use super::memory::{Address, bit_offset};
use super::plain::{guest, is_high, rename};
use super::{Cold, Job, Refused};
use crate::asm::{Cond, Mem};
use crate::frame::Frame;
use crate::legacy::{Bounds, Legacy};
use crate::region::Insn;
use crate::regs::{Place, T0, T1, T2, T3, field, place};
use iced_x86::{Instruction, OpKind, Register};
use std::mem::{offset_of, size_of};

/// What an address of 32- or 16-bit code is besides a sum.
#[derive(Clone, Copy, Debug)]
pub(super) struct Narrow {
    /// The sum wraps at 64 KiB.
    pub short: bool,
    /// The segment, if that has a base and a limit.
    pub segment: Option<usize>,
}

/// Whether accesses through `segment` need neither its base nor its limit.
pub(super) fn is_flat(segment: Register, legacy: Legacy) -> bool {
    legacy.flat && matches!(segment, Register::DS | Register::ES | Register::SS)
}

/// The memory operand of `i`. `None`: it has no form here.
pub(super) fn address(i: &Instruction, legacy: Legacy) -> Option<Address> {
    let (base, index) = (i.memory_base(), i.memory_index());
    let short = match (base, index) {
        (Register::None, Register::None) => i.memory_displ_size() == 2,
        (Register::None, register) | (register, _) => register.is_gpr16(),
    };
    let general = |register: Register| register.is_gpr16() || register.is_gpr32();
    let registers = [base, index];
    if !registers.into_iter().all(|register| register == Register::None || general(register)) {
        return None;
    }
    let guest = |register: Register| general(register).then(|| place(register.number() as u8));
    let segment = i.memory_segment();
    let bits = bit_offset(i).map(|register| (place(register.number() as u8), register.size() as u8));
    if short && bits.is_some() {
        return None;
    }
    Some(Address {
        base: guest(base),
        index: guest(index).map(|index| (index, i.memory_index_scale().trailing_zeros() as u8)),
        disp: i.memory_displacement32().cast_signed(),
        page: None,
        segment: None,
        bits,
        narrow: Some(Narrow { short, segment: (!is_flat(segment, legacy)).then(|| segment.number()) }),
    })
}

/// The form of an address on the stack.
pub(super) fn stack(legacy: Legacy) -> Narrow {
    let segment = (!legacy.flat).then(|| Register::SS.number());
    Narrow { short: !legacy.wide_stack, segment }
}

fn bounds(segment: usize, offset: usize) -> Mem {
    field(offset_of!(Frame, segments) + segment * size_of::<Bounds>() + offset)
}

/// The sum, all of whose registers have one of the host.
fn sum(address: &Address) -> Result<Mem, Refused> {
    let host = |place: Place| match place {
        Place::Host(host) => Ok(host),
        Place::Home(_) => Err(Refused),
    };
    let base = address.base.map(host).transpose()?;
    let index = address.index.map(|(index, shift)| host(index).map(|index| (index, shift))).transpose()?;
    Ok(Mem { base, index, disp: address.disp, gs: false })
}

/// What else becomes of `insn` with a memory operand, of which `out` is the host's: the bit's number in place of its
/// distance, and the low byte in place of the high one, whose encodings exclude the operand's. Gives what is to be
/// executed before and behind it: the XCHG of the two bytes.
pub(super) fn adapt(insn: &Insn, out: &mut Instruction) -> Option<[u8; 2]> {
    insn.memory?;
    if let Some(register) = bit_offset(&insn.i) {
        out.set_op1_register(rename(register, T3));
    }
    let high = (0..out.op_count()).find(|n| out.op_kind(*n) == OpKind::Register && is_high(out.op_register(*n)))?;
    let register = guest(out.op_register(high));
    out.set_op_register(high, Register::AL + u32::from(register));
    Some([0x86, 0xe0 | register << 3 | register])
}

impl Job<'_> {
    /// Puts the linear address of an access into T2 and T0, or leaves `site` to the interpreter. Uses T1 and flags.
    pub(super) fn narrow(
        &mut self,
        address: &Address,
        narrow: Narrow,
        site: u32,
        size: u32,
        write: bool,
    ) -> Result<(), Refused> {
        // LEA of 32 bits.
        self.asm.rm(false, &[0x8d], T2, sum(address)?);
        if narrow.short {
            self.asm.zero_extend16(T2, T2);
        }
        if let Some((bits, size)) = address.bits {
            let (Place::Host(from), 4) = (bits, size) else { return Err(Refused) };
            // MOVSXD; the doublewords that the bit offset spans.
            self.asm.rr(true, &[0x63], T1, from);
            self.asm.sar(T1, 5);
            self.asm.rm(false, &[0x8d], T2, Mem::at(T2, 0).index(T1, 2));
        }
        if let Some(segment) = narrow.segment {
            let at = self.asm.label();
            self.cold.push(Cold::Interpret { at, site });
            self.asm.lea(T0, Mem::at(T2, size as i32 - 1));
            let bound = if write { offset_of!(Bounds, write) } else { offset_of!(Bounds, read) };
            self.asm.cmp_mem(T0, bounds(segment, bound));
            self.asm.jcc(Cond::AE, at);
            // ADD of 32 bits.
            self.asm.rm(false, &[0x03], T2, bounds(segment, offset_of!(Bounds, base)));
        }
        self.asm.mov32(T0, T2);
        Ok(())
    }

    /// BT and its like address their word by themselves, which the check has done too: leaves the bit's number in
    /// that word, in T3.
    pub(super) fn bit_in_word(&mut self, bits: Place) -> Result<(), Refused> {
        let Place::Host(from) = bits else { return Err(Refused) };
        self.asm.mov32(T3, from);
        self.asm.and_imm(T3, 31);
        Ok(())
    }

    /// LEA, which wraps as an address does.
    pub(super) fn lea_narrow(&mut self, insn: &Insn, address: &Address, narrow: Narrow) -> Result<(), Refused> {
        let register = insn.i.op0_register();
        let Place::Host(to) = place(register.number() as u8) else { return Err(Refused) };
        let from = sum(address)?;
        if register.size() == 2 {
            self.asm.rm(false, &[0x66, 0x8d], to, from);
        } else if narrow.short {
            self.asm.lea(T0, from);
            self.asm.zero_extend16(to, T0);
        } else {
            self.asm.rm(false, &[0x8d], to, from);
        }
        Ok(())
    }
}
