//! Segment registers and descriptor tables (APM vol. 2, chapter 4): loading segments, the table registers, and the
//! instructions that look at descriptors without loading them.
//!
//! A null selector clears the hidden base, as Intel processors and AMD's since Zen 2 do.

use super::{Flow, Slow};
use crate::Cpu;
use crate::operand::segment;
use crate::state::{CS, CodeSize, DS, ES, FS, GS, SS, Shadow};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use x86::{Attributes, Descriptor, Exception, Rflags, Segment, Selector, TableRegister, Vector};

/// System descriptor types (APM vol. 2, tables 4-5 and 4-6).
pub mod system_type {
    #![expect(missing_docs, reason = "the manual's names")]
    pub const TSS16_AVAILABLE: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL_GATE16: u8 = 4;
    pub const TASK_GATE: u8 = 5;
    pub const INTERRUPT_GATE16: u8 = 6;
    pub const TRAP_GATE16: u8 = 7;
    pub const TSS_AVAILABLE: u8 = 9;
    pub const TSS_BUSY: u8 = 11;
    pub const CALL_GATE: u8 = 12;
    pub const INTERRUPT_GATE: u8 = 14;
    pub const TRAP_GATE: u8 = 15;
}

/// A descriptor and where it was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Linear address of its first byte.
    pub address: u64,
    /// Its first eight bytes.
    pub descriptor: Descriptor,
}

impl Cpu {
    /// Reads the descriptor that a (non-null) selector names.
    ///
    /// Errors: `vector` with the selector (and `ext`) if it lies beyond its table's limit; page faults.
    pub fn read_descriptor(&mut self, selector: Selector, vector: Vector, ext: u16) -> Result<Found, Exception> {
        self.find_descriptor(selector, 8)?.ok_or(Exception::coded(vector, selector.error_code() | ext))
    }

    /// As [`Cpu::read_descriptor`]; `None` if its `size` bytes lie beyond the limit or there is no table.
    fn find_descriptor(&mut self, selector: Selector, size: u64) -> Result<Option<Found>, Exception> {
        let (base, limit) = if selector.local() {
            if !self.ldtr.attributes.present() {
                return Ok(None);
            }
            (self.ldtr.base, u64::from(self.ldtr.limit))
        } else {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        };
        let offset = u64::from(selector.offset());
        if offset + size - 1 > limit {
            return Ok(None);
        }
        let address = self.system_address(base.wrapping_add(offset));
        let descriptor = Descriptor::from_bits(self.read_system(address)?);
        Ok(Some(Found { address, descriptor }))
    }

    /// A linear address of a system structure: 32 bits wide outside long mode.
    #[must_use]
    pub fn system_address(&self, address: u64) -> u64 {
        if self.long_mode() { address } else { address & 0xffff_ffff }
    }

    /// Sets the accessed bit of a code or data descriptor.
    pub fn set_accessed(&mut self, found: &Found) -> Result<(), Exception> {
        if found.descriptor.attributes().kind() & 1 == 0 {
            self.set_system_bits(found.address.wrapping_add(5), 1)?;
        }
        Ok(())
    }

    /// Loads ES, SS, DS, FS or GS with all checks of the current mode.
    pub fn load_segment(&mut self, register: usize, selector: u16) -> Result<(), Exception> {
        let selector = Selector::from_bits(selector);
        let loaded = if !self.protected() {
            self.real_segment(register, selector)
        } else if register == SS {
            self.checked_stack_segment(selector, self.cpl, Vector::GeneralProtection, 0)?
        } else {
            self.checked_data_segment(selector, Vector::GeneralProtection, 0)?
        };
        self.seg[register] = loaded;
        self.update_mode();
        Ok(())
    }

    /// A segment as real and virtual-8086 mode load it. Real mode leaves limit and rights alone ("big real mode").
    #[must_use]
    pub fn real_segment(&self, register: usize, selector: Selector) -> Segment {
        let bits = selector.into_bits();
        if self.system_flags.virtual_8086() {
            let segment = Segment::real_mode(bits);
            return Segment { attributes: segment.attributes.with_dpl(3), ..segment };
        }
        Segment { selector, base: u64::from(bits) << 4, ..self.seg[register] }
    }

    /// What SS becomes when loaded with `selector` at privilege level `cpl`. Sets the accessed bit.
    ///
    /// Errors: `vector` (#GP or #TS) with the selector and `ext`; #SS if not present.
    pub fn checked_stack_segment(
        &mut self,
        selector: Selector,
        cpl: u8,
        vector: Vector,
        ext: u16,
    ) -> Result<Segment, Exception> {
        if selector.is_null() {
            let allowed = self.code_size == CodeSize::Bits64 && cpl != 3 && selector.rpl() == cpl;
            return if allowed { Ok(null_stack(selector, cpl)) } else { Err(Exception::coded(vector, ext)) };
        }
        let found = self.read_descriptor(selector, vector, ext)?;
        let rights = found.descriptor.attributes();
        let code = selector.error_code() | ext;
        if selector.rpl() != cpl || rights.dpl() != cpl || !rights.is_writable() {
            return Err(Exception::coded(vector, code));
        }
        if !rights.present() {
            return Err(Exception::coded(Vector::Stack, code));
        }
        self.set_accessed(&found)?;
        Ok(found.descriptor.segment(selector))
    }

