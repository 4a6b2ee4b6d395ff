//! A case: a start state and a list of pieces of code, which are laid out and encoded.
//!
//! Pieces stay apart until then so that the minimiser can take some away: branches, tables and stores of addresses
//! name labels.

use crate::layout::{CODE, CODE_LEN, EXIT, EXIT_32, PAGE};
use crate::start::Start;
use iced_x86::{Code, Encoder, Instruction, OpKind};

/// The longest instruction.
const MAX: usize = 15;
/// What falls off the end of a page when a piece asks for a place: INT3.
const FILLER: u8 = 0xcc;

/// A place in the code.
pub type Label = usize;

/// How an instruction names a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// As the target of a near branch.
    Branch,
    /// As an immediate operand.
    Immediate,
    /// As the address of its memory operand.
    Displacement,
}

/// A piece of code.
#[derive(Clone, Debug)]
pub enum Piece {
    /// An instruction that can be anywhere.
    Bytes {
        /// Its encoding.
        bytes: [u8; MAX],
        /// How much of it.
        len: u8,
    },
    /// An instruction with an operand relative to RIP, whose address is absolute here.
    Relative(Instruction),
    /// An instruction with a label for an operand, plus so many bytes.
    Labelled(Instruction, Use, Label, i32),
    /// Names this place.
    Label(Label),
    /// The addresses of labels, eight bytes each.
    Table(Vec<Label>),
    /// What follows begins so many bytes before the end of a page.
    BeforePageEnd(u16),
}

impl Piece {
    /// From an instruction's encoding.
    #[must_use]
    pub fn bytes(code: &[u8]) -> Self {
        let mut bytes = [0; MAX];
        let len = code.len().min(MAX);
        bytes[..len].copy_from_slice(&code[..len]);
        Self::Bytes { bytes, len: len as u8 }
    }
}

/// A case.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it was made from.
    pub seed: u64,
    /// Where in the pages of code it begins.
    pub offset: usize,
    /// The state before it.
    pub start: Start,
    /// Its code.
    pub pieces: Vec<Piece>,
}

/// What a case puts into memory.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// Offset of the code in its pages.
    pub offset: usize,
    /// The code.
    pub code: Vec<u8>,
    /// Where an instruction begins, as an offset into the code, and its length.
    pub lengths: Vec<(usize, u8)>,
}

impl Program {
    /// The address of its first instruction.
    #[must_use]
    pub fn entry(&self) -> u64 {
        CODE + self.offset as u64
    }
}

/// Lays out and encodes cases.
#[allow(missing_debug_implementations, reason = "the encoder has none")]
pub struct Assembler {
    encoders: [Encoder; 2],
    labels: Vec<u64>,
    fixups: Vec<(usize, usize)>,
}

impl Default for Assembler {
    fn default() -> Self {
        Self { encoders: [Encoder::new(32), Encoder::new(64)], labels: Vec::new(), fixups: Vec::new() }
    }
}

impl Assembler {
    /// The encoder for code of `bits`.
    pub fn encoder(&mut self, bits: u32) -> &mut Encoder {
        &mut self.encoders[usize::from(bits == 64)]
    }

    /// Encodes one instruction at `ip`.
    fn encode(&mut self, bits: u32, instruction: &Instruction, ip: u64) -> Option<Vec<u8>> {
        let encoder = self.encoder(bits);
        let result = encoder.encode(instruction, ip);
        let bytes = encoder.take_buffer();
        result.is_ok().then_some(bytes)
    }

