//! An initramfs of busybox and an init script: the *newc* cpio format of the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`, uncompressed.

use std::fs;
use std::path::Path;
use std::process::Command;

use tempfile::NamedTempFile;

/// Mounts what programs need, prints the command line, says `GUEST-READY`, then gives a shell or powers off.
pub const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
cat /proc/cmdline
echo GUEST-READY
case \"$(cat /proc/cmdline)\" in
*dmesg*) dmesg; echo DMESG-END;;
esac
case \"$(cat /proc/cmdline)\" in
*interactive*) exec setsid cttyhack sh;;
esac
poweroff -f
";

/// File kinds and permissions, as in `stat.st_mode`.
#[derive(Clone, Copy)]
enum Mode {
    Folder,
    Program,
    Console,
}

impl Mode {
    fn bits(self) -> u32 {
        match self {
            Self::Folder => 0o040_755,
            Self::Program => 0o100_755,
            Self::Console => 0o020_600,
        }
    }
}

fn entry(archive: &mut Vec<u8>, inode: usize, name: &str, mode: Mode, data: &[u8]) {
    let (major, minor) = if matches!(mode, Mode::Console) { (5, 1) } else { (0, 0) };
    let header = format!(
        "070701{inode:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{major:08x}{minor:08x}{:08x}{:08x}",
        mode.bits(),
        0, // uid
        0, // gid
        1, // links
        0, // modification time
        data.len(),
        0, // device, major
        0, // device, minor
        name.len() + 1,
        0, // checksum
    );
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(name.as_bytes());
    archive.push(0);
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

/// The archive's bytes: `busybox` as `/bin/busybox`, `init` as `/init`, the folders that it mounts on, and `program` as
/// `/bin/program`.
fn pack(busybox: &[u8], init: &str, program: Option<&[u8]>) -> Vec<u8> {
    let mut archive = Vec::with_capacity(busybox.len() + 8192);
    let folders = ["bin", "proc", "sys", "dev", "tmp", "root"];
    for (inode, name) in (1..).zip(folders) {
        entry(&mut archive, inode, name, Mode::Folder, &[]);
    }
    entry(&mut archive, 20, "dev/console", Mode::Console, &[]);
    entry(&mut archive, 21, "bin/busybox", Mode::Program, busybox);
    entry(&mut archive, 22, "init", Mode::Program, init.as_bytes());
    if let Some(program) = program {
        entry(&mut archive, 23, "bin/program", Mode::Program, program);
    }
    entry(&mut archive, 0, "TRAILER!!!", Mode::Folder, &[]);
    archive
}

/// An initramfs in a temporary file, or nothing where there is no static busybox.
///
/// # Panics
/// If busybox cannot be read or the file not be written.
#[must_use]
pub fn build(init: &str) -> Option<NamedTempFile> {
    let busybox = fs::read(crate::find::busybox()?).expect("busybox can be read");
    Some(file_of(&pack(&busybox, init, None)))
}

/// As [`build`], with the C program `source` of the folder `tests/guest` as `/bin/program`; nothing where it cannot be
/// compiled and linked statically, either.
///
/// # Panics
/// As [`build`]; if there is a compiler and no such source.
#[must_use]
pub fn with_program(init: &str, source: &str) -> Option<NamedTempFile> {
    let busybox = fs::read(crate::find::busybox()?).expect("busybox can be read");
    let source = crate::find::workspace().join("tests/guest").join(source);
    assert!(source.is_file(), "{} is there", source.display());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let program = folder.path().join("program");
    let mut compiler = Command::new("cc");
    compiler.args(["-static", "-O2", "-pthread", "-Wall", "-Werror", "-o"]).arg(&program).arg(&source);
    if !compiler.status().ok()?.success() {
        return None;
    }
    let program = fs::read(program).expect("the program can be read");
    Some(file_of(&pack(&busybox, init, Some(&program))))
}

/// A temporary file with these bytes.
///
/// # Panics
/// If it cannot be written.
#[must_use]
pub fn file_of(bytes: &[u8]) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a temporary file");
    write(file.path(), bytes);
    file
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("a temporary file can be written");
}
