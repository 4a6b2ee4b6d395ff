//! The monitor: one line in, one text out.

use crate::arguments::{Arguments, Format};
use crate::command;
use crate::expression::ExpressionError;
use crate::registers::Snapshot;
use lens::symbols::{Process, Table, Unlisted};
use machine::{Handle, InspectError, Vcpu};
use memory::{Gva, Pagemap};
use std::cell::OnceCell;
use std::sync::Arc;

/// The longest line that is taken, in bytes.
pub const LINE_MAX: usize = 4096;

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MonitorError {
    /// There is no such command.
    #[error("unknown command: '{0}'")]
    Unknown(String),
    /// The line is longer than [`LINE_MAX`].
    #[error("a line of {0} bytes: {LINE_MAX} at most")]
    Line(usize),
    /// An argument is missing.
    #[error("unexpected end of expression")]
    Missing,
    /// A quote does not end.
    #[error("unterminated string")]
    Quote,
    /// There is something behind the last argument.
    #[error("extraneous characters at the end of line: '{0}'")]
    Extraneous(String),
    /// No letter of a format.
    #[error("invalid char in format: '{0}'; a format is a count, one of x d u o c i s, and one of b h w g")]
    Format(char),
    /// Not an expression.
    #[error("{0}")]
    Expression(String),
    /// Not a watch.
    #[error("{0}")]
    Watch(String),
    /// The vCPU cannot be looked at.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// What the command says itself.
    #[error("{0}")]
    Other(String),
}

impl From<ExpressionError> for MonitorError {
    fn from(error: ExpressionError) -> Self {
        match error {
            ExpressionError::Inspect(error) => Self::Inspect(error),
            error => Self::Expression(error.to_string()),
        }
    }
}

impl MonitorError {
    /// Whether the command's help would help.
    fn is_about_arguments(&self) -> bool {
        use MonitorError::{Expression, Extraneous, Format, Missing, Quote, Watch};
        matches!(self, Missing | Quote | Extraneous(_) | Format(_) | Expression(_) | Watch(_))
    }
}

/// What a command gives.
pub(crate) type Outcome = Result<String, MonitorError>;

/// A monitor. Each client has one, with a current vCPU of its own.
#[derive(Debug)]
pub struct Monitor {
    pub(crate) handle: Handle,
    /// `None`: the host has no `/proc`.
    pub(crate) pagemap: Option<Arc<Pagemap>>,
    /// The current vCPU.
    pub(crate) cpu: usize,
    /// Where `x`, `xp` and `print` begin.
    pub(crate) format: Format,
    /// What is known of the current vCPU while a line is executed.
    snapshot: OnceCell<Result<Snapshot, InspectError>>,
}

impl Monitor {
    /// A monitor for a machine.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        let (pagemap, format) = (Pagemap::of_this_process(), Format::default());
        Self { handle, pagemap, cpu: 0, format, snapshot: OnceCell::new() }
    }

    /// Makes vCPU `index` the current one.
    ///
    /// # Errors
    /// There is none such, or it cannot be looked at.
    pub fn set_cpu(&mut self, index: usize) -> Result<(), MonitorError> {
        self.handle.inspect(index, |_| ())?;
        self.cpu = index;
        Ok(())
    }

    /// Carries out a line. The text, if there is one, ends with a line feed; it may tell of an error.
    pub fn execute(&mut self, line: &str) -> String {
        let line = line.trim();
        if line.is_empty() {
            return String::new();
        }
        if line.len() > LINE_MAX {
            return format!("{}\n", MonitorError::Line(line.len()));
        }
        let (command, name, rest) = match command::find(line) {
            Ok(found) => found,
            Err(error) => return format!("{error}\n"),
        };
        let result = self.with(rest, command.run);
        self.forget();
        match result {
            Ok(text) => text,
            Err(error) if error.is_about_arguments() => format!("{error}\nTry \"help {name}\" for more information\n"),
            Err(error) => format!("{error}\n"),
        }
    }

    /// Forgets what was known of the vCPU while a line was executed.
    pub(crate) fn forget(&mut self) {
        self.snapshot = OnceCell::new();
    }

    /// Calls `act` with the arguments that stand in `rest`.
    pub(crate) fn with<R>(&mut self, rest: &str, act: impl FnOnce(&mut Self, &mut Arguments<'_>) -> R) -> R {
        // Taken when the first register is asked for; it borrows nothing of the monitor.
        let early = OnceCell::new();
        let (handle, cpu) = (self.handle.clone(), self.cpu);
        let lookup = |name: &str| {
            let snapshot = early.get_or_init(|| handle.inspect(cpu, Snapshot::take)).as_ref();
            let snapshot = snapshot.map_err(|error| *error)?;
            Ok(match name.strip_prefix('$') {
                Some(register) => snapshot.value(&register.to_ascii_lowercase()),
                None => symbols(&handle, snapshot).find(name).map(|Gva(address)| address),
            })
        };
        act(self, &mut Arguments::new(rest, &lookup))
    }

    /// The current vCPU as it was when the command first asked.
    pub(crate) fn snapshot(&self) -> Result<&Snapshot, MonitorError> {
        let snapshot = self.snapshot.get_or_init(|| self.inspect_now(Snapshot::take));
        snapshot.as_ref().map_err(|error| MonitorError::Inspect(*error))
    }

    fn inspect_now<R: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Vcpu) -> R + Send + 'static,
    ) -> Result<R, InspectError> {
        self.handle.inspect(self.cpu, look)
    }

    /// Calls `look` on the current vCPU's thread.
    pub(crate) fn inspect<R: Send + 'static>(
        &self,
        look: impl FnOnce(&mut Vcpu) -> R + Send + 'static,
    ) -> Result<R, MonitorError> {
        Ok(self.inspect_now(look)?)
    }

    /// The symbols of the guest's kernel, as far as `snapshot` shows one.
    pub(crate) fn symbols(&self, snapshot: &Snapshot) -> Arc<Table> {
        symbols(&self.handle, snapshot)
    }

    /// The processes of the guest, as far as `snapshot` shows a kernel that can be asked for them.
    pub(crate) fn processes(&self, snapshot: &Snapshot) -> Result<Vec<Process>, Unlisted> {
        let (entry, gpa) = snapshot.entry.ok_or(Unlisted::NoSymbols)?;
        let map = self.handle.map();
        Ok(self.handle.lens().kernel().processes(map, entry, gpa)?.list(map))
    }

    /// The names of commands that begin with `start`, for completion: those of `info` behind `info`.
    #[must_use]
    pub fn complete(start: &str) -> Vec<String> {
        command::complete(start)
    }
}

fn symbols(handle: &Handle, snapshot: &Snapshot) -> Arc<Table> {
    let kernel = handle.lens().kernel();
    let none = || kernel.programs().clone();
    snapshot.entry.map_or_else(none, |(entry, gpa)| kernel.symbols(handle.map(), entry, gpa))
}
