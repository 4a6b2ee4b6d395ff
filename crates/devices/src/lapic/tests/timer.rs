//! The APIC timer: one-shot, periodic and by deadline, to the nanosecond.

use super::*;

#[test]
fn one_shot_and_masked_timer() {
    let b = Board::new(1);
    b.time.jump(1_000_000);
    b.write(0, 0x3e0, 0b1011);
    b.write(0, 0x320, 0x30);
    b.write(0, 0x380, 5000);
    assert_eq!(b.time.timers.next_deadline(), Some(1_005_000));
    b.time.run_to(1_004_999);
    assert_eq!((b.read(0, 0x390), b.take(0)), (1, None));
    b.time.run_to(1_005_000);
    assert_eq!((b.read(0, 0x390), b.take(0)), (0, Some(0x30)));
    b.eoi(0);
    assert_eq!((b.time.timers.next_deadline(), b.read(0, 0x380)), (None, 5000));

    b.write(0, 0x380, 5000);
    b.write(0, 0x320, 0x1_0030);
    assert_eq!(b.time.timers.next_deadline(), None, "masked, it wakes nobody");
    b.time.run(2000);
    assert_eq!(b.read(0, 0x390), 3000, "and runs on");
    b.write(0, 0x320, 0x30);
    assert_eq!(b.time.timers.next_deadline(), Some(1_010_000));
    b.write(0, 0x320, 0x1_0030);
    b.time.run(4000);
    b.write(0, 0x320, 0x30);
    assert_eq!(b.take(0), None, "what ran out while masked is lost");
    b.write(0, 0x380, 5000);
    b.write(0, 0x380, 0);
    assert_eq!((b.time.timers.next_deadline(), b.read(0, 0x390)), (None, 0));
}

#[test]
fn periodic_timer_keeps_its_phase() {
    let b = Board::new(1);
    b.write(0, 0x320, 0x2_0040);
    b.write(0, 0x3e0, 0b0011);
    b.write(0, 0x380, 100);
    for n in 1..=3 {
        assert_eq!(b.time.timers.next_deadline(), Some(n * 1600));
        b.time.run_to(n * 1600);
        assert_eq!(b.drain(0), [0x40]);
    }
    b.time.run(160);
    assert_eq!(b.read(0, 0x390), 90);
    b.time.jump(16_000 + 1);
    b.time.timers.fire_due(16_001);
    assert_eq!(b.drain(0), [0x40], "missed periods count once");
    assert_eq!(b.time.timers.next_deadline(), Some(17_600));
    assert_eq!(b.read(0, 0x390), 100);
}

#[test]
fn divisors() {
    let b = Board::new(1);
    let divisors = [(0b0000, 2), (1, 4), (2, 8), (3, 16), (0b1000, 32), (0b1001, 64), (0b1010, 128), (0b1011, 1)];
    for (bits, divisor) in divisors {
        b.write(0, 0x320, 0x30);
        b.write(0, 0x3e0, bits);
        assert_eq!(b.read(0, 0x3e0), bits);
        b.write(0, 0x380, 10);
        let start = b.time.clock.now();
        assert_eq!(b.time.timers.next_deadline(), Some(start + 10 * divisor));
        b.time.run(3 * divisor);
        assert_eq!(b.read(0, 0x390), 7);
    }
    b.write(0, 0x3e0, 0);
    assert_eq!(b.read(0, 0x390), 7, "a new divisor does not change the count");
}

#[test]
fn changing_between_one_shot_and_periodic_keeps_the_count() {
    let b = Board::new(1);
    b.write(0, 0x3e0, 0xb);
    b.write(0, 0x320, 0x30);
    b.write(0, 0x380, 1000);
    b.time.run(600);
    b.write(0, 0x320, 0x2_0030);
    assert_eq!(b.read(0, 0x390), 400);
    b.time.run(500);
    assert_eq!(b.read(0, 0x390), 900, "went round");
    b.write(0, 0x320, 0x30);
    assert_eq!(b.read(0, 0x390), 900);
    b.time.run(1000);
    assert_eq!(b.read(0, 0x390), 0);
    b.write(0, 0x320, 0x2_0030);
    assert_eq!((b.read(0, 0x390), b.read(0, 0x380)), (0, 1000), "stays at zero until written");
}

#[test]
fn tsc_deadline() {
    let b = Board::new(1);
    let apic = b.apic(0);
    apic.set_deadline(Some(500));
    assert_eq!(apic.deadline(), None, "not in that mode");
    b.write(0, 0x380, 100);
    b.write(0, 0x320, 0x4_00ef);
    assert_eq!(b.time.timers.next_deadline(), None, "the change of mode disarmed the counter");
    b.write(0, 0x380, 100);
    assert_eq!((b.read(0, 0x380), b.read(0, 0x390)), (0, 0));
    apic.set_deadline(Some(500));
    assert_eq!((apic.deadline(), b.time.timers.next_deadline()), (Some(500), Some(500)));
    b.time.run_to(499);
    assert_eq!(b.take(0), None);
    b.time.run_to(500);
    assert_eq!((apic.deadline(), b.drain(0)), (None, vec![0xef]));
    apic.set_deadline(Some(500));
    assert_eq!((apic.deadline(), b.drain(0)), (None, vec![0xef]), "the past is at once");
    apic.set_deadline(Some(900));
    apic.set_deadline(None);
    assert_eq!((apic.deadline(), b.time.timers.next_deadline()), (None, None));
    apic.set_deadline(Some(u64::MAX));
    b.write(0, 0x320, 0x30);
    b.write(0, 0x320, 0x4_00ef);
    assert_eq!(apic.deadline(), None);
}
