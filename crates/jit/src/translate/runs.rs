//! Loops whose accesses are checked once for many iterations.
//!
//! In a loop whose addresses all move by a constant in each iteration, as one over an array does, it is known when the
//! first of them leaves its page. So there is a second copy of such a loop, without checks. The jump back to the loop's
//! beginning goes to what finds the entries of all pages in the TLB, and from the distances to their ends how many
//! iterations may be made: a *run*, at whose end one of the registers that move has a value known beforehand. Then an
//! iteration with checks is next, which comes to other pages, if it has to, and to the next run.
//!
//! Nothing in a run leaves translated code and comes back, so that the TLB stays as it is meanwhile. It is not
//! interrupted either: it ends after as many iterations as a page has bytes, at most.
//!
//! A loop here is a row of blocks that follow each other, with jumps out between them, of 64-bit code.

use super::groups::{Group, Plan, Value, Values};
use super::memory::Address;
use super::{Job, Refused, State};
use crate::asm::{Cond, Label, Mem, Reg};
use crate::classify::{Class, Mode};
use crate::frame::{Frame, SLOTS};
use crate::log::Part;
use crate::region::{Block, Entry, Goal, Insn, Region};
use crate::regs::{Place, T0, T1, field, place};
use iced_x86::Register;
use memory::tlb::Entry as TlbEntry;
use std::mem::offset_of;
use std::ops::RangeInclusive;
use x86::PAGE_SIZE;

/// The most instructions of a loop that there is a copy of.
const INSTRUCTIONS: usize = 64;
/// The most bytes that an address may move in an iteration: runs are to have some.
const STRIDE: u64 = 256;

/// A loop that can run without checks.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// Its blocks, of which the last one jumps to the first.
    blocks: RangeInclusive<usize>,
    /// Its accesses, in groups whose addends are all kept.
    plan: Plan,
    /// By how many bytes the addresses of each group move.
    strides: Vec<i64>,
    /// A register that moves, and how far.
    counter: (Reg, i64),
    /// Where it is begun.
    at: Label,
}

/// All loops of `region` that can run without checks.
pub(super) fn find(region: &Region, label: impl FnMut() -> Label) -> Vec<Run> {
    let mut label = label;
    let found = region.blocks.iter().enumerate().filter_map(|(last, block)| {
        let Goal::Block(first) = block.target else { return None };
        let insns = path(region, first..=last)?;
        let (plan, strides, counter) = plan(&insns, region.mode)?;
        Some(Run { blocks: first..=last, plan, strides, counter, at: label() })
    });
    found.collect()
}

/// The instructions of the loop that these blocks are, if it is one of the kind there can be a copy of.
fn path(region: &Region, blocks: RangeInclusive<usize>) -> Option<Vec<&Insn>> {
    let (first, last) = (*blocks.start(), *blocks.end());
    let all = region.blocks.get(blocks.clone()).filter(|all| !all.is_empty())?;
    let entered = matches!(region.blocks.get(first)?.entry, Entry::Dead | Entry::Numbered | Entry::Frame);
    let follows = |(n, block): (usize, &Block)| n == last || block.next == Goal::Block(n + 1);
    let inside = |block: &Block| matches!(block.target, Goal::Block(to) if blocks.contains(&to));
    let straight = (first..).zip(all).all(follows) && all.iter().filter(|block| inside(block)).count() == 1;
    let jumps = region.last(all.last()?)?.class == Class::Jcc;
    let insns: Vec<&Insn> = all.iter().flat_map(|block| region.insns(block)).collect();
    (entered && straight && jumps && insns.len() <= INSTRUCTIONS).then_some(insns)
}

