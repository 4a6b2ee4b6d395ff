//! Random operands for an instruction: registers, immediates, and memory operands that are worth an access.

use crate::layout::spot;
use crate::random::Random;
use crate::start::Roles;
use cpu::state::RSP;
use iced_x86::{Code, Instruction, OpCodeOperandKind as K, OpKind, Register};

/// The registers of a kind are numbered from one of these.
const BYTES: [Register; 20] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::SPL,
    Register::BPL,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
    Register::AH,
    Register::CH,
    Register::DH,
    Register::BH,
];

/// Register number `n` of the kind that begins with `first`.
fn numbered(first: Register, n: usize) -> Register {
    first + n as u32
}

/// What instructions are made of.
#[derive(Debug)]
pub struct Operands<'a> {
    /// Chance.
    pub random: &'a mut Random,
    /// Bits of the code.
    pub bits: u32,
    /// What the registers hold, as far as it is known.
    pub roles: &'a mut Roles,
    /// Registers that must not be written.
    pub reserved: u16,
}

impl Operands<'_> {
    /// An instruction with random operands; a near branch has none yet. `None` for an operand that does not exist here.
    pub fn fill(&mut self, code: Code) -> Option<Instruction> {
        let mut i = Instruction::default();
        i.set_code(code);
        let info = code.op_code();
        for (n, &kind) in (0..).zip(info.op_kinds()) {
            self.operand(&mut i, n, kind)?;
        }
        let random = &mut *self.random;
        let memory = i.op0_kind() == OpKind::Memory;
        if info.can_use_lock_prefix() && if memory { random.one_in(4) } else { random.one_in(64) } {
            i.set_has_lock_prefix(true);
        }
        if code.is_string_instruction() && !random.one_in(3) {
            if random.one_in(3) && info.can_use_repne_prefix() {
                i.set_has_repne_prefix(true);
            } else if info.can_use_rep_prefix() {
                i.set_has_rep_prefix(true);
            }
        }
        let has_memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
        if has_memory && random.one_in(12) {
            i.set_segment_prefix(random.pick(&[
                Register::FS,
                Register::GS,
                Register::ES,
                Register::DS,
                Register::SS,
                Register::CS,
            ]));
        }
        Some(i)
    }

    fn operand(&mut self, i: &mut Instruction, n: u32, kind: K) -> Option<()> {
        match kind {
            K::mem | K::mem_mpx | K::mem_mib | K::sibmem => self.memory(i, n),
            K::mem_offs => self.absolute(i, n),
            K::mem_vsib32x | K::mem_vsib64x => self.gather(i, n, Register::XMM0),
            K::mem_vsib32y | K::mem_vsib64y => self.gather(i, n, Register::YMM0),
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::mm_or_mem
            | K::xmm_or_mem
            | K::ymm_or_mem
                if self.random.below(5) < 3 =>
            {
                self.memory(i, n);
            }
            K::seg_rSI => set_kind(i, n, self.by_size([OpKind::MemorySegESI, OpKind::MemorySegRSI])),
            K::es_rDI => set_kind(i, n, self.by_size([OpKind::MemoryESEDI, OpKind::MemoryESRDI])),
            K::seg_rDI => set_kind(i, n, self.by_size([OpKind::MemorySegEDI, OpKind::MemorySegRDI])),
            K::seg_rBX_al => {
                set_kind(i, n, OpKind::Memory);
                i.set_memory_base(self.by_size([Register::EBX, Register::RBX]));
                i.set_memory_index(Register::AL);
            }
            K::br16_1 | K::br16_2 => set_kind(i, n, OpKind::NearBranch16),
            K::br32_1 | K::br32_4 => set_kind(i, n, OpKind::NearBranch32),
            K::br64_1 | K::br64_4 => set_kind(i, n, OpKind::NearBranch64),
            K::farbr2_2 | K::farbr4_2 => {
                set_kind(i, n, if kind == K::farbr2_2 { OpKind::FarBranch16 } else { OpKind::FarBranch32 });
                i.set_far_branch_selector(self.random.pick(&[0x08, 0x1b, 0x2b, 0x30]));
                i.set_far_branch32(crate::layout::CODE as u32);
            }
            _ => return self.immediate(i, n, kind).or_else(|| self.register(i, n, kind)),
        }
        Some(())
    }

    fn immediate(&mut self, i: &mut Instruction, n: u32, kind: K) -> Option<()> {
        let value = self.random.value();
        match kind {
            K::imm8 => {
                // INT n: vectors that have a gate, and return to where they came from.
                let int = i.code() == Code::Int_imm8;
                let value = if int { self.random.pick(&[3, 4, 0x80, 0x81, 0x21, 0xff]) } else { value as u8 };
                // The second of EXTRQ's, INSERTQ's and ENTER's.
                if n > 0 && matches!(i.op_kind(n - 1), OpKind::Immediate8 | OpKind::Immediate16) {
                    set_kind(i, n, OpKind::Immediate8_2nd);
                    i.set_immediate8_2nd(value);
                } else {
                    set_kind(i, n, OpKind::Immediate8);
                    i.set_immediate8(value);
                }
            }
            K::imm8_const_1 => {
                set_kind(i, n, OpKind::Immediate8);
                i.set_immediate8(1);
            }
            K::imm8sex16 => {
                set_kind(i, n, OpKind::Immediate8to16);
                i.set_immediate8to16(i16::from(value as i8));
            }
            K::imm8sex32 => {
                set_kind(i, n, OpKind::Immediate8to32);
                i.set_immediate8to32(i32::from(value as i8));
            }
            K::imm8sex64 => {
                set_kind(i, n, OpKind::Immediate8to64);
                i.set_immediate8to64(i64::from(value as i8));
            }
            K::imm16 => {
                set_kind(i, n, OpKind::Immediate16);
                i.set_immediate16(value as u16);
            }
            K::imm32 => {
                set_kind(i, n, OpKind::Immediate32);
                i.set_immediate32(value as u32);
            }
            K::imm32sex64 => {
                set_kind(i, n, OpKind::Immediate32to64);
                i.set_immediate32to64(i64::from(value as i32));
            }
            K::imm64 => {
                set_kind(i, n, OpKind::Immediate64);
                i.set_immediate64(value);
            }
            _ => return None,
        }
        Some(())
    }

    fn register(&mut self, i: &mut Instruction, n: u32, kind: K) -> Option<()> {
        let vectors = if self.bits == 64 { 16 } else { 8 };
        let random = &mut *self.random;
        let register = match kind {
            K::r8_or_mem | K::r8_reg | K::r8_opcode => return self.byte(i, n),
            K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
                numbered(Register::AX, self.general(n))
            }
            K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
                numbered(Register::EAX, self.general(n))
            }
            K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
                numbered(Register::RAX, self.general(n))
            }
            K::mm_or_mem | K::mm_reg | K::mm_rm => numbered(Register::MM0, random.index(8)),
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 => {
                numbered(Register::XMM0, random.index(vectors))
            }
            K::ymm_or_mem | K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 => {
                numbered(Register::YMM0, random.index(vectors))
            }
            K::sti_opcode => numbered(Register::ST0, random.index(8)),
            K::seg_reg => {
                random.pick(&[Register::ES, Register::DS, Register::FS, Register::GS, Register::SS, Register::CS])
            }
            K::cr_reg => random.pick(&[Register::CR0, Register::CR2, Register::CR3, Register::CR4, Register::CR8]),
            K::dr_reg => numbered(Register::DR0, random.index(8)),
            K::es => Register::ES,
            K::cs => Register::CS,
            K::ss => Register::SS,
            K::ds => Register::DS,
            K::fs => Register::FS,
            K::gs => Register::GS,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            K::st0 => Register::ST0,
            _ => return None,
        };
        set_register(i, n, register);
        if n == 0 && register.is_gpr() {
            self.forget(register.number());
        }
        Some(())
    }

    fn byte(&mut self, i: &mut Instruction, n: u32) -> Option<()> {
        let number = self.general(n);
        let mut register = BYTES[number];
        if self.bits == 32 && number >= 4 {
            register = BYTES[number + 12];
        } else if number < 4 && self.random.one_in(6) {
            register = BYTES[number + 16];
        }
        set_register(i, n, register);
        if n == 0 {
            self.forget(number);
        }
        Some(())
    }

    /// A register operand: the first one rarely a pointer or RSP, since it is mostly written.
    fn general(&mut self, operand: u32) -> usize {
        let all: u16 = if self.bits == 64 { 0xffff } else { 0xff };
        let random = &mut *self.random;
        let mut set = all;
        if operand == 0 {
            set &= !self.reserved;
            if !random.one_in(16) {
                set &= !(1 << RSP);
            }
            if !random.one_in(8) {
                set &= !self.roles.pointers;
            }
        }
        random.bit(set).or_else(|| random.bit(all & !self.reserved)).unwrap_or(0)
    }

    /// The register's content is not known any more.
    fn forget(&mut self, number: usize) {
        self.roles.pointers &= !(1 << number);
        self.roles.small &= !(1 << number);
    }

    fn by_size<T>(&mut self, [narrow, wide]: [T; 2]) -> T {
        if self.bits == 32 || self.random.one_in(16) { narrow } else { wide }
    }

    /// A memory operand: most of the time off a register that points somewhere.
    pub fn memory(&mut self, i: &mut Instruction, n: u32) {
        set_kind(i, n, OpKind::Memory);
        let first = self.by_size([Register::EAX, Register::RAX]);
        let wide = first == Register::RAX;
        let random = &mut *self.random;
        let all: u16 = if self.bits == 64 { 0xffff } else { 0xff };
        if random.one_in(16) {
            let target = spot(random);
            if self.bits == 64 && random.one_in(2) && target < 1 << 31 {
                // Relative to RIP.
                i.set_memory_base(if wide { Register::RIP } else { Register::EIP });
            }
            i.set_memory_displacement64(target.cast_signed() as i32 as u64 & address_mask(wide));
            i.set_memory_displ_size(if wide { 8 } else { 4 });
            return;
        }
        let pointers = if random.one_in(16) { all } else { self.roles.pointers | 1 << RSP };
        let base = random.bit(pointers).unwrap_or(RSP);
        i.set_memory_base(numbered(first, base));
        let indices = if random.one_in(8) { all } else { self.roles.small };
        if random.one_in(4)
            && let Some(index) = random.bit(indices & !(1 << RSP))
        {
            i.set_memory_index(numbered(first, index));
            i.set_memory_index_scale(1 << random.below(4));
        }
        let displacement = match random.below(16) {
            0..7 => return,
            7..11 => random.between(-128, 127),
            11 | 12 => 8 * random.between(0, 15),
            13 => random.pick(&[0xfff, 0x1000, -0x1000, 0xff8, -1]),
            14 => random.between(-0x4000, 0x4000),
            _ => i64::from(random.bits() as i32),
        };
        let short = i8::try_from(displacement).is_ok();
        i.set_memory_displacement64(displacement.cast_unsigned() & address_mask(wide));
        i.set_memory_displ_size(if short {
            1
        } else if wide {
            8
        } else {
            4
        });
    }

    /// MOV with an address of its own, up to 64 bits.
    fn absolute(&mut self, i: &mut Instruction, n: u32) {
        set_kind(i, n, OpKind::Memory);
        let wide = self.by_size([false, true]);
        let target = spot(self.random);
        i.set_memory_displacement64(target & address_mask(wide));
        i.set_memory_displ_size(if wide { 8 } else { 4 });
    }

    /// A vector of addresses.
    fn gather(&mut self, i: &mut Instruction, n: u32, first: Register) {
        set_kind(i, n, OpKind::Memory);
        let base = self.by_size([Register::EAX, Register::RAX]);
        let vectors = if self.bits == 64 { 16 } else { 8 };
        let random = &mut *self.random;
        i.set_memory_base(numbered(base, random.bit(self.roles.pointers).unwrap_or(RSP)));
        i.set_memory_index(numbered(first, random.index(vectors)));
        i.set_memory_index_scale(1 << random.below(4));
        if random.one_in(2) {
            let displacement = random.between(-128, 127).cast_unsigned();
            i.set_memory_displacement64(displacement & address_mask(base == Register::RAX));
            i.set_memory_displ_size(1);
        }
    }
}

/// The bits of an address of 64 or 32 bits.
fn address_mask(wide: bool) -> u64 {
    if wide { u64::MAX } else { 0xffff_ffff }
}

/// Sets an operand's kind; operand 4 is always an immediate of eight bits and cannot be set otherwise.
fn set_kind(i: &mut Instruction, n: u32, kind: OpKind) {
    let _ = i.try_set_op_kind(n, kind);
}

fn set_register(i: &mut Instruction, n: u32, register: Register) {
    set_kind(i, n, OpKind::Register);
    let _ = i.try_set_op_register(n, register);
}
