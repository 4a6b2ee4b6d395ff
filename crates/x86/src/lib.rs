//! The x86-64 architecture as types: registers, flags, descriptors, page-table entries, exceptions, MSR numbers.
//!
//! Pure data. Nothing here reads memory, knows a machine, or executes anything. Sources are named at each
//! item: *APM* is the AMD64 Architecture Programmer's Manual, *SDM* the Intel 64 Software Developer's Manual.

pub mod exception;
pub mod msr;
pub mod paging;
pub mod registers;
pub mod segment;

pub use exception::{Exception, Vector, vector_name};
pub use paging::{PageFaultCode, Pte};
pub use registers::{Cr0, Cr4, Efer, Rflags, Xcr0};
pub use segment::{Attributes, Descriptor, Segment, Selector, TableRegister};

/// Bytes in the smallest page.
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Masks the offset within a 4 KiB page.
pub const PAGE_OFFSET: u64 = PAGE_SIZE - 1;

/// Whether `address` is canonical when `bits` (48 or 57) virtual-address bits are implemented (APM vol. 2, 5.3.1).
#[inline(always)]
#[must_use]
pub fn is_canonical(address: u64, bits: u32) -> bool {
    let shift = 64 - bits;
    (address << shift).cast_signed() >> shift == address.cast_signed()
}
