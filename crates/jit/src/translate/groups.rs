//! Which accesses of a block can share one check.
//!
//! Stack frames, structures and unrolled loops are accessed at fixed distances from each other. Addresses are compared
//! by what is known of their registers: a value that nothing is known of gets a number of its own, and additions of
//! constants, copies, pushes and pops only move the distance from it. Accesses whose distances lie close together form
//! a group. Its first member checks that all of them lie in one page, and then none of the others is checked.
//!
//! Whatever comes between the first and the last member of a group is a *cluster*. Who finds that a group does not lie in
//! one page that may be accessed goes on in code that checks each access, up to the next block; it is made when it is
//! needed (see `Job::careful`).

use super::legacy;
use super::memory::bit_offset;
use super::system::separates;
use crate::classify::{Class, Mode};
use crate::region::Insn;
use crate::regs::{Place, place};
use iced_x86::{Mnemonic, OpKind, Register};
use std::ops::RangeInclusive;

/// The most bytes between the first and the last of a group.
const SPAN: i64 = 384;
/// The most groups of a block that need their addend kept in the frame.
pub const KEPT: usize = 8;

/// An access as a member of a group.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Which group.
    pub group: usize,
    /// Distance of its base register from the group's origin.
    pub delta: i32,
}

/// Accesses that share a check.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The first member's instruction.
    pub first: usize,
    last: usize,
    members: usize,
    /// What its members' addresses have in common.
    pub(super) key: Key,
    /// Of the lowest byte and behind the highest one, from the origin.
    low: i64,
    high: i64,
    /// Whether any member writes.
    pub write: bool,
    /// Where in the frame the addend is kept for members that do not find it in T1.
    pub kept: Option<usize>,
}

impl Group {
    /// Bytes from its lowest to its highest.
    #[must_use]
    pub fn span(&self) -> u16 {
        (self.high - self.low) as u16
    }

    /// Distance from the origin of its lowest byte.
    #[must_use]
    pub fn low(&self) -> i64 {
        self.low
    }
}

/// What is done with the accesses of a block.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// For each instruction its access, if that is in a group.
    pub members: Vec<Option<Member>>,
    /// The groups.
    pub groups: Vec<Group>,
    /// Ranges of instructions.
    pub clusters: Vec<RangeInclusive<usize>>,
}

/// A register's value: an unknown and a distance from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    /// The unknown: below 16 what the register of that number held at the beginning.
    pub unknown: u32,
    /// The distance, in bytes.
    pub distance: i64,
}

/// What addresses that can be compared have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// The unknown of its base register.
    pub base: Option<u32>,
    /// Its index register's value, and its scale.
    pub index: Option<(Value, u32)>,
    /// FS or GS.
    pub segment: Register,
    /// Whether it is relative to RIP.
    pub page: bool,
}

/// An access, seen from its origin.
pub(super) struct Access {
    key: Key,
    base: i64,
    offset: i64,
    size: i64,
    write: bool,
}

/// What is known of the registers.
pub(super) struct Values {
    /// Each one's value.
    pub registers: [Value; 16],
    next: u32,
    mode: Mode,
}

impl Values {
    pub fn new(mode: Mode) -> Self {
        let registers = std::array::from_fn(|n| Value { unknown: n as u32, distance: 0 });
        Self { registers, next: 16, mode }
    }

    /// Whether all of the register takes part in addresses.
    fn whole(&self, register: Register) -> bool {
        if self.mode.legacy.is_some() { register.is_gpr32() } else { register.is_gpr64() }
    }

    /// What is added to an address, which wraps at 4 GiB outside 64-bit mode.
    fn signed(&self, value: u64) -> i64 {
        if self.mode.legacy.is_some() { (value as u32).cast_signed().into() } else { value.cast_signed() }
    }

    fn of(&self, register: Register) -> Value {
        self.registers[register.full_register().number() & 15]
    }

    fn set(&mut self, register: Register, value: Value) {
        self.registers[register.full_register().number() & 15] = value;
    }

    fn moved(&self, register: Register, by: i64) -> Value {
        let value = self.of(register);
        Value { distance: self.signed(value.distance.wrapping_add(by).cast_unsigned()), ..value }
    }

