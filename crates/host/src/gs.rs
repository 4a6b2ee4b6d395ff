//! The GS base, which Linux leaves to user space on x86-64: translated code addresses through it.

use std::arch::asm;
use std::sync::LazyLock;

/// The kernel lets user space execute WRGSBASE (Linux 5.9; `HWCAP2_FSGSBASE` in its x86 ELF hwcaps).
static DIRECT: LazyLock<bool> = LazyLock::new(|| {
    const FSGSBASE: u64 = 1 << 1;
    // SAFETY: getauxval only reads the auxiliary vector.
    unsafe { libc::getauxval(libc::AT_HWCAP2) & FSGSBASE != 0 }
});

/// Whether code of this process may execute WRGSBASE.
#[must_use]
pub fn is_direct() -> bool {
    *DIRECT
}

/// Sets this thread's GS base. Nothing in Rust or the C library uses it.
#[inline]
pub fn set_base(base: u64) {
    if *DIRECT {
        // SAFETY: the kernel has said that the instruction is enabled; GS addresses nothing that Rust knows of.
        unsafe { asm!("wrgsbase {}", in(reg) base, options(nomem, nostack, preserves_flags)) };
    } else {
        const ARCH_SET_GS: u64 = 0x1001;
        // SAFETY: sets the GS base and nothing else. It cannot fail for an address of user space.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    }
}
