//! Clients on a socket, one at a time, each with what waits to be sent to it.
//!
//! As QEMU has it, further clients wait until the one before has gone. What is sent is queued and written by a thread
//! of its own, so that a client that does not read holds up nobody but itself.

use devices::sync::lock;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that may wait for a client.
const WAITING_MAX: usize = 1 << 20;
/// How long the end of the process waits for a client to read what was sent.
const PATIENCE: Duration = Duration::from_millis(300);

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port of this host's address, or of that of this name.
    Tcp(String, u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(host, port) => write!(f, "tcp:{host}:{port}"),
        }
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
#[error("no socket can be made at {address}: {source}")]
pub struct SocketError {
    address: Address,
    source: io::Error,
}

/// Where clients come in.
#[derive(Debug)]
enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    fn new(address: &Address) -> io::Result<Self> {
        match address {
            Address::Unix(path) => bind(path).map(Self::Unix),
            Address::Tcp(host, port) => TcpListener::bind((host.as_str(), *port)).map(Self::Tcp),
        }
    }

    /// Has [`Listener::accept`] fail from now on, also where it waits already.
    fn close(&self) {
        // Fails only if it is closed.
        let _ = match self {
            Self::Unix(listener) => rustix::net::shutdown(listener, rustix::net::Shutdown::Both),
            Self::Tcp(listener) => rustix::net::shutdown(listener, rustix::net::Shutdown::Both),
        };
    }

    fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Unix(listener) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept()?;
                // A conversation of small packets.
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

/// A client's connection.
#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
        }
    }

    fn shutdown(&self) {
        // It may be gone.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => (&mut &*stream).read(bytes),
            Self::Tcp(stream) => (&mut &*stream).read(bytes),
        }
    }

    fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => (&mut &*stream).write_all(bytes),
            Self::Tcp(stream) => (&mut &*stream).write_all(bytes),
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    texts: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Something is being written.
    busy: bool,
    closed: bool,
}

/// What waits to be sent to a client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outbox(Arc<(Mutex<Queue>, Condvar)>);

