//! A command that runs with its standard streams on pipes: text is collected as it comes, waited for, and sent.

use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// What has come from a stream so far, for other threads to wait on.
#[derive(Clone, Default)]
pub struct Transcript(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    text: String,
    closed: bool,
}

impl Transcript {
    /// Collects `stream` on a thread of its own until it ends. Bytes that are no UTF-8 become replacement characters,
    /// carriage returns are dropped.
    pub fn follow(mut stream: impl Read + Send + 'static) -> Self {
        let transcript = Self::default();
        let mine = transcript.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = stream.read(&mut buffer).unwrap_or(0);
                let (lock, changed) = &*mine.0;
                let mut state = lock.lock().unwrap_or_else(PoisonError::into_inner);
                let bytes: Vec<u8> = buffer.iter().take(count).copied().filter(|&byte| byte != b'\r').collect();
                state.text.push_str(&String::from_utf8_lossy(&bytes));
                state.closed = count == 0;
                changed.notify_all();
                if state.closed {
                    return;
                }
            }
        });
        transcript
    }

    /// All text so far.
    #[must_use]
    pub fn text(&self) -> String {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).text.clone()
    }

    /// Waits until `wanted` is satisfied by the text, the stream ends, or time is up; says whether it was satisfied.
    #[must_use]
    pub fn wait(&self, patience: Duration, wanted: impl Fn(&str) -> bool) -> bool {
        let end = Instant::now() + patience;
        let (lock, changed) = &*self.0;
        let mut state = lock.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if wanted(&state.text) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return false;
            }
            state = changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn wait_closed(&self, patience: Duration) {
        let end = Instant::now() + patience;
        let (lock, changed) = &*self.0;
        let mut state = lock.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.closed {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state = changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A command that ended.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Ended {
    /// Asserts that the command refused its input well: one line on standard error, exit status 1 or 2, no panic.
    /// Returns that line.
    ///
    /// # Panics
    /// If it did not.
    #[must_use]
    pub fn refusal(&self) -> &str {
        self.no_panic();
        assert!(matches!(self.status.code(), Some(1 | 2)), "status 1 or 2 is due: {self:?}");
        let lines: Vec<&str> = self.stderr.lines().filter(|line| !line.trim().is_empty()).collect();
        assert_eq!(lines.len(), 1, "one line is due: {self:?}");
        lines[0]
    }

    /// Asserts that nothing panicked and no signal ended it.
    ///
    /// # Panics
    /// If so.
    pub fn no_panic(&self) {
        assert!(!self.stderr.contains("panicked"), "it panicked: {self:?}");
        assert!(self.status.code().is_some(), "a signal ended it: {self:?}");
    }
}

/// A running command; killed when dropped.
pub struct Session {
    child: Child,
    /// Its standard output.
    pub stdout: Transcript,
    /// Its standard error.
    pub stderr: Transcript,
}

impl Session {
    /// Starts `program` with `arguments`, standard input on a pipe that stays open.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
        let stdout = Transcript::follow(child.stdout.take().expect("piped"));
        let stderr = Transcript::follow(child.stderr.take().expect("piped"));
        Self { child, stdout, stderr }
    }

    /// Waits until standard output satisfies `wanted`.
    ///
    /// # Panics
    /// If it does not in time, with all the text there was.
    pub fn expect_that(&self, what: &str, patience: Duration, wanted: impl Fn(&str) -> bool) {
        assert!(
            self.stdout.wait(patience, wanted),
            "no {what} in:\n{}\n--\n{}",
            self.stdout.text(),
            self.stderr.text()
        );
    }

    /// Waits until standard output contains `pattern`.
    ///
    /// # Panics
    /// If it does not in time, with all the text there was.
    pub fn expect(&self, pattern: &str, patience: Duration) {
        self.expect_that(pattern, patience, |text| text.contains(pattern));
    }

    /// Sends `text` to its standard input.
    ///
    /// # Panics
    /// If it does not read any more.
    pub fn send(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("standard input is open");
        stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()).expect("it reads its standard input");
    }

    /// The process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If time is up.
    #[must_use]
    pub fn end(mut self, patience: Duration) -> Ended {
        let end = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                break status;
            }
            if Instant::now() > end {
                panic!("it does not end:\n{}\n--\n{}", self.stdout.text(), self.stderr.text());
            }
            thread::sleep(Duration::from_millis(5));
        };
        for stream in [&self.stdout, &self.stderr] {
            stream.wait_closed(Duration::from_secs(5));
        }
        Ended { status, stdout: self.stdout.text(), stderr: self.stderr.text() }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A path as an argument.
///
/// # Panics
/// If it is no UTF-8.
#[must_use]
pub fn argument(path: &Path) -> &str {
    path.to_str().expect("a temporary path is UTF-8")
}
