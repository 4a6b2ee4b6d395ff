//! Loops over arrays: all addresses move by constants, into other pages, to where nothing may be accessed, and beyond.

use super::{COUNTING, Writer};
use crate::layout::spot;
use iced_x86::{Code, Instruction, MemoryOperand, Register};

/// Instructions with a general register and an operand in memory, and the register's size.
const GENERAL: [(Code, u64); 10] = [
    (Code::Mov_r8_rm8, 1),
    (Code::Mov_rm8_r8, 1),
    (Code::Mov_r32_rm32, 4),
    (Code::Mov_rm32_r32, 4),
    (Code::Mov_r64_rm64, 8),
    (Code::Mov_rm64_r64, 8),
    (Code::Add_rm64_r64, 8),
    (Code::Adc_r64_rm64, 8),
    (Code::Cmp_rm8_r8, 1),
    (Code::Movzx_r32_rm16, 4),
];
/// The same with a vector register.
const VECTOR: [Code; 4] =
    [Code::Movups_xmm_xmmm128, Code::Movups_xmmm128_xmm, Code::Addsd_xmm_xmmm64, Code::Pxor_xmm_xmmm128];

/// Whether the operand in memory comes first.
fn stores(code: Code) -> bool {
    matches!(
        code,
        Code::Mov_rm8_r8
            | Code::Mov_rm32_r32
            | Code::Mov_rm64_r64
            | Code::Add_rm64_r64
            | Code::Cmp_rm8_r8
            | Code::Movups_xmmm128_xmm
    )
}

impl Writer<'_> {
    /// A loop over up to three arrays.
    pub(super) fn array(&mut self) {
        let counter = COUNTING.into_iter().find(|&register| self.is_free(1 << register));
        let Some(counter) = counter.filter(|_| self.wide()) else { return self.straight(2) };
        let wanted = if self.random.one_in(3) { 100 + self.random.below(400) } else { 1 + self.random.below(40) };
        let count = self.affordable(wanted) as i32;
        let mut reserved = 1 << counter;
        let mut pointers = Vec::new();
        for _ in 0..1 + self.random.index(3) {
            let number = self.reserving(reserved, Self::free);
            let target = spot(&mut self.random);
            self.load_address(number, target);
            reserved |= 1 << number;
            pointers.push(number);
        }
        let (begin, end) = (self.label(), self.label());
        let (up, register) = (self.random.one_in(2), self.register(counter));
        self.roles.pointers &= !(1 << counter);
        self.load(counter, if up { 0 } else { count as u32 });
        self.place(begin);
        self.times *= count as u64;
        self.reserving(reserved, |writer| {
            for &pointer in &pointers {
                for _ in 0..1 + writer.random.index(2) {
                    writer.element(pointer, Some(counter).filter(|_| up), end);
                }
                if !writer.random.one_in(5) {
                    writer.advance(pointer);
                }
            }
        });
        if up {
            self.add(Instruction::with2(Code::Add_rm64_imm8, register, 1));
            self.add(Instruction::with2(Code::Cmp_rm64_imm32, register, count));
        } else {
            self.add(Instruction::with1(Code::Dec_rm64, register));
        }
        self.branch(Code::Jne_rel32_64, begin);
        self.times /= count as u64;
        self.place(end);
    }

    /// An access to an element of the array at `pointer`, perhaps counted by `index`, after which the loop may end.
    fn element(&mut self, pointer: usize, index: Option<usize>, end: usize) {
        let disp = self.random.between(-16, 40);
        let base = self.register(pointer);
        let operand = match index.filter(|_| self.random.one_in(3)) {
            Some(index) => {
                let scale = self.random.pick(&[1, 2, 4, 8]);
                MemoryOperand::with_base_index_scale_displ_size(base, self.register(index), scale, disp, 1)
            }
            None => MemoryOperand::with_base_displ(base, disp),
        };
        let general = !self.random.one_in(4);
        let (code, register) = if general {
            let (code, size) = self.random.pick(&GENERAL);
            let register = match size {
                1 => Register::AL,
                4 => Register::EAX,
                _ => Register::RAX,
            };
            (code, register + if size == 1 { 0 } else { self.free() as u32 })
        } else {
            (self.random.pick(&VECTOR), Register::XMM0 + self.random.below(16) as u32)
        };
        if register == Register::AL && !self.is_free(1) {
            return;
        }
        self.add(if stores(code) {
            Instruction::with2(code, operand, register)
        } else {
            Instruction::with2(code, register, operand)
        });
        if self.random.one_in(6) {
            let code = self.random.pick(&[Code::Jp_rel32_64, Code::Jo_rel32_64, Code::Js_rel32_64]);
            self.branch(code, end);
        }
    }

    /// Lets a pointer move by a constant.
    fn advance(&mut self, pointer: usize) {
        let register = self.register(pointer);
        let by = self.random.pick(&[1, 2, 4, 8, 8, 12, 16, 24, 32, 40, 64, 100]);
        match self.random.below(6) {
            0 => self.add(Instruction::with1(Code::Inc_rm64, register)),
            1 => self.add(Instruction::with2(Code::Sub_rm64_imm8, register, by)),
            2 => {
                let address = MemoryOperand::with_base_displ(register, by.into());
                self.add(Instruction::with2(Code::Lea_r64_m, register, address));
            }
            3 => self.add(Instruction::with1(Code::Dec_rm64, register)),
            _ => self.add(Instruction::with2(Code::Add_rm64_imm8, register, by)),
        }
    }
}
