//! Vector instructions that access only some elements of their memory operand (SDM vol. 2; APM vol. 4): MASKMOVQ,
//! MASKMOVDQU, VMASKMOV, VPMASKMOV and the AVX2 gathers.
//!
//! Elements that are not selected are not accessed: they neither fault nor show in a trace. A store is checked whole
//! before its first element changes. A gather that faults keeps what it has gathered and clears the mask of those
//! elements, so that it goes on where it stopped when it is started again.

use super::{is_ymm, register};
use crate::Cpu;
use crate::exec::native::{check, clear_high};
use crate::exec::{Flow, Slow};
use crate::operand::address_mask;
use host::native::Needs;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86::Exception;

pub fn select(instruction: &Instruction) -> Option<Slow> {
    use Mnemonic as M;
    let to_memory = instruction.op0_kind() == OpKind::Memory;
    let handler: Slow = match instruction.mnemonic() {
        M::Maskmovq => mask_bytes_mmx,
        M::Maskmovdqu | M::Vmaskmovdqu => mask_bytes,
        M::Vmaskmovps | M::Vpmaskmovd if to_memory => mask_store::<4>,
        M::Vmaskmovpd | M::Vpmaskmovq if to_memory => mask_store::<8>,
        M::Vmaskmovps | M::Vpmaskmovd => mask_load::<4>,
        M::Vmaskmovpd | M::Vpmaskmovq => mask_load::<8>,
        M::Vgatherdps | M::Vpgatherdd => gather::<4, 4>,
        M::Vgatherdpd | M::Vpgatherdq => gather::<4, 8>,
        M::Vgatherqps | M::Vpgatherqd => gather::<8, 4>,
        M::Vgatherqpd | M::Vpgatherqq => gather::<8, 8>,
        _ => return None,
    };
    Some(handler)
}

/// Element `i` of `SIZE` bytes (4 or 8) of a register.
fn element<const SIZE: usize>(register: &[u64; 4], i: usize) -> u64 {
    match SIZE {
        4 => register[i / 2 % 4] >> (32 * (i % 2)) & 0xffff_ffff,
        _ => register[i % 4],
    }
}

fn set_element<const SIZE: usize>(register: &mut [u64; 4], i: usize, value: u64) {
    match SIZE {
        4 => {
            let shift = 32 * (i % 2);
            let word = &mut register[i / 2 % 4];
            *word = *word & !(0xffff_ffff << shift) | (value & 0xffff_ffff) << shift;
        }
        _ => register[i % 4] = value,
    }
}

/// Whether element `i` of a mask selects: its highest bit.
fn selects<const SIZE: usize>(mask: &[u64; 4], i: usize) -> bool {
    element::<SIZE>(mask, i) >> (8 * SIZE - 1) != 0
}

/// Sign-extends an index of `SIZE` bytes.
fn index<const SIZE: usize>(value: u64) -> u64 {
    if SIZE == 4 { i64::from((value & 0xffff_ffff) as u32 as i32).cast_unsigned() } else { value }
}

fn ymm(cpu: &Cpu, number: usize) -> [u64; 4] {
    cpu.vector.ymm[number & 15]
}

fn mask_load<const SIZE: usize>(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check(cpu, Needs::AVX | Needs::VEX)?;
    let mask = ymm(cpu, register(instruction, 1));
    let count = if is_ymm(instruction, 0) { 32 } else { 16 } / SIZE;
    let (seg, ea) = cpu.effective_address(instruction);
    let mut result = [0; 4];
    for i in (0..count).filter(|&i| selects::<SIZE>(&mask, i)) {
        let at = ea.wrapping_add((i * SIZE) as u64) & address_mask(instruction);
        set_element::<SIZE>(&mut result, i, cpu.load_sized(seg, at, SIZE as u64)?);
    }
    cpu.vector.ymm[register(instruction, 0) & 15] = result;
    Ok(Flow::Next)
}

fn mask_store<const SIZE: usize>(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check(cpu, Needs::AVX | Needs::VEX)?;
    let mask = ymm(cpu, register(instruction, 1));
    let source = ymm(cpu, register(instruction, 2));
    let count = if is_ymm(instruction, 2) { 32 } else { 16 } / SIZE;
    let (seg, ea) = cpu.effective_address(instruction);
    let at = |i: usize| ea.wrapping_add((i * SIZE) as u64) & address_mask(instruction);
    for i in (0..count).filter(|&i| selects::<SIZE>(&mask, i)) {
        cpu.probe(seg, at(i), SIZE as u64, true)?;
    }
    for i in (0..count).filter(|&i| selects::<SIZE>(&mask, i)) {
        cpu.store_sized(seg, at(i), SIZE as u64, element::<SIZE>(&source, i))?;
    }
    Ok(Flow::Next)
}

