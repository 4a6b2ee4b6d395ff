//! Registers of the 16550A (National Semiconductor PC16550D data sheet, section 8, table II).

use bitfield_struct::bitfield;

/// Depth of each FIFO in bytes.
pub const FIFO: usize = 16;

/// Receiver buffer (read) and transmitter holding register (write); divisor latch low with DLAB.
pub const DATA: u16 = 0;
/// Interrupt enable; divisor latch high with DLAB.
pub const IER: u16 = 1;
/// Interrupt identification (read) and FIFO control (write).
pub const IIR_FCR: u16 = 2;
/// Line control.
pub const LCR: u16 = 3;
/// Modem control.
pub const MCR: u16 = 4;
/// Line status.
pub const LSR: u16 = 5;
/// Modem status.
pub const MSR: u16 = 6;
/// Scratch.
pub const SCR: u16 = 7;

/// Interrupt enable register.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Ier {
    /// ERBFI: received data available, and time-out.
    pub received: bool,
    /// ETBEI: transmitter holding register empty.
    pub transmit_empty: bool,
    /// ELSI: receiver line status.
    pub line_status: bool,
    /// EDSSI: modem status.
    pub modem_status: bool,
    #[bits(4)]
    __: u8,
}

/// Why the UART interrupts, in the encoding of IIR bits 3–0; the order of priority is that of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// An error or a break was received.
    LineStatus = 0x6,
    /// Data is there: one byte, or as many as the FIFO's trigger level.
    Received = 0x4,
    /// Fewer bytes than the trigger level wait in the FIFO, and no more came.
    TimeOut = 0xc,
    /// The transmitter takes more.
    TransmitEmpty = 0x2,
    /// A modem line changed.
    ModemStatus = 0x0,
    /// No interrupt is pending.
    None = 0x1,
}

/// IIR bits 7–6 with the FIFOs on.
pub const IIR_FIFOS: u8 = 0xc0;

/// FIFO control register.
#[bitfield(u8)]
pub struct Fcr {
    /// The FIFOs are on. Changing this empties both. The other bits count only when this is written as one.
    pub enable: bool,
    /// Empties the receiver FIFO.
    pub clear_receiver: bool,
    /// Empties the transmitter FIFO.
    pub clear_transmitter: bool,
    /// DMA mode, which nothing is wired to.
    pub dma: bool,
    #[bits(2)]
    __: u8,
    /// Trigger level: 1, 4, 8 or 14 bytes.
    #[bits(2)]
    pub trigger: u8,
}

/// Line control register.
#[bitfield(u8)]
pub struct Lcr {
    /// Word length, stop bits, parity.
    #[bits(6)]
    pub format: u8,
    /// Sends a break.
    pub set_break: bool,
    /// DLAB: the first two registers are the divisor latch.
    pub divisor_latch: bool,
}

/// Modem control register.
#[bitfield(u8)]
pub struct Mcr {
    /// DTR.
    pub dtr: bool,
    /// RTS.
    pub rts: bool,
    /// OUT1.
    pub out1: bool,
    /// OUT2, which on a PC connects the interrupt line.
    pub out2: bool,
    /// Loopback: the transmitter feeds the receiver, and the four outputs the four inputs.
    pub loopback: bool,
    #[bits(3)]
    __: u8,
}

/// Line status register.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Lsr {
    /// DR.
    pub data_ready: bool,
    /// OE.
    pub overrun: bool,
    /// PE.
    pub parity_error: bool,
    /// FE.
    pub framing_error: bool,
    /// BI.
    pub break_interrupt: bool,
    /// THRE.
    pub holding_empty: bool,
    /// TEMT.
    pub transmitter_empty: bool,
    /// With the FIFOs on: a byte in the FIFO has an error.
    pub fifo_error: bool,
}

/// Modem status register.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Msr {
    /// The low half: which of the lines changed since the last read (for RI: fell).
    #[bits(4)]
    pub changes: u8,
    /// CTS.
    pub cts: bool,
    /// DSR.
    pub dsr: bool,
    /// RI.
    pub ri: bool,
    /// DCD.
    pub dcd: bool,
}
