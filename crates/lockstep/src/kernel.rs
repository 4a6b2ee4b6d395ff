//! The test machine's kernel: tables and handlers, a few hundred bytes of guest code.
//!
//! Every exception and software interrupt is written to the [log](crate::log). Then a fault skips its instruction, by
//! the length that [`SKIP`] has for it; a trap or an interrupt returns to where it came from, a breakpoint with RF set;
//! #NM clears CR0.TS and tries again. The case ends when the log is full, on a double fault, and on a fault at an
//! address that no instruction of the case begins at.
//!
//! Here are the handlers of long mode; those of protected and of real mode are in [`narrow`].

use crate::hooks::{ASYNC, END};
use crate::layout::{
    ALIAS, ASYNC_STACK, CODE, CODE_LEN, EXIT, EXIT_GPA, GDT, IDT, INNER_STACK, LOG, PAGE, SKIP, STACK, SYSTEM, TEXT,
    TSS, TSS_32, put,
};
use crate::mode::{CODE0, CODE0_16, CODE3_16, DATA0, descriptors};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

mod narrow;

/// What the log has before its first entry: how many there are, and places where the entry of SYSCALL saves registers.
const HEAD: u64 = SYSTEM + LOG;
const SAVED_RAX: u64 = HEAD + 8;
const SAVED_RCX: u64 = HEAD + 16;
/// The privilege level that SYSCALL returns to, written before a case runs.
pub const RETURN_TO: u64 = LOG + 24;
/// Bytes of an entry.
pub(crate) const ENTRY: u64 = 64;
/// Entries that the log takes.
pub(crate) const LIMIT: u64 = PAGE / ENTRY - 1;
/// SYSCALL in the log: beyond all vectors.
const SYSCALL: i32 = 0x100;
/// Bytes of a TSS up to its permission bitmap, and with as much of that as [`END`] needs.
const TSS_BITMAP: u64 = 0x68;
/// See [`TSS_BITMAP`].
pub const TSS_LEN: u64 = TSS_BITMAP + END as u64 / 8 + 2;

/// Where SYSCALL goes, from 64-bit and from 32-bit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entries {
    /// LSTAR.
    pub long: u64,
    /// CSTAR.
    pub compatibility: u64,
}

/// Where in the page of [`EXIT`] the code for `bits` begins.
#[must_use]
pub fn exit(bits: u32) -> u64 {
    match bits {
        64 => 0,
        32 => 0x40,
        _ => 0x80,
    }
}

