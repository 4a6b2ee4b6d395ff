//! The machine: a PC's board with its wiring, the vCPUs' threads, time, reset and power.
//!
//! [`Machine::new`] makes and wires everything. [`Machine::run`] runs it to its end; the calling thread supervises, each
//! vCPU has a thread (`vcpu0`, …), and one thread keeps the devices' deadlines. Others reach a running machine by a
//! [`Handle`], look at a vCPU on its own thread ([`Handle::inspect`]) and are told what happens ([`Handle::on_event`]). The kernel is loaded at the start and again at each reset, as there is no firmware that would do it.

mod board;
mod clock;
pub mod config;
mod control;
mod events;
mod firmware;
mod handle;
mod registers;
mod touched;
mod trace_port;
mod vcpu;
mod wiring;

pub use clock::MachineClock;
pub use config::{Accel, BoardKind, Config, DebugConsole, DebugExitPorts, MachineError, Serial};
pub use control::{Crash, Outcome};
pub use events::{Event, RunState};
pub use handle::{Bus, Chip, DeviceCount, Handle, InspectError, WatchError};
pub use registers::Registers;
pub use touched::Heat;
pub use vcpu::Vcpu;

use board::Board;
use control::{Control, Request, Task};
use cpu::Cpu;
use devices::PowerRequest;
use jit::perf::Perf;
use memory::PhysicalMap;
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

/// What a vCPU shows of itself.
#[derive(Clone, Debug)]
pub struct VcpuStats {
    /// Its registers.
    pub registers: Registers,
    /// Instructions executed.
    pub instructions: u64,
    /// The slow path's counters.
    pub tlb: memory::tlb::Stats,
    /// What of them happened in which address space.
    pub spaces: Vec<memory::tally::Share>,
    /// Exceptions and interrupts that were delivered, by vector.
    pub delivered: Vec<u64>,
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
        Handle::new(self.board.clone(), self.control.clone())
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
        let outcome = self.spawn(cpus, &mut threads).and_then(|()| {
            jail::enter(jail::Role::Io);
            self.supervise()
        });
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
        let accel = self.accel.shared(cpus.len());
        for mut cpu in cpus {
            cpu.engine.reserve()?;
            let (name, board, control) = (format!("vcpu{}", cpu.id), self.board.clone(), self.control.clone());
            let vcpu = Vcpu::new(cpu, Engine::new(accel, self.perf.clone())?);
            let run = move || {
                jail::enter(jail::Role::Vcpu);
                vcpu::run(vcpu, &board, &control);
            };
            let thread = Builder::new().name(name).spawn(run);
            threads.push(thread.map_err(MachineError::Thread)?);
        }
        let board = self.board.clone();
        let run = move || {
            jail::enter(jail::Role::Vcpu);
            board.timers.run();
        };
        let thread = Builder::new().name("timers".into()).spawn(run);
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
            let task = self.control.next();
            self.announce(&task);
            match task {
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
                Task::Act(Request::Power(PowerRequest::Suspend)) => {
                    self.control.sleep();
                    self.board.pm.sleep();
                }
                Task::Act(Request::Power(PowerRequest::Wake)) => self.wake()?,
                Task::Act(Request::Power(PowerRequest::Reset) | Request::UserReset) if self.no_reboot => {
                    return Ok(Outcome::Reset);
                }
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

    /// Tells those who listen of the ends and resets that the supervisor is about to carry out.
    fn announce(&self, task: &Task) {
        let event = match task {
            Task::Quit => Event::Shutdown { guest: false },
            Task::Act(Request::Power(PowerRequest::Reset) | Request::TripleFault(_)) if !self.no_reboot => {
                Event::Reset { guest: true }
            }
            Task::Act(Request::UserReset) if !self.no_reboot => Event::Reset { guest: false },
            Task::Act(Request::Power(PowerRequest::Suspend)) => Event::Suspend,
            Task::Act(Request::Power(PowerRequest::Wake)) => Event::Wakeup,
            Task::Act(Request::Bug(_)) | Task::Pause | Task::Resume => return,
            Task::Act(_) => Event::Shutdown { guest: true },
        };
        self.control.events.tell(&event);
    }

    /// Resets the devices and starts again. No vCPU runs meanwhile.
    fn reset(&self) -> Result<(), MachineError> {
        self.board.reset();
        self.start()
    }

    /// Wakes from S3: all but memory is reset, and the guest goes on where it has asked for; one that has not starts anew.
    fn wake(&self) -> Result<(), MachineError> {
        self.board.reset();
        if let Some(entry) = boot::wake(&self.board.map) {
            self.control.start(entry);
            return Ok(());
        }
        tracing::debug!(target: "guest_errors", "no waking vector below 1 MiB: the machine starts anew");
        self.start()
    }

    /// Loads the kernel, and lets the vCPUs start from there.
    fn start(&self) -> Result<(), MachineError> {
        let entry = self.load()?;
        self.control.start(entry);
        Ok(())
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
