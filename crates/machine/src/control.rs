//! Who may stop the machine, and when: the state that vCPU threads, devices, users and the supervisor share.
//!
//! A vCPU runs between two visits to [`Control::gate`]. Whoever wants it to stop changes [`State`] and raises
//! `Signals::STOP`, both under the lock; the gate lowers the signal under the same lock once nothing wants a stop any
//! more, so no request is ever lost. When every vCPU is parked at the gate the supervisor ([`Control::next`]) acts.
//!
//! What others want to look at on a vCPU's own thread is done at the gate, too, whether the machine stands or runs.

use crate::events::{Event, Events};
use crate::vcpu::Job;
use crate::{Registers, RunState, VcpuStats};
use boot::Entry;
use cpu::Signals;
use cpu::debugger::Stop;
use devices::sync::lock;
use devices::{PowerRequest, PowerSwitch};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A vCPU that met a fault which it could deliver neither as itself nor as a double fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// Its registers at the instruction.
    pub registers: Registers,
    /// What led to it, for a message.
    pub cause: String,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Registers { cpu, rip, .. } = self.registers;
        write!(f, "triple fault on cpu{cpu} at rip {rip:x}: {}", self.cause)
    }
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered off.
    PowerOff,
    /// The guest reset the machine, and [`Config::no_reboot`](crate::Config::no_reboot) was set.
    Reset,
    /// The guest wrote to the debug exit device; with the exit status.
    DebugExit(u32),
    /// A triple fault reset the machine, and [`Config::no_reboot`](crate::Config::no_reboot) was set.
    TripleFault(Box<Crash>),
    /// [`Handle::quit`](crate::Handle::quit) was called.
    Quit,
}

/// What is to be done with the machine.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    Power(PowerRequest),
    /// The reset button.
    UserReset,
    TripleFault(Box<Crash>),
    /// It cannot go on, for a bug of Vitrine's.
    Bug(String),
}

/// What a vCPU finds at the gate.
pub(crate) enum Pass {
    /// The machine was reset: take the state from which that starts, and come to the gate again.
    Reset(Arc<Entry>),
    /// Run on.
    Go {
        /// The TLB is to be flushed.
        flush: bool,
    },
    /// The machine has ended.
    End,
}

/// What the supervisor is to do, with every vCPU parked unless it says otherwise.
pub(crate) enum Task {
    /// End (the vCPUs may still run).
    Quit,
    Act(Request),
    Pause,
    Resume,
}

#[derive(Default)]
struct State {
    quit: bool,
    /// The guest's first request that has not been acted on.
    request: Option<Request>,
    /// The user wants the machine to stand.
    pause: bool,
    /// ... and then go on: each pause comes to pass, however short, so that whoever listens hears of both.
    unpause: bool,
    /// The machine stands, and its clock.
    paused: bool,
    /// Suspended to RAM.
    asleep: bool,
    /// Powered off, but not to be ended: nothing but a reset lets it run again.
    off: bool,
    ended: bool,
    /// It has run, or was to.
    begun: bool,
    /// vCPUs at the gate.
    parked: usize,
    /// Where the machine was paused for a debugger.
    debug_stop: Option<(usize, Stop)>,
    /// What each vCPU is to do at the gate.
    jobs: Vec<VecDeque<Job>>,
    /// Where vCPU 0 starts after the last reset.
    entry: Option<Arc<Entry>>,
    /// Resets so far, the first start included.
    resets: u64,
    /// Flushes of all TLBs so far.
    flushes: u64,
}

impl State {
    fn stops(&self) -> bool {
        self.quit
            || self.ended
            || self.request.is_some()
            || self.pause
            || self.paused
            || self.asleep
            || self.entry.is_none()
    }

    fn job(&mut self, index: usize) -> Option<Job> {
        self.jobs.get_mut(index)?.pop_front()
    }
}

/// What a vCPU has seen of the state; its own.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    resets: u64,
    flushes: u64,
}

