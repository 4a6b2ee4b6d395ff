//! The guest's x87, MMX and vector registers, in the form in which the host loads and stores them
//! (APM vol. 2, 11.4.4 and figure 11-9; SDM vol. 1, 10.5.1).

/// Bits of MXCSR that can be set without #GP: all the architectural ones and, where the host has it, AMD's MM (bit 17).
const MXCSR_BASE: u32 = 0xffff;
/// MXCSR.MM: legacy SSE instructions accept misaligned operands (AMD).
pub const MXCSR_MISALIGNED: u32 = 1 << 17;
/// MXCSR at reset and after FNINIT's counterpart in XRSTOR: all exceptions masked, round to nearest.
pub const MXCSR_DEFAULT: u32 = 0x1f80;

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

impl Default for VectorState {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads and writes a field of the FXSAVE image.
macro_rules! field {
    ($(#[$doc:meta])* $get:ident, $set:ident: $t:ident at $offset:literal) => {
        $(#[$doc])*
        #[inline(always)]
        #[must_use]
        pub fn $get(&self) -> $t {
            let mut bytes = [0; size_of::<$t>()];
            bytes.copy_from_slice(&self.x87[$offset..$offset + size_of::<$t>()]);
            $t::from_le_bytes(bytes)
        }

        /// Sets the same.
        #[inline(always)]
        pub fn $set(&mut self, value: $t) {
            self.x87[$offset..$offset + size_of::<$t>()].copy_from_slice(&value.to_le_bytes());
        }
    };
}

impl VectorState {
    /// The state after power-up (APM vol. 2, table 14-1): FCW 0040h, all x87 registers +0.0 and valid (FTW 5555h),
    /// MXCSR 1F80h.
    #[must_use]
    pub fn new() -> Self {
        let mut state = Self { x87: [0; 512], ymm: [[0; 4]; 16], mxcsr: MXCSR_DEFAULT };
        state.set_fcw(0x40);
        state.set_ftw(0xff);
        state.set_image_mxcsr(MXCSR_DEFAULT);
        state
    }

    /// To the power-up state. (INIT leaves this state alone: do not call it for one.)
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    field! {
        /// FCW: the x87 control word.
        fcw, set_fcw: u16 at 0
    }
    field! {
        /// FSW: the x87 status word.
        fsw, set_fsw: u16 at 2
    }
    field! {
        /// The abridged tag word: a set bit for each *physical* register that is not empty.
        ftw, set_ftw: u8 at 4
    }
    field! {
        /// FOP: the last non-control instruction's opcode, 11 bits.
        fop, set_fop: u16 at 6
    }
    field! {
        /// FIP: the last non-control instruction's address. Outside 64-bit mode EIP in the low and the selector in the
        /// high half.
        fip, set_fip: u64 at 8
    }
    field! {
        /// FDP: its operand's address, likewise.
        fdp, set_fdp: u64 at 16
    }
    field! {
        /// The image's MXCSR, which must be one that FXRSTOR takes: the host's own.
        image_mxcsr, set_image_mxcsr: u32 at 24
    }

    /// FOP, FIP and FDP.
    #[inline(always)]
    #[must_use]
    pub fn x87_pointers(&self) -> (u16, u64, u64) {
        (self.fop(), self.fip(), self.fdp())
    }

    /// Sets FOP, FIP and FDP.
    #[inline(always)]
    pub fn set_x87_pointers(&mut self, (fop, fip, fdp): (u16, u64, u64)) {
        self.set_fop(fop);
        self.set_fip(fip);
        self.set_fdp(fdp);
    }

    /// FNINIT: FCW 037Fh, everything else zero and all registers empty (their contents stay).
    pub fn init_x87(&mut self) {
        self.set_fcw(0x37f);
        self.set_fsw(0);
        self.set_ftw(0);
        self.set_fop(0);
        self.set_fip(0);
        self.set_fdp(0);
    }

    /// Whether an x87 exception is pending that FCW does not mask: the next waiting x87 or MMX instruction raises #MF.
    #[inline(always)]
    #[must_use]
    pub fn x87_pending(&self) -> bool {
        self.fsw() & !self.fcw() & 0x3f != 0
    }

    /// Makes ES and B of FSW say what the exception flags and masks say, as a processor does whenever it loads them.
    pub fn update_x87_summary(&mut self) {
        let summary = if self.x87_pending() { 0x8080 } else { 0 };
        self.set_fsw(self.fsw() & !0x8080 | summary);
    }

    /// FSW.TOP.
    #[must_use]
    pub fn x87_top(&self) -> usize {
        usize::from(self.fsw() >> 11 & 7)
    }

    /// The 80 bits of ST(`i`), which in an FXSAVE image are also those of MM(`i`) when TOP is 0.
    #[must_use]
    pub fn st(&self, i: usize) -> [u8; 10] {
        let mut value = [0; 10];
        let at = 32 + 16 * (i & 7);
        value.copy_from_slice(&self.x87[at..at + 10]);
        value
    }

    /// Writes ST(`i`); its tag is left alone.
    pub fn set_st(&mut self, i: usize, value: &[u8; 10]) {
        let at = 32 + 16 * (i & 7);
        self.x87[at..at + 10].copy_from_slice(value);
        self.x87[at + 10..at + 16].fill(0);
    }

    /// The full tag word (two bits a physical register: valid, zero, special, empty), which FNSTENV shows (SDM vol. 1,
    /// 8.1.7).
    #[must_use]
    pub fn full_tags(&self) -> u16 {
        let (top, present) = (self.x87_top(), self.ftw());
        (0..8).fold(0, |tags, physical| {
            let tag = if present >> physical & 1 == 0 { 3 } else { tag(&self.st((physical + 8 - top) & 7)) };
            tags | tag << (2 * physical)
        })
    }

    /// Sets the abridged tags from a full tag word: only "empty" or not is kept.
    pub fn set_full_tags(&mut self, tags: u16) {
        let present = (0..8).filter(|i| tags >> (2 * i) & 3 != 3).fold(0, |bits, i| bits | 1 << i);
        self.set_ftw(present);
    }

    /// XMM`i`.
    #[inline(always)]
    #[must_use]
    pub fn xmm(&self, i: usize) -> u128 {
        let [lo, hi, ..] = self.ymm[i & 15];
        u128::from(hi) << 64 | u128::from(lo)
    }

    /// Writes XMM`i`, and keeps the upper half of YMM`i`, as legacy SSE does.
    #[inline(always)]
    pub fn set_xmm(&mut self, i: usize, value: u128) {
        let (lo, hi) = halves(value);
        let register = &mut self.ymm[i & 15];
        register[0] = lo;
        register[1] = hi;
    }

    /// Bits 255:128 of YMM`i`.
    #[must_use]
    pub fn ymm_high(&self, i: usize) -> u128 {
        let [.., lo, hi] = self.ymm[i & 15];
        u128::from(hi) << 64 | u128::from(lo)
    }

    /// Writes bits 255:128 of YMM`i`.
    pub fn set_ymm_high(&mut self, i: usize, value: u128) {
        let (lo, hi) = halves(value);
        let register = &mut self.ymm[i & 15];
        register[2] = lo;
        register[3] = hi;
    }
}

fn halves(value: u128) -> (u64, u64) {
    (value as u64, (value >> 64) as u64)
}

/// The tag of a register that is not empty.
fn tag(value: &[u8; 10]) -> u16 {
    let exponent = u16::from_le_bytes([value[8], value[9]]) & 0x7fff;
    let fraction_zero = value[..8].iter().all(|&byte| byte == 0);
    match exponent {
        0 if fraction_zero => 1,
        0 | 0x7fff => 2,
        _ if value[7] & 0x80 == 0 => 2,
        _ => 0,
    }
}

/// The MXCSR bits that can be set on this host: what a guest sees as MXCSR_MASK.
#[must_use]
pub fn mxcsr_mask() -> u32 {
    let misaligned = crate::features().contains(crate::Features::MISALIGN_SSE);
    MXCSR_BASE | if misaligned { MXCSR_MISALIGNED } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_up_state() {
        let state = VectorState::new();
        assert_eq!((state.fcw(), state.fsw(), state.full_tags(), state.mxcsr), (0x40, 0, 0x5555, 0x1f80));
    }

    #[test]
    fn init_empties_the_stack() {
        let mut state = VectorState::new();
        state.set_fsw(0x3800);
        state.init_x87();
        assert_eq!((state.fcw(), state.fsw(), state.full_tags()), (0x37f, 0, 0xffff));
    }

    #[test]
    fn tags_follow_physical_registers() {
        let mut state = VectorState::new();
        state.init_x87();
        // ST0 is physical register 6: 1.0; ST1 (7): infinity; ST2 (0): zero; ST3 (1): an unnormal.
        state.set_fsw(6 << 11);
        state.set_ftw(0b1100_0011);
        state.set_st(0, &[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
        state.set_st(1, &[0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x7f]);
        state.set_st(2, &[0; 10]);
        state.set_st(3, &[1, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let tags = state.full_tags();
        assert_eq!(tags, 0b10_00_11_11_11_11_10_01);
        state.set_full_tags(tags);
        assert_eq!(state.ftw(), 0b1100_0011);
    }

    #[test]
    fn summary_follows_flags_and_masks() {
        let mut state = VectorState::new();
        state.init_x87();
        state.set_fsw(0x8080 | 4);
        state.update_x87_summary();
        assert_eq!(state.fsw(), 4);
        state.set_fcw(0x37f & !4);
        state.update_x87_summary();
        assert_eq!(state.fsw(), 0x8084);
    }

    #[test]
    fn halves_of_a_register_are_apart() {
        let mut state = VectorState::new();
        state.set_xmm(3, 1 << 100 | 7);
        state.set_ymm_high(3, 5 << 64);
        assert_eq!((state.xmm(3), state.ymm_high(3)), (1 << 100 | 7, 5 << 64));
        assert_eq!(state.ymm[3], [7, 1 << 36, 0, 5]);
    }
}
