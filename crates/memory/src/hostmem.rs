//! Raw accesses to guest memory at host addresses.
//!
//! Guest memory is shared by all vCPU threads, by devices and by the guest's own notion of races, so it is never
//! seen through Rust references. Each access here is one host instruction of the guest's width (both sides are x86
//! with total store order), written as inline assembly: unaligned addresses are fine, nothing is torn that the
//! host would not tear, and the compiler may assume nothing about the value.
//!
//! Left out: split-lock detection. A guest's locked access across a cache line becomes the host's, and a host that
//! traps those slows it down.

use std::arch::asm;

/// How an operand of a given width is moved to and from guest memory.
///
/// # Safety
/// The functions must access exactly `size_of::<Self>()` bytes at the address, which must also be `Scalar::SIZE`,
/// and every bit pattern must be a valid value.
pub unsafe trait HostAccess: Copy + Eq {
    /// Reads at `base + offset` (wrapping).
    ///
    /// # Safety
    /// The bytes at `base + offset` must be mapped readable memory that is not owned by any Rust object.
    unsafe fn load(base: u64, offset: u64) -> Self;

    /// Writes at `base + offset` (wrapping).
    ///
    /// # Safety
    /// The bytes at `base + offset` must be mapped writable memory that is not owned by any Rust object.
    unsafe fn store(base: u64, offset: u64, value: Self);

    /// Atomically replaces `old` by `new`. `Err` carries the value that was there instead of `old`.
    ///
    /// # Errors
    /// The memory did not hold `old`.
    ///
    /// # Safety
    /// As for [`HostAccess::store`]; 16-byte operands must be 16-byte aligned.
    unsafe fn compare_exchange(address: u64, old: Self, new: Self) -> Result<(), Self>;

    /// Copies `n` elements upwards, one after the other, as `rep movs` does (overlap replicates).
    ///
    /// # Safety
    /// `n` elements at `from` must be readable and at `to` writable, none owned by any Rust object.
    unsafe fn copy_up(from: u64, to: u64, n: usize);

    /// Stores `n` copies of `value` upwards, as `rep stos` does.
    ///
    /// # Safety
    /// `n` elements at `to` must be writable and not owned by any Rust object.
    unsafe fn fill_up(to: u64, value: Self, n: usize);
}

macro_rules! host_access {
    ($t:ty, $load:literal, $store:literal, $cmpxchg:literal, $rax:tt, $movs:literal, $stos:literal, $class:ident) => {
        // SAFETY: the instructions access exactly the operand's width.
        unsafe impl HostAccess for $t {
            #[inline(always)]
            unsafe fn load(base: u64, offset: u64) -> Self {
                let value: u64;
                // SAFETY: the caller vouches for the address.
                unsafe {
                    asm!($load, v = lateout(reg) value, b = in(reg) base, o = in(reg) offset,
                        options(nostack, preserves_flags, readonly));
                }
                value as Self
            }

            #[inline(always)]
            unsafe fn store(base: u64, offset: u64, value: Self) {
                // SAFETY: the caller vouches for the address.
                unsafe {
                    asm!($store, v = in($class) value, b = in(reg) base, o = in(reg) offset,
                        options(nostack, preserves_flags));
                }
            }

            #[inline(always)]
            unsafe fn compare_exchange(address: u64, old: Self, new: Self) -> Result<(), Self> {
                let seen: Self;
                // SAFETY: the caller vouches for the address.
                unsafe {
                    asm!($cmpxchg, a = in(reg) address, n = in($class) new, inlateout($rax) old => seen,
                        options(nostack));
                }
                if seen == old { Ok(()) } else { Err(seen) }
            }

            #[inline]
            unsafe fn copy_up(from: u64, to: u64, n: usize) {
                // SAFETY: the caller vouches for both ranges; the direction flag is clear in Rust code.
                unsafe {
                    asm!($movs, inout("rcx") n => _, inout("rsi") from => _, inout("rdi") to => _,
                        options(nostack, preserves_flags));
                }
            }

            #[inline]
            unsafe fn fill_up(to: u64, value: Self, n: usize) {
                // SAFETY: the caller vouches for the range; the direction flag is clear in Rust code.
                unsafe {
                    asm!($stos, inout("rcx") n => _, in($rax) value, inout("rdi") to => _,
                        options(nostack, preserves_flags));
                }
            }
        }
    };
}

host_access!(
    u8,
    "movzx {v:e}, byte ptr [{b} + {o}]",
    "mov byte ptr [{b} + {o}], {v}",
    "lock cmpxchg byte ptr [{a}], {n}",
    "al",
    "rep movsb",
    "rep stosb",
    reg_byte
);
host_access!(
    u16,
    "movzx {v:e}, word ptr [{b} + {o}]",
    "mov word ptr [{b} + {o}], {v:x}",
    "lock cmpxchg word ptr [{a}], {n:x}",
    "ax",
    "rep movsw",
    "rep stosw",
    reg
);
host_access!(
    u32,
    "mov {v:e}, dword ptr [{b} + {o}]",
    "mov dword ptr [{b} + {o}], {v:e}",
    "lock cmpxchg dword ptr [{a}], {n:e}",
    "eax",
    "rep movsd",
    "rep stosd",
    reg
);
host_access!(
    u64,
    "mov {v}, qword ptr [{b} + {o}]",
    "mov qword ptr [{b} + {o}], {v}",
    "lock cmpxchg qword ptr [{a}], {n}",
    "rax",
    "rep movsq",
    "rep stosq",
    reg
);

