//! Where everything is in the test machine: RAM, two sets of page tables, and the pages that cases run in.
//!
//! Two *worlds* of four-level tables map the same physical pages: in the world of [`User`](World::User) the pages of a
//! case belong to user mode, in the world of [`Kernel`](World::Kernel) to the supervisor; one page is the other way
//! round in each. The pages of the system (handlers, tables, stacks) are the supervisor's in both, global, and 2 GiB
//! below the top of the address space, as a kernel's are.
//!
//! The upper levels are folded: the same page table serves the low 2 MiB and the last 2 MiB of both canonical halves,
//! so that [`EDGE`] is also the last page below the canonical hole and the last of the address space.

use crate::random::Random;

/// Bytes of RAM, from address zero.
pub const RAM: usize = 0x40_000;
/// Guest physical address of the device whose accesses are recorded; its page is [`MMIO`].
pub const DEVICE_GPA: u64 = RAM as u64;
/// Guest physical address of the device by which a case ends and asks for interrupts.
pub const CONTROL_GPA: u64 = DEVICE_GPA + 0x1000;
/// Guest physical address of [`EXIT`].
pub const EXIT_GPA: u64 = 0xb000;
/// Guest physical address of [`COUNTERS`].
pub const COUNTERS_GPA: u64 = 0x2_f000;
/// The end of both devices.
pub const DEVICES_END: u64 = DEVICE_GPA + 0x2000;

/// Bytes in a page.
pub const PAGE: u64 = x86::PAGE_SIZE;
/// What is added to a guest physical address to give the address of a page of the system.
pub const SYSTEM: u64 = 0xffff_ffff_8000_0000;

/// The handlers' code, two pages. Guest physical, as are all addresses of the system here.
pub const TEXT: u64 = 0xc000;
/// The interrupt descriptor table.
pub const IDT: u64 = 0xe000;
/// The GDT, and the TSS in the same page.
pub const GDT: u64 = 0xf000;
/// See [`GDT`].
pub const TSS: u64 = GDT + 0x800;
/// What happened: see `kernel`.
pub const LOG: u64 = 0x1_0000;
/// The stack of exception handlers (IST 1).
pub const STACK: u64 = 0x1_1000;
/// The stack of the interrupts that leave no trace (IST 2): what is left in it is not compared.
pub const ASYNC_STACK: u64 = 0x1_2000;
/// The stack of software interrupts from user mode (RSP0).
pub const INNER_STACK: u64 = 0x1_3000;
/// A byte for each byte of code: the length of the instruction that begins there, for handlers that skip it.
pub const SKIP: u64 = 0x1_4000;

/// Virtual address of two pages of plain data; absent pages on both sides. Also where the host oracle's operands are.
pub const DATA: u64 = 0x10_0000;
/// A page of data, followed by the page that cannot be written.
pub const BEFORE_READ_ONLY: u64 = 0x10_4000;
/// A page that cannot be written.
pub const READ_ONLY: u64 = 0x10_5000;
/// The page whose accesses are recorded, between two pages of data.
pub const MMIO: u64 = 0x10_7000;
/// A page of data that may be executed, followed by the one of the other world.
pub const BEFORE_PRIVATE: u64 = 0x10_a000;
/// A page of the other privilege level.
pub const PRIVATE: u64 = 0x10_b000;
/// A page with a protection key of its own, [`KEY`]; an absent page follows.
pub const KEYED: u64 = 0x10_c000;
/// See [`KEYED`].
pub const KEY: u32 = 1;
/// Three pages of code, which may be written; an absent page follows.
pub const CODE: u64 = 0x11_0000;
/// Bytes of code.
pub const CODE_LEN: u64 = 3 * PAGE;
/// Set in an address of code, this names the same byte through another mapping.
pub const ALIAS: u64 = 0x8000;
/// The stack, two pages between absent ones.
pub const USER_STACK: u64 = 0x12_0000;
/// See [`CONTROL_GPA`].
pub const CONTROL: u64 = 0x12_8000;
/// Where every case ends: code that nothing can write, for 64-bit mode, and [`EXIT_32`] bytes on for 32-bit code.
pub const EXIT: u64 = 0x12_9000;
/// See [`EXIT`].
pub const EXIT_32: u64 = 0x40;
/// Where loops count, away from what pointers point to.
pub const COUNTERS: u64 = 0x12_a000;
/// Counts down to zero how often functions may still be called.
pub const FUEL: u64 = COUNTERS + 0x80;
/// What [`FUEL`] begins with.
pub const TANK: u64 = 200;
/// The last page of the table: see above.
pub const EDGE: u64 = 0x1f_f000;
/// Where [`EDGE`] is as well: before the canonical hole, and at the end of the address space.
pub const EDGES: [u64; 2] = [0x7fff_ffff_f000, 0xffff_ffff_ffff_f000];

