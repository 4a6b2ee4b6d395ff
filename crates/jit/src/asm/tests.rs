//! What is emitted, read back by a disassembler.

use super::*;
use iced_x86::{Decoder, Formatter, NasmFormatter};

fn text(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut formatter = NasmFormatter::new();
    for instruction in &mut Decoder::new(64, bytes, 0) {
        if !text.is_empty() {
            text.push_str("; ");
        }
        formatter.format(&instruction, &mut text);
    }
    text
}

fn emitted(emit: impl FnOnce(&mut Asm)) -> String {
    let mut asm = Asm::default();
    emit(&mut asm);
    text(asm.finish().expect("all labels are bound").0)
}

/// Every base, with and without every index, and each size of displacement.
#[test]
fn memory_operands_are_encoded() {
    let names = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"];
    let name = |r: Reg| names.get(usize::from(r)).map_or_else(|| format!("r{r}"), |name| (*name).to_owned());
    for base in 0..16 {
        for (disp, shown) in [(0, ""), (8, "+8"), (-128, "-80h"), (128, "+80h"), (-1_000_000, "-0F4240h")] {
            let got = emitted(|asm| asm.load(9, Mem::at(base, disp)));
            assert_eq!(got, format!("mov r9,[{}{shown}]", name(base)));
            for index in (0..16).filter(|index| *index != RSP) {
                let got = emitted(|asm| asm.lea(2, Mem::at(base, disp).index(index, 3)));
                assert_eq!(got, format!("lea rdx,[{}+{}*8{shown}]", name(base), name(index)));
            }
        }
    }
    let got = emitted(|asm| asm.sub_mem(14, Mem::gs(15, 8)));
    assert_eq!(got, "sub r14,[gs:r15+8]");
    let got = emitted(|asm| asm.lea(1, Mem { index: Some((12, 2)), disp: 16, ..Mem::default() }));
    assert_eq!(got, "lea rcx,[r12*4+10h]");
}

#[test]
fn the_other_forms_are_encoded() {
    let got = emitted(|asm| {
        asm.mov(15, 0);
        asm.mov32(1, 15);
        asm.cmp_imm(14, 4088);
        asm.shr(1, 7);
        asm.push(15);
        asm.pop(3);
        asm.push_imm(7);
        asm.jmp_mem(Mem::at(RSP, 1024).index(14, 3));
        asm.cmp_zero32(Mem::at(RSP, 12));
        asm.inc_mem(Mem::at(RSP, 16));
        asm.ret(8);
    });
    assert_eq!(
        got,
        "mov r15,rax; mov ecx,r15d; cmp r14,0FF8h; shr rcx,7; push r15; pop rbx; push 7; jmp qword [rsp+r14*8+400h]; \
         cmp dword [rsp+0Ch],0; inc qword [rsp+10h]; ret 8"
    );
}

#[test]
fn labels_are_resolved_both_ways() {
    let mut asm = Asm::default();
    asm.reset(0x1000, 0x9000);
    let (back, ahead) = (asm.label(), asm.label());
    asm.bind(back);
    asm.jcc(Cond::NE, ahead);
    asm.jmp(back);
    asm.bind(ahead);
    asm.jmp_to(0x1000);
    assert_eq!(asm.place(ahead), Some(0x100b));
    assert_eq!(text(asm.finish().unwrap().0), "jne near 000000000000000Bh; jmp 0; jmp 0");
    let unbound = asm.label();
    asm.jmp(unbound);
    assert!(asm.finish().is_none());
}

#[test]
fn the_two_parts_jump_to_each_other() {
    let mut asm = Asm::default();
    asm.reset(0x1000, 0x9000);
    let (hot, cold) = (asm.label(), asm.label());
    asm.jcc(Cond::A, cold);
    asm.cool();
    asm.bind(cold);
    asm.push(0);
    asm.jmp(hot);
    asm.warm();
    asm.bind(hot);
    asm.jmp_to(0x1000);
    asm.cool();
    asm.jmp_to(0x9001);
    assert_eq!((asm.place(hot), asm.place(cold), asm.here()), (Some(0x1006), Some(0x9000), 0x900b));
    let (first, second) = asm.finish().unwrap();
    let shown = |bytes, ip| Decoder::with_ip(64, bytes, ip, 0).into_iter().map(|i| i.to_string()).collect::<Vec<_>>();
    assert_eq!(shown(first, 0x1000), ["ja near 0000000000009000h", "jmp 0000000000001000h"]);
    assert_eq!(shown(second, 0x9000), ["push rax", "jmp 0000000000001006h", "jmp 0000000000009001h"]);
}
