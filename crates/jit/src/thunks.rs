//! The code that every translation shares: the way in, the ways out, the second look into the TLB.
//!
//! On the way in the guest's registers are loaded from the vCPU, on the way out they are stored there, so that Rust
//! always finds the vCPU complete. Vector and x87 registers are loaded when code that uses them is entered, and
//! stored on the way out if they were. Rust gets the host's MXCSR and x87 unit, DF and AC clear, upper halves zero.

mod crossing;
mod record;
mod strings;
mod time;

pub use crossing::Crossing;
pub use strings::Strings;
pub use time::TIME;

use crate::asm::{Asm, Cond, Mem, RAX, RDI, RSP};
use crate::frame::{Frame, SLOTS, VICTIMS};
use crate::regs::{Place, T0, T1, field, place};
use crate::stats::Inline;
use host::code::CodeBuffer;
use host::vector::VectorState;
use memory::tlb::{Entry, RECORD};
use std::mem::offset_of;
use x86::PAGE_SIZE;

/// Why translated code was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// The site's instruction is to be interpreted.
    Interpret = 0,
    /// The same, unless the access at `Frame::address` can be helped: then it is tried again.
    Access = 1,
    /// The site jumps within its page to code that was not translated.
    Direct = 2,
    /// The host raised an exception, or a poll was answered: see the frame's landing.
    Fault = 3,
    /// Code was entered that is no longer good.
    Stale = 4,
    /// The site has jumped, and all that is left to do is to find code: `Frame::address` is its target's tag, which is not
    /// in the jump cache. Unless the target is not canonical: then it has not.
    Jump = 5,
}

/// Bytes of an access.
pub const SIZES: [u32; 7] = [1, 2, 4, 8, 10, 16, 32];

/// Where the shared code is: offsets in the code buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Thunks {
    /// `extern "sysv64" fn(*mut Frame)`.
    pub enter: usize,
    /// Leave with [`Reason::Interpret`]; the site's number is on the stack.
    pub interpret: usize,
    /// Leave with [`Reason::Direct`]; the site's number is on the stack.
    pub direct: usize,
    /// Jumps to what was pushed out of the jump cache, or leaves with [`Reason::Jump`]; the site's number is on the stack,
    /// the tag in T1, and in T0 what finds its entry.
    pub jump: usize,
    /// Leave with [`Reason::Stale`].
    pub stale: usize,
    /// Where the signal handler goes on.
    pub fault: usize,
    /// To be called to load the vector registers.
    pub load_vector: usize,
    /// To be called to load the x87 registers.
    pub load_x87: usize,
    /// Where to enter to go on at `Frame::behind` with RFLAGS and the registers of these units loaded: x87 (1),
    /// vector (2), both.
    pub resume: [usize; 4],
    /// To be called when an access of one of [`SIZES`] misses, for reading and for writing, with the site's number on the
    /// stack. Returns with the addend in T1, or leaves.
    pub access: [[usize; 2]; SIZES.len()],
    /// The same where records are made.
    pub recorded: [[usize; 2]; SIZES.len()],
    /// The same for the first of a group, with the highest offset in a page at which it may start on the stack as well:
    /// returns so, or five bytes further with the site's number in T1.
    pub group: [usize; 2],
    /// Leave with [`Reason::Access`]; T1 is the site's number.
    pub missed: usize,
    /// To be called to append a record of an access.
    pub record: usize,
    /// To be called for RDTSC.
    pub time: usize,
    /// To be jumped to for SYSCALL with the address behind it in T1, the site's number on the stack.
    pub syscall: usize,
    /// The same for SYSRET to 64-bit code, without an address.
    pub sysret: usize,
    /// Repeated string instructions.
    pub strings: Strings,
}

