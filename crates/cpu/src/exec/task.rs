//! Task switches: far transfers to a TSS or through a task gate, events through a task gate, and IRET with NT set
//! (APM vol. 2, 12.3; SDM vol. 3A, 8.3). Not in long mode, which has none.
//!
//! Everything that can be checked in the old task is checked there, so that a fault leaves it as it was. What is wrong
//! with the new task's segments is found when it is the current one, and its first instruction's fault.

use super::Flow;
use super::frame::Frame;
use super::segment::{Found, system_type};
use crate::Cpu;
use crate::debug::DR6_BT;
use crate::state::{CS, DS, ES, FS, GS, RIP, SS};
use memory::{Gva, Space};
use x86::{Descriptor, Exception, Rflags, Segment, Selector, Vector};

/// What makes the processor switch tasks: decides busy bits, NT and the link back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// JMP: the old task is left for good.
    Jump,
    /// CALL: the new task is nested in the old one.
    Call,
    /// IRET: back to the task that the old one is nested in.
    Return,
    /// An exception or interrupt.
    Event {
        /// Its error code.
        code: Option<u16>,
        /// EXT of the error codes that it may lead to.
        ext: u16,
    },
}

impl Cause {
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Event { .. })
    }

    fn ext(self) -> u16 {
        if let Self::Event { ext, .. } = self { ext } else { 0 }
    }
}

/// Flags that a TSS loads: all that are defined.
const FLAGS: u64 = Rflags::STATUS | 0x003f_7f02;
/// T of a 32-bit TSS: a debug trap before the task's first instruction.
const TRAP: u64 = 0x64;
/// CR3 of a 32-bit TSS.
const CR3: u64 = 0x1c;

/// Where a TSS keeps what: from `first` on, in entries of `size` bytes, the instruction pointer, the flags, eight general
/// registers, `segments` selectors and the LDT's.
#[derive(Clone, Copy, Debug)]
struct Layout {
    size: u64,
    first: u64,
    segments: usize,
    /// The lowest limit that holds it.
    limit: u32,
}

/// Entries before the segment registers.
const SEGMENTS: u64 = 10;
/// Segment registers in the order of their entries.
const ORDER: [usize; 6] = [ES, CS, SS, DS, FS, GS];

impl Layout {
    fn of(kind: u8) -> Self {
        if kind & 8 == 0 {
            Self { size: 2, first: 0xe, segments: 4, limit: 0x2b }
        } else {
            Self { size: 4, first: 0x20, segments: 6, limit: 0x67 }
        }
    }

    fn at(self, entry: u64) -> u64 {
        self.first + entry * self.size
    }

    /// Where what changes in a task ends: before the LDT's selector.
    fn end(self) -> u64 {
        self.at(SEGMENTS + self.segments as u64)
    }
}

