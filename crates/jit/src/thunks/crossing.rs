//! SYSCALL and SYSRET between 64-bit code of programs and of the kernel (APM vol. 3, chapter 3 and 4).
//!
//! They change the vCPU where it is and look for the code to go on at in the jump cache. Who leaves translated code
//! later finds [`Frame::crossed`] and derives the rest (`Cpu::update_mode`). Whatever is out of the ordinary is the
//! interpreter's: single step, alignment checks, an interrupt that waits, targets in the upper half.

use crate::asm::{Asm, Cond, Label, Mem, RAX, RCX, RSP};
use crate::frame::{Frame, HOSTS, TAGS};
use crate::regs::{Place, T0, T1, field, place, vcpu};
use cpu::Cpu;
use cpu::state::{CS, SS};
use memory::tlb::View;
use std::mem::{offset_of, size_of};
use x86::{Efer, Rflags, Segment};

const _: () = assert!(size_of::<Segment>() == 16);

/// What is different behind SYSCALL, or SYSRET.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Crossing {
    /// What addresses are combined with to make tags of the jump cache.
    pub stamp: u64,
    /// The TLB's table, RFLAGS.AC being clear.
    pub view: View,
    /// CS and SS.
    pub segments: [Segment; 2],
}

const CF: i32 = 1;
const TF: i32 = 1 << 8;
const IF: i32 = 1 << 9;
const AC: i32 = 1 << 18;
const R11: u8 = 11;

/// The frame's field at `offset`: the site's number is on the stack.
const fn frame(offset: usize) -> Mem {
    field(offset + 8)
}

/// To be jumped to with the address behind SYSCALL in T1, the flags in the frame, and the site's number on the stack.
pub fn syscall(asm: &mut Asm, interpret: usize, missed: usize) -> usize {
    let here = asm.here();
    let slow = asm.label();
    let next = frame(offset_of!(Frame, scratch));
    asm.store(next, T1);
    begin(asm, slow);
    // T1: RFLAGS. In AX LAHF and SETO left them.
    asm.load32(RAX, frame(offset_of!(Frame, flags)));
    asm.mov32(T1, RAX);
    asm.shr(T1, 8);
    asm.and_imm(T1, Rflags::STATUS as i32 & 0xff);
    asm.and_imm(RAX, CF);
    asm.shl(RAX, 11);
    asm.lea(T1, Mem::at(T1, 2).index(RAX, 0));
    asm.load(RAX, vcpu(offset_of!(Cpu, system_flags)));
    asm.and_imm(RAX, !(Rflags::STATUS as i32 | 2));
    asm.lea(T1, Mem::at(T1, 0).index(RAX, 0));
    // RAX: those that are not masked.
    asm.load(RAX, vcpu(offset_of!(Cpu, msrs.sfmask)));
    asm.not(RAX);
    asm.rr(true, &[0x21], T1, RAX);
    refuse(asm, TF | AC, slow);
    match place(R11) {
        Place::Host(to) => asm.mov(to, T1),
        Place::Home(Mem { disp, .. }) => asm.store(frame(disp as usize), T1),
    }
    asm.load(RCX, next);
    cross(asm, 0);
    asm.load(T1, vcpu(offset_of!(Cpu, msrs.lstar)));
    go(asm, (slow, interpret), missed);
    here
}

/// To be jumped to for SYSRET to 64-bit code, executed by the kernel, with the flags in the frame and the site's number on
/// the stack.
pub fn sysret(asm: &mut Asm, interpret: usize, missed: usize) -> usize {
    let here = asm.here();
    let (slow, quiet) = (asm.label(), asm.label());
    begin(asm, slow);
    asm.mov(RAX, RCX);
    asm.shr(RAX, 47);
    asm.test(RAX, RAX);
    asm.jcc(Cond::NE, slow);
    match place(R11) {
        Place::Host(from) => asm.mov(RAX, from),
        Place::Home(Mem { disp, .. }) => asm.load(RAX, frame(disp as usize)),
    }
    asm.and_imm(RAX, cpu::exec::syscall::SYSRET_FLAGS as i32);
    refuse(asm, TF | AC, slow);
    // An interrupt that waits is to be taken now.
    asm.raw(&[0xa9]);
    asm.raw(&IF.to_le_bytes());
    asm.jcc(Cond::E, quiet);
    asm.load(T1, frame(offset_of!(Frame, requests)));
    asm.cmp_zero32(Mem::at(T1, 0));
    asm.jcc(Cond::NE, slow);
    asm.bind(quiet);
    cross(asm, 1);
    asm.mov(T1, RCX);
    go(asm, (slow, interpret), missed);
    here
}