    /// What ES, DS, FS or GS becomes when loaded with `selector`. Sets the accessed bit.
    ///
    /// Errors: `vector` (#GP or #TS) with the selector and `ext`; #NP if not present.
    pub fn checked_data_segment(&mut self, selector: Selector, vector: Vector, ext: u16) -> Result<Segment, Exception> {
        if selector.is_null() {
            return Ok(Segment { selector, ..Segment::default() });
        }
        let found = self.read_descriptor(selector, vector, ext)?;
        let rights = found.descriptor.attributes();
        let code = selector.error_code() | ext;
        let private = !rights.is_conforming() && (selector.rpl() > rights.dpl() || self.cpl > rights.dpl());
        if !rights.is_readable() || private {
            return Err(Exception::coded(vector, code));
        }
        if !rights.present() {
            return Err(Exception::coded(Vector::SegmentNotPresent, code));
        }
        self.set_accessed(&found)?;
        Ok(found.descriptor.segment(selector))
    }

    /// The base of a 16-byte system descriptor (LDT, TSS) in long mode, of an 8-byte one elsewhere.
    fn system_base(&mut self, found: &Found) -> Result<u64, Exception> {
        let low = u64::from(found.descriptor.base());
        if !self.long_mode() {
            return Ok(low);
        }
        let high: u32 = self.read_system(found.address.wrapping_add(8))?;
        let base = low | u64::from(high) << 32;
        if self.is_canonical_base(base) { Ok(base) } else { Err(Exception::GP0) }
    }

    /// Finds an LDT or TSS descriptor for LLDT and LTR.
    fn system_descriptor(&mut self, selector: Selector, kinds: &[u8]) -> Result<Found, Exception> {
        let fault = Exception::gp(selector.error_code());
        if selector.local() {
            return Err(fault);
        }
        let size = if self.long_mode() { 16 } else { 8 };
        let found = self.find_descriptor(selector, size)?.ok_or(fault)?;
        let rights = found.descriptor.attributes();
        if rights.code_or_data() || !kinds.contains(&rights.kind()) {
            return Err(fault);
        }
        if !rights.present() {
            return Err(Exception::coded(Vector::SegmentNotPresent, selector.error_code()));
        }
        Ok(found)
    }

    /// #UD outside protected mode, #GP(0) above CPL 0.
    fn require_system(&self) -> Result<(), Exception> {
        if !self.protected() {
            Err(Exception::UNDEFINED)
        } else if self.cpl != 0 {
            Err(Exception::GP0)
        } else {
            Ok(())
        }
    }

    /// UMIP: SGDT, SIDT, SLDT, STR and SMSW raise #GP(0) above CPL 0.
    pub fn check_umip(&self) -> Result<(), Exception> {
        if self.cr4.umip() && self.cpl != 0 { Err(Exception::GP0) } else { Ok(()) }
    }

    fn set_zero_flag(&mut self, zero: bool) {
        self.status = Rflags::from_bits(self.status).with_zero(zero).into_bits();
    }

    /// The descriptor that LAR, LSL, VERR or VERW may look at; `None` clears ZF.
    fn visible_descriptor(&mut self, selector: Selector, kinds: &[u8]) -> Result<Option<Found>, Exception> {
        if selector.is_null() {
            return Ok(None);
        }
        let Some(found) = self.find_descriptor(selector, 8)? else { return Ok(None) };
        let rights = found.descriptor.attributes();
        let known = rights.code_or_data() || kinds.contains(&rights.kind());
        let private = !rights.is_conforming() && (self.cpl > rights.dpl() || selector.rpl() > rights.dpl());
        Ok((known && !private).then_some(found))
    }
}

/// SS as 64-bit mode loads it with a null selector: unusable, but its DPL is the CPL.
#[must_use]
pub fn null_stack(selector: Selector, cpl: u8) -> Segment {
    Segment { selector, attributes: Attributes::new().with_dpl(cpl), ..Segment::default() }
}

fn mov_to_segment(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let register = segment(i.op0_register());
    if register == CS {
        return Err(Exception::UNDEFINED);
    }
    let selector = cpu.read_operand(i, 1, 2)? as u16;
    cpu.load_segment(register, selector)?;
    Ok(after_load(cpu, register))
}

