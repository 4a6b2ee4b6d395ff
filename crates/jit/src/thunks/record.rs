//! Appends a record of an access: see `record`.

use super::below;
use crate::asm::{Asm, Mem, RAX};
use crate::frame::Frame;
use crate::regs::{T0, T1};
use memory::observe::Record;
use std::mem::offset_of;

/// T0 holds what was in memory, T1 the addend of the page, the frame the access's address. T0 is lost, no flag is.
pub(super) fn record(asm: &mut Asm) -> usize {
    let here = asm.here();
    let record = |field: usize| Mem::at(RAX, field as i32);
    asm.store(below(offset_of!(Frame, saved)), RAX);
    asm.load(RAX, below(offset_of!(Frame, records)));
    asm.store(record(Record::BEFORE), T0);
    asm.load32(T0, below(offset_of!(Frame, what)));
    asm.store32(record(Record::WHAT), T0);
    asm.load32(T0, below(offset_of!(Frame, budget)));
    asm.store32(record(Record::BUDGET), T0);
    asm.load(T0, below(offset_of!(Frame, base)));
    asm.store(record(Record::PAGE), T0);
    asm.load(T0, below(offset_of!(Frame, accessed)));
    asm.store(record(Record::GVA), T0);
    asm.lea(T0, Mem::at(T0, 0).index(T1, 0));
    asm.store(record(Record::HVA), T0);
    asm.lea(RAX, Mem::at(RAX, size_of::<Record>() as i32));
    asm.store(below(offset_of!(Frame, records)), RAX);
    asm.load(RAX, below(offset_of!(Frame, saved)));
    asm.ret(0);
    here
}
