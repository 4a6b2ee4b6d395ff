//! The kernel's handlers of protected mode, where everything that comes from the supervisor finds the case's own stack,
//! and of real mode.

use super::{ENTRY, LIMIT, finish, gate, has_code};
use crate::hooks::ASYNC;
use crate::layout::{ALIAS, CODE, CODE_LEN, IDT_32, LOG, PAGE, SKIP, SYSTEM, TEXT_16, TEXT_32, put};
use crate::mode::{CODE0_16, CODE0_32, CODE3_16, DATA0, Mode};
use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

/// Where protected mode has the system: the upper half of its addresses.
const SYSTEM_32: u32 = SYSTEM as u32;
const HEAD: u32 = SYSTEM_32 + LOG as u32;
/// Bytes for each stub of real mode.
const STUB: u64 = 8;

/// Writes both into an image of RAM.
pub(super) fn write(image: &mut [u8]) -> Result<(), IcedError> {
    protected(image)?;
    real(image)
}

fn protected(image: &mut [u8]) -> Result<(), IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let mut common = a.create_label();
    let mut stubs = Vec::new();
    for vector in 0..256 {
        let mut stub = a.create_label();
        a.set_label(&mut stub)?;
        if vector == i32::from(ASYNC) {
            a.push(eax)?;
            a.add(eax, 0x7fff_ffff)?;
            a.pop(eax)?;
            a.iretd()?;
        } else {
            if !has_code(vector) {
                a.push(0)?;
            }
            a.push(vector)?;
            a.jmp(common)?;
        }
        stubs.push(stub);
    }
    exception(&mut a, &mut common)?;
    let start = u64::from(SYSTEM_32) + TEXT_32;
    let result = a.assemble_options(start, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let code = &result.inner.code_buffer;
    assert!(code.len() as u64 <= 2 * PAGE, "the handlers fit their pages");
    image[TEXT_32 as usize..][..code.len()].copy_from_slice(code);
    for (vector, stub) in (0..).zip(stubs) {
        put(image, IDT_32 + 8 * vector, gate(vector, result.label_ip(&stub)?, CODE0_32));
    }
    Ok(())
}

/// What every exception and software interrupt of protected mode comes to, with vector and error code on the stack.
fn exception(a: &mut CodeAssembler, common: &mut CodeLabel) -> Result<(), IcedError> {
    let labels = [(); 9].map(|()| a.create_label());
    let [mut resume, mut stepping, mut breakpoint, mut x87, mut skip, mut window, mut outer, mut inner, mut end] =
        labels;
    a.set_label(common)?;
    for register in [eax, ecx, edx] {
        a.push(register)?;
    }
    a.push(ds)?;
    a.mov(edx, i32::from(DATA0))?;
    a.mov(ds, edx)?;
    a.mov(eax, dword_ptr(HEAD))?;
    a.cmp(eax, LIMIT as i32)?;
    a.jae(end)?;
    a.inc(dword_ptr(HEAD))?;
    a.mov(ecx, eax)?;
    a.shl(ecx, ENTRY.trailing_zeros())?;
    a.lea(edx, dword_ptr(ecx + (HEAD + ENTRY as u32)))?;
    // Vector, error code, EIP, CS, flags as they lie on the stack, and ESP.
    for n in 0..5 {
        a.mov(ecx, dword_ptr(esp + (16 + 4 * n)))?;
        a.mov(dword_ptr(edx + 8 * n), ecx)?;
    }
    a.test(byte_ptr(esp + 28), 3)?;
    a.jne(outer)?;
    // VM.
    a.test(byte_ptr(esp + 34), 2)?;
    a.jne(outer)?;
    a.lea(ecx, dword_ptr(esp + 36))?;
    a.jmp(inner)?;
    a.set_label(&mut outer)?;
    a.mov(ecx, dword_ptr(esp + 36))?;
    a.set_label(&mut inner)?;
    a.mov(dword_ptr(edx + 40), ecx)?;
    a.mov(ecx, cr2)?;
    a.mov(dword_ptr(edx + 56), ecx)?;
    // As in long mode.
    a.cmp(eax, LIMIT as i32 / 2)?;
    a.jb(stepping)?;
    a.btr(dword_ptr(esp + 32), 8)?;
    a.set_label(&mut stepping)?;
    a.mov(eax, dword_ptr(esp + 16))?;
    a.cmp(eax, 32)?;
    a.jae(resume)?;
    a.cmp(eax, 8)?;
    a.je(end)?;
    a.cmp(eax, 1)?;
    a.jne(breakpoint)?;
    a.bts(dword_ptr(esp + 32), 16)?;
    a.set_label(&mut breakpoint)?;
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
    a.mov(eax, dword_ptr(esp + 24))?;
    a.test(byte_ptr(esp + 34), 2)?;
    a.jne(window)?;
    for selector in [CODE0_16, CODE3_16] {
        a.cmp(word_ptr(esp + 28), i32::from(selector))?;
        a.je(window)?;
    }
    a.sub(eax, CODE as i32)?;
    a.set_label(&mut window)?;
    a.and(eax, !(ALIAS as i32))?;
    a.cmp(eax, CODE_LEN as i32)?;
    a.jae(end)?;
    a.movzx(eax, byte_ptr(eax + (SYSTEM_32 + SKIP as u32)))?;
    a.test(eax, eax)?;
    a.jz(end)?;
    a.add(dword_ptr(esp + 24), eax)?;
    a.set_label(&mut resume)?;
    a.pop(ds)?;
    for register in [edx, ecx, eax] {
        a.pop(register)?;
    }
    a.add(esp, 8)?;
    a.iretd()?;
    a.set_label(&mut end)?;
    finish(a)
}

