//! Delivery of exceptions and interrupts (APM vol. 2, chapter 8; SDM vol. 3A, chapter 6): real mode, protected mode
//! with 16- and 32-bit gates, virtual-8086 mode, long mode with IST; nested faults up to the triple fault.
//! Task gates lead to `task`.

use super::frame::Frame;
use super::segment::system_type;
use super::task::Cause;
use super::{Flow, Slow};
use crate::Cpu;
use crate::debug::{DR6_BD, DR7_GD};
use crate::state::{CS, DS, ES, FS, GS, RIP, RSP, SS};
use iced_x86::{Instruction, Mnemonic};
use memory::Gva;
use memory::witness::Delivery;
use x86::{Descriptor, Exception, Rflags, Segment, Selector, Vector};

/// A fault that could not be delivered, nor the double fault that it became: the processor shuts down.
#[derive(Clone, Copy, Debug)]
pub struct TripleFault {
    /// CS selector at the instruction that began it.
    pub cs: u16,
    /// RIP of the instruction that began it.
    pub rip: u64,
    /// The exception that began it.
    pub first: Exception,
    /// The address of the last page fault, for what it is worth.
    pub fault_address: u64,
}

/// Where an event comes from: decides gate privilege checks and the EXT bit of error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// An interrupt line, an NMI, or an exception raised by the processor.
    Outside,
    /// INT n, INT3, INTO: the gate's DPL is checked, EXT is clear.
    Software,
    /// INT1 (ICEBP): no check of the DPL.
    Icebp,
}

/// An event to deliver.
#[derive(Clone, Copy, Debug)]
struct Event {
    vector: u8,
    code: Option<u16>,
    source: Source,
    /// RIP that is pushed.
    rip: u64,
    /// Flags image that is pushed.
    flags: u64,
}

impl Event {
    fn ext(&self) -> u16 {
        u16::from(self.source != Source::Software)
    }

    /// Error code naming this event's gate: index, IDT, EXT.
    fn gate_code(&self) -> u16 {
        u16::from(self.vector) << 3 | 2 | self.ext()
    }
}

impl Cpu {
    /// Delivers an exception raised by the instruction at RIP.
    ///
    /// Errors: the processor shuts down if the delivery faults beyond a double fault.
    pub fn deliver_exception(&mut self, exception: Exception) -> Result<(), TripleFault> {
        let first = exception;
        let mut current = exception;
        loop {
            if current.vector == Vector::PageFault {
                self.cr2 = self.fault_address;
            }
            let debug = current.vector == Vector::Debug;
            let general_detect = debug && self.dr[7] & DR7_GD != 0 && self.dr[6] & DR6_BD != 0;
            if debug {
                self.dr[7] &= !DR7_GD;
            }
            // Faults are pushed with RF set; #DB is a fault only for an access to a debug register (instruction
            // breakpoints leave RF to the handler).
            let fault = !debug || general_detect;
            let flags = self.rflags().with_resume(fault).into_bits();
            let event = Event {
                vector: current.vector as u8,
                code: current.code,
                source: Source::Outside,
                rip: self.rip(),
                flags,
            };
            let Err(next) = self.deliver(event) else { return Ok(()) };
            if current.vector == Vector::DoubleFault {
                return Err(self.shut_down(first));
            }
            current = combine(current, next);
        }
    }

    fn shut_down(&self, first: Exception) -> TripleFault {
        TripleFault { cs: self.seg[CS].selector.into_bits(), rip: self.rip(), first, fault_address: self.fault_address }
    }

    /// Delivers a maskable interrupt before the instruction at RIP.
    pub fn deliver_interrupt(&mut self, vector: u8) -> Result<(), TripleFault> {
        self.deliver_outside(vector)
    }

    /// Delivers an NMI; further ones are held until IRET.
    pub fn deliver_nmi(&mut self) -> Result<(), TripleFault> {
        self.nmi_blocked = true;
        self.deliver_outside(Vector::Nmi as u8)
    }

    fn deliver_outside(&mut self, vector: u8) -> Result<(), TripleFault> {
        let flags = self.rflags().into_bits();
        let event = Event { vector, code: None, source: Source::Outside, rip: self.rip(), flags };
        match self.deliver(event) {
            Ok(()) => Ok(()),
            Err(exception) => self.deliver_exception(exception),
        }
    }

