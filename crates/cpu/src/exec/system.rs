//! The other system instructions (APM vol. 3, chapter 4): flags on the stack, interrupt flag, halt, TLB and cache control,
//! time, MSRs, CPUID, FS and GS bases, protection keys.
//!
//! Caches are not modelled: INVD, WBINVD, CLFLUSH and their like check privileges and addresses and do nothing. VME and
//! PVI are not offered, so CLI, STI, PUSHF and POPF know IOPL only. MONITOR, MWAIT, VMX, SVM, SGX and SMX are never offered:
//! they are #UD by the decoder's feature check. RDPMC is #GP(0): there are no counters.

use super::{Flow, Slow};
use crate::Cpu;
use crate::cpuid::Dynamic;
use crate::msr::APIC_BASE_ENABLE;
use crate::state::{FS, GS, RAX, RBX, RCX, RDX, Shadow};
use iced_x86::{Instruction, Mnemonic};
use memory::Gva;
use memory::mmu::Invpcid;
use x86::{Exception, Rflags, msr};

/// What POPF may change at any privilege level, apart from IF.
const POPF_ALWAYS: u64 = Rflags::STATUS | 1 << 8 | 1 << 10 | 1 << 14 | 1 << 18 | 1 << 21;
const IF: u64 = 1 << 9;
const IOPL: u64 = 3 << 12;
/// Flags whose change matters between blocks: TF, IF, AC.
const LEAVES_BLOCK: u64 = 1 << 8 | IF | 1 << 18;
/// What PUSHF shows: not RF, not VM.
const PUSHF_SHOWN: u64 = 0x00fc_ffff;

fn require_cpl0(cpu: &Cpu) -> Result<(), Exception> {
    if cpu.cpl == 0 { Ok(()) } else { Err(Exception::GP0) }
}

/// In virtual-8086 mode PUSHF and POPF need IOPL 3.
fn require_flags_access(cpu: &Cpu) -> Result<(), Exception> {
    let denied = cpu.system_flags.virtual_8086() && cpu.system_flags.iopl() < 3;
    if denied { Err(Exception::GP0) } else { Ok(()) }
}

/// Size of what PUSHF pushes and POPF pops.
fn stack_operand(i: &Instruction) -> u64 {
    u64::from(i.stack_pointer_increment().unsigned_abs())
}

fn pushf(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    require_flags_access(cpu)?;
    let flags = cpu.rflags().into_bits() & PUSHF_SHOWN;
    cpu.push_sized(stack_operand(i), flags)?;
    Ok(Flow::Next)
}

fn popf(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    require_flags_access(cpu)?;
    let size = stack_operand(i);
    let value = cpu.pop_sized(size)?;
    let iopl = cpu.system_flags.iopl();
    let mut mask = POPF_ALWAYS;
    if cpu.cpl == 0 {
        mask |= IF | IOPL;
    } else if cpu.cpl <= iopl {
        mask |= IF;
    }
    if size == 2 {
        mask &= 0xffff;
    }
    let before = cpu.rflags().into_bits();
    cpu.set_rflags(value, mask);
    let changed = (before ^ cpu.rflags().into_bits()) & LEAVES_BLOCK != 0;
    Ok(if changed { Flow::Break } else { Flow::Next })
}

/// CLI and STI need CPL ≤ IOPL, virtual-8086 mode IOPL 3 (where CPL is 3, so that the rule is the same).
fn require_interrupt_flag(cpu: &Cpu) -> Result<(), Exception> {
    if !cpu.cr0.protection() || cpu.cpl <= cpu.system_flags.iopl() { Ok(()) } else { Err(Exception::GP0) }
}

fn cli(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    require_interrupt_flag(cpu)?;
    cpu.system_flags.set_interrupt(false);
    Ok(Flow::Next)
}

/// STI holds interrupts off for one more instruction, if IF was clear.
fn sti(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    require_interrupt_flag(cpu)?;
    if !cpu.system_flags.interrupt() {
        cpu.system_flags.set_interrupt(true);
        cpu.shadow = Shadow::Sti;
    }
    Ok(Flow::Break)
}

fn hlt(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    require_cpl0(cpu)?;
    Ok(Flow::Halt)
}

