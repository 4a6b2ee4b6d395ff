//! The local APIC's registers as a text for people, in the form of QEMU's `info lapic`.

use std::fmt::{self, Write};

use cpu::Clock;

use super::spec::{DeliveryMode, Divide, Icr, Lvt, Shorthand, Svr, TimerMode, reg};
use super::state::State;

/// The LVT entries by the names that QEMU gives them.
const ENTRIES: [(&str, u32); 6] = [
    ("LVT0", reg::LVT_TIMER + 0x30),
    ("LVT1", reg::LVT_TIMER + 0x40),
    ("LVTPC", reg::LVT_TIMER + 0x20),
    ("LVTERR", reg::LVT_ERROR),
    ("LVTTHMR", reg::LVT_TIMER + 0x10),
    ("LVTT", reg::LVT_TIMER),
];

/// All registers, as reads by the guest would show them now.
pub(super) fn describe(state: &mut State, clock: &dyn Clock) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, state, clock);
    text
}

fn write(text: &mut String, state: &mut State, clock: &dyn Clock) -> fmt::Result {
    let (id, x2apic) = (state.config.id, state.base.x2apic());
    writeln!(text, "dumping local APIC state for CPU {id}\n")?;
    let mut read = |offset| state.read(offset, clock).unwrap_or(0);
    for (name, offset) in ENTRIES {
        let bits = read(offset);
        writeln!(text, "{name}\t 0x{bits:08x} {}", entry(Lvt::from(bits), name == "LVTT"))?;
    }
    let (divide, initial, current) = (read(reg::TIMER_DIVIDE), read(reg::TIMER_INITIAL), read(reg::TIMER_CURRENT));
    let divisor = Divide::from(divide).divisor();
    writeln!(
        text,
        "Timer\t DCR=0x{divide:x} (divide by {divisor}) initial_count = {initial} current_count = {current}"
    )?;
    let bits = read(reg::SVR);
    let svr = Svr::from(bits);
    let (enabled, focus) = (if svr.enabled() { "enabled" } else { "disabled" }, on(svr.focus_disabled()));
    writeln!(text, "SPIV\t 0x{bits:08x} APIC {enabled}, focus={focus}, spurious vec {}", svr.vector())?;
    let (low, high) = (read(reg::ICR_LOW), read(reg::ICR_HIGH));
    let (icr, kind) = (Icr::from(u64::from(low)), if x2apic { "X2APIC ID" } else { "APIC ID" });
    let to = if icr.logical() { "logical" } else { "physical" };
    let trigger = if icr.level() { "level" } else { "edge" };
    let assert = if icr.assert() { "assert" } else { "de-assert" };
    let shorthand = match icr.shorthand() {
        Shorthand::None => "no-shorthand",
        Shorthand::Oneself => "self",
        Shorthand::All => "all-self",
        Shorthand::Others => "all",
    };
    writeln!(text, "ICR\t 0x{low:08x} {to} {trigger} {assert} {shorthand}")?;
    writeln!(text, "ICR2\t 0x{high:08x} cpu {} ({kind})", if x2apic { high } else { high >> 24 })?;
    writeln!(text, "ESR\t 0x{:08x}", read(reg::ESR))?;
    writeln!(text, "ISR\t {}", vectors(|word| read(reg::ISR + 16 * word)))?;
    writeln!(text, "IRR\t {}", vectors(|word| read(reg::IRR + 16 * word)))?;
    let (apr, tpr, dfr) = (read(reg::APR), read(reg::TPR), read(reg::DFR) >> 28);
    let (ldr, ppr) = (read(reg::LDR), read(reg::PPR));
    let ldr = if x2apic { ldr } else { ldr >> 24 };
    writeln!(text, "\nAPR 0x{apr:02x} TPR 0x{tpr:02x} DFR 0x{dfr:02x} LDR 0x{ldr:02x} PPR 0x{ppr:02x}")
}

fn on(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

fn entry(entry: Lvt, timer: bool) -> String {
    let polarity = if entry.active_low() { "active-lo" } else { "active-hi" };
    let trigger = if entry.level() { "level" } else { "edge" };
    let masked = if entry.masked() { "masked" } else { "" };
    let mode = match entry.timer() {
        _ if !timer => "",
        TimerMode::OneShot => "one-shot",
        TimerMode::Periodic => "periodic",
        TimerMode::TscDeadline => "tsc-deadline",
        TimerMode::Reserved => "reserved",
    };
    let delivery = entry.mode().name();
    let vector = match entry.mode() {
        DeliveryMode::Fixed => format!(" (vec {})", entry.vector()),
        _ => String::new(),
    };
    format!("{polarity} {trigger:<5} {masked:<14} {mode:<12} {delivery:<6}{vector}").trim_end().to_owned()
}

/// The vectors in a set of eight registers.
fn vectors(mut word: impl FnMut(u32) -> u32) -> String {
    let words: Vec<u32> = (0..8).map(&mut word).collect();
    let set = (0..256_usize).filter(|n| words.get(n / 32).is_some_and(|word| word >> (n % 32) & 1 != 0));
    let set: Vec<_> = set.map(|n| n.to_string()).collect();
    if set.is_empty() { "(none)".to_owned() } else { set.join(" ") }
}
