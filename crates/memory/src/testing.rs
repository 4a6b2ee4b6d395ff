//! What the tests of this crate share: a small machine with page tables.

use crate::mmu::PagingRegisters;
use crate::observe::{Access, Interest, Observer};
use crate::{Gpa, GuestRam, Gva, MemoryFault, Mmio, Mmu, Origin, PhysicalMap, Scalar};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use x86::{Cr0, Cr4, Efer};

pub const P: u64 = 1;
pub const W: u64 = 2;
pub const U: u64 = 4;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const PS: u64 = 1 << 7;
pub const G: u64 = 1 << 8;
pub const NX: u64 = 1 << 63;

pub const BY: Origin = Origin { cpu: 0, cpl: 0, descriptor: false, rip: 0x1234, instructions: 7 };

/// Where a device answers in [`map`].
pub const DEVICE: Gpa = Gpa(0xfee0_0000);
/// Where a page of ROM is in [`map`].
pub const ROM: Gpa = Gpa(0xffff_f000);

/// A device that remembers: (write?, offset, size, value).
#[derive(Default)]
pub struct Device(pub Mutex<Vec<(bool, u64, usize, u64)>>);

impl Device {
    pub fn take(&self) -> Vec<(bool, u64, usize, u64)> {
        std::mem::take(&mut self.0.lock().expect("lock"))
    }
}

impl Mmio for Device {
    fn read(&self, _cpu: usize, offset: u64, size: usize) -> u64 {
        self.0.lock().expect("lock").push((false, offset, size, 0));
        0x8877_6655_4433_2211
    }
    fn write(&self, _cpu: usize, offset: u64, size: usize, value: u64) {
        self.0.lock().expect("lock").push((true, offset, size, value));
    }
}

/// 32 MiB of RAM, a device, a ROM of 0x5a bytes.
pub fn map() -> (Arc<PhysicalMap>, Arc<Device>) {
    let mut map = PhysicalMap::new(GuestRam::new(32 << 20).expect("ram")).expect("map");
    let device = Arc::new(Device::default());
    map.add_mmio(DEVICE..DEVICE.wrapping_add(0x1000), Arc::<Device>::clone(&device)).expect("device");
    map.add_rom(ROM, &[0x5a; 4096]).expect("rom");
    (Arc::new(map), device)
}

pub fn peek(map: &PhysicalMap, gpa: u64) -> u64 {
    let mut bytes = [0; 8];
    map.read(Gpa(gpa), &mut bytes).expect("memory");
    u64::from_le_bytes(bytes)
}

pub fn poke(map: &PhysicalMap, gpa: u64, value: u64) {
    map.write(Gpa(gpa), &value.to_le_bytes()).expect("ram");
}

/// Long-mode registers with the root at `cr3`.
pub fn long_mode(cr3: u64) -> PagingRegisters {
    PagingRegisters {
        cr0: Cr0::new().with_protection(true).with_paging(true).with_write_protect(true),
        cr3,
        cr4: Cr4::new().with_physical_address_extension(true).with_global_pages(true),
        efer: Efer::new().with_long_mode_active(true).with_long_mode_enable(true).with_no_execute(true),
        ..PagingRegisters::default()
    }
}

/// Four-level tables that are built on demand, from `next` upwards.
pub struct Builder {
    pub map: Arc<PhysicalMap>,
    pub root: u64,
    pub next: u64,
}

impl Builder {
    pub fn new(map: &Arc<PhysicalMap>) -> Self {
        Self { map: Arc::clone(map), root: 0x1000, next: 0x2000 }
    }

    /// Where the entry is that maps `gva` with pages of `1 << shift` bytes; tables above it are made as needed.
    pub fn slot(&mut self, gva: u64, shift: u32) -> u64 {
        let mut table = self.root;
        let mut level = 39;
        loop {
            let slot = table + (gva >> level & 511) * 8;
            if level == shift {
                return slot;
            }
            let mut entry = peek(&self.map, slot);
            if entry & P == 0 {
                entry = self.next | P | W | U;
                self.next += 0x1000;
                poke(&self.map, slot, entry);
            }
            table = entry & 0x000f_ffff_ffff_f000;
            level -= 9;
        }
    }

    pub fn page(&mut self, gva: u64, gpa: u64, bits: u64) -> u64 {
        let slot = self.slot(gva, 12);
        poke(&self.map, slot, gpa | P | bits);
        slot
    }

    pub fn mmu(&self) -> Mmu {
        let mut mmu = Mmu::new(Arc::clone(&self.map), 0);
        mmu.set_registers(long_mode(self.root));
        mmu
    }
}

impl Mmu {
    /// Read-modify-write, fast or not.
    pub fn modify<T: Scalar, R>(
        &mut self,
        gva: Gva,
        locked: bool,
        mut f: impl FnMut(T) -> (T, R),
    ) -> Result<R, MemoryFault> {
        match self.update_fast(gva, locked, &mut f) {
            Some(result) => Ok(result),
            None => self.update(BY, gva, locked, &mut |old| f(old).0).map(|old| f(old).1),
        }
    }
}

/// Watches pages of guest physical memory, and keeps what it is told. Interest has changed if `anew` is set.
#[derive(Default)]
pub struct Watcher {
    pub pages: Vec<(u64, Interest)>,
    pub walks: Vec<u64>,
    pub dma: Vec<u64>,
    pub seen: Mutex<Vec<Access>>,
    pub anew: AtomicBool,
}

impl Watcher {
    pub fn take(&self) -> Vec<Access> {
        std::mem::take(&mut self.seen.lock().expect("lock"))
    }
}

impl Observer for Watcher {
    fn interest(&self, _gva: Gva, gpa: Gpa) -> Interest {
        self.pages.iter().find(|(page, _)| *page == gpa.0).map(|(_, interest)| *interest).unwrap_or_default()
    }
    fn wants_walks(&self, gpa: Gpa) -> bool {
        self.walks.contains(&gpa.0)
    }
    fn wants_dma(&self, gpa: Gpa) -> bool {
        self.dma.contains(&gpa.0)
    }
    fn access(&self, access: &Access) {
        self.seen.lock().expect("lock").push(*access);
    }
    fn interest_changed(&self) -> bool {
        self.anew.swap(false, Ordering::Relaxed)
    }
}