/// CLAC and STAC: #UD above CPL 0.
fn set_alignment_flag(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    if cpu.cpl != 0 {
        return Err(Exception::UNDEFINED);
    }
    let ac = Rflags::new().with_alignment_check(true).into_bits() & !2;
    cpu.set_rflags(if i.mnemonic() == Mnemonic::Stac { ac } else { 0 }, ac);
    Ok(Flow::Next)
}

/// INVD, WBINVD, WBNOINVD.
fn flush_caches(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    require_cpl0(cpu)?;
    Ok(Flow::Next)
}

/// CLFLUSH, CLFLUSHOPT, CLWB: the address must be readable.
fn flush_line(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let (seg, ea) = cpu.effective_address(i);
    cpu.probe(seg, ea, 1, false)?;
    Ok(Flow::Next)
}

/// Hints and fences that order what is in order anyway.
fn nothing(_: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    Ok(Flow::Next)
}

/// SERIALIZE: also fetches anew what was modified.
fn serialize(_: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    Ok(Flow::Break)
}

/// INVLPG checks nothing but the privilege; a non-canonical address has no translation to forget.
fn invlpg(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    require_cpl0(cpu)?;
    let (seg, ea) = cpu.effective_address(i);
    let address = ea.wrapping_add(cpu.seg_base[seg & 7]);
    let address = if cpu.in_64_bit_mode() { address } else { address & 0xffff_ffff };
    cpu.mmu.invlpg(Gva(address));
    Ok(Flow::Break)
}

fn invpcid(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    require_cpl0(cpu)?;
    let kind = cpu.read_reg(i.op0_register());
    let (seg, ea) = cpu.effective_address(i);
    let mut descriptor = [0; 16];
    cpu.load_bytes(seg, ea, &mut descriptor)?;
    let descriptor = u128::from_le_bytes(descriptor);
    let (low, address) = (descriptor as u64, (descriptor >> 64) as u64);
    let pcid = (low & 0xfff) as u16;
    if kind > 3 || low >> 12 != 0 || (kind < 2 && pcid != 0 && !cpu.cr4.pcid()) {
        return Err(Exception::GP0);
    }
    if kind == 0 && !cpu.is_canonical_base(address) {
        return Err(Exception::GP0);
    }
    cpu.mmu.invpcid(match kind {
        0 => Invpcid::Address { pcid, gva: Gva(address) },
        1 => Invpcid::SingleContext { pcid },
        2 => Invpcid::AllContextsGlobal,
        _ => Invpcid::AllContexts,
    });
    Ok(Flow::Break)
}

/// CR4.TSD keeps the TSC from user programs.
fn require_tsc(cpu: &Cpu) -> Result<(), Exception> {
    if cpu.cr4.time_stamp_disable() && cpu.cpl != 0 { Err(Exception::GP0) } else { Ok(()) }
}

/// Writes EDX:EAX.
fn set_pair(cpu: &mut Cpu, value: u64) {
    cpu.regs[RAX] = value & 0xffff_ffff;
    cpu.regs[RDX] = value >> 32;
}

/// Reads EDX:EAX.
fn pair(cpu: &Cpu) -> u64 {
    cpu.regs[RDX] << 32 | cpu.regs[RAX] & 0xffff_ffff
}

fn rdtsc(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    require_tsc(cpu)?;
    let tsc = cpu.tsc();
    set_pair(cpu, tsc);
    if i.mnemonic() == Mnemonic::Rdtscp {
        cpu.regs[RCX] = cpu.msrs.tsc_aux & 0xffff_ffff;
    }
    Ok(Flow::Next)
}

fn rdpid(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    cpu.write_reg(i.op0_register(), cpu.msrs.tsc_aux & 0xffff_ffff);
    Ok(Flow::Next)
}

fn rdpmc(_: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    Err(Exception::GP0)
}

fn rdmsr(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    require_cpl0(cpu)?;
    let value = cpu.read_msr(cpu.regs[RCX] as u32)?;
    set_pair(cpu, value);
    Ok(Flow::Next)
}

fn wrmsr(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    require_cpl0(cpu)?;
    let value = pair(cpu);
    cpu.write_msr(cpu.regs[RCX] as u32, value)?;
    Ok(Flow::Break)
}