/// Guest physical addresses of what [`DATA`] and [`CODE`] name.
pub const DATA_GPA: u64 = 0x2_0000;
/// See [`DATA_GPA`].
pub const CODE_GPA: u64 = 0x3_0000;

/// Who owns the pages of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// User mode.
    User,
    /// The supervisor.
    Kernel,
}

impl World {
    /// The root of its tables.
    #[must_use]
    pub fn root(self) -> u64 {
        match self {
            Self::User => 0x1000,
            Self::Kernel => 0x5000,
        }
    }

    /// Its address-space identifier.
    #[must_use]
    pub fn pcid(self) -> u64 {
        match self {
            Self::User => 1,
            Self::Kernel => 2,
        }
    }
}

/// The page tables below the roots; those of the system are shared.
const SYSTEM_DIRECTORY: u64 = 0x9000;
const SYSTEM_TABLE: u64 = 0xa000;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
/// Accessed and dirty: set beforehand, so that a warm TLB and a cold one leave the same tables.
const AD: u64 = 0x60;
const G: u64 = 1 << 8;
const NX: u64 = 1 << 63;

/// The pages of a case: virtual and guest physical address, rights.
const PAGES: [(u64, u64, u64); 24] = [
    (DATA, DATA_GPA, W | NX),
    (DATA + PAGE, DATA_GPA + PAGE, W | NX),
    (BEFORE_READ_ONLY, 0x2_4000, W | NX),
    (READ_ONLY, 0x2_5000, NX),
    (MMIO - PAGE, 0x2_6000, W | NX),
    (MMIO, DEVICE_GPA, W | NX),
    (MMIO + PAGE, 0x2_7000, W | NX),
    (BEFORE_PRIVATE, 0x2_8000, W),
    (PRIVATE, 0x2_9000, W | NX),
    (KEYED, 0x2_a000, W | NX | (KEY as u64) << 59),
    (CODE, CODE_GPA, W),
    (CODE + PAGE, CODE_GPA + PAGE, W),
    (CODE + 2 * PAGE, CODE_GPA + 2 * PAGE, W),
    (CODE + ALIAS, CODE_GPA, W),
    (CODE + ALIAS + PAGE, CODE_GPA + PAGE, W),
    (CODE + ALIAS + 2 * PAGE, CODE_GPA + 2 * PAGE, W),
    (USER_STACK, 0x2_c000, W | NX),
    (USER_STACK + PAGE, 0x2_d000, W | NX),
    (CONTROL, CONTROL_GPA, W | NX),
    (EXIT, EXIT_GPA, 0),
    (COUNTERS, COUNTERS_GPA, W | NX),
    (EDGE, 0x2_e000, W | NX),
    // Two more names of the data, so that a store is seen through another one.
    (0x13_0000, DATA_GPA, W | NX),
    (0x13_1000, DATA_GPA + PAGE, NX),
];

/// The pages of the system: guest physical address and rights.
const SYSTEM_PAGES: [(u64, u64); 13] = [
    (TEXT, 0),
    (TEXT + PAGE, 0),
    (IDT, NX),
    (GDT, W | NX),
    (LOG, W | NX),
    (STACK, W | NX),
    (ASYNC_STACK, W | NX),
    (INNER_STACK, W | NX),
    (SKIP, NX),
    (SKIP + PAGE, NX),
    (SKIP + 2 * PAGE, NX),
    (DEVICE_GPA, W | NX),
    (CONTROL_GPA, W | NX),
];

