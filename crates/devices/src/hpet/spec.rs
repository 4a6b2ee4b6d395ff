//! Registers of the HPET (IA-PC HPET specification 1.0a, chapter 2.3).

use bitfield_struct::bitfield;

pub(super) const CAPABILITIES: u64 = 0x000;
pub(super) const CONFIGURATION: u64 = 0x010;
pub(super) const STATUS: u64 = 0x020;
pub(super) const COUNTER: u64 = 0x0f0;
pub(super) const FIRST_TIMER: u64 = 0x100;
pub(super) const TIMER_STRIDE: u64 = 0x20;
/// Within a timer's block.
pub(super) const TIMER_CONFIGURATION: u64 = 0x00;
pub(super) const TIMER_COMPARATOR: u64 = 0x08;

pub(super) const TIMERS: usize = 3;
/// One tick of the main counter in nanoseconds.
pub(super) const TICK_NS: u64 = 10;
/// The interrupts that a timer may be routed to: 2, 8 and 16–23.
pub(super) const ROUTES: u32 = 0x00ff_0104;
/// Revision 1, three timers, 64 bits, legacy routing, vendor 8086h, 10,000,000 fs a tick.
pub(super) const CAPABILITIES_VALUE: u64 = (TICK_NS * 1_000_000) << 32 | 0x8086_a201;

/// General configuration.
#[bitfield(u64)]
pub(super) struct Configuration {
    /// The counter runs and interrupts go out.
    pub enabled: bool,
    /// Timer 0 is IRQ0 and timer 1 is IRQ8, in place of the 8254 and the clock.
    pub legacy: bool,
    #[bits(62)]
    pub reserved: u64,
}

/// A timer's configuration and capabilities.
#[bitfield(u64)]
pub(super) struct TimerConfiguration {
    pub reserved0: bool,
    pub level: bool,
    pub enabled: bool,
    pub periodic: bool,
    /// Read only.
    pub can_be_periodic: bool,
    /// Read only: 64 bits wide.
    pub wide: bool,
    /// The next write to the comparator sets the accumulator too.
    pub set_value: bool,
    pub reserved7: bool,
    /// Works with 32 bits.
    pub narrow: bool,
    #[bits(5)]
    pub route: u8,
    pub message: bool,
    /// Read only.
    pub can_send_messages: bool,
    pub reserved16: u16,
    /// Read only: [`ROUTES`].
    pub routes: u32,
}

/// What a write to a timer's configuration changes.
pub(super) const TIMER_BITS: u64 = 0x3f4e;
