//! Guest memory: the four addresses, RAM, the physical map, the page walker, the softmmu TLB, `/proc/self/pagemap`.
//!
//! The one flow this crate exists for: **GVA** → (TLB or page walk) → **GPA** → (physical map) → **HVA** →
//! (the host's MMU; pagemap tells) → **HPA**.

pub mod address;
pub mod code;
pub mod dma;
pub mod hostmem;
pub mod map;
pub mod mmu;
pub mod observe;
pub mod pagemap;
pub mod ram;
pub mod scalar;
pub mod space;
pub mod tally;
#[cfg(test)]
mod testing;
pub mod tlb;
pub mod touched;
pub mod walk;
pub mod witness;

pub use address::{Gpa, Gva, Hpa, Hva};
pub use dma::Dma;
pub use map::{MapError, Mmio, PhysicalMap};
pub use mmu::{MemoryFault, Mmu, Origin, Space};
pub use observe::{Access, AccessKind, Agent, Observer};
pub use pagemap::Pagemap;
pub use ram::{GuestRam, RamError};
pub use scalar::Scalar;
pub use space::AddressSpace;
pub use touched::Touched;
