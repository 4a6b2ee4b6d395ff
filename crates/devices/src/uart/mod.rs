//! The serial port: a 16550A UART (National Semiconductor PC16550D data sheet).
//!
//! All registers, both FIFOs, interrupt priorities and loopback. Transmission takes no time, whatever the divisor says:
//! the transmitter is always empty, and the time-out interrupt for bytes below the trigger level is due at once. There
//! is no line noise, so no parity or framing errors; the peer keeps CTS, DSR and DCD on.
//!
//! The register file ([`core`]) knows neither bus nor peer; this file joins it to both.

mod core;
mod spec;
#[cfg(test)]
mod tests;

use crate::sync::lock;
use crate::{Pin, PortDevice, Reset, Sink};
use std::fmt;
use std::sync::{Arc, Mutex};

/// Ports that a UART takes.
pub const PORTS: u16 = 8;

/// The PC's four serial ports: first I/O port and ISA interrupt of COM1 to COM4.
pub const COM: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// Called when the receiver has room again.
type Ready = Arc<dyn Fn() + Send + Sync>;

/// One serial port.
///
/// Lock order: `core`, then whatever the interrupt line takes. `sink` and `ready` are taken with `core` free, so that a
/// slow peer holds up only the vCPU that writes.
pub struct Uart {
    base: u16,
    core: Mutex<core::Core>,
    line: Pin,
    sink: Mutex<Box<dyn Sink>>,
    ready: Mutex<Option<Ready>>,
}

impl fmt::Debug for Uart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uart").field("base", &self.base).field("core", &self.core).finish_non_exhaustive()
    }
}

impl Uart {
    /// A UART whose first port is `base`, which interrupts through `line` and transmits to `sink`.
    #[must_use]
    pub fn new(base: u16, line: Pin, sink: Box<dyn Sink>) -> Self {
        Self { base, core: Mutex::default(), line, sink: Mutex::new(sink), ready: Mutex::default() }
    }

    /// Gives the guest bytes from the peer. Returns how many were taken: when fewer than were offered, the receiver is
    /// full, and the function given to [`Uart::on_ready`] is called when it has room again.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        self.with(|core| core.receive(bytes))
    }

    /// How many bytes [`Uart::receive`] would take now.
    #[must_use]
    pub fn ready(&self) -> usize {
        lock(&self.core).space()
    }

    /// Has `ready` called, on a vCPU's thread and without any lock held, whenever a full receiver gets room.
    pub fn on_ready(&self, ready: impl Fn() + Send + Sync + 'static) {
        *lock(&self.ready) = Some(Arc::new(ready));
    }

    /// Does something to the registers and drives the interrupt line, all under the lock so that the line never lags.
    fn with<R>(&self, act: impl FnOnce(&mut core::Core) -> R) -> R {
        let mut core = lock(&self.core);
        let was_full = core.space() == 0;
        let result = act(&mut core);
        self.line.set(core.interrupt());
        let has_room = core.space() > 0;
        drop(core);
        if was_full && has_room {
            let ready = lock(&self.ready).clone();
            if let Some(ready) = ready {
                ready();
            }
        }
        result
    }
}

impl PortDevice for Uart {
    fn name(&self) -> &str {
        "serial"
    }

    fn read(&self, port: u16, _size: usize) -> u32 {
        self.with(|core| core.read(port.wrapping_sub(self.base) % PORTS)).into()
    }

    fn write(&self, port: u16, _size: usize, value: u32) {
        let [byte, ..] = value.to_le_bytes();
        if let Some(sent) = self.with(|core| core.write(port.wrapping_sub(self.base) % PORTS, byte)) {
            lock(&self.sink).write(&[sent]);
        }
    }
}

impl Reset for Uart {
    fn reset(&self) {
        self.with(|core| *core = core::Core::default());
    }
}
