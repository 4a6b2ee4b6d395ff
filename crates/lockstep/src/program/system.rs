//! System calls, interrupts and what only the supervisor may do.

use super::Writer;
use crate::case::{Piece, Use};
use crate::catalogue::Class;
use crate::hooks::ASK;
use crate::kernel::{CODE0, CODE0_32, CODE3, CODE3_32};
use crate::layout::{CONTROL, spot};
use crate::sequence::Flags;
use cpu::state::{RCX, RDX, RSP};
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use x86::msr;

impl Writer<'_> {
    /// Something of the system.
    pub(super) fn system(&mut self) {
        match self.random.below(if self.constraints.cpl == 0 { 14 } else { 7 }) {
            0 => self.system_call(),
            1 => {
                let vector = self.random.pick(&[3, 4, 0x80, 0x81, 0xff, 0x21]);
                self.add(Instruction::with1(Code::Int_imm8, vector));
            }
            2 => {
                self.add(Ok(Instruction::with(if self.wide() { Code::Int3 } else { Code::Into })));
            }
            3 => self.flags_by_the_stack(),
            4 | 5 => self.interrupt_return(),
            6 => self.any(Class::System, Flags::Any),
            7 | 8 => self.ask(),
            9 => self.toggle_control(),
            10 => self.reload_paging(),
            11 => self.write_base(),
            12 => {
                let code = self.random.pick(&[Code::Sti, Code::Cli, Code::Clts]);
                self.add(Ok(Instruction::with(code)));
            }
            _ => self.any(Class::System, Flags::Any),
        }
    }

    /// SYSCALL, which needs RCX and R11.
    fn system_call(&mut self) {
        if self.is_free(1 << RCX | 1 << 11) {
            self.roles.pointers &= !(1 << RCX | 1 << 11);
            self.roles.small &= !(1 << RCX | 1 << 11);
            self.add(Ok(Instruction::with(Code::Syscall)));
        }
    }

    /// PUSHF, a change, POPF: interrupts, direction, alignment checks, sometimes single step.
    fn flags_by_the_stack(&mut self) {
        let (push, pop) = (self.by_mode(Code::Pushfd, Code::Pushfq), self.by_mode(Code::Popfd, Code::Popfq));
        let top = MemoryOperand::with_base(self.register(RSP));
        let bits = self.random.pick(&[0x200, 0x200, 0x400, 0x1, 0x8d5, 0x4_0000, 0x20_0000, 0x100]);
        self.add(Ok(Instruction::with(push)));
        self.add(Instruction::with2(Code::Xor_rm32_imm32, top, bits));
        self.add(Ok(Instruction::with(pop)));
        if bits == 0x400 {
            self.straight(1);
            self.add(Ok(Instruction::with(Code::Cld)));
        }
    }

    /// IRET or a far return to the same code segment; from the supervisor also to user mode.
    fn interrupt_return(&mut self) {
        let there = self.label();
        let outward = self.constraints.cpl == 0 && !self.kernel && self.random.one_in(2);
        let selector = match (self.constraints.cpl, self.wide()) {
            (0, _) if outward => CODE3,
            (0, true) => CODE0,
            (0, false) => CODE0_32,
            (_, true) => CODE3,
            (_, false) => CODE3_32,
        };
        let outward = outward && self.wide();
        let push = self.by_mode(Code::Pushd_imm32, Code::Pushq_imm32);
        let far = self.random.one_in(3) && !outward;
        if far {
            self.add(Instruction::with1(push, i32::from(selector)));
            self.add_labelled(Instruction::with1(push, 0), Use::Immediate, there, 0);
            let code = self.by_mode(Code::Retfd, Code::Retfq);
            self.add(Ok(Instruction::with(code)));
            return self.place(there);
        }
        if self.wide() {
            let number = self.free();
            let (stack, rsp) = (self.register(number), self.register(RSP));
            self.add(Instruction::with2(Code::Mov_r64_rm64, stack, rsp));
            let data = if outward || self.constraints.cpl == 3 { crate::kernel::DATA3 } else { crate::kernel::DATA0 };
            self.add(Instruction::with1(push, i32::from(data)));
            self.add(Instruction::with1(Code::Push_r64, stack));
        }
        let code = self.by_mode(Code::Pushfd, Code::Pushfq);
        self.add(Ok(Instruction::with(code)));
        self.add(Instruction::with1(push, i32::from(selector)));
        self.add_labelled(Instruction::with1(push, 0), Use::Immediate, there, 0);
        let code = self.by_mode(Code::Iretd, Code::Iretq);
        self.add(Ok(Instruction::with(code)));
        self.place(there);
        if outward {
            self.constraints.cpl = 3;
        }
    }

    /// Asks the control device for an interrupt, which comes after the instruction behind STI, or wakes HLT.
    fn ask(&mut self) {
        if !self.kernel || self.constraints.cpl != 0 {
            return self.straight(1);
        }
        self.add(Ok(Instruction::with(Code::Cli)));
        let control = self.at(CONTROL);
        self.add(Instruction::with2(Code::Mov_rm32_imm32, control, ASK));
        for _ in 0..self.random.index(3) {
            self.any(Class::Integer, Flags::Any);
        }
        self.add(Ok(Instruction::with(Code::Sti)));
        match self.random.below(3) {
            0 => self.add(Ok(Instruction::with(Code::Hlt))),
            1 => self.any(Class::Integer, Flags::Keep),
            _ => self.push_piece(Piece::bytes(&[0x90])),
        }
        self.push_piece(Piece::bytes(&[0x90]));
        if self.random.one_in(2) {
            self.add(Ok(Instruction::with(Code::Cli)));
        }
    }

    /// CR0.TS, WP and AM, CR4.OSXMMEXCPT, PGE and FSGSBASE: what the code that follows may notice.
    fn toggle_control(&mut self) {
        let number = self.free();
        let register = self.register(number);
        let (load, store) =
            (self.by_mode(Code::Mov_r32_cr, Code::Mov_r64_cr), self.by_mode(Code::Mov_cr_r32, Code::Mov_cr_r64));
        let (control, bit) = self.random.pick(&[
            (Register::CR0, 3),
            (Register::CR0, 3),
            (Register::CR0, 16),
            (Register::CR0, 18),
            (Register::CR4, 10),
            (Register::CR4, 7),
            (Register::CR4, 16),
        ]);
        self.add(Instruction::with2(load, register, control));
        let code = self.by_mode(Code::Btc_rm32_imm8, Code::Btc_rm64_imm8);
        self.add(Instruction::with2(code, register, bit));
        self.add(Instruction::with2(store, control, register));
    }

    /// CR3 with what it has, or INVLPG.
    fn reload_paging(&mut self) {
        if self.random.one_in(2) {
            let target = spot(&mut self.random) & 0x7fff_ffff;
            let place = self.at(target);
            return self.add(Instruction::with1(Code::Invlpg_m, place));
        }
        let number = self.free();
        let register = self.register(number);
        let (load, store) =
            (self.by_mode(Code::Mov_r32_cr, Code::Mov_r64_cr), self.by_mode(Code::Mov_cr_r32, Code::Mov_cr_r64));
        self.add(Instruction::with2(load, register, Register::CR3));
        self.add(Instruction::with2(store, Register::CR3, register));
    }

    /// The bases of FS and GS, by WRMSR, WRFSBASE or SWAPGS.
    fn write_base(&mut self) {
        let target = spot(&mut self.random);
        if self.random.one_in(3) {
            return self.add(Ok(Instruction::with(Code::Swapgs)));
        }
        if self.wide() && self.random.one_in(2) {
            let number = self.free();
            let register = self.register(number);
            self.add(Instruction::with2(Code::Mov_r64_imm64, register, target));
            let code = self.random.pick(&[Code::Wrfsbase_r64, Code::Wrgsbase_r64]);
            return self.add(Instruction::with1(code, register));
        }
        if self.is_free(1 | 1 << RCX | 1 << RDX) {
            let number = self.random.pick(&[msr::FS_BASE, msr::GS_BASE, msr::KERNEL_GS_BASE]);
            self.load(RCX, number);
            self.load(0, target as u32);
            self.load(RDX, (target >> 32) as u32);
            self.roles.pointers &= !(1 | 1 << RCX | 1 << RDX);
            self.add(Ok(Instruction::with(Code::Wrmsr)));
        }
    }
}
