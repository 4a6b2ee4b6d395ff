//! The files are read back as `perf` would.

use super::*;
use crate::cache::{Cache, Code};
use crate::classify::Mode;
use cpu::cpuid::Model;
use memory::Hva;
use std::fs;
use std::ops::Range;
use std::sync::Arc;

const BOTH: Wanted = Wanted { map: true, dump: true };

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vitrine-perf-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn read(&self, ending: &str) -> Vec<u8> {
        let found = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        fs::read(found.into_iter().find(|path| path.to_string_lossy().ends_with(ending)).unwrap()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Names and host ranges of a map.
fn parse_map(text: &str) -> Vec<(String, Range<u64>)> {
    let parse = |line: &str| {
        let mut parts = line.splitn(3, ' ');
        let mut number = || u64::from_str_radix(parts.next().unwrap(), 16).unwrap();
        let (start, size) = (number(), number());
        (parts.next().unwrap().to_owned(), start..start + size)
    };
    text.lines().map(parse).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Translates code at some places of a page, and gives the map and the dump.
fn recorded(folder: &Folder) -> (String, Vec<u8>) {
    let perf = Arc::new(Perf::create_in(BOTH, &folder.0, &folder.0).unwrap());
    let mut cache = Cache::new(4 << 20).unwrap();
    cache.record(perf.clone());
    let (model, mut bytes) = (Model::max(), [0x90; 4096]);
    for at in (0..4096).step_by(512) {
        bytes[at + 5] = 0xc3;
        let gva = Gva(0xffff_ffff_8100_0000 + at as u64);
        let (page, model, mode) = (Hva(0x7000_0000), &model, Mode::default());
        let code = Code { page, second: None, bytes: &bytes, gva, model, mode };
        assert!(cache.translate(&code, |_| true).is_some());
    }
    drop((cache, perf));
    (String::from_utf8(folder.read(".map")).unwrap(), folder.read(".dump"))
}

#[test]
fn the_map_names_disjoint_ranges() {
    let folder = Folder::new("map");
    let (map, _) = recorded(&folder);
    let mut ranges = parse_map(&map);
    assert_eq!(ranges.len(), 17, "{map}");
    for name in ["vitrine:thunks", "guest:ffffffff81000000", "guest:ffffffff81000e00.cold"] {
        assert!(ranges.iter().any(|(it, _)| it == name), "{name} is missing in\n{map}");
    }
    ranges.sort_by_key(|(_, range)| range.start);
    for pair in ranges.windows(2) {
        assert!(pair[0].1.end <= pair[1].1.start && !pair[0].1.is_empty(), "{pair:x?}");
    }
}

#[test]
fn the_dump_holds_what_the_map_says_and_the_code() {
    let folder = Folder::new("dump");
    let (map, dump) = recorded(&folder);
    assert_eq!(u32_at(&dump, 0), MAGIC);
    assert_eq!((u32_at(&dump, 4), u32_at(&dump, 8), u32_at(&dump, 12)), (1, 40, 62));
    assert_eq!(u32_at(&dump, 20), std::process::id());
    let (mut at, mut records, mut time) = (40, Vec::new(), u64_at(&dump, 24));
    loop {
        let (id, total, stamp) = (u32_at(&dump, at), u32_at(&dump, at + 4) as usize, u64_at(&dump, at + 8));
        assert!(stamp >= time, "time goes on");
        time = stamp;
        if id == CLOSE {
            at += total;
            break;
        }
        assert_eq!((id, u32_at(&dump, at + 16)), (LOAD, std::process::id()));
        let (vma, start, size) = (u64_at(&dump, at + 24), u64_at(&dump, at + 32), u64_at(&dump, at + 40));
        assert_eq!((vma, u64_at(&dump, at + 48)), (start, records.len() as u64));
        let name: Vec<u8> = dump[at + 56..].iter().copied().take_while(|byte| *byte != 0).collect();
        assert_eq!(total, 56 + name.len() + 1 + size as usize);
        let code = &dump[at + total - size as usize..at + total];
        assert!(code.iter().any(|byte| *byte != 0));
        records.push((String::from_utf8(name).unwrap(), start..start + size));
        at += total;
    }
    assert_eq!(at, dump.len());
    assert_eq!(records, parse_map(&map));
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let folder = Folder::new("error");
    let nowhere = folder.0.join("nowhere");
    let map = Perf::create_in(Wanted { map: true, dump: false }, &nowhere, &folder.0).unwrap_err();
    assert!(map.to_string().contains("nowhere/perf-"), "{map}");
    let dump = Perf::create_in(Wanted { map: false, dump: true }, &folder.0, &nowhere).unwrap_err();
    assert!(dump.to_string().contains("nowhere/jit-"), "{dump}");
    let link = folder.0.join(format!("perf-{}.map", std::process::id()));
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    assert!(Perf::create_in(BOTH, &folder.0, &folder.0).is_err(), "links are not followed");
}
