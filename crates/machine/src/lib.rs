//! The machine: a PC's board with its wiring, the vCPUs' threads, time, reset and power.
//!
//! [`Machine::new`] makes and wires everything. [`Machine::run`] runs it to its end; the calling thread supervises, each
//! vCPU has a thread (`vcpu0`, …), and one thread keeps the devices' deadlines. Others reach a running machine by a
//! [`Handle`]. The kernel is loaded at the start and again at each reset, as there is no firmware that would do it.

mod board;
mod clock;
pub mod config;
mod control;
mod firmware;
mod registers;
mod vcpu;
mod wiring;

pub use clock::MachineClock;
pub use config::{Accel, BoardKind, Config, DebugConsole, DebugExitPorts, MachineError, Serial};
pub use control::{Crash, Outcome};
pub use registers::Registers;

use board::Board;
use control::{Control, Request, Task};
use cpu::Cpu;
use devices::PowerRequest;
use jit::perf::Perf;
use memory::{Gpa, PhysicalMap};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use vcpu::Engine;

/// vCPUs that a machine may have: APIC IDs of 8 bits, of which FFh means everyone.
pub const MAX_CPUS: u32 = 255;

/// A machine that has not been started.
#[derive(Debug)]
pub struct Machine {
    board: Arc<Board>,
    control: Arc<Control>,
    cpus: Vec<Cpu>,
    accel: Accel,
    perf: Option<Arc<Perf>>,
    boot: boot::Config,
    no_reboot: bool,
    no_shutdown: bool,
}

/// A way to a machine from other threads. It may outlive the machine, and does nothing then.
#[derive(Clone, Debug)]
pub struct Handle {
    board: Arc<Board>,
    control: Arc<Control>,
}

/// What a vCPU shows of itself.
#[derive(Clone, Debug)]
pub struct VcpuStats {
    /// Its registers.
    pub registers: Registers,
    /// Instructions executed.
    pub instructions: u64,
    /// The slow path's counters.
    pub tlb: memory::tlb::Stats,
    /// The translator's counters, if there is one.
    pub jit: Option<jit::stats::Stats>,
}

/// What can be seen of a machine from outside.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Each vCPU as of its last stop (a pause, a reset, the end).
    pub vcpus: Vec<VcpuStats>,
    /// Nanoseconds that the machine has run.
    pub time: u64,
}

impl Machine {
    /// Makes a machine, and loads its kernel once to see that it can be loaded.
    ///
    /// # Errors
    /// A configuration that makes no machine, files that cannot be booted, a host that refuses memory.
    pub fn new(mut config: Config) -> Result<Self, MachineError> {
        if !(1..=MAX_CPUS).contains(&config.cpus) {
            return Err(MachineError::Cpus(config.cpus));
        }
        let boot = boot::Config {
            kernel: config.kernel.take().ok_or(MachineError::NoKernel)?,
            initrd: config.initrd.take(),
            append: std::mem::take(&mut config.append),
            cpus: config.cpus,
            hpet: config.hpet,
            rng_seed: [0; 32],
        };
        let (accel, perf) = (config.accel, config.perf.take());
        let (no_reboot, no_shutdown) = (config.no_reboot, config.no_shutdown);
        let board::Made { board, control, cpus } = board::make(config)?;
        // Here rather than when it starts to run: serial ports may be given bytes meanwhile.
        board.reset();
        let machine = Self { board, control, cpus, accel, perf, boot, no_reboot, no_shutdown };
        machine.load()?;
        Ok(machine)
    }

