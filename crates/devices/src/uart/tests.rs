//! The serial port by scripts of register accesses.

use super::spec::{DATA, IER, IIR_FCR, LCR, LSR, MCR, MSR, SCR};
use super::*;
use crate::line::IrqLine;
use crate::sink::Kept;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const BASE: u16 = 0x3f8;

#[derive(Debug, Default)]
struct Line(AtomicBool);

impl IrqLine for Line {
    fn set(&self, high: bool) {
        self.0.store(high, Ordering::SeqCst);
    }
}

/// A UART with its line and its output.
struct Bench {
    uart: Uart,
    line: Arc<Line>,
    out: Kept,
}

impl Bench {
    fn new() -> Self {
        let (line, out) = (Arc::new(Line::default()), Kept::default());
        Self { uart: Uart::new(BASE, line.clone(), Box::new(out.clone())), line, out }
    }
    fn read(&self, register: u16) -> u32 {
        self.uart.read(BASE + register, 1)
    }
    fn write(&self, register: u16, value: u32) {
        self.uart.write(BASE + register, 1, value);
    }
    fn irq(&self) -> bool {
        self.line.0.load(Ordering::SeqCst)
    }
}

#[test]
fn reset_values() {
    let b = Bench::new();
    let values: Vec<u32> = [IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR].map(|r| b.read(r)).to_vec();
    assert_eq!(values, [0, 1, 0, 0, 0x60, 0xb0, 0]);
    assert_eq!(b.read(DATA), 0);
    assert!(!b.irq());
}

#[test]
fn output_goes_to_the_sink() {
    let b = Bench::new();
    for byte in b"ok\r\n" {
        assert_eq!(b.read(LSR) & 0x60, 0x60);
        b.write(DATA, u32::from(*byte));
    }
    assert_eq!(b.out.take(), b"ok\r\n");
}

#[test]
fn the_divisor_latch_hides_data_and_enables() {
    let b = Bench::new();
    b.write(LCR, 0x83);
    b.write(DATA, 1);
    b.write(IER, 2);
    assert_eq!((b.read(DATA), b.read(IER)), (1, 2));
    b.write(LCR, 3);
    assert_eq!((b.read(DATA), b.read(IER)), (0, 0));
    assert_eq!(b.out.take(), b"");
}

/// What Linux's `autoconfig` does to find a 16550A: enable bits, loopback of the modem lines, FIFO bits in IIR, scratch.
#[test]
fn linux_takes_it_for_a_16550a() {
    let b = Bench::new();
    b.write(IER, 0);
    assert_eq!(b.read(IER) & 0xf, 0);
    b.write(IER, 0xff);
    assert_eq!(b.read(IER), 0xf, "a 16550A has no sleep bits");
    b.write(IER, 0);
    b.write(MCR, 0x1a);
    assert_eq!(b.read(MSR) & 0xf0, 0x90, "RTS and OUT2 come back as CTS and DCD");
    b.write(MCR, 0);
    b.write(IIR_FCR, 1);
    assert_eq!(b.read(IIR_FCR) >> 6, 3);
    b.write(LCR, 0xbf);
    assert_eq!(b.read(IIR_FCR) & 0x08, 0, "no extended features");
    b.write(LCR, 0);
    b.write(IIR_FCR, 0x21);
    assert_eq!(b.read(IIR_FCR) >> 5, 6, "no 64-byte FIFO");
    for pattern in [0x55, 0xaa] {
        b.write(SCR, pattern);
        assert_eq!(b.read(SCR), pattern);
    }
}

#[test]
fn transmitter_empty_interrupt() {
    let b = Bench::new();
    b.write(MCR, 8);
    b.write(IER, 2);
    assert!(b.irq(), "enabling with an empty register makes it pending");
    assert_eq!(b.read(IIR_FCR), 2);
    assert!(!b.irq(), "reading IIR takes it back");
    assert_eq!(b.read(IIR_FCR), 1);
    b.write(IER, 2);
    assert!(!b.irq(), "enabled before: nothing rises");
    b.write(DATA, 0x41);
    assert!(b.irq(), "the byte left at once");
    b.write(IER, 0);
    assert!(!b.irq());
    b.write(IER, 2);
    assert_eq!(b.read(IIR_FCR), 2, "Linux tests this twice for lost THRE interrupts");
}

