//! The `out_asm` log: what the translator made of guest code, instruction by instruction.
//!
//! Where code names a field of the frame, a thunk or another part of the same translation, the name is shown instead of
//! the number.

use crate::frame::{Frame, HOSTS, SLOTS, TAGS};
use crate::region::Region;
use crate::stats::Inline;
use crate::thunks::{SIZES, Thunks};
use iced_x86::{
    Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter, OpKind, Register, SymbolResolver, SymbolResult,
};
use memory::tlb::Entry;
use std::collections::HashMap;
use std::mem::offset_of;

/// Whether anybody listens.
#[must_use]
pub fn enabled() -> bool {
    tracing::enabled!(target: "out_asm", tracing::Level::DEBUG)
}

/// What a piece of host code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// An instruction's own code.
    Insn,
    /// An instruction's own code where its group (see `translate`) shares no check.
    Alone,
    /// The same in an iteration without checks, or where those begin.
    Run,
    /// Where a block is entered from outside.
    Door,
    /// Where the check of an access goes that misses.
    Miss,
    /// Where an instruction is left to the interpreter.
    Interpret,
    /// Where a jump goes whose target is not in the jump cache.
    Jump,
    /// Where a jump is left to be made straight.
    Direct,
    /// Where a jump arranges the flags for its target.
    Edge,
    /// Where a conditional jump leaves the region.
    Exit,
}

impl Part {
    /// Of a label, behind the guest address.
    fn name(self) -> &'static str {
        match self {
            Self::Insn => "",
            Self::Alone => ".alone",
            Self::Run => ".run",
            Self::Door => ".door",
            Self::Miss => ".miss",
            Self::Interpret => ".interpret",
            Self::Jump => ".jump",
            Self::Direct => ".direct",
            Self::Edge => ".edge",
            Self::Exit => ".exit",
        }
    }

    /// Of a heading.
    fn text(self) -> &'static str {
        match self {
            Self::Insn => "",
            Self::Alone => "access with its own check",
            Self::Run => "without checks",
            Self::Door => "entry from outside",
            Self::Miss => "access that misses",
            Self::Interpret => "left to the interpreter",
            Self::Jump => "jump that is not in the jump cache",
            Self::Direct => "jump to be made straight",
            Self::Edge => "on the way here, the flags",
            Self::Exit => "out of the region",
        }
    }
}

/// A piece of host code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Where it starts in the code buffer; it ends where the next one starts.
    pub at: usize,
    /// What it is.
    pub part: Part,
    /// Where in the page the instruction is that it belongs to.
    pub offset: u16,
}

/// What is where in the code of one translation, in order; empty if nobody listens.
#[derive(Debug)]
pub struct Listing {
    on: bool,
    marks: Vec<Mark>,
}

impl Listing {
    /// An empty one; `on`: somebody listens.
    #[must_use]
    pub fn new(on: bool) -> Self {
        Self { on, marks: Vec::new() }
    }

    /// Starts anew.
    pub fn reset(&mut self) {
        self.marks.clear();
    }

    /// From `at` in the code buffer on comes `part` of the instruction at `offset`.
    pub fn mark(&mut self, at: usize, part: Part, offset: u16) {
        if self.on {
            self.marks.push(Mark { at, part, offset });
        }
    }
}

/// Host code to be shown, and where it is.
#[derive(Clone, Copy, Debug)]
pub struct Host<'a> {
    /// The code: what is often run, and what is not.
    pub code: [&'a [u8]; 2],
    /// Where they start in the code buffer.
    pub origins: [usize; 2],
    /// Host address of the code buffer.
    pub base: u64,
    /// The shared code.
    pub thunks: &'a Thunks,
}

