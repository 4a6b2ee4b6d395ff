//! gdb's remote protocol: the machine as a process whose threads are vCPUs.
//!
//! Memory is read and written by guest virtual address, by the page tables that the vCPU uses now, whatever their
//! rights; with QEMU's packet `Qqemu.PhyMemMode:1` (`maint packet` sends it) by physical address. Devices are never
//! reached. A client that comes stops the machine, and one that goes takes its breakpoints with it and lets the
//! machine run. A single step executes one instruction of one vCPU, with interrupts held off, while the others stand.
//!
//! Left out: setting CS; reverse execution.

use crate::Monitor;
use crate::client::{Address, Outbox, Server, SocketError, Talk};
use cpu::debugger::{Debugger, Stop, WatchFor, Watchpoint};
use devices::sync::lock;
use gdbstub::common::{Signal, Tid};
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use machine::{Event, Handle, InspectError, RunState};
use memory::{AddressSpace, Gpa, Gva};
use packets::{Arrived, PACKET_MAX, Packets, packet};
use registers::{Gdb, X86};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, Weak};

mod packets;
mod registers;

/// Breakpoints and watchpoints that can be set.
const POINTS_MAX: usize = 1024;
/// The error that gdb is told when memory cannot be accessed: EFAULT.
const FAULT: u8 = 14;

