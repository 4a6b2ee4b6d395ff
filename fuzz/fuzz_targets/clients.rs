//! What clients send: lines to the monitor, QEMU's machine protocol, gdb's remote protocol. The first byte says which; the
//! rest is sent to a paused machine as it is. Commands that write files where the client says are left away.
#![no_main]

use control::{Address, Monitor, serve_gdb, serve_qmp};
use fuzz::Running;
use libfuzzer_sys::fuzz_target;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Commands that write files.
const WRITERS: [&[u8]; 2] = [b"memsave", b"dump-guest"];
/// `jmp $`
const LOOP: [u8; 2] = [0xeb, 0xfe];

/// Sends it all and reads until the server closes.
fn talk(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = stream.try_clone()?;
    let answers = std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        loop {
            match reader.read(&mut chunk) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
            }
        }
    });
    // A server may have closed already.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    assert!(answers.join().expect("the reader ends"), "the server does not end the conversation");
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, bytes)) = data.split_first() else { return };
    let bytes = &bytes[..bytes.len().min(4096)];
    if WRITERS.iter().any(|name| bytes.windows(name.len()).any(|window| window == *name)) {
        return;
    }
    let guest = Running::new(&LOOP, true, |_| ()).expect("the machine is made");
    assert!(guest.handle.wait_paused(), "the machine stands still");
    if kind % 4 < 2 {
        let mut monitor = Monitor::new(guest.handle.clone());
        for line in String::from_utf8_lossy(bytes).lines().take(16) {
            monitor.execute(line);
            drop(Monitor::complete(line));
        }
        return;
    }
    let folder = tempfile::tempdir().expect("the host has room");
    let path = folder.path().join("socket");
    let server = if kind % 4 == 2 {
        serve_qmp(&path, guest.handle.clone())
    } else {
        serve_gdb(&Address::Unix(path.clone()), guest.handle.clone())
    };
    let server = server.expect("the socket is made");
    talk(&path, bytes).expect("the server is reached");
    drop(server);
});
