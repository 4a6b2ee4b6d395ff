//! A vCPU's thread: runs guest code from gate to gate.

use crate::board::Board;
use crate::control::{Control, Crash, Pass, Seen};
use crate::touched::NEVER;
use crate::{Accel, MachineError, Registers, VcpuStats};
use boot::Entry;
use cpu::Cpu;
use cpu::debugger::Stop;
use cpu::exec::interrupt::TripleFault;
use cpu::run::{Exit, Interpreter};
use cpu::state::RIP;
use jit::Jit;
use jit::perf::Perf;
use lens::Lens;
use memory::Gva;
use std::sync::Arc;
use std::thread;
use x86::{Exception, Vector};

/// What executes a vCPU's instructions.
#[derive(Debug)]
pub(crate) struct Engine {
    interpreter: Interpreter,
    jit: Option<Jit>,
}

impl Engine {
    /// # Errors
    /// The host gives the translator no memory.
    pub fn new(accel: Accel, perf: Option<Arc<Perf>>) -> Result<Self, MachineError> {
        let mut jit = match accel {
            Accel::Interp => None,
            Accel::Jit(config) => Some(Jit::new(config)?),
        };
        if let (Some(jit), Some(perf)) = (&mut jit, perf) {
            jit.record(perf);
        }
        Ok(Self { interpreter: Interpreter::default(), jit })
    }

    /// Forgets all it knows of code: memory was changed behind its back.
    fn forget(&mut self) {
        self.interpreter = Interpreter::default();
        self.jit.iter_mut().for_each(Jit::clear);
    }

    fn run(&mut self, cpu: &mut Cpu) -> Exit {
        match &mut self.jit {
            Some(jit) => jit.run(cpu, &mut self.interpreter),
            None => cpu.run(&mut self.interpreter),
        }
    }
}

/// What somebody else wants done on a vCPU's thread.
pub(crate) type Job = Box<dyn FnOnce(&mut Vcpu) + Send>;

/// A vCPU with all that executes its instructions. Others see it while it stands: see [`crate::Handle::inspect`].
#[derive(Debug)]
pub struct Vcpu {
    /// Its state. Whoever changes a register that decides how code is executed calls [`Cpu::update_mode`], and
    /// [`Cpu::update_paging`] for one that decides how addresses are translated.
    pub cpu: Cpu,
    engine: Engine,
}

impl Vcpu {
    pub(crate) fn new(cpu: Cpu, engine: Engine) -> Self {
        Self { cpu, engine }
    }

    /// Its counters and registers.
    #[must_use]
    pub fn stats(&self) -> VcpuStats {
        VcpuStats {
            registers: Registers::from(&self.cpu),
            instructions: self.cpu.instructions,
            tlb: self.cpu.mmu.stats(),
            spaces: self.cpu.mmu.shares(),
            delivered: self.cpu.delivered.to_vec(),
            jit: self.engine.jit.as_ref().map(Jit::stats),
        }
    }

    /// Executes one instruction, whatever interrupts are pending; nothing if the vCPU sleeps. The watchpoint that it hit.
    ///
    /// # Errors
    /// A triple fault.
    pub(crate) fn step(&mut self) -> Result<Option<Stop>, Box<Crash>> {
        if self.cpu.sleeps() {
            return Ok(None);
        }
        let stepped = self.cpu.single_step(&mut self.engine.interpreter);
        stepped.map(|()| self.cpu.take_stop()).map_err(|fault| Box::new(self.crash(&fault)))
    }

    /// Has `lens` see what it wants to now, also of devices' accesses, which flushes the TLB. A kernel that runs already is
    /// made known to it.
    pub(crate) fn look_anew(&mut self, lens: &Arc<Lens>) {
        self.cpu.mmu.map().observe_dma(lens.observer());
        self.cpu.mmu.set_observer(lens.observer());
        if self.cpu.msrs.lstar != 0 {
            self.cpu.mmu.system_calls_enter(Gva(self.cpu.msrs.lstar));
        }
    }

