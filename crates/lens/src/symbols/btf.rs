//! The types that a Linux kernel describes in its own memory: BPF's type format, as far as the members of structures go.
//!
//! Linux, `Documentation/bpf/btf.rst`: a header, the types one behind the other, numbered from 1, and strings. A member is
//! found by its structure's name and its own, also within unnamed structures and unions in it. Left out: types of modules,
//! which build on those of the kernel, bit fields, and everything but structures and unions.
//!
//! What is in memory may be anything: every offset is checked, and what does not fit is no type.

/// Types that are understood, at most; kernels have some 150,000.
const TYPES: usize = 1 << 21;
/// Unnamed structures within each other.
const DEPTH: u32 = 16;

const MAGIC: u16 = 0xeb9f;
const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// Bytes of a type before what is particular to its kind.
const HEAD: usize = 12;
/// Bytes of a member: its name, its type, and its place in bits.
const MEMBER: usize = 12;

/// Types, as bytes that have been found to be in order.
#[derive(Debug)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Where each type begins, the first of which has number 1.
    places: Vec<u32>,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Bytes of a type of this kind behind its head.
fn behind(info: u32) -> Option<usize> {
    let count = (info & 0xffff) as usize;
    Some(match info >> 24 & 0x1f {
        // Pointers, forward declarations, other names, qualifiers, functions, floats and tags.
        2 | 7..=12 | 16 | 18 => 0,
        // Integers, variables and declaration tags.
        1 | 14 | 17 => 4,
        // Arrays.
        3 => 12,
        // Structures, unions, sections of data and enumerations of 64 bits.
        STRUCT | UNION | 15 | 19 => 12 * count,
        // Enumerations and parameters.
        6 | 13 => 8 * count,
        _ => return None,
    })
}

impl<'a> Btf<'a> {
    /// The types that `bytes` describe.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let magic = u16::from_le_bytes(*bytes.first_chunk()?);
        let header = word(bytes, 4)? as usize;
        let part = |place: usize| {
            let start = header.checked_add(word(bytes, place)? as usize)?;
            bytes.get(start..start.checked_add(word(bytes, place + 4)? as usize)?)
        };
        let (types, strings) = (part(8)?, part(16)?);
        let mut places = Vec::new();
        let mut at = 0;
        while at < types.len() && places.len() < TYPES {
            places.push(u32::try_from(at).ok()?);
            at = at.checked_add(HEAD + behind(word(types, at + 4)?)?)?;
        }
        (magic == MAGIC && at == types.len()).then_some(Self { types, strings, places })
    }

    fn name(&self, at: u32) -> &'a [u8] {
        let rest = self.strings.get(at as usize..).unwrap_or_default();
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// How many bytes into structure `name` its member is that has the name of each of `members`, in their order.
    #[must_use]
    pub fn members<const N: usize>(&self, name: &str, members: [&str; N]) -> Option<[u64; N]> {
        let named = |place: &&u32| {
            let at = **place as usize;
            let structure = word(self.types, at + 4).is_some_and(|info| info >> 24 & 0x1f == STRUCT);
            structure && word(self.types, at).is_some_and(|at| self.name(at) == name.as_bytes())
        };
        let place = *self.places.iter().find(named)?;
        let mut offsets = [0; N];
        for (offset, member) in offsets.iter_mut().zip(members) {
            *offset = self.member(place, member, DEPTH)?;
        }
        Some(offsets)
    }

    /// How many bytes into the structure at `place` the member is.
    fn member(&self, place: u32, member: &str, depth: u32) -> Option<u64> {
        let (at, depth) = (place as usize, depth.checked_sub(1)?);
        let info = word(self.types, at + 4)?;
        if !matches!(info >> 24 & 0x1f, STRUCT | UNION) {
            return None;
        }
        (0..(info & 0xffff) as usize).find_map(|n| {
            let at = at + HEAD + n * MEMBER;
            let (name, kind, bits) = (word(self.types, at)?, word(self.types, at + 4)?, word(self.types, at + 8)?);
            // With the kind flag the highest eight bits are the width of a bit field.
            let bits = if info >> 31 == 0 { bits } else { bits & 0xff_ffff };
            let here = u64::from(bits / 8);
            match self.name(name) {
                b"" => {
                    let inner = *self.places.get((kind as usize).checked_sub(1)?)?;
                    Some(here + self.member(inner, member, depth)?)
                }
                found => (found == member.as_bytes()).then_some(here),
            }
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Types made by hand.
    #[derive(Default)]
    pub(crate) struct Maker {
        types: Vec<u8>,
        strings: Vec<u8>,
        count: u32,
    }

    impl Maker {
        fn string(&mut self, text: &str) -> u32 {
            if self.strings.is_empty() {
                self.strings.push(0);
            }
            if text.is_empty() {
                return 0;
            }
            let at = self.strings.len() as u32;
            self.strings.extend(text.bytes().chain([0]));
            at
        }

        fn put(&mut self, words: &[u32]) {
            self.types.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        }

        /// An integer's number.
        pub(crate) fn integer(&mut self) -> u32 {
            let name = self.string("int");
            self.put(&[name, 1 << 24, 4, 32]);
            self.count += 1;
            self.count
        }

        /// A structure's number; members by name, type and place in bytes.
        pub(crate) fn structure(&mut self, name: &str, members: &[(&str, u32, u32)]) -> u32 {
            let name = self.string(name);
            self.put(&[name, STRUCT << 24 | members.len() as u32, 64]);
            for (member, kind, at) in members {
                let member = self.string(member);
                self.put(&[member, *kind, at * 8]);
            }
            self.count += 1;
            self.count
        }

        pub(crate) fn bytes(&self) -> Vec<u8> {
            let lengths = [24, 0, self.types.len() as u32, self.types.len() as u32, self.strings.len() as u32];
            let mut bytes = vec![0x9f, 0xeb, 1, 0];
            bytes.extend(lengths.iter().flat_map(|word| word.to_le_bytes()));
            bytes.extend([&self.types[..], &self.strings].concat());
            bytes
        }
    }

    fn types() -> Vec<u8> {
        let mut maker = Maker::default();
        let integer = maker.integer();
        let inner = maker.structure("", &[("x", integer, 0), ("pgd", integer, 24)]);
        maker.structure("mm_struct", &[("count", integer, 0), ("", inner, 64), ("last", integer, 200)]);
        maker.bytes()
    }

    #[test]
    fn members_are_found_also_in_unnamed_structures() {
        let bytes = types();
        let btf = Btf::parse(&bytes).expect("it is in order");
        assert_eq!(btf.members("mm_struct", ["pgd", "count", "last"]), Some([88, 0, 200]));
        assert_eq!(btf.members("mm_struct", ["pgd", "owner"]), None);
        assert_eq!(btf.members("task_struct", ["pid"]), None);
        assert_eq!(btf.members("int", [""]), None);
    }

    #[test]
    fn structures_within_themselves_end() {
        let mut maker = Maker::default();
        maker.structure("a", &[("", 1, 0), ("b", 7, 8)]);
        let bytes = maker.bytes();
        let btf = Btf::parse(&bytes).unwrap();
        assert_eq!(btf.members("a", ["b"]), Some([8]));
        assert_eq!(btf.members("a", ["c"]), None);
    }

    #[test]
    fn what_was_tampered_with_does_no_harm() {
        let bytes = types();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                let _ = Btf::parse(&bytes).and_then(|btf| btf.members("mm_struct", ["pgd"]));
            }
            assert!(Btf::parse(&bytes[..at]).is_none());
        }
    }
}
