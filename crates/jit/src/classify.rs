//! What the translator does with an instruction.
//!
//! The list of what runs on the host is positive: anything else is interpreted.

use crate::legacy::{self, Legacy};
use cpu::cpuid::Model;
use cpu::state::CodeSize;
use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind, Register};

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Encoded anew, with registers renamed and the memory operand replaced.
    Plain,
    /// Nothing at all.
    Nop,
    /// LEA: an address without an access.
    Lea,
    /// PUSH of a general register, immediate or memory operand.
    Push,
    /// POP to a general register.
    Pop,
    /// LEAVE.
    Leave,
    /// A conditional near jump.
    Jcc,
    /// LOOP, JCXZ and its like.
    Loop,
    /// A near jump.
    Jmp,
    /// A near call.
    Call,
    /// A near jump to a register or memory operand.
    JmpIndirect,
    /// A near call likewise.
    CallIndirect,
    /// A near return.
    Ret,
    /// MOVS, STOS, LODS, SCAS or CMPS, alone or repeated.
    String,
    /// One of the system instructions that need not leave translated code.
    System,
    /// Interpreted; execution usually goes on behind it.
    Interpret,
    /// Interpreted; execution goes on elsewhere.
    Leaves,
}

impl Class {
    /// Whether nothing behind it is reached from it but by a jump.
    #[must_use]
    pub fn ends(self) -> bool {
        matches!(
            self,
            Self::Jmp
                | Self::Call
                | Self::JmpIndirect
                | Self::CallIndirect
                | Self::Ret
                | Self::Leaves
                | Self::Interpret
        )
    }
}

/// Which units' registers an instruction uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Units {
    /// XMM, YMM or MXCSR.
    pub vector: bool,
    /// x87 or MMX.
    pub x87: bool,
}

impl Units {
    /// Neither.
    pub const NONE: Self = Self { vector: false, x87: false };

    /// These and `other`.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self { vector: self.vector | other.vector, x87: self.x87 | other.x87 }
    }

    /// These, but not `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self { vector: self.vector & !other.vector, x87: self.x87 & !other.x87 }
    }
}

/// What of the processor's mode decides how code is translated. Part of a translation's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mode {
    /// CPL 1 to 3.
    pub user: bool,
    /// x87 and MMX instructions do not raise #NM or #UD.
    pub x87: bool,
    /// Nor do SSE instructions.
    pub sse: bool,
    /// Nor do those with VEX prefixes.
    pub avx: bool,
    /// What is different outside 64-bit mode.
    pub legacy: Option<Legacy>,
    /// Instructions are counted: see `cpu::Cpu::stop_at`.
    pub counts: bool,
    /// Accesses are recorded: see `record`. Instructions are counted then, too.
    pub records: bool,
}

impl Mode {
    /// The vCPU's.
    #[must_use]
    pub fn of(cpu: &cpu::Cpu) -> Self {
        let x87 = !cpu.cr0.emulation() && !cpu.cr0.task_switched();
        let avx = cpu.cr4.os_xsave() && cpu.xcr0.sse() && cpu.xcr0.avx() && !cpu.cr0.task_switched();
        let avx = avx && cpu.protected();
        let (sse, legacy) = (x87 && cpu.cr4.os_fxsr(), Legacy::of(cpu));
        let records = cpu.mmu.records();
        Self { user: cpu.cpl != 0, x87, sse, avx, legacy, counts: records || cpu.stop_at.is_some(), records }
    }

    /// Default size of the code.
    #[must_use]
    pub fn code_size(self) -> CodeSize {
        self.legacy.map_or(CodeSize::Bits64, Legacy::code_size)
    }

    /// Bytes of the stack pointer that address the stack.
    #[must_use]
    pub fn stack_size(self) -> u32 {
        match self.legacy {
            None => 8,
            Some(legacy) if legacy.wide_stack => 4,
            Some(_) => 2,
        }
    }

    /// As a number of ten bits.
    #[must_use]
    pub fn bits(self) -> u64 {
        let legacy = self.legacy.map_or(0, |legacy| legacy.bits() << 1 | 1);
        let units = u64::from(self.x87) << 1 | u64::from(self.sse) << 2 | u64::from(self.avx) << 3;
        u64::from(self.user) | units | legacy << 4 | u64::from(self.counts) << 8 | u64::from(self.records) << 9
    }
}

