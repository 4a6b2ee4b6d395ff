//! What instructions do, a room a family.

pub mod native;
pub mod vector;
pub mod x87;
pub mod xsave;

use crate::Cpu;
use iced_x86::Instruction;
use x86::Exception;

/// Where execution goes after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Flow {
    /// To the next instruction of the block.
    Next,
    /// To the next instruction, but out of the block: something that decoding or interrupt polling depends on may have changed.
    Break,
    /// To `regs[RIP]`, which the handler has written.
    Jump,
    /// This same instruction again after polling for interrupts (string instructions between runs).
    Repeat,
    /// To the next instruction, which waits for an interrupt.
    Halt,
}

/// A handler for an instruction that is rare or large: it looks at the decoded instruction itself.
/// While it runs `regs[RIP]` is the instruction's own address, `instruction.next_ip()` is meaningless (blocks are keyed
/// by physical address): use `cpu.next_rip(instruction)`.
pub type Slow = fn(&mut Cpu, &Instruction) -> Result<Flow, Exception>;
