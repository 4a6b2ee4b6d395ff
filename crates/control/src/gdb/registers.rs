//! The registers that gdb sees, and their description.
//!
//! They are those of gdb's `i386:x86-64` with SSE and segment bases, and control registers in a feature of their own.

use cpu::Cpu;
use gdbstub::arch::{Arch, Registers};
use machine::Vcpu;
use std::fmt::Write;
use std::sync::LazyLock;
use x86::{Exception, Rflags, msr};

/// A register's name, its width in bits, and its type for gdb.
type Register = (&'static str, u32, &'static str);

/// gdb's order of the general registers, as indices into [`cpu::Cpu::regs`].
const GENERAL: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];

const CORE: [Register; 40] = [
    ("rax", 64, "int64"),
    ("rbx", 64, "int64"),
    ("rcx", 64, "int64"),
    ("rdx", 64, "int64"),
    ("rsi", 64, "int64"),
    ("rdi", 64, "int64"),
    ("rbp", 64, "data_ptr"),
    ("rsp", 64, "data_ptr"),
    ("r8", 64, "int64"),
    ("r9", 64, "int64"),
    ("r10", 64, "int64"),
    ("r11", 64, "int64"),
    ("r12", 64, "int64"),
    ("r13", 64, "int64"),
    ("r14", 64, "int64"),
    ("r15", 64, "int64"),
    ("rip", 64, "code_ptr"),
    ("eflags", 32, "eflags"),
    ("cs", 32, "int32"),
    ("ss", 32, "int32"),
    ("ds", 32, "int32"),
    ("es", 32, "int32"),
    ("fs", 32, "int32"),
    ("gs", 32, "int32"),
    ("st0", 80, "i387_ext"),
    ("st1", 80, "i387_ext"),
    ("st2", 80, "i387_ext"),
    ("st3", 80, "i387_ext"),
    ("st4", 80, "i387_ext"),
    ("st5", 80, "i387_ext"),
    ("st6", 80, "i387_ext"),
    ("st7", 80, "i387_ext"),
    ("fctrl", 32, "int"),
    ("fstat", 32, "int"),
    ("ftag", 32, "int"),
    ("fiseg", 32, "int"),
    ("fioff", 32, "int"),
    ("foseg", 32, "int"),
    ("fooff", 32, "int"),
    ("fop", 32, "int"),
];

const BASES: [Register; 2] = [("fs_base", 64, "int64"), ("gs_base", 64, "int64")];

const SYSTEM: [Register; 7] = [
    ("k_gs_base", 64, "int64"),
    ("cr0", 64, "int64"),
    ("cr2", 64, "int64"),
    ("cr3", 64, "int64"),
    ("cr4", 64, "int64"),
    ("cr8", 64, "int64"),
    ("efer", 64, "int64"),
];

/// Bits of RFLAGS by their names.
const FLAGS: [(&str, u32); 17] = [
    ("CF", 0),
    ("PF", 2),
    ("AF", 4),
    ("ZF", 6),
    ("SF", 7),
    ("TF", 8),
    ("IF", 9),
    ("DF", 10),
    ("OF", 11),
    ("NT", 14),
    ("RF", 16),
    ("VM", 17),
    ("AC", 18),
    ("VIF", 19),
    ("VIP", 20),
    ("ID", 21),
    ("", 1),
];

/// The registers of a vCPU, in the order of the description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Gdb {
    general: [u64; 16],
    rip: u64,
    eflags: u32,
    /// CS, SS, DS, ES, FS, GS.
    selectors: [u32; 6],
    st: [[u8; 10]; 8],
    /// From `fctrl` on.
    x87: [u32; 8],
    xmm: [u128; 16],
    mxcsr: u32,
    bases: [u64; 2],
    system: [u64; 7],
}

impl Gdb {
    pub fn of(vcpu: &mut Vcpu) -> Self {
        let cpu = &vcpu.cpu;
        let vector = &cpu.vector;
        let low = |value: u64| (value & 0xffff_ffff) as u32;
        let x87 = [
            vector.fcw().into(),
            vector.fsw().into(),
            vector.full_tags().into(),
            low(vector.fip() >> 32),
            low(vector.fip()),
            low(vector.fdp() >> 32),
            low(vector.fdp()),
            vector.fop().into(),
        ];
        Self {
            general: GENERAL.map(|at| cpu.regs[at & 15]),
            rip: cpu.rip(),
            eflags: low(cpu.rflags().into_bits()),
            selectors: [1, 2, 3, 0, 4, 5].map(|at: usize| cpu.seg[at].selector.into_bits().into()),
            st: std::array::from_fn(|i| vector.st(i)),
            x87,
            xmm: std::array::from_fn(|i| vector.xmm(i)),
            mxcsr: vector.mxcsr,
            bases: [cpu.seg[4].base, cpu.seg[5].base],
            system: [
                cpu.msrs.kernel_gs_base,
                cpu.cr0.into_bits(),
                cpu.cr2,
                cpu.cr3,
                cpu.cr4.into_bits(),
                cpu.apic.task_priority().into(),
                cpu.efer.into_bits(),
            ],
        }
    }

