//! The guest's physical address space: RAM, ROM, MMIO, and nothing.

/// A device's memory-mapped registers.
pub trait Mmio: Send + Sync {
    /// Reads `size` (1, 2, 4 or 8) bytes at `offset` into the region, on behalf of vCPU `cpu`.
    fn read(&self, cpu: usize, offset: u64, size: usize) -> u64;

    /// Writes the low `size` (1, 2, 4 or 8) bytes of `value` at `offset` into the region, on behalf of vCPU `cpu`.
    fn write(&self, cpu: usize, offset: u64, size: usize, value: u64);
}

/// The map from guest physical addresses to what answers there.
#[derive(Debug)]
pub struct PhysicalMap {}
