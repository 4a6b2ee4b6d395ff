//! The task-state segment, as far as stack switches need it (APM vol. 2, 12.2). Task switches are in `exec::task`.

use crate::Cpu;
use crate::exec::segment::{null_stack, system_type};
use x86::{Exception, Segment, Selector, Vector};

impl Cpu {
    /// A stack pointer of the 64-bit TSS: RSP0–RSP2 for `slot` 0–2, IST1–IST7 for `slot` 4–10.
    ///
    /// Errors: #TS with the TSS selector beyond the TSS's limit; #SS for a non-canonical pointer.
    pub fn tss_stack64(&mut self, slot: u64, ext: u16) -> Result<u64, Exception> {
        let offset = 4 + slot * 8;
        if offset + 7 > u64::from(self.tr.limit) {
            return Err(Exception::coded(Vector::InvalidTss, self.tr.selector.error_code() | ext));
        }
        let rsp: u64 = self.read_system(self.tr.base.wrapping_add(offset))?;
        if !x86::is_canonical(rsp, self.mmu.virtual_bits()) {
            return Err(Exception::coded(Vector::Stack, ext));
        }
        Ok(rsp)
    }

    /// The inner stack for `cpl` from a 16- or 32-bit TSS: stack segment (checked) and pointer.
    ///
    /// Errors: #TS beyond the limit or for a bad stack selector; #SS if the stack segment is not present.
    pub fn tss_stack(&mut self, cpl: u8, ext: u16) -> Result<(Segment, u64), Exception> {
        let wide = matches!(self.tr.attributes.kind(), system_type::TSS_AVAILABLE | system_type::TSS_BUSY);
        let level = u64::from(cpl);
        let (offset, size) = if wide { (4 + level * 8, 8) } else { (2 + level * 4, 4) };
        if offset + size - 1 > u64::from(self.tr.limit) {
            return Err(Exception::coded(Vector::InvalidTss, self.tr.selector.error_code() | ext));
        }
        let address = self.system_address(self.tr.base.wrapping_add(offset));
        let (sp, selector) = if wide {
            (u64::from(self.read_system::<u32>(address)?), self.read_system::<u16>(address.wrapping_add(4))?)
        } else {
            (u64::from(self.read_system::<u16>(address)?), self.read_system::<u16>(address.wrapping_add(2))?)
        };
        let selector = Selector::from_bits(selector);
        let segment = self.checked_stack_segment(selector, cpl, Vector::InvalidTss, ext)?;
        Ok((segment, sp))
    }

    /// SS and RSP for a transfer in long mode to the more privileged `cpl`.
    pub fn inner_stack64(&mut self, cpl: u8, ext: u16) -> Result<(Segment, u64), Exception> {
        let rsp = self.tss_stack64(u64::from(cpl), ext)?;
        Ok((null_stack(Selector::from_bits(u16::from(cpl)), cpl), rsp))
    }
}
