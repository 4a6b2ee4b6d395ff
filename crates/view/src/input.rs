//! Standard input, read on a thread of its own so that Ctrl-A x works whatever the guest does.

use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::stdio::stdin;

use crate::{Action, Escape, ViewError};

/// Reads standard input until it ends and hands over what was typed. `act` may block only as long as Ctrl-A x may wait.
///
/// The thread lives until the input ends; it holds nothing that would have to be released.
///
/// # Errors
/// When the thread cannot be started.
pub fn spawn(mut escape: Escape, mut act: impl FnMut(Action) + Send + 'static) -> Result<(), ViewError> {
    let read = move || {
        jail::enter(jail::Role::Control);
        let mut buffer = [0_u8; 4096];
        loop {
            match rustix::io::read(stdin(), &mut buffer) {
                Ok(0) => break,
                Ok(count) => escape.feed(buffer.get(..count).unwrap_or_default()).into_iter().for_each(&mut act),
                Err(Errno::INTR) => {}
                // The descriptor may be shared with a process that set it non-blocking.
                Err(Errno::AGAIN) => drop(poll(&mut [PollFd::new(&stdin(), PollFlags::IN)], None)),
                Err(_) => break,
            }
        }
        act(Action::End);
    };
    thread::Builder::new().name("stdin".into()).spawn(read).map_err(ViewError::Thread)?;
    Ok(())
}
