//! ACPI power management: PM1a events and control, the PM timer, GPE0, the SMI command port, the reset register
//! (ACPI specification 6.5, section 4.8; PIIX4 data sheet for what the specification leaves to the chipset).
//!
//! No firmware runs before the guest, so the machine starts in ACPI mode (SCI_EN set). S5 powers off. In S3 the machine
//! sleeps until the power button or the clock's interrupt, if that is enabled, wakes it. S1, S2 and S4 are not there:
//! writing their sleep types does nothing. There is no SMM: a command to port B2h is known or is ignored. No device raises
//! a general-purpose event yet.

mod reset;
mod spec;
#[cfg(test)]
mod tests;

use crate::sync::lock;
use crate::timer::{Expire, Timer, Timers};
use crate::{IrqLine, Pin, PortDevice, PowerRequest, PowerSwitch, Reset};
use cpu::Clock;
use spec::{Control, Events};
use std::sync::{Arc, Mutex, Weak};

pub use reset::ResetControl;

/// First port of the block of PM1 status, enable, control and the timer.
pub const BASE: u16 = 0x600;
/// Ports in that block.
pub const PORTS: u16 = 12;
/// Port of PM1 control.
pub const CONTROL: u16 = BASE + 4;
/// Port of the PM timer.
pub const TIMER: u16 = BASE + 8;
/// First port of GPE0: two bytes of status, two of enables.
pub const GPE0: u16 = 0x620;
/// Ports of GPE0.
pub const GPE0_PORTS: u16 = 4;
/// SMI command port; its neighbour is the status port, a byte of scratch.
pub const SMI: u16 = 0xb2;
/// Ports of the SMI command and status.
pub const SMI_PORTS: u16 = 2;
/// What is written to [`SMI`] to set SCI_EN.
pub const ACPI_ENABLE: u8 = 0xf1;
/// What is written to [`SMI`] to clear it.
pub const ACPI_DISABLE: u8 = 0xf0;

/// What the ACPI tables say, and the device must agree with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The sleep type that means S3.
    pub s3: u8,
    /// The sleep type that means S5.
    pub s5: u8,
    /// Whether the PM timer has 32 bits rather than 24.
    pub timer_32: bool,
}

/// Where the machine is on its way through S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sleep {
    Awake,
    Asleep,
    /// An event has woken it; the reset that wakes everything else leaves the events.
    Waking,
}

#[derive(Debug)]
struct Core {
    /// PM1 status, but for the timer's bit, which is derived.
    status: Events,
    enable: Events,
    control: Control,
    /// How often the timer's highest bit had changed when its status bit was last cleared.
    halves: u64,
    gpe_enable: [u8; 2],
    /// The SMI status port.
    scratch: u8,
    sleep: Sleep,
}

/// The power management device.
///
/// Lock order: `core`, then the timer queue's and whatever the interrupt line takes. The power switch is called with
/// `core` free, but perhaps with the clock's lock held, whose interrupt wakes the machine.
#[derive(Debug)]
pub struct Pm {
    core: Mutex<Core>,
    layout: Layout,
    clock: Arc<dyn Clock>,
    timer: Timer,
    /// The SCI: active high here; the interrupt controllers know it as level-triggered.
    sci: Pin,
    power: Arc<dyn PowerSwitch>,
}

impl Core {
    fn new(halves: u64) -> Self {
        Self {
            status: Events::new(),
            enable: Events::new(),
            control: Control::new().with_sci_enable(true),
            halves,
            gpe_enable: [0; 2],
            scratch: 0,
            sleep: Sleep::Awake,
        }
    }
}

/// Byte `index` of `word` replaced.
fn with_byte(word: u16, index: usize, byte: u8) -> u16 {
    let mut bytes = word.to_le_bytes();
    if let Some(at) = bytes.get_mut(index) {
        *at = byte;
    }
    u16::from_le_bytes(bytes)
}

