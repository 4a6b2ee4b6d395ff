//! All that a set of page tables maps, as runs of pages that are alike.
//!
//! What lies below a table is summed up once, however many entries lead there, so that neither huge pages, nor a
//! mapping that is all alike, nor tables that contain themselves take longer than there are different tables. Accessed
//! and dirty bits stay as they are; the tables may change meanwhile if their owner runs.

use super::{ADDRESS, Meaning, Mode, Paging, Rights};
use crate::{Gpa, Gva};
use std::collections::HashMap;
use std::ops::ControlFlow;

/// The most tables that are read: some hundred milliseconds.
const MOST_TABLES: usize = 1 << 18;
/// Entries of a table, at most.
const ENTRIES: usize = 1024;

/// What makes pages alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alike {
    /// U/S, R/W and NX, all levels taken together.
    Rights,
    /// Their size, their own entries' flags, and that they lie side by side in physical memory as well.
    Pages,
}

/// Pages side by side that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first address.
    pub gva: Gva,
    /// Bytes.
    pub len: u64,
    /// What the first address is translated to.
    pub gpa: Gpa,
    /// log2 of the size of the first page.
    pub shift: u32,
    /// The first page's entry, without its address.
    pub flags: u64,
    /// The first page's rights.
    pub rights: Rights,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// In ascending order of their addresses.
    pub spans: Vec<Span>,
    /// Where it was given up for there being too much, if it was.
    pub rest: Option<Gva>,
}

/// A physical page of table entries as they are; all ones where there is no memory.
pub trait ReadTable {
    /// Reads the page at `gpa`.
    fn read_table(&mut self, gpa: Gpa, page: &mut [u8; 4096]);
}

/// What is below a table, addresses relative to its first.
#[derive(Clone, Copy, Debug)]
enum Summary {
    Nothing,
    /// One span that is all of it.
    Whole(Span),
    Mixed,
}

type Table = [u64; ENTRIES];

struct Search<'a, R> {
    paging: &'a Paging,
    tables: R,
    alike: Alike,
    /// First and last address, as far as they are translated.
    range: (u64, u64),
    most: usize,
    known: HashMap<(usize, u64, Rights), Summary>,
    read: usize,
    found: Spans,
}

impl Paging {
    /// What is mapped from `first` to `last`, in at most `most` spans. Nothing is with paging off.
    pub fn spans(&self, tables: impl ReadTable, alike: Alike, first: Gva, last: Gva, most: usize) -> Spans {
        let linear = |gva: Gva| self.linear(gva).0 & (u64::MAX >> (64 - self.translated_bits()));
        let range = (linear(first), linear(last));
        let known = HashMap::new();
        let mut search = Search { paging: self, tables, alike, range, most, known, read: 0, found: Spans::default() };
        let rights = Rights { user: true, writable: true, ..Rights::default() };
        // It ends early only with `rest` set.
        let _ = match self.mode {
            Mode::Off => ControlFlow::Continue(()),
            Mode::Legacy => search.visit(0, self.registers.cr3 & 0xffff_f000, 0, rights),
            Mode::Pae => (0..)
                .zip(self.pdptes)
                .filter(|(_, pdpte)| pdpte & 1 != 0)
                .try_for_each(|(i, pdpte)| search.child(0, pdpte & ADDRESS, i << 30, rights)),
            Mode::Level4 | Mode::Level5 => search.visit(0, self.registers.cr3 & ADDRESS, 0, rights),
        };
        search.found
    }

    /// Bits of a linear address that are translated.
    fn translated_bits(&self) -> u32 {
        if matches!(self.mode, Mode::Level4 | Mode::Level5) { self.virtual_bits() } else { 32 }
    }
}

