//! System instructions that a kernel executes all the time: flags on the stack, the interrupt and direction flags,
//! SWAPGS (APM vol. 3, chapter 4).
//!
//! They change the vCPU where it is. CLI, STI and SWAPGS are here for CPL 0 only, where they cannot fault: see
//! `classify`.

use super::{Cold, Job, Refused};
use crate::asm::{Cond, Mem};
use crate::classify::Class;
use crate::frame::Frame;
use crate::region::Insn;
use crate::regs::{T0, T1, field};
use crate::sites::Kind;
use cpu::Cpu;
use cpu::state::GS;
use iced_x86::Mnemonic;
use std::mem::{offset_of, size_of};
use x86::{Rflags, Segment};

const IF: i32 = 1 << 9;
const DF: i32 = 1 << 10;
/// The flags other than status flags that PUSHF shows: not RF, not VM.
const SHOWN: i32 = 0x00fc_ffff & !(Rflags::STATUS as i32);

/// A field of the vCPU, whose registers T0 points to.
const fn vcpu(offset: usize) -> Mem {
    Mem::at(T0, offset as i32 - offset_of!(Cpu, regs) as i32)
}

const SYSTEM_FLAGS: Mem = vcpu(offset_of!(Cpu, system_flags));

impl Job<'_> {
    pub(super) fn system(&mut self, n: usize, insn: &Insn) -> Result<(), Refused> {
        match insn.i.mnemonic() {
            Mnemonic::Pushfq | Mnemonic::Pushfd | Mnemonic::Pushf => return self.pushf(insn),
            Mnemonic::Sti => return self.sti(n, insn),
            Mnemonic::Swapgs => self.swapgs(),
            Mnemonic::Cli => self.clear_flag(insn, IF),
            Mnemonic::Cld => self.clear_flag(insn, DF),
            _ => return Err(Refused),
        }
        Ok(())
    }

    /// Puts the address of the vCPU's registers into T0.
    fn load_vcpu(&mut self) {
        self.asm.load(T0, field(offset_of!(Frame, registers)));
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
        // The next instruction's block, and its number there.
        let block = self.region.blocks.get(n).ok_or(Refused)?;
        let next = match self.at + 1 {
            next if next < block.insns.len() => Some((block, next)),
            _ => block.next.and_then(|to| self.region.blocks.get(to)).map(|block| (block, 0)),
        };
        if next.is_none_or(|(block, next)| block.loops() && next + 1 == block.insns.len()) {
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
        self.move_stack(-i32::from(insn.word));
        Ok(())
    }
}

/// Whether accesses before `insn` and behind it may not share a check, or an address.
pub(super) fn separates(insn: &Insn) -> bool {
    insn.class == Class::Interpret || insn.i.mnemonic() == Mnemonic::Swapgs
}