    fn deliver_software(&mut self, i: &Instruction, vector: u8, source: Source) -> Result<Flow, Exception> {
        let flags = self.rflags().into_bits();
        let rip = self.next_rip(i);
        self.deliver(Event { vector, code: None, source, rip, flags })?;
        Ok(Flow::Jump)
    }

    fn deliver(&mut self, event: Event) -> Result<(), Exception> {
        self.log_event(&event);
        if let Some(count) = self.delivered.get_mut(usize::from(event.vector)) {
            *count += 1;
        }
        if let Some(witness) = self.mmu.map().witness().get() {
            witness.delivered(&Delivery {
                cpu: self.id,
                vector: event.vector,
                code: event.code,
                rip: Gva(event.rip),
                cpl: self.cpl,
                address: (event.vector == Vector::PageFault as u8).then_some(Gva(self.cr2)),
            });
        }
        self.comparing(|cpu| {
            if !cpu.cr0.protection() {
                cpu.deliver_real(&event)
            } else if cpu.long_mode() {
                cpu.deliver_long(&event)
            } else {
                cpu.deliver_protected(&event)
            }
        })
    }

    fn log_event(&self, event: &Event) {
        tracing::debug!(
            target: "int",
            "v={:02x} e={:04x} cpl={} ip={:04x}:{:016x} sp={:04x}:{:016x} cr2={:016x} rax={:016x}{}",
            event.vector,
            event.code.unwrap_or(0),
            self.cpl,
            self.seg[CS].selector.into_bits(),
            event.rip,
            self.seg[SS].selector.into_bits(),
            self.regs[RSP],
            self.cr2,
            self.regs[crate::state::RAX],
            if event.source == Source::Outside { "" } else { " (software)" },
        );
    }

    /// Real mode: flags, CS and IP on the stack, the vector from the table at IDTR (APM vol. 2, 8.6).
    fn deliver_real(&mut self, event: &Event) -> Result<(), Exception> {
        let entry = u64::from(event.vector) * 4;
        if entry + 3 > u64::from(self.idtr.limit) {
            return Err(Exception::gp(event.gate_code()));
        }
        let pointer: u32 = self.read_system(self.idtr.base.wrapping_add(entry) & 0xffff_ffff)?;
        let mut frame = Frame::new(self, self.seg[SS], self.regs[RSP], 0, 2, false, 0);
        frame.push(self, event.flags)?;
        frame.push(self, u64::from(self.seg[CS].selector.into_bits()))?;
        frame.push(self, event.rip)?;
        frame.commit(self);
        let cs = Selector::from_bits((pointer >> 16) as u16);
        self.seg[CS] = self.real_segment(CS, cs);
        self.regs[RIP] = u64::from(pointer & 0xffff);
        let clear = Rflags::new().with_interrupt(true).with_trap(true).with_alignment_check(true).with_resume(true);
        self.enter_handler(clear.into_bits());
        Ok(())
    }

    /// Clears flags on entry to a handler and derives the mode.
    fn enter_handler(&mut self, clear: u64) {
        // Bit 1 is one in every flags value; it must not be cleared.
        let flags = self.rflags().into_bits() & !(clear & !2);
        self.system_flags = Rflags::from_bits(flags);
        // A handler entered by INT n is not stepped into.
        self.stepping = false;
        self.update_mode();
    }

    /// The target code segment of a gate.
    fn gate_target(&mut self, selector: Selector, ext: u16) -> Result<(Segment, u8), Exception> {
        if selector.is_null() {
            return Err(Exception::gp(ext));
        }
        let found = self.read_descriptor(selector, Vector::GeneralProtection, ext)?;
        let code = selector.error_code() | ext;
        let rights = found.descriptor.attributes();
        let mode_ok = !self.long_mode() || (rights.long() && !rights.big());
        if !rights.is_code() || rights.dpl() > self.cpl || !mode_ok {
            return Err(Exception::gp(code));
        }
        if !rights.present() {
            return Err(Exception::coded(Vector::SegmentNotPresent, code));
        }
        self.set_accessed(&found)?;
        let cpl = if rights.is_conforming() { self.cpl } else { rights.dpl() };
        Ok((found.descriptor.segment(selector.with_rpl(cpl)), cpl))
    }

