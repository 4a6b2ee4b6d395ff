//! Far transfers (APM vol. 3: CALL far, JMP far, RET far, IRET): between code segments, through call gates, to outer
//! levels, to virtual-8086 mode. Everything is checked and read before anything changes.
//! Transfers to a TSS or through a task gate are in `task`.

use super::frame::Frame;
use super::segment::{null_stack, system_type};
use super::task::Cause;
use super::{Flow, Slow};
use crate::Cpu;
use crate::state::{CS, CodeSize, DS, ES, FS, GS, RIP, RSP, SS};
use iced_x86::{Code, Instruction, Mnemonic, OpKind};
use x86::{Exception, Rflags, Segment, Selector, Vector};

/// A far pointer.
#[derive(Clone, Copy, Debug)]
struct Pointer {
    selector: Selector,
    offset: u64,
}

/// CALL pushes a return address, JMP does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Jump,
    Call,
}

impl Cpu {
    /// Whether `offset` can be executed in `cs`: within the limit, or canonical for 64-bit code.
    fn check_target(&self, cs: &Segment, offset: u64) -> Result<(), Exception> {
        let fits = if self.long_mode() && cs.attributes.long() {
            x86::is_canonical(offset, self.mmu.virtual_bits())
        } else {
            offset <= u64::from(cs.limit)
        };
        if fits { Ok(()) } else { Err(Exception::GP0) }
    }

    /// Rights of a code segment as loaded into CS: present, and not both L and D in long mode.
    fn check_code(&self, rights: x86::Attributes, selector: Selector) -> Result<(), Exception> {
        if self.long_mode() && rights.long() && rights.big() {
            return Err(Exception::gp(selector.error_code()));
        }
        if !rights.present() {
            return Err(Exception::coded(Vector::SegmentNotPresent, selector.error_code()));
        }
        Ok(())
    }

    /// Continues in `cs` at `offset`.
    fn enter(&mut self, cs: Segment, offset: u64) -> Flow {
        self.seg[CS] = cs;
        self.regs[RIP] = offset;
        self.update_mode();
        Flow::Jump
    }

    /// Far JMP or CALL to `target` with operands of `size` bytes; `next` is the return address.
    fn far_transfer(&mut self, kind: Kind, target: Pointer, size: u64, next: u64) -> Result<Flow, Exception> {
        if !self.protected() {
            let cs = self.real_segment(CS, target.selector);
            self.check_target(&cs, target.offset)?;
            if kind == Kind::Call {
                let mut frame = self.current_frame(size);
                frame.push(self, u64::from(self.seg[CS].selector.into_bits()))?;
                frame.push(self, next)?;
                frame.commit(self);
            }
            return Ok(self.enter(cs, target.offset));
        }
        if target.selector.is_null() {
            return Err(Exception::GP0);
        }
        let found = self.read_descriptor(target.selector, Vector::GeneralProtection, 0)?;
        let rights = found.descriptor.attributes();
        let (selector, code) = (target.selector, target.selector.error_code());
        if !rights.code_or_data() {
            return self.through_system(kind, selector, &found, size, next);
        }
        let allowed = if rights.is_conforming() {
            rights.dpl() <= self.cpl
        } else {
            selector.rpl() <= self.cpl && rights.dpl() == self.cpl
        };
        if !rights.is_code() || !allowed {
            return Err(Exception::gp(code));
        }
        self.check_code(rights, selector)?;
        let cs = found.descriptor.segment(selector.with_rpl(self.cpl));
        self.check_target(&cs, target.offset)?;
        if kind == Kind::Call {
            let mut frame = self.current_frame(size);
            frame.push(self, u64::from(self.seg[CS].selector.into_bits()))?;
            frame.push(self, next)?;
            self.set_accessed(&found)?;
            frame.commit(self);
        } else {
            self.set_accessed(&found)?;
        }
        Ok(self.enter(cs, target.offset))
    }

    /// A frame on the current stack.
    fn current_frame(&self, size: u64) -> Frame {
        let flat = self.code_size == CodeSize::Bits64;
        Frame::new(self, self.seg[SS], self.regs[RSP], self.cpl, size, flat, 0)
    }

