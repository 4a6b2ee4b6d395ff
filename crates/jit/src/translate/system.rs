//! System instructions that a kernel executes all the time: flags on the stack, the interrupt, direction and access
//! flags, SWAPGS, SERIALIZE (APM vol. 3, chapter 4; SDM vol. 2B). Those on registers are in `special`.
//!
//! They change the vCPU where it is. What needs CPL 0 is here for CPL 0 only: see `classify`.

use super::{Cold, Job, Refused, State};
use crate::asm::{Cond, Label, Mem};
use crate::classify::Class;
use crate::frame::Frame;
use crate::region::{Block, Goal, Insn};
use crate::regs::{T0, T1, field, vcpu};
use crate::sites::Kind;
use cpu::Cpu;
use cpu::state::GS;
use iced_x86::{Code, Mnemonic};
use memory::tlb::View;
use std::mem::{offset_of, size_of};
use x86::{Rflags, Segment};

const TF: i32 = 1 << 8;
const IF: i32 = 1 << 9;
pub(super) const DF: i32 = 1 << 10;
const IOPL: i32 = 3 << 12;
const NT: i32 = 1 << 14;
const AC: i32 = 1 << 18;
const ID: i32 = 1 << 21;
/// The flags other than status flags that PUSHF shows: not RF, not VM.
const SHOWN: i32 = 0x00fc_ffff & !(Rflags::STATUS as i32);

const SYSTEM_FLAGS: Mem = vcpu(offset_of!(Cpu, system_flags));

