//! Where things lie below 1 MiB, and the memory map that guests are told.
//!
//! | from | to | what |
//! |---|---|---|
//! | 0 | 4FFh | interrupt vectors and BIOS data area |
//! | 500h | 5FFh | GDT of the Linux entries |
//! | 6000h | 6FFFh | PVH start info, its module and memory lists |
//! | 7000h | 7FFFh | Linux's zero page |
//! | 8000h | 8FFFh | Linux's setup data |
//! | 9000h | EFFFh | page tables of the 64-bit entry |
//! | 20000h | 2FFFFh | command line |
//! | 9FC00h | 9FFFFh | extended BIOS data area |
//! | A0000h | DFFFFh | video memory and option ROMs of a real PC: not told as RAM |
//! | E0000h | EFFFFh | ACPI tables |
//! | F0000h | FFFFFh | ACPI's root pointer, BIOS stubs |

use crate::ram::Ram;
use memory::Gpa;

pub(crate) const GDT: Gpa = Gpa(0x500);
pub(crate) const START_INFO: Gpa = Gpa(0x6000);
pub(crate) const ZERO_PAGE: Gpa = Gpa(0x7000);
pub(crate) const SETUP_DATA: Gpa = Gpa(0x8000);
pub(crate) const PAGE_TABLES: Gpa = Gpa(0x9000);
pub(crate) const COMMAND_LINE: Gpa = Gpa(0x2_0000);
/// Bytes that there are for a command line and its terminating zero.
pub(crate) const COMMAND_LINE_ROOM: usize = 0x1_0000;
/// Extended BIOS data area: base memory ends here.
pub(crate) const EBDA: Gpa = Gpa(0x9_fc00);
pub(crate) const ACPI_TABLES: Gpa = Gpa(0xe_0000);
pub(crate) const RSDP: Gpa = Gpa(0xf_0000);
pub(crate) const BIOS_STUBS: Gpa = Gpa(0xf_0100);
/// Where memory goes on after the holes of the first PCs.
pub(crate) const HIGH: Gpa = Gpa(0x10_0000);

/// What a range of the memory map is: the values are those of e820, multiboot and PVH alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    Ram = 1,
    Reserved = 2,
}

/// A range of the memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: Gpa,
    pub(crate) size: u64,
    pub(crate) kind: Kind,
}

/// The memory map that guests are told: ascending, without overlaps.
pub(crate) fn memory_map(ram: &dyn Ram) -> Vec<Range> {
    let range = |start: Gpa, end: Gpa, kind| Range { start, size: end.0.saturating_sub(start.0), kind };
    let mut map = vec![
        range(Gpa(0), EBDA, Kind::Ram),
        range(EBDA, Gpa(0xa_0000), Kind::Reserved),
        range(ACPI_TABLES, HIGH, Kind::Reserved),
    ];
    for (start, size) in ram.ranges() {
        let end = Gpa(start.0.saturating_add(size));
        let start = start.max(HIGH);
        if start < end {
            map.push(range(start, end, Kind::Ram));
        }
    }
    map
}
