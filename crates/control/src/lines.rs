//! The monitor for a client that sends lines: on a socket, or on a pipe.

use crate::Monitor;
use crate::client::{Address, Outbox, Server, SocketError, Talk};
use crate::monitor::{LINE_MAX, MonitorError};
use machine::Handle;
use std::path::Path;

/// What a monitor shows when it waits for a line.
pub const PROMPT: &str = "(vitrine) ";

/// What a monitor says first.
#[must_use]
pub fn banner() -> String {
    format!("Vitrine {} monitor - type 'help' for more information\n", env!("CARGO_PKG_VERSION"))
}

/// Lines out of a stream of bytes. Of a line that is too long only its length is kept.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    length: usize,
}

impl Lines {
    /// Calls `each` for every line that ends in `bytes`, with its length if that is beyond [`LINE_MAX`].
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Result<&str, usize>)) {
        for byte in bytes {
            if *byte != b'\n' {
                self.length = self.length.saturating_add(1);
                if self.line.len() <= LINE_MAX {
                    self.line.push(*byte);
                }
                continue;
            }
            if self.length > LINE_MAX {
                each(Err(self.length));
            } else {
                each(Ok(&String::from_utf8_lossy(&self.line)));
            }
            self.line.clear();
            self.length = 0;
        }
    }
}

/// A conversation of lines.
struct Session {
    monitor: Monitor,
    lines: Lines,
}

impl Talk for Session {
    fn hear(&mut self, bytes: &[u8], outbox: &Outbox) -> bool {
        let monitor = &mut self.monitor;
        self.lines.feed(bytes, |line| {
            let text = match line {
                Ok(line) => monitor.execute(line),
                Err(length) => format!("{}\n", MonitorError::Line(length)),
            };
            outbox.send(text + PROMPT);
        });
        true
    }
}

/// Serves a monitor at the Unix socket `path`.
///
/// # Errors
/// The socket cannot be made.
pub fn serve_monitor(path: &Path, handle: Handle) -> Result<Server, SocketError> {
    Server::start(&Address::Unix(path.to_path_buf()), move |outbox| {
        outbox.send(banner() + PROMPT);
        Session { monitor: Monitor::new(handle.clone()), lines: Lines::default() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_arrive() {
        let mut lines = Lines::default();
        let mut got = Vec::new();
        let text =
            [b"one\r\n\ntwo".as_slice(), b" more\n\xff\n", &[b'x'; LINE_MAX], b"\n", &[b'y'; 3 * LINE_MAX], b"y\nz\n"];
        for bytes in text {
            lines.feed(bytes, |line| got.push(line.map(str::to_owned)));
        }
        let long = "x".repeat(LINE_MAX);
        let want = ["one\r", "", "two more", "\u{fffd}", &long].map(|line| Ok(line.to_owned()));
        assert_eq!(got[..5], want);
        assert_eq!(got[5..], [Err(3 * LINE_MAX + 1), Ok("z".to_owned())]);
    }
}