impl Connection for Outbox {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.write_all(&[byte])
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.send(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The machine as gdb sees it.
struct Debuggee {
    handle: Handle,
    monitor: Monitor,
    physical: bool,
    breakpoints: BTreeSet<Gva>,
    watchpoints: BTreeSet<Watchpoint>,
    /// The thread that is to execute one instruction.
    step: Option<Tid>,
    /// What came of it.
    stepped: Option<MultiThreadStopReason<u64>>,
}

/// The number of a thread's vCPU.
fn index(tid: Tid) -> usize {
    tid.get() - 1
}

/// The thread of a vCPU.
fn tid(index: usize) -> Tid {
    Tid::new(index.saturating_add(1)).unwrap_or(Tid::MIN)
}

fn fault<E>(_: InspectError) -> TargetError<E> {
    TargetError::Errno(FAULT)
}

impl Debuggee {
    fn space(&self, tid: Tid) -> Result<AddressSpace, InspectError> {
        self.handle.inspect(index(tid), |vcpu| vcpu.cpu.mmu.address_space())
    }

    /// Gives every vCPU the breakpoints and watchpoints there are.
    fn set_points(&self) -> TargetResult<(), Self> {
        for index in 0..self.handle.vcpus() {
            let (breakpoints, watchpoints) = (self.breakpoints.clone(), self.watchpoints.clone());
            let set = move |debugger: &mut Debugger| {
                debugger.breakpoints = breakpoints;
                debugger.watchpoints = watchpoints;
            };
            self.handle.inspect(index, |vcpu| vcpu.cpu.set_debugger(set)).map_err(fault)?;
        }
        Ok(())
    }

    fn add_breakpoint(&mut self, gva: Gva) -> TargetResult<bool, Self> {
        let room = self.breakpoints.len() < POINTS_MAX;
        if room && self.breakpoints.insert(gva) {
            self.set_points()?;
        }
        Ok(room)
    }

    fn remove_breakpoint(&mut self, gva: Gva) -> TargetResult<bool, Self> {
        let there = self.breakpoints.remove(&gva);
        self.set_points()?;
        Ok(there)
    }
}

impl Target for Debuggee {
    type Arch = X86;
    type Error = InspectError;

    fn base_ops(&mut self) -> BaseOps<'_, X86, InspectError> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Debuggee {
    fn read_registers(&mut self, registers: &mut Gdb, tid: Tid) -> TargetResult<(), Self> {
        *registers = self.handle.inspect(index(tid), Gdb::of).map_err(fault)?;
        Ok(())
    }

    fn write_registers(&mut self, registers: &Gdb, tid: Tid) -> TargetResult<(), Self> {
        let registers = registers.clone();
        let put = self.handle.inspect(index(tid), move |vcpu| registers.put(vcpu)).map_err(fault)?;
        if put { Ok(()) } else { Err(TargetError::NonFatal) }
    }

    /// As many bytes as there are; none is an error.
    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let read = if self.physical {
            match self.handle.map().read(Gpa(start), data) {
                Ok(()) => data.len(),
                Err(memory::MapError::NotMemory { done, .. }) => done,
                Err(_) => 0,
            }
        } else {
            match self.space(tid).map_err(fault)?.read(Gva(start), data) {
                Ok(()) => data.len(),
                Err(stop) => usize::try_from(stop.0.wrapping_sub(start)).unwrap_or(0).min(data.len()),
            }
        };
        if read == 0 && !data.is_empty() { Err(TargetError::Errno(FAULT)) } else { Ok(read) }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let written = if self.physical {
            self.handle.map().write(Gpa(start), data).is_ok()
        } else {
            self.space(tid).map_err(fault)?.write(Gva(start), data).is_ok()
        };
        if written { Ok(()) } else { Err(TargetError::Errno(FAULT)) }
    }

    fn list_active_threads(&mut self, active: &mut dyn FnMut(Tid)) -> Result<(), InspectError> {
        (0..self.handle.vcpus()).map(tid).for_each(active);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Debuggee {
    fn thread_extra_info(&self, tid: Tid, buffer: &mut [u8]) -> Result<usize, InspectError> {
        let halted = self.handle.inspect(index(tid), |vcpu| vcpu.cpu.sleeps())?;
        let text = format!("CPU#{} [{}]", index(tid), if halted { "halted" } else { "running" });
        let len = text.len().min(buffer.len());
        buffer.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        Ok(len)
    }
}

impl MultiThreadResume for Debuggee {
    fn resume(&mut self) -> Result<(), InspectError> {
        let Some(tid) = self.step.take() else {
            self.handle.resume();
            return Ok(());
        };
        self.stepped = Some(match self.handle.step(index(tid))? {
            Some(stop) => reason(index(tid), stop),
            None => MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP },
        });
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), InspectError> {
        self.step = None;
        Ok(())
    }

    fn set_resume_action_continue(&mut self, _: Tid, _: Option<Signal>) -> Result<(), InspectError> {
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSchedulerLocking for Debuggee {
    /// A step is always of one vCPU alone; those that run do so together, whatever gdb wants.
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), InspectError> {
        Ok(())
    }
}

impl MultiThreadSingleStep for Debuggee {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), InspectError> {
        self.step = Some(tid);
        Ok(())
    }
}

impl Breakpoints for Debuggee {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debuggee {
    fn add_sw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        self.add_breakpoint(Gva(at))
    }

    fn remove_sw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        self.remove_breakpoint(Gva(at))
    }
}

impl HwBreakpoint for Debuggee {
    fn add_hw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        self.add_breakpoint(Gva(at))
    }

    fn remove_hw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        self.remove_breakpoint(Gva(at))
    }
}

fn watchpoint(at: u64, len: u64, kind: WatchKind) -> Watchpoint {
    let what = match kind {
        WatchKind::Write => WatchFor::Write,
        WatchKind::Read => WatchFor::Read,
        WatchKind::ReadWrite => WatchFor::Access,
    };
    Watchpoint { gva: Gva(at), len: len.max(1), what }
}

impl HwWatchpoint for Debuggee {
    fn add_hw_watchpoint(&mut self, at: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let room = self.watchpoints.len() < POINTS_MAX;
        if room && self.watchpoints.insert(watchpoint(at, len, kind)) {
            self.set_points()?;
        }
        Ok(room)
    }

    fn remove_hw_watchpoint(&mut self, at: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        let there = self.watchpoints.remove(&watchpoint(at, len, kind));
        self.set_points()?;
        Ok(there)
    }
}

impl MonitorCmd for Debuggee {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), InspectError> {
        out.write_raw(self.monitor.execute(&String::from_utf8_lossy(command)).as_bytes());
        Ok(())
    }
}