impl Thunks {
    /// Emits the shared code; `counting`: such that it counts (see `stats`).
    ///
    /// # Errors
    /// The buffer has no room.
    pub fn emit(code: &mut CodeBuffer, counting: bool) -> Option<Self> {
        let mut asm = Asm::default();
        asm.reset(code.used(), code.cold());
        let mut thunks = Self { enter: enter(&mut asm), ..Self::default() };
        let store_vector = store_vector(&mut asm);
        thunks.load_vector = load_vector(&mut asm);
        thunks.load_x87 = load_x87(&mut asm, store_vector, thunks.load_vector);
        for (units, resume) in thunks.resume.iter_mut().enumerate() {
            *resume = asm.here();
            if units & 1 != 0 {
                asm.call_to(thunks.load_x87);
            }
            if units & 2 != 0 {
                asm.call_to(thunks.load_vector);
            }
            asm.mov(T0, RAX);
            restore_flags(&mut asm, offset_of!(Frame, flags));
            asm.mov(RAX, T0);
            asm.jmp_mem(field(offset_of!(Frame, behind)));
        }
        thunks.time = time::stamp(&mut asm, store_vector, thunks.load_vector);
        let leave = leave(&mut asm, store_vector);
        let reason = |asm: &mut Asm, reason: Reason| {
            let here = asm.here();
            asm.store_imm32(field(offset_of!(Frame, reason)), reason as u32);
            asm.jmp_to(leave);
            here
        };
        let exits = [
            (&mut thunks.interpret, Reason::Interpret),
            (&mut thunks.direct, Reason::Direct),
            (&mut thunks.jump, Reason::Jump),
        ];
        for (thunk, why) in exits {
            *thunk = asm.here();
            if why == Reason::Jump {
                pushed_out(&mut asm);
            }
            asm.pop(T0);
            asm.store32(field(offset_of!(Frame, site)), T0);
            if why == Reason::Jump {
                asm.store(field(offset_of!(Frame, address)), T1);
            }
            reason(&mut asm, why);
        }
        thunks.stale = asm.here();
        asm.store(field(offset_of!(Frame, address)), T1);
        reason(&mut asm, Reason::Stale);
        thunks.missed = asm.here();
        asm.store32(field(offset_of!(Frame, site)), T1);
        reason(&mut asm, Reason::Access);
        thunks.fault = asm.here();
        asm.mov(T0, RAX);
        save_flags(&mut asm, offset_of!(Frame, fault_flags));
        asm.mov(RAX, T0);
        reason(&mut asm, Reason::Fault);
        for (n, comparator) in [Entry::READ, Entry::WRITE].into_iter().enumerate() {
            let mut access =
                |limit, records| access(&mut asm, comparator as i32, limit, records, (thunks.missed, counting));
            for (size, thunks) in SIZES.into_iter().zip(&mut thunks.access) {
                thunks[n] = access(Some(PAGE_SIZE as u32 - size), false);
            }
            for (size, thunks) in SIZES.into_iter().zip(&mut thunks.recorded) {
                thunks[n] = access(Some(PAGE_SIZE as u32 - size), true);
            }
            thunks.group[n] = access(None, false);
        }
        thunks.record = record::record(&mut asm);
        thunks.syscall = crossing::syscall(&mut asm, thunks.interpret, thunks.jump);
        thunks.sysret = crossing::sysret(&mut asm, thunks.interpret, thunks.jump);
        thunks.strings = Strings::emit(&mut asm, thunks.interpret);
        code.append(asm.finish()?.0)?;
        Some(thunks)
    }
}

/// Jumps to the code for the tag in T1, if that has been pushed out of the jump cache.
fn pushed_out(asm: &mut Asm) {
    let none = asm.label();
    asm.cmp_mem(T1, Mem::at(RSP, VICTIMS as i32 + 8).index(T0, 3));
    asm.jcc(Cond::NE, none);
    asm.lea(RSP, Mem::at(RSP, 8));
    asm.jmp_mem(Mem::at(RSP, VICTIMS as i32 + 8).index(T0, 3));
    asm.bind(none);
}

/// LAHF, SETO AL and a store to the frame's field at `offset`. Changes RAX.
pub fn save_flags(asm: &mut Asm, offset: usize) {
    asm.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    asm.store32(field(offset), RAX);
}

/// The reverse of [`save_flags`]. Changes RAX.
pub fn restore_flags(asm: &mut Asm, offset: usize) {
    asm.load32(RAX, field(offset));
    // ADD AL, 127 makes OF; SAHF the others.
    asm.raw(&[0x04, 0x7f, 0x9e]);
}

fn register(guest: u8) -> Mem {
    Mem::at(T1, 8 * i32::from(guest))
}

fn enter(asm: &mut Asm) -> usize {
    let here = asm.here();
    for saved in [3, 5, 12, 13, 14, 15] {
        asm.push(saved);
    }
    asm.store(Mem::at(RDI, offset_of!(Frame, host_rsp) as i32), RSP);
    asm.mov(RSP, RDI);
    asm.load(T1, field(offset_of!(Frame, registers)));
    for guest in 0..16 {
        match place(guest) {
            Place::Host(host) => asm.load(host, register(guest)),
            Place::Home(home) => {
                asm.load(T0, register(guest));
                asm.store(home, T0);
            }
        }
    }
    asm.load(T1, field(offset_of!(Frame, address)));
    asm.jmp_mem(field(offset_of!(Frame, target)));
    here
}