impl Host<'_> {
    /// The code from `at` on, up to `end` if that lies in the same part.
    fn piece(&self, at: usize, end: Option<usize>) -> &[u8] {
        let part = |(code, origin): (&[u8], usize)| {
            let start = at.checked_sub(origin).filter(|start| *start < code.len())?;
            let end = end.and_then(|end| end.checked_sub(origin)).map_or(code.len(), |end| end.min(code.len()));
            Some((origin, start, end))
        };
        let parts = self.code.into_iter().zip(self.origins);
        let found = parts.filter_map(|(code, origin)| part((code, origin)).map(|(_, start, end)| code.get(start..end)));
        found.flatten().next().unwrap_or_default()
    }
}

/// Writes to the log what was made of `region`, whose page is at guest address `page`.
pub fn region(region: &Region, page: u64, listing: &Listing, host: &Host<'_>) {
    if listing.on {
        for line in lines(region, page, &listing.marks, host) {
            tracing::debug!(target: "out_asm", "{line}");
        }
    }
}

fn lines(region: &Region, page: u64, marks: &[Mark], host: &Host<'_>) -> Vec<String> {
    let [hot, cold] = host.origins.map(|origin| host.base.wrapping_add(origin as u64));
    let guest = |offset: u16| page.wrapping_add(offset.into());
    let insns = || region.all().iter();
    let bytes: usize = insns().map(|insn| insn.i.len()).sum();
    let mut lines = vec![format!(
        "region of {} instructions, {bytes} bytes: {} bytes of host code at {hot:x}, {} that are rarely run at {cold:x}",
        insns().count(),
        host.code[0].len(),
        host.code[1].len()
    )];
    let mut plain = NasmFormatter::new();
    let mut named = NasmFormatter::with_options(Some(Box::new(Names::new(marks, host))), None);
    let ends = marks.iter().skip(1).map(|mark| Some(mark.at)).chain([None]);
    for (mark, end) in marks.iter().zip(ends) {
        let mut heading = format!("{:016x}{:<11}", guest(mark.offset), mark.part.name());
        match insns().find(|insn| insn.offset == mark.offset) {
            Some(insn) if matches!(mark.part, Part::Insn | Part::Alone) => {
                plain.format(&moved(&insn.i, page), &mut heading);
                let block = region.blocks.iter().find(|block| block.offset == mark.offset);
                if let Some(block) = block.filter(|_| mark.part == Part::Insn) {
                    let root = if block.root { ", entered from outside" } else { "" };
                    lines.push(format!("{:016x}:          block{root}; flags: {:?}", guest(mark.offset), block.entry));
                }
            }
            _ => heading.push_str(mark.part.text()),
        }
        lines.push(heading);
        let ip = host.base.wrapping_add(mark.at as u64);
        for instruction in &mut Decoder::with_ip(64, host.piece(mark.at, end), ip, DecoderOptions::NONE) {
            let mut line = format!("    {:012x}    ", instruction.ip());
            named.format(&instruction, &mut line);
            lines.push(line);
        }
    }
    lines
}

/// An instruction that was decoded for address 0, with what it refers to relative to `page`.
fn moved(i: &Instruction, page: u64) -> Instruction {
    let mut moved = *i;
    if i.op_count() > 0 && i.op0_kind() == OpKind::NearBranch64 {
        moved.set_near_branch64(i.near_branch64().wrapping_add(page));
    }
    if i.is_ip_rel_memory_operand() {
        moved.set_memory_displacement64(i.memory_displacement64().wrapping_add(page));
    }
    moved
}