    /// Far transfer through a system descriptor: a call gate.
    fn through_system(
        &mut self,
        kind: Kind,
        selector: Selector,
        found: &super::segment::Found,
        size: u64,
        next: u64,
    ) -> Result<Flow, Exception> {
        let code = selector.error_code();
        let rights = found.descriptor.attributes();
        let private = rights.dpl() < self.cpl || rights.dpl() < selector.rpl();
        let gate_size = match rights.kind() {
            system_type::CALL_GATE if self.long_mode() => 8,
            system_type::CALL_GATE => 4,
            system_type::CALL_GATE16 if !self.long_mode() => 2,
            system_type::TASK_GATE | system_type::TSS_AVAILABLE | system_type::TSS16_AVAILABLE
                if !self.long_mode() && !private =>
            {
                let gate = rights.kind() == system_type::TASK_GATE;
                let task = if gate { Self::gate_task(found.descriptor, code)? } else { selector };
                let cause = if kind == Kind::Call { Cause::Call } else { Cause::Jump };
                return self.switch_task(task, cause, next, self.rflags().into_bits());
            }
            _ => return Err(Exception::gp(code)),
        };
        if private {
            return Err(Exception::gp(code));
        }
        if !rights.present() {
            return Err(Exception::coded(Vector::SegmentNotPresent, code));
        }
        let _ = size;
        self.through_gate(kind, found, gate_size, next)
    }

    fn through_gate(
        &mut self,
        kind: Kind,
        gate: &super::segment::Found,
        size: u64,
        next: u64,
    ) -> Result<Flow, Exception> {
        let bits = gate.descriptor.into_bits();
        let mut offset = bits & 0xffff | bits >> 32 & 0xffff_0000;
        let target = Selector::from_bits((bits >> 16) as u16);
        let parameters = bits >> 32 & 31;
        if size == 8 {
            let high: u64 = self.read_system(gate.address.wrapping_add(8))?;
            // The type field of the upper half must be zero.
            if high >> 40 & 0x1f != 0 {
                return Err(Exception::gp(target.error_code()));
            }
            offset |= high << 32;
        } else if size == 2 {
            offset &= 0xffff;
        }
        if target.is_null() {
            return Err(Exception::GP0);
        }
        let found = self.read_descriptor(target, Vector::GeneralProtection, 0)?;
        let rights = found.descriptor.attributes();
        let fault = Exception::gp(target.error_code());
        let long_ok = size != 8 || (rights.long() && !rights.big());
        if !rights.is_code() || rights.dpl() > self.cpl || !long_ok {
            return Err(fault);
        }
        if kind == Kind::Jump && !rights.is_conforming() && rights.dpl() != self.cpl {
            return Err(fault);
        }
        self.check_code(rights, target)?;
        let inner = kind == Kind::Call && !rights.is_conforming() && rights.dpl() < self.cpl;
        let cpl = if inner { rights.dpl() } else { self.cpl };
        let cs = found.descriptor.segment(target.with_rpl(cpl));
        self.check_target(&cs, offset)?;
        if kind == Kind::Jump {
            self.set_accessed(&found)?;
            return Ok(self.enter(cs, offset));
        }
        let mut frame = if inner {
            let (stack, sp) = if size == 8 { self.inner_stack64(cpl, 0)? } else { self.tss_stack(cpl, 0)? };
            let mut frame = Frame::new(self, stack, sp, cpl, size, size == 8, stack.selector.error_code());
            frame.push(self, u64::from(self.seg[SS].selector.into_bits()))?;
            frame.push(self, self.regs[RSP])?;
            if size != 8 {
                for n in (0..parameters).rev() {
                    let parameter = self.peek(n, size)?;
                    frame.push(self, parameter)?;
                }
            }
            frame
        } else {
            let flat = size == 8;
            Frame::new(self, self.seg[SS], self.regs[RSP], cpl, size, flat, 0)
        };
        frame.push(self, u64::from(self.seg[CS].selector.into_bits()))?;
        frame.push(self, next)?;
        self.set_accessed(&found)?;
        frame.commit(self);
        Ok(self.enter(cs, offset))
    }

    /// Entry `n` of the current stack, in entries of `size` bytes, without popping it.
    fn peek(&mut self, n: u64, size: u64) -> Result<u64, Exception> {
        let sp = self.regs[RSP].wrapping_add(n * size) & self.stack_mask();
        self.load_sized(SS, sp, size)
    }

    /// The code segment that RETF or IRET goes back to, and whether it is at an outer level.
    fn return_segment(&mut self, selector: Selector) -> Result<(Segment, bool), Exception> {
        if selector.is_null() {
            return Err(Exception::GP0);
        }
        let fault = Exception::gp(selector.error_code());
        let rpl = selector.rpl();
        if rpl < self.cpl {
            return Err(fault);
        }
        let found = self.read_descriptor(selector, Vector::GeneralProtection, 0)?;
        let rights = found.descriptor.attributes();
        let level = if rights.is_conforming() { rights.dpl() <= rpl } else { rights.dpl() == rpl };
        if !rights.is_code() || !level {
            return Err(fault);
        }
        self.check_code(rights, selector)?;
        self.set_accessed(&found)?;
        Ok((found.descriptor.segment(selector), rpl > self.cpl))
    }

