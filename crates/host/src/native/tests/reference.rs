//! The independent execution that stubs are compared with, and random instructions to compare them on.

use crate::code::CodeBuffer;
use crate::vector::VectorState;
use iced_x86::{Code, Encoder, Instruction, MemoryOperand, OpCodeOperandKind as Kind, OpKind, Register};
use std::arch::asm;
use std::mem::offset_of;

/// All that an instruction can read or write.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct Machine {
    pub vector: VectorState,
    pub memory: [u8; 128],
    pub general: [u64; 32],
    pub status: u64,
    saved: [u64; 4],
}

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// A word that is as often as not a number that floating-point instructions find interesting.
    pub fn word(&mut self) -> u64 {
        const WORDS: [u64; 12] = [
            0,
            0x3ff0_0000_0000_0000,
            0x3f80_0000_bf80_0000,
            0x7ff0_0000_0000_0000,
            0x7f80_0000_ff80_0000,
            0x7ff8_0000_0000_0001,
            0x7ff0_0000_0000_0001,
            0x7fc0_0001_7f80_0001,
            0x0000_0000_0000_0001,
            0x8000_0001_0000_0001,
            0x7fef_ffff_ffff_ffff,
            0x0010_0000_0080_0000,
        ];
        match self.below(4) {
            0 => WORDS[self.below(12) as usize],
            // Numbers near one, single and double.
            1 => self.next() & 0x800f_ffff_807f_ffff | 0x3ff0_0000_3f80_0000,
            _ => self.next(),
        }
    }
}

impl Machine {
    pub fn random(random: &mut Random) -> Box<Self> {
        let mut machine = Box::new(Self {
            vector: VectorState::new(),
            memory: [0; 128],
            general: [0; 32],
            status: random.next() & x86::Rflags::STATUS,
            saved: [0; 4],
        });
        machine.vector.init_x87();
        for word in machine.general.iter_mut().take(16).chain(machine.vector.ymm.as_flattened_mut()) {
            *word = random.word();
        }
        for chunk in machine.memory.chunks_mut(8) {
            chunk.copy_from_slice(&random.word().to_le_bytes());
        }
        // Any rounding, FTZ, DAZ and sticky flags; everything masked.
        machine.vector.mxcsr = 0x1f80 | (random.next() as u32 & 0xe07f);
        let top = random.below(8) as u16;
        machine.vector.set_fsw(top << 11 | (random.next() as u16 & 0x473f));
        machine.vector.set_fcw(0x37f | (random.next() as u16 & 0xc00));
        machine.vector.set_ftw(random.next() as u8 | random.next() as u8);
        for i in 0..8 {
            let mut value = [0; 10];
            value[..8].copy_from_slice(&(random.word() | 1 << 63).to_le_bytes());
            let exponent = [0x3fff, 0x4000, 0x3ffe, 0xbfff, 0, 0x7fff, 0x4030][random.below(7) as usize];
            value[8..].copy_from_slice(&u16::to_le_bytes(exponent));
            machine.vector.set_st(i, &value);
        }
        machine
    }

    /// What must agree: the x87 pointers are the caller's affair, and FXSAVE stores a MXCSR that is not the guest's.
    pub fn compared(&self) -> Compared {
        let mut x87 = self.vector.x87[..160].to_vec();
        x87[6..32].fill(0);
        Compared {
            general: self.general[..16].to_vec(),
            status: self.status & x86::Rflags::STATUS,
            ymm: self.vector.ymm,
            mxcsr: self.vector.mxcsr,
            x87,
            memory: self.memory,
        }
    }
}

/// The state that two executions of an instruction must agree on.
#[derive(Debug, PartialEq)]
pub struct Compared {
    general: Vec<u64>,
    status: u64,
    ymm: [[u64; 4]; 16],
    mxcsr: u32,
    x87: Vec<u8>,
    memory: [u8; 128],
}

/// Executes one instruction on all of a machine's registers but RSP.
pub struct Reference {
    code: CodeBuffer,
    encoder: Encoder,
}

/// The base of memory operands.
const BASE: Register = Register::R13;

