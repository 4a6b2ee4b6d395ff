//! Interrupt lines: a wire from a device's output to an interrupt controller's input.
//!
//! A wire carries a level. Whether a controller looks at the level or at its rising edge is the controller's business.
//! A device drives its line with its own lock held, so that two threads' changes arrive in the order in which they
//! happened; the far end must therefore never call back into a device. The order down the board is
//! device → routing (fan-out, HPET's legacy switch) → PIC, IOAPIC → local APIC → the vCPU's signals.

use std::fmt::Debug;
use std::sync::Arc;

/// The input end of an interrupt line.
pub trait IrqLine: Send + Sync + Debug {
    /// Drives the line. Driving the level it already has changes nothing.
    fn set(&self, high: bool);
}

/// A line as devices hold it.
pub type Pin = Arc<dyn IrqLine>;

/// A line that ends nowhere.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLine;

impl NoLine {
    /// An unconnected pin.
    #[must_use]
    pub fn pin() -> Pin {
        Arc::new(Self)
    }
}

impl IrqLine for NoLine {
    fn set(&self, _high: bool) {}
}

/// One output wired to several inputs, as an ISA interrupt is to the 8259 and the IOAPIC.
#[derive(Debug, Clone, Default)]
pub struct Fanout(pub Vec<Pin>);

impl IrqLine for Fanout {
    fn set(&self, high: bool) {
        for pin in &self.0 {
            pin.set(high);
        }
    }
}
