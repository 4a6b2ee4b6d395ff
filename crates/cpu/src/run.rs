//! The interpreter's loop: find a block, run its operations, look at events between blocks.

use crate::Cpu;
use crate::blocks::{Block, BlockCache, Found, Window};
use crate::exec::Flow;
use crate::exec::interrupt::TripleFault;
use crate::hooks::Signals;
use crate::op::Op;
use crate::state::{CS, CodeSize, RIP, Shadow};
use memory::mmu::FetchPage;
use memory::{Gva, Hva};
use x86::Exception;

/// Why [`Cpu::run`] returned.
#[derive(Clone, Debug)]
pub enum Exit {
    /// [`Signals::STOP`] is raised, or a debugger is to know of something: see [`Cpu::take_stop`].
    Stopped,
    /// As many instructions have been executed as [`Cpu::stop_at`] says. Nothing that waits has been acted on since.
    Counted,
    /// A fault could not be delivered, nor the double fault that it became.
    TripleFault(TripleFault),
    /// The tier has a bug, of which this is a report; the vCPU's state may be wrong.
    Bug(String),
}

impl From<TripleFault> for Exit {
    fn from(fault: TripleFault) -> Self {
        Self::TripleFault(fault)
    }
}

/// The interpreter of one vCPU: what it remembers between instructions that is no architectural state.
#[derive(Debug, Default)]
pub struct Interpreter {
    /// Decoded code.
    pub cache: BlockCache,
    /// For a tier to take: host pages in which decoded code was overwritten. `None` if there is no tier.
    pub overwritten: Option<Vec<Hva>>,
}

/// Something that runs code faster than the interpreter, with whose help it does.
pub trait Tier {
    /// Runs the vCPU, which has nothing pending and no access to be watched, until something is to be looked at anew: a
    /// request, or a change of mode, segments, rights or flags.
    ///
    /// # Errors
    /// The processor shut down, or the tier cannot go on.
    fn run(&mut self, cpu: &mut Cpu, interpreter: &mut Interpreter) -> Result<(), Exit>;
}

/// The interpreter without another tier.
struct Alone;

impl Tier for Alone {
    fn run(&mut self, cpu: &mut Cpu, interpreter: &mut Interpreter) -> Result<(), Exit> {
        Ok(cpu.run_blocks(interpreter)?)
    }
}

/// What a tier learns of code that it had interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// On at RIP, with nothing else to be looked at.
    Near,
    /// The tier is to return.
    Anew,
    /// Nothing was run: the block at RIP has become warm.
    Warm,
}

/// How a block ended.
enum End {
    /// Go on at RIP, where straight-line code or a near branch has come to.
    Near,
    /// Go on at RIP, after looking at everything anew.
    Continue,
    /// HLT.
    Halt,
    /// The instruction at RIP raised this.
    Fault(Exception),
}

impl Cpu {
    /// Requests that would be acted on now.
    #[inline(always)]
    fn poll_mask(&self) -> u32 {
        if self.system_flags.interrupt() { u32::MAX } else { !Signals::INTERRUPT }
    }

    /// Whether a request is waiting that a long instruction should be interrupted for.
    #[inline(always)]
    #[must_use]
    pub fn must_poll(&self) -> bool {
        self.signals.raised() & self.poll_mask() != 0
    }

    /// How many instructions may still be executed.
    #[inline(always)]
    #[must_use]
    pub fn left(&self) -> u64 {
        self.stop_at.map_or(u64::MAX, |stop| stop.saturating_sub(self.instructions))
    }

    /// Runs until something stops the vCPU.
    pub fn run(&mut self, interpreter: &mut Interpreter) -> Exit {
        self.run_with(interpreter, &mut Alone)
    }