/// What is done with the accesses of a loop, by how much each group of them moves, and a register that moves. `None`: not
/// all move by constants.
fn plan(insns: &[&Insn], mode: Mode) -> Option<(Plan, Vec<i64>, (Reg, i64))> {
    if mode.legacy.is_some() || mode.counts {
        return None;
    }
    let mut values = Values::new(mode);
    let mut plan = Plan { members: vec![None; insns.len()], ..Plan::default() };
    for (n, insn) in insns.iter().enumerate() {
        if !matches!(insn.class, Class::Plain | Class::Nop | Class::Lea | Class::Jcc) {
            return None;
        }
        if insn.memory.is_some() {
            plan.add(n, &values.access(insn)?, 0);
            plan.members.get(n).copied().flatten()?;
        }
        values.step(insn);
    }
    // What a register that holds `unknown` at the beginning has moved by at the end.
    let moved = |unknown: u32| {
        let Value { unknown: now, distance } = *values.registers.get(unknown as usize)?;
        (now == unknown).then_some(distance)
    };
    let mut strides = Vec::with_capacity(plan.groups.len());
    for (n, group) in plan.groups.iter_mut().enumerate() {
        let base = group.key.base.map_or(Some(0), moved)?;
        let index =
            group.key.index.map_or(Some(0), |(value, scale)| moved(value.unknown)?.checked_mul(scale.into()))?;
        let stride = base.checked_add(index).filter(|stride| stride.unsigned_abs() <= STRIDE)?;
        strides.push(stride);
        group.kept = Some(n).filter(|n| *n < super::groups::KEPT);
        group.kept?;
        // None of them checks anything.
        group.first = usize::MAX;
    }
    let counter = (0..16).find_map(|register: Reg| {
        let distance = moved(register.into()).filter(|distance| *distance != 0 && i32::try_from(*distance).is_ok())?;
        matches!(place(register), Place::Host(_)).then_some((register, distance))
    });
    strides.iter().any(|stride| *stride != 0).then_some((plan, strides, counter?))
}

/// The lowest address of a group when an iteration begins.
fn lowest(group: &Group) -> Option<Address> {
    let register = |unknown: u32| Some(place(Reg::try_from(unknown).ok()?));
    let (index, by) = match group.key.index {
        Some((value, scale)) => {
            (Some((register(value.unknown)?, scale.trailing_zeros() as u8)), value.distance.checked_mul(scale.into())?)
        }
        None => (None, 0),
    };
    Some(Address {
        base: match group.key.base {
            Some(unknown) => Some(register(unknown)?),
            None => None,
        },
        index,
        disp: i32::try_from(group.low().checked_add(by)?).ok()?,
        page: group.key.page.then_some(field(offset_of!(Frame, base))),
        segment: match group.key.segment {
            Register::FS => Some(field(offset_of!(Frame, fs))),
            Register::GS => Some(field(offset_of!(Frame, gs))),
            _ => None,
        },
        bits: None,
        narrow: None,
    })
}

impl State {
    /// Whether the flags are wherever `other` says, too.
    fn covers(&self, other: &Self) -> bool {
        let recipe = other.recipe.is_none() || other.recipe == self.recipe;
        self.rflags >= other.rflags && self.frame >= other.frame && self.numbered >= other.numbered && recipe
    }
}