/// The user has stopped the machine.
const INTERRUPTED: MultiThreadStopReason<u64> =
    MultiThreadStopReason::SignalWithThread { tid: Tid::MIN, signal: Signal::SIGINT };

/// Why vCPU `index` stopped, for gdb.
fn reason(index: usize, stop: Stop) -> MultiThreadStopReason<u64> {
    let tid = tid(index);
    match stop {
        Stop::Breakpoint => MultiThreadStopReason::SwBreak(tid),
        // A watch of ours is none of gdb's.
        Stop::Observer(_) => MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGTRAP },
        Stop::Watchpoint(Watchpoint { gva, what, .. }) => {
            let kind = match what {
                WatchFor::Write => WatchKind::Write,
                WatchFor::Read => WatchKind::Read,
                WatchFor::Access => WatchKind::ReadWrite,
            };
            MultiThreadStopReason::Watch { tid, kind, addr: gva.0 }
        }
    }
}

/// The inside of a packet by which gdb shows a text while the machine runs.
fn console(text: &str) -> String {
    text.bytes().fold("O".to_owned(), |packet, byte| packet + &format!("{byte:02x}"))
}

type Stub = GdbStubStateMachine<'static, Debuggee, Outbox>;

/// A conversation with gdb.
struct Conversation {
    debuggee: Debuggee,
    /// `None`: it is over.
    stub: Option<Stub>,
    packets: Packets,
    outbox: Outbox,
    /// Packets are acknowledged until gdb says otherwise.
    acknowledged: bool,
}

impl Conversation {
    /// Gives the stub something to do; it may come to an end.
    fn advance(&mut self, act: impl FnOnce(Stub, &mut Debuggee) -> Option<Stub>) {
        let Some(stub) = self.stub.take() else { return };
        self.stub = act(stub, &mut self.debuggee).and_then(|stub| self.settle(stub));
    }

    /// Does what a state asks for at once.
    fn settle(&mut self, stub: Stub) -> Option<Stub> {
        match stub {
            GdbStubStateMachine::CtrlCInterrupt(stub) => {
                // Reported when it has come to pass, unless that is so already.
                let stands = !matches!(self.debuggee.handle.run_state(), RunState::Running | RunState::Suspended);
                self.debuggee.handle.pause();
                stub.interrupt_handled(&mut self.debuggee, stands.then_some(INTERRUPTED)).ok()
            }
            GdbStubStateMachine::Running(stub) => match self.debuggee.stepped.take() {
                Some(reason) => stub.report_stop(&mut self.debuggee, reason).ok(),
                None => Some(stub.into()),
            },
            GdbStubStateMachine::Disconnected(stub) => {
                if stub.get_reason() == DisconnectReason::Kill {
                    self.debuggee.handle.quit();
                }
                None
            }
            idle @ GdbStubStateMachine::Idle(_) => Some(idle),
        }
    }

    fn feed(&mut self, byte: u8) {
        self.advance(|stub, debuggee| match stub {
            GdbStubStateMachine::Idle(stub) => stub.incoming_data(debuggee, byte).ok(),
            GdbStubStateMachine::Running(stub) => stub.incoming_data(debuggee, byte).ok(),
            other => Some(other),
        });
    }

    /// Reports a stop, if gdb waits for one.
    fn stopped(&mut self, reason: MultiThreadStopReason<u64>) {
        self.advance(|stub, debuggee| match stub {
            GdbStubStateMachine::Running(stub) => stub.report_stop(debuggee, reason).ok(),
            other => Some(other),
        });
    }

