//! The registers of one vCPU.
//!
//! `repr(C)`: translated code will reach these fields by their offsets.

use crate::debugger::Debugger;
use crate::hooks::{Clock, LocalApic, PortIo, Signals};
use host::native::Engine;
use host::vector::VectorState;
use memory::mmu::PagingRegisters;
use memory::{Mmu, Origin};
use std::sync::Arc;
use x86::{Attributes, Cr0, Cr4, Efer, Rflags, Segment, TableRegister, Xcr0};

/// Index of RAX in [`Cpu::regs`].
pub const RAX: usize = 0;
/// Index of RCX.
pub const RCX: usize = 1;
/// Index of RDX.
pub const RDX: usize = 2;
/// Index of RBX.
pub const RBX: usize = 3;
/// Index of RSP.
pub const RSP: usize = 4;
/// Index of RBP.
pub const RBP: usize = 5;
/// Index of RSI.
pub const RSI: usize = 6;
/// Index of RDI.
pub const RDI: usize = 7;
/// Index of R11, which SYSCALL writes.
pub const R11: usize = 11;
/// A register that always reads as zero: the "no register" of effective addresses. Never written.
pub const ZERO: usize = 16;
/// RIP: the address of the instruction being executed, until it completes or jumps.
pub const RIP: usize = 17;

/// Index of ES in [`Cpu::seg`]; the order is that of the architecture's encodings.
pub const ES: usize = 0;
/// Index of CS.
pub const CS: usize = 1;
/// Index of SS.
pub const SS: usize = 2;
/// Index of DS.
pub const DS: usize = 3;
/// Index of FS.
pub const FS: usize = 4;
/// Index of GS.
pub const GS: usize = 5;

/// Default operand and address size of the code being executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CodeSize {
    /// Real mode, virtual-8086 mode, or a 16-bit code segment.
    Bits16 = 16,
    /// A 32-bit code segment (protected or compatibility mode).
    Bits32 = 32,
    /// 64-bit mode.
    Bits64 = 64,
}

/// SYSCALL, SYSENTER and other MSRs that are plain state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are the manuals' own MSR names")]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    /// Added to the clock to give the TSC; TSC_ADJUST shows it.
    pub tsc_offset: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub spec_ctrl: u64,
    pub debug_ctl: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    pub mtrr_variable: [u64; 16],
    pub pkrs: u64,
    pub xss: u64,
    pub mcg_status: u64,
    pub mcg_ctl: u64,
    pub syscfg: u64,
    pub hwcr: u64,
    pub nb_cfg: u64,
    pub mmio_config_base: u64,
    /// AMD's C001_1020h–C001_102Fh: chicken bits, kept as written.
    pub amd_config: [u64; 16],
}

/// What blocks interrupts (and single-step traps) for one instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Shadow {
    /// Nothing.
    #[default]
    None = 0,
    /// The instruction after STI.
    Sti = 1,
    /// The instruction after MOV SS or POP SS, which also holds off debug traps.
    MovSs = 2,
}

