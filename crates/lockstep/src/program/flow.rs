//! Loops, branches, calls, tables of addresses.

use super::{COUNTING, Function, Writer};
use crate::case::{Piece, Use};
use crate::catalogue::Class;
use crate::sequence::Flags;
use cpu::state::{RBP, RCX, RDX, RSP};
use iced_x86::{Code, Instruction, MemoryOperand, Register};

/// Conditional branches with near and with short displacements, for 32-bit and for 64-bit code.
const CONDITIONAL: [[Code; 4]; 16] = [
    [Code::Jo_rel32_32, Code::Jo_rel32_64, Code::Jo_rel8_32, Code::Jo_rel8_64],
    [Code::Jno_rel32_32, Code::Jno_rel32_64, Code::Jno_rel8_32, Code::Jno_rel8_64],
    [Code::Jb_rel32_32, Code::Jb_rel32_64, Code::Jb_rel8_32, Code::Jb_rel8_64],
    [Code::Jae_rel32_32, Code::Jae_rel32_64, Code::Jae_rel8_32, Code::Jae_rel8_64],
    [Code::Je_rel32_32, Code::Je_rel32_64, Code::Je_rel8_32, Code::Je_rel8_64],
    [Code::Jne_rel32_32, Code::Jne_rel32_64, Code::Jne_rel8_32, Code::Jne_rel8_64],
    [Code::Jbe_rel32_32, Code::Jbe_rel32_64, Code::Jbe_rel8_32, Code::Jbe_rel8_64],
    [Code::Ja_rel32_32, Code::Ja_rel32_64, Code::Ja_rel8_32, Code::Ja_rel8_64],
    [Code::Js_rel32_32, Code::Js_rel32_64, Code::Js_rel8_32, Code::Js_rel8_64],
    [Code::Jns_rel32_32, Code::Jns_rel32_64, Code::Jns_rel8_32, Code::Jns_rel8_64],
    [Code::Jp_rel32_32, Code::Jp_rel32_64, Code::Jp_rel8_32, Code::Jp_rel8_64],
    [Code::Jnp_rel32_32, Code::Jnp_rel32_64, Code::Jnp_rel8_32, Code::Jnp_rel8_64],
    [Code::Jl_rel32_32, Code::Jl_rel32_64, Code::Jl_rel8_32, Code::Jl_rel8_64],
    [Code::Jge_rel32_32, Code::Jge_rel32_64, Code::Jge_rel8_32, Code::Jge_rel8_64],
    [Code::Jle_rel32_32, Code::Jle_rel32_64, Code::Jle_rel8_32, Code::Jle_rel8_64],
    [Code::Jg_rel32_32, Code::Jg_rel32_64, Code::Jg_rel8_32, Code::Jg_rel8_64],
];
/// Which of them is JNE.
const NOT_EQUAL: usize = 5;
/// Which of them is JL.
const LESS: usize = 12;