impl<R: ReadTable> Search<'_, R> {
    fn table(&mut self, gpa: u64) -> Box<Table> {
        self.read += 1;
        let mut page = [0; 4096];
        self.tables.read_table(Gpa(gpa), &mut page);
        let mut table = Box::new([0; ENTRIES]);
        if self.paging.mode == Mode::Legacy {
            let (entries, _) = page.as_chunks::<4>();
            table.iter_mut().zip(entries).for_each(|(to, from)| *to = u32::from_le_bytes(*from).into());
        } else {
            let (entries, _) = page.as_chunks::<8>();
            table.iter_mut().zip(entries).for_each(|(to, from)| *to = u64::from_le_bytes(*from));
        }
        table
    }

    /// What an entry at `depth` maps, for `at` as its first address.
    fn meaning(&self, depth: usize, raw: u64, rights: Rights, at: u64) -> (Meaning, Option<Span>) {
        let Some(level) = self.paging.levels.get(depth) else { return (Meaning::Absent, None) };
        let meaning = self.paging.meaning(level, raw, rights);
        let span = match meaning {
            Meaning::Page(base, rights) => {
                let (len, flags) = (1 << level.shift, raw & !(ADDRESS & (u64::MAX << level.shift)));
                Some(Span { gva: Gva(at), len, gpa: Gpa(base), shift: level.shift, flags, rights })
            }
            _ => None,
        };
        (meaning, span)
    }

    fn shift(&self, depth: usize) -> u32 {
        self.paging.levels.get(depth).map_or(0, |level| level.shift)
    }

    fn entries(&self) -> usize {
        if self.paging.mode == Mode::Legacy { 1024 } else { 512 }
    }

    /// Whether `next` continues `span`.
    fn continues(&self, span: &Span, next: &Span) -> bool {
        let rights = |span: &Span| (span.rights.user, span.rights.writable, span.rights.no_execute);
        span.gva.0 + span.len == next.gva.0
            && rights(span) == rights(next)
            && (self.alike == Alike::Rights
                || (span.gpa.0 + span.len == next.gpa.0 && span.flags == next.flags && span.shift == next.shift))
    }

    /// What is below the table at `gpa`, whose entries are those of `depth`.
    fn summary(&mut self, depth: usize, gpa: u64, rights: Rights) -> Summary {
        if let Some(known) = self.known.get(&(depth, gpa, rights)) {
            return *known;
        }
        if self.read >= MOST_TABLES {
            return Summary::Mixed;
        }
        let (table, shift, entries) = (self.table(gpa), self.shift(depth), self.entries());
        let mut so_far: Option<Span> = None;
        let mut summary = Summary::Mixed;
        for (i, raw) in table.iter().take(entries).enumerate() {
            let at = (i as u64) << shift;
            let next = match self.meaning(depth, *raw, rights, at) {
                (_, Some(span)) => Some(span),
                (Meaning::Table(below, rights), None) => match self.summary(depth + 1, below, rights) {
                    Summary::Mixed => break,
                    Summary::Nothing => None,
                    Summary::Whole(span) => Some(Span { gva: Gva(at), ..span }),
                },
                _ => None,
            };
            match (&mut so_far, next) {
                (None, None) => {}
                (None, Some(span)) if i == 0 => so_far = Some(span),
                (Some(span), Some(next)) if self.continues(span, &next) => span.len += next.len,
                _ => break,
            }
            if i + 1 == entries {
                summary = so_far.map_or(Summary::Nothing, Summary::Whole);
            }
        }
        self.known.insert((depth, gpa, rights), summary);
        summary
    }

    /// Adds what is below the table at `gpa`, whose first address is `base`.
    fn visit(&mut self, depth: usize, gpa: u64, base: u64, rights: Rights) -> ControlFlow<()> {
        let (table, shift, entries) = (self.table(gpa), self.shift(depth), self.entries());
        for (i, raw) in table.iter().take(entries).enumerate() {
            let at = base + ((i as u64) << shift);
            if at > self.range.1 || at + ((1 << shift) - 1) < self.range.0 {
                continue;
            }
            match self.meaning(depth, *raw, rights, at) {
                (_, Some(span)) => self.add(span)?,
                (Meaning::Table(below, rights), None) => self.child(depth + 1, below, at, rights)?,
                _ => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn child(&mut self, depth: usize, gpa: u64, base: u64, rights: Rights) -> ControlFlow<()> {
        match self.summary(depth, gpa, rights) {
            Summary::Nothing => ControlFlow::Continue(()),
            Summary::Whole(span) => self.add(Span { gva: Gva(base), ..span }),
            Summary::Mixed if self.read >= MOST_TABLES => self.give_up(base),
            Summary::Mixed => self.visit(depth, gpa, base, rights),
        }
    }

    /// Adds a span, cut to the range.
    fn add(&mut self, span: Span) -> ControlFlow<()> {
        let (first, last) = self.range;
        let skipped = first.saturating_sub(span.gva.0);
        let beyond = (span.gva.0 + (span.len - 1)).saturating_sub(last);
        if skipped.saturating_add(beyond) >= span.len {
            return ControlFlow::Continue(());
        }
        let span = Span {
            gva: self.extended(span.gva.0 + skipped),
            gpa: span.gpa.wrapping_add(skipped),
            len: span.len - skipped - beyond,
            ..span
        };
        if let Some(last) = self.found.spans.last()
            && last.gva.0.checked_add(last.len).is_some()
            && self.continues(last, &span)
        {
            if let Some(last) = self.found.spans.last_mut() {
                last.len += span.len;
            }
            return ControlFlow::Continue(());
        }
        if self.found.spans.len() >= self.most {
            return self.give_up(span.gva.0);
        }
        self.found.spans.push(span);
        ControlFlow::Continue(())
    }

    fn give_up(&mut self, at: u64) -> ControlFlow<()> {
        self.found.rest = Some(self.extended(at));
        ControlFlow::Break(())
    }

    /// The canonical form of an address.
    fn extended(&self, at: u64) -> Gva {
        let bits = self.paging.translated_bits();
        if bits == 32 { Gva(at) } else { Gva(((at << (64 - bits)) as i64 >> (64 - bits)) as u64) }
    }
}

#[cfg(test)]
mod tests;
