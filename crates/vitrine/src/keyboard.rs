//! The monitor on standard input: with a line editor if that is a terminal, else line by line.
//!
//! Commands are carried out on a thread of their own, so that Ctrl-A x works whatever a command waits for.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Context;
use control::{Lines, Monitor, MonitorError};
use machine::Handle;
use view::{Editor, Output, terminal};

/// Lines that may wait to be carried out.
const WAITING_MAX: usize = 64;

/// A line, or why it is none.
type Line = Result<String, MonitorError>;

/// How lines are typed.
#[derive(Debug)]
enum Typing {
    Edited(Editor),
    Plain(Lines),
}

#[derive(Debug)]
struct Shared {
    typing: Mutex<Typing>,
    output: Mutex<Output>,
    /// What is typed is the monitor's, so a prompt is to be seen.
    active: AtomicBool,
    greeted: AtomicBool,
}

/// The way into the monitor for what is typed.
#[derive(Clone, Debug)]
pub struct Keyboard {
    shared: Arc<Shared>,
    lines: SyncSender<Line>,
}

impl Keyboard {
    /// A monitor for a machine, `edited` with keys and a prompt. Its output goes to standard output; `broken` is told
    /// when that fails.
    ///
    /// # Errors
    /// When standard output is not open or the thread cannot be started.
    pub fn start(
        machine: Handle,
        edited: bool,
        broken: impl FnOnce(io::Error) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let typing =
            if edited { Typing::Edited(Editor::new(control::PROMPT)) } else { Typing::Plain(Lines::default()) };
        let output = Output::stdout(broken).context("standard output is not open")?;
        let shared = Arc::new(Shared {
            typing: Mutex::new(typing),
            output: Mutex::new(output),
            active: AtomicBool::new(false),
            greeted: AtomicBool::new(false),
        });
        let (lines, entered) = sync_channel(WAITING_MAX);
        let answers = shared.clone();
        let run = move || {
            jail::enter(jail::Role::Control);
            answers.answer(Monitor::new(machine), &entered);
        };
        thread::Builder::new().name("monitor".into()).spawn(run).context("a thread cannot be started")?;
        Ok(Self { shared, lines })
    }

    /// What is typed from now on is the monitor's.
    pub fn enter(&self) {
        self.shared.active.store(true, Ordering::Relaxed);
        match &*self.shared.typing() {
            Typing::Edited(editor) => {
                let again = self.shared.greeted.swap(true, Ordering::Relaxed);
                let banner = if again { String::new() } else { control::banner() };
                self.shared.show(&format!("\n{banner}{}", editor.redrawn(terminal::width())));
            }
            Typing::Plain(_) => {}
        }
    }

    /// What is typed from now on is not the monitor's.
    pub fn leave(&self) {
        self.shared.active.store(false, Ordering::Relaxed);
        if matches!(&*self.shared.typing(), Typing::Edited(_)) {
            self.shared.show("\n");
        }
    }

    /// Takes what was typed; waits while too many lines wait to be carried out.
    pub fn push(&self, bytes: &[u8]) {
        let mut lines = Vec::new();
        match &mut *self.shared.typing() {
            Typing::Edited(editor) => {
                let typed = editor.feed(bytes, terminal::width(), Monitor::complete);
                self.shared.show(&typed.shown);
                lines.extend(typed.lines.into_iter().map(Ok));
            }
            Typing::Plain(plain) => plain.feed(bytes, |line| match line {
                Ok(line) => lines.push(Ok(line.to_owned())),
                Err(length) => lines.push(Err(MonitorError::Line(length))),
            }),
        }
        for line in lines {
            // The monitor's thread ends only with the process.
            let _ = self.lines.send(line);
        }
    }
}

impl Shared {
    fn typing(&self) -> MutexGuard<'_, Typing> {
        self.typing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, text: &str) {
        // It tells of errors in its own way.
        let _ = self.output.lock().unwrap_or_else(PoisonError::into_inner).write_all(text.as_bytes());
    }

    fn answer(&self, mut monitor: Monitor, entered: &Receiver<Line>) {
        for line in entered {
            let text = line.map_or_else(|error| format!("{error}\n"), |line| monitor.execute(&line));
            // Under the lock, so that what is typed meanwhile comes behind.
            match &*self.typing() {
                Typing::Edited(editor) if self.active.load(Ordering::Relaxed) => {
                    self.show(&format!("\r\x1b[K{text}{}", editor.redrawn(terminal::width())));
                }
                Typing::Edited(_) | Typing::Plain(_) => self.show(&text),
            }
        }
    }
}
