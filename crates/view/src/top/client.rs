//! A client of QEMU's machine protocol, as far as `top` needs one.

use control::figures::Figures;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the machine may take to answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// The longest line that is taken from it, in bytes.
const LINE_MAX: u64 = 1 << 22;

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// No terminal.
    #[error("top wants a terminal; programs ask query-figures at the machine's -qmp socket")]
    NoTerminal,
    /// The terminal fails.
    #[error("the terminal cannot be used: {0}")]
    Terminal(#[source] io::Error),
    /// Nobody is at the socket.
    #[error("no machine is at {}: {source}; one that runs with -qmp unix:{} is", path.display(), path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// It does not greet.
    #[error("{} does not answer: it serves one client at a time, and may have one; a machine takes several -qmp", .0.display())]
    Busy(PathBuf),
    /// It has gone.
    #[error("the machine has ended")]
    Ended,
    /// It does not answer any more.
    #[error("the machine does not answer any more: {0}")]
    Silent(#[source] io::Error),
    /// What answers is no Vitrine.
    #[error("what is at the socket does not speak QEMU's machine protocol as Vitrine does: {0}")]
    Strange(String),
}

/// A conversation.
#[derive(Debug)]
pub(super) struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects to the machine whose socket is at `path`.
    pub fn connect(path: &Path) -> Result<Self, TopError> {
        let failed = |source| TopError::Connect { path: path.to_owned(), source };
        let stream = UnixStream::connect(path).map_err(failed)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let mut client = Self(BufReader::new(stream));
        let greeting = client.hear().map_err(|error| match error {
            TopError::Silent(_) => TopError::Busy(path.to_owned()),
            error => error,
        })?;
        if greeting["QMP"].is_null() {
            return Err(strange(&greeting));
        }
        client.tell("qmp_capabilities")?;
        Ok(client)
    }

    /// The machine's figures now.
    pub fn figures(&mut self) -> Result<Figures, TopError> {
        let figures = self.ask(&json!({ "execute": "query-figures", "arguments": { "measure": true } }))?;
        serde_json::from_value(figures).map_err(|error| TopError::Strange(error.to_string()))
    }

    /// Has a command without arguments carried out.
    pub fn tell(&mut self, command: &str) -> Result<(), TopError> {
        self.ask(&json!({ "execute": command })).map(drop)
    }

    /// Has a line of the monitor carried out.
    pub fn say(&mut self, line: &str) -> Result<(), TopError> {
        self.ask(&json!({ "execute": "human-monitor-command", "arguments": { "command-line": line } })).map(drop)
    }

    fn ask(&mut self, request: &Value) -> Result<Value, TopError> {
        writeln!(self.0.get_mut(), "{request}").map_err(gone)?;
        loop {
            let mut told = self.hear()?;
            if let Some(answer) = told.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = told.get("error") {
                return Err(TopError::Strange(error["desc"].as_str().unwrap_or_default().chars().take(200).collect()));
            }
            // An event.
        }
    }

    fn hear(&mut self) -> Result<Value, TopError> {
        let mut line = Vec::new();
        let count = (&mut self.0).take(LINE_MAX).read_until(b'\n', &mut line).map_err(gone)?;
        if count == 0 {
            return Err(TopError::Ended);
        }
        serde_json::from_slice(&line).map_err(|error| TopError::Strange(error.to_string()))
    }
}

fn gone(error: io::Error) -> TopError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => TopError::Ended,
        _ => TopError::Silent(error),
    }
}

fn strange(told: &Value) -> TopError {
    TopError::Strange(told.to_string().chars().take(80).collect())
}
