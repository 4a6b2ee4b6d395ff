//! A vCPU's thread: runs guest code from gate to gate.

use crate::board::Board;
use crate::control::{Control, Crash, Pass, Seen};
use crate::{Accel, MachineError, Registers, VcpuStats};
use boot::Entry;
use cpu::Cpu;
use cpu::exec::interrupt::TripleFault;
use cpu::run::{Exit, Interpreter};
use cpu::state::RIP;
use jit::Jit;
use jit::perf::Perf;
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

/// Runs `cpu` until the machine ends.
pub(crate) fn run(mut cpu: Cpu, mut engine: Engine, board: &Board, control: &Control) {
    let _guard = EndOnPanic(control);
    let mut seen = Seen::default();
    let index = usize::try_from(cpu.id).unwrap_or(usize::MAX);
    loop {
        let (instructions, tlb) = (cpu.instructions, cpu.mmu.stats());
        let jit = engine.jit.as_ref().map(Jit::stats);
        control.show(index, VcpuStats { registers: Registers::from(&cpu), instructions, tlb, jit });
        match control.gate(index, &mut seen) {
            Pass::End => return,
            Pass::Go { reset, flush } => {
                if let Some(entry) = reset {
                    cpu.reset();
                    engine.forget();
                    if index == 0 {
                        board.hand_over();
                        enter(&mut cpu, &entry);
                    }
                } else if flush {
                    cpu.mmu.flush_all();
                }
            }
        }
        match engine.run(&mut cpu) {
            Exit::Stopped | Exit::Counted => {}
            Exit::TripleFault(fault) => {
                let crash = Crash { registers: Registers::from(&cpu), cause: cause(&fault) };
                tracing::debug!(target: "cpu_reset", cause = crash.cause, "triple fault\n{}", crash.registers);
                control.triple_fault(crash);
            }
            Exit::Bug(report) => control.bug(format!("{report}\n{}", Registers::from(&cpu))),
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