fn leave(asm: &mut Asm, store_vector: usize) -> usize {
    let here = asm.here();
    asm.load(T1, field(offset_of!(Frame, registers)));
    let narrow = asm.label();
    for guest in 0..16 {
        if guest == 8 {
            asm.cmp_zero32(field(offset_of!(Frame, legacy)));
            asm.jcc(Cond::NE, narrow);
        }
        match place(guest) {
            Place::Host(host) => asm.store(register(guest), host),
            Place::Home(home) => {
                asm.load(T0, home);
                asm.store(register(guest), T0);
            }
        }
    }
    asm.bind(narrow);
    let (no_vector, no_x87) = (asm.label(), asm.label());
    asm.cmp_zero32(field(offset_of!(Frame, vector_live)));
    asm.jcc(Cond::E, no_vector);
    asm.call_to(store_vector);
    asm.bind(no_vector);
    asm.cmp_zero32(field(offset_of!(Frame, x87_live)));
    asm.jcc(Cond::E, no_x87);
    asm.load(T0, field(offset_of!(Frame, vector)));
    // FXSAVE64; FNINIT.
    asm.rm(true, &[0x0f, 0xae], 0, Mem::at(T0, offset_of!(VectorState, x87) as i32));
    asm.raw(&[0xdb, 0xe3]);
    asm.store_imm32(field(offset_of!(Frame, x87_live)), 0);
    asm.bind(no_x87);
    asm.load(RSP, field(offset_of!(Frame, host_rsp)));
    for saved in [15, 14, 13, 12, 5, 3] {
        asm.pop(saved);
    }
    asm.ret(0);
    here
}

/// The frame's field at `offset`, in a thunk that was called.
const fn below(offset: usize) -> Mem {
    field(offset + 8)
}

/// A VEX instruction of map 0F without a prefix or with 66 (`pp`), 256 bits wide or 128, with vector register `reg` and
/// the vector state's YMM register `ymm` at T0, of that its upper half if `upper`. A source in between is `reg` too.
fn vex(asm: &mut Asm, opcode: u8, (pp, wide, nds): (u8, bool, bool), reg: u8, (ymm, upper): (u8, bool)) {
    // R is inverted from the register, X from none, B from T0 = R10, vvvv from the source or from none.
    let vvvv = if nds { !reg & 15 } else { 15 };
    asm.raw(&[0xc4, (!reg >> 3 & 1) << 7 | 1 << 6 | 1, vvvv << 3 | u8::from(wide) << 2 | pp, opcode]);
    asm.raw(&[0x80 | (reg & 7) << 3 | (T0 & 7)]);
    let at = offset_of!(VectorState, ymm) as i32 + 32 * i32::from(ymm) + if upper { 16 } else { 0 };
    asm.raw(&at.to_le_bytes());
}

/// VMOVUPS of YMM`i`, or of its lower half, which clears the upper one.
fn vmovups(asm: &mut Asm, opcode: u8, i: u8, wide: bool) {
    vex(asm, opcode, (0, wide, false), i, (i, false));
}

/// Upper halves that are zero are not loaded: where the processor does not know that they are, every SSE instruction
/// depends on its destination's, and what native code does in parallel is done in sequence.
fn load_vector(asm: &mut Asm) -> usize {
    let here = asm.here();
    let (wide, loaded) = (asm.label(), asm.label());
    asm.load(T0, below(offset_of!(Frame, vector)));
    // VMOVUPS XMM0, VPOR XMM0 with the other upper halves; VPTEST XMM0, XMM0.
    vex(asm, 0x10, (0, false, false), 0, (0, true));
    for i in 1..16 {
        vex(asm, 0xeb, (1, false, true), 0, (i, true));
    }
    asm.raw(&[0xc4, 0xe2, 0x79, 0x17, 0xc0]);
    asm.jcc(Cond::NE, wide);
    for i in 0..16 {
        vmovups(asm, 0x10, i, false);
    }
    asm.jmp(loaded);
    asm.bind(wide);
    for i in 0..16 {
        vmovups(asm, 0x10, i, true);
    }
    asm.bind(loaded);
    // LDMXCSR.
    asm.rm(false, &[0x0f, 0xae], 2, Mem::at(T0, offset_of!(VectorState, mxcsr) as i32));
    asm.store_imm32(below(offset_of!(Frame, vector_live)), 1);
    asm.ret(0);
    here
}