#[test]
fn the_interrupt_reaches_the_line_only_with_out2() {
    let b = Bench::new();
    b.write(IER, 2);
    assert!(!b.irq());
    b.write(MCR, 8);
    assert!(b.irq());
    b.write(MCR, 0x18);
    assert!(!b.irq(), "loopback turns the outputs off");
    assert_eq!(b.read(IIR_FCR), 2);
}

#[test]
fn trigger_levels_and_time_out() {
    for (bits, level) in [(0x00, 1), (0x40, 4), (0x80, 8), (0xc0, 14)] {
        let b = Bench::new();
        b.write(MCR, 8);
        b.write(IIR_FCR, bits | 1);
        b.write(IER, 1);
        for n in 1..=spec::FIFO {
            assert_eq!(b.uart.receive(b"x"), 1);
            let cause = if n >= level { 0xc4 } else { 0xcc };
            assert_eq!(b.read(IIR_FCR), cause, "level {level}, {n} bytes");
            assert!(b.irq());
        }
        for _ in 0..spec::FIFO {
            assert_eq!(b.read(LSR), 0x61);
            assert_eq!(b.read(DATA), u32::from(b'x'));
        }
        assert_eq!(b.read(IIR_FCR), 0xc1);
        assert!(!b.irq());
    }
}

#[test]
fn a_full_receiver_holds_the_peer_back() {
    let b = Bench::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    b.uart.on_ready(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    assert_eq!(b.uart.receive(b"ab"), 1, "without FIFO there is one place");
    assert_eq!(b.uart.receive(b"b"), 0);
    assert_eq!(b.read(DATA), u32::from(b'a'));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    b.write(IIR_FCR, 1);
    assert_eq!(b.uart.receive(b"0123456789abcdefXYZ"), 16);
    assert_eq!(b.uart.ready(), 0);
    b.read(DATA);
    b.read(DATA);
    assert_eq!(calls.load(Ordering::SeqCst), 2, "called once, when it stopped being full");
    assert_eq!(b.uart.ready(), 2);
    b.write(IIR_FCR, 3);
    assert_eq!((b.uart.ready(), b.read(LSR)), (16, 0x60), "the receiver FIFO was cleared");
}

#[test]
fn loopback_feeds_the_receiver_and_overruns() {
    let b = Bench::new();
    b.write(MCR, 0x10);
    assert_eq!(b.uart.receive(b"x"), 0, "the peer is cut off");
    b.write(DATA, 0x5a);
    assert_eq!(b.read(LSR), 0x61);
    b.write(DATA, 0x5b);
    assert_eq!(b.read(LSR), 0x63, "overrun");
    assert_eq!(b.read(LSR), 0x61, "reading clears the error");
    assert_eq!(b.read(DATA), 0x5b, "without FIFO the new byte wins");
    b.write(IIR_FCR, 1);
    for byte in 0..17 {
        b.write(DATA, byte);
    }
    b.write(IER, 4);
    assert_eq!(b.read(IIR_FCR), 0xc6, "line status comes first");
    assert_eq!(b.read(LSR) & 2, 2);
    for byte in 0..16 {
        assert_eq!(b.read(DATA), byte, "with FIFO the old bytes win");
    }
    assert_eq!(b.out.take(), b"", "nothing leaves");
}

#[test]
fn modem_status_changes() {
    let b = Bench::new();
    b.write(MCR, 0x18);
    assert_eq!(b.read(MSR), 0x83, "CTS and DSR fell, DCD is OUT2");
    assert_eq!(b.read(MSR), 0x80, "reading clears the changes");
    b.write(MCR, 0x1c);
    assert_eq!(b.read(MSR), 0xc0, "RI rising is no change");
    b.write(IER, 8);
    b.write(MCR, 0x18);
    assert_eq!(b.read(IIR_FCR), 0);
    assert_eq!(b.read(MSR), 0x84, "RI falling is one");
    assert_eq!(b.read(IIR_FCR), 1);
}

#[test]
fn reset_clears_everything() {
    let b = Bench::new();
    b.write(MCR, 8);
    b.write(IER, 3);
    b.uart.receive(b"x");
    assert!(b.irq());
    b.uart.reset();
    assert!(!b.irq());
    assert_eq!((b.read(LSR), b.read(MCR), b.read(IER)), (0x60, 0, 0));
}
