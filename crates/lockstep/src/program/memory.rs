//! The stack, strings, and stores into code.

use super::Writer;
use crate::case::{Piece, Use};
use crate::catalogue::Class;
use crate::layout::{ALIAS, spot};
use crate::sequence::Flags;
use cpu::state::{RCX, RDI, RSI, RSP};
use iced_x86::{Code, Instruction, MemoryOperand, Register};

impl Writer<'_> {
    /// Pushes and pops that balance.
    pub(super) fn stack(&mut self) {
        let (push, pop) = (self.by_mode(Code::Push_r32, Code::Push_r64), self.by_mode(Code::Pop_r32, Code::Pop_r64));
        let immediate = self.by_mode(Code::Pushd_imm8, Code::Pushq_imm8);
        let flags = self.by_mode(Code::Pushfd, Code::Pushfq);
        let memory = self.by_mode(Code::Push_rm32, Code::Push_rm64);
        let (rsp, size) = (self.register(RSP), if self.wide() { 8 } else { 4 });
        let count = 1 + self.random.index(5);
        for _ in 0..count {
            match self.random.below(8) {
                0 => {
                    let value = self.random.between(-128, 127) as i32;
                    self.add(Instruction::with1(immediate, value));
                }
                1 => self.add(Ok(Instruction::with(flags))),
                2 => {
                    let operand = MemoryOperand::with_base_displ(rsp, size * self.random.between(-4, 4));
                    self.add(Instruction::with1(memory, operand));
                }
                3 => {
                    // RSP itself.
                    self.add(Instruction::with1(push, rsp));
                }
                _ => {
                    let number = self.random.index(if self.wide() { 16 } else { 8 });
                    let register = self.register(number);
                    self.add(Instruction::with1(push, register));
                }
            }
        }
        if self.random.one_in(3) {
            self.any(Class::Integer, Flags::Any);
        }
        for _ in 0..count {
            if self.random.one_in(6) {
                let code = self.by_mode(Code::Pop_rm32, Code::Pop_rm64);
                self.add(Instruction::with1(code, MemoryOperand::with_base_displ(rsp, -size)));
            } else {
                let number = self.free();
                let register = self.register(number);
                self.add(Instruction::with1(pop, register));
            }
        }
    }

    /// A string instruction with its registers.
    pub(super) fn string(&mut self) {
        if !self.is_free(Self::STRING) {
            return self.straight(2);
        }
        for number in [RSI, RDI] {
            let target = spot(&mut self.random);
            let register = self.register(number);
            if self.wide() {
                self.add(Instruction::with2(Code::Mov_r64_imm64, register, target));
            } else {
                self.load(number, target as u32);
            }
        }
        let count = match self.random.below(6) {
            0 => 0,
            1 => 200 + self.random.below(800),
            _ => self.random.below(40),
        };
        self.load(RCX, count as u32);
        self.roles.pointers |= 1 << RSI | 1 << RDI;
        self.roles.pointers &= !(1 << RCX);
        let down = self.random.one_in(4);
        if down {
            self.add(Ok(Instruction::with(Code::Std)));
        }
        self.any(Class::String, Flags::Any);
        if self.random.one_in(4) {
            self.any(Class::String, Flags::Any);
        }
        if down {
            self.add(Ok(Instruction::with(Code::Cld)));
        }
    }

    /// A store into code: of the operand of an instruction, of an instruction, or of what is there already.
    pub(super) fn patch(&mut self) {
        let target = self.label();
        let number = self.free();
        let register = Register::EAX + number as u32;
        let add = if self.random.one_in(3) { ALIAS as i32 } else { 0 };
        let place = self.at(0);
        // The code that is changed may come before or behind the store.
        let backward = self.random.one_in(3);
        let again = self.label();
        let cell = self.cell();
        if backward {
            let operand = self.at(cell);
            self.add(Instruction::with2(Code::Mov_rm32_imm32, operand, 0));
            self.place(again);
            self.victim(number, target);
        }
        match self.random.below(5) {
            0 => {
                let value = self.random.bits() as u32;
                let store = Instruction::with2(Code::Mov_rm32_imm32, place, value);
                self.add_labelled(store, Use::Displacement, target, add + 1);
            }
            1 => {
                let store = Instruction::with1(Code::Inc_rm8, place);
                self.add_labelled(store, Use::Displacement, target, add + 1);
            }
            2 => {
                // MOV becomes another MOV, ADD or CMP of EAX with an immediate.
                let opcode = self.random.pick(&[0x05, 0x0d, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0xb8, 0xba, 0xa9]);
                let store = Instruction::with2(Code::Mov_rm8_imm8, place, opcode);
                self.add_labelled(store, Use::Displacement, target, add);
            }
            3 => {
                // What is there already.
                let load = Instruction::with2(Code::Movups_xmm_xmmm128, Register::XMM1, place);
                self.add_labelled(load, Use::Displacement, target, 0);
                let store = Instruction::with2(Code::Movups_xmmm128_xmm, place, Register::XMM1);
                self.add_labelled(store, Use::Displacement, target, add);
            }
            _ => {
                let store = Instruction::with2(Code::Xadd_rm8_r8, place, Register::AL);
                self.add_labelled(store, Use::Displacement, target, add + 2);
            }
        }
        if backward {
            let operand = self.at(cell);
            self.add(Instruction::with2(Code::Xor_rm32_imm8, operand, 1));
            let code = self.by_mode(Code::Jne_rel32_32, Code::Jne_rel32_64);
            self.branch(code, again);
            return;
        }
        if self.random.one_in(2) {
            let count = self.random.index(4);
            self.straight(count);
        }
        self.roles.pointers &= !(1 << number);
        let _ = register;
        self.victim(number, target);
    }

    /// The instruction that is changed: a load of an immediate, which begins at the label.
    fn victim(&mut self, number: usize, target: usize) {
        self.place(target);
        // Without REX, so that the operand begins behind one byte.
        let register = Register::EAX + (number & 7) as u32;
        let register = if self.is_free(1 << (number & 7)) { register } else { Register::EAX };
        if self.is_free(1) || register != Register::EAX {
            self.add(Instruction::with2(Code::Mov_r32_imm32, register, 0x1234_5678u32));
        }
        self.push_piece(Piece::bytes(&[0x90; 11]));
    }
}
