//! RDTSC: the machine's clock is asked by a call into Rust, whatever clock that is.

use crate::asm::{Asm, Cond, Mem, RAX, RCX, RDI, RDX, RSI, RSP, Reg};
use crate::frame::Frame;
use crate::regs::{STACK_POINTER, T0, T1, field};
use cpu::Cpu;
use std::mem::offset_of;

/// What the thunk calls.
///
/// Safety: translated code calls it with the vCPU that it runs.
pub const TIME: unsafe extern "sysv64" fn(*const Cpu) -> u64 = time;

unsafe extern "sysv64" fn time(cpu: *const Cpu) -> u64 {
    // SAFETY: while translated code runs, the vCPU is there and nobody else reaches it.
    unsafe { &*cpu }.tsc()
}

/// Registers of the guest that a called function may change, less those that RDTSC writes.
const KEPT: [Reg; 5] = [RCX, RSI, RDI, 8, STACK_POINTER];

/// To be called: puts the time-stamp counter into EDX:EAX. Changes T0, T1 and flags.
pub fn stamp(asm: &mut Asm, store_vector: usize, load_vector: usize) -> usize {
    let here = asm.here();
    let kept = |n: usize| field(offset_of!(Frame, kept) + 8 * n);
    let (bare, done) = (asm.label(), asm.label());
    asm.pop(T1);
    for (n, register) in KEPT.into_iter().enumerate() {
        asm.store(kept(n), register);
    }
    // Vector registers too may be changed; x87 registers nobody uses on the way.
    asm.cmp_zero32(field(offset_of!(Frame, vector_live)));
    asm.jcc(Cond::E, bare);
    asm.call_to(store_vector);
    call(asm);
    asm.call_to(load_vector);
    asm.jmp(done);
    asm.bind(bare);
    call(asm);
    asm.bind(done);
    for (n, register) in KEPT.into_iter().enumerate() {
        asm.load(register, kept(n));
    }
    asm.mov(RDX, RAX);
    asm.shr(RDX, 32);
    asm.mov32(RAX, RAX);
    asm.push(T1);
    asm.ret(0);
    here
}

/// On the stack of who entered translated code. Keeps T1.
fn call(asm: &mut Asm) {
    asm.load(RDI, field(offset_of!(Frame, registers)));
    asm.lea(RDI, Mem::at(RDI, -(offset_of!(Cpu, regs) as i32)));
    asm.load(RAX, field(offset_of!(Frame, time)));
    asm.mov(T0, RSP);
    asm.load(RSP, field(offset_of!(Frame, host_rsp)));
    asm.and_imm(RSP, -16);
    asm.push(T0);
    asm.push(T1);
    // CALL RAX.
    asm.raw(&[0xff, 0xd0]);
    asm.pop(T1);
    asm.pop(RSP);
}