/// Puts RAX aside and the vCPU into T0; `slow` if neither instruction is enabled.
fn begin(asm: &mut Asm, slow: Label) {
    asm.store(frame(offset_of!(Frame, saved)), RAX);
    asm.load(T0, frame(offset_of!(Frame, registers)));
    asm.test_imm32(vcpu(offset_of!(Cpu, efer)), Efer::new().with_syscall(true).into_bits() as i32);
    asm.jcc(Cond::E, slow);
}

/// To `slow` if any of these bits of RAX is set.
fn refuse(asm: &mut Asm, bits: i32, slow: Label) {
    // TEST EAX.
    asm.raw(&[0xa9]);
    asm.raw(&bits.to_le_bytes());
    asm.jcc(Cond::NE, slow);
}

/// Makes the vCPU what it is behind `crossings[to]`, with the flags in RAX; the code at a privilege level of three times
/// `to`. Changes RAX and T1.
fn cross(asm: &mut Asm, to: usize) {
    let crossing = |offset: usize| frame(offset_of!(Frame, crossings) + to * size_of::<Crossing>() + offset);
    asm.store(vcpu(offset_of!(Cpu, system_flags)), RAX);
    // As LAHF and SETO would leave them.
    asm.rr(false, &[0x0f, 0xb6], T1, RAX);
    asm.shl(T1, 8);
    asm.shr(RAX, 11);
    asm.and_imm(RAX, 1);
    asm.lea(T1, Mem::at(T1, 0).index(RAX, 0));
    asm.store(frame(offset_of!(Frame, flags)), T1);
    for (n, segment) in [CS, SS].into_iter().enumerate() {
        for half in [0, 8] {
            asm.load(RAX, crossing(offset_of!(Crossing, segments) + n * size_of::<Segment>() + half));
            asm.store(vcpu(offset_of!(Cpu, seg) + segment * size_of::<Segment>() + half), RAX);
        }
    }
    // MOV of a byte.
    asm.rm(false, &[0xc6], 0, vcpu(offset_of!(Cpu, cpl)));
    asm.raw(&[3 * to as u8]);
    asm.store_imm32(frame(offset_of!(Frame, crossed)), 1);
    asm.load(RAX, crossing(offset_of!(Crossing, stamp)));
    asm.store(frame(offset_of!(Frame, stamp)), RAX);
    asm.load(RAX, crossing(offset_of!(Crossing, view) + offset_of!(View, mask)));
    asm.store(frame(offset_of!(Frame, tlb_mask)), RAX);
    asm.load(RAX, crossing(offset_of!(Crossing, view) + offset_of!(View, base)));
    // WRGSBASE RAX.
    asm.raw(&[0xf3, 0x48, 0x0f, 0xae, 0xd8]);
}

/// On at the address in T1, found in the jump cache or by who gets [`super::Reason::Jump`]; behind that the slow way.
fn go(asm: &mut Asm, (slow, interpret): (Label, usize), missed: usize) {
    let miss = asm.label();
    asm.load(RAX, frame(offset_of!(Frame, saved)));
    asm.mov32(T0, T1);
    asm.and_mem(T0, frame(offset_of!(Frame, jump_mask)));
    asm.xor_mem(T1, frame(offset_of!(Frame, stamp)));
    let entry = |table: usize| Mem::at(RSP, table as i32).index(T0, 3);
    asm.cmp_mem(T1, entry(TAGS + 8));
    asm.jcc(Cond::NE, miss);
    asm.lea(RSP, Mem::at(RSP, 8));
    asm.jmp_mem(entry(HOSTS));
    asm.bind(miss);
    asm.jmp_to(missed);
    asm.bind(slow);
    asm.load(RAX, frame(offset_of!(Frame, saved)));
    asm.jmp_to(interpret);
}
