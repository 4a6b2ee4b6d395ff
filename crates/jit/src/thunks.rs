//! The code that every translation shares: the way in, the ways out, the second look into the TLB.
//!
//! On the way in the guest's registers are loaded from the vCPU, on the way out they are stored there, so that Rust
//! always finds the vCPU complete. Vector and x87 registers are loaded when code that uses them is entered, and
//! stored on the way out if they were. Rust gets the host's MXCSR and x87 unit, DF and AC clear, upper halves zero.

use crate::asm::{Asm, Cond, Mem, RAX, RCX, RDI, RSP};
use crate::frame::{Frame, SLOTS};
use crate::regs::{Place, T0, T1, field, place};
use crate::stats::Inline;
use host::code::CodeBuffer;
use host::vector::VectorState;
use memory::tlb::Entry;
use std::mem::offset_of;

/// Why translated code was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// The site's instruction is to be interpreted.
    Interpret = 0,
    /// The same; `Frame::address` is what it accesses.
    Access = 1,
    /// The site jumps within its page to code that was not translated.
    Direct = 2,
    /// The host raised an exception, or a poll was answered: see the frame's landing.
    Fault = 3,
    /// Code was entered that is no longer good.
    Stale = 4,
}

/// Where the shared code is: offsets in the code buffer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Thunks {
    /// `extern "sysv64" fn(*mut Frame)`.
    pub enter: usize,
    /// Leave with [`Reason::Interpret`]; `Frame::site` is set.
    pub interpret: usize,
    /// Leave with [`Reason::Direct`]; `Frame::site` is set.
    pub direct: usize,
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
    /// To be called when an access misses, for reading and for writing, with the highest offset in a page at which it
    /// may start and the site's number on the stack. Returns to try again, or leaves.
    pub access: [usize; 2],
    /// The same for the first of a group: returns to try again, or five bytes further.
    pub group: [usize; 2],
}

impl Thunks {
    /// Emits the shared code; `counting`: such that it counts (see `stats`).
    ///
    /// # Errors
    /// The buffer has no room.
    pub fn emit(code: &mut CodeBuffer, counting: bool) -> Option<Self> {
        let mut asm = Asm::default();
        asm.reset(code.used());
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
            restore_flags(&mut asm);
            asm.mov(RAX, T0);
            asm.jmp_mem(field(offset_of!(Frame, behind)));
        }
        let leave = leave(&mut asm, store_vector);
        let reason = |asm: &mut Asm, reason: Reason| {
            let here = asm.here();
            asm.store_imm32(field(offset_of!(Frame, reason)), reason as u32);
            asm.jmp_to(leave);
            here
        };
        thunks.interpret = reason(&mut asm, Reason::Interpret);
        thunks.direct = reason(&mut asm, Reason::Direct);
        thunks.stale = asm.here();
        asm.store(field(offset_of!(Frame, address)), T1);
        reason(&mut asm, Reason::Stale);
        let missed = reason(&mut asm, Reason::Access);
        thunks.fault = asm.here();
        asm.mov(T0, RAX);
        save_flags(&mut asm, offset_of!(Frame, fault_flags));
        asm.mov(RAX, T0);
        reason(&mut asm, Reason::Fault);
        for (n, comparator) in [Entry::READ, Entry::WRITE].into_iter().enumerate() {
            thunks.access[n] = access(&mut asm, comparator as i32, Some(missed), counting);
            thunks.group[n] = access(&mut asm, comparator as i32, None, counting);
        }
        code.append(asm.finish()?)?;
        Some(thunks)
    }
}

/// LAHF, SETO AL and a store to the frame's field at `offset`. Changes RAX.
pub fn save_flags(asm: &mut Asm, offset: usize) {
    asm.raw(&[0x9f, 0x0f, 0x90, 0xc0]);
    asm.store32(field(offset), RAX);
}

/// The reverse of [`save_flags`]. Changes RAX.
pub fn restore_flags(asm: &mut Asm) {
    asm.load32(RAX, field(offset_of!(Frame, flags)));
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

/// VMOVUPS between YMM`i` and the vector state at T0; `opcode` says in which direction.
fn vmovups(asm: &mut Asm, opcode: u8, i: u8) {
    // VEX.256.0F.WIG with R inverted from the register, X inverted from none, B inverted from T0 = R14.
    asm.raw(&[0xc4, (!i >> 3 & 1) << 7 | 1 << 6 | 1, 0x7c, opcode, 0x80 | (i & 7) << 3 | (T0 & 7)]);
    asm.raw(&(offset_of!(VectorState, ymm) as i32 + 32 * i32::from(i)).to_le_bytes());
}

fn load_vector(asm: &mut Asm) -> usize {
    let here = asm.here();
    asm.load(T0, below(offset_of!(Frame, vector)));
    for i in 0..16 {
        vmovups(asm, 0x10, i);
    }
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
        vmovups(asm, 0x11, i);
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

/// An access whose remembered entry is not its page's: T0 holds address minus comparator, T1 the entry's offset, the
/// stack the limit and the site. Finds the entry by the address; if that one serves, the site remembers it and tries
/// again. If not, goes to `missed`, or returns to behind the jump that tries again.
fn access(asm: &mut Asm, comparator: i32, missed: Option<usize>, counting: bool) -> usize {
    let here = asm.here();
    // The return address, the site's number and the limit are on the stack.
    let frame = |offset: usize| field(offset + 24);
    if counting {
        asm.inc_mem(frame(offset_of!(Frame, inline) + offset_of!(Inline, looked_up)));
    }
    let miss = asm.label();
    asm.add_mem(T0, Mem::gs(T1, comparator));
    asm.store(frame(offset_of!(Frame, address)), T0);
    asm.store(frame(offset_of!(Frame, saved)), RCX);
    asm.mov(RCX, T0);
    asm.shr(RCX, 7);
    asm.and_mem(RCX, frame(offset_of!(Frame, tlb_mask)));
    asm.sub_mem(T0, Mem::gs(RCX, comparator));
    asm.cmp_mem(T0, Mem::at(RSP, 16));
    asm.load32(T1, Mem::at(RSP, 8));
    asm.jcc(Cond::A, miss);
    asm.store32(Mem::at(RSP, SLOTS as i32 + 24).index(T1, 2), RCX);
    asm.load(RCX, frame(offset_of!(Frame, saved)));
    asm.ret(16);
    asm.bind(miss);
    asm.load(RCX, frame(offset_of!(Frame, saved)));
    match missed {
        Some(missed) => {
            asm.lea(RSP, Mem::at(RSP, 24));
            asm.store32(field(offset_of!(Frame, site)), T1);
            asm.jmp_to(missed);
        }
        None => {
            asm.load(T1, Mem::at(RSP, 0));
            // Over the jump that tries again.
            asm.lea(T1, Mem::at(T1, 5));
            asm.store(Mem::at(RSP, 0), T1);
            asm.ret(16);
        }
    }
    here
}