/// One virtual processor.
#[repr(C)]
#[derive(Debug)]
pub struct Cpu {
    /// RAX … R15 in encoding order, then [`ZERO`] and [`RIP`]; padded to a power of two so that no index check is needed.
    /// The upper halves of RAX … RDI are zero outside 64-bit mode.
    pub regs: [u64; 32],
    /// The arithmetic flags in their RFLAGS positions. Only the bits in [`Rflags::STATUS`] mean anything.
    pub status: u64,
    /// The other flags of RFLAGS: the bits in [`Rflags::STATUS`] here are to be ignored.
    pub system_flags: Rflags,
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    /// What is added to an effective address: `seg[i].base`, or 0 for ES, CS, SS, DS in 64-bit mode. By [`Cpu::update_mode`].
    pub seg_base: [u64; 8],
    /// Whether limits, rights or alignment must be checked on each access: false in 64-bit mode without alignment checks. By [`Cpu::update_mode`].
    pub checked: bool,
    /// Whether alignment or data breakpoints must be, which is the interpreter's. By [`Cpu::update_mode`].
    pub watched: bool,
    /// Current privilege level. By [`Cpu::update_mode`].
    pub cpl: u8,
    /// By [`Cpu::update_mode`].
    pub code_size: CodeSize,
    /// Interrupt shadow of the previous instruction.
    pub shadow: Shadow,
    /// NMIs are blocked until IRET.
    pub nmi_blocked: bool,
    /// Halted by HLT.
    pub halted: bool,
    /// After INIT, waiting for a start-up IPI.
    pub waiting_for_sipi: bool,
    /// One instruction at a time: TF, RF, an enabled breakpoint, or a debugger's watchpoint at hand. By [`Cpu::update_mode`].
    pub careful: bool,
    /// TF was set when the current instruction began. Only on the careful path.
    pub stepping: bool,
    /// Hits of data and I/O breakpoints (DR6 bits 0–3) and single step (BS) that trap after the instruction.
    pub debug_pending: u64,
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table.
    pub idtr: TableRegister,
    /// CR0. Change through `set_cr0`.
    pub cr0: Cr0,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4. Change through `set_cr4`.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
    /// XCR0.
    pub xcr0: Xcr0,
    /// PKRU.
    pub pkru: u32,
    /// DR0–DR3, then (4, 5 unused) DR6, DR7.
    pub dr: [u64; 8],
    /// Address of the last page fault raised, for CR2 on delivery.
    pub fault_address: u64,
    /// Instructions executed. A tier need not count those that it executes unless `stop_at` is set.
    pub instructions: u64,
    /// How many instructions may have been executed in all: then the vCPU stops.
    pub stop_at: Option<u64>,
    /// PAUSEs executed, modulo 2^32.
    pub pauses: u32,
    /// Exceptions and interrupts that were delivered (or faulted on the way), by vector.
    pub delivered: Box<[u64; 256]>,
    /// Plain MSRs.
    pub msrs: Msrs,
    /// x87, MMX, XMM, YMM and MXCSR.
    pub vector: VectorState,
    /// Runs instructions on the host.
    pub engine: Engine,
    /// The MMU.
    pub mmu: Mmu,
    /// Which vCPU this is; also its initial APIC ID.
    pub id: u32,
    /// What CPUID answers.
    pub model: Arc<crate::cpuid::Model>,
    /// Requests from outside.
    pub signals: Arc<Signals>,
    /// The I/O ports.
    pub ports: Arc<dyn PortIo>,
    /// The local APIC.
    pub apic: Arc<dyn LocalApic>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// What a debugger has set. Changed through [`Cpu::set_debugger`].
    pub(crate) debugger: Debugger,
}

impl Cpu {
    /// Whether it executes nothing until somebody wakes it: halted, or never started.
    #[inline(always)]
    #[must_use]
    pub fn sleeps(&self) -> bool {
        self.halted || self.waiting_for_sipi
    }

