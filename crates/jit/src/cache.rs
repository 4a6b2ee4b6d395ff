//! Translated code: what has been translated, and how it is found again and dropped.
//!
//! Code is known by the host address of its page, the offset in it, and the mode it was translated for, so that all
//! mappings of a page share it. When code in a page is overwritten all translations of the page go: whoever still
//! enters them (through the jump cache) is turned away at the door.

use crate::asm::Asm;
use crate::classify::Mode;
use crate::frame::{Frame, FrameMemory};
use crate::graph::{Graph, Node, Places, Way};
use crate::log::{self, Host};
use crate::perf::Perf;
use crate::region::{Explorer, Region, Source};
use crate::sites::{Kind, Sites};
use crate::stats::{self, Inline, Slow, Stats};
use crate::thunks::{Reason, Thunks};
use crate::translate::{Door, Made, Translator};
use cpu::cpuid::Model;
use host::code::CodeBuffer;
use memory::{Gva, Hva, Mmu};
use rustc_hash::FxHashMap;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of code for each site's slot that there is room for: no site takes less code.
const CODE_PER_SITE: usize = 16;
/// Space to be left in the code buffer for a translation: more than the largest region takes.
const MARGIN: usize = 256 << 10;

/// How many of `bytes` of code memory are for code that is often run.
fn hot_part(bytes: usize) -> usize {
    (bytes / 3 * 2).next_multiple_of(4096)
}

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

/// Code to be translated.
#[derive(Clone, Copy, Debug)]
pub struct Code<'a> {
    /// Host address of its page.
    pub page: Hva,
    /// And of the next one.
    pub second: Option<Hva>,
    /// The page. They may go on into the next one.
    pub bytes: &'a [u8],
    /// Where it begins.
    pub gva: Gva,
    /// What instructions there are.
    pub model: &'a Model,
    /// What it is translated for.
    pub mode: Mode,
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
    doors: FxHashMap<Key, Door>,
    pages: FxHashMap<Hva, Page>,
    explorer: Explorer,
    translator: Translator,
    /// Whether translated code counts, see `stats`.
    counting: bool,
    /// Who is told where code is.
    perf: Option<Arc<Perf>>,
}

/// Code in which each access is checked: where groups of them are not in one page.
#[derive(Clone, Copy, Debug)]
pub struct Careful {
    /// For who has the flags in the frame: offset in the code buffer.
    pub inner: u32,
    /// For who jumps there from translated code.
    pub way: Option<Way>,
}

/// What was translated from a page.
#[derive(Debug)]
struct Page {
    /// The doors.
    keys: Vec<Key>,
    /// For each mode its blocks.
    graphs: Vec<(Mode, Graph)>,
    /// Careful code by where it begins.
    careful: FxHashMap<Key, Careful>,
    /// At which places instructions were translated.
    starts: Places,
}

impl Default for Page {
    fn default() -> Self {
        let (keys, graphs, careful) = (Vec::new(), Vec::new(), FxHashMap::default());
        Self { keys, graphs, careful, starts: Places::NONE }
    }
}

