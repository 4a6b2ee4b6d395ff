//! What a debugger's watchpoints cost.

use super::Guest;
use cpu::debugger::{WatchFor, Watchpoint};
use guests::image;
use memory::Gva;
use std::time::{Duration, Instant};

/// How far the guest has counted, and how many instructions were not translated.
fn progress(guest: &Guest) -> (u64, u64) {
    guest.handle.inspect(0, |vcpu| (vcpu.cpu.regs[1], vcpu.stats().instructions)).unwrap()
}

#[test]
fn code_that_accesses_nothing_watched_goes_on_translated() {
    const ROUNDS: u64 = 20_000_000;
    let guest = Guest::running();
    let watchpoint = Watchpoint { gva: Gva(image::DATA), len: 8, what: WatchFor::Access };
    let watch = move |vcpu: &mut machine::Vcpu| vcpu.cpu.set_debugger(|it| it.watchpoints = [watchpoint].into());
    guest.handle.inspect(0, watch).unwrap();
    let (start, before) = progress(&guest);
    let begun = Instant::now();
    loop {
        let (now, interpreted) = progress(&guest);
        if now.wrapping_sub(start) >= ROUNDS {
            let interpreted = interpreted - before;
            assert!(interpreted < ROUNDS / 10, "{interpreted} instructions interpreted in {ROUNDS} rounds");
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the guest counts");
        std::thread::sleep(Duration::from_millis(5));
    }
}
