//! Registers of the processor that programs and kernels read and write all the time (APM vol. 3, chapter 4): control and
//! segment registers, bases of FS and GS, PKRU, the time-stamp counter.
//!
//! What decides whether they may is looked at when they do; if they may not, or what they write is out of the ordinary,
//! the interpreter executes the instruction.

use super::{Job, Refused};
use crate::asm::{Cond, Label, Mem, RAX, RCX, RDX, Reg};
use crate::frame::Frame;
use crate::region::Insn;
use crate::regs::{Place, T0, T1, field, place, vcpu};
use cpu::Cpu;
use cpu::state::{FS, GS};
use iced_x86::{Mnemonic, Register};
use std::mem::{offset_of, size_of};
use x86::{Cr4, Segment};

const CR4: Mem = vcpu(offset_of!(Cpu, cr4));
const TSC_AUX: Mem = vcpu(offset_of!(Cpu, msrs.tsc_aux));

/// Bits that a register of this size has.
fn wide(register: Register) -> bool {
    register.size() == 8
}

impl Job<'_> {
    /// RDFSBASE, RDGSBASE.
    pub(super) fn read_base(&mut self, insn: &Insn) {
        self.require(insn, Cr4::new().with_fsgsbase(true));
        let base = if insn.i.mnemonic() == Mnemonic::Rdfsbase { offset_of!(Frame, fs) } else { offset_of!(Frame, gs) };
        let register = insn.i.op0_register();
        self.load_register(register, wide(register), field(base));
    }

    /// WRFSBASE, WRGSBASE. Addresses that are canonical only with LA57 are left to the interpreter.
    pub(super) fn write_base(&mut self, insn: &Insn) {
        let refused = self.require(insn, Cr4::new().with_fsgsbase(true));
        let (n, base) = match insn.i.mnemonic() {
            Mnemonic::Wrfsbase => (FS, offset_of!(Frame, fs)),
            _ => (GS, offset_of!(Frame, gs)),
        };
        let register = insn.i.op0_register();
        match place(register.full_register().number() as Reg) {
            Place::Host(from) if wide(register) => self.asm.mov(T1, from),
            Place::Host(from) => self.asm.mov32(T1, from),
            Place::Home(from) if wide(register) => self.asm.load(T1, from),
            Place::Home(from) => self.asm.load32(T1, from),
        }
        if wide(register) {
            self.asm.mov(T0, T1);
            self.asm.sar(T0, 47);
            self.asm.lea(T0, Mem::at(T0, 1));
            self.asm.cmp_imm(T0, 1);
            self.asm.jcc(Cond::A, refused);
        }
        self.load_vcpu();
        self.asm.store(vcpu(offset_of!(Cpu, seg) + n * size_of::<Segment>() + offset_of!(Segment, base)), T1);
        self.asm.store(vcpu(offset_of!(Cpu, seg_base) + 8 * n), T1);
        self.asm.store(field(base), T1);
        self.resident = None;
    }

    pub(super) fn read_keys(&mut self, insn: &Insn) {
        let refused = self.require(insn, Cr4::new().with_protection_keys(true));
        self.asm.test32(RCX, RCX);
        self.asm.jcc(Cond::NE, refused);
        self.asm.load32(RAX, vcpu(offset_of!(Cpu, pkru)));
        self.asm.mov_imm32(RDX, 0);
    }

    /// RDTSC, RDTSCP: the clock is asked by a thunk.
    pub(super) fn time_stamp(&mut self, insn: &Insn) {
        self.lose_flags(insn);
        let refused = self.leave_by(insn);
        self.load_vcpu();
        self.asm.test_imm32(CR4, Cr4::new().with_time_stamp_disable(true).into_bits() as i32);
        self.asm.jcc(Cond::NE, refused);
        self.asm.call_to(self.thunks.time);
        if insn.i.mnemonic() == Mnemonic::Rdtscp {
            self.load_vcpu();
            self.asm.load32(RCX, TSC_AUX);
        }
        self.resident = None;
    }

    pub(super) fn processor_id(&mut self, insn: &Insn) {
        self.load_vcpu();
        self.load_register(insn.i.op0_register(), false, TSC_AUX);
    }

    /// MOV from CR0, CR2, CR3, CR4, with CPL 0.
    pub(super) fn read_control(&mut self, insn: &Insn) -> Result<(), Refused> {
        let from = match insn.i.op1_register() {
            Register::CR0 => offset_of!(Cpu, cr0),
            Register::CR2 => offset_of!(Cpu, cr2),
            Register::CR3 => offset_of!(Cpu, cr3),
            Register::CR4 => offset_of!(Cpu, cr4),
            _ => return Err(Refused),
        };
        self.load_vcpu();
        self.load_register(insn.i.op0_register(), true, vcpu(from));
        Ok(())
    }

    /// MOV from a segment register to a general one.
    pub(super) fn read_selector(&mut self, insn: &Insn) {
        let segment = cpu::operand::segment(insn.i.op1_register());
        let from = offset_of!(Cpu, seg) + segment * size_of::<Segment>() + offset_of!(Segment, selector);
        let register = insn.i.op0_register();
        self.load_vcpu();
        if register.size() != 2 {
            self.asm.rm(false, &[0x0f, 0xb7], T1, vcpu(from));
            self.resident = None;
            self.store_register(register, T1);
            return;
        }
        // The rest of the register stays.
        match place(register.full_register().number() as Reg) {
            Place::Host(to) => self.asm.rm(false, &[0x66, 0x8b], to, vcpu(from)),
            Place::Home(to) => {
                self.asm.rm(false, &[0x66, 0x8b], T0, vcpu(from));
                self.asm.rm(false, &[0x66, 0x89], T0, to);
            }
        }
    }

    /// Loads a general register from a field, 32 or 64 bits.
    fn load_register(&mut self, register: Register, wide: bool, from: Mem) {
        let to = match place(register.full_register().number() as Reg) {
            Place::Host(to) => to,
            Place::Home(_) => T0,
        };
        if wide {
            self.asm.load(to, from);
        } else {
            self.asm.load32(to, from);
        }
        if to == T0 {
            self.store_register(register, T0);
        }
    }

    /// Writes all 64 bits of a general register.
    fn store_register(&mut self, register: Register, from: Reg) {
        match place(register.full_register().number() as Reg) {
            Place::Host(to) => self.asm.mov(to, from),
            Place::Home(to) => self.asm.store(to, from),
        }
    }

    /// Leaves if CR4 does not allow the instruction. Gives where to go to do so for another reason; T0 points to the
    /// vCPU.
    fn require(&mut self, insn: &Insn, bit: Cr4) -> Label {
        self.lose_flags(insn);
        let refused = self.leave_by(insn);
        self.load_vcpu();
        self.asm.test_imm32(CR4, bit.into_bits() as i32);
        self.asm.jcc(Cond::E, refused);
        refused
    }
}
