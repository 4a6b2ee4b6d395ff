//! Which instructions may run on the host, and what their stubs must load, save and check.
//!
//! The list is positive: an instruction runs only if every CPUID feature that it belongs to is listed here and its
//! mnemonic is not one of those that touch more than registers and one plain memory operand. So nothing that branches,
//! uses a segment, the stack, I/O, system registers or the host's own state can ever get into a stub.

use bitflags::bitflags;
use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpAccess, OpKind, Register};

bitflags! {
    /// What an instruction needs of its surroundings.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Needs: u16 {
        /// The memory operand is read.
        const READ = 1 << 0;
        /// The memory operand is written.
        const WRITE = 1 << 1;
        /// An x87 instruction proper.
        const X87 = 1 << 2;
        /// Uses MM registers (or, as EMMS, their tags).
        const MMX = 1 << 3;
        /// Uses XMM registers, with a legacy encoding.
        const SSE = 1 << 4;
        /// Uses XMM or YMM registers, with a VEX encoding.
        const AVX = 1 << 5;
        /// A VEX encoding, of whatever registers: #UD in real and virtual-8086 mode.
        const VEX = 1 << 6;
        /// May read or write MXCSR.
        const MXCSR = 1 << 7;
        /// Reads status flags, or leaves some as they were.
        const FLAGS_IN = 1 << 8;
        /// Writes status flags.
        const FLAGS_OUT = 1 << 9;
        /// Writes memory and other guest state too: that memory can be written must be known beforehand.
        const PROBE = 1 << 10;
        /// Demands alignment by its own definition (MOVAPS, MOVNTDQ, …), whatever MXCSR.MM says.
        const ALIGNED_MOVE = 1 << 11;
        /// An x87 control instruction: the last-instruction pointers stay as they are.
        const CONTROL = 1 << 12;
    }
}

/// Features whose instructions work on registers and at most one memory operand.
const FEATURES: [CpuidFeature; 30] = [
    CpuidFeature::FPU,
    CpuidFeature::FPU387,
    CpuidFeature::CMOV,
    CpuidFeature::MMX,
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::SSE4_2,
    CpuidFeature::SSE4A,
    CpuidFeature::AES,
    CpuidFeature::PCLMULQDQ,
    CpuidFeature::SHA,
    CpuidFeature::GFNI,
    CpuidFeature::F16C,
    CpuidFeature::FMA,
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::VAES,
    CpuidFeature::VPCLMULQDQ,
    CpuidFeature::AVX_VNNI,
    CpuidFeature::BMI1,
    CpuidFeature::BMI2,
    CpuidFeature::ADX,
    CpuidFeature::LZCNT,
    CpuidFeature::POPCNT,
    CpuidFeature::MOVBE,
    CpuidFeature::RDRAND,
    CpuidFeature::RDSEED,
];

/// Features with floating-point instructions that use MXCSR.
const FLOAT: [CpuidFeature; 8] = [
    CpuidFeature::SSE,
    CpuidFeature::SSE2,
    CpuidFeature::SSE3,
    CpuidFeature::SSE4_1,
    CpuidFeature::AVX,
    CpuidFeature::AVX2,
    CpuidFeature::FMA,
    CpuidFeature::F16C,
];

/// Instructions of those features that do more, or that are no more than an access to [`crate::vector::VectorState`].
fn is_special(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        // MXCSR and the whole register file.
        M::Ldmxcsr | M::Stmxcsr | M::Vldmxcsr | M::Vstmxcsr | M::Vzeroall | M::Vzeroupper
        // Memory operands of which only some bytes are accessed.
        | M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu | M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
        | M::Vgatherdps | M::Vgatherdpd | M::Vgatherqps | M::Vgatherqpd
        | M::Vpgatherdd | M::Vpgatherdq | M::Vpgatherqd | M::Vpgatherqq
        // No operands, or only an address.
        | M::Lfence | M::Mfence | M::Sfence | M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2
        // x87 environment, status and control.
        | M::Fldenv | M::Fnstenv | M::Fstenv | M::Frstor | M::Fnsave | M::Fsave | M::Fninit | M::Finit
        | M::Fnclex | M::Fclex | M::Fnstsw | M::Fstsw | M::Fnstcw | M::Fstcw | M::Wait
        | M::Fndisi | M::Fdisi | M::Fneni | M::Feni | M::Fnsetpm | M::Fsetpm
    )
}

/// Moves whose operand must be aligned by definition.
fn is_aligned_move(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Movaps
            | M::Movapd
            | M::Movdqa
            | M::Movntps
            | M::Movntpd
            | M::Movntdq
            | M::Movntdqa
            | M::Vmovaps
            | M::Vmovapd
            | M::Vmovdqa
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdq
            | M::Vmovntdqa
    )
}

/// Legacy SSE instructions whose 16-byte operand need not be aligned, or (SHA) must be on some processors only, which
/// the host itself then tells.
fn is_unaligned(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestrm
            | M::Pcmpistri
            | M::Pcmpistrm
            | M::Pcmpestri64
            | M::Pcmpestrm64
            | M::Sha1msg1
            | M::Sha1msg2
            | M::Sha1nexte
            | M::Sha1rnds4
            | M::Sha256msg1
            | M::Sha256msg2
            | M::Sha256rnds2
    )
}