    /// The stack segment that a return to `cs` at privilege level `cpl` loads.
    fn return_stack(&mut self, selector: Selector, cs: &Segment, cpl: u8) -> Result<Segment, Exception> {
        let long = self.long_mode() && cs.attributes.long();
        if selector.is_null() && long && cpl != 3 && selector.rpl() == cpl {
            return Ok(null_stack(selector, cpl));
        }
        if selector.is_null() {
            return Err(Exception::GP0);
        }
        self.checked_stack_segment(selector, cpl, Vector::GeneralProtection, 0)
    }

    /// Data segments that the outer level may not use become null (APM vol. 3, RET far).
    fn drop_private_segments(&mut self) {
        for register in [ES, DS, FS, GS] {
            let segment = &mut self.seg[register];
            let rights = segment.attributes;
            if !segment.selector.is_null() && !rights.is_conforming() && rights.dpl() < self.cpl {
                // The base stays, as it does when 64-bit code loads a null selector by other ways.
                *segment = Segment { base: segment.base, ..Segment::default() };
            }
        }
        self.update_mode();
    }

    /// Loads SS:rSP on a return to an outer level (or by IRETQ). CS must be loaded first; the mode is derived here.
    fn set_outer_stack(&mut self, stack: Segment, sp: u64) {
        self.seg[SS] = stack;
        self.update_mode();
        if self.code_size == CodeSize::Bits64 {
            self.regs[RSP] = sp;
        } else if stack.attributes.big() {
            self.regs[RSP] = sp & 0xffff_ffff;
        } else {
            self.regs[RSP] = self.regs[RSP] & !0xffff | sp & 0xffff;
        }
    }

    fn far_return(&mut self, size: u64, release: u64) -> Result<Flow, Exception> {
        let offset = self.peek(0, size)?;
        let selector = Selector::from_bits(self.peek(1, size)? as u16);
        let after = self.regs[RSP].wrapping_add(2 * size).wrapping_add(release);
        if !self.protected() {
            let cs = self.real_segment(CS, selector);
            self.check_target(&cs, offset)?;
            self.set_stack_pointer(after);
            return Ok(self.enter(cs, offset));
        }
        let (cs, outer) = self.return_segment(selector)?;
        self.check_target(&cs, offset)?;
        if !outer {
            self.set_stack_pointer(after);
            return Ok(self.enter(cs, offset));
        }
        let cpl = selector.rpl();
        let stack_at = self.regs[RSP].wrapping_add(2 * size).wrapping_add(release);
        let mask = self.stack_mask();
        let sp = self.load_sized(SS, stack_at & mask, size)?;
        let ss = self.load_sized(SS, stack_at.wrapping_add(size) & mask, size)?;
        let stack = self.return_stack(Selector::from_bits(ss as u16), &cs, cpl)?;
        self.seg[CS] = cs;
        self.regs[RIP] = offset;
        self.set_outer_stack(stack, sp);
        self.set_stack_pointer(self.stack_pointer().wrapping_add(release));
        self.drop_private_segments();
        Ok(Flow::Jump)
    }

    /// IRET with operands of `size` bytes; `next` is the address of the next instruction.
    fn interrupt_return(&mut self, size: u64, next: u64) -> Result<Flow, Exception> {
        // NMIs are let through again even if what follows faults (SDM vol. 3A, 6.7.1).
        self.nmi_blocked = false;
        if self.system_flags.virtual_8086() && self.system_flags.iopl() < 3 {
            return Err(Exception::GP0);
        }
        if self.protected() && self.system_flags.nested_task() {
            if self.long_mode() {
                return Err(Exception::GP0);
            }
            let link: u16 = self.read_system(self.system_address(self.tr.base))?;
            return self.switch_task(Selector::from_bits(link), Cause::Return, next, self.rflags().into_bits());
        }
        let offset = self.peek(0, size)?;
        let selector = Selector::from_bits(self.peek(1, size)? as u16);
        let flags = self.peek(2, size)?;
        if !self.protected() {
            let cs = self.real_segment(CS, selector);
            self.check_target(&cs, offset)?;
            self.set_stack_pointer(self.regs[RSP].wrapping_add(3 * size));
            self.seg[CS] = cs;
            self.regs[RIP] = offset;
            let v86 = self.system_flags.virtual_8086();
            self.return_flags(flags, size, if v86 { 3 } else { 0 }, v86);
            return Ok(Flow::Jump);
        }
        if size == 4 && Rflags::from_bits(flags).virtual_8086() && self.cpl == 0 && !self.long_mode() {
            return self.return_to_virtual_8086(offset, selector, flags);
        }
        let (cs, outer) = self.return_segment(selector)?;
        self.check_target(&cs, offset)?;
        let old_cpl = self.cpl;
        // In 64-bit mode SS:RSP is popped whether the level changes or not.
        if outer || self.code_size == CodeSize::Bits64 {
            let sp = self.peek(3, size)?;
            let selector_ss = Selector::from_bits(self.peek(4, size)? as u16);
            let stack = self.return_stack(selector_ss, &cs, selector.rpl())?;
            self.seg[CS] = cs;
            self.regs[RIP] = offset;
            self.set_outer_stack(stack, sp);
        } else {
            self.set_stack_pointer(self.regs[RSP].wrapping_add(3 * size));
            self.enter(cs, offset);
        }
        self.return_flags(flags, size, old_cpl, false);
        if outer {
            self.drop_private_segments();
        }
        Ok(Flow::Jump)
    }

