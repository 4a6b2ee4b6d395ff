//! A set of interrupt vectors, as IRR, ISR and TMR hold it.

/// A bit for each of the 256 vectors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Vectors([u32; 8]);

impl Vectors {
    fn bit(vector: u8) -> (usize, u32) {
        (usize::from(vector >> 5), 1 << (vector & 31))
    }

    pub fn has(&self, vector: u8) -> bool {
        let (word, bit) = Self::bit(vector);
        self.0[word] & bit != 0
    }

    pub fn set(&mut self, vector: u8, value: bool) {
        let (word, bit) = Self::bit(vector);
        if value {
            self.0[word] |= bit;
        } else {
            self.0[word] &= !bit;
        }
    }

    /// The highest vector in the set.
    pub fn highest(&self) -> Option<u8> {
        let (word, bits) = (0_u8..8).zip(self.0).rfind(|&(_, bits)| bits != 0)?;
        u8::try_from(bits.ilog2()).ok().map(|bit| word * 32 + bit)
    }

    /// 32 vectors from `32 * n` on, as a register shows them.
    pub fn word(&self, n: u32) -> u32 {
        self.0.get(n as usize).copied().unwrap_or(0)
    }
}
