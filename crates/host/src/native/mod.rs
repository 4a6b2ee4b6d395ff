//! One guest instruction at a time on the host's own units.
//!
//! For each distinct instruction an [`Engine`] emits a small stub that loads the guest registers the instruction uses,
//! executes it with the guest's own MXCSR, x87 state and flags, and stores what it wrote. Distinct means: code and
//! registers; the memory operand is replaced by a pointer, so that one stub serves all addresses. What comes out is
//! what the guest would see on this processor, including the upper halves of YMM registers (kept by legacy encodings,
//! cleared by VEX ones), sticky flags, and exceptions, which come back as [`Fault`]s with the guest's state as a
//! faulting instruction leaves it. Afterwards the host's MXCSR, x87 unit, DF and upper halves are as they were.
//!
//! The caller checks everything that is not arithmetic: whether the instruction may be executed now (CR0, CR4,
//! XCR0), segments, paging. Which instructions are served is said in [`classify`](is_allowed).

mod classify;
mod emit;
#[cfg(test)]
mod tests;

pub use classify::{Needs, is_allowed};

use crate::Error;
use crate::code::CodeBuffer;
use crate::signal::Frame;
use crate::vector::{MXCSR_DEFAULT, VectorState};
use iced_x86::{Encoder, Instruction, InstructionInfoFactory, OpKind};
use std::arch::asm;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes that the largest memory operand has.
pub const OPERAND: usize = 64;

/// Bytes of stubs that an engine keeps before it starts again (some 20,000 distinct instructions).
const CAPACITY: usize = 4 << 20;

/// A compiled instruction, good in the engine that made it. It goes stale when that engine's memory has filled up.
/// The default is one that no engine has made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stub {
    /// Which filling of which engine's memory the stub is in.
    generation: u32,
    entry: u32,
    resume: u32,
    needs: Needs,
    fop: u16,
    size: u8,
    alignment: u8,
}

impl Stub {
    /// What the instruction needs of its surroundings.
    #[inline(always)]
    #[must_use]
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// Bytes of the memory operand; 0 without one.
    #[inline(always)]
    #[must_use]
    pub fn size(&self) -> usize {
        usize::from(self.size)
    }

    /// What the memory operand's address must be a multiple of, else #GP(0); 0 if it need not be.
    #[inline(always)]
    #[must_use]
    pub fn alignment(&self) -> u64 {
        u64::from(self.alignment)
    }

    /// x87: the last-instruction opcode as FOP shows it, but for mod and rm of a memory operand.
    #[must_use]
    pub fn x87_opcode(&self) -> u16 {
        self.fop
    }
}

/// What the host raised instead of executing the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An unmasked SIMD floating-point exception: #XM, or #UD without CR4.OSXMMEXCPT. Its flags are in MXCSR.
    #[error("unmasked SIMD exception")]
    Simd,
    /// An unmasked x87 exception was pending: #MF.
    #[error("pending x87 exception")]
    X87,
    /// #GP(0): a misaligned operand.
    #[error("misaligned operand")]
    Protection,
    /// #UD: the host does not have the instruction.
    #[error("undefined on this host")]
    Undefined,
    /// The stub belongs to another engine or has gone stale: prepare it again.
    #[error("stale stub")]
    Stale,
}

/// Why an instruction cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum Unsupported {
    /// It is not one of those that may run on the host.
    #[error("not an instruction for the host")]
    Instruction,
    /// The host gives no executable memory.
    #[error(transparent)]
    Host(#[from] Error),
}

/// Generation of an engine without code: of no stub. (0 is that of the default stub.)
const NO_CODE: u32 = u32::MAX;

/// The memory operand's place: two cache lines, so that an operand of up to 64 bytes can have the guest's alignment.
#[derive(Debug)]
#[repr(C, align(64))]
struct Scratch([u8; 2 * OPERAND]);

