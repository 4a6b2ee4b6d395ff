//! How Parquet packs numbers (Apache Parquet, Encodings): the three ways that a trace's columns are kept. Each does a value
//! in a nanosecond or two.

use zerocopy::IntoBytes;

/// Values of a block of [`deltas`], and of each of its parts.
const BLOCK: usize = 128;
const PART: usize = 32;
/// From so many eights of equal values on [`few`] counts them.
const RUN: usize = 4;
/// In each byte a one.
const ONES: u64 = 0x0101_0101_0101_0101;

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

/// DELTA_BINARY_PACKED: differences from one value to the next, less the smallest of their block.
///
/// All differences of a block have the same whole number of bytes here, and what is taken off depends on that number alone:
/// so the same differences are the same bytes again, which is worth more to what compresses them than a few bits less.
pub(super) fn deltas(values: &[u64], out: &mut Vec<u8>) {
    varint(BLOCK as u64, out);
    varint((BLOCK / PART) as u64, out);
    varint(values.len() as u64, out);
    zigzag(values.first().map_or(0, |first| first.cast_signed()), out);
    let before = values.chunks(BLOCK);
    for (before, block) in before.zip(values.get(1..).unwrap_or_default().chunks(BLOCK)) {
        let mut differences = [0; BLOCK];
        let (mut least, mut most) = (i64::MAX, i64::MIN);
        for ((place, value), before) in differences.iter_mut().zip(block).zip(before) {
            let difference = value.wrapping_sub(*before).cast_signed();
            (*place, least, most) = (difference, least.min(difference), most.max(difference));
        }
        let bytes = if least == most { 0 } else { bytes(least).max(bytes(most)) };
        let base = if bytes == 0 { least } else { i64::MIN >> (64 - 8 * bytes) };
        zigzag(base, out);
        out.extend([8 * bytes as u8; BLOCK / PART]);
        // The last part that has any is filled up.
        let filled = differences.get(..block.len().next_multiple_of(PART)).unwrap_or_default();
        let puts = [put::<1>, put::<2>, put::<3>, put::<4>, put::<5>, put::<6>, put::<7>, put::<8>];
        if let Some(put) = bytes.checked_sub(1).and_then(|n| puts.get(n)) {
            put(filled, base, out);
        }
    }
}

/// How many bytes a signed number takes.
fn bytes(number: i64) -> usize {
    let sign = number ^ number >> 63;
    (65 - sign.leading_zeros() as usize).div_ceil(8)
}

/// `BYTES` bytes of each difference from `base`.
fn put<const BYTES: usize>(differences: &[i64], base: i64, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + differences.len() * BYTES, 0);
    let (places, _) = out.get_mut(start..).unwrap_or_default().as_chunks_mut::<BYTES>();
    for (place, difference) in places.iter_mut().zip(differences) {
        let bytes = difference.wrapping_sub(base).to_le_bytes();
        *place = std::array::from_fn(|n| bytes[n]);
    }
}

/// The hybrid of run lengths and packed bits: for definition levels and for numbers of a dictionary's entries, all below
/// 2^`width` and that at most 8.
pub(super) fn few(values: &[u8], width: u32, out: &mut Vec<u8>) {
    // Packed values come in eights, the last of which is filled up. Runs are of whole eights here.
    let (eights, rest) = values.as_chunks::<8>();
    let mut last = [0; 8];
    last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    let eight = |n: usize| u64::from_le_bytes(*eights.get(n).unwrap_or(&last));
    let run = |n: usize, most: usize| {
        let first = eight(n);
        let alike = first == (first & 0xff) * ONES;
        if alike { (n..eights.len()).take(most).take_while(|n| eight(*n) == first).count() } else { 0 }
    };
    let (mut at, end) = (0, values.len().div_ceil(8));
    while at < end {
        let length = run(at, usize::MAX);
        if length >= RUN {
            varint((length as u64 * 8) << 1, out);
            out.push(eight(at) as u8);
            at += length;
            continue;
        }
        let start = at;
        at += 1;
        while at < end && run(at, RUN) < RUN {
            at += 1;
        }
        varint(((at - start) as u64) << 1 | 1, out);
        for n in start..at {
            out.extend_from_slice(pack_eight(eight(n), width).to_le_bytes().get(..width as usize).unwrap_or_default());
        }
    }
}

/// The lowest `width` bits of each byte, the first one lowest.
fn pack_eight(bytes: u64, width: u32) -> u64 {
    let gap = 8 - width;
    let pairs = bytes & 0x00ff_00ff_00ff_00ff | (bytes & 0xff00_ff00_ff00_ff00) >> gap;
    let fours = pairs & 0x0000_ffff_0000_ffff | (pairs & 0xffff_0000_ffff_0000) >> (2 * gap);
    fours & 0xffff_ffff | (fours & !0xffff_ffff) >> (4 * gap)
}

/// PLAIN: as they are.
pub(super) fn plain(values: &[u64], out: &mut Vec<u8>) {
    out.extend_from_slice(values.as_bytes());
}
