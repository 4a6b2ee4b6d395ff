//! Translated code: what has been translated, and how it is found again and dropped.
//!
//! Code is known by the host address of its page, the offset in it, and the mode it was translated for, so that all
//! mappings of a page share it. When code in a page is overwritten all translations of the page go: whoever still
//! enters them (through the jump cache) is turned away at the door.

use crate::asm::Asm;
use crate::classify::Mode;
use crate::frame::{Frame, FrameMemory};
use crate::log::{self, Host};
use crate::perf::Perf;
use crate::region::Region;
use crate::sites::{Kind, Sites};
use crate::stats::{self, Inline, Slow, Stats};
use crate::thunks::{Reason, Thunks};
use crate::translate::{Door, Made, Translator};
use cpu::cpuid::Model;
use host::code::CodeBuffer;
use memory::{Gva, Hva, Mmu};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of code for each site's slot that there is room for: no site takes less code.
const CODE_PER_SITE: usize = 16;
/// Space to be left in the code buffer for a translation: more than the largest region takes.
const MARGIN: usize = 256 << 10;

/// What identifies translated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    /// Code at host address `start`, for `mode`.
    #[must_use]
    pub fn new(start: Hva, mode: Mode) -> Self {
        // No host address of user space uses the upper bits.
        Self(start.0 | mode.bits() << 56)
    }
}

/// A vCPU's translated code.
#[derive(Debug)]
pub struct Cache {
    /// The code itself.
    pub code: CodeBuffer,
    /// What translated code reaches.
    pub frame: Arc<FrameMemory>,
    /// Shared code.
    pub thunks: Thunks,
    /// Where code can be left.
    pub sites: Sites,
    /// What was counted.
    pub stats: Stats,
    doors: HashMap<Key, Door>,
    pages: HashMap<Hva, Page>,
    translator: Translator,
    /// Whether translated code counts, see `stats`.
    counting: bool,
    /// Who is told where code is.
    perf: Option<Arc<Perf>>,
}

/// What was translated from a page.
#[derive(Debug)]
struct Page {
    /// The doors.
    keys: Vec<Key>,
    /// At which places instructions were translated: a bit each.
    starts: Box<[u64; 64]>,
}

impl Default for Page {
    fn default() -> Self {
        Self { keys: Vec::new(), starts: Box::new([0; 64]) }
    }
}

impl Page {
    /// Notes that the instruction at `offset` was translated; whether it is the first time.
    fn note(&mut self, offset: u16) -> bool {
        let bit = 1 << (offset & 63);
        let word = self.starts.get_mut(usize::from(offset >> 6));
        word.is_some_and(|word| std::mem::replace(word, *word | bit) & bit == 0)
    }
}

impl Cache {
    /// An empty cache for `bytes` of code.
    ///
    /// # Errors
    /// No memory.
    pub fn new(bytes: usize) -> Result<Self, host::Error> {
        let bytes = bytes.max(4 * MARGIN);
        let counting = stats::counting();
        let code = CodeBuffer::translated(bytes)?;
        let frame = FrameMemory::new(bytes / CODE_PER_SITE)?;
        let mut cache = Self {
            code,
            frame,
            thunks: Thunks::default(),
            sites: Sites::default(),
            stats: Stats::default(),
            doors: HashMap::new(),
            pages: HashMap::new(),
            translator: Translator::new(counting, log::enabled()),
            counting,
            perf: None,
        };
        cache.prepare();
        Ok(cache)
    }

    fn prepare(&mut self) {
        // There is room: the buffer is empty.
        self.thunks = Thunks::emit(&mut self.code, self.counting).unwrap_or_default();
        let resume = self.host(self.thunks.fault);
        // SAFETY: no translated code runs, so that this thread alone uses the frame.
        let frame: &mut Frame = unsafe { &mut *self.frame.frame() };
        frame.landing.resume = resume;
        frame.host_mxcsr = host::vector::MXCSR_DEFAULT;
        self.frame.start();
    }

    /// Has `perf` told where code is, from now on.
    pub fn record(&mut self, perf: Arc<Perf>) {
        let start = self.code.start();
        // SAFETY: the first `used` bytes of the view were written when the code was appended, and stay while the buffer
        // lives; whoever could change them needs `&mut self`.
        let thunks = unsafe { std::slice::from_raw_parts(start, self.code.used()) };
        perf.shared(start.addr() as u64, thunks);
        self.perf = Some(perf);
    }

    /// What was counted.
    #[must_use]
    pub fn counted(&self) -> Stats {
        // SAFETY: no translated code runs, so that this thread alone uses the frame.
        let inline: Inline = unsafe { (*self.frame.frame()).inline };
        Stats { inline: self.counting.then_some(inline), ..self.stats.clone() }
    }

