//! What instructions do, a room a family.
//!
//! Each family offers a `select` that recognises its instructions when a block is decoded. The hot families give an
//! [`Op`] whose handler is specialised by width and operand shape; the rare ones give a [`Slow`] handler that looks at
//! the decoded instruction each time.

pub mod alu;
pub mod bits;
pub mod branch;
pub mod decimal;
pub mod far;
pub mod frame;
pub mod interrupt;
pub mod io;
pub mod moves;
pub mod muldiv;
pub mod segment;
pub mod stack;
pub mod strings;
pub mod task;

pub mod native;
pub mod vector;
pub mod x87;
pub mod xsave;

use crate::Cpu;
use crate::op::{Exec, Op, Width};
use iced_x86::{Instruction, OpKind};
use x86::Exception;

/// Where execution goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Flow {
    /// To the next instruction of the block.
    Next,
    /// To the next instruction, but out of the block: something that decoding or interrupt polling depends on may have changed.
    Break,
    /// To `regs[RIP]`, which the handler has written, with nothing else changed that decoding or polling depends on.
    Near,
    /// To `regs[RIP]`, which the handler has written, and mode, rights or flags may have changed too.
    Jump,
    /// This same instruction again after polling for interrupts (string instructions between runs).
    Repeat,
    /// To the next instruction, which waits for an interrupt.
    Halt,
}

pub mod control;
pub mod syscall;
pub mod system;

/// A handler for an instruction that is rare or large: it looks at the decoded instruction itself.
/// While it runs `regs[RIP]` is the instruction's own address, `instruction.next_ip()` is meaningless (blocks are keyed
/// by physical address): use `cpu.next_rip(instruction)`.
pub type Slow = fn(&mut Cpu, &Instruction) -> Result<Flow, Exception>;

/// Instantiates a generic handler for an operand size of 2, 4 or 8 bytes; `None` for another.
macro_rules! by_wide {
    ($size:expr, $w:ident => $handler:expr) => {{
        let handler: Option<$crate::op::Exec> = match $size {
            2 => {
                type $w = u16;
                Some($handler)
            }
            4 => {
                type $w = u32;
                Some($handler)
            }
            8 => {
                type $w = u64;
                Some($handler)
            }
            _ => None,
        };
        handler
    }};
}
pub(crate) use by_wide;

/// As [`by_wide`], for the families that have a byte form as well.
macro_rules! by_width {
    ($size:expr, $w:ident => $handler:expr) => {
        if $size == 1 {
            type $w = u8;
            let handler: Option<$crate::op::Exec> = Some($handler);
            handler
        } else {
            $crate::exec::by_wide!($size, $w => $handler)
        }
    };
}
pub(crate) use by_width;

/// Size in bytes of operand `n`: of its register, of the memory operand, or for an immediate that of operand 0.
#[must_use]
pub fn operand_size(i: &Instruction, n: u32) -> usize {
    match i.op_kind(n) {
        OpKind::Register => i.op_register(n).size(),
        OpKind::Memory => i.memory_size().size(),
        OpKind::Immediate16 => 2,
        OpKind::Immediate8 => 1,
        OpKind::Immediate32 => 4,
        OpKind::Immediate64 => 8,
        OpKind::Immediate8to16 => 2,
        OpKind::Immediate8to32 => 4,
        _ => 8,
    }
}

/// Name of a general-purpose register operand in [`Op::dst`] and [`Op::src`], by its own width.
#[must_use]
pub fn register_name(i: &Instruction, n: u32) -> u8 {
    let register = i.op_register(n);
    match register.size() {
        1 => <u8 as Width>::register(register),
        _ => <u64 as Width>::register(register),
    }
}

/// An operation whose first two operands are registers, memory or an immediate, and which accesses no other
/// memory than these.
#[must_use]
pub fn operands(exec: Exec, i: &Instruction) -> Op {
    let mut op = Op::new(exec, i);
    op.accesses = [0, 1].iter().any(|n| *n < i.op_count() && i.op_kind(*n) == OpKind::Memory);
    if i.op0_kind() == OpKind::Register {
        op.dst = register_name(i, 0);
    }
    match (i.op_count() > 1).then(|| i.op1_kind()) {
        Some(OpKind::Register) => op.src = register_name(i, 1),
        Some(OpKind::Memory) | None => {}
        Some(_) => op.set_imm(i.immediate(1)),
    }
    op
}
