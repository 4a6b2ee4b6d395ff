//! `-sandbox`: what the process keeps once the guest runs.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use control::Address;
use jail::Files;
use memory::Pagemap;

use crate::flags::Flags;
use crate::flags::values::{Monitor, Sandbox};
use crate::say::say;

/// Address space beyond what the machine has at its start, bytes: translations, traces, answers to questions.
const HEADROOM: u64 = 4 << 30;
/// The same for each vCPU: its thread's stack and the reserve of its allocations.
const HEADROOM_EACH: u64 = 256 << 20;

/// Makes the rules for all threads that are started from now on. What is booted can be read (again at each reset); the
/// monitor can write files in the current folder and in that for temporary ones; and sockets can be removed.
///
/// # Errors
/// `-sandbox on` is given, and not all of it can be had. If nothing is said, that is told and goes without.
pub fn prepare(flags: &Flags, kernel: &Path, initrd: Option<&str>) -> Result<()> {
    if flags.sandbox == Some(Sandbox::Off) {
        return Ok(());
    }
    // Opened while it can be.
    let _ = Pagemap::of_this_process();
    let mut read = boot::files(kernel, initrd);
    read.push("/dev/urandom".into());
    let monitor = match &flags.monitor {
        Some(Monitor::Unix(path)) => Some(path),
        _ => None,
    };
    let gdb = flags.gdb.iter().filter_map(|address| match address {
        Address::Unix(path) => Some(path),
        Address::Tcp(..) => None,
    });
    let sockets = flags.qmp.iter().chain(monitor).chain(gdb).filter_map(|path| path.parent()).map(folder);
    let write = [folder(Path::new("")), env::temp_dir()].into_iter().chain(sockets).collect();
    match (jail::prepare(&Files { read, write }), flags.sandbox) {
        (Ok(true), _) | (Ok(false), None) => Ok(()),
        (Ok(false), _) => {
            bail!("-sandbox on: this host's kernel has no Landlock, so files cannot be kept from Vitrine")
        }
        (Err(error), None) => {
            say(format_args!("there is no sandbox here ({error}); -sandbox off says that this is known"));
            Ok(())
        }
        (Err(error), Some(_)) => Err(error).context("-sandbox on"),
    }
}

/// Bounds the process's address space, unless nothing is to be given up. To be called when the machine has its memory.
///
/// # Errors
/// The host refuses.
pub fn bound(sandbox: Option<Sandbox>, cpus: u32) -> Result<()> {
    if sandbox != Some(Sandbox::Off) {
        jail::limit_address_space(HEADROOM.saturating_add(HEADROOM_EACH.saturating_mul(cpus.into())))?;
    }
    Ok(())
}

/// A folder by a name that is not empty.
fn folder(path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { PathBuf::from(".") } else { path.to_owned() }
}
