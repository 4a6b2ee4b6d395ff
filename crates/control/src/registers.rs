//! A vCPU's registers at one instant: by name for expressions, and all of them as QEMU's `info registers` has them.

use cpu::Cpu;
use cpu::state::{CodeSize, Shadow};
use host::vector::VectorState;
use machine::{Registers, Vcpu};
use memory::{AddressSpace, Gpa, Gva};
use std::fmt::{self, Write};
use x86::{Rflags, Segment};

/// General registers by their names, in encoding order.
const GENERAL: [(&str, &str); 16] = [
    ("rax", "eax"),
    ("rcx", "ecx"),
    ("rdx", "edx"),
    ("rbx", "ebx"),
    ("rsp", "esp"),
    ("rbp", "ebp"),
    ("rsi", "esi"),
    ("rdi", "edi"),
    ("r8", "r8d"),
    ("r9", "r9d"),
    ("r10", "r10d"),
    ("r11", "r11d"),
    ("r12", "r12d"),
    ("r13", "r13d"),
    ("r14", "r14d"),
    ("r15", "r15d"),
];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// Registers, and the address space that they make.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub registers: Registers,
    pub space: AddressSpace,
    pub code_size: CodeSize,
    pub virtual_8086: bool,
    /// Where system calls enter, and where that is in guest physical memory.
    pub entry: Option<(Gva, Gpa)>,
    dr: [u64; 8],
    cr8: u8,
    kernel_gs_base: u64,
    shadow: Shadow,
    vector: Box<VectorState>,
}

fn entry(cpu: &Cpu) -> Option<(Gva, Gpa)> {
    let entry = Gva(cpu.msrs.lstar);
    Some((entry, cpu.mmu.translate(entry).filter(|_| entry.0 != 0)?))
}

impl Snapshot {
    pub fn take(vcpu: &mut Vcpu) -> Self {
        let cpu = &vcpu.cpu;
        Self {
            registers: Registers::from(cpu),
            space: cpu.mmu.address_space(),
            code_size: cpu.code_size,
            virtual_8086: cpu.system_flags.virtual_8086(),
            entry: entry(cpu),
            dr: cpu.dr,
            cr8: cpu.apic.task_priority(),
            kernel_gs_base: cpu.msrs.kernel_gs_base,
            shadow: cpu.shadow,
            vector: Box::new(cpu.vector.clone()),
        }
    }

    /// The register of this name, in lower case.
    pub fn value(&self, name: &str) -> Option<u64> {
        let Registers { regs, rip, rflags, seg, ldtr, tr, gdtr, idtr, cr, efer, .. } = &self.registers;
        if let Some((at, (whole, _))) = GENERAL.iter().enumerate().find(|(_, (a, b))| *a == name || *b == name) {
            let value = *regs.get(at)?;
            return Some(if *whole == name { value } else { value & 0xffff_ffff });
        }
        let (first, part) = name.split_once('.').unwrap_or((name, ""));
        if let Some(at) = SEGMENTS.iter().position(|segment| *segment == first) {
            return part_of(seg.get(at)?, part);
        }
        match (first, part) {
            ("ldtr", part) => part_of(ldtr, part),
            ("tr", part) => part_of(tr, part),
            ("gdtr" | "gdt", "base" | "") => Some(gdtr.base),
            ("idtr" | "idt", "base" | "") => Some(idtr.base),
            ("gdtr" | "gdt", "limit") => Some(gdtr.limit.into()),
            ("idtr" | "idt", "limit") => Some(idtr.limit.into()),
            (_, part) if !part.is_empty() => None,
            ("rip" | "pc", _) => Some(*rip),
            ("eip", _) => Some(rip & 0xffff_ffff),
            ("rflags" | "eflags", _) => Some(*rflags),
            ("cpl", _) => Some(self.registers.cpl.into()),
            ("cr0", _) => Some(cr[0]),
            ("cr2", _) => Some(cr[1]),
            ("cr3", _) => Some(cr[2]),
            ("cr4", _) => Some(cr[3]),
            ("cr8", _) => Some(self.cr8.into()),
            ("efer", _) => Some(*efer),
            ("fs_base", _) => Some(seg[4].base),
            ("gs_base", _) => Some(seg[5].base),
            ("k_gs_base", _) => Some(self.kernel_gs_base),
            ("dr0" | "dr1" | "dr2" | "dr3" | "dr6" | "dr7", _) => {
                self.dr.get(usize::from(*name.as_bytes().last()? - b'0')).copied()
            }
            _ => None,
        }
    }

