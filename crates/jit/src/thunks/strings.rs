//! Repeated string instructions: the host's own, a page at a time (APM vol. 3, 1.2.6).
//!
//! Both operands are looked up in the TLB's table. As many elements as lie in their pages are handled by the host at
//! once, the registers are what they are to be then, and the next pages are looked up. Where anything is to be said
//! against an access, an element goes on in the next page, or the vCPU is wanted elsewhere, the interpreter executes
//! the instruction on from there. Elements come one after the other whatever the operands have in common, on the host
//! as in the guest, since guest memory that is the same is the same on the host.
//!
//! Comparisons leave the flags in RFLAGS; what they find there is in the frame.

use super::{restore_flags, save_flags};
use crate::asm::{Asm, Cond, Label, Mem, RAX, RCX, RDI, RSI, RSP, Reg};
use crate::frame::Frame;
use crate::regs::{T0, T1, field};
use iced_x86::{Instruction, Mnemonic};
use memory::tlb::Entry;
use std::mem::offset_of;

/// Sizes of an element: 1, 2, 4 and 8 bytes.
const SIZES: usize = 4;
const PAGE: u32 = 4096;

/// What is done with each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Move,
    Store,
    /// Until the comparison's result is that ZF is not this.
    Scan(bool),
    Compare(bool),
}

/// All of them, in the order in which [`Strings`] has their code.
const OPERATIONS: [Operation; 6] = [
    Operation::Move,
    Operation::Store,
    Operation::Scan(true),
    Operation::Scan(false),
    Operation::Compare(true),
    Operation::Compare(false),
];

impl Operation {
    /// Of `i`, if that is one of them.
    fn of(i: &Instruction) -> Option<Self> {
        use Mnemonic as M;
        let equal = !i.has_repne_prefix();
        Some(match i.mnemonic() {
            M::Movsb | M::Movsw | M::Movsd | M::Movsq => Self::Move,
            M::Stosb | M::Stosw | M::Stosd | M::Stosq => Self::Store,
            M::Scasb | M::Scasw | M::Scasd | M::Scasq => Self::Scan(equal),
            M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => Self::Compare(equal),
            _ => return None,
        })
    }

    /// The opcode for bytes; the next one is for larger elements.
    fn opcode(self) -> u8 {
        match self {
            Self::Move => 0xa4,
            Self::Store => 0xaa,
            Self::Scan(_) => 0xae,
            Self::Compare(_) => 0xa6,
        }
    }

    /// The ZF with which it goes on, if it compares.
    fn compares(self) -> Option<bool> {
        match self {
            Self::Move | Self::Store => None,
            Self::Scan(equal) | Self::Compare(equal) => Some(equal),
        }
    }

    /// Pointers, the comparators that tell whether they may be used, and where their addends go. RAX is free where it
    /// is no operand.
    fn operands(self) -> &'static [(Reg, usize, Reg)] {
        match self {
            Self::Move => &[(RSI, Entry::READ, T0), (RDI, Entry::WRITE, RAX)],
            Self::Store => &[(RDI, Entry::WRITE, T0)],
            Self::Scan(_) => &[(RDI, Entry::READ, T0)],
            Self::Compare(_) => &[(RSI, Entry::READ, T0), (RDI, Entry::READ, RAX)],
        }
    }
}

/// Where the code for each operation and size is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strings([[usize; SIZES]; OPERATIONS.len()]);

impl Strings {
    /// What is to be called for `i`, which is repeated, with the site's number on the stack: it returns when the
    /// instruction is done, or leaves. Changes RCX, RSI and RDI as the instruction does.
    #[must_use]
    pub fn of(&self, i: &Instruction) -> Option<usize> {
        let operation = Operation::of(i)?;
        let n = OPERATIONS.iter().position(|it| *it == operation)?;
        self.0.get(n)?.get(i.memory_size().size().trailing_zeros() as usize).copied()
    }

    /// Where each is, and a name for it.
    pub fn names(&self) -> impl Iterator<Item = (usize, String)> {
        let named = |(operation, places): (Operation, [usize; SIZES])| {
            let sizes = places.into_iter().enumerate();
            sizes.map(move |(size, at)| (at, format!("{operation:?}{}", 8 << size).to_lowercase()))
        };
        OPERATIONS.into_iter().zip(self.0).flat_map(named)
    }

    /// Emits all of them; `interpret` is the thunk to leave by.
    pub fn emit(asm: &mut Asm, interpret: usize) -> Self {
        Self(OPERATIONS.map(|operation| std::array::from_fn(|size| repeated(asm, operation, size as u8, interpret))))
    }
}

/// The frame's field at `offset`: the return address and the site's number are on the stack.
const fn frame(offset: usize) -> Mem {
    field(offset + 16)
}

