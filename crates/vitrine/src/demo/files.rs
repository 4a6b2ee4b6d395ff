//! Where the demo's kernel and busybox come from: the cache, packages, or what lies about on this machine.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object::LittleEndian;
use object::elf::{FileHeader64, PT_INTERP};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

use super::apt::{self, Apt, Package};
use super::progress::Step;

/// Meta-packages that lead to the kernel: Debian's, Ubuntu's, then larger ones.
const KERNELS: [&str; 4] =
    ["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-generic", "linux-image-amd64"];

const BUSYBOX: &str = "busybox-static";

/// The files that the demo boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// A bzImage.
    pub kernel: PathBuf,
    /// A static busybox.
    pub busybox: PathBuf,
}

/// The folder that keeps what was fetched: the project's `.cache` if we are in it, else the user's cache.
///
/// # Errors
/// When it cannot be made.
pub fn cache() -> Result<PathBuf> {
    let folder = match project() {
        Some(project) => project.join(".cache/demo"),
        None => {
            let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
            let user = variable("XDG_CACHE_HOME").filter(|path| path.is_absolute());
            let user = user.or_else(|| Some(variable("HOME")?.join(".cache")));
            user.unwrap_or_else(env::temp_dir).join("vitrine/demo")
        }
    };
    fs::create_dir_all(&folder).with_context(|| format!("the cache {} cannot be made", folder.display()))?;
    folder.canonicalize().with_context(|| format!("the cache {} cannot be used", folder.display()))
}

/// The working tree that Vitrine is run in by `cargo run`, or from a folder of.
fn project() -> Option<PathBuf> {
    let here = env::current_dir().ok();
    let of_cargo = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let starts = of_cargo.into_iter().chain(here);
    let mut folders = starts.flat_map(|start| start.ancestors().map(Path::to_path_buf).collect::<Vec<_>>());
    folders.find(|folder| folder.join("crates/vitrine/Cargo.toml").is_file())
}

/// Finds or fetches what is not given.
///
/// # Errors
/// When there is no way to a file; says what to give.
pub fn find(cache: &Path, kernel: Option<&Path>, busybox: Option<&Path>) -> Result<Files> {
    let given = |path: &Path, check: fn(&[u8]) -> Result<()>| {
        let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
        check(&bytes).with_context(|| path.display().to_string()).map(|()| path.to_path_buf())
    };
    let mut kernel = kernel.map(|path| given(path, |_| Ok(()))).transpose()?.or_else(|| cached_kernel(cache));
    let mut busybox = busybox.map(|path| given(path, check_busybox)).transpose()?;
    busybox = busybox.or_else(|| Some(cache.join("busybox")).filter(|path| passes(path, check_busybox)));
    let mut reason = None;
    if kernel.is_none() || busybox.is_none() {
        let folder = cache.join(format!("fetch-{}", std::process::id()));
        reason = fetch(cache, &folder, &mut kernel, &mut busybox).err();
        // A leftover is fetched over the next time at worst.
        let _ = fs::remove_dir_all(&folder);
    }
    let kernel = kernel.or_else(|| host_kernels().into_iter().find(|path| passes(path, check_kernel)));
    let busybox = busybox.or_else(|| host_busyboxes().into_iter().find(|path| passes(path, check_busybox)));
    match (kernel, busybox) {
        (Some(kernel), Some(busybox)) => Ok(Files { kernel, busybox }),
        (kernel, _) => {
            let what =
                if kernel.is_none() { "kernel (and none in /boot)" } else { "static busybox (and none in PATH)" };
            let reason = reason.map(|reason| format!(": {reason:#}")).unwrap_or_default();
            bail!("no package with a {what}{reason}; give files by -demo -kernel FILE -busybox FILE")
        }
    }
}

/// Fetches what is missing into `cache`, by way of `folder`.
fn fetch(cache: &Path, folder: &Path, kernel: &mut Option<PathBuf>, busybox: &mut Option<PathBuf>) -> Result<()> {
    let Some(apt) = Apt::new(folder.join("apt"))? else { bail!("there is no apt-get") };
    let step = Step::begin("Fetching the lists of packages");
    let updated = apt.update();
    // Whether those that came will do, shows below.
    step.end(if updated.is_ok() { "lists of packages" } else { "lists of packages, as far as they can be had" });
    let missing = |package: &str| match &updated {
        Ok(()) => anyhow::anyhow!("apt knows no package {package}"),
        Err(error) => anyhow::anyhow!("{error:#}"),
    };
    if kernel.is_none() {
        let package = kernel_package(|name| apt.candidate(name)).ok_or_else(|| missing(KERNELS[0]))?;
        let file = taken(&apt, &package, "*/vmlinuz*", folder)?;
        check_kernel(&fs::read(&file)?).with_context(|| format!("the kernel of {}", package.name))?;
        let name = file.file_name().context("the kernel has no name")?;
        *kernel = Some(kept(&file, &cache.join(name))?);
    }
    if busybox.is_none() {
        let package = apt.candidate(BUSYBOX).ok_or_else(|| missing(BUSYBOX))?;
        let file = taken(&apt, &package, "*/bin/busybox", folder)?;
        check_busybox(&fs::read(&file)?).with_context(|| format!("the program of {BUSYBOX}"))?;
        *busybox = Some(kept(&file, &cache.join("busybox"))?);
    }
    Ok(())
}

