//! Emits the stub around one instruction.
//!
//! A stub is called with R11 = frame, R10 = vector state, R8 = general registers, and may change every register that
//! the C calling convention lets it change. So the guest's instruction finds its general registers in RAX, RCX, RDX,
//! RSI and RDI: implicit operands keep their numbers, explicit ones are renamed, and RSP or a callee-saved register is
//! never touched. The memory operand becomes `[rdi]`. After the instruction, written registers are stored with their
//! old values if it faulted, so that the path after a fault is the path after success.
//!
//! Order on the way in: x87 (FXRSTOR also loads XMM and MXCSR, which must therefore come later), flags, vectors, MXCSR,
//! general registers (MOV changes no flags). On the way out: general registers, flags, vectors, MXCSR, x87.

use super::classify::{self, Needs, is_write};
use crate::signal::Frame;
use crate::vector::VectorState;
use iced_x86::{Code, Encoder, IcedError, Instruction, InstructionInfoFactory, MemoryOperand, OpKind, Register};
use std::mem::offset_of;

/// Where the stub finds what.
const FRAME: Register = Register::R11;
const VECTOR: Register = Register::R10;
const GENERAL: Register = Register::R8;
const MEMORY: Register = Register::RDI;

/// Numbers of the registers that a guest's general register may be put in; those with a high byte come first.
const POOL: [usize; 5] = [0, 1, 2, 6, 7];

/// What is known of a stub besides its code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Emitted {
    pub needs: Needs,
    /// Offset behind the guest's instruction.
    pub resume: usize,
    /// Bytes of the memory operand; 0 without one.
    pub size: u8,
    pub alignment: u8,
    /// For x87: the opcode's low 11 bits with mod = 11 or, for memory, with only reg filled in.
    pub fop: u16,
}

/// Why no stub can be made: the instruction is not one for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused;

impl From<IcedError> for Refused {
    fn from(_: IcedError) -> Self {
        Self
    }
}

/// Which general registers an instruction uses: guest number and host number, and whether it is written.
#[derive(Default)]
struct General {
    pairs: Vec<(usize, usize, bool)>,
}

impl General {
    fn host(&self, guest: usize) -> Option<usize> {
        self.pairs.iter().find(|pair| pair.0 == guest).map(|pair| pair.1)
    }
}

/// Encodes the stub of `instruction` into the encoder's buffer.
pub(super) fn stub(
    encoder: &mut Encoder,
    factory: &mut InstructionInfoFactory,
    instruction: &Instruction,
) -> Result<Emitted, Refused> {
    if !classify::is_allowed(instruction) {
        return Err(Refused);
    }
    let (guest, general) = rename(factory, &normalise(instruction)?)?;
    let info = factory.info(&guest);
    let memory = (0..guest.op_count()).find(|&n| guest.op_kind(n) == OpKind::Memory);
    let access = memory.map_or(iced_x86::OpAccess::None, |n| info.op_access(n));
    let needs = classify::needs(&guest, access, info.used_registers());
    let size = memory.map_or(0, |_| guest.memory_size().size());
    if memory.is_some() && (size == 0 || size > super::OPERAND) {
        return Err(Refused);
    }
    let mut vectors = [(false, false); 16];
    for used in info.used_registers() {
        if used.register().is_vector_register() {
            let slot = vectors.get_mut(used.register().number()).ok_or(Refused)?;
            *slot = (true, slot.1 || is_write(used.access()));
        }
    }
    let mut out = Emitter { encoder, position: 0 };
    out.enter(needs, &vectors, &general, memory.is_some())?;
    out.op(Ok(guest))?;
    let resume = out.position;
    out.leave(needs, &vectors, &general)?;
    let alignment = classify::alignment(&guest, size);
    let fop = if needs.contains(Needs::X87) { opcode(&guest) } else { 0 };
    Ok(Emitted { needs, resume, size: u8::try_from(size).map_err(|_| Refused)?, alignment, fop })
}

/// The instruction in a form that depends only on what it does: 64-bit code, memory at `[rdi]`, no stray prefixes.
fn normalise(instruction: &Instruction) -> Result<Instruction, Refused> {
    let mut guest = *instruction;
    guest.set_code_size(iced_x86::CodeSize::Code64);
    guest.set_has_lock_prefix(false);
    guest.set_has_rep_prefix(false);
    guest.set_has_repne_prefix(false);
    guest.set_has_xacquire_prefix(false);
    guest.set_has_xrelease_prefix(false);
    guest.set_segment_prefix(Register::None);
    if instruction.has_lock_prefix() {
        return Err(Refused);
    }
    if (0..guest.op_count()).any(|n| guest.op_kind(n) == OpKind::Memory) {
        guest.set_memory_base(MEMORY);
        guest.set_memory_index(Register::None);
        guest.set_memory_index_scale(1);
        guest.set_memory_displacement64(0);
        guest.set_memory_displ_size(0);
    }
    Ok(guest)
}

