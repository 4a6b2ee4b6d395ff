//! PCI: the host bridge with configuration mechanism #1 and bus 0 (PCI Local Bus Specification 3.0, 3.2.2.3.2).
//!
//! Bus 0 carries the host bridge and whatever is put on it. An absent function reads as all ones. There is no enhanced
//! (memory-mapped) configuration space, and no interrupt routing, as there are no devices that would interrupt.

mod config;
mod spec;
#[cfg(test)]
mod tests;

use crate::sync::lock;
use crate::{PortDevice, Reset};
use spec::Address;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

pub use config::{Bridge, ConfigSpace, HostBridge};
pub use spec::{ADDRESS, DATA};

/// Ports that the bus takes from [`ADDRESS`].
pub const PORTS: u16 = 8;

/// A function on the bus, as its configuration space shows it.
pub trait PciFunction: Reset + Send + Sync + Debug {
    /// Reads `size` (1, 2, 4) bytes at `offset`; the access lies within an aligned 32-bit register.
    fn read_config(&self, offset: u8, size: usize) -> u32;
    /// Writes the low `size` (1, 2, 4) bytes of `value` at `offset`; the access lies within an aligned 32-bit register.
    fn write_config(&self, offset: u8, size: usize, value: u32);
}

/// Where a function sits on bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot {
    /// 0 to 31.
    pub device: u8,
    /// 0 to 7.
    pub function: u8,
}

/// The configuration ports and bus 0.
#[derive(Debug)]
pub struct PciBus {
    address: Mutex<Address>,
    functions: BTreeMap<Slot, Arc<dyn PciFunction>>,
    /// Byte accesses to port CF9h, which lies within the address register, go here.
    reset: Arc<dyn PortDevice>,
}

impl PciBus {
    /// A bus whose function 0.0 is `bridge`; `reset` answers at port CF9h.
    #[must_use]
    pub fn new(bridge: Arc<dyn PciFunction>, reset: Arc<dyn PortDevice>) -> Self {
        let functions = BTreeMap::from([(Slot { device: 0, function: 0 }, bridge)]);
        Self { address: Mutex::new(Address::new()), functions, reset }
    }

    /// Puts a function on the bus. Returns the one that was there, if there was one.
    pub fn add(&mut self, slot: Slot, function: Arc<dyn PciFunction>) -> Option<Arc<dyn PciFunction>> {
        self.functions.insert(slot, function)
    }

    /// The function that the address register selects, and the register's offset.
    fn selected(&self) -> Option<(&dyn PciFunction, u8)> {
        let address = *lock(&self.address);
        if !address.enable() || address.bus() != 0 {
            return None;
        }
        let slot = Slot { device: address.device(), function: address.function() };
        self.functions.get(&slot).map(|function| (&**function, address.register() << 2))
    }
}

/// Which of the device's registers an access touches.
enum Register {
    Address,
    Reset,
    /// With the offset within the 32-bit register.
    Data(u8),
    None,
}

fn register(port: u16, size: usize) -> Register {
    match port {
        ADDRESS if size == 4 => Register::Address,
        crate::pm::ResetControl::PORT if size == 1 => Register::Reset,
        DATA.. => {
            let [offset, _] = (port & 3).to_le_bytes();
            if usize::from(offset) + size <= 4 { Register::Data(offset) } else { Register::None }
        }
        _ => Register::None,
    }
}

impl PortDevice for PciBus {
    fn name(&self) -> &str {
        "pci"
    }

    fn read(&self, port: u16, size: usize) -> u32 {
        match register(port, size) {
            Register::Address => lock(&self.address).into_bits(),
            Register::Reset => self.reset.read(port, size),
            Register::Data(offset) => {
                self.selected().map_or(u32::MAX, |(function, base)| function.read_config(base | offset, size))
            }
            Register::None => u32::MAX,
        }
    }

    fn write(&self, port: u16, size: usize, value: u32) {
        match register(port, size) {
            // The reserved bits read as zero: Linux writes 80000000h and compares.
            Register::Address => *lock(&self.address) = Address::from_bits(value & 0x80ff_fffc),
            Register::Reset => self.reset.write(port, size, value),
            Register::Data(offset) => {
                if let Some((function, base)) = self.selected() {
                    function.write_config(base | offset, size, value);
                }
            }
            Register::None => {}
        }
    }
}

impl Reset for PciBus {
    fn reset(&self) {
        *lock(&self.address) = Address::new();
        for function in self.functions.values() {
            function.reset();
        }
    }
}
