//! How the code buffer is divided: a ring of segments of one size, which are written one after the other and emptied as a
//! whole. Each has a part for what is rarely run behind the rest.

use std::ops::Range;

/// log2 of [`BYTES`].
const SHIFT: u32 = 18;
/// Bytes in a segment. Either part has room for more than the largest region takes, and to empty it takes a millisecond
/// or two, even if it holds a little of each of some thousand pages.
pub const BYTES: usize = 1 << SHIFT;
/// So many segments there are at least.
const FEWEST: usize = 4;
/// How many sites a segment can have: no site takes less than 16 bytes of code.
pub const SITES: usize = BYTES / 16;

/// How many segments a buffer of about `bytes` has.
#[must_use]
pub fn count(bytes: usize) -> usize {
    (bytes / BYTES).max(FEWEST)
}

/// Offset of the part of segment `segment` that is rarely run: it takes a third.
fn middle(segment: usize) -> usize {
    segment * BYTES + (BYTES / 3 * 2).next_multiple_of(4096)
}

/// Offsets of the two parts of segment `segment`.
#[must_use]
pub fn parts(segment: usize) -> [Range<usize>; 2] {
    let middle = middle(segment);
    [segment * BYTES..middle, middle..(segment + 1) * BYTES]
}

/// The segment that `offset` lies in, and in which part.
#[must_use]
pub fn place(offset: usize) -> (usize, usize) {
    let segment = offset / BYTES;
    (segment, usize::from(offset >= middle(segment)))
}

/// The number of site `index` of a segment.
#[must_use]
pub fn number(segment: usize, index: usize) -> u32 {
    (segment * SITES + index) as u32
}

/// The segment of site `number`, and which one it is there.
#[must_use]
pub fn site(number: u32) -> (usize, usize) {
    (number as usize / SITES, number as usize % SITES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_fill_the_buffer() {
        assert_eq!([0, 4 << 20, 256 << 20].map(count), [4, 16, 1024]);
        let [hot, cold] = parts(3);
        assert_eq!((hot.start, hot.end, cold.end), (3 << 18, cold.start, 4 << 18));
        assert!(hot.len() > cold.len() && cold.len() > 80 << 10);
        let offsets = [hot.start - 1, hot.start, hot.end - 1, hot.end, cold.end];
        assert_eq!(offsets.map(place), [(2, 1), (3, 0), (3, 0), (3, 1), (4, 0)]);
        assert_eq!(site(number(3, 5)), (3, 5));
    }
}
