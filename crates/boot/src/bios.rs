//! The little that guests expect of a PC's firmware after it has run: interrupt vectors that return, and the BIOS data
//! area's words that say where base memory ends and where the serial ports are (IBM PC/AT BIOS; Ralf Brown's list).
//!
//! Left out: every BIOS service. A software interrupt returns with nothing done.

use crate::BootError;
use crate::board::BoardInfo;
use crate::layout::{BIOS_STUBS, EBDA};
use crate::ram::Ram;
use memory::Gpa;

/// `iret`: what a vector without a service does.
const RETURN: &[u8] = &[0xcf];
/// IRQ 0: count the tick at 40h:6Ch, end of interrupt, return.
const TICK: &[u8] = &[
    0x50, 0x1e, // push ax; push ds
    0xb8, 0x40, 0x00, 0x8e, 0xd8, // mov ax, 40h; mov ds, ax
    0x83, 0x06, 0x6c, 0x00, 0x01, // add word [6Ch], 1
    0x83, 0x16, 0x6e, 0x00, 0x00, // adc word [6Eh], 0
    0xb0, 0x20, 0xe6, 0x20, // mov al, 20h; out 20h, al
    0x1f, 0x58, 0xcf, // pop ds; pop ax; iret
];
/// IRQ 1 to 7: end of interrupt, return.
const MASTER: &[u8] = &[0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf];
/// IRQ 8 to 15: end of interrupt at both controllers, return.
const SLAVE: &[u8] = &[0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0x58, 0xcf];

/// Writes vectors, stubs and the BIOS data area.
pub(crate) fn write(ram: &dyn Ram, board: &BoardInfo) -> Result<(), BootError> {
    const WHAT: &str = "the BIOS data area";
    let mut stubs = Vec::new();
    let mut stub = |code: &[u8]| {
        let offset = u16::try_from(stubs.len()).unwrap_or(0);
        stubs.extend_from_slice(code);
        offset
    };
    let (plain, tick, master, slave) = (stub(RETURN), stub(TICK), stub(MASTER), stub(SLAVE));

    let segment = u16::try_from(BIOS_STUBS.0 >> 4).unwrap_or(0);
    let vectors: Vec<u8> = (0..=255u8)
        .flat_map(|vector| {
            let offset = match vector {
                0x08 => tick,
                0x09..=0x0f => master,
                0x70..=0x77 => slave,
                _ => plain,
            };
            let [a, b] = offset.to_le_bytes();
            let [c, d] = segment.to_le_bytes();
            [a, b, c, d]
        })
        .collect();
    ram.put(WHAT, BIOS_STUBS, &stubs)?;
    ram.put(WHAT, Gpa(0), &vectors)?;

    let mut data = [0u8; 0x100];
    let mut word = |offset: usize, value: u64| {
        let bytes = u16::try_from(value).unwrap_or(0).to_le_bytes();
        if let Some(place) = data.get_mut(offset..offset + 2) {
            place.copy_from_slice(&bytes);
        }
    };
    for (i, com) in board.coms.iter().take(4).enumerate() {
        word(2 * i, com.port.into());
    }
    word(0x0e, EBDA.0 >> 4);
    // Equipment: an x87, and how many serial ports.
    let coms: u64 = crate::ram::to_u64(board.coms.len().min(4));
    word(0x10, 2 | coms << 9);
    // KiB of base memory.
    word(0x13, EBDA.0 >> 10);
    ram.put(WHAT, Gpa(0x400), &data)?;

    // The first byte of the extended area is its size in KiB.
    let mut ebda = [0u8; 0x400];
    ebda[0] = 1;
    ram.put(WHAT, EBDA, &ebda)
}
