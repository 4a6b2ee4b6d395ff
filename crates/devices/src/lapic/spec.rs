//! Registers of the local APIC (SDM vol. 3, chapter "APIC"; APM vol. 2, chapter 16).

use bitfield_struct::{bitenum, bitfield};

/// Offsets in the xAPIC page. The x2APIC MSR of a register is `800h + offset / 16`.
pub(super) mod reg {
    pub const ID: u32 = 0x20;
    pub const VERSION: u32 = 0x30;
    pub const TPR: u32 = 0x80;
    pub const APR: u32 = 0x90;
    pub const PPR: u32 = 0xa0;
    pub const EOI: u32 = 0xb0;
    pub const REMOTE_READ: u32 = 0xc0;
    pub const LDR: u32 = 0xd0;
    pub const DFR: u32 = 0xe0;
    pub const SVR: u32 = 0xf0;
    pub const ISR: u32 = 0x100;
    pub const ISR_LAST: u32 = 0x170;
    pub const TMR: u32 = 0x180;
    pub const TMR_LAST: u32 = 0x1f0;
    pub const IRR: u32 = 0x200;
    pub const IRR_LAST: u32 = 0x270;
    pub const ESR: u32 = 0x280;
    pub const ICR_LOW: u32 = 0x300;
    pub const ICR_HIGH: u32 = 0x310;
    pub const LVT_TIMER: u32 = 0x320;
    pub const LVT_ERROR: u32 = 0x370;
    pub const TIMER_INITIAL: u32 = 0x380;
    pub const TIMER_CURRENT: u32 = 0x390;
    pub const TIMER_DIVIDE: u32 = 0x3e0;
    /// x2APIC only.
    pub const SELF_IPI: u32 = 0x3f0;
}

/// Version 14h (xAPIC of the P4 and later), six LVT entries, no suppression of EOI broadcasts.
pub(super) const VERSION: u32 = 0x0005_0014;

/// The LVT entries in the order of their registers. CMCI (2F0h) is absent.
pub(super) mod lvt {
    pub const TIMER: usize = 0;
    pub const LINT0: usize = 3;
    pub const LINT1: usize = 4;
    pub const ERROR: usize = 5;
    pub const COUNT: usize = 6;
}

/// Bits of the error status register.
pub(super) mod error {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Vectors below this are illegal to send and to receive.
pub(super) const FIRST_LEGAL_VECTOR: u8 = 16;

/// APIC_BASE, MSR 1Bh.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct ApicBase {
    #[bits(8)]
    pub reserved: u8,
    pub bsp: bool,
    pub reserved9: bool,
    /// x2APIC mode (EXTD).
    pub x2apic: bool,
    /// Global enable (EN).
    pub enabled: bool,
    #[bits(52)]
    pub page: u64,
}

/// What is to be done with an interrupt message.
#[bitenum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum DeliveryMode {
    /// The vector, at every destination.
    #[fallback]
    Fixed = 0,
    /// The vector, at that one destination which is least busy.
    LowestPriority = 1,
    /// System management interrupt: there is no SMM here, so this is dropped.
    Smi = 2,
    /// Remote read of old, and in other places reserved: dropped.
    Reserved = 3,
    /// Non-maskable interrupt.
    Nmi = 4,
    /// INIT.
    Init = 5,
    /// Start-up IPI; the vector is the page.
    StartUp = 6,
    /// As if it came from the 8259: the processor fetches the vector there.
    ExtInt = 7,
}

impl DeliveryMode {
    /// Its short name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fixed => "Fixed",
            Self::LowestPriority => "LowPri",
            Self::Smi => "SMI",
            Self::Reserved => "...",
            Self::Nmi => "NMI",
            Self::Init => "INIT",
            Self::StartUp => "SIPI",
            Self::ExtInt => "ExtINT",
        }
    }
}

/// The timer's modes (LVT timer bits 17 and 18).
#[bitenum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum TimerMode {
    OneShot = 0,
    Periodic = 1,
    TscDeadline = 2,
    #[fallback]
    Reserved = 3,
}

/// An entry of the local vector table.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub(super) struct Lvt {
    pub vector: u8,
    #[bits(3)]
    pub mode: DeliveryMode,
    pub reserved11: bool,
    /// Always idle.
    pub delivery_status: bool,
    pub active_low: bool,
    /// A level triggered interrupt of this pin waits for its EOI.
    pub remote_irr: bool,
    pub level: bool,
    pub masked: bool,
    #[bits(2)]
    pub timer: TimerMode,
    #[bits(13)]
    pub reserved19: u16,
}

/// Spurious interrupt vector register.
#[bitfield(u32)]
pub(super) struct Svr {
    pub vector: u8,
    /// Software enable.
    pub enabled: bool,
    /// Kept, without effect.
    pub focus_disabled: bool,
    #[bits(22)]
    pub reserved: u32,
}

/// Whom an IPI is for, when not for its destination field.
#[bitenum]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Shorthand {
    #[fallback]
    None = 0,
    Oneself = 1,
    All = 2,
    Others = 3,
}

/// Interrupt command register. In xAPIC mode the destination is bits 56–63.
#[bitfield(u64)]
pub(super) struct Icr {
    pub vector: u8,
    #[bits(3)]
    pub mode: DeliveryMode,
    pub logical: bool,
    /// Always idle.
    pub delivery_status: bool,
    pub reserved13: bool,
    pub assert: bool,
    pub level: bool,
    #[bits(2)]
    pub reserved16: u8,
    #[bits(2)]
    pub shorthand: Shorthand,
    #[bits(12)]
    pub reserved20: u16,
    pub destination: u32,
}

/// Divide configuration register.
#[bitfield(u32)]
pub(super) struct Divide {
    #[bits(2)]
    pub low: u32,
    pub zero: bool,
    #[bits(1)]
    pub high: u32,
    #[bits(28)]
    pub reserved: u32,
}

impl Divide {
    /// Bus clocks, here nanoseconds, to a count.
    pub fn divisor(self) -> u64 {
        match self.high() << 2 | self.low() {
            7 => 1,
            n => 2 << n,
        }
    }
}

/// The address of a message signalled interrupt.
#[bitfield(u64)]
pub(super) struct MsiAddress {
    #[bits(2)]
    pub zero: u8,
    pub logical: bool,
    /// Redirection hint: one of the destinations, the least busy.
    pub redirect: bool,
    pub reserved: u8,
    pub destination: u8,
    #[bits(44)]
    pub fixed: u64,
}

/// The data of a message signalled interrupt.
#[bitfield(u32)]
pub(super) struct MsiData {
    pub vector: u8,
    #[bits(3)]
    pub mode: DeliveryMode,
    #[bits(3)]
    pub reserved11: u8,
    pub assert: bool,
    pub level: bool,
    pub reserved16: u16,
}