/// How to translate `i`, and which units it uses.
#[must_use]
pub fn classify(i: &Instruction, model: &Model, mode: Mode) -> (Class, Units) {
    let none = Units::default();
    let rest = match i.flow_control() {
        FlowControl::Next => Class::Interpret,
        _ => Class::Leaves,
    };
    if i.is_invalid() || !model.executes(i) {
        return (rest, none);
    }
    match mode.legacy {
        None if narrow_address(i) => return (rest, none),
        None => {}
        // #UD in real and virtual-8086 mode.
        Some(_) if i.code().encoding() == EncodingKind::VEX && !mode.avx => return (rest, none),
        Some(legacy) => {
            if let Some(class) = legacy::classify(i, legacy, mode.user) {
                return (class, none);
            }
        }
    }
    let near = i.op_count() > 0 && i.op0_kind() == OpKind::NearBranch64;
    let control = match i.code() {
        Code::Pushq_imm8 | Code::Pushq_imm32 | Code::Push_r64 | Code::Push_rm64 => Some(Class::Push),
        Code::Pop_r64 => Some(Class::Pop),
        _ if is_system(i, mode) => Some(Class::System),
        Code::Leaveq => Some(Class::Leave),
        Code::Retnq | Code::Retnq_imm16 => Some(Class::Ret),
        Code::Jmp_rm64 => Some(Class::JmpIndirect),
        Code::Call_rm64 => Some(Class::CallIndirect),
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 if near => Some(Class::Jmp),
        Code::Call_rel32_64 if near => Some(Class::Call),
        _ if near && i.code().is_jcc_short_or_near() => Some(Class::Jcc),
        _ if i.is_string_instruction() => Some(if plain_string(i) { Class::String } else { rest }),
        Code::Loop_rel8_64_RCX | Code::Jrcxz_rel8_64 if near => Some(Class::Loop),
        // The address is in the place of an immediate.
        Code::Mov_AL_moffs8 | Code::Mov_AX_moffs16 | Code::Mov_EAX_moffs32 | Code::Mov_RAX_moffs64 => Some(rest),
        Code::Mov_moffs8_AL | Code::Mov_moffs16_AX | Code::Mov_moffs32_EAX | Code::Mov_moffs64_RAX => Some(rest),
        _ => None,
    };
    if let Some(class) = control {
        return (class, none);
    }
    if rest == Class::Leaves {
        return (rest, none);
    }
    match i.mnemonic() {
        Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Endbr32 | Mnemonic::Reservednop => (Class::Nop, none),
        Mnemonic::Prefetchnta | Mnemonic::Prefetcht0 | Mnemonic::Prefetcht1 | Mnemonic::Prefetcht2 => {
            (Class::Nop, none)
        }
        // It may have to let another vCPU run.
        Mnemonic::Pause => (rest, none),
        Mnemonic::Prefetchw => (Class::Nop, none),
        Mnemonic::Lea if i.memory_base() == Register::EIP => (rest, none),
        Mnemonic::Lea => (Class::Lea, none),
        mnemonic if is_integer(mnemonic) && integer_operands(i) => (Class::Plain, none),
        _ => host_unit(i, mode),
    }
}

/// Whether it is a system instruction that changes the vCPU where it is, if it may: see `translate::system`.
fn is_system(i: &Instruction, mode: Mode) -> bool {
    let control = matches!(i.op1_register(), Register::CR0 | Register::CR2 | Register::CR3 | Register::CR4);
    match i.code() {
        Code::Pushfq | Code::Popfq | Code::Cld | Code::Std | Code::Serialize => true,
        Code::Rdtsc | Code::Rdtscp | Code::Rdpid_r64 | Code::Rdpkru => true,
        Code::Rdfsbase_r32 | Code::Rdfsbase_r64 | Code::Rdgsbase_r32 | Code::Rdgsbase_r64 => true,
        Code::Wrfsbase_r32 | Code::Wrfsbase_r64 | Code::Wrgsbase_r32 | Code::Wrgsbase_r64 => true,
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => i.op0_kind() == OpKind::Register,
        Code::Cli | Code::Sti | Code::Swapgs => !mode.user,
        Code::Clac | Code::Stac => !mode.user && host::gs::is_direct(),
        Code::Mov_r64_cr => !mode.user && control,
        _ => false,
    }
}

/// Whether a string instruction is one between memory and registers, with 64-bit addresses in flat segments.
fn plain_string(i: &Instruction) -> bool {
    let flat = |n| match i.op_kind(n) {
        OpKind::MemorySegRSI => !matches!(i.memory_segment(), Register::FS | Register::GS),
        OpKind::MemoryESRDI => true,
        OpKind::Register => i.op_register(n) != Register::DX,
        _ => false,
    };
    let loads = matches!(i.mnemonic(), Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq);
    let repeated = i.has_rep_prefix() || i.has_repne_prefix();
    // Nobody loads repeatedly.
    !(loads && repeated) && (0..i.op_count()).all(flat)
}

