//! ELF kernels with a PVH note made by hand, good and damaged.

use super::*;
use crate::ram::TestRam;
use crate::tests::{Files, boot, config, mutate, refusal};

fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

/// An ELF64 file: 256 bytes at 1 MiB (linked high), and a note that names 0x100040.
fn image() -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    image.extend(longs(&[0xffff_ffff_8100_0000, 64, 0]));
    image.extend([0u16, 0, 64, 56, 2, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    // type and flags, offset, vaddr, paddr, filesz, memsz, align
    image.extend(longs(&[7 << 32 | 1, 0x200, 0xffff_ffff_8010_0000, 0x10_0000, 0x100, 0x2000, 0x1000]));
    image.extend(longs(&[4 << 32 | 4, 0x100, 0, 0, 44, 44, 4]));
    image.resize(0x100, 0);
    // Another note first.
    image.extend([4u32, 4, 1].iter().flat_map(|word| word.to_le_bytes()));
    image.extend(b"GNU\0\x01\x02\x03\x04");
    image.extend([4u32, 8, 18].iter().flat_map(|word| word.to_le_bytes()));
    image.extend(b"Xen\0");
    image.extend(0x10_0040u64.to_le_bytes());
    image.resize(0x200, 0);
    image.resize(0x300, 0xee);
    image
}

#[test]
fn a_kernel_starts_with_its_start_info() {
    let files = Files::new();
    let ram = TestRam::new(8);
    let mut config = config(&files.add("vmlinux", &image()));
    config.initrd = Some(files.add("initrd", b"initrd!").display().to_string());
    let entry = boot(&ram, &config).unwrap();
    assert_eq!(entry.rip, 0x10_0040);
    assert_eq!(entry.cr0.into_bits(), 0x11);
    assert!(entry.seg[1].attributes.big() && !entry.efer.long_mode_active());
    assert_eq!(ram.bytes(0x10_0000, 0x100), [0xee; 0x100]);

    let info = entry.regs[RBX];
    assert_eq!((ram.u32(info), ram.u32(info + 4), ram.u32(info + 12)), (MAGIC, 1, 1));
    let module = ram.u64(info + 16);
    assert_eq!(ram.bytes(ram.u64(module), 7), b"initrd!");
    assert_eq!(ram.u64(module + 8), 7);
    assert_eq!(ram.string(ram.u64(info + 24)), "console=ttyS0");
    assert_eq!(ram.bytes(ram.u64(info + 32), 8), b"RSD PTR ");
    let (map, count) = (ram.u64(info + 40), u64::from(ram.u32(info + 48)));
    assert_eq!(count, 4);
    let last = map + 24 * (count - 1);
    assert_eq!((ram.u64(last), ram.u64(last + 8), ram.u32(last + 16)), (0x10_0000, 0x70_0000, 1));
}

#[test]
fn damaged_files_are_refused() {
    let files = Files::new();
    let ram = TestRam::new(8);
    let with = |offset: usize, value: u64| {
        let mut bad = image();
        bad[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        bad
    };
    let cases = [
        (image()[..0x2ff].to_vec(), "truncated"),
        (image()[..0x120].to_vec(), "truncated"),
        (image()[..0x90].to_vec(), "truncated"),
        (image()[..0x20].to_vec(), "truncated"),
        (with(32, u64::MAX), "no file has"),
        (with(64 + 8, u64::MAX - 4), "no file has"),
        (with(64 + 24, u64::MAX - 0x2fff), "which is more than"),
        (with(64 + 24, u64::MAX), "no address space"),
        (with(64 + 24, 0x8000), "lies below"),
        (with(64 + 32, u64::MAX), "more bytes in the file"),
        (with(64 + 40, u64::MAX), "no address space"),
        (with(64 + 56 + 8, u64::MAX), "no file has"),
        (with(64 + 56 + 32, u64::MAX), "truncated"),
        (with(0x124, 0x20_0000), "none of its segments"),
        (with(0x124, 1 << 40), "32-bit"),
        (with(0x114, 0), "neither a PVH note"),
        (with(4, 1 << 8), "unknown class"),
    ];
    for (image, word) in cases {
        let text = refusal(&ram, &config(&files.add("bad", &image)));
        assert!(text.contains("bad") && text.contains(word), "{word}: {text}");
    }
}

#[test]
fn overlapping_segments_do_not_take_for_ever() {
    // 60000 segments of all memory each.
    let files = Files::new();
    let mut image = image();
    let header = image[64..64 + 56].to_vec();
    let note = image[64 + 56..64 + 112].to_vec();
    image[56..58].copy_from_slice(&60_001u16.to_le_bytes());
    image[32..40].copy_from_slice(&0x300u64.to_le_bytes());
    let mut header = header;
    header[40..48].copy_from_slice(&0x70_0000u64.to_le_bytes());
    for _ in 0..60_000 {
        image.extend_from_slice(&header);
    }
    image.extend(note);
    let text = refusal(&TestRam::new(8), &config(&files.add("bad", &image)));
    assert!(text.contains("overlap"), "{text}");
}

#[test]
fn mutations_do_not_panic() {
    mutate(&image(), 0x130, 500);
}
