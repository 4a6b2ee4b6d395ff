//! The devices of the machine, a folder each, and what wires them: ports, interrupt lines, deadlines.

pub mod bus;
mod bytes;
pub mod hpet;
pub mod ioapic;
pub mod lapic;
pub mod line;
pub mod pic;
pub mod pit;
pub mod rtc;
pub mod sync;
#[cfg(test)]
mod testing;
pub mod timer;
