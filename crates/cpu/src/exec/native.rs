//! Instructions that the host executes for the guest: SSE to AVX2, MMX, x87, BMI, ADX and the like.
//!
//! Here is what surrounds the instruction: whether it may be executed now (SDM vol. 3A, table 13-1 and 2.5; APM vol. 2,
//! 11.2), its memory operand, its exceptions, and the x87 last-instruction pointers. The arithmetic is
//! `host::native`'s.
//!
//! Order of checks: #UD and #NM, then #MF, then alignment (#GP), then the operand's #SS, #GP and #PF, then the
//! instruction's own exceptions. A memory operand that is written is known to be writable before a register changes.
//!
//! With CR0.NE clear a pending x87 exception is #MF all the same: the FERR# pin and IRQ 13 are left out.

use crate::Cpu;
use crate::exec::{Flow, Slow};
use crate::state::{CS, CodeSize};
use host::native::{Fault, Needs, Stub, is_allowed};
use host::vector::{MXCSR_MISALIGNED, VectorState};
use iced_x86::{Instruction, Register};
use std::cell::Cell;
use x86::{Exception, Vector};

/// The handler of any instruction that may run on the host. To be asked after all other rooms, which know the special
/// cases.
#[must_use]
pub fn select(instruction: &Instruction) -> Option<Slow> {
    is_allowed(instruction).then_some(execute as Slow)
}

/// The same as the handler from [`select`] does, for a decoded instruction that keeps its stub: compiled when it
/// first runs, and again when it has gone stale. Start with a default one. This saves the look-up by operands.
pub fn run(cpu: &mut Cpu, instruction: &Instruction, kept: &Cell<Stub>) -> Result<Flow, Exception> {
    let mut stub = kept.get();
    if !cpu.engine.is_current(&stub) {
        stub = prepare(cpu, instruction)?;
        kept.set(stub);
    }
    run_current(cpu, instruction, &stub)
}

fn execute(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    let stub = prepare(cpu, instruction)?;
    run_current(cpu, instruction, &stub)
}

fn prepare(cpu: &mut Cpu, instruction: &Instruction) -> Result<Stub, Exception> {
    cpu.engine.prepare(instruction).map_err(|error| {
        tracing::debug!(target: "guest_errors", "{:?}: {error}", instruction.code());
        Exception::UNDEFINED
    })
}

/// Raises what the control registers demand before an instruction with these needs.
pub fn check(cpu: &Cpu, needs: Needs) -> Result<(), Exception> {
    if needs.contains(Needs::VEX) && !cpu.protected() {
        return Err(Exception::UNDEFINED);
    }
    if needs.contains(Needs::AVX) {
        if !cpu.cr4.os_xsave() || !cpu.xcr0.sse() || !cpu.xcr0.avx() {
            return Err(Exception::UNDEFINED);
        }
    } else if needs.intersects(Needs::SSE | Needs::MMX) {
        if cpu.cr0.emulation() || (needs.contains(Needs::SSE) && !cpu.cr4.os_fxsr()) {
            return Err(Exception::UNDEFINED);
        }
    } else if !needs.contains(Needs::X87) {
        return Ok(());
    } else if cpu.cr0.emulation() {
        return Err(Exception::NO_FPU);
    }
    if cpu.cr0.task_switched() {
        return Err(Exception::NO_FPU);
    }
    if needs.intersects(Needs::X87 | Needs::MMX) && cpu.vector.x87_pending() {
        return Err(Exception::plain(Vector::X87));
    }
    Ok(())
}