/// Names for what host code refers to.
struct Names {
    code: HashMap<u64, String>,
    fields: Vec<(u64, &'static str)>,
}

impl Names {
    fn new(marks: &[Mark], host: &Host<'_>) -> Self {
        let Thunks {
            enter: _,
            interpret,
            direct,
            jump,
            stale,
            fault,
            load_vector,
            load_x87,
            resume: _,
            access,
            recorded,
            group,
            missed,
            record,
            strings,
            time,
            syscall,
            sysret,
        } = *host.thunks;
        let mut code: HashMap<u64, String> = HashMap::new();
        let mut name = |at: usize, name: String| code.insert(host.base.wrapping_add(at as u64), name);
        for mark in marks {
            name(mark.at, format!("{:03x}{}", mark.offset, mark.part.name()));
        }
        let shared = [
            (interpret, "interpret"),
            (direct, "direct"),
            (jump, "jump"),
            (stale, "stale"),
            (missed, "missed"),
            (fault, "fault"),
            (load_vector, "load_vector"),
            (load_x87, "load_x87"),
            (record, "record"),
            (time, "time"),
            (syscall, "syscall"),
            (sysret, "sysret"),
        ];
        for (at, thunk) in shared {
            name(at, thunk.to_owned());
        }
        let sizes = SIZES.map(|size| size.to_string());
        for (thunk, [read, write]) in sizes.iter().map(String::as_str).zip(access).chain([("group", group)]) {
            name(read, format!("find_read_{thunk}"));
            name(write, format!("find_write_{thunk}"));
        }
        for (thunk, [read, write]) in sizes.iter().zip(recorded) {
            name(read, format!("find_recorded_read_{thunk}"));
            name(write, format!("find_recorded_write_{thunk}"));
        }
        for (at, thunk) in strings.names() {
            name(at, thunk);
        }
        let fields = [
            (offset_of!(Frame, homes), "r9"),
            (offset_of!(Frame, homes) + 8, "r10"),
            (offset_of!(Frame, homes) + 16, "r11"),
            (offset_of!(Frame, base), "page"),
            (offset_of!(Frame, flags), "flags"),
            (offset_of!(Frame, poll), "poll"),
            (offset_of!(Frame, jump_mask), "jump_mask"),
            (offset_of!(Frame, stamp), "stamp"),
            (offset_of!(Frame, fs), "fs_base"),
            (offset_of!(Frame, gs), "gs_base"),
            (offset_of!(Frame, site), "site"),
            (offset_of!(Frame, recipe), "recipe"),
            (offset_of!(Frame, bound), "bound"),
            (offset_of!(Frame, addends), "addend0"),
            (offset_of!(Frame, budget), "budget"),
            (offset_of!(Frame, scratch), "scratch"),
            (offset_of!(Frame, accessed), "accessed"),
            (offset_of!(Frame, records), "records"),
            (offset_of!(Frame, what), "what"),
            (offset_of!(Frame, inline) + offset_of!(Inline, accesses), "count_accesses"),
            (offset_of!(Frame, inline) + offset_of!(Inline, jumps), "count_jumps"),
            (offset_of!(Frame, inline) + offset_of!(Inline, direct), "count_direct"),
            (offset_of!(Frame, vector_live), "vector_live"),
            (offset_of!(Frame, x87_live), "x87_live"),
            (TAGS, "tags"),
            (HOSTS, "hosts"),
        ];
        Self { code, fields: fields.into_iter().map(|(at, name)| (at as u64, name)).collect() }
    }
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _operand: u32,
        instruction_operand: Option<u32>,
        address: u64,
        _address_size: u32,
    ) -> Option<SymbolResult<'_>> {
        let memory = instruction_operand.is_some_and(|n| instruction.op_kind(n) == OpKind::Memory);
        if !memory {
            return self.code.get(&address).map(|name| SymbolResult::with_str(address, name));
        }
        if instruction.memory_segment() == Register::GS {
            let at = usize::try_from(address).ok()?;
            let (_, name) = [(Entry::READ, "read"), (Entry::WRITE, "write"), (Entry::ADDEND, "addend")]
                .into_iter()
                .find(|(field, _)| *field == at)?;
            return Some(SymbolResult::with_str(address, name));
        }
        if instruction.memory_base() != Register::RSP {
            return None;
        }
        if let Some(slot) = address.checked_sub(SLOTS as u64) {
            return Some(SymbolResult::with_string(address, format!("slot{}", slot / 4)));
        }
        let (_, name) = self.fields.iter().find(|(at, _)| *at == address)?;
        Some(SymbolResult::with_str(address, name))
    }
}

#[cfg(test)]
mod tests;
