//! Interrupts between processors: destinations, shorthands, delivery modes.

use super::*;

#[test]
fn physical_ipis() {
    let b = Board::new(4);
    b.ipi(0, 2, 0x41);
    assert_eq!(b.receivers(0x41), [2]);
    b.ipi(1, 0xff, 0x41);
    assert_eq!(b.receivers(0x41), [0, 1, 2, 3]);
    b.ipi(1, 9, 0x41);
    assert!(b.receivers(0x41).is_empty());
    assert_eq!(b.read(1, 0x300), 0x41, "idle again at once");
    assert_eq!(b.read(1, 0x310), 9 << 24);
}

#[test]
fn shorthands() {
    let b = Board::new(3);
    b.ipi(1, 0, 0x4_0041);
    assert_eq!(b.receivers(0x41), [1]);
    b.ipi(1, 0, 0x8_0041);
    assert_eq!(b.receivers(0x41), [0, 1, 2]);
    b.ipi(1, 0, 0xc_0041);
    assert_eq!(b.receivers(0x41), [0, 2]);
}

#[test]
fn logical_flat_and_cluster() {
    let b = Board::new(4);
    for cpu in 0..4 {
        b.write(cpu, 0xd0, 0x0100_0000 << cpu);
    }
    b.ipi(0, 0b1010, 0x841);
    assert_eq!(b.receivers(0x41), [1, 3]);
    b.ipi(0, 0xf0, 0x841);
    assert!(b.receivers(0x41).is_empty());
    b.ipi(0, 0xff, 0x841);
    assert_eq!(b.receivers(0x41), [0, 1, 2, 3]);

    for (cpu, id) in [0x11, 0x12, 0x21, 0x22].into_iter().enumerate() {
        b.write(cpu, 0xe0, 0x0fff_ffff);
        b.write(cpu, 0xd0, id << 24);
    }
    assert_eq!(b.read(0, 0xe0), 0x0fff_ffff);
    b.ipi(0, 0x13, 0x841);
    assert_eq!(b.receivers(0x41), [0, 1]);
    b.ipi(0, 0x22, 0x841);
    assert_eq!(b.receivers(0x41), [3]);
    b.ipi(0, 0x3f, 0x841);
    assert!(b.receivers(0x41).is_empty());
    b.ipi(0, 0xff, 0x841);
    assert_eq!(b.receivers(0x41), [0, 1, 2, 3]);
}

#[test]
fn lowest_priority_finds_the_least_busy_and_takes_turns() {
    let b = Board::new(3);
    for cpu in 0..3 {
        b.write(cpu, 0xd0, 0x0100_0000 << cpu);
    }
    b.apic(0).set_task_priority(2);
    b.apic(1).set_task_priority(1);
    b.apic(2).set_task_priority(3);
    b.ipi(0, 0b111, 0x941);
    assert_eq!(b.receivers(0x41), [1]);
    b.write(1, 0xf0, 0xff);
    b.ipi(0, 0b111, 0x941);
    assert_eq!(b.receivers(0x41), [0], "a disabled APIC is no candidate");
    for cpu in 0..3 {
        b.write(cpu, 0xf0, 0x1ff);
        b.apic(cpu).set_task_priority(0);
    }
    let mut turns: Vec<_> = (0..3)
        .flat_map(|_| {
            b.ipi(0, 0b111, 0x941);
            b.receivers(0x41)
        })
        .collect();
    turns.sort_unstable();
    assert_eq!(turns, [0, 1, 2]);
    // An MSI with redirection hint is alike.
    assert!(b.bus.deliver_msi(PAGE | 0x7_f00c, 0x41));
    assert_eq!(b.receivers(0x41).len(), 1);
    assert!(b.bus.deliver_msi(PAGE | 0x5004, 0x41));
    assert_eq!(b.receivers(0x41), [0, 2]);
}

#[test]
fn nmi_init_and_start_up() {
    let b = Board::new(2);
    b.ipi(0, 1, 0x4400);
    assert!(b.raised(1, Signals::NMI) && !b.raised(0, Signals::NMI));
    b.ipi(0, 1, 0x8500);
    assert!(!b.raised(1, Signals::INIT), "the deassertion of INIT does nothing");
    b.ipi(0, 1, 0x4500);
    assert!(b.raised(1, Signals::INIT));
    b.ipi(0, 0, 0xc_469a);
    assert!(b.raised(1, Signals::SIPI) && !b.raised(0, Signals::SIPI));
    assert_eq!(b.signals[1].sipi_vector(), 0x9a);
}
