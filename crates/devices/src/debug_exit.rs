//! The debug exit device (`isa-debug-exit` of QEMU): a write ends the machine with a status that the guest chooses.
//!
//! Writing `v` ends with status `v << 1 | 1`, so that a guest can never claim status 0. Reads give zero.

use crate::{PortDevice, PowerRequest, PowerSwitch};
use std::sync::Arc;

/// The device. Where its ports are is the bus's affair.
#[derive(Debug)]
pub struct DebugExit {
    power: Arc<dyn PowerSwitch>,
}

impl DebugExit {
    /// A device that ends the machine through `power`.
    #[must_use]
    pub fn new(power: Arc<dyn PowerSwitch>) -> Self {
        Self { power }
    }
}

impl PortDevice for DebugExit {
    fn name(&self) -> &str {
        "debug-exit"
    }

    fn read(&self, _port: u16, _size: usize) -> u32 {
        0
    }

    fn write(&self, _port: u16, _size: usize, value: u32) {
        self.power.request(PowerRequest::DebugExit((value << 1) | 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::Asked;

    #[test]
    fn a_write_ends_with_an_odd_status() {
        let asked = Arc::new(Asked::default());
        let exit = DebugExit::new(asked.clone());
        assert_eq!(exit.read(0xf4, 4), 0);
        exit.write(0xf4, 4, 0);
        exit.write(0xf4, 1, 0x10);
        exit.write(0xf4, 4, u32::MAX);
        let want = [1, 0x21, u32::MAX].map(PowerRequest::DebugExit);
        assert_eq!(asked.take(), want);
    }
}
