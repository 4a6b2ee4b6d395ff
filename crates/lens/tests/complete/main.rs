//! No access is missed, none is told twice, none is invented: programs whose accesses are known, on both tiers.
//!
//! An access that crosses a page is told once for each page, one of more than 16 bytes in pieces of 16. A read-modify-write
//! is a read and a write, also where it writes what was there (CMPXCHG that fails). XSAVE and its like access the
//! components that are saved or restored, each once. What a device accesses comes in the same pieces.

mod machine;

use iced_x86::code_asm::*;
use machine::Spec::{Any, DmaR, DmaW, Dr, Dw, Pr, Pw, R, W};
use machine::*;

/// Elements of `size` bytes from `start` on, `count` of them, upwards or downwards.
fn elements(start: u64, size: u64, count: u64, down: bool) -> impl Iterator<Item = u64> {
    (0..count).map(move |n| if down { start - n * size } else { start + n * size })
}

/// The bytes that [`machine`] fills memory with.
fn filled(gva: u64, size: u64) -> u128 {
    let byte = |gva: u64| u128::from((gpa(gva) * 7 + (gpa(gva) >> 8)) as u8);
    (0..size).rev().fold(0, |value, n| value << 8 | byte(gva + n))
}

#[test]
fn string_instructions_with_any_count_and_direction() {
    // Forwards and backwards, none, few, more than lie in a page, misaligned to it.
    for (from, to, count, down) in [
        (DATA + 0x100, DATA + 0x3100, 0, false),
        (DATA + 0x100, DATA + 0x3100, 3, false),
        (DATA + 0xff3, DATA + 0x3ffd, 5, false),
        (DATA + 0x11ff, DATA + 0x5fe1, 700, false),
        (DATA + 0x200, DATA + 0x3200, 3, true),
        (DATA + 0x1013, DATA + 0x400d, 5, true),
        (DATA + 0x27fc, DATA + 0x6ff4, 700, true),
    ] {
        let mut case = Case::new();
        if down {
            case.just(|a| a.std());
        }
        case.just(|a| a.mov(rsi, from));
        case.just(|a| a.mov(rdi, to));
        case.just(|a| a.mov(rcx, count));
        let pairs = elements(from, 8, count, down).zip(elements(to, 8, count, down));
        let specs: Vec<_> = pairs.flat_map(|(from, to)| [R(from, 8), W(to, 8, filled(from, 8))]).collect();
        case.does(|a| a.rep().movsq(), &specs);
        case.just(|a| a.mov(rcx, count));
        case.just(|a| a.mov(rdi, to));
        case.just(|a| a.mov(eax, 0x1234));
        let specs: Vec<_> = elements(to, 2, count, down).map(|to| W(to, 2, 0x1234)).collect();
        case.does(|a| a.rep().stosw(), &specs);
        case.just(|a| a.mov(rcx, count));
        case.just(|a| a.mov(rdi, to));
        let specs: Vec<_> = elements(to, 2, count, down).map(|to| R(to, 2)).collect();
        case.does(|a| a.repe().scasw(), &specs);
        case.just(|a| a.mov(rcx, count));
        case.just(|a| a.mov(rsi, to));
        case.just(|a| a.mov(rdi, to));
        let specs: Vec<_> = elements(to, 1, count, down).flat_map(|to| [R(to, 1), R(to, 1)]).collect();
        case.does(|a| a.repe().cmpsb(), &specs);
        case.just(|a| a.mov(rcx, count));
        case.just(|a| a.mov(rsi, from));
        let specs: Vec<_> = elements(from, 4, count, down).map(|from| R(from, 4)).collect();
        case.does(|a| a.rep().lodsd(), &specs);
        case.check();
    }
}

