//! Exceptions as values (APM vol. 2, chapter 8; SDM vol. 3A, chapter 6).

use crate::paging::PageFaultCode;

/// The architectural exception vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the variants are the architecture's own names")]
pub enum Vector {
    DivideError = 0,
    Debug = 1,
    Nmi = 2,
    Breakpoint = 3,
    Overflow = 4,
    BoundRange = 5,
    InvalidOpcode = 6,
    DeviceNotAvailable = 7,
    DoubleFault = 8,
    CoprocessorSegment = 9,
    InvalidTss = 10,
    SegmentNotPresent = 11,
    Stack = 12,
    GeneralProtection = 13,
    PageFault = 14,
    X87 = 16,
    AlignmentCheck = 17,
    MachineCheck = 18,
    Simd = 19,
    ControlProtection = 21,
}

/// A fault or trap raised by an instruction: a value that travels up by `Result`, never a host error.
///
/// For a page fault the faulting address is kept by whoever raises it (the vCPU's `fault_address`), so that
/// this stays small enough to be returned in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Which vector is raised.
    pub vector: Vector,
    /// The error code that is pushed, for the vectors that have one.
    pub code: Option<u16>,
}

impl Exception {
    /// #DE.
    pub const DIVIDE: Self = Self::plain(Vector::DivideError);
    /// #UD.
    pub const UNDEFINED: Self = Self::plain(Vector::InvalidOpcode);
    /// #NM.
    pub const NO_FPU: Self = Self::plain(Vector::DeviceNotAvailable);
    /// #GP(0).
    pub const GP0: Self = Self::gp(0);
    /// #SS(0).
    pub const SS0: Self = Self::coded(Vector::Stack, 0);

    /// An exception without an error code.
    #[must_use]
    pub const fn plain(vector: Vector) -> Self {
        Self { vector, code: None }
    }

    /// An exception with an error code.
    #[must_use]
    pub const fn coded(vector: Vector, code: u16) -> Self {
        Self { vector, code: Some(code) }
    }

    /// #GP with `code` (0, or a selector with its low bits EXT/IDT/TI).
    #[must_use]
    pub const fn gp(code: u16) -> Self {
        Self::coded(Vector::GeneralProtection, code)
    }

    /// #PF with `code`; the address goes to the vCPU's fault address, and to CR2 on delivery.
    #[must_use]
    pub const fn page_fault(code: PageFaultCode) -> Self {
        Self::coded(Vector::PageFault, code.into_bits())
    }

    /// Whether the exception is of the contributory class of the double-fault table (APM vol. 2, 8.2.9).
    #[must_use]
    pub const fn is_contributory(self) -> bool {
        matches!(
            self.vector,
            Vector::DivideError
                | Vector::InvalidTss
                | Vector::SegmentNotPresent
                | Vector::Stack
                | Vector::GeneralProtection
                | Vector::ControlProtection
        )
    }
}

/// What a vector is called (SDM vol. 3A, table 6-1): an exception, or an interrupt of the guest's choosing.
#[must_use]
pub fn vector_name(vector: u8) -> &'static str {
    const NAMES: [&str; 22] = [
        "#DE divide error",
        "#DB debug",
        "NMI",
        "#BP breakpoint",
        "#OF overflow",
        "#BR bound range",
        "#UD invalid opcode",
        "#NM no device",
        "#DF double fault",
        "coprocessor overrun",
        "#TS invalid TSS",
        "#NP segment not present",
        "#SS stack fault",
        "#GP general protection",
        "#PF page fault",
        "reserved",
        "#MF x87 error",
        "#AC alignment check",
        "#MC machine check",
        "#XM SIMD error",
        "#VE virtualization",
        "#CP control protection",
    ];
    NAMES.get(usize::from(vector)).copied().unwrap_or(if vector < 32 { "reserved" } else { "interrupt" })
}
