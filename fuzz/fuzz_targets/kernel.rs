//! Files as kernels and initrds: bzImage, ELF with a PVH note, multiboot. The input's first byte says how much of the
//! rest, up to a half, is the initrd; of 0 there is none.
#![no_main]

use boot::{BoardInfo, Config};
use libfuzzer_sys::fuzz_target;
use memory::{GuestRam, PhysicalMap};
use std::sync::OnceLock;

static MAP: OnceLock<Option<PhysicalMap>> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let Some((&share, rest)) = data.split_first() else { return };
    let map = MAP.get_or_init(|| PhysicalMap::new(GuestRam::new(16 << 20).ok()?).ok());
    let (kernel, initrd) = rest.split_at(rest.len() - rest.len() * usize::from(share) / 512);
    let (Some(map), Ok(kernel), Ok(initrd)) = (map, fuzz::file(kernel), fuzz::file(initrd)) else { return };
    let config = Config {
        kernel: kernel.path().into(),
        initrd: (share != 0).then(|| initrd.path().display().to_string()),
        append: "console=ttyS0".to_owned(),
        cpus: 2,
        hpet: true,
        rng_seed: [share; 32],
    };
    if let Err(error) = boot::load(map, &config, &BoardInfo::default()) {
        assert_eq!(error.to_string().lines().count(), 1, "an error is one line: {error}");
    }
});