#[test]
fn comparisons_end_at_the_element_that_decides() {
    let mut case = Case::new();
    case.memory.push((DATA + 0xff0, vec![9; 64]));
    case.memory.push((DATA + 0x1004, vec![1]));
    case.just(|a| a.mov(rdi, DATA + 0xff0));
    case.just(|a| a.mov(ecx, 64));
    case.just(|a| a.mov(eax, 1));
    let specs: Vec<_> = elements(DATA + 0xff0, 1, 21, false).map(|at| R(at, 1)).collect();
    case.does(|a| a.repne().scasb(), &specs);
    case.just(|a| a.mov(rsi, DATA + 0xff1));
    case.just(|a| a.mov(rdi, DATA + 0xff0));
    case.just(|a| a.mov(ecx, 64));
    let specs: Vec<_> = elements(DATA + 0xff0, 1, 20, false).flat_map(|at| [R(at + 1, 1), R(at, 1)]).collect();
    case.does(|a| a.repe().cmpsb(), &specs);
    case.just(|a| a.mov(rsi, DATA + 0x10));
    case.just(|a| a.mov(rdi, DATA + 0xffe));
    case.does(|a| a.movsd(), &[R(DATA + 0x10, 4), W(DATA + 0xffe, 4, filled(DATA + 0x10, 4))]);
    case.does(|a| a.lodsw(), &[R(DATA + 0x14, 2)]);
    case.does(|a| a.stosb(), &[W(DATA + 0x1002, 1, filled(DATA + 0x14, 1))]);
    case.just(|a| a.mov(ecx, 3));
    case.just(|a| a.mov(edx, 0x40));
    let specs: Vec<_> = elements(DATA + 0x1003, 1, 3, false).map(|at| W(at, 1, 0x5a)).collect();
    case.does(|a| a.rep().insb(), &specs);
    case.check();
}

#[test]
fn accesses_of_all_sizes_within_and_across_lines_and_pages() {
    // In a line, across two, across two pages that are not adjacent.
    for at in [DATA + 0x40, DATA + 0x7d, DATA + 0xfff, DATA + 0x1ff9, DATA + 0x2ff1] {
        let mut case = Case::new();
        let a_value = 0x1122_3344_5566_7788u64;
        case.just(|a| a.mov(rbx, at));
        case.just(|a| a.mov(rax, a_value));
        case.does(|a| a.mov(cl, byte_ptr(rbx)), &[R(at, 1)]);
        case.does(|a| a.movzx(ecx, word_ptr(rbx)), &[R(at, 2)]);
        case.does(|a| a.mov(ecx, dword_ptr(rbx)), &[R(at, 4)]);
        case.does(|a| a.mov(rcx, qword_ptr(rbx)), &[R(at, 8)]);
        case.does(|a| a.movdqu(xmm0, xmmword_ptr(rbx)), &[R(at, 16)]);
        case.does(|a| a.vmovdqu(ymm1, ymmword_ptr(rbx)), &[R(at, 32)]);
        case.just(|a| a.fninit());
        case.does(|a| a.fld(tbyte_ptr(rbx)), &[R(at, 10)]);
        case.does(|a| a.fstp(tbyte_ptr(rbx + 0x100)), &[Any(at + 0x100, 10)]);
        case.does(|a| a.mov(byte_ptr(rbx), al), &[W(at, 1, 0x88)]);
        case.does(|a| a.mov(word_ptr(rbx), ax), &[W(at, 2, 0x7788)]);
        case.does(|a| a.mov(dword_ptr(rbx), eax), &[W(at, 4, 0x5566_7788)]);
        case.does(|a| a.mov(qword_ptr(rbx), rax), &[W(at, 8, a_value.into())]);
        case.does(|a| a.add(qword_ptr(rbx), 1), &[R(at, 8), W(at, 8, u128::from(a_value) + 1)]);
        case.does(|a| a.cmp(qword_ptr(rbx), 1), &[R(at, 8)]);
        case.does(|a| a.movdqu(xmmword_ptr(rbx), xmm0), &[W(at, 16, filled(at, 16))]);
        case.does(|a| a.vmovdqu(ymmword_ptr(rbx + 0x80), ymm1), &[Any(at + 0x80, 32)]);
        case.check();
    }
}

#[test]
fn a_loop_over_an_array() {
    let mut case = Case::new();
    case.just(|a| a.mov(rdi, DATA + 0xf80));
    case.just(|a| a.xor(ecx, ecx));
    let mut head = case.label();
    let store = case.next();
    case.does(
        |a| {
            a.set_label(&mut head)?;
            a.mov(qword_ptr(rdi + rcx * 8), rcx)
        },
        &[W(DATA + 0xf80, 8, 0)],
    );
    case.does(|a| a.add(rdx, qword_ptr(rdi + rcx * 8 + 8)), &[R(DATA + 0xf88, 8)]);
    for n in 1..40 {
        let at = DATA + 0xf80 + 8 * n;
        case.again(store, &[W(at, 8, n.into())]);
        case.again(store + 1, &[R(at + 8, 8)]);
    }
    case.just(|a| a.inc(rcx));
    case.just(|a| a.cmp(rcx, 40));
    case.just(|a| a.jb(head));
    case.check();
}

