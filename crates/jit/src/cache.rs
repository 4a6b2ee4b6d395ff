//! Translated code: what has been translated, and how it is found again and dropped.
//!
//! Code is known by the host address of its page, the offset in it, and the mode it was translated for, so that all
//! mappings of a page share it. When code in a page is overwritten all translations of the page go: whoever still
//! enters them (through the jump cache) is turned away at the door.
//!
//! The code buffer is a ring of segments (`segments`), which are written one after the other. The one that is written
//! next is emptied before: the pages that have code in it are dropped as if they had been overwritten, with what other
//! segments hold of them, since jumps within a page are straight; and the jump cache forgets what leads there. So it is
//! a page's oldest code that tells when it goes, and what has to be done at a time is as much as a segment holds,
//! however large the buffer is.

use crate::asm::Asm;
use crate::classify::Mode;
use crate::frame::{Frame, FrameMemory};
use crate::graph::{Graph, Node, Places, Way};
use crate::log::{self, Host};
use crate::perf::Perf;
use crate::region::{Explorer, Region, Source};
use crate::segments;
use crate::sites::{Kind, Sites};
use crate::stats::{self, Inline, Slow, Stats};
use crate::thunks::{Reason, Thunks};
use crate::translate::{Door, Made, Translator};
use cpu::cpuid::Model;
use host::code::CodeBuffer;
use memory::{Gva, Hva, Mmu};
use rustc_hash::{FxHashMap, FxHashSet};
use std::sync::Arc;
use std::time::Instant;
use x86::PAGE_OFFSET;

/// What identifies translated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    /// Code at host address `start`, for `mode`.
    #[must_use]
    pub fn new(start: Hva, mode: Mode) -> Self {
        // No host address of user space uses the upper bits.
        Self(start.0 | mode.bits() << 48)
    }

    /// The page of the code.
    fn page(self) -> Hva {
        Hva(self.0 & ((1 << 47) - 1) & !PAGE_OFFSET)
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
    pages: FxHashMap<Hva, Box<Page>>,
    /// For each segment the pages whose oldest code is there; perhaps others, too.
    oldest: Vec<FxHashSet<Hva>>,
    /// The segment that is written.
    current: usize,
    /// All have been written, so that the next one must be emptied.
    full: bool,
    /// Where shared code ends, which is in segment 0 and stays.
    first: usize,
    /// The graph of pages of which nothing is translated.
    unknown: Graph,
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
    /// The segment of its oldest code.
    oldest: usize,
    /// The doors, in the order of their keys.
    doors: Vec<(Key, Door)>,
    /// Doors of other pages to code that goes on in this one.
    beyond: Vec<Key>,
    /// For each mode its blocks.
    graphs: Vec<(Mode, Graph)>,
    /// Careful code by where it begins.
    careful: FxHashMap<Key, Careful>,
    /// At which places instructions were translated.
    starts: Places,
}

impl Page {
    fn new(oldest: usize) -> Self {
        let (doors, beyond, graphs, careful) = (Vec::new(), Vec::new(), Vec::new(), FxHashMap::default());
        Self { oldest, doors, beyond, graphs, careful, starts: Places::NONE }
    }

    fn door(&self, key: Key) -> Option<Door> {
        let n = self.doors.binary_search_by_key(&key.0, |(key, _)| key.0).ok()?;
        self.doors.get(n).map(|(_, door)| *door)
    }

    /// Adds a door; the one that was there before.
    fn set_door(&mut self, key: Key, door: Door) -> Option<Door> {
        match self.doors.binary_search_by_key(&key.0, |(key, _)| key.0) {
            Ok(n) => self.doors.get_mut(n).map(|slot| std::mem::replace(&mut slot.1, door)),
            Err(n) => {
                self.doors.insert(n, (key, door));
                None
            }
        }
    }

    fn remove_door(&mut self, key: Key) -> Option<Door> {
        let n = self.doors.binary_search_by_key(&key.0, |(key, _)| key.0).ok()?;
        Some(self.doors.remove(n).1)
    }

    fn graph(&self, mode: Mode) -> Option<&Graph> {
        self.graphs.iter().find(|(of, _)| *of == mode).map(|(_, graph)| graph)
    }

