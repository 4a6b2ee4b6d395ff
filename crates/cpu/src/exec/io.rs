//! IN and OUT, and the permission to use a port (APM vol. 2, 12.2.4). INS and OUTS are in `strings`.

use super::{Flow, Slow};
use crate::Cpu;
use crate::exec::segment::system_type;
use crate::state::{RAX, RDX};
use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::Exception;

impl Cpu {
    /// Whether the current code may access `size` bytes of ports from `port`: by IOPL, else by the TSS's permission
    /// bitmap. Also notes I/O breakpoints.
    ///
    /// Errors: #GP(0).
    pub fn check_io(&mut self, port: u16, size: u64) -> Result<(), Exception> {
        if self.careful {
            self.note_io_access(port, size);
        }
        let trusted = self.protected() && self.cpl <= self.system_flags.iopl();
        if trusted || !self.cr0.protection() {
            return Ok(());
        }
        let kind = self.tr.attributes.kind();
        let limit = u64::from(self.tr.limit);
        if !matches!(kind, system_type::TSS_AVAILABLE | system_type::TSS_BUSY) || limit < 0x67 {
            return Err(Exception::GP0);
        }
        let base: u16 = self.read_system(self.system_address(self.tr.base.wrapping_add(0x66)))?;
        let first = u64::from(base) + u64::from(port >> 3);
        // Two bytes are always read, so the byte after the last port's must lie within the limit.
        if first + 1 > limit {
            return Err(Exception::GP0);
        }
        let bits: u16 = self.read_system(self.system_address(self.tr.base.wrapping_add(first)))?;
        let mask = ((1u16 << size) - 1) << (port & 7);
        if bits & mask != 0 { Err(Exception::GP0) } else { Ok(()) }
    }
}

/// The port operand: an immediate byte or DX.
fn port(cpu: &Cpu, i: &Instruction, n: u32) -> u16 {
    if i.op_kind(n) == OpKind::Register { cpu.regs[RDX] as u16 } else { u16::from(i.immediate8()) }
}

fn read(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let (port, register) = (port(cpu, i, 1), i.op0_register());
    cpu.check_io(port, register.size() as u64)?;
    let value = cpu.ports.read(port, register.size());
    cpu.write_reg(register, u64::from(value));
    Ok(Flow::Next)
}

/// A port write may reset, power off or change an interrupt line: events are looked at right after it.
fn write(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let (port, size) = (port(cpu, i, 0), i.op1_register().size());
    cpu.check_io(port, size as u64)?;
    cpu.ports.write(port, size, cpu.regs[RAX] as u32);
    Ok(Flow::Break)
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Slow> {
    Some(match i.mnemonic() {
        Mnemonic::In => read,
        Mnemonic::Out => write,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
