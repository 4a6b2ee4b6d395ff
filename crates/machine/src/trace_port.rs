//! A port by which the guest turns the trace on (bit 0 of what it writes) and off. A read says whether it is on.
//!
//! No machine has such a device: it is there only if it is asked for.

use crate::control::Control;
use devices::PortDevice;
use lens::Lens;
use std::sync::Arc;

/// The device.
#[derive(Debug)]
pub(crate) struct TracePort {
    pub lens: Arc<Lens>,
    pub control: Arc<Control>,
}

impl PortDevice for TracePort {
    fn name(&self) -> &str {
        "trace"
    }

    fn read(&self, _port: u16, _size: usize) -> u32 {
        self.lens.trace().is_some_and(|trace| trace.is_on()).into()
    }

    fn write(&self, _port: u16, _size: usize, value: u32) {
        if let Some(trace) = self.lens.trace() {
            trace.turn(value & 1 != 0);
            // Before their next instructions.
            self.control.flush_all();
        }
    }
}