/// Runs instructions on the host for one vCPU. Its memory is mapped with the first instruction, or by [`Engine::reserve`].
pub struct Engine {
    code: Option<CodeBuffer>,
    generation: u32,
    stubs: HashMap<u128, Stub, BuildHasherDefault<KeyHasher>>,
    encoder: Encoder,
    factory: InstructionInfoFactory,
    scratch: Box<Scratch>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("generation", &self.generation).field("stubs", &self.stubs.len()).finish()
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine {
    /// An engine without any memory yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            code: None,
            generation: NO_CODE,
            stubs: HashMap::default(),
            encoder: Encoder::new(64),
            factory: InstructionInfoFactory::new(),
            scratch: Box::new(Scratch([0; 2 * OPERAND])),
        }
    }

    /// Maps the engine's memory now rather than with the first instruction: for a thread that will not be allowed to.
    ///
    /// # Errors
    /// The host maps no executable memory.
    pub fn reserve(&mut self) -> Result<(), Error> {
        if self.code.is_none() {
            self.code = Some(CodeBuffer::new(CAPACITY)?);
            self.generation = next_generation();
        }
        Ok(())
    }

    /// The stub for `instruction`, compiled now or before. Instructions that differ only in how they address memory
    /// share one.
    pub fn prepare(&mut self, instruction: &Instruction) -> Result<Stub, Unsupported> {
        let key = key(instruction);
        match self.stubs.get(&key) {
            Some(stub) => Ok(*stub),
            None => self.compile(key, instruction),
        }
    }

    /// Whether `stub` can still be run by this engine.
    #[inline(always)]
    #[must_use]
    pub fn is_current(&self, stub: &Stub) -> bool {
        self.generation == stub.generation
    }

    #[cold]
    fn compile(&mut self, key: u128, instruction: &Instruction) -> Result<Stub, Unsupported> {
        self.encoder.set_buffer(Vec::with_capacity(256));
        let emitted = emit::stub(&mut self.encoder, &mut self.factory, instruction)
            .map_err(|emit::Refused| Unsupported::Instruction)?;
        let bytes = self.encoder.take_buffer();
        self.reserve()?;
        let code = self.code.as_mut().ok_or(Unsupported::Instruction)?;
        let entry = match code.append(&bytes) {
            Some(entry) => entry,
            None => {
                code.clear();
                self.stubs.clear();
                self.generation = next_generation();
                code.append(&bytes).ok_or(Unsupported::Instruction)?
            }
        };
        let offset = |n: usize| u32::try_from(n).map_err(|_| Unsupported::Instruction);
        let stub = Stub {
            generation: self.generation,
            entry: offset(entry)?,
            resume: offset(entry + emitted.resume)?,
            needs: emitted.needs,
            fop: emitted.fop,
            size: emitted.size,
            alignment: emitted.alignment,
        };
        self.stubs.insert(key, stub);
        Ok(stub)
    }

    /// The bytes of the memory operand, at an address that is `offset` modulo 64 so that the host checks the alignment
    /// of the guest's own address. To be filled before [`Engine::run`] and read afterwards.
    #[inline(always)]
    pub fn operand(&mut self, offset: u64) -> &mut [u8; OPERAND] {
        let offset = (offset & 63) as usize;
        // SAFETY: the scratch area is two operands long and the offset less than one.
        unsafe { &mut *self.scratch.0.as_mut_ptr().add(offset).cast() }
    }

    /// Runs a stub on the guest's registers (`general` in encoding order, of which only the first 16 are used), status
    /// flags and vector state; its memory operand, if any, is [`Engine::operand`] of the same `offset`. FOP, FIP and
    /// FDP stay as they were: to set them is the caller's affair, who alone knows the guest's addresses.
    #[inline]
    pub fn run(
        &mut self,
        stub: &Stub,
        general: &mut [u64; 32],
        status: &mut u64,
        vector: &mut VectorState,
        offset: u64,
    ) -> Result<(), Fault> {
        let start = match &self.code {
            Some(code) if self.generation == stub.generation => code.start(),
            _ => return Err(Fault::Stale),
        };
        let needs = stub.needs;
        let mut frame = Frame {
            memory: self.operand(offset).as_mut_ptr(),
            flags: crate::alu::split_flags(*status),
            resume: start.addr() + stub.resume as usize,
            fault: 0,
            host_mxcsr: MXCSR_DEFAULT,
        };
        let x87 = needs.intersects(Needs::X87 | Needs::MMX);
        let pointers = vector.x87_pointers();
        if x87 {
            // Decided here rather than by the host, whose kernel may not expect ES without an unmasked exception.
            if vector.x87_pending() {
                return Err(Fault::X87);
            }
            vector.set_fsw(vector.fsw() & !0x8080);
            // FXRSTOR would raise #GP for reserved bits in it.
            vector.set_image_mxcsr(MXCSR_DEFAULT);
        }
        // SAFETY: the generation says that the stub was emitted by this engine into the memory that is there now, where
        // nothing is overwritten within a generation. A stub reads and writes only the frame, the first 16 general
        // registers, the vector state and the 64 bytes at `memory`, all of which are borrowed here, changes only
        // registers that the C convention lets it change, and leaves MXCSR, the x87 unit and DF as Rust expects them. A
        // fault in it is turned by the signal handler into a return with `fault` set.
        unsafe {
            asm!(
                "call {entry}",
                entry = in(reg) start.add(stub.entry as usize),
                in("r11") &raw mut frame,
                in("r10") &raw mut *vector,
                in("r8") general.as_mut_ptr(),
                clobber_abi("C"),
            );
        }
        if x87 {
            // FXSAVE has put the stub's own addresses there.
            vector.set_x87_pointers(pointers);
        }
        if frame.fault != 0 {
            return Err(fault(frame.fault - 1));
        }
        if needs.contains(Needs::FLAGS_OUT) {
            *status = crate::alu::join_flags(frame.flags);
        }
        Ok(())
    }
}

