//! Ports, registers and commands of the 8042 keyboard controller (IBM PS/2 Hardware Interface Technical Reference,
//! "Keyboard and Auxiliary Device Controller").

use bitfield_struct::bitfield;

/// Data: the output buffer (read), or a byte for the keyboard or for a command (write).
pub const DATA: u16 = 0x60;
/// Status (read) and command (write).
pub const COMMAND: u16 = 0x64;

/// Status register.
#[bitfield(u8)]
pub struct Status {
    /// OBF: a byte waits in the output buffer.
    pub output_full: bool,
    /// IBF. Never set: bytes are taken at once.
    pub input_full: bool,
    /// System flag: the self test has passed.
    pub system: bool,
    /// The last write went to the command port.
    pub command: bool,
    /// The keyboard is not locked.
    pub unlocked: bool,
    /// The byte in the output buffer is the auxiliary device's.
    pub auxiliary: bool,
    /// The device did not answer in time.
    pub time_out: bool,
    /// Parity error.
    pub parity: bool,
}

/// Controller command byte: byte 0 of the controller's RAM.
#[bitfield(u8)]
pub struct CommandByte {
    /// IRQ 1 when a keyboard byte waits.
    pub keyboard_interrupt: bool,
    /// IRQ 12 when an auxiliary byte waits.
    pub auxiliary_interrupt: bool,
    /// Shown in the status register.
    pub system: bool,
    __: bool,
    /// The keyboard's clock is held: it cannot send.
    pub keyboard_off: bool,
    /// The same for the auxiliary device.
    pub auxiliary_off: bool,
    /// Scan codes are translated to set 1.
    pub translate: bool,
    __: bool,
}

/// Output port.
#[bitfield(u8)]
pub struct OutputPort {
    /// Low resets the processor.
    pub run: bool,
    /// The A20 gate.
    pub a20: bool,
    #[bits(2)]
    pub auxiliary: u8,
    /// IRQ 1.
    pub irq1: bool,
    /// IRQ 12.
    pub irq12: bool,
    #[bits(2)]
    pub keyboard: u8,
}

/// Reads byte 0–1Fh of the controller's RAM: 20h–3Fh.
pub const READ_RAM: u8 = 0x20;
/// The last such command.
pub const READ_RAM_LAST: u8 = 0x3f;
/// Writes byte 0–1Fh of the controller's RAM: 60h–7Fh.
pub const WRITE_RAM: u8 = 0x60;
/// The last such command.
pub const WRITE_RAM_LAST: u8 = 0x7f;
/// Disables the auxiliary device.
pub const AUXILIARY_OFF: u8 = 0xa7;
/// Enables the auxiliary device.
pub const AUXILIARY_ON: u8 = 0xa8;
/// Tests the auxiliary device's lines.
pub const TEST_AUXILIARY: u8 = 0xa9;
/// Self test.
pub const SELF_TEST: u8 = 0xaa;
/// Tests the keyboard's lines.
pub const TEST_KEYBOARD: u8 = 0xab;
/// Disables the keyboard.
pub const KEYBOARD_OFF: u8 = 0xad;
/// Enables the keyboard.
pub const KEYBOARD_ON: u8 = 0xae;
/// Reads the input port.
pub const READ_INPUT: u8 = 0xc0;
/// Reads the output port.
pub const READ_OUTPUT: u8 = 0xd0;
/// Writes the output port.
pub const WRITE_OUTPUT: u8 = 0xd1;
/// Puts a byte into the output buffer as if the keyboard had sent it.
pub const WRITE_KEYBOARD_BUFFER: u8 = 0xd2;
/// The same as if the auxiliary device had sent it.
pub const WRITE_AUXILIARY_BUFFER: u8 = 0xd3;
/// Sends a byte to the auxiliary device.
pub const SEND_AUXILIARY: u8 = 0xd4;
/// Closes the A20 gate (not IBM's; common in PC chipsets).
pub const A20_OFF: u8 = 0xdd;
/// Opens the A20 gate (likewise).
pub const A20_ON: u8 = 0xdf;
/// F0h–FFh pulse the output port's low bits that are zero in the command; bit 0 is reset.
pub const PULSE: u8 = 0xf0;

/// The self test has passed.
pub const SELF_TEST_PASSED: u8 = 0x55;
/// Interface test: the device's lines are good. The keyboard's are, plugged in or not.
pub const LINES_GOOD: u8 = 0x00;
/// Interface test: the device's clock line is stuck low: there is no auxiliary port.
pub const CLOCK_STUCK: u8 = 0x01;
/// What the controller puts into the output buffer, with the time-out bit, when a device does not answer.
pub const NO_ANSWER: u8 = 0xfe;
/// The input port: not locked, and nothing else connected.
pub const INPUT_PORT: u8 = 0x80;
