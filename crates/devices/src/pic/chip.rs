//! One 8259A: requests, priorities, in-service bits and its command words, apart from how two of them are wired.

use super::spec::{CASCADE, Icw1, Icw4, Ocw2, Ocw3};

/// What the data port takes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Icw2,
    Icw3,
    Icw4,
    Mask,
}

#[derive(Debug)]
pub(super) struct Chip {
    master: bool,
    /// Levels of the inputs.
    lines: u8,
    /// Requests. Of a level triggered input: its level; of an edge triggered one: it rose, has not fallen since and was
    /// not acknowledged since.
    irr: u8,
    isr: u8,
    imr: u8,
    pub elcr: u8,
    expect: Expect,
    icw1: Icw1,
    icw3: u8,
    icw4: Icw4,
    /// Vector of input 0.
    base: u8,
    /// The input with the lowest priority; the next one has the highest.
    lowest: u8,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
}

impl Chip {
    pub fn new(master: bool) -> Self {
        Self {
            master,
            lines: 0,
            irr: 0,
            isr: 0,
            imr: 0,
            elcr: 0,
            expect: Expect::Mask,
            icw1: Icw1::new(),
            icw3: if master { 1 << CASCADE } else { CASCADE },
            icw4: Icw4::new(),
            base: 0,
            lowest: 7,
            rotate_on_auto_eoi: false,
            special_mask: false,
            read_isr: false,
            poll: false,
        }
    }

    /// Back to the state of power-on; the inputs stay as they are driven.
    pub fn reset(&mut self) {
        *self = Self { lines: self.lines, ..Self::new(self.master) };
    }

    fn level_triggered(&self) -> u8 {
        if self.icw1.level() { u8::MAX } else { self.elcr }
    }

    pub fn set_elcr(&mut self, elcr: u8) {
        self.elcr = elcr;
        let level = self.level_triggered();
        self.irr = (self.irr & !level) | (self.lines & level);
    }

    pub fn set_line(&mut self, n: u8, high: bool) {
        let bit = 1 << (n & 7);
        if high {
            if self.lines & bit == 0 || self.level_triggered() & bit != 0 {
                self.irr |= bit;
            }
            self.lines |= bit;
        } else {
            self.irr &= !bit;
            self.lines &= !bit;
        }
    }

    /// 0 for the input with the highest priority, 7 for that with the lowest.
    fn rank(&self, n: u8) -> u8 {
        n.wrapping_sub(self.lowest).wrapping_sub(1) & 7
    }

    /// The input of highest priority in `set`.
    fn first(&self, set: u8) -> Option<u8> {
        (0..8).map(|rank| (self.lowest + 1 + rank) & 7).find(|n| set & (1 << n) != 0)
    }

    /// Whether the slave answers an acknowledge of this (master) chip's cascade input.
    pub fn cascaded(&self) -> bool {
        self.master && !self.icw1.single() && self.icw3 & (1 << CASCADE) != 0
    }

    /// The input that asks for service now, if INT is to be high.
    pub fn pending(&self) -> Option<u8> {
        if self.expect != Expect::Mask {
            return None;
        }
        let request = self.first(self.irr & !self.imr)?;
        let mut blocking = self.isr;
        if self.special_mask {
            blocking &= !self.imr;
        }
        if request == CASCADE && self.icw4.special_nested() && self.cascaded() {
            blocking &= !(1 << CASCADE);
        }
        match self.first(blocking) {
            Some(serving) if self.rank(serving) <= self.rank(request) => None,
            _ => Some(request),
        }
    }

    /// An acknowledge cycle: the input now in service, `None` for a request that is gone (answered with input 7's
    /// vector).
    pub fn acknowledge(&mut self) -> Option<u8> {
        let n = self.pending()?;
        let bit = 1 << n;
        if self.level_triggered() & bit == 0 {
            self.irr &= !bit;
        }
        if !self.icw4.auto_eoi() {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = n;
        }
        Some(n)
    }

    pub fn vector(&self, n: u8) -> u8 {
        (self.base & 0xf8) | (n & 7)
    }

    pub fn describe(&self) -> String {
        let Self { irr, imr, isr, base, elcr, .. } = self;
        let (first, status, nested) =
            ((self.lowest + 1) & 7, u8::from(self.read_isr), u8::from(self.icw4.special_nested()));
        format!(
            "irr={irr:02x} imr={imr:02x} isr={isr:02x} hprio={first} irq_base={base:02x} rr_sel={status} \
             elcr={elcr:02x} fnm={nested}"
        )
    }

    pub fn read_data(&self) -> u8 {
        self.imr
    }

    /// The register that OCW3 chose.
    pub fn read_status(&self) -> u8 {
        if self.read_isr { self.isr } else { self.irr }
    }

    /// Whether this read is a poll; it is one once.
    pub fn take_poll(&mut self) -> bool {
        std::mem::take(&mut self.poll)
    }

    pub fn write_command(&mut self, value: u8) {
        if Icw1::from(value).is_icw1() {
            self.initialize(Icw1::from(value));
        } else if Ocw3::from(value).is_ocw3() {
            let ocw3 = Ocw3::from(value);
            self.poll = ocw3.poll();
            if ocw3.select() {
                self.read_isr = ocw3.in_service();
            }
            if ocw3.change_special_mask() {
                self.special_mask = ocw3.special_mask();
            }
        } else {
            self.end_of_interrupt(Ocw2::from(value));
        }
    }

    fn initialize(&mut self, icw1: Icw1) {
        self.icw1 = icw1;
        self.imr = 0;
        self.isr = 0;
        self.lowest = 7;
        self.special_mask = false;
        self.read_isr = false;
        self.poll = false;
        self.rotate_on_auto_eoi = false;
        if !icw1.icw4() {
            self.icw4 = Icw4::new();
        }
        // The edge sense circuit is reset: an input that is high must fall and rise again to be heard.
        self.irr = self.lines & self.level_triggered();
        self.expect = Expect::Icw2;
    }

    fn end_of_interrupt(&mut self, ocw2: Ocw2) {
        let level = ocw2.level();
        match (ocw2.rotate(), ocw2.specific(), ocw2.eoi()) {
            (rotate, false, true) => {
                // Masked in-service bits are out of sight of a non-specific EOI in special mask mode.
                let visible = if self.special_mask { self.isr & !self.imr } else { self.isr };
                if let Some(n) = self.first(visible) {
                    self.isr &= !(1 << n);
                    if rotate {
                        self.lowest = n;
                    }
                }
            }
            (rotate, true, true) => {
                self.isr &= !(1 << level);
                if rotate {
                    self.lowest = level;
                }
            }
            (rotate, false, false) => self.rotate_on_auto_eoi = rotate,
            (true, true, false) => self.lowest = level,
            (false, true, false) => {}
        }
    }

    pub fn write_data(&mut self, value: u8) {
        self.expect = match self.expect {
            Expect::Mask => {
                self.imr = value;
                Expect::Mask
            }
            Expect::Icw2 => {
                self.base = value;
                if !self.icw1.single() {
                    Expect::Icw3
                } else if self.icw1.icw4() {
                    Expect::Icw4
                } else {
                    Expect::Mask
                }
            }
            Expect::Icw3 => {
                self.icw3 = value;
                if self.icw1.icw4() { Expect::Icw4 } else { Expect::Mask }
            }
            Expect::Icw4 => {
                self.icw4 = Icw4::from(value);
                Expect::Mask
            }
        };
    }
}
