//! Control and debug registers (APM vol. 2, 3.1 and 13.1; SDM vol. 3A, 2.5 and vol. 2B, MOV): MOV to and from CR0, CR2,
//! CR3, CR4, CR8 and DR0–DR7, CLTS, LMSW, SMSW, and the transitions into and out of long mode.
//!
//! Everything is checked before anything changes. Where the manuals differ (AMD ignores reserved bits of CR3, Intel raises
//! #GP) the stricter rule holds.

use super::{Flow, Slow};
use crate::Cpu;
use crate::cpuid::Feature;
use crate::debug::{DR6_BD, DR6_ONES, DR7_ONES};
use crate::state::CS;
use iced_x86::{Code, Instruction, OpKind, Register};
use memory::Gpa;
use x86::paging::TABLE_ADDRESS;
use x86::{Cr0, Cr4, Exception, Vector};

/// The defined bits of CR0; others are ignored in the low half.
const CR0_DEFINED: u64 = 0xe005_003f;
/// CR0.PG and what else makes a processor with PAE paging read the page-directory pointers again.
const CR0_RELOADS_PDPTES: u64 = 0xe000_0000;
/// Writable bits of DR6: B0–B3, BD, BS, BT.
const DR6_WRITABLE: u64 = 0xe00f;
/// Writable bits of DR7: enables, GD, conditions and lengths.
const DR7_WRITABLE: u64 = 0xffff_23ff;
/// DR7.GD: the next access to a debug register is #DB.
const DR7_GD: u64 = 1 << 13;
/// CR3 bit 63 in a MOV with CR4.PCIDE: keep the new PCID's translations.
const CR3_KEEP: u64 = 1 << 63;
/// CR3.LAM_U48 and CR3.LAM_U57: what user addresses may carry.
const CR3_LAM: u64 = 3 << 61;

impl Cpu {
    /// Writes CR0, entering or leaving paging and long mode.
    ///
    /// # Errors
    /// #GP(0) for a combination that the architecture forbids. Nothing has changed then.
    pub fn set_cr0(&mut self, value: u64) -> Result<(), Exception> {
        let new = Cr0::from_bits(value & CR0_DEFINED).with_extension_type(true);
        let old = self.cr0;
        if value >> 32 != 0 || (new.paging() && !new.protection()) || (new.not_write_through() && !new.cache_disable())
        {
            return Err(Exception::GP0);
        }
        let mut efer = self.efer;
        if new.paging() && !old.paging() {
            let to_long = efer.long_mode_enable();
            let pae = self.cr4.physical_address_extension();
            // LME needs PAE; a 64-bit code segment would switch to 64-bit mode in the middle of the instruction;
            // LA57 and PCIDE have no meaning elsewhere and cannot have been set.
            if to_long && (!pae || self.seg[CS].attributes.long()) {
                return Err(Exception::GP0);
            }
            efer.set_long_mode_active(to_long);
        } else if !new.paging() && old.paging() {
            if self.in_64_bit_mode() || self.cr4.pcid() {
                return Err(Exception::GP0);
            }
            efer.set_long_mode_active(false);
        }
        let saved = (self.cr0, self.efer);
        (self.cr0, self.efer) = (new, efer);
        let reload = (old.into_bits() ^ new.into_bits()) & CR0_RELOADS_PDPTES != 0;
        if let Err(exception) = self.paging_changed(reload) {
            (self.cr0, self.efer) = saved;
            self.update_paging();
            return Err(exception);
        }
        self.update_mode();
        Ok(())
    }

    /// Writes CR3.
    ///
    /// # Errors
    /// #GP(0) for address bits beyond the physical width (in long mode), or reserved bits in PAE's page-directory pointers.
    pub fn set_cr3(&mut self, value: u64) -> Result<(), Exception> {
        let keep = self.cr4.pcid() && value & CR3_KEEP != 0;
        let value = if self.cr4.pcid() { value & !CR3_KEEP } else { value };
        let lam = if self.model.has(Feature::LAM) { CR3_LAM } else { 0 };
        if self.long_mode() && (value & !lam) >> self.model.physical_bits() != 0 {
            return Err(Exception::GP0);
        }
        self.mmu.load_cr3(value, keep).map_err(|()| Exception::GP0)?;
        self.cr3 = value;
        self.mmu.report_pdptes(self.origin());
        if let Some(witness) = self.mmu.map().witness().get() {
            witness.switched(self.id, Gpa(value & TABLE_ADDRESS));
        }
        Ok(())
    }

    /// Writes CR4.
    ///
    /// # Errors
    /// #GP(0) for bits that the CPU model does not have, and for combinations that the architecture forbids.
    /// Nothing has changed then.
    pub fn set_cr4(&mut self, value: u64) -> Result<(), Exception> {
        let (old, new) = (self.cr4, Cr4::from_bits(value));
        let changed = Cr4::from_bits(old.into_bits() ^ value);
        let long = self.long_mode();
        let pcid_on = changed.pcid() && new.pcid();
        if value & !self.model.cr4_supported().into_bits() != 0
            || (long && !new.physical_address_extension())
            || (long && changed.la57())
            || (pcid_on && (!long || self.cr3 & 0xfff != 0))
        {
            return Err(Exception::GP0);
        }
        self.cr4 = new;
        let reload = changed.physical_address_extension()
            || changed.page_size_extensions()
            || changed.global_pages()
            || changed.smep();
        if let Err(exception) = self.paging_changed(reload) {
            self.cr4 = old;
            self.update_paging();
            return Err(exception);
        }
        // DE decides what a breakpoint condition means.
        self.update_mode();
        Ok(())
    }

