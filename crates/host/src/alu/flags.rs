//! How a host instruction is wrapped so that flags go in and come out: a macro an operand shape.
//!
//! Flags come out by SETO and LAHF, which measured at half the cost of PUSHFQ and POP, and go in by SAHF after an
//! addition on AL that makes OF: cheaper by far than POPFQ, and neither way touches any other bit of RFLAGS or the
//! stack. Where only CF goes in, BT does it.

/// `flags` as the wrapped instructions take it in AX: AH for SAHF, and OF as 0 or 1 in AL.
#[inline(always)]
pub fn split(flags: u64) -> u64 {
    (flags & 0xff) << 8 | (flags >> 11 & 1)
}

/// RFLAGS from what LAHF left in AH and SETO (0 or 1) in `overflow`.
#[inline(always)]
pub fn join(rax: u64, overflow: u64) -> u64 {
    (rax >> 8 & 0xff) | overflow << 11
}

/// One instruction between the loading of its flags and the taking of them.
macro_rules! run {
    ([$($before:literal),*] $op:expr; $rax:tt => $ah:ident, $o:ident; $($operand:tt)*) => {
        // SAFETY: works on its operands only: no memory, no stack, no flag but the status flags.
        unsafe {
            run!(@ $rax $ah [$($before),*] $op; $o; $($operand)*)
        }
    };
    // Flags in: none, or CF by a named operand.
    (@ _ $ah:ident [$($before:literal),*] $op:expr; $o:ident; $($operand:tt)*) => {
        asm!($($before,)* $op, "seto {o:l}", "lahf", $($operand)*, o = inout(reg) 0u64 => $o,
            lateout("rax") $ah, options(pure, nomem, nostack))
    };
    // Flags in: all.
    (@ $flags:ident $ah:ident [] $op:expr; $o:ident; $($operand:tt)*) => {
        asm!("add al, 127", "sahf", $op, "seto {o:l}", "lahf", $($operand)*, o = inout(reg) 0u64 => $o,
            inout("rax") $crate::alu::flags::split($flags) => $ah, options(pure, nomem, nostack))
    };
}

/// Two operands, result and flags.
macro_rules! binary {
    ($($name:ident $t:ident $class:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(a: $t, b: $t) -> ($t, u64) {
            let (result, ah, o);
            run!([] concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"); _ => ah, o;
                a = inout($class) a => result, b = in($class) b);
            (result, join(ah, o))
        }
    )*};
}

/// Two operands, flags only.
macro_rules! nullary {
    ($($name:ident $t:ident $class:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(a: $t, b: $t) -> u64 {
            let (ah, o);
            run!([] concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"); _ => ah, o;
                a = in($class) a, b = in($class) b);
            join(ah, o)
        }
    )*};
}

/// Two operands and CF.
macro_rules! carry {
    ($($name:ident $t:ident $class:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(a: $t, b: $t, flags: u64) -> ($t, u64) {
            let (result, ah, o);
            run!(["bt {f:e}, 0"] concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"); _ => ah, o;
                a = inout($class) a => result, b = in($class) b, f = in(reg) flags);
            (result, join(ah, o))
        }
    )*};
}

/// One operand, all flags but CF.
macro_rules! unary {
    ($($name:ident $t:ident $class:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(a: $t, flags: u64) -> ($t, u64) {
            let (result, ah, o);
            run!(["bt {f:e}, 0"] concat!(stringify!($name), " {a", $m, "}"); _ => ah, o;
                a = inout($class) a => result, f = in(reg) flags);
            (result, join(ah, o))
        }
    )*};
}

/// Shifts and rotates by CL.
macro_rules! count {
    (double $($name:ident $t:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(a: $t, b: $t, count: u8, flags: u64) -> ($t, u64) {
            let (result, ah, o);
            run!([] concat!(stringify!($name), " {a", $m, "}, {b", $m, "}, cl"); flags => ah, o;
                a = inout(reg) a => result, b = in(reg) b, in("cl") count);
            (result, join(ah, o))
        }
    )*};
    ($($name:ident $t:ident $class:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(a: $t, count: u8, flags: u64) -> ($t, u64) {
            let (result, ah, o);
            run!([] concat!(stringify!($name), " {a", $m, "}, cl"); flags => ah, o;
                a = inout($class) a => result, in("cl") count);
            (result, join(ah, o))
        }
    )*};
}

/// Bit scans: the destination may stay as it was.
macro_rules! scan {
    ($($name:ident $t:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(source: $t, old: $t, flags: u64) -> ($t, u64) {
            let (result, ah, o);
            run!([] concat!(stringify!($name), " {r", $m, "}, {s", $m, "}"); flags => ah, o;
                r = inout(reg) old => result, s = in(reg) source);
            (result, join(ah, o))
        }
    )*};
}

/// Bit counts: the result depends on the source alone, and by CMP so do the flags that some processors leave as they were.
/// (One register for both: some processors wait for the result's old value anyway.)
macro_rules! from_zero {
    ($($name:ident $t:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(source: $t) -> ($t, u64) {
            let (result, ah, o): ($t, u64, u64);
            run!(["cmp {s:r}, {s:r}"] concat!(stringify!($name), " {s", $m, "}, {s", $m, "}"); _ => ah, o;
                s = inout(reg) source => result);
            (result, join(ah, o))
        }
    )*};
}

pub(super) use {binary, carry, count, from_zero, nullary, run, scan, unary};
