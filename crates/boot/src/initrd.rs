//! Initial RAM disks for Linux.

use crate::BootError;
use crate::ram::{Ram, amount, mib, mib_up, to_u64};
use crate::{archive, image};
use memory::Gpa;
use std::path::Path;
use x86::PAGE_OFFSET;

/// Where an initrd lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) start: Gpa,
    pub(crate) size: u64,
}

/// The files that `names` means: one whose name is all of it, commas and all, or else a list.
pub(crate) fn files(names: &str) -> Vec<&str> {
    if !names.contains(',') || Path::new(names).exists() {
        return vec![names];
    }
    names.split(',').filter(|name| !name.is_empty()).collect()
}

/// Puts the files of `names`, one after the other (each at a multiple of four bytes, as Linux wants concatenated
/// archives), as high as possible into the RAM from `floor` up to `ceiling`: as far as can be from where a kernel
/// unpacks itself.
pub(crate) fn place(ram: &dyn Ram, names: &str, floor: Gpa, ceiling: Gpa) -> Result<Placed, BootError> {
    let ceiling = ceiling.0.min(ram.low_end()) & !PAGE_OFFSET;
    let floor = floor.0.saturating_add(PAGE_OFFSET) & !PAGE_OFFSET;
    let room = ceiling.saturating_sub(floor);
    let too_large = |size: u64| {
        let needed = mib_up(floor.saturating_add(size).saturating_add(PAGE_OFFSET));
        BootError::TooLarge {
            what: format!("the initrd {names}"),
            detail: format!(
                "it has {}, the kernel needs the first {}, and there are {} MiB; -m {needed} would do",
                amount(size),
                amount(floor),
                mib(ram.total()),
            ),
        }
    };
    let mut whole = Vec::new();
    for name in files(names) {
        whole.resize(whole.len().next_multiple_of(4), 0);
        let used = to_u64(whole.len());
        match image::read_whole(Path::new(name), room.saturating_sub(used))? {
            Ok(bytes) => {
                if let Some(what) = archive::damage(&bytes) {
                    return Err(BootError::Bad { file: name.to_owned(), what });
                }
                if whole.is_empty() {
                    whole = bytes;
                } else {
                    whole.extend_from_slice(&bytes);
                }
            }
            Err(size) => return Err(too_large(used.saturating_add(size))),
        }
    }
    let size = to_u64(whole.len());
    let start = Gpa(ceiling.saturating_sub(size) & !PAGE_OFFSET);
    if size > room || start.0 < floor {
        return Err(too_large(size));
    }
    ram.put("the initrd", start, &whole)?;
    Ok(Placed { start, size })
}