#[test]
fn the_stack() {
    let mut case = Case::new();
    case.just(|a| a.mov(rax, 0x1234_5678_9abcu64));
    case.just(|a| a.mov(rbx, DATA + 0xffc));
    case.just(|a| a.mov(rbp, STACK));
    let top = |n: u64| STACK - 8 * n;
    case.does(|a| a.push(rax), &[W(top(1), 8, 0x1234_5678_9abc)]);
    case.does(|a| a.push(-2), &[W(top(2), 8, u64::MAX as u128 - 1)]);
    case.does(|a| a.push(qword_ptr(rbx)), &[R(DATA + 0xffc, 8), W(top(3), 8, filled(DATA + 0xffc, 8))]);
    case.does(|a| a.push(ax), &[W(top(3) - 2, 2, 0x9abc)]);
    case.does(|a| a.pop(cx), &[R(top(3) - 2, 2)]);
    case.does(|a| a.pop(qword_ptr(rbx + 8)), &[R(top(3), 8), W(DATA + 0x1004, 8, filled(DATA + 0xffc, 8))]);
    case.does(|a| a.pop(rcx), &[R(top(2), 8)]);
    case.just(|a| a.cmp(rax, rax));
    case.does(|a| a.pushfq(), &[W(top(2), 8, 0x46)]);
    case.does(|a| a.popfq(), &[R(top(2), 8)]);
    let back = case.address() + 5;
    let mut function = case.label();
    case.does(|a| a.call(function), &[W(top(2), 8, back.into())]);
    // It comes back here, and jumps over the function.
    let mut end = case.label();
    case.just(|a| a.jmp(end));
    case.does(
        |a| {
            a.set_label(&mut function)?;
            a.enter(32, 3)
        },
        &[
            W(top(3), 8, STACK.into()),
            R(STACK - 8, 8),
            W(top(4), 8, 0x1234_5678_9abc),
            R(STACK - 16, 8),
            W(top(5), 8, back.into()),
            W(top(6), 8, top(3).into()),
        ],
    );
    case.does(|a| a.leave(), &[R(top(3), 8)]);
    case.does(|a| a.ret(), &[R(top(2), 8)]);
    case.just(|a| {
        a.set_label(&mut end)?;
        a.mov(qword_ptr(rsp - 0x100), rax)
    });
    case.again(case.next() - 1, &[W(top(1) - 0x100, 8, 0x1234_5678_9abc)]);
    case.check();
}

#[test]
fn locked_and_exchanging_instructions() {
    for at in [DATA + 0x40, DATA + 0xff8, DATA + 0x1ffc, DATA + 0x703d] {
        let mut case = Case::new();
        let (low, all) = (filled(at, 4), filled(at, 8));
        case.just(|a| a.mov(rbx, at));
        case.just(|a| a.mov(ecx, 5));
        case.does(|a| a.lock().xadd(dword_ptr(rbx), ecx), &[R(at, 4), W(at, 4, (low + 5) & 0xffff_ffff)]);
        case.does(|a| a.xchg(dword_ptr(rbx), ecx), &[R(at, 4), W(at, 4, low)]);
        case.does(|a| a.lock().inc(qword_ptr(rbx)), &[R(at, 8), W(at, 8, all + 1)]);
        case.does(|a| a.lock().dec(qword_ptr(rbx)), &[R(at, 8), W(at, 8, all)]);
        case.just(|a| a.xor(eax, eax));
        case.does(|a| a.lock().cmpxchg(qword_ptr(rbx), rcx), &[R(at, 8), W(at, 8, all)]);
        case.just(|a| a.mov(ecx, 7));
        case.does(|a| a.lock().cmpxchg(qword_ptr(rbx), rcx), &[R(at, 8), W(at, 8, 7)]);
        case.just(|a| a.xor(edx, edx));
        case.does(|a| a.cmpxchg8b(qword_ptr(rbx)), &[R(at, 8), W(at, 8, 7)]);
        case.just(|a| a.mov(ecx, 70));
        case.does(|a| a.lock().bts(dword_ptr(rbx), ecx), &[R(at + 8, 4), W(at + 8, 4, filled(at + 8, 4) | 1 << 6)]);
        case.does(|a| a.bt(dword_ptr(rbx), ecx), &[R(at + 8, 4)]);
        case.does(|a| a.neg(word_ptr(rbx)), &[R(at, 2), W(at, 2, 0xfff9)]);
        case.check();
    }
    let at = DATA + 0xff0;
    let mut case = Case::new();
    case.just(|a| a.mov(rsi, at));
    case.just(|a| a.mov(rbx, 0x77u64));
    case.does(|a| a.lock().cmpxchg16b(xmmword_ptr(rsi)), &[R(at, 16), W(at, 16, filled(at, 16))]);
    case.does(|a| a.cmpxchg16b(xmmword_ptr(rsi)), &[R(at, 16), W(at, 16, 0x77)]);
    case.check();
}

