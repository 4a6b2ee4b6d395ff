//! Recipes and effects against what the host does.

use super::*;
use host::oracle::{Oracle, Page, Registers, can_run};
use iced_x86::{Decoder, DecoderOptions};
use x86::Rflags;

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Often at an edge.
    fn value(&mut self) -> u64 {
        let edges = [0, 1, 0x7f, 0x80, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 63, u64::MAX];
        let pick = self.next() as usize % (2 * edges.len());
        edges.get(pick).copied().unwrap_or_else(|| self.next())
    }

    /// An instruction on registers, more often than not.
    fn bytes(&mut self) -> [u8; 12] {
        let mut bytes: [u8; 12] = std::array::from_fn(|_| self.next() as u8);
        let mut at = 0;
        if self.next().is_multiple_of(8) {
            bytes[at] = 0x66;
            at += 1;
        }
        if self.next().is_multiple_of(2) {
            bytes[at] = 0x40 | self.next() as u8 & 15;
            at += 1;
        }
        if self.next().is_multiple_of(3) {
            bytes[at] = 0x0f;
            at += 1;
        }
        // The operand is a register.
        bytes[at + 1] |= 0xc0;
        bytes
    }
}

fn decode(bytes: &[u8]) -> Instruction {
    Decoder::new(64, bytes, DecoderOptions::NONE).decode()
}

#[test]
fn effects_and_recipes_are_what_the_host_does() {
    let page = Page::at(0x20_0000).expect("the page's address is free in this process");
    let (mut oracle, mut random) = (Oracle::new().unwrap(), Random(0x5eed_0002));
    let (mut effects, mut recipes) = ([0; 4], [0; 5]);
    let mut cases = 0;
    while cases < 30_000 {
        let bytes = random.bytes();
        let i = decode(&bytes);
        if !can_run(&i) || (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
            continue;
        }
        cases += 1;
        let mut gpr: [u64; 16] = std::array::from_fn(|_| random.value());
        if random.next().is_multiple_of(2) {
            // Shifts by nothing.
            gpr[1] &= !0xff;
        }
        let code = &bytes[..i.len()];
        let before = [random.next(), random.next()].map(|flags| flags & Rflags::STATUS);
        let after = before.map(|flags| {
            let mut registers = Registers { gpr, flags };
            oracle.run(code, &page, &mut registers).unwrap();
            registers.flags &= Rflags::STATUS;
            registers
        });
        let defined = Rflags::STATUS & !undefined_flags(&i);
        let effect = Effect::of(&i);
        let told =
            || format!("{i} {code:02x?}: {effect:?}, {gpr:x?}, flags {before:x?} to {:x?}", after.map(|a| a.flags));
        if !effect.reads {
            assert_eq!(after[0].gpr, after[1].gpr, "its result depends on flags: {}", told());
        }
        if effect.writes && !effect.reads {
            assert_eq!(after[0].flags & defined, after[1].flags & defined, "some flags stay: {}", told());
        }
        if !effect.writes && !effect.partly {
            assert_eq!(after.map(|after| after.flags), before, "flags change: {}", told());
        }
        effects[usize::from(effect.writes) | usize::from(effect.reads) << 1] += 1;
        if let Some(recipe) = Recipe::of(&i) {
            let mut registers = [0; 32];
            registers[..16].copy_from_slice(&after[0].gpr);
            let again = recipe.flags(&registers) & Rflags::STATUS;
            assert_eq!(again, after[0].flags, "{recipe:?}: {}", told());
            recipes[recipe.operation as usize] += 1;
        }
    }
    assert!(effects.iter().chain(&recipes).all(|count| *count > 20), "all kinds were there: {effects:?} {recipes:?}");
}