    /// Has the first vCPU stop where the trace begins or ends next, for which it counts its instructions.
    fn set_mark(&mut self, board: &Board) {
        let mark = board.lens.trace().filter(|_| self.cpu.id == 0).and_then(|trace| trace.next_mark());
        // Somebody may be measuring meanwhile.
        self.cpu.stop_at = mark.or(self.cpu.stop_at.filter(|stop| *stop == NEVER));
    }

    /// Turns the trace on or off if it is time.
    fn pass_mark(&mut self, board: &Board) {
        if let Some(trace) = board.lens.trace().filter(|_| self.cpu.id == 0)
            && trace.next_mark().is_some_and(|mark| mark <= self.cpu.instructions)
        {
            trace.pass(self.cpu.instructions);
            self.look_anew(&board.lens);
            self.set_mark(board);
        }
    }

    fn crash(&self, fault: &TripleFault) -> Crash {
        Crash { registers: Registers::from(&self.cpu), cause: cause(fault) }
    }

    fn reset(&mut self, entry: &Entry, board: &Board) {
        self.cpu.reset();
        self.engine.forget();
        if self.cpu.id == 0 {
            board.hand_over();
            enter(&mut self.cpu, entry);
        }
    }
}

/// Runs a vCPU until the machine ends.
pub(crate) fn run(mut vcpu: Vcpu, board: &Board, control: &Control) {
    let _guard = EndOnPanic(control);
    let mut seen = Seen::default();
    let index = usize::try_from(vcpu.cpu.id).unwrap_or(usize::MAX);
    vcpu.set_mark(board);
    loop {
        control.show(index, vcpu.stats());
        match control.gate(index, &mut seen, |job| job(&mut vcpu)) {
            Pass::End => return,
            Pass::Reset(entry) => {
                vcpu.reset(&entry, board);
                continue;
            }
            Pass::Go { flush: true } => vcpu.look_anew(&board.lens),
            Pass::Go { flush: false } => {}
        }
        match vcpu.engine.run(&mut vcpu.cpu) {
            Exit::Stopped | Exit::Counted => {
                vcpu.pass_mark(board);
                if let Some(stop) = vcpu.cpu.take_stop() {
                    control.debug_stop(index, stop);
                }
            }
            Exit::TripleFault(fault) => {
                let crash = vcpu.crash(&fault);
                tracing::debug!(target: "cpu_reset", cause = crash.cause, "triple fault\n{}", crash.registers);
                control.triple_fault(Box::new(crash));
            }
            Exit::Bug(report) => control.bug(format!("{report}\n{}", Registers::from(&vcpu.cpu))),
        }
    }
}

/// Puts a vCPU that has just been reset into the state that a boot protocol demands.
fn enter(cpu: &mut Cpu, entry: &Entry) {
    for (to, from) in cpu.regs.iter_mut().zip(entry.regs) {
        *to = from;
    }
    cpu.regs[RIP] = entry.rip;
    cpu.set_rflags(entry.rflags.into_bits(), u64::MAX);
    cpu.seg = entry.seg;
    cpu.ldtr = entry.ldtr;
    cpu.tr = entry.tr;
    cpu.gdtr = entry.gdtr;
    cpu.idtr = entry.idtr;
    cpu.cr0 = entry.cr0;
    cpu.cr3 = entry.cr3;
    cpu.cr4 = entry.cr4;
    cpu.efer = entry.efer;
    cpu.update_paging();
    if cpu.mmu.load_cr3(entry.cr3, false).is_err() {
        // Only a PAE directory pointer can be at fault, and no boot protocol starts with legacy PAE paging.
        tracing::error!(cr3 = entry.cr3, "the boot loader's page tables are not valid");
    }
    cpu.mmu.flush_all();
    cpu.update_mode();
}

/// Ends the machine when its thread panics, so that nobody waits for a vCPU that is gone.
struct EndOnPanic<'a>(&'a Control);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.end();
        }
    }
}

/// What began a triple fault, for a message.
fn cause(fault: &TripleFault) -> String {
    let Exception { vector, code } = fault.first;
    let code = code.map(|code| format!(" with error code {code:x}")).unwrap_or_default();
    let address = match vector {
        Vector::PageFault => format!(" for address {:x}", fault.fault_address),
        _ => String::new(),
    };
    format!("{vector:?}{code}{address} at {:04x}:{:x} could not be delivered", fault.cs, fault.rip)
}