impl Pm {
    /// A device that raises `sci` and powers off through `power`. Time is that of `timers`.
    #[must_use]
    pub fn new(layout: Layout, timers: &Arc<Timers>, sci: Pin, power: Arc<dyn PowerSwitch>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let target: Weak<dyn Expire> = this.clone();
            let (clock, timer) = (timers.clock().clone(), timers.register(target));
            Self { core: Mutex::new(Core::new(0)), layout, clock, timer, sci, power }
        })
    }

    /// The user presses the power button: a guest with ACPI shuts itself down.
    pub fn press_power_button(&self) {
        self.with(|core| core.status.set_power_button(true));
    }

    /// The machine sleeps now, in S3: an event that is to wake it asks for that from here on.
    pub fn sleep(&self) {
        self.with(|core| core.sleep = Sleep::Asleep);
    }

    /// A line for the clock's interrupt, which is a power event as well.
    #[must_use]
    pub fn clock_line(self: &Arc<Self>) -> Pin {
        Arc::new(ClockLine(self.clone()))
    }

    /// Ticks of the PM timer since the machine was made; the register shows the low 24 or 32 bits.
    fn ticks(&self) -> u64 {
        let ticks = u128::from(self.clock.now()) * u128::from(spec::TIMER_HZ) / 1_000_000_000;
        // The rate is below the clock's, so this always fits.
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// The index of the timer's highest bit.
    fn high_bit(&self) -> u32 {
        if self.layout.timer_32 { 31 } else { 23 }
    }

    /// PM1 status with the timer's bit.
    fn status(&self, core: &Core) -> Events {
        core.status.with_timer(self.ticks() >> self.high_bit() != core.halves)
    }

    /// Acts on the registers, then drives the SCI, sets the deadline of the next timer event, if one is wanted, and wakes the
    /// machine, if there is an event that does.
    fn with<R>(&self, act: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = lock(&self.core);
        let result = act(&mut core);
        let due = self.status(&core).into_bits() & core.enable.into_bits() & Events::ENABLES;
        self.sci.set(core.control.sci_enable() && due != 0);
        let wanted = core.control.sci_enable() && core.enable.timer() && !self.status(&core).timer();
        self.timer.set(wanted.then(|| {
            let ticks = u128::from(core.halves.saturating_add(1)) << self.high_bit();
            let nanoseconds = (ticks * 1_000_000_000).div_ceil(u128::from(spec::TIMER_HZ));
            u64::try_from(nanoseconds).unwrap_or(u64::MAX)
        }));
        let wakes = core.status.into_bits() & (core.enable.with_power_button(true).into_bits() & Events::WAKES);
        let wake = core.sleep == Sleep::Asleep && wakes != 0;
        if wake {
            core.sleep = Sleep::Waking;
        }
        drop(core);
        if wake {
            self.power.request(PowerRequest::Wake);
        }
        result
    }

    /// The whole block as its bytes, read at one instant.
    fn block(&self) -> [u8; spec::BLOCK] {
        self.with(|core| {
            let [s0, s1] = self.status(core).into_bits().to_le_bytes();
            let [e0, e1] = core.enable.into_bits().to_le_bytes();
            let [c0, c1] = core.control.into_bits().to_le_bytes();
            let [t0, t1, t2, t3, ..] = self.ticks().to_le_bytes();
            [s0, s1, e0, e1, c0, c1, 0, 0, t0, t1, t2, if self.layout.timer_32 { t3 } else { 0 }]
        })
    }

    /// A byte written to the block. Returns what is asked of the machine.
    fn write_block(&self, core: &mut Core, offset: usize, byte: u8) -> Option<PowerRequest> {
        match offset {
            spec::STATUS..spec::ENABLE => {
                let clear = Events::from_bits(with_byte(0, offset - spec::STATUS, byte));
                if clear.timer() {
                    core.halves = self.ticks() >> self.high_bit();
                }
                core.status = Events::from_bits(core.status.into_bits() & !clear.into_bits());
            }
            spec::ENABLE..spec::CONTROL => {
                let new = with_byte(core.enable.into_bits(), offset - spec::ENABLE, byte);
                core.enable = Events::from_bits(new & Events::ENABLES);
            }
            spec::CONTROL..=5 => {
                let new = Control::from_bits(with_byte(core.control.into_bits(), offset - spec::CONTROL, byte));
                let sci = core.control.sci_enable();
                core.control = Control::new()
                    .with_sci_enable(sci)
                    .with_bus_master_reload(new.bus_master_reload())
                    .with_sleep_type(new.sleep_type());
                match new.sleep_type() {
                    _ if !new.sleep_enable() => {}
                    kind if kind == self.layout.s5 => return Some(PowerRequest::PowerOff),
                    kind if kind == self.layout.s3 => return Some(PowerRequest::Suspend),
                    kind => tracing::debug!(target: "guest_errors", sleep_type = kind, "there is no such sleep state"),
                }
            }
            _ => {}
        }
        None
    }
}

impl Expire for Pm {
    fn expire(&self, _now: u64) {
        self.with(|_| ());
    }
}

/// See [`Pm::clock_line`].
#[derive(Debug)]
struct ClockLine(Arc<Pm>);

impl IrqLine for ClockLine {
    fn set(&self, high: bool) {
        if high {
            self.0.with(|core| core.status.set_rtc(true));
        }
    }
}

impl PortDevice for Pm {
    fn name(&self) -> &str {
        "pm"
    }

    fn read(&self, port: u16, size: usize) -> u32 {
        let (bytes, base): (&[u8], u16) = match port {
            SMI.. if port < SMI + SMI_PORTS => (&[0, self.with(|core| core.scratch)], SMI),
            GPE0.. if port < GPE0 + GPE0_PORTS => {
                let [low, high] = self.with(|core| core.gpe_enable);
                (&[0, 0, low, high], GPE0)
            }
            _ => (&self.block(), BASE),
        };
        let offset = usize::from(port.wrapping_sub(base));
        let byte = |i: usize| bytes.get(offset + i).copied().filter(|_| i < size).unwrap_or(0);
        u32::from_le_bytes([byte(0), byte(1), byte(2), byte(3)])
    }

    fn write(&self, port: u16, size: usize, value: u32) {
        let request = self.with(|core| {
            let mut request = None;
            for (port, byte) in (port..).zip(value.to_le_bytes()).take(size) {
                match port {
                    SMI if byte == ACPI_ENABLE => core.control.set_sci_enable(true),
                    SMI if byte == ACPI_DISABLE => core.control.set_sci_enable(false),
                    SMI => tracing::debug!(target: "guest_errors", command = byte, "unknown SMI command"),
                    _ if port == SMI + 1 => core.scratch = byte,
                    GPE0.. if port < GPE0 + GPE0_PORTS => {
                        let offset = usize::from(port - GPE0);
                        // No event is ever pending, so there is nothing to clear in the status half.
                        if let Some(at) = offset.checked_sub(spec::GPE_ENABLE).and_then(|i| core.gpe_enable.get_mut(i))
                        {
                            *at = byte;
                        }
                    }
                    _ => request = request.or(self.write_block(core, usize::from(port.wrapping_sub(BASE)), byte)),
                }
            }
            request
        });
        if let Some(request) = request {
            self.power.request(request);
        }
    }
}

impl Reset for Pm {
    fn reset(&self) {
        self.with(|core| {
            let new = Core::new(self.ticks() >> self.high_bit());
            *core = match core.sleep {
                Sleep::Waking => Core { status: core.status.with_wake(true), enable: core.enable, ..new },
                _ => new,
            };
        });
    }
}
