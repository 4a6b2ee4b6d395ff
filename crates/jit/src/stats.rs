//! What the translator counts, and a table of it for people.
//!
//! Everything that leaves translated code is counted as it happens. What stays inside (accesses that hit, jumps that
//! are found) would have to be counted by the translated code itself, which costs; it is where the log item `jit` is
//! on: see [`counting`].

use crate::classify::Class;
use crate::thunks::Reason;
use iced_x86::Mnemonic;
use memory::{Gva, Mmu, tlb};
use std::fmt;
use std::time::Duration;
use x86::PAGE_SIZE;

/// Whether translated code is to count, too: somebody listens to what is found.
#[must_use]
pub fn counting() -> bool {
    tracing::enabled!(target: "jit", tracing::Level::DEBUG)
}

/// Counts by mnemonic: at most one number for each that there is.
#[derive(Clone, Debug, Default)]
pub struct Counts(Vec<u64>);

impl Counts {
    /// Counts one.
    pub fn add(&mut self, mnemonic: Mnemonic) {
        let at = mnemonic as usize;
        if at >= self.0.len() {
            self.0.resize(at + 1, 0);
        }
        if let Some(count) = self.0.get_mut(at) {
            *count += 1;
        }
    }

    /// The sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// All that were counted, the most frequent first.
    #[must_use]
    pub fn ranked(&self) -> Vec<(Mnemonic, u64)> {
        let named = Mnemonic::values().zip(self.0.iter().copied());
        let mut ranked: Vec<_> = named.filter(|(_, count)| *count != 0).collect();
        ranked.sort_by_key(|(mnemonic, count)| (std::cmp::Reverse(*count), *mnemonic as usize));
        ranked
    }
}

/// Why an access was left to the interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slow {
    /// The TLB's main table did not have its page, or not for this kind of access.
    Miss,
    /// The same, and it ended in a page fault.
    Fault,
    /// It crosses into another page.
    Crossing,
    /// A device, or nothing at all.
    Io,
    /// A write to ROM.
    Rom,
    /// A write to a page that holds code.
    Code,
    /// Somebody watches.
    Watch,
    /// Nothing in the table was against it: its address is not canonical.
    Other,
}

impl Slow {
    /// All of them, and what they are called in the report.
    const NAMES: [(Self, &str); 8] = [
        (Self::Miss, "not in the TLB"),
        (Self::Fault, "page fault"),
        (Self::Crossing, "crosses pages"),
        (Self::Io, "MMIO"),
        (Self::Rom, "write to ROM"),
        (Self::Code, "write to a page of code"),
        (Self::Watch, "watched"),
        (Self::Other, "other"),
    ];

    /// Why an access to `size` bytes at `gva` is slow. To be asked before it is made; a fault shows only then.
    #[must_use]
    pub fn of(mmu: &Mmu, gva: Gva, size: u64, write: bool) -> Self {
        if gva.offset() + size > PAGE_SIZE {
            return Self::Crossing;
        }
        match mmu.obstacles(gva, write) {
            None => Self::Miss,
            // An observer sees accesses to devices, too.
            Some(flags) if flags & (tlb::WATCH | tlb::RECORD) != 0 => Self::Watch,
            Some(flags) if flags & tlb::IO != 0 => Self::Io,
            Some(flags) if flags & tlb::ROM != 0 => Self::Rom,
            Some(flags) if flags & tlb::CODE != 0 => Self::Code,
            Some(_) => Self::Other,
        }
    }
}

/// What translated code counted itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Inline {
    /// Checks of accesses.
    pub accesses: u64,
    /// Those whose site remembered another page's entry.
    pub looked_up: u64,
    /// Look-ups in the jump cache.
    pub jumps: u64,
    /// Jumps within a page from one region to another.
    pub direct: u64,
}

/// Counters of one vCPU's translator.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Regions translated.
    pub regions: u64,
    /// Guest instructions translated.
    pub instructions: u64,
    /// Those of them that no other translation held at the time.
    pub distinct: u64,
    /// Bytes of guest code translated.
    pub guest_bytes: u64,
    /// Bytes of host code made from them.
    pub code: u64,
    /// And of what is rarely run.
    pub cold_code: u64,
    /// Time that took.
    pub time: Duration,
    /// Regions that could not be translated.
    pub refused: u64,
    /// Ways into code that was overwritten.
    pub dropped: u64,
    /// Times that the oldest code was dropped for want of room.
    pub flushes: u64,
    /// Time that took.
    pub flushing: Duration,
    /// The longest time that it took at once.
    pub stall: Duration,
    /// Jumps made straight.
    pub links: u64,
    /// Times that translated code was entered.
    pub entered: u64,
    /// Instructions left to the interpreter because they always are.
    pub interpreted: Counts,
    /// Jumps left to the interpreter because their target was not in the jump cache.
    pub jumps: Counts,
    /// Accesses that needed nothing but an entry in the TLB.
    pub refilled: u64,
    /// Accesses left to the interpreter, by [`Slow`].
    pub slow: [u64; Slow::NAMES.len()],
    /// Jumps to code that was not translated.
    pub exits: u64,
    /// Entries into code that had been overwritten.
    pub stale: u64,
    /// Polls that were answered.
    pub polls: u64,
    /// Exceptions that the host raised.
    pub faults: u64,
    /// Blocks that were interpreted.
    pub cold: u64,
    /// What translated code counted, if it did.
    pub inline: Option<Inline>,
}