/// See the module. Lock order: `state` before a vCPU's signals; devices are never called under it. `shown` alone.
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
    signals: Vec<Arc<Signals>>,
    /// What each vCPU showed at its last visit to the gate.
    shown: Vec<Mutex<Option<VcpuStats>>>,
    /// Who is told what happens.
    pub(crate) events: Events,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("run_state", &self.run_state()).finish_non_exhaustive()
    }
}

impl Control {
    pub(crate) fn new(signals: Vec<Arc<Signals>>) -> Self {
        let shown = signals.iter().map(|_| Mutex::default()).collect();
        let jobs = signals.iter().map(|_| VecDeque::new()).collect();
        let state = Mutex::new(State { jobs, ..State::default() });
        Self { state, changed: Condvar::new(), signals, shown, events: Events::default() }
    }

    /// Changes the state; if anything wants a stop afterwards, every vCPU is told.
    fn change<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.state);
        let result = act(&mut state);
        if state.stops() {
            self.stop_all();
        }
        self.changed.notify_all();
        result
    }

    fn stop_all(&self) {
        for signals in &self.signals {
            signals.raise(Signals::STOP);
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    // --- for vCPU threads

    /// Leaves what others may see of vCPU `index` until it comes to the gate again.
    pub(crate) fn show(&self, index: usize, stats: VcpuStats) {
        if let Some(place) = self.shown.get(index) {
            *lock(place) = Some(stats);
        }
    }

    /// Parks vCPU `index` for as long as anything wants the machine to stand; what others want of it is for `serve`.
    pub(crate) fn gate(&self, index: usize, seen: &mut Seen, mut serve: impl FnMut(Job)) -> Pass {
        let mut state = lock(&self.state);
        let mut parked = false;
        loop {
            if state.ended {
                return Pass::End;
            }
            if let Some(entry) = state.entry.clone().filter(|_| seen.resets != state.resets) {
                *seen = Seen { resets: state.resets, flushes: state.flushes };
                state.parked -= usize::from(parked);
                return Pass::Reset(entry);
            }
            // The job is done without the lock, and counts as standing: no guest code runs.
            let job = state.job(index);
            if (job.is_some() || state.stops()) && !parked {
                parked = true;
                state.parked += 1;
                self.changed.notify_all();
            }
            if let Some(job) = job {
                drop(state);
                serve(job);
                state = lock(&self.state);
            } else if state.stops() {
                state = self.wait(state);
            } else {
                break;
            }
        }
        state.parked -= usize::from(parked);
        if let Some(signals) = self.signals.get(index) {
            signals.lower(Signals::STOP);
        }
        let flush = seen.flushes != state.flushes;
        seen.flushes = state.flushes;
        state.begun = true;
        Pass::Go { flush }
    }

    /// A vCPU's triple fault.
    pub(crate) fn triple_fault(&self, crash: Box<Crash>) {
        self.ask(Request::TripleFault(crash));
    }

    /// A bug that a vCPU has come to.
    pub(crate) fn bug(&self, report: String) {
        self.ask(Request::Bug(report));
    }

    /// A debugger is to know what vCPU `index` has come to: the machine is paused, unless another was first.
    pub(crate) fn debug_stop(&self, index: usize, stop: Stop) {
        self.change(|state| {
            (state.pause, state.unpause) = (true, false);
            state.debug_stop.get_or_insert((index, stop));
        });
    }

    fn ask(&self, request: Request) {
        self.change(|state| {
            state.request.get_or_insert(request);
        });
    }

    /// Has every vCPU flush its TLB before it runs on.
    pub(crate) fn flush_all(&self) {
        let mut state = lock(&self.state);
        state.flushes += 1;
        self.stop_all();
    }

    // --- for users

    pub(crate) fn quit(&self) {
        self.change(|state| state.quit = true);
    }

    pub(crate) fn press_reset(&self) {
        self.ask(Request::UserReset);
    }

    pub(crate) fn set_pause(&self, pause: bool) {
        self.change(|state| {
            if !pause {
                (state.begun, state.debug_stop) = (true, None);
            }
            let stays = pause || state.off;
            state.unpause = !stays && state.pause && !state.paused;
            state.pause = stays || state.unpause;
        });
    }

    pub(crate) fn last_debug_stop(&self) -> Option<(usize, Stop)> {
        lock(&self.state).debug_stop
    }

    /// Has vCPU `index` do `job` at the gate. False: it never will.
    pub(crate) fn post(&self, index: usize, job: Job) -> bool {
        let mut state = lock(&self.state);
        let ended = state.ended;
        let Some(jobs) = state.jobs.get_mut(index).filter(|_| !ended) else { return false };
        jobs.push_back(job);
        if let Some(signals) = self.signals.get(index) {
            signals.raise(Signals::STOP);
        }
        self.changed.notify_all();
        true
    }

    pub(crate) fn vcpus(&self) -> usize {
        self.signals.len()
    }

    /// Whether the machine runs, or is about to.
    pub(crate) fn run_state(&self) -> RunState {
        let state = lock(&self.state);
        match () {
            () if state.ended || state.quit || state.off => RunState::Shutdown,
            () if state.asleep && !state.pause => RunState::Suspended,
            () if !state.pause || state.unpause => RunState::Running,
            () if state.begun => RunState::Paused,
            () => RunState::Prelaunch,
        }
    }

    /// Waits until the machine stands. False: it has ended.
    pub(crate) fn wait_paused(&self) -> bool {
        let mut state = lock(&self.state);
        while !state.paused && !state.ended {
            state = self.wait(state);
        }
        !state.ended
    }

    pub(crate) fn shown(&self) -> Vec<VcpuStats> {
        self.shown.iter().filter_map(|place| lock(place).clone()).collect()
    }

    // --- for the supervisor

    /// Waits for something to do.
    pub(crate) fn next(&self) -> Task {
        let mut state = lock(&self.state);
        loop {
            if state.quit || state.ended {
                return Task::Quit;
            }
            let parked = state.parked == self.signals.len();
            match &state.request {
                Some(request) if parked => return Task::Act(request.clone()),
                Some(_) => {}
                None if state.pause && !state.paused && parked => return Task::Pause,
                None if !state.pause && state.paused => return Task::Resume,
                None => {}
            }
            state = self.wait(state);
        }
    }

    /// The machine was reset (or is to start): vCPU 0 begins at `entry`.
    pub(crate) fn start(&self, entry: Entry) {
        self.change(|state| {
            for signals in &self.signals {
                signals.lower(Signals::NMI | Signals::NMI_LATCHED | Signals::INIT | Signals::SIPI);
            }
            (state.request, state.asleep) = (None, false);
            if std::mem::take(&mut state.off) {
                state.pause = false;
            }
            state.entry = Some(Arc::new(entry));
            state.resets += 1;
        });
    }

    /// The guest has suspended the machine: its clock goes on, and nothing else but what wakes it.
    pub(crate) fn sleep(&self) {
        self.change(|state| (state.request, state.asleep) = (None, true));
    }

    /// The guest powered off, but the machine is to be kept.
    pub(crate) fn keep_off(&self) {
        self.change(|state| {
            (state.request, state.pause, state.off) = (None, true, true);
            state.unpause = false;
        });
    }

    /// The clock stands, or runs again.
    pub(crate) fn set_paused(&self, paused: bool) {
        self.change(|state| {
            state.paused = paused;
            if paused && std::mem::take(&mut state.unpause) {
                state.pause = false;
            }
        });
        self.events.tell(&if paused { Event::Stop } else { Event::Resume });
    }

    /// Ends the machine: every vCPU leaves at the gate.
    pub(crate) fn end(&self) {
        // Nobody waits for a job that is dropped.
        let jobs = self.change(|state| {
            state.ended = true;
            state.jobs.iter_mut().map(std::mem::take).collect::<Vec<_>>()
        });
        drop(jobs);
    }
}

impl PowerSwitch for Control {
    fn request(&self, request: PowerRequest) {
        self.ask(Request::Power(request));
    }
}

#[cfg(test)]
mod tests;
