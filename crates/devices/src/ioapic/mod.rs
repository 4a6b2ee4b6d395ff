//! The IOAPIC: 24 pins, each turned into an interrupt message by its redirection entry.
//!
//! After the 82093AA data sheet (Intel 290566) with the EOI register of its successors (version 20h): edge and level
//! triggering, polarity, masks, remote IRR, all delivery modes. A masked edge is lost, as the data sheet has it; a
//! level that is still there after its EOI is delivered again. Writing an entry as edge triggered clears its remote
//! IRR (Linux relies on it to acknowledge without an EOI register). Left out: the serial APIC bus (arbitration ID is
//! the ID).

mod spec;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, Weak};

use memory::Mmio;

use self::spec::{
    ARBITRATION, ENTRY_BITS, EOI, Entry, FIRST_ENTRY, ID, ID_BITS, INDEX, LAST_ENTRY, PINS, VERSION, VERSION_VALUE,
    WINDOW,
};
use crate::bytes::all_ones;
use crate::lapic::{ApicBus, DeliveryMode, EoiSink, Message};
use crate::line::{IrqLine, NoLine, Pin};
use crate::sync::lock;

/// Where the IOAPIC is (guest physical).
pub const IOAPIC_ADDRESS: u64 = 0xfec0_0000;

/// The IOAPIC.
#[derive(Debug)]
pub struct IoApic {
    bus: Arc<ApicBus>,
    /// Lock order: after every device's, before the local APICs' (messages are sent with it held).
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    id: u32,
    index: u8,
    entries: [Entry; PINS],
    /// Levels of the pins as they are driven.
    lines: [bool; PINS],
}

/// One of the pins.
#[derive(Debug)]
struct Input {
    ioapic: Arc<IoApic>,
    n: usize,
}

impl IoApic {
    /// Bytes of guest physical space that it takes.
    pub const SIZE: u64 = 0x1000;
    /// How many pins it has.
    pub const PINS: usize = PINS;

    /// An IOAPIC as it is after power-on, all masked, that sends its messages over `bus`.
    #[must_use]
    pub fn new(bus: &Arc<ApicBus>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            bus.add_eoi_sink(this.clone());
            Self { bus: Arc::clone(bus), state: Mutex::new(State::new([false; PINS])) }
        })
    }

    /// Input `n`, 0–23; any other is a line that ends nowhere. The level is the electrical one: with an entry's
    /// polarity bit set, low asks for service.
    #[must_use]
    pub fn pin(self: &Arc<Self>, n: usize) -> Pin {
        if n < PINS { Arc::new(Input { ioapic: Arc::clone(self), n }) } else { NoLine::pin() }
    }

    /// Back to the state of power-on. The pins stay as their devices drive them.
    pub fn reset(&self) {
        let mut state = lock(&self.state);
        *state = State::new(state.lines);
    }

    /// The registers as a text, in QEMU's form.
    #[must_use]
    pub fn describe(&self) -> String {
        let state = lock(&self.state);
        let (version, id) = (VERSION_VALUE & 0xff, state.id >> 24);
        let mut text = format!("ioapic0: ver=0x{version:x} id=0x{id:02x} sel=0x{:02x}\n", state.index);
        for (pin, entry) in state.entries.iter().enumerate() {
            let (bits, destination, vector) = (u64::from(*entry), entry.destination(), entry.vector());
            let polarity = if entry.active_low() { "active-lo" } else { "active-hi" };
            let trigger = if entry.level() { "level" } else { "edge " };
            let masked = if entry.masked() { "masked" } else { "      " };
            let mode = entry.mode().name().to_lowercase();
            let to = if entry.logical() { "logical" } else { "physical" };
            text += &format!(
                "  pin {pin:<2} 0x{bits:016x} dest={destination:x} vec={vector:<3} {polarity} {trigger} {masked} {mode:<6} {to}\n"
            );
        }
        let pins = |wanted: &dyn Fn(usize) -> bool| {
            let pins: Vec<_> = (0..PINS).filter(|n| wanted(*n)).map(|n| n.to_string()).collect();
            if pins.is_empty() { "(none)".to_owned() } else { pins.join(" ") }
        };
        let (asserted, waiting) = (pins(&|n| state.asserted(n)), pins(&|n| state.entries[n].remote_irr()));
        text + &format!("  IRR      {asserted}\n  Remote IRR {waiting}\n")
    }

    fn send(&self, entry: Entry) -> bool {
        self.bus.deliver(&Message {
            destination: entry.destination().into(),
            logical: entry.logical(),
            wide: false,
            mode: entry.mode(),
            vector: entry.vector(),
            level: entry.level() && vectored(entry),
            one: false,
        })
    }

    /// Sends a level triggered pin's message if it asks for service and none is on its way.
    fn serve_level(&self, state: &mut State, n: usize) {
        let entry = state.entries[n];
        let asks = state.asserted(n) && !entry.masked() && entry.level() && vectored(entry) && !entry.remote_irr();
        if asks && self.send(entry) {
            state.entries[n].set_remote_irr(true);
        }
    }

    fn set_line(&self, n: usize, high: bool) {
        let mut state = lock(&self.state);
        let before = state.asserted(n);
        state.lines[n] = high;
        let entry = state.entries[n];
        if entry.level() && vectored(entry) {
            self.serve_level(&mut state, n);
        } else if state.asserted(n) && !before && !entry.masked() {
            self.send(entry);
        }
    }

    fn end_of_interrupt(&self, vector: u8) {
        let mut state = lock(&self.state);
        for n in 0..PINS {
            let entry = &mut state.entries[n];
            if entry.remote_irr() && entry.level() && entry.vector() == vector {
                entry.set_remote_irr(false);
                self.serve_level(&mut state, n);
            }
        }
    }

    fn write_register(&self, value: u32) {
        let mut state = lock(&self.state);
        match state.index {
            ID => state.id = value & ID_BITS,
            index @ FIRST_ENTRY..=LAST_ENTRY => {
                let (n, shift) = entry_half(index);
                let old = state.entries[n];
                let bits = ENTRY_BITS & 0xffff_ffff << shift;
                let mut entry = Entry::from(u64::from(old) & !bits | u64::from(value) << shift & bits);
                if !entry.level() {
                    entry.set_remote_irr(false);
                }
                state.entries[n] = entry;
                self.serve_level(&mut state, n);
            }
            index => tracing::debug!(target: "guest_errors", index, "write to an IOAPIC register that is not one"),
        }
    }
}

