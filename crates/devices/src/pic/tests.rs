//! Scripts of port accesses against the pair of 8259A.

use std::sync::Arc;

use super::*;
use crate::testing::{Probe, Time};

struct Board {
    pic: Arc<Pic>,
    intr: Arc<Probe>,
}

impl Board {
    /// Initialized as PCs do it: vectors 20h and 28h, everything unmasked.
    fn new() -> Self {
        let board = Self::raw();
        board.initialize(0x11, 0x01);
        board
    }

    fn raw() -> Self {
        let intr = Probe::new(&Time::new());
        Self { pic: Pic::new(intr.clone()), intr }
    }

    fn initialize(&self, icw1: u8, icw4: u8) {
        for (command, base, cascade) in [(0x20, 0x20, 4), (0xa0, 0x28, 2)] {
            self.out(command, icw1);
            self.out(command + 1, base);
            self.out(command + 1, cascade);
            self.out(command + 1, icw4);
        }
    }

    fn out(&self, port: u16, value: u8) {
        self.pic.write(port, 1, value.into());
    }

    fn inb(&self, port: u16) -> u8 {
        self.pic.read(port, 1) as u8
    }

    fn set(&self, n: u8, high: bool) {
        self.pic.pin(n).set(high);
    }

    fn raise(&self, lines: &[u8]) {
        for &n in lines {
            self.set(n, true);
        }
    }

    /// The vector of the next acknowledge, `None` when INTR is low.
    fn take(&self) -> Option<u8> {
        self.intr.high().then(|| self.pic.acknowledge())
    }

    fn isr(&self, port: u16) -> u8 {
        self.out(port, 0x0b);
        let isr = self.inb(port);
        self.out(port, 0x0a);
        isr
    }
}

#[test]
fn the_higher_priority_goes_first_and_interrupts_the_lower() {
    let b = Board::new();
    b.raise(&[4]);
    assert_eq!(b.take(), Some(0x24));
    b.raise(&[5]);
    assert_eq!(b.take(), None, "a lower request waits for the EOI");
    b.raise(&[1]);
    assert_eq!(b.take(), Some(0x21));
    assert_eq!(b.isr(0x20), 0b1_0010);
    b.out(0x20, 0x20);
    assert_eq!(b.isr(0x20), 0b1_0000, "a non-specific EOI ends the highest in service");
    assert_eq!(b.take(), None);
    b.out(0x20, 0x64);
    assert_eq!(b.take(), Some(0x25));
}

#[test]
fn the_slave_sits_between_irq1_and_irq3() {
    let b = Board::new();
    b.raise(&[3, 14, 8]);
    assert_eq!(b.take(), Some(0x28));
    assert_eq!((b.isr(0x20), b.isr(0xa0)), (0b100, 0b1));
    assert_eq!(b.take(), None);
    b.out(0xa0, 0x20);
    assert_eq!(b.take(), None, "fully nested: the master's in-service bit blocks its slave");
    b.out(0x20, 0x20);
    assert_eq!(b.take(), Some(0x2e));
    b.out(0xa0, 0x20);
    b.out(0x20, 0x20);
    assert_eq!(b.take(), Some(0x23));
}

#[test]
fn special_fully_nested_lets_the_slave_interrupt_itself_and_nothing_else() {
    let b = Board::raw();
    b.initialize(0x11, 0x11);
    b.raise(&[12]);
    assert_eq!(b.take(), Some(0x2c));
    b.raise(&[5, 9]);
    assert_eq!(b.take(), Some(0x29));
    b.out(0xa0, 0x20);
    assert_eq!(b.take(), None);
    b.out(0xa0, 0x20);
    b.out(0x20, 0x20);
    assert_eq!(b.take(), Some(0x25));
}

#[test]
fn an_edge_asks_once_and_a_level_as_long_as_it_lasts() {
    let b = Board::new();
    b.raise(&[5]);
    assert_eq!(b.take(), Some(0x25));
    b.out(0x20, 0x20);
    assert_eq!(b.take(), None);

    b.out(0x4d0, 0xff);
    assert_eq!(b.inb(0x4d0), 0xf8, "IRQ0–2 stay edge triggered");
    b.out(0x4d1, 0xff);
    assert_eq!(b.inb(0x4d1), 0xde);
    assert_eq!(b.take(), Some(0x25), "now a level, and still high");
    assert_eq!(b.take(), None);
    b.out(0x20, 0x20);
    assert_eq!(b.take(), Some(0x25));
    b.set(5, false);
    b.out(0x20, 0x20);
    assert_eq!(b.take(), None);
}

#[test]
fn icw1_can_make_all_inputs_level_triggered() {
    let b = Board::raw();
    b.initialize(0x19, 0x01);
    b.raise(&[0]);
    assert_eq!(b.take(), Some(0x20));
    b.out(0x20, 0x20);
    assert_eq!(b.take(), Some(0x20));
}

