//! The 16550A's register file, without bus, interrupt line or peer: bytes go in and come out by value.

use super::spec::{self, Cause, FIFO, Fcr, Ier, Lcr, Lsr, Mcr, Msr};
use std::collections::VecDeque;

/// State of one UART.
///
/// Invariants: `fifo` holds at most [`FIFO`] bytes, and at most one when the FIFOs are off. The transmitter is always
/// empty: a byte is gone when the write returns.
#[derive(Debug)]
pub(super) struct Core {
    ier: Ier,
    fcr: Fcr,
    lcr: Lcr,
    mcr: Mcr,
    /// The error bits of LSR; the others are derived.
    errors: Lsr,
    /// The change bits of MSR; the others are derived.
    changes: u8,
    scratch: u8,
    divisor: [u8; 2],
    fifo: VecDeque<u8>,
    /// The "holding register empty" interrupt is pending: set when THRE rises or its interrupt is enabled, cleared when
    /// IIR is read and shows it, and by a write to THR (which raises it again at once, as transmission takes no time).
    transmit_pending: bool,
}

impl Default for Core {
    fn default() -> Self {
        Self {
            ier: Ier::new(),
            fcr: Fcr::new(),
            lcr: Lcr::new(),
            mcr: Mcr::new(),
            errors: Lsr::new(),
            changes: 0,
            scratch: 0,
            // 9600 baud, where firmware leaves it.
            divisor: [12, 0],
            fifo: VecDeque::with_capacity(FIFO),
            transmit_pending: false,
        }
    }
}

impl Core {
    /// Whether the interrupt output is high. On a PC it reaches the interrupt controller only while OUT2 is on, and
    /// loopback turns all modem outputs off.
    pub(super) fn interrupt(&self) -> bool {
        self.cause() != Cause::None && self.mcr.out2() && !self.mcr.loopback()
    }

    /// How many bytes from the peer would be taken now. None in loopback, where the receiver is cut off from the line:
    /// a peer that waits loses nothing.
    pub(super) fn space(&self) -> usize {
        if self.mcr.loopback() { 0 } else { self.capacity().saturating_sub(self.fifo.len()) }
    }