fn run_current(cpu: &mut Cpu, instruction: &Instruction, stub: &Stub) -> Result<Flow, Exception> {
    let needs = stub.needs();
    check(cpu, needs)?;
    let size = stub.size();
    if size == 0 {
        run_stub(cpu, stub, 0)?;
        if needs.contains(Needs::X87) {
            record_x87(cpu, instruction, stub, None);
        }
        return Ok(Flow::Next);
    }
    let (seg, ea) = cpu.effective_address(instruction);
    let mut linear = ea.wrapping_add(cpu.seg_base[seg & 7]);
    let alignment = stub.alignment();
    if needs.contains(Needs::SSE) && !needs.contains(Needs::ALIGNED_MOVE) && cpu.vector.mxcsr & MXCSR_MISALIGNED != 0 {
        // AMD's misaligned SSE mode: the host is shown an aligned operand.
        linear = 0;
    } else if alignment != 0 && linear & (alignment - 1) != 0 {
        return Err(Exception::GP0);
    }
    if needs.contains(Needs::READ) {
        load(cpu, seg, ea, size, linear)?;
    }
    if needs.contains(Needs::PROBE) {
        cpu.probe(seg, ea, size as u64, true)?;
    }
    run_stub(cpu, stub, linear)?;
    // An x87 store whose unmasked exception is other than #P has stored nothing.
    let stored = !needs.contains(Needs::X87) || cpu.vector.fsw() & !cpu.vector.fcw() & 0x1f == 0;
    if needs.contains(Needs::WRITE) && stored {
        store(cpu, seg, ea, size, linear)?;
    }
    if needs.contains(Needs::X87) && !needs.contains(Needs::CONTROL) {
        record_x87(cpu, instruction, stub, Some((seg, ea)));
    }
    Ok(Flow::Next)
}

fn run_stub(cpu: &mut Cpu, stub: &Stub, linear: u64) -> Result<(), Exception> {
    let result = cpu.engine.run(stub, &mut cpu.regs, &mut cpu.status, &mut cpu.vector, linear);
    result.map_err(|fault| match fault {
        Fault::Simd if cpu.cr4.os_simd_exceptions() => Exception::plain(Vector::Simd),
        Fault::Simd | Fault::Undefined | Fault::Stale => Exception::UNDEFINED,
        Fault::X87 => Exception::plain(Vector::X87),
        Fault::Protection => Exception::GP0,
    })
}

/// Loads the memory operand to where the stub finds it.
fn load(cpu: &mut Cpu, seg: usize, ea: u64, size: usize, linear: u64) -> Result<(), Exception> {
    /// Puts a value at the start of the operand.
    fn put<const N: usize>(cpu: &mut Cpu, linear: u64, bytes: [u8; N]) {
        if let Some(place) = cpu.engine.operand(linear).first_chunk_mut() {
            *place = bytes;
        }
    }
    match size {
        16 => {
            let value: u128 = cpu.load(seg, ea)?;
            put(cpu, linear, value.to_le_bytes());
        }
        8 => {
            let value: u64 = cpu.load(seg, ea)?;
            put(cpu, linear, value.to_le_bytes());
        }
        4 => {
            let value: u32 = cpu.load(seg, ea)?;
            put(cpu, linear, value.to_le_bytes());
        }
        2 => {
            let value: u16 = cpu.load(seg, ea)?;
            put(cpu, linear, value.to_le_bytes());
        }
        1 => {
            let value: u8 = cpu.load(seg, ea)?;
            put(cpu, linear, [value]);
        }
        _ => {
            let mut bytes = [0; 64];
            let bytes = bytes.get_mut(..size).ok_or(Exception::UNDEFINED)?;
            cpu.load_bytes(seg, ea, bytes)?;
            if let Some(place) = cpu.engine.operand(linear).get_mut(..size) {
                place.copy_from_slice(bytes);
            }
        }
    }
    Ok(())
}

/// Stores what the stub wrote to its memory operand.
fn store(cpu: &mut Cpu, seg: usize, ea: u64, size: usize, linear: u64) -> Result<(), Exception> {
    let bytes = *cpu.engine.operand(linear);
    /// The first bytes of the operand.
    fn take<const N: usize>(bytes: &[u8; 64]) -> [u8; N] {
        bytes.first_chunk().copied().unwrap_or([0; N])
    }
    match size {
        16 => cpu.store(seg, ea, u128::from_le_bytes(take(&bytes))),
        8 => cpu.store(seg, ea, u64::from_le_bytes(take(&bytes))),
        4 => cpu.store(seg, ea, u32::from_le_bytes(take(&bytes))),
        2 => cpu.store(seg, ea, u16::from_le_bytes(take(&bytes))),
        1 => cpu.store(seg, ea, bytes[0]),
        _ => cpu.store_bytes(seg, ea, bytes.get(..size).ok_or(Exception::UNDEFINED)?),
    }
}

