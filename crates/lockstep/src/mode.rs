//! The modes of the processor that cases run in, and the segments that they begin with (APM vol. 2, 1.2 and chapter 4).
//!
//! Segments of 64-bit and of 32-bit code are flat. 16-bit code reaches 64 KiB by each of its segments, so these are
//! *windows* over the pages of a case: DS over the data, CS and ES over the code, SS over stacks and counters. In real and
//! in virtual-8086 mode everything is [`LOW`] bytes further down.

use crate::layout::{CODE, LOW, World};
use crate::random::Random;
use iced_x86::Register;
use x86::{Descriptor, Segment, Selector};

/// Selectors in the GDT: 64-bit code for CPL 0.
pub const CODE0: u16 = 0x08;
/// Data for CPL 0.
pub const DATA0: u16 = 0x10;
/// 32-bit code for CPL 3.
pub const CODE3_32: u16 = 0x1b;
/// Data for CPL 3.
pub const DATA3: u16 = 0x23;
/// 64-bit code for CPL 3.
pub const CODE3: u16 = 0x2b;
/// 32-bit code for CPL 0.
pub const CODE0_32: u16 = 0x30;
/// The TSS.
pub const TASK: u16 = 0x38;
/// The code window as 16-bit code for CPL 0.
pub const CODE0_16: u16 = 0x68;
/// The code window as 16-bit code for CPL 3.
pub const CODE3_16: u16 = 0x73;
/// The data window.
const DATA_WINDOW: u16 = 0x7b;
/// The code window as data.
const EXTRA_WINDOW: u16 = 0x83;
/// The stack window for CPL 0.
const STACK0_WINDOW: u16 = 0x88;
/// The stack window for CPL 3.
const STACK3_WINDOW: u16 = 0x93;
/// Bytes of the GDT.
pub const GDT_LEN: u16 = 0x98;

/// The GDT: what the selectors above name, and from 48h on a small data segment for CPL 3, one that is not present,
/// conforming code, and one that has not been accessed yet. `tss` is the address of the TSS, of which protected mode sees
/// the lower half.
#[must_use]
pub fn descriptors(tss: u64) -> [u64; GDT_LEN as usize / 8] {
    [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x0000_8b00_0000_0067 | (tss & 0xff_ffff) << 16 | (tss >> 24 & 0xff) << 56,
        tss >> 32,
        0x0040_f310_0000_0fff,
        0x00cf_7300_0000_ffff,
        0x00af_9f00_0000_ffff,
        0x00cf_f200_0000_ffff,
        0x0000_9b11_0000_ffff,
        0x0000_fb11_0000_ffff,
        0x0000_f310_0000_ffff,
        0x0000_f311_0000_ffff,
        0x0000_9312_0000_ffff,
        0x0000_f312_0000_ffff,
    ]
}

/// A mode of the processor, with the size of the code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// 64-bit mode.
    Long,
    /// 32-bit code in long mode.
    Compatibility,
    /// 16-bit code in long mode.
    Compatibility16,
    /// 32-bit code in protected mode.
    Protected,
    /// 16-bit code in protected mode.
    Protected16,
    /// 16-bit code of a task in protected mode that sees an 8086.
    Virtual8086,
    /// 16-bit code without protection or paging.
    Real,
}

