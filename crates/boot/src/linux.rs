//! Linux bzImages by the 64-bit and 32-bit boot protocols (the kernel's Documentation/arch/x86/boot.rst, versions 2.10
//! and later).
//!
//! The protected-mode part goes to its preferred address and starts at its 64-bit entry point with paging on, or, in a kernel
//! that has none, at its 32-bit one without; its own code decompresses and relocates it. Left out: the 16-bit entry
//! point, EFI handover, and loading above 4 GiB.
//!
//! The layouts of the setup header and the zero page are `linux-loader`'s. Its loader is not used: it trusts the
//! header's sizes and has no words for what is wrong with a file.

use crate::entry::RSI;
use crate::image::Image;
use crate::initrd;
use crate::layout::{COMMAND_LINE, COMMAND_LINE_ROOM, GDT, HIGH, PAGE_TABLES, RSDP, SETUP_DATA, ZERO_PAGE, memory_map};
use crate::ram::{Ram, to_u64};
use crate::{BootError, Config, Entry};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use memory::Gpa;
use vm_memory::ByteValued;
use x86::TableRegister;

/// Offset of the setup header in the file and in the zero page.
const HEADER: usize = 0x1f1;
/// `header`: "HdrS".
const MAGIC: u32 = 0x5372_6448;
/// Bytes in a sector.
const SECTOR: u64 = 512;
/// `loadflags`: the protected-mode part goes to 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// The oldest `version`: from it on the header tells where the kernel wants to be and how much room it needs.
const OLDEST: u16 = 0x20a;
/// From this `version` on there is `xloadflags`.
const WITH_XLOADFLAGS: u16 = 0x20c;
/// `xloadflags`: there is a 64-bit entry point at 200h.
const KERNEL_64: u16 = 1;
/// Offset of the 64-bit entry point.
const ENTRY_64: u64 = 0x200;
/// `type_of_loader`: a loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
/// `vid_mode`: "normal".
const NORMAL_VIDEO: u16 = 0xffff;
/// `setup_data` type of a seed for the random number generator.
const SETUP_RNG_SEED: u32 = 9;
/// Selectors that the protocol prescribes.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

/// Whether a file that begins with `head` is a bzImage, as far as the magic number goes.
pub(crate) fn is_bzimage(head: &[u8]) -> bool {
    crate::elf::field(head, 0x202, 4) == Some(u64::from(MAGIC))
}

/// The header of `image` after all checks that need no guest memory.
fn header(image: &Image) -> Result<setup_header, BootError> {
    let head = image.head(to_u64(HEADER + size_of::<setup_header>()))?;
    let mut bytes = [0u8; size_of::<setup_header>()];
    let Some(found) = head.get(HEADER..) else { return Err(image.bad("it is truncated within its setup header")) };
    // The header may be shorter than the newest one; its end is told by the jump over it.
    let end = head.get(0x201).map_or(0, |jump| 0x202 + usize::from(*jump)).saturating_sub(HEADER);
    if found.len() < end.min(bytes.len()) {
        return Err(image.bad(format!("it is truncated within its setup header: it has {} bytes", image.len())));
    }
    for (to, from) in bytes.iter_mut().zip(found.iter().take(end)) {
        *to = *from;
    }
    let Some(header) = setup_header::from_slice(&bytes).copied() else {
        return Err(image.bad("it has no setup header"));
    };
    let (version, boot_flag) = (header.version, header.boot_flag);
    if header.header != MAGIC {
        return Err(image.bad("it has no setup header"));
    }
    if boot_flag != 0xaa55 {
        return Err(image.bad(format!("its boot sector ends in {boot_flag:#06x} instead of 0xaa55")));
    }
    if version < OLDEST {
        let (major, minor) = (version >> 8, version & 0xff);
        return Err(
            image.bad(format!("its boot protocol is {major}.{minor:02}; 2.10 (Linux 2.6.31) or later is needed"))
        );
    }
    if header.loadflags & LOADED_HIGH == 0 {
        return Err(image.bad("it is a zImage, to be loaded low; only bzImages can be booted"));
    }
    Ok(header)
}