impl Job<'_> {
    pub(super) fn system(&mut self, n: usize, insn: &Insn) -> Result<(), Refused> {
        match insn.i.mnemonic() {
            Mnemonic::Pushfq | Mnemonic::Pushfd | Mnemonic::Pushf => return self.pushf(insn),
            Mnemonic::Popfq => return self.popf(insn),
            Mnemonic::Sti => return self.sti(n, insn),
            Mnemonic::Swapgs => self.swapgs(),
            Mnemonic::Cli => self.clear_flag(insn, IF),
            Mnemonic::Cld => self.clear_flag(insn, DF),
            Mnemonic::Std => {
                self.lose_flags(insn);
                self.load_vcpu();
                self.asm.or_imm32(SYSTEM_FLAGS, DF);
            }
            Mnemonic::Clac => self.access_flag(insn, false),
            Mnemonic::Stac => self.access_flag(insn, true),
            Mnemonic::Serialize => self.serialize(insn),
            Mnemonic::Rdfsbase | Mnemonic::Rdgsbase => self.read_base(insn),
            Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => self.write_base(insn),
            Mnemonic::Rdpkru => self.read_keys(insn),
            Mnemonic::Rdtsc | Mnemonic::Rdtscp => self.time_stamp(insn),
            Mnemonic::Rdpid => self.processor_id(insn),
            Mnemonic::Mov if insn.i.op1_register().is_cr() => return self.read_control(insn),
            Mnemonic::Mov => self.read_selector(insn),
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// Puts the address of the vCPU's registers into T0.
    pub(super) fn load_vcpu(&mut self) {
        self.asm.load(T0, field(offset_of!(Frame, registers)));
    }

    /// Where to go to leave the instruction to the interpreter, with the flags where they are now.
    pub(super) fn leave_by(&mut self, insn: &Insn) -> Label {
        let at = self.asm.label();
        let site = self.site(insn.offset, insn.end(), Kind::Instruction);
        self.cold.push(Cold::Interpret { at, site });
        self.accesses.push(site);
        at
    }

    /// Compares a flag that is not a status flag with 0. Loses the host's flags, and T0.
    pub(super) fn test_flag(&mut self, flag: i32) {
        self.load_vcpu();
        self.asm.test_imm32(SYSTEM_FLAGS, flag);
    }

    fn clear_flag(&mut self, insn: &Insn, flag: i32) {
        self.lose_flags(insn);
        self.load_vcpu();
        self.asm.and_imm32(SYSTEM_FLAGS, !flag);
    }

    /// The interpreter's if a request is waiting: it is to be acted on after the next instruction. One that comes later
    /// is acted on at the next poll or look-up, none of which comes before the end of the next instruction.
    fn sti(&mut self, n: usize, insn: &Insn) -> Result<(), Refused> {
        self.keep_flags();
        self.state.rflags = false;
        let at = self.asm.label();
        let site = self.site(insn.offset, insn.end(), Kind::Instruction);
        self.cold.push(Cold::Interpret { at, site });
        // Whether the next instruction is a poll.
        let block = self.region.blocks.get(n).ok_or(Refused)?;
        let polls = |block: &Block, next: usize| self.region.loops(block) && next + 1 == block.insns.len();
        let polls = match (self.at + 1, block.next) {
            (next, _) if next < block.insns.len() => polls(block, next),
            (_, Goal::Block(to)) => self.region.blocks.get(to).is_none_or(|block| polls(block, 0)),
            (_, Goal::Known(way)) => way.polls,
            (_, Goal::Outside) => true,
        };
        // Nor does a count end there.
        if polls || self.region.mode.counts {
            self.asm.jmp(at);
            return Ok(());
        }
        self.resident = None;
        self.asm.load(T1, field(offset_of!(Frame, requests)));
        self.asm.cmp_zero32(Mem::at(T1, 0));
        self.asm.jcc(Cond::NE, at);
        self.load_vcpu();
        self.asm.or_imm32(SYSTEM_FLAGS, IF);
        Ok(())
    }

    /// The thunk for SYSCALL, or SYSRET to 64-bit code; what it finds in T1 is there.
    pub(super) fn crossing(&mut self, insn: &Insn) -> Option<usize> {
        let mode = self.region.mode;
        if mode.legacy.is_some() || !host::gs::is_direct() {
            return None;
        }
        match insn.i.code() {
            Code::Syscall => {
                self.asm.load(T1, field(offset_of!(Frame, base)));
                self.asm.lea(T1, Mem::at(T1, insn.end().into()));
                Some(self.thunks.syscall)
            }
            Code::Sysretq if !mode.user => Some(self.thunks.sysret),
            _ => None,
        }
    }

    /// No flag changes, no access is made.
    fn swapgs(&mut self) {
        let base = vcpu(offset_of!(Cpu, seg) + GS * size_of::<Segment>() + offset_of!(Segment, base));
        let effective = vcpu(offset_of!(Cpu, seg_base) + 8 * GS);
        let other = vcpu(offset_of!(Cpu, msrs.kernel_gs_base));
        let scratch = field(offset_of!(Frame, scratch));
        self.resident = None;
        self.load_vcpu();
        self.asm.load(T1, base);
        self.asm.store(scratch, T1);
        self.asm.load(T1, other);
        self.asm.store(base, T1);
        self.asm.store(effective, T1);
        self.asm.store(field(offset_of!(Frame, gs)), T1);
        self.asm.load(T1, scratch);
        self.asm.store(other, T1);
    }

    /// CLAC and STAC: with SMAP there is another table for either.
    fn access_flag(&mut self, insn: &Insn, set: bool) {
        let table = offset_of!(Frame, tables) + if set { size_of::<View>() } else { 0 };
        let same = self.asm.label();
        self.lose_flags(insn);
        self.test_flag(AC);
        self.asm.jcc(if set { Cond::NE } else { Cond::E }, same);
        if set {
            self.asm.or_imm32(SYSTEM_FLAGS, AC);
        } else {
            self.asm.and_imm32(SYSTEM_FLAGS, !AC);
        }
        self.asm.load(T1, field(table + offset_of!(View, mask)));
        self.asm.store(field(offset_of!(Frame, tlb_mask)), T1);
        self.asm.load(T1, field(table + offset_of!(View, base)));
        // WRGSBASE T1.
        self.asm.raw(&[0xf3, 0x49, 0x0f, 0xae, 0xd8 | (T1 & 7)]);
        self.asm.bind(same);
        self.resident = None;
    }

    /// The interpreter's if code has been overwritten that was not dropped yet: by other vCPUs, or devices.
    fn serialize(&mut self, insn: &Insn) {
        self.lose_flags(insn);
        let at = self.leave_by(insn);
        self.asm.load(T0, field(offset_of!(Frame, overwritten)));
        self.compare_byte(Mem::at(T0, 0), 0);
        self.asm.jcc(Cond::NE, at);
    }

    /// The interpreter's if more than flags changes: single step, alignment checks, interrupts that wait.
    fn popf(&mut self, insn: &Insn) -> Result<(), Refused> {
        let scratch = field(offset_of!(Frame, scratch));
        let slot = self.access(insn, &self.top(), 8, false)?;
        let at = self.leave_by(insn);
        self.asm.load(T1, slot);
        self.load_vcpu();
        self.asm.store(scratch, T1);
        self.asm.xor_mem(T1, SYSTEM_FLAGS);
        self.test_t1(TF | AC | IOPL);
        self.asm.jcc(Cond::NE, at);
        let quiet = self.asm.label();
        self.test_t1(IF);
        self.asm.jcc(Cond::E, quiet);
        self.compare_byte(vcpu(offset_of!(Cpu, cpl)), 0);
        self.asm.jcc(Cond::NE, at);
        self.asm.load(T1, field(offset_of!(Frame, requests)));
        self.asm.cmp_zero32(Mem::at(T1, 0));
        self.asm.jcc(Cond::NE, at);
        self.asm.bind(quiet);
        // The others are as they were, or the host's.
        let changes = IF | DF | IOPL | NT | ID;
        self.asm.load(T1, scratch);
        self.asm.and_imm(T1, changes);
        self.asm.and_imm32(SYSTEM_FLAGS, !changes);
        self.asm.rm(false, &[0x09], T1, SYSTEM_FLAGS);
        // As LAHF and SETO would leave them.
        self.asm.rm(false, &[0x0f, 0xb6], T1, scratch);
        self.asm.shl(T1, 8);
        self.asm.store(field(offset_of!(Frame, flags)), T1);
        self.asm.load(T1, scratch);
        self.asm.shr(T1, 11);
        self.asm.and_imm(T1, 1);
        self.asm.rm(false, &[0x09], T1, field(offset_of!(Frame, flags)));
        self.resident = None;
        self.move_stack(8);
        self.state = State::FRAME;
        self.need_flags();
        Ok(())
    }

    fn compare_byte(&mut self, at: Mem, with: u8) {
        self.asm.rm(false, &[0x80], 7, at);
        self.asm.raw(&[with]);
    }

    /// Whether any of these bits of T1 is set.
    fn test_t1(&mut self, bits: i32) {
        self.asm.rr(false, &[0xf7], 0, T1);
        self.asm.raw(&bits.to_le_bytes());
    }

    /// The host's status flags with the vCPU's others.
    fn pushf(&mut self, insn: &Insn) -> Result<(), Refused> {
        let scratch = field(offset_of!(Frame, scratch));
        self.keep_flags();
        self.need_flags();
        // PUSHFQ; POP.
        self.asm.raw(&[0x9c]);
        self.asm.pop(T1);
        self.asm.and_imm(T1, Rflags::STATUS as i32);
        self.asm.store(scratch, T1);
        self.load_vcpu();
        self.asm.load(T1, SYSTEM_FLAGS);
        self.asm.and_imm(T1, SHOWN);
        self.asm.or_mem(T1, scratch);
        self.asm.or_imm(T1, 2);
        self.asm.store(scratch, T1);
        self.state.rflags = false;
        self.resident = None;
        let slot = self.access(insn, &self.below(insn), insn.word.into(), true)?;
        self.asm.load(T0, scratch);
        self.store_word(slot, T0, insn.word);
        self.recorded(insn.word.into())?;
        self.move_stack(-i32::from(insn.word));
        Ok(())
    }
}

/// Whether accesses before `insn` and behind it may not share a check, or an address.
pub(super) fn separates(insn: &Insn) -> bool {
    let moves = matches!(
        insn.i.mnemonic(),
        Mnemonic::Swapgs | Mnemonic::Wrfsbase | Mnemonic::Wrgsbase | Mnemonic::Clac | Mnemonic::Stac
    );
    moves || insn.class == Class::Interpret
}
