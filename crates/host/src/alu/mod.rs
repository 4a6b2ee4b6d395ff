//! The host CPU as the guest's ALU: one host instruction a function, with the flags exactly as it leaves them.
//!
//! Every function runs the instruction of its name (APM vol. 3, SDM vol. 2) on values, and returns the flags after it:
//! CF, PF, AF, ZF, SF and OF stand in their RFLAGS positions, **the other bits mean nothing** and are to be masked by
//! `x86::Rflags::STATUS` before they are shown. Flags that the manuals leave undefined are what this host makes of
//! them. Where an instruction reads flags or may leave some as they were, the incoming flags are an argument (`flags`,
//! only the six status flags of it matter). But for multiplications, LZCNT and TZCNT, where a translator should not have
//! to keep them, the incoming flags are [`EQUAL`], and those after a division too.
//!
//! No function touches DF, AC, TF or memory, and none can fault.
//! DIV and IDIV, which can, are guarded by Rust and give `None` instead of #DE. Left out: the BT family, which
//! plain Rust does as well, and everything that works on more than one register pair (see [`crate::native`]).

mod flags;
#[cfg(test)]
mod tests;

use flags::{binary, carry, count, from_zero, join, nullary, run, scan, unary};
use std::arch::asm;

/// The flags of comparing equals: ZF and PF.
pub const EQUAL: u64 = 0x44;

/// `flags` as stubs and translated code take them in EAX: for SAHF in AH, and OF as 0 or 1 in AL.
#[inline(always)]
#[must_use]
pub fn split_flags(flags: u64) -> u64 {
    flags::split(flags)
}

/// Flags from what they leave in EAX: LAHF in AH and SETO in AL.
#[inline(always)]
#[must_use]
pub fn join_flags(eax: u64) -> u64 {
    join(eax, eax & 1)
}

/// What [`Word`] and [`Wide`] need from a type, out of the way of the integer types' own methods.
mod sealed {
    /// One instruction a method; see the free functions of the parent module.
    pub trait Operations: Sized {
        fn add(a: Self, b: Self) -> (Self, u64);
        fn adc(a: Self, b: Self, flags: u64) -> (Self, u64);
        fn sub(a: Self, b: Self) -> (Self, u64);
        fn sbb(a: Self, b: Self, flags: u64) -> (Self, u64);
        fn and(a: Self, b: Self) -> (Self, u64);
        fn or(a: Self, b: Self) -> (Self, u64);
        fn xor(a: Self, b: Self) -> (Self, u64);
        fn cmp(a: Self, b: Self) -> u64;
        fn test(a: Self, b: Self) -> u64;
        fn inc(a: Self, flags: u64) -> (Self, u64);
        fn dec(a: Self, flags: u64) -> (Self, u64);
        fn neg(a: Self) -> (Self, u64);
        fn shl(a: Self, count: u8, flags: u64) -> (Self, u64);
        fn shr(a: Self, count: u8, flags: u64) -> (Self, u64);
        fn sar(a: Self, count: u8, flags: u64) -> (Self, u64);
        fn rol(a: Self, count: u8, flags: u64) -> (Self, u64);
        fn ror(a: Self, count: u8, flags: u64) -> (Self, u64);
        fn rcl(a: Self, count: u8, flags: u64) -> (Self, u64);
        fn rcr(a: Self, count: u8, flags: u64) -> (Self, u64);
        fn mul(a: Self, b: Self) -> (Self, Self, u64);
        fn imul_wide(a: Self, b: Self) -> (Self, Self, u64);
        fn div(hi: Self, lo: Self, divisor: Self) -> Option<(Self, Self)>;
        fn idiv(hi: Self, lo: Self, divisor: Self) -> Option<(Self, Self)>;
    }

    /// Instructions that have no 8-bit form.
    pub trait WideOperations: Sized {
        fn shld(a: Self, b: Self, count: u8, flags: u64) -> (Self, u64);
        fn shrd(a: Self, b: Self, count: u8, flags: u64) -> (Self, u64);
        fn imul(a: Self, b: Self) -> (Self, u64);
        fn bsf(source: Self, old: Self, flags: u64) -> (Self, u64);
        fn bsr(source: Self, old: Self, flags: u64) -> (Self, u64);
        fn tzcnt(source: Self) -> (Self, u64);
        fn lzcnt(source: Self) -> (Self, u64);
        fn popcnt(source: Self) -> (Self, u64);
    }
}
use sealed::{Operations, WideOperations};

/// An operand size of the integer instructions: `u8`, `u16`, `u32` or `u64`.
pub trait Word: Operations + Copy + Eq + 'static {}

/// An operand size of the instructions that have no 8-bit form: `u16`, `u32` or `u64`.
pub trait Wide: Word + WideOperations {}

