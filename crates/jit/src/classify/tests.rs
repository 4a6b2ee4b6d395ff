//! A table of instructions and what is done with them.

use super::*;
use iced_x86::{Decoder, DecoderOptions};

const ALL: Mode = Mode { user: false, x87: true, sse: true, avx: true, legacy: None, counts: false, records: false };

fn of(bytes: &[u8], mode: Mode) -> (Class, Units) {
    let model = Model::max();
    let options = DecoderOptions::FORCE_RESERVED_NOP | model.decoder_options();
    let i = Decoder::with_ip(64, bytes, 0x100, options).decode();
    assert!(i.is_invalid() || i.len() == bytes.len(), "{i}");
    classify(&i, &model, mode)
}

#[test]
fn instructions_have_their_class() {
    let cases: &[(&[u8], Class, &str)] = &[
        (&[0x01, 0xd8], Class::Plain, "add eax, ebx"),
        (&[0x48, 0x8b, 0x03], Class::Plain, "mov rax, [rbx]"),
        (&[0x64, 0x48, 0x8b, 0x04, 0x25, 0x28, 0, 0, 0], Class::Plain, "mov rax, fs:[28h]"),
        (&[0xf0, 0x0f, 0xb1, 0x0b], Class::Plain, "lock cmpxchg [rbx], ecx"),
        (&[0x87, 0x03], Class::Plain, "xchg [rbx], eax"),
        (&[0xf7, 0xf3], Class::Plain, "div ebx"),
        (&[0x0f, 0xba, 0x23, 0x03], Class::Plain, "bt dword [rbx], 3"),
        (&[0x0f, 0xa3, 0xd8], Class::Plain, "bt eax, ebx"),
        (&[0x0f, 0xa3, 0x03], Class::Plain, "bt [rbx], eax: the offset moves the operand"),
        (&[0x66, 0x0f, 0xa3, 0x03], Class::Interpret, "bt [rbx], ax"),
        (&[0x67, 0x8b, 0x03], Class::Interpret, "mov eax, [ebx]"),
        (&[0xa1, 0, 0, 0, 0, 0, 0, 0, 0], Class::Interpret, "mov eax, moffs"),
        (&[0x8e, 0xd8], Class::Interpret, "mov ds, eax"),
        (&[0x0f, 0x20, 0xc0], Class::System, "mov rax, cr0"),
        (&[0x0f, 0xa2], Class::Interpret, "cpuid"),
        (&[0x0f, 0x31], Class::System, "rdtsc"),
        (&[0xfa], Class::System, "cli"),
        (&[0x9c], Class::System, "pushfq"),
        (&[0xfc], Class::System, "cld"),
        (&[0x9d], Class::System, "popfq"),
        (&[0xfd], Class::System, "std"),
        (&[0x0f, 0x01, 0xf8], Class::System, "swapgs"),
        (&[0xf3, 0xa4], Class::String, "rep movsb"),
        (&[0xac], Class::String, "lodsb"),
        (&[0xf3, 0xac], Class::Interpret, "rep lodsb"),
        (&[0x64, 0xa4], Class::Interpret, "movsb, fs:[rsi]"),
        (&[0x67, 0xaa], Class::Interpret, "stosb [edi]"),
        (&[0x6c], Class::Interpret, "insb"),
        (&[0xec], Class::Interpret, "in al, dx"),
        (&[0x90], Class::Nop, "nop"),
        (&[0xf3, 0x90], Class::Interpret, "pause"),
        (&[0xf3, 0x0f, 0x1e, 0xfa], Class::Nop, "endbr64"),
        (&[0x0f, 0x1f, 0x40, 0x00], Class::Nop, "nop [rax+0]"),
        (&[0x0f, 0x18, 0x08], Class::Nop, "prefetcht0 [rax]"),
        (&[0x48, 0x8d, 0x43, 0x08], Class::Lea, "lea rax, [rbx+8]"),
        (&[0x67, 0x8d, 0x43, 0x08], Class::Lea, "lea eax, [ebx+8]"),
        (&[0x53], Class::Push, "push rbx"),
        (&[0x6a, 0x01], Class::Push, "push 1"),
        (&[0xff, 0x33], Class::Push, "push [rbx]"),
        (&[0x66, 0x53], Class::Interpret, "push bx"),
        (&[0x5b], Class::Pop, "pop rbx"),
        (&[0x8f, 0x03], Class::Interpret, "pop [rbx]"),
        (&[0xc9], Class::Leave, "leave"),
        (&[0x74, 0x10], Class::Jcc, "je"),
        (&[0x0f, 0x84, 0, 1, 0, 0], Class::Jcc, "je near"),
        (&[0xe2, 0x10], Class::Loop, "loop"),
        (&[0xe3, 0x10], Class::Loop, "jrcxz"),
        (&[0x67, 0xe2, 0x10], Class::Leaves, "loop by ecx"),
        (&[0xe1, 0x10], Class::Leaves, "loope"),
        (&[0xeb, 0x10], Class::Jmp, "jmp"),
        (&[0xe8, 0, 1, 0, 0], Class::Call, "call"),
        (&[0xff, 0xe0], Class::JmpIndirect, "jmp rax"),
        (&[0xff, 0x13], Class::CallIndirect, "call [rbx]"),
        (&[0xc3], Class::Ret, "ret"),
        (&[0xc2, 0x08, 0], Class::Ret, "ret 8"),
        (&[0x48, 0xcb], Class::Leaves, "retf"),
        (&[0x48, 0xcf], Class::Leaves, "iretq"),
        (&[0x0f, 0x05], Class::Leaves, "syscall"),
        (&[0xcc], Class::Leaves, "int3"),
        (&[0x0f, 0x0b], Class::Leaves, "ud2"),
    ];
    for (bytes, class, text) in cases {
        assert_eq!(of(bytes, ALL).0, *class, "{text}");
    }
}

