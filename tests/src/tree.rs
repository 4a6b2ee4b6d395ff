//! Guests made of Debian's packages by scripts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// When the newest of `path` and the files in it was changed.
fn changed(path: &Path) -> Option<SystemTime> {
    let inside = fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let times =
        inside.chain([path.to_owned()]).filter_map(|path| fs::metadata(path).and_then(|file| file.modified()).ok());
    times.max()
}

/// `folder/initramfs`, made by `make` unless it is there and newer than all of `sources`.
///
/// # Errors
/// The script cannot be run, or fails.
pub fn made(folder: &Path, sources: &[&Path], make: &mut Command) -> io::Result<PathBuf> {
    let initramfs = folder.join("initramfs");
    let newest = sources.iter().filter_map(|source| changed(source)).max();
    if changed(&initramfs) < newest {
        eprintln!("fetching packages and making {}", folder.display());
        if !make.stdout(Stdio::null()).status()?.success() {
            return Err(io::Error::other("the script failed; it needs apt's lists of packages (apt-get update)"));
        }
    }
    Ok(initramfs)
}
