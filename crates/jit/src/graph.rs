//! The graph of a page's translated blocks: where they can be entered, and which lead to which.
//!
//! Code that is translated later ends where it comes to a block that is here, and jumps there. Both are code of one page
//! and one mode, and so are dropped together.

use crate::classify::Units;
use crate::region::{Entry, Future};

/// A block's host code, for jumps from other translations of its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Where it is in the code buffer, behind its door.
    pub place: u32,
    /// Where it expects the flags.
    pub entry: Entry,
    /// What becomes of them.
    pub before: Future,
    /// The units whose registers must be loaded.
    pub units: Units,
    /// Its first instruction is one before which requests are looked for.
    pub polls: bool,
    /// Its door for who comes from the same page with the flags in the frame, if it has one.
    pub door: Option<u32>,
}

/// A block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where in the page it starts.
    pub offset: u16,
    /// The places in the page to which it leads, in this translation or out of it.
    pub to: [Option<u16>; 2],
    /// How it is entered; `None`: only by the block before it.
    pub way: Option<Way>,
}

/// The blocks of a page that were translated for one mode.
#[derive(Debug)]
pub struct Graph {
    /// In the order of their places, which are all different.
    nodes: Vec<Node>,
    /// A bit for each place at which a block can be entered.
    ways: Box<Places>,
}

impl Default for Graph {
    fn default() -> Self {
        Self { nodes: Vec::new(), ways: Box::new(Places::NONE) }
    }
}

impl Graph {
    /// The block at `offset`.
    #[must_use]
    pub fn node(&self, offset: u16) -> Option<&Node> {
        let n = self.nodes.binary_search_by_key(&offset, |node| node.offset).ok()?;
        self.nodes.get(n)
    }

    /// All blocks, in the order of their places.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The way into the block at `offset`.
    #[must_use]
    pub fn way(&self, offset: u16) -> Option<&Way> {
        if self.ways.has(offset) { self.node(offset)?.way.as_ref() } else { None }
    }

    /// Whether a block can be entered at `offset`.
    #[must_use]
    pub fn enters(&self, offset: u16) -> bool {
        self.ways.has(offset)
    }

    /// Adds a block; what was known of one at the same place is forgotten, but not a way or door if this one has none.
    pub fn insert(&mut self, mut node: Node) {
        match self.nodes.binary_search_by_key(&node.offset, |node| node.offset) {
            Ok(n) => {
                if let Some(old) = self.nodes.get_mut(n) {
                    if let (Some(way), Some(old)) = (&mut node.way, old.way) {
                        way.door = way.door.or(old.door);
                    }
                    *old = Node { way: node.way.or(old.way), ..node };
                }
            }
            Err(n) => self.nodes.insert(n, node),
        }
        if node.way.is_some() {
            self.ways.insert(node.offset);
        }
    }

    /// Notes the door that the block at `offset` has been given.
    pub fn set_door(&mut self, offset: u16, door: u32) {
        if let Ok(n) = self.nodes.binary_search_by_key(&offset, |node| node.offset)
            && let Some(way) = self.nodes.get_mut(n).and_then(|node| node.way.as_mut())
        {
            way.door = Some(door);
        }
    }
}

/// A set of places in a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places([u64; 64]);

impl Places {
    /// None.
    pub const NONE: Self = Self([0; 64]);

    /// Whether `place` is one of them.
    #[inline(always)]
    #[must_use]
    pub fn has(&self, place: u16) -> bool {
        self.0.get(usize::from(place >> 6)).is_some_and(|word| word >> (place & 63) & 1 != 0)
    }

    /// Adds `place`; whether it is new. What lies behind the page is not added.
    pub fn insert(&mut self, place: u16) -> bool {
        let bit = 1 << (place & 63);
        let word = self.0.get_mut(usize::from(place >> 6));
        word.is_some_and(|word| std::mem::replace(word, *word | bit) & bit == 0)
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.0 = [0; 64];
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> {
        self.0.iter().zip((0..).step_by(64)).flat_map(|(word, base)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros();
                (rest != 0).then(|| {
                    rest &= rest - 1;
                    base + bit as u16
                })
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAY: Way =
        Way { place: 7, entry: Entry::Dead, before: Future::KEPT, units: Units::NONE, polls: false, door: None };

    #[test]
    fn places_are_a_sorted_set() {
        let mut places = Places::NONE;
        assert!([4095, 64, 0, 63].map(|place| places.insert(place)).iter().all(|new| *new));
        assert!(!places.insert(64) && !places.insert(4096));
        assert_eq!(places.iter().collect::<Vec<_>>(), [0, 63, 64, 4095]);
        assert!(places.has(63) && !places.has(62) && !places.has(4096));
        places.clear();
        assert_eq!(places.iter().count(), 0);
    }

    #[test]
    fn a_later_block_takes_the_place_of_an_earlier_one() {
        let mut graph = Graph::default();
        let node = |offset, way| Node { offset, to: [None; 2], way };
        graph.insert(node(9, None));
        graph.insert(node(3, Some(WAY)));
        assert_eq!([3, 9, 5].map(|at| graph.node(at).is_some()), [true, true, false]);
        assert_eq!((graph.way(3), graph.way(9), graph.enters(9)), (Some(&WAY), None, false));
        graph.insert(node(9, Some(WAY)));
        graph.insert(node(3, None));
        assert_eq!((graph.way(9), graph.way(3)), (Some(&WAY), Some(&WAY)), "a way in stays");
        graph.set_door(9, 70);
        assert_eq!(graph.way(9).and_then(|way| way.door), Some(70));
    }
}
