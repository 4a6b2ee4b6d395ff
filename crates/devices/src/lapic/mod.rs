//! The local APIC: xAPIC and x2APIC, with its timer, and the bus that interrupt messages travel on.
//!
//! After SDM vol. 3, chapter "Advanced Programmable Interrupt Controller" (and APM vol. 2, chapter 16, which agrees
//! where both speak): version 14h with six LVT entries, flat, cluster and x2APIC destinations, all delivery modes and
//! shorthands, one-shot, periodic and TSC-deadline timer. One bus clock is one nanosecond, so the timer counts at 1
//! GHz divided by its divide configuration, as the TSC does undivided.
//!
//! Left out: CMCI, AMD's extended registers, SMI (there is no SMM), sources for the thermal and performance entries,
//! suppression of EOI broadcasts, the serial bus of old (arbitration, focus).

mod bus;
mod countdown;
mod describe;
mod spec;
mod state;
#[cfg(test)]
mod tests;
mod vectors;

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use cpu::{Clock, Signals};
use x86::msr;

pub use self::bus::{ApicBus, ApicMmio, EoiSink, ExtInt, Message};
pub use self::spec::DeliveryMode;
use self::spec::{Icr, Shorthand};
use self::state::{After, State};
use crate::line::{IrqLine, Pin};
use crate::sync::lock;
use crate::timer::{Expire, Timer, Timers};

/// Where the xAPIC page is after power-on (guest physical).
pub const APIC_BASE_ADDRESS: u64 = 0xfee0_0000;

/// What tells one local APIC from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApicConfig {
    /// x2APIC ID; its low byte is the xAPIC ID.
    pub id: u32,
    /// This is the bootstrap processor.
    pub bsp: bool,
    /// CPUID offers x2APIC mode.
    pub x2apic: bool,
    /// CPUID offers the timer's TSC-deadline mode.
    pub tsc_deadline: bool,
    /// Width of a physical address in bits, as CPUID tells it.
    pub physical_bits: u32,
}

/// The local APIC of one vCPU.
#[derive(Debug)]
pub struct LocalApic {
    bus: Weak<ApicBus>,
    clock: Arc<dyn Clock>,
    /// Raised with the lock held: [`Signals::INTERRUPT`] exactly while a maskable interrupt could be taken.
    signals: Arc<Signals>,
    timer: Timer,
    /// Lock order: after every device's, the 8259's and the IOAPIC's; before the timer queue's and the signals'. No
    /// two APICs' at a time: messages, EOIs and acknowledges leave after this one is let go.
    state: Mutex<State>,
}

impl LocalApic {
    /// The next vCPU's APIC, on `bus`, as it is after power-on.
    #[must_use]
    pub fn new(config: ApicConfig, bus: &Arc<ApicBus>, timers: &Arc<Timers>, signals: Arc<Signals>) -> Arc<Self> {
        let apic = Arc::new_cyclic(|this: &Weak<Self>| Self {
            bus: Arc::downgrade(bus),
            clock: Arc::clone(timers.clock()),
            signals,
            timer: timers.register(this.clone()),
            state: Mutex::new(State::new(config)),
        });
        bus.add(Arc::clone(&apic));
        apic
    }

    /// Power-on.
    pub fn reset(&self) {
        self.change(State::reset);
    }

    /// What firmware does on the boot processor before it hands over: enables the APIC, lets the 8259's interrupts
    /// through LINT0 and NMI through LINT1.
    pub fn set_virtual_wire(&self) {
        self.change(State::virtual_wire);
    }

    /// The registers as a text, in QEMU's form.
    #[must_use]
    pub fn describe(&self) -> String {
        self.change(|state| describe::describe(state, &*self.clock))
    }

    /// Pin LINT0 (`n` 0) or LINT1 (any other).
    #[must_use]
    pub fn lint_pin(self: &Arc<Self>, n: usize) -> Pin {
        Arc::new(Lint { apic: Arc::downgrade(self), n })
    }

    fn set_lint(&self, n: usize, high: bool) {
        self.change(|state| state.set_lint(n.min(1), high));
    }

