//! The one source of chance: xorshift64*, from a seed that is printed when a case fails.

/// A random generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Seeds that differ in a bit give streams that have nothing in common (splitmix64's finisher).
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut x = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((x ^ x >> 31) | 1)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number less than `n`, which is not zero.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.bits() >> 16) % n
    }

    /// As [`Self::below`], for indices and counts.
    pub fn index(&mut self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low) as u64 + 1).cast_signed()
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `of`, which is not empty.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }

    /// One of the bits that are set in `set`, by its number.
    pub fn bit(&mut self, set: u16) -> Option<usize> {
        let count = set.count_ones();
        if count == 0 {
            return None;
        }
        let nth = self.index(count as usize);
        (0..16).filter(|bit| set >> bit & 1 != 0).nth(nth)
    }

    /// An integer that is often at an edge of some width.
    pub fn value(&mut self) -> u64 {
        const EDGES: [u64; 14] = [
            0,
            1,
            2,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            1 << 62,
            1 << 63,
        ];
        match self.below(6) {
            0 => self.pick(&EDGES),
            1 => self.pick(&EDGES).wrapping_neg(),
            2 => self.below(64),
            3 => self.bits() & 0xffff_ffff,
            _ => self.bits(),
        }
    }
}