/// What a TSS says of its task.
#[derive(Clone, Copy, Debug, Default)]
struct Saved {
    cr3: Option<u64>,
    ip: u64,
    flags: u64,
    regs: [u64; 8],
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Cpu {
    /// Switches to the task that a TSS descriptor or a task gate names; `next` and `flags` are what the old task will go
    /// on with.
    ///
    /// # Errors
    /// What the manuals say. The old task is still the current one unless the new one's own state is to blame.
    pub fn switch_task(&mut self, selector: Selector, cause: Cause, next: u64, flags: u64) -> Result<Flow, Exception> {
        let found = self.task_descriptor(selector, cause)?;
        let rights = found.descriptor.attributes();
        let layout = Layout::of(rights.kind());
        let ts = |selector: Selector| Exception::coded(Vector::InvalidTss, selector.error_code() | cause.ext());
        if found.descriptor.limit() < layout.limit {
            return Err(ts(selector));
        }
        let old = self.tr;
        let old_layout = Layout::of(old.attributes.kind());
        if u64::from(old.limit) < old_layout.end() - 1 {
            return Err(ts(old.selector));
        }
        let new_base = u64::from(found.descriptor.base());
        self.probe_system(new_base, u64::from(layout.limit) + 1, cause.nests())?;
        self.probe_system(old.base.wrapping_add(old_layout.first), old_layout.end() - old_layout.first, true)?;

        // From here on memory can be relied on.
        let flags =
            if cause == Cause::Return { flags & !Rflags::new().with_nested_task(true).into_bits() | 2 } else { flags };
        self.save_task(old.base, old_layout, next, flags)?;
        let mut saved = self.saved_task(new_base, layout)?;
        if cause.nests() {
            self.write_system(self.system_address(new_base), old.selector.into_bits())?;
            saved.flags |= Rflags::new().with_nested_task(true).into_bits();
        } else if old.selector != selector {
            self.set_busy(old.selector, false)?;
        }
        self.set_busy(selector, true)?;
        let busy = rights.with_kind(rights.kind() | 2);
        self.tr = Segment { attributes: busy, ..found.descriptor.segment(selector) };
        self.cr0.set_task_switched(true);
        self.enter_task(&saved, layout, cause)
    }

    /// The TSS descriptor of the task to switch to.
    fn task_descriptor(&mut self, selector: Selector, cause: Cause) -> Result<Found, Exception> {
        let vector = if cause == Cause::Return { Vector::InvalidTss } else { Vector::GeneralProtection };
        let fault = Exception::coded(vector, selector.error_code() | cause.ext());
        if selector.is_null() || selector.local() {
            return Err(fault);
        }
        let found = self.read_descriptor(selector, vector, cause.ext())?;
        let rights = found.descriptor.attributes();
        let fits = match rights.kind() {
            system_type::TSS_AVAILABLE | system_type::TSS16_AVAILABLE => cause != Cause::Return,
            system_type::TSS_BUSY | system_type::TSS16_BUSY => cause == Cause::Return,
            _ => false,
        };
        if rights.code_or_data() || !fits {
            return Err(fault);
        }
        if !rights.present() {
            return Err(Exception::coded(Vector::SegmentNotPresent, fault.code.unwrap_or(0)));
        }
        Ok(found)
    }

    /// Raises now what a later access to `len` bytes of a TSS would raise.
    fn probe_system(&mut self, base: u64, len: u64, write: bool) -> Result<(), Exception> {
        let (origin, gva) = (self.origin(), Gva(self.system_address(base)));
        self.mmu.probe(origin, Space::Kernel, gva, len, write).map_err(|fault| self.memory_fault(fault, false))
    }

    /// Sets or clears the busy bit of a TSS descriptor in the GDT.
    fn set_busy(&mut self, selector: Selector, busy: bool) -> Result<(), Exception> {
        let address = self.system_address(self.gdtr.base.wrapping_add(u64::from(selector.offset()) + 5));
        let access: u8 = self.read_system(address)?;
        self.write_system(address, if busy { access | 2 } else { access & !2 })
    }

    fn save_task(&mut self, base: u64, layout: Layout, ip: u64, flags: u64) -> Result<(), Exception> {
        let regs = self.regs;
        let selectors = ORDER.map(|register| u64::from(self.seg[register].selector.into_bits()));
        let values = [ip, flags].into_iter().chain(regs.into_iter().take(8)).chain(selectors);
        for (entry, value) in (0..SEGMENTS + layout.segments as u64).zip(values) {
            let at = self.system_address(base.wrapping_add(layout.at(entry)));
            match (layout.size, entry >= SEGMENTS) {
                (4, false) => self.write_system(at, value as u32)?,
                _ => self.write_system(at, value as u16)?,
            }
        }
        Ok(())
    }

    fn saved_task(&mut self, base: u64, layout: Layout) -> Result<Saved, Exception> {
        let at = |offset: u64| base.wrapping_add(offset) & 0xffff_ffff;
        let mut saved = Saved::default();
        let [mut ip, mut flags] = [0; 2];
        let wide = layout.size == 4;
        for (entry, slot) in (0..).zip([&mut ip, &mut flags].into_iter().chain(&mut saved.regs)) {
            let address = at(layout.at(entry));
            *slot =
                if wide { self.read_system::<u32>(address)?.into() } else { self.read_system::<u16>(address)?.into() };
        }
        for (entry, slot) in (SEGMENTS..).zip(saved.selectors.iter_mut().take(layout.segments)) {
            *slot = self.read_system(at(layout.at(entry)))?;
        }
        saved.ldt = self.read_system(at(layout.end()))?;
        if wide {
            saved.cr3 = Some(self.read_system::<u32>(at(CR3))?.into());
            saved.trap = self.read_system::<u16>(at(TRAP))? & 1 != 0;
        } else {
            // The upper halves are all ones, as processors with 32-bit registers have left them since the first.
            saved.regs = saved.regs.map(|value| value | 0xffff_0000);
        }
        Ok(Saved { ip, flags: flags & FLAGS, ..saved })
    }

    /// Makes the new task the current one: first all that needs no check, then its segments.
    fn enter_task(&mut self, saved: &Saved, layout: Layout, cause: Cause) -> Result<Flow, Exception> {
        self.regs[..8].copy_from_slice(&saved.regs);
        self.regs[RIP] = saved.ip;
        self.system_flags = Rflags::from_bits(saved.flags);
        self.status = saved.flags;
        // L0 to L3 and LE are the old task's.
        self.dr[7] &= !0x155;
        self.debug_pending = if saved.trap { DR6_BT } else { 0 };
        self.stepping = false;
        let v86 = self.system_flags.virtual_8086();
        let selectors = saved.selectors.map(Selector::from_bits);
        let cpl = if v86 { 3 } else { selectors[1].rpl() };
        // Until they are checked the segments cannot be used, and SS tells the privilege level.
        for (register, selector) in ORDER.into_iter().zip(selectors) {
            self.seg[register] =
                if v86 { self.real_segment(register, selector) } else { Segment { selector, ..Segment::default() } };
        }
        let rights = &mut self.seg[SS].attributes;
        *rights = rights.with_dpl(cpl);
        self.ldtr = Segment { selector: Selector::from_bits(saved.ldt), ..Segment::default() };
        self.update_mode();
        if let Some(cr3) = saved.cr3.filter(|_| self.cr0.paging()) {
            self.set_cr3(cr3)?;
        }
        self.ldtr = self.task_ldt(Selector::from_bits(saved.ldt), cause.ext())?;
        if !v86 {
            self.load_task_segments(selectors, cpl, cause.ext())?;
        }
        if saved.ip > u64::from(self.seg[CS].limit) {
            return Err(Exception::GP0);
        }
        if let Cause::Event { code: Some(code), ext } = cause {
            let mut frame = Frame::new(self, self.seg[SS], self.stack_pointer(), cpl, layout.size, false, ext);
            frame.push(self, code.into())?;
            frame.commit(self);
        }
        Ok(Flow::Jump)
    }

    fn task_ldt(&mut self, selector: Selector, ext: u16) -> Result<Segment, Exception> {
        if selector.is_null() {
            return Ok(Segment { selector, ..Segment::default() });
        }
        let fault = Exception::coded(Vector::InvalidTss, selector.error_code() | ext);
        if selector.local() {
            return Err(fault);
        }
        let Found { descriptor, .. } = self.read_descriptor(selector, Vector::InvalidTss, ext)?;
        let rights = descriptor.attributes();
        let good = !rights.code_or_data() && rights.kind() == system_type::LDT && rights.present();
        if good { Ok(descriptor.segment(selector)) } else { Err(fault) }
    }

    /// CS and SS first, as the others' rights depend on the privilege level.
    fn load_task_segments(&mut self, selectors: [Selector; 6], cpl: u8, ext: u16) -> Result<(), Exception> {
        let [es, cs, ss, ds, fs, gs] = selectors;
        self.seg[CS] = self.task_code(cs, ext)?;
        self.update_mode();
        self.seg[SS] = self.checked_stack_segment(ss, cpl, Vector::InvalidTss, ext)?;
        for (register, selector) in [(ES, es), (DS, ds), (FS, fs), (GS, gs)] {
            self.seg[register] = self.checked_data_segment(selector, Vector::InvalidTss, ext)?;
        }
        self.update_mode();
        Ok(())
    }

    fn task_code(&mut self, selector: Selector, ext: u16) -> Result<Segment, Exception> {
        let code = selector.error_code() | ext;
        let fault = Exception::coded(Vector::InvalidTss, code);
        if selector.is_null() {
            return Err(fault);
        }
        let found = self.read_descriptor(selector, Vector::InvalidTss, ext)?;
        let (rights, rpl) = (found.descriptor.attributes(), selector.rpl());
        let level = if rights.is_conforming() { rights.dpl() <= rpl } else { rights.dpl() == rpl };
        if !rights.is_code() || !level {
            return Err(fault);
        }
        if !rights.present() {
            return Err(Exception::coded(Vector::SegmentNotPresent, code));
        }
        self.set_accessed(&found)?;
        Ok(found.descriptor.segment(selector))
    }

    /// The task that a task gate leads to.
    ///
    /// # Errors
    /// #NP with `code` if the gate is not present.
    pub fn gate_task(gate: Descriptor, code: u16) -> Result<Selector, Exception> {
        if gate.attributes().present() {
            Ok(Selector::from_bits((gate.into_bits() >> 16) as u16))
        } else {
            Err(Exception::coded(Vector::SegmentNotPresent, code))
        }
    }
}

#[cfg(test)]
mod tests;
