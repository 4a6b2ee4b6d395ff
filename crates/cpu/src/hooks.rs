//! What a vCPU asks of the machine around it, and how the machine reaches a vCPU.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// The machine's one clock.
pub trait Clock: Send + Sync + Debug {
    /// Nanoseconds since the machine was made. Stands still while the machine is paused. The TSC counts the same (1 GHz).
    fn now(&self) -> u64;
}

/// The I/O port space (16-bit addresses).
pub trait PortIo: Send + Sync + Debug {
    /// Reads `size` (1, 2, 4) bytes. An unassigned port reads as all ones.
    fn read(&self, port: u16, size: usize) -> u32;
    /// Writes the low `size` (1, 2, 4) bytes of `value`.
    fn write(&self, port: u16, size: usize, value: u32);
}

/// A vCPU's local APIC, as the processor core sees it.
pub trait LocalApic: Send + Sync + Debug {
    /// Takes the interrupt that is to be serviced now: moves it from requested to in service, or runs the 8259
    /// acknowledge cycle for ExtINT. `None` when there is none (any more).
    fn acknowledge(&self) -> Option<u8>;
    /// TPR bits 7–4, as CR8 shows them.
    fn task_priority(&self) -> u8;
    /// Sets TPR bits 7–4 (and clears 3–0).
    fn set_task_priority(&self, class: u8);
    /// APIC_BASE (MSR 1Bh) and the x2APIC range 800h–8FFh. `None`: #GP.
    fn read_msr(&self, msr: u32) -> Option<u64>;
    /// `None`: #GP.
    fn write_msr(&self, msr: u32, value: u64) -> Option<()>;
    /// Arms (or with `None` disarms) the timer in TSC-deadline mode, at `deadline` nanoseconds of the machine's clock.
    /// Ignored when the timer is not in that mode.
    fn set_deadline(&self, deadline: Option<u64>);
    /// The armed deadline in nanoseconds, if the timer is in TSC-deadline mode and armed.
    fn deadline(&self) -> Option<u64>;
    /// INIT: registers to their reset values, the APIC ID and APIC_BASE stay.
    fn init(&self);
}

/// Makes a vCPU that runs translated code look at its requests. (The interpreter looks between blocks by itself.)
pub trait Kick: Send + Sync + Debug {
    /// Called after a request was raised, on any thread.
    fn kick(&self);
}

/// Requests to a vCPU from other threads, and its sleep in HLT.
///
/// Bits are level-like: whoever raises one is responsible for its meaning. The vCPU polls them between blocks.
#[derive(Debug, Default)]
pub struct Signals {
    bits: AtomicU32,
    sipi: AtomicU8,
    lock: Mutex<()>,
    changed: Condvar,
    kick: OnceLock<Arc<dyn Kick>>,
}

impl Signals {
    /// The local APIC has a deliverable maskable interrupt. Raised and lowered by the APIC.
    pub const INTERRUPT: u32 = 1 << 0;
    /// An NMI is pending. Lowered by the vCPU when it takes it ([`Signals::take_nmi`]).
    pub const NMI: u32 = 1 << 1;
    /// INIT. Lowered by the vCPU.
    pub const INIT: u32 = 1 << 2;
    /// Start-up IPI with a vector. Lowered by the vCPU.
    pub const SIPI: u32 = 1 << 3;
    /// Leave the run loop (reset, power off, pause): `Cpu::run` returns. Lowered by the machine.
    pub const STOP: u32 = 1 << 4;
    /// A second NMI, behind the pending one. A processor takes an NMI at once and latches one that comes meanwhile (SDM
    /// vol. 3A, 6.7.1); here both may come before the vCPU looks.
    pub const NMI_LATCHED: u32 = 1 << 5;

    /// Raises bits and wakes the vCPU.
    pub fn raise(&self, bits: u32) {
        let change = |old: u32| {
            let second = if old & bits & Self::NMI != 0 { Self::NMI_LATCHED } else { 0 };
            Some(old | bits | second)
        };
        // It always changes.
        let _ = self.bits.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
        self.nudge();
        // Taking the lock orders this against a sleeper that has checked the bits and not yet gone to sleep.
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Makes a vCPU that runs translated code leave it, without a request: there is something else to be looked at.
    pub fn nudge(&self) {
        if let Some(kick) = self.kick.get() {
            kick.kick();
        }
    }

    /// Calls `kick` whenever bits are raised, from now on. A vCPU has one; a later one is ignored.
    pub fn set_kick(&self, kick: Arc<dyn Kick>) {
        let _ = self.kick.set(kick);
    }

    /// Lowers bits.
    pub fn lower(&self, bits: u32) {
        self.bits.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Takes the pending NMI; the latched one, if there is one, is pending then.
    pub fn take_nmi(&self) {
        let change = |old: u32| {
            let taken = if old & Self::NMI_LATCHED != 0 { Self::NMI_LATCHED } else { Self::NMI };
            Some(old & !taken)
        };
        let _ = self.bits.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
    }

    /// The raised bits.
    #[inline(always)]
    #[must_use]
    pub fn raised(&self) -> u32 {
        self.bits.load(Ordering::Relaxed)
    }

    /// Where the raised bits are, for translated code.
    #[must_use]
    pub fn word(&self) -> &AtomicU32 {
        &self.bits
    }

    /// Raises [`Self::SIPI`] with its start page.
    pub fn raise_sipi(&self, vector: u8) {
        self.sipi.store(vector, Ordering::SeqCst);
        self.raise(Self::SIPI);
    }

    /// The start page of the last start-up IPI.
    #[must_use]
    pub fn sipi_vector(&self) -> u8 {
        self.sipi.load(Ordering::SeqCst)
    }

    /// Sleeps until one of the bits in `mask` is raised.
    pub fn wait(&self, mask: u32) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.bits.load(Ordering::SeqCst) & mask == 0 {
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Sleeps until one of the bits in `mask` is raised or `limit` has passed. Returns whether one was raised.
    pub fn wait_for(&self, mask: u32, limit: Duration) -> bool {
        let guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |(): &mut ()| self.bits.load(Ordering::SeqCst) & mask == 0;
        drop(self.changed.wait_timeout_while(guard, limit, waiting).unwrap_or_else(PoisonError::into_inner));
        self.bits.load(Ordering::SeqCst) & mask != 0
    }
}