#[test]
fn saved_and_restored_state() {
    let (at, header) = (DATA + 0xe00, DATA + 0xe00 + 512);
    let mut case = Case::new();
    case.memory.push((header, vec![0; 64]));
    case.just(|a| a.mov(rbx, at));
    case.does(|a| a.movdqu(xmm0, xmmword_ptr(rbx)), &[R(at, 16)]);
    case.does(|a| a.vmovdqu(ymm1, ymmword_ptr(rbx)), &[R(at, 32)]);
    case.does(|a| a.fxsave64(ptr(rbx)), &[Any(at, 416)]);
    case.does(|a| a.fxrstor64(ptr(rbx)), &[R(at, 416)]);
    case.check();

    // x87 without MXCSR, MXCSR, XMM, the upper halves of YMM; the header last.
    let mut case = Case::new();
    case.memory.push((header, vec![0; 64]));
    case.just(|a| a.mov(rbx, at));
    case.does(|a| a.vmovdqu(ymm1, ymmword_ptr(rbx)), &[R(at, 32)]);
    case.just(|a| a.fninit());
    case.just(|a| a.mov(eax, 7));
    case.just(|a| a.xor(edx, edx));
    let saved = [R(header, 8), Any(at, 24), Any(at + 32, 128), Any(at + 24, 8), Any(at + 160, 256)];
    let saved: Vec<_> = saved.into_iter().chain([Any(at + 576, 256), W(header, 8, 6)]).collect();
    case.does(|a| a.xsave64(ptr(rbx)), &saved);
    case.does(|a| a.xrstor64(ptr(rbx)), &[R(header, 64), R(at + 24, 4), R(at + 160, 256), R(at + 576, 256)]);
    case.just(|a| a.mov(eax, 1));
    case.just(|a| a.fninit());
    case.just(|a| a.fld1());
    case.just(|a| a.mov(rbx, DATA + 0x2e00));
    let (at, header) = (DATA + 0x2e00, DATA + 0x3000);
    case.memory.push((header, vec![0; 64]));
    case.does(
        |a| a.xsavec64(ptr(rbx)),
        &[Any(at, 24), Any(at + 32, 128), W(header, 8, 1), W(header + 8, 8, 1 << 63 | 1)],
    );
    case.does(|a| a.xrstor64(ptr(rbx)), &[R(header, 64), R(at, 24), R(at + 32, 128)]);
    case.check();
}

