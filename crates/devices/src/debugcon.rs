//! The debug console of Bochs and QEMU: one port, usually E9h. What is written there is output; a read gives E9h,
//! whatever the port, which tells the guest that the console is there.

use crate::sync::lock;
use crate::{PortDevice, Sink};
use std::sync::Mutex;

/// What a read gives.
const PRESENT: u32 = 0xe9;

/// The console.
#[derive(Debug)]
pub struct DebugCon {
    sink: Mutex<Box<dyn Sink>>,
}

impl DebugCon {
    /// A console that writes to `sink`.
    #[must_use]
    pub fn new(sink: Box<dyn Sink>) -> Self {
        Self { sink: Mutex::new(sink) }
    }
}

impl PortDevice for DebugCon {
    fn name(&self) -> &str {
        "debugcon"
    }

    fn read(&self, _port: u16, _size: usize) -> u32 {
        PRESENT
    }

    fn write(&self, _port: u16, _size: usize, value: u32) {
        let [byte, ..] = value.to_le_bytes();
        lock(&self.sink).write(&[byte]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::Kept;

    #[test]
    fn bytes_arrive_and_the_console_says_that_it_is_there() {
        let kept = Kept::default();
        let console = DebugCon::new(Box::new(kept.clone()));
        assert_eq!(console.read(0xe9, 1), 0xe9);
        for byte in *b"hello" {
            console.write(0xe9, 1, byte.into());
        }
        assert_eq!(kept.take(), b"hello");
    }
}