    /// Takes bytes from the peer, as many as there is space for; returns how many.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = self.space().min(bytes.len());
        self.fifo.extend(bytes.iter().take(taken));
        taken
    }

    /// Reads a register.
    pub(super) fn read(&mut self, register: u16) -> u8 {
        let [low, high] = self.divisor;
        match register {
            spec::DATA if self.lcr.divisor_latch() => low,
            spec::DATA => self.fifo.pop_front().unwrap_or(0),
            spec::IER if self.lcr.divisor_latch() => high,
            spec::IER => self.ier.into_bits(),
            spec::IIR_FCR => {
                let cause = self.cause();
                if cause == Cause::TransmitEmpty {
                    self.transmit_pending = false;
                }
                cause as u8 | if self.fcr.enable() { spec::IIR_FIFOS } else { 0 }
            }
            spec::LCR => self.lcr.into_bits(),
            spec::MCR => self.mcr.into_bits(),
            spec::LSR => {
                let status = self.errors.with_data_ready(!self.fifo.is_empty());
                self.errors = Lsr::new();
                status.with_holding_empty(true).with_transmitter_empty(true).into_bits()
            }
            spec::MSR => {
                let changes = std::mem::take(&mut self.changes);
                self.modem_lines().with_changes(changes).into_bits()
            }
            spec::SCR.. => self.scratch,
        }
    }

    /// Writes a register. `Some`: this byte goes out to the peer.
    pub(super) fn write(&mut self, register: u16, value: u8) -> Option<u8> {
        let [low, high] = &mut self.divisor;
        match register {
            spec::DATA if self.lcr.divisor_latch() => *low = value,
            spec::DATA => return self.transmit(value),
            spec::IER if self.lcr.divisor_latch() => *high = value,
            spec::IER => {
                let new = Ier::from_bits(value & 0xf);
                // Enabling the interrupt while the register is empty (it always is) makes it pending.
                self.transmit_pending = new.transmit_empty() && (self.transmit_pending || !self.ier.transmit_empty());
                self.ier = new;
            }
            spec::IIR_FCR => self.set_fcr(Fcr::from_bits(value)),
            spec::LCR => {
                let was = self.lcr.set_break();
                self.lcr = Lcr::from_bits(value);
                // Loopback feeds a break back: a zero byte with the break bit.
                if self.mcr.loopback() && self.lcr.set_break() && !was {
                    self.loop_back(0);
                    self.errors.set_break_interrupt(true);
                }
            }
            spec::MCR => {
                let before = self.modem_lines();
                self.mcr = Mcr::from_bits(value & 0x1f);
                self.note_changes(before);
            }
            // Factory test registers: writes are not for software, and Linux relies on nothing here.
            spec::LSR | spec::MSR => {}
            spec::SCR.. => self.scratch = value,
        }
        None
    }

    /// The most urgent pending interrupt (data sheet, table IV).
    ///
    /// The time-out interrupt is due after four character times without traffic. Here a character takes no time, so it
    /// is due at once.
    fn cause(&self) -> Cause {
        let full = if self.fcr.enable() { self.fifo.len() >= self.trigger() } else { !self.fifo.is_empty() };
        if self.ier.line_status() && self.errors != Lsr::new() {
            Cause::LineStatus
        } else if self.ier.received() && full {
            Cause::Received
        } else if self.ier.received() && !self.fifo.is_empty() {
            Cause::TimeOut
        } else if self.ier.transmit_empty() && self.transmit_pending {
            Cause::TransmitEmpty
        } else if self.ier.modem_status() && self.changes != 0 {
            Cause::ModemStatus
        } else {
            Cause::None
        }
    }

    /// The FIFO's trigger level in bytes.
    fn trigger(&self) -> usize {
        match self.fcr.trigger() {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    /// Bytes that the receiver holds.
    fn capacity(&self) -> usize {
        if self.fcr.enable() { FIFO } else { 1 }
    }

    /// A write to THR.
    fn transmit(&mut self, value: u8) -> Option<u8> {
        self.transmit_pending = self.ier.transmit_empty();
        if self.mcr.loopback() {
            self.loop_back(value);
            return None;
        }
        Some(value)
    }

    /// A byte arrives from the own transmitter. One too many overruns: without FIFOs it replaces the byte that waits,
    /// with FIFOs it is lost.
    fn loop_back(&mut self, value: u8) {
        if self.fifo.len() < self.capacity() {
            self.fifo.push_back(value);
            return;
        }
        self.errors.set_overrun(true);
        if !self.fcr.enable() {
            self.fifo.clear();
            self.fifo.push_back(value);
        }
    }

    /// A write to FCR.
    fn set_fcr(&mut self, new: Fcr) {
        if new.enable() != self.fcr.enable() || (new.enable() && new.clear_receiver()) {
            self.fifo.clear();
        }
        // The transmitter FIFO is empty already. The clear bits clear themselves.
        self.fcr = if new.enable() { new.with_clear_receiver(false).with_clear_transmitter(false) } else { Fcr::new() };
    }

    /// The modem lines as the guest sees them now: a peer that is always ready, or in loopback the guest's own outputs.
    fn modem_lines(&self) -> Msr {
        if self.mcr.loopback() {
            let mcr = self.mcr;
            Msr::new().with_cts(mcr.rts()).with_dsr(mcr.dtr()).with_ri(mcr.out1()).with_dcd(mcr.out2())
        } else {
            Msr::new().with_cts(true).with_dsr(true).with_dcd(true)
        }
    }

    /// Sets the change bits for lines that differ from `before`; RI counts only when it falls.
    fn note_changes(&mut self, before: Msr) {
        const RI: u8 = 1 << 2;
        let (old, new) = (before.into_bits() >> 4, self.modem_lines().into_bits() >> 4);
        self.changes |= (old ^ new) & !(new & RI);
    }
}