    /// The registers that may hold an address, by name.
    pub fn addresses(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let Registers { regs, rip, seg, gdtr, idtr, cr, .. } = &self.registers;
        let system = [("cr2", cr[1]), ("gdt", gdtr.base), ("idt", idtr.base), ("fs", seg[4].base), ("gs", seg[5].base)];
        let general = GENERAL.iter().map(|(name, _)| *name).zip(*regs);
        std::iter::once(("rip", *rip)).chain(general).chain(system)
    }

    /// The registers that are shown again and again, by name.
    pub fn listed(&self) -> Vec<(String, String)> {
        let Registers { regs, rip, rflags, seg, cr, efer, .. } = &self.registers;
        let general = GENERAL.iter().zip(regs).map(|((name, _), value)| ((*name).to_owned(), format!("{value:016x}")));
        let system = [("rip", *rip), ("rflags", *rflags), ("cr0", cr[0]), ("cr2", cr[1]), ("cr3", cr[2])];
        let system = system.into_iter().chain([("cr4", cr[3]), ("efer", *efer)]);
        let system = system.chain([("fs_base", seg[4].base), ("gs_base", seg[5].base)]);
        let selectors = SEGMENTS.iter().zip(seg);
        let selectors =
            selectors.map(|(name, segment)| ((*name).to_owned(), format!("{:04x}", segment.selector.into_bits())));
        general.chain(system.map(|(name, value)| (name.to_owned(), format!("{value:016x}")))).chain(selectors).collect()
    }

    fn long(&self) -> bool {
        self.efer_lma() && self.registers.seg[1].attributes.long()
    }

    fn efer_lma(&self) -> bool {
        self.registers.efer & 1 << 10 != 0
    }
}

/// A segment's selector, or a part of what it caches.
fn part_of(segment: &Segment, part: &str) -> Option<u64> {
    match part {
        "" => Some(segment.selector.into_bits().into()),
        "base" => Some(segment.base),
        "limit" => Some(segment.limit.into()),
        _ => None,
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.general(f)?;
        self.system(f)?;
        self.units(f)
    }
}

/// A register as wide as the mode has it.
fn wide(f: &mut impl Write, long: bool, value: u64) -> fmt::Result {
    if long { write!(f, "{value:016x}") } else { write!(f, "{:08x}", value & 0xffff_ffff) }
}

impl Snapshot {
    fn general(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// QEMU's order of the first eight.
        const ORDER: [usize; 8] = [0, 3, 1, 2, 6, 7, 5, 4];
        let Registers { cpu, regs, rip, rflags, cpl, halted, .. } = &self.registers;
        writeln!(f, "CPU#{cpu}")?;
        let long = self.long();
        let rest = if long { 8..16 } else { 0..0 };
        for (i, at) in ORDER.into_iter().chain(rest).enumerate() {
            let name = if long { GENERAL[at].0 } else { GENERAL[at].1 };
            write!(f, "{:<3}=", name.to_uppercase())?;
            wide(f, long, regs[at])?;
            f.write_char(if i % 4 == 3 { '\n' } else { ' ' })?;
        }
        f.write_str(if long { "RIP=" } else { "EIP=" })?;
        wide(f, long, *rip)?;
        let flags = Rflags::from_bits(*rflags);
        let letter = |set: bool, letter: char| if set { letter } else { '-' };
        let letters = [
            letter(flags.direction(), 'D'),
            letter(flags.overflow(), 'O'),
            letter(flags.sign(), 'S'),
            letter(flags.zero(), 'Z'),
            letter(flags.adjust(), 'A'),
            letter(flags.parity(), 'P'),
            letter(flags.carry(), 'C'),
        ];
        let letters: String = letters.into_iter().collect();
        let (name, a20) = (if long { "RFL" } else { "EFL" }, u8::from(self.space.map().a20()));
        let (shadow, halted) = (u8::from(self.shadow != Shadow::None), u8::from(*halted));
        writeln!(f, " {name}={rflags:08x} [{letters}] CPL={cpl} II={shadow} A20={a20} SMM=0 HLT={halted}")
    }