/// A function for each method of [`Operations`], so that the names never clash with those of `std::ops`.
macro_rules! functions {
    ($bound:ident: $($(#[$doc:meta])* $name:ident($($arg:ident: $t:ty),*) -> $r:ty;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        #[must_use]
        pub fn $name<T: $bound>($($arg: $t),*) -> $r {
            T::$name($($arg),*)
        }
    )*};
}

functions! { Word:
    /// ADD: the sum and the flags.
    add(a: T, b: T) -> (T, u64);
    /// ADC: adds CF of `flags` too.
    adc(a: T, b: T, flags: u64) -> (T, u64);
    /// SUB: `a - b` and the flags.
    sub(a: T, b: T) -> (T, u64);
    /// SBB: subtracts CF of `flags` too.
    sbb(a: T, b: T, flags: u64) -> (T, u64);
    /// AND; CF and OF are cleared.
    and(a: T, b: T) -> (T, u64);
    /// OR; CF and OF are cleared.
    or(a: T, b: T) -> (T, u64);
    /// XOR; CF and OF are cleared.
    xor(a: T, b: T) -> (T, u64);
    /// CMP: the flags of [`sub`].
    cmp(a: T, b: T) -> u64;
    /// TEST: the flags of [`and`].
    test(a: T, b: T) -> u64;
    /// INC: CF stays as it is in `flags`.
    inc(a: T, flags: u64) -> (T, u64);
    /// DEC: CF stays as it is in `flags`.
    dec(a: T, flags: u64) -> (T, u64);
    /// NEG: CF tells whether `a` was not zero.
    neg(a: T) -> (T, u64);
    /// SHL by CL or an immediate: `count` is masked as the instruction does (to 6 bits for `u64`, else to 5), and 0
    /// leaves the flags as they are.
    shl(a: T, count: u8, flags: u64) -> (T, u64);
    /// SHR; `count` as in [`shl`].
    shr(a: T, count: u8, flags: u64) -> (T, u64);
    /// SAR; `count` as in [`shl`].
    sar(a: T, count: u8, flags: u64) -> (T, u64);
    /// ROL: writes CF and OF only; `count` as in [`shl`].
    rol(a: T, count: u8, flags: u64) -> (T, u64);
    /// ROR: writes CF and OF only; `count` as in [`shl`].
    ror(a: T, count: u8, flags: u64) -> (T, u64);
    /// RCL: rotates through CF of `flags`; `count` as in [`shl`].
    rcl(a: T, count: u8, flags: u64) -> (T, u64);
    /// RCR: rotates through CF of `flags`; `count` as in [`shl`].
    rcr(a: T, count: u8, flags: u64) -> (T, u64);
    /// MUL: low half, high half, flags. For `u8` the halves are AL and AH.
    mul(a: T, b: T) -> (T, T, u64);
    /// One-operand IMUL: low half, high half, flags.
    imul_wide(a: T, b: T) -> (T, T, u64);
    /// DIV of `hi:lo` by `divisor`: quotient and remainder, or `None` where the instruction raises #DE.
    /// For `u8` the dividend's halves are AH and AL. The flags are [`EQUAL`].
    div(hi: T, lo: T, divisor: T) -> Option<(T, T)>;
    /// IDIV, as [`div`] but signed; truncates towards zero.
    idiv(hi: T, lo: T, divisor: T) -> Option<(T, T)>;
}

functions! { Wide:
    /// SHLD: shifts `a` left, filling from the top of `b`; `count` as in [`shl`].
    shld(a: T, b: T, count: u8, flags: u64) -> (T, u64);
    /// SHRD: shifts `a` right, filling from the bottom of `b`; `count` as in [`shl`].
    shrd(a: T, b: T, count: u8, flags: u64) -> (T, u64);
    /// Two-operand IMUL: the low half.
    imul(a: T, b: T) -> (T, u64);
    /// BSF: the lowest set bit of `source`; for zero ZF is set and the result is `old`, as both vendors' processors do.
    bsf(source: T, old: T, flags: u64) -> (T, u64);
    /// BSR: the highest set bit; `old` as in [`bsf`].
    bsr(source: T, old: T, flags: u64) -> (T, u64);
    /// TZCNT (BMI1).
    tzcnt(source: T) -> (T, u64);
    /// LZCNT.
    lzcnt(source: T) -> (T, u64);
    /// POPCNT.
    popcnt(source: T) -> (T, u64);
}

/// Implements the operations for one size: register class, operand modifier, accumulator and its upper half.
macro_rules! word {
    ($t:ident, $signed:ident, $class:ident, $m:literal, $half:literal) => {
        impl Operations for $t {
            binary!(add $t $class $m; sub $t $class $m; and $t $class $m; or $t $class $m; xor $t $class $m);
            nullary!(cmp $t $class $m; test $t $class $m);
            carry!(adc $t $class $m; sbb $t $class $m);
            unary!(inc $t $class $m; dec $t $class $m);
            count!(shl $t $class $m; shr $t $class $m; sar $t $class $m; rol $t $class $m; ror $t $class $m;
                rcl $t $class $m; rcr $t $class $m);

            #[inline(always)]
            fn neg(a: Self) -> (Self, u64) {
                let (result, ah, o);
                run!([] concat!("neg {a", $m, "}"); _ => ah, o; a = inout($class) a => result);
                (result, join(ah, o))
            }

            word!(products $t $half);

            #[inline(always)]
            fn div(hi: Self, lo: Self, divisor: Self) -> Option<(Self, Self)> {
                // The quotient fits exactly when the high half is below the divisor.
                (hi < divisor).then(|| quotient::$t(hi, lo, divisor))
            }

            #[inline(always)]
            fn idiv(hi: Self, lo: Self, divisor: Self) -> Option<(Self, Self)> {
                let negative = hi.cast_signed() < 0;
                let (lo_abs, borrow) = if negative { (lo.wrapping_neg(), lo != 0) } else { (lo, false) };
                let hi_abs = if negative { (!hi).wrapping_add(Self::from(!borrow)) } else { hi };
                let (quotient, remainder) = Self::div(hi_abs, lo_abs, divisor.cast_signed().unsigned_abs())?;
                let flip = negative != (divisor.cast_signed() < 0);
                let limit = $signed::MAX.cast_unsigned().wrapping_add(Self::from(flip));
                (quotient <= limit).then_some((
                    if flip { quotient.wrapping_neg() } else { quotient },
                    if negative { remainder.wrapping_neg() } else { remainder },
                ))
            }
        }
        impl Word for $t {}
    };
    (products $t:ident $half:literal) => {
        word!(product $t mul "mul" $half);
        word!(product $t imul_wide "imul" $half);
    };
    // In both shapes CMP makes the undefined flags, which some processors leave as they were, depend on the operands
    // alone. AX is one register: the product of bytes is not split over two.
    (product u8 $name:ident $op:literal $m:literal) => {
        #[inline(always)]
        fn $name(a: Self, b: Self) -> (Self, Self, u64) {
            let (product, overflow, ah): (u16, u64, u64);
            // SAFETY: works on its operands only.
            unsafe {
                asm!("cmp {b}, {b}", concat!($op, " {b}"), "mov {p:x}, ax", "seto {o:l}", "lahf",
                    b = in(reg_byte) b, p = out(reg) product, o = inout(reg) 0u64 => overflow,
                    inout("rax") u64::from(a) => ah, options(pure, nomem, nostack));
            }
            let [lo, hi] = product.to_le_bytes();
            (lo, hi, join(ah, overflow))
        }
    };
    (product $t:ident $name:ident $op:literal $m:literal) => {
        #[inline(always)]
        fn $name(a: Self, b: Self) -> (Self, Self, u64) {
            let (lo, hi, overflow, ah);
            // SAFETY: works on its operands only.
            unsafe {
                asm!(concat!("cmp {b", $m, "}, {b", $m, "}"), concat!($op, " {b", $m, "}"), "mov {lo}, rax",
                    "seto {o:l}", "lahf", b = in(reg) b, lo = out(reg) lo, o = inout(reg) 0u64 => overflow,
                    inout("rax") u64::from(a) => ah, out("rdx") hi, options(pure, nomem, nostack));
            }
            let lo: u64 = lo;
            (lo as Self, hi, join(ah, overflow))
        }
    };
}

/// Implements what has no 8-bit form.
macro_rules! wide {
    ($t:ident $m:literal) => {
        impl WideOperations for $t {
            from_zero!(tzcnt $t $m; lzcnt $t $m; popcnt $t $m);
            scan!(bsf $t $m; bsr $t $m);
            count!(double shld $t $m; shrd $t $m);

            #[inline(always)]
            fn imul(a: Self, b: Self) -> (Self, u64) {
                let (result, ah, o);
                // CMP as for the one-operand form.
                run!([] concat!("cmp {a", $m, "}, {a", $m, "}\nimul {a", $m, "}, {b", $m, "}"); _ => ah, o;
                    a = inout(reg) a => result, b = in(reg) b);
                (result, join(ah, o))
            }
        }
        impl Wide for $t {}
    };
}

word!(u8, i8, reg_byte, "", "");
word!(u16, i16, reg, ":x", ":x");
word!(u32, i32, reg, ":e", ":e");
word!(u64, i64, reg, ":r", ":r");
wide!(u16 ":x");
wide!(u32 ":e");
wide!(u64 ":r");

/// Unsigned division of a double word whose high half is below the divisor.
mod quotient {
    macro_rules! narrow {
        ($t:ident $double:ident) => {
            #[inline(always)]
            pub fn $t(hi: $t, lo: $t, divisor: $t) -> ($t, $t) {
                let (dividend, divisor) = ($double::from(hi) << $t::BITS | $double::from(lo), $double::from(divisor));
                ((dividend / divisor) as $t, (dividend % divisor) as $t)
            }
        };
    }
    narrow!(u8 u16);
    narrow!(u16 u32);
    narrow!(u32 u64);

    #[inline(always)]
    pub fn u64(hi: u64, lo: u64, divisor: u64) -> (u64, u64) {
        if hi == 0 {
            return (lo / divisor, lo % divisor);
        }
        let (dividend, divisor) = (u128::from(hi) << 64 | u128::from(lo), u128::from(divisor));
        ((dividend / divisor) as u64, (dividend % divisor) as u64)
    }
}