    /// Long mode: 16-byte gates, IST, an aligned frame of five or six quadwords (APM vol. 2, 8.9).
    fn deliver_long(&mut self, event: &Event) -> Result<(), Exception> {
        let entry = u64::from(event.vector) * 16;
        let fault = Exception::gp(event.gate_code());
        if entry + 15 > u64::from(self.idtr.limit) {
            return Err(fault);
        }
        let address = self.idtr.base.wrapping_add(entry);
        let low = Gate(Descriptor::from_bits(self.read_system(address)?));
        let high: u32 = self.read_system(address.wrapping_add(8))?;
        if !matches!(low.kind(), system_type::INTERRUPT_GATE | system_type::TRAP_GATE) {
            return Err(fault);
        }
        self.check_gate(event, low)?;
        let (cs, cpl) = self.gate_target(low.selector(), event.ext())?;
        let target = u64::from(low.offset()) | u64::from(high) << 32;
        if !x86::is_canonical(target, self.mmu.virtual_bits()) {
            return Err(Exception::gp(event.ext()));
        }
        let ist = u64::from(low.ist());
        let (stack, rsp) = if ist != 0 {
            let rsp = self.tss_stack64(3 + ist, event.ext())?;
            let null = super::segment::null_stack(Selector::from_bits(u16::from(cpl)), cpl);
            (if cpl < self.cpl { null } else { self.seg[SS] }, rsp)
        } else if cpl < self.cpl {
            self.inner_stack64(cpl, event.ext())?
        } else {
            (self.seg[SS], self.regs[RSP])
        };
        let mut frame = Frame::new(self, stack, rsp & !15, cpl, 8, true, event.ext());
        frame.push(self, u64::from(self.seg[SS].selector.into_bits()))?;
        frame.push(self, self.regs[RSP])?;
        self.push_event(&mut frame, event)?;
        frame.commit(self);
        self.seg[CS] = cs;
        self.regs[RIP] = target;
        self.enter_handler(low.clears());
        Ok(())
    }

    /// Pushes what every handler finds on its stack: flags, CS and rIP, and the error code if there is one.
    fn push_event(&mut self, frame: &mut Frame, event: &Event) -> Result<(), Exception> {
        frame.push(self, event.flags)?;
        frame.push(self, u64::from(self.seg[CS].selector.into_bits()))?;
        frame.push(self, event.rip)?;
        event.code.map_or(Ok(()), |code| frame.push(self, u64::from(code)))
    }

    /// Gate privilege and presence.
    fn check_gate(&self, event: &Event, gate: Gate) -> Result<(), Exception> {
        if event.source == Source::Software && gate.dpl() < self.cpl {
            return Err(Exception::gp(event.gate_code()));
        }
        if !gate.present() {
            return Err(Exception::coded(Vector::SegmentNotPresent, event.gate_code()));
        }
        Ok(())
    }

    /// Protected and virtual-8086 mode: 8-byte gates, 16 or 32 bits wide (APM vol. 2, 8.7 and 8.8).
    fn deliver_protected(&mut self, event: &Event) -> Result<(), Exception> {
        let entry = u64::from(event.vector) * 8;
        let fault = Exception::gp(event.gate_code());
        if entry + 7 > u64::from(self.idtr.limit) {
            return Err(fault);
        }
        let address = self.system_address(self.idtr.base.wrapping_add(entry));
        let gate = Gate(Descriptor::from_bits(self.read_system(address)?));
        let wide = match gate.kind() {
            system_type::INTERRUPT_GATE16 | system_type::TRAP_GATE16 => false,
            system_type::INTERRUPT_GATE | system_type::TRAP_GATE => true,
            system_type::TASK_GATE => {
                self.check_gate(event, gate)?;
                let cause = Cause::Event { code: event.code, ext: event.ext() };
                self.switch_task(gate.selector(), cause, event.rip, event.flags)?;
                return Ok(());
            }
            _ => return Err(fault),
        };
        self.check_gate(event, gate)?;
        let (cs, cpl) = self.gate_target(gate.selector(), event.ext())?;
        let v86 = self.system_flags.virtual_8086();
        if v86 && cpl != 0 {
            return Err(Exception::gp(gate.selector().error_code() | event.ext()));
        }
        let target = if wide { gate.offset() } else { gate.offset() & 0xffff };
        if u64::from(target) > u64::from(cs.limit) {
            return Err(Exception::gp(event.ext()));
        }
        let outer = cpl < self.cpl;
        let (stack, sp, code) = if outer {
            let (stack, sp) = self.tss_stack(cpl, event.ext())?;
            (stack, sp, stack.selector.error_code() | event.ext())
        } else {
            (self.seg[SS], self.regs[RSP], event.ext())
        };
        let mut frame = Frame::new(self, stack, sp, cpl, if wide { 4 } else { 2 }, false, code);
        if v86 {
            for register in [GS, FS, DS, ES] {
                frame.push(self, u64::from(self.seg[register].selector.into_bits()))?;
            }
        }
        if outer {
            frame.push(self, u64::from(self.seg[SS].selector.into_bits()))?;
            frame.push(self, self.regs[RSP])?;
        }
        self.push_event(&mut frame, event)?;
        frame.commit(self);
        self.seg[CS] = cs;
        if v86 {
            for register in [GS, FS, DS, ES] {
                self.seg[register] = Segment::default();
            }
        }
        self.regs[RIP] = u64::from(target);
        self.enter_handler(gate.clears());
        Ok(())
    }
}

