//! Which loops run without checks.

use super::*;
use crate::asm::Asm;
use crate::graph::Graph;
use crate::region::{Explorer, Source};
use cpu::cpuid::Model;

/// The strides of the groups of the one loop that is found in 64-bit code, or nothing.
fn strides(code: &[u8]) -> Option<Vec<i64>> {
    let mut page = code.to_vec();
    // ret
    page.push(0xc3);
    page.resize(PAGE_SIZE as usize, 0xcc);
    let mode = Mode { x87: true, sse: true, avx: true, ..Mode::default() };
    let source = Source { bytes: &page, model: &Model::max(), mode, graph: &Graph::default() };
    let region = Explorer::default().region(&source, 0, |_| true).unwrap();
    let mut asm = Asm::default();
    let found = find(&region, || asm.label());
    assert!(found.len() < 2);
    found.into_iter().next().map(|run| run.strides)
}

/// Code, the strides if it is a loop that runs without checks, and what it is.
type Case = (&'static [u8], Option<&'static [i64]>, &'static str);

#[test]
fn loops_over_arrays_run_without_checks() {
    let cases: [Case; 12] = [
        // mov [rcx], sil; add rcx, 1; cmp rcx, r8; jne
        (&[0x40, 0x88, 0x31, 0x48, 0x83, 0xc1, 1, 0x4c, 0x39, 0xc1, 0x75, 0xf4], Some(&[1]), "fill"),
        // mov rax, [rsi+rcx*8]; mov [rdi+rcx*8], rax; dec rcx; jne
        (&[0x48, 0x8b, 4, 0xce, 0x48, 0x89, 4, 0xcf, 0x48, 0xff, 0xc9, 0x75, 0xf3], Some(&[-8, -8]), "copy downwards"),
        // movzx eax, byte [rdi]; test al, al; je out; cmp al, [rsi]; jne out; inc rdi; inc rsi; jmp short of it: jne
        (
            &[0x0f, 0xb6, 7, 0x84, 0xc0, 0x74, 0x0c, 0x3a, 6, 0x75, 8, 0x48, 0xff, 0xc7, 0x48, 0xff, 0xc6, 0x75, 0xed],
            Some(&[1, 1]),
            "compare, with ways out",
        ),
        // mov eax, [rdi]; mov [rdi+4], eax; mov [rbx], eax; lea rdi, [rdi+16]; cmp rdi, rdx; jb
        (
            &[0x8b, 7, 0x89, 0x47, 4, 0x89, 3, 0x48, 0x8d, 0x7f, 16, 0x48, 0x39, 0xd7, 0x72, 0xf0],
            Some(&[16, 0]),
            "a structure, and a place that stays",
        ),
        // mov rcx, [rcx]; dec rax; jne
        (&[0x48, 0x8b, 9, 0x48, 0xff, 0xc8, 0x75, 0xf8], None, "a list"),
        // mov byte [rax], 0; add rax, rdx; cmp rax, rcx; jb
        (&[0xc6, 0, 0, 0x48, 1, 0xd0, 0x48, 0x39, 0xc8, 0x72, 0xf5], None, "a stride that is not known"),
        // mov [rcx], sil; add rcx, 4096; cmp rcx, r8; jne
        (&[0x40, 0x88, 0x31, 0x48, 0x81, 0xc1, 0, 0x10, 0, 0, 0x4c, 0x39, 0xc1, 0x75, 0xf1], None, "a page at a time"),
        // mov eax, [rdi]; add edi, 4; jne
        (&[0x8b, 7, 0x83, 0xc7, 4, 0x75, 0xf9], None, "an address of 32 bits, which wraps"),
        // mov eax, [rdi]; dec rcx; jne
        (&[0x8b, 7, 0x48, 0xff, 0xc9, 0x75, 0xf9], None, "no address moves"),
        // mov eax, [rdi]; add rdi, 4; push rax; cmp rdi, rdx; jne
        (&[0x8b, 7, 0x48, 0x83, 0xc7, 4, 0x50, 0x48, 0x39, 0xd7, 0x75, 0xf4], None, "the stack moves on"),
        // mov eax, [rdi]; add rdi, 4; cpuid; cmp rdi, rdx; jne
        (&[0x8b, 7, 0x48, 0x83, 0xc7, 4, 0x0f, 0xa2, 0x48, 0x39, 0xd7, 0x75, 0xf3], None, "left on the way"),
        // adc eax, [rdi]; lea rdi, [rdi+4]; dec rcx; jne
        (
            &[0x13, 7, 0x48, 0x8d, 0x7f, 4, 0x48, 0xff, 0xc9, 0x75, 0xf5],
            Some(&[4]),
            "flags that go on into the next iteration",
        ),
    ];
    for (code, expected, what) in cases {
        assert_eq!(strides(code).as_deref(), expected, "{what}");
    }
}
