//! The symbol table that a Linux kernel carries in its own memory (`CONFIG_KALLSYMS`), found there without any file.
//!
//! Linux 6.1 and later, `scripts/kallsyms.c`: names are strings of tokens, of which a table has the 256 texts. The parts
//! are, each aligned to eight bytes,
//!
//! ```text
//! up to 6.3:  offsets  base  count  names  markers  (order)  texts  places
//! from 6.4:                  count  names  markers           texts  places  offsets  base
//! ```
//!
//! where `markers` has the place of each 256th name, `order` (from 6.2 on, and in later 6.1) three bytes for each name,
//! `places` the place of each text, and `offsets` are addresses relative to `base`, which is relocated with the kernel. The digits stand for themselves among the texts, so these are looked for,
//! and everything else must fit to them: `places` to `texts`, and all names to `markers` and `count`. Kernels whose
//! addresses are not relative (no `CONFIG_KALLSYMS_BASE_RELATIVE`, which x86 always has) are not understood.
//!
//! What is in memory may be anything: sizes are bounded, and what does not fit is no table.

use super::Table;
use memchr::memmem::Finder;
use memory::{Gpa, Gva, PhysicalMap};
use std::ops::Range;

/// How far from the kernel's code its tables are looked for.
const REACH: u64 = 128 << 20;
/// What is read at a time, and how much of it twice, since a match may lie across.
const CHUNK: u64 = 1 << 20;
const OVERLAP: u64 = 32;
/// The texts of the ten digits, and which text the first of them is.
const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";
const FIRST_DIGIT: usize = b'0' as usize;
/// How many such places are looked at.
const CANDIDATES: usize = 64;
/// The most bytes of all texts, of all names (also without tokens), of 256 names, and of one (`KSYM_NAME_LEN` is 512).
const TEXTS: usize = 16 << 10;
const NAMES: u32 = 32 << 20;
const LAST_NAMES: u64 = 64 << 10;
const NAME: usize = 1024;
/// Names for each marker.
const MARKED: usize = 256;
/// What is read before the texts: the markers of a million names, and three bytes for each.
const BEFORE: usize = 3 << 20 | 32 << 10;
/// Where x86-64 kernels live: `__START_KERNEL_map` and a gigabyte.
const KERNEL: Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_c000_0000;

/// The tables, of which `texts` are known.
struct Parts<'a> {
    map: &'a PhysicalMap,
    /// Where each text begins, from that of the first one, and where the last one ends.
    places: Vec<usize>,
    texts: Vec<u8>,
    /// Guest physical addresses of the texts, and of what comes behind the places.
    start: u64,
    end: u64,
}

/// The table of the kernel whose code is at `near` in guest physical memory, if there is one.
#[must_use]
pub fn read(map: &PhysicalMap, near: Gpa) -> Option<Table> {
    let finder = Finder::new(DIGITS);
    let mut bytes = vec![0; (CHUNK + OVERLAP) as usize];
    let mut left = CANDIDATES;
    let first = near.0.saturating_sub(REACH) & !(CHUNK - 1);
    for (Gpa(start), len) in map.ram_ranges() {
        let range = start.max(first)..(start + len).min(near.0.saturating_add(REACH));
        let mut at = range.start;
        while at < range.end {
            let wanted = (CHUNK + OVERLAP).min(start + len - at) as usize;
            let bytes = bytes.get_mut(..wanted)?;
            if map.read(Gpa(at), bytes).is_ok() {
                for found in finder.find_iter(bytes).filter(|found| (*found as u64) < CHUNK) {
                    left = left.checked_sub(1)?;
                    let table = Parts::around(map, at + found as u64).and_then(|parts| parts.table());
                    if table.is_some() {
                        return table;
                    }
                }
            }
            at += CHUNK;
        }
    }
    None
}

/// Whether these words may be markers.
fn are_markers(words: &[u32]) -> bool {
    words.len() > 1 && words.first() == Some(&0) && words.is_sorted_by(|a, b| a < b) && words.last() <= Some(&NAMES)
}

/// The markers at the end of `words`.
fn direct(words: &[u32]) -> Option<Range<usize>> {
    // Of an odd number of them a word is left over.
    let end = words.len() - usize::from(words.last() == Some(&0));
    let start = words.get(..end)?.iter().rposition(|marker| *marker == 0)?;
    (start.is_multiple_of(2) && are_markers(words.get(start..end)?)).then_some(start..end)
}

/// What may be markers with three bytes for each name between them and the end of `words`.
fn with_order(words: &[u32]) -> impl Iterator<Item = Range<usize>> {
    let ends = (0..words.len()).rev().filter(|end| end.is_multiple_of(2));
    ends.flat_map(move |end| {
        let most = (words.len() - end) * 4 / 3;
        let least = most.saturating_sub(2);
        [most, least].map(|count| {
            let markers = count.div_ceil(MARKED);
            let start = end.checked_sub(markers.next_multiple_of(2))?;
            let range = start..start + markers;
            are_markers(words.get(range.clone())?).then_some(range)
        })
    })
    .flatten()
}

fn bytes(map: &PhysicalMap, at: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    map.read(Gpa(at), &mut bytes).ok()?;
    Some(bytes)
}

fn words<const N: usize, T>(bytes: &[u8], word: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|bytes| word(*bytes)).collect()
}

