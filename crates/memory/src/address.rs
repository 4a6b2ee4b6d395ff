//! The four kinds of address as types that do not mix.

use std::fmt;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address of the 4 KiB page that this lies in.
            #[inline(always)]
            #[must_use]
            pub const fn page(self) -> Self {
                Self(self.0 & !x86::PAGE_OFFSET)
            }

            /// The offset within the 4 KiB page, 0 to 4095.
            #[inline(always)]
            #[must_use]
            pub const fn offset(self) -> u64 {
                self.0 & x86::PAGE_OFFSET
            }

            /// The address `bytes` further on, wrapping at 2^64.
            #[inline(always)]
            #[must_use]
            pub const fn wrapping_add(self, bytes: u64) -> Self {
                Self(self.0.wrapping_add(bytes))
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address! {
    /// Guest virtual (linear) address: what a guest instruction uses after segmentation.
    Gva
}
address! {
    /// Guest physical address: what the guest's page tables yield.
    Gpa
}
address! {
    /// Host virtual address: where Vitrine has mapped the guest's memory in its own process.
    Hva
}
address! {
    /// Host physical address: the machine's own RAM, known from `/proc/self/pagemap`.
    Hpa
}