/// What a fault during the delivery of `first` becomes (APM vol. 2, table 8-2; SDM vol. 3A, table 6-5).
fn combine(first: Exception, second: Exception) -> Exception {
    let page_fault = |e: Exception| e.vector == Vector::PageFault;
    let double = first.vector == Vector::DoubleFault
        || (first.is_contributory() && second.is_contributory())
        || (page_fault(first) && (page_fault(second) || second.is_contributory()));
    if double { Exception::coded(Vector::DoubleFault, 0) } else { second }
}

/// An interrupt gate, in its first eight bytes.
#[derive(Clone, Copy, Debug)]
struct Gate(Descriptor);

impl Gate {
    fn offset(self) -> u32 {
        let bits = self.0.into_bits();
        (bits & 0xffff) as u32 | (bits >> 32 & 0xffff_0000) as u32
    }
    fn selector(self) -> Selector {
        Selector::from_bits((self.0.into_bits() >> 16) as u16)
    }
    fn ist(self) -> u8 {
        (self.0.into_bits() >> 32 & 7) as u8
    }
    /// The type; a code or data descriptor has none of a gate's.
    fn kind(self) -> u8 {
        let rights = self.0.attributes();
        if rights.code_or_data() { 0 } else { rights.kind() }
    }
    fn dpl(self) -> u8 {
        self.0.attributes().dpl()
    }
    fn present(self) -> bool {
        self.0.attributes().present()
    }
    /// Flags that entry through the gate clears: an interrupt gate also clears IF.
    fn clears(self) -> u64 {
        let interrupt = self.kind() & 1 == 0;
        Rflags::new()
            .with_trap(true)
            .with_nested_task(true)
            .with_resume(true)
            .with_virtual_8086(true)
            .with_interrupt(interrupt)
            .into_bits()
    }
}

/// INT n: in virtual-8086 mode only with IOPL 3.
fn int_n(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    if cpu.system_flags.virtual_8086() && cpu.system_flags.iopl() < 3 {
        return Err(Exception::GP0);
    }
    cpu.deliver_software(i, i.immediate8(), Source::Software)
}

fn int3(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    cpu.deliver_software(i, Vector::Breakpoint as u8, Source::Software)
}

fn into(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    if !cpu.rflags().overflow() {
        return Ok(Flow::Next);
    }
    cpu.deliver_software(i, Vector::Overflow as u8, Source::Software)
}

fn int1(cpu: &mut Cpu, i: &Instruction) -> Result<Flow, Exception> {
    // It is itself the #DB that pending debug traps would have become; they are lost, and DR6 does not show them.
    cpu.debug_pending = 0;
    cpu.deliver_software(i, Vector::Debug as u8, Source::Icebp)
}

/// Picks the handler for an instruction of this family.
#[must_use]
pub fn select(i: &Instruction) -> Option<Slow> {
    Some(match i.mnemonic() {
        Mnemonic::Int => int_n,
        Mnemonic::Int3 => int3,
        Mnemonic::Into => into,
        Mnemonic::Int1 => int1,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
