//! Bad input gets one line that says what is wrong, exit status 1 or 2, and never a panic.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guests::session::{Ended, Session, argument};
use guests::{find, image, initramfs, skipped};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const SOON: Duration = Duration::from_secs(30);

fn run(arguments: &[&str]) -> Ended {
    Session::start(VITRINE, arguments).end(SOON)
}

/// Asserts that the arguments are refused by a line that contains all of `words`, whatever their case.
fn refused(arguments: &[&str], words: &[&str]) -> Ended {
    let ended = run(arguments);
    let line = ended.refusal().to_lowercase();
    for word in words {
        assert!(line.contains(&word.to_lowercase()), "{arguments:?} is refused by a line with {word:?}: {line}");
    }
    ended
}

/// Asserts that the command line itself is refused: exit status 2.
fn misused(arguments: &[&str], words: &[&str]) {
    let ended = refused(arguments, words);
    assert_eq!(ended.status.code(), Some(2), "{ended:?}");
}

fn kernel_of(bytes: &[u8]) -> (tempfile::NamedTempFile, String) {
    let file = initramfs::file_of(bytes);
    let name = argument(file.path()).to_owned();
    (file, name)
}

#[test]
fn kernels_that_are_none() {
    refused(&["-kernel", "/nonexistent/kernel", "-nographic"], &["/nonexistent/kernel"]);
    refused(&["-kernel", "/", "-nographic"], &["/"]);
    let garbage: Vec<u8> = (0_u32..70_000).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let mut header_only = vec![0; 1024];
    header_only[0x1fe..0x206].copy_from_slice(b"\x55\xaa\xeb\x66HdrS");
    let truncated_elf = image::exits(0)[..0x70].to_vec();
    for bytes in [Vec::new(), vec![0; 3], garbage, header_only, truncated_elf] {
        let (_file, name) = kernel_of(&bytes);
        refused(&["-kernel", &name, "-nographic"], &[&name]);
    }
}

#[test]
fn a_bad_elf_does_not_reach_outside_of_memory() {
    let good = image::exits(0);
    // The segment's physical address, file size, memory size, file offset; the header's table offset and counts.
    for (at, value) in
        [(64, 0xffff_f000_u32), (68, 0xffff_ffff), (72, 0xffff_0000), (56, 0xffff_0000), (28, 0xffff_fff0)]
    {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        let (_file, name) = kernel_of(&bytes);
        refused(&["-kernel", &name, "-nographic"], &[&name]);
    }
}

#[test]
fn truncated_real_kernels() {
    let Some(kernel) = find::seed_kernel() else { return skipped("truncated kernel", "no seed-bzImage at hand") };
    let whole = std::fs::read(kernel).expect("the kernel can be read");
    for length in [100, 0x1f0, 0x220, 4096, whole.len() / 2] {
        let (_file, name) = kernel_of(&whole[..length]);
        refused(&["-kernel", &name, "-nographic"], &[&name]);
    }
}

#[test]
fn initrds_that_cannot_be_loaded() {
    let (_kernel, kernel) = kernel_of(&image::exits(0));
    refused(&["-kernel", &kernel, "-initrd", "/nonexistent/initrd", "-nographic"], &["/nonexistent/initrd"]);
    let huge = tempfile::NamedTempFile::new().expect("a temporary file");
    huge.as_file().set_len(1 << 30).expect("a sparse file");
    let name = argument(huge.path());
    let started = Instant::now();
    refused(&["-kernel", &kernel, "-initrd", name, "-m", "128M", "-nographic"], &[name]);
    if let Some(seed) = find::seed_kernel() {
        refused(&["-kernel", argument(&seed), "-initrd", name, "-m", "128M", "-nographic"], &[name]);
    }
    assert!(started.elapsed() < Duration::from_secs(20), "it looks at the size before it reads");
}

#[test]
fn memory_sizes() {
    let (_kernel, kernel) = kernel_of(&image::exits(0));
    for size in ["0", "lots", "-5", "128Q", "99999999999T", "18446744073709551616", ""] {
        let ended = run(&["-kernel", &kernel, "-m", size, "-nographic"]);
        let line = ended.refusal();
        assert!(line.contains("-m") || line.contains("memory"), "{size:?}: {line}");
    }
    if let Some(seed) = find::seed_kernel() {
        let _ = run(&["-kernel", argument(&seed), "-m", "1", "-nographic"]).refusal();
    }
}

