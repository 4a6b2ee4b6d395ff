//! The two cascaded 8259A interrupt controllers of a PC, with the edge/level control registers of PIIX and ICH.
//!
//! After the 8259A data sheet (Intel 231468): initialization in any order of its optional words, automatic EOI,
//! rotating priorities, special mask, poll, special fully nested mode, edge and level triggering, and the spurious
//! interrupt on input 7. Left out: 8080/85 mode, buffered mode (it has no effect that a guest can see), and a slave
//! anywhere but at the master's input 2.

mod chip;
mod spec;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex};

use self::chip::Chip;
use self::spec::{
    CASCADE, MASTER_COMMAND, MASTER_DATA, MASTER_ELCR, MASTER_ELCR_MASK, SLAVE_COMMAND, SLAVE_DATA, SLAVE_ELCR,
    SLAVE_ELCR_MASK,
};
use crate::bus::PortDevice;
use crate::bytes::{read_ports, write_ports};
use crate::lapic::ExtInt;
use crate::line::{IrqLine, NoLine, Pin};
use crate::sync::lock;

/// The pair of interrupt controllers.
#[derive(Debug)]
pub struct Pic {
    /// INTR, to LINT0 of the local APICs. Driven with the lock held.
    intr: Pin,
    /// Lock order: after every device's, before the local APICs'.
    chips: Mutex<Chips>,
}

#[derive(Debug)]
struct Chips {
    master: Chip,
    slave: Chip,
    /// The level that INTR is driven to.
    intr: bool,
}

/// One of the inputs IRQ0–IRQ15.
#[derive(Debug)]
struct Input {
    pic: Arc<Pic>,
    n: u8,
}

impl Pic {
    /// The ports it answers at.
    pub const PORTS: [u16; 6] = [MASTER_COMMAND, MASTER_DATA, SLAVE_COMMAND, SLAVE_DATA, MASTER_ELCR, SLAVE_ELCR];

    /// The pair as it is after power-on; `intr` is driven high while an interrupt waits.
    #[must_use]
    pub fn new(intr: Pin) -> Arc<Self> {
        let chips = Chips { master: Chip::new(true), slave: Chip::new(false), intr: false };
        Arc::new(Self { intr, chips: Mutex::new(chips) })
    }

    /// Input IRQ`n`, 0–15. Input 2 is the cascade and 16 and above do not exist: a line that ends nowhere.
    #[must_use]
    pub fn pin(self: &Arc<Self>, n: u8) -> Pin {
        if n == CASCADE || n > 15 { NoLine::pin() } else { Arc::new(Input { pic: Arc::clone(self), n }) }
    }

    /// The processor's acknowledge cycles: the vector to service. With nothing to service (any more) that of the
    /// spurious interrupt, IRQ7 or IRQ15.
    pub fn acknowledge(&self) -> u8 {
        self.change(|chips| {
            let vector = chips.acknowledge();
            tracing::debug!(target: "int", vector, "8259 acknowledge");
            vector
        })
    }

    /// Back to the state of power-on. The inputs stay as their devices drive them.
    pub fn reset(&self) {
        self.change(|chips| {
            chips.master.reset();
            chips.slave.reset();
        });
    }

    /// The registers of both chips as a text, in QEMU's form.
    #[must_use]
    pub fn describe(&self) -> String {
        let chips = lock(&self.chips);
        format!("pic1: {}\npic0: {}\n", chips.slave.describe(), chips.master.describe())
    }

    fn change<T>(&self, f: impl FnOnce(&mut Chips) -> T) -> T {
        let mut chips = lock(&self.chips);
        let result = f(&mut chips);
        let slave = chips.slave.pending().is_some();
        chips.master.set_line(CASCADE, slave);
        let intr = chips.master.pending().is_some();
        if intr != chips.intr {
            chips.intr = intr;
            self.intr.set(intr);
        }
        result
    }
}

impl Chips {
    fn acknowledge(&mut self) -> u8 {
        match self.master.acknowledge() {
            Some(CASCADE) if self.master.cascaded() => {
                let n = self.slave.acknowledge().unwrap_or(7);
                // The slave's output falls with the acknowledge; if it has more to say, that is a new edge.
                self.master.set_line(CASCADE, false);
                self.slave.vector(n)
            }
            Some(n) => self.master.vector(n),
            None => self.master.vector(7),
        }
    }

    fn read(&mut self, port: u16) -> u8 {
        let (master, data) = match port {
            MASTER_ELCR => return self.master.elcr,
            SLAVE_ELCR => return self.slave.elcr,
            MASTER_COMMAND | MASTER_DATA => (true, port == MASTER_DATA),
            SLAVE_COMMAND | SLAVE_DATA => (false, port == SLAVE_DATA),
            _ => return u8::MAX,
        };
        let chip = if master { &mut self.master } else { &mut self.slave };
        if chip.take_poll() {
            let polled = chip.acknowledge().map_or(0, |n| 0x80 | n);
            if !master {
                self.master.set_line(CASCADE, false);
            }
            polled
        } else if data {
            chip.read_data()
        } else {
            chip.read_status()
        }
    }

    fn write(&mut self, port: u16, value: u8) {
        match port {
            MASTER_COMMAND => self.master.write_command(value),
            MASTER_DATA => self.master.write_data(value),
            SLAVE_COMMAND => self.slave.write_command(value),
            SLAVE_DATA => self.slave.write_data(value),
            MASTER_ELCR => self.master.set_elcr(value & MASTER_ELCR_MASK),
            SLAVE_ELCR => self.slave.set_elcr(value & SLAVE_ELCR_MASK),
            _ => {}
        }
    }
}

impl PortDevice for Pic {
    fn name(&self) -> &str {
        "pic"
    }

    fn read(&self, port: u16, size: usize) -> u32 {
        self.change(|chips| read_ports(port, size, |port| chips.read(port)))
    }

    fn write(&self, port: u16, size: usize, value: u32) {
        self.change(|chips| write_ports(port, size, value, |port, byte| chips.write(port, byte)));
    }
}

impl ExtInt for Pic {
    fn acknowledge(&self) -> u8 {
        Self::acknowledge(self)
    }
}

impl IrqLine for Input {
    fn set(&self, high: bool) {
        self.pic.change(|chips| {
            let chip = if self.n < 8 { &mut chips.master } else { &mut chips.slave };
            chip.set_line(self.n, high);
        });
    }
}
