//! How Parquet packs numbers (Apache Parquet, Encodings): the three ways that a trace's columns are kept. Each does a value
//! in a nanosecond or two.

use zerocopy::IntoBytes;

/// Values of a block of [`deltas`], and of each of the parts that have a width of their own.
const BLOCK: usize = 128;
const PART: usize = 32;
/// From so many equal values on [`few`] counts them.
const RUN: usize = 32;

/// An unsigned LEB128 number.
fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A signed one, whose sign is the lowest bit.
fn zigzag(value: i64, out: &mut Vec<u8>) {
    varint((value << 1 ^ value >> 63).cast_unsigned(), out);
}

/// The lowest `width` bits of each of `values`, the first one lowest.
fn pack(values: impl Iterator<Item = u64>, width: u32, out: &mut Vec<u8>) {
    let (mut bits, mut count) = (0u128, 0);
    for value in values {
        bits |= u128::from(value) << count;
        count += width;
        if count >= 64 {
            out.extend_from_slice(&(bits as u64).to_le_bytes());
            (bits, count) = (bits >> 64, count - 64);
        }
    }
    let bytes = count.div_ceil(8) as usize;
    out.extend_from_slice(bits.to_le_bytes().get(..bytes).unwrap_or_default());
}

/// The lowest `WIDTH` bits of each value of a part. All shifts are known to the compiler.
fn pack_part<const WIDTH: usize>(values: &[u64; PART], out: &mut Vec<u8>) {
    let mut words = [0u64; PART];
    for (i, value) in values.iter().enumerate() {
        let (word, shift) = (i * WIDTH / 64, i * WIDTH % 64);
        words[word] |= value << shift;
        if shift + WIDTH > 64 {
            words[word + 1] |= value >> (64 - shift);
        }
    }
    out.extend_from_slice(words[..WIDTH / 2 + WIDTH % 2].as_bytes().get(..WIDTH * PART / 8).unwrap_or_default());
}

/// Packs a part.
type Pack = fn(&[u64; PART], &mut Vec<u8>);

/// [`pack_part`] for each width.
const PACK: [Pack; 65] = {
    macro_rules! all {
        ($($width:literal)*) => { [$(pack_part::<$width>,)*] };
    }
    all!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38
        39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63 64)
};

/// DELTA_BINARY_PACKED: differences from one value to the next, less the smallest of their block.
pub(super) fn deltas(values: &[u64], out: &mut Vec<u8>) {
    varint(BLOCK as u64, out);
    varint((BLOCK / PART) as u64, out);
    varint(values.len() as u64, out);
    zigzag(values.first().map_or(0, |first| first.cast_signed()), out);
    let before = values.chunks(BLOCK);
    for (before, block) in before.zip(values.get(1..).unwrap_or_default().chunks(BLOCK)) {
        let mut differences = [0; BLOCK];
        for ((difference, value), before) in differences.iter_mut().zip(block).zip(before) {
            *difference = value.wrapping_sub(*before);
        }
        let least = differences.iter().take(block.len()).map(|difference| difference.cast_signed()).min();
        let least = least.unwrap_or_default();
        zigzag(least, out);
        for difference in differences.iter_mut().take(block.len()) {
            *difference = difference.wrapping_sub(least.cast_unsigned());
        }
        let (parts, _) = differences.as_chunks::<PART>();
        let widths: [usize; BLOCK / PART] = std::array::from_fn(|n| {
            parts.get(n).map_or(0, |part| 64 - part.iter().fold(0, |all, value| all | value).leading_zeros() as usize)
        });
        out.extend(widths.iter().map(|width| *width as u8));
        for (part, width) in parts.iter().zip(widths).take(block.len().div_ceil(PART)) {
            if let (1.., Some(pack)) = (width, PACK.get(width)) {
                pack(part, out);
            }
        }
    }
}

/// How many of `values` are `first` before one is not.
fn equal(values: &[u8], first: u8) -> usize {
    let same = values.as_chunks::<RUN>().0.iter().take_while(|chunk| **chunk == [first; RUN]).count() * RUN;
    same + values.get(same..).unwrap_or_default().iter().take(RUN).take_while(|value| **value == first).count()
}

/// The hybrid of run lengths and packed bits: for definition levels and for numbers of a dictionary's entries, all below
/// 2^`width`.
pub(super) fn few(values: &[u8], width: u32, out: &mut Vec<u8>) {
    let mut rest = values;
    while let Some(first) = rest.first() {
        let run = equal(rest, *first);
        if run >= RUN {
            varint((run as u64) << 1, out);
            out.push(*first);
            rest = rest.get(run..).unwrap_or_default();
            continue;
        }
        // Packed values come in eights; the last ones of all are filled up.
        let mut end = 8;
        while let Some(next) = rest.get(end..).filter(|next| next.len() >= 8)
            && equal(next.get(..RUN).unwrap_or_default(), next[0]) < RUN
        {
            end += 8;
        }
        if rest.len() < end + 8 {
            end = rest.len();
        }
        let groups = end.div_ceil(8);
        varint((groups as u64) << 1 | 1, out);
        let packed = rest.iter().take(end).map(|value| u64::from(*value));
        pack(packed.chain(std::iter::repeat_n(0, groups * 8 - end)), width, out);
        rest = rest.get(end..).unwrap_or_default();
    }
}

/// PLAIN: as they are.
pub(super) fn plain(values: &[u64], out: &mut Vec<u8>) {
    out.extend_from_slice(values.as_bytes());
}