    /// The access of an instruction with just one.
    pub fn access(&self, insn: &Insn) -> Option<Access> {
        let word = i64::from(insn.word);
        let stack = |register: Register, by: i64, write: bool| {
            let value = self.of(register);
            let key = Key { base: Some(value.unknown), index: None, segment: Register::None, page: false };
            let offset = self.moved(register, by).distance;
            Some(Access { key, base: value.distance, offset, size: word, write })
        };
        let i = &insn.i;
        match insn.class {
            Class::Push if i.op0_kind() != OpKind::Memory => stack(Register::RSP, -word, true),
            Class::Call => stack(Register::RSP, -word, true),
            Class::Pop | Class::Ret => stack(Register::RSP, 0, false),
            Class::Leave => stack(Register::RBP, 0, false),
            Class::Plain if bit_offset(i).is_none() => {
                let write = insn.memory?;
                let register = i.memory_base();
                let base = self.whole(register).then(|| self.of(register));
                let index = i.memory_index();
                if let Some(legacy) = self.mode.legacy {
                    let whole = |register: Register| register == Register::None || self.whole(register);
                    let short = base.is_none() && i.memory_displ_size() == 2;
                    if !legacy::is_flat(i.memory_segment(), legacy) || short || !whole(register) || !whole(index) {
                        return None;
                    }
                }
                if self.whole(index) && matches!(place(index.number() as u8), Place::Home(_)) {
                    return None;
                }
                let segment = match i.memory_segment() {
                    segment @ (Register::FS | Register::GS) => segment,
                    _ => Register::None,
                };
                let key = Key {
                    base: base.map(|value| value.unknown),
                    index: self.whole(index).then(|| (self.of(index), i.memory_index_scale())),
                    segment,
                    page: register == Register::RIP,
                };
                let base = base.map_or(0, |value| value.distance);
                let offset = base.wrapping_add(self.signed(i.memory_displacement64()));
                let offset = self.signed(offset.cast_unsigned());
                Some(Access { key, base, offset, size: i.memory_size().size() as i64, write })
            }
            _ => None,
        }
    }

    /// What registers hold after `insn`.
    pub fn step(&mut self, insn: &Insn) {
        let i = &insn.i;
        let word = i64::from(insn.word);
        let stack = |from: Register, by: i64| Some((Register::RSP, self.moved(from, by)));
        let known = match insn.class {
            Class::Push => stack(Register::RSP, -word),
            Class::Pop if i.op0_register().full_register() != Register::RSP => stack(Register::RSP, word),
            Class::Leave => stack(Register::RBP, word),
            Class::Lea if self.whole(i.op0_register()) && i.memory_index() == Register::None => {
                let base = i.memory_base();
                let by = self.signed(i.memory_displacement64());
                self.whole(base).then(|| (i.op0_register(), self.moved(base, by)))
            }
            Class::Plain if i.op_count() > 0 && i.op0_kind() == OpKind::Register && self.whole(i.op0_register()) => {
                let to = i.op0_register();
                let immediate = i.op_count() > 1 && i.op1_kind() != OpKind::Register && i.op1_kind() != OpKind::Memory;
                let by = if immediate { self.signed(i.immediate(1)) } else { 0 };
                match i.mnemonic() {
                    Mnemonic::Add if immediate => Some((to, self.moved(to, by))),
                    Mnemonic::Sub if immediate => Some((to, self.moved(to, by.wrapping_neg()))),
                    Mnemonic::Inc => Some((to, self.moved(to, 1))),
                    Mnemonic::Dec => Some((to, self.moved(to, -1))),
                    Mnemonic::Mov if i.op1_kind() == OpKind::Register => Some((to, self.of(i.op1_register()))),
                    _ => None,
                }
            }
            _ => None,
        };
        for n in (0..16).filter(|n| insn.changes >> n & 1 != 0) {
            self.registers[n] = Value { unknown: self.next, distance: 0 };
            self.next += 1;
        }
        if let Some((to, value)) = known {
            self.set(to, value);
        }
    }
}

