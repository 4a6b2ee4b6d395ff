//! From instruction bytes to operations.

use crate::Cpu;
use crate::cpuid::Model;
use crate::exec::{self, Flow};
use crate::op::Op;
use crate::state::CodeSize;
use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction};
use x86::Exception;

/// The longest instruction in bytes (APM vol. 3, 1.1).
pub const MAX_INSTRUCTION: usize = 15;

/// The most operations in a block.
const MAX_OPS: usize = 64;

/// Hints and CET instructions that the model does not have execute as NOPs, as on hardware without them.
const OPTIONS: u32 = DecoderOptions::FORCE_RESERVED_NOP;

/// What a stretch of bytes decoded to.
#[derive(Debug, Default)]
pub struct Decoded {
    /// The operations, in order.
    pub ops: Vec<Op>,
    /// Bytes that they take.
    pub len: usize,
    /// The bytes ended within an instruction: it goes on in the next page.
    pub cut: bool,
}

/// Decodes straight-line code up to the first branch, at most `limit` operations, to the end of the bytes.
#[must_use]
pub fn block(bytes: &[u8], size: CodeSize, model: &Model, limit: usize) -> Decoded {
    let mut decoded = Decoded::default();
    let mut instruction = Instruction::default();
    let options = OPTIONS | model.decoder_options();
    while decoded.ops.len() < limit.min(MAX_OPS) {
        let rest = bytes.get(decoded.len..).unwrap_or_default();
        let rest = rest.get(..MAX_INSTRUCTION).unwrap_or(rest);
        // Each instruction is decoded as if it were at address 0: blocks are shared by all mappings of their page,
        // so branch targets and RIP-relative operands are kept relative to the instruction.
        let mut decoder = Decoder::with_ip(size as u32, rest, 0, options);
        decoder.decode_out(&mut instruction);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            decoded.cut = true;
            break;
        }
        let too_long = instruction.is_invalid() && instruction.len() == MAX_INSTRUCTION;
        let op = if too_long { Op::slow(beyond_limit, &instruction) } else { operation(&instruction, model) };
        decoded.len += usize::from(op.len);
        decoded.ops.push(op);
        if instruction.is_invalid() || instruction.flow_control() != FlowControl::Next {
            break;
        }
    }
    decoded
}

/// The decoder gives up after the last byte that an instruction can have: #GP(0) (APM vol. 2, 8.2.14). An undefined
/// instruction of just that length looks the same, and is #GP here though it should be #UD.
fn beyond_limit(_: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    Err(Exception::GP0)
}

/// Also for instructions that are not implemented, or not offered by the CPU model.
fn undefined(cpu: &mut Cpu, instruction: &Instruction) -> Result<Flow, Exception> {
    let rip = cpu.rip();
    tracing::debug!(target: "guest_errors", "undefined instruction at {rip:x}: {:?}", instruction.code());
    Err(Exception::UNDEFINED)
}

/// The operation for one instruction.
fn operation(i: &Instruction, model: &Model) -> Op {
    if i.is_invalid() || !model.executes(i) {
        return Op::slow(undefined, i);
    }
    let hot = [
        exec::alu::select,
        exec::moves::select,
        exec::branch::select,
        exec::stack::select,
        exec::bits::select,
        exec::muldiv::select,
        exec::strings::select,
        exec::decimal::select,
    ];
    if let Some(op) = hot.iter().find_map(|select| select(i)) {
        return op;
    }
    let rare = [
        exec::segment::select,
        exec::far::select,
        exec::interrupt::select,
        exec::io::select,
        exec::control::select,
        exec::syscall::select,
        exec::system::select,
        exec::vector::select,
        exec::x87::select,
        exec::xsave::select,
    ];
    match rare.iter().find_map(|select| select(i)) {
        Some(slow) => Op::slow(slow, i),
        // Last: the rooms before know the special cases.
        None => exec::native::select(i).map_or_else(|| Op::slow(undefined, i), |slow| Op::native(slow, i)),
    }
}

/// Writes a block's disassembly to the `in_asm` log.
pub fn log(bytes: &[u8], size: CodeSize, rip: u64) {
    use iced_x86::{Formatter, NasmFormatter};
    let mut formatter = NasmFormatter::new();
    let mut text = String::new();
    for instruction in &mut Decoder::with_ip(size as u32, bytes, rip, OPTIONS) {
        text.clear();
        formatter.format(&instruction, &mut text);
        let start = instruction.ip().wrapping_sub(rip) as usize;
        let raw = bytes.get(start..start + instruction.len()).unwrap_or_default();
        let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        tracing::debug!(target: "in_asm", "{:016x}  {hex:<30} {text}", instruction.ip());
    }
}