    /// Runs `f` on the registers and lets the vCPU and the timer queue know what changed.
    fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = lock(&self.state);
        let result = f(&mut state);
        self.settle(&mut state);
        result
    }

    fn settle(&self, state: &mut MutexGuard<'_, State>) {
        let wanted = state.wants_interrupt();
        if wanted != (self.signals.raised() & Signals::INTERRUPT != 0) {
            if wanted {
                state.raise |= Signals::INTERRUPT;
            } else {
                self.signals.lower(Signals::INTERRUPT);
            }
        }
        let raise = std::mem::take(&mut state.raise);
        if raise != 0 {
            self.signals.raise(raise);
        }
        let expiry = state.next_expiry();
        if expiry != state.armed {
            state.armed = expiry;
            self.timer.set(expiry);
        }
    }

    fn is_addressed(&self, message: &Message) -> bool {
        lock(&self.state).is_addressed(message.destination, message.logical, message.wide)
    }

    /// How busy the processor is; `None` when it takes no vectors.
    fn busyness(&self) -> Option<u8> {
        lock(&self.state).busyness()
    }

    /// Takes a message that is for this APIC.
    fn accept(&self, message: &Message) -> bool {
        self.change(|state| {
            if message.mode == DeliveryMode::StartUp {
                // Not noted as the other signals are: it carries a page.
                return state.accepts_start_up() && {
                    self.signals.raise_sipi(message.vector);
                    true
                };
            }
            state.accept(message.mode, message.vector, message.level)
        })
    }

    fn send(&self, icr: Icr, wide: bool) {
        let Some(bus) = self.bus.upgrade() else { return };
        let message = Message {
            destination: icr.destination(),
            logical: icr.logical(),
            wide,
            mode: icr.mode(),
            vector: icr.vector(),
            // Since the P4 an IPI is edge triggered, whatever its trigger mode bit says (SDM, "ICR").
            level: false,
            one: false,
        };
        match icr.shorthand() {
            Shorthand::None => {
                bus.deliver(&message);
            }
            Shorthand::Oneself => {
                self.accept(&message);
            }
            Shorthand::All => bus.deliver_to_all(&message, None),
            Shorthand::Others => bus.deliver_to_all(&message, Some(self)),
        }
    }

    /// Does what a write left to do. No lock is held.
    fn finish(&self, after: After, wide: bool) {
        match after {
            After::Nothing => {}
            After::Send(icr) => self.send(icr, wide),
            After::Eoi(vector) => {
                if let Some(bus) = self.bus.upgrade() {
                    bus.eoi(vector);
                }
            }
        }
    }

    /// Reads the xAPIC page, if it is at `address`. Registers are 32 bits wide at multiples of 16 bytes; between them
    /// is zero.
    fn read_mmio(&self, address: u64, offset: u64) -> Option<u64> {
        self.change(|state| {
            if !state.answers_at(address) {
                return None;
            }
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            let (register, byte) = (offset & !0xf, offset & 0xf);
            let value = state.read(register, &*self.clock).unwrap_or_else(|_| {
                state.illegal_register();
                0
            });
            Some(u64::from(value.checked_shr(8 * byte).unwrap_or(0)))
        })
    }

    /// Writes the xAPIC page, if it is at `address`. Registers are written whole: an access that is narrower or not
    /// at a register's start has no effect (SDM: undefined).
    fn write_mmio(&self, address: u64, offset: u64, size: usize, value: u64) {
        let after = self.change(|state| {
            if !state.answers_at(address) || size < 4 || offset & 0xf != 0 {
                return After::Nothing;
            }
            let register = u32::try_from(offset).unwrap_or(u32::MAX);
            let value = (value & 0xffff_ffff) as u32;
            state.write(register, value, &*self.clock).unwrap_or_else(|_| {
                state.illegal_register();
                After::Nothing
            })
        });
        self.finish(after, false);
    }

    fn write_base(&self, value: u64) -> Option<()> {
        let page = self.change(|state| state.write_base(value).ok().map(|()| state.base.page() << 12))?;
        if !ApicMmio::WINDOW.contains(&page) {
            tracing::debug!(target: "guest_errors", page, "the local APIC is moved to where no access reaches it");
        }
        Some(())
    }
}

/// The offset in the xAPIC page of an x2APIC MSR's register.
fn x2apic_offset(number: u32) -> Option<u32> {
    (msr::X2APIC_FIRST..=msr::X2APIC_LAST).contains(&number).then(|| (number - msr::X2APIC_FIRST) << 4)
}

impl cpu::LocalApic for LocalApic {
    fn acknowledge(&self) -> Option<u8> {
        let (ext_int, vector) = self.change(|state| {
            let ext_int = state.take_ext_int();
            (ext_int, if ext_int { None } else { state.acknowledge() })
        });
        if ext_int {
            // The 8259 lowers INTR on the way, through LINT0.
            return Some(self.bus.upgrade()?.ext_int()?.acknowledge());
        }
        vector
    }

    fn task_priority(&self) -> u8 {
        lock(&self.state).task_priority()
    }

    fn set_task_priority(&self, class: u8) {
        self.change(|state| state.set_task_priority(class));
    }

    fn read_msr(&self, number: u32) -> Option<u64> {
        if number == msr::APIC_BASE {
            return Some(lock(&self.state).base.into());
        }
        let offset = x2apic_offset(number)?;
        self.change(|state| state.read_x2apic(offset, &*self.clock)).ok()
    }

    fn write_msr(&self, number: u32, value: u64) -> Option<()> {
        if number == msr::APIC_BASE {
            return self.write_base(value);
        }
        let offset = x2apic_offset(number)?;
        let after = self.change(|state| state.write_x2apic(offset, value, &*self.clock)).ok()?;
        self.finish(after, true);
        Some(())
    }

    fn set_deadline(&self, deadline: Option<u64>) {
        self.change(|state| state.set_deadline(deadline, self.clock.now()));
    }

    fn deadline(&self) -> Option<u64> {
        self.change(|state| state.deadline(self.clock.now()))
    }

    fn init(&self) {
        self.change(State::init);
    }
}

impl Expire for LocalApic {
    fn expire(&self, _now: u64) {
        self.change(|state| {
            // The queue has forgotten this deadline, whatever comes next.
            state.armed = None;
            state.advance_timer(self.clock.now());
        });
    }
}

/// LINT0 or LINT1 of one APIC.
#[derive(Debug)]
struct Lint {
    apic: Weak<LocalApic>,
    n: usize,
}

impl IrqLine for Lint {
    fn set(&self, high: bool) {
        if let Some(apic) = self.apic.upgrade() {
            apic.set_lint(self.n, high);
        }
    }
}