    /// As [`Cpu::run`], with code left to `tier`.
    pub fn run_with(&mut self, interpreter: &mut Interpreter, tier: &mut impl Tier) -> Exit {
        loop {
            // Memory may have been written while the vCPU stood still, or by others.
            self.forget_modified(interpreter);
            if self.debugger.stopped() {
                return Exit::Stopped;
            }
            if self.left() == 0 {
                return Exit::Counted;
            }
            if self.must_poll() || self.sleeps() {
                match self.poll(interpreter) {
                    // An event's own accesses may have been watched.
                    Ok(true) if self.debugger.stopped() => continue,
                    Ok(true) => {}
                    Ok(false) => return Exit::Stopped,
                    Err(fault) => return Exit::TripleFault(fault),
                }
            }
            let result = if self.careful || self.shadow != Shadow::None {
                if self.stop_at_breakpoint() { Ok(()) } else { self.step(interpreter).map_err(Exit::from) }
            } else if self.watched {
                self.run_blocks(interpreter).map_err(Exit::from)
            } else {
                tier.run(self, interpreter)
            };
            if let Err(exit) = result {
                return exit;
            }
        }
    }

    /// Runs blocks until a request is to be acted on, or something other than a near branch ended one: nothing else
    /// changes what the loop around this looks at, nor how code is translated.
    fn run_blocks(&mut self, interpreter: &mut Interpreter) -> Result<(), TripleFault> {
        if self.code_size == CodeSize::Bits64 {
            self.run_blocks_in::<true>(interpreter)
        } else {
            self.run_blocks_in::<false>(interpreter)
        }
    }

    /// `LONG`: in 64-bit mode.
    fn run_blocks_in<const LONG: bool>(&mut self, interpreter: &mut Interpreter) -> Result<(), TripleFault> {
        let mask = self.poll_mask();
        let mut window = Window::default();
        let end = loop {
            let rip = self.rip();
            let gva = if LONG { Gva(rip) } else { Gva(self.seg[CS].base.wrapping_add(rip) & 0xffff_ffff) };
            let within = LONG || rip <= u64::from(self.seg[CS].limit);
            let number = match interpreter.cache.lookup(self, &mut window, gva) {
                Some(number) if within => number,
                _ => match interpreter.cache.find(self) {
                    Ok(Found::Cached(number)) => number,
                    Ok(Found::Once(block)) => break self.execute_uncached(&block),
                    Err(exception) => break End::Fault(exception),
                },
            };
            let block = interpreter.cache.get(number);
            let end = if LONG { self.execute(&block.ops) } else { self.execute_limited(block) };
            let asked = self.signals.raised() & mask != 0 || self.left() == 0;
            if !matches!(end, End::Near) || asked || self.mmu.code_modified() {
                break end;
            }
        };
        self.finish(interpreter, end)
    }

    /// Runs one instruction (one iteration of a repeated one), whatever is pending: for debuggers and tests.
    ///
    /// # Errors
    /// The processor shut down.
    pub fn single_step(&mut self, interpreter: &mut Interpreter) -> Result<(), TripleFault> {
        self.forget_modified(interpreter);
        self.step(interpreter)
    }

    /// For a tier: runs the block at RIP, faults and all; [`Step::Warm`] instead when that is its run number `enough`.
    ///
    /// # Errors
    /// The processor shut down.
    pub fn interpret_block(&mut self, interpreter: &mut Interpreter, enough: u16) -> Result<Step, TripleFault> {
        let end = match interpreter.cache.find(self) {
            Ok(Found::Cached(number)) => {
                let block = interpreter.cache.get(number);
                if block.warm(enough) {
                    return Ok(Step::Warm);
                }
                self.execute_limited(block)
            }
            Ok(Found::Once(block)) => self.execute_uncached(&block),
            Err(exception) => End::Fault(exception),
        };
        self.conclude(interpreter, end)
    }

    /// For a tier: the page that is fetched from at RIP. `None`: that raised a fault, which has been delivered, and the
    /// tier is to return.
    ///
    /// # Errors
    /// The processor shut down.
    pub fn fetch(&mut self, interpreter: &mut Interpreter) -> Result<Option<FetchPage>, TripleFault> {
        let origin = self.origin();
        let fetched = self
            .code_address()
            .and_then(|gva| self.mmu.fetch_page(origin, gva).map_err(|fault| self.memory_fault(fault, false)));
        match fetched {
            Ok(page) => Ok(Some(page)),
            Err(exception) => {
                self.finish(interpreter, End::Fault(exception))?;
                Ok(None)
            }
        }
    }

