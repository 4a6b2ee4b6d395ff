//! A machine that runs, and what happens meanwhile: it ends, somebody types or signals, an output breaks.
//!
//! The machine runs on a thread of its own and everything that happens becomes an [`Event`] for the main thread, which
//! alone decides when the process ends. So Ctrl-A x and signals work even while the guest waits for a slow reader.

use std::any::Any;
use std::io::{self, IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use devices::Sink;
use lens::Perfetto;
use lens::symbols::Kernel;
use machine::{Config, Handle, Machine, MachineError, Outcome};
use view::{Action, Escape, Mode, Output, Terminal, terminal, web};

use crate::feed::Feed;
use crate::flags::values::Page;
use crate::keyboard::Keyboard;
use crate::say::{line, say};
use crate::timeline;

/// How long a machine that is told to quit may take. A guest that is held up in writing to a full pipe never does.
const PATIENCE: Duration = Duration::from_millis(500);

/// What happens.
#[derive(Debug)]
pub enum Event {
    /// The machine has ended.
    Ended(Result<Outcome, MachineError>),
    /// A thread of the machine has panicked; the panic hook has said so.
    Panicked,
    /// A signal asks Vitrine to end.
    Signal(i32),
    /// Ctrl-A x.
    Quit,
    /// The monitor's `quit`.
    Dismissed,
    /// An output has failed; its name and why.
    Broken(String, io::Error),
    /// The demo's guest has told something.
    Guest(crate::demo::Mark),
}

/// How the process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this status.
    Status(u8),
    /// By this signal.
    Signal(i32),
}

/// A machine, first made, then running.
#[derive(Debug)]
pub struct Session {
    machine: Option<Machine>,
    handle: Handle,
    events: Receiver<Event>,
    sender: Sender<Event>,
    terminal: Option<Terminal>,
    /// Sockets at which clients are served.
    servers: Vec<control::Server>,
}

impl Session {
    /// Makes a machine. `config` gets a sender for the events of the sinks that it makes.
    ///
    /// # Errors
    /// When the machine cannot be made, or signals cannot be handled.
    pub fn new(config: impl FnOnce(&Sender<Event>) -> Result<Config>) -> Result<Self> {
        let (sender, events) = channel();
        let machine = Machine::new(config(&sender)?)?;
        let handle = machine.handle();
        let dismissed = sender.clone();
        handle.on_event(move |event| {
            // Here rather than at the machine's end, which a guest that writes to a full pipe holds up.
            if matches!(event, machine::Event::Shutdown { guest: false }) {
                let _ = dismissed.send(Event::Dismissed);
            }
        });
        let signals = sender.clone();
        // The receiver is gone only when the process is about to end: then nobody needs to know.
        view::signals::watch(move |signal| drop(signals.send(Event::Signal(signal))))?;
        Ok(Self { machine: Some(machine), handle, events, sender, terminal: None, servers: Vec::new() })
    }

