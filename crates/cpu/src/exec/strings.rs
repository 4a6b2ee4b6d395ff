//! String instructions: MOVS, STOS, LODS, CMPS, SCAS, INS, OUTS, alone and repeated.
//!
//! A repeated instruction works in runs that stay within a page of the source and of the destination. Where both are
//! plain memory a run is one host copy or fill; else it goes element by element. After each run the registers are
//! committed, so a fault or an interrupt in the middle restarts exactly there (APM vol. 3, 1.2.6).

use super::{Flow, by_width};
use crate::Cpu;
use crate::op::{Exec, Op, Width};
use crate::state::{ES, RAX, RCX, RDI, RDX, RSI};
use host::alu;
use iced_x86::{Instruction, Mnemonic};
use x86::{Exception, Rflags};

/// Elements handled between two looks at pending interrupts when going one by one.
const ELEMENTS_PER_POLL: u64 = 256;

/// A string instruction for one element.
trait Element {
    /// Compares, so that REPE/REPNE end on the zero flag.
    const COMPARES: bool = false;
    /// Handles one element and moves the registers on.
    fn step<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Exception>;
    /// Handles up to `limit` elements at once where memory allows it; returns how many.
    fn run<W: Width>(_: &mut Cpu, _: &Op, _limit: u64) -> Result<u64, Exception> {
        Ok(0)
    }
}

impl Cpu {
    /// An index register truncated to the address size.
    #[inline(always)]
    fn index(&self, register: usize, op: &Op) -> u64 {
        self.regs[register & 31] & (u64::MAX >> op.narrow)
    }

    /// Moves an index or count register by `by`, in the address size.
    #[inline(always)]
    fn advance(&mut self, register: usize, op: &Op, by: u64) {
        let mask = u64::MAX >> op.narrow;
        let value = self.regs[register & 31].wrapping_add(by) & mask;
        let keep = if op.narrow == 48 { self.regs[register & 31] & !0xffff } else { 0 };
        self.regs[register & 31] = keep | value;
    }

    /// By how much an index register moves for one element.
    #[inline(always)]
    fn stride<W: Width>(&self) -> u64 {
        if self.system_flags.direction() { W::SIZE.wrapping_neg() } else { W::SIZE }
    }

    /// Plain memory for a run of up to `limit` elements from `seg`:`register` upwards, and how many fit.
    fn plain_run<W: Width>(
        &mut self,
        op: &Op,
        seg: usize,
        register: usize,
        limit: u64,
        write: bool,
    ) -> Result<Option<(memory::mmu::HostRun, u64)>, Exception> {
        let ea = self.index(register, op);
        // The address must not wrap within the run; the page bound makes sure of that for 64-bit addresses.
        let room = ((u64::MAX >> op.narrow) - ea) / W::SIZE;
        let limit = limit.min(room).min(x86::PAGE_SIZE / W::SIZE);
        // Where alignment or limits are checked, a misaligned element may raise #AC: that is for the single element.
        if limit == 0 || self.checked && ea & (W::SIZE - 1) != 0 {
            return Ok(None);
        }
        let Ok(gva) = self.linear(seg, ea, limit * W::SIZE, write) else { return Ok(None) };
        let origin = self.origin();
        let run = match self.mmu.run(origin, gva, write) {
            Ok(run) => run,
            Err(fault) => return Err(self.memory_fault(fault, seg == crate::state::SS)),
        };
        Ok(run.map(|run| {
            let fits = (run.len() as u64 / W::SIZE).min(limit);
            (run, fits)
        }))
    }
}

struct Movs;
impl Element for Movs {
    fn step<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Exception> {
        let value: W = cpu.load(usize::from(op.seg), cpu.index(RSI, op))?;
        cpu.store(ES, cpu.index(RDI, op), value)?;
        let stride = cpu.stride::<W>();
        cpu.advance(RSI, op, stride);
        cpu.advance(RDI, op, stride);
        Ok(())
    }

    fn run<W: Width>(cpu: &mut Cpu, op: &Op, limit: u64) -> Result<u64, Exception> {
        let Some((from, n)) = cpu.plain_run::<W>(op, usize::from(op.seg), RSI, limit, false)? else { return Ok(0) };
        let to = match cpu.plain_run::<W>(op, ES, RDI, n, true) {
            // The source is read all the same, which is to be seen.
            Err(_) if from.is_recorded() => None,
            to => to?,
        };
        let Some((to, n)) = to else { return Ok(0) };
        let origin = cpu.origin();
        cpu.mmu.copy_run::<W>(origin, &from, &to, n as usize);
        cpu.advance(RSI, op, n * W::SIZE);
        cpu.advance(RDI, op, n * W::SIZE);
        Ok(n)
    }
}

struct Stos;
impl Element for Stos {
    fn step<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Exception> {
        let value = W::low(cpu.regs[RAX]);
        cpu.store(ES, cpu.index(RDI, op), value)?;
        let stride = cpu.stride::<W>();
        cpu.advance(RDI, op, stride);
        Ok(())
    }