/// The package that the first known meta-package leads to.
fn kernel_package(candidate: impl Fn(&str) -> Option<Package>) -> Option<Package> {
    KERNELS.iter().find_map(|name| {
        let meta = candidate(name)?;
        let image = meta.depends.iter().find(|name| name.starts_with("linux-image-"))?;
        candidate(image)
    })
}

fn taken(apt: &Apt, package: &Package, pattern: &str, folder: &Path) -> Result<PathBuf> {
    let step = Step::begin(format!("Fetching {} {}", package.name, package.version));
    let deb = apt.download(package, |bytes| step.bytes(bytes, package.size))?;
    let file = apt::unpack(&deb, pattern, &folder.join("unpacked").join(&package.name))?;
    step.end(&format!("{} {}", package.name, package.version));
    Ok(file)
}

/// Moves a file to its place in one go, so that another Vitrine never sees half of it.
fn kept(file: &Path, place: &Path) -> Result<PathBuf> {
    fs::rename(file, place).with_context(|| format!("{} cannot be written", place.display()))?;
    Ok(place.to_path_buf())
}

fn cached_kernel(cache: &Path) -> Option<PathBuf> {
    newest(cache).into_iter().find(|path| passes(path, check_kernel))
}

fn host_kernels() -> Vec<PathBuf> {
    let mut kernels = newest(Path::new("/boot"));
    kernels.extend(newest(Path::new("/")));
    kernels
}

/// Files called `vmlinuz…` in a folder, the youngest first.
fn newest(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let named = entries.filter_map(io::Result::ok).filter(|e| e.file_name().to_string_lossy().starts_with("vmlinuz"));
    let mut files: Vec<_> = named.map(|e| (e.metadata().and_then(|m| m.modified()).ok(), e.path())).collect();
    files.sort();
    files.into_iter().rev().map(|(_, path)| path).collect()
}

fn host_busyboxes() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join("busybox")).collect()
}

fn passes(path: &Path, check: fn(&[u8]) -> Result<()>) -> bool {
    fs::read(path).is_ok_and(|bytes| check(&bytes).is_ok())
}

/// Whether it is a whole bzImage (Linux, `Documentation/arch/x86/boot.rst`).
fn check_kernel(bytes: &[u8]) -> Result<()> {
    let header = bytes.get(0x1f1..0x206).context("it is too short for a kernel")?;
    let (&[setup, ..], [_, _, _, size @ .., _, _, _, _, _, _, _, _, _, _]) = (header, header) else {
        bail!("it is too short for a kernel")
    };
    if !header.ends_with(b"HdrS") {
        bail!("it is no bzImage");
    }
    let paragraphs = u32::from_le_bytes(size.get(..4).context("no size")?.try_into()?);
    // No setup sectors stands for four; the boot sector comes on top.
    let setup = if setup == 0 { 4 } else { u64::from(setup) };
    let whole = (setup + 1) * 512 + u64::from(paragraphs) * 16;
    if (bytes.len() as u64) < whole {
        bail!("it is cut short: {} bytes of {whole}", bytes.len());
    }
    Ok(())
}

/// Whether it runs without libraries: an x86-64 program that names no interpreter.
fn check_busybox(bytes: &[u8]) -> Result<()> {
    let header = FileHeader64::<LittleEndian>::parse(bytes).context("it is no 64-bit program")?;
    let segments = header.program_headers(LittleEndian, bytes).context("it is a damaged program")?;
    if segments.iter().any(|segment| segment.p_type(LittleEndian) == PT_INTERP) {
        bail!("it is not static; the package {BUSYBOX} has one that is");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(setup: u8, paragraphs: u32, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        bytes[0x1f1] = setup;
        bytes[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes
    }

    #[test]
    fn a_kernel_is_whole_or_not() {
        assert!(check_kernel(&kernel(1, 10, 1024 + 160)).is_ok());
        assert!(check_kernel(&kernel(1, 10, 1024 + 159)).is_err());
        assert!(check_kernel(&kernel(0, 0, 2560)).is_ok());
        assert!(check_kernel(&kernel(0, 0, 2559)).is_err());
        assert!(check_kernel(&[0; 4096]).is_err());
        assert!(check_kernel(&[]).is_err());
    }

    #[test]
    fn a_static_program_is_told_from_a_dynamic_one() {
        assert!(check_busybox(&super::super::guest::Program::assemble().unwrap().file).is_ok());
        let this = fs::read(env::current_exe().unwrap()).unwrap();
        assert!(check_busybox(&this).unwrap_err().to_string().contains("not static"));
        assert!(check_busybox(b"#!/bin/sh").is_err());
        assert!(check_busybox(b"\x7fELF\x02\x01\x01").is_err());
    }

    #[test]
    fn the_meta_package_leads_to_the_kernel() {
        let package = |name: &str, depends: &[&str]| Package {
            name: name.to_owned(),
            depends: depends.iter().map(|&name| name.to_owned()).collect(),
            ..Package::default()
        };
        let known = [
            package(
                "linux-image-virtual",
                &["libc6", "linux-image-6.8.0-88-generic", "linux-modules-6.8.0-88-generic"],
            ),
            package("linux-image-6.8.0-88-generic", &[]),
            package("linux-image-amd64", &["linux-image-gone"]),
        ];
        let found = kernel_package(|name| known.iter().find(|package| package.name == name).cloned());
        assert_eq!(found.unwrap().name, "linux-image-6.8.0-88-generic");
        assert_eq!(kernel_package(|_| None), None);
    }
}
