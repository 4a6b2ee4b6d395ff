//! Traces that begin and end while a guest runs: by the monitor, by its count of instructions, and by the guest itself.

use super::*;
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, dx, eax, ecx, edx, rsi};
use lens::{Lens, Trace, Watcher};

/// Where the guest counts.
const COUNTER: u64 = image::DATA + 0x10;
/// The port of the trace.
const PORT: u32 = 0xea;

/// At most so many reads by the page walker after the trace is turned on.
const WALKS: u64 = 16;

/// A guest that is traced, and its trace.
fn traced(accel: Accel, options: &str, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Traced {
    let folder = tempfile::tempdir().unwrap();
    let spec: lens::trace::Spec = format!("{}/t,{options}", folder.path().display()).parse().unwrap();
    let trace = Arc::new(Trace::create(&spec, 1, Arc::default(), |error| panic!("{error}")).unwrap());
    let lens = Arc::new(Lens::new(Watcher::default(), Some(Arc::clone(&trace))));
    let guest = Guest::with(&image::long_mode(code), |config| {
        (config.accel, config.lens, config.trace_port) = (accel, lens, spec.when.port);
    });
    Traced { guest, trace, _folder: folder }
}

struct Traced {
    guest: Guest,
    trace: Arc<Trace>,
    _folder: tempfile::TempDir,
}

impl Traced {
    /// Waits until it is off for good, and gives how many accesses there were.
    fn wait(&mut self, done: impl Fn(&mut Guest) -> bool) -> u64 {
        let start = Instant::now();
        while !done(&mut self.guest) || self.trace.state().on {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", self.trace.state());
        }
        let (accesses, said) = (self.trace.state().accesses, self.guest.say("info trace"));
        assert_eq!(said, format!("trace is off: {accesses} accesses\n"));
        accesses
    }

    /// Ends all, and gives how many accesses are in the file.
    fn end(mut self) -> u64 {
        self.guest.say("stop");
        assert!(self.guest.handle.wait_paused());
        self.trace.finish().unwrap().records
    }
}

/// Writes a counter for ever; five instructions a round, which begins so many instructions after the start.
fn count(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    a.xor(rcx, rcx)?;
    a.set_label(&mut again)?;
    a.inc(rcx)?;
    a.mov(qword_ptr(COUNTER), rcx)?;
    a.mov(rbx, qword_ptr(COUNTER))?;
    a.nop()?;
    a.jmp(again)
}

#[test]
fn instructions_are_counted_from_one_to_the_other() {
    let ended = |guest: &mut Guest| guest.handle.lens().trace().is_some_and(|trace| trace.next_mark().is_none());
    for accel in [Accel::Interp, Accel::default()] {
        for (from, to) in [(1000, 1500), (99_999, 100_004), (200_000, 1_200_000)] {
            let mut traced = traced(accel, &format!("w:{COUNTER:x}+8,from={from},to={to}"), count);
            let state = traced.guest.say("info trace");
            assert_eq!(state, format!("trace is off: 0 accesses, on after {from} instructions\n"));
            traced.guest.say("cont");
            let accesses = traced.wait(ended);
            assert_eq!((accesses, traced.end()), ((to - from) / 5, accesses), "a write each five");
        }
        // All accesses, which translated code makes records of.
        let mut traced = traced(accel, "from=400000,to=500000", count);
        traced.guest.say("cont");
        let accesses = traced.wait(ended);
        assert!((40_000..=40_000 + WALKS).contains(&accesses), "a write and a read each five: {accesses}");
        assert_eq!(traced.end(), accesses);
    }
}

#[test]
fn a_guest_turns_its_trace_on_and_off() {
    for accel in [Accel::Interp, Accel::default()] {
        for (filter, records) in [(format!("w:{COUNTER:x}+8"), 30..=30), ("rw".to_owned(), 60..=60 + 10 * WALKS)] {
            let mut traced = traced(accel, &format!("{filter},port"), |a| {
                let (mut round, mut again) = (a.create_label(), a.create_label());
                a.mov(rsi, 1000u64)?;
                a.mov(edx, PORT)?;
                a.set_label(&mut round)?;
                a.mov(qword_ptr(COUNTER), rsi)?;
                // In ten of the rounds.
                a.cmp(rsi, 10)?;
                a.setbe(al)?;
                a.out(dx, al)?;
                for _ in 0..3 {
                    a.mov(qword_ptr(COUNTER), rsi)?;
                    a.mov(rbx, qword_ptr(COUNTER))?;
                }
                a.in_(al, dx)?;
                a.movzx(ecx, al)?;
                a.xor(eax, eax)?;
                a.out(dx, al)?;
                a.dec(rsi)?;
                a.jne(round)?;
                a.set_label(&mut again)?;
                a.jmp(again)
            });
            assert!(traced.guest.say("info trace").starts_with("trace is off: 0 accesses"));
            traced.guest.say("cont");
            // At its end; it has read that the trace was on.
            let accesses = traced.wait(|guest| guest.say("p/d $rsi + 2 * $rcx") == "2\n");
            assert!(records.contains(&accesses), "{accesses}");
            assert_eq!(traced.end(), accesses);
        }
    }
}

#[test]
fn a_trace_is_turned_on_and_off_while_the_guest_runs() {
    for accel in [Accel::Interp, Accel::default()] {
        for filter in [format!("w:{COUNTER:x}+8"), "rw".to_owned()] {
            let mut traced = traced(accel, &format!("{filter},off"), count);
            assert_eq!(traced.guest.say("cont") + &traced.guest.say("trace"), "trace is off: 0 accesses\n");
            assert_eq!(traced.guest.say("trace on"), "");
            let start = Instant::now();
            while traced.trace.state().accesses < 1000 {
                assert!(start.elapsed() < Duration::from_secs(20));
            }
            assert_eq!(traced.guest.say("trace off"), "");
            let state = traced.guest.say("info trace");
            assert!(state.starts_with("trace is off: "), "{state}");
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(traced.guest.say("info trace"), state);
            assert!(traced.guest.say("trace maybe").contains("on or off"));
            assert_eq!(state, format!("trace is off: {} accesses\n", traced.end()));
        }
    }
    let mut guest = Guest::standing();
    for line in ["trace on", "trace off", "info trace"] {
        assert!(guest.say(line).starts_with("there is no trace: -trace FILE"), "{line}");
    }
}