#[test]
fn gathers_and_masked_moves() {
    let mut case = Case::new();
    // Indices that cross into other pages, are equal, and are not selected.
    let offsets: [u64; 8] = [0, 0xffd, 0x1002, 0x1002, 0x20, 0x5555, 0x7ff8, 0x3ffe];
    let masks: [u32; 8] = [0x8000_0000, u32::MAX, 0, 0x8000_0001, 0x7fff_ffff, 0x8000_0000, u32::MAX, 0x8000_0000];
    let (indices, mask, base) = (STACK + 0x100, STACK + 0x200, DATA);
    case.memory.push((indices, offsets.iter().flat_map(|offset| (*offset as u32).to_le_bytes()).collect()));
    case.memory.push((mask, masks.iter().flat_map(|mask| mask.to_le_bytes()).collect()));
    let selected: Vec<_> = (0..8).filter(|n| masks[*n] >> 31 != 0).collect();
    case.just(|a| a.mov(rbx, indices));
    case.does(|a| a.vmovdqu(ymm1, ymmword_ptr(rbx)), &[R(indices, 32)]);
    case.does(|a| a.vmovdqu(ymm2, ymmword_ptr(rbx + 0x100)), &[R(mask, 32)]);
    case.just(|a| a.vmovdqa(ymm5, ymm2));
    case.just(|a| a.mov(rbx, base));
    let specs: Vec<_> = selected.iter().map(|n| R(base + offsets[*n], 4)).collect();
    // vpgatherdd ymm0, [rbx + ymm1], ymm2
    case.does(|a| a.db(&[0xc4, 0xe2, 0x6d, 0x90, 0x04, 0x0b]), &specs);
    let at = DATA + 0xfed;
    case.just(|a| a.mov(rbx, at));
    let specs: Vec<_> = selected.iter().map(|n| R(at + 4 * *n as u64, 4)).collect();
    case.does(|a| a.vmaskmovps(ymm3, ymm5, ymmword_ptr(rbx)), &specs);
    let specs: Vec<_> = selected.iter().map(|n| W(at + 4 * *n as u64, 4, offsets[*n].into())).collect();
    case.does(|a| a.vpmaskmovd(ymmword_ptr(rbx), ymm5, ymm1), &specs);
    case.just(|a| a.mov(rdi, DATA + 0x2ff8));
    let bytes = (0..16).filter(|n| masks[n / 4] >> (8 * (n % 4) + 7) & 1 != 0);
    let specs: Vec<_> =
        bytes.map(|n| W(DATA + 0x2ff8 + n as u64, 1, u128::from((offsets[n / 4] >> (8 * (n % 4))) as u8))).collect();
    case.does(|a| a.maskmovdqu(xmm1, xmm5), &specs);
    case.check();
}

#[test]
fn interrupts_far_transfers_and_segments() {
    let mut case = Case::new();
    // Data whose descriptor was never loaded: its accessed bit is set.
    case.just(|a| a.mov(eax, 0x28));
    case.does(|a| a.mov(es, eax), &[Dr(GDT + 0x28, 8), Dr(GDT + 0x2d, 1), Dw(GDT + 0x2d, 1, 0x93)]);
    case.does(|a| a.mov(es, eax), &[Dr(GDT + 0x28, 8)]);
    // An interrupt at the same level, and back.
    let after = case.address() + 2;
    let at = |n: u64| STACK - 8 * n;
    let pushed =
        [W(at(1), 8, 0x10), W(at(2), 8, STACK.into()), W(at(3), 8, 2), W(at(4), 8, 8), W(at(5), 8, after.into())];
    let gate = |vector: u64| [Dr(IDT + 16 * vector, 8), Dr(IDT + 16 * vector + 8, 4), Dr(GDT + 8, 8)];
    let handler = after + 2;
    case.handler(0x30, handler, 3);
    let specs: Vec<_> = gate(0x30).into_iter().chain(pushed).collect();
    case.does(|a| a.int(0x30), &specs);
    let mut end = case.label();
    case.just(|a| a.jmp(end));
    let [address, code, flags, stack, segment] = [0, 1, 2, 3, 4].map(|n| R(STACK - 40 + 8 * n, 8));
    let returned = [address, code, flags, Dr(GDT + 8, 8), stack, segment, Dr(GDT + 0x10, 8)];
    case.does(|a| a.iretq(), &returned);
    // A far call and return. The pointer is to what comes two instructions later.
    case.just(|a| {
        a.set_label(&mut end)?;
        a.mov(rbx, DATA + 0xffb)
    });
    let target = case.address() + 3 + 2;
    case.memory.push((DATA + 0xffb, [&target.to_le_bytes()[..], &8u16.to_le_bytes()].concat()));
    case.does(
        // REX.W call far [rbx]
        |a| a.db(&[0x48, 0xff, 0x1b]),
        &[
            R(DATA + 0xffb, 8),
            R(DATA + 0x1003, 2),
            Dr(GDT + 8, 8),
            W(STACK - 8, 8, 8),
            W(STACK - 16, 8, (target - 2).into()),
        ],
    );
    let mut end = case.label();
    case.just(|a| a.jmp(end));
    case.does(|a| a.db(&[0x48, 0xcb]), &[R(STACK - 16, 8), R(STACK - 8, 8), Dr(GDT + 8, 8)]);
    case.just(|a| {
        a.set_label(&mut end)?;
        a.nop()
    });
    case.check();
}