    fn graph_mut(&mut self, mode: Mode) -> &mut Graph {
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
        let segments = segments::count(bytes);
        let counting = stats::counting();
        let code = CodeBuffer::translated(segments * segments::BYTES)?;
        let frame = FrameMemory::new(segments * segments::SITES)?;
        let mut cache = Self {
            code,
            frame,
            thunks: Thunks::default(),
            sites: Sites::new(segments),
            stats: Stats::default(),
            pages: FxHashMap::default(),
            oldest: vec![FxHashSet::default(); segments],
            current: 0,
            full: false,
            first: 0,
            unknown: Graph::default(),
            explorer: Explorer::default(),
            translator: Translator::new(counting, log::enabled()),
            counting,
            perf: None,
        };
        cache.prepare();
        Ok(cache)
    }

    fn prepare(&mut self) {
        // There is room: the first segment is empty.
        self.first = 0;
        self.seek();
        self.thunks = Thunks::emit(&mut self.code, self.counting).unwrap_or_default();
        self.first = self.code.used();
        let resume = self.host(self.thunks.fault);
        // SAFETY: no translated code runs, so that this thread alone uses the frame.
        let frame: &mut Frame = unsafe { &mut *self.frame.frame() };
        frame.landing.resume = resume;
        frame.host_mxcsr = host::vector::MXCSR_DEFAULT;
        self.frame.start();
    }

    /// Has `perf` told where code is, from now on.
    pub fn record(&mut self, perf: Arc<Perf>) {
        perf.shared(self.host(0), self.code.bytes(0..self.first));
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
        self.pages.get(&key.page())?.door(key)
    }

