//! What runs a vCPU: the interpreter, in blocks or step by step, and whatever else is to agree with it.

use cpu::Cpu;
use cpu::exec::interrupt::TripleFault;
use cpu::hooks::Signals;
use cpu::run::{Exit, Interpreter};
use cpu::state::{CS, CodeSize, Shadow};
use iced_x86::{Decoder, DecoderOptions, Instruction};
use jit::{Config, Jit};
use memory::{Gpa, Gva};
use std::fmt;

/// A way to execute a guest. One lives through many cases, and hears of changed code only what DMA tells it.
pub trait Tier {
    /// Runs until [`Signals::STOP`] is raised or the processor shuts down: the contract of [`Cpu::run`].
    fn run(&mut self, cpu: &mut Cpu) -> Exit;
}

/// The interpreter as it is: blocks of decoded operations.
#[derive(Debug, Default)]
pub struct Interpreted(Interpreter);

impl Tier for Interpreted {
    fn run(&mut self, cpu: &mut Cpu) -> Exit {
        cpu.run(&mut self.0)
    }
}

/// The translator, which translates everything at once.
#[derive(Debug)]
pub struct Translated {
    interpreter: Interpreter,
    jit: Jit,
}

impl Translated {
    /// One that keeps `cache` bytes of translated code and translates what runs for the `threshold`th time.
    ///
    /// # Errors
    /// The host gives no memory.
    pub fn new(cache: usize, threshold: u16) -> Result<Self, jit::Error> {
        Ok(Self { interpreter: Interpreter::default(), jit: Jit::new(Config { cache, threshold })? })
    }
}

impl Tier for Translated {
    fn run(&mut self, cpu: &mut Cpu) -> Exit {
        self.jit.run(cpu, &mut self.interpreter)
    }
}

/// What may be done to the vCPU after each instruction.
type After = Box<dyn FnMut(&Instruction, &mut Cpu)>;

/// The interpreter one instruction at a time: each is found anew, and interrupts are polled before each. With
/// [`Stepped::corrupted`] it is the faulty tier that shows whether faults are found.
#[derive(Default)]
pub struct Stepped {
    interpreter: Interpreter,
    after: Option<After>,
}

impl Stepped {
    /// A tier in which `after` may spoil what each instruction did. It is called when an instruction has completed
    /// without a fault, a branch or an interrupt.
    #[must_use]
    pub fn corrupted(after: impl FnMut(&Instruction, &mut Cpu) + 'static) -> Self {
        Self { interpreter: Interpreter::default(), after: Some(Box::new(after)) }
    }

    fn step(&mut self, cpu: &mut Cpu) -> Result<(), TripleFault> {
        let next = self.after.is_some().then(|| decode(cpu)).flatten();
        cpu.single_step(&mut self.interpreter)?;
        if let (Some(instruction), Some(after)) = (next, &mut self.after)
            && cpu.rip() == instruction.next_ip()
        {
            after(&instruction, cpu);
        }
        Ok(())
    }
}

impl Tier for Stepped {
    fn run(&mut self, cpu: &mut Cpu) -> Exit {
        loop {
            if Some(cpu.instructions) == cpu.stop_at {
                return Exit::Counted;
            }
            let raised = cpu.signals.raised();
            if raised & Signals::STOP != 0 {
                return Exit::Stopped;
            }
            let open = cpu.system_flags.interrupt() && cpu.shadow == Shadow::None;
            let interrupt = if open && raised & Signals::INTERRUPT != 0 { cpu.apic.acknowledge() } else { None };
            let result = if let Some(vector) = interrupt {
                cpu.halted = false;
                cpu.deliver_interrupt(vector)
            } else if cpu.halted {
                cpu.signals.wait(Signals::STOP | if open { Signals::INTERRUPT } else { 0 });
                Ok(())
            } else {
                self.step(cpu)
            };
            if let Err(fault) = result {
                return Exit::TripleFault(fault);
            }
        }
    }
}

impl fmt::Debug for Stepped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stepped").field("corrupted", &self.after.is_some()).finish_non_exhaustive()
    }
}

/// The instruction at RIP, if its page is there.
fn decode(cpu: &Cpu) -> Option<Instruction> {
    let (start, bits) = match cpu.code_size {
        CodeSize::Bits64 => (cpu.rip(), 64),
        CodeSize::Bits32 => (cpu.seg[CS].base.wrapping_add(cpu.rip()) & 0xffff_ffff, 32),
        CodeSize::Bits16 => (cpu.seg[CS].base.wrapping_add(cpu.rip()) & 0xffff_ffff, 16),
    };
    let mut bytes = [0; 15];
    let mut len = 0;
    for byte in &mut bytes {
        let Some(gpa) = cpu.mmu.translate(Gva(start.wrapping_add(len as u64))) else { break };
        cpu.mmu.map().read(Gpa(gpa.0), std::slice::from_mut(byte)).ok()?;
        len += 1;
    }
    let instruction = Decoder::with_ip(bits, &bytes[..len], cpu.rip(), DecoderOptions::NONE).decode();
    (!instruction.is_invalid()).then_some(instruction)
}