#[test]
fn a_program_is_entered_and_left_by_an_interrupt() {
    let mut case = Case::new();
    for value in [0x23u32, STACK as u32, 2, 0x1b] {
        let at = STACK - 8 * u64::try_from(case.next() + 1).unwrap_or(0);
        case.does(|a| a.push(value as i32), &[W(at, 8, value.into())]);
    }
    let program = case.address() + 5 + 2;
    case.does(|a| a.push(program as i32), &[W(STACK - 40, 8, program.into())]);
    let [address, code, flags, stack, segment] = [0, 1, 2, 3, 4].map(|n| R(STACK - 40 + 8 * n, 8));
    let specs = [address, code, flags, Dr(GDT + 0x18, 8), stack, segment, Dr(GDT + 0x20, 8)];
    case.does(|a| a.iretq(), &specs);
    assert_eq!(case.address(), program);
    case.cpl = 3;
    case.does(|a| a.push(1), &[W(STACK - 8, 8, 1)]);
    let after = case.address() + 2;
    case.handler(0x30, after, 3);
    let at = |n: u64| INNER - 8 * n;
    case.does(
        |a| a.int(0x30),
        &[
            Dr(IDT + 0x300, 8),
            Dr(IDT + 0x308, 4),
            Dr(GDT + 8, 8),
            Dr(TSS + 4, 8),
            W(at(1), 8, 0x23),
            W(at(2), 8, (STACK - 8).into()),
            W(at(3), 8, 2),
            W(at(4), 8, 0x1b),
            W(at(5), 8, after.into()),
        ],
    );
    case.cpl = 0;
    case.check();
}

#[test]
fn page_walks_and_their_bits() {
    let mut case = Case::new();
    case.walks = true;
    let [directory_pointers, directory, table] = DATA_TABLES;
    let entry = |n: u64| u128::from(gpa(DATA + (n << 12)) | 7);
    let upper = [Pr(directory_pointers), Pr(directory)];
    let first = [
        Pw(directory_pointers, u128::from(directory | 0x27)),
        Pw(directory, u128::from(table | 0x27)),
        Pw(table, entry(0) | 0x20),
    ];
    case.just(|a| a.mov(rbx, DATA));
    let read: Vec<_> = upper.into_iter().chain([Pr(table)]).chain(first).chain([R(DATA, 8)]).collect();
    case.does(|a| a.mov(rax, qword_ptr(rbx)), &read);
    case.does(|a| a.mov(rcx, qword_ptr(rbx + 8)), &[R(DATA + 8, 8)]);
    // The dirty bit takes a walk of its own.
    let dirty = upper.into_iter().chain([Pr(table), Pw(table, entry(0) | 0x60), W(DATA + 1, 1, filled(DATA, 1))]);
    case.does(|a| a.mov(byte_ptr(rbx + 1), al), &dirty.collect::<Vec<_>>());
    case.does(|a| a.mov(byte_ptr(rbx + 2), al), &[W(DATA + 2, 1, filled(DATA, 1))]);
    // Across two pages, then a string that goes on into another one.
    let walk = |n: u64, bits: u128| {
        [Pr(directory_pointers), Pr(directory), Pr(table + 8 * n), Pw(table + 8 * n, entry(n) | bits)]
    };
    let both = walk(1, 0x60).into_iter().chain(walk(2, 0x60)).chain([W(DATA + 0x1ffc, 8, 3)]);
    case.just(|a| a.mov(edx, 3));
    case.does(|a| a.mov(qword_ptr(rbx + 0x1ffc), rdx), &both.collect::<Vec<_>>());
    case.just(|a| a.mov(rdi, DATA + 0x2ff8));
    case.just(|a| a.mov(ecx, 2));
    let stored = [W(DATA + 0x2ff8, 8, 3)].into_iter().chain(walk(3, 0x60)).chain([W(DATA + 0x3000, 8, 3)]);
    case.just(|a| a.mov(eax, 3));
    case.does(|a| a.rep().stosq(), &stored.collect::<Vec<_>>());
    case.check();
}

