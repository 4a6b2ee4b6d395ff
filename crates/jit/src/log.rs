//! The `out_asm` log: what the translator made of guest code.

use crate::region::Region;
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};

/// Whether anybody listens.
#[must_use]
pub fn enabled() -> bool {
    tracing::enabled!(target: "out_asm", tracing::Level::DEBUG)
}

/// Writes `region`, whose page is at guest address `page`, and the host code that is at `host`.
pub fn region(region: &Region, page: u64, code: &[u8], host: u64) {
    let mut formatter = NasmFormatter::new();
    let mut text = String::new();
    tracing::debug!(target: "out_asm", "guest code at {page:x}:");
    for block in &region.blocks {
        tracing::debug!(target: "out_asm", "block{} entered with flags {:?}", if block.root { ", root," } else { "" }, block.entry);
        for insn in &block.insns {
            text.clear();
            formatter.format(&insn.i, &mut text);
            tracing::debug!(target: "out_asm", "  {:016x}  {text}", page.wrapping_add(insn.offset.into()));
        }
    }
    tracing::debug!(target: "out_asm", "host code, {} bytes:", code.len());
    for instruction in &mut Decoder::with_ip(64, code, host, DecoderOptions::NONE) {
        text.clear();
        formatter.format(&instruction, &mut text);
        tracing::debug!(target: "out_asm", "  {:016x}  {text}", instruction.ip());
    }
}
