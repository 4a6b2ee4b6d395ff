//! Every instruction that a CPU model offers in a mode, by class.
//!
//! Left out everywhere: what depends on anything but the guest's own state (time stamps, random numbers, performance
//! counters), ports, HLT, BSWAP of 16 bits, whose result is undefined, the form of UD0 without operands, and the NOPs that
//! are instructions of MPX elsewhere. Left out at CPL 0: what gives the processor
//! other tables, modes or model-specific registers, after which little of the machine would be left.

use crate::differences::Options;
use cpu::cpuid::Model;
use iced_x86::{Code, CpuidFeature, FlowControl, Instruction, Mnemonic, OpCodeOperandKind};

/// What kind of instruction it is; how often each is generated depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// General-purpose registers and memory.
    Integer,
    /// XMM and YMM registers.
    Vector,
    /// MMX registers.
    Mmx,
    /// The x87.
    X87,
    /// String instructions.
    String,
    /// Branches to somewhere near.
    Branch,
    /// Other control flow: returns, far and indirect transfers, interrupts, system calls.
    Flow,
    /// Segments, flags and tables of the system, cache control.
    System,
}

/// All of them, in the order of [`Catalogue`]'s lists.
pub const CLASSES: [Class; 8] =
    [Class::Integer, Class::Vector, Class::Mmx, Class::X87, Class::String, Class::Branch, Class::Flow, Class::System];

/// The instructions that can be had in a mode.
#[derive(Debug)]
pub struct Catalogue {
    /// Of each class: for user mode, and for the supervisor.
    lists: [[Vec<Code>; 2]; CLASSES.len()],
}

impl Catalogue {
    /// What `model` offers to code of `bits`.
    #[must_use]
    pub fn new(model: &Model, bits: u32, options: Options) -> Self {
        let mut lists: [[Vec<Code>; 2]; CLASSES.len()] = Default::default();
        for code in Code::values().filter(|&code| exists(model, code, bits) && !is_excluded(code)) {
            if stores_x87_pointers(code) && !options.x87_pointers {
                continue;
            }
            let [user, kernel] = &mut lists[class(code) as usize];
            user.push(code);
            if !upsets_the_machine(code) {
                kernel.push(code);
            }
        }
        Self { lists }
    }

    /// Those of a class that may run at privilege level `cpl`.
    #[must_use]
    pub fn list(&self, class: Class, cpl: u8) -> &[Code] {
        let [user, kernel] = &self.lists[class as usize];
        if cpl == 0 { kernel } else { user }
    }
}

fn exists(model: &Model, code: Code, bits: u32) -> bool {
    let info = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    // Vitrine follows Intel, whose 64-bit mode has no branches with 16-bit operands.
    let narrow = matches!(info.op0_kind(), OpCodeOperandKind::br16_1 | OpCodeOperandKind::br16_2)
        || matches!(code, Code::Retnw | Code::Retnw_imm16 | Code::Call_rm16 | Code::Jmp_rm16);
    if narrow && bits == 64 {
        return false;
    }
    info.is_instruction() && info.is_available_in_mode(bits) && !info.fwait() && model.executes(&instruction)
}

fn is_excluded(code: Code) -> bool {
    use Mnemonic as M;
    let mnemonic = code.mnemonic();
    matches!(code, Code::Bswap_r16 | Code::Ud0)
        || code.op_code().is_input_output()
        || code.cpuid_features().contains(&CpuidFeature::MPX)
        || matches!(mnemonic, M::Rdtsc | M::Rdtscp | M::Rdrand | M::Rdseed | M::Rdpmc | M::Hlt)
        || matches!(mnemonic, M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd)
}

fn upsets_the_machine(code: Code) -> bool {
    use Mnemonic as M;
    let mnemonic = code.mnemonic();
    let to_control = matches!(code.op_code().op0_kind(), OpCodeOperandKind::cr_reg | OpCodeOperandKind::dr_reg);
    to_control
        || matches!(mnemonic, M::Wrmsr | M::Xsetbv | M::Lmsw | M::Lgdt | M::Lidt | M::Lldt | M::Ltr | M::Rsm)
        || matches!(mnemonic, M::Sysexit | M::Sysexitq)
}

/// Whether tiers that agree with each other, as far as `options` say that they are to, may disagree about it.
#[must_use]
pub fn may_differ(code: Code, options: Options) -> bool {
    let random = matches!(code.mnemonic(), Mnemonic::Rdrand | Mnemonic::Rdseed);
    random || stores_x87_pointers(code) && !options.x87_pointers
}

fn stores_x87_pointers(code: Code) -> bool {
    use Mnemonic as M;
    matches!(
        code.mnemonic(),
        M::Fnsave
            | M::Fnstenv
            | M::Fxsave
            | M::Fxsave64
            | M::Xsave
            | M::Xsave64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xsaves
            | M::Xsaves64
    )
}

/// The class of an instruction.
#[must_use]
pub fn class(code: Code) -> Class {
    use OpCodeOperandKind as K;
    let info = code.op_code();
    let has = |kinds: &[K]| info.op_kinds().iter().any(|kind| kinds.contains(kind));
    let features = code.cpuid_features();
    if code.is_string_instruction() {
        Class::String
    } else if has(&[K::br16_1, K::br32_1, K::br64_1, K::br16_2, K::br32_4, K::br64_4]) {
        Class::Branch
    } else if code.flow_control() != FlowControl::Next {
        Class::Flow
    } else if features.iter().any(|feature| matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU387))
        || features.contains(&CpuidFeature::FPU287)
    {
        Class::X87
    } else if has(&[K::mm_reg, K::mm_rm, K::mm_or_mem]) || code == Code::Emms {
        Class::Mmx
    } else if has(&[
        K::xmm_reg,
        K::xmm_rm,
        K::xmm_or_mem,
        K::xmm_vvvv,
        K::ymm_reg,
        K::ymm_rm,
        K::ymm_or_mem,
        K::ymm_vvvv,
        K::mem_vsib32x,
    ]) || matches!(code.mnemonic(), Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr | Mnemonic::Vzeroupper)
    {
        Class::Vector
    } else if info.is_privileged()
        || info.may_require_cpl0()
        || has(&[K::seg_reg, K::es, K::cs, K::ss, K::ds, K::fs, K::gs])
        || matches!(code.mnemonic(), Mnemonic::Cpuid | Mnemonic::Cli | Mnemonic::Sti | Mnemonic::Wrpkru)
    {
        Class::System
    } else {
        Class::Integer
    }
}
