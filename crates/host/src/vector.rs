//! The guest's x87, MMX and vector registers, in the form in which the host loads and stores them.

/// x87, MMX, SSE and AVX state of a vCPU.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub struct VectorState {
    /// x87 and MMX state as a 64-bit FXSAVE image; its XMM area and MXCSR are not used.
    pub x87: [u8; 512],
    /// YMM0–YMM15; the low halves are XMM0–XMM15.
    pub ymm: [[u64; 4]; 16],
    /// MXCSR.
    pub mxcsr: u32,
}