#[test]
fn programs_have_no_rights() {
    for (bytes, text) in [(&[0xfa][..], "cli"), (&[0xfb], "sti"), (&[0x0f, 0x01, 0xf8], "swapgs")] {
        assert_eq!(of(bytes, ALL).0, Class::System, "{text}");
        assert_eq!(of(bytes, Mode { user: true, ..ALL }).0, Class::Interpret, "{text}");
    }
    assert_eq!(of(&[0x9c], Mode { user: true, ..ALL }).0, Class::System, "pushfq");
}

#[test]
fn units_are_used_where_the_mode_lets_them() {
    let (vector, x87) = (Units { vector: true, x87: false }, Units { vector: false, x87: true });
    let both = Units { vector: true, x87: true };
    let no_sse = Mode { sse: false, ..ALL };
    let no_x87 = Mode { x87: false, ..ALL };
    let no_avx = Mode { avx: false, ..ALL };
    let cases: &[(&[u8], Units, Mode, &str)] = &[
        (&[0x0f, 0x58, 0xc1], vector, no_sse, "addps xmm0, xmm1"),
        (&[0xf3, 0x0f, 0x6f, 0x03], vector, no_sse, "movdqu xmm0, [rbx]"),
        (&[0xc5, 0xf4, 0x58, 0xc2], vector, no_avx, "vaddps ymm0, ymm1, ymm2"),
        (&[0xd8, 0xc1], x87, no_x87, "fadd st, st1"),
        (&[0x0f, 0xfc, 0xc1], x87, no_x87, "paddb mm0, mm1"),
        (&[0xf3, 0x0f, 0xd6, 0xc1], both, no_sse, "movq2dq xmm0, mm1"),
    ];
    for (bytes, units, without, text) in cases {
        assert_eq!(of(bytes, ALL), (Class::Plain, *units), "{text}");
        assert_eq!(of(bytes, *without).0, Class::Interpret, "{text} without it");
    }
    assert_eq!(of(&[0x01, 0xd8], Mode::default()), (Class::Plain, Units::default()), "integer work is never stopped");
}

#[test]
fn modes_have_different_numbers() {
    let legacy = |n: u32| Legacy { wide: n & 1 != 0, flat: n & 2 != 0, wide_stack: n & 4 != 0 };
    let legacy: Vec<_> = (0..8).map(legacy).map(Some).chain([None]).collect();
    let mode = |n: u32, legacy| {
        let (user, x87, sse, avx) = (n & 1 != 0, n & 2 != 0, n & 4 != 0, n & 8 != 0);
        Mode { user, x87, sse, avx, legacy, counts: n & 16 != 0, records: n & 32 != 0 }
    };
    let modes = (0..64).flat_map(|n| legacy.iter().map(move |legacy| mode(n, *legacy)));
    let numbers: std::collections::BTreeSet<u64> = modes.map(Mode::bits).collect();
    assert_eq!(numbers.len(), 64 * 9);
    assert!(numbers.into_iter().all(|number| number < 1024));
}