    /// Sets what differs on a vCPU. False: something has a value that the processor does not take, or is CS, which goes with
    /// the privilege level; nothing has been set then.
    pub fn put(&self, vcpu: &mut Vcpu) -> bool {
        let now = Self::of(vcpu);
        let put = self.selectors[0] == now.selectors[0] && self.differing(&now, &mut vcpu.cpu).is_ok();
        if !put {
            // What a processor has it takes again.
            let half = Self::of(vcpu);
            let _ = now.differing(&half, &mut vcpu.cpu);
        }
        vcpu.cpu.update_mode();
        put
    }

    /// Sets what differs from `now`, which is what there is.
    fn differing(&self, now: &Self, cpu: &mut Cpu) -> Result<(), Exception> {
        let [k_gs_base, cr0, cr2, cr3, cr4, cr8, efer] = self.system;
        let [.., now_cr0, _, now_cr3, now_cr4, now_cr8, now_efer] = now.system;
        if efer != now_efer {
            cpu.write_msr(msr::EFER, efer)?;
        }
        if cr4 != now_cr4 {
            cpu.set_cr4(cr4)?;
        }
        if cr3 != now_cr3 {
            cpu.set_cr3(cr3)?;
        }
        if cr0 != now_cr0 {
            cpu.set_cr0(cr0)?;
        }
        cpu.cr2 = cr2;
        if cr8 != now_cr8 {
            let class = u8::try_from(cr8).ok().filter(|class| *class < 16).ok_or(Exception::GP0)?;
            cpu.apic.set_task_priority(class);
        }
        // A selector brings a base, which may then be set as well.
        for (at, register) in [(1, 2), (2, 3), (3, 0), (4, 4), (5, 5)] {
            if self.selectors[at] != now.selectors[at] {
                let selector = u16::try_from(self.selectors[at]).map_err(|_| Exception::GP0)?;
                cpu.load_segment(register, selector)?;
            }
        }
        let bases = [msr::FS_BASE, msr::GS_BASE, msr::KERNEL_GS_BASE].into_iter();
        let (wanted, had) = (self.bases.iter().chain([&k_gs_base]), now.bases.iter().chain(&now.system[..1]));
        for ((number, wanted), had) in bases.zip(wanted).zip(had) {
            if wanted != had {
                cpu.write_msr(number, *wanted)?;
            }
        }
        self.units(now, cpu);
        for (at, value) in GENERAL.into_iter().zip(self.general) {
            cpu.regs[at & 15] = value;
        }
        cpu.regs[cpu::state::RIP] = self.rip;
        // VM changes how segments are to be read; that is no plain flag.
        let mask = Rflags::new().with_virtual_8086(true).into_bits();
        cpu.set_rflags(self.eflags.into(), 0x3f_7fd5 & !mask);
        Ok(())
    }

    /// The same for x87 and SSE, which take any value.
    fn units(&self, now: &Self, cpu: &mut Cpu) {
        let vector = &mut cpu.vector;
        if (self.x87, self.st) != (now.x87, now.st) {
            let [fcw, fsw, tags, fip_high, fip, fdp_high, fdp, fop] = self.x87;
            let half = |value: u32| (value & 0xffff) as u16;
            let whole = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
            vector.set_fcw(half(fcw));
            vector.set_fsw(half(fsw));
            vector.update_x87_summary();
            vector.set_full_tags(half(tags));
            vector.set_x87_pointers((half(fop) & 0x7ff, whole(fip_high, fip), whole(fdp_high, fdp)));
            for (i, value) in self.st.iter().enumerate() {
                vector.set_st(i, value);
            }
        }
        for (i, value) in self.xmm.into_iter().enumerate() {
            vector.set_xmm(i, value);
        }
        vector.mxcsr = self.mxcsr & host::vector::mxcsr_mask();
    }
}

