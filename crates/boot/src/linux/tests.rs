//! bzImages made by hand, good and damaged, and real ones where there are any.

use super::*;
use crate::ram::TestRam;
use crate::tests::{Files, boot, config, mutate, refusal};
use std::path::{Path, PathBuf};

const CODE: usize = 0x4000;

fn set(image: &mut [u8], offset: usize, bytes: &[u8]) {
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage of protocol 2.15: one setup sector, 16 KiB of code at 2 MiB that needs 1 MiB.
fn image() -> Vec<u8> {
    let mut image = vec![0u8; 1024 + CODE];
    set(&mut image, 0x1f1, &[1]);
    set(&mut image, 0x1f4, &u32::try_from(CODE / 16).unwrap().to_le_bytes());
    set(&mut image, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    set(&mut image, 0x202, b"HdrS\x0f\x02");
    set(&mut image, 0x211, &[LOADED_HIGH]);
    set(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    set(&mut image, 0x230, &0x20_0000u32.to_le_bytes());
    set(&mut image, 0x234, &[1, 21]);
    set(&mut image, 0x236, &KERNEL_64.to_le_bytes());
    set(&mut image, 0x238, &2047u32.to_le_bytes());
    set(&mut image, 0x258, &0x20_0000u64.to_le_bytes());
    set(&mut image, 0x260, &0x10_0000u32.to_le_bytes());
    for (i, byte) in image.iter_mut().enumerate().skip(1024) {
        *byte = u8::try_from(i % 251).unwrap();
    }
    image
}

#[test]
fn everything_is_where_the_protocol_wants_it() {
    let files = Files::new();
    let ram = TestRam::new(8);
    let mut config = config(&files.add("bzImage", &image()));
    let initrd = vec![0x5a; 5000];
    config.initrd = Some(files.add("initrd", &initrd).display().to_string());
    config.rng_seed = [7; 32];
    let entry = boot(&ram, &config).unwrap();

    assert_eq!(entry.rip, 0x20_0200);
    assert_eq!(ram.bytes(0x20_0000, CODE), image()[1024..]);
    let zero_page = entry.regs[RSI];
    assert_eq!(ram.bytes(zero_page + 0x202, 4), b"HdrS");
    assert_eq!(ram.bytes(zero_page + 0x210, 1), [0xff]);
    assert_eq!(ram.string(ram.u32(zero_page + 0x228).into()), "console=ttyS0");
    assert_eq!(ram.u64(zero_page + 0x70), 0xf_0000, "RSDP");
    assert_eq!(ram.bytes(zero_page + 0x1ef, 1), [0], "the sentinel");

    let start = u64::from(ram.u32(zero_page + 0x218));
    assert_eq!(ram.u32(zero_page + 0x21c), 5000);
    assert_eq!(start, 0x80_0000 - 0x2000, "as high as it can lie");
    assert_eq!(ram.bytes(start, 5000), initrd);

    let seed = ram.u64(zero_page + 0x250);
    assert_eq!((ram.u64(seed), ram.u32(seed + 8), ram.u32(seed + 12)), (0, 9, 32));
    assert_eq!(ram.bytes(seed + 16, 32), [7; 32]);
}

#[test]
fn the_memory_map_leaves_the_holes_out() {
    let files = Files::new();
    let ram = TestRam::new(8);
    boot(&ram, &config(&files.add("bzImage", &image()))).unwrap();
    assert_eq!(ram.bytes(ZERO_PAGE.0 + 0x1e8, 1), [4]);
    let entry = |i: u64| {
        let at = ZERO_PAGE.0 + 0x2d0 + 20 * i;
        (ram.u64(at), ram.u64(at + 8), ram.u32(at + 16))
    };
    assert_eq!(entry(0), (0, 0x9_fc00, 1));
    assert_eq!(entry(1), (0x9_fc00, 0x400, 2));
    assert_eq!(entry(2), (0xe_0000, 0x2_0000, 2));
    assert_eq!(entry(3), (0x10_0000, 0x70_0000, 1));
}

#[test]
fn it_starts_in_64_bit_mode_with_memory_mapped_to_itself() {
    let files = Files::new();
    let ram = TestRam::new(8);
    let entry = boot(&ram, &config(&files.add("bzImage", &image()))).unwrap();
    let code = entry.seg[1];
    assert_eq!((code.selector.into_bits(), entry.seg[3].selector.into_bits()), (0x10, 0x18));
    assert!(code.attributes.long() && !code.attributes.big());
    assert!(entry.cr0.paging() && entry.cr0.protection());
    assert!(entry.cr4.physical_address_extension() && entry.efer.long_mode_active());
    assert!(!entry.rflags.interrupt());
    // The hidden parts are those of the descriptors in memory.
    for segment in [entry.seg[1], entry.seg[3]] {
        let descriptor = ram.u64(entry.gdtr.base + u64::from(segment.selector.offset()));
        assert_eq!(x86::Descriptor::from_bits(descriptor).segment(segment.selector), segment);
    }
    for address in [0u64, 0x20_0200, 0x3fff_ffff, 0x4000_0000, 0xffff_ffff] {
        let pdpt = ram.u64(entry.cr3 + 8 * (address >> 39)) & !0xfff;
        let directory = ram.u64(pdpt + 8 * (address >> 30)) & !0xfff;
        let page = ram.u64(directory + 8 * (address >> 21 & 511));
        assert_eq!((page & !0xfff, page & 0xfff), (address & !0x1f_ffff, 0x83));
    }
}

#[test]
fn a_kernel_without_a_64_bit_entry_starts_at_its_32_bit_one() {
    let files = Files::new();
    let ram = TestRam::new(8);
    for (offset, bytes) in [(0x236, [0, 0]), (0x206, [0x0a, 0x02])] {
        let mut image = image();
        set(&mut image, offset, &bytes);
        let entry = boot(&ram, &config(&files.add("bzImage", &image))).unwrap();
        assert_eq!((entry.rip, entry.cr0.paging(), entry.efer.long_mode_active()), (0x20_0000, false, false));
        assert_eq!(ram.u64(entry.gdtr.base + 0x10), 0x00cf_9b00_0000_ffff, "flat 32-bit code");
    }
}

#[test]
fn a_truncated_kernel_is_said_to_be_truncated() {
    let files = Files::new();
    let ram = TestRam::new(8);
    let good = image();
    for length in [0x206, 0x210, 0x236, 0x238, 0x260, 0x267, 0x26b, 0x300, 1024, 1025, good.len() - 16] {
        let text = refusal(&ram, &config(&files.add("short", &good[..length])));
        assert!(text.contains("short") && text.contains("truncated"), "{length:#x}: {text}");
    }
    // The size is counted in units of 16 bytes, and the last one need not be whole.
    boot(&ram, &config(&files.add("odd", &good[..good.len() - 15]))).unwrap();
    // Signed kernels have something behind the end.
    let mut long = good;
    long.extend([0; 100]);
    boot(&ram, &config(&files.add("signed", &long))).unwrap();
}

#[test]
fn a_damaged_header_is_said_to_be_damaged() {
    let files = Files::new();
    let ram = TestRam::new(8);
    let cases: [(usize, &[u8], &str); 9] = [
        (0x1fe, &[0, 0], "boot sector"),
        (0x206, &[0x09, 0x02], "2.09"),
        (0x211, &[0], "zImage"),
        (0x1f4, &[0; 4], "only 0 bytes"),
        (0x1f4, &[0xff; 4], "truncated"),
        (0x1f1, &[0xff], "truncated"),
        (0x258, &[0; 8], "preferred address"),
        (0x258, &[0, 0xf0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "does not fit"),
        (0x230, &[3, 0, 0, 0], "power of two"),
    ];
    for (offset, bytes, word) in cases {
        let mut bad = image();
        set(&mut bad, offset, bytes);
        let text = refusal(&ram, &config(&files.add("bad", &bad)));
        assert!(text.contains("bad") && text.contains(word), "{offset:#x}: {text}");
    }
}

#[test]
fn a_kernel_that_does_not_fit_says_which_size_would_do() {
    let files = Files::new();
    let path = files.add("bzImage", &image());
    let text = refusal(&TestRam::new(2), &config(&path));
    assert!(text.contains("bzImage does not fit") && text.contains("-m 3 would do"), "{text}");
    boot(&TestRam::new(3), &config(&path)).unwrap();
}

#[test]
fn an_initrd_that_does_not_fit_says_which_size_would_do() {
    let files = Files::new();
    let mut config = config(&files.add("bzImage", &image()));
    config.initrd = Some(files.add("initrd", &vec![1; 6 << 20]).display().to_string());
    let text = refusal(&TestRam::new(8), &config);
    assert!(text.contains("initrd") && text.contains("6.0 MiB"), "{text}");
    let size: usize = text.split("-m ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    boot(&TestRam::new(size), &config).unwrap();

    config.initrd = Some("/dev/zero".into());
    let text = refusal(&TestRam::new(8), &config);
    assert!(text.contains("does not fit"), "{text}");
    config.initrd = Some(files.path("none").display().to_string());
    assert!(refusal(&TestRam::new(8), &config).contains("cannot read"));
    config.initrd = Some(files.add("nothing", b"").display().to_string());
    assert!(refusal(&TestRam::new(8), &config).contains("is empty"));
}

#[test]
fn an_initrd_stays_below_the_kernels_limit() {
    let files = Files::new();
    let ram = TestRam::new(8);
    let mut kernel = image();
    set(&mut kernel, 0x22c, &0x3f_ffffu32.to_le_bytes());
    let mut config = config(&files.add("bzImage", &kernel));
    config.initrd = Some(files.add("initrd", &[1; 100]).display().to_string());
    boot(&ram, &config).unwrap();
    assert_eq!(ram.u32(ZERO_PAGE.0 + 0x218), 0x3f_f000);
}

#[test]
fn several_initrds_follow_each_other() {
    let files = Files::new();
    let ram = TestRam::new(8);
    let mut config = config(&files.add("bzImage", &image()));
    let (first, second) = (files.add("first", b"abcde"), files.add("second", b"fgh"));
    config.initrd = Some(format!("{},{}", first.display(), second.display()));
    boot(&ram, &config).unwrap();
    let start = u64::from(ram.u32(ZERO_PAGE.0 + 0x218));
    assert_eq!(ram.bytes(start, 11), b"abcde\0\0\0fgh");
    assert_eq!(ram.u32(ZERO_PAGE.0 + 0x21c), 11);

    // A name with a comma in it is one file, if there is such a file.
    config.initrd = Some(files.add("one,file", b"xyz").display().to_string());
    boot(&ram, &config).unwrap();
    assert_eq!(ram.u32(ZERO_PAGE.0 + 0x21c), 3);
}

#[test]
fn a_command_line_that_is_too_long_is_refused_with_both_numbers() {
    let files = Files::new();
    let ram = TestRam::new(8);
    let mut config = config(&files.add("bzImage", &image()));
    config.append = "x".repeat(2047);
    boot(&ram, &config).unwrap();
    config.append.push('x');
    let text = refusal(&ram, &config);
    assert!(text.contains("2048") && text.contains("2047"), "{text}");
    // The kernel's own limit may be absurd.
    let mut kernel = image();
    set(&mut kernel, 0x238, &[0xff; 4]);
    config.kernel = files.add("bzImage", &kernel);
    config.append = "x".repeat(0x1_0000);
    let text = refusal(&ram, &config);
    assert!(text.contains("65535"), "{text}");
}

#[test]
fn mutations_do_not_panic() {
    mutate(&image(), 0x270, 500);
}

/// Real kernels, if there are any: the one for tests beside the repository, and those of the host.
#[test]
fn real_kernels_are_accepted() {
    let mut kernels = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/guest/seed-bzImage"))];
    kernels.extend(std::env::var_os("VITRINE_TEST_KERNELS").iter().flat_map(std::env::split_paths));
    kernels.retain(|path| Path::new(path).exists());
    if kernels.is_empty() {
        eprintln!("skipped: there is no kernel to try");
    }
    let ram = TestRam::new(128);
    for kernel in kernels {
        let entry = boot(&ram, &config(&kernel)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(entry.regs[RSI], ZERO_PAGE.0);
    }
}
