//! What is rarely reached: it lies apart from the rest.

use super::{Job, Refused, State};
use crate::asm::Label;
use crate::log::Part;
use crate::region::{Block, Goal};
use crate::thunks::SIZES;
use x86::PAGE_SIZE;

/// Code that is rarely reached, emitted behind the rest.
pub(super) enum Cold {
    /// An access that missed; where the flags are if it is the first of a group.
    Access { at: Label, site: u32, size: u32, write: bool, retry: Label, hit: Label, group: Option<State> },
    /// An instruction that is left to the interpreter.
    Interpret { at: Label, site: u32 },
    /// A jump whose target is not in the jump cache.
    Jump { at: Label, site: u32, pops: i32 },
    /// A jump to code that was not translated.
    Direct { at: Label, site: u32 },
    /// A jump that must put the flags where its target expects them.
    Edge { at: Label, state: State, from: u16, to: Goal },
    /// A jump out of the region, taken when a condition holds.
    Exit { at: Label, state: State, offset: u16, following: u16, target: i64 },
    /// The entry of a block that another one falls into.
    Door { block: usize },
}

impl Job<'_> {
    /// What cold code is, and the place in the page that it belongs to.
    fn belongs(&self, cold: &Cold) -> (Part, u16) {
        let at = |site: u32| self.sites.get(site).map_or(0, |site| site.offset);
        let block = |block: usize| self.region.blocks.get(block).map_or(0, |block| block.offset);
        match *cold {
            Cold::Access { site, .. } => (Part::Miss, at(site)),
            Cold::Interpret { site, .. } => (Part::Interpret, at(site)),
            Cold::Jump { site, .. } => (Part::Jump, at(site)),
            Cold::Direct { site, .. } => (Part::Direct, at(site)),
            Cold::Edge { from, .. } => (Part::Edge, from),
            Cold::Exit { offset, .. } => (Part::Exit, offset),
            Cold::Door { block: to } => (Part::Door, block(to)),
        }
    }

    pub(super) fn emit_cold(&mut self) -> Result<(), Refused> {
        self.asm.cool();
        // What sites are made here are those of blocks' last instructions.
        self.left = 1;
        while let Some(cold) = self.cold.pop() {
            let (part, offset) = self.belongs(&cold);
            self.listing.mark(self.asm.here(), part, offset);
            match cold {
                Cold::Access { at, site, size, write, retry, hit, group } => {
                    self.asm.bind(at);
                    if group.is_some() {
                        self.asm.push_imm(PAGE_SIZE as u32 - size);
                    }
                    self.asm.push_imm(site);
                    let thunks = match SIZES.iter().position(|of| *of == size) {
                        _ if group.is_some() => self.thunks.group,
                        Some(n) if self.region.mode.records => self.thunks.recorded[n],
                        Some(n) => self.thunks.access[n],
                        None => return Err(Refused),
                    };
                    self.asm.call_to(thunks[usize::from(write)]);
                    self.asm.jmp(hit);
                    if let Some(state) = group {
                        self.leave_group(site, state)?;
                    }
                    let again = self.asm.place(retry).ok_or(Refused)?;
                    if let Some(site) = self.sites.get_mut(site) {
                        site.again = again as u32;
                    }
                }
                Cold::Interpret { at, site } => {
                    self.asm.bind(at);
                    self.go_out(site, self.thunks.interpret);
                }
                Cold::Jump { at, site, pops } => {
                    self.asm.bind(at);
                    self.move_stack(pops);
                    self.go_out(site, self.thunks.jump);
                }
                Cold::Direct { at, site } => {
                    self.asm.bind(at);
                    self.go_out(site, self.thunks.direct);
                }
                Cold::Edge { at, state, from: _, to } => {
                    self.asm.bind(at);
                    self.state = state;
                    self.arrange(to)?;
                    self.jump(to)?;
                }
                Cold::Exit { at, state, offset, following, target } => {
                    self.asm.bind(at);
                    self.state = state;
                    self.exit(offset, following, target)?;
                }
                Cold::Door { block } => {
                    let Block { offset, entry, .. } = *self.region.blocks.get(block).ok_or(Refused)?;
                    self.door(offset, entry, self.region.units);
                    let label = *self.labels.get(block).ok_or(Refused)?;
                    self.asm.jmp(label);
                }
            }
        }
        Ok(())
    }
}