/// What the host's exception `vector` in a stub means.
#[cold]
fn fault(vector: u32) -> Fault {
    match vector {
        19 => Fault::Simd,
        16 => Fault::X87,
        6 => Fault::Undefined,
        // #GP, or #SS and #AC for the sake of completeness: the operand's place is always mapped.
        _ => Fault::Protection,
    }
}

/// A number that no other filling of any engine's memory has.
fn next_generation() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What distinguishes an instruction from others whose stub would be different: code, operand kinds and registers,
/// immediates of eight bits (compilation refuses wider ones), and a LOCK prefix, with which none is defined.
fn key(instruction: &Instruction) -> u128 {
    let i = instruction;
    let second = if i.op3_kind() == OpKind::Immediate8_2nd || i.op2_kind() == OpKind::Immediate8_2nd {
        i.immediate8_2nd()
    } else {
        0
    };
    let operands = [
        i.op0_kind() as u8,
        i.op0_register() as u8,
        i.op1_kind() as u8,
        i.op1_register() as u8,
        i.op2_kind() as u8,
        i.op2_register() as u8,
        i.op3_kind() as u8,
        i.op3_register() as u8,
    ];
    let rest = u64::from(i.code() as u16)
        | u64::from(i.immediate8()) << 16
        | u64::from(second) << 24
        | u64::from(i.has_lock_prefix()) << 32;
    u128::from(u64::from_le_bytes(operands)) << 64 | u128::from(rest)
}

/// Hashes the one `u128` that a key is: both halves multiplied and folded.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u128(u128::from(byte));
        }
    }

    fn write_u128(&mut self, value: u128) {
        let mixed = (value as u64 ^ self.0.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ ((value >> 64) as u64).wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
        self.0 = mixed ^ mixed >> 32;
    }
}