    /// Translates `code`, and gives the door to it. `known` tells which other places in the page have run. `None`: it
    /// cannot be.
    pub fn translate(&mut self, code: &Code<'_>, known: impl Fn(u16) -> bool) -> Option<(Region, Door)> {
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
            if entry || self.door(key).is_none() {
                if let Some(old) = self.page(page).set_door(key, door) {
                    self.turn_away(old);
                }
                if let Some(second) = door.second {
                    // Code may have come and gone here again and again.
                    let beyond = &mut self.page(second).beyond;
                    if !beyond.contains(&key) {
                        beyond.push(key);
                    }
                }
            }
        }
        let graph = self.page(page).graph_mut(mode);
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
        let (region, doors, nodes) = self.make(code, true, known)?;
        let own = doors.iter().find(|door| u64::from(door.offset) == code.gva.offset())?;
        let node = nodes.iter().find(|node| node.offset == own.offset);
        let made = Careful { inner: own.inner, way: node.and_then(|node| node.way).filter(|_| !region.crosses()) };
        self.page(code.page).careful.insert(key, made);
        Some(made)
    }

    /// What is known of `page`.
    fn page(&mut self, page: Hva) -> &mut Page {
        self.pages.entry(page).or_insert_with(|| {
            self.oldest[self.current].insert(page);
            Box::new(Page::new(self.current))
        })
    }

    fn make(
        &mut self,
        code: &Code<'_>,
        careful: bool,
        known: impl Fn(u16) -> bool,
    ) -> Option<(Region, Vec<Door>, Vec<Node>)> {
        match self.attempt(code, careful, &known) {
            Err(Failed::Full) => {
                self.advance();
                self.attempt(code, careful, &known).ok()
            }
            made => made.ok(),
        }
    }

    fn attempt(
        &mut self,
        code: &Code<'_>,
        careful: bool,
        known: &impl Fn(u16) -> bool,
    ) -> Result<(Region, Vec<Door>, Vec<Node>), Failed> {
        let start = Instant::now();
        let Code { page, bytes, gva, model, mode, .. } = *code;
        let offset = u16::try_from(gva.offset()).map_err(|_| Failed::Refused)?;
        let origins = [self.code.used(), self.code.cold()];
        let Self { translator, explorer, thunks, sites, pages, unknown, .. } = self;
        let graph = pages.get(&page).and_then(|page| page.graph(mode)).unwrap_or(unknown);
        // Code that was translated as part of other code may only lack a door.
        let way = graph.way(offset).copied().filter(|_| !careful);
        let region = match way {
            Some(_) => Region::default(),
            None => explorer.region(&Source { bytes, model, mode, graph }, offset, known).ok_or(Failed::Refused)?,
        };
        let before = sites.len();
        let made = match &way {
            Some(way) => translator.door((offset, way), origins, thunks, sites),
            None => translator.translate(&region, careful, origins, thunks, sites),
        };
        let Ok(Made { code, doors, nodes, listing }) = made else {
            self.stats.refused += 1;
            return Err(Failed::Refused);
        };
        let [hot, cold] = code;
        if sites.is_overfull() || self.code.append(hot).is_none() || self.code.append_cold(cold).is_none() {
            sites.truncate(before, origins);
            return Err(Failed::Full);
        }
        if self.counting {
            sites.name(&region);
        }
        self.stats.time += start.elapsed();
        let base = self.code.start().addr() as u64;
        if let Some(perf) = &self.perf {
            perf.region(gva, code, origins.map(|origin| base + origin as u64));
        }
        self.stats.code += hot.len() as u64;
        self.stats.cold_code += cold.len() as u64;
        let host = Host { code, origins, base, thunks: &self.thunks };
        log::region(&region, gva.page().0, listing, &host);
        let starts = &mut self.page(page).starts;
        let distinct = region.all().iter().filter(|insn| starts.insert(insn.offset)).count();
        self.stats.distinct += distinct as u64;
        self.stats.instructions += region.all().len() as u64;
        self.stats.guest_bytes += region.all().iter().map(|insn| insn.i.len() as u64).sum::<u64>();
        self.stats.regions += 1;
        Ok((region, doors, nodes))
    }

    /// Goes on with the next segment, from which everything is dropped.
    fn advance(&mut self) {
        let start = Instant::now();
        self.current = (self.current + 1) % self.oldest.len();
        self.full |= self.current == 0;
        self.sites.begin(self.current);
        if self.full {
            // All other segments were written after this one, so that no page has older code than it has here, and this
            // segment's list has all pages that have code here. By their doors it is not reached any more then, nor from
            // code of other pages, which look into the jump cache. Nothing else keeps the place of code from one
            // translation to another.
            for page in std::mem::take(&mut self.oldest[self.current]) {
                if self.pages.get(&page).is_some_and(|known| known.oldest == self.current) {
                    self.remove(page);
                }
            }
            let begin = self.host(self.current * segments::BYTES);
            self.frame.forget_jumps_to(begin..begin + segments::BYTES as u64);
            self.stats.made_room(start.elapsed());
        }
        self.seek();
    }

    /// Lets code be written to the current segment, which is empty.
    fn seek(&mut self) {
        let [hot, cold] = segments::parts(self.current);
        self.code.seek(hot.start.max(self.first)..hot.end, cold);
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

    /// Where in its page the block begins whose host code is the last before `offset` in the code buffer.
    #[must_use]
    pub fn block(&self, offset: usize) -> Option<u16> {
        let nodes = self.pages.values().flat_map(|page| &page.graphs).flat_map(|(_, graph)| graph.nodes());
        let ways = nodes.filter_map(|node| Some((node.way?.place as usize, node.offset)));
        ways.filter(|(place, _)| *place <= offset).max().map(|(_, offset)| offset)
    }

    /// Drops what was translated from the host page `page`, which was overwritten.
    pub fn drop_page(&mut self, page: Hva) {
        self.stats.dropped += self.remove(page);
    }

    /// Drops what was translated from `page`. How many doors that were.
    fn remove(&mut self, page: Hva) -> u64 {
        let Some(Page { doors, beyond, .. }) = self.pages.remove(&page).map(|page| *page) else { return 0 };
        let beyond = beyond.into_iter().filter_map(|key| self.pages.get_mut(&key.page())?.remove_door(key));
        let doors: Vec<Door> = doors.into_iter().map(|(_, door)| door).chain(beyond).collect();
        for door in &doors {
            self.turn_away(*door);
        }
        doors.len() as u64
    }

    /// Lets who enters by `door`, known from the jump cache, look for other code.
    fn turn_away(&mut self, door: Door) {
        let mut asm = Asm::default();
        asm.reset(door.outer as usize, 0);
        asm.jmp_to(self.thunks.stale);
        if let Some((bytes, _)) = asm.finish() {
            self.code.patch(door.outer as usize, bytes);
        }
    }

    /// Drops everything. Takes its time.
    pub fn clear(&mut self) {
        self.pages.clear();
        self.oldest.iter_mut().for_each(FxHashSet::clear);
        self.frame.forget_jumps();
        self.sites = Sites::new(self.oldest.len());
        (self.current, self.full) = (0, false);
        self.prepare();
    }
}

/// Why there is no translation.
enum Failed {
    /// It cannot be.
    Refused,
    /// It has no room in the rest of the segment.
    Full,
}

#[cfg(test)]
mod tests;