/// What a guest may change by plain stores, compared and restored after every case: guest physical address and
/// length. Of the system's pages only those parts that its kernel uses.
pub const WRITABLE: [(u64, u64); 12] = [
    (GDT, 0x900),
    (LOG, PAGE),
    (STACK + PAGE - 0x100, 0x100),
    (INNER_STACK + PAGE - 0x100, 0x100),
    (DATA_GPA, 2 * PAGE),
    (0x2_4000, 3 * PAGE),
    (0x2_7000, PAGE),
    (0x2_8000, 3 * PAGE),
    (CODE_GPA, 3 * PAGE),
    (0x2_c000, 2 * PAGE),
    (0x2_e000, PAGE),
    (COUNTERS_GPA, 0x100),
];

/// Writes a 64-bit word of the image.
pub(crate) fn put(image: &mut [u8], gpa: u64, word: u64) {
    let at = gpa as usize;
    image[at..at + 8].copy_from_slice(&word.to_le_bytes());
}

/// Reads a 64-bit word of an image.
pub(crate) fn get(image: &[u8], gpa: u64) -> u64 {
    let at = gpa as usize;
    image[at..at + 8].try_into().map_or(0, u64::from_le_bytes)
}

/// Writes both worlds' page tables.
pub(crate) fn page_tables(image: &mut [u8]) {
    for world in [World::User, World::Kernel] {
        let root = world.root();
        let [pointers, directory, table] = [1, 2, 3].map(|n| root + n * PAGE);
        let upper = P | W | U | AD & !0x40;
        for slot in [0, 255, 511] {
            put(image, root + slot * 8, pointers | upper);
        }
        for slot in [0, 511] {
            put(image, pointers + slot * 8, directory | upper);
            put(image, directory + slot * 8, table | upper);
        }
        put(image, pointers + 510 * 8, SYSTEM_DIRECTORY | upper);
        for (va, gpa, rights) in PAGES {
            let mine = (world == World::User) != (va == PRIVATE);
            let user = if mine { U } else { 0 };
            put(image, table + (va >> 12 & 511) * 8, gpa | rights | user | P | AD);
        }
    }
    put(image, SYSTEM_DIRECTORY, SYSTEM_TABLE | P | W | 0x20);
    for (gpa, rights) in SYSTEM_PAGES {
        put(image, SYSTEM_TABLE + (gpa >> 12) * 8, gpa | rights | P | G | AD);
    }
}

/// Where a world's entry is for the page of a case at `va`.
pub(crate) fn leaf(world: World, va: u64) -> u64 {
    world.root() + 3 * PAGE + (va >> 12 & 511) * 8
}

/// Virtual addresses of the pages of a case.
pub(crate) fn case_pages() -> impl Iterator<Item = u64> {
    PAGES.iter().map(|page| page.0)
}

/// An address that is worth an access: mostly in plain data, often at the end of a page, sometimes where it faults.
pub fn spot(random: &mut Random) -> u64 {
    let page = match random.below(32) {
        0..13 => DATA + PAGE * random.below(2),
        13 => BEFORE_READ_ONLY,
        14 => READ_ONLY,
        15 => MMIO - PAGE,
        16 | 17 => MMIO,
        18 => MMIO + PAGE,
        19 => BEFORE_PRIVATE,
        20 => PRIVATE,
        21 => KEYED,
        22 => CODE + PAGE * random.below(3),
        23 => CODE + ALIAS + PAGE * random.below(3),
        24 | 25 => USER_STACK + PAGE * random.below(2),
        26 => random.pick(&EDGES),
        27 => 0x13_0000 + PAGE * random.below(2),
        28 => DATA + 2 * PAGE,
        29 => random.pick(&[0, DATA - PAGE, CODE + CODE_LEN]),
        30 => return random.bits(),
        _ => EDGE,
    };
    page.wrapping_add(offset(random))
}

/// An offset in a page, often such that the access goes on in the next one.
pub fn offset(random: &mut Random) -> u64 {
    match random.below(8) {
        0..3 => random.below(PAGE / 64) * 64,
        3 => random.below(PAGE / 8) * 8,
        4 => random.below(PAGE),
        5 => random.below(16),
        6 => PAGE - 64 + random.below(64),
        _ => PAGE - random.below(17),
    }
}
