//! A decoded instruction in the form that the interpreter runs: a handler and its operands.

use crate::Cpu;
use crate::exec::{Flow, Slow, native};
use crate::state::{RIP, ZERO};
use host::alu::Word;
use host::native::Stub;
use iced_x86::{Instruction, Register};
use memory::Scalar;
use std::cell::Cell;
use x86::Exception;

/// Executes one operation. See [`Flow`] for what becomes of RIP.
pub type Exec = fn(&mut Cpu, &Op) -> Result<Flow, Exception>;

/// What a rare instruction keeps besides its operands.
#[derive(Debug)]
pub struct Rare {
    /// What to do.
    slow: Slow,
    /// The instruction itself.
    instruction: Instruction,
    /// Its stub, if it runs on the host.
    stub: Cell<Stub>,
}

/// One decoded instruction.
#[derive(Debug)]
pub struct Op {
    /// What to do.
    pub exec: Exec,
    /// Displacement of the memory operand; relative to the instruction's own address if the base is [`RIP`].
    pub disp: u64,
    /// See [`Op::imm`].
    imm: i32,
    /// First register operand: an index into [`Cpu::regs`], or for byte registers a byte offset (see [`Width`]).
    pub dst: u8,
    /// Second register operand, likewise.
    pub src: u8,
    /// Segment of the memory operand.
    pub seg: u8,
    /// Base register of the memory operand, or [`ZERO`] or [`RIP`].
    pub base: u8,
    /// Index register of the memory operand, or [`ZERO`].
    pub index: u8,
    /// log2 of the index scale.
    pub scale: u8,
    /// 64 minus the address size: 0, 32 or 48.
    pub narrow: u8,
    /// Length of the instruction in bytes.
    pub len: u8,
    /// LOCK prefix (or implied by XCHG).
    pub locked: bool,
    /// REP/REPE (1), REPNE (2), or none (0).
    pub repeat: u8,
    /// May access memory, so that code may have been overwritten after it, or an observer want the block to end: cleared
    /// by those who know better.
    pub accesses: bool,
    /// For handlers that look at the instruction itself.
    pub slow: Option<Box<Rare>>,
}

impl Op {
    /// An operation with the instruction's length and memory operand filled in, and nothing else.
    #[must_use]
    pub fn new(exec: Exec, instruction: &Instruction) -> Self {
        let index_of = |register: Register| match register {
            Register::None => ZERO as u8,
            Register::RIP | Register::EIP => RIP as u8,
            register => crate::operand::gpr(register) as u8,
        };
        let repeat = match (instruction.has_rep_prefix(), instruction.has_repne_prefix()) {
            (true, _) => 1,
            (_, true) => 2,
            _ => 0,
        };
        let index = instruction.memory_index();
        Self {
            exec,
            disp: instruction.memory_displacement64(),
            imm: 0,
            dst: 0,
            src: 0,
            seg: crate::operand::segment(match instruction.memory_segment() {
                Register::None => Register::DS,
                segment => segment,
            }) as u8,
            base: index_of(instruction.memory_base()),
            index: if index == Register::None || index.is_gpr() { index_of(index) } else { ZERO as u8 },
            scale: instruction.memory_index_scale().trailing_zeros() as u8,
            narrow: crate::operand::address_mask(instruction).leading_zeros() as u8,
            len: instruction.len() as u8,
            locked: instruction.has_lock_prefix(),
            repeat,
            accesses: true,
            slow: None,
        }
    }

    /// Immediate operand, sign-extended; for near branches the target relative to the next instruction.
    #[inline(always)]
    #[must_use]
    pub fn imm(&self) -> u64 {
        i64::from(self.imm).cast_unsigned()
    }

    /// Sets the immediate operand from its low 32 bits. (The one instruction with a longer one keeps it in
    /// [`Op::disp`].)
    pub fn set_imm(&mut self, value: u64) {
        self.imm = (value as u32).cast_signed();
    }

    /// An operation that hands the instruction itself to `slow`.
    #[must_use]
    pub fn slow(slow: Slow, instruction: &Instruction) -> Self {
        fn run(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
            match &op.slow {
                Some(rare) => (rare.slow)(cpu, &rare.instruction),
                None => Err(Exception::UNDEFINED),
            }
        }
        Self::rare(run, slow, instruction)
    }

