//! The vCPU's state after power-up, INIT and a start-up IPI (APM vol. 2, table 14-1; SDM vol. 3A, table 10-1).

use crate::Cpu;
use crate::cpuid::Model;
use crate::debug::{DR6_ONES, DR7_ONES};
use crate::hooks::{Clock, LocalApic, PortIo, Signals};
use crate::state::{CS, CodeSize, Msrs, RDX, RIP, Shadow};
use host::vector::VectorState;
use memory::{Mmu, PhysicalMap};
use std::sync::Arc;
use x86::{Attributes, Cr0, Cr4, Efer, Rflags, Segment, Selector, TableRegister, Xcr0};

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

/// PAT after power-up: WB, WT, UC-, UC, twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

impl Cpu {
    /// A vCPU in its power-up state. `id` is its number and its APIC ID.
    #[must_use]
    pub fn new(id: u32, model: Arc<Model>, connections: Connections) -> Self {
        let Connections { map, signals, ports, apic, clock } = connections;
        let mut mmu = Mmu::new(map, id as usize);
        mmu.set_physical_bits(model.physical_bits());
        let mut cpu = Self {
            regs: [0; 32],
            status: 0,
            system_flags: Rflags::new(),
            seg: [Segment::default(); 6],
            seg_base: [0; 8],
            checked: true,
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
            msrs: Msrs::default(),
            vector: VectorState::new(),
            mmu,
            id,
            model,
            signals,
            ports,
            apic,
            clock,
        };
        cpu.reset();
        cpu
    }

    /// Power-up reset.
    pub fn reset(&mut self) {
        let tsc_zero = self.clock.now().wrapping_neg();
        self.vector = VectorState::new();
        self.xcr0 = Xcr0::new();
        self.pkru = 0;
        self.msrs = Msrs { pat: PAT_RESET, tsc_offset: tsc_zero, ..Msrs::default() };
        self.msrs.reset_mtrrs();
        self.apic.init();
        self.reset_core(Cr0::new().with_cache_disable(true).with_not_write_through(true));
        self.waiting_for_sipi = self.id != 0;
    }

    /// INIT: as reset, but vector state, MSRs, TSC and the cache bits of CR0 stay.
    pub fn init(&mut self) {
        let cache = Cr0::new()
            .with_cache_disable(self.cr0.cache_disable())
            .with_not_write_through(self.cr0.not_write_through());
        self.apic.init();
        self.reset_core(cache);
        // The bootstrap processor starts at the reset vector at once; the others wait.
        self.waiting_for_sipi = self.id != 0;
    }

    /// A start-up IPI: real mode at `vector` × 4 KiB. Ignored unless the vCPU waits for one.
    pub fn start_up(&mut self, vector: u8) {
        if !self.waiting_for_sipi {
            return;
        }
        self.waiting_for_sipi = false;
        self.seg[CS] = Segment::real_mode(u16::from(vector) << 8);
        self.regs[RIP] = 0;
        self.update_mode();
    }

    fn reset_core(&mut self, cache: Cr0) {
        self.regs = [0; 32];
        self.regs[RDX] = u64::from(self.model.signature());
        self.regs[RIP] = 0xfff0;
        self.status = 0;
        self.system_flags = Rflags::new();
        self.seg = [Segment::real_mode(0); 6];
        self.seg[CS] = Segment { base: 0xffff_0000, ..Segment::real_mode(0xf000) };
        let system = |kind| Segment {
            base: 0,
            limit: 0xffff,
            selector: Selector::new(),
            attributes: Attributes::new().with_kind(kind).with_present(true),
        };
        self.ldtr = system(2);
        self.tr = system(11);
        self.gdtr = TableRegister { base: 0, limit: 0xffff };
        self.idtr = TableRegister { base: 0, limit: 0xffff };
        self.cr0 = cache.with_extension_type(true);
        self.cr2 = 0;
        self.cr3 = 0;
        self.cr4 = Cr4::new();
        self.efer = Efer::new();
        self.dr = [0, 0, 0, 0, 0, 0, DR6_ONES, DR7_ONES];
        self.shadow = Shadow::None;
        self.nmi_blocked = false;
        self.halted = false;
        self.debug_pending = 0;
        self.update_paging();
        // A CR3 of zero names no PAE table, so loading it cannot fail.
        let _ = self.mmu.load_cr3(0, false);
        self.mmu.flush_all();
        self.update_mode();
    }
}