impl Page {
    fn graph(&mut self, mode: Mode) -> &mut Graph {
        let n = self.graphs.iter().position(|(of, _)| *of == mode).unwrap_or_else(|| {
            self.graphs.push((mode, Graph::default()));
            self.graphs.len() - 1
        });
        &mut self.graphs[n].1
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
        let code = CodeBuffer::translated(bytes, hot_part(bytes))?;
        let frame = FrameMemory::new(bytes / CODE_PER_SITE)?;
        let mut cache = Self {
            code,
            frame,
            thunks: Thunks::default(),
            sites: Sites::new(hot_part(bytes)),
            stats: Stats::default(),
            doors: FxHashMap::default(),
            pages: FxHashMap::default(),
            explorer: Explorer::default(),
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

    /// Translates `code`, and gives the door to it. `known` tells which other places in the page have run. `None`: it
    /// cannot be.
    pub fn translate(&mut self, code: &Code<'_>, known: impl Fn(u16) -> bool) -> Option<(Region, Door)> {
        self.make_room();
        let Code { page, second, gva, mode, .. } = *code;
        let (region, doors, nodes) = self.make(code, false, known)?;
        let mut own = None;
        for mut door in doors {
            door.second = second.filter(|_| region.crosses());
            let key = Key::new(Hva(page.0 | u64::from(door.offset)), mode);
            let entry = u64::from(door.offset) == gva.offset();
            if entry {
                own = Some(door);
            }
            // What is there already stays: it may be running, and others may jump to it.
            if entry || !self.doors.contains_key(&key) {
                if let Some(old) = self.doors.insert(key, door) {
                    self.turn_away(old);
                }
                for page in [Some(page), door.second].into_iter().flatten() {
                    self.pages.entry(page).or_default().keys.push(key);
                }
            }
        }
        let graph = self.pages.entry(page).or_default().graph(mode);
        for node in nodes {
            graph.insert(node);
        }
        if let Some(own) = own {
            graph.set_door(own.offset, own.inner);
        }
        Some((region, own?))
    }

    /// The code for `code` in which each access is checked, up to where blocks begin that were translated.
    pub fn careful(&mut self, code: &Code<'_>, known: impl Fn(u16) -> bool) -> Option<Careful> {
        let key = Key::new(Hva(code.page.0 | code.gva.offset()), code.mode);
        if let Some(made) = self.pages.get(&code.page).and_then(|page| page.careful.get(&key)) {
            return Some(*made);
        }
        self.make_room();
        let (region, doors, nodes) = self.make(code, true, known)?;
        let own = doors.iter().find(|door| u64::from(door.offset) == code.gva.offset())?;
        let node = nodes.iter().find(|node| node.offset == own.offset);
        let made = Careful { inner: own.inner, way: node.and_then(|node| node.way).filter(|_| !region.crosses()) };
        self.pages.entry(code.page).or_default().careful.insert(key, made);
        Some(made)
    }

    fn make_room(&mut self) {
        if self.code.room() < MARGIN || self.sites.len() + MARGIN / CODE_PER_SITE > self.slots() {
            self.clear();
        }
    }

    fn make(
        &mut self,
        code: &Code<'_>,
        careful: bool,
        known: impl Fn(u16) -> bool,
    ) -> Option<(Region, Vec<Door>, Vec<Node>)> {
        let start = Instant::now();
        let Code { page, bytes, gva, model, mode, .. } = *code;
        let offset = u16::try_from(gva.offset()).ok()?;
        let origins = [self.code.used(), self.code.cold()];
        let Self { translator, explorer, thunks, sites, pages, .. } = self;
        let graph = pages.entry(page).or_default().graph(mode);
        // Code that was translated as part of other code may only lack a door.
        let way = graph.way(offset).copied().filter(|_| !careful);
        let region = match way {
            Some(_) => Region::default(),
            None => explorer.region(&Source { bytes, model, mode, graph }, offset, known)?,
        };
        let made = match &way {
            Some(way) => translator.door((offset, way), origins, thunks, sites),
            None => translator.translate(&region, careful, origins, thunks, sites),
        };
        let Made { code, doors, nodes, listing } = made.inspect_err(|_| self.stats.refused += 1).ok()?;
        if self.counting {
            self.sites.name(&region);
        }
        let [hot, cold] = code;
        self.code.append(hot)?;
        self.code.append_cold(cold)?;
        self.stats.time += start.elapsed();
        let base = self.code.start().addr() as u64;
        if let Some(perf) = &self.perf {
            perf.region(gva, code, origins.map(|origin| base + origin as u64));
        }
        self.stats.code += hot.len() as u64;
        self.stats.cold_code += cold.len() as u64;
        let host = Host { code, origins, base, thunks: &self.thunks };
        log::region(&region, gva.page().0, listing, &host);
        let starts = &mut self.pages.entry(page).or_default().starts;
        for insn in region.all() {
            self.stats.instructions += 1;
            self.stats.guest_bytes += insn.i.len() as u64;
            self.stats.distinct += u64::from(starts.insert(insn.offset));
        }
        self.stats.regions += 1;
        Some((region, doors, nodes))
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
        if let (Reason::Access, Kind::Access { size, write, .. }) = (reason, *kind) {
            return Some(Slow::of(mmu, gva, size.into(), write));
        }
        self.count(reason, number);
        None
    }

    /// Counts that site `number` was left for `reason`.
    pub fn count(&mut self, reason: Reason, number: u32) {
        if let Some((mnemonic, class)) = self.sites.named(number) {
            self.stats.left(reason, mnemonic, class);
        }
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
        asm.reset(door.outer as usize, 0);
        asm.jmp_to(self.thunks.stale);
        if let Some((bytes, _)) = asm.finish() {
            self.code.patch(door.outer as usize, bytes);
        }
        self.stats.dropped += 1;
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.doors.clear();
        self.pages.clear();
        self.sites = Sites::new(hot_part(self.code.capacity()));
        self.frame.forget_jumps();
        self.code.clear();
        self.stats.flushes += 1;
        self.prepare();
    }
}

#[cfg(test)]
mod tests;