    fn run<W: Width>(cpu: &mut Cpu, op: &Op, limit: u64) -> Result<u64, Exception> {
        let Some((to, n)) = cpu.plain_run::<W>(op, ES, RDI, limit, true)? else { return Ok(0) };
        let (origin, value) = (cpu.origin(), W::low(cpu.regs[RAX]));
        cpu.mmu.fill_run(origin, &to, value, n as usize);
        cpu.advance(RDI, op, n * W::SIZE);
        Ok(n)
    }
}

struct Lods;
impl Element for Lods {
    fn step<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Exception> {
        let value: W = cpu.load(usize::from(op.seg), cpu.index(RSI, op))?;
        W::set(cpu, RAX as u8, value);
        let stride = cpu.stride::<W>();
        cpu.advance(RSI, op, stride);
        Ok(())
    }
}

struct Cmps;
impl Element for Cmps {
    const COMPARES: bool = true;
    fn step<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Exception> {
        let a: W = cpu.load(usize::from(op.seg), cpu.index(RSI, op))?;
        let b: W = cpu.load(ES, cpu.index(RDI, op))?;
        cpu.status = alu::sub(a, b).1;
        let stride = cpu.stride::<W>();
        cpu.advance(RSI, op, stride);
        cpu.advance(RDI, op, stride);
        Ok(())
    }
}

struct Scas;
impl Element for Scas {
    const COMPARES: bool = true;
    fn step<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Exception> {
        let b: W = cpu.load(ES, cpu.index(RDI, op))?;
        cpu.status = alu::sub(W::low(cpu.regs[RAX]), b).1;
        let stride = cpu.stride::<W>();
        cpu.advance(RDI, op, stride);
        Ok(())
    }
}

struct Ins;
impl Element for Ins {
    /// The destination is checked before the port is read, since the read may have effects.
    fn step<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Exception> {
        let port = cpu.regs[RDX] as u16;
        cpu.check_io(port, W::SIZE)?;
        let ea = cpu.index(RDI, op);
        cpu.probe(ES, ea, W::SIZE, true)?;
        let value = W::low(u64::from(cpu.ports.read(port, W::SIZE as usize)));
        cpu.store(ES, ea, value)?;
        let stride = cpu.stride::<W>();
        cpu.advance(RDI, op, stride);
        Ok(())
    }
}

struct Outs;
impl Element for Outs {
    fn step<W: Width>(cpu: &mut Cpu, op: &Op) -> Result<(), Exception> {
        let port = cpu.regs[RDX] as u16;
        cpu.check_io(port, W::SIZE)?;
        let value: u64 = cpu.load::<W>(usize::from(op.seg), cpu.index(RSI, op))?.into();
        cpu.ports.write(port, W::SIZE as usize, value as u32);
        let stride = cpu.stride::<W>();
        cpu.advance(RSI, op, stride);
        Ok(())
    }
}

/// One string instruction without a prefix.
fn once<E: Element, W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    E::step::<W>(cpu, op)?;
    Ok(Flow::Next)
}

/// A repeated string instruction, from the registers as they stand until it ends, faults, or an interrupt is due.
fn repeated<E: Element, W: Width>(cpu: &mut Cpu, op: &Op) -> Result<Flow, Exception> {
    let mut until_poll = ELEMENTS_PER_POLL;
    loop {
        let count = cpu.index(RCX, op);
        if count == 0 {
            // A 32-bit count that was zero from the start still leaves RCX as it is.
            return Ok(Flow::Next);
        }
        // A trap after each iteration: one element, then back to the run loop.
        let careful = cpu.careful;
        let mut done = 0;
        if !careful && !cpu.system_flags.direction() {
            done = E::run::<W>(cpu, op, count)?;
        }
        let ran = done != 0;
        if !ran {
            E::step::<W>(cpu, op)?;
            done = 1;
        }
        cpu.advance(RCX, op, done.wrapping_neg());
        if E::COMPARES && Rflags::from_bits(cpu.status).zero() != (op.repeat == 1) {
            return Ok(Flow::Next);
        }
        until_poll -= 1;
        if careful || ran && cpu.must_poll() || until_poll == 0 || cpu.mmu.code_modified() {
            return Ok(if cpu.index(RCX, op) == 0 { Flow::Next } else { Flow::Repeat });
        }
    }
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Op> {
    if !i.is_string_instruction() {
        return None;
    }
    let repeated_form = i.has_rep_prefix() || i.has_repne_prefix();
    let size = i.memory_size().size();
    macro_rules! element {
        ($e:ty) => {
            if repeated_form {
                by_width!(size, W => repeated::<$e, W>)
            } else {
                by_width!(size, W => once::<$e, W>)
            }
        };
    }
    let exec: Exec = match i.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => element!(Movs),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => element!(Stos),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => element!(Lods),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => element!(Cmps),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => element!(Scas),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => element!(Ins),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => element!(Outs),
        _ => return None,
    }?;
    let mut op = Op::new(exec, i);
    op.narrow = address_bits(i);
    Some(op)
}

/// 64 minus the address size, from the kind of the implicit memory operand.
fn address_bits(i: &Instruction) -> u8 {
    use iced_x86::OpKind;
    for n in 0..i.op_count() {
        match i.op_kind(n) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 48,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 32,
            _ => {}
        }
    }
    0
}

#[cfg(test)]
mod tests;