impl Registers for Gdb {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        let mut write = |bytes: &[u8]| bytes.iter().for_each(|byte| write_byte(Some(*byte)));
        self.general.iter().for_each(|value| write(&value.to_le_bytes()));
        write(&self.rip.to_le_bytes());
        write(&self.eflags.to_le_bytes());
        self.selectors.iter().for_each(|value| write(&value.to_le_bytes()));
        self.st.iter().for_each(|value| write(value));
        self.x87.iter().for_each(|value| write(&value.to_le_bytes()));
        self.xmm.iter().for_each(|value| write(&value.to_le_bytes()));
        write(&self.mxcsr.to_le_bytes());
        self.bases.iter().chain(&self.system).for_each(|value| write(&value.to_le_bytes()));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let mut taken = Bytes(bytes);
        for value in &mut self.general {
            *value = u64::from_le_bytes(taken.take()?);
        }
        self.rip = u64::from_le_bytes(taken.take()?);
        self.eflags = u32::from_le_bytes(taken.take()?);
        for value in &mut self.selectors {
            *value = u32::from_le_bytes(taken.take()?);
        }
        for value in &mut self.st {
            *value = taken.take()?;
        }
        for value in &mut self.x87 {
            *value = u32::from_le_bytes(taken.take()?);
        }
        for value in &mut self.xmm {
            *value = u128::from_le_bytes(taken.take()?);
        }
        self.mxcsr = u32::from_le_bytes(taken.take()?);
        for value in self.bases.iter_mut().chain(&mut self.system) {
            *value = u64::from_le_bytes(taken.take()?);
        }
        Ok(())
    }
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ()> {
        let (first, rest) = self.0.split_first_chunk().ok_or(())?;
        self.0 = rest;
        Ok(*first)
    }
}

/// x86-64, the whole machine.
#[derive(Debug)]
pub(crate) enum X86 {}

impl Arch for X86 {
    type Usize = u64;
    type Registers = Gdb;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(&DESCRIPTION)
    }
}

static DESCRIPTION: LazyLock<String> = LazyLock::new(|| {
    let mut text = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\">\
         <target version=\"1.0\"><architecture>i386:x86-64</architecture>",
    );
    // Writing to a string cannot fail.
    let _ = describe(&mut text);
    text
});

fn describe(text: &mut String) -> std::fmt::Result {
    let registers = |text: &mut String, all: &[Register]| {
        all.iter().try_for_each(|(name, bits, kind)| {
            write!(text, "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\"/>")
        })
    };
    text.push_str("<feature name=\"org.gnu.gdb.i386.core\"><flags id=\"eflags\" size=\"4\">");
    for (name, bit) in FLAGS {
        write!(text, "<field name=\"{name}\" start=\"{bit}\" end=\"{bit}\"/>")?;
    }
    text.push_str("</flags>");
    registers(text, &CORE)?;
    text.push_str("</feature><feature name=\"org.gnu.gdb.i386.sse\">");
    for (id, kind, count) in [
        ("v4f", "ieee_single", 4),
        ("v2d", "ieee_double", 2),
        ("v16i8", "int8", 16),
        ("v8i16", "int16", 8),
        ("v4i32", "int32", 4),
        ("v2i64", "int64", 2),
    ] {
        write!(text, "<vector id=\"{id}\" type=\"{kind}\" count=\"{count}\"/>")?;
    }
    text.push_str("<union id=\"vec128\">");
    for (name, kind) in [
        ("v4_float", "v4f"),
        ("v2_double", "v2d"),
        ("v16_int8", "v16i8"),
        ("v8_int16", "v8i16"),
        ("v4_int32", "v4i32"),
        ("v2_int64", "v2i64"),
        ("uint128", "uint128"),
    ] {
        write!(text, "<field name=\"{name}\" type=\"{kind}\"/>")?;
    }
    text.push_str("</union>");
    for i in 0..16 {
        write!(text, "<reg name=\"xmm{i}\" bitsize=\"128\" type=\"vec128\"/>")?;
    }
    text.push_str("<reg name=\"mxcsr\" bitsize=\"32\" type=\"int\"/>");
    text.push_str("</feature><feature name=\"org.gnu.gdb.i386.segments\">");
    registers(text, &BASES)?;
    text.push_str("</feature><feature name=\"vitrine.system\">");
    registers(text, &SYSTEM)?;
    text.push_str("</feature></target>");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_come_back_as_they_went() {
        let mut registers = Gdb { rip: 0x1234_5678_9abc_def0, mxcsr: 0x1f80, ..Gdb::default() };
        for (i, value) in (1..).zip(&mut registers.general) {
            *value = 0x0101_0101_0101_0101 * i;
        }
        registers.xmm[15] = 0xfedc_ba98_7654_3210 << 64;
        registers.system[6] = 0xd01;
        let mut bytes = Vec::new();
        registers.gdb_serialize(|byte| bytes.push(byte.unwrap()));
        // The description has as many.
        let bits: u32 = CORE.iter().chain(&BASES).chain(&SYSTEM).map(|(_, bits, _)| bits).sum();
        assert_eq!(bytes.len() as u32 * 8, bits + 16 * 128 + 32);
        let mut again = Gdb::default();
        assert_eq!(again.gdb_deserialize(&bytes), Ok(()));
        assert_eq!(again, registers);
        for len in 0..bytes.len() {
            assert_eq!(Gdb::default().gdb_deserialize(&bytes[..len]), Err(()));
        }
    }
}