impl Reference {
    pub fn new() -> Self {
        Self { code: CodeBuffer::new(1 << 22).unwrap(), encoder: Encoder::new(64) }
    }

    pub fn run(&mut self, instruction: &Instruction, machine: &mut Machine) -> bool {
        let mut code = vec![];
        let mut op = |instruction: Instruction| {
            let done = self.encoder.encode(&instruction, 0).is_ok();
            code.extend(self.encoder.take_buffer());
            done
        };
        let field = |offset: usize| MemoryOperand::with_base_displ(Register::RSP, offset as i64);
        let callee_saved = [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];
        let general = |i: usize| (Register::RAX + i as u32, field(offset_of!(Machine, general) + 8 * i));
        let ymm = |i: usize| {
            let offset = offset_of!(Machine, vector) + offset_of!(VectorState, ymm) + 32 * i;
            (Register::YMM0 + i as u32, field(offset))
        };
        let x87 = field(offset_of!(Machine, vector) + offset_of!(VectorState, x87));
        let mxcsr = field(offset_of!(Machine, vector) + offset_of!(VectorState, mxcsr));
        let saved = |i: usize| field(offset_of!(Machine, saved) + 8 * i);
        let mut ok = true;
        for register in callee_saved {
            ok &= op(Instruction::with1(Code::Push_r64, register).unwrap());
        }
        let status = MemoryOperand::with_base_displ(Register::RDI, offset_of!(Machine, status) as i64);
        ok &= op(Instruction::with1(Code::Push_rm64, status).unwrap());
        ok &= op(Instruction::with(Code::Popfq));
        ok &= op(Instruction::with2(Code::Xchg_rm64_r64, Register::RSP, Register::RDI).unwrap());
        ok &= op(Instruction::with2(Code::Mov_rm64_r64, saved(0), Register::RDI).unwrap());
        ok &= op(Instruction::with1(Code::Stmxcsr_m32, saved(1)).unwrap());
        ok &= op(Instruction::with1(Code::Fxrstor64_m512byte, x87).unwrap());
        ok &= op(Instruction::with1(Code::Ldmxcsr_m32, mxcsr).unwrap());
        for i in 0..16 {
            ok &= op(Instruction::with2(Code::VEX_Vmovups_ymm_ymmm256, ymm(i).0, ymm(i).1).unwrap());
        }
        for i in (0..16).filter(|&i| i != 4) {
            ok &= op(Instruction::with2(Code::Mov_r64_rm64, general(i).0, general(i).1).unwrap());
        }
        if !op(*instruction) {
            return false;
        }
        for i in (0..16).filter(|&i| i != 4) {
            ok &= op(Instruction::with2(Code::Mov_rm64_r64, general(i).1, general(i).0).unwrap());
        }
        for i in 0..16 {
            ok &= op(Instruction::with2(Code::VEX_Vmovups_ymmm256_ymm, ymm(i).1, ymm(i).0).unwrap());
        }
        ok &= op(Instruction::with1(Code::Stmxcsr_m32, mxcsr).unwrap());
        ok &= op(Instruction::with1(Code::Ldmxcsr_m32, saved(1)).unwrap());
        ok &= op(Instruction::with1(Code::Fxsave64_m512byte, x87).unwrap());
        ok &= op(Instruction::with(Code::Fninit));
        ok &= op(Instruction::with(Code::VEX_Vzeroupper));
        ok &= op(Instruction::with2(Code::Mov_r64_rm64, Register::RDI, saved(0)).unwrap());
        ok &= op(Instruction::with2(Code::Xchg_rm64_r64, Register::RSP, Register::RDI).unwrap());
        ok &= op(Instruction::with(Code::Pushfq));
        ok &= op(Instruction::with1(Code::Pop_rm64, status).unwrap());
        for register in callee_saved.into_iter().rev() {
            ok &= op(Instruction::with1(Code::Pop_r64, register).unwrap());
        }
        ok &= op(Instruction::with(Code::Retnq));
        assert!(ok, "the frame encodes");
        let entry = self.code.append(&code).unwrap_or_else(|| {
            self.code.clear();
            self.code.append(&code).unwrap()
        });
        // SAFETY: the code saves and restores what the C convention asks for, and the instruction is one of those that
        // touch registers and the machine's own memory only. RSP points into the machine meanwhile: signals, which
        // there are none of, would use the alternate stack.
        unsafe {
            asm!("call {entry}", entry = in(reg) self.code.start().add(entry), in("rdi") &raw mut *machine,
                clobber_abi("C"));
        }
        true
    }
}