    /// The current instruction's address.
    #[inline(always)]
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.regs[RIP]
    }

    /// On whose behalf accesses are made now.
    #[inline(always)]
    #[must_use]
    pub fn origin(&self) -> Origin {
        let (cpu, cpl, rip, instructions) = (self.id, self.cpl, self.regs[RIP], self.instructions);
        Origin { cpu, cpl, descriptor: false, rip, instructions }
    }

    /// RFLAGS as the guest sees it.
    #[inline(always)]
    #[must_use]
    pub fn rflags(&self) -> Rflags {
        let system = self.system_flags.into_bits() & !Rflags::STATUS;
        Rflags::from_bits(system | (self.status & Rflags::STATUS) | 2)
    }

    /// Writes the bits of RFLAGS in `mask`; call [`Cpu::update_mode`] if VM or AC may have changed (done here).
    pub fn set_rflags(&mut self, value: u64, mask: u64) {
        let new = Rflags::from_bits((self.rflags().into_bits() & !mask) | (value & mask));
        let mode = Rflags::new()
            .with_virtual_8086(true)
            .with_alignment_check(true)
            .with_trap(true)
            .with_resume(true)
            .into_bits();
        let changed = (self.system_flags.into_bits() ^ new.into_bits()) & mode != 0;
        self.status = new.into_bits();
        self.system_flags = new;
        if changed {
            self.update_mode();
        }
    }

    /// Whether long mode is active (64-bit or compatibility mode).
    #[inline(always)]
    #[must_use]
    pub fn long_mode(&self) -> bool {
        self.efer.long_mode_active()
    }

    /// Whether protected mode is on and virtual-8086 mode off.
    #[inline(always)]
    #[must_use]
    pub fn protected(&self) -> bool {
        self.cr0.protection() && !self.system_flags.virtual_8086()
    }

    /// Derives code size, CPL, effective segment bases, the MMU's space and how carefully to go from CS, SS, CR0,
    /// CR4, EFER, RFLAGS and DR7. To be called after any of them changes.
    pub fn update_mode(&mut self) {
        let cs = self.seg[CS].attributes;
        let v86 = self.system_flags.virtual_8086();
        self.code_size = if !self.cr0.protection() || v86 {
            if cs.big() && !v86 { CodeSize::Bits32 } else { CodeSize::Bits16 }
        } else if self.long_mode() && cs.long() {
            CodeSize::Bits64
        } else if cs.big() {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        self.cpl = if !self.cr0.protection() {
            0
        } else if v86 {
            3
        } else {
            self.seg[SS].attributes.dpl()
        };
        let flat = self.code_size == CodeSize::Bits64;
        for (i, (base, seg)) in self.seg_base.iter_mut().zip(&self.seg).enumerate() {
            *base = if flat && i < FS { 0 } else { seg.base };
        }
        let alignment = self.cpl == 3 && self.cr0.alignment_mask() && self.system_flags.alignment_check();
        self.watched = alignment || self.data_breakpoints_armed() || self.debugger.comparing;
        self.checked = !flat || self.watched;
        if !flat {
            // They need not be kept when 64-bit mode is left (SDM vol. 1, 3.4.1.1), and code that cannot see them must
            // not have to clear them.
            for register in &mut self.regs[..8] {
                *register &= 0xffff_ffff;
            }
        }
        let armed = self.breakpoints_armed() || self.debugger.comparing;
        self.careful = self.system_flags.trap() || self.system_flags.resume() || armed || self.debug_pending != 0;
        self.mmu.set_space(if self.cpl == 3 {
            memory::Space::User
        } else if self.system_flags.alignment_check() {
            memory::Space::KernelAc
        } else {
            memory::Space::Kernel
        });
    }

    /// Tells the MMU of changed CR0, CR4, EFER, PKRU or PKRS.
    pub fn update_paging(&mut self) {
        self.mmu.set_registers(PagingRegisters {
            cr0: self.cr0,
            cr3: self.cr3,
            cr4: self.cr4,
            efer: self.efer,
            pkru: self.pkru,
            pkrs: u32::try_from(self.msrs.pkrs & 0xffff_ffff).unwrap_or(0),
        });
        self.mmu.report_pdptes(self.origin());
    }

    /// The time-stamp counter: nanoseconds of the machine's clock plus what the guest wrote.
    #[must_use]
    pub fn tsc(&self) -> u64 {
        self.clock.now().wrapping_add(self.msrs.tsc_offset)
    }

    /// Width of the stack pointer: 8, 4 or 2 bytes.
    #[inline(always)]
    #[must_use]
    pub fn stack_size(&self) -> u64 {
        if self.code_size == CodeSize::Bits64 {
            8
        } else if self.seg[SS].attributes.big() {
            4
        } else {
            2
        }
    }

    /// Whether a segment attribute word says that the segment can be used for data as loaded by a null selector: not at all.
    #[must_use]
    pub fn unusable() -> Attributes {
        Attributes::new()
    }
}
