//! ELF kernels with a PVH entry point: an uncompressed Linux (`vmlinux`) and others that follow Xen's
//! docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h.
//!
//! The layout of the start info is `linux-loader`'s.

use crate::elf::{EM_386, EM_X86_64, Elf, PT_NOTE, field};
use crate::entry::RBX;
use crate::image::Image;
use crate::initrd;
use crate::layout::{COMMAND_LINE, COMMAND_LINE_ROOM, HIGH, RSDP, START_INFO, memory_map};
use crate::ram::{HOLE, Ram, to_u64};
use crate::{BootError, Config, Entry};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use memory::Gpa;
use vm_memory::ByteValued;

/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const PHYS32_ENTRY: u64 = 18;
/// `XEN_HVM_START_MAGIC_VALUE`.
const MAGIC: u32 = 0x336e_c578;
/// The most bytes of notes that are looked at in a segment.
const NOTES: u64 = 1 << 20;

/// The entry point that a PVH note names.
pub(crate) fn entry_point(image: &Image, elf: &Elf) -> Result<Option<u32>, BootError> {
    for header in elf.headers.iter().filter(|header| header.kind == PT_NOTE) {
        let notes = image.bytes("a segment of ELF notes", header.offset, header.file_size.min(NOTES))?;
        let align = if header.align == 8 { 8 } else { 4 };
        if let Some(entry) = find_note(&notes, align) {
            return match u32::try_from(entry) {
                Ok(entry) => Ok(Some(entry)),
                Err(_) => Err(image.bad(format!("its PVH entry point {entry:#x} is not a 32-bit address"))),
            };
        }
    }
    Ok(None)
}

/// Looks through notes: name size, descriptor size, type, then name and descriptor, each padded.
fn find_note(notes: &[u8], align: usize) -> Option<u64> {
    let mut at = 0usize;
    loop {
        let name_size = usize::try_from(field(notes, at, 4)?).ok()?;
        let descriptor_size = usize::try_from(field(notes, at + 4, 4)?).ok()?;
        let kind = field(notes, at + 8, 4)?;
        let name = at + 12;
        let descriptor = name.checked_add(name_size)?.checked_next_multiple_of(align)?;
        if kind == PHYS32_ENTRY && notes.get(name..name.checked_add(name_size)?)? == b"Xen\0" {
            return match descriptor_size {
                4 | 8 => field(notes, descriptor, descriptor_size),
                _ => None,
            };
        }
        at = descriptor.checked_add(descriptor_size)?.checked_next_multiple_of(align)?;
    }
}

/// Loads `image`, whose note names `entry`.
pub(crate) fn load(image: &Image, elf: &Elf, entry: u32, ram: &dyn Ram, config: &Config) -> Result<Entry, BootError> {
    if elf.machine != EM_386 && elf.machine != EM_X86_64 {
        return Err(image.bad(format!("it is an ELF file for another machine (e_machine {})", elf.machine)));
    }
    let end = elf.load(image, ram, HIGH)?;
    if !elf.loads().any(|l| (l.paddr..l.paddr.saturating_add(l.memory_size)).contains(&u64::from(entry))) {
        return Err(image.bad(format!("its PVH entry point {entry:#x} lies in none of its segments")));
    }

    let (length, limit) = (config.append.len(), COMMAND_LINE_ROOM - 1);
    if length > limit {
        return Err(BootError::CommandLine { file: image.name().to_owned(), length, limit });
    }
    let mut line = config.append.clone().into_bytes();
    line.push(0);
    ram.put("the command line", COMMAND_LINE, &line)?;

    let mut info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: COMMAND_LINE.0,
        rsdp_paddr: RSDP.0,
        ..hvm_start_info::default()
    };
    let mut at = START_INFO.wrapping_add(to_u64(size_of::<hvm_start_info>()));
    if let Some(names) = &config.initrd {
        let placed = initrd::place(ram, names, end, Gpa(HOLE))?;
        let module = hvm_modlist_entry { paddr: placed.start.0, size: placed.size, ..hvm_modlist_entry::default() };
        ram.put("the PVH module list", at, module.as_slice())?;
        info.nr_modules = 1;
        info.modlist_paddr = at.0;
        at = at.wrapping_add(to_u64(size_of::<hvm_modlist_entry>()));
    }
    info.memmap_paddr = at.0;
    for range in memory_map(ram) {
        let entry = hvm_memmap_table_entry {
            addr: range.start.0,
            size: range.size,
            type_: range.kind as u32,
            ..hvm_memmap_table_entry::default()
        };
        ram.put("the PVH memory map", at, entry.as_slice())?;
        at = at.wrapping_add(to_u64(size_of::<hvm_memmap_table_entry>()));
        info.memmap_entries += 1;
    }
    ram.put("the PVH start info", START_INFO, info.as_slice())?;

    let mut state = Entry::protected(8, 0x10, entry);
    if let Some(rbx) = state.regs.get_mut(RBX) {
        *rbx = START_INFO.0;
    }
    Ok(state)
}

#[cfg(test)]
mod tests;
