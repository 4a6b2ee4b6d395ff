//! The operand sizes that a guest access can have in one piece.

use crate::hostmem::HostAccess;

/// An unsigned integer of 1, 2, 4, 8 or 16 bytes that one guest access moves.
pub trait Scalar: HostAccess + Copy + Eq + Send + Sync + 'static {
    /// Size in bytes.
    const SIZE: u64;
    /// From little-endian bytes in the low end of a `u128`.
    fn from_wide(value: u128) -> Self;
    /// Zero-extended.
    fn to_wide(self) -> u128;
}

macro_rules! scalar {
    ($($t:ty)*) => {$(
        impl Scalar for $t {
            const SIZE: u64 = size_of::<$t>() as u64;
            #[inline(always)]
            fn from_wide(value: u128) -> Self { value as $t }
            #[inline(always)]
            fn to_wide(self) -> u128 { u128::from(self) }
        }
    )*};
}
scalar!(u8 u16 u32 u64 u128);
