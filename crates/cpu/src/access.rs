//! Guest memory through segmentation: effective address → linear address (GVA) → MMU (APM vol. 2, chapter 4).

use crate::Cpu;
use crate::state::{CodeSize, RSP, SS};
use memory::{Gva, MemoryFault, Origin, Scalar, Space};
use x86::{Exception, Vector, is_canonical};

impl Cpu {
    /// Reads at `seg`:`ea` with the current rights.
    #[inline(always)]
    pub fn load<T: Scalar>(&mut self, seg: usize, ea: u64) -> Result<T, Exception> {
        let gva = self.linear(seg, ea, T::SIZE, false)?;
        match self.mmu.read_fast(gva) {
            Some(value) => Ok(value),
            None => self.load_slow(seg, gva),
        }
    }

    /// Writes at `seg`:`ea` with the current rights.
    #[inline(always)]
    pub fn store<T: Scalar>(&mut self, seg: usize, ea: u64, value: T) -> Result<(), Exception> {
        let gva = self.linear(seg, ea, T::SIZE, true)?;
        if self.mmu.write_fast(gva, value) { Ok(()) } else { self.store_slow(seg, gva, value) }
    }

    /// Read-modify-write at `seg`:`ea`; `f` maps the old value to the new one and a result. Write rights are checked
    /// first. With `locked` it is one atomic operation and `f` may be called more than once.
    #[inline(always)]
    pub fn update<T: Scalar, R>(
        &mut self,
        seg: usize,
        ea: u64,
        locked: bool,
        mut f: impl FnMut(T) -> (T, R),
    ) -> Result<R, Exception> {
        let gva = self.linear(seg, ea, T::SIZE, true)?;
        match self.mmu.update_fast(gva, locked, &mut f) {
            Some(result) => Ok(result),
            None => {
                let old = self.update_slow(seg, gva, locked, &mut |old| f(old).0)?;
                Ok(f(old).1)
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn update_slow<T: Scalar>(
        &mut self,
        seg: usize,
        gva: Gva,
        locked: bool,
        f: &mut dyn FnMut(T) -> T,
    ) -> Result<T, Exception> {
        if self.careful {
            // It reads as well as it writes.
            self.debugger.note(gva.0, T::SIZE, false);
        }
        let origin = self.origin();
        self.mmu.update(origin, gva, locked, f).map_err(|fault| self.memory_fault(fault, seg == SS))
    }

    #[cold]
    #[inline(never)]
    fn load_slow<T: Scalar>(&mut self, seg: usize, gva: Gva) -> Result<T, Exception> {
        let (origin, space) = (self.origin(), self.mmu.space());
        self.mmu.read(origin, space, gva).map_err(|fault| self.memory_fault(fault, seg == SS))
    }

    #[cold]
    #[inline(never)]
    fn store_slow<T: Scalar>(&mut self, seg: usize, gva: Gva, value: T) -> Result<(), Exception> {
        let (origin, space) = (self.origin(), self.mmu.space());
        self.mmu.write(origin, space, gva, value).map_err(|fault| self.memory_fault(fault, seg == SS))
    }

    /// Reads any number of bytes (up to a page) at `seg`:`ea`.
    pub fn load_bytes(&mut self, seg: usize, ea: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        let gva = self.linear(seg, ea, bytes.len() as u64, false)?;
        let (origin, space) = (self.origin(), self.mmu.space());
        self.mmu.read_bytes(origin, space, gva, bytes).map_err(|fault| self.memory_fault(fault, seg == SS))
    }

    /// Writes any number of bytes (up to a page) at `seg`:`ea`; checked whole before the first byte changes.
    pub fn store_bytes(&mut self, seg: usize, ea: u64, bytes: &[u8]) -> Result<(), Exception> {
        let gva = self.linear(seg, ea, bytes.len() as u64, true)?;
        let (origin, space) = (self.origin(), self.mmu.space());
        self.mmu.write_bytes(origin, space, gva, bytes).map_err(|fault| self.memory_fault(fault, seg == SS))
    }

    /// Raises now any fault that a later access to `seg`:`ea` of `len` bytes would raise.
    pub fn probe(&mut self, seg: usize, ea: u64, len: u64, write: bool) -> Result<Gva, Exception> {
        let gva = self.linear(seg, ea, len, write)?;
        let (origin, space) = (self.origin(), self.mmu.space());
        self.mmu.probe(origin, space, gva, len, write).map_err(|fault| self.memory_fault(fault, seg == SS))?;
        Ok(gva)
    }

    /// Reads at a linear address with supervisor rights whatever the CPL: descriptor tables, TSS, IDT.
    /// SMAP applies whatever RFLAGS.AC says; a non-canonical address is #GP(0).
    pub fn read_system<T: Scalar>(&mut self, gva: u64) -> Result<T, Exception> {
        let origin = Origin { descriptor: true, ..self.origin() };
        self.mmu.read(origin, Space::Kernel, Gva(gva)).map_err(|fault| self.memory_fault(fault, false))
    }

    /// Writes at a linear address with supervisor rights whatever the CPL.
    pub fn write_system<T: Scalar>(&mut self, gva: u64, value: T) -> Result<(), Exception> {
        let origin = Origin { descriptor: true, ..self.origin() };
        self.mmu.write(origin, Space::Kernel, Gva(gva), value).map_err(|fault| self.memory_fault(fault, false))
    }

    /// Atomic read-modify-write at a linear address with supervisor rights: accessed and busy bits of descriptors.
    /// (Descriptor bits are set by plain read and write; the bus lock of real hardware only matters between processors
    /// that load the same descriptor, and they write the same value.)
    pub fn set_system_bits(&mut self, gva: u64, set: u8) -> Result<(), Exception> {
        let old: u8 = self.read_system(gva)?;
        if old & set == set { Ok(()) } else { self.write_system(gva, old | set) }
    }

    /// What a failed access means to the guest: records CR2-to-be and gives the exception.
    pub fn memory_fault(&mut self, fault: MemoryFault, stack: bool) -> Exception {
        match fault {
            MemoryFault::Page { gva, code } => {
                self.fault_address = gva.0;
                Exception::page_fault(code)
            }
            MemoryFault::Trapped => {
                self.debugger.ask();
                Exception::GP0
            }
            MemoryFault::NonCanonical if stack => Exception::SS0,
            MemoryFault::NonCanonical => Exception::GP0,
        }
    }

    /// The linear address of `len` bytes at `seg`:`ea`, after the segment's checks.
    ///
    /// In 64-bit mode only the base is added; canonical form is checked where the address is translated.
    #[inline(always)]
    pub fn linear(&mut self, seg: usize, ea: u64, len: u64, write: bool) -> Result<Gva, Exception> {
        if self.checked {
            self.linear_checked(seg, ea, len, write)
        } else {
            Ok(Gva(ea.wrapping_add(self.seg_base[seg & 7])))
        }
    }

    #[inline(never)]
    fn linear_checked(&mut self, seg: usize, ea: u64, len: u64, write: bool) -> Result<Gva, Exception> {
        let fault = if seg == SS { Exception::SS0 } else { Exception::GP0 };
        if self.code_size == CodeSize::Bits64 {
            let gva = self.mmu.masked(Gva(ea.wrapping_add(self.seg_base[seg & 7]))).0;
            // Canonical form is a #GP or #SS, which comes before #AC.
            if is_canonical(gva, self.mmu.virtual_bits()) {
                self.check_linear(gva, len, write)?;
            }
            return Ok(Gva(gva));
        }
        let segment = &self.seg[seg];
        let attributes = segment.attributes;
        if self.protected() {
            let allowed = if write { attributes.is_writable() } else { attributes.is_readable() };
            if !attributes.present() || !allowed {
                return Err(fault);
            }
        }
        let limit = u64::from(segment.limit);
        let last = ea.wrapping_add(len - 1);
        let inside = if attributes.is_expand_down() && self.protected() {
            let top = if attributes.big() { 0xffff_ffff } else { 0xffff };
            ea > limit && last <= top && last >= ea
        } else {
            last <= limit && last >= ea
        };
        if !inside {
            return Err(fault);
        }
        let gva = segment.base.wrapping_add(ea) & 0xffff_ffff;
        self.check_linear(gva, len, write)?;
        Ok(Gva(gva))
    }

    /// #AC where CR0.AM, RFLAGS.AC and CPL 3 ask for it; data breakpoints. ([`Cpu::checked`] is set whenever either is armed.)
    fn check_linear(&mut self, gva: u64, len: u64, write: bool) -> Result<(), Exception> {
        let armed = self.cpl == 3 && self.cr0.alignment_mask() && self.system_flags.alignment_check();
        if armed && matches!(len, 2 | 4 | 8) && gva & (len - 1) != 0 {
            return Err(Exception::coded(Vector::AlignmentCheck, 0));
        }
        if self.careful {
            self.note_data_access(gva, len, write);
        }
        Ok(())
    }

    /// RSP, ESP or SP: the part that addresses the stack.
    #[inline(always)]
    #[must_use]
    pub fn stack_pointer(&self) -> u64 {
        self.regs[RSP] & self.stack_mask()
    }

    /// Mask of the stack pointer's width.
    #[inline(always)]
    #[must_use]
    pub fn stack_mask(&self) -> u64 {
        match self.stack_size() {
            8 => u64::MAX,
            4 => 0xffff_ffff,
            _ => 0xffff,
        }
    }

    /// Writes the part of RSP that addresses the stack; a 32-bit stack pointer in 64-bit-capable modes clears the rest, a 16-bit one keeps it.
    #[inline(always)]
    pub fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask();
        let keep = if mask == 0xffff { self.regs[RSP] & !0xffff } else { 0 };
        self.regs[RSP] = keep | (value & mask);
    }

    /// Pushes one value.
    #[inline(always)]
    pub fn push<T: Scalar>(&mut self, value: T) -> Result<(), Exception> {
        let sp = self.regs[RSP].wrapping_sub(T::SIZE) & self.stack_mask();
        self.store(SS, sp, value)?;
        self.set_stack_pointer(sp);
        Ok(())
    }

    /// Pops one value.
    #[inline(always)]
    pub fn pop<T: Scalar>(&mut self) -> Result<T, Exception> {
        let sp = self.stack_pointer();
        let value = self.load(SS, sp)?;
        self.set_stack_pointer(sp.wrapping_add(T::SIZE));
        Ok(value)
    }
}