#[test]
fn wrong_command_lines() {
    let (_kernel, kernel) = kernel_of(&image::exits(0));
    misused(&["-kernle", &kernel], &["-kernle"]);
    misused(&["-kernel"], &["-kernel"]);
    misused(&["-kernel", &kernel, "-smp", "0"], &["-smp"]);
    misused(&["-kernel", &kernel, "-cpu", "z80"], &["z80"]);
    misused(&["-kernel", &kernel, "-cpu", "max,+nonsense"], &["nonsense"]);
    misused(&["-kernel", &kernel, "-serial", "nonsense"], &["nonsense"]);
    misused(&["-kernel", &kernel, "-display", "nonsense"], &["nonsense"]);
    misused(&["-kernel", &kernel, "-device", "nonsense"], &["nonsense"]);
    misused(&["-kernel", &kernel, "-M", "nonsense"], &["nonsense"]);
    misused(&["-kernel", &kernel, "-accel", "nonsense"], &["nonsense"]);
    misused(&["-kernel", &kernel, "-accel", "interp", "-perfmap"], &["-perfmap", "-accel jit"]);
    misused(&["-kernel", &kernel, "-d", "nonsense"], &["nonsense"]);
    misused(&["-kernel", &kernel, "-watch-format", "nonsense"], &["nonsense"]);
    for watch in ["non-sense", "q:1000", "r:", "r:*ff", "r:1000+", "r:1000+0", "r:11112222333344445", "gpa:"] {
        misused(&["-kernel", &kernel, "-watch", watch], &["-watch"]);
    }
    misused(&["convert"], &["TRACE [FILE]"]);
    misused(&["convert", "-trace-format", "nonsense", "t.parquet"], &["nonsense", "lackey"]);
    misused(&["convert", "-nonsense", "t.parquet"], &["-nonsense"]);
    refused(&["convert", "/nonexistent/t.parquet"], &["/nonexistent/t.parquet"]);
}

#[test]
fn logs_that_cannot_be_written() {
    let (_kernel, kernel) = kernel_of(&image::exits(0));
    let log = "/nonexistent/log";
    refused(&["-kernel", &kernel, "-d", "int", "-D", log, "-nographic"], &[log]);
    refused(&["-kernel", &kernel, "-watch", "r:1000", "-watch-log", log, "-nographic"], &[log]);
    refused(&["-kernel", &kernel, "-serial", "file:/nonexistent/log", "-display", "none"], &[log]);
    refused(&["-kernel", &kernel, "-debugcon", "file:/nonexistent/log", "-display", "none"], &[log]);
}

/// Runs with a standard output that is `stdout`, and waits for the end.
fn run_onto(stdout: Stdio, arguments: &[&str]) -> Ended {
    let mut command = Command::new(VITRINE);
    command.args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let end = Instant::now() + SOON;
    while child.try_wait().expect("it can be waited for").is_none() {
        if Instant::now() > end {
            let _ = child.kill();
            panic!("{arguments:?} goes on writing to a closed standard output");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().expect("it ended");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ended { status: output.status, stdout: String::new(), stderr }
}

/// A pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

#[test]
fn a_closed_standard_output() {
    let (_kernel, kernel) = kernel_of(&image::writes_for_ever(u32::from(b'.')));
    let ended = run_onto(closed_pipe(), &["-kernel", &kernel, "-nographic"]);
    let _ = ended.refusal();
    for argument in ["-help", "-version"] {
        run_onto(closed_pipe(), &[argument]).no_panic();
    }
}

#[test]
fn a_full_disk_under_standard_output() {
    let full = || File::options().write(true).open("/dev/full").map(Stdio::from);
    let Ok(stdout) = full() else { return skipped("full disk", "no /dev/full") };
    let (_kernel, kernel) = kernel_of(&image::writes_for_ever(u32::from(b'.')));
    let _ = run_onto(stdout, &["-kernel", &kernel, "-nographic"]).refusal();
}

#[test]
fn help_and_version() {
    for argument in ["-help", "--help", "-h", "-version", "--version"] {
        let ended = run(&[argument]);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert!(ended.stderr.is_empty() && !ended.stdout.is_empty(), "{ended:?}");
    }
}
