//! Bytes on their way from standard input to a serial port, which takes a few at a time.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use machine::Handle;

/// The most that waits for the guest.
const LIMIT: usize = 64 << 10;
/// The most that is offered to the port at once.
const CHUNK: usize = 256;

#[derive(Debug, Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// The port has said that it has room again.
    room: bool,
}

/// The way into a serial port. Clones lead to the same port.
#[derive(Clone, Debug)]
pub struct Feed(Arc<(Mutex<Queue>, Condvar)>);

impl Feed {
    /// A way into port `port` of a machine.
    ///
    /// # Errors
    /// When the thread that waits for the port cannot be started.
    pub fn start(machine: Handle, port: usize) -> Result<Self> {
        let feed = Self(Arc::default());
        let ready = feed.clone();
        machine.on_ready(port, move || {
            ready.queue().room = true;
            ready.0.1.notify_all();
        });
        let pump = feed.clone();
        let run = move || {
            jail::enter(jail::Role::Io);
            pump.pump(|bytes| machine.receive(port, bytes));
        };
        thread::Builder::new().name("serial input".into()).spawn(run).context("a thread cannot be started")?;
        Ok(feed)
    }

    /// Hands over `bytes`. If too many wait already: waits until there is room if `wait`, or drops them, so that the
    /// keyboard stays alive with a guest that does not listen.
    pub fn push(&self, bytes: &[u8], wait: bool) {
        let mut queue = self.queue();
        while wait && queue.bytes.len() >= LIMIT {
            queue = self.changed(queue);
        }
        if queue.bytes.len() < LIMIT {
            queue.bytes.extend(bytes);
        }
        self.0.1.notify_all();
    }

    /// Gives to `receive`, which says how many it took, for ever.
    fn pump(&self, receive: impl Fn(&[u8]) -> usize) {
        let mut queue = self.queue();
        loop {
            while queue.bytes.is_empty() {
                queue = self.changed(queue);
            }
            let chunk: Vec<u8> = queue.bytes.iter().take(CHUNK).copied().collect();
            queue.room = false;
            // Not under the lock: the port calls back under its own.
            drop(queue);
            let taken = receive(&chunk).min(chunk.len());
            queue = self.queue();
            queue.bytes.drain(..taken);
            self.0.1.notify_all();
            while taken < chunk.len() && !queue.room {
                queue = self.changed(queue);
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed<'a>(&'a self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        self.0.1.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    /// A port that takes three bytes and then none until it is asked to say that it has room.
    #[test]
    fn bytes_arrive_in_order_whatever_the_port_takes() {
        let feed = Feed(Arc::default());
        let (taken, got) = channel();
        let (pump, port) = (feed.clone(), feed.clone());
        thread::spawn(move || {
            pump.pump(|bytes| {
                let some = &bytes[..bytes.len().min(3)];
                taken.send(some.to_vec()).unwrap();
                // The port may have room again before the pump waits for it.
                port.queue().room = true;
                port.0.1.notify_all();
                some.len()
            });
        });
        let sent: Vec<u8> = (0..1000_u32).map(|n| n.to_le_bytes()[0]).collect();
        for part in sent.chunks(7) {
            feed.push(part, true);
        }
        let mut received = Vec::new();
        while received.len() < sent.len() {
            received.extend(got.recv().unwrap());
        }
        assert_eq!(received, sent);
    }

    #[test]
    fn without_waiting_what_is_too_much_is_dropped() {
        let feed = Feed(Arc::default());
        for _ in 0..3 {
            feed.push(&[0; LIMIT], false);
        }
        assert_eq!(feed.queue().bytes.len(), LIMIT);
    }
}
