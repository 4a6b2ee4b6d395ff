//! How a vCPU begins: power-on reset, INIT and start-up IPIs (APM vol. 2, 14.1; SDM vol. 3A, 9.1 and 8.4).
//!
//! Firmware is not emulated, so the memory-type registers begin as firmware leaves them (see [`crate::msr`]).
//! The TSC keeps counting from the machine's start through a reset, so that those of all vCPUs agree.

use crate::Cpu;
use crate::cpuid::Model;
use crate::debug::{DR6_ONES, DR7_ONES};
use crate::debugger::Debugger;
use crate::hooks::{Clock, LocalApic, PortIo, Signals};
use crate::msr::APIC_BASE_BSP;
use crate::state::{CS, CodeSize, Msrs, RDX, RIP, Shadow};
use host::native::Engine;
use host::vector::VectorState;
use memory::{Mmu, PhysicalMap};
use std::sync::Arc;
use x86::{Attributes, Cr0, Cr4, Efer, Rflags, Segment, Selector, TableRegister, Xcr0, msr};

/// CS and IP of the first instruction: FFFF_FFF0h, 16 bytes below 4 GiB.
const RESET_SELECTOR: u16 = 0xf000;
const RESET_BASE: u64 = 0xffff_0000;
const RESET_IP: u64 = 0xfff0;

/// What a vCPU is connected to.
#[derive(Clone, Debug)]
pub struct Connections {
    /// The physical address space.
    pub map: Arc<PhysicalMap>,
    /// Requests from outside.
    pub signals: Arc<Signals>,
    /// The I/O ports.
    pub ports: Arc<dyn PortIo>,
    /// The vCPU's local APIC.
    pub apic: Arc<dyn LocalApic>,
    /// The machine's clock.
    pub clock: Arc<dyn Clock>,
}

impl Cpu {
    /// A vCPU as power-on leaves it. `id` is also its APIC ID; number 0 is the bootstrap processor.
    #[must_use]
    pub fn new(id: u32, model: Arc<Model>, connections: Connections) -> Self {
        let Connections { map, signals, ports, apic, clock } = connections;
        let mut mmu = Mmu::new(map, id as usize);
        mmu.set_physical_bits(model.physical_bits());
        let nudged = signals.clone();
        mmu.wake_by(move || nudged.nudge());
        let mut cpu = Self {
            regs: [0; 32],
            status: 0,
            system_flags: Rflags::new(),
            seg: [Segment::default(); 6],
            seg_base: [0; 8],
            checked: true,
            watched: false,
            cpl: 0,
            code_size: CodeSize::Bits16,
            shadow: Shadow::None,
            nmi_blocked: false,
            halted: false,
            waiting_for_sipi: false,
            careful: false,
            stepping: false,
            debug_pending: 0,
            ldtr: Segment::default(),
            tr: Segment::default(),
            gdtr: TableRegister::default(),
            idtr: TableRegister::default(),
            cr0: Cr0::new(),
            cr2: 0,
            cr3: 0,
            cr4: Cr4::new(),
            efer: Efer::new(),
            xcr0: Xcr0::new(),
            pkru: 0,
            dr: [0; 8],
            fault_address: 0,
            instructions: 0,
            stop_at: None,
            pauses: 0,
            delivered: Box::new([0; 256]),
            msrs: Msrs::default(),
            vector: VectorState::new(),
            engine: Engine::new(),
            mmu,
            id,
            model,
            signals,
            ports,
            apic,
            clock,
            debugger: Debugger::default(),
        };
        cpu.reset();
        cpu
    }

    /// Power-on reset. Every processor but the first then waits for a start-up IPI.
    pub fn reset(&mut self) {
        self.msrs = self.msrs_at_reset();
        self.xcr0 = Xcr0::new();
        self.pkru = 0;
        self.vector.reset();
        // CD and NW are set until firmware turns the caches on.
        self.cr0 = Cr0::new().with_cache_disable(true).with_not_write_through(true);
        self.apic.init();
        self.start_over();
        self.waiting_for_sipi = self.id != 0;
        self.log_reset("reset");
    }

    /// INIT: like a reset, but x87 and vector state, XCR0, the MSRs, CR0.CD and CR0.NW stay, and the local APIC forgets
    /// its interrupts. The bootstrap processor starts at the reset vector; others wait for a start-up IPI.
    pub fn init(&mut self) {
        self.start_over();
        self.apic.init();
        let base = self.apic.read_msr(msr::APIC_BASE).unwrap_or(0);
        self.waiting_for_sipi = base & APIC_BASE_BSP == 0;
        self.log_reset("INIT");
    }

    /// A start-up IPI: real mode at `vector`:0000 in units of 4 KiB. Ignored unless the processor waits for one.
    pub fn start_up(&mut self, vector: u8) {
        if !self.waiting_for_sipi {
            return;
        }
        self.waiting_for_sipi = false;
        self.halted = false;
        let cs = &mut self.seg[CS];
        cs.selector = Selector::from_bits(u16::from(vector) << 8);
        cs.base = u64::from(vector) << 12;
        self.regs[RIP] = 0;
        self.update_mode();
        self.log_reset("start-up IPI");
    }

    /// What reset and INIT have in common.
    fn start_over(&mut self) {
        self.regs = [0; 32];
        self.regs[RDX] = self.model.signature().into();
        self.regs[RIP] = RESET_IP;
        self.status = 0;
        self.system_flags = Rflags::new();
        self.seg = [Segment::real_mode(0); 6];
        self.seg[CS] = Segment { base: RESET_BASE, ..Segment::real_mode(RESET_SELECTOR) };
        let system = |kind| Segment {
            limit: 0xffff,
            attributes: Attributes::new().with_kind(kind).with_present(true),
            ..Segment::default()
        };
        self.ldtr = system(2);
        self.tr = system(11);
        self.gdtr = TableRegister { base: 0, limit: 0xffff };
        self.idtr = TableRegister { base: 0, limit: 0xffff };
        self.cr0 = Cr0::new()
            .with_extension_type(true)
            .with_cache_disable(self.cr0.cache_disable())
            .with_not_write_through(self.cr0.not_write_through());
        self.cr2 = 0;
        self.cr3 = 0;
        self.cr4 = Cr4::new();
        self.efer = Efer::new();
        self.dr = [0; 8];
        self.dr[6] = DR6_ONES;
        self.dr[7] = DR7_ONES;
        self.shadow = Shadow::None;
        self.nmi_blocked = false;
        self.halted = false;
        self.stepping = false;
        self.debug_pending = 0;
        self.update_paging();
        // A CR3 of zero with paging off names no table, so loading it cannot fail.
        let _ = self.mmu.load_cr3(0, false);
        self.mmu.flush_all();
        self.update_mode();
    }

    fn log_reset(&self, what: &str) {
        tracing::debug!(
            target: "cpu_reset",
            "cpu{} {what}: cs {:04x} (base {:x}) ip {:04x}{}",
            self.id,
            self.seg[CS].selector.into_bits(),
            self.seg[CS].base,
            self.regs[RIP],
            if self.waiting_for_sipi { ", waiting for a start-up IPI" } else { "" },
        );
    }
}

#[cfg(test)]
mod tests;
