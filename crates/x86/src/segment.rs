//! Selectors, descriptors and cached segments (APM vol. 2, chapter 4).

use bitfield_struct::bitfield;

/// A segment selector.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Selector {
    /// RPL.
    #[bits(2)]
    pub rpl: u8,
    /// TI: the local table.
    pub local: bool,
    /// Index into the table.
    #[bits(13)]
    pub index: u16,
}

impl Selector {
    /// Whether this is a null selector (index 0 of the GDT, whatever the RPL).
    #[must_use]
    pub const fn is_null(self) -> bool {
        self.into_bits() & !3 == 0
    }

    /// Byte offset of the descriptor in its table.
    #[must_use]
    pub const fn offset(self) -> u16 {
        self.into_bits() & !7
    }

    /// The selector as an error code: index and TI, without the RPL.
    #[must_use]
    pub const fn error_code(self) -> u16 {
        self.into_bits() & !3
    }
}

/// Attributes of a segment as the hidden part of a segment register keeps them: descriptor bits 40–47 and 52–55.
#[bitfield(u16)]
#[derive(PartialEq, Eq)]
pub struct Attributes {
    /// Type: bit 3 says code; for data W is bit 1 and E bit 2; for code R is bit 1 and C bit 2; bit 0 is A.
    #[bits(4)]
    pub kind: u8,
    /// S: a code or data segment, not a system one.
    pub code_or_data: bool,
    /// DPL.
    #[bits(2)]
    pub dpl: u8,
    /// P.
    pub present: bool,
    /// AVL.
    pub available: bool,
    /// L: 64-bit code.
    pub long: bool,
    /// D/B: 32-bit default size.
    pub big: bool,
    /// G: the limit counts 4 KiB units.
    pub granular: bool,
    #[bits(4)]
    __: u8,
}

impl Attributes {
    /// Whether this is a code segment.
    #[must_use]
    pub const fn is_code(self) -> bool {
        self.code_or_data() && self.kind() & 8 != 0
    }

    /// Whether this is a data segment.
    #[must_use]
    pub const fn is_data(self) -> bool {
        self.code_or_data() && self.kind() & 8 == 0
    }

    /// Whether this is a data segment that may be written.
    #[must_use]
    pub const fn is_writable(self) -> bool {
        self.is_data() && self.kind() & 2 != 0
    }

    /// Whether data may be read: any data segment, or a readable code segment.
    #[must_use]
    pub const fn is_readable(self) -> bool {
        self.is_data() || (self.is_code() && self.kind() & 2 != 0)
    }

    /// Whether this is a conforming code segment.
    #[must_use]
    pub const fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    /// Whether this is an expand-down data segment.
    #[must_use]
    pub const fn is_expand_down(self) -> bool {
        self.is_data() && self.kind() & 4 != 0
    }
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, inclusive, already scaled.
    pub limit: u32,
    /// The visible selector.
    pub selector: Selector,
    /// Type and rights.
    pub attributes: Attributes,
}

impl Segment {
    /// A segment as real mode and reset leave it: base = selector × 16, 64 KiB, read/write data, present.
    #[must_use]
    pub const fn real_mode(selector: u16) -> Self {
        Self {
            base: (selector as u64) << 4,
            limit: 0xffff,
            selector: Selector::from_bits(selector),
            attributes: Attributes::new().with_kind(3).with_code_or_data(true).with_present(true),
        }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TableRegister {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, inclusive.
    pub limit: u16,
}

/// A legacy 8-byte segment descriptor.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Descriptor {
    /// Limit, bits 0–15.
    pub limit_low: u16,
    /// Base, bits 0–23.
    #[bits(24)]
    pub base_low: u32,
    /// Type, S, DPL, P.
    pub access: u8,
    /// Limit, bits 16–19.
    #[bits(4)]
    pub limit_high: u8,
    /// AVL, L, D/B, G.
    #[bits(4)]
    pub flags: u8,
    /// Base, bits 24–31.
    pub base_high: u8,
}

impl Descriptor {
    /// The 32-bit base.
    #[must_use]
    pub const fn base(self) -> u32 {
        self.base_low() | (self.base_high() as u32) << 24
    }

    /// The limit in bytes, inclusive, scaled by G.
    #[must_use]
    pub const fn limit(self) -> u32 {
        let raw = self.limit_low() as u32 | (self.limit_high() as u32) << 16;
        if self.flags() & 8 != 0 { raw << 12 | 0xfff } else { raw }
    }

    /// Type and rights.
    #[must_use]
    pub const fn attributes(self) -> Attributes {
        Attributes::from_bits(self.access() as u16 | (self.flags() as u16) << 8)
    }

    /// The hidden part that loading `selector` with this descriptor gives.
    #[must_use]
    pub const fn segment(self, selector: Selector) -> Segment {
        Segment { base: self.base() as u64, limit: self.limit(), selector, attributes: self.attributes() }
    }
}
