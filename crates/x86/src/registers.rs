//! Flags and control registers as bit fields (APM vol. 2, chapter 3; SDM vol. 3A, 2.5).

use bitfield_struct::bitfield;

/// RFLAGS.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Rflags {
    /// CF.
    pub carry: bool,
    #[bits(1, default = true)]
    __: bool,
    /// PF.
    pub parity: bool,
    __: bool,
    /// AF.
    pub adjust: bool,
    __: bool,
    /// ZF.
    pub zero: bool,
    /// SF.
    pub sign: bool,
    /// TF: single step.
    pub trap: bool,
    /// IF: maskable interrupts are taken.
    pub interrupt: bool,
    /// DF: string instructions count down.
    pub direction: bool,
    /// OF.
    pub overflow: bool,
    /// IOPL.
    #[bits(2)]
    pub iopl: u8,
    /// NT.
    pub nested_task: bool,
    __: bool,
    /// RF: suppresses instruction breakpoints for one instruction.
    pub resume: bool,
    /// VM: virtual-8086 mode.
    pub virtual_8086: bool,
    /// AC: alignment check, and SMAP override in supervisor mode.
    pub alignment_check: bool,
    /// VIF.
    pub virtual_interrupt: bool,
    /// VIP.
    pub virtual_interrupt_pending: bool,
    /// ID: CPUID is there when this can be toggled.
    pub id: bool,
    #[bits(42)]
    __: u64,
}

impl Rflags {
    /// CF, PF, AF, ZF, SF and OF: what arithmetic writes.
    pub const STATUS: u64 = 0x8d5;
}

/// CR0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cr0 {
    /// PE: protected mode.
    pub protection: bool,
    /// MP.
    pub monitor: bool,
    /// EM: no x87; its instructions raise #NM.
    pub emulation: bool,
    /// TS: x87/SSE instructions raise #NM.
    pub task_switched: bool,
    /// ET: always one.
    pub extension_type: bool,
    /// NE: x87 errors are #MF rather than an interrupt.
    pub numeric_error: bool,
    #[bits(10)]
    __: u16,
    /// WP: supervisor writes honour R/W.
    pub write_protect: bool,
    __: bool,
    /// AM: alignment checks are possible.
    pub alignment_mask: bool,
    #[bits(10)]
    __: u16,
    /// NW.
    pub not_write_through: bool,
    /// CD.
    pub cache_disable: bool,
    /// PG: paging.
    pub paging: bool,
    #[bits(32)]
    __: u32,
}

/// CR4.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Cr4 {
    /// VME.
    pub vme: bool,
    /// PVI.
    pub pvi: bool,
    /// TSD: RDTSC is privileged.
    pub time_stamp_disable: bool,
    /// DE: CR4/DR5 accesses raise #UD.
    pub debugging_extensions: bool,
    /// PSE: 4 MiB pages.
    pub page_size_extensions: bool,
    /// PAE.
    pub physical_address_extension: bool,
    /// MCE.
    pub machine_check: bool,
    /// PGE: global pages.
    pub global_pages: bool,
    /// PCE: RDPMC at any level.
    pub performance_counters: bool,
    /// OSFXSR.
    pub os_fxsr: bool,
    /// OSXMMEXCPT: unmasked SIMD exceptions are #XM rather than #UD.
    pub os_simd_exceptions: bool,
    /// UMIP.
    pub umip: bool,
    /// LA57: five-level paging.
    pub la57: bool,
    /// VMXE.
    pub vmx: bool,
    /// SMXE.
    pub smx: bool,
    __: bool,
    /// FSGSBASE.
    pub fsgsbase: bool,
    /// PCIDE.
    pub pcid: bool,
    /// OSXSAVE.
    pub os_xsave: bool,
    /// KL.
    pub key_locker: bool,
    /// SMEP.
    pub smep: bool,
    /// SMAP.
    pub smap: bool,
    /// PKE.
    pub protection_keys: bool,
    /// CET.
    pub cet: bool,
    /// PKS.
    pub supervisor_keys: bool,
    /// UINTR.
    pub user_interrupts: bool,
    #[bits(2)]
    __: u8,
    /// LAM_SUP.
    pub lam_supervisor: bool,
    #[bits(35)]
    __: u64,
}

/// EFER (MSR C000_0080h; APM vol. 2, 3.1.7).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Efer {
    /// SCE: SYSCALL and SYSRET.
    pub syscall: bool,
    #[bits(7)]
    __: u8,
    /// LME: long mode when paging is enabled.
    pub long_mode_enable: bool,
    __: bool,
    /// LMA: long mode is active.
    pub long_mode_active: bool,
    /// NXE.
    pub no_execute: bool,
    /// SVME.
    pub svm: bool,
    __: bool,
    /// FFXSR.
    pub fast_fxsr: bool,
    #[bits(49)]
    __: u64,
}

/// XCR0 (APM vol. 2, 11.5.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Xcr0 {
    /// Always one.
    #[bits(1, default = true)]
    pub x87: bool,
    /// XMM registers and MXCSR.
    pub sse: bool,
    /// Upper halves of the YMM registers.
    pub avx: bool,
    #[bits(6)]
    __: u8,
    /// PKRU.
    pub pkru: bool,
    #[bits(54)]
    __: u64,
}