    /// An operation that the host executes; it keeps the stub.
    #[must_use]
    pub fn native(slow: Slow, instruction: &Instruction) -> Self {
        fn run(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
            match &op.slow {
                Some(rare) => native::run(cpu, &rare.instruction, &rare.stub),
                None => Err(Exception::UNDEFINED),
            }
        }
        Self::rare(run, slow, instruction)
    }

    fn rare(run: Exec, slow: Slow, instruction: &Instruction) -> Self {
        let rare = Rare { slow, instruction: *instruction, stub: Cell::default() };
        Self { slow: Some(Box::new(rare)), ..Self::new(run, instruction) }
    }
}

impl Cpu {
    /// The effective address of the operation's memory operand.
    #[inline(always)]
    #[must_use]
    pub fn ea(&self, op: &Op) -> u64 {
        let base = self.regs[usize::from(op.base & 31)];
        let index = self.regs[usize::from(op.index & 31)] << (op.scale & 3);
        base.wrapping_add(index).wrapping_add(op.disp) & (u64::MAX >> (op.narrow & 63))
    }
}

/// An operand width: how it sits in a register, and what the ALU does with it.
pub trait Width: Word + Scalar + Into<u64> {
    /// Bits in the operand.
    const BITS: u32 = Self::SIZE as u32 * 8;
    /// Reads a register operand.
    fn get(cpu: &Cpu, register: u8) -> Self;
    /// Writes a register operand.
    fn set(cpu: &mut Cpu, register: u8, value: Self);
    /// The low part of a 64-bit value.
    fn low(value: u64) -> Self;
    /// Sign-extended to 64 bits.
    fn sign_extend(self) -> u64;
    /// How a register of this width is named in [`Op::dst`] and [`Op::src`].
    fn register(register: Register) -> u8 {
        crate::operand::gpr(register) as u8
    }
}

impl Width for u8 {
    #[inline(always)]
    fn get(cpu: &Cpu, register: u8) -> Self {
        (cpu.regs[usize::from(register >> 3)] >> ((register & 7) * 8)) as u8
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, register: u8, value: Self) {
        let shift = (register & 7) * 8;
        let slot = &mut cpu.regs[usize::from(register >> 3)];
        *slot = *slot & !(0xff << shift) | u64::from(value) << shift;
    }
    #[inline(always)]
    fn low(value: u64) -> Self {
        value as u8
    }
    #[inline(always)]
    fn sign_extend(self) -> u64 {
        i64::from(self.cast_signed()).cast_unsigned()
    }
    /// A byte offset into the register file: AL is 0, AH 1, CL 8, CH 9, …
    fn register(register: Register) -> u8 {
        crate::operand::gpr(register) as u8 * 8 + u8::from(crate::operand::is_high_byte(register))
    }
}

impl Width for u16 {
    #[inline(always)]
    fn get(cpu: &Cpu, register: u8) -> Self {
        cpu.regs[usize::from(register & 31)] as u16
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, register: u8, value: Self) {
        let slot = &mut cpu.regs[usize::from(register & 31)];
        *slot = *slot & !0xffff | u64::from(value);
    }
    #[inline(always)]
    fn low(value: u64) -> Self {
        value as u16
    }
    #[inline(always)]
    fn sign_extend(self) -> u64 {
        i64::from(self.cast_signed()).cast_unsigned()
    }
}

impl Width for u32 {
    #[inline(always)]
    fn get(cpu: &Cpu, register: u8) -> Self {
        cpu.regs[usize::from(register & 31)] as u32
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, register: u8, value: Self) {
        cpu.regs[usize::from(register & 31)] = u64::from(value);
    }
    #[inline(always)]
    fn low(value: u64) -> Self {
        value as u32
    }
    #[inline(always)]
    fn sign_extend(self) -> u64 {
        i64::from(self.cast_signed()).cast_unsigned()
    }
}

impl Width for u64 {
    #[inline(always)]
    fn get(cpu: &Cpu, register: u8) -> Self {
        cpu.regs[usize::from(register & 31)]
    }
    #[inline(always)]
    fn set(cpu: &mut Cpu, register: u8, value: Self) {
        cpu.regs[usize::from(register & 31)] = value;
    }
    #[inline(always)]
    fn low(value: u64) -> Self {
        value
    }
    #[inline(always)]
    fn sign_extend(self) -> u64 {
        self
    }
}
