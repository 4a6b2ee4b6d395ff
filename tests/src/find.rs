//! Where kernels and busybox are looked for. Nothing is fetched here.
//!
//! A kernel is looked for in the folder `$VITRINE_GUESTS`, in `../shared/guest` beside the workspace, and in the
//! workspace's `.cache`, where the demo and `.ci/run` keep what they fetched. A clone has none of these at first.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// The root of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

fn folders() -> Vec<PathBuf> {
    let root = workspace();
    let mut all: Vec<PathBuf> = std::env::var_os("VITRINE_GUESTS").map(PathBuf::from).into_iter().collect();
    // A linked work tree lies elsewhere than the clone it came from; look beside each parent.
    all.extend(root.ancestors().skip(1).take(2).map(|up| up.join("shared/guest")));
    all.push(root.join(".cache"));
    all
}

/// All files below `folder`, at most `depth` folders down, in the order of their names.
fn files(folder: &Path, depth: usize) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut found = Vec::new();
    for path in paths {
        if path.is_file() {
            found.push(path);
        } else if depth > 0 && !path.is_symlink() {
            found.extend(files(&path, depth - 1));
        }
    }
    found
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// A kernel that prints the addresses of its own command line (see [`crate::watch::GuestView`]).
#[must_use]
pub fn seed_kernel() -> Option<PathBuf> {
    folders().into_iter().map(|folder| folder.join("seed-bzImage")).find(|path| path.is_file())
}

/// The address range of `symbol` in the seed kernel, from its `System.map`.
#[must_use]
pub fn seed_symbol(symbol: &str) -> Option<std::ops::Range<u64>> {
    let map = seed_kernel()?.with_file_name("seed-System.map.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(fs::File::open(map).ok()?).read_to_string(&mut text).ok()?;
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((address, words.nth(1)?.to_owned()))
    };
    let mut symbols: Vec<(u64, String)> = text.lines().filter_map(parse).collect();
    symbols.sort();
    let at = symbols.iter().position(|(_, name)| name == symbol)?;
    let start = symbols.get(at)?.0;
    let end = symbols.iter().skip(at).map(|(address, _)| *address).find(|&address| address > start)?;
    Some(start..end)
}

/// Debian's cloud kernels at hand, oldest name first.
#[must_use]
pub fn debian_kernels() -> Vec<PathBuf> {
    let all = folders().into_iter().flat_map(|folder| files(&folder, 5));
    let mut found: Vec<PathBuf> =
        all.filter(|path| name_of(path).starts_with("vmlinuz-") && name_of(path).contains("-cloud-amd64")).collect();
    found.sort_by(|a, b| name_of(a).cmp(name_of(b)));
    found.dedup_by(|a, b| name_of(a) == name_of(b));
    found
}

/// A static busybox: the installed one, or one below `.cache`.
#[must_use]
pub fn busybox() -> Option<PathBuf> {
    let is_static = |path: &PathBuf| {
        // A dynamic program carries its interpreter's path near the start.
        fs::read(path).is_ok_and(|bytes| !bytes.iter().take(4096).collect::<Vec<_>>().windows(7).any(is_interpreter))
    };
    let installed = ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(PathBuf::from);
    let cached = files(&workspace().join(".cache"), 5).into_iter().filter(|path| name_of(path) == "busybox");
    installed.chain(cached).filter(|path| path.is_file()).find(is_static)
}

fn is_interpreter(window: &[&u8]) -> bool {
    window.iter().map(|byte| **byte).eq(*b"ld-linu")
}