/// The instruction's memory operand must be aligned to so many bytes; 0 if it need not be.
pub(super) fn alignment(instruction: &Instruction, size: usize) -> u8 {
    let mnemonic = instruction.mnemonic();
    let legacy = instruction.code().encoding() == EncodingKind::Legacy && size == 16;
    if is_aligned_move(mnemonic) || (legacy && !is_unaligned(mnemonic)) { u8::try_from(size).unwrap_or(0) } else { 0 }
}

/// Whether a vector instruction only moves, permutes or computes on integers. (`Debug` gives the mnemonic's name; the
/// families that use MXCSR share no prefix with those that do not.)
fn is_integer(mnemonic: Mnemonic) -> bool {
    const PREFIXES: [&str; 19] = [
        "P",
        "Mov",
        "Aes",
        "Sha1",
        "Sha2",
        "Gf2p8",
        "And",
        "Or",
        "Xor",
        "Shuf",
        "Unpck",
        "Blend",
        "Insert",
        "Extr",
        "Broadcast",
        "Lddqu",
        "Mpsadbw",
        "Test",
        "Emms",
    ];
    let name = format!("{mnemonic:?}");
    let name = match name.strip_prefix('V') {
        Some(rest) => {
            let mut letters = rest.chars();
            letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
        }
        None => name,
    };
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether the instruction may run on the host at all.
#[must_use]
pub fn is_allowed(instruction: &Instruction) -> bool {
    let code = instruction.code();
    let features = instruction.cpuid_features();
    !features.is_empty()
        && features.iter().all(|feature| FEATURES.contains(feature))
        && matches!(code.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
        && !is_special(instruction.mnemonic())
        && !instruction.is_vsib()
        && (0..instruction.op_count()).all(|n| {
            matches!(
                instruction.op_kind(n),
                OpKind::Register | OpKind::Memory | OpKind::Immediate8 | OpKind::Immediate8_2nd
            )
        })
        && code != Code::INVALID
}

/// What the instruction, whose operand accesses and registers are given, needs.
pub(super) fn needs(instruction: &Instruction, memory: OpAccess, used: &[iced_x86::UsedRegister]) -> Needs {
    let mut needs = Needs::empty();
    let mnemonic = instruction.mnemonic();
    let features = instruction.cpuid_features();
    if features.contains(&CpuidFeature::FPU) || features.contains(&CpuidFeature::FPU387) {
        needs |= Needs::X87;
        needs.set(Needs::CONTROL, mnemonic == Mnemonic::Fldcw);
    }
    // CVTPI2PS and CVTPI2PD with an operand in memory leave the x87 alone, as AMD's processors do. (Intel's manual says so
    // of the second only.)
    needs.set(Needs::MMX, used.iter().any(|r| r.register().is_mm()) || mnemonic == Mnemonic::Emms);
    let vex = instruction.code().encoding() == EncodingKind::VEX;
    needs.set(Needs::VEX, vex);
    // Conversions between memory and general registers have no vector register and yet are SSE instructions.
    let float = features.iter().any(|feature| FLOAT.contains(feature))
        && !needs.contains(Needs::X87)
        && !matches!(mnemonic, Mnemonic::Crc32)
        && !is_integer(mnemonic);
    let vector = float || used.iter().any(|r| r.register().is_vector_register());
    needs.set(if vex { Needs::AVX } else { Needs::SSE }, vector);
    needs.set(Needs::MXCSR, float);
    needs.set(Needs::READ, matches!(memory, OpAccess::Read | OpAccess::ReadWrite | OpAccess::ReadCondWrite));
    needs.set(
        Needs::WRITE,
        matches!(memory, OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite),
    );
    let definite = instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set();
    let written = instruction.rflags_modified() & RFLAGS_STATUS;
    needs.set(Needs::FLAGS_OUT, written != 0);
    // What is undefined may in fact be left as it was.
    let some_stay = written != 0 && definite & RFLAGS_STATUS != RFLAGS_STATUS;
    needs.set(Needs::FLAGS_IN, instruction.rflags_read() & RFLAGS_STATUS != 0 || some_stay);
    needs.set(Needs::ALIGNED_MOVE, is_aligned_move(mnemonic));
    let writes_register = used.iter().any(|r| is_write(r.access()) && r.register() != Register::None);
    let other = needs.intersects(Needs::X87 | Needs::MMX | Needs::MXCSR | Needs::FLAGS_OUT) || writes_register;
    needs.set(Needs::PROBE, needs.contains(Needs::WRITE) && other);
    needs
}

/// The six status flags in iced's notation.
const RFLAGS_STATUS: u32 = iced_x86::RflagsBits::OF
    | iced_x86::RflagsBits::SF
    | iced_x86::RflagsBits::ZF
    | iced_x86::RflagsBits::AF
    | iced_x86::RflagsBits::CF
    | iced_x86::RflagsBits::PF;

/// Whether an access writes, if only sometimes.
pub(super) fn is_write(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}