/// Writes the kernel and its tables into an image of RAM.
pub(crate) fn write(image: &mut [u8]) -> Result<Entries, IcedError> {
    for (n, descriptor) in (0..).zip(descriptors(SYSTEM + TSS)) {
        put(image, GDT + 8 * n, descriptor);
    }
    exits(image)?;
    put(image, TSS + 4, SYSTEM + INNER_STACK + PAGE);
    put(image, TSS + 0x24, SYSTEM + STACK + PAGE);
    put(image, TSS + 0x2c, SYSTEM + ASYNC_STACK + PAGE);
    put(image, TSS_32 + 4, u64::from(DATA0) << 32 | (SYSTEM + ASYNC_STACK + PAGE) & 0xffff_ffff);
    for tss in [TSS, TSS_32] {
        put(image, tss + 0x60, TSS_BITMAP << 48);
        // User mode may say that its case has ended, and write to no other port.
        let (at, len) = ((tss + TSS_BITMAP) as usize, (TSS_LEN - TSS_BITMAP) as usize);
        image[at..at + len].fill(0xff);
        image[at + usize::from(END / 8)] = !(1 << (END % 8));
    }
    narrow::write(image)?;

    let mut a = CodeAssembler::new(64)?;
    let mut common = a.create_label();
    let mut stubs = Vec::new();
    for vector in 0..256 {
        let mut stub = a.create_label();
        a.set_label(&mut stub)?;
        if !has_code(vector) {
            a.push(0)?;
        }
        a.push(vector)?;
        a.jmp(common)?;
        stubs.push(stub);
    }
    let mut end = a.create_label();
    exception(&mut a, &mut common, &mut end)?;
    let [mut long, mut compatibility, mut asynchronous] = [(); 3].map(|()| a.create_label());
    system_call(&mut a, &mut long, end, false)?;
    system_call(&mut a, &mut compatibility, end, true)?;
    a.set_label(&mut asynchronous)?;
    a.push(rax)?;
    a.add(eax, 0x7fff_ffff)?;
    a.pop(rax)?;
    a.iretq()?;

    let start = SYSTEM + TEXT;
    let result = a.assemble_options(start, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let code = &result.inner.code_buffer;
    assert!(code.len() as u64 <= IDT - TEXT, "the handlers fit their pages");
    image[TEXT as usize..][..code.len()].copy_from_slice(code);
    for (vector, stub) in (0..).zip(stubs) {
        let is_async = vector == u64::from(ASYNC);
        let target = result.label_ip(if is_async { &asynchronous } else { &stub })?;
        let stack = if is_async { 2 } else { u64::from(vector < 0x80) };
        put(image, IDT + 16 * vector, gate(vector, target, CODE0) | stack << 32);
        put(image, IDT + 16 * vector + 8, target >> 32);
    }
    Ok(Entries { long: result.label_ip(&long)?, compatibility: result.label_ip(&compatibility)? })
}

/// Whether an exception comes with an error code.
fn has_code(vector: i32) -> bool {
    matches!(vector, 8 | 10..=14 | 17)
}

/// The lower half of an interrupt gate.
fn gate(vector: u64, target: u64, selector: u16) -> u64 {
    let dpl = if matches!(vector, 3 | 4 | 0x80..) { 3 } else { 0 };
    let access = 0x8e | dpl << 5;
    target & 0xffff | u64::from(selector) << 16 | access << 40 | (target >> 16 & 0xffff) << 48
}

/// Where cases end: a word to the outside, then a loop that nothing leaves. Nothing that a tier may still do before it
/// looks at what was asked for changes anything.
fn exits(image: &mut [u8]) -> Result<(), IcedError> {
    for bits in [64, 32, 16] {
        let mut a = CodeAssembler::new(bits)?;
        finish(&mut a)?;
        let code = a.assemble(EXIT + exit(bits))?;
        image[(EXIT_GPA + exit(bits)) as usize..][..code.len()].copy_from_slice(&code);
    }
    Ok(())
}

/// The end of a case.
fn finish(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.out(i32::from(END), al)?;
    let mut forever = a.create_label();
    a.set_label(&mut forever)?;
    a.jmp(forever)
}

/// What every exception and software interrupt comes to, with vector and error code on the stack.
fn exception(a: &mut CodeAssembler, common: &mut CodeLabel, end: &mut CodeLabel) -> Result<(), IcedError> {
    let labels = [(); 6].map(|()| a.create_label());
    let [mut resume, mut stepping, mut breakpoint, mut x87, mut skip, mut window] = labels;
    a.set_label(common)?;
    for register in [rax, rcx, rdx] {
        a.push(register)?;
    }
    a.mov(eax, dword_ptr(HEAD))?;
    a.cmp(eax, LIMIT as i32)?;
    a.jae(*end)?;
    a.inc(dword_ptr(HEAD))?;
    a.mov(ecx, eax)?;
    a.shl(ecx, ENTRY.trailing_zeros())?;
    a.lea(rdx, qword_ptr(rcx + (HEAD + ENTRY).cast_signed() as i32))?;
    // Vector, error code, RIP, CS, flags, RSP, SS as they lie on the stack.
    for n in 0..7 {
        a.mov(rcx, qword_ptr(rsp + (24 + 8 * n)))?;
        a.mov(qword_ptr(rdx + 8 * n), rcx)?;
    }
    a.mov(rcx, cr2)?;
    a.mov(qword_ptr(rdx + 56), rcx)?;
    // A program that single-steps would fill the log: TF goes before that.
    a.cmp(eax, LIMIT as i32 / 2)?;
    a.jb(stepping)?;
    a.btr(dword_ptr(rsp + 56), 8)?;
    a.set_label(&mut stepping)?;
    a.mov(eax, dword_ptr(rsp + 24))?;
    a.cmp(eax, 32)?;
    a.jae(resume)?;
    a.cmp(eax, 8)?;
    a.je(*end)?;
    // So that an instruction at which there is a breakpoint is executed.
    a.cmp(eax, 1)?;
    a.jne(breakpoint)?;
    a.bts(dword_ptr(rsp + 56), 16)?;
    a.set_label(&mut breakpoint)?;
    // Traps.
    a.mov(ecx, 1 << 1 | 1 << 3 | 1 << 4)?;
    a.bt(ecx, eax)?;
    a.jc(resume)?;
    a.cmp(eax, 7)?;
    a.jne(x87)?;
    a.clts()?;
    a.jmp(resume)?;
    a.set_label(&mut x87)?;
    a.cmp(eax, 16)?;
    a.jne(skip)?;
    a.fnclex()?;
    a.set_label(&mut skip)?;
    a.mov(rax, qword_ptr(rsp + 40))?;
    for selector in [CODE0_16, CODE3_16] {
        a.cmp(dword_ptr(rsp + 48), i32::from(selector))?;
        a.je(window)?;
    }
    a.sub(rax, CODE as i32)?;
    a.set_label(&mut window)?;
    a.and(rax, !(ALIAS as i32))?;
    a.cmp(rax, CODE_LEN as i32)?;
    a.jae(*end)?;
    a.movzx(eax, byte_ptr(rax + (SYSTEM + SKIP).cast_signed() as i32))?;
    a.test(eax, eax)?;
    a.jz(*end)?;
    a.add(qword_ptr(rsp + 40), rax)?;
    a.set_label(&mut resume)?;
    for register in [rdx, rcx, rax] {
        a.pop(register)?;
    }
    a.add(rsp, 16)?;
    a.iretq()?;
    a.set_label(end)?;
    finish(a)
}

/// Where SYSCALL goes: back to where it came from, after a line in the log. No stack can be trusted here.
fn system_call(a: &mut CodeAssembler, at: &mut CodeLabel, end: CodeLabel, narrow: bool) -> Result<(), IcedError> {
    let mut inner = a.create_label();
    a.set_label(at)?;
    a.mov(qword_ptr(SAVED_RAX), rax)?;
    a.mov(eax, dword_ptr(HEAD))?;
    a.cmp(eax, LIMIT as i32)?;
    a.jae(end)?;
    a.inc(dword_ptr(HEAD))?;
    a.shl(eax, ENTRY.trailing_zeros())?;
    let entry = |offset: i32| rax + ((HEAD + ENTRY).cast_signed() as i32 + offset);
    a.mov(qword_ptr(entry(0)), SYSCALL)?;
    a.mov(qword_ptr(entry(16)), rcx)?;
    a.mov(qword_ptr(entry(32)), r11)?;
    a.mov(qword_ptr(entry(40)), rsp)?;
    a.mov(rax, qword_ptr(SAVED_RAX))?;
    a.mov(qword_ptr(SAVED_RCX), rcx)?;
    a.cmp(byte_ptr(SYSTEM + RETURN_TO), 0)?;
    a.je(inner)?;
    if narrow {
        a.sysret()?
    } else {
        a.sysretq()?
    }
    a.set_label(&mut inner)?;
    a.jmp(rcx)
}