impl Stats {
    /// Counts an instruction that is left to the interpreter for `reason`, other than for its access.
    pub fn left(&mut self, reason: Reason, mnemonic: Mnemonic, class: Class) {
        match (reason, class) {
            (Reason::Fault, _) => self.faults += 1,
            (_, Class::Jcc | Class::Loop | Class::Jmp | Class::Call | Class::Ret) => self.jumps.add(mnemonic),
            (_, Class::JmpIndirect | Class::CallIndirect) => self.jumps.add(mnemonic),
            _ => self.interpreted.add(mnemonic),
        }
    }

    /// Counts that the oldest code was dropped for want of room, which took `time`.
    pub fn made_room(&mut self, time: Duration) {
        self.flushes += 1;
        self.flushing += time;
        self.stall = self.stall.max(time);
    }

    /// Counts an access that is left to the interpreter.
    pub fn access(&mut self, why: Slow) {
        if let Some(count) = self.slow.get_mut(why as usize) {
            *count += 1;
        }
    }

    /// Accesses left to the interpreter.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.slow.iter().sum()
    }
}

/// The most mnemonics that the report names.
const NAMED: usize = 24;

fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// Share of hits, given how many of `all` missed.
fn hits(missed: u64, all: u64) -> String {
    let share = 100.0 * (1.0 - ratio(missed, all));
    if all == 0 { String::new() } else { format!("{share:.3} % hits") }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, count: u64, remark: &str| {
            let gap = if remark.is_empty() { "" } else { "   " };
            writeln!(f, "  {name:<38}{count:>14}{gap}{remark}")
        };
        let each = |of: u64| format!("{:.1} a region", ratio(of, self.regions));
        line("regions translated", self.regions, "")?;
        line("guest instructions translated", self.instructions, &each(self.instructions))?;
        let again = format!("translated {:.2} times each", ratio(self.instructions, self.distinct));
        line("  distinct ones", self.distinct, &again)?;
        line("bytes of guest code", self.guest_bytes, &each(self.guest_bytes))?;
        let bytes = |bytes: u64| format!("{:.1} a guest instruction", ratio(bytes, self.instructions));
        line("bytes of host code", self.code, &bytes(self.code))?;
        line("  rarely run", self.cold_code, &bytes(self.cold_code))?;
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let time = format!("{:.0} ns a guest instruction", 1000.0 * ratio(micros(self.time), self.instructions));
        line("microseconds spent on it", micros(self.time), &time)?;
        line("regions refused", self.refused, "")?;
        line("jumps made straight", self.links, "")?;
        line("doors dropped, code overwritten", self.dropped, "")?;
        line("flushes of the oldest code, for room", self.flushes, "")?;
        let stall = format!("at most {} at a time", micros(self.stall));
        line("  microseconds spent on them", micros(self.flushing), &stall)?;
        line("blocks interpreted while cold", self.cold, "")?;
        line("translated code entered", self.entered, "")?;
        let missed = self.jumps.total();
        match self.inline {
            Some(inline) => {
                line("accesses checked", inline.accesses, &hits(self.refilled + self.accesses(), inline.accesses))?;
                line("  looked up in the TLB's table", inline.looked_up, "the others by the site's memory")?;
                line("jump cache look-ups", inline.jumps, &hits(missed, inline.jumps))?;
                line("direct jumps between regions", inline.direct, &hits(self.exits, inline.direct))?;
            }
            None => line("translated code did not count", 0, "accesses and jumps that hit are not known")?,
        }
        line("left: jump to untranslated code", self.exits, "")?;
        line("left: code was overwritten", self.stale, "")?;
        line("left: poll answered", self.polls, "")?;
        line("left: exception of the host", self.faults, "")?;
        line("left: access tried again, now in the TLB", self.refilled, "")?;
        line("left: access", self.accesses(), "")?;
        for ((_, name), count) in Slow::NAMES.iter().zip(self.slow).filter(|(_, count)| *count != 0) {
            line(&format!("  {name}"), count, "")?;
        }
        let tables = [("left: jump not in the jump cache", &self.jumps), ("left: instruction", &self.interpreted)];
        for (name, counts) in tables {
            line(name, counts.total(), "")?;
            let ranked = counts.ranked();
            for (mnemonic, count) in ranked.iter().take(NAMED) {
                line(&format!("  {}", format!("{mnemonic:?}").to_lowercase()), *count, "")?;
            }
            if let Some(rest) = ranked.get(NAMED..).filter(|rest| !rest.is_empty()) {
                line(&format!("  {} others", rest.len()), rest.iter().map(|(_, count)| count).sum(), "")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::{Gpa, GuestRam, Origin, PhysicalMap};
    use std::sync::Arc;

    #[test]
    fn mnemonics_are_ranked_and_summed() {
        let mut counts = Counts::default();
        for mnemonic in [Mnemonic::Cpuid, Mnemonic::Sti, Mnemonic::Cpuid, Mnemonic::Add] {
            counts.add(mnemonic);
        }
        assert_eq!(counts.total(), 4);
        assert_eq!(counts.ranked(), [(Mnemonic::Cpuid, 2), (Mnemonic::Add, 1), (Mnemonic::Sti, 1)]);
    }

    #[test]
    fn every_reason_has_its_counter() {
        for (n, (why, _)) in Slow::NAMES.iter().enumerate() {
            let mut stats = Stats::default();
            stats.access(*why);
            assert_eq!((stats.slow[n], stats.accesses()), (1, 1), "{why:?}");
        }
    }

    #[test]
    fn an_instruction_is_counted_by_why_it_was_left() {
        let mut stats = Stats::default();
        stats.left(Reason::Interpret, Mnemonic::Cpuid, Class::Interpret);
        stats.left(Reason::Interpret, Mnemonic::Syscall, Class::Leaves);
        stats.left(Reason::Interpret, Mnemonic::Sti, Class::System);
        stats.left(Reason::Interpret, Mnemonic::Ret, Class::Ret);
        stats.left(Reason::Fault, Mnemonic::Div, Class::Plain);
        assert_eq!((stats.interpreted.total(), stats.jumps.total(), stats.faults), (3, 1, 1));
        assert_eq!(stats.jumps.ranked(), [(Mnemonic::Ret, 1)]);
    }

    struct Silent;

    impl memory::Mmio for Silent {
        fn read(&self, _cpu: usize, _offset: u64, _size: usize) -> u64 {
            0
        }
        fn write(&self, _cpu: usize, _offset: u64, _size: usize, _value: u64) {}
    }

    #[test]
    fn the_tlb_tells_why_an_access_is_slow() {
        let (plain, device, rom) = (Gva(0x5ff8), Gva(0xfee0_0000), Gva(0xffff_f000));
        let mut map = PhysicalMap::new(GuestRam::new(2 << 20).unwrap()).unwrap();
        map.add_mmio(Gpa(device.0)..Gpa(device.0 + 0x1000), Arc::new(Silent)).unwrap();
        map.add_rom(Gpa(rom.0), &[0; 4096]).unwrap();
        let ram = map.ram().regions()[0].hva;
        // Without paging.
        let mut mmu = Mmu::new(Arc::new(map), 0);
        assert_eq!(Slow::of(&mmu, plain, 8, false), Slow::Miss);
        assert_eq!(Slow::of(&mmu, plain, 9, false), Slow::Crossing);
        let (by, space) = (Origin::default(), mmu.space());
        for gva in [plain, device, rom] {
            let _ = mmu.read::<u32>(by, space, gva);
            let _ = mmu.write::<u32>(by, space, gva, 0);
        }
        assert_eq!(Slow::of(&mmu, plain, 8, true), Slow::Other, "nothing is against it");
        assert_eq!(Slow::of(&mmu, device, 4, false), Slow::Io);
        assert_eq!(Slow::of(&mmu, rom, 4, true), Slow::Rom);
        mmu.protect_code(ram.wrapping_add(0x5000), 64);
        assert_eq!(Slow::of(&mmu, plain, 8, true), Slow::Code);
        assert_eq!(Slow::of(&mmu, plain, 8, false), Slow::Other);
    }

    #[test]
    fn the_report_is_aligned_and_says_what_is_not_known() {
        let mut stats = Stats { regions: 2, instructions: 30, distinct: 20, code: 900, ..Stats::default() };
        stats.time = Duration::from_micros(9);
        stats.interpreted.add(Mnemonic::Cpuid);
        stats.access(Slow::Watch);
        let text = stats.to_string();
        for part in ["15.0 a region", "translated 1.50 times each", "300 ns", "did not count", "cpuid", "watched"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!text.contains("MMIO"), "what never happened is left out\n{text}");
        let short = text.lines().filter(|line| line.len() < 54);
        assert_eq!(short.count(), 0, "{text}");
        stats.inline = Some(Inline { accesses: 1000, ..Inline::default() });
        assert!(stats.to_string().contains("99.900 % hits"), "{stats}");
    }
}
