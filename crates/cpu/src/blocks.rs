//! The cache of decoded blocks.
//!
//! A block is known by the host address of its first byte and the code size: the same physical code is decoded once,
//! whatever its virtual address. Stores to a page with decoded code drop that page's blocks ([`memory::code`]).

use crate::Cpu;
use crate::decode::{self, Decoded, MAX_INSTRUCTION};
use crate::op::Op;
use crate::state::CodeSize;
use memory::mmu::FetchPage;
use memory::{Gva, Hva};
use rustc_hash::FxHashMap;
use std::cell::Cell;
use x86::{Exception, PAGE_SIZE};

/// Slots of the direct-mapped table in front of the map: a power of two.
const FRONT: usize = 1 << 14;
/// Bytes looked at for one block.
const MAX_BYTES: usize = 256;
/// When this many operations are cached, everything is dropped: a bound on memory (64 bytes an operation).
const MAX_CACHED_OPS: usize = 256 << 10;

/// What identifies decoded code: the host address of its first byte, with the code size in the upper byte, which no
/// host address uses. The default names nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Key(u64);

impl Key {
    #[inline(always)]
    fn new(start: Hva, size: CodeSize) -> Self {
        Self(start.0 | (size as u64) << 56)
    }

    /// The key of the code `offset` bytes into a page of which this is the first byte's.
    #[inline(always)]
    fn at(self, offset: u64) -> Self {
        Self(self.0 | offset)
    }

    fn start(self) -> Hva {
        Hva(self.0 & (u64::MAX >> 8))
    }
}

/// A sequence of operations without a branch but at its end.
///
/// Aligned so that the loop touches one cache line of it.
#[derive(Debug, Default)]
#[repr(align(32))]
pub struct Block {
    key: Key,
    /// The operations.
    pub ops: Box<[Op]>,
    /// Bytes.
    len: u16,
    /// The block's one instruction goes on in the next virtual page, whose host page is in `BlockCache::seconds`.
    crosses: bool,
    /// How often it was run, for who wants to know: see [`Block::warm`].
    heat: Cell<u16>,
}

impl Block {
    /// Its length in bytes.
    #[inline(always)]
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.len.into()
    }

    /// Counts one more run; whether there have been `enough` since this last said so, so that a translation is worth
    /// its time. (There may be several: one for each mode.)
    #[inline(always)]
    #[must_use]
    pub fn warm(&self, enough: u16) -> bool {
        let heat = self.heat.get().saturating_add(1);
        let warm = heat >= enough;
        self.heat.set(if warm { 0 } else { heat });
        warm
    }

    /// The first operation alone.
    #[must_use]
    pub fn first(&self) -> &[Op] {
        self.ops.get(..1).unwrap_or_default()
    }
}

/// The page that code was last found in: valid as long as nothing changes how code is translated.
#[derive(Debug)]
pub struct Window {
    page: Gva,
    /// Of the page's first byte.
    key: Key,
}

impl Default for Window {
    fn default() -> Self {
        // No page has this address.
        Self { page: Gva(1), key: Key::default() }
    }
}

/// Where the code at RIP was found.
#[derive(Debug)]
pub enum Found {
    /// A block of the cache, by its number.
    Cached(usize),
    /// Code that may not be cached: one instruction, decoded for this once.
    Once(Block),
}

/// Decoded blocks of one vCPU.
#[derive(Debug)]
pub struct BlockCache {
    blocks: Vec<Block>,
    free: Vec<usize>,
    map: FxHashMap<Key, usize>,
    pages: FxHashMap<Hva, Vec<usize>>,
    /// The second host page of blocks that cross pages.
    seconds: FxHashMap<usize, Hva>,
    /// By *virtual* address, so that the look-up need not wait for the translation; block numbers, which are right if
    /// the block's key is. Never blocks that cross pages.
    front: Box<[u32; FRONT]>,
    ops: usize,
    /// Blocks decoded so far.
    pub decoded: u64,
}

impl Default for BlockCache {
    fn default() -> Self {
        // Block 0 matches nothing; it is what an empty slot of the front table names.
        Self {
            blocks: vec![Block::default()],
            free: Vec::new(),
            map: FxHashMap::default(),
            pages: FxHashMap::default(),
            seconds: FxHashMap::default(),
            front: Box::new([0; FRONT]),
            ops: 0,
            decoded: 0,
        }
    }
}