/// Loading SS holds off interrupts and debug traps for one instruction.
fn after_load(cpu: &mut Cpu, register: usize) -> Flow {
    if register == SS {
        cpu.shadow = Shadow::MovSs;
    }
    Flow::Break
}

fn mov_from_segment(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let selector = cpu.seg[segment(i.op1_register())].selector.into_bits();
    let size = if i.op0_kind() == OpKind::Register { i.op0_register().size() as u64 } else { 2 };
    cpu.write_operand(i, 0, size, u64::from(selector))?;
    Ok(Flow::Next)
}

fn push_segment(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let selector = cpu.seg[segment(i.op0_register())].selector.into_bits();
    cpu.push_sized(u64::from(i.stack_pointer_increment().unsigned_abs()), u64::from(selector))?;
    Ok(Flow::Next)
}

fn pop_segment(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let size = u64::from(i.stack_pointer_increment().unsigned_abs());
    let sp = cpu.stack_pointer();
    let selector = cpu.load_sized(SS, sp, 2)? as u16;
    let register = segment(i.op0_register());
    // The stack pointer moves by the width of the stack as it was before SS changed.
    let before = cpu.stack_mask();
    cpu.load_segment(register, selector)?;
    let keep = if before == 0xffff { cpu.regs[crate::state::RSP] & !0xffff } else { 0 };
    cpu.regs[crate::state::RSP] = keep | sp.wrapping_add(size) & before;
    Ok(after_load(cpu, register))
}

/// LDS, LES, LFS, LGS, LSS.
fn load_far_pointer(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let register = match i.mnemonic() {
        Mnemonic::Lds => DS,
        Mnemonic::Les => ES,
        Mnemonic::Lfs => FS,
        Mnemonic::Lgs => GS,
        _ => SS,
    };
    let size = i.op0_register().size() as u64;
    let (seg, ea) = cpu.effective_address(i);
    let offset = cpu.load_sized(seg, ea, size)?;
    let selector = cpu.load::<u16>(seg, ea.wrapping_add(size))?;
    cpu.load_segment(register, selector)?;
    cpu.write_reg(i.op0_register(), offset);
    Ok(after_load(cpu, register))
}

fn lldt(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    cpu.require_system()?;
    let selector = Selector::from_bits(cpu.read_operand(i, 0, 2)? as u16);
    if selector.is_null() {
        cpu.ldtr = Segment { selector, ..Segment::default() };
        return Ok(Flow::Next);
    }
    let found = cpu.system_descriptor(selector, &[system_type::LDT])?;
    let base = cpu.system_base(&found)?;
    cpu.ldtr = Segment { base, ..found.descriptor.segment(selector) };
    Ok(Flow::Next)
}

fn ltr(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    cpu.require_system()?;
    let selector = Selector::from_bits(cpu.read_operand(i, 0, 2)? as u16);
    if selector.is_null() {
        return Err(Exception::GP0);
    }
    let kinds: &[u8] = if cpu.long_mode() {
        &[system_type::TSS_AVAILABLE]
    } else {
        &[system_type::TSS_AVAILABLE, system_type::TSS16_AVAILABLE]
    };
    let found = cpu.system_descriptor(selector, kinds)?;
    let base = cpu.system_base(&found)?;
    cpu.set_system_bits(found.address.wrapping_add(5), 2)?;
    let segment = found.descriptor.segment(selector);
    let busy = segment.attributes.with_kind(segment.attributes.kind() | 2);
    cpu.tr = Segment { base, attributes: busy, ..segment };
    Ok(Flow::Next)
}

/// SLDT and STR.
fn store_selector(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    if !cpu.protected() {
        return Err(Exception::UNDEFINED);
    }
    cpu.check_umip()?;
    let from = if i.mnemonic() == Mnemonic::Sldt { cpu.ldtr } else { cpu.tr };
    let size = if i.op0_kind() == OpKind::Register { i.op0_register().size() as u64 } else { 2 };
    cpu.write_operand(i, 0, size, u64::from(from.selector.into_bits()))?;
    Ok(Flow::Next)
}

