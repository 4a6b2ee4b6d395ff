//! Memory operands: the check of an access, and what the operand becomes.
//!
//! An access of `size` bytes at `ea`, whose site remembers that its page's TLB entry is `T1` bytes into the table:
//!
//! ```text
//! lea  T0, [ea]
//! mov  T1d, [slot]            ; what the site remembers
//! sub  T0, gs:[T1+comparator] ; GS: the current table
//! cmp  T0, 4096-size          ; in that page, all of it, and nothing to be said against it?
//! ja   slow                   ; find the entry by the address, and remember it
//! mov  T1, gs:[T1+addend]
//! op   reg, [ea+T1]
//! ```
//!
//! Neither the entry nor the addend depends on the address, so the processor predicts its way past the check.

use super::groups::Member;
use super::legacy::{self, Narrow};
use super::{Cold, Job, Refused, State};
use crate::asm::{Cond, Mem, Reg};
use crate::classify::{Mode, Units};
use crate::frame::{Frame, SLOTS};
use crate::region::Insn;
use crate::regs::{Place, T0, T1, T2, field, place};
use crate::sites::{self, Kind};
use crate::stats::Inline;
use crate::thunks::recordable;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use memory::tlb::Entry;
use std::mem::offset_of;

/// An effective address in guest terms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub base: Option<Place>,
    /// And log2 of its scale.
    pub index: Option<(Place, u8)>,
    pub disp: i32,
    /// The page's address in the frame, for operands relative to RIP.
    pub page: Option<Mem>,
    /// The base of FS or GS in the frame.
    pub segment: Option<Mem>,
    /// A register that counts bits from there, and its size in bytes: BT and its like. The host adds it by itself, but
    /// it decides which word is accessed.
    pub bits: Option<(Place, u8)>,
    /// In 32- and 16-bit code.
    pub narrow: Option<Narrow>,
}

