//! Every function against the formulas of the manuals, on edge values and on random ones.

use super::*;

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// A small generator (xorshift64*), so that failures repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

fn bit(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// Pairs of operands of `bits` bits and incoming flags.
fn cases(bits: u32) -> Vec<(u64, u64, u64)> {
    let mask = u64::MAX >> (64 - bits);
    let edges = [0, 1, 2, 15, 16, mask >> 1, (mask >> 1) + 1, mask - 1, mask];
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut cases = Vec::new();
    for a in edges {
        for b in edges {
            cases.push((a, b, 0));
            cases.push((a, b, STATUS));
        }
    }
    for _ in 0..2000 {
        let shorten = random.next() % u64::from(bits);
        cases.push((random.next() & mask, (random.next() & mask) >> shorten, random.next() & STATUS));
    }
    cases
}

macro_rules! sizes {
    ($name:ident, $body:ident: $($t:ident)*) => {
        #[test]
        fn $name() {
            $($body!($t);)*
        }
    };
}

/// PF, ZF and SF of a result.
macro_rules! zsp {
    ($t:ident, $r:expr) => {
        bit($r == 0, ZF) | bit($r >> ($t::BITS - 1) != 0, SF) | bit(($r as u8).count_ones() % 2 == 0, PF)
    };
}

macro_rules! additions {
    ($t:ident) => {
        for (a, b, f) in cases($t::BITS) {
            let (a, b, top) = (a as $t, b as $t, $t::BITS - 1);
            for (with, (r, got)) in [(0, add(a, b)), ((f & CF) as $t, adc(a, b, f))] {
                let sum = a as u128 + b as u128 + with as u128;
                assert_eq!(r, sum as $t);
                let want = zsp!($t, r)
                    | bit(sum >> $t::BITS != 0, CF)
                    | bit((a ^ b ^ r) & 16 != 0, AF)
                    | bit(((a ^ r) & (b ^ r)) >> top != 0, OF);
                assert_eq!(got & STATUS, want, "{a:x} + {b:x} + {with}");
            }
            for (with, (r, got)) in [(0, sub(a, b)), ((f & CF) as $t, sbb(a, b, f))] {
                assert_eq!(r, a.wrapping_sub(b).wrapping_sub(with));
                let want = zsp!($t, r)
                    | bit((a as u128) < b as u128 + with as u128, CF)
                    | bit((a ^ b ^ r) & 16 != 0, AF)
                    | bit(((a ^ b) & (a ^ r)) >> top != 0, OF);
                assert_eq!(got & STATUS, want, "{a:x} - {b:x} - {with}");
            }
            assert_eq!(cmp(a, b) & STATUS, sub(a, b).1 & STATUS);
            let (r, got) = neg(a);
            assert_eq!((r, got & STATUS), (a.wrapping_neg(), sub(0, a).1 & STATUS));
            let (r, got) = inc(a, f);
            assert_eq!((r, got & STATUS), (a.wrapping_add(1), add(a, 1).1 & STATUS & !CF | f & CF));
            let (r, got) = dec(a, f);
            assert_eq!((r, got & STATUS), (a.wrapping_sub(1), sub(a, 1).1 & STATUS & !CF | f & CF));
        }
    };
}
sizes!(additions_and_subtractions, additions: u8 u16 u32 u64);

macro_rules! logic {
    ($t:ident) => {
        for (a, b, _) in cases($t::BITS) {
            let (a, b) = (a as $t, b as $t);
            for (want, (r, got)) in [(a & b, and(a, b)), (a | b, or(a, b)), (a ^ b, xor(a, b))] {
                assert_eq!((r, got & (STATUS & !AF)), (want, zsp!($t, want)));
            }
            assert_eq!(test(a, b) & STATUS, and(a, b).1 & STATUS);
        }
    };
}
sizes!(logic_clears_carry_and_overflow, logic: u8 u16 u32 u64);

macro_rules! shifts {
    ($t:ident) => {
        for (a, b, f) in cases($t::BITS) {
            let (a, count, bits) = (a as $t, b as u8, $t::BITS);
            let n = u32::from(count) & if bits == 64 { 63 } else { 31 };
            let wide = u128::from(a);
            let signed = i128::from(a.cast_signed());
            let left = wide << n;
            let msb = |r: $t| u64::from(r >> (bits - 1) & 1);
            let cases = [
                (shl(a, count, f), left as $t, (left >> bits & 1) as u64, msb(left as $t) ^ (left >> bits & 1) as u64),
                (shr(a, count, f), (wide >> n) as $t, ((wide << 1) >> n & 1) as u64, msb(a)),
                (sar(a, count, f), (signed >> n) as $t, ((signed << 1) >> n & 1) as u64, 0),
            ];
            for ((r, got), want, carry, overflow) in cases {
                assert_eq!(r, want, "{a:x} by {count}");
                if n == 0 {
                    assert_eq!(got & STATUS, f, "count 0 leaves the flags");
                    continue;
                }
                assert_eq!(got & (ZF | SF | PF), zsp!($t, want));
                // CF is undefined for a SHL or SHR beyond the operand's size.
                if n <= bits {
                    assert_eq!(got & CF, carry, "carry of {a:x} by {count}");
                }
                if n == 1 {
                    assert_eq!(got & OF, overflow * OF, "overflow of {a:x}");
                }
            }
        }
    };
}
sizes!(shifts_by_masked_counts, shifts: u8 u16 u32 u64);

macro_rules! rotates {
    ($t:ident) => {
        for (a, b, f) in cases($t::BITS) {
            let (a, count, bits) = (a as $t, b as u8, $t::BITS);
            let n = u32::from(count) & if bits == 64 { 63 } else { 31 };
            let msb = |r: $t| u64::from(r >> (bits - 1) & 1);
            let next = |r: $t| u64::from(r >> (bits - 2) & 1);
            let (mut through_left, mut cf_left) = (a, f & CF);
            let (mut through_right, mut cf_right) = (a, f & CF);
            for _ in 0..n {
                (through_left, cf_left) = (through_left << 1 | cf_left as $t, msb(through_left));
                (through_right, cf_right) =
                    (through_right >> 1 | (cf_right as $t) << (bits - 1), u64::from(through_right & 1));
            }
            let (left, right) = (a.rotate_left(n), a.rotate_right(n));
            let cases = [
                (rol(a, count, f), left, u64::from(left & 1), msb(left) ^ u64::from(left & 1)),
                (ror(a, count, f), right, msb(right), msb(right) ^ next(right)),
                (rcl(a, count, f), through_left, cf_left, msb(through_left) ^ cf_left),
                (rcr(a, count, f), through_right, cf_right, msb(through_right) ^ next(through_right)),
            ];
            for ((r, got), want, carry, overflow) in cases {
                assert_eq!(r, want, "{a:x} by {count}");
                assert_eq!(got & (ZF | SF | PF | AF), f & (ZF | SF | PF | AF), "rotates write CF and OF only");
                if n == 0 {
                    assert_eq!(got & STATUS, f);
                    continue;
                }
                assert_eq!(got & CF, carry);
                if n == 1 {
                    assert_eq!(got & OF, overflow * OF);
                }
            }
        }
    };
}
sizes!(rotates_by_masked_counts, rotates: u8 u16 u32 u64);

macro_rules! double_shifts {
    ($t:ident) => {
        for (a, b, f) in cases($t::BITS) {
            let (a, b, count, bits) = (a as $t, (b as $t).rotate_left(3), b as u8, $t::BITS);
            let n = u32::from(count) & if bits == 64 { 63 } else { 31 };
            if n > bits {
                continue;
            }
            let left = ((u128::from(a) << bits | u128::from(b)) << n >> bits) as $t;
            let right = ((u128::from(b) << bits | u128::from(a)) >> n) as $t;
            let cases = [
                (shld(a, b, count, f), left, if n == 0 { 0 } else { a >> (bits - n) & 1 }),
                (shrd(a, b, count, f), right, if n == 0 { 0 } else { a >> (n - 1) & 1 }),
            ];
            for ((r, got), want, carry) in cases {
                assert_eq!(r, want, "{a:x}, {b:x} by {count}");
                if n == 0 {
                    assert_eq!(got & STATUS, f);
                    continue;
                }
                assert_eq!(got & (CF | ZF | SF | PF), u64::from(carry) | zsp!($t, want));
                if n == 1 {
                    assert_eq!(got & OF, bit((a ^ r) >> (bits - 1) != 0, OF));
                }
            }
        }
    };
}
sizes!(double_shifts_by_masked_counts, double_shifts: u16 u32 u64);

macro_rules! products {
    ($t:ident) => {
        for (a, b, _) in cases($t::BITS) {
            let (a, b) = (a as $t, b as $t);
            let wide = u128::from(a) * u128::from(b);
            let (lo, hi, got) = mul(a, b);
            assert_eq!((lo, hi), (wide as $t, (wide >> $t::BITS) as $t));
            assert_eq!(got & (CF | OF), bit(hi != 0, CF | OF));
            let wide = i128::from(a.cast_signed()) * i128::from(b.cast_signed());
            let (lo, hi, got) = imul_wide(a, b);
            assert_eq!((lo, hi), (wide as $t, (wide >> $t::BITS) as $t));
            assert_eq!(got & (CF | OF), bit(i128::from((wide as $t).cast_signed()) != wide, CF | OF));
        }
    };
}
sizes!(products_of_both_signs, products: u8 u16 u32 u64);

macro_rules! short_products {
    ($t:ident) => {
        for (a, b, _) in cases($t::BITS) {
            let (lo, _, flags) = imul_wide(a as $t, b as $t);
            let (r, got) = imul(a as $t, b as $t);
            assert_eq!((r, got & (CF | OF)), (lo, flags & (CF | OF)));
        }
    };
}
sizes!(two_operand_imul_is_the_low_half, short_products: u16 u32 u64);

macro_rules! divisions {
    ($t:ident $signed:ident $wide:ident $wide_signed:ident) => {
        for (a, b, f) in cases($t::BITS) {
            let (lo, divisor) = (a as $t, b as $t);
            for hi in [0, 1, $t::MAX, (lo ^ f as $t) % divisor.max(1), lo.rotate_left(5) % divisor.max(1) / 2] {
                let dividend = $wide::from(hi) << $t::BITS | $wide::from(lo);
                let want = dividend.checked_div(divisor.into()).and_then(|q| $t::try_from(q).ok());
                let got = div(hi, lo, divisor);
                assert_eq!(got.map(|(q, _)| q), want, "{dividend:x} / {divisor:x}");
                if let Some((_, r)) = got {
                    assert_eq!($wide::from(r), dividend % $wide::from(divisor));
                }
                let (dividend, divisor_signed) = (dividend as $wide_signed, divisor.cast_signed());
                let want = dividend.checked_div(divisor_signed.into()).and_then(|q| $signed::try_from(q).ok());
                let got = idiv(hi, lo, divisor);
                assert_eq!(got.map(|(q, _)| q.cast_signed()), want, "{dividend} / {divisor_signed}");
                if let Some((_, r)) = got {
                    assert_eq!($wide_signed::from(r.cast_signed()), dividend % $wide_signed::from(divisor_signed));
                }
            }
        }
    };
}

#[test]
fn divisions_and_their_overflows() {
    divisions!(u8 i8 u16 i16);
    divisions!(u16 i16 u32 i32);
    divisions!(u32 i32 u64 i64);
    divisions!(u64 i64 u128 i128);
}

macro_rules! bits {
    ($t:ident) => {
        for (a, b, f) in cases($t::BITS) {
            let (a, b) = (a as $t, b as $t);
            let (r, got) = bsf(a, b, f);
            assert_eq!((r, got & ZF), (if a == 0 { b } else { a.trailing_zeros() as $t }, bit(a == 0, ZF)));
            let (r, got) = bsr(a, b, f);
            assert_eq!((r, got & ZF), (if a == 0 { b } else { a.ilog2() as $t }, bit(a == 0, ZF)));
            let counts = [(tzcnt(a), a.trailing_zeros()), (lzcnt(a), a.leading_zeros())];
            for ((r, got), want) in counts {
                assert_eq!(r, want as $t);
                assert_eq!(got & (CF | ZF), bit(a == 0, CF) | bit(want == 0, ZF));
            }
            let (r, got) = popcnt(a);
            assert_eq!((r, got & STATUS), (a.count_ones() as $t, bit(a == 0, ZF)));
        }
    };
}
sizes!(bit_scans_and_counts, bits: u16 u32 u64);

/// Whatever the operands, DF, AC and TF are as a Rust program expects them afterwards.
#[test]
fn system_flags_stay() {
    for flags in [0, u64::MAX] {
        for after in [adc(1u8, 2, flags).1, inc(1u16, flags).1, rcl(1u32, 3, flags).1, bsf(0u64, 1, flags).1] {
            assert_eq!(after & (1 << 8 | 1 << 10 | 1 << 18), 0);
        }
    }
}
