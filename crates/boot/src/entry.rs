//! The state in which a boot protocol wants the first vCPU.

use x86::{Attributes, Cr0, Cr4, Efer, Rflags, Segment, Selector, TableRegister};

/// Index of RAX in [`Entry::regs`].
pub const RAX: usize = 0;
/// Index of RBX.
pub const RBX: usize = 3;
/// Index of RSP.
pub const RSP: usize = 4;
/// Index of RSI.
pub const RSI: usize = 6;

/// Every register that differs between boot protocols. What is not here is as after reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// RAX … R15 in encoding order (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 …).
    pub regs: [u64; 16],
    /// Where execution starts.
    pub rip: u64,
    /// RFLAGS: interrupts off.
    pub rflags: Rflags,
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    /// Local descriptor table: none.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table: empty, so that an early exception is a triple fault rather than a wild jump.
    pub idtr: TableRegister,
    /// CR0.
    pub cr0: Cr0,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: Cr4,
    /// EFER.
    pub efer: Efer,
}

/// A flat 4 GiB segment, present, ring 0, accessed.
fn flat(selector: u16, kind: u8, long: bool) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector: Selector::from_bits(selector),
        attributes: Attributes::new()
            .with_kind(kind)
            .with_code_or_data(true)
            .with_present(true)
            .with_long(long)
            .with_big(!long)
            .with_granular(true),
    }
}

impl Entry {
    /// Real mode, at a physical address below 1 MiB.
    pub(crate) fn real(address: u32) -> Self {
        let data = Segment::real_mode(0);
        let code = Segment::real_mode(u16::try_from(address >> 4).unwrap_or(u16::MAX));
        Self {
            rip: u64::from(address & 0xf),
            seg: [data, code, data, data, data, data],
            idtr: TableRegister { base: 0, limit: 0x3ff },
            cr0: Cr0::new().with_extension_type(true),
            ..Self::protected(0, 0, 0)
        }
    }

    /// Flat 32-bit protected mode without paging: what PVH and multiboot ask for, but for the general registers.
    pub(crate) fn protected(code: u16, data: u16, rip: u32) -> Self {
        let cs = flat(code, 0xb, false);
        let ds = flat(data, 0x3, false);
        Self {
            regs: [0; 16],
            rip: u64::from(rip),
            rflags: Rflags::new(),
            seg: [ds, cs, ds, ds, ds, ds],
            ldtr: Segment { attributes: Attributes::new().with_kind(2).with_present(true), ..Segment::default() },
            tr: Segment {
                limit: 0x67,
                attributes: Attributes::new().with_kind(0xb).with_present(true),
                ..Segment::default()
            },
            gdtr: TableRegister::default(),
            idtr: TableRegister::default(),
            cr0: Cr0::new().with_protection(true).with_extension_type(true),
            cr3: 0,
            cr4: Cr4::new(),
            efer: Efer::new(),
        }
    }

    /// Flat 64-bit mode with paging by the four-level tables at `cr3`.
    pub(crate) fn long(code: u16, data: u16, rip: u64, cr3: u64) -> Self {
        let mut entry = Self::protected(code, data, 0);
        entry.rip = rip;
        entry.seg[1] = flat(code, 0xb, true);
        entry.cr0 = entry.cr0.with_paging(true);
        entry.cr3 = cr3;
        entry.cr4 = Cr4::new().with_physical_address_extension(true);
        entry.efer = Efer::new().with_long_mode_enable(true).with_long_mode_active(true);
        entry
    }
}