    fn happened(&mut self, event: &Event) {
        match event {
            // One that has been overtaken is no news.
            Event::Stop if self.debuggee.handle.run_state() == RunState::Running => {}
            Event::Stop => {
                let stop = self.debuggee.handle.debug_stop();
                if let (Some((_, Stop::Observer(id))), Some(Stub::Running(_))) = (stop, &self.stub) {
                    self.outbox.send(packet(&console(&format!("watch {id} stops the machine\n"))));
                }
                self.stopped(stop.map_or(INTERRUPTED, |(index, stop)| reason(index, stop)));
            }
            Event::Shutdown { .. } => self.stopped(MultiThreadStopReason::Exited(0)),
            Event::Resume | Event::Suspend | Event::Wakeup | Event::Reset { .. } => {}
        }
    }

    /// Answers a packet that the stub does not know, or not well; false if it is none of these.
    fn own(&mut self, inside: &[u8], outbox: &Outbox) -> bool {
        let answer = match inside {
            // The stub would end the conversation without an answer.
            _ if inside.starts_with(b"vKill;") => {
                self.debuggee.handle.quit();
                "OK".to_owned()
            }
            b"qqemu.PhyMemMode" => u8::from(self.debuggee.physical).to_string(),
            b"Qqemu.PhyMemMode:0" | b"Qqemu.PhyMemMode:1" => {
                self.debuggee.physical = inside.ends_with(b"1");
                "OK".to_owned()
            }
            _ => return false,
        };
        outbox.send(if self.acknowledged { "+" } else { "" }.to_owned() + &packet(&answer));
        true
    }

    fn hear(&mut self, bytes: &[u8], outbox: &Outbox) {
        let mut packets = std::mem::take(&mut self.packets);
        for byte in bytes {
            match packets.push(*byte) {
                None => {}
                Some(Arrived::Byte(byte)) => self.feed(byte),
                Some(Arrived::Broken) if self.acknowledged => outbox.send("-"),
                Some(Arrived::Broken) => {}
                Some(Arrived::Packet(_, inside)) if self.own(inside, outbox) => {}
                Some(Arrived::Packet(whole, inside)) => {
                    whole.iter().for_each(|byte| self.feed(*byte));
                    self.acknowledged &= inside != b"QStartNoAckMode";
                }
            }
        }
        self.packets = packets;
    }
}

/// What a client is talked with; the machine's events come in between.
struct Session(Arc<Mutex<Conversation>>);

impl Talk for Session {
    fn hear(&mut self, bytes: &[u8], outbox: &Outbox) -> bool {
        let mut conversation = lock(&self.0);
        conversation.hear(bytes, outbox);
        conversation.stub.is_some()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let debuggee = &mut lock(&self.0).debuggee;
        debuggee.breakpoints.clear();
        debuggee.watchpoints.clear();
        // A vCPU that does not answer keeps them, which only makes it slow.
        let _ = debuggee.set_points();
        debuggee.handle.resume();
    }
}

/// Serves gdb at `address`.
///
/// # Errors
/// The socket cannot be made.
pub fn serve_gdb(address: &Address, handle: Handle) -> Result<Server, SocketError> {
    let current = Arc::new(Mutex::new(Weak::<Mutex<Conversation>>::new()));
    let told = current.clone();
    handle.on_event(move |event| {
        let conversation = lock(&told).upgrade();
        if let Some(conversation) = conversation {
            lock(&conversation).happened(event);
        }
    });
    Server::start(address, move |outbox| {
        handle.pause();
        // If it has ended, so has the conversation, soon.
        let _ = handle.wait_paused();
        let mut debuggee = Debuggee {
            monitor: Monitor::new(handle.clone()),
            handle: handle.clone(),
            physical: false,
            breakpoints: BTreeSet::new(),
            watchpoints: BTreeSet::new(),
            step: None,
            stepped: None,
        };
        let own = outbox.clone();
        let stub = GdbStub::builder(outbox.clone()).packet_buffer_size(PACKET_MAX).build().ok();
        let stub = stub.and_then(|stub| stub.run_state_machine(&mut debuggee).ok());
        let conversation =
            Conversation { debuggee, stub, packets: Packets::default(), outbox: own, acknowledged: true };
        let conversation = Arc::new(Mutex::new(conversation));
        *lock(&current) = Arc::downgrade(&conversation);
        Session(conversation)
    })
}
