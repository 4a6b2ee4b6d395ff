//! Multiboot images made by hand, good and damaged.

use super::*;
use crate::ram::TestRam;
use crate::tests::{Files, boot, config, mutate, refusal};

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn header(flags: u32) -> Vec<u8> {
    words(&[HEADER_MAGIC, flags, 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags)])
}

/// An ELF32 image with a multiboot header: 256 bytes at 0x8000 followed by 64 KiB of BSS.
pub(crate) fn elf_image() -> Vec<u8> {
    let mut image = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
    image.extend(words(&[0x8000, 52, 0, 0]));
    // ehsize, phentsize, phnum, shentsize, shnum, shstrndx
    image.extend([52u16, 32, 1, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    // PT_LOAD, offset, vaddr, paddr, filesz, memsz, flags, align
    image.extend(words(&[1, 0x100, 0x8000, 0x8000, 0x100, 0x1_0000, 7, 4]));
    image.resize(0x100, 0);
    image.extend(header(0));
    image.resize(0x200, 0xee);
    image
}

/// A flat image with addresses in its header, which lies 64 bytes into the file and at 1 MiB.
fn flat_image() -> Vec<u8> {
    let mut image = vec![0x11; 64];
    image.extend(header(HAS_ADDRESSES));
    image.extend(words(&[0x10_0000, 0x10_0000, 0x10_0100, 0x10_1000, 0x10_0020]));
    image.resize(64 + 0x100, 0x22);
    image.extend([0x33; 100]);
    image
}

#[test]
fn an_elf_image_is_loaded_by_physical_address() {
    let files = Files::new();
    let ram = TestRam::new(8);
    assert!(ram.write(Gpa(0x8000), &[0xff; 0x1_1000]));
    let entry = boot(&ram, &config(&files.add("kernel", &elf_image()))).unwrap();
    assert_eq!(ram.bytes(0x8000, 0x100), elf_image()[0x100..]);
    assert!(ram.bytes(0x8100, 0xff00).iter().all(|byte| *byte == 0), "BSS is zero");
    assert_eq!(ram.bytes(0x1_8000, 1), [0xff], "and no more than it");

    assert_eq!(entry.rip, 0x8000);
    assert_eq!(entry.regs[RAX], 0x2bad_b002);
    assert_eq!(entry.cr0.into_bits(), 0x11);
    assert_eq!(entry.efer.into_bits(), 0);
    assert!(!entry.rflags.interrupt());
    assert_eq!(entry.seg[1].selector.into_bits(), 8);
    for i in [0, 2, 3, 4, 5] {
        assert_eq!(entry.seg[i].selector.into_bits(), 0x10);
        assert_eq!((entry.seg[i].base, entry.seg[i].limit), (0, u32::MAX));
    }
    assert!(entry.seg[1].attributes.big() && entry.seg[1].attributes.is_code());
}

#[test]
fn the_information_block_tells_all() {
    let files = Files::new();
    let ram = TestRam::new(8);
    let mut config = config(&files.add("kernel", &elf_image()));
    let (first, second) = (files.add("first", b"NR_CPUS=1\n"), files.add("a,b", b"2"));
    config.initrd =
        Some(format!("{} with words, {}", first.display(), second.display().to_string().replace(',', ",,")));
    let info = boot(&ram, &config).unwrap().regs[RBX];
    let at = |offset: u64| u64::from(ram.u32(info + offset));

    assert_eq!(at(0), 0b10_0100_1101);
    assert_eq!((at(4), at(8)), (639, 7 * 1024));
    assert_eq!(ram.string(at(16)), format!("{} console=ttyS0", config.kernel.display()));
    assert_eq!(ram.string(at(64)), "Vitrine");

    assert_eq!(at(20), 2);
    let module = |i: u64| {
        let entry = at(24) + 16 * i;
        let (start, end) = (u64::from(ram.u32(entry)), u64::from(ram.u32(entry + 4)));
        assert_eq!(start % 4096, 0);
        (ram.bytes(start, usize::try_from(end - start).unwrap()), ram.string(ram.u32(entry + 8).into()))
    };
    assert_eq!(module(0), (b"NR_CPUS=1\n".to_vec(), format!("{} with words", first.display())));
    assert_eq!(module(1), (b"2".to_vec(), second.display().to_string()));

    let (length, map) = (at(44), at(48));
    let entries: Vec<_> = (0..length / 24)
        .map(|i| map + 24 * i)
        .map(|at| (ram.u32(at), ram.u64(at + 4), ram.u64(at + 12), ram.u32(at + 20)))
        .collect();
    assert_eq!(entries.first(), Some(&(20, 0, 0x9_fc00, 1)));
    assert_eq!(entries.last(), Some(&(20, 0x10_0000, 0x70_0000, 1)));
}

#[test]
fn a_flat_image_goes_where_its_header_says() {
    let files = Files::new();
    let ram = TestRam::new(8);
    assert!(ram.write(Gpa(0x10_0000), &[0xff; 0x1000]));
    let entry = boot(&ram, &config(&files.add("kernel", &flat_image()))).unwrap();
    assert_eq!(entry.rip, 0x10_0020);
    assert_eq!(ram.bytes(0x10_0000, 0x100), flat_image()[64..64 + 0x100]);
    assert!(ram.bytes(0x10_0100, 0xf00).iter().all(|byte| *byte == 0));
}

#[test]
fn damaged_images_are_refused() {
    let files = Files::new();
    let ram = TestRam::new(8);
    let with = |good: Vec<u8>, offset: usize, value: u32| {
        let mut bad = good;
        bad[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        bad
    };
    let cases = [
        (elf_image()[..0x150].to_vec(), "truncated"),
        (with(elf_image(), 28, 0xffff_ff00), "truncated"),
        (with(elf_image(), 56, 0xffff_ffff), "truncated"),
        (with(elf_image(), 68, 0xffff_ffff), "more bytes in the file"),
        (with(elf_image(), 72, 0xffff_ffff), "device hole"),
        (with(elf_image(), 64, 0x100), "lies below 0x600"),
        (with(elf_image(), 64, 0xf_0000), "firmware"),
        (with(elf_image(), 64, 0x80_0000), "-m 9 would do"),
        (with(elf_image(), 24, 0x2_0000), "entry point 0x20000"),
        (with(elf_image(), 42, 0x0001_0001), "program headers"),
        (with(elf_image(), 16, 0x0028_0002), "another machine"),
        (with(elf_image(), 52, 2), "nothing to load"),
        (with(flat_image(), 64 + 12, 0x20_0000), "multiboot header"),
        (with(flat_image(), 64 + 16, 0x10_0001), "multiboot header"),
        (with(flat_image(), 64 + 20, 0x30_0000), "truncated"),
        (with(flat_image(), 64 + 24, 0x10_0001), "BSS"),
        (with(flat_image(), 64 + 24, 0xffff_f000), "device hole"),
        (with(flat_image(), 64 + 28, 0x20_0000), "entry point"),
        ([header(0), vec![0; 100]].concat(), "no ELF file"),
        ([header(0x10), vec![0; 100]].concat(), "flags 0x10"),
    ];
    for (image, word) in cases {
        let text = refusal(&ram, &config(&files.add("bad", &image)));
        assert!(text.contains("bad") && text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_header_must_add_up_and_lie_early() {
    let mut wrong = header(0);
    wrong[8] ^= 1;
    assert_eq!(find(&wrong), None);
    let mut late = vec![0; 8188];
    late.extend(header(0));
    assert_eq!(find(&late[..8192]), None);
    let mut cut = header(HAS_ADDRESSES);
    cut.extend(words(&[0; 4]));
    assert_eq!(find(&cut), None);
}

#[test]
fn a_module_that_does_not_fit_says_which_size_would_do() {
    let files = Files::new();
    let mut config = config(&files.add("kernel", &elf_image()));
    config.initrd = Some(files.add("module", &vec![1; 2 << 20]).display().to_string());
    let text = refusal(&TestRam::new(2), &config);
    assert!(text.contains("module") && text.contains("-m 4 would do"), "{text}");
    boot(&TestRam::new(4), &config).unwrap();
    config.initrd = Some(files.path("none").display().to_string());
    assert!(refusal(&TestRam::new(4), &config).contains("cannot read"));
}

#[test]
fn mutations_do_not_panic() {
    mutate(&elf_image(), 0x110, 500);
    mutate(&flat_image(), 100, 200);
}
