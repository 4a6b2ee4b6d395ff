//! System control port A (92h): fast A20 and fast reset (PIIX and ICH data sheets, "Fast A20 and INIT").
//!
//! Bit 0 rising from 0 to 1 resets. (The chipsets assert INIT, which resets the processor only; a machine without
//! firmware cannot go on from there, so here it is a reset of the machine.) Bit 1 is the A20 gate. The other bits read back.

use crate::sync::lock;
use crate::{A20, PortDevice, PowerRequest, PowerSwitch, Reset};
use bitfield_struct::bitfield;
use std::sync::{Arc, Mutex};

/// Port 92h.
#[bitfield(u8)]
struct Control {
    fast_init: bool,
    a20: bool,
    #[bits(6)]
    rest: u8,
}

/// Port 92h.
#[derive(Debug)]
pub struct Port92 {
    control: Mutex<Control>,
    a20: Arc<A20>,
    power: Arc<dyn PowerSwitch>,
}

impl Port92 {
    /// The port's number.
    pub const PORT: u16 = 0x92;

    /// A port that drives `a20` and resets through `power`.
    #[must_use]
    pub fn new(a20: Arc<A20>, power: Arc<dyn PowerSwitch>) -> Self {
        Self { control: Mutex::new(Control::new()), a20, power }
    }
}

impl PortDevice for Port92 {
    fn name(&self) -> &str {
        "port92"
    }

    fn read(&self, _port: u16, _size: usize) -> u32 {
        lock(&self.control).with_a20(self.a20.open()).into_bits().into()
    }

    fn write(&self, _port: u16, _size: usize, value: u32) {
        let [byte, ..] = value.to_le_bytes();
        let new = Control::from_bits(byte);
        let old = std::mem::replace(&mut *lock(&self.control), new);
        self.a20.set(new.a20());
        if new.fast_init() && !old.fast_init() {
            self.power.request(PowerRequest::Reset);
        }
    }
}

impl Reset for Port92 {
    fn reset(&self) {
        *lock(&self.control) = Control::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::Asked;

    #[test]
    fn a20_and_reset() {
        let asked = Arc::new(Asked::default());
        let a20 = Arc::new(A20::default());
        let port = Port92::new(a20.clone(), asked.clone());
        assert_eq!(port.read(0x92, 1), 2);
        port.write(0x92, 1, 0);
        assert!(!a20.open());
        assert_eq!(port.read(0x92, 1), 0);
        a20.set(true);
        assert_eq!(port.read(0x92, 1), 2, "the 8042 may open the same gate");
        assert_eq!(asked.take(), []);
        port.write(0x92, 1, 3);
        port.write(0x92, 1, 3);
        assert_eq!(asked.take(), [PowerRequest::Reset], "only the rising edge resets");
    }
}