impl BlockCache {
    /// A block by its number.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, number: usize) -> &Block {
        &self.blocks[number]
    }

    /// The block at `gva`, if it can be had at once.
    #[inline(always)]
    #[must_use]
    pub fn lookup(&self, cpu: &Cpu, window: &mut Window, gva: Gva) -> Option<usize> {
        if window.page != gva.page() {
            *window = Window { page: gva.page(), key: Key::new(cpu.mmu.fetch_fast(gva)?, cpu.code_size) };
        }
        let number = self.front[slot(gva)] as usize;
        (self.blocks[number].key == window.key.at(gva.offset())).then_some(number)
    }

    /// Whether the code at host address `start` has been decoded as the beginning of a block: whether it has run.
    #[must_use]
    pub fn knows(&self, start: Hva, size: CodeSize) -> bool {
        self.map.contains_key(&Key::new(start, size))
    }

    /// Finds or decodes the code at the vCPU's RIP.
    ///
    /// Errors: the exception that fetching raises.
    #[cold]
    #[inline(never)]
    pub fn find(&mut self, cpu: &mut Cpu) -> Result<Found, Exception> {
        let gva = cpu.code_address()?;
        let origin = cpu.origin();
        let FetchPage::Memory(page) =
            cpu.mmu.fetch_page(origin, gva).map_err(|fault| cpu.memory_fault(fault, false))?
        else {
            return self.decode_once(cpu, gva);
        };
        let key = Key::new(Hva(page.0 | gva.offset()), cpu.code_size);
        if let Some(&number) = self.map.get(&key) {
            if !self.blocks[number].crosses {
                self.show(gva, number);
                return Ok(Found::Cached(number));
            }
            // An instruction that crosses pages: the second page must still be the one it was decoded from.
            let next = Gva(gva.page().0.wrapping_add(PAGE_SIZE));
            let now = cpu.mmu.fetch_page(origin, next).map_err(|fault| cpu.memory_fault(fault, false))?;
            if Some(now) == self.seconds.get(&number).copied().map(FetchPage::Memory) {
                return Ok(Found::Cached(number));
            }
            self.remove(number);
        }
        self.decode(cpu, gva, key)
    }

    fn decode(&mut self, cpu: &mut Cpu, gva: Gva, key: Key) -> Result<Found, Exception> {
        let mut bytes = [0u8; MAX_BYTES];
        let origin = cpu.origin();
        let n = cpu.mmu.fetch_bytes(origin, gva, &mut bytes).map_err(|fault| cpu.memory_fault(fault, false))?;
        let size = cpu.code_size;
        let decoded = decode::block(&bytes[..n], size, &cpu.model, usize::MAX);
        if decoded.ops.is_empty() {
            return self.decode_crossing(cpu, gva, key);
        }
        cpu.mmu.protect_code(key.start(), decoded.len.max(1) as u64);
        if cpu.mmu.shared() {
            // Another vCPU may have stored there before it could be noticed.
            let mut again = [0u8; MAX_BYTES];
            let m = cpu.mmu.fetch_bytes(origin, gva, &mut again).map_err(|fault| cpu.memory_fault(fault, false))?;
            if again[..m].get(..decoded.len) != bytes.get(..decoded.len) {
                return self.decode_once(cpu, gva);
            }
        }
        if tracing::enabled!(target: "in_asm", tracing::Level::DEBUG) {
            decode::log(&bytes[..decoded.len], size, cpu.rip());
        }
        let number = self.insert(key, None, decoded);
        self.show(gva, number);
        Ok(Found::Cached(number))
    }

    /// Lets [`BlockCache::lookup`] find a block.
    fn show(&mut self, gva: Gva, number: usize) {
        self.front[slot(gva)] = u32::try_from(number).unwrap_or(0);
    }

    /// The instruction at `gva` goes on in the next page.
    fn decode_crossing(&mut self, cpu: &mut Cpu, gva: Gva, key: Key) -> Result<Found, Exception> {
        let origin = cpu.origin();
        let next = Gva(gva.page().0.wrapping_add(PAGE_SIZE));
        let FetchPage::Memory(second) =
            cpu.mmu.fetch_page(origin, next).map_err(|fault| cpu.memory_fault(fault, false))?
        else {
            return self.decode_once(cpu, gva);
        };
        let (bytes, n, first) = fetch_across(cpu, gva)?;
        let decoded = decode::block(&bytes[..n], cpu.code_size, &cpu.model, 1);
        let len = decoded.len as u64;
        cpu.mmu.protect_code(key.start(), first as u64);
        cpu.mmu.protect_code(second, len.saturating_sub(first as u64).max(1));
        if cpu.mmu.shared() && fetch_across(cpu, gva)?.0.get(..decoded.len) != bytes.get(..decoded.len) {
            return self.decode_once(cpu, gva);
        }
        Ok(Found::Cached(self.insert(key, Some(second), decoded)))
    }

    /// One instruction from memory that is not plain, or that somebody watches.
    fn decode_once(&self, cpu: &mut Cpu, gva: Gva) -> Result<Found, Exception> {
        let (bytes, n, _) = fetch_across(cpu, gva)?;
        let decoded = decode::block(&bytes[..n], cpu.code_size, &cpu.model, 1);
        // One that a debugger stops at is fetched again when it is executed.
        if !cpu.at_breakpoint() {
            let origin = cpu.origin();
            cpu.mmu.observe_fetch(origin, gva, bytes.get(..decoded.len).unwrap_or_default());
        }
        Ok(Found::Once(Block { ops: decoded.ops.into_boxed_slice(), ..Block::default() }))
    }

    fn insert(&mut self, key: Key, second: Option<Hva>, decoded: Decoded) -> usize {
        let len = u16::try_from(decoded.len).unwrap_or(u16::MAX);
        let block =
            Block { key, ops: decoded.ops.into_boxed_slice(), len, crosses: second.is_some(), heat: Cell::new(0) };
        if self.ops + block.ops.len() > MAX_CACHED_OPS {
            self.clear();
        }
        self.decoded += 1;
        self.ops += block.ops.len();
        let number = match self.free.pop() {
            Some(number) => {
                self.blocks[number] = block;
                number
            }
            None => {
                self.blocks.push(block);
                self.blocks.len() - 1
            }
        };
        if let Some(old) = self.map.insert(key, number) {
            self.release(old);
        }
        if let Some(second) = second {
            self.seconds.insert(number, second);
        }
        for page in [Some(key.start().page()), second].into_iter().flatten() {
            self.pages.entry(page).or_default().push(number);
        }
        number
    }

    /// Drops every block that has bytes in the host page `page`.
    pub fn drop_page(&mut self, page: Hva) {
        for number in self.pages.remove(&page.page()).unwrap_or_default() {
            self.remove(number);
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        let decoded = self.decoded;
        *self = Self { decoded, ..Self::default() };
    }

    fn remove(&mut self, number: usize) {
        let key = self.blocks[number].key;
        if key != Key::default() {
            if self.map.get(&key) == Some(&number) {
                self.map.remove(&key);
            }
            self.release(number);
        }
    }

    /// Empties a block's slot, so that the front table no longer matches it.
    fn release(&mut self, number: usize) {
        let block = std::mem::take(&mut self.blocks[number]);
        self.ops -= block.ops.len();
        for page in [Some(block.key.start().page()), self.seconds.remove(&number)].into_iter().flatten() {
            if let Some(list) = self.pages.get_mut(&page) {
                list.retain(|&n| n != number);
            }
        }
        self.free.push(number);
    }
}

