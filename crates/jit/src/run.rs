//! Running translated code: in, out, and what to do about why it was left.

use crate::cache::{Cache, Code, Key};
use crate::classify::{Mode, Units};
use crate::frame::Frame;
use crate::legacy::Bounds;
use crate::perf::Perf;
use crate::record::Recorder;
use crate::region::Entry;
use crate::sites::{Flags, Group, Kind, Site};
use crate::stats::Slow;
use crate::thunks::Reason;
use cpu::Cpu;
use cpu::decode::MAX_INSTRUCTION;
use cpu::exec::interrupt::TripleFault;
use cpu::run::{Exit, Interpreter, Step, Tier};
use cpu::state::{CS, CodeSize, FS, GS, RIP, RSP};
use host::alu::{join_flags, split_flags};
use memory::mmu::FetchPage;
use memory::{Gva, Hva};
use std::arch::asm;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use x86::{PAGE_OFFSET, PAGE_SIZE};

/// How a translator is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bytes of translated code that are kept.
    pub cache: usize,
    /// How often a block is interpreted before it is translated.
    pub threshold: u16,
}

impl Default for Config {
    fn default() -> Self {
        Self { cache: 256 << 20, threshold: 16 }
    }
}

/// The translator of one vCPU.
#[derive(Debug)]
pub struct Jit {
    cache: Cache,
    threshold: u16,
    /// The TLB table that GS points to.
    table: u64,
    /// The STAR for which the frame has segments.
    star: Option<u64>,
    /// Names code segments, such that a guest cannot guess it.
    names: RandomState,
    /// The name of the current one; 0: all addresses in order.
    code_segment: u64,
    recorder: Recorder,
}

/// Where to go on in translated code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// At a door from elsewhere, host address.
    Outer(u64),
    /// At a door from the same page, offset in the code buffer.
    Inner(u32),
    /// Behind a site's instruction.
    Behind(u32),
    /// Where a site's access is tried again.
    Again(u32),
    /// Wherever RIP says.
    Find,
}

impl Jit {
    /// A translator without translations.
    ///
    /// # Errors
    /// The host gives no memory.
    pub fn new(config: Config) -> Result<Self, crate::Error> {
        let (cache, threshold) = (Cache::new(config.cache)?, config.threshold.max(1));
        Ok(Self {
            cache,
            threshold,
            table: 0,
            star: None,
            names: RandomState::new(),
            code_segment: 0,
            recorder: Recorder::default(),
        })
    }

    /// Runs the vCPU until something stops it, as [`Cpu::run`] does.
    pub fn run(&mut self, cpu: &mut Cpu, interpreter: &mut Interpreter) -> Exit {
        cpu.signals.set_kick(self.cache.frame.clone());
        interpreter.overwritten.get_or_insert_default();
        // The thread may be another one, and the vCPU elsewhere.
        self.table = 0;
        let frame = self.frame();
        frame.registers = cpu.regs.as_mut_ptr().addr() as u64;
        frame.requests = std::ptr::from_ref(cpu.signals.word()).addr() as u64;
        frame.vector = (&raw mut cpu.vector).addr() as u64;
        frame.overwritten = std::ptr::from_ref(cpu.mmu.code_modified_flag()).addr() as u64;
        frame.time = crate::thunks::TIME as usize as u64;
        cpu.run_with(interpreter, self)
    }

