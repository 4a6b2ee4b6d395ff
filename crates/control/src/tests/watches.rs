//! Watches that come, go and act while a guest runs, in the interpreter and in the translator.

use super::*;
use iced_x86::code_asm::rdx;
use lens::{Lens, Watcher};
use std::io;
use std::sync::{Mutex, PoisonError};

/// Where the guest counts.
const COUNTER: u64 = image::DATA + 0x10;
const SOON: Duration = Duration::from_secs(20);

/// Lines of the watch.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// Those so far but for notes.
    fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let text = String::from_utf8(bytes).unwrap();
        text.lines().filter(|line| !line.starts_with("watch:")).map(str::to_owned).collect()
    }
}

/// The value at the end of a line.
fn value(line: &str) -> u64 {
    u64::from_str_radix(line.rsplit(' ').next().unwrap(), 16).unwrap_or_else(|_| panic!("{line}"))
}

/// A guest that writes its counter (RCX) to memory and reads it again, for ever, by instructions of 8 bytes.
fn counting(accel: Accel) -> (Guest, Lines) {
    let lines = Lines::default();
    let sink = Box::new(lines.clone());
    let image = image::long_mode(|a| {
        let mut again = a.create_label();
        a.xor(rcx, rcx)?;
        a.set_label(&mut again)?;
        a.inc(rcx)?;
        a.mov(qword_ptr(COUNTER), rcx)?;
        a.mov(rdx, qword_ptr(COUNTER))?;
        a.nop()?;
        a.jmp(again)
    });
    let guest = Guest::with(&image, |config| {
        config.accel = accel;
        let watcher = Watcher::new(lens::Format::default(), Arc::default(), sink, |error| panic!("{error}"));
        config.lens = Arc::new(Lens::new(watcher, None));
    });
    (guest, lines)
}

/// On each tier.
fn on_both(test: impl Fn(Guest, Lines)) {
    for accel in [Accel::Interp, Accel::default()] {
        let (guest, lines) = counting(accel);
        test(guest, lines);
    }
}

impl Guest {
    /// Waits until a watch has stopped it, and gives RCX and RIP.
    fn stopped(&mut self, watch: u32) -> (u64, u64) {
        let (start, wanted) = (Instant::now(), format!("VM status: paused (watch {watch})\n"));
        while self.say("info status") != wanted {
            assert!(start.elapsed() < SOON, "{}{}", self.say("info status"), self.say("info watch"));
        }
        self.handle.inspect(0, |vcpu| (vcpu.cpu.regs[1], vcpu.cpu.rip())).unwrap()
    }

    fn wait(&self, what: &str, done: impl Fn(&[lens::Listed]) -> bool) {
        let start = Instant::now();
        while !done(&self.handle.lens().watches()) {
            assert!(start.elapsed() < SOON, "{what}: {:?}", self.handle.lens().watches());
        }
        // What has been counted has been told when the vCPU comes to its gate.
        self.handle.inspect(0, |_| ()).unwrap();
    }
}