#[inline(always)]
fn slot(gva: Gva) -> usize {
    (gva.0 ^ gva.0 >> 14) as usize & (FRONT - 1)
}

/// Up to [`MAX_INSTRUCTION`] bytes at `gva`, from two pages if need be; also how many came from the first.
///
/// The second page is only touched if the first one's bytes do not make an instruction.
fn fetch_across(cpu: &mut Cpu, gva: Gva) -> Result<([u8; MAX_INSTRUCTION], usize, usize), Exception> {
    let mut bytes = [0u8; MAX_INSTRUCTION];
    let origin = cpu.origin();
    let first = cpu.mmu.fetch_bytes(origin, gva, &mut bytes).map_err(|fault| cpu.memory_fault(fault, false))?;
    if first == MAX_INSTRUCTION || !decode::block(&bytes[..first], cpu.code_size, &cpu.model, 1).cut {
        return Ok((bytes, first, first));
    }
    let next = Gva(gva.page().0.wrapping_add(PAGE_SIZE));
    let second =
        cpu.mmu.fetch_bytes(origin, next, &mut bytes[first..]).map_err(|fault| cpu.memory_fault(fault, false))?;
    Ok((bytes, first + second, first))
}

impl Cpu {
    /// For a tier: the instruction at RIP, which it has translated, decoded. `None`: it cannot be had now.
    pub fn decode_one(&mut self) -> Option<Op> {
        let gva = self.code_address().ok()?;
        let (bytes, n, _) = fetch_across(self, gva).ok()?;
        decode::block(bytes.get(..n)?, self.code_size, &self.model, 1).ops.pop()
    }

    /// The linear address of the instruction at RIP. Errors: #GP(0) beyond the code segment's limit.
    pub fn code_address(&self) -> Result<Gva, Exception> {
        let (rip, cs) = (self.rip(), &self.seg[crate::state::CS]);
        if self.code_size == CodeSize::Bits64 {
            return Ok(Gva(rip));
        }
        if rip > u64::from(cs.limit) {
            return Err(Exception::GP0);
        }
        Ok(Gva(cs.base.wrapping_add(rip) & 0xffff_ffff))
    }
}

#[cfg(test)]
mod tests;
