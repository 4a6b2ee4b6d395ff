//! A command on a pseudo-terminal, as a person at a terminal has it.

use std::io::Write;
use std::time::{Duration, Instant};

use portable_pty::{Child, CommandBuilder, ExitStatus, MasterPty, PtySize, native_pty_system};

use crate::session::Transcript;

/// A command on a terminal of its own; killed when dropped.
pub struct Terminal {
    master: Box<dyn MasterPty + Send>,
    child: Box<dyn Child + Send + Sync>,
    keyboard: Box<dyn Write + Send>,
    before: String,
    /// What the terminal shows.
    pub screen: Transcript,
}

impl Terminal {
    /// Starts `program` with `arguments` on a new terminal of 24 lines.
    ///
    /// # Panics
    /// If there is no terminal or no program.
    #[must_use]
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        let pair = native_pty_system().openpty(PtySize::default()).expect("a pseudo-terminal");
        let before = settings(&*pair.master);
        let mut command = CommandBuilder::new(program);
        command.args(arguments);
        let child = pair.slave.spawn_command(command).expect("the program starts");
        let screen = Transcript::follow(pair.master.try_clone_reader().expect("the terminal can be read"));
        let keyboard = pair.master.take_writer().expect("the terminal can be written");
        // The slave side of `pair` stays open until here only: the screen ends with the program.
        Self { master: pair.master, child, keyboard, before, screen }
    }

    /// Waits until the screen has shown `pattern`.
    ///
    /// # Panics
    /// If it does not in time.
    pub fn expect(&self, pattern: &str, patience: Duration) {
        assert!(
            self.screen.wait(patience, |text| text.contains(pattern)),
            "no {pattern:?} in:\n{}",
            self.screen.text()
        );
    }

    /// Types `text`.
    ///
    /// # Panics
    /// If the terminal is gone.
    pub fn type_keys(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).and_then(|()| self.keyboard.flush()).expect("the terminal is there");
    }

    /// Whether the terminal's settings differ now from those before the program started.
    #[must_use]
    pub fn changed(&self) -> bool {
        settings(&*self.master) != self.before
    }

    /// The program's process id.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.process_id()
    }

    /// Waits for the program's end.
    ///
    /// # Panics
    /// If time is up.
    pub fn end(&mut self, patience: Duration) -> ExitStatus {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return status;
            }
            assert!(Instant::now() < end, "it does not end:\n{}", self.screen.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The terminal's modes, control characters and speeds, as text.
fn settings(master: &dyn MasterPty) -> String {
    format!("{:?}", master.get_termios().expect("a terminal has settings"))
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
