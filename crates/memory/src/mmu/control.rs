//! What control registers and invalidating instructions do to the TLB (SDM vol. 3A, 4.10.4; APM vol. 2, 5.5).

use super::slow::MapTables;
use super::{Invpcid, Mmu, Origin, PagingRegisters};
use crate::Gva;
use crate::walk::Mode;

impl Mmu {
    /// Takes new CR0/CR4/EFER/PKRU/PKRS values and flushes what the architecture says they flush, or what the TLB
    /// derives from them. Not for CR3 writes.
    ///
    /// Where this makes PAE page-directory pointers be loaded (SDM vol. 3A, 4.4.1) and they are not valid, the old
    /// ones stay: ask [`Mmu::pdptes_valid`] first, to raise #GP(0) instead.
    pub fn set_registers(&mut self, registers: PagingRegisters) {
        let old = *self.paging.registers();
        if old == registers {
            return;
        }
        let reload = self.loads_pdptes(&registers);
        self.paging.set(registers);
        if old.cr3 != registers.cr3 {
            self.tally.load(registers.cr3, self.tlb.stats);
        }
        if reload && let Some(pdptes) = self.paging.read_pdptes(&mut MapTables::silent(&self.map), registers.cr3) {
            self.take_pdptes(pdptes);
        }

        let (cr4, was) = (registers.cr4, old.cr4);
        let context = |r: &PagingRegisters| if r.cr4.pcid() { r.cr3 & 0xfff } else { 0 };
        let everything = old.cr0.paging() != registers.cr0.paging()
            || old.cr3 != registers.cr3
            || old.efer.long_mode_active() != registers.efer.long_mode_active()
            // NXE decides whether bit 63 is reserved: cached global pages may not have been translatable.
            || old.efer.no_execute() != registers.efer.no_execute()
            || was.page_size_extensions() != cr4.page_size_extensions()
            || was.physical_address_extension() != cr4.physical_address_extension()
            || was.global_pages() != cr4.global_pages()
            || was.la57() != cr4.la57()
            || was.pcid() != cr4.pcid();
        // These only change what cached rights allow.
        let derived = old.cr0.write_protect() != registers.cr0.write_protect()
            || was.smep() != cr4.smep()
            || was.smap() != cr4.smap()
            || was.protection_keys() != cr4.protection_keys()
            || was.supervisor_keys() != cr4.supervisor_keys();
        if everything || derived {
            self.heed_marks();
        }
        if everything {
            self.tlb.flush_all();
            self.tlb.select(context(&registers) as u16);
        } else if derived {
            self.tlb.flush_derived();
        } else {
            if cr4.protection_keys() {
                self.tlb.invalidate_keys(changed_keys(old.pkru, registers.pkru), true);
            }
            if cr4.supervisor_keys() {
                self.tlb.invalidate_keys(changed_keys(old.pkrs, registers.pkrs), false);
            }
        }
        self.renew();
    }

    /// Whether taking `registers` loads the PAE page-directory pointers.
    fn loads_pdptes(&self, registers: &PagingRegisters) -> bool {
        let old = self.paging.registers();
        let pae =
            |r: &PagingRegisters| r.cr0.paging() && r.cr4.physical_address_extension() && !r.efer.long_mode_active();
        let key = |r: &PagingRegisters| {
            let cr0 = (r.cr0.cache_disable(), r.cr0.not_write_through(), r.cr0.paging());
            (cr0, r.cr4.physical_address_extension(), r.cr4.global_pages(), r.cr4.page_size_extensions(), r.cr4.smep())
        };
        pae(registers) && (!pae(old) || key(old) != key(registers) || old.cr3 != registers.cr3)
    }

    /// Whether [`Mmu::set_registers`] with these would find valid PAE page-directory pointers, or loads none.
    /// If not, the MOV to CR0 or CR4 raises #GP(0).
    #[must_use]
    pub fn pdptes_valid(&self, registers: &PagingRegisters) -> bool {
        !self.loads_pdptes(registers)
            || self.paging.read_pdptes(&mut MapTables::silent(&self.map), registers.cr3).is_some()
    }

    /// MOV CR3 (64-bit and legacy paging; PAE PDPTEs are loaded and checked here). `keep` is bit 63 of the value
    /// with PCIDE.
    ///
    /// # Errors
    /// A reserved bit in a PAE PDPTE, which is #GP(0); nothing has changed then.
    #[expect(clippy::result_unit_err, reason = "there is one reason, and one answer to it")]
    pub fn load_cr3(&mut self, cr3: u64, keep: bool) -> Result<(), ()> {
        if self.paging.mode() == Mode::Pae {
            let pdptes = self.paging.read_pdptes(&mut MapTables::silent(&self.map), cr3).ok_or(())?;
            self.take_pdptes(pdptes);
        }
        let registers = PagingRegisters { cr3: cr3 & !(1 << 63), ..*self.paging.registers() };
        self.paging.set(registers);
        self.tally.load(registers.cr3, self.tlb.stats);
        self.heed_marks();
        if registers.cr4.pcid() {
            let known = self.tlb.select((cr3 & 0xfff) as u16);
            if known && !keep {
                self.tlb.flush_current();
            }
        } else {
            self.tlb.flush_current();
        }
        self.renew();
        Ok(())
    }

    fn take_pdptes(&mut self, pdptes: [u64; 4]) {
        self.paging.set_pdptes(pdptes);
        self.pdptes_loaded = true;
    }

    /// Tells the observer of the PAE page-directory pointers that were loaded since this was called last, if any were.
    /// `origin`: by whom.
    pub fn report_pdptes(&mut self, origin: Origin) {
        if std::mem::take(&mut self.pdptes_loaded)
            && let Some(observer) = self.observer.as_deref()
        {
            let cr3 = self.paging.registers().cr3;
            let _ = self.paging.read_pdptes(&mut MapTables::told(&self.map, (observer, origin, cr3)), cr3);
        }
    }

    /// INVLPG.
    pub fn invlpg(&mut self, gva: Gva) {
        let gva = self.paging.linear(gva);
        self.tlb.invalidate(gva);
        self.renew();
    }

    /// INVPCID. The caller has checked the descriptor.
    pub fn invpcid(&mut self, what: Invpcid) {
        self.heed_marks();
        match what {
            Invpcid::Address { pcid, gva } => self.tlb.invalidate_in(pcid, gva),
            Invpcid::SingleContext { pcid } => self.tlb.flush_pcid(pcid),
            Invpcid::AllContextsGlobal => self.tlb.flush_all(),
            Invpcid::AllContexts => self.tlb.flush_derived(),
        }
        self.renew();
    }

    /// Drops everything that is cached.
    pub fn flush_all(&mut self) {
        self.heed_marks();
        self.tlb.flush_all();
        self.renew();
    }

    /// Physical-address width, 32 to 52: what CPUID 8000_0008h says in AL.
    pub fn set_physical_bits(&mut self, bits: u32) {
        self.paging.set_physical_bits(bits);
        self.flush_all();
    }
}

/// The keys whose two bits differ, as a set.
fn changed_keys(old: u32, new: u32) -> u16 {
    let changed = old ^ new;
    (0..16).filter(|key| changed >> (2 * key) & 3 != 0).fold(0, |set, key| set | 1 << key)
}