/// Renames the explicit general registers to those of the pool.
fn rename(factory: &mut InstructionInfoFactory, guest: &Instruction) -> Result<(Instruction, General), Refused> {
    let mut explicit: Vec<(usize, bool)> = Vec::new();
    let mut probe = *guest;
    let mut memory = false;
    for n in 0..guest.op_count() {
        memory |= guest.op_kind(n) == OpKind::Memory;
        if guest.op_kind(n) == OpKind::Register && guest.op_register(n).is_gpr() {
            let register = guest.op_register(n);
            let number = register.full_register().number();
            match explicit.iter_mut().find(|(seen, _)| *seen == number) {
                Some((_, high)) => *high |= is_high(register),
                None => explicit.push((number, is_high(register))),
            }
            // Anything out of the pool: what the probe still uses of it is implicit.
            probe.set_op_register(n, sized(Register::R12, register));
        }
    }
    let mut general = General::default();
    let mut taken = [false; 16];
    taken[MEMORY.number()] = memory;
    for used in factory.info(&probe).used_registers() {
        let register = used.register();
        if !register.is_gpr() || register.full_register() == Register::R12 {
            continue;
        }
        let number = register.full_register().number();
        if memory && number == MEMORY.number() {
            // The memory operand's own base, put there by `normalise`.
            continue;
        }
        if !POOL.contains(&number) {
            return Err(Refused);
        }
        if general.host(number).is_none() {
            taken[number] = true;
            general.pairs.push((number, number, false));
        }
    }
    // Those with a high byte first: there are only three of them.
    explicit.sort_by_key(|&(_, high)| !high);
    for (number, high) in explicit {
        if general.host(number).is_none() {
            let free = POOL.into_iter().find(|&n| !taken[n] && (!high || n < 4)).ok_or(Refused)?;
            taken[free] = true;
            general.pairs.push((number, free, false));
        }
    }
    let mut renamed = *guest;
    for n in 0..guest.op_count() {
        if guest.op_kind(n) == OpKind::Register && guest.op_register(n).is_gpr() {
            let register = guest.op_register(n);
            let host = general.host(register.full_register().number()).ok_or(Refused)?;
            let host = if is_high(register) {
                numbered(Register::AH, host)
            } else {
                sized(numbered(Register::RAX, host), register)
            };
            renamed.set_op_register(n, host);
        }
    }
    for used in factory.info(&renamed).used_registers() {
        if used.register().is_gpr() && is_write(used.access()) {
            let number = used.register().full_register().number();
            match general.pairs.iter_mut().find(|pair| pair.1 == number) {
                Some(pair) => pair.2 = true,
                None => return Err(Refused),
            }
        }
    }
    Ok((renamed, general))
}

fn is_high(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// The register `number` places after `first`.
fn numbered(first: Register, number: usize) -> Register {
    first + u32::try_from(number).unwrap_or(0)
}

/// The part of the 64-bit register `full` that is as wide as `like`.
fn sized(full: Register, like: Register) -> Register {
    let number = full.number();
    match like.size() {
        1 if number >= 4 => numbered(Register::SPL, number - 4),
        1 => numbered(Register::AL, number),
        2 => numbered(Register::AX, number),
        4 => numbered(Register::EAX, number),
        _ => full,
    }
}

/// The 11 bits of FOP as far as they do not depend on the memory operand's addressing.
fn opcode(guest: &Instruction) -> u16 {
    let info = guest.code().op_code();
    let code = info.op_code();
    let value = if info.op_code_len() == 2 {
        // The operand that is not ST(0), or ST(0) itself in the forms with none other.
        let stack = (0..guest.op_count())
            .map(|n| guest.op_register(n))
            .filter(|register| register.is_st())
            .map(Register::number)
            .max()
            .unwrap_or(0);
        let variable = (0..guest.op_count()).any(|n| info.op_kind(n) == iced_x86::OpCodeOperandKind::sti_opcode);
        (code & 0x7ff) + if variable { stack as u32 } else { 0 }
    } else {
        (code & 7) << 8 | u32::try_from(info.group_index()).unwrap_or(0) << 3
    };
    (value & 0x7ff) as u16
}

/// Emits instructions one after another.
struct Emitter<'a> {
    encoder: &'a mut Encoder,
    position: usize,
}

