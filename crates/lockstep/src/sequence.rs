//! Random sequences: up to a dozen and a half instructions of any kind, one after the other, with branches that go
//! forward.

use crate::case::{Assembler, Case, Piece, Use};
use crate::catalogue::{CLASSES, Catalogue, Class, class};
use crate::differences::Options;
use crate::layout::{COUNTERS, PAGE, spot};
use crate::operands::Operands;
use crate::random::Random;
use crate::start::{Roles, Start};
use cpu::cpuid::Model;
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, MemoryOperand, OpAccess, Register,
};

/// How often each class is taken, of [`TOTAL`].
const WEIGHTS: [(Class, u64); CLASSES.len()] = [
    (Class::Integer, 54),
    (Class::Vector, 24),
    (Class::Mmx, 3),
    (Class::X87, 6),
    (Class::String, 3),
    (Class::Branch, 4),
    (Class::Flow, 1),
    (Class::System, 5),
];
const TOTAL: u64 = 100;
/// How often an instruction is tried: an operand may be impossible, or it does not fit what is asked for.
const TRIES: usize = 32;

/// What cases are made with.
#[allow(missing_debug_implementations, reason = "the encoder has none")]
pub struct Generator {
    /// For code of 32 and of 64 bits.
    catalogues: [Catalogue; 2],
    model: Model,
    options: Options,
    /// Encodes them.
    pub assembler: Assembler,
    info: InstructionInfoFactory,
}

/// How an instruction may be.
#[derive(Clone, Copy, Debug)]
pub struct Constraints {
    /// Bits of the code.
    pub bits: u32,
    /// Privilege level.
    pub cpl: u8,
    /// Registers that keep their contents.
    pub reserved: u16,
    /// What becomes of the flags.
    pub flags: Flags,
}

/// What an instruction does with the status flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// Anything.
    Any,
    /// Leaves them alone.
    Keep,
    /// Writes some.
    Write,
    /// Depends on some.
    Read,
}

impl Flags {
    fn fits(self, instruction: &Instruction) -> bool {
        match self {
            Self::Any => true,
            Self::Keep => instruction.rflags_modified() == 0,
            Self::Write => instruction.rflags_modified() != 0,
            Self::Read => instruction.rflags_read() != 0,
        }
    }
}

impl Constraints {
    /// For code that begins with `start`.
    #[must_use]
    pub fn new(start: &Start) -> Self {
        Self { bits: start.bits, cpl: start.cpl, reserved: 0, flags: Flags::Any }
    }
}

