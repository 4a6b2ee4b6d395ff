//! Files as users give them, good and bad: what is loaded, which error is said, and that nothing panics.

use super::*;
use crate::ram::TestRam;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Files in a folder that goes away.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn add(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

pub(crate) fn config(kernel: &Path) -> Config {
    Config { kernel: kernel.to_owned(), append: "console=ttyS0".into(), cpus: 1, hpet: true, ..Config::default() }
}

pub(crate) fn boot(ram: &TestRam, config: &Config) -> Result<Entry, BootError> {
    load_into(ram, config, &BoardInfo::default())
}

/// The error's text, which must be one line and name the file.
pub(crate) fn refusal(ram: &TestRam, config: &Config) -> String {
    let error = boot(ram, config).expect_err("it was loaded");
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
    let text = format!("{error}{cause}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

/// Random numbers that are the same in every run (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % limit
    }
}

/// Loads damaged copies of `good`; the result is of no interest, as long as there is one.
pub(crate) fn mutate(good: &[u8], header: usize, rounds: usize) {
    let files = Files::new();
    let ram = TestRam::new(8);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut loaded = 0;
    for _ in 0..rounds {
        let mut bad = good.to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(header.min(bad.len()));
            let values = [0, 1, 0x7f, 0x80, 0xff, u8::try_from(random.next() & 0xff).unwrap()];
            let run = [1, 1, 2, 4, 8][random.below(5)].min(bad.len() - at);
            let value = values[random.below(values.len())];
            bad[at..at + run].fill(value);
        }
        if random.below(4) == 0 {
            bad.truncate(random.below(bad.len()));
        }
        let path = files.add("kernel", &bad);
        let mut config = config(&path);
        config.initrd = Some(path.display().to_string());
        loaded += usize::from(boot(&ram, &config).is_ok());
    }
    assert!(loaded > 0 && loaded < rounds, "{loaded} of {rounds} loaded: the mutations do not test much");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let files = Files::new();
    let ram = TestRam::new(8);
    let text = refusal(&ram, &config(&files.path("none")));
    assert!(text.contains("none") && text.contains("No such file"), "{text}");
    let text = refusal(&ram, &config(&files.path("")));
    assert!(text.contains("directory"), "{text}");
    let text = refusal(&ram, &config(Path::new("/dev/zero")));
    assert!(text.contains("/dev/zero: it is not a regular file"), "{text}");
    let text = refusal(&ram, &config(&files.add("empty", b"")));
    assert!(text.contains("it is empty"), "{text}");
}

#[test]
fn a_file_of_another_kind_is_recognised() {
    let files = Files::new();
    let ram = TestRam::new(8);
    let cases: [(&[u8], &str); 5] = [
        (b"\x1f\x8b\x08 and so on", "gzip"),
        (b"070701000000", "-initrd"),
        (b"#!/bin/sh\n", "a script"),
        (b"x", "only 1 bytes"),
        (&[b'a'; 4000], "a text"),
    ];
    for (bytes, word) in cases {
        let text = refusal(&ram, &config(&files.add("file", bytes)));
        assert!(text.contains(word) && text.contains("-kernel takes"), "{text}");
    }
}

#[test]
fn random_bytes_are_no_kernel() {
    let files = Files::new();
    let ram = TestRam::new(2);
    let mut random = Random(1);
    for round in 0..200 {
        let mut bytes: Vec<u8> = (0..1024).flat_map(|_| random.next().to_le_bytes()).collect();
        // Half of them look like something.
        match round % 4 {
            0 => bytes[..4].copy_from_slice(b"\x7fELF"),
            1 => bytes[0x202..0x206].copy_from_slice(b"HdrS"),
            _ => {}
        }
        refusal(&ram, &config(&files.add("random", &bytes)));
    }
}

#[test]
fn what_firmware_leaves_is_there() {
    let files = Files::new();
    let ram = TestRam::new(8);
    boot(&ram, &config(&files.add("kernel", &multiboot::tests::elf_image()))).unwrap();
    assert_eq!(ram.bytes(0x40e, 2), [0xc0, 0x9f], "the EBDA's segment");
    assert_eq!(ram.bytes(0x413, 2), 639u16.to_le_bytes(), "KiB of base memory");
    assert_eq!(ram.bytes(0x400, 2), 0x3f8u16.to_le_bytes(), "the first serial port");
    for vector in 0..256u64 {
        let far = ram.u32(vector * 4);
        let address = u64::from(far >> 16) * 16 + u64::from(far & 0xffff);
        let code = ram.bytes(address, 32);
        assert!(code.contains(&0xcf), "vector {vector:#x} leads to no iret");
    }
}

#[test]
fn too_little_memory_is_said() {
    let files = Files::new();
    let path = files.add("kernel", &multiboot::tests::elf_image());
    let text = refusal(&TestRam::new(0), &config(&path));
    assert!(text.contains("-m 1 would do"), "{text}");
}

#[test]
fn guest_memory_itself_is_loaded() {
    let files = Files::new();
    let ram = memory::GuestRam::new(5 << 30).unwrap();
    let map = PhysicalMap::new(ram).unwrap();
    let config = config(&files.add("kernel", &multiboot::tests::elf_image()));
    let entry = load(&map, &config, &BoardInfo::default()).unwrap();
    let mut code = [0; 0x100];
    map.read(memory::Gpa(entry.rip), &mut code).unwrap();
    assert_eq!(code, multiboot::tests::elf_image()[0x100..]);
    // RAM goes on above the hole for devices, and the memory map says so.
    let ranges = layout::memory_map(&map);
    let last = ranges.last().unwrap();
    assert_eq!((last.start, last.size), (memory::Gpa(4 << 30), 2 << 30));
}