/// Notes a completed non-control x87 instruction in FOP, FIP and FDP. Outside 64-bit mode the selectors go with the
/// offsets, as the 32-bit FXSAVE format has them. FDP stays when there is no memory operand.
fn record_x87(cpu: &mut Cpu, instruction: &Instruction, stub: &Stub, operand: Option<(usize, u64)>) {
    let flat = cpu.code_size == CodeSize::Bits64;
    let pointer = |cpu: &Cpu, seg: usize, offset: u64| {
        let selector = u64::from(cpu.seg[seg % 6].selector.into_bits());
        if flat { offset } else { selector << 32 | (offset & 0xffff_ffff) }
    };
    let fip = pointer(cpu, CS, cpu.rip());
    let fdp = operand.map_or(cpu.vector.fdp(), |(seg, ea)| pointer(cpu, seg, ea));
    let mode = if operand.is_some() { addressing_mode(instruction) } else { 0 };
    cpu.vector.set_x87_pointers((stub.x87_opcode() | mode, fip, fdp));
}

/// The mod and rm fields of an instruction with a memory operand, from the operand as it was decoded.
fn addressing_mode(instruction: &Instruction) -> u16 {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let displacement = instruction.memory_displ_size();
    let word = base.size() == 2 || index.size() == 2 || (displacement == 2 && base == Register::None);
    let rm = match (base, index) {
        (Register::BX, Register::SI) => 0,
        (Register::BX, Register::DI) => 1,
        (Register::BP, Register::SI) => 2,
        (Register::BP, Register::DI) => 3,
        (Register::SI, _) => 4,
        (Register::DI, _) => 5,
        (Register::BP, _) => 6,
        (Register::BX, _) => 7,
        (Register::None, Register::None) if word => 6,
        // A displacement alone: in 64-bit mode it takes an SIB byte, as the plain form is relative to RIP.
        (Register::None, Register::None) => {
            if displacement == 8 {
                4
            } else {
                5
            }
        }
        (Register::RIP | Register::EIP, _) => 5,
        (_, index) if index != Register::None => 4,
        (base, _) => u16::try_from(base.number() & 7).unwrap_or(0),
    };
    let mode = match displacement {
        _ if base == Register::None || base.is_ip() => 0,
        0 => 0,
        1 => 1,
        _ => 2,
    };
    mode << 6 | rm
}

/// #UD, #NM or #MF for an instruction that uses the x87 unit but does not run on the host. `waits`: it raises
/// pending exceptions (the FN… forms do not).
pub fn check_x87(cpu: &Cpu, waits: bool) -> Result<(), Exception> {
    if cpu.cr0.emulation() || cpu.cr0.task_switched() {
        return Err(Exception::NO_FPU);
    }
    if waits && cpu.vector.x87_pending() { Err(Exception::plain(Vector::X87)) } else { Ok(()) }
}

/// Zeroes bits 255:128 of a YMM register, as every VEX instruction does with an XMM destination.
pub fn clear_high(vector: &mut VectorState, register: usize) {
    vector.set_ymm_high(register, 0);
}

#[cfg(test)]
mod machine_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::Decoder;

    fn modrm(bitness: u32, bytes: &[u8]) -> u16 {
        addressing_mode(&Decoder::new(bitness, bytes, 0).decode())
    }

    /// The second byte of each of these (FLD m32) is the ModRM byte that is to be found again, reg being 0.
    #[test]
    fn addressing_mode_is_that_of_the_encoding() {
        let wide: [&[u8]; 8] = [
            &[0xd9, 0x00],
            &[0xd9, 0x41, 0x10],
            &[0xd9, 0x82, 0, 0, 1, 0],
            &[0xd9, 0x04, 0x24],
            &[0xd9, 0x44, 0x8b, 0x08],
            &[0xd9, 0x84, 0xcd, 0, 0, 1, 0],
            &[0xd9, 0x45, 0x00],
            &[0xd9, 0x05, 0, 0, 1, 0],
        ];
        for bytes in wide {
            assert_eq!(modrm(64, bytes), u16::from(bytes[1]), "{bytes:x?}");
            assert_eq!(modrm(32, bytes), u16::from(bytes[1]), "{bytes:x?}");
        }
        assert_eq!(modrm(64, &[0xd9, 0x04, 0x25, 0, 0, 1, 0]), 4);
        for rm in 0..8 {
            for mode in 0..3 {
                let byte = mode << 6 | rm;
                assert_eq!(modrm(16, &[0xd9, byte, 0x12, 0x34]), u16::from(byte), "{byte:x}");
            }
        }
    }
}