fn cpuid(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    let state = Dynamic {
        apic_id: cpu.id,
        apic_enabled: cpu.apic.read_msr(msr::APIC_BASE).unwrap_or(0) & APIC_BASE_ENABLE != 0,
        cr4: cpu.cr4,
        xcr0: cpu.xcr0,
    };
    let leaf = cpu.model.query(cpu.regs[RAX] as u32, cpu.regs[RCX] as u32, &state);
    for (register, value) in [RAX, RBX, RCX, RDX].into_iter().zip(leaf) {
        cpu.regs[register] = value.into();
    }
    Ok(Flow::Next)
}

fn swapgs(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    if !cpu.in_64_bit_mode() {
        return Err(Exception::UNDEFINED);
    }
    require_cpl0(cpu)?;
    let base = cpu.msrs.kernel_gs_base;
    cpu.msrs.kernel_gs_base = cpu.seg[GS].base;
    cpu.set_segment_base(GS, base);
    Ok(Flow::Next)
}

/// RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE exist where CR4.FSGSBASE says so, in 64-bit mode.
fn base_register(cpu: &Cpu, i: &Instruction) -> Result<usize, Exception> {
    if !cpu.cr4.fsgsbase() || !cpu.in_64_bit_mode() {
        return Err(Exception::UNDEFINED);
    }
    Ok(if matches!(i.mnemonic(), Mnemonic::Rdfsbase | Mnemonic::Wrfsbase) { FS } else { GS })
}

fn read_base(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let register = base_register(cpu, i)?;
    cpu.write_reg(i.op0_register(), cpu.seg[register].base);
    Ok(Flow::Next)
}

fn write_base(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    let register = base_register(cpu, i)?;
    let base = cpu.read_reg(i.op0_register());
    if !cpu.is_canonical_base(base) {
        return Err(Exception::GP0);
    }
    cpu.set_segment_base(register, base);
    Ok(Flow::Next)
}

/// RDPKRU and WRPKRU exist where CR4.PKE says so.
fn require_keys(cpu: &Cpu) -> Result<(), Exception> {
    if !cpu.cr4.protection_keys() {
        Err(Exception::UNDEFINED)
    } else if cpu.regs[RCX] as u32 != 0 {
        Err(Exception::GP0)
    } else {
        Ok(())
    }
}

fn rdpkru(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    require_keys(cpu)?;
    set_pair(cpu, cpu.pkru.into());
    Ok(Flow::Next)
}

fn wrpkru(cpu: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    require_keys(cpu)?;
    if cpu.regs[RDX] as u32 != 0 {
        return Err(Exception::GP0);
    }
    cpu.pkru = cpu.regs[RAX] as u32;
    cpu.update_paging();
    Ok(Flow::Next)
}

/// UD0, UD1, UD2, and RSM outside system-management mode.
fn undefined(_: &mut Cpu, _: &Instruction) -> Result<Flow, Exception> {
    Err(Exception::UNDEFINED)
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Slow> {
    Some(match i.mnemonic() {
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => pushf,
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => popf,
        Mnemonic::Cli => cli,
        Mnemonic::Sti => sti,
        Mnemonic::Hlt => hlt,
        Mnemonic::Clac | Mnemonic::Stac => set_alignment_flag,
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => flush_caches,
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => flush_line,
        Mnemonic::Invlpg => invlpg,
        Mnemonic::Invpcid => invpcid,
        Mnemonic::Rdtsc | Mnemonic::Rdtscp => rdtsc,
        Mnemonic::Rdpid => rdpid,
        Mnemonic::Rdpmc => rdpmc,
        Mnemonic::Rdmsr => rdmsr,
        Mnemonic::Wrmsr => wrmsr,
        Mnemonic::Cpuid => cpuid,
        Mnemonic::Swapgs => swapgs,
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase => read_base,
        Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => write_base,
        Mnemonic::Rdpkru => rdpkru,
        Mnemonic::Wrpkru => wrpkru,
        Mnemonic::Serialize => serialize,
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::Rsm => undefined,
        Mnemonic::Prefetch
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1
        | Mnemonic::Cldemote
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq
        | Mnemonic::Reservednop => nothing,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
