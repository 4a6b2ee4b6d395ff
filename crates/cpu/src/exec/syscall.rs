//! Fast system calls (APM vol. 2, 6.1; APM vol. 3 and SDM vol. 2B, the instructions): SYSCALL, SYSRET, SYSENTER, SYSEXIT.
//!
//! The vendors differ, and the CPU model's vendor decides. AMD: SYSCALL also works outside 64-bit mode, SYSENTER and
//! SYSEXIT do not work in long mode, SYSRET does not look whether RCX is canonical (the fetch in user mode then faults).
//! Intel: SYSCALL and SYSRET only in 64-bit mode, SYSRET raises #GP(0) at CPL 0 for a non-canonical RCX.
//! One difference is left out: AMD's SYSRET keeps SS's hidden part; here it is loaded in full, as Intel's does.

use super::{Flow, Slow};
use crate::Cpu;
use crate::cpuid::Vendor;
use crate::debug::DR6_BS;
use crate::state::{CS, R11, RCX, RDX, RIP, RSP, SS};
use iced_x86::{Instruction, Mnemonic};
use x86::{Attributes, Exception, Segment, Selector, is_canonical};

/// RFLAGS bits that SYSRET takes from R11: all but RF and VM.
pub const SYSRET_FLAGS: u64 = 0x003c_7fd7;

/// The kind of code segment to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Bits32,
    Bits64,
}

impl Cpu {
    fn intel(&self) -> bool {
        self.model.vendor() == Vendor::Intel
    }

    /// Loads CS and SS with flat segments, as these instructions do without looking at any descriptor.
    fn load_flat(&mut self, code: u16, stack: u16, cpl: u8, width: Width) {
        [self.seg[CS], self.seg[SS]] = flat(code, stack, cpl, width);
        self.update_mode();
    }

    /// CS and SS as SYSCALL leaves them in 64-bit mode, and as SYSRET to 64-bit mode does.
    #[must_use]
    pub fn syscall_segments(&self) -> [[Segment; 2]; 2] {
        let (user, stack) = (self.star(48, 16) | 3, self.star(48, 8) | 3);
        [flat(self.star(32, 0) & !3, self.star(32, 8) & !3, 0, Width::Bits64), flat(user, stack, 3, Width::Bits64)]
    }

    /// SYSCALL and SYSRET: single step looks at TF as it is after the instruction.
    fn step_by_new_flags(&mut self) {
        self.stepping = false;
        if self.system_flags.trap() {
            self.debug_pending |= DR6_BS;
        }
    }

    /// A segment selector out of STAR.
    fn star(&self, shift: u32, add: u16) -> u16 {
        ((self.msrs.star >> shift) as u16).wrapping_add(add)
    }
}

/// CS and SS with these selectors.
fn flat(code: u16, stack: u16, cpl: u8, width: Width) -> [Segment; 2] {
    let rights = Attributes::new().with_code_or_data(true).with_present(true).with_dpl(cpl).with_granular(true);
    let flat = |selector: u16, attributes| Segment {
        base: 0,
        limit: u32::MAX,
        selector: Selector::from_bits(selector),
        attributes,
    };
    let code_rights = rights.with_kind(11).with_long(width == Width::Bits64).with_big(width == Width::Bits32);
    [flat(code, code_rights), flat(stack, rights.with_kind(3).with_big(true))]
}

fn require_syscall(cpu: &Cpu) -> Result<(), Exception> {
    let mode = if cpu.intel() { cpu.in_64_bit_mode() } else { cpu.protected() };
    if cpu.efer.syscall() && mode { Ok(()) } else { Err(Exception::UNDEFINED) }
}