impl Mode {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Long,
        Self::Compatibility,
        Self::Compatibility16,
        Self::Protected,
        Self::Protected16,
        Self::Virtual8086,
        Self::Real,
    ];

    /// One of them, mostly 64-bit mode.
    pub fn random(random: &mut Random) -> Self {
        match random.below(24) {
            0..15 => Self::Long,
            15..18 => Self::Compatibility,
            18 => Self::Compatibility16,
            19..22 => Self::Protected,
            22 => Self::Protected16,
            _ => random.pick(&[Self::Virtual8086, Self::Real]),
        }
    }

    /// By its name in `VITRINE_MODE`: that of the variant in lower case.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| format!("{mode:?}").eq_ignore_ascii_case(name))
    }

    /// Bits of the code.
    #[must_use]
    pub fn bits(self) -> u32 {
        match self {
            Self::Long => 64,
            Self::Compatibility | Self::Protected => 32,
            _ => 16,
        }
    }

    /// Whether long mode is active.
    #[must_use]
    pub fn is_long(self) -> bool {
        matches!(self, Self::Long | Self::Compatibility | Self::Compatibility16)
    }

    /// Whether segments are what they are in an 8086.
    #[must_use]
    pub fn is_8086(self) -> bool {
        matches!(self, Self::Virtual8086 | Self::Real)
    }

    /// The privilege levels that there are.
    #[must_use]
    pub fn levels(self) -> &'static [u8] {
        match self {
            Self::Virtual8086 => &[3],
            Self::Real => &[0],
            _ => &[0, 3],
        }
    }

    /// The root of a world's page tables.
    #[must_use]
    pub fn root(self, world: World) -> u64 {
        if self.is_long() { world.root() } else { world.pointers() }
    }

    /// What the address of a case's first byte of code is.
    #[must_use]
    pub fn code(self) -> u64 {
        if self.bits() == 16 { 0 } else { CODE }
    }

    /// Where in the linear address space this mode has the page of a case at `address`.
    #[must_use]
    pub fn linear(self, address: u64) -> u64 {
        if self.is_8086() && (LOW..2 * LOW).contains(&address) { address - LOW } else { address }
    }

    /// How an address of a case is reached: by which segment, if that is not the usual one, and at which offset.
    #[must_use]
    pub fn reach(self, address: u64) -> (Register, u64) {
        if self.bits() != 16 {
            return (Register::None, address);
        }
        let segment = match address >> 16 {
            0x11 => Register::ES,
            0x12 => Register::SS,
            _ => Register::None,
        };
        (segment, address & 0xffff)
    }

    /// Selectors of code segments that may be named by a far transfer.
    #[must_use]
    pub fn far_targets(self) -> &'static [u16] {
        match self {
            Self::Virtual8086 | Self::Real => &[0x3000, 0x3000, 0x3001, 0x2000],
            Self::Compatibility16 | Self::Protected16 => &[CODE0_16, CODE3_16, CODE3_32, 0x5b],
            _ => &[CODE0, CODE3_32, CODE3, CODE0_32],
        }
    }

    /// The selector of the code.
    #[must_use]
    pub fn code_selector(self, cpl: u8) -> u16 {
        match (self, cpl) {
            (Self::Long, 0) => CODE0,
            (Self::Long, _) => CODE3,
            (Self::Compatibility | Self::Protected, 0) => CODE0_32,
            (Self::Compatibility | Self::Protected, _) => CODE3_32,
            (Self::Compatibility16 | Self::Protected16, 0) => CODE0_16,
            (Self::Compatibility16 | Self::Protected16, _) => CODE3_16,
            (Self::Virtual8086 | Self::Real, _) => 0x3000,
        }
    }

    /// The selector of the stack.
    #[must_use]
    pub fn stack_selector(self, cpl: u8) -> u16 {
        match (self.bits(), cpl) {
            _ if self.is_8086() => 0x4000,
            (16, 0) => STACK0_WINDOW,
            (16, _) => STACK3_WINDOW,
            (_, 0) => DATA0,
            _ => DATA3,
        }
    }

    /// The segments that code at privilege level `cpl` begins with, from ES to GS.
    #[must_use]
    pub fn segments(self, cpl: u8) -> [Segment; 6] {
        let (es, ds) = match self.bits() {
            _ if self.is_8086() => (0x3000, 0x2000),
            16 => (EXTRA_WINDOW, DATA_WINDOW),
            _ if cpl == 0 => (DATA0, DATA0),
            _ => (DATA3, DATA3),
        };
        let table = descriptors(0);
        [es, self.code_selector(cpl), self.stack_selector(cpl), ds, ds, ds].map(|selector| {
            if self.is_8086() {
                let segment = Segment::real_mode(selector);
                return Segment { attributes: segment.attributes.with_dpl(cpl), ..segment };
            }
            Descriptor::from_bits(table[usize::from(selector >> 3)]).segment(Selector::from_bits(selector))
        })
    }
}
