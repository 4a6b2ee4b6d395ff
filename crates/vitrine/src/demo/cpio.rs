//! Initramfs archives: cpio in the "newc" format, gzip-compressed (Linux, `Documentation/driver-api/early-userspace/
//! buffer-format.rst`).
//!
//! Entries are written in the order they are added and owned by root; time stamps are zero, so that the same input
//! gives the same bytes. Left out: hard links and checksums, which Linux does not need.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive under construction.
#[derive(Debug)]
pub struct Archive<W: Write> {
    to: W,
    inode: u32,
}

impl Archive<GzEncoder<Vec<u8>>> {
    /// An archive that is compressed in memory. Fast rather than small: the guest unpacks it once.
    pub fn gzip() -> Self {
        Self::new(GzEncoder::new(Vec::new(), Compression::fast()))
    }
}

impl<W: Write> Archive<W> {
    /// An archive that is written to `to`.
    pub fn new(to: W) -> Self {
        Self { to, inode: 0 }
    }

    /// A directory. Its parents must have been added before.
    pub fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[])
    }

    /// A file that may be executed.
    pub fn program(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        self.entry(path, FILE | 0o755, (0, 0), content)
    }

    /// A symbolic link at `path` to `target`.
    pub fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, LINK | 0o777, (0, 0), target.as_bytes())
    }

    /// A character device.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// Ends the archive and gives back what it was written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.to)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let too_large = |_| io::Error::new(io::ErrorKind::FileTooLarge, format!("{path} has 4 GiB or more"));
        let size = u32::try_from(content.len()).map_err(too_large)?;
        let name_size = u32::try_from(path.len() + 1).map_err(too_large)?;
        // Each directory counts itself; nobody counts the others.
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let fields = [self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0]
            .map(|f| format!("{f:08x}"));
        self.inode += 1;
        let header = format!("070701{}{path}\0", fields.concat());
        self.padded(header.as_bytes())?;
        self.padded(content)
    }

    /// Header with name, and content, are each padded to a multiple of four.
    fn padded(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.to.write_all(&[0; 3][..padding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev").unwrap();
        archive.character_device("dev/console", 5, 1).unwrap();
        archive.program("init", b"#!/bin/sh\n").unwrap();
        archive.link("sh", "busybox").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn the_first_header_is_as_the_format_says() {
        let header = "070701\
            00000000000041ed0000000000000000000000020000000000000000\
            000000000000000000000000000000000000000400000000dev\0";
        assert_eq!(header.len(), 114);
        assert_eq!(sample()[..114], *header.as_bytes());
        assert_eq!(sample()[114..122], *b"\0\x00070701");
    }

    #[test]
    fn every_entry_starts_at_a_multiple_of_four() {
        let bytes = sample();
        let starts: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(b"070701")).collect();
        assert_eq!(starts.len(), 5);
        assert!(starts.iter().all(|start| start % 4 == 0));
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn cpio_reads_it() {
        let Ok(mut cpio) = Command::new("cpio")
            .args(["-itv", "--quiet", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            eprintln!("cpio is not installed: not tested");
            return;
        };
        cpio.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        let listing = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        let lines: Vec<Vec<&str>> = listing.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 4, "{listing}");
        assert_eq!((lines[0][0], *lines[0].last().unwrap()), ("drwxr-xr-x", "dev"));
        assert!(lines[1][0].starts_with("crw-------") && listing.contains("5,"), "{listing}");
        assert_eq!((lines[2][0], lines[2][4], *lines[2].last().unwrap()), ("-rwxr-xr-x", "10", "init"));
        assert!(listing.contains("sh -> busybox"));
    }
}