impl Generator {
    /// For the fullest model.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let model = Model::max();
        let catalogues = [32, 64].map(|bits| Catalogue::new(&model, bits, options));
        Self { catalogues, model, options, assembler: Assembler::default(), info: InstructionInfoFactory::new() }
    }

    /// The instructions there are for code of `bits`.
    #[must_use]
    pub fn catalogue(&self, bits: u32) -> &Catalogue {
        &self.catalogues[usize::from(bits == 64)]
    }

    /// The sequence of a seed.
    pub fn sequence(&mut self, seed: u64) -> Case {
        let random = &mut Random::new(seed);
        let bits = if random.one_in(6) { 32 } else { 64 };
        let (start, mut roles) = Start::random(random, bits);
        let offset = match random.below(4) {
            0 => PAGE as usize * (1 + random.index(2)) - random.index(64),
            _ => random.index(PAGE as usize),
        };
        let mut case = Case { seed, offset, start, pieces: Vec::new() };
        let constraints = Constraints::new(&case.start);
        for _ in 0..1 + random.index(16) {
            if random.one_in(24) {
                case.pieces.extend(self.point_somewhere(random, bits, &mut roles));
            }
            if random.one_in(16) {
                case.pieces.extend(self.odd(random, &constraints));
                continue;
            }
            let mut left = random.below(TOTAL);
            let class = WEIGHTS.iter().find(|(_, weight)| {
                let found = left < *weight;
                left = left.saturating_sub(*weight);
                found
            });
            let class = class.map_or(Class::Integer, |(class, _)| *class);
            let n = case.pieces.len();
            self.instruction(random, class, &constraints, &mut roles, n, &mut case.pieces);
        }
        place_labels(&mut case.pieces);
        if random.one_in(4) {
            case.pieces.extend(self.again(random, bits).into_iter().flatten());
        }
        case
    }

    /// Runs the sequence once more: what a tier remembers of the first time is put to use.
    fn again(&mut self, random: &mut Random, bits: u32) -> Option<[Piece; 2]> {
        let (narrow, wide) = (Code::Jne_rel32_32, Code::Jne_rel32_64);
        let branch = Instruction::with_branch(if bits == 64 { wide } else { narrow }, 0).ok()?;
        let counter = MemoryOperand::with_displ(COUNTERS, if bits == 64 { 8 } else { 4 });
        // The counter is zero at first.
        let count = Instruction::with2(Code::Xor_rm32_imm8, counter, 1).ok()?;
        let count = self.piece(random, bits, &count)?;
        Some([count, Piece::Labelled(branch, Use::Branch, 0, 0)])
    }

    /// One instruction of a class. A branch goes to one of the labels behind `label`.
    pub fn instruction(
        &mut self,
        random: &mut Random,
        class: Class,
        constraints: &Constraints,
        roles: &mut Roles,
        label: usize,
        pieces: &mut Vec<Piece>,
    ) {
        for _ in 0..TRIES {
            let code = random.pick(self.catalogue(constraints.bits).list(class, constraints.cpl));
            let mut known = *roles;
            let mut operands =
                Operands { random, bits: constraints.bits, roles: &mut known, reserved: constraints.reserved };
            let Some(instruction) = operands.fill(code) else { continue };
            if self.writes(&instruction, constraints.reserved) || !constraints.flags.fits(&instruction) {
                continue;
            }
            let piece = if class == Class::Branch {
                let target = label + 1 + random.index(4);
                Some(Piece::Labelled(instruction, Use::Branch, target, 0))
            } else {
                self.piece(random, constraints.bits, &instruction)
            };
            if let Some(piece) = piece {
                *roles = known;
                pieces.push(piece);
                return;
            }
        }
    }

    /// An instruction encoded in one of the ways that there are. `None` if it cannot be encoded.
    pub fn piece(&mut self, random: &mut Random, bits: u32, instruction: &Instruction) -> Option<Piece> {
        let encoder = self.assembler.encoder(bits);
        let choice = random.bits();
        encoder.set_prevent_vex2(choice & 7 == 0);
        encoder.set_vex_wig((choice >> 3 & 1) as u32);
        encoder.set_vex_lig((choice >> 4 & 1) as u32);
        let result = encoder.encode(instruction, crate::layout::CODE);
        let bytes = encoder.take_buffer();
        result.ok()?;
        Some(if instruction.is_ip_rel_memory_operand() { Piece::Relative(*instruction) } else { Piece::bytes(&bytes) })
    }

    /// Whether an instruction writes one of these registers.
    pub fn writes(&mut self, instruction: &Instruction, registers: u16) -> bool {
        registers != 0
            && self.info.info(instruction).used_registers().iter().any(|used| {
                let register = used.register().full_register();
                let written = !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None);
                written && register.is_gpr() && registers >> register.number() & 1 != 0
            })
    }

    /// Loads a register with an address.
    pub fn point_somewhere(&mut self, random: &mut Random, bits: u32, roles: &mut Roles) -> Option<Piece> {
        let number = random.bit(roles.pointers)?;
        let target = spot(random);
        let instruction = if bits == 64 {
            Instruction::with2(Code::Mov_r64_imm64, Register::RAX + number as u32, target).ok()?
        } else {
            Instruction::with2(Code::Mov_r32_imm32, Register::EAX + number as u32, target as u32).ok()?
        };
        self.piece(random, bits, &instruction)
    }

    /// Random bytes that decode to an instruction without control flow: odd prefixes, redundant and undefined
    /// encodings.
    fn odd(&mut self, random: &mut Random, constraints: &Constraints) -> Option<Piece> {
        let mut bytes: [u8; 16] = std::array::from_fn(|_| random.bits() as u8);
        let mut at = 0;
        for prefix in [0x66, 0xf0, 0xf3, 0xf2, 0x67, 0x64, 0x2e] {
            if random.one_in(7) {
                bytes[at] = prefix;
                at += 1;
            }
        }
        if constraints.bits == 64 && random.one_in(2) {
            bytes[at] = 0x40 | random.below(16) as u8;
            at += 1;
        }
        match random.below(4) {
            0 => bytes[at] = 0x0f,
            1 => bytes[at..at + 2].copy_from_slice(&[0x0f, random.pick(&[0x38, 0x3a, 0xba, 0xae])]),
            _ => {}
        }
        let options = DecoderOptions::FORCE_RESERVED_NOP | self.model.decoder_options();
        let mut decoder = Decoder::with_ip(constraints.bits, &bytes[..15], 0, options);
        let instruction = decoder.decode();
        let next = instruction.flow_control() == FlowControl::Next;
        let listed = self.is_listed(&instruction, constraints.cpl, constraints.bits);
        (!instruction.is_invalid() && next && listed).then(|| Piece::bytes(&bytes[..instruction.len()]))
    }

    /// Whether an instruction is one of those that the catalogue has.
    fn is_listed(&self, instruction: &Instruction, cpl: u8, bits: u32) -> bool {
        let code = instruction.code();
        let offered = self.model.executes(instruction);
        !offered || self.catalogue(bits).list(class(code), cpl).contains(&code)
    }

    /// What is compared.
    #[must_use]
    pub fn options(&self) -> Options {
        self.options
    }
}

/// Puts the labels that branches name before the instructions, and some behind the last one.
fn place_labels(pieces: &mut Vec<Piece>) {
    let count = pieces.len();
    let labelled = pieces.drain(..).enumerate().flat_map(|(n, piece)| [Piece::Label(n), piece]);
    *pieces = labelled.chain((count..count + 8).map(Piece::Label)).collect();
}
