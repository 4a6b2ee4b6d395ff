//! ACPI fixed hardware registers (ACPI specification 6.5, section 4.8.3).

use bitfield_struct::bitfield;

/// PM1 status and PM1 enable: the bits mean the same event in both.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Events {
    /// TMR: the timer's highest bit changed.
    pub timer: bool,
    #[bits(3)]
    __: u8,
    /// BM_STS. There are no bus masters that Linux would ask about.
    pub bus_master: bool,
    /// GBL.
    pub global: bool,
    #[bits(2)]
    __: u8,
    /// PWRBTN.
    pub power_button: bool,
    /// SLPBTN.
    pub sleep_button: bool,
    /// RTC.
    pub rtc: bool,
    #[bits(4)]
    __: u8,
    /// WAK, in the status register only.
    pub wake: bool,
}

impl Events {
    /// The events that can raise the SCI, and so the writable bits of the enable register.
    pub const ENABLES: u16 = Self::new()
        .with_timer(true)
        .with_global(true)
        .with_power_button(true)
        .with_sleep_button(true)
        .with_rtc(true)
        .into_bits();

    /// The events that wake the machine from S3.
    pub const WAKES: u16 = Self::new().with_power_button(true).with_rtc(true).into_bits();
}

/// PM1 control.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Control {
    /// SCI_EN: power events raise the SCI. Changed by commands to the SMI command port only.
    pub sci_enable: bool,
    /// BM_RLD.
    pub bus_master_reload: bool,
    /// GBL_RLS. Write only: it would call the firmware.
    pub global_release: bool,
    #[bits(7)]
    __: u8,
    /// SLP_TYP.
    #[bits(3)]
    pub sleep_type: u8,
    /// SLP_EN. Write only: goes to sleep.
    pub sleep_enable: bool,
    #[bits(2)]
    __: u8,
}

/// The PM timer's rate in hertz.
pub const TIMER_HZ: u64 = 3_579_545;

/// Offset of PM1 status in the block.
pub const STATUS: usize = 0;
/// Offset of PM1 enable.
pub const ENABLE: usize = 2;
/// Offset of PM1 control.
pub const CONTROL: usize = 4;
/// Length of the block.
pub const BLOCK: usize = 12;

/// Offset of GPE0's enable half.
pub const GPE_ENABLE: usize = 2;

/// The reset control register of PIIX and ICH (port CF9h).
#[bitfield(u8)]
pub struct ResetRegister {
    __: bool,
    /// SYS_RST: a hard reset rather than INIT.
    pub hard: bool,
    /// RST_CPU: rising, it resets.
    pub go: bool,
    /// FULL_RST: power is cycled as well.
    pub full: bool,
    #[bits(4)]
    __: u8,
}