/// MASKMOVDQU and VMASKMOVDQU: bytes of operand 1 whose mask byte in operand 2 has its highest bit set go to DS:rDI.
fn mask_bytes(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check(cpu, super::needs(instruction))?;
    let source = cpu.vector.xmm(register(instruction, 1)).to_le_bytes();
    let mask = cpu.vector.xmm(register(instruction, 2)).to_le_bytes();
    store_bytes_by_mask(cpu, instruction, &source, &mask)
}

/// MASKMOVQ, which as an MMX instruction makes all x87 registers valid and TOP zero.
fn mask_bytes_mmx(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check(cpu, Needs::MMX)?;
    let source = cpu.vector.st(register(instruction, 1));
    let mask = cpu.vector.st(register(instruction, 2));
    let flow = store_bytes_by_mask(cpu, instruction, &source[..8], &mask[..8])?;
    cpu.vector.set_fsw(cpu.vector.fsw() & !0x3800);
    cpu.vector.set_ftw(0xff);
    Ok(flow)
}

fn store_bytes_by_mask(
    cpu: &mut Cpu,
    instruction: &Instruction,
    source: &[u8],
    mask: &[u8],
) -> Result<Flow, Exception> {
    let wrap = match instruction.op0_kind() {
        OpKind::MemorySegDI => 0xffff,
        OpKind::MemorySegEDI => 0xffff_ffff,
        _ => u64::MAX,
    };
    let seg = crate::operand::segment(instruction.memory_segment());
    let start = cpu.regs[crate::state::RDI];
    let selected = |i: &usize| mask.get(*i).is_some_and(|byte| byte & 0x80 != 0);
    let at = |i: usize| start.wrapping_add(i as u64) & wrap;
    for i in (0..source.len()).filter(selected) {
        cpu.probe(seg, at(i), 1, true)?;
    }
    for i in (0..source.len()).filter(selected) {
        cpu.store(seg, at(i), source[i])?;
    }
    Ok(Flow::Next)
}

/// Operands: destination, memory with a vector of indices of `INDEX` bytes, mask. Elements have `DATA` bytes.
fn gather<const INDEX: usize, const DATA: usize>(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    check(cpu, Needs::AVX | Needs::VEX)?;
    let (destination, mask) = (register(instruction, 0), register(instruction, 2));
    let indices = instruction.memory_index();
    let distinct = destination != mask && destination != indices.number() && mask != indices.number();
    if !distinct {
        return Err(Exception::UNDEFINED);
    }
    let bytes = |register: Register| if (Register::YMM0..=Register::YMM15).contains(&register) { 32 } else { 16 };
    // As many elements as both registers have room for.
    let count = (bytes(indices) / INDEX).min(bytes(instruction.op_register(0)) / DATA);
    let offsets = ymm(cpu, indices.number());
    let (seg, base) = cpu.effective_address(instruction);
    let (scale, wrap) = (u64::from(instruction.memory_index_scale()), address_mask(instruction));
    for i in 0..count {
        if !selects::<DATA>(&ymm(cpu, mask), i) {
            continue;
        }
        let offset = index::<INDEX>(element::<INDEX>(&offsets, i));
        let at = base.wrapping_add(offset.wrapping_mul(scale)) & wrap;
        let value = cpu.load_sized(seg, at, DATA as u64)?;
        set_element::<DATA>(&mut cpu.vector.ymm[destination & 15], i, value);
        set_element::<DATA>(&mut cpu.vector.ymm[mask & 15], i, 0);
    }
    cpu.vector.ymm[mask & 15] = [0; 4];
    // What lies above the last element is zeroed.
    let vector = &mut cpu.vector;
    match count * DATA {
        8 => {
            let low = vector.xmm(destination) & u128::from(u64::MAX);
            vector.set_xmm(destination, low);
            clear_high(vector, destination);
        }
        16 => clear_high(vector, destination),
        _ => {}
    }
    Ok(Flow::Next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_both_sizes() {
        let mut register = [0x1111_1111_2222_2222, 0x3333_3333_4444_4444, 0x5555_5555_6666_6666, 0x8000_0000_7fff_ffff];
        assert_eq!(element::<4>(&register, 0), 0x2222_2222);
        assert_eq!(element::<4>(&register, 5), 0x5555_5555);
        assert_eq!(element::<8>(&register, 2), 0x5555_5555_6666_6666);
        assert!(selects::<4>(&register, 7) && !selects::<4>(&register, 6) && selects::<8>(&register, 3));
        set_element::<4>(&mut register, 1, 0xffff_ffff_9999_9999);
        assert_eq!(register[0], 0x9999_9999_2222_2222);
    }

    #[test]
    fn indices_are_signed() {
        assert_eq!(index::<4>(0xffff_fffc), u64::MAX - 3);
        assert_eq!(index::<4>(0x7fff_ffff), 0x7fff_ffff);
        assert_eq!(index::<8>(5), 5);
    }
}