impl Outbox {
    /// Has `text` sent, once there is room for it.
    pub fn send(&self, text: impl Into<Vec<u8>>) {
        let (queue, changed) = &*self.0;
        let mut queue = lock(queue);
        while queue.bytes >= WAITING_MAX && !queue.closed {
            queue = changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        Self::push(&mut queue, text.into());
        changed.notify_all();
    }

    /// Has `text` sent if there is room for it; else it is lost.
    pub fn offer(&self, text: impl Into<Vec<u8>>) {
        let (queue, changed) = &*self.0;
        let mut queue = lock(queue);
        if queue.bytes < WAITING_MAX {
            Self::push(&mut queue, text.into());
            changed.notify_all();
        }
    }

    fn push(queue: &mut Queue, text: Vec<u8>) {
        if !queue.closed {
            queue.bytes += text.len();
            queue.texts.push_back(text);
        }
    }

    /// Nothing more is sent; what waits still is.
    fn close(&self) {
        lock(&self.0.0).closed = true;
        self.0.1.notify_all();
    }

    /// Writes what is to be sent until it is closed or the client is gone.
    fn write_to(&self, to: &Stream) {
        let (queue, changed) = &*self.0;
        let mut queue = lock(queue);
        loop {
            while queue.texts.is_empty() && !queue.closed {
                queue = changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            let Some(text) = queue.texts.pop_front() else { return };
            queue.busy = true;
            drop(queue);
            let written = to.write_all(&text);
            queue = lock(&self.0.0);
            queue.busy = false;
            queue.bytes -= text.len();
            if written.is_err() {
                queue.closed = true;
                queue.texts.clear();
                queue.bytes = 0;
            }
            changed.notify_all();
        }
    }

    /// Waits until all is written, or for `patience`.
    fn drain(&self, patience: Duration) {
        let (queue, changed) = &*self.0;
        let mut queue = lock(queue);
        let end = Instant::now() + patience;
        while !queue.texts.is_empty() || queue.busy {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// What talks with one client.
pub(crate) trait Talk {
    /// Takes bytes that have arrived. False: the client is to be let go.
    fn hear(&mut self, bytes: &[u8], outbox: &Outbox) -> bool;
}

/// A socket at which clients are served. When it is dropped, what was to be sent is sent, the socket's file removed, and
/// no further client served.
#[derive(Debug)]
pub struct Server {
    address: Address,
    listener: Arc<Listener>,
    ended: Arc<AtomicBool>,
    client: Arc<Mutex<Option<Outbox>>>,
}

impl Server {
    /// Serves at `address` from now on. `greet` makes a conversation, and says the first word.
    pub(crate) fn start<T: Talk>(
        address: &Address,
        mut greet: impl FnMut(&Outbox) -> T + Send + 'static,
    ) -> Result<Self, SocketError> {
        let failed = |source| SocketError { address: address.clone(), source };
        let listener = Arc::new(Listener::new(address).map_err(failed)?);
        let ended = Arc::new(AtomicBool::new(false));
        let client = Arc::new(Mutex::new(None));
        let (current, accepting, over) = (client.clone(), listener.clone(), ended.clone());
        let serve = move || {
            jail::enter(jail::Role::Control);
            loop {
                let Ok(stream) = accepting.accept() else {
                    if over.load(Ordering::Acquire) {
                        return;
                    }
                    // Such as too many open files.
                    thread::sleep(Duration::from_millis(100));
                    continue;
                };
                let outbox = Outbox::default();
                *lock(&current) = Some(outbox.clone());
                converse(stream, &outbox, &mut greet);
                *lock(&current) = None;
            }
        };
        thread::Builder::new().name("socket".into()).spawn(serve).map_err(failed)?;
        Ok(Self { address: address.clone(), listener, ended, client })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let client = lock(&self.client).clone();
        if let Some(outbox) = client {
            outbox.drain(PATIENCE);
        }
        self.ended.store(true, Ordering::Release);
        self.listener.close();
        if let Address::Unix(path) = &self.address {
            // Somebody may have removed it before.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Binds to `path`, in place of a socket that nobody listens at any more.
fn bind(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(path)?.file_type().is_socket();
            if !is_socket || UnixStream::connect(path).is_ok() {
                return Err(error);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

fn converse<T: Talk>(stream: Stream, outbox: &Outbox, greet: &mut impl FnMut(&Outbox) -> T) {
    let Ok(to) = stream.try_clone() else { return };
    let writer = outbox.clone();
    let Ok(writer) = thread::Builder::new().name("socket writer".into()).spawn(move || writer.write_to(&to)) else {
        return;
    };
    let mut talk = greet(outbox);
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if !talk.hear(buffer.get(..count).unwrap_or_default(), outbox) {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    drop(talk);
    outbox.close();
    outbox.drain(PATIENCE);
    // Wakes a writer that waits for a client that does not read.
    stream.shutdown();
    let _ = writer.join();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes whatever it hears, and holds what it was made from.
    struct Ear(#[expect(dead_code, reason = "it is there to be let go")] Arc<()>);

    impl Talk for Ear {
        fn hear(&mut self, _: &[u8], _: &Outbox) -> bool {
            true
        }
    }

    #[test]
    fn a_dropped_server_lets_go_of_what_it_serves() {
        let folder = tempfile::tempdir().unwrap();
        for address in [Address::Unix(folder.path().join("socket")), Address::Tcp("127.0.0.1".to_owned(), 0)] {
            let machine = Arc::new(());
            let served = machine.clone();
            drop(Server::start(&address, move |_| Ear(served.clone())).unwrap());
            let start = Instant::now();
            while Arc::strong_count(&machine) > 1 {
                assert!(start.elapsed() < Duration::from_secs(20), "{address} is served for ever");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}