/// Whether the entry's mode goes by a vector. The other modes are edge triggered, whatever the entry says.
fn vectored(entry: Entry) -> bool {
    matches!(entry.mode(), DeliveryMode::Fixed | DeliveryMode::LowestPriority)
}

/// The entry that a register index means, and where its 32 bits are in it.
fn entry_half(index: u8) -> (usize, u32) {
    let n = usize::from(index.saturating_sub(FIRST_ENTRY) / 2).min(PINS - 1);
    (n, 32 * u32::from(index & 1))
}

impl State {
    fn new(lines: [bool; PINS]) -> Self {
        Self { id: 0, index: 0, entries: [Entry::new().with_masked(true); PINS], lines }
    }

    fn asserted(&self, n: usize) -> bool {
        self.lines[n] != self.entries[n].active_low()
    }

    fn read_register(&self) -> u32 {
        match self.index {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_VALUE,
            index @ FIRST_ENTRY..=LAST_ENTRY => {
                let (n, shift) = entry_half(index);
                (u64::from(self.entries[n]) >> shift & 0xffff_ffff) as u32
            }
            _ => 0,
        }
    }
}

impl Mmio for IoApic {
    fn name(&self) -> &str {
        "ioapic"
    }

    fn read(&self, _cpu: usize, offset: u64, size: usize) -> u64 {
        let state = lock(&self.state);
        let byte = offset & 0xf;
        if byte >= 4 {
            return 0;
        }
        let value = match offset - byte {
            INDEX => state.index.into(),
            WINDOW => state.read_register(),
            _ => 0,
        };
        u64::from(value) >> (8 * byte) & all_ones(size)
    }

    /// A write that is narrower than its register changes the bytes that it covers.
    fn write(&self, _cpu: usize, offset: u64, size: usize, value: u64) {
        let byte = offset & 0xf;
        if byte >= 4 {
            return;
        }
        let covered = all_ones(size) << (8 * byte);
        let value = value << (8 * byte) & covered;
        let merge = |old: u32| ((u64::from(old) & !covered | value) & 0xffff_ffff) as u32;
        match offset - byte {
            INDEX => {
                let mut state = lock(&self.state);
                state.index = merge(state.index.into()).to_le_bytes()[0];
            }
            WINDOW => {
                let old = lock(&self.state).read_register();
                self.write_register(merge(old));
            }
            EOI => self.end_of_interrupt(merge(0).to_le_bytes()[0]),
            _ => {}
        }
    }
}

impl EoiSink for IoApic {
    fn eoi(&self, vector: u8) {
        self.end_of_interrupt(vector);
    }
}

impl IrqLine for Input {
    fn set(&self, high: bool) {
        self.ioapic.set_line(self.n, high);
    }
}
