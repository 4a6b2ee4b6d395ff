//! What to say of a file that is no kernel: what it looks like, and what would be right.

use crate::BootError;
use crate::elf::Elf;
use crate::image::Image;

/// A file's look: bytes at an offset, what they mean, and the advice that goes with it.
const LOOKS: &[(usize, &[u8], &str)] = &[
    (0, b"\x1f\x8b", "it is compressed with gzip (an initrd, or a kernel to be unpacked first)"),
    (0, b"\xfd7zXZ\0", "it is compressed with xz; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "it is compressed with zstd; unpack it first"),
    (0, b"BZh", "it is compressed with bzip2; unpack it first"),
    (0, b"\x02\x21\x4c\x18", "it is compressed with lz4; unpack it first"),
    (0, b"\x04\x22\x4d\x18", "it is compressed with lz4; unpack it first"),
    (0, b"070701", "it is a cpio archive: an initrd, which goes to -initrd"),
    (0, b"070702", "it is a cpio archive: an initrd, which goes to -initrd"),
    (0, b"#!", "it is a script"),
    (0, b"!<arch>", "it is an ar archive, such as a Debian package; the kernel is within it"),
    (0, b"\xd6\x50\x52\xe8", "it has a multiboot 2 header only"),
    (0x38, b"ARM\x64", "it is a Linux kernel for 64-bit Arm"),
    (0x30, b"RISCV", "it is a Linux kernel for RISC-V"),
    (0, b"\x27\x05\x19\x56", "it is a U-Boot image"),
    (0, b"hsqs", "it is a squashfs file system"),
    (0x8001, b"CD001", "it is a CD image"),
    (0, b"QFI\xfb", "it is a qcow2 disk image"),
    (0, b"MZ", "it is an EFI program without a Linux setup header"),
    (0x1fe, b"\x55\xaa", "it begins with a boot sector and has no Linux setup header"),
];

/// The error for a file of no known kind.
pub(crate) fn file(image: &Image, head: &[u8]) -> BootError {
    let looks =
        |(offset, bytes, _): &&(usize, &[u8], &str)| head.get(*offset..).is_some_and(|rest| rest.starts_with(bytes));
    let found = match LOOKS.iter().find(looks) {
        Some((_, _, what)) => (*what).to_owned(),
        None if image.len() < 0x268 => format!("it has only {} bytes", image.len()),
        None if head.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) => {
            "it is a text".to_owned()
        }
        None => "it has neither of their headers".to_owned(),
    };
    BootError::Unknown { file: image.name().to_owned(), found }
}

/// The error for an ELF file that nothing says how to boot.
pub(crate) fn elf(image: &Image, elf: &Elf) -> BootError {
    let found = match elf.machine {
        crate::elf::EM_386 => {
            "it is an ELF file for 32-bit x86 with neither a PVH note nor a multiboot 1 header".to_owned()
        }
        crate::elf::EM_X86_64 => {
            "it is an ELF file with neither a PVH note (Linux: CONFIG_PVH) nor a multiboot 1 header".to_owned()
        }
        machine => format!("it is an ELF file for another machine (e_machine {machine})"),
    };
    BootError::Unknown { file: image.name().to_owned(), found }
}