    /// Writes the flags that IRET at privilege level `cpl` may change.
    fn return_flags(&mut self, flags: u64, size: u64, cpl: u8, v86: bool) {
        let iopl = self.system_flags.iopl();
        let mut mask = Rflags::from_bits(Rflags::STATUS)
            .with_trap(true)
            .with_direction(true)
            .with_nested_task(true)
            .with_resume(true)
            .with_alignment_check(true)
            .with_id(true);
        if cpl <= iopl || v86 {
            mask.set_interrupt(true);
        }
        if cpl == 0 && !v86 {
            mask = mask.with_iopl(3).with_virtual_interrupt(true).with_virtual_interrupt_pending(true);
        }
        let width = if size == 2 { 0xffff } else { 0xffff_ffff };
        self.set_rflags(flags, mask.into_bits() & width & !2);
        self.update_mode();
    }

    fn return_to_virtual_8086(&mut self, offset: u64, cs: Selector, flags: u64) -> Result<Flow, Exception> {
        let mut values = [0u64; 6];
        for (n, value) in (3..).zip(&mut values) {
            *value = self.peek(n, 4)?;
        }
        let [sp, ss, es, ds, fs, gs] = values;
        let all = Rflags::STATUS | 0x0037_7f00 | 1 << 17;
        self.system_flags = Rflags::from_bits(flags & all);
        self.status = flags;
        for (register, bits) in [(ES, es), (SS, ss), (DS, ds), (FS, fs), (GS, gs)] {
            self.seg[register] = self.real_segment(register, Selector::from_bits(bits as u16));
        }
        self.regs[RSP] = sp;
        let cs = self.real_segment(CS, cs);
        Ok(self.enter(cs, offset & 0xffff))
    }
}

/// Operand size of an indirect far transfer, by its code.
fn indirect_size(i: &Instruction) -> u64 {
    match i.code() {
        Code::Jmp_m1616 | Code::Call_m1616 => 2,
        Code::Jmp_m1632 | Code::Call_m1632 => 4,
        _ => 8,
    }
}

fn transfer(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let kind = if i.mnemonic() == Mnemonic::Call { Kind::Call } else { Kind::Jump };
    let (size, target) = match i.op0_kind() {
        OpKind::FarBranch16 => {
            (2, Pointer { selector: Selector::from_bits(i.far_branch_selector()), offset: u64::from(i.far_branch16()) })
        }
        OpKind::FarBranch32 => {
            (4, Pointer { selector: Selector::from_bits(i.far_branch_selector()), offset: u64::from(i.far_branch32()) })
        }
        _ => {
            let size = indirect_size(i);
            let (seg, ea) = cpu.effective_address(i);
            let offset = cpu.load_sized(seg, ea, size)?;
            let selector: u16 = cpu.load(seg, ea.wrapping_add(size))?;
            (size, Pointer { selector: Selector::from_bits(selector), offset })
        }
    };
    let next = cpu.next_rip(i);
    cpu.far_transfer(kind, target, size, next)
}

fn return_far(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let size = match i.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    let release = if i.op_count() == 0 { 0 } else { u64::from(i.immediate16()) };
    cpu.far_return(size, release)
}

fn iret(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let size = match i.code() {
        Code::Iretw => 2,
        Code::Iretd => 4,
        _ => 8,
    };
    let next = cpu.next_rip(i);
    cpu.interrupt_return(size, next)
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Slow> {
    Some(match i.mnemonic() {
        Mnemonic::Jmp if i.is_jmp_far() || i.is_jmp_far_indirect() => transfer,
        Mnemonic::Call if i.is_call_far() || i.is_call_far_indirect() => transfer,
        Mnemonic::Retf => return_far,
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => iret,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