fn syscall(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    require_syscall(cpu)?;
    let next = cpu.next_rip(i);
    let (code, stack) = (cpu.star(32, 0) & !3, cpu.star(32, 8) & !3);
    cpu.regs[RCX] = next;
    if cpu.long_mode() {
        let target = if cpu.in_64_bit_mode() { cpu.msrs.lstar } else { cpu.msrs.cstar };
        let flags = cpu.rflags().with_resume(false).into_bits();
        cpu.regs[R11] = flags;
        cpu.regs[RIP] = target;
        cpu.set_rflags(flags & !cpu.msrs.sfmask, u64::MAX);
        cpu.load_flat(code, stack, 0, Width::Bits64);
    } else {
        cpu.regs[RIP] = cpu.msrs.star & 0xffff_ffff;
        cpu.system_flags = cpu.rflags().with_interrupt(false).with_resume(false);
        cpu.load_flat(code, stack, 0, Width::Bits32);
    }
    cpu.step_by_new_flags();
    Ok(Flow::Jump)
}

fn sysret(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    require_syscall(cpu)?;
    if cpu.cpl != 0 {
        return Err(Exception::GP0);
    }
    let wide = i.mnemonic() == Mnemonic::Sysretq;
    let target = cpu.regs[RCX];
    if wide && cpu.intel() && !is_canonical(target, cpu.mmu.virtual_bits()) {
        return Err(Exception::GP0);
    }
    if cpu.long_mode() {
        cpu.set_rflags(cpu.regs[R11] & SYSRET_FLAGS, u64::MAX);
    } else {
        cpu.system_flags = cpu.rflags().with_interrupt(true);
    }
    let stack = cpu.star(48, 8) | 3;
    if wide {
        cpu.regs[RIP] = target;
        cpu.load_flat(cpu.star(48, 16) | 3, stack, 3, Width::Bits64);
    } else {
        cpu.regs[RIP] = target & 0xffff_ffff;
        cpu.load_flat(cpu.star(48, 0) | 3, stack, 3, Width::Bits32);
    }
    cpu.step_by_new_flags();
    Ok(Flow::Jump)
}

/// The selector that SYSENTER and SYSEXIT count from.
fn sysenter_base(cpu: &Cpu) -> Result<u16, Exception> {
    if cpu.long_mode() && !cpu.intel() {
        return Err(Exception::UNDEFINED);
    }
    let base = cpu.msrs.sysenter_cs as u16 & !3;
    if !cpu.cr0.protection() || base == 0 { Err(Exception::GP0) } else { Ok(base) }
}

fn sysenter(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    let base = sysenter_base(cpu)?;
    let long = cpu.long_mode();
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.system_flags = cpu.rflags().with_virtual_8086(false).with_interrupt(false).with_resume(false);
    cpu.regs[RSP] = cpu.msrs.sysenter_esp & mask;
    cpu.regs[RIP] = cpu.msrs.sysenter_eip & mask;
    cpu.load_flat(base, base.wrapping_add(8), 0, if long { Width::Bits64 } else { Width::Bits32 });
    Ok(Flow::Jump)
}

fn sysexit(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let base = sysenter_base(cpu)?;
    if cpu.cpl != 0 {
        return Err(Exception::GP0);
    }
    let (rip, rsp) = (cpu.regs[RDX], cpu.regs[RCX]);
    if i.mnemonic() == Mnemonic::Sysexitq {
        let bits = cpu.mmu.virtual_bits();
        if !is_canonical(rip, bits) || !is_canonical(rsp, bits) {
            return Err(Exception::GP0);
        }
        (cpu.regs[RIP], cpu.regs[RSP]) = (rip, rsp);
        cpu.load_flat(base.wrapping_add(32) | 3, base.wrapping_add(40) | 3, 3, Width::Bits64);
    } else {
        (cpu.regs[RIP], cpu.regs[RSP]) = (rip & 0xffff_ffff, rsp & 0xffff_ffff);
        cpu.load_flat(base.wrapping_add(16) | 3, base.wrapping_add(24) | 3, 3, Width::Bits32);
    }
    Ok(Flow::Jump)
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Slow> {
    Some(match i.mnemonic() {
        Mnemonic::Syscall => syscall,
        Mnemonic::Sysret | Mnemonic::Sysretq => sysret,
        Mnemonic::Sysenter => sysenter,
        Mnemonic::Sysexit | Mnemonic::Sysexitq => sysexit,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
