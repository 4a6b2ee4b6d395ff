//! Output that waits, retries, never panics, and tells once when it has failed.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Unbuffered output of the guest's bytes to a descriptor.
///
/// A reader that is slow makes the writer wait, and with it the guest. An error goes to `failed`, once; from then on
/// bytes are dropped, so that a device model need not know about hosts and their pipes.
pub struct Output {
    to: OwnedFd,
    failed: Option<Box<dyn FnOnce(io::Error) + Send>>,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output").field("to", &self.to).finish_non_exhaustive()
    }
}

impl Output {
    /// Output to `to`; `failed` is called with the first error.
    pub fn new(to: OwnedFd, failed: impl FnOnce(io::Error) + Send + 'static) -> Self {
        Self { to, failed: Some(Box::new(failed)) }
    }

    /// Output to standard output.
    ///
    /// # Errors
    /// When the descriptor cannot be duplicated.
    pub fn stdout(failed: impl FnOnce(io::Error) + Send + 'static) -> io::Result<Self> {
        Ok(Self::new(io::stdout().as_fd().try_clone_to_owned()?, failed))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while self.failed.is_some() && !rest.is_empty() {
            match rustix::io::write(&self.to, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(&self.to, PollFlags::OUT)], None)),
                Err(error) => {
                    if let Some(failed) = self.failed.take() {
                        failed(error.into());
                    }
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_full_non_blocking_pipe_is_waited_for() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&write, true).unwrap();
        let bytes = vec![0x5a_u8; 300_000];
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            std::fs::File::from(read).read_to_end(&mut got).unwrap();
            got
        });
        let mut output = Output::new(write, |error| panic!("{error}"));
        output.write_all(&bytes).unwrap();
        drop(output);
        assert_eq!(reader.join().unwrap(), bytes);
    }

    #[test]
    fn a_closed_pipe_is_told_once_and_then_swallowed() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        drop(read);
        let (told, hear) = mpsc::channel();
        let mut output = Output::new(write, move |error| told.send(error.kind()).unwrap());
        output.write_all(b"one").unwrap();
        output.write_all(b"two").unwrap();
        assert_eq!(hear.recv(), Ok(io::ErrorKind::BrokenPipe));
        assert!(hear.recv().is_err());
    }
}
