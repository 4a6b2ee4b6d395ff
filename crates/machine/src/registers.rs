//! A vCPU's registers as a text, in the form that QEMU's users know.

use cpu::Cpu;
use std::fmt;
use x86::{Segment, TableRegister};

/// The registers at one instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registers {
    /// Which vCPU.
    pub cpu: u32,
    /// RAX … R15 in encoding order.
    pub regs: [u64; 16],
    /// RIP.
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// Current privilege level.
    pub cpl: u8,
    /// Whether it sleeps in HLT.
    pub halted: bool,
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    /// LDTR.
    pub ldtr: Segment,
    /// TR.
    pub tr: Segment,
    /// GDTR.
    pub gdtr: TableRegister,
    /// IDTR.
    pub idtr: TableRegister,
    /// CR0, CR2, CR3, CR4.
    pub cr: [u64; 4],
    /// EFER.
    pub efer: u64,
}

impl From<&Cpu> for Registers {
    fn from(cpu: &Cpu) -> Self {
        let mut regs = [0; 16];
        for (to, from) in regs.iter_mut().zip(cpu.regs) {
            *to = from;
        }
        Self {
            cpu: cpu.id,
            regs,
            rip: cpu.rip(),
            rflags: cpu.rflags().into_bits(),
            cpl: cpu.cpl,
            halted: cpu.sleeps(),
            seg: cpu.seg,
            ldtr: cpu.ldtr,
            tr: cpu.tr,
            gdtr: cpu.gdtr,
            idtr: cpu.idtr,
            cr: [cpu.cr0.into_bits(), cpu.cr2, cpu.cr3, cpu.cr4.into_bits()],
            efer: cpu.efer.into_bits(),
        }
    }
}

impl fmt::Display for Registers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 16] = [
            "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14",
            "R15",
        ];
        const SEGMENTS: [&str; 6] = ["ES", "CS", "SS", "DS", "FS", "GS"];
        writeln!(f, "CPU#{}", self.cpu)?;
        for (i, (name, value)) in NAMES.iter().zip(self.regs).enumerate() {
            let end = if i % 4 == 3 { '\n' } else { ' ' };
            write!(f, "{name}={value:016x}{end}")?;
        }
        let (rip, rflags, cpl, halted) = (self.rip, self.rflags, self.cpl, u8::from(self.halted));
        writeln!(f, "RIP={rip:016x} RFL={rflags:08x} CPL={cpl} HLT={halted}")?;
        let segments = SEGMENTS.iter().zip(&self.seg).chain([(&"LDT", &self.ldtr), (&"TR", &self.tr)]);
        for (name, segment) in segments {
            let (selector, attributes) = (segment.selector.into_bits(), segment.attributes.into_bits());
            writeln!(f, "{name:<3}={selector:04x} {:016x} {:08x} {attributes:04x}", segment.base, segment.limit)?;
        }
        for (name, table) in [("GDT", self.gdtr), ("IDT", self.idtr)] {
            writeln!(f, "{name}=     {:016x} {:08x}", table.base, table.limit)?;
        }
        let [cr0, cr2, cr3, cr4] = self.cr;
        write!(f, "CR0={cr0:08x} CR2={cr2:016x} CR3={cr3:016x} CR4={cr4:08x} EFER={:016x}", self.efer)
    }
}
