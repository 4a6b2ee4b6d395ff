//! Multiboot 1 images (Multiboot Specification 0.6.96): ELF files loaded by physical address, and flat images whose
//! header says where they go.
//!
//! The information block, strings and modules follow the kernel, above 1 MiB. Left out: video modes (a kernel that asks
//! for one is given none), drives, APM, symbol tables.

use crate::elf::{EM_386, EM_X86_64, Elf, field, is_elf};
use crate::entry::{RAX, RBX};
use crate::image::{self, Image};
use crate::layout::{ACPI_TABLES, EBDA, HIGH, memory_map};
use crate::ram::{Ram, amount, mib, mib_up, to_u64};
use crate::{BootError, Config, Entry};
use memory::Gpa;
use std::path::Path;
use x86::PAGE_SIZE;

/// The header lies within the first 8 KiB.
pub(crate) const SEARCH: u64 = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What the kernel finds in EAX.
const BOOT_MAGIC: u64 = 0x2bad_b002;
/// Header flags 0 to 15 are demands; 0 to 2 (aligned modules, memory, video) are known.
const UNKNOWN_DEMANDS: u32 = 0xfff8;
/// Header flag 16: the header says where the image goes.
const HAS_ADDRESSES: u32 = 1 << 16;
/// Lowest address that an image may take: below are interrupt vectors and the BIOS data area.
const FLOOR: Gpa = Gpa(0x600);
/// Information flags: memory sizes, command line, modules, memory map, loader name.
const INFO_FLAGS: u32 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
/// Bytes of the information block that are used, rounded up.
const INFO_SIZE: u64 = 128;

/// A multiboot header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    offset: u64,
    flags: u32,
    /// `header_addr`, `load_addr`, `load_end_addr`, `bss_end_addr`, `entry_addr`.
    addresses: Option<[u32; 5]>,
}

/// Looks for a header in the first bytes of a file.
pub(crate) fn find(head: &[u8]) -> Option<Header> {
    let number = |offset: usize| u32::try_from(field(head, offset, 4)?).ok();
    (0..head.len()).step_by(4).find_map(|offset| {
        let (magic, flags, checksum) = (number(offset)?, number(offset + 4)?, number(offset + 8)?);
        if magic != HEADER_MAGIC || magic.wrapping_add(flags).wrapping_add(checksum) != 0 {
            return None;
        }
        let addresses = if flags & HAS_ADDRESSES != 0 {
            let at = |i: usize| number(offset + 12 + 4 * i);
            Some([at(0)?, at(1)?, at(2)?, at(3)?, at(4)?])
        } else {
            None
        };
        Some(Header { offset: to_u64(offset), flags, addresses })
    })
}

/// Loads `image`, which has `header`.
pub(crate) fn load(image: &Image, header: &Header, ram: &dyn Ram, config: &Config) -> Result<Entry, BootError> {
    let demands = header.flags & UNKNOWN_DEMANDS;
    if demands != 0 {
        return Err(image.bad(format!("its multiboot header demands features that are not known: flags {demands:#x}")));
    }
    let (entry, end) = match header.addresses {
        Some(addresses) => load_flat(image, header.offset, addresses, ram)?,
        None => load_elf(image, ram)?,
    };
    let info = information(image, end, ram, config)?;
    let mut state = Entry::protected(8, 0x10, entry);
    for (register, value) in [(RAX, BOOT_MAGIC), (RBX, info.0)] {
        if let Some(register) = state.regs.get_mut(register) {
            *register = value;
        }
    }
    Ok(state)
}

/// Entry point and first address after the kernel.
fn load_elf(image: &Image, ram: &dyn Ram) -> Result<(u32, Gpa), BootError> {
    if !is_elf(&image.head(4)?) {
        return Err(image.bad("it has a multiboot header without load addresses, and is no ELF file"));
    }
    let elf = Elf::read(image)?;
    if elf.machine != EM_386 && elf.machine != EM_X86_64 {
        return Err(image.bad(format!("it is an ELF file for another machine (e_machine {})", elf.machine)));
    }
    let end = elf.load(image, ram, FLOOR)?;
    // The entry point is a virtual address in name; kernels linked high give the physical one. Take it as it is if a
    // segment has it by physical address, else translate it.
    let physical = elf.loads().any(|l| (l.paddr..l.paddr.saturating_add(l.memory_size)).contains(&elf.entry));
    let entry = if physical {
        Some(elf.entry)
    } else {
        elf.loads()
            .find(|l| (l.vaddr..l.vaddr.saturating_add(l.memory_size)).contains(&elf.entry))
            .map(|l| l.paddr.wrapping_add(elf.entry - l.vaddr))
    };
    match entry.map(u32::try_from) {
        Some(Ok(entry)) => Ok((entry, end)),
        _ => Err(image.bad(format!("its entry point {:#x} lies in none of its segments", elf.entry))),
    }
}