    /// Tells the MMU of new paging controls; `reload`: PAE paging reads its page-directory pointers again.
    fn paging_changed(&mut self, reload: bool) -> Result<(), Exception> {
        self.update_paging();
        let pae = self.cr0.paging() && self.cr4.physical_address_extension() && !self.long_mode();
        if reload && pae {
            self.mmu.load_cr3(self.cr3, false).map_err(|()| Exception::GP0)?;
        }
        Ok(())
    }

    /// Reads a control register.
    ///
    /// # Errors
    /// #UD for one that does not exist.
    fn control_register(&self, register: Register) -> Result<u64, Exception> {
        Ok(match register {
            Register::CR0 => self.cr0.into_bits(),
            Register::CR2 => self.cr2,
            Register::CR3 => self.cr3,
            Register::CR4 => self.cr4.into_bits(),
            Register::CR8 => u64::from(self.apic.task_priority() & 15),
            _ => return Err(Exception::UNDEFINED),
        })
    }

    /// What a MOV to or from a debug register may do: CPL 0, no general detect; DR4 and DR5 stand for DR6 and DR7 unless
    /// CR4.DE forbids it. Gives the index into [`Cpu::dr`].
    fn debug_register(&mut self, register: Register) -> Result<usize, Exception> {
        let number = register.number();
        let index = match number {
            4 | 5 if self.cr4.debugging_extensions() => return Err(Exception::UNDEFINED),
            4 | 5 => number + 2,
            0..=7 => number,
            _ => return Err(Exception::UNDEFINED),
        };
        if self.cpl != 0 {
            return Err(Exception::GP0);
        }
        if self.dr[7] & DR7_GD != 0 {
            self.dr[6] = self.dr[6] & !0xf | DR6_BD;
            return Err(Exception::plain(Vector::Debug));
        }
        Ok(index)
    }

    /// Writes DR0–DR3, DR6 or DR7 (by index into [`Cpu::dr`]), with its fixed bits.
    pub fn set_debug_register(&mut self, index: usize, value: u64) {
        self.dr[index & 7] = match index {
            6 => value & DR6_WRITABLE | DR6_ONES,
            7 => value & DR7_WRITABLE | DR7_ONES,
            _ => value,
        };
        self.update_mode();
    }
}

fn require_cpl0(cpu: &Cpu) -> Result<(), Exception> {
    if cpu.cpl == 0 { Ok(()) } else { Err(Exception::GP0) }
}

fn mov_from_cr(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let value = cpu.control_register(i.op1_register())?;
    require_cpl0(cpu)?;
    cpu.write_reg(i.op0_register(), value);
    Ok(Flow::Next)
}

fn mov_to_cr(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let register = i.op0_register();
    cpu.control_register(register)?;
    require_cpl0(cpu)?;
    let value = cpu.read_reg(i.op1_register());
    match register {
        Register::CR0 => cpu.set_cr0(value)?,
        Register::CR2 => cpu.cr2 = value,
        Register::CR3 => cpu.set_cr3(value)?,
        Register::CR4 => cpu.set_cr4(value)?,
        _ if value > 15 => return Err(Exception::GP0),
        _ => cpu.apic.set_task_priority(value as u8),
    }
    Ok(Flow::Break)
}

fn mov_from_dr(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let index = cpu.debug_register(i.op1_register())?;
    cpu.write_reg(i.op0_register(), cpu.dr[index & 7]);
    Ok(Flow::Next)
}

fn mov_to_dr(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let index = cpu.debug_register(i.op0_register())?;
    let value = cpu.read_reg(i.op1_register());
    if index >= 6 && value >> 32 != 0 {
        return Err(Exception::GP0);
    }
    cpu.set_debug_register(index, value);
    Ok(Flow::Break)
}

fn clts(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    require_cpl0(cpu)?;
    cpu.cr0.set_task_switched(false);
    Ok(Flow::Break)
}

/// LMSW writes the low four bits of CR0, and cannot clear PE.
fn lmsw(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    require_cpl0(cpu)?;
    let word = cpu.read_operand(i, 0, 2)?;
    let old = cpu.cr0.into_bits();
    cpu.set_cr0(old & !0xe | word & 0xf | old & 1)?;
    Ok(Flow::Break)
}

/// SMSW stores CR0: all that fits a register, 16 bits to memory.
fn smsw(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    if cpu.cr4.umip() && cpu.cpl != 0 {
        return Err(Exception::GP0);
    }
    let size = if i.op0_kind() == OpKind::Register { i.op0_register().size() as u64 } else { 2 };
    cpu.write_operand(i, 0, size, cpu.cr0.into_bits())?;
    Ok(Flow::Next)
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Slow> {
    Some(match i.code() {
        Code::Mov_r32_cr | Code::Mov_r64_cr => mov_from_cr,
        Code::Mov_cr_r32 | Code::Mov_cr_r64 => mov_to_cr,
        Code::Mov_r32_dr | Code::Mov_r64_dr => mov_from_dr,
        Code::Mov_dr_r32 | Code::Mov_dr_r64 => mov_to_dr,
        Code::Clts => clts,
        Code::Lmsw_rm16 | Code::Lmsw_r32m16 | Code::Lmsw_r64m16 => lmsw,
        Code::Smsw_rm16 | Code::Smsw_r32m16 | Code::Smsw_r64m16 => smsw,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
