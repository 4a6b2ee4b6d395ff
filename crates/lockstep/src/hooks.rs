//! What the test machine's processor is connected to: a device that records, ports that end a case, ask for an interrupt
//! or have memory written, a local APIC that follows a script, a clock that stands still.

use crate::layout::{CODE_GPA, CODE_LEN};
use cpu::hooks::{Clock, LocalApic, PortIo, Signals};
use memory::{Gpa, Mmio, PhysicalMap};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use x86::msr;

/// A write to this port ends the case.
pub const END: u8 = 0xe0;
/// A write to this port asks for an interrupt: see [`Control::ask`].
pub const ASK: u8 = 0xe1;
/// A word written to this port has a device write into the case's code: where, the word's lower bits say.
pub const DMA: u8 = 0xe4;
/// The vector of that interrupt.
pub const ASKED: u8 = 0x31;
/// The vector of the interrupts that come at any time and leave no trace.
pub const ASYNC: u8 = 0x32;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One access to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// A write, or else a read.
    pub write: bool,
    /// Offset in the page.
    pub offset: u64,
    /// Bytes.
    pub size: usize,
    /// What was written, or what the device answered.
    pub value: u64,
}

/// Records every access; answers with something else each time.
#[derive(Debug, Default)]
pub struct Recorder(Mutex<Vec<Record>>);

impl Recorder {
    /// What was recorded so far.
    pub fn records(&self) -> MutexGuard<'_, Vec<Record>> {
        lock(&self.0)
    }
}

impl Mmio for Recorder {
    fn read(&self, _: usize, offset: u64, size: usize) -> u64 {
        let mut records = lock(&self.0);
        let word = (records.len() as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ offset << 32;
        let value = word & u64::MAX >> (64 - 8 * size);
        records.push(Record { write: false, offset, size, value });
        value
    }

    fn write(&self, _: usize, offset: u64, size: usize, value: u64) {
        lock(&self.0).push(Record { write: true, offset, size, value });
    }
}

/// The ports by which a case ends, asks for interrupts, and has its code written by a device. No other answers.
#[derive(Debug)]
pub struct Control {
    ended: AtomicBool,
    signals: Arc<Signals>,
    apic: Arc<Script>,
    map: Arc<PhysicalMap>,
}

impl Control {
    /// For the vCPU that `signals` reach.
    #[must_use]
    pub fn new(signals: Arc<Signals>, apic: Arc<Script>, map: Arc<PhysicalMap>) -> Self {
        Self { ended: AtomicBool::new(false), signals, apic, map }
    }

    /// Whether the case has ended.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// Asks for an interrupt that is logged like an exception.
    pub fn ask(&self) {
        lock(&self.apic.asked).push_back(ASKED);
        self.signals.raise(Signals::INTERRUPT);
    }

    /// To the state before a case.
    pub fn reset(&self) {
        self.ended.store(false, Relaxed);
    }
}

impl PortIo for Control {
    fn read(&self, _: u16, size: usize) -> u32 {
        u32::MAX >> (32 - 8 * size)
    }

    fn write(&self, port: u16, size: usize, value: u32) {
        let Ok(port) = u8::try_from(port) else { return };
        match port {
            END => {
                self.ended.store(true, Relaxed);
                self.signals.raise(Signals::STOP);
            }
            ASK => self.ask(),
            DMA if size == 4 => {
                let word = value.wrapping_mul(0x9e37_79b1).to_le_bytes();
                let offset = (u64::from(value) & 0x3fff).min(CODE_LEN - 4);
                self.map.write(Gpa(CODE_GPA + offset), &word).expect("RAM is there");
            }
            _ => {}
        }
    }
}

/// A local APIC whose interrupts are written down beforehand.
#[derive(Debug, Default)]
pub struct Script {
    signals: Arc<Signals>,
    asked: Mutex<VecDeque<u8>>,
    storm: AtomicU32,
    priority: AtomicU8,
    /// Interrupts that were taken since the machine was made.
    pub taken: AtomicU32,
}

impl Script {
    /// For the vCPU that `signals` reach.
    #[must_use]
    pub fn new(signals: Arc<Signals>) -> Self {
        Self { signals, ..Self::default() }
    }

    /// To the state before a case in which `storm` interrupts wait one behind the other.
    pub fn reset(&self, storm: u32) {
        lock(&self.asked).clear();
        self.priority.store(0, Relaxed);
        self.storm.store(storm, Relaxed);
        self.signals.lower(u32::MAX);
        if storm > 0 {
            self.signals.raise(Signals::INTERRUPT);
        }
    }
}

impl LocalApic for Script {
    fn acknowledge(&self) -> Option<u8> {
        let mut asked = lock(&self.asked);
        let vector = asked.pop_front().or_else(|| {
            let left = self.storm.load(Relaxed).checked_sub(1)?;
            self.storm.store(left, Relaxed);
            Some(ASYNC)
        });
        if asked.is_empty() && self.storm.load(Relaxed) == 0 {
            self.signals.lower(Signals::INTERRUPT);
        }
        self.taken.fetch_add(u32::from(vector.is_some()), Relaxed);
        vector
    }
    fn task_priority(&self) -> u8 {
        self.priority.load(Relaxed)
    }
    fn set_task_priority(&self, class: u8) {
        self.priority.store(class, Relaxed);
    }
    fn read_msr(&self, number: u32) -> Option<u64> {
        (number == msr::APIC_BASE).then_some(0xfee0_0900)
    }
    fn write_msr(&self, number: u32, _: u64) -> Option<()> {
        (number == msr::APIC_BASE).then_some(())
    }
    fn set_deadline(&self, _: Option<u64>) {}
    fn deadline(&self) -> Option<u64> {
        None
    }
    fn init(&self) {}
}

/// Time does not pass.
#[derive(Debug)]
pub struct Standstill;

impl Clock for Standstill {
    fn now(&self) -> u64 {
        0x1234_5678
    }
}