/// A random instance of `code`, with register or memory operand; `None` for what has no such form.
pub fn instance(code: Code, memory: bool, random: &mut Random) -> Option<Instruction> {
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let mut has_memory = false;
    for n in 0..info.op_count() {
        // RSP is not loaded, and R13 is the base.
        let general = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 14, 15][random.below(14) as usize];
        let any = random.below(16) as u32;
        let eight = random.below(8) as u32;
        let kind = info.op_kind(n);
        let can_be_memory = matches!(
            kind,
            Kind::mem
                | Kind::r8_or_mem
                | Kind::r16_or_mem
                | Kind::r32_or_mem
                | Kind::r64_or_mem
                | Kind::mm_or_mem
                | Kind::xmm_or_mem
                | Kind::ymm_or_mem
        );
        if can_be_memory && (memory || kind == Kind::mem) {
            instruction.set_op_kind(n, OpKind::Memory);
            instruction.set_memory_base(BASE);
            instruction.set_memory_displ_size(0);
            has_memory = true;
            continue;
        }
        let register = match kind {
            Kind::r8_or_mem | Kind::r8_reg => {
                let any = [Register::AL, Register::CL, Register::SIL, Register::R9L, Register::AH, Register::BH];
                any[random.below(6) as usize]
            }
            Kind::r16_or_mem | Kind::r16_reg | Kind::r16_rm => Register::AX + general,
            Kind::r32_or_mem | Kind::r32_reg | Kind::r32_rm | Kind::r32_vvvv => Register::EAX + general,
            Kind::r64_or_mem | Kind::r64_reg | Kind::r64_rm | Kind::r64_vvvv => Register::RAX + general,
            Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => Register::MM0 + eight,
            Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm | Kind::xmm_vvvv | Kind::xmm_is4 => Register::XMM0 + any,
            Kind::ymm_or_mem | Kind::ymm_reg | Kind::ymm_rm | Kind::ymm_vvvv | Kind::ymm_is4 => Register::YMM0 + any,
            Kind::st0 => Register::ST0,
            Kind::sti_opcode => Register::ST0 + eight,
            Kind::imm8 => {
                let second = n > 0 && instruction.op_kind(n - 1) == OpKind::Immediate8;
                if second {
                    instruction.set_op_kind(n, OpKind::Immediate8_2nd);
                    instruction.set_immediate8_2nd(random.next() as u8);
                } else {
                    instruction.set_op_kind(n, OpKind::Immediate8);
                    instruction.set_immediate8(random.next() as u8);
                }
                continue;
            }
            _ => return None,
        };
        instruction.set_op_kind(n, OpKind::Register);
        instruction.set_op_register(n, register);
    }
    (has_memory == memory).then_some(instruction)
}

/// Whether the host has what the instruction needs.
pub fn host_has(instruction: &Instruction) -> bool {
    use crate::Features as F;
    use iced_x86::CpuidFeature as C;
    let host = crate::features();
    instruction.cpuid_features().iter().all(|feature| match feature {
        C::SHA => host.contains(F::SHA),
        C::GFNI => host.contains(F::GFNI),
        C::VAES => host.contains(F::VAES),
        C::VPCLMULQDQ => host.contains(F::VPCLMULQDQ),
        C::AVX_VNNI => host.contains(F::AVX_VNNI),
        C::SSE4A => host.contains(F::SSE4A),
        C::AES => host.contains(F::AES),
        C::PCLMULQDQ => host.contains(F::PCLMULQDQ),
        C::ADX => host.contains(F::ADX),
        C::RDRAND => host.contains(F::RDRAND),
        C::RDSEED => host.contains(F::RDSEED),
        _ => true,
    })
}
