//! `-perfetto`: the timeline's counters, taken ten times a second, and its end.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lens::Perfetto;
use lens::perfetto::{PerfettoError, Written};
use lens::symbols::{Kernel, Table};
use machine::{Handle, InspectError, Vcpu};
use memory::tlb::Stats;
use memory::{Gpa, Gva};

use crate::flags::values::Timeline;
use crate::say::say;
use crate::session::End;

/// From one look at the counters to the next.
const PERIOD: Duration = Duration::from_millis(100);

/// Begins the timeline that `-perfetto` asks for.
///
/// # Errors
/// The file cannot be made.
pub fn create(timeline: &Timeline) -> Result<Arc<Perfetto>> {
    let broken = |error: &PerfettoError| say(format_args!("the timeline ends here: {error}"));
    Ok(Arc::new(Perfetto::create(&timeline.file, timeline.limit, broken)?))
}

/// What is seen of a vCPU.
struct Look {
    at: Instant,
    tlb: Stats,
    /// Where system calls of the guest's kernel enter.
    entry: Option<(Gva, Gpa)>,
}

impl Look {
    fn take(vcpu: &mut Vcpu) -> Self {
        let cpu = &vcpu.cpu;
        let entry = Gva(cpu.msrs.lstar);
        let entry = cpu.mmu.translate(entry).filter(|_| entry.0 != 0).map(|gpa| (entry, gpa));
        Self { at: Instant::now(), tlb: cpu.mmu.stats(), entry }
    }
}

/// Notes the counters of a machine in `perfetto`, on a thread of its own, until the machine ends.
///
/// # Errors
/// The host gives no thread.
pub fn follow(perfetto: &Arc<Perfetto>, handle: Handle, kernel: Arc<Kernel>) -> Result<()> {
    let perfetto = Arc::clone(perfetto);
    let run = move || {
        jail::enter(jail::Role::Io);
        let mut before: Vec<Option<Look>> = (0..handle.vcpus()).map(|_| None).collect();
        let mut symbols = Arc::<Table>::default();
        loop {
            for (cpu, before) in (0..).zip(&mut before) {
                let now = match handle.inspect(cpu as usize, Look::take) {
                    Ok(now) => now,
                    // Something outside holds it up.
                    Err(InspectError::Silent(_)) => continue,
                    Err(_) => return,
                };
                if let Some(before) = before {
                    perfetto.counters(cpu, &rates(before, &now));
                }
                if let Some((entry, gpa)) = now.entry.filter(|_| symbols.is_empty()) {
                    symbols = kernel.symbols(handle.map(), entry, gpa);
                    perfetto.name_by(symbols.clone());
                }
                *before = Some(now);
            }
            perfetto.flush();
            thread::sleep(PERIOD);
        }
    };
    thread::Builder::new().name("timeline".into()).spawn(run).context("a thread cannot be started")?;
    Ok(())
}

/// How often a second each counter has grown.
fn rates(before: &Look, now: &Look) -> [(&'static str, f64); 5] {
    let seconds = now.at.duration_since(before.at).as_secs_f64();
    let of = |count: fn(&Stats) -> u64| count(&now.tlb).saturating_sub(count(&before.tlb)) as f64 / seconds;
    [
        ("page walks", of(|tlb| tlb.walks)),
        ("page faults", of(|tlb| tlb.faults)),
        ("TLB slow-path hits", of(|tlb| tlb.hits)),
        ("TLB victim hits", of(|tlb| tlb.victim_hits)),
        ("TLB flushes", of(|tlb| tlb.page_flushes + tlb.context_flushes + tlb.full_flushes)),
    ]
}

/// Ends the timeline, and says what it came to.
pub fn finish(perfetto: &Perfetto, end: End) -> End {
    match perfetto.finish() {
        Ok(Written { events, bytes }) => {
            say(format_args!("timeline: {events} events in {bytes} bytes, to be opened at https://ui.perfetto.dev"));
            end
        }
        // Why has been said when it happened.
        Err(_) if end == End::Status(0) => End::Status(1),
        Err(_) => end,
    }
}
