//! What the fuzz targets share: a file that holds an input, and machines that an input drives.

use cpu::cpuid::Model;
use machine::{Accel, Config, DebugExitPorts, Handle, Machine, MachineError, Outcome};
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::NamedTempFile;

/// Where a guest that [`flat`] made is loaded: where closing the A20 gate changes no address.
const BASE: u32 = 0x20_0000;
/// Physical address of its first instruction.
pub const ENTRY: u32 = BASE + 0x40;

/// A file that holds `bytes` and goes away when dropped.
///
/// # Errors
/// The host's.
pub fn file(bytes: &[u8]) -> io::Result<NamedTempFile> {
    let mut file = NamedTempFile::new()?;
    file.write_all(bytes)?;
    Ok(file)
}

/// A multiboot image that runs `code` in protected mode, without paging and without an interrupt table.
#[must_use]
pub fn flat(code: &[u8]) -> Vec<u8> {
    let (magic, flags) = (0x1bad_b002_u32, 1_u32 << 16);
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let words = [magic, flags, checksum, BASE, BASE, 0, 0, ENTRY];
    let mut image: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    image.resize((ENTRY - BASE) as usize, 0);
    image.extend_from_slice(code);
    image
}

/// A machine on a thread of its own. It ends when dropped.
#[derive(Debug)]
pub struct Running {
    /// The way to it.
    pub handle: Handle,
    thread: Option<JoinHandle<Result<Outcome, MachineError>>>,
    /// Its other end goes away with the thread.
    end: Receiver<()>,
    /// Read again at each reset.
    _kernel: NamedTempFile,
}

impl Running {
    /// Starts one with `code`, which stands still at its first instruction if `paused`. A triple fault ends it.
    ///
    /// # Errors
    /// The host's, or why there is no such machine.
    pub fn new(code: &[u8], paused: bool, configure: impl FnOnce(&mut Config)) -> Result<Self, MachineError> {
        let kernel = file(&flat(code)).map_err(MachineError::Thread)?;
        let mut config = Config {
            memory: 4 << 20,
            accel: Accel::Interp,
            kernel: Some(kernel.path().into()),
            isa_debug_exit: Some(DebugExitPorts { iobase: 0xf4, iosize: 4 }),
            no_reboot: true,
            ..Config::new(Arc::new(Model::max()))
        };
        configure(&mut config);
        let machine = Machine::new(config)?;
        let handle = machine.handle();
        if paused {
            handle.pause();
        }
        let (runs, end) = channel::<()>();
        let run = move || {
            let _runs = runs;
            machine.run()
        };
        let thread = std::thread::Builder::new().spawn(run).map_err(MachineError::Thread)?;
        Ok(Self { handle, thread: Some(thread), end, _kernel: kernel })
    }

    /// Waits for its end, no longer than `time`. Whether it has ended.
    #[must_use]
    pub fn wait(&self, time: Duration) -> bool {
        self.end.recv_timeout(time) == Err(RecvTimeoutError::Disconnected)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.quit();
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            Some(Ok(Err(error @ MachineError::Bug(_)))) => panic!("{error}"),
            _ => {}
        }
    }
}
