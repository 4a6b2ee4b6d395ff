//! What two lanes disagree about after the same case.

use crate::lane::{Image, Lane};
use crate::layout::{ASYNC_STACK, PAGE, RAM, WRITABLE};
use crate::mode::Mode;
use cpu::Cpu;
use cpu::state::{RIP, ZERO};
use host::vector::VectorState;
use std::fmt::{self, Debug};

/// What is compared beside what always is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The x87's last instruction: FOP, FIP, FDP. Without it no instruction is generated that stores them.
    pub x87_pointers: bool,
    /// All reads and writes, but in cases with interrupts that come at any time.
    pub accesses: bool,
}

/// One thing that differs.
#[derive(Clone, Debug)]
pub struct Difference {
    pub(crate) what: String,
    values: [String; 2],
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b] = &self.values;
        write!(f, "{}: {a} / {b}", self.what)
    }
}

/// The disagreements found so far.
#[derive(Debug, Default)]
pub struct Differences(pub Vec<Difference>);

impl Differences {
    /// Notes a difference if there is one.
    pub fn add<T: PartialEq + Debug>(&mut self, what: impl Into<String>, a: T, b: T) {
        if a != b {
            self.0.push(Difference { what: what.into(), values: [format!("{a:x?}"), format!("{b:x?}")] });
        }
    }

