//! The way to a machine from other threads.

use crate::board::Board;
use crate::control::Control;
use crate::{Event, RunState, Stats, Vcpu};
use cpu::debugger::Stop;
use lens::touched::Book;
use lens::{Lens, Watch, WatchesFull};
use memory::{Gpa, PhysicalMap};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a vCPU may take to come to its gate.
const PATIENCE: Duration = Duration::from_secs(5);

/// A way to a machine from other threads. It may outlive the machine, and does nothing then.
#[derive(Clone, Debug)]
pub struct Handle {
    board: Arc<Board>,
    control: Arc<Control>,
}

/// An interrupt controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chip {
    /// The two 8259s.
    Pic,
    /// The I/O APIC.
    IoApic,
    /// The local APIC of this vCPU.
    LocalApic(usize),
}

/// How a device is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bus {
    /// By memory accesses.
    Memory,
    /// By I/O ports.
    Port,
}

/// How often a device has been accessed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceCount {
    /// What it is called.
    pub name: String,
    /// How.
    pub bus: Bus,
    /// Reads since the machine was made.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// Why a vCPU cannot be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InspectError {
    /// There is none with this number.
    #[error("there is no CPU #{index}: the last one is #{}", vcpus - 1)]
    NoVcpu {
        /// The number.
        index: usize,
        /// How many there are.
        vcpus: usize,
    },
    /// The machine has ended.
    #[error("the machine has ended")]
    Ended,
    /// It does not come to its gate: it waits for a slow reader of the guest's output, say.
    #[error("CPU #{0} does not answer: something outside holds it up, such as a slow reader of the guest's output")]
    Silent(usize),
}

/// Why there cannot be one more watch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// It cannot be.
    #[error(transparent)]
    Refused(#[from] WatchesFull),
    /// A vCPU does not answer.
    #[error(transparent)]
    Inspect(#[from] InspectError),
}

impl Handle {
    pub(crate) fn new(board: Arc<Board>, control: Arc<Control>) -> Self {
        Self { board, control }
    }

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
        self.control.press_reset();
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

    /// Whether the machine runs.
    #[must_use]
    pub fn run_state(&self) -> RunState {
        self.control.run_state()
    }

    /// Has `listener` told what happens from now on, on the machine's own thread, for which it must not wait.
    pub fn on_event(&self, listener: impl Fn(&Event) + Send + Sync + 'static) {
        self.control.events.listen(Arc::new(listener));
    }

    /// How many vCPUs there are.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.control.vcpus()
    }

    /// Calls `look` on the thread of vCPU `index` while it stands between two instructions. One that runs is stopped for
    /// that moment; one that is paused stays so.
    ///
    /// # Errors
    /// There is no such vCPU, the machine has ended, or the vCPU does not answer. In the last case `look` may still be
    /// called later on.
    pub fn inspect<R: Send + 'static>(
        &self,
        index: usize,
        look: impl FnOnce(&mut Vcpu) -> R + Send + 'static,
    ) -> Result<R, InspectError> {
        let vcpus = self.vcpus();
        if index >= vcpus {
            return Err(InspectError::NoVcpu { index, vcpus });
        }
        let (sender, answer) = sync_channel(1);
        // Nobody waits any more if the answer is too late.
        let job = Box::new(move |vcpu: &mut Vcpu| drop(sender.send(look(vcpu))));
        if !self.control.post(index, job) {
            return Err(InspectError::Ended);
        }
        answer.recv_timeout(PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Timeout => InspectError::Silent(index),
            RecvTimeoutError::Disconnected => InspectError::Ended,
        })
    }

    /// Has vCPU `index` execute one instruction while the machine stands, whatever interrupts are pending. A vCPU that
    /// sleeps in HLT goes on sleeping. Gives the watchpoint that it hit.
    ///
    /// # Errors
    /// As [`Handle::inspect`].
    pub fn step(&self, index: usize) -> Result<Option<Stop>, InspectError> {
        Ok(self.inspect(index, Vcpu::step)?.unwrap_or_else(|crash| {
            self.control.triple_fault(crash);
            None
        }))
    }

    /// Which vCPU met a debugger's breakpoint or watchpoint, for which the machine has been paused since.
    #[must_use]
    pub fn debug_stop(&self) -> Option<(usize, Stop)> {
        self.control.last_debug_stop()
    }

    /// The physical address space.
    #[must_use]
    pub fn map(&self) -> &Arc<PhysicalMap> {
        &self.board.map
    }

    pub(crate) fn measuring(&self) -> &Mutex<()> {
        &self.board.measuring
    }

    pub(crate) fn book(&self) -> &Book {
        &self.board.touched
    }

    /// How often the guest has accessed which device.
    #[must_use]
    pub fn device_counts(&self) -> Vec<DeviceCount> {
        let mmio = self.board.map.mmio_counts().into_iter();
        let mmio = mmio.map(|(name, reads, writes)| DeviceCount { name, bus: Bus::Memory, reads, writes });
        let ports = self.board.ports.counts().into_iter();
        mmio.chain(ports.map(|(name, reads, writes)| DeviceCount { name, bus: Bus::Port, reads, writes })).collect()
    }

    /// One more watch, from now on. Its number is its own for ever.
    ///
    /// # Errors
    /// It is refused, or a vCPU does not answer: that begins to watch as soon as it comes to its gate.
    pub fn watch(&self, watch: Watch) -> Result<u32, WatchError> {
        let id = self.lens().watch(watch)?;
        self.look_anew()?;
        Ok(id)
    }

    /// Ends a watch; false: there is none of that number.
    ///
    /// # Errors
    /// A vCPU does not answer: the watch ends, but goes on to cost time until that comes to its gate.
    pub fn unwatch(&self, id: u32) -> Result<bool, InspectError> {
        let ended = self.lens().unwatch(id);
        self.look_anew()?;
        Ok(ended)
    }

    /// Turns a watch on, with its whole limit, or off; false: there is none of that number.
    ///
    /// # Errors
    /// As [`Handle::unwatch`].
    pub fn enable_watch(&self, id: u32, on: bool) -> Result<bool, InspectError> {
        let known = self.lens().enable(id, on);
        self.look_anew()?;
        Ok(known)
    }

    /// Turns the trace on or off; false: there is none, or it is over.
    ///
    /// # Errors
    /// As [`Handle::unwatch`].
    pub fn trace(&self, on: bool) -> Result<bool, InspectError> {
        let Some(trace) = self.lens().trace().filter(|trace| !trace.state().over) else { return Ok(false) };
        trace.turn(on);
        self.look_anew()?;
        Ok(true)
    }

    /// What looks at memory accesses. To change what is watched, use [`Handle::watch`] and the like.
    #[must_use]
    pub fn lens(&self) -> &Arc<Lens> {
        &self.board.lens
    }

    /// Has the lens see what it wants to now, on every vCPU.
    fn look_anew(&self) -> Result<(), InspectError> {
        let look = |index| {
            let lens = Arc::clone(self.lens());
            self.inspect(index, move |vcpu| vcpu.look_anew(&lens))
        };
        // All are asked, whoever does not answer.
        (0..self.vcpus()).map(look).fold(Ok(()), Result::and)
    }

    /// The registers of an interrupt controller as a text in QEMU's form; `None` if there is none such.
    #[must_use]
    pub fn describe(&self, chip: Chip) -> Option<String> {
        self.board.describe(chip)
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
