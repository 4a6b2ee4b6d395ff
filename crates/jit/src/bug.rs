//! What to say when translated code does what it cannot do unless the translator is wrong: a report for those who mend it.
//!
//! That is a fault of the host in code that belongs to no instruction of the guest, or a way out that is not known. The
//! guest's state cannot be told from there, so the machine does not go on.

use crate::cache::Cache;
use crate::thunks::Reason;
use cpu::Cpu;
use cpu::state::RIP;
use memory::Gva;
use std::fmt::Write;
use std::ops::Range;

/// Bytes of guest code that are shown.
const SHOWN: usize = 16;
/// Bytes of host code that are shown before and behind the place.
const AROUND: usize = 32;

/// Describes that translated code was left for `reason` at site `number`, which there is not. RIP is set to where the
/// block begins that was running.
#[must_use]
pub fn report(cpu: &mut Cpu, cache: &Cache, reason: Reason, number: u32) -> String {
    // SAFETY: no translated code runs, so that this thread alone uses the frame.
    let (base, landing) = unsafe { ((*cache.frame.frame()).base, &(*cache.frame.frame()).landing) };
    let mut text = "a bug in the translator: ".to_owned();
    // Writing to a string cannot fail.
    let _ = match reason {
        Reason::Fault => write!(
            text,
            "exception {} of the host in translated code that belongs to no instruction; the last address that could not \
             be accessed is {:#x}",
            landing.vector(),
            landing.address()
        ),
        _ => write!(text, "translated code was left at site {number}, which there is not ({reason:?})"),
    };
    let place = landing.pc.wrapping_sub(cache.host(0)) as usize;
    if let Some(block) = cache.block(place).filter(|_| reason == Reason::Fault) {
        let rip = base.wrapping_add(block.into());
        cpu.regs[RIP] = rip;
        let _ = write!(text, "\n  guest rip {rip:#x} or behind, in a block that begins with{}", hex(&guest(cpu, rip)));
        let _ = write!(text, "\n  host rip {:#x}, code memory + {place:#x}:{}", landing.pc, around(cache, place));
    } else {
        let _ = write!(text, "\n  in the page of guest code at {base:#x}, last entered at rip {:#x}", cpu.regs[RIP]);
    }
    text
}

/// The guest's bytes at `rip`, as far as they are memory.
fn guest(cpu: &Cpu, rip: u64) -> Vec<u8> {
    let byte = |at: usize| {
        let mut byte = [0];
        let gpa = cpu.mmu.translate(Gva(rip.wrapping_add(at as u64)))?;
        cpu.mmu.map().read(gpa, &mut byte).ok()?;
        Some(byte[0])
    };
    (0..SHOWN).map_while(byte).collect()
}

/// Host code before offset `place`, and from there.
fn around(cache: &Cache, place: usize) -> String {
    let bytes = |range: Range<usize>| hex(cache.code.bytes(range));
    let before = bytes(place.saturating_sub(AROUND)..place);
    format!("{before} >{}", bytes(place..place.saturating_add(AROUND)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!(" {byte:02x}")).collect()
}