/// Entry point and first address after the kernel, for an image with addresses in its header.
fn load_flat(image: &Image, offset: u64, addresses: [u32; 5], ram: &dyn Ram) -> Result<(u32, Gpa), BootError> {
    let [header_addr, load, load_end, bss_end, entry] = addresses.map(u64::from);
    let before = header_addr.checked_sub(load).filter(|before| *before <= offset);
    let Some(before) = before else {
        return Err(image.bad(format!(
            "its multiboot header, at byte {offset:#x}, is said to lie at {header_addr:#x} \
             of an image that begins at {load:#x}"
        )));
    };
    let start = offset - before;
    let size = if load_end == 0 { image.len() - start } else { load_end.saturating_sub(load) };
    if size == 0 {
        return Err(image.bad(format!("its multiboot header says that it is loaded from {load:#x} to {load_end:#x}")));
    }
    image.check("the multiboot image", start, size)?;
    let loaded = load.saturating_add(size);
    let end = if bss_end == 0 { loaded } else { bss_end };
    if end < loaded {
        return Err(image.bad(format!("its multiboot header says that its BSS ends at {end:#x}, before its data does")));
    }
    if load < FLOOR.0 || (load < HIGH.0 && loaded > ACPI_TABLES.0) {
        return Err(
            image.bad(format!("it is to be loaded from {load:#x} to {loaded:#x}, over the firmware's own data"))
        );
    }
    if end > ram.low_end() {
        return Err(ram.too_large(image.name(), load, end - load));
    }
    if !(load..end).contains(&entry) {
        return Err(image.bad(format!("its entry point {entry:#x} lies outside of it")));
    }
    image.load(ram, "the multiboot image", start, size, Gpa(load))?;
    image::clear(ram, image.name(), Gpa(loaded), end - loaded)?;
    Ok((u32::try_from(entry).unwrap_or(0), Gpa(end)))
}

/// A module: its string (file name and arguments, as the kernel is to see it) and the file's name.
pub(crate) fn modules(initrd: &str) -> Vec<(String, String)> {
    let mut strings = vec![String::new()];
    let mut rest = initrd.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            strings.push(String::new());
        } else if let Some(last) = strings.last_mut() {
            last.push(c);
        }
    }
    strings
        .iter()
        .map(|string| string.trim_start())
        .filter(|string| !string.is_empty())
        .map(|string| (string.to_owned(), string.split(' ').next().unwrap_or_default().to_owned()))
        .collect()
}

/// Bytes that grow at increasing guest addresses.
struct Block {
    start: Gpa,
    bytes: Vec<u8>,
}

impl Block {
    /// Appends `bytes` at a multiple of `align` and says where they will lie.
    fn add(&mut self, bytes: &[u8], align: usize) -> u32 {
        self.bytes.resize(self.bytes.len().next_multiple_of(align), 0);
        let at = self.start.0.saturating_add(to_u64(self.bytes.len()));
        self.bytes.extend_from_slice(bytes);
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    fn string(&mut self, string: &str) -> u32 {
        let mut bytes = string.as_bytes().to_vec();
        bytes.push(0);
        self.add(&bytes, 1)
    }
}

/// Writes information block, strings and modules behind the kernel, and says where the block lies.
fn information(image: &Image, kernel_end: Gpa, ram: &dyn Ram, config: &Config) -> Result<Gpa, BootError> {
    let page_up = |at: u64| at.saturating_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1);
    let start = Gpa(page_up(kernel_end.max(HIGH).0));
    let mut block = Block { start, bytes: vec![0; usize::try_from(INFO_SIZE).unwrap_or(0)] };

    let command_line = block.string(&format!("{} {}", image.name(), config.append));
    let loader = block.string("Vitrine");

    let map: Vec<u8> = memory_map(ram)
        .iter()
        .flat_map(|range| {
            // The size does not count itself.
            let mut entry = 20u32.to_le_bytes().to_vec();
            entry.extend_from_slice(&range.start.0.to_le_bytes());
            entry.extend_from_slice(&range.size.to_le_bytes());
            entry.extend_from_slice(&(range.kind as u32).to_le_bytes());
            entry
        })
        .collect();
    let map_at = block.add(&map, 4);

    let modules = modules(config.initrd.as_deref().unwrap_or_default());
    let strings: Vec<u32> = modules.iter().map(|(string, _)| block.string(string)).collect();
    // The list's place is known before its contents, which depend on where it ends.
    let list_at = block.add(&vec![0; modules.len().saturating_mul(16)], 4);
    let mut at = page_up(block.start.0.saturating_add(to_u64(block.bytes.len())));
    let mut list = Vec::new();
    for ((_, name), string) in modules.iter().zip(strings) {
        let room = ram.low_end().saturating_sub(at);
        let bytes = match image::read_whole(Path::new(name), room)? {
            Ok(bytes) => bytes,
            Err(size) => {
                return Err(BootError::TooLarge {
                    what: format!("the module {name}"),
                    detail: format!(
                        "it has {}, the first {} are taken, and there are {} MiB; -m {} would do",
                        amount(size),
                        amount(at),
                        mib(ram.total()),
                        mib_up(at.saturating_add(size))
                    ),
                });
            }
        };
        let end = at.saturating_add(to_u64(bytes.len()));
        ram.put(name, Gpa(at), &bytes)?;
        for value in [at, end, u64::from(string), 0] {
            list.extend_from_slice(&u32::try_from(value).unwrap_or(0).to_le_bytes());
        }
        at = page_up(end);
    }
    let list_offset = usize::try_from(u64::from(list_at).saturating_sub(start.0)).unwrap_or(usize::MAX);
    for (to, from) in block.bytes.iter_mut().skip(list_offset).zip(&list) {
        *to = *from;
    }

    let count = |n: usize| u32::try_from(n).unwrap_or(0);
    let upper = u32::try_from(ram.low_end().saturating_sub(HIGH.0) >> 10).unwrap_or(u32::MAX);
    let lower = u32::try_from(EBDA.0 >> 10).unwrap_or(0);
    let fields = [
        (0, INFO_FLAGS),
        (4, lower),
        (8, upper),
        (16, command_line),
        (20, count(modules.len())),
        (24, list_at),
        (44, count(map.len())),
        (48, map_at),
        (64, loader),
    ];
    for (offset, value) in fields {
        for (to, from) in block.bytes.iter_mut().skip(offset).zip(value.to_le_bytes()) {
            *to = from;
        }
    }
    ram.put("the multiboot information", start, &block.bytes)?;
    Ok(start)
}

#[cfg(test)]
pub(crate) mod tests;