impl<'a> Parts<'a> {
    /// Those whose text of the digit zero is at `zero`.
    fn around(map: &'a PhysicalMap, zero: u64) -> Option<Self> {
        let before = bytes(map, zero.checked_sub(TEXTS as u64)?, TEXTS)?;
        // Each text ends with a zero, and so does what comes before the first one.
        let mut from = before.len();
        for _ in 0..FIRST_DIGIT {
            let end = from.checked_sub(1).filter(|end| before.get(*end) == Some(&0))?;
            from = before.get(..end)?.iter().rposition(|byte| *byte == 0)? + 1;
        }
        let start = zero - (before.len() - from) as u64;
        let mut texts = bytes(map, start, TEXTS)?;
        let mut places = vec![0];
        for _ in 0..256 {
            let begin = *places.last()?;
            places.push(begin + texts.get(begin..)?.iter().position(|byte| *byte == 0)? + 1);
        }
        texts.truncate(*places.last()?);
        let index = (start + texts.len() as u64).next_multiple_of(8);
        let index = (index, words(&bytes(map, index, 512)?, u16::from_le_bytes));
        let fits = start.is_multiple_of(8) && index.1.iter().zip(&places).all(|(a, b)| usize::from(*a) == *b);
        fits.then_some(Self { map, places, texts, start, end: index.0 + 512 })
    }

    fn text(&self, token: u8) -> &[u8] {
        let (Some(from), Some(to)) = (self.places.get(usize::from(token)), self.places.get(usize::from(token) + 1))
        else {
            return &[];
        };
        self.texts.get(*from..to - 1).unwrap_or_default()
    }

    fn table(&self) -> Option<Table> {
        let len = (BEFORE as u64).min(self.start);
        let before = words(&bytes(self.map, self.start - len, usize::try_from(len).ok()?)?, u32::from_le_bytes);
        let table =
            |range: Range<usize>| self.marked(before.get(range.clone())?, self.start - len + 4 * range.start as u64);
        direct(&before).into_iter().chain(with_order(&before)).find_map(table)
    }

    /// The table whose markers are at `end`, behind the names.
    fn marked(&self, markers: &[u32], end: u64) -> Option<Table> {
        let last = u64::from(*markers.last()?);
        let latest = end.checked_sub(last)? & !7;
        let from = latest.checked_sub(LAST_NAMES + 8)?;
        let all = bytes(self.map, from, usize::try_from(end - from).ok()?)?;
        let counts = MARKED * (markers.len() - 1) + 1..=MARKED * markers.len();
        // The count of names tells where they begin.
        let starts = (8..=latest - from).rev().step_by(8);
        let found = starts.filter_map(|start| {
            let start = usize::try_from(start).ok()?;
            let count = u64::from_le_bytes(all.get(start - 8..start)?.try_into().ok()?);
            let count = usize::try_from(count).ok().filter(|count| counts.contains(count))?;
            let names = self.names(all.get(start..)?, count, markers)?;
            Some((from + start as u64, names))
        });
        found.into_iter().find_map(|(start, names)| {
            let padded = (4 * names.len() as u64).next_multiple_of(8);
            let before = start.checked_sub(16 + padded)?;
            [(before, start - 16), (self.end, self.end + padded)]
                .into_iter()
                .find_map(|(offsets, base)| self.addressed(&names, offsets, base))
        })
    }

    /// So many names, if they end where `bytes` do and lie where the markers say.
    fn names(&self, bytes: &[u8], count: usize, markers: &[u32]) -> Option<Vec<String>> {
        let mut names = Vec::with_capacity(count);
        let (mut at, mut total) = (0, 0);
        for n in 0..count {
            if n % MARKED == 0 && markers.get(n / MARKED).map(|marker| *marker as usize) != Some(at) {
                return None;
            }
            let mut len = usize::from(*bytes.get(at)?);
            at += 1;
            if len & 0x80 != 0 {
                len = len & 0x7f | usize::from(*bytes.get(at)?) << 7;
                at += 1;
            }
            let mut name = Vec::with_capacity(2 * len);
            for token in bytes.get(at..at + len)? {
                name.extend_from_slice(self.text(*token));
                if name.len() > NAME {
                    return None;
                }
            }
            at += len;
            total += name.len();
            if total > NAMES as usize {
                return None;
            }
            // The first letter is the kind of symbol, as `nm` shows it.
            names.push(String::from_utf8(name.split_off(name.len().min(1))).ok()?);
        }
        (bytes.len() - at < 8).then_some(names)
    }

    /// The names with their addresses, if these are in order and in the kernel.
    fn addressed(&self, names: &[String], offsets: u64, base: u64) -> Option<Table> {
        let base = u64::from_le_bytes(bytes(self.map, base, 8)?.try_into().ok()?);
        let offsets = words(&bytes(self.map, offsets, 4 * names.len())?, u32::from_le_bytes);
        // With CONFIG_KALLSYMS_ABSOLUTE_PERCPU (up to 6.14) an offset is an address of its own, or else negative.
        let plain = |offset: u32| base.wrapping_add(offset.into());
        let own = |offset: u32| if offset.cast_signed() >= 0 { offset.into() } else { plain(!offset) };
        let decode = |address: &dyn Fn(u32) -> u64| {
            let all: Vec<u64> = offsets.iter().map(|offset| address(*offset)).collect();
            let inside = all.iter().any(|address| KERNEL.contains(address));
            (inside && all.is_sorted()).then_some(all)
        };
        let addresses =
            Some(base).filter(|base| KERNEL.contains(base)).and_then(|_| decode(&own).or_else(|| decode(&plain)))?;
        let symbols = addresses.iter().zip(names).filter(|(address, _)| KERNEL.start <= **address);
        let table = Table::new(symbols.map(|(address, name)| (Gva(*address), name.as_str())));
        table.find("_text").or_else(|| table.find("_stext")).is_some().then_some(table)
    }
}

#[cfg(test)]
pub(crate) mod tests;