/// SGDT and SIDT store all base bits of their format; a 16-bit operand size changes nothing on current processors.
fn store_table(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    cpu.check_umip()?;
    let table = if i.mnemonic() == Mnemonic::Sgdt { cpu.gdtr } else { cpu.idtr };
    let (seg, ea) = cpu.effective_address(i);
    let mut bytes = [0u8; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let len = if cpu.code_size == CodeSize::Bits64 { 10 } else { 6 };
    cpu.store_bytes(seg, ea, &bytes[..len])?;
    Ok(Flow::Next)
}

/// LGDT and LIDT; with a 16-bit operand size only 24 bits of the base are taken.
fn load_table(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    if cpu.cpl != 0 {
        return Err(Exception::GP0);
    }
    let (seg, ea) = cpu.effective_address(i);
    let mut bytes = [0u8; 10];
    let wide = cpu.code_size == CodeSize::Bits64;
    cpu.load_bytes(seg, ea, &mut bytes[..if wide { 10 } else { 6 }])?;
    let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    let [_, _, base @ ..] = bytes;
    let base = u64::from_le_bytes(base);
    let base = if matches!(i.code(), Code::Lgdt_m1632_16 | Code::Lidt_m1632_16) { base & 0xff_ffff } else { base };
    if wide && !cpu.is_canonical_base(base) {
        return Err(Exception::GP0);
    }
    let table = TableRegister { base, limit };
    if i.mnemonic() == Mnemonic::Lgdt {
        cpu.gdtr = table;
    } else {
        cpu.idtr = table;
    }
    Ok(Flow::Next)
}

/// LAR: access rights; its bits 8–15 and 20–23 are those of the descriptor's second word.
fn lar(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    use system_type::*;
    let legacy = [TSS16_AVAILABLE, LDT, TSS16_BUSY, CALL_GATE16, TASK_GATE, TSS_AVAILABLE, TSS_BUSY, CALL_GATE];
    let long = [LDT, TSS_AVAILABLE, TSS_BUSY, CALL_GATE];
    let kinds: &[u8] = if cpu.long_mode() { &long } else { &legacy };
    look_up(cpu, i, kinds, |found| found.descriptor.into_bits() >> 32 & 0x00f0_ff00)
}

/// LSL: the scaled limit.
fn lsl(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    use system_type::*;
    let legacy = [TSS16_AVAILABLE, LDT, TSS16_BUSY, TSS_AVAILABLE, TSS_BUSY];
    let long = [LDT, TSS_AVAILABLE, TSS_BUSY];
    let kinds: &[u8] = if cpu.long_mode() { &long } else { &legacy };
    look_up(cpu, i, kinds, |found| u64::from(found.descriptor.limit()))
}

fn look_up(cpu: &mut Cpu, i: &Instruction, kinds: &[u8], value: fn(&Found) -> u64) -> Result<Flow, Exception> {
    if !cpu.protected() {
        return Err(Exception::UNDEFINED);
    }
    let selector = Selector::from_bits(cpu.read_operand(i, 1, 2)? as u16);
    let found = cpu.visible_descriptor(selector, kinds)?;
    if let Some(found) = &found {
        cpu.write_reg(i.op0_register(), value(found));
    }
    cpu.set_zero_flag(found.is_some());
    Ok(Flow::Next)
}

/// VERR and VERW.
fn verify(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    if !cpu.protected() {
        return Err(Exception::UNDEFINED);
    }
    let selector = Selector::from_bits(cpu.read_operand(i, 0, 2)? as u16);
    let found = cpu.visible_descriptor(selector, &[])?;
    let write = i.mnemonic() == Mnemonic::Verw;
    let allowed = found.is_some_and(|found| {
        let rights = found.descriptor.attributes();
        if write { rights.is_writable() } else { rights.is_readable() }
    });
    cpu.set_zero_flag(allowed);
    Ok(Flow::Next)
}

fn arpl(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    if !cpu.protected() {
        return Err(Exception::UNDEFINED);
    }
    let source = Selector::from_bits(cpu.read_operand(i, 1, 2)? as u16);
    let target = Selector::from_bits(cpu.read_operand(i, 0, 2)? as u16);
    let raise = target.rpl() < source.rpl();
    if raise {
        cpu.write_operand(i, 0, 2, u64::from(target.with_rpl(source.rpl()).into_bits()))?;
    }
    cpu.set_zero_flag(raise);
    Ok(Flow::Next)
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Slow> {
    let is_segment = |register: Register| register.is_segment_register();
    Some(match i.mnemonic() {
        Mnemonic::Mov if i.op0_kind() == OpKind::Register && is_segment(i.op0_register()) => mov_to_segment,
        Mnemonic::Mov if i.op1_kind() == OpKind::Register && is_segment(i.op1_register()) => mov_from_segment,
        Mnemonic::Push if i.op0_kind() == OpKind::Register && is_segment(i.op0_register()) => push_segment,
        Mnemonic::Pop if i.op0_kind() == OpKind::Register && is_segment(i.op0_register()) => pop_segment,
        Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => load_far_pointer,
        Mnemonic::Lldt => lldt,
        Mnemonic::Ltr => ltr,
        Mnemonic::Sldt | Mnemonic::Str => store_selector,
        Mnemonic::Sgdt | Mnemonic::Sidt => store_table,
        Mnemonic::Lgdt | Mnemonic::Lidt => load_table,
        Mnemonic::Lar => lar,
        Mnemonic::Lsl => lsl,
        Mnemonic::Verr | Mnemonic::Verw => verify,
        Mnemonic::Arpl => arpl,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