impl Emitter<'_> {
    fn op(&mut self, instruction: Result<Instruction, IcedError>) -> Result<(), Refused> {
        self.position += self.encoder.encode(&instruction?, self.position as u64)?;
        Ok(())
    }

    fn load(&mut self, code: Code, register: Register, base: Register, offset: usize) -> Result<(), Refused> {
        self.op(Instruction::with2(code, register, at(base, offset)))
    }

    fn store(&mut self, code: Code, base: Register, offset: usize, register: Register) -> Result<(), Refused> {
        self.op(Instruction::with2(code, at(base, offset), register))
    }

    fn enter(
        &mut self,
        needs: Needs,
        vectors: &[(bool, bool); 16],
        general: &General,
        memory: bool,
    ) -> Result<(), Refused> {
        if needs.intersects(Needs::X87 | Needs::MMX) {
            self.op(Instruction::with1(Code::Fxrstor64_m512byte, at(VECTOR, offset_of!(VectorState, x87))))?;
        }
        if needs.contains(Needs::FLAGS_IN) {
            self.load(Code::Mov_r32_rm32, Register::EAX, FRAME, offset_of!(Frame, flags))?;
            self.op(Instruction::with2(Code::Add_AL_imm8, Register::AL, 127))?;
            self.op(Ok(Instruction::with(Code::Sahf)))?;
        }
        let (code, first) = if needs.contains(Needs::AVX) {
            (Code::VEX_Vmovups_ymm_ymmm256, Register::YMM0)
        } else {
            (Code::Movups_xmm_xmmm128, Register::XMM0)
        };
        for (i, _) in vectors.iter().enumerate().filter(|(_, used)| used.0) {
            self.load(code, numbered(first, i), VECTOR, ymm(i))?;
        }
        if needs.contains(Needs::MXCSR) {
            self.op(Instruction::with1(Code::Ldmxcsr_m32, at(VECTOR, offset_of!(VectorState, mxcsr))))?;
        }
        for &(guest, host, _) in &general.pairs {
            self.load(Code::Mov_r64_rm64, numbered(Register::RAX, host), GENERAL, 8 * guest)?;
        }
        if memory {
            self.load(Code::Mov_r64_rm64, MEMORY, FRAME, offset_of!(Frame, memory))?;
        }
        Ok(())
    }

    fn leave(&mut self, needs: Needs, vectors: &[(bool, bool); 16], general: &General) -> Result<(), Refused> {
        for &(guest, host, _) in general.pairs.iter().filter(|pair| pair.2) {
            self.store(Code::Mov_rm64_r64, GENERAL, 8 * guest, numbered(Register::RAX, host))?;
        }
        if needs.contains(Needs::FLAGS_OUT) {
            self.op(Instruction::with1(Code::Seto_rm8, Register::AL))?;
            self.op(Ok(Instruction::with(Code::Lahf)))?;
            self.store(Code::Mov_rm32_r32, FRAME, offset_of!(Frame, flags), Register::EAX)?;
        }
        let (code, first) = if needs.contains(Needs::AVX) {
            (Code::VEX_Vmovups_ymmm256_ymm, Register::YMM0)
        } else {
            (Code::Movups_xmmm128_xmm, Register::XMM0)
        };
        for (i, _) in vectors.iter().enumerate().filter(|(_, used)| used.1) {
            self.store(code, VECTOR, ymm(i), numbered(first, i))?;
        }
        if needs.contains(Needs::AVX) {
            self.op(Ok(Instruction::with(Code::VEX_Vzeroupper)))?;
        }
        if needs.contains(Needs::MXCSR) {
            self.op(Instruction::with1(Code::Stmxcsr_m32, at(VECTOR, offset_of!(VectorState, mxcsr))))?;
            self.op(Instruction::with1(Code::Ldmxcsr_m32, at(FRAME, offset_of!(Frame, host_mxcsr))))?;
        }
        if needs.intersects(Needs::X87 | Needs::MMX) {
            self.op(Instruction::with1(Code::Fxsave64_m512byte, at(VECTOR, offset_of!(VectorState, x87))))?;
            self.op(Ok(Instruction::with(Code::Fninit)))?;
        }
        self.op(Ok(Instruction::with(Code::Retnq)))
    }
}

/// Offset of YMM`i`.
fn ymm(i: usize) -> usize {
    offset_of!(VectorState, ymm) + 32 * i
}

/// `[base + offset]`.
fn at(base: Register, offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, offset as i64)
}