    fn segment(&self, f: &mut fmt::Formatter<'_>, name: &str, segment: &Segment) -> fmt::Result {
        let attributes = segment.attributes;
        let bits = u64::from(attributes.into_bits());
        let units = if attributes.granular() { segment.limit >> 12 } else { segment.limit };
        // As the upper half of its descriptor.
        let flags = (bits & 0xff) << 8 | (bits >> 8 & 0xf) << 20 | u64::from(units >> 16 & 0xf) << 16;
        write!(f, "{name:<3}={:04x} ", segment.selector.into_bits())?;
        wide(f, self.long(), segment.base)?;
        write!(f, " {:08x} {flags:08x}", segment.limit)?;
        let protected = self.registers.cr[0] & 1 != 0 && !self.virtual_8086;
        if protected && attributes.present() {
            let bit = |n: u8, letter: char| if attributes.kind() >> n & 1 != 0 { letter } else { '-' };
            write!(f, " DPL={} ", attributes.dpl())?;
            match (attributes.code_or_data(), attributes.kind() & 8 != 0) {
                (false, _) => f.write_str(system_kind(attributes.kind(), self.efer_lma()))?,
                (true, true) => {
                    let size = match (attributes.long(), attributes.big()) {
                        (true, _) => "CS64",
                        (false, true) => "CS32",
                        (false, false) => "CS16",
                    };
                    write!(f, "{size} [{}{}{}]", bit(2, 'C'), bit(1, 'R'), bit(0, 'A'))?;
                }
                (true, false) => {
                    let size = if attributes.big() || self.efer_lma() { "DS  " } else { "DS16" };
                    write!(f, "{size} [{}{}{}]", bit(2, 'E'), bit(1, 'W'), bit(0, 'A'))?;
                }
            }
        }
        f.write_char('\n')
    }

    fn system(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Registers { seg, ldtr, tr, gdtr, idtr, cr, efer, .. } = &self.registers;
        let long = self.long();
        for (name, segment) in SEGMENTS.iter().zip(seg) {
            self.segment(f, &name.to_uppercase(), segment)?;
        }
        self.segment(f, "LDT", ldtr)?;
        self.segment(f, "TR", tr)?;
        for (name, table) in [("GDT", gdtr), ("IDT", idtr)] {
            write!(f, "{name}=     ")?;
            wide(f, long, table.base)?;
            writeln!(f, " {:08x}", table.limit)?;
        }
        write!(f, "CR0={:08x} CR2=", cr[0])?;
        wide(f, long, cr[1])?;
        f.write_str(" CR3=")?;
        wide(f, long, cr[2])?;
        writeln!(f, " CR4={:08x}", cr[3])?;
        let [dr0, dr1, dr2, dr3, .., dr6, dr7] = self.dr;
        writeln!(f, "DR0={dr0:016x} DR1={dr1:016x} DR2={dr2:016x} DR3={dr3:016x}")?;
        writeln!(f, "DR6={dr6:016x} DR7={dr7:016x}")?;
        writeln!(f, "EFER={efer:016x}")
    }

    /// x87 and vector registers.
    fn units(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vector = &self.vector;
        let (fcw, fsw, top, ftw) = (vector.fcw(), vector.fsw() & !0x3800, vector.x87_top(), vector.ftw());
        writeln!(f, "FCW={fcw:04x} FSW={fsw:04x} [ST={top}] FTW={ftw:02x} MXCSR={:08x}", vector.mxcsr)?;
        for physical in 0..8 {
            let [mantissa @ .., low, high] = vector.st((physical + 8 - top) & 7);
            let (mantissa, exponent) = (u64::from_le_bytes(mantissa), u16::from_le_bytes([low, high]));
            write!(f, "FPR{physical}={mantissa:016x} {exponent:04x}{}", if physical % 2 == 1 { '\n' } else { ' ' })?;
        }
        let long = self.long();
        for i in 0..if long { 16 } else { 8 } {
            let value = vector.xmm(i);
            let (high, low) = ((value >> 64) as u64, value as u64);
            write!(f, "XMM{i:02}={high:016x} {low:016x}{}", if i % 2 == 1 { '\n' } else { ' ' })?;
        }
        Ok(())
    }
}

/// What a system descriptor's type means (APM vol. 2, tables 4-5 and 4-6).
fn system_kind(kind: u8, long: bool) -> &'static str {
    match (kind & 15, long) {
        (1, false) => "TSS16-avl",
        (2, _) => "LDT",
        (3, false) => "TSS16-busy",
        (4, false) => "CallGate16",
        (5, false) => "TaskGate",
        (6, false) => "IntGate16",
        (7, false) => "TrapGate16",
        (9, true) => "TSS64-avl",
        (11, true) => "TSS64-busy",
        (12, true) => "CallGate64",
        (14, true) => "IntGate64",
        (15, true) => "TrapGate64",
        (9, false) => "TSS32-avl",
        (11, false) => "TSS32-busy",
        (12, false) => "CallGate32",
        (14, false) => "IntGate32",
        (15, false) => "TrapGate32",
        _ => "Reserved",
    }
}