    /// A way to this machine from other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { board: self.board.clone(), control: self.control.clone() }
    }

    /// Guest physical memory.
    #[must_use]
    pub fn map(&self) -> &Arc<PhysicalMap> {
        &self.board.map
    }

    /// Runs the machine to its end.
    ///
    /// # Errors
    /// The host starts no thread, at a reset the kernel can no longer be loaded, or Vitrine has come to a bug of its own.
    ///
    /// # Panics
    /// When a thread of the machine has panicked, with its panic.
    pub fn run(mut self) -> Result<Outcome, MachineError> {
        let mut threads = Vec::new();
        let cpus = std::mem::take(&mut self.cpus);
        let outcome = self.spawn(cpus, &mut threads).and_then(|()| self.supervise());
        self.control.end();
        self.board.timers.stop();
        let mut panic = None;
        for thread in threads {
            panic = thread.join().err().or(panic);
        }
        self.board.clock.pause();
        self.report();
        match panic {
            Some(panic) => std::panic::resume_unwind(panic),
            None => outcome,
        }
    }

    /// Tells the log what the translators counted.
    fn report(&self) {
        for vcpu in self.control.shown() {
            if let Some(jit) = &vcpu.jit {
                tracing::debug!(target: "jit", "translator of cpu{}:\n{jit}", vcpu.registers.cpu);
            }
        }
    }

    fn spawn(&self, cpus: Vec<Cpu>, threads: &mut Vec<JoinHandle<()>>) -> Result<(), MachineError> {
        for cpu in cpus {
            let (name, board, control) = (format!("vcpu{}", cpu.id), self.board.clone(), self.control.clone());
            let engine = Engine::new(self.accel, self.perf.clone())?;
            let thread = Builder::new().name(name).spawn(move || vcpu::run(cpu, engine, &board, &control));
            threads.push(thread.map_err(MachineError::Thread)?);
        }
        let board = self.board.clone();
        let thread = Builder::new().name("timers".into()).spawn(move || board.timers.run());
        threads.push(thread.map_err(MachineError::Thread)?);
        Ok(())
    }

    /// Loads the kernel and whatever the guest is to find in memory.
    fn load(&self) -> Result<boot::Entry, MachineError> {
        let config = boot::Config { rng_seed: seed(), ..self.boot.clone() };
        Ok(boot::load(&self.board.map, &config, &self.board.info)?)
    }

    /// Starts the machine and does what comes, until it ends.
    fn supervise(&self) -> Result<Outcome, MachineError> {
        self.start()?;
        self.board.clock.resume();
        let mut last_crash = None;
        loop {
            match self.control.next() {
                Task::Quit => return Ok(Outcome::Quit),
                Task::Pause => {
                    self.board.timers.set_paused(true);
                    self.board.clock.pause();
                    self.control.set_paused(true);
                }
                Task::Resume => {
                    self.board.clock.resume();
                    self.board.timers.set_paused(false);
                    self.control.set_paused(false);
                }
                Task::Act(Request::Power(PowerRequest::DebugExit(status))) => return Ok(Outcome::DebugExit(status)),
                Task::Act(Request::Power(PowerRequest::PowerOff)) if self.no_shutdown => self.control.keep_off(),
                Task::Act(Request::Power(PowerRequest::PowerOff)) => return Ok(Outcome::PowerOff),
                Task::Act(Request::Power(PowerRequest::Reset)) if self.no_reboot => return Ok(Outcome::Reset),
                Task::Act(Request::Bug(report)) => return Err(MachineError::Bug(report)),
                Task::Act(Request::TripleFault(crash)) if self.no_reboot => return Ok(Outcome::TripleFault(crash)),
                Task::Act(request) => {
                    // A guest that crashes again and again at the same place is told of once.
                    if let Request::TripleFault(crash) = &request
                        && last_crash.replace(crash.registers.rip) != Some(crash.registers.rip)
                    {
                        tracing::warn!(target: "machine", "{crash}; the machine is reset (-no-reboot ends it)");
                    }
                    tracing::debug!(target: "cpu_reset", ?request, "reset");
                    self.reset()?;
                }
            }
        }
    }

    /// Resets the devices and starts again. No vCPU runs meanwhile.
    fn reset(&self) -> Result<(), MachineError> {
        self.board.reset();
        self.start()
    }

    /// Loads the kernel, and lets the vCPUs start from there.
    fn start(&self) -> Result<(), MachineError> {
        let entry = self.load()?;
        self.control.start(entry);
        Ok(())
    }
}

impl Handle {
    /// Ends the machine: [`Machine::run`] returns [`Outcome::Quit`], unless the guest has ended it before.
    pub fn quit(&self) {
        self.control.quit();
    }

    /// Has the machine stop; its clock stands until [`Handle::resume`]. Returns before it has stopped.
    pub fn pause(&self) {
        self.control.set_pause(true);
    }

    /// Lets a paused machine go on. One that is powered off stays so.
    pub fn resume(&self) {
        self.control.set_pause(false);
    }

    /// Waits until the machine has stopped after [`Handle::pause`]. False: it has ended. Not to be called on a vCPU's
    /// thread (by an observer, say), which would wait for itself.
    #[must_use]
    pub fn wait_paused(&self) -> bool {
        self.control.wait_paused()
    }

    /// The user presses reset.
    pub fn reset(&self) {
        devices::PowerSwitch::request(&*self.control, PowerRequest::Reset);
    }

    /// The user presses the power button; what comes of it is up to the guest.
    pub fn press_power_button(&self) {
        self.board.pm.press_power_button();
    }

    /// Gives bytes to serial port `port` (0 is COM1). Returns how many were taken: with fewer than offered, the
    /// function given to [`Handle::on_ready`] tells when there is room again. A port that is not there takes none.
    #[must_use]
    pub fn receive(&self, port: usize, bytes: &[u8]) -> usize {
        self.board.uart(port).map_or(0, |uart| uart.receive(bytes))
    }

    /// Has `ready` called, on a vCPU's thread, whenever serial port `port` has room after it was full.
    pub fn on_ready(&self, port: usize, ready: impl Fn() + Send + Sync + 'static) {
        if let Some(uart) = self.board.uart(port) {
            uart.on_ready(ready);
        }
    }

    /// How the machine is doing. To know it of this moment, pause it first.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats { vcpus: self.control.shown(), time: cpu::Clock::now(&*self.board.clock) }
    }

    /// Reads guest physical memory, RAM and ROM; false if some of it is neither.
    #[must_use]
    pub fn read_memory(&self, gpa: Gpa, bytes: &mut [u8]) -> bool {
        self.board.map.read(gpa, bytes).is_ok()
    }
}

/// Random bytes for the guest's generator; zeros (none) where the host has no source.
fn seed() -> [u8; 32] {
    use std::io::Read;
    let mut seed = [0; 32];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut seed));
    if read.is_ok() { seed } else { [0; 32] }
}

#[cfg(test)]
mod robustness;
#[cfg(test)]
mod tests;