#[test]
fn fetches() {
    let mut case = Case::new();
    case.fetches = true;
    case.just(|a| a.mov(rbx, DATA + 8));
    for _ in 0..409 {
        case.just(|a| a.mov(rcx, DATA));
    }
    let value = filled(DATA + 8, 8);
    case.does(|a| a.add(qword_ptr(rbx), 1), &[R(DATA + 8, 8), W(DATA + 8, 8, value + 1)]);
    case.check();
}

#[test]
fn an_access_that_faults_is_none() {
    // The first page can be written, the second is not there.
    let mut case = Case::new();
    case.just(|a| a.mov(rbx, DATA + 0x7ffc));
    let fault = case.address();
    case.handler(14, fault + 3, 0);
    let at = |n: u64| STACK - 8 * n;
    let (stack, flags) = ([W(at(1), 8, 0x10), W(at(2), 8, STACK.into())], 0x1_0002);
    let pushed = [W(at(3), 8, flags), W(at(4), 8, 8), W(at(5), 8, fault.into()), W(at(6), 8, 2)];
    let gate = [Dr(IDT + 14 * 16, 8), Dr(IDT + 14 * 16 + 8, 4), Dr(GDT + 8, 8)];
    let specs: Vec<_> = gate.into_iter().chain(stack).chain(pushed).collect();
    case.does(|a| a.mov(qword_ptr(rbx), rax), &specs);
    case.check();
}

#[test]
fn what_a_device_reads_and_writes() {
    const SELECT: u32 = (ITEM_KEY as u32) << 16 | 8;
    const READ: u32 = 2;
    const SKIP: u32 = 4;
    const WRITE: u32 = 16;
    let mut case = Case::new();
    // Requests across two pages and within one; what the device is asked for, where, and what it does.
    let (first, second) = (STACK + 0x17f8, STACK + 0x400);
    let to = gpa(DATA + 0x5fe9);
    let request = |control: u32, length: u32, address: u64| {
        (u128::from(control) << 96 | u128::from(length) << 64 | u128::from(address)).to_be_bytes().to_vec()
    };
    let mut transfer = |at: u64, asked: Vec<u8>, specs: &[Spec]| {
        case.memory.push((at, asked));
        case.just(|a| a.mov(dx, 0x518));
        case.just(|a| a.mov(eax, (at as u32).swap_bytes()));
        case.does(|a| a.out(dx, eax), &[&[DmaR(at, 16)], specs].concat());
    };
    // All of the item and then zeros, into two pages that the guest has in another order.
    let (zeros, done) = (&[0; 40], &[0; 4]);
    let length = (ITEM.len() + zeros.len()) as u32;
    let copied = [DmaW(to, ITEM), DmaW(to + ITEM.len() as u64, zeros), DmaW(first, done)];
    transfer(first, request(SELECT | READ, length, to), &copied);
    // The rest of it behind the end of RAM, of which some is still there.
    let end = RAM as u64 - 20;
    transfer(second, request(SELECT | SKIP, 30, 0), &[DmaW(second, done)]);
    transfer(second + 16, request(READ, 61, end), &[DmaW(end, &ITEM[30..50]), DmaW(second + 16, &[0, 0, 0, 1])]);
    transfer(second + 32, request(WRITE, 8, to), &[DmaW(second + 32, &[0, 0, 0, 1])]);
    // The guest finds what was written in both, and writes to a request itself.
    assert_eq!(gpa(DATA + 0x3000), to + 0x17);
    for there in [DATA + 0x5ff8, DATA + 0x3000] {
        case.just(|a| a.mov(rbx, there));
        case.does(|a| a.mov(rcx, qword_ptr(rbx)), &[R(there, 8)]);
    }
    case.just(|a| a.mov(rbx, first));
    case.does(|a| a.inc(dword_ptr(rbx)), &[R(first, 4), W(first, 4, 1)]);
    case.check();
}
