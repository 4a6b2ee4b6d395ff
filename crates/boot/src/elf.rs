//! The little of ELF that a boot loader needs: the header and the program headers, of both classes, little endian
//! (System V ABI, chapters 4 and 5). Sections, symbols and relocations are not looked at.

use crate::BootError;
use crate::image::{self, Image};
use crate::layout::{ACPI_TABLES, HIGH};
use crate::ram::Ram;
use memory::Gpa;

/// `e_machine` of 32-bit x86.
pub(crate) const EM_386: u16 = 3;
/// `e_machine` of x86-64.
pub(crate) const EM_X86_64: u16 = 62;
/// `p_type` of a segment that is loaded.
pub(crate) const PT_LOAD: u32 = 1;
/// `p_type` of a segment of notes.
pub(crate) const PT_NOTE: u32 = 4;

/// A program header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgramHeader {
    pub(crate) kind: u32,
    pub(crate) offset: u64,
    pub(crate) vaddr: u64,
    pub(crate) paddr: u64,
    pub(crate) file_size: u64,
    pub(crate) memory_size: u64,
    pub(crate) align: u64,
}

/// An ELF file's headers.
#[derive(Debug)]
pub(crate) struct Elf {
    pub(crate) machine: u16,
    pub(crate) entry: u64,
    pub(crate) headers: Vec<ProgramHeader>,
}

/// Whether a file that begins with `head` is an ELF file.
pub(crate) fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

/// A little-endian number of 1 to 8 bytes at `offset`; `None` past the end.
pub(crate) fn field(bytes: &[u8], offset: usize, size: usize) -> Option<u64> {
    let bytes = bytes.get(offset..offset.checked_add(size)?)?;
    Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

impl Elf {
    /// Reads the headers of `image`, whose first bytes say that it is an ELF file.
    pub(crate) fn read(image: &Image) -> Result<Self, BootError> {
        let head = image.head(64)?;
        let truncated = || image.bad(format!("it is truncated: it has {} bytes, less than an ELF header", image.len()));
        let number = |offset, size| field(&head, offset, size).ok_or_else(truncated);
        let is_64 = match number(4, 1)? {
            1 => false,
            2 => true,
            class => return Err(image.bad(format!("it is an ELF file of unknown class {class}"))),
        };
        if number(5, 1)? != 1 {
            return Err(image.bad("it is a big-endian ELF file"));
        }
        let half = |offset| number(offset, 2);
        let (entry, table, entry_size, count) = if is_64 {
            (number(24, 8)?, number(32, 8)?, half(54)?, half(56)?)
        } else {
            (number(24, 4)?, number(28, 4)?, half(42)?, half(44)?)
        };
        let machine = u16::try_from(half(18)?).unwrap_or(0);
        let least = if is_64 { 56 } else { 32 };
        if count == 0 {
            return Err(image.bad("it is an ELF file without program headers: an object file, not a linked kernel"));
        }
        if entry_size < least {
            return Err(image
                .bad(format!("its ELF program headers are said to have {entry_size} bytes each, less than {least}")));
        }
        // At most 65535 headers of 65535 bytes, and no more than the file has.
        let bytes = image.bytes("the ELF program header table", table, entry_size * count)?;
        let step = usize::try_from(entry_size).unwrap_or(usize::MAX);
        let headers = bytes.chunks_exact(step).filter_map(|header| program_header(header, is_64)).collect();
        Ok(Self { machine, entry, headers })
    }

    /// The segments that are loaded, empty ones left out.
    pub(crate) fn loads(&self) -> impl Iterator<Item = &ProgramHeader> {
        self.headers.iter().filter(|header| header.kind == PT_LOAD && header.memory_size != 0)
    }

    /// Puts the segments at their physical addresses, zeroes what the file does not give, and answers with the first
    /// address after the last of them. `floor` is the lowest address that the boot protocol leaves to the kernel.
    pub(crate) fn load(&self, image: &Image, ram: &dyn Ram, floor: Gpa) -> Result<Gpa, BootError> {
        let mut end = Gpa(0);
        let mut sum = 0u64;
        for header in self.loads() {
            let segment = format!("the segment at {:#x}", header.paddr);
            if header.file_size > header.memory_size {
                return Err(image.bad(format!("{segment} has more bytes in the file than in memory")));
            }
            image.check(&segment, header.offset, header.file_size)?;
            let Some(last) = header.paddr.checked_add(header.memory_size) else {
                return Err(
                    image.bad(format!("{segment} has {:#x} bytes, which no address space has", header.memory_size))
                );
            };
            if header.paddr < floor.0 {
                return Err(
                    image.bad(format!("{segment} lies below {floor:#x}, where the boot protocol puts its own data"))
                );
            }
            if header.paddr < HIGH.0 && header.paddr.saturating_add(header.file_size) > ACPI_TABLES.0 {
                return Err(
                    image.bad(format!("{segment} lies over the firmware's area, {ACPI_TABLES:#x} to {HIGH:#x}"))
                );
            }
            if last > ram.low_end() {
                return Err(ram.too_large(image.name(), header.paddr, header.memory_size));
            }
            // Each segment lies in RAM. Together they cannot be larger than RAM either, unless they overlap.
            sum = sum.saturating_add(header.memory_size);
            if sum > ram.low_end() {
                return Err(image.bad("its ELF segments overlap"));
            }
            end = end.max(Gpa(last));
        }
        if end.0 == 0 {
            return Err(image.bad("it is an ELF file with nothing to load"));
        }
        for header in self.loads() {
            image.load(ram, "a segment", header.offset, header.file_size, Gpa(header.paddr))?;
            let rest = Gpa(header.paddr.wrapping_add(header.file_size));
            image::clear(ram, image.name(), rest, header.memory_size - header.file_size)?;
        }
        Ok(end)
    }
}

fn program_header(header: &[u8], is_64: bool) -> Option<ProgramHeader> {
    let number = |offset32, offset64| {
        if is_64 { field(header, offset64, 8) } else { field(header, offset32, 4) }
    };
    Some(ProgramHeader {
        kind: u32::try_from(field(header, 0, 4)?).ok()?,
        offset: number(4, 8)?,
        vaddr: number(8, 16)?,
        paddr: number(12, 24)?,
        file_size: number(16, 32)?,
        memory_size: number(20, 40)?,
        align: number(28, 48)?,
    })
}