/// The register operand of BT and its like with a memory operand.
pub(super) fn bit_offset(i: &Instruction) -> Option<Register> {
    let bits = matches!(i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && i.op0_kind() == OpKind::Memory
        && i.op1_kind() == OpKind::Register;
    bits.then(|| i.op1_register())
}

/// How the operand of `insn`, of `size` bytes, must be aligned so that nothing can be wrong but with its page: what
/// [`sites::Group::ahead`] says. A page is not to be marked dirty for an instruction that faults before its write.
fn ahead(insn: &Insn, size: u32, write: bool) -> u8 {
    let moves = matches!(
        insn.i.mnemonic(),
        Mnemonic::Movaps
            | Mnemonic::Movups
            | Mnemonic::Movapd
            | Mnemonic::Movupd
            | Mnemonic::Movdqa
            | Mnemonic::Movdqu
            | Mnemonic::Movss
            | Mnemonic::Movsd
            | Mnemonic::Movq
            | Mnemonic::Vmovups
            | Mnemonic::Vmovdqu
            | Mnemonic::Vmovdqa
            | Mnemonic::Vmovss
            | Mnemonic::Vmovsd
    );
    match size {
        _ if write && insn.units != Units::default() && !(moves && insn.units.vector) => 0,
        0..16 => 1,
        _ => size.next_power_of_two() as u8,
    }
}

impl Address {
    /// Of the memory operand of `i`. `None`: it has no form here.
    pub fn of(i: &Instruction, mode: Mode) -> Option<Self> {
        if let Some(legacy) = mode.legacy {
            return legacy::address(i, legacy);
        }
        let disp = i32::try_from(i.memory_displacement64().cast_signed()).ok()?;
        let segment = match i.memory_segment() {
            Register::FS => Some(field(offset_of!(Frame, fs))),
            Register::GS => Some(field(offset_of!(Frame, gs))),
            _ => None,
        };
        let bits =
            bit_offset(i).map(|register| (place(register.full_register().number() as Reg), register.size() as u8));
        if i.memory_base() == Register::RIP {
            let page = Some(field(offset_of!(Frame, base)));
            return Some(Self { base: None, index: None, disp, page, segment, bits, narrow: None });
        }
        let guest = |register: Register| register.is_gpr64().then(|| place(register.number() as Reg));
        let base = match i.memory_base() {
            Register::None => None,
            register => Some(guest(register)?),
        };
        let index = match i.memory_index() {
            Register::None => None,
            register => Some((guest(register)?, i.memory_index_scale().trailing_zeros() as u8)),
        };
        Some(Self { base, index, disp, page: None, segment, bits, narrow: None })
    }

    /// On the stack, `disp` bytes from guest register `register`.
    pub fn off(register: Reg, disp: i32, mode: Mode) -> Self {
        let narrow = mode.legacy.map(legacy::stack);
        Self { base: Some(place(register)), index: None, disp, page: None, segment: None, bits: None, narrow }
    }
}

impl Job<'_> {
    /// Puts the effective address into T0.
    pub(super) fn effective(&mut self, address: &Address) {
        let Address { base, index, disp, page, segment, .. } = *address;
        let mut segment = segment;
        match (base, index) {
            (Some(Place::Host(base)), None) if disp == 0 => self.asm.mov(T0, base),
            (Some(Place::Host(base)), None) => self.asm.lea(T0, Mem::at(base, disp)),
            (Some(Place::Host(base)), Some((Place::Host(index), shift))) => {
                self.asm.lea(T0, Mem::at(base, disp).index(index, shift));
            }
            (None, Some((Place::Host(index), shift))) => {
                self.asm.lea(T0, Mem { index: Some((index, shift)), disp, ..Mem::default() });
            }
            (Some(Place::Home(home)), index) if !matches!(index, Some((Place::Home(_), _))) => {
                self.asm.load(T0, home);
                let sum = match index {
                    Some((Place::Host(index), shift)) => Mem::at(T0, disp).index(index, shift),
                    _ => Mem::at(T0, disp),
                };
                if sum != Mem::at(T0, 0) {
                    self.asm.lea(T0, sum);
                }
            }
            (base, Some((Place::Home(home), shift))) => {
                self.asm.load(T0, home);
                let scaled = Mem { index: Some((T0, shift)), disp, ..Mem::default() };
                match base {
                    Some(Place::Host(base)) => self.asm.lea(T0, Mem { base: Some(base), ..scaled }),
                    Some(Place::Home(base)) => {
                        self.asm.lea(T0, scaled);
                        self.asm.add_mem(T0, base);
                    }
                    None => self.asm.lea(T0, scaled),
                }
            }
            // A displacement alone, or from a base in the frame.
            _ => match page.or_else(|| segment.take()) {
                Some(from) => {
                    self.asm.load(T0, from);
                    if disp != 0 {
                        self.asm.lea(T0, Mem::at(T0, disp));
                    }
                }
                None => {
                    // MOV of a sign-extended immediate.
                    self.asm.rr(true, &[0xc7], 0, T0);
                    self.asm.raw(&disp.to_le_bytes());
                }
            },
        }
        if let Some(segment) = segment {
            self.asm.add_mem(T0, segment);
        }
    }

    /// Makes the one access of `insn` possible. Gives the host's operand, of which T1 is a part; T0 is free. The
    /// host's flags are lost if [`Job::checks`] says so.
    pub(super) fn access(&mut self, insn: &Insn, address: &Address, size: u32, write: bool) -> Result<Mem, Refused> {
        match self.member() {
            Some(member) => self.grouped(insn, address, member, write),
            None => self.lone(insn, address, size, write),
        }
    }

    /// Whether the current instruction's access is checked, and the host's flags are lost to that.
    pub(super) fn checks(&self) -> bool {
        self.member().is_none_or(|member| self.leads(member))
    }

    /// The current instruction's place in a group.
    fn member(&self) -> Option<Member> {
        self.plan.members.get(self.at).copied().flatten()
    }

    fn leads(&self, member: Member) -> bool {
        self.plan.groups.get(member.group).is_some_and(|group| group.first == self.at)
    }

    /// An access with a check of its own.
    fn lone(&mut self, insn: &Insn, address: &Address, size: u32, write: bool) -> Result<Mem, Refused> {
        self.lose_flags(insn);
        let site = self.site(
            insn.offset,
            insn.end(),
            Kind::Access { size: size as u8, write, ahead: ahead(insn, size, write) },
        );
        self.check(site, address, size, write, None)?;
        if self.region.mode.records {
            self.record(insn, size, write)?;
        }
        self.accesses.push(site);
        self.resident = None;
        Ok(self.translated(address))
    }

    /// The check itself: leaves the addend in T1. `group`: where the flags are if it is one for a group.
    fn check(
        &mut self,
        site: u32,
        address: &Address,
        size: u32,
        write: bool,
        group: Option<State>,
    ) -> Result<(), Refused> {
        self.sites.covers(self.asm.here(), site);
        self.count(offset_of!(Inline, accesses));
        let (retry, at, hit) = (self.asm.label(), self.asm.label(), self.asm.label());
        let limit = 4096 - size;
        self.asm.bind(retry);
        if let Some(narrow) = address.narrow {
            self.narrow(address, narrow, site, size, write)?;
        } else {
            self.effective(address);
            if let Some((bits, size)) = address.bits {
                self.add_words(bits, size);
            }
        }
        let records = self.region.mode.records;
        if records {
            self.asm.store(field(offset_of!(Frame, accessed)), T0);
        }
        self.asm.load32(T1, field(SLOTS + 4 * site as usize));
        self.asm.sub_mem(T0, Mem::gs(T1, if write { Entry::WRITE } else { Entry::READ } as i32));
        if records {
            recordable(self.asm);
        }
        self.asm.cmp_imm(T0, limit as i32);
        self.asm.jcc(Cond::A, at);
        self.asm.load(T1, Mem::gs(T1, Entry::ADDEND as i32));
        self.asm.bind(hit);
        if !self.runs.is_empty() {
            self.checked.extend(self.sites.get(site).map(|known| (known.offset, site)));
        }
        self.cold.push(Cold::Access { at, site, size, write, retry, hit, group });
        Ok(())
    }

    /// Adds to T0 the words of `size` (4 or 8) bytes that a bit offset spans. Uses T1.
    fn add_words(&mut self, bits: Place, size: u8) {
        let opcode = if size == 8 { 0x8b } else { 0x63 };
        match bits {
            Place::Host(from) => self.asm.rr(true, &[opcode], T1, from),
            Place::Home(home) => self.asm.rm(true, &[opcode], T1, home),
        }
        self.asm.sar(T1, if size == 8 { 6 } else { 5 });
        self.asm.lea(T0, Mem::at(T0, 0).index(T1, if size == 8 { 3 } else { 2 }));
    }

    /// Where the check for a group goes that cannot be helped: to the code that checks each access, once that exists.
    pub(super) fn leave_group(&mut self, site: u32, state: State) -> Result<(), Refused> {
        match state {
            State { numbered: true, .. } => {}
            State { frame: false, recipe: Some(recipe), .. } => {
                let number = self.sites.number(recipe);
                self.asm.store_imm32(field(offset_of!(Frame, recipe)), number);
            }
            _ => self.asm.store_imm32(field(offset_of!(Frame, recipe)), 0),
        }
        self.asm.jmp_to(self.thunks.missed);
        let at = self.asm.here() as u32 - 4;
        if let Some(Kind::Group(group)) = self.sites.get_mut(site).map(|site| &mut site.kind) {
            group.patch = at;
        }
        Ok(())
    }

    /// An access that shares its group's check.
    fn grouped(&mut self, insn: &Insn, address: &Address, member: Member, write: bool) -> Result<Mem, Refused> {
        let group = *self.plan.groups.get(member.group).ok_or(Refused)?;
        let kept = group.kept.map(|n| field(offset_of!(Frame, addends) + 8 * n));
        // With a base in a register the operand is that register plus the addend. Else T1 gets the sum of the addend
        // and of all that is the same for all members, with the base as it is at that time.
        let simple =
            matches!(address.base, Some(Place::Host(_))) && address.index.is_none() && address.segment.is_none();
        if group.first == self.at {
            self.lose_flags(insn);
            let low = i32::try_from(group.low() - i64::from(member.delta)).map_err(|_| Refused)?;
            let own = u16::try_from(i64::from(address.disp) - i64::from(low)).map_err(|_| Refused)?;
            let kind = sites::Group {
                span: group.span(),
                write: group.write,
                own,
                own_write: write,
                ahead: ahead(insn, insn.i.memory_size().size() as u32, write),
                flags: insn.before,
                patch: 0,
            };
            let site = self.site(insn.offset, insn.end(), Kind::Group(kind));
            let lowest = Address { disp: low, ..*address };
            self.check(site, &lowest, group.span().into(), group.write, Some(self.state))?;
            if address.narrow.is_some() {
                self.asm.add(T1, T2);
            }
            self.resident = Some((member.group, None));
            if let Some(kept) = kept {
                self.asm.store(kept, T1);
            }
        } else {
            let site = self.site(insn.offset, insn.end(), Kind::Instruction);
            self.sites.covers(self.asm.here(), site);
            if self.resident.is_none_or(|(resident, _)| resident != member.group) {
                self.asm.load(T1, kept.ok_or(Refused)?);
                self.resident = Some((member.group, None));
            }
        }
        if address.narrow.is_some() {
            // T1 is the host's address of the group's lowest byte.
            let from = address.disp.wrapping_add(member.delta);
            return Ok(Mem::at(T1, i32::try_from(i64::from(from) - group.low()).map_err(|_| Refused)?));
        }
        let base = self.resident.and_then(|(_, base)| base);
        if simple && base.is_none() {
            return Ok(self.translated(address));
        }
        let from = match base {
            Some(from) => from,
            None => {
                for from in [address.page, address.segment].into_iter().flatten() {
                    self.add_t1(from);
                }
                match address.base {
                    Some(Place::Host(base)) => self.asm.lea(T1, Mem::at(T1, 0).index(base, 0)),
                    Some(Place::Home(home)) => self.add_t1(home),
                    None => {}
                }
                member.delta
            }
        };
        self.resident = Some((member.group, Some(from)));
        let disp = address.disp.checked_add(member.delta - from).ok_or(Refused)?;
        Ok(match address.index {
            Some((Place::Host(index), shift)) => Mem::at(T1, disp).index(index, shift),
            Some((Place::Home(home), shift)) => {
                self.asm.load(T0, home);
                self.asm.lea(T0, Mem::at(T1, disp).index(T0, shift));
                Mem::at(T0, 0)
            }
            None => Mem::at(T1, disp),
        })
    }

    /// Adds to T1 without touching a flag.
    fn add_t1(&mut self, from: Mem) {
        self.asm.load(T0, from);
        self.asm.lea(T1, Mem::at(T1, 0).index(T0, 0));
    }

    /// The operand, given the addend in T1. May use T0 in between.
    fn translated(&mut self, address: &Address) -> Mem {
        let Address { base, index, disp, page, segment, narrow, .. } = *address;
        if narrow.is_some() {
            return Mem::at(T2, 0).index(T1, 0);
        }
        for from in [page, segment].into_iter().flatten() {
            self.asm.add_mem(T1, from);
        }
        match base {
            Some(Place::Host(base)) if index.is_none() => return Mem::at(base, disp).index(T1, 0),
            Some(Place::Host(base)) => self.asm.add(T1, base),
            Some(Place::Home(home)) => self.asm.add_mem(T1, home),
            None => {}
        }
        match index {
            Some((Place::Host(index), shift)) => Mem::at(T1, disp).index(index, shift),
            Some((Place::Home(home), shift)) => {
                self.asm.load(T0, home);
                self.asm.lea(T1, Mem::at(T1, disp).index(T0, shift));
                Mem::at(T1, 0)
            }
            None => Mem::at(T1, disp),
        }
    }
}
