//! A stack that is written before it becomes the current one: interrupt frames and call gates.
//!
//! Nothing of the vCPU changes while a frame is pushed, so a fault in the middle leaves the state as it was.

use crate::Cpu;
use crate::state::{RSP, SS};
use memory::{Gva, Space};
use x86::{Exception, Segment, Vector};

/// A stack to push on, with the rights of the level that will own it.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// SS as it will be.
    pub segment: Segment,
    /// Stack pointer as it will be.
    pub sp: u64,
    /// Bytes of an entry: 2, 4 or 8.
    size: u64,
    /// Mask of the stack pointer's width.
    mask: u64,
    space: Space,
    /// The error code of #SS where a push does not fit.
    code: u16,
}

impl Frame {
    /// A frame on `segment`:`sp` for privilege level `cpl`, with entries of `size` bytes; `flat` in 64-bit mode.
    #[must_use]
    pub fn new(cpu: &Cpu, segment: Segment, sp: u64, cpl: u8, size: u64, flat: bool, code: u16) -> Self {
        let mask = if flat {
            u64::MAX
        } else if segment.attributes.big() {
            0xffff_ffff
        } else {
            0xffff
        };
        let space = match (cpl, cpu.system_flags.alignment_check()) {
            (3, _) => Space::User,
            (_, true) => Space::KernelAc,
            _ => Space::Kernel,
        };
        Self { segment, sp: sp & mask, size, mask, space, code }
    }

    /// Pushes one entry.
    pub fn push(&mut self, cpu: &mut Cpu, value: u64) -> Result<(), Exception> {
        let sp = self.sp.wrapping_sub(self.size) & self.mask;
        let gva = if self.mask == u64::MAX {
            sp
        } else {
            let last = sp.wrapping_add(self.size - 1);
            let limit = u64::from(self.segment.limit);
            let inside =
                if self.segment.attributes.is_expand_down() { sp > limit && last <= self.mask } else { last <= limit };
            if !inside {
                return Err(Exception::coded(Vector::Stack, self.code));
            }
            self.segment.base.wrapping_add(sp) & 0xffff_ffff
        };
        let origin = cpu.origin();
        let (space, gva) = (self.space, Gva(gva));
        let written = match self.size {
            2 => cpu.mmu.write(origin, space, gva, value as u16),
            4 => cpu.mmu.write(origin, space, gva, value as u32),
            _ => cpu.mmu.write(origin, space, gva, value),
        };
        written.map_err(|fault| match cpu.memory_fault(fault, true) {
            Exception { vector: Vector::Stack, .. } => Exception::coded(Vector::Stack, self.code),
            other => other,
        })?;
        self.sp = sp;
        Ok(())
    }

    /// Makes this the current stack. The caller updates the mode.
    pub fn commit(&self, cpu: &mut Cpu) {
        cpu.seg[SS] = self.segment;
        let keep = if self.mask == 0xffff { cpu.regs[RSP] & !0xffff } else { 0 };
        cpu.regs[RSP] = keep | self.sp;
    }
}
