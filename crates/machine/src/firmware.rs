//! What a PC's firmware leaves in the devices when it hands over to a kernel.
//!
//! The interrupt controllers are in the state that the BIOS interface promises (IBM PC/AT Technical Reference): the
//! 8259s deliver at vectors 08h and 70h through LINT0, the 8254 ticks 18.2 times a second, and the ACPI interrupt is
//! level-triggered. What firmware leaves in memory is written by `boot`.

use devices::PortDevice;
use devices::pic::Pic;
use devices::pit::Pit;

/// Sets up the 8259s and, if there is one, the 8254, just reset. `sci`: the ACPI interrupt.
pub(crate) fn set_up(pic: &Pic, pit: Option<&Pit>, sci: u8) {
    const SCRIPT: [(u16, u32); 10] = [
        // ICW1: edge-triggered, cascaded, ICW4 follows; ICW2: the first vector; ICW3: the cascade; ICW4: 8086 mode.
        (0x20, 0x11),
        (0x21, 0x08),
        (0x21, 0x04),
        (0x21, 0x01),
        (0xa0, 0x11),
        (0xa1, 0x70),
        (0xa1, 0x02),
        (0xa1, 0x01),
        // Masks: the timer, and the slave that nothing comes through.
        (0x21, 0xfa),
        (0xa1, 0xff),
    ];
    for (port, value) in SCRIPT {
        pic.write(port, 1, value);
    }
    pic.write(0x4d0, 2, 1 << sci);
    // Counter 0, mode 2, both bytes; a count of 0 is 65536.
    for (port, value) in [(0x43, 0x34), (0x40, 0), (0x40, 0)] {
        pit.iter().for_each(|pit| pit.write(port, 1, value));
    }
}
