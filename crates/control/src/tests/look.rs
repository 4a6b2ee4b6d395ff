//! What a page in the browser asks, and the pages that a guest touches.

use super::{Guest, VALUE};
use guests::image;
use iced_x86::code_asm::{qword_ptr, rax, rbx};
use machine::Accel;
use std::thread;
use std::time::{Duration, Instant};

const READ: u64 = image::DATA + 0x1000;
const WRITTEN: u64 = image::DATA + 0x3000;
const CHANGED: u64 = image::DATA + 0x5000;

/// A guest that reads a page, writes another and changes a third, again and again.
fn busy(accel: Accel) -> Guest {
    let guest = Guest::of(
        &image::long_mode(|a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.mov(rax, qword_ptr(READ))?;
            a.mov(qword_ptr(WRITTEN), rax)?;
            a.inc(qword_ptr(CHANGED))?;
            a.inc(rbx)?;
            a.jmp(again)
        }),
        accel,
    );
    guest.handle.resume();
    turns(&guest);
    guest
}

/// Waits until the guest has gone on.
fn turns(guest: &Guest) {
    let count = |vcpu: &mut machine::Vcpu| vcpu.cpu.regs[3];
    let (before, start) = (guest.handle.inspect(0, count).unwrap(), Instant::now());
    while guest.handle.inspect(0, count).unwrap() < before + 1000 {
        assert!(start.elapsed() < Duration::from_secs(20), "the guest runs");
    }
}

#[test]
fn the_pages_that_are_touched_are_known_on_both_tiers() {
    for accel in [Accel::Interp, Accel::default()] {
        let guest = busy(accel);
        let heat = guest.handle.heat().unwrap();
        for _ in 0..3 {
            turns(&guest);
            let round = heat.turn().unwrap();
            let letters = |page: u64| {
                let run = round.runs.iter().find(|run| (run.first..run.first + run.len).contains(&(page >> 12)));
                run.map(|run| (run.kinds.read, run.kinds.write, run.kinds.fetch))
            };
            assert_eq!(letters(READ), Some((true, false, false)), "{accel:?}");
            assert_eq!(letters(WRITTEN), Some((false, true, false)), "{accel:?}");
            assert_eq!(letters(CHANGED), Some((false, true, false)), "{accel:?}");
            assert_eq!(letters(image::CODE64), Some((false, false, true)), "{accel:?}");
            assert_eq!((round.pages.all, round.lost), (4, 0), "{accel:?}: {round:?}");
        }
    }
}

#[test]
fn a_working_set_has_a_beginning_and_an_end() {
    let mut guest = busy(Accel::default());
    assert_eq!(guest.say("info working-set"), "no mark is set: 'info working-set mark' sets one\n");
    assert!(guest.say("info working-set mark").starts_with("marked"));
    turns(&guest);
    let text = guest.say("info working-set");
    let last: Vec<&str> = text.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(last, ["all,", "each", "once", "4", "1", "MiB", "1", "2", "1"], "{text}");
    assert_eq!(text.lines().count(), 4, "one address space: {text}");
    assert_eq!(guest.say("info working-set off"), "");
    assert!(guest.say("info working-set").starts_with("no mark"));
    assert!(guest.say("info working-set on").contains("'on' is not 'mark' or 'off'"));
}

#[test]
fn instructions_are_counted_for_a_moment() {
    for accel in [Accel::Interp, Accel::default()] {
        let mut guest = busy(accel);
        assert_eq!(guest.monitor.figures(false).unwrap().vcpus[0].rate, None);
        let state = |vcpu: &mut machine::Vcpu| (vcpu.cpu.clock.now(), vcpu.cpu.regs[3]);
        let (start, before) = guest.handle.inspect(0, state).unwrap();
        let rate = guest.monitor.figures(true).unwrap().vcpus[0].rate.unwrap();
        let (end, after) = guest.handle.inspect(0, state).unwrap();
        // Five instructions a round. The moment is part of the time between, of which this says how fast it can have been.
        let all = 5.0 * (after - before) as f64;
        let most = all / Duration::from_millis(40).as_secs_f64();
        assert!(rate > 0.0 && rate <= most * 1.01, "{accel:?}: {rate} is more than {most} in {} ns", end - start);
        assert!(guest.handle.inspect(0, |vcpu| vcpu.cpu.stop_at.is_none()).unwrap(), "no longer than that");
        guest.handle.pause();
        assert!(guest.handle.wait_paused());
        assert_eq!(guest.monitor.figures(true).unwrap().vcpus[0].rate, Some(0.0));
    }
}