    /// For a tier: runs the instruction at RIP, which is `op` and lies within the code segment's limit, faults and all.
    ///
    /// # Errors
    /// The processor shut down.
    pub fn interpret_one(&mut self, interpreter: &mut Interpreter, op: &Op) -> Result<Step, TripleFault> {
        let end = self.execute(std::slice::from_ref(op));
        self.conclude(interpreter, end)
    }

    fn conclude(&mut self, interpreter: &mut Interpreter, end: End) -> Result<Step, TripleFault> {
        if matches!(end, End::Near) && !self.must_poll() && self.left() != 0 && !self.mmu.code_modified() {
            return Ok(Step::Near);
        }
        self.finish(interpreter, end)?;
        Ok(Step::Anew)
    }

    /// Drops the decoded blocks of pages in which code was overwritten.
    #[inline(always)]
    fn forget_modified(&mut self, interpreter: &mut Interpreter) {
        if self.mmu.code_modified() {
            for page in self.mmu.take_modified_code() {
                interpreter.cache.drop_page(page);
                if let Some(pages) = &mut interpreter.overwritten {
                    pages.push(page);
                }
            }
        }
    }

    /// Runs one instruction with everything around it that a debug register or a shadow asks for.
    #[cold]
    #[inline(never)]
    fn step(&mut self, interpreter: &mut Interpreter) -> Result<(), TripleFault> {
        self.comparing(|cpu| cpu.step_compared(interpreter))
    }

    /// The same, with a debugger's watchpoints compared.
    fn step_compared(&mut self, interpreter: &mut Interpreter) -> Result<(), TripleFault> {
        let shadow = self.shadow;
        if self.debug_pending != 0 && shadow != Shadow::MovSs {
            // Left by an instruction that traps only now, such as SYSRET setting TF.
            self.stepping = false;
            return self.after_instruction();
        }
        let end = match self.before_instruction() {
            Ok(()) => match interpreter.cache.find(self) {
                Ok(Found::Cached(number)) => self.execute_one(interpreter.cache.get(number)),
                Ok(Found::Once(block)) => self.execute_one(&block),
                Err(exception) => End::Fault(exception),
            },
            Err(exception) => End::Fault(exception),
        };
        // The shadow covers one instruction; one that casts a shadow itself has just set it anew.
        let faulted = matches!(end, End::Fault(_));
        if self.shadow == shadow {
            self.shadow = Shadow::None;
        }
        if faulted {
            self.debug_pending = 0;
            // What it was to access it will access when it is tried again.
            self.debugger.forget();
            return self.finish(interpreter, end);
        }
        self.finish(interpreter, end)?;
        self.after_instruction()
    }

    /// Executes a block; one whose last byte lies beyond the code segment's limit must go one by one.
    #[inline(always)]
    fn execute_limited(&mut self, block: &Block) -> End {
        if self.code_size != CodeSize::Bits64 && self.rip() + block.bytes() - 1 > u64::from(self.seg[CS].limit) {
            self.execute_one(block)
        } else {
            self.execute(&block.ops)
        }
    }

    /// Executes an instruction that was fetched for this once, unless a debugger has a breakpoint there.
    fn execute_uncached(&mut self, block: &Block) -> End {
        if self.stop_at_breakpoint() { End::Continue } else { self.execute_one(block) }
    }

    /// Executes the first operation of a block: #GP(0) if it goes on beyond the code segment's limit.
    fn execute_one(&mut self, block: &Block) -> End {
        let ops = block.first();
        let len = ops.first().map_or(0, |op| u64::from(op.len));
        if self.code_size != CodeSize::Bits64 && self.rip() + len > u64::from(self.seg[CS].limit) + 1 {
            return End::Fault(Exception::GP0);
        }
        self.execute(ops)
    }