#[test]
fn watches_come_and_go_while_the_guest_runs() {
    let mut guest = Guest::running();
    assert_eq!(guest.say("info watch"), "nothing is watched\n");
    assert_eq!(guest.say("watch rw:110000+8"), "1: rw:110000+8, 0 hits\n");
    assert_eq!(
        guest.say("watch w:*jiffies+8"),
        "2: w:*jiffies+8 nowhere: no kernel of the guest has begun yet, 0 hits\n"
    );
    let wrong = guest.say("watch r:12z4");
    assert_eq!(wrong.lines().count(), 2, "{wrong}");
    assert!(
        wrong.contains("column 5: 'z' is too much") && wrong.ends_with("Try \"help watch\" for more information\n")
    );
    assert_eq!(guest.say("unwatch 2"), "");
    assert_eq!(guest.say("watch gpa:110000"), "3: rw:gpa:110000+1, 0 hits\n", "numbers are not used again");
    // The guest begins anew, and stores its value again.
    guest.say("system_reset");
    let start = Instant::now();
    let hits = |guest: &Guest| guest.handle.lens().watches().iter().map(|watch| watch.hits).collect::<Vec<_>>();
    while hits(&guest) != [1, 1] {
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", hits(&guest));
    }
    // It is told when it has been counted.
    while guest.handle.lens().last_hit().is_none() {
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    let hit = guest.handle.lens().last_hit().unwrap();
    assert_eq!((hit.watch, hit.access.gpa.0, hit.access.value), (1, image::DATA, VALUE.into()));
    assert_eq!(hit.access.hva, guest.handle.map().hva_of(hit.access.gpa));
    let listed = guest.say("info watch");
    assert!(
        listed.contains("1: rw:110000+8, 1 hits, last w8 rip 102") && listed.contains(" val 1122334455667788\n3: ")
    );
    for (line, part) in [("unwatch 2", "no watch '2'"), ("unwatch x", "no watch 'x'"), ("unwatch", "unexpected end")] {
        assert!(guest.say(line).contains(part), "{line}");
    }
    assert_eq!(guest.say("unwatch all") + &guest.say("info watch"), "nothing is watched\n");
}

#[test]
fn the_machine_stops_behind_the_instruction_that_a_watch_waits_for() {
    on_both(|mut guest, lines| {
        let counter = format!("{COUNTER:x}+8");
        assert!(guest.say(&format!("watch w:{counter} if value == 4d2 then stop")).starts_with("1: "));
        guest.say("cont");
        let (count, behind_write) = guest.stopped(1);
        assert_eq!(count, 0x4d2);
        let hit = guest.handle.lens().last_hit().unwrap();
        assert_eq!((hit.watch, hit.access.value, hit.access.origin().unwrap().rip + 8), (1, 0x4d2, behind_write));
        assert_eq!(lines.take().len(), 1, "it is told, and nothing else");
        // Reads do not end a block by themselves.
        guest.say(&format!("watch r:{counter} if value & ff == 0 and rip > 1 and cpu == 0 and kernel then stop"));
        for expected in [0x500, 0x600] {
            guest.say("cont");
            let (count, behind_read) = guest.stopped(2);
            assert_eq!((count, behind_read), (expected, behind_write + 8));
        }
        assert_eq!(lines.take().len(), 2);
        // The last of so many, of which each is told.
        guest.say("unwatch all");
        guest.say(&format!("watch w:{counter} count 3 then stop"));
        guest.say("cont");
        let (count, rip) = guest.stopped(3);
        assert_eq!((count, rip), (0x603, behind_write));
        assert_eq!(lines.take().iter().map(|line| value(line)).collect::<Vec<_>>(), [0x601, 0x602, 0x603]);
        assert!(
            guest.say("info watch").contains("then stop, over, 3 hits, last w8 rip "),
            "{}",
            guest.say("info watch")
        );
        assert_eq!(guest.say("cont") + &guest.say("info status"), "VM status: running\n", "it is over");
    });
}

#[test]
fn as_many_are_reported_as_are_counted_to_whenever_that_begins() {
    on_both(|mut guest, lines| {
        guest.say("cont");
        let jit = guest.handle.stats();
        guest.wait("it runs for a while", |_| guest.handle.stats().time > jit.time + 50_000_000);
        guest.say(&format!("watch w:{COUNTER:x} count 1000"));
        let over = |all: &[lens::Listed]| all.iter().all(|watch| watch.left == Some(0));
        guest.wait("it is over", over);
        let values: Vec<u64> = lines.take().iter().map(|line| value(line)).collect();
        assert_eq!(values.len(), 1000);
        assert!(
            values.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "none is missed, none is there twice: {values:x?}"
        );
        // Once more, for other accesses besides.
        guest.say(&format!("watch r:gpa:{COUNTER:x}+8 if value & f == 5 count 7"));
        guest.say("enable 1");
        guest.wait("it is over again", over);
        let lines = lines.take();
        assert_eq!(lines.iter().filter(|line| line.starts_with("watch w8 ")).count(), 1000);
        let reads: Vec<u64> =
            lines.iter().filter(|line| line.starts_with("watch r8 ")).map(|line| value(line)).collect();
        assert_eq!(reads.len(), 7);
        assert!(reads.windows(2).all(|pair| pair[1] == pair[0] + 16) && reads[0] % 16 == 5, "{reads:x?}");
        let hits: Vec<u64> = guest.handle.lens().watches().iter().map(|watch| watch.hits).collect();
        assert_eq!(hits, [2000, 7]);
    });
}

#[test]
fn a_watch_that_counts_is_turned_off_and_on() {
    on_both(|mut guest, lines| {
        guest.say("cont");
        guest.say(&format!("watch rw:{COUNTER:x}+8 then count"));
        let hits = |all: &[lens::Listed]| all[0].hits;
        guest.wait("it counts", |all| hits(all) > 1000);
        assert_eq!(guest.say("disable 1"), "");
        let before = hits(&guest.handle.lens().watches());
        let listed = guest.say("info watch");
        assert!(listed.contains("then count, off, "), "{listed}");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(hits(&guest.handle.lens().watches()), before);
        guest.say("enable all");
        guest.wait("it counts again", |all| hits(all) > before);
        guest.say("stop");
        assert!(guest.handle.wait_paused());
        assert!(lines.take().is_empty(), "nothing is told");
    });
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let (mut guest, _) = counting(Accel::default());
    let process = guest.say("watch w:1000 if process == cat");
    assert!(process.contains("nowhere: no kernel of the guest has begun yet"), "{process}");
    for n in 2..=1024 {
        assert!(guest.say("watch gpa:1000").starts_with(&format!("{n}: ")));
    }
    assert_eq!(guest.say("watch gpa:1000"), "there are 1024 watches, which is as many as there can be\n");
    let long = guest.say(&format!("watch {}", "f".repeat(1 << 20)));
    assert!(long.contains("4096 at most"), "{long}");
    assert_eq!(guest.say("unwatch all"), "");
}