#[test]
fn a_request_that_goes_away_is_spurious() {
    let b = Board::new();
    b.raise(&[3]);
    b.set(3, false);
    assert!(!b.intr.high());
    assert_eq!(b.pic.acknowledge(), 0x27);
    assert_eq!(b.isr(0x20), 0, "a spurious interrupt is not in service");

    // The slave's request goes away between its INT and the acknowledge: the master believed it.
    b.out(0x4d1, 0x02);
    b.raise(&[9]);
    b.out(0xa1, 0xff);
    assert!(!b.intr.high());
    assert_eq!(b.pic.acknowledge(), 0x27);
}

#[test]
fn a_slave_without_a_request_answers_irq15() {
    let b = Board::raw();
    // The master sees its cascade input as a level that the test holds up: poll the slave empty behind its back.
    b.initialize(0x11, 0x01);
    let mut chips = lock(&b.pic.chips);
    chips.master.set_line(CASCADE, true);
    assert_eq!(chips.acknowledge(), 0x2f);
    drop(chips);
    assert_eq!((b.isr(0x20), b.isr(0xa0)), (0b100, 0));
}

#[test]
fn masks_hold_back_and_release() {
    let b = Board::new();
    b.out(0x21, 0x10);
    b.raise(&[4]);
    assert_eq!(b.inb(0x20), 0x10, "a masked request is remembered");
    assert_eq!(b.take(), None);
    b.out(0x21, 0);
    assert_eq!(b.take(), Some(0x24));
}

#[test]
fn automatic_eoi_and_its_rotation() {
    let b = Board::raw();
    b.initialize(0x11, 0x03);
    b.raise(&[0, 3]);
    assert_eq!(b.take(), Some(0x20));
    assert_eq!(b.isr(0x20), 0);
    assert_eq!(b.take(), Some(0x23));

    b.out(0x20, 0x80);
    for n in [3, 5] {
        b.set(n, false);
        b.raise(&[n]);
    }
    assert_eq!(b.take(), Some(0x23));
    b.set(3, false);
    b.raise(&[3]);
    assert_eq!(b.take(), Some(0x25), "IRQ3 went to the end of the queue");
    assert_eq!(b.take(), Some(0x23));
    b.out(0x20, 0x00);
}

#[test]
fn two_slave_requests_under_automatic_eoi_both_arrive() {
    let b = Board::raw();
    b.initialize(0x11, 0x03);
    b.raise(&[8, 12]);
    assert_eq!(b.take(), Some(0x28));
    assert_eq!(b.take(), Some(0x2c));
    assert_eq!(b.take(), None);
}

#[test]
fn rotation_on_eoi_and_by_command() {
    let b = Board::new();
    b.raise(&[4]);
    assert_eq!(b.take(), Some(0x24));
    b.out(0x20, 0xa0);
    b.raise(&[5, 3]);
    assert_eq!(b.take(), Some(0x25), "IRQ4 is the lowest now, so IRQ5 is the highest");
    b.out(0x20, 0xe5);
    b.raise(&[6]);
    assert_eq!(b.take(), Some(0x26));
    b.out(0x20, 0x20);
    b.out(0x20, 0xc2);
    b.raise(&[2, 0]);
    assert_eq!(b.take(), Some(0x23), "IRQ2 is the lowest by command");
}

#[test]
fn special_mask_lets_lower_requests_through() {
    let b = Board::new();
    b.raise(&[3]);
    assert_eq!(b.take(), Some(0x23));
    b.raise(&[6]);
    assert_eq!(b.take(), None);
    b.out(0x21, 0x08);
    b.out(0x20, 0x68);
    assert_eq!(b.take(), Some(0x26));
    b.out(0x20, 0x20);
    assert_eq!(b.isr(0x20), 0x08, "the masked in-service bit is not for a non-specific EOI");
    b.out(0x20, 0x48);
    b.out(0x20, 0x20);
    assert_eq!(b.isr(0x20), 0);
}

#[test]
fn a_poll_acknowledges() {
    let b = Board::new();
    b.raise(&[6, 10]);
    b.out(0x20, 0x0c);
    assert_eq!(b.inb(0x20), 0x82);
    b.out(0xa0, 0x0c);
    assert_eq!(b.inb(0xa0), 0x82);
    assert_eq!((b.isr(0x20), b.isr(0xa0)), (4, 4));
    b.out(0xa0, 0x0c);
    assert_eq!(b.inb(0xa1), 0, "nothing left; the poll works at the data port too");
    assert_eq!(b.inb(0xa1), 0, "and is over: this is the mask");
}