    /// The host address of `offset` in the code buffer.
    #[inline(always)]
    #[must_use]
    pub fn host(&self, offset: usize) -> u64 {
        (self.code.start().addr() + offset) as u64
    }

    /// The way into translated code.
    #[must_use]
    pub fn door(&self, key: Key) -> Option<Door> {
        self.doors.get(&key).copied()
    }

    /// Translates the code at `gva`, in the page of `bytes`, whose host address is `page`; they may go on into the next
    /// page, which is then `second`. `known` tells which other places in the page have run. `None`: it cannot be.
    pub fn translate(
        &mut self,
        (page, second): (Hva, Option<Hva>),
        bytes: &[u8],
        gva: Gva,
        model: &Model,
        mode: Mode,
        known: impl Fn(u16) -> bool,
    ) -> Option<(Region, Door)> {
        if self.code.used() + MARGIN > self.code.capacity() || self.sites.len() + MARGIN / CODE_PER_SITE > self.slots()
        {
            self.clear();
        }
        let start = Instant::now();
        let offset = u16::try_from(gva.offset()).ok()?;
        let origin = self.code.used();
        let region = Region::build(bytes, offset, model, mode, known)?;
        let translated = self.translator.translate(&region, origin, &self.thunks, &mut self.sites);
        let Made { code, doors, listing } = translated.inspect_err(|_| self.stats.refused += 1).ok()?;
        self.sites.name(&region);
        self.code.append(code)?;
        self.stats.time += start.elapsed();
        let (length, base) = (code.len(), self.code.start().addr() as u64);
        if let Some(perf) = &self.perf {
            perf.region(gva, base + origin as u64, code);
        }
        let host = Host { code, origin, base, thunks: &self.thunks };
        log::region(&region, gva.page().0, listing, &host);
        let mut own = None;
        for mut door in doors {
            door.second = second.filter(|_| region.crosses());
            let key = Key::new(Hva(page.0 | u64::from(door.offset)), mode);
            if door.offset == offset {
                own = Some(door);
            }
            // What is there already stays: it may be running, and others may jump to it.
            if door.offset == offset || !self.doors.contains_key(&key) {
                if let Some(old) = self.doors.insert(key, door) {
                    self.turn_away(old);
                }
                for page in [Some(page), door.second].into_iter().flatten() {
                    self.pages.entry(page).or_default().keys.push(key);
                }
            }
        }
        let known = self.pages.entry(page).or_default();
        for insn in region.blocks.iter().flat_map(|block| &block.insns) {
            self.stats.instructions += 1;
            self.stats.guest_bytes += insn.i.len() as u64;
            self.stats.distinct += u64::from(known.note(insn.offset));
        }
        self.stats.regions += 1;
        self.stats.bytes += length as u64;
        Some((region, own?))
    }

    fn slots(&self) -> usize {
        self.code.capacity() / CODE_PER_SITE
    }

    /// Makes the jump at `patch` go straight to `target`, both offsets in the code buffer.
    pub fn link(&mut self, patch: u32, target: u32) {
        let relative = i64::from(target) - (i64::from(patch) + 4);
        if let Ok(relative) = i32::try_from(relative) {
            self.code.patch(patch as usize, &relative.to_le_bytes());
            self.stats.links += 1;
        }
    }

    /// Counts that site `number`, which is `kind`, was left for `reason`. For an access at `gva`: why it is slow.
    pub fn leave(&mut self, mmu: &Mmu, reason: Reason, number: u32, kind: &Kind, gva: Gva) -> Option<Slow> {
        if let (Reason::Access, Kind::Access { size, write }) = (reason, *kind) {
            return Some(Slow::of(mmu, gva, size.into(), write));
        }
        let (mnemonic, class) = self.sites.named(number)?;
        self.stats.left(reason, mnemonic, class);
        None
    }

    /// Drops what was translated from the host page `page`.
    pub fn drop_page(&mut self, page: Hva) {
        for key in self.pages.remove(&page).unwrap_or_default().keys {
            if let Some(door) = self.doors.remove(&key) {
                self.turn_away(door);
            }
        }
    }

    /// Lets who enters by `door`, known from the jump cache, look for other code.
    fn turn_away(&mut self, door: Door) {
        let mut asm = Asm::default();
        asm.reset(door.outer as usize);
        asm.jmp_to(self.thunks.stale);
        if let Some(bytes) = asm.finish() {
            self.code.patch(door.outer as usize, bytes);
        }
        self.stats.dropped += 1;
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.doors.clear();
        self.pages.clear();
        self.sites = Sites::default();
        self.frame.forget_jumps();
        self.code.clear();
        self.stats.flushes += 1;
        self.prepare();
    }
}

#[cfg(test)]
mod tests;