/// Loads `image`, whose magic number has been seen.
pub(crate) fn load(image: &Image, ram: &dyn Ram, config: &Config) -> Result<Entry, BootError> {
    let mut header = header(image)?;
    let setup_sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    let setup = (setup_sectors + 1) * SECTOR;
    let size = u64::from(header.syssize) * 16;
    if size <= ENTRY_64 {
        return Err(image.bad(format!("its protected-mode part is said to have only {size} bytes")));
    }
    // The header counts in units of 16 bytes; the last one need not be filled.
    let missing = (setup + size).saturating_sub(image.len());
    let size = if missing < 16 { size - missing } else { size };
    image.check("the protected-mode part", setup, size)?;

    let start = Gpa(header.pref_address);
    let needed = u64::from(header.init_size).max(size);
    let (alignment, relocatable) = (header.kernel_alignment, header.relocatable_kernel);
    if start < HIGH || start.offset() != 0 {
        return Err(image.bad(format!("its preferred address is {start:#x}; it must be a page at 0x100000 or above")));
    }
    if relocatable != 0 && !alignment.is_power_of_two() {
        return Err(image.bad(format!("its alignment is {alignment:#x}, which is not a power of two")));
    }
    // A relocatable kernel could be put lower, but unpacks to its preferred address all the same.
    let end = start.0.saturating_add(needed);
    if end > ram.low_end() {
        return Err(ram.too_large(image.name(), start.0, needed));
    }

    command_line(image, ram, config, &header)?;
    if let Some(names) = &config.initrd {
        let placed = initrd::place(ram, names, Gpa(end), Gpa(u64::from(header.initrd_addr_max).saturating_add(1)))?;
        header.ramdisk_image = u32::try_from(placed.start.0).unwrap_or(0);
        header.ramdisk_size = u32::try_from(placed.size).unwrap_or(0);
    }
    image.load(ram, "the protected-mode part", setup, size, start)?;

    header.type_of_loader = UNDEFINED_LOADER;
    header.vid_mode = NORMAL_VIDEO;
    header.code32_start = u32::try_from(start.0).unwrap_or(0);
    header.cmd_line_ptr = u32::try_from(COMMAND_LINE.0).unwrap_or(0);
    header.setup_data = setup_data(ram, config)?;
    zero_page(ram, header)?;

    let wide = header.version >= WITH_XLOADFLAGS && header.xloadflags & KERNEL_64 != 0;
    let gdt = gdt(wide);
    ram.put("the boot GDT", GDT, &gdt)?;
    let mut entry = if wide {
        ram.put("the boot page tables", PAGE_TABLES, &identity_map())?;
        Entry::long(BOOT_CS, BOOT_DS, start.wrapping_add(ENTRY_64).0, PAGE_TABLES.0)
    } else {
        Entry::protected(BOOT_CS, BOOT_DS, header.code32_start)
    };
    entry.gdtr = TableRegister { base: GDT.0, limit: u16::try_from(gdt.len() - 1).unwrap_or(0) };
    if let Some(rsi) = entry.regs.get_mut(RSI) {
        *rsi = ZERO_PAGE.0;
    }
    Ok(entry)
}

fn command_line(image: &Image, ram: &dyn Ram, config: &Config, header: &setup_header) -> Result<(), BootError> {
    // cmdline_size does not count the terminating zero.
    let limit = usize::try_from(header.cmdline_size).unwrap_or(usize::MAX).min(COMMAND_LINE_ROOM - 1);
    let length = config.append.len();
    if length > limit {
        return Err(BootError::CommandLine { file: image.name().to_owned(), length, limit });
    }
    let mut line = config.append.clone().into_bytes();
    line.push(0);
    ram.put("the command line", COMMAND_LINE, &line)
}

/// The address of the `setup_data` list: a seed if there is one to give, else nothing.
fn setup_data(ram: &dyn Ram, config: &Config) -> Result<u64, BootError> {
    if config.rng_seed == [0; 32] {
        return Ok(0);
    }
    let mut data = Vec::new();
    data.extend_from_slice(&0u64.to_le_bytes());
    data.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    data.extend_from_slice(&32u32.to_le_bytes());
    data.extend_from_slice(&config.rng_seed);
    ram.put("the setup data", SETUP_DATA, &data)?;
    Ok(SETUP_DATA.0)
}

fn zero_page(ram: &dyn Ram, header: setup_header) -> Result<(), BootError> {
    let mut params = boot_params { hdr: header, ..boot_params::default() };
    if header.version >= 0x20e {
        params.acpi_rsdp_addr = RSDP.0;
    }
    let map = memory_map(ram);
    let mut table = params.e820_table;
    let mut entries = 0;
    for (entry, range) in table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr: range.start.0, size: range.size, r#type: range.kind as u32 };
        entries += 1;
    }
    params.e820_table = table;
    params.e820_entries = entries;
    ram.put("the zero page", ZERO_PAGE, params.as_slice())
}

/// A null descriptor, an unused one, flat code (10h), 64-bit if `wide` and else 32-bit, and flat data (18h).
fn gdt(wide: bool) -> Vec<u8> {
    let code = if wide { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff };
    [0u64, 0, code, 0x00cf_9300_0000_ffff].iter().flat_map(|d| d.to_le_bytes()).collect()
}

/// Page tables that map the first 4 GiB to themselves in pages of 2 MiB: a PML4, a PDPT, four page directories.
fn identity_map() -> Vec<u8> {
    /// Present, writable.
    const TABLE: u64 = 3;
    /// Present, writable, page size.
    const LARGE: u64 = 0x83;
    let page = |i: u64| PAGE_TABLES.0 + i * x86::PAGE_SIZE;
    let mut tables = vec![0u64; 512 * 2];
    if let Some(pml4) = tables.get_mut(0) {
        *pml4 = page(1) | TABLE;
    }
    for (entry, i) in tables.iter_mut().skip(512).take(4).zip(2..) {
        *entry = page(i) | TABLE;
    }
    tables.extend((0..4 * 512u64).map(|i| i << 21 | LARGE));
    tables.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests;