#[test]
fn initialization_clears_the_mask_and_forgets_edges() {
    let b = Board::new();
    b.out(0x21, 0xff);
    b.raise(&[1]);
    b.out(0x20, 0x11);
    assert!(!b.intr.high(), "quiet until the words are complete");
    b.out(0x21, 0x47);
    b.out(0x21, 0x04);
    b.out(0x21, 0x01);
    assert_eq!(b.inb(0x21), 0);
    assert_eq!(b.take(), None, "IRQ1 must rise again");
    b.set(1, false);
    b.set(1, true);
    assert_eq!(b.take(), Some(0x41), "the low three bits of the base are the input's");
}

#[test]
fn one_chip_alone_takes_two_words() {
    let b = Board::raw();
    b.out(0x20, 0x12);
    b.out(0x21, 0x50);
    b.out(0x21, 0xfe);
    assert_eq!(b.inb(0x21), 0xfe, "neither ICW3 nor ICW4: this was the mask");
    b.raise(&[0]);
    assert_eq!(b.take(), Some(0x50));
}

#[test]
fn any_size_at_any_port_is_safe() {
    let b = Board::new();
    for port in (0..=0x30).chain(0x90..=0xb0).chain(0x4c0..=0x4e0).chain([0xffff]) {
        for size in 0..=8 {
            b.pic.read(port, size);
            b.pic.write(port, size, u32::MAX);
        }
    }
    b.pic.write(0x4d0, 2, 0xffff);
    assert_eq!(b.pic.read(0x4d0, 2), 0xdef8, "a word is two ports");
    assert_eq!(b.pic.read(0xa2, 1), 0xff);
}

/// IRQ0 as it is wired: 8254 → HPET → (8259 → LINT0) and (IOAPIC → message), every lock of the order on the way.
#[test]
fn the_timer_tick_reaches_the_processor_both_ways() {
    use crate::hpet::{Hpet, HpetLines};
    use crate::ioapic::IoApic;
    use crate::lapic::{APIC_BASE_ADDRESS, ApicBus, ApicConfig, ApicMmio, LocalApic};
    use crate::line::Fanout;
    use crate::pit::Pit;
    use cpu::{LocalApic as _, Signals};
    use memory::Mmio;

    let (time, bus, signals) = (Time::new(), ApicBus::new(), Arc::new(Signals::default()));
    let config = ApicConfig { id: 0, bsp: true, x2apic: true, tsc_deadline: true, physical_bits: 40 };
    let apic = LocalApic::new(config, &bus, &time.timers, Arc::clone(&signals));
    apic.set_virtual_wire();
    let pic = Pic::new(bus.intr_pin());
    let source: Arc<dyn ExtInt> = pic.clone();
    bus.set_ext_int(Arc::downgrade(&source));
    let ioapic = IoApic::new(&bus);
    let irq0: Pin = Arc::new(Fanout(vec![pic.pin(0), ioapic.pin(2)]));
    let lines = HpetLines { irq0, irq8: pic.pin(8), gsi16: [16, 17, 18, 19, 20, 21, 22, 23].map(|n| ioapic.pin(n)) };
    let hpet = Hpet::new(&time.timers, lines);
    let pit = Pit::new(&time.timers, hpet.pit_input());

    let board = Board { pic, intr: Probe::new(&time) };
    board.initialize(0x11, 0x01);
    pit.write(0x43, 1, 0x34);
    pit.write(0x40, 1, 0xa9);
    pit.write(0x40, 1, 0x04);
    board.pic.acknowledge();
    board.out(0x20, 0x20);
    time.run(1_001_000);
    assert_eq!(signals.raised(), Signals::INTERRUPT);
    assert_eq!(apic.acknowledge(), Some(0x20));
    assert_eq!(signals.raised(), 0);
    board.out(0x20, 0x20);

    board.out(0x21, 0xff);
    ioapic.write(0, 0, 4, 0x14);
    ioapic.write(0, 0x10, 4, 0x31);
    time.run(1_001_000);
    assert_eq!(apic.acknowledge(), Some(0x31));
    board.out(0x21, 0);

    // Everything at once, from several threads: it ends.
    let page = ApicMmio::new(Arc::clone(&bus), APIC_BASE_ADDRESS);
    ioapic.write(0, 0x10, 4, 0x8031);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..500 {
                time.run(100_000);
                hpet.write(0, 0x10, 8, round & 3);
            }
        });
        scope.spawn(|| {
            for _ in 0..2000 {
                pit.read(0x40, 2);
                board.out(0x20, 0x20);
                board.set(4, true);
                board.set(4, false);
            }
        });
        for _ in 0..2000 {
            apic.acknowledge();
            page.write(0, 0xb0, 4, 0);
            apic.set_deadline(Some(1));
        }
    });
}
