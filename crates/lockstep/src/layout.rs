//! Where everything is in the test machine: RAM, two sets of page tables, and the pages that cases run in.
//!
//! Two *worlds* of four-level tables map the same physical pages: in the world of [`User`](World::User) the pages of a
//! case belong to user mode, in the world of [`Kernel`](World::Kernel) to the supervisor; one page is the other way
//! round in each. The pages of the system (handlers, tables, stacks) are the supervisor's in both, global, and 2 GiB
//! below the top of the address space, as a kernel's are.
//!
//! The upper levels are folded: the same page table serves the low 2 MiB and the last 2 MiB of both canonical halves,
//! so that [`EDGE`] is also the last page below the canonical hole and the last of the address space. Protected mode
//! has page-directory pointers of its own to the same tables; the pages of the system are in its upper half.
//!
//! The pages of a case are [`LOW`] bytes further down in physical memory, so that real mode finds them there, and also in
//! the linear address space, for virtual-8086 mode.

use crate::mode::Mode;
use crate::random::Random;

/// Bytes of RAM, from address zero.
pub const RAM: usize = 0x50_000;
/// Guest physical address of the device whose accesses are recorded; its page is [`MMIO`].
pub const DEVICE_GPA: u64 = RAM as u64;
/// How much further down the pages of a case are in physical memory, and for 16-bit code that knows no descriptors.
pub const LOW: u64 = 0xe_0000;
/// Guest physical address of [`EXIT`].
pub const EXIT_GPA: u64 = EXIT - LOW;
/// Guest physical address of [`COUNTERS`].
pub const COUNTERS_GPA: u64 = COUNTERS - LOW;

/// Bytes in a page.
pub const PAGE: u64 = x86::PAGE_SIZE;
/// What is added to a guest physical address to give the address of a page of the system.
pub const SYSTEM: u64 = 0xffff_ffff_8000_0000;

/// Page-directory pointers of both worlds for protected mode. Guest physical, as are all addresses of the system here.
const POINTERS: u64 = 0xb000;
/// The handlers' code for long mode, two pages.
pub const TEXT: u64 = 0xc000;
/// The interrupt descriptor table.
pub const IDT: u64 = 0xe000;
/// The GDT, and the TSS in the same page.
pub const GDT: u64 = 0xf000;
/// See [`GDT`].
pub const TSS: u64 = GDT + 0x800;
/// The TSS of protected mode.
pub const TSS_32: u64 = GDT + 0xa00;
/// What happened: see `kernel`.
pub const LOG: u64 = 0x1_0000;
/// The stack of exception handlers (IST 1).
pub const STACK: u64 = 0x1_1000;
/// The stack of the interrupts that leave no trace (IST 2), in protected mode that of everything that comes from user
/// mode: what is left in it is not compared.
pub const ASYNC_STACK: u64 = 0x1_2000;
/// The stack of software interrupts from user mode (RSP0).
pub const INNER_STACK: u64 = 0x1_3000;
/// A byte for each byte of code: the length of the instruction that begins there, for handlers that skip it.
pub const SKIP: u64 = 0x1_4000;
/// The handlers' code for protected mode, two pages.
pub const TEXT_32: u64 = 0x1_8000;
/// The interrupt descriptor table of protected mode.
pub const IDT_32: u64 = 0x1_a000;
/// The handlers' code for real mode, whose interrupt vectors are at address 0.
pub const TEXT_16: u64 = 0x1_b000;

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
/// Where every case ends: code that nothing can write.
pub const EXIT: u64 = CODE + 0xf000;
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
pub const DATA_GPA: u64 = DATA - LOW;
/// Guest physical address of [`EDGE`].
const EDGE_GPA: u64 = 0x2_e000;
/// See [`DATA_GPA`].
pub const CODE_GPA: u64 = CODE - LOW;

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

    /// The page-directory pointers of its tables, for protected mode.
    #[must_use]
    pub fn pointers(self) -> u64 {
        POINTERS + 8 * 4 * self as u64
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

/// A page that is where real mode would find it.
const fn own(va: u64, rights: u64) -> (u64, u64, u64) {
    (va, va - LOW, rights)
}

/// The pages of a case: virtual and guest physical address, rights.
const PAGES: [(u64, u64, u64); 23] = [
    own(DATA, W | NX),
    own(DATA + PAGE, W | NX),
    own(BEFORE_READ_ONLY, W | NX),
    own(READ_ONLY, NX),
    own(MMIO - PAGE, W | NX),
    (MMIO, DEVICE_GPA, W | NX),
    own(MMIO + PAGE, W | NX),
    own(BEFORE_PRIVATE, W),
    own(PRIVATE, W | NX),
    own(KEYED, W | NX | (KEY as u64) << 59),
    own(CODE, W),
    own(CODE + PAGE, W),
    own(CODE + 2 * PAGE, W),
    (CODE + ALIAS, CODE_GPA, W),
    (CODE + ALIAS + PAGE, CODE_GPA + PAGE, W),
    (CODE + ALIAS + 2 * PAGE, CODE_GPA + 2 * PAGE, W),
    own(USER_STACK, W | NX),
    own(USER_STACK + PAGE, W | NX),
    own(EXIT, 0),
    own(COUNTERS, W | NX),
    (EDGE, EDGE_GPA, W | NX),
    // Two more names of the data, so that a store is seen through another one.
    (0x13_0000, DATA_GPA, W | NX),
    (0x13_1000, DATA_GPA + PAGE, NX),
];

/// The pages of the system: guest physical address and rights.
const SYSTEM_PAGES: [(u64, u64); 15] = [
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
    (TEXT_32, 0),
    (TEXT_32 + PAGE, 0),
    (IDT_32, NX),
    (DEVICE_GPA, W | NX),
];

/// What a guest may change by plain stores, compared and restored after every case: guest physical address and
/// length. Of the system's pages only those parts that its kernel uses.
pub const WRITABLE: [(u64, u64); 13] = [
    (GDT, 0xb00),
    (LOG, PAGE),
    (STACK + PAGE - 0x100, 0x100),
    (INNER_STACK + PAGE - 0x100, 0x100),
    (DATA_GPA, 2 * PAGE),
    (BEFORE_READ_ONLY - LOW, 3 * PAGE),
    (MMIO + PAGE - LOW, PAGE),
    (BEFORE_PRIVATE - LOW, 3 * PAGE),
    (EDGE_GPA, PAGE),
    (CODE_GPA, 3 * PAGE),
    (USER_STACK - LOW, 2 * PAGE),
    // With CR0.WP clear.
    (EXIT_GPA, PAGE),
    (COUNTERS_GPA, PAGE),
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
        for (n, directory) in [(0, directory), (2, SYSTEM_DIRECTORY), (3, directory)] {
            put(image, world.pointers() + n * 8, directory | P);
        }
        for (va, gpa, rights) in PAGES {
            let mine = (world == World::User) != (va == PRIVATE);
            let user = if mine { U } else { 0 };
            for va in [va, Mode::Virtual8086.linear(va)] {
                put(image, leaf(world, va), gpa | rights | user | P | AD);
            }
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