    /// Executes operations until one does not simply go on to the next, or enough have been executed.
    #[inline(always)]
    fn execute(&mut self, ops: &[Op]) -> End {
        let ops = usize::try_from(self.left()).ok().and_then(|left| ops.get(..left)).unwrap_or(ops);
        let mut left = ops.iter();
        let mut rip = self.rip();
        let result = loop {
            let Some(op) = left.next() else { break Ok(Flow::Next) };
            self.regs[RIP] = rip;
            let result = (op.exec)(self, op);
            if !matches!(result, Ok(Flow::Next)) {
                break result;
            }
            rip = rip.wrapping_add(u64::from(op.len));
            if op.accesses && self.mmu.code_modified() {
                break result;
            }
        };
        let done = ops.len() - left.len();
        self.instructions += done as u64;
        match result {
            Ok(Flow::Near) => End::Near,
            Ok(Flow::Next) => {
                self.regs[RIP] = rip;
                End::Near
            }
            _ => self.leave(result, rip, ops.get(done.wrapping_sub(1)).map_or(0, |op| op.len)),
        }
    }

    /// What becomes of RIP and the count of instructions when the operation at `rip`, `len` bytes long, ends a block
    /// with anything but a near branch.
    fn leave(&mut self, result: Result<Flow, Exception>, rip: u64, len: u8) -> End {
        if matches!(result, Err(_) | Ok(Flow::Repeat)) {
            // RIP is still the operation's, or a new task's whose state raised the fault.
            self.instructions -= 1;
        } else if result != Ok(Flow::Jump) {
            self.regs[RIP] = rip.wrapping_add(u64::from(len));
        }
        match result {
            Ok(Flow::Halt) => End::Halt,
            Ok(_) => End::Continue,
            Err(exception) => End::Fault(exception),
        }
    }

    /// Forgets code that was overwritten, delivers the fault that ended a block.
    #[inline(always)]
    fn finish(&mut self, interpreter: &mut Interpreter, end: End) -> Result<(), TripleFault> {
        self.forget_modified(interpreter);
        match end {
            End::Near | End::Continue => Ok(()),
            End::Halt => {
                self.halted = true;
                Ok(())
            }
            End::Fault(_) if self.debugger.take_asked() => self.step(interpreter),
            End::Fault(exception) => self.deliver_exception(exception),
        }
    }

    /// Acts on requests from outside; sleeps while halted. `Ok(false)`: stop.
    #[cold]
    #[inline(never)]
    fn poll(&mut self, interpreter: &mut Interpreter) -> Result<bool, TripleFault> {
        loop {
            // What observers have wanted since it fell asleep holds for what an event accesses.
            self.forget_modified(interpreter);
            // A trap of the instruction before comes first (APM vol. 2, 8.5).
            let blocked = self.shadow != Shadow::None || self.careful && self.debug_pending != 0;
            let raised = self.signals.raised() & self.poll_mask();
            if raised & Signals::STOP != 0 {
                return Ok(false);
            }
            if raised & Signals::INIT != 0 {
                self.signals.lower(Signals::INIT);
                self.init();
                continue;
            }
            if raised & Signals::SIPI != 0 {
                self.signals.lower(Signals::SIPI);
                self.start_up(self.signals.sipi_vector());
                continue;
            }
            if self.waiting_for_sipi {
                self.signals.wait(Signals::STOP | Signals::INIT | Signals::SIPI);
                continue;
            }
            if raised & Signals::NMI_LATCHED != 0 && self.nmi_blocked {
                // One is in service and one pending: there is no room for a third.
                self.signals.lower(Signals::NMI_LATCHED);
            }
            if raised & Signals::NMI != 0 && !self.nmi_blocked && !blocked {
                self.signals.take_nmi();
                self.halted = false;
                self.deliver_nmi()?;
                continue;
            }
            if raised & Signals::INTERRUPT != 0 && !blocked {
                if let Some(vector) = self.apic.acknowledge() {
                    self.halted = false;
                    self.deliver_interrupt(vector)?;
                } else if self.halted {
                    // Withdrawn in the meantime: the halt goes on.
                    std::thread::yield_now();
                    continue;
                }
                return Ok(true);
            }
            if !self.halted {
                return Ok(true);
            }
            let nmi = if self.nmi_blocked { 0 } else { Signals::NMI };
            let interrupt = if self.system_flags.interrupt() { Signals::INTERRUPT } else { 0 };
            self.signals.wait(Signals::STOP | Signals::INIT | Signals::SIPI | nmi | interrupt);
        }
    }
}

#[cfg(test)]
mod robustness;
#[cfg(test)]
mod tests;