#[test]
fn figures_tell_how_a_machine_is() {
    let mut guest = Guest::running();
    let figures = guest.monitor.figures(false).unwrap();
    assert_eq!((figures.status.as_str(), figures.memory), ("running", 16 << 20));
    let vcpu = &figures.vcpus[0];
    assert_eq!((vcpu.paging.as_str(), vcpu.cpl, vcpu.halted), ("4-level paging", 0, false));
    assert!(vcpu.tlb.walks > 0);
    assert_eq!(vcpu.delivered, []);
    assert!(vcpu.registers.contains(&("rax".to_owned(), format!("{VALUE:016x}"))));
    assert!(figures.devices.iter().any(|device| device.name == "pit" && device.ports));
    assert!(figures.devices.iter().any(|device| device.name == "ioapic" && !device.ports));
    thread::sleep(Duration::from_millis(2));
    assert!(guest.monitor.figures(false).unwrap().time > figures.time);
}

#[test]
fn an_address_is_followed_to_its_bytes() {
    let mut guest = Guest::running();
    let chain = guest.monitor.chain("0x110000 + 8").unwrap();
    assert_eq!(chain.gva, "0000000000110008");
    assert_eq!(chain.gpa.as_deref(), Some("0000000000110008"));
    assert_eq!(chain.region.as_deref(), Some("ram"));
    assert_eq!(chain.bytes.get(..7), Some(&b"glass!\n"[..]));
    let names: Vec<&str> = chain.steps.iter().map(|(name, _)| *name).collect();
    assert!(names.starts_with(&["CR3", "PML4", "PDPT", "PD"]), "{names:?}");
    let unmapped = guest.monitor.chain("0x123456789000").unwrap();
    assert_eq!((unmapped.gpa, unmapped.hva, unmapped.bytes), (None, None, vec![]));
    assert!(guest.monitor.chain("0x110000 4").unwrap_err().to_string().contains("extraneous"));
    assert!(guest.monitor.chain("").is_err());
}

#[test]
fn page_tables_are_read_level_by_level() {
    let mut guest = Guest::running();
    let root = guest.monitor.table("").unwrap();
    assert_eq!(root.name, "PML4");
    assert_eq!(root.entries.iter().map(|entry| entry.count).sum::<usize>(), 512, "every entry is in one");
    let (table, level) = root.entries[0].table.clone().unwrap();
    let next = guest.monitor.table(&format!("{table} {level:x} {}", root.entries[0].gva)).unwrap();
    assert_eq!(next.name, "PDPT");
    let (table, level) = next.entries[0].table.clone().unwrap();
    let pages = guest.monitor.table(&format!("{table} {level:x} 0")).unwrap();
    let first = &pages.entries[0];
    let folded = pages.entries.iter().any(|entry| entry.page.is_some() && entry.count > 1);
    assert!(folded, "pages that follow each other and are alike are one: {:?}", pages.entries);
    assert_eq!(first.page, Some((format!("{:016x}", 0), 2 << 20)));
    assert!(first.bits.contains(&"PS".to_owned()) && first.bits.contains(&"RW".to_owned()), "{first:?}");
    // The upper half's first entry is where canonical addresses go on.
    let upper = guest.monitor.table(&format!("{} 3 0", root.gpa)).unwrap();
    assert!(upper.entries.iter().all(|entry| entry.index < 256 || entry.gva.starts_with("ffff")));
    for (wrong, why) in [
        ("x", "no hexadecimal number"),
        ("1000 9 0", "no tables of level 9"),
        ("1000 1", "is named by"),
        ("ffffffffff000 0 0", "no memory at gpa"),
        ("11111222223333344444", "no hexadecimal number"),
    ] {
        let error = guest.monitor.table(wrong).unwrap_err().to_string();
        assert!(error.contains(why), "{wrong}: {error}");
    }
}

#[test]
fn a_page_knows_where_it_is_mapped() {
    let mut guest = Guest::running();
    let page = guest.monitor.page("110abc").unwrap();
    assert_eq!((page.gpa.as_str(), page.region.as_deref(), page.more), ("0000000000110000", Some("ram"), false));
    assert_eq!(page.mapped, [("0000000000110000".to_owned(), "-rwx".to_owned(), None)]);
    let nothing = guest.monitor.page("0xabcd00000000").unwrap();
    assert_eq!((nothing.region, nothing.hva, nothing.mapped), (None, None, vec![]));
    assert!(guest.monitor.page("").is_err());
}