/// Instructions with 32-bit addresses in 64-bit mode.
fn narrow_address(i: &Instruction) -> bool {
    let memory = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory);
    let (base, index) = (i.memory_base(), i.memory_index());
    memory
        && i.mnemonic() != Mnemonic::Lea
        && (base == Register::EIP
            || base.is_gpr32()
            || index.is_gpr32()
            || (base == Register::None && index == Register::None && i.memory_displ_size() == 4 && wraps(i)))
}

/// An address of a displacement alone that is not what 64-bit sign extension makes of it.
fn wraps(i: &Instruction) -> bool {
    i32::try_from(i.memory_displacement64().cast_signed()).is_err()
}

/// Operands are general registers, immediates, and a memory operand without anything implicit.
fn integer_operands(i: &Instruction) -> bool {
    // The others are added up in the check of the access.
    let bit_offset = matches!(i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && i.op0_kind() == OpKind::Memory
        && i.op1_kind() == OpKind::Register
        && i.op1_register().size() == 2;
    !bit_offset
        && (0..i.op_count()).all(|n| match i.op_kind(n) {
            OpKind::Register => i.op_register(n).is_gpr(),
            OpKind::Memory
            | OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64 => true,
            _ => false,
        })
}

fn is_integer(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Movnti
            | M::Movbe
            | M::Xchg
            | M::Bswap
            | M::Add
            | M::Adc
            | M::Sub
            | M::Sbb
            | M::Cmp
            | M::And
            | M::Or
            | M::Xor
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Mul
            | M::Imul
            | M::Div
            | M::Idiv
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shld
            | M::Shrd
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bsf
            | M::Bsr
            | M::Popcnt
            | M::Lzcnt
            | M::Tzcnt
            | M::Crc32
            | M::Andn
            | M::Bextr
            | M::Blsi
            | M::Blsmsk
            | M::Blsr
            | M::Bzhi
            | M::Mulx
            | M::Pdep
            | M::Pext
            | M::Rorx
            | M::Sarx
            | M::Shlx
            | M::Shrx
            | M::Adcx
            | M::Adox
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Cmpxchg16b
            | M::Xadd
            | M::Clc
            | M::Stc
            | M::Cmc
            | M::Lahf
            | M::Sahf
            | M::Lfence
            | M::Mfence
            | M::Sfence
            | M::Cmova
            | M::Cmovae
            | M::Cmovb
            | M::Cmovbe
            | M::Cmove
            | M::Cmovg
            | M::Cmovge
            | M::Cmovl
            | M::Cmovle
            | M::Cmovne
            | M::Cmovno
            | M::Cmovnp
            | M::Cmovns
            | M::Cmovo
            | M::Cmovp
            | M::Cmovs
            | M::Seta
            | M::Setae
            | M::Setb
            | M::Setbe
            | M::Sete
            | M::Setg
            | M::Setge
            | M::Setl
            | M::Setle
            | M::Setne
            | M::Setno
            | M::Setnp
            | M::Setns
            | M::Seto
            | M::Setp
            | M::Sets
    )
}

/// Instructions on vector and x87 registers.
fn host_unit(i: &Instruction, mode: Mode) -> (Class, Units) {
    // They have no operand to be replaced, and every function that uses AVX ends with one of them. (64-bit code sees all
    // sixteen registers, as the host does.)
    if matches!(i.mnemonic(), Mnemonic::Vzeroupper | Mnemonic::Vzeroall) && mode.avx {
        return (Class::Plain, Units { vector: true, x87: false });
    }
    // MXCSR is the guest's where vector registers are; the host refuses the bits that the guest may not set.
    if matches!(i.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Stmxcsr) && mode.sse
        || matches!(i.mnemonic(), Mnemonic::Vldmxcsr | Mnemonic::Vstmxcsr) && mode.avx
    {
        return (Class::Plain, Units { vector: true, x87: false });
    }
    if !host::native::is_allowed(i) {
        return (Class::Interpret, Units::default());
    }
    let features = i.cpuid_features();
    let is = |register: fn(Register) -> bool| {
        (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Register && register(i.op_register(n)))
    };
    let fpu = features.iter().any(|f| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU387));
    let mmx = is(Register::is_mm) || features.contains(&CpuidFeature::MMX);
    let vex = i.code().encoding() == EncodingKind::VEX;
    let only_mmx = features.contains(&CpuidFeature::MMX) && !is(Register::is_vector_register);
    let sse = !fpu && !only_mmx;
    let units = Units { vector: sse, x87: fpu || mmx };
    let usable = if vex { mode.avx } else { (!units.vector || mode.sse) && (!units.x87 || mode.x87) };
    let class = if usable && (!vex || mode.x87 || !units.x87) { Class::Plain } else { Class::Interpret };
    (class, units)
}

#[cfg(test)]
mod tests;