    /// The bytes of a case. `None` if it does not fit: a branch does not reach, or there is too much.
    pub fn assemble(&mut self, case: &Case) -> Option<Program> {
        let bits = case.start.bits;
        let mut program = Program { offset: case.offset, ..Program::default() };
        self.labels.clear();
        self.fixups.clear();
        for (n, piece) in case.pieces.iter().enumerate() {
            let at = program.code.len();
            let here = program.entry() + at as u64;
            match piece {
                Piece::Bytes { bytes, len } => program.code.extend_from_slice(bytes.get(..usize::from(*len))?),
                Piece::Relative(instruction) => program.code.extend(self.encode(bits, instruction, here)?),
                // Its length does not depend on where the label is.
                Piece::Labelled(instruction, how, ..) => {
                    let instruction = resolve(instruction, *how, here);
                    program.code.extend(self.encode(bits, &instruction, here)?);
                    self.fixups.push((n, at));
                }
                Piece::Label(label) => {
                    self.labels.resize(self.labels.len().max(label + 1), here);
                    self.labels[*label] = here;
                }
                Piece::Table(labels) => {
                    program.code.extend(std::iter::repeat_n(0, labels.len() * 8));
                    self.fixups.push((n, at));
                }
                Piece::BeforePageEnd(distance) => {
                    let end = (here + u64::from(*distance)).next_multiple_of(PAGE);
                    let fill = end - u64::from(*distance) - here;
                    program.code.extend(std::iter::repeat_n(FILLER, fill as usize));
                }
            }
            if !matches!(piece, Piece::Table(_) | Piece::BeforePageEnd(_) | Piece::Label(_)) {
                program.lengths.push((at, (program.code.len() - at) as u8));
            }
        }
        self.end(bits, &mut program)?;
        self.fix(case, &mut program)?;
        let fits = program.offset + program.code.len() <= CODE_LEN as usize;
        fits.then_some(program)
    }

    /// Fills in the labels.
    fn fix(&mut self, case: &Case, program: &mut Program) -> Option<()> {
        for (n, at) in std::mem::take(&mut self.fixups) {
            let place = |label: &Label| self.labels.get(*label).copied();
            match &case.pieces[n] {
                Piece::Labelled(instruction, how, label, add) => {
                    let target = place(label)?.wrapping_add_signed(i64::from(*add));
                    let instruction = resolve(instruction, *how, target);
                    let bytes = self.encode(case.start.bits, &instruction, program.entry() + at as u64)?;
                    program.code.get_mut(at..at + bytes.len())?.copy_from_slice(&bytes);
                }
                Piece::Table(labels) => {
                    let words = labels.iter().map(place).collect::<Option<Vec<u64>>>()?;
                    for (slot, word) in program.code.get_mut(at..)?.chunks_exact_mut(8).zip(words) {
                        slot.copy_from_slice(&word.to_le_bytes());
                    }
                }
                _ => {}
            }
        }
        Some(())
    }

    /// A jump to where every case ends.
    fn end(&mut self, bits: u32, program: &mut Program) -> Option<()> {
        let (code, target) = if bits == 64 { (Code::Jmp_rel32_64, EXIT) } else { (Code::Jmp_rel32_32, EXIT + EXIT_32) };
        let jump = Instruction::with_branch(code, target).ok()?;
        let here = program.entry() + program.code.len() as u64;
        let bytes = self.encode(bits, &jump, here)?;
        program.code.extend(bytes);
        Some(())
    }
}

/// The instruction with the address in place.
fn resolve(instruction: &Instruction, how: Use, target: u64) -> Instruction {
    let mut i = *instruction;
    match how {
        Use::Branch if i.op0_kind() == OpKind::NearBranch32 => i.set_near_branch32(target as u32),
        Use::Branch if i.op0_kind() == OpKind::NearBranch16 => i.set_near_branch16(target as u16),
        Use::Branch => i.set_near_branch64(target),
        Use::Immediate => {
            let wide = |kind| matches!(kind, OpKind::Immediate32 | OpKind::Immediate64 | OpKind::Immediate32to64);
            let operand = (0..i.op_count()).find(|&n| wide(i.op_kind(n)));
            // The addresses of a case fit 32 bits without a sign.
            let _ = operand.map(|n| i.try_set_immediate_u64(n, target));
        }
        Use::Displacement => i.set_memory_displacement64(target),
    }
    i
}
