//! Loading a guest without firmware: kernels of three kinds, and the tables that a PC's firmware would have left.
//!
//! [`load`] looks at a kernel file, puts it, its initrd and command line where its boot protocol wants them, writes the
//! ACPI tables and the BIOS data area that every guest may look for, and answers with the registers that the protocol
//! demands for the first vCPU. Everything in a file is input: a file that is not what it claims to be gives a
//! [`BootError`] that names the file and what is wrong with it.

mod acpi;
mod archive;
mod bios;
pub mod board;
mod dsdt;
mod elf;
pub mod entry;
pub mod error;
mod image;
mod initrd;
mod layout;
mod linux;
mod multiboot;
mod pvh;
mod ram;
mod unknown;

pub use board::{BoardInfo, Com, Override};
pub use entry::Entry;
pub use error::BootError;

use elf::Elf;
use image::Image;
use memory::PhysicalMap;
use ram::Ram;
use std::path::{Path, PathBuf};

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

/// The files that [`load`] may read for a kernel and its initrd, by whatever protocol: more than there are, perhaps.
#[must_use]
pub fn files(kernel: &Path, initrd: Option<&str>) -> Vec<PathBuf> {
    let names = initrd.unwrap_or_default();
    let modules = multiboot::modules(names).into_iter().map(|(_, name)| name);
    let archives = initrd::files(names).into_iter().map(str::to_owned);
    let named = modules.chain(archives).filter(|name| !name.is_empty()).map(PathBuf::from);
    std::iter::once(kernel.to_owned()).chain(named).collect()
}

/// Loads what `config` names into `map` and says in which state the first vCPU is to start.
///
/// # Errors
/// A file that cannot be read, is not a kernel that can be booted, is damaged, or does not fit into guest memory.
pub fn load(map: &PhysicalMap, config: &Config, board: &BoardInfo) -> Result<Entry, BootError> {
    load_into(map, config, board)
}

/// In which state the first vCPU is to start when a machine wakes from S3: at the waking vector that the guest has left in
/// its FACS (ACPI 6.5, 5.2.10), if that is below 1 MiB. The vector of 64 bits is not looked at.
#[must_use]
pub fn wake(map: &PhysicalMap) -> Option<Entry> {
    let mut vector = [0; 4];
    map.read(acpi::WAKING_VECTOR, &mut vector).ok()?;
    let vector = u32::from_le_bytes(vector);
    (1..1 << 20).contains(&vector).then(|| Entry::real(vector))
}

/// [`load`], into anything that is RAM.
fn load_into(ram: &dyn Ram, config: &Config, board: &BoardInfo) -> Result<Entry, BootError> {
    let image = Image::open(&config.kernel)?;
    if ram.low_end() < layout::HIGH.0 {
        return Err(ram.too_large(image.name(), 0, layout::HIGH.0));
    }
    let head = image.head(multiboot::SEARCH)?;
    let entry = if let Some(header) = multiboot::find(&head) {
        multiboot::load(&image, &header, ram, config)?
    } else if elf::is_elf(&head) {
        let elf = Elf::read(&image)?;
        match pvh::entry_point(&image, &elf)? {
            Some(entry) => pvh::load(&image, &elf, entry, ram, config)?,
            None => return Err(unknown::elf(&image, &elf)),
        }
    } else if linux::is_bzimage(&head) {
        linux::load(&image, ram, config)?
    } else {
        return Err(unknown::file(&image, &head));
    };
    // After the kernel, whose BSS may reach over the firmware's area.
    bios::write(ram, board)?;
    acpi::write(ram, config, board)?;
    Ok(entry)
}

#[cfg(test)]
mod tests;
