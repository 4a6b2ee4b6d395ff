//! The keyboard controller by scripts of port accesses.

use super::*;
use crate::line::IrqLine;
use crate::power::Asked;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug, Default)]
struct Line(AtomicBool);

impl IrqLine for Line {
    fn set(&self, high: bool) {
        self.0.store(high, Ordering::SeqCst);
    }
}

struct Bench {
    chip: I8042,
    line: Arc<Line>,
    a20: Arc<A20>,
    asked: Arc<Asked>,
}

impl Bench {
    fn new() -> Self {
        let (line, a20, asked) = (Arc::new(Line::default()), Arc::new(A20::default()), Arc::new(Asked::default()));
        Self { chip: I8042::new(line.clone(), a20.clone(), asked.clone()), line, a20, asked }
    }
    fn status(&self) -> u32 {
        self.chip.read(COMMAND, 1)
    }
    fn command(&self, command: u32) {
        self.chip.write(COMMAND, 1, command);
    }
    fn send(&self, byte: u32) {
        self.chip.write(DATA, 1, byte);
    }
    /// The byte that waits, which must be there.
    fn answer(&self) -> u32 {
        assert_eq!(self.status() & 1, 1, "a byte waits");
        let byte = self.chip.read(DATA, 1);
        assert_eq!(self.status() & 1, 0, "and only one");
        byte
    }
    fn ask(&self, command: u32) -> u32 {
        self.command(command);
        self.answer()
    }
}

#[test]
fn tests_and_ram() {
    let b = Bench::new();
    assert_eq!(b.status(), 0x14);
    assert_eq!(b.ask(0xaa), 0x55);
    assert_eq!(b.ask(0xab), 0);
    assert_eq!(b.ask(0xa9), 1, "no auxiliary port");
    assert_eq!(b.ask(0x20), 0x74);
    b.command(0x60);
    assert_eq!(b.status(), 0x1c, "the last write was a command");
    b.send(0x47);
    assert_eq!(b.ask(0x20), 0x47);
    b.command(0xad);
    assert_eq!(b.ask(0x20), 0x57);
    b.command(0xae);
    assert_eq!(b.ask(0x20), 0x47);
    b.command(0x7f);
    b.send(0x99);
    assert_eq!(b.ask(0x3f), 0x99);
}

/// Linux sends 5Ah through the auxiliary loop and takes the port for absent when the answer is not marked as its own.
#[test]
fn linux_finds_no_auxiliary_port() {
    let b = Bench::new();
    b.command(0xd3);
    b.send(0x5a);
    assert_eq!(b.status() & 0x21, 1);
    assert_eq!(b.answer(), 0x5a);
    b.command(0xd4);
    b.send(0xff);
    assert_eq!(b.status() & 1, 0);
}

#[test]
fn an_absent_keyboard_times_out() {
    let b = Bench::new();
    b.command(0x60);
    b.send(0x45);
    b.send(0xf2);
    assert!(b.line.0.load(Ordering::SeqCst), "IRQ 1");
    assert_eq!(b.status() & 0x41, 0x41);
    assert_eq!(b.answer(), 0xfe);
    assert!(!b.line.0.load(Ordering::SeqCst));
    assert_eq!(b.status() & 0x40, 0);
    b.command(0x60);
    b.send(0x44);
    b.send(0xf2);
    assert!(!b.line.0.load(Ordering::SeqCst), "interrupt off");
}

#[test]
fn a20_both_ways() {
    let b = Bench::new();
    assert_eq!(b.ask(0xd0) & 3, 3);
    b.command(0xd1);
    b.send(0xdd);
    assert!(!b.a20.open());
    assert_eq!(b.ask(0xd0) & 3, 1);
    b.command(0xd1);
    b.send(0xdf);
    assert!(b.a20.open());
    b.command(0xdd);
    assert!(!b.a20.open());
    b.command(0xdf);
    assert!(b.a20.open());
    assert_eq!(b.asked.take(), []);
}

#[test]
fn reset_by_pulse_and_by_output_port() {
    let b = Bench::new();
    b.command(0xff);
    assert_eq!(b.asked.take(), []);
    b.command(0xfe);
    assert_eq!(b.asked.take(), [PowerRequest::Reset]);
    b.command(0xd1);
    b.send(0x02);
    assert_eq!(b.asked.take(), [PowerRequest::Reset]);
    b.command(0x60);
    b.send(0x01);
    b.chip.reset();
    assert_eq!(b.ask(0x20), 0x74);
}