    /// Forgets all translations: memory was changed behind the guest's back.
    pub fn clear(&mut self) {
        self.cache.clear();
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> crate::stats::Stats {
        self.cache.counted()
    }

    /// Has `perf` told where code is, from now on. To be called before anything has run.
    pub fn record(&mut self, perf: Arc<Perf>) {
        self.cache.record(perf);
    }

    /// Enters translated code at `target`, a host address, in a block of which so many instructions are left to be executed.
    /// (At its beginning it counts them itself.)
    ///
    /// SYSCALL and SYSRET may change `mode` on the way.
    fn enter(&mut self, cpu: &mut Cpu, mode: &mut Mode, target: u64, left: u16) -> Reason {
        let stamp = self.stamp(cpu, *mode);
        let view = cpu.mmu.view();
        let table = view.base.addr() as u64;
        if table != self.table {
            host::gs::set_base(table);
            self.table = table;
        }
        let frame = self.cache.frame.frame();
        // SAFETY: no translated code runs, so that this thread alone uses the frame (but for its atomics).
        let f: &mut Frame = unsafe { &mut *frame };
        f.flags = split_flags(cpu.status);
        f.stamp = stamp;
        f.fs = cpu.seg_base[FS];
        f.gs = cpu.seg_base[GS];
        f.tlb_mask = view.mask;
        f.address = cpu.rip() ^ stamp;
        let access = cpu.system_flags.alignment_check();
        let [kernel, kernel_ac, user] = cpu.mmu.views();
        f.tables = [kernel, kernel_ac];
        if mode.legacy.is_none() {
            let stamps = cpu.mmu.fetch_stamps();
            for (n, (crossing, view)) in f.crossings.iter_mut().zip([kernel, user]).enumerate() {
                crossing.stamp = combined(stamps[n], Mode { user: n == 1, ..*mode });
                crossing.view = view;
            }
            if self.star != Some(cpu.msrs.star) {
                self.star = Some(cpu.msrs.star);
                for (crossing, segments) in f.crossings.iter_mut().zip(cpu.syscall_segments()) {
                    crossing.segments = segments;
                }
            }
        }
        f.crossed = 0;
        f.target = target;
        let stop = match mode.records {
            true => self.recorder.prepare(f, cpu.instructions, cpu.stop_at),
            false => cpu.stop_at.unwrap_or_default(),
        };
        f.budget = stop.wrapping_sub(cpu.instructions).wrapping_sub(left.into());
        cpu.vector.set_image_mxcsr(host::vector::MXCSR_DEFAULT);
        // FXSAVE would leave the host's own addresses there.
        let pointers = cpu.vector.x87_pointers();
        let enter = self.cache.host(self.cache.thunks.enter);
        // SAFETY: the thunk saves and restores what the C convention asks for. Translated code touches the frame, the
        // vCPU's registers and vector state through the pointers above, and guest memory where a TLB entry of the
        // current table says so; it comes back with the host's MXCSR and x87 unit in order.
        unsafe {
            asm!("call {enter}", enter = in(reg) enter, in("rdi") frame, clobber_abi("C"));
        }
        cpu.vector.set_x87_pointers(pointers);
        self.cache.stats.entered += 1;
        // SAFETY: translated code has been left.
        let f: &mut Frame = unsafe { &mut *frame };
        cpu.status = join_flags(f.flags);
        if mode.counts {
            cpu.instructions = stop.wrapping_sub(f.budget);
        }
        if f.crossed != 0 || cpu.system_flags.alignment_check() != access {
            cpu.update_mode();
            *mode = Mode::of(cpu);
            self.table = cpu.mmu.view().base.addr() as u64;
        }
        match f.reason {
            0 => Reason::Interpret,
            1 => Reason::Access,
            2 => Reason::Direct,
            3 => Reason::Fault,
            4 => Reason::Stale,
            _ => Reason::Jump,
        }
    }

    /// Where to enter to go on at [`Frame::behind`].
    fn resume(&self, units: Units) -> u64 {
        let units = usize::from(units.x87) | usize::from(units.vector) << 1;
        self.cache.host(self.cache.thunks.resume.get(units).copied().unwrap_or_default())
    }

    /// What tags of the jump cache are combined with: addresses mean other code under other translations, modes and
    /// code segments.
    #[inline(always)]
    fn stamp(&self, cpu: &Cpu, mode: Mode) -> u64 {
        combined(cpu.mmu.fetch_stamp(), mode).wrapping_add(self.code_segment)
    }

    /// Takes note of the segments, which stay as they are until [`Tier::run`] returns.
    fn take_segments(&mut self, cpu: &Cpu, mode: Mode) {
        let legacy = mode.legacy.is_some();
        self.frame().legacy = legacy.into();
        self.code_segment = 0;
        if legacy {
            self.frame().segments = cpu.seg.map(|segment| Bounds::of(cpu, &segment));
            let cs = &cpu.seg[CS];
            if (cs.base, cs.limit) != (0, u32::MAX) {
                self.code_segment = self.names.hash_one((cs.base, cs.limit));
            }
        }
    }

    fn frame(&mut self) -> &mut Frame {
        // SAFETY: no translated code runs, so that this thread alone uses the frame (but for its atomics).
        unsafe { &mut *self.cache.frame.frame() }
    }

    /// Completes the vCPU's state at a site: as it is before the site's instruction.
    fn arrive(&mut self, cpu: &mut Cpu, mode: Mode, site: &Site) {
        let base = self.frame().base;
        cpu.regs[RIP] = base.wrapping_add(site.offset.into());
        if mode.counts {
            cpu.instructions = cpu.instructions.wrapping_sub(site.left.into());
        }
        match site.flags {
            Flags::Frame => {}
            Flags::Host => cpu.status = join_flags(self.frame().fault_flags),
            Flags::Numbered => {
                let number = self.frame().recipe;
                if let Some(recipe) = self.cache.sites.recipe(number) {
                    cpu.status = recipe.flags(&cpu.regs);
                }
            }
            Flags::Recipe(recipe) => cpu.status = recipe.flags(&cpu.regs),
        }
    }

    /// Hands over the records that were made: see [`Recorder::settle`].
    fn settle(&mut self, cpu: &Cpu, mode: Mode, anew: Option<&Site>) -> bool {
        // SAFETY: no translated code runs, so that this thread alone uses the frame (but for its atomics).
        mode.records && self.recorder.settle(cpu, unsafe { &mut *self.cache.frame.frame() }, anew)
    }

    /// Translated code for RIP, if there is any or it is time to make it; interprets otherwise.
    fn find(
        &mut self,
        cpu: &mut Cpu,
        interpreter: &mut Interpreter,
        mode: Mode,
        patch: &mut Option<u32>,
    ) -> Result<Option<Way>, TripleFault> {
        let mut enough = self.threshold;
        loop {
            let rip = cpu.rip();
            let stamp = self.stamp(cpu, mode);
            if patch.is_none()
                && let Some(host) = self.cache.frame.find(rip, stamp)
            {
                return Ok(Some(Way::Outer(host)));
            }
            let Some(fetched) = cpu.fetch(interpreter)? else { return Ok(None) };
            let gva = code_address(cpu);
            if let FetchPage::Memory(page) = fetched
                && within_limit(cpu, gva, 1)
                && let Some(door) = self.cache.door(Key::new(Hva(page.0 | gva.offset()), mode))
                && (door.second.is_none() || door.second == second_page(cpu, gva))
            {
                return Ok(Some(self.through(cpu, mode, door, patch.take())));
            }
            self.cache.stats.cold += 1;
            match cpu.interpret_block(interpreter, enough)? {
                Step::Near => enough = self.threshold,
                Step::Anew => return Ok(None),
                Step::Warm => {
                    if let Some(door) = self.translate(cpu, interpreter, mode, patch) {
                        return Ok(Some(self.through(cpu, mode, door, patch.take())));
                    }
                    // The block is to run all the same.
                    enough = u16::MAX;
                }
            }
            *patch = None;
        }
    }

    /// The way through a door, remembered for the next time.
    fn through(&mut self, cpu: &mut Cpu, mode: Mode, door: crate::translate::Door, patch: Option<u32>) -> Way {
        if let Some(patch) = patch.filter(|_| door.second.is_none()) {
            self.cache.link(patch, door.inner);
            return Way::Inner(door.inner);
        }
        let host = self.cache.host(door.outer as usize);
        let (rip, gva) = (cpu.rip(), code_address(cpu));
        let both = door.second.is_none() || cpu.mmu.rely_on_fetch(next_page(gva)).is_some();
        if both && cpu.mmu.rely_on_fetch(gva).is_some() {
            self.cache.frame.insert(rip, self.stamp(cpu, mode), host);
        }
        Way::Outer(host)
    }

    /// Translates the code at RIP, which has just been found worth it.
    fn translate(
        &mut self,
        cpu: &mut Cpu,
        interpreter: &Interpreter,
        mode: Mode,
        patch: &mut Option<u32>,
    ) -> Option<crate::translate::Door> {
        let flushes = self.cache.stats.flushes;
        let mut before = None;
        let shared = cpu.mmu.shared();
        let (region, door) = with_code(cpu, interpreter, mode, |code, known| {
            before = shared.then(|| code.bytes.to_vec());
            self.cache.translate(code, known)
        })?;
        if self.cache.stats.flushes != flushes {
            *patch = None;
        }
        let page = cpu.mmu.fetch_fast(code_address(cpu))?;
        for block in &region.blocks {
            let end = region.last(block).map_or(0, crate::region::Insn::end);
            let inside = u64::from(end).min(PAGE_SIZE);
            cpu.mmu.protect_code(Hva(page.0 | u64::from(block.offset)), inside - u64::from(block.offset));
            if let (Some(second), beyond @ 1..) = (door.second, u64::from(end) - inside) {
                cpu.mmu.protect_code(second, beyond);
            }
        }
        if let Some(before) = before
            && with_code(cpu, interpreter, mode, |code, _| Some(region.same(&before, code.bytes))) != Some(true)
        {
            // Another vCPU has stored there before it could be noticed.
            self.cache.drop_page(page);
            *patch = None;
            return None;
        }
        Some(door)
    }

    /// Where to go on at site `number`, whose access to `address` fails its check, if there is a better way than the
    /// interpreter. The vCPU is at the site's instruction.
    fn again(
        &mut self,
        cpu: &mut Cpu,
        interpreter: &Interpreter,
        mode: Mode,
        (number, site): (u32, &Site),
        address: Gva,
    ) -> Option<Way> {
        // Perhaps the TLB only lacks the page. What other accesses have found there stays right: a fill drops no
        // translation, it only pushes one out.
        let origin = cpu.origin();
        // An x87 exception that is pending comes before any access.
        let pending = site.units.x87 && cpu.vector.x87_pending();
        let entry = match site.kind {
            _ if pending => None,
            Kind::Access { size, write, ahead } if aligned(address, ahead) => {
                cpu.mmu.refill(origin, address, size.into(), write)
            }
            Kind::Group(group)
                if address.offset() + u64::from(group.span) <= PAGE_SIZE
                    && aligned(address.wrapping_add(group.own.into()), group.ahead) =>
            {
                let own = address.wrapping_add(group.own.into());
                let own = cpu.mmu.refill(origin, own, 1, group.own_write);
                own.and_then(|_| cpu.mmu.site(address, group.span.into(), group.write))
            }
            _ => None,
        };
        if cpu.mmu.code_modified() {
            return None;
        }
        if let Some(entry) = entry {
            self.cache.stats.refilled += 1;
            self.cache.frame.remember(number, entry);
            return Some(Way::Again(number));
        }
        match site.kind {
            Kind::Group(group) => self.careful(cpu, interpreter, mode, (site, group)),
            _ => None,
        }
    }

    /// The way into the copy of a group's code that checks each access.
    fn careful(
        &mut self,
        cpu: &mut Cpu,
        interpreter: &Interpreter,
        mode: Mode,
        (site, group): (&Site, Group),
    ) -> Option<Way> {
        let flushes = self.cache.stats.flushes;
        let careful = with_code(cpu, interpreter, mode, |code, known| self.cache.careful(code, known))?;
        if let Some(way) = careful.way.filter(|_| self.cache.stats.flushes == flushes) {
            let in_frame = site.flags == Flags::Frame;
            let suits = match way.entry {
                Entry::Dead => true,
                Entry::Frame => in_frame && group.flags.needed,
                Entry::Numbered => group.flags.needed || group.flags.seen,
                Entry::Rflags | Entry::Inherited => false,
            };
            if suits {
                self.cache.link(group.patch, way.place);
            }
        }
        Some(Way::Inner(careful.inner))
    }
}

/// Gives `f` the code at RIP, and what is known of which other places in its page have run.
fn with_code<T>(
    cpu: &mut Cpu,
    interpreter: &Interpreter,
    mode: Mode,
    f: impl FnOnce(&Code<'_>, &dyn Fn(u16) -> bool) -> Option<T>,
) -> Option<T> {
    let gva = code_address(cpu);
    let page = cpu.mmu.fetch_fast(gva).filter(|_| within_limit(cpu, gva, 1))?;
    let mut bytes = [0; PAGE_SIZE as usize + MAX_INSTRUCTION];
    let origin = cpu.origin();
    let (first, rest) = bytes.split_at_mut(PAGE_SIZE as usize);
    cpu.mmu.fetch_bytes(origin, gva.page(), first).ok()?;
    let second = second_page(cpu, gva);
    let mut len = first.len();
    if second.is_some() && gva.offset() as usize > len - MAX_INSTRUCTION {
        len += cpu.mmu.fetch_bytes(origin, next_page(gva), rest).ok()?;
    }
    let known = |offset: u16| interpreter.cache.knows(Hva(page.0 | u64::from(offset)), cpu.code_size);
    let code = Code { page, second, bytes: bytes.get(..len)?, gva, model: &cpu.model.clone(), mode };
    f(&code, &known)
}

/// A fetch stamp combined with a mode.
#[inline(always)]
fn combined(stamp: u64, mode: Mode) -> u64 {
    stamp.wrapping_add(mode.bits().wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Whether `gva` is a multiple of `alignment`, which is a power of two, or 0 for never.
fn aligned(gva: Gva, alignment: u8) -> bool {
    alignment != 0 && gva.0 & u64::from(alignment - 1) == 0
}

/// The page behind that of `gva`.
fn next_page(gva: Gva) -> Gva {
    gva.page().wrapping_add(PAGE_SIZE)
}

/// The linear address of the code at RIP, which lies within the code segment's limit.
fn code_address(cpu: &Cpu) -> Gva {
    cpu.code_address().unwrap_or(Gva(cpu.rip()))
}

/// Whether all of the `pages` pages from that of `gva` on, the address of the code at RIP, can be executed as far as
/// the code segment is concerned. Translations of a page are shared by whoever executes it, so they know no limit.
fn within_limit(cpu: &Cpu, gva: Gva, pages: u64) -> bool {
    let (cs, end) = (&cpu.seg[CS], pages * PAGE_SIZE - 1);
    cpu.code_size == CodeSize::Bits64
        || (cpu.rip() >= gva.offset()
            && cpu.rip() - gva.offset() + end <= cs.limit.into()
            && gva.page().0 + end <= u32::MAX.into())
}

/// The host page behind that of `gva`, the address of the code at RIP, if an instruction may go on there.
fn second_page(cpu: &Cpu, gva: Gva) -> Option<Hva> {
    cpu.mmu.fetch_fast(next_page(gva)).filter(|_| within_limit(cpu, gva, 2))
}

impl Tier for Jit {
    fn run(&mut self, cpu: &mut Cpu, interpreter: &mut Interpreter) -> Result<(), Exit> {
        for page in interpreter.overwritten.iter_mut().flat_map(std::mem::take) {
            self.cache.drop_page(page);
        }
        let mut mode = Mode::of(cpu);
        self.take_segments(cpu, mode);
        let mut patch = None;
        let mut way = Way::Find;
        loop {
            // What is tried again is no place to stop at: the TLB has an entry for it, with the accessed bit set.
            if !matches!(way, Way::Again(_))
                && (self.cache.frame.calm() && (cpu.must_poll() || cpu.mmu.code_modified()) || cpu.left() == 0)
            {
                return Ok(());
            }
            let (target, left) = match way {
                Way::Find => match self.find(cpu, interpreter, mode, &mut patch)? {
                    Some(found) => {
                        way = found;
                        continue;
                    }
                    None => return Ok(()),
                },
                Way::Outer(host) => (host, 0),
                Way::Inner(offset) => (self.cache.host(offset as usize), 0),
                Way::Behind(number) | Way::Again(number) => {
                    let Some(site) = self.cache.sites.get(number).copied() else {
                        way = Way::Find;
                        continue;
                    };
                    let (place, left) = if way == Way::Again(number) {
                        (site.again, site.left)
                    } else {
                        (site.next, site.left.saturating_sub(1))
                    };
                    self.frame().behind = self.cache.host(place as usize);
                    (self.resume(site.units), left)
                }
            };
            let reason = self.enter(cpu, &mut mode, target, left);
            let number = match reason {
                Reason::Fault => {
                    let pc = self.frame().landing.pc.wrapping_sub(self.cache.host(0));
                    self.cache.sites.at(pc as usize).unwrap_or(u32::MAX)
                }
                _ => self.frame().site,
            };
            if reason == Reason::Stale {
                self.settle(cpu, mode, None);
                self.cache.stats.stale += 1;
                let frame = self.frame();
                let rip = frame.address ^ frame.stamp;
                cpu.regs[RIP] = rip;
                self.cache.frame.forget(rip);
                way = Way::Find;
                continue;
            }
            if reason == Reason::Jump {
                let frame = self.frame();
                let target = frame.address ^ frame.stamp;
                self.cache.count(reason, number);
                if x86::is_canonical(target, cpu.mmu.virtual_bits()) {
                    self.settle(cpu, mode, None);
                    cpu.regs[RIP] = target;
                    way = Way::Find;
                    continue;
                }
            }
            let Some(site) = self.cache.sites.get(number).copied() else {
                return Err(Exit::Bug(crate::bug::report(cpu, &self.cache, reason, number)));
            };
            if let Kind::Direct { target, patch: at } = site.kind {
                self.settle(cpu, mode, None);
                self.cache.stats.exits += 1;
                cpu.regs[RIP] = self.frame().base.wrapping_add(target.into());
                patch = (at != 0 && u64::from(target) <= PAGE_OFFSET).then_some(at);
                way = Way::Find;
                continue;
            }
            if let Kind::Jump { pops } = site.kind {
                cpu.regs[RSP] = cpu.regs[RSP].wrapping_sub(i64::from(pops).cast_unsigned());
            }
            self.arrive(cpu, mode, &site);
            let undone = self.settle(cpu, mode, Some(&site));
            if site.kind == Kind::Poll {
                // The top of the loop looks at what is wanted.
                self.cache.stats.polls += 1;
                way = Way::Find;
                continue;
            }
            if site.kind == Kind::Meter {
                match cpu.interpret_block(interpreter, u16::MAX)? {
                    Step::Near => way = Way::Find,
                    Step::Anew | Step::Warm => return Ok(()),
                }
                continue;
            }
            let address = self.frame().address;
            if reason == Reason::Access
                && !undone
                && let Some(found) = self.again(cpu, interpreter, mode, (number, &site), Gva(address))
            {
                way = found;
                continue;
            }
            let slow = self.cache.leave(&cpu.mmu, reason, number, &site.kind, Gva(address));
            let faults = cpu.mmu.stats().faults;
            let step = match self.cache.sites.op(number, || cpu.decode_one()) {
                Some(op) => cpu.interpret_one(interpreter, op)?,
                None => cpu.interpret_block(interpreter, u16::MAX)?,
            };
            if let Some(slow) = slow {
                let faulted = slow == Slow::Miss && cpu.mmu.stats().faults != faults;
                self.cache.stats.access(if faulted { Slow::Fault } else { slow });
            }
            if let (Reason::Access, Kind::Access { size, write, .. }) = (reason, site.kind)
                && let Some(offset) = cpu.mmu.site(Gva(address), size.into(), write)
            {
                self.cache.frame.remember(number, offset);
            }
            if step != Step::Near {
                return Ok(());
            }
            let here = cpu.rip().wrapping_sub(self.frame().base);
            way = if site.next != 0 && here == u64::from(site.following) { Way::Behind(number) } else { Way::Find };
        }
    }
}

#[cfg(test)]
mod tests;