    /// Lets the machine run, once. From here on the calling thread is jailed, too.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn start(&mut self) -> Result<()> {
        let Some(machine) = self.machine.take() else { return Ok(()) };
        let ended = self.sender.clone();
        let run = move || {
            let event = match catch_unwind(AssertUnwindSafe(|| machine.run())) {
                Ok(outcome) => Event::Ended(outcome),
                Err(_panic) => Event::Panicked,
            };
            let _ = ended.send(event);
        };
        thread::Builder::new().name("machine".into()).spawn(run).context("the machine's thread cannot be started")?;
        jail::enter(jail::Role::Control);
        Ok(())
    }

    /// Gives serial port `port` the terminal, or whatever standard input is; without a port, the monitor. In
    /// [`Mode::Raw`] Ctrl-A c switches between them.
    ///
    /// # Errors
    /// When the terminal's mode cannot be changed or a thread cannot be started.
    pub fn attach(&mut self, mode: Mode, port: Option<usize>) -> Result<()> {
        self.terminal = Terminal::enter(mode)?;
        let typed_by_hand = io::stdin().is_terminal();
        let feed = port.map(|port| Feed::start(self.handle.clone(), port)).transpose()?;
        let monitor = Keyboard::start(self.handle.clone(), typed_by_hand, Self::broken(&self.sender))?;
        let mut listens = feed.clone();
        if listens.is_none() {
            monitor.enter();
        }
        let events = self.sender.clone();
        let act = move |action| match action {
            Action::Input(bytes) => match &listens {
                Some(feed) => feed.push(&bytes, !typed_by_hand),
                None => monitor.push(&bytes),
            },
            Action::Quit => drop(events.send(Event::Quit)),
            Action::Help => line(view::HELP),
            Action::Monitor if listens.is_some() => {
                listens = None;
                monitor.enter();
            }
            Action::Monitor => {
                listens.clone_from(&feed);
                monitor.leave();
            }
            Action::Break => line("\nthe serial line cannot send a break yet"),
            Action::End => {}
        };
        view::input::spawn(Escape::new(mode == Mode::Raw), act)?;
        Ok(())
    }

    /// Has the machine stand before its first instruction. To be called before [`Session::start`].
    pub fn hold(&self) {
        self.handle.pause();
    }

    /// Serves the monitor at the Unix socket `path`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn serve_monitor(&mut self, path: &Path) -> Result<()> {
        self.servers.push(control::serve_monitor(path, self.handle.clone())?);
        Ok(())
    }

    /// Serves QEMU's machine protocol at the Unix socket `path`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn serve_qmp(&mut self, path: &Path) -> Result<()> {
        self.servers.push(control::serve_qmp(path, self.handle.clone())?);
        Ok(())
    }

    /// Serves gdb at `address`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn serve_gdb(&mut self, address: &control::Address) -> Result<()> {
        self.servers.push(control::serve_gdb(address, self.handle.clone())?);
        Ok(())
    }

    /// Notes the machine's counters in a timeline.
    ///
    /// # Errors
    /// When its thread cannot be started.
    pub fn follow(&self, perfetto: &Arc<Perfetto>, kernel: Arc<Kernel>) -> Result<()> {
        timeline::follow(perfetto, self.handle.clone(), kernel)
    }

    /// Serves the page in the browser, and says where.
    ///
    /// # Errors
    /// When there is no such address, or it is taken.
    pub fn serve_page(&self, Page { host, port }: &Page) -> Result<()> {
        let server = match port {
            Some(port) => web::serve(host, *port, &self.handle)?,
            None => web::serve(host, web::PORT, &self.handle).or_else(|_| web::serve(host, 0, &self.handle))?,
        };
        say(format_args!("the page is at {}", server.url()));
        Ok(())
    }

    /// What becomes of an error of standard output.
    fn broken(events: &Sender<Event>) -> impl FnOnce(io::Error) + Send + 'static {
        let events = events.clone();
        move |error| drop(events.send(Event::Broken("standard output".to_owned(), error)))
    }

    /// The next event, or `None` if there is none until `deadline`.
    pub fn next(&self, deadline: Instant) -> Option<Event> {
        // The session holds a sender itself, so the channel is never closed and the one error is that of time.
        self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
    }

    /// Waits for the end and says why, if there is more to it than a power off.
    pub fn wait(&self) -> End {
        loop {
            if let Some(event) = self.next(Instant::now() + Duration::from_secs(3600))
                && let Some(end) = self.end_by(event)
            {
                return end;
            }
        }
    }

    /// What `event` means for the process: `None` if it goes on. Otherwise the machine has been ended, the terminal is
    /// as it was, and the reason has been printed.
    pub fn end_by(&self, event: Event) -> Option<End> {
        let end = match event {
            Event::Guest(_) => return None,
            Event::Ended(outcome) => {
                terminal::restore();
                return Some(ended(outcome));
            }
            // As Rust's own exit status after a panic.
            Event::Panicked => End::Status(101),
            Event::Signal(signal) => {
                self.quit();
                say(format_args!("ended by {}", view::signals::name(signal)));
                End::Signal(signal)
            }
            Event::Quit => {
                self.quit();
                say("ended by Ctrl-A x");
                End::Status(0)
            }
            Event::Dismissed => {
                self.quit();
                End::Status(0)
            }
            Event::Broken(what, error) => {
                self.quit();
                say(format_args!("{what} cannot be written: {error}"));
                End::Status(1)
            }
        };
        Some(end)
    }

    /// Ends the machine, if it can be in a moment, and gives the terminal back.
    pub fn quit(&self) {
        self.handle.quit();
        let deadline = Instant::now() + PATIENCE;
        while let Some(event) = self.next(deadline) {
            if matches!(event, Event::Ended(_) | Event::Panicked) {
                break;
            }
        }
        terminal::restore();
    }
}

fn ended(outcome: Result<Outcome, MachineError>) -> End {
    match outcome {
        Ok(Outcome::PowerOff | Outcome::Reset | Outcome::Quit) => End::Status(0),
        Ok(Outcome::DebugExit(status)) => End::Status(status.to_le_bytes()[0]),
        // As with QEMU's -no-reboot, this is an end like another.
        Ok(Outcome::TripleFault(crash)) => {
            say(format_args!(
                "triple fault on cpu{} at rip {:x}: {}",
                crash.registers.cpu, crash.registers.rip, crash.cause
            ));
            End::Status(0)
        }
        Err(error) => {
            say(error);
            End::Status(1)
        }
    }
}

/// The bytes of a device, to a descriptor.
pub struct To(Output);

impl To {
    /// To `descriptor`, which errors call `name`.
    pub fn descriptor(descriptor: OwnedFd, name: String, events: &Sender<Event>) -> Box<dyn Sink> {
        let events = events.clone();
        Box::new(Self(Output::new(descriptor, move |error| drop(events.send(Event::Broken(name, error))))))
    }

    /// To standard output.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn stdout(events: &Sender<Event>) -> Result<Box<dyn Sink>> {
        let output = Output::stdout(Session::broken(events)).context("standard output is not open")?;
        Ok(Box::new(Self(output)))
    }
}

impl std::fmt::Debug for To {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("To").field(&self.0.type_id()).finish()
    }
}

impl Sink for To {
    fn write(&mut self, bytes: &[u8]) {
        // It tells of errors in its own way.
        let _ = self.0.write_all(bytes);
    }
}