    /// Compares all that a guest could see of two vCPUs.
    pub fn compare_cpus(&mut self, a: &Cpu, b: &Cpu, options: Options) {
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
            "r15",
        ];
        for (n, name) in NAMES.iter().enumerate() {
            self.add(*name, a.regs[n], b.regs[n]);
        }
        self.add("rip", a.regs[RIP], b.regs[RIP]);
        self.add("the register that is always zero", a.regs[ZERO], b.regs[ZERO]);
        self.add("rflags", a.rflags().into_bits(), b.rflags().into_bits());
        for (n, name) in ["es", "cs", "ss", "ds", "fs", "gs"].iter().enumerate() {
            self.add(*name, a.seg[n], b.seg[n]);
        }
        self.add("effective segment bases", a.seg_base, b.seg_base);
        self.add("ldtr, tr", [a.ldtr, a.tr], [b.ldtr, b.tr]);
        self.add("gdtr, idtr", [a.gdtr, a.idtr], [b.gdtr, b.idtr]);
        self.add("cr0", a.cr0.into_bits(), b.cr0.into_bits());
        self.add("cr2", a.cr2, b.cr2);
        self.add("cr3", a.cr3, b.cr3);
        self.add("cr4", a.cr4.into_bits(), b.cr4.into_bits());
        self.add("cr8", a.apic.task_priority(), b.apic.task_priority());
        self.add("efer", a.efer.into_bits(), b.efer.into_bits());
        self.add("xcr0", a.xcr0.into_bits(), b.xcr0.into_bits());
        self.add("pkru", a.pkru, b.pkru);
        self.add("debug registers", a.dr, b.dr);
        self.add("msrs", a.msrs, b.msrs);
        self.add("cpl, code size", (a.cpl, a.code_size), (b.cpl, b.code_size));
        self.add("halted, shadow", (a.halted, a.shadow), (b.halted, b.shadow));
        self.add("nmi blocked, debug traps", (a.nmi_blocked, a.debug_pending), (b.nmi_blocked, b.debug_pending));
        if a.stop_at.is_some() {
            self.add("instructions executed", a.instructions, b.instructions);
        }
        self.compare_vectors(&a.vector, &b.vector, options);
    }

    fn compare_vectors(&mut self, a: &VectorState, b: &VectorState, options: Options) {
        for (n, (a, b)) in a.ymm.iter().zip(&b.ymm).enumerate() {
            if a != b {
                self.add(format!("ymm{n}"), a, b);
            }
        }
        self.add("mxcsr", a.mxcsr, b.mxcsr);
        self.add("fcw", a.fcw(), b.fcw());
        self.add("fsw", status(a), status(b));
        self.add("ftw", a.ftw(), b.ftw());
        if (32..160).any(|at| a.x87[at] != b.x87[at]) {
            for i in 0..8 {
                let reversed = |vector: &VectorState| {
                    let mut value = vector.st(i);
                    value.reverse();
                    value
                };
                self.add(format!("st{i}"), reversed(a), reversed(b));
            }
        }
        if options.x87_pointers {
            self.add("x87 pointers", a.x87_pointers(), b.x87_pointers());
        }
    }

    /// Compares what witnesses saw.
    pub fn compare_accesses(&mut self, lanes: [&Lane; 2]) {
        let [Some(a), Some(b)] = lanes.map(|lane| lane.witness.as_ref()) else { return };
        let (a, b) = (a.seen(), b.seen());
        let first = a.iter().zip(b.iter()).position(|(a, b)| a != b);
        if let Some(at) = first.or_else(|| (a.len() != b.len()).then_some(a.len().min(b.len()))) {
            self.add(format!("access {at}"), a.get(at), b.get(at));
        }
    }

    /// Compares the page-table entries whose accessed and dirty bits were clear.
    pub fn compare_page_tables(&mut self, lanes: [&Lane; 2]) {
        for &at in lanes[0].cold() {
            let [a, b] = lanes.map(|lane| {
                let mut entry = [0; 8];
                lane.peek(at, &mut entry);
                u64::from_le_bytes(entry)
            });
            self.add(format!("page-table entry at guest physical {at:#x}"), a, b);
        }
    }

    /// Compares what a guest in `mode` can write, and restores it. With `all` the rest is compared too.
    pub fn compare_memory(&mut self, lanes: [&Lane; 2], mode: Mode, image: &Image, buffers: &mut Buffers, all: bool) {
        let Buffers([a, b]) = buffers;
        let ranges: &[(u64, u64)] = if mode == Mode::Real { &[(0, RAM as u64)] } else { &WRITABLE };
        for &(gpa, len) in ranges {
            let range = gpa as usize..(gpa + len) as usize;
            let (a, b, clean) = (&mut a[range.clone()], &mut b[range.clone()], &image.ram[range]);
            lanes[0].peek(gpa, a);
            lanes[1].peek(gpa, b);
            if a != b {
                self.add_memory(gpa, a, b);
            }
            lanes[0].restore(gpa, a, clean);
            lanes[1].restore(gpa, b, clean);
        }
        if all {
            lanes[0].peek(0, a);
            lanes[1].peek(0, b);
            // What is left in a stack of interrupts that come at any time says nothing.
            let [before, after] = [0..ASYNC_STACK as usize, (ASYNC_STACK + PAGE) as usize..RAM];
            self.add_memory(0, &a[before.clone()], &b[before]);
            self.add_memory(ASYNC_STACK + PAGE, &a[after.clone()], &b[after]);
        }
    }

    fn add_memory(&mut self, gpa: u64, a: &[u8], b: &[u8]) {
        let words = |bytes: &[u8]| bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let (a, b): (Vec<u64>, Vec<u64>) = (words(a), words(b));
        if let Some(n) = a.iter().zip(&b).position(|(a, b)| a != b) {
            self.add(format!("memory at guest physical {:#x}", gpa + 8 * n as u64), a[n], b[n]);
        }
    }
}

/// FSW with the summary bits that its flags ask for: they may be brought up to date late.
fn status(vector: &VectorState) -> u16 {
    let pending = vector.fsw() & !vector.fcw() & 0x3f != 0;
    vector.fsw() & !0x8080 | if pending { 0x8080 } else { 0 }
}

/// Room for the RAM of each lane.
#[derive(Debug)]
pub struct Buffers([Vec<u8>; 2]);

impl Default for Buffers {
    fn default() -> Self {
        Self([(); 2].map(|()| vec![0; RAM]))
    }
}