fn store_vector(asm: &mut Asm) -> usize {
    let here = asm.here();
    asm.load(T0, below(offset_of!(Frame, vector)));
    for i in 0..16 {
        vmovups(asm, 0x11, i, true);
    }
    // STMXCSR, then the host's own; VZEROUPPER.
    asm.rm(false, &[0x0f, 0xae], 3, Mem::at(T0, offset_of!(VectorState, mxcsr) as i32));
    asm.rm(false, &[0x0f, 0xae], 2, below(offset_of!(Frame, host_mxcsr)));
    asm.raw(&[0xc5, 0xf8, 0x77]);
    asm.store_imm32(below(offset_of!(Frame, vector_live)), 0);
    asm.ret(0);
    here
}

/// FXRSTOR loads the XMM registers and MXCSR too, so those are put aside if they are the guest's.
fn load_x87(asm: &mut Asm, store_vector: usize, load_vector: usize) -> usize {
    let here = asm.here();
    let (bare, done) = (asm.label(), asm.label());
    let restore = |asm: &mut Asm, vector: Mem| {
        asm.load(T0, vector);
        asm.rm(true, &[0x0f, 0xae], 1, Mem::at(T0, offset_of!(VectorState, x87) as i32));
    };
    // The thunks called from here expect the frame one slot nearer, so their return address takes this one's place.
    asm.cmp_zero32(below(offset_of!(Frame, vector_live)));
    asm.jcc(Cond::E, bare);
    asm.pop(T1);
    asm.call_to(store_vector);
    restore(asm, field(offset_of!(Frame, vector)));
    asm.call_to(load_vector);
    asm.push(T1);
    asm.jmp(done);
    asm.bind(bare);
    restore(asm, below(offset_of!(Frame, vector)));
    asm.rm(false, &[0x0f, 0xae], 2, below(offset_of!(Frame, host_mxcsr)));
    asm.bind(done);
    asm.store_imm32(below(offset_of!(Frame, x87_live)), 1);
    asm.ret(0);
    here
}

/// Makes of T0, address minus comparator, the offset in the page if records of its accesses can be made.
pub fn recordable(asm: &mut Asm) {
    asm.flip_highest(T0);
    asm.lea(T0, Mem::at(T0, RECORD as i32));
}

/// An access whose remembered entry is not its page's: T0 holds address minus comparator, T1 the entry's offset, the
/// stack the site's number. Finds the entry by the address; if that one serves, the site remembers it, and T1 gets its
/// addend. If not, leaves. `limit`: the highest offset in a page at which the access may start. For a group it is on the
/// stack, and what cannot be helped returns five bytes further, with the site's number in T1. `records`: the entry is to be
/// one for records, and the address is in the frame.
fn access(
    asm: &mut Asm,
    comparator: i32,
    limit: Option<u32>,
    records: bool,
    (missed, counting): (usize, bool),
) -> usize {
    let here = asm.here();
    // Below the frame are the return address and what was pushed.
    let pushed = if limit.is_some() { 8 } else { 16 };
    let frame = |offset: usize| field(offset + 8 + usize::from(pushed));
    if counting {
        asm.inc_mem(frame(offset_of!(Frame, inline) + offset_of!(Inline, looked_up)));
    }
    let miss = asm.label();
    if records {
        asm.load(T0, frame(offset_of!(Frame, accessed)));
    } else {
        asm.add_mem(T0, Mem::gs(T1, comparator));
    }
    asm.store(frame(offset_of!(Frame, address)), T0);
    asm.mov(T1, T0);
    asm.shr(T1, 7);
    asm.and_mem(T1, frame(offset_of!(Frame, tlb_mask)));
    asm.sub_mem(T0, Mem::gs(T1, comparator));
    if records {
        recordable(asm);
    }
    match limit {
        Some(limit) => asm.cmp_imm(T0, limit as i32),
        None => asm.cmp_mem(T0, Mem::at(RSP, 16)),
    }
    asm.load32(T0, Mem::at(RSP, 8));
    asm.jcc(Cond::A, miss);
    asm.store32(Mem::at(RSP, SLOTS as i32 + 8 + i32::from(pushed)).index(T0, 2), T1);
    asm.load(T1, Mem::gs(T1, Entry::ADDEND as i32));
    asm.ret(pushed);
    asm.bind(miss);
    asm.mov32(T1, T0);
    if limit.is_some() {
        asm.lea(RSP, Mem::at(RSP, 16));
        asm.jmp_to(missed);
    } else {
        // Over the jump to behind the check.
        asm.load(T0, Mem::at(RSP, 0));
        asm.lea(T0, Mem::at(T0, 5));
        asm.store(Mem::at(RSP, 0), T0);
        asm.ret(pushed);
    }
    here
}