impl Writer<'_> {
    /// A near conditional branch.
    fn condition(&mut self, which: usize, label: usize) {
        let [narrow, wide, ..] = CONDITIONAL[which];
        let code = self.by_mode(narrow, wide);
        self.branch(code, label);
    }

    /// A short one: the label is within reach.
    fn short_condition(&mut self, which: usize, label: usize) {
        let [.., narrow, wide] = CONDITIONAL[which];
        let code = self.by_mode(narrow, wide);
        self.branch(code, label);
    }

    /// A loop that counts.
    pub(super) fn counted(&mut self, depth: u32) {
        let wanted = match self.random.below(8) {
            0 => 20 + self.random.below(200),
            1 | 2 => 8 + self.random.below(16),
            _ => 1 + self.random.below(5),
        };
        let count = self.affordable(wanted);
        let usable = if self.wide() { &COUNTING[..] } else { &COUNTING[..2] };
        let counter = usable.iter().copied().find(|&register| self.is_free(1 << register));
        match (self.random.below(8), counter) {
            (0 | 1, _) if self.is_free(1 << RCX) => self.by_loop(count),
            (2, _) | (_, None) => self.by_cell(depth, count),
            (kind, Some(counter)) => self.by_register(kind, counter, depth, count),
        }
    }

    fn body(&mut self, depth: u32, count: u64) {
        self.times *= count;
        for _ in 0..1 + self.random.index(3) {
            self.statement(depth);
        }
        self.times /= count;
    }

    fn by_register(&mut self, kind: u64, counter: usize, depth: u32, count: u64) {
        let begin = self.label();
        let register = self.register(counter);
        let up = kind == 3;
        self.roles.pointers &= !(1 << counter);
        self.load(counter, if up { 0 } else { count as u32 });
        self.place(begin);
        self.reserving(1 << counter, |writer| writer.body(depth, count));
        let displacement = MemoryOperand::with_base_displ(register, -1);
        let [sub, add, cmp, lea, test] = [
            self.by_mode(Code::Sub_rm32_imm8, Code::Sub_rm64_imm8),
            self.by_mode(Code::Add_rm32_imm8, Code::Add_rm64_imm8),
            self.by_mode(Code::Cmp_rm32_imm32, Code::Cmp_rm64_imm32),
            self.by_mode(Code::Lea_r32_m, Code::Lea_r64_m),
            self.by_mode(Code::Test_rm32_r32, Code::Test_rm64_r64),
        ];
        match kind {
            3 => {
                self.add(Instruction::with2(add, register, 1));
                self.add(Instruction::with2(cmp, register, count as i32));
                return self.condition(LESS, begin);
            }
            4 => self.add(Instruction::with2(sub, register, 1)),
            5 => {
                // The flags come from something that is not the counter's own arithmetic.
                self.add(Instruction::with2(lea, register, displacement));
                self.add(Instruction::with2(test, register, register));
            }
            6 => self.add(Instruction::with2(Code::Sub_rm32_imm8, Register::EAX + counter as u32, 1)),
            _ => {
                let code = self.by_mode(Code::Dec_rm32, Code::Dec_rm64);
                self.add(Instruction::with1(code, register));
            }
        }
        // Between the counter and the branch, what keeps the flags.
        if self.random.one_in(3) {
            self.reserving(1 << counter, |writer| writer.any(Class::Integer, Flags::Keep));
        }
        self.condition(NOT_EQUAL, begin);
    }

    /// A counter in memory. It may be overwritten: it is masked, so that it comes to zero all the same.
    fn by_cell(&mut self, depth: u32, count: u64) {
        let (begin, cell) = (self.label(), self.cell());
        let operand = self.at(cell);
        let count = count.min(7);
        self.add(Instruction::with2(Code::Mov_rm32_imm32, operand, count as u32));
        self.place(begin);
        self.body(depth, count);
        self.add(Instruction::with1(Code::Dec_rm32, operand));
        self.add(Instruction::with2(Code::And_rm32_imm8, operand, 7));
        self.condition(NOT_EQUAL, begin);
    }

    /// LOOP, LOOPE, LOOPNE, JRCXZ: short, with a body that fits.
    fn by_loop(&mut self, count: u64) {
        let [begin, out] = [self.label(), self.label()];
        self.roles.pointers &= !(1 << RCX);
        self.load(RCX, count as u32);
        self.place(begin);
        self.reserving(1 << RCX, |writer| {
            writer.times *= count;
            let size = 1 + writer.random.index(5);
            writer.straight(size);
            writer.times /= count;
        });
        let loops = [
            self.by_mode(Code::Loop_rel8_32_ECX, Code::Loop_rel8_64_RCX),
            self.by_mode(Code::Loope_rel8_32_ECX, Code::Loope_rel8_64_RCX),
            self.by_mode(Code::Loopne_rel8_32_ECX, Code::Loopne_rel8_64_RCX),
            self.by_mode(Code::Loop_rel8_32_ECX, Code::Loop_rel8_64_ECX),
        ];
        if self.random.one_in(4) {
            // RCX counts without flags.
            let (code, rcx) = (self.by_mode(Code::Lea_r32_m, Code::Lea_r64_m), self.register(RCX));
            self.add(Instruction::with2(code, rcx, MemoryOperand::with_base_displ(rcx, -1)));
            let code = self.by_mode(Code::Jecxz_rel8_32, Code::Jrcxz_rel8_64);
            self.branch(code, out);
            self.jump(begin, 0);
        } else {
            let code = self.random.pick(&loops);
            self.branch(code, begin);
        }
        self.place(out);
    }

    /// A branch over something, or to one of two.
    pub(super) fn either(&mut self, depth: u32) {
        let [other, out] = [self.label(), self.label()];
        self.any(Class::Integer, Flags::Write);
        for _ in 0..self.random.index(3) {
            let class = self.random.pick(&[Class::Integer, Class::Vector]);
            self.any(class, Flags::Keep);
        }
        let which = self.random.index(16);
        if self.random.one_in(3) {
            self.short_condition(which, out);
            let count = self.random.index(5);
            self.straight(count);
        } else {
            self.condition(which, other);
            self.statement(depth);
            self.jump(out, 0);
            self.place(other);
            self.statement(depth);
        }
        self.place(out);
    }

    /// A producer of flags, then what keeps them, then who needs them.
    pub(super) fn flags_apart(&mut self) {
        self.any(Class::Integer, Flags::Write);
        for _ in 0..1 + self.random.index(4) {
            let class = self.random.pick(&[Class::Integer, Class::Integer, Class::Vector, Class::X87]);
            self.any(class, Flags::Keep);
        }
        for _ in 0..1 + self.random.index(3) {
            self.any(Class::Integer, Flags::Read);
        }
    }

    /// An indirect jump or call through a table that lies between the code.
    pub(super) fn switch(&mut self, depth: u32) {
        let arms = 1usize << self.random.index(3);
        let [table, out] = [self.label(), self.label()];
        let labels: Vec<usize> = (0..arms).map(|_| self.label()).collect();
        let (number, from) = (self.free(), self.random.index(8));
        let register = self.register(number);
        self.add(Instruction::with2(Code::Mov_r32_rm32, Register::EAX + number as u32, Register::EAX + from as u32));
        self.add(Instruction::with2(Code::And_rm32_imm8, Register::EAX + number as u32, arms as i32 - 1));
        let operand = MemoryOperand::with_base_index_scale_displ_size(
            Register::None,
            register,
            8,
            0,
            if self.wide() { 8 } else { 4 },
        );
        let call = self.random.one_in(3);
        let code = if call {
            self.by_mode(Code::Call_rm32, Code::Call_rm64)
        } else {
            self.by_mode(Code::Jmp_rm32, Code::Jmp_rm64)
        };
        if self.random.one_in(3) {
            let load = self.by_mode(Code::Mov_r32_rm32, Code::Mov_r64_rm64);
            self.add_labelled(Instruction::with2(load, register, operand), Use::Displacement, table, 0);
            self.add(Instruction::with1(code, register));
        } else {
            self.add_labelled(Instruction::with1(code, operand), Use::Displacement, table, 0);
        }
        if call {
            self.jump(out, 0);
        }
        self.place(table);
        self.push_piece(Piece::Table(labels.clone()));
        for label in labels {
            self.place(label);
            self.statement(depth.min(1));
            if call {
                self.ret(0);
            } else {
                self.jump(out, 0);
            }
        }
        self.place(out);
    }

    fn ret(&mut self, arguments: u32) {
        let plain = self.by_mode(Code::Retnd, Code::Retnq);
        let popping = self.by_mode(Code::Retnd_imm16, Code::Retnq_imm16);
        if arguments == 0 {
            self.add(Ok(Instruction::with(plain)));
        } else {
            self.add(Instruction::with1(popping, arguments));
        }
    }

    /// A function's body with its prologue and return.
    pub(super) fn frame(&mut self, body: impl FnOnce(&mut Self)) {
        let kind = if self.is_free(1 << RBP) { self.random.below(3) } else { 0 };
        let (push, pop) = (self.by_mode(Code::Push_r32, Code::Push_r64), self.by_mode(Code::Pop_r32, Code::Pop_r64));
        let (rbp, rsp) = (self.register(RBP), self.register(RSP));
        match kind {
            1 => {
                let code = self.by_mode(Code::Enterd_imm16_imm8, Code::Enterq_imm16_imm8);
                let level = self.random.pick(&[0, 0, 0, 1, 2]);
                let size = 8 * self.random.below(8) as u32;
                self.add(Instruction::with2(code, size, level));
            }
            2 => {
                self.add(Instruction::with1(push, rbp));
                let code = self.by_mode(Code::Mov_r32_rm32, Code::Mov_r64_rm64);
                self.add(Instruction::with2(code, rbp, rsp));
                let code = self.by_mode(Code::Sub_rm32_imm8, Code::Sub_rm64_imm8);
                self.add(Instruction::with2(code, rsp, 32));
            }
            _ => {}
        }
        if kind == 0 {
            body(self);
        } else {
            self.roles.pointers |= 1 << RBP;
            self.reserving(1 << RBP, body);
        }
        match kind {
            0 => {}
            2 if self.random.one_in(2) => {
                let code = self.by_mode(Code::Mov_r32_rm32, Code::Mov_r64_rm64);
                self.add(Instruction::with2(code, rsp, rbp));
                self.add(Instruction::with1(pop, rbp));
            }
            _ => {
                let code = self.by_mode(Code::Leaved, Code::Leaveq);
                self.add(Ok(Instruction::with(code)));
            }
        }
        self.ret(0);
    }

    /// The register that recursive functions count in.
    fn depth_register(&self) -> usize {
        if self.wide() { 11 } else { RDX }
    }

    /// A function that calls itself until its counter is zero.
    pub(super) fn recursion(&mut self, label: usize) {
        let (out, counter) = (self.label(), self.depth_register());
        self.add(Instruction::with2(Code::Sub_rm32_imm8, Register::EAX + counter as u32, 1));
        self.condition(LESS, out);
        self.reserving(1 << counter, |writer| {
            writer.times *= 16;
            let count = 1 + writer.random.index(3);
            writer.straight(count);
            writer.times /= 16;
        });
        let code = self.by_mode(Code::Call_rel32_32, Code::Call_rel32_64);
        self.branch(code, label);
        if self.random.one_in(2) {
            self.straight(2);
        }
        self.place(out);
        self.ret(0);
    }

    /// A call: near, through a register, or through memory.
    pub(super) fn call(&mut self) {
        let affordable = |function: &&Function| self.spent + function.cost * self.times < super::BUDGET;
        let candidates: Vec<Function> = self.functions.iter().filter(affordable).copied().collect();
        if candidates.is_empty() {
            return self.straight(2);
        }
        let Function { label, cost, recursive } = self.random.pick(&candidates);
        let counter = self.depth_register();
        if recursive {
            if !self.is_free(1 << counter) {
                return;
            }
            let depth = self.random.pick(&[1, 3, 10, 40]);
            self.load(counter, depth);
        }
        self.spent += cost * self.times;
        let indirect = self.by_mode(Code::Call_rm32, Code::Call_rm64);
        match self.random.below(4) {
            0 => {
                let number = self.free();
                if recursive && number == counter {
                    return;
                }
                self.load_label(number, label, 0);
                let register = self.register(number);
                self.add(Instruction::with1(indirect, register));
            }
            1 => {
                let [table, behind] = [self.label(), self.label()];
                let operand = self.at(0);
                self.add_labelled(Instruction::with1(indirect, operand), Use::Displacement, table, 0);
                self.jump(behind, 0);
                self.place(table);
                self.push_piece(Piece::Table(vec![label]));
                self.place(behind);
            }
            _ => {
                let code = self.by_mode(Code::Call_rel32_32, Code::Call_rel32_64);
                self.branch(code, label);
            }
        }
    }

    /// Calls and returns that do not match, and jumps to other names of the code.
    pub(super) fn stray(&mut self) {
        let [there, behind] = [self.label(), self.label()];
        let call = self.by_mode(Code::Call_rel32_32, Code::Call_rel32_64);
        let push = self.by_mode(Code::Pushd_imm32, Code::Pushq_imm32);
        let pop = self.by_mode(Code::Pop_r32, Code::Pop_r64);
        let rsp = self.register(RSP);
        match self.random.below(6) {
            0 => {
                // Where am I?
                self.branch(call, there);
                self.place(there);
                let number = self.free();
                let register = self.register(number);
                self.add(Instruction::with1(pop, register));
                self.roles.pointers |= 1 << number;
            }
            1 => {
                // A return as a jump.
                self.add_labelled(Instruction::with1(push, 0), Use::Immediate, there, 0);
                self.ret(0);
                self.place(there);
            }
            2 => {
                // A call that returns somewhere else.
                self.branch(call, there);
                self.straight(1);
                self.jump(behind, 0);
                self.place(there);
                let code = self.by_mode(Code::Mov_rm32_imm32, Code::Mov_rm64_imm32);
                let top = MemoryOperand::with_base(rsp);
                self.add_labelled(Instruction::with2(code, top, 0), Use::Immediate, behind, 0);
                self.ret(0);
                self.place(behind);
            }
            3 => {
                // A call that never returns.
                self.branch(call, there);
                self.straight(1);
                self.place(there);
                let code = self.by_mode(Code::Lea_r32_m, Code::Lea_r64_m);
                let size = if self.wide() { 8 } else { 4 };
                self.add(Instruction::with2(code, rsp, MemoryOperand::with_base_displ(rsp, size)));
            }
            4 => {
                // Arguments that the callee pops.
                let arguments = 1 + self.random.below(3) as u32;
                for _ in 0..arguments {
                    let value = self.random.value() as i32;
                    self.add(Instruction::with1(push, value));
                }
                self.branch(call, there);
                self.jump(behind, 0);
                self.place(there);
                self.straight(1);
                self.ret(arguments * if self.wide() { 8 } else { 4 });
                self.place(behind);
            }
            _ => {
                // On in another mapping of the same code.
                self.jump(there, crate::layout::ALIAS as i32);
                self.place(there);
                if self.random.one_in(2) {
                    self.straight(2);
                    self.load_label(0, behind, 0);
                    let code = self.by_mode(Code::Jmp_rm32, Code::Jmp_rm64);
                    let register = self.register(0);
                    self.add(Instruction::with1(code, register));
                    self.place(behind);
                }
            }
        }
    }

    /// Code that begins close to the end of a page.
    pub(super) fn across_a_page(&mut self, depth: u32) {
        // Twice would run out of pages.
        let before = self.pieces.iter().any(|piece| matches!(piece, Piece::BeforePageEnd(_)));
        if before {
            return self.statement(depth);
        }
        let there = self.label();
        self.jump(there, 0);
        let distance = self.random.below(24) as u16;
        self.push_piece(Piece::BeforePageEnd(distance));
        self.place(there);
        let count = 3 + self.random.index(6);
        self.straight(count);
    }
}
