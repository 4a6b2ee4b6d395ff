//! The reset control register of PIIX and ICH, port CF9h, which the FADT names as the ACPI reset register.
//!
//! It lies within the PCI configuration address port; the host bridge passes byte accesses on to it.

use super::spec::ResetRegister;
use crate::sync::lock;
use crate::{PortDevice, PowerRequest, PowerSwitch, Reset};
use std::sync::{Arc, Mutex};

/// The register.
#[derive(Debug)]
pub struct ResetControl {
    register: Mutex<ResetRegister>,
    power: Arc<dyn PowerSwitch>,
}

impl ResetControl {
    /// The register's port.
    pub const PORT: u16 = 0xcf9;

    /// A register that resets through `power`.
    #[must_use]
    pub fn new(power: Arc<dyn PowerSwitch>) -> Self {
        Self { register: Mutex::new(ResetRegister::new()), power }
    }
}

impl PortDevice for ResetControl {
    fn name(&self) -> &str {
        "reset"
    }

    fn read(&self, _port: u16, _size: usize) -> u32 {
        lock(&self.register).into_bits().into()
    }

    fn write(&self, _port: u16, _size: usize, value: u32) {
        let [byte, ..] = value.to_le_bytes();
        let new = ResetRegister::from_bits(byte);
        let old = std::mem::replace(&mut *lock(&self.register), new);
        if new.go() && !old.go() {
            self.power.request(PowerRequest::Reset);
        }
    }
}

impl Reset for ResetControl {
    fn reset(&self) {
        *lock(&self.register) = ResetRegister::new();
    }
}