fn repeated(asm: &mut Asm, operation: Operation, size: u8, interpret: usize) -> usize {
    let here = asm.here();
    let operands = operation.operands();
    let uses_rax = operands.len() > 1;
    let (again, done, none) = (asm.label(), asm.label(), asm.label());
    let (straddle, slow) = (asm.label(), asm.label());
    if uses_rax {
        asm.store(frame(offset_of!(Frame, saved)), RAX);
    }
    asm.test(RCX, RCX);
    asm.jcc(Cond::E, none);
    asm.bind(again);
    for (pointer, comparator, addend) in operands {
        look_up(asm, *pointer, *comparator as i32, *addend, slow);
    }
    count(asm, operands, size, straddle);
    for (pointer, _, addend) in operands {
        asm.lea(*pointer, Mem::at(*pointer, 0).index(*addend, 0));
    }
    host(asm, operation, size);
    for (pointer, _, addend) in operands {
        // The negated addend is one more than its complement. No flag changes.
        asm.not(*addend);
        asm.lea(*pointer, Mem::at(*pointer, 1).index(*addend, 0));
    }
    asm.load(T1, frame(offset_of!(Frame, left)));
    match operation.compares() {
        Some(equal) => {
            // RCX is what was left when the comparison ended it.
            asm.lea(RCX, Mem::at(RCX, 0).index(T1, 0));
            asm.jcc(if equal { Cond::NE } else { Cond::E }, done);
            // JRCXZ to the jump, JMP over it.
            asm.raw(&[0xe3, 2, 0xeb, 5]);
            asm.jmp(done);
            asm.mov(T0, RAX);
            save_flags(asm, offset_of!(Frame, flags) + 16);
            asm.mov(RAX, T0);
        }
        None => {
            asm.mov(RCX, T1);
            asm.test(RCX, RCX);
            asm.jcc(Cond::E, done);
        }
    }
    // Is the vCPU wanted? The mask is 0 then.
    asm.cmp_zero32(frame(offset_of!(Frame, jump_mask)));
    asm.jcc(Cond::NE, again);
    asm.jmp(slow);
    asm.bind(straddle);
    asm.load(RCX, frame(offset_of!(Frame, left)));
    asm.bind(slow);
    if uses_rax {
        asm.load(RAX, frame(offset_of!(Frame, saved)));
    }
    // The site's number stays.
    asm.lea(RSP, Mem::at(RSP, 8));
    asm.jmp_to(interpret);
    asm.bind(none);
    if operation.compares().is_some() {
        asm.mov(T0, RAX);
        restore_flags(asm, offset_of!(Frame, flags) + 16);
        asm.mov(RAX, T0);
    }
    asm.bind(done);
    if uses_rax {
        asm.load(RAX, frame(offset_of!(Frame, saved)));
    }
    asm.ret(8);
    here
}

/// Puts the addend of the page at `pointer` into `addend`, if nothing but a load (or store) is needed there. Uses T1.
fn look_up(asm: &mut Asm, pointer: Reg, comparator: i32, addend: Reg, slow: Label) {
    asm.mov(addend, pointer);
    asm.shr(addend, 7);
    asm.and_mem(addend, frame(offset_of!(Frame, tlb_mask)));
    asm.mov(T1, pointer);
    asm.and_imm(T1, -(PAGE as i32));
    asm.cmp_mem(T1, Mem::gs(addend, comparator));
    asm.jcc(Cond::NE, slow);
    asm.load(addend, Mem::gs(addend, Entry::ADDEND as i32));
}

/// Puts into RCX how many elements lie in the operands' pages, RCX at most, and into the frame how many are left then;
/// to `straddle` if that is none.
fn count(asm: &mut Asm, operands: &[(Reg, usize, Reg)], size: u8, straddle: Label) {
    let left = frame(offset_of!(Frame, left));
    asm.store(left, RCX);
    for (n, (pointer, ..)) in operands.iter().enumerate() {
        let offset = if n == 0 { T1 } else { RCX };
        asm.mov32(offset, *pointer);
        asm.and_imm(offset, PAGE as i32 - 1);
    }
    if operands.len() > 1 {
        // The one that is nearer to the end.
        asm.cmp(T1, RCX);
        asm.cmov(Cond::B, T1, RCX);
    }
    asm.mov_imm32(RCX, PAGE);
    asm.sub(RCX, T1);
    asm.shr(RCX, size);
    asm.cmp_mem(RCX, left);
    asm.cmov_mem(Cond::A, RCX, left);
    asm.test(RCX, RCX);
    asm.jcc(Cond::E, straddle);
    asm.sub_to_mem(left, RCX);
}

/// The instruction itself, repeated.
fn host(asm: &mut Asm, operation: Operation, size: u8) {
    if size == 1 {
        asm.raw(&[0x66]);
    }
    asm.raw(&[if operation.compares() == Some(false) { 0xf2 } else { 0xf3 }]);
    if size == 3 {
        asm.raw(&[0x48]);
    }
    asm.raw(&[operation.opcode() + u8::from(size != 0)]);
}