impl Plan {
    /// For a block's instructions, which are code of `mode`.
    #[must_use]
    pub fn of(insns: &[Insn], mode: Mode) -> Self {
        let mut plan = Self { members: vec![None; insns.len()], ..Self::default() };
        // Whose segments have limits are checked one by one, as are the short addresses of 16-bit code.
        if mode.legacy.is_some_and(|legacy| !legacy.flat || !legacy.wide) {
            return plan;
        }
        let mut values = Values::new(mode);
        // Groups from here on may still grow.
        let mut open = 0;
        for (n, insn) in insns.iter().enumerate() {
            if let Some(access) = values.access(insn) {
                plan.add(n, &access, open);
            }
            values.step(insn);
            if separates(insn) {
                open = plan.groups.len();
            }
        }
        plan.settle(insns);
        plan
    }

    /// Puts the access of instruction `n` into a group, of which those from `open` on may grow.
    pub(super) fn add(&mut self, n: usize, access: &Access, open: usize) {
        let Access { key, base, offset, size, write } = *access;
        let Ok(delta) = i32::try_from(base) else { return };
        let fits = |group: &Group| {
            let (low, high) = (group.low.min(offset), group.high.max(offset + size));
            group.key == key && high - low <= SPAN
        };
        let found = (open..self.groups.len()).rev().find(|g| self.groups.get(*g).is_some_and(fits));
        let group = found.unwrap_or(self.groups.len());
        match self.groups.get_mut(group) {
            Some(group) => {
                group.last = n;
                group.members += 1;
                (group.low, group.high) = (group.low.min(offset), group.high.max(offset + size));
                group.write |= write;
            }
            None => {
                let (low, high) = (offset, offset + size);
                self.groups.push(Group { first: n, last: n, members: 1, key, low, high, write, kept: None });
            }
        }
        if let Some(member) = self.members.get_mut(n) {
            *member = Some(Member { group, delta });
        }
    }

    /// Drops groups of one, finds which addends must be kept, and what lies within groups.
    fn settle(&mut self, insns: &[Insn]) {
        let groups = &self.groups;
        for member in &mut self.members {
            *member = member.filter(|member| groups.get(member.group).is_some_and(|group| group.members > 1));
        }
        let mut kept = 0;
        let mut resident = None;
        for (n, insn) in insns.iter().enumerate() {
            let member = self.members.get(n).copied().flatten();
            if let Some(member) = member
                && let Some(group) = self.groups.get_mut(member.group)
            {
                if group.first != n && resident != Some(member.group) && group.kept.is_none() {
                    if kept < KEPT {
                        group.kept = Some(kept);
                    }
                    kept += 1;
                }
                resident = Some(member.group);
            }
            if changes_t1(insn, member.is_some()) {
                resident = None;
            }
        }
        if kept > KEPT {
            // More than there is room for: such a block is better off without.
            self.members.fill(None);
            self.groups.clear();
            return;
        }
        let mut ranges: Vec<_> =
            self.groups.iter().filter(|group| group.members > 1).map(|g| (g.first, g.last)).collect();
        ranges.sort_unstable();
        for (first, last) in ranges {
            match self.clusters.last_mut() {
                Some(cluster) if first <= *cluster.end() => *cluster = *cluster.start()..=last.max(*cluster.end()),
                _ => self.clusters.push(first..=last),
            }
        }
    }
}

/// Whether T1 no longer holds after `insn` what it held before, or what `insn`, being a member, has put there.
fn changes_t1(insn: &Insn, member: bool) -> bool {
    let accesses = insn.memory.is_some() || insn.clobbers();
    let homed = |register: Register| {
        register.is_gpr() && matches!(place(register.full_register().number() as u8), Place::Home(_))
    };
    let operands = (0..insn.i.op_count()).filter(|n| insn.i.op_kind(*n) == OpKind::Register);
    let homes = operands.filter(|n| homed(insn.i.op_register(*n))).count();
    let index = insn.class == Class::Lea && (homed(insn.i.memory_index()) || homed(insn.i.op0_register()));
    (accesses && !member) || homes > 1 || index || insn.class.ends()
}
