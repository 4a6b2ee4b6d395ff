//! How a host instruction is wrapped so that flags go in and come out: a macro an operand shape.
//!
//! Flags come out by PUSHFQ and POP. They go in, where all six matter, by SAHF, which sets all but OF, after an
//! addition on AL that makes OF: cheaper by far than POPFQ, and it cannot reach any other bit of RFLAGS.
//! Where only CF goes in, BT does it.

/// `flags` as the wrapped instructions take it in AX: AH for SAHF, and OF as 0 or 1 in AL.
#[inline(always)]
pub fn split(flags: u64) -> u64 {
    (flags & 0xff) << 8 | (flags >> 11 & 1)
}

/// Two operands, result and flags.
macro_rules! binary {
    ($($name:ident $t:ident $class:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(a: $t, b: $t) -> ($t, u64) {
            let (result, flags);
            // SAFETY: works on its operands and its own stack only.
            unsafe {
                asm!(concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"), "pushfq", "pop {f}",
                    a = inout($class) a => result, b = in($class) b, f = lateout(reg) flags, options(pure, nomem));
            }
            (result, flags)
        }
    )*};
}

/// Two operands, flags only.
macro_rules! nullary {
    ($($name:ident $t:ident $class:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(a: $t, b: $t) -> u64 {
            let flags;
            // SAFETY: works on its operands and its own stack only.
            unsafe {
                asm!(concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"), "pushfq", "pop {f}",
                    a = in($class) a, b = in($class) b, f = lateout(reg) flags, options(pure, nomem));
            }
            flags
        }
    )*};
}

/// Two operands and CF.
macro_rules! carry {
    ($($name:ident $t:ident $class:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(a: $t, b: $t, flags: u64) -> ($t, u64) {
            let (result, after);
            // SAFETY: works on its operands and its own stack only.
            unsafe {
                asm!("bt {f:e}, 0", concat!(stringify!($name), " {a", $m, "}, {b", $m, "}"), "pushfq", "pop {f}",
                    a = inout($class) a => result, b = in($class) b, f = inout(reg) flags => after,
                    options(pure, nomem));
            }
            (result, after)
        }
    )*};
}

/// One operand, all flags but CF.
macro_rules! unary {
    ($($name:ident $t:ident $class:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(a: $t, flags: u64) -> ($t, u64) {
            let (result, after);
            // SAFETY: works on its operands and its own stack only.
            unsafe {
                asm!("bt {f:e}, 0", concat!(stringify!($name), " {a", $m, "}"), "pushfq", "pop {f}",
                    a = inout($class) a => result, f = inout(reg) flags => after, options(pure, nomem));
            }
            (result, after)
        }
    )*};
}

/// Shifts and rotates by CL.
macro_rules! count {
    (double $($name:ident $t:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(a: $t, b: $t, count: u8, flags: u64) -> ($t, u64) {
            let (result, after);
            // SAFETY: works on its operands and its own stack only.
            unsafe {
                asm!("add al, 127", "sahf", concat!(stringify!($name), " {a", $m, "}, {b", $m, "}, cl"),
                    "pushfq", "pop rax",
                    a = inout(reg) a => result, b = in(reg) b, in("cl") count,
                    inout("rax") $crate::alu::flags::split(flags) => after, options(pure, nomem));
            }
            (result, after)
        }
    )*};
    ($($name:ident $t:ident $class:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(a: $t, count: u8, flags: u64) -> ($t, u64) {
            let (result, after);
            // SAFETY: works on its operands and its own stack only.
            unsafe {
                asm!("add al, 127", "sahf", concat!(stringify!($name), " {a", $m, "}, cl"), "pushfq", "pop rax",
                    a = inout($class) a => result, in("cl") count,
                    inout("rax") $crate::alu::flags::split(flags) => after, options(pure, nomem));
            }
            (result, after)
        }
    )*};
}

/// Bit scans: the destination may stay as it was.
macro_rules! scan {
    ($($name:ident $t:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(source: $t, old: $t, flags: u64) -> ($t, u64) {
            let (result, after);
            // SAFETY: works on its operands and its own stack only.
            unsafe {
                asm!("add al, 127", "sahf", concat!(stringify!($name), " {r", $m, "}, {s", $m, "}"),
                    "pushfq", "pop rax", r = inout(reg) old => result, s = in(reg) source,
                    inout("rax") $crate::alu::flags::split(flags) => after, options(pure, nomem));
            }
            (result, after)
        }
    )*};
}

/// Bit counts: the result depends on the source alone.
macro_rules! from_zero {
    ($($name:ident $t:ident $m:literal);*) => {$(
        #[inline(always)]
        fn $name(source: $t, flags: u64) -> ($t, u64) {
            let (result, after): ($t, u64);
            // SAFETY: works on its operands and its own stack only. (One register for source and
            // result: some processors wait for the result's old value anyway.)
            unsafe {
                asm!("add al, 127", "sahf", concat!(stringify!($name), " {s", $m, "}, {s", $m, "}"),
                    "pushfq", "pop rax", s = inout(reg) source => result,
                    inout("rax") $crate::alu::flags::split(flags) => after, options(pure, nomem));
            }
            (result, after)
        }
    )*};
}

pub(super) use {binary, carry, count, from_zero, nullary, scan, unary};