/// Status flags that the manual leaves undefined after `i`, in their RFLAGS positions.
fn undefined_flags(i: &Instruction) -> u64 {
    use iced_x86::RflagsBits as B;
    let bits = [(B::OF, 1 << 11), (B::SF, 1 << 7), (B::ZF, 1 << 6), (B::AF, 1 << 4), (B::CF, 1), (B::PF, 1 << 2)];
    bits.into_iter().filter(|(bit, _)| i.rflags_undefined() & bit != 0).map(|(_, flag)| flag).sum()
}

#[test]
fn instructions_that_may_leave_flags_alone_are_known() {
    let none = Effect::default();
    let (reads, writes, partly) =
        (Effect { reads: true, ..none }, Effect { writes: true, ..none }, Effect { partly: true, ..none });
    let cases: &[(&[u8], Effect, &str)] = &[
        (&[0x01, 0xd8], writes, "add eax, ebx"),
        (&[0x11, 0xd8], Effect { reads: true, ..writes }, "adc eax, ebx"),
        (&[0x89, 0xd8], none, "mov eax, ebx"),
        (&[0x0f, 0x92, 0xc0], reads, "setb al"),
        (&[0xff, 0xc0], partly, "inc eax: CF stays"),
        (&[0xff, 0xc8], partly, "dec eax: CF stays"),
        (&[0xc1, 0xe0, 0x03], writes, "shl eax, 3"),
        (&[0xc1, 0xe0, 0x00], partly, "shl eax, 0"),
        (&[0xc1, 0xe0, 0x20], partly, "shl eax, 32: by nothing"),
        (&[0x48, 0xc1, 0xe0, 0x20], writes, "shl rax, 32"),
        (&[0xd3, 0xe0], partly, "shl eax, cl"),
        (&[0xd3, 0x20], partly, "shl dword [rax], cl"),
        (&[0x48, 0xc1, 0x20, 0x21], writes, "shl qword [rax], 33"),
        (&[0xd1, 0xc0], partly, "rol eax, 1"),
        (&[0xd1, 0xd0], Effect { reads: true, ..partly }, "rcl eax, 1"),
        (&[0x0f, 0xa4, 0xd8, 0x04], writes, "shld eax, ebx, 4"),
        (&[0x0f, 0xa5, 0xd8], partly, "shld eax, ebx, cl"),
        (&[0x0f, 0xa3, 0xd8], partly, "bt eax, ebx"),
        (&[0x0f, 0xbc, 0xc3], partly, "bsf eax, ebx"),
        (&[0xf7, 0xf3], writes, "div ebx"),
        (&[0xf8], partly, "clc"),
        (&[0xf5], Effect { reads: true, ..partly }, "cmc"),
        (&[0x9f], reads, "lahf"),
        (&[0x0f, 0xb1, 0xd8], writes, "cmpxchg eax, ebx"),
    ];
    for (bytes, effect, text) in cases {
        assert_eq!(Effect::of(&decode(bytes)), *effect, "{text}");
    }
}

#[test]
fn what_a_recipe_cannot_tell_has_none() {
    let none: [(&[u8], &str); 6] = [
        (&[0x01, 0xc0], "add eax, eax: its operand is gone"),
        (&[0x29, 0xc0], "sub eax, eax"),
        (&[0x03, 0x03], "add eax, [rbx]"),
        (&[0x39, 0x03], "cmp [rbx], eax"),
        (&[0x00, 0xd8], "add al, bl"),
        (&[0x11, 0xd8], "adc eax, ebx"),
    ];
    for (bytes, text) in none {
        assert_eq!(Recipe::of(&decode(bytes)), None, "{text}");
    }
    // and rax, [rbx]: the result tells.
    let recipe = Recipe::of(&decode(&[0x48, 0x23, 0x03])).unwrap();
    assert_eq!((recipe.operation, recipe.registers()), (Operation::Logic, 1));
    let recipe = Recipe::of(&decode(&[0x4c, 0x39, 0xe0])).unwrap();
    assert_eq!((recipe.operation, recipe.registers()), (Operation::Cmp, 1 | 1 << 12));
}
