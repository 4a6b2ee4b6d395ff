//! Looks at an initrd before the kernel does, which would only say that it found none: an archive that was cut off
//! while it was copied or made is said here, by name.
//!
//! Linux's initramfs format (Documentation/driver-api/early-userspace/buffer-format.rst) is a sequence of "newc" cpio
//! archives, each plain or compressed. The first part is looked at, if it is plain or in gzip's format (RFC 1952).
//! Whatever else an initrd may be is the kernel's business.

use flate2::read::GzDecoder;
use std::io;

/// Compressed archives larger than this are left to the kernel: unpacking them twice would take too long.
const LIMIT: usize = 64 << 20;
/// Bytes in the header of a cpio entry.
const HEADER: usize = 110;

/// What is wrong with `bytes`, if it can be told.
pub(crate) fn damage(bytes: &[u8]) -> Option<String> {
    if bytes.starts_with(b"\x1f\x8b") && bytes.len() <= LIMIT {
        gzip(bytes)
    } else if is_cpio(bytes) {
        cpio(bytes)
    } else {
        None
    }
}

fn gzip(bytes: &[u8]) -> Option<String> {
    // The first member only: the kernel does not mind what follows.
    match io::copy(&mut GzDecoder::new(bytes), &mut io::sink()) {
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Some(format!("it is truncated: its {} bytes end within the gzip archive", bytes.len()))
        }
        Err(error) => Some(format!("its gzip archive is damaged: {error}")),
    }
}

/// Whether an entry of a "newc" archive (with or without checksums) begins here.
fn is_cpio(bytes: &[u8]) -> bool {
    bytes.starts_with(b"070701") || bytes.starts_with(b"070702")
}

fn cpio(bytes: &[u8]) -> Option<String> {
    let mut at = 0;
    loop {
        let entry = bytes.get(at..).unwrap_or_default();
        let truncated = || Some(format!("it is truncated: its {} bytes end within the cpio archive", bytes.len()));
        let number = |field: usize| {
            let digits = entry.get(6 + 8 * field..14 + 8 * field)?;
            usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        if entry.len() < HEADER {
            return truncated();
        }
        if !is_cpio(entry) {
            return Some(format!("its cpio archive is damaged at byte {at}: no entry begins there"));
        }
        let (Some(size), Some(name_size)) = (number(6), number(11)) else {
            return Some(format!("its cpio archive is damaged at byte {at}: a header field is no number"));
        };
        let data = HEADER.saturating_add(name_size).next_multiple_of(4);
        let Some(name) = entry.get(HEADER..HEADER.saturating_add(name_size)) else { return truncated() };
        if name.starts_with(b"TRAILER!!!") {
            return None;
        }
        let end = data.saturating_add(size);
        if end > entry.len() {
            return truncated();
        }
        at = at.saturating_add(end.next_multiple_of(4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn entry(name: &str, data: &[u8]) -> Vec<u8> {
        let mut entry = b"070701".to_vec();
        for field in [0, 0, 0, 0, 1, 0, data.len(), 0, 0, 0, 0, name.len() + 1, 0] {
            write!(entry, "{field:08x}").unwrap();
        }
        entry.extend(name.bytes().chain([0]));
        entry.resize(entry.len().next_multiple_of(4), 0);
        entry.extend(data);
        entry.resize(entry.len().next_multiple_of(4), 0);
        entry
    }

    fn archive() -> Vec<u8> {
        [entry("init", b"#!/bin/sh\n"), entry("file", &[7; 5000]), entry("TRAILER!!!", b"")].concat()
    }

    fn compressed() -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        // Not all alike, so that it stays long.
        let noise: Vec<u8> = (0..5000u32).map(|i| u8::try_from(i.wrapping_mul(0x9e37_79b9) >> 24).unwrap()).collect();
        encoder.write_all(&[archive(), noise].concat()).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn whole_archives_are_well() {
        assert_eq!(damage(&archive()), None);
        assert_eq!(damage(&compressed()), None);
        // Padding, another archive, or junk may follow.
        assert_eq!(damage(&[archive(), vec![0; 600]].concat()), None);
        assert_eq!(damage(&[archive(), compressed()].concat()), None);
        assert_eq!(damage(&[compressed(), vec![0; 512]].concat()), None);
        assert_eq!(damage(b"anything else"), None);
    }

    #[test]
    fn every_cut_is_seen() {
        // The trailer's own zeros at the end are of no importance.
        let plain = archive();
        for length in 6..plain.len() - 4 {
            assert!(damage(&plain[..length]).is_some_and(|what| what.contains("truncated")), "{length}");
        }
        let compressed = compressed();
        for length in 2..compressed.len() {
            assert!(damage(&compressed[..length]).is_some_and(|what| what.contains("truncated")), "{length}");
        }
    }

    #[test]
    fn damage_is_seen() {
        let mut plain = archive();
        plain[60] = b'z';
        assert!(damage(&plain).unwrap().contains("no number"));
        let mut plain = archive();
        let second = entry("init", b"#!/bin/sh\n").len();
        plain[second] = b'1';
        assert!(damage(&plain).unwrap().contains(&format!("at byte {second}")));
        let mut compressed = compressed();
        let middle = compressed.len() / 2;
        compressed[middle] ^= 0x10;
        assert!(damage(&compressed).unwrap().contains("damaged"));
    }
}