fn real(image: &mut [u8]) -> Result<(), IcedError> {
    let code = Mode::Real.code_selector(0);
    for vector in 0..256 {
        let start = STUB * vector;
        let mut a = CodeAssembler::new(16)?;
        if vector == u64::from(ASYNC) {
            a.push(ax)?;
            a.add(ax, 0x7fff)?;
            a.pop(ax)?;
            a.iret()?;
        } else {
            a.push(vector as i32)?;
            a.jmp(256 * STUB)?;
        }
        let stub = a.assemble(start)?;
        assert!(stub.len() as u64 <= STUB, "a stub has room");
        image[(TEXT_16 + start) as usize..][..stub.len()].copy_from_slice(&stub);
        let vector = 4 * vector as usize;
        image[vector..vector + 4].copy_from_slice(&(start as u32 | (TEXT_16 as u32) << 12).to_le_bytes());
    }
    let mut a = CodeAssembler::new(16)?;
    let [mut resume, mut stepping, mut x87, mut skip, mut end] = [(); 5].map(|()| a.create_label());
    for register in [ax, bx, cx] {
        a.push(register)?;
    }
    a.push(ds)?;
    a.push(bp)?;
    a.mov(bp, sp)?;
    a.mov(ax, (LOG >> 4) as i32)?;
    a.mov(ds, ax)?;
    a.mov(ax, word_ptr(0))?;
    a.cmp(ax, LIMIT as i32)?;
    a.jae(end)?;
    a.inc(word_ptr(0))?;
    a.mov(bx, ax)?;
    a.shl(bx, ENTRY.trailing_zeros())?;
    // Vector, IP, CS, flags as they lie on the stack, and SP.
    for (from, to) in [(10, 0), (12, 16), (14, 24), (16, 32)] {
        a.mov(cx, word_ptr(bp + from))?;
        a.mov(word_ptr(bx + (ENTRY as i32 + to)), cx)?;
    }
    a.lea(cx, word_ptr(bp + 18))?;
    a.mov(word_ptr(bx + (ENTRY as i32 + 40)), cx)?;
    // As in long mode.
    a.cmp(ax, LIMIT as i32 / 2)?;
    a.jb(stepping)?;
    a.and(word_ptr(bp + 16), 0xfeff)?;
    a.set_label(&mut stepping)?;
    a.mov(ax, word_ptr(bp + 10))?;
    a.cmp(ax, 32)?;
    a.jae(resume)?;
    a.cmp(ax, 8)?;
    a.je(end)?;
    a.mov(cx, 1 << 1 | 1 << 3 | 1 << 4)?;
    a.bt(cx, ax)?;
    a.jc(resume)?;
    a.cmp(ax, 7)?;
    a.jne(x87)?;
    a.clts()?;
    a.jmp(resume)?;
    a.set_label(&mut x87)?;
    a.cmp(ax, 16)?;
    a.jne(skip)?;
    a.fnclex()?;
    a.set_label(&mut skip)?;
    a.cmp(word_ptr(bp + 14), i32::from(code))?;
    a.jne(end)?;
    a.mov(bx, word_ptr(bp + 12))?;
    a.cmp(bx, CODE_LEN as i32)?;
    a.jae(end)?;
    a.mov(ax, (SKIP >> 4) as i32)?;
    a.mov(ds, ax)?;
    a.mov(al, byte_ptr(bx))?;
    a.mov(ah, 0)?;
    a.test(al, al)?;
    a.jz(end)?;
    a.add(word_ptr(bp + 12), ax)?;
    a.set_label(&mut resume)?;
    a.pop(bp)?;
    a.pop(ds)?;
    for register in [cx, bx, ax] {
        a.pop(register)?;
    }
    a.add(sp, 2)?;
    a.iret()?;
    a.set_label(&mut end)?;
    finish(&mut a)?;
    let handler = a.assemble(256 * STUB)?;
    let at = (TEXT_16 + 256 * STUB) as usize;
    image[at..at + handler.len()].copy_from_slice(&handler);
    Ok(())
}