// SAFETY: `movdqu` moves 16 bytes; processors with AVX do it in one piece when the address is aligned.
unsafe impl HostAccess for u128 {
    #[inline(always)]
    unsafe fn load(base: u64, offset: u64) -> Self {
        let value: std::arch::x86_64::__m128i;
        // SAFETY: the caller vouches for the address.
        unsafe {
            asm!("movdqu {v}, xmmword ptr [{b} + {o}]", v = lateout(xmm_reg) value, b = in(reg) base,
                o = in(reg) offset, options(nostack, preserves_flags, readonly));
        }
        // SAFETY: both are 16 bytes of plain data.
        unsafe { std::mem::transmute::<std::arch::x86_64::__m128i, Self>(value) }
    }

    #[inline(always)]
    unsafe fn store(base: u64, offset: u64, value: Self) {
        // SAFETY: both are 16 bytes of plain data.
        let value = unsafe { std::mem::transmute::<Self, std::arch::x86_64::__m128i>(value) };
        // SAFETY: the caller vouches for the address.
        unsafe {
            asm!("movdqu xmmword ptr [{b} + {o}], {v}", v = in(xmm_reg) value, b = in(reg) base, o = in(reg) offset,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn compare_exchange(address: u64, old: Self, new: Self) -> Result<(), Self> {
        let (low, high): (u64, u64);
        // SAFETY: the caller vouches for the address and its alignment. RBX is LLVM's: it is swapped in and out.
        unsafe {
            asm!("xchg {n}, rbx", "lock cmpxchg16b xmmword ptr [{a}]", "mov rbx, {n}",
                a = in(reg) address, n = inout(reg) new as u64 => _, in("rcx") (new >> 64) as u64,
                inout("rax") old as u64 => low, inout("rdx") (old >> 64) as u64 => high, options(nostack));
        }
        let seen = Self::from(low) | Self::from(high) << 64;
        if seen == old { Ok(()) } else { Err(seen) }
    }

    unsafe fn copy_up(from: u64, to: u64, n: usize) {
        for i in (0..n as u64).map(|i| i * 16) {
            // SAFETY: the caller vouches for both ranges.
            unsafe { Self::store(to, i, Self::load(from, i)) };
        }
    }

    unsafe fn fill_up(to: u64, value: Self, n: usize) {
        for i in (0..n as u64).map(|i| i * 16) {
            // SAFETY: the caller vouches for the range.
            unsafe { Self::store(to, i, value) };
        }
    }
}

/// Atomic read-modify-write by a compare-exchange loop; gives the value that was replaced.
///
/// Any alignment is fine up to 8 bytes (a split lock, as on hardware). 16 bytes that are not aligned are updated
/// without atomicity: CMPXCHG16B raises #GP for those before it comes here.
///
/// # Safety
/// The operand must be mapped, readable and writable, and not owned by any Rust object.
#[inline(always)]
pub unsafe fn update_locked<T: HostAccess, R>(address: u64, mut f: impl FnMut(T) -> (T, R)) -> R {
    // SAFETY: the caller vouches for the address.
    let mut old: T = unsafe { T::load(address, 0) };
    loop {
        let (new, result) = f(old);
        if size_of::<T>() == 16 && address & 15 != 0 {
            // SAFETY: as above.
            unsafe { T::store(address, 0, new) };
            return result;
        }
        // SAFETY: as above, and 16-byte operands are aligned here.
        match unsafe { T::compare_exchange(address, old, new) } {
            Ok(()) => return result,
            Err(seen) => old = seen,
        }
    }
}

/// Reads bytes out of guest memory, in pieces of 16, 8 and 1.
///
/// # Safety
/// `bytes.len()` bytes at `from` must be mapped and readable, and not owned by any Rust object.
#[inline]
pub unsafe fn read_bytes(from: u64, bytes: &mut [u8]) {
    let mut offset = 0;
    let (pieces, rest) = bytes.as_chunks_mut::<16>();
    for piece in pieces {
        // SAFETY: the caller vouches for the range.
        *piece = unsafe { u128::load(from, offset) }.to_le_bytes();
        offset += 16;
    }
    let (pieces, rest) = rest.as_chunks_mut::<8>();
    for piece in pieces {
        // SAFETY: the caller vouches for the range.
        *piece = unsafe { u64::load(from, offset) }.to_le_bytes();
        offset += 8;
    }
    for byte in rest {
        // SAFETY: the caller vouches for the range.
        *byte = unsafe { u8::load(from, offset) };
        offset += 1;
    }
}

/// Writes bytes into guest memory, in pieces of 16, 8 and 1.
///
/// # Safety
/// `bytes.len()` bytes at `to` must be mapped and writable, and not owned by any Rust object.
#[inline]
pub unsafe fn write_bytes(to: u64, bytes: &[u8]) {
    let mut offset = 0;
    let (pieces, rest) = bytes.as_chunks::<16>();
    for piece in pieces {
        // SAFETY: the caller vouches for the range.
        unsafe { u128::store(to, offset, u128::from_le_bytes(*piece)) };
        offset += 16;
    }
    let (pieces, rest) = rest.as_chunks::<8>();
    for piece in pieces {
        // SAFETY: the caller vouches for the range.
        unsafe { u64::store(to, offset, u64::from_le_bytes(*piece)) };
        offset += 8;
    }
    for byte in rest {
        // SAFETY: the caller vouches for the range.
        unsafe { u8::store(to, offset, *byte) };
        offset += 1;
    }
}