impl Job<'_> {
    /// Where the jump from the end of block `n` to `to` goes, if a run may begin there.
    pub(super) fn begins_run(&self, n: usize, to: Goal) -> Option<Label> {
        let Goal::Block(first) = to else { return None };
        let run = self.runs.iter().find(|run| run.blocks == (first..=n))?;
        Some(run.at).filter(|_| !self.running)
    }

    /// Puts the flags where block `n` inherits them, which has been emitted with those of its other copy.
    pub(super) fn inherit(&mut self, n: usize) -> Result<(), Refused> {
        let entry = *self.entry.get(n).ok_or(Refused)?;
        if entry.frame {
            self.keep_flags();
        }
        if entry.numbered && !self.state.numbered {
            self.number_flags(self.region.before(n).changed);
            self.state.numbered = true;
        }
        if self.state.covers(&entry) { Ok(()) } else { Err(Refused) }
    }

    /// Emits the copies without checks.
    pub(super) fn emit_runs(&mut self) -> Result<(), Refused> {
        self.running = true;
        for n in 0..self.runs.len() {
            let run = self.runs.get(n).ok_or(Refused)?.clone();
            let first = *self.labels.get(*run.blocks.start()).ok_or(Refused)?;
            self.asm.bind(run.at);
            if self.begin_run(&run, first)?.is_some() {
                self.iterate(run, first)?;
            } else {
                self.asm.jmp(first);
            }
        }
        self.running = false;
        Ok(())
    }

    /// Finds the pages of all groups, and how many iterations there may be; goes to `first` if there may be none. `None`:
    /// some group has no site that remembers its page.
    fn begin_run(&mut self, run: &Run, first: Label) -> Result<Option<()>, Refused> {
        let region = self.region;
        let insns = region.blocks.get(run.blocks.clone()).into_iter().flatten();
        let insns: Vec<&Insn> = insns.flat_map(|block| region.insns(block)).collect();
        let site = |group: usize| {
            let mut members =
                run.plan.members.iter().zip(&insns).filter_map(|(member, insn)| Some((member.as_ref()?, insn)));
            members.find_map(|(member, insn)| {
                let own = self.checked.iter().find(|(offset, _)| member.group == group && *offset == insn.offset);
                own.map(|(_, site)| *site)
            })
        };
        let Some(sites) = (0..run.plan.groups.len()).map(site).collect::<Option<Vec<u32>>>() else { return Ok(None) };
        let bound = field(offset_of!(Frame, bound));
        let block = region.blocks.get(*run.blocks.start()).ok_or(Refused)?;
        self.listing.mark(self.asm.here(), Part::Run, block.offset);
        let mut bounded = false;
        for (n, ((group, stride), site)) in run.plan.groups.iter().zip(&run.strides).zip(sites).enumerate() {
            let limit = PAGE_SIZE as i32 - i32::from(group.span());
            self.effective(&lowest(group).ok_or(Refused)?);
            self.asm.load32(T1, field(SLOTS + 4 * site as usize));
            self.asm.sub_mem(T0, Mem::gs(T1, if group.write { TlbEntry::WRITE } else { TlbEntry::READ } as i32));
            self.asm.cmp_imm(T0, limit);
            self.asm.jcc(Cond::A, first);
            self.asm.load(T1, Mem::gs(T1, TlbEntry::ADDEND as i32));
            self.asm.store(addend(n), T1);
            if *stride == 0 {
                continue;
            }
            if *stride > 0 {
                // What is left of the page behind it.
                self.asm.not(T0);
                self.asm.lea(T0, Mem::at(T0, limit + 1));
            }
            let shift = stride.unsigned_abs().next_power_of_two().trailing_zeros() as u8;
            if shift != 0 {
                self.asm.shr(T0, shift);
            }
            let less = self.asm.label();
            if bounded {
                self.asm.cmp_mem(T0, bound);
                self.asm.jcc(Cond::AE, less);
            }
            self.asm.store(bound, T0);
            self.asm.bind(less);
            bounded = true;
        }
        let (register, distance) = run.counter;
        let Place::Host(counter) = place(register) else { return Err(Refused) };
        self.asm.load(T0, bound);
        self.asm.lea(T0, Mem::at(T0, 1));
        // IMUL T0, T0, distance.
        self.asm.rr(true, &[0x69], T0, T0);
        self.asm.raw(&i32::try_from(distance).map_err(|_| Refused)?.to_le_bytes());
        self.asm.add(T0, counter);
        self.asm.store(bound, T0);
        Ok(Some(()))
    }

    /// The iterations of a run, after which it goes on at `first`.
    fn iterate(&mut self, run: Run, first: Label) -> Result<(), Refused> {
        let region = self.region;
        let (start, end) = (*run.blocks.start(), *run.blocks.end());
        let Place::Host(counter) = place(run.counter.0) else { return Err(Refused) };
        // The last group's addend is in T1.
        let resident = run.plan.groups.len().checked_sub(1).map(|group| (group, None));
        self.plan = run.plan;
        self.resident = resident;
        self.at = 0;
        let again = self.asm.label();
        self.asm.bind(again);
        for n in run.blocks {
            let block = region.blocks.get(n).ok_or(Refused)?;
            if n == start || block.entry != Entry::Inherited {
                self.enter_block(n)?;
            }
            let insns = region.insns(block);
            let last = insns.last().ok_or(Refused)?;
            for insn in insns.iter().take(if n == end { insns.len() - 1 } else { insns.len() }) {
                self.insn(n, insn)?;
                self.at += 1;
            }
            if n != end {
                if region.blocks.get(n + 1).ok_or(Refused)?.entry != Entry::Inherited {
                    self.arrange(block.next)?;
                }
                continue;
            }
            self.listing.mark(self.asm.here(), Part::Run, last.offset);
            self.need_flags();
            self.arrange(block.target)?;
            let (out, cond) = (self.asm.label(), last.condition());
            self.asm.jcc(Cond(cond.0 ^ 1), out);
            if let Some((group, _)) = resident.filter(|_| self.resident != resident) {
                self.asm.load(T1, addend(group));
            }
            self.asm.cmp_mem(counter, field(offset_of!(Frame, bound)));
            self.asm.jcc(Cond::NE, again);
            self.asm.jmp(first);
            self.asm.bind(out);
            if self.go_on(n, last)? {
                self.jump(block.next)?;
            }
        }
        Ok(())
    }
}

/// Where in the frame the addend of group `n` is.
fn addend(n: usize) -> Mem {
    field(offset_of!(Frame, addends) + 8 * n)
}

#[cfg(test)]
mod tests;
