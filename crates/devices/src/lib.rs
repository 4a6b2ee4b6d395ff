//! The devices of the machine, a folder each, and what wires them: ports, interrupt lines, deadlines.
//!
//! A device knows nothing of the machine around it but what it was given: interrupt lines, a clock, a [`Sink`] for its
//! bytes, a [`PowerSwitch`]. All of them are `Sync`: any vCPU may touch a register at any time.

pub mod bus;
mod bytes;
pub mod debug_exit;
pub mod debugcon;
pub mod fw_cfg;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
pub mod lapic;
pub mod line;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod port92;
pub mod port_bus;
pub mod power;
pub mod rtc;
pub mod sink;
pub mod sync;
pub mod testdev;
#[cfg(test)]
mod testing;
pub mod timer;
pub mod uart;

pub use bus::PortDevice;
pub use line::{IrqLine, Pin};
pub use port_bus::PortBus;
pub use power::{A20, PowerRequest, PowerSwitch, Reset};
pub use sink::Sink;
