//! Scripts of register accesses, messages and time against a few local APICs on one bus.

use std::sync::atomic::{AtomicUsize, Ordering};

use cpu::LocalApic as _;
use memory::Mmio as _;

use super::*;
use crate::testing::Time;

mod ipi;
mod timer;

const PAGE: u64 = APIC_BASE_ADDRESS;
const ENABLED: u64 = 1 << 11;
const EXTD: u64 = 1 << 10;

struct Board {
    time: Time,
    bus: Arc<ApicBus>,
    mmio: ApicMmio,
    signals: Vec<Arc<Signals>>,
}

impl Board {
    /// `n` processors with their APICs enabled by software.
    fn new(n: usize) -> Self {
        let board = Self::raw(n);
        for cpu in 0..n {
            board.write(cpu, 0xf0, 0x1ff);
        }
        board
    }

    fn raw(n: usize) -> Self {
        let (time, bus) = (Time::new(), ApicBus::new());
        let signals: Vec<_> = (0..n)
            .map(|id| {
                let signals = Arc::new(Signals::default());
                let config =
                    ApicConfig { id: id as u32, bsp: id == 0, x2apic: true, tsc_deadline: true, physical_bits: 40 };
                let _ = LocalApic::new(config, &bus, &time.timers, Arc::clone(&signals));
                signals
            })
            .collect();
        let mmio = ApicMmio::new(Arc::clone(&bus), PAGE);
        Self { time, bus, mmio, signals }
    }

    fn apic(&self, cpu: usize) -> Arc<LocalApic> {
        self.bus.apic(cpu).unwrap()
    }

    fn read(&self, cpu: usize, offset: u64) -> u32 {
        self.mmio.read(cpu, offset, 4) as u32
    }

    fn write(&self, cpu: usize, offset: u64, value: u32) {
        self.mmio.write(cpu, offset, 4, value.into());
    }

    fn raised(&self, cpu: usize, bits: u32) -> bool {
        self.signals[cpu].raised() & bits != 0
    }

    /// The vector that a processor with interrupts on takes.
    fn take(&self, cpu: usize) -> Option<u8> {
        if self.raised(cpu, Signals::INTERRUPT) { self.apic(cpu).acknowledge() } else { None }
    }

    /// Takes all that come, with an EOI each.
    fn drain(&self, cpu: usize) -> Vec<u8> {
        std::iter::from_fn(|| {
            let vector = self.take(cpu)?;
            self.write(cpu, 0xb0, 0);
            Some(vector)
        })
        .collect()
    }

    fn eoi(&self, cpu: usize) {
        self.write(cpu, 0xb0, 0);
    }

    fn ipi(&self, cpu: usize, destination: u32, low: u32) {
        self.write(cpu, 0x310, destination << 24);
        self.write(cpu, 0x300, low);
    }

    fn enter_x2apic(&self, cpu: usize) {
        let base = self.apic(cpu).read_msr(0x1b).unwrap();
        self.apic(cpu).write_msr(0x1b, base | EXTD).unwrap();
    }

    fn fixed(&self, vector: u8, level: bool) {
        let message = Message {
            destination: 0,
            logical: false,
            wide: false,
            mode: DeliveryMode::Fixed,
            vector,
            level,
            one: false,
        };
        assert!(self.bus.deliver(&message));
    }

    /// Which processors got `vector` and nothing else.
    fn receivers(&self, vector: u8) -> Vec<usize> {
        (0..self.signals.len())
            .filter(|&cpu| {
                let got = self.take(cpu);
                if got.is_some() {
                    assert_eq!(got, Some(vector));
                    assert_eq!(self.apic(cpu).read_msr(0x1b).unwrap() & ENABLED, ENABLED);
                    if self.apic(cpu).write_msr(0x80b, 0).is_none() {
                        self.eoi(cpu);
                    }
                }
                got.is_some()
            })
            .collect()
    }
}

#[derive(Debug, Default)]
struct Eois(Mutex<Vec<u8>>);

impl EoiSink for Eois {
    fn eoi(&self, vector: u8) {
        lock(&self.0).push(vector);
    }
}

#[derive(Debug)]
struct Vector(u8);

impl ExtInt for Vector {
    fn acknowledge(&self) -> u8 {
        self.0
    }
}

#[test]
fn registers_after_power_on() {
    let b = Board::raw(2);
    assert_eq!(b.apic(0).read_msr(0x1b), Some(0xfee0_0900));
    assert_eq!(b.apic(1).read_msr(0x1b), Some(0xfee0_0800));
    assert_eq!(b.read(1, 0x20), 0x0100_0000);
    assert_eq!(b.read(0, 0x30), 0x0005_0014);
    assert_eq!(b.read(0, 0xf0), 0xff);
    assert_eq!(b.read(0, 0xe0), u32::MAX);
    for offset in (0x320..=0x370).step_by(16) {
        assert_eq!(b.read(0, offset), 0x1_0000);
    }
}

#[test]
fn the_highest_vector_goes_first_and_priority_classes_nest() {
    let b = Board::new(1);
    b.fixed(0x51, false);
    b.fixed(0x5f, false);
    b.fixed(0x61, false);
    assert_eq!(b.take(0), Some(0x61));
    assert_eq!(b.read(0, 0xa0), 0x60);
    assert_eq!(b.take(0), None);
    b.fixed(0x62, false);
    assert_eq!(b.take(0), None, "the same class does not interrupt itself");
    b.fixed(0x70, false);
    assert_eq!(b.take(0), Some(0x70));
    assert_eq!((b.read(0, 0x130), b.read(0, 0x220)), (1 << 1 | 1 << 16, 0x8002_0000_u32));
    b.eoi(0);
    assert_eq!(b.take(0), None);
    b.eoi(0);
    assert_eq!(b.drain(0), [0x62, 0x5f, 0x51]);
}

#[test]
fn task_priority_holds_back_its_class_and_below() {
    let b = Board::new(1);
    b.fixed(0x4f, false);
    assert!(b.raised(0, Signals::INTERRUPT));
    b.apic(0).set_task_priority(4);
    assert!(!b.raised(0, Signals::INTERRUPT), "INTERRUPT follows the priority");
    assert_eq!(b.apic(0).acknowledge(), None, "a late acknowledge finds nothing");
    assert_eq!((b.read(0, 0x80), b.read(0, 0xa0)), (0x40, 0x40));
    b.write(0, 0x80, 0x3f);
    assert_eq!((b.apic(0).task_priority(), b.read(0, 0xa0)), (3, 0x3f));
    assert_eq!(b.take(0), Some(0x4f));
    assert_eq!(b.read(0, 0xa0), 0x40);
}

#[test]
fn an_eoi_is_broadcast_for_levels_only() {
    let b = Board::new(1);
    let sink = Arc::new(Eois::default());
    b.bus.add_eoi_sink(Arc::downgrade(&sink) as Weak<dyn EoiSink>);
    b.eoi(0);
    b.fixed(0x79, true);
    assert_eq!(b.read(0, 0x1b0), 1 << 25, "TMR");
    b.fixed(0x88, false);
    assert_eq!(b.drain(0), [0x88, 0x79]);
    assert_eq!(*lock(&sink.0), [0x79]);
    b.fixed(0x79, false);
    assert_eq!(b.read(0, 0x1b0), 0, "an edge takes the TMR bit away");
}

#[test]
fn software_disable_masks_the_entries_and_refuses_messages() {
    let b = Board::new(1);
    b.write(0, 0x350, 0x700);
    b.write(0, 0x320, 0x30);
    b.fixed(0x44, false);
    b.write(0, 0xf0, 0xff);
    assert_eq!((b.read(0, 0x350), b.read(0, 0x320)), (0x1_0700, 0x1_0030));
    b.write(0, 0x350, 0x700);
    assert_eq!(b.read(0, 0x350), 0x1_0700, "cannot be unmasked while disabled");
    assert!(!b.bus.deliver_msi(PAGE, 0x45));
    assert_eq!(b.take(0), Some(0x44), "what was requested stays so");
    b.ipi(0, 0, 0x400);
    assert!(b.raised(0, Signals::NMI), "NMI, INIT and start-up get through");
    b.write(0, 0xf0, 0x1ff);
    assert_eq!(b.read(0, 0x350), 0x1_0700, "masks stay after enabling");
}

#[test]
fn illegal_vectors_and_registers_show_in_esr() {
    let b = Board::new(1);
    b.write(0, 0x370, 0x33);
    b.ipi(0, 0, 0x4_000f);
    assert_eq!(b.read(0, 0x280), 0, "not before a write latches it");
    b.write(0, 0x280, 0);
    assert_eq!(b.read(0, 0x280), 0x20);
    assert_eq!(b.drain(0), [0x33]);
    assert!(!b.bus.deliver_msi(PAGE, 3));
    b.read(0, 0x2f0);
    b.write(0, 0x400, 1);
    b.write(0, 0x280, 0);
    assert_eq!(b.read(0, 0x280), 0xc0);
    b.write(0, 0x280, 0);
    assert_eq!(b.read(0, 0x280), 0);
    b.write(0, 0x370, 0x5);
    b.read(0, 0x0);
}

#[test]
fn apic_base_goes_round_its_ring_only() {
    let b = Board::raw(1);
    let apic = b.apic(0);
    let [off, x, x2, bad] = [0, ENABLED, ENABLED | EXTD, EXTD].map(|mode| 0xfee0_0100 | mode);
    let path = [
        (x, true),
        (bad, false),
        (off, true),
        (x2, false),
        (bad, false),
        (off, true),
        (x, true),
        (x2, true),
        (x2, true),
        (x, false),
        (bad, false),
        (off, true),
    ];
    for (step, (to, legal)) in path.into_iter().enumerate() {
        let before = apic.read_msr(0x1b);
        assert_eq!(apic.write_msr(0x1b, to).is_some(), legal, "step {step}");
        assert_eq!(apic.read_msr(0x1b), if legal { Some(to) } else { before });
    }
    for reserved in [1, 1 << 9, 1 << 40, 1 << 63] {
        assert_eq!(apic.write_msr(0x1b, x | reserved), None);
    }
    assert_eq!(apic.write_msr(0x1b, x | 1 << 39), Some(()));
}

#[test]
fn a_processor_without_x2apic_refuses_it() {
    let (time, bus) = (Time::new(), ApicBus::new());
    let config = ApicConfig { id: 0, bsp: true, x2apic: false, tsc_deadline: false, physical_bits: 36 };
    let apic = LocalApic::new(config, &bus, &time.timers, Arc::default());
    assert_eq!(apic.write_msr(0x1b, PAGE | ENABLED | EXTD), None);
    apic.write_mmio(PAGE, 0xf0, 4, 0x1ff);
    apic.write_mmio(PAGE, 0x320, 4, 0x4_0030);
    assert_eq!(apic.read_mmio(PAGE, 0x320), Some(0x30), "no TSC deadline either");
}

#[test]
fn the_page_answers_in_xapic_mode_and_at_its_address_only() {
    let b = Board::new(1);
    let apic = b.apic(0);
    apic.set_task_priority(5);
    apic.write_msr(0x1b, PAGE | 0x100).unwrap();
    assert_eq!(b.mmio.read(0, 0x30, 8), u64::MAX);
    assert_eq!(b.read(0, 0x80), u32::MAX);
    b.write(0, 0x80, 0);
    assert_eq!(apic.task_priority(), 5, "CR8 lives without the APIC");
    apic.set_task_priority(7);

    apic.write_msr(0x1b, 0xfed4_0900).unwrap();
    assert_eq!(b.read(0, 0x30), u32::MAX);
    let window = ApicMmio::new(Arc::clone(&b.bus), ApicMmio::WINDOW.start);
    assert_eq!(window.read(0, 0x14_0030, 4), 0x0005_0014);
    assert_eq!(window.read(0, 0x13_0030, 4), 0xffff_ffff);
    window.write(0, 0x14_0080, 4, 0x50);
    window.write(0, 0x15_0080, 4, 0x60);
    assert_eq!(apic.task_priority(), 5);
    apic.set_task_priority(7);
    let there = ApicMmio::new(Arc::clone(&b.bus), 0xfed4_0000);
    assert_eq!(there.read(0, 0x30, 4), 0x0005_0014);
    assert_eq!(there.read(0, 0x80, 4), 0x70);
    assert_eq!(there.read(0, 0xf0, 4), 0xff, "back as after power-on");
    assert_eq!(there.read(usize::MAX, 0x30, 2), 0xffff, "no vCPU, no APIC");

    b.enter_x2apic(0);
    assert_eq!(there.read(0, 0x30, 4), 0xffff_ffff);
}

#[test]
fn x2apic_identity_and_destinations() {
    let b = Board::new(20);
    for cpu in 0..20 {
        b.enter_x2apic(cpu);
    }
    let apic = b.apic(17);
    assert_eq!((apic.read_msr(0x802), apic.read_msr(0x80d)), (Some(17), Some(1 << 16 | 1 << 1)));
    apic.write_msr(0x830, 18 << 32 | 0x41).unwrap();
    assert_eq!(b.receivers(0x41), [18]);
    assert_eq!(apic.read_msr(0x830), Some(18 << 32 | 0x41));
    apic.write_msr(0x830, 0x0001_000c_0000_0841).unwrap();
    assert_eq!(b.receivers(0x41), [18, 19]);
    apic.write_msr(0x830, 0xffff_ffff_0000_0041).unwrap();
    assert_eq!(b.receivers(0x41).len(), 20);
    apic.write_msr(0x830, 0xff_0000_0041).unwrap();
    assert!(b.receivers(0x41).is_empty());
    apic.write_msr(0x83f, 0x41).unwrap();
    assert_eq!(b.receivers(0x41), [17]);
    // Messages of 8 bits from the IOAPIC: the first cluster, or with all ones everybody.
    assert!(b.bus.deliver_msi(PAGE | 0xd << 12 | 4, 0x41));
    assert_eq!(b.receivers(0x41), [0, 2, 3]);
    assert!(b.bus.deliver_msi(PAGE | 0xff << 12, 0x41));
    assert_eq!(b.receivers(0x41).len(), 20);
}

#[test]
fn x2apic_registers_that_are_not_raise_gp() {
    let b = Board::new(1);
    let apic = b.apic(0);
    assert_eq!((apic.read_msr(0x802), apic.write_msr(0x80b, 0)), (None, None), "xAPIC mode has no MSRs");
    b.enter_x2apic(0);
    let readable = [0x802, 0x803, 0x808, 0x80a, 0x80d, 0x80f, 0x828, 0x830, 0x838, 0x839, 0x83e];
    let readable: Vec<u32> = readable.into_iter().chain(0x810..=0x827).chain(0x832..=0x837).collect();
    for msr in 0x800..=0x8ff {
        assert_eq!(apic.read_msr(msr).is_some(), readable.contains(&msr), "{msr:x}");
    }
    let writable = [0x808, 0x80b, 0x80f, 0x828, 0x830, 0x838, 0x83e, 0x83f];
    let writable: Vec<u32> = writable.into_iter().chain(0x832..=0x837).collect();
    for msr in 0x800..=0x8ff {
        assert_eq!(apic.write_msr(msr, 0).is_some(), writable.contains(&msr), "{msr:x}");
    }
    for (msr, value) in [
        (0x808, 0x100),
        (0x80b, 1),
        (0x80f, 0x400),
        (0x80f, 1 << 32),
        (0x828, 1),
        (0x830, 1 << 20),
        (0x832, 1 << 19),
        (0x835, 1 << 17),
        (0x837, 0x700),
        (0x83e, 4),
        (0x83f, 0x100),
    ] {
        assert_eq!(apic.write_msr(msr, value), None, "{msr:x} {value:x}");
    }
    assert_eq!((apic.read_msr(0x900), apic.write_msr(0x1a, 0)), (None, None));
}

#[test]
fn the_id_is_writable_in_xapic_mode_and_comes_back() {
    let b = Board::new(2);
    b.write(1, 0x20, 0x2100_0000);
    b.ipi(0, 0x21, 0x41);
    assert_eq!(b.receivers(0x41), [1]);
    b.apic(1).init();
    assert_eq!(b.read(1, 0x20), 0x2100_0000, "INIT keeps it");
    b.apic(1).write_msr(0x1b, PAGE).unwrap();
    b.apic(1).write_msr(0x1b, PAGE | ENABLED).unwrap();
    assert_eq!(b.read(1, 0x20), 0x0100_0000);
}

#[test]
fn ext_int_comes_through_lint0() {
    let b = Board::new(2);
    let source: Arc<dyn ExtInt> = Arc::new(Vector(0x20));
    b.bus.set_ext_int(Arc::downgrade(&source));
    let intr = b.bus.intr_pin();
    b.apic(0).set_virtual_wire();
    assert_eq!((b.read(0, 0x350), b.read(0, 0x360)), (0x700, 0x400));
    intr.set(true);
    assert!(b.raised(0, Signals::INTERRUPT) && !b.raised(1, Signals::INTERRUPT));
    b.fixed(0x80, false);
    assert_eq!(b.take(0), Some(0x20));
    assert_eq!(b.read(0, 0x110), 0, "ExtINT is not in service here");
    assert_eq!(b.take(0), Some(0x20), "it asks as long as the line is high");
    intr.set(false);
    assert_eq!(b.take(0), Some(0x80));
    b.apic(0).set_task_priority(0xf);
    intr.set(true);
    assert!(b.raised(0, Signals::INTERRUPT), "no priority holds it back");
    b.write(0, 0x350, 0x1_0700);
    assert!(!b.raised(0, Signals::INTERRUPT));

    // Without an APIC the line is the processor's own.
    b.apic(1).write_msr(0x1b, PAGE).unwrap();
    assert_eq!(b.take(1), Some(0x20));
    intr.set(false);
    assert!(!b.raised(1, Signals::INTERRUPT));
    b.bus.nmi_pin().set(true);
    assert!(b.raised(0, Signals::NMI) && b.raised(1, Signals::NMI));

    // As a message.
    b.bus.deliver_msi(PAGE, 0x700);
    assert_eq!((b.take(0), b.take(0)), (Some(0x20), None));
}

#[test]
fn lint_pins_in_fixed_mode() {
    let b = Board::new(1);
    let pin = b.apic(0).lint_pin(0);
    b.write(0, 0x350, 0x31);
    pin.set(true);
    pin.set(true);
    assert_eq!(b.drain(0), [0x31]);
    pin.set(false);
    b.write(0, 0x350, 0x8031);
    pin.set(true);
    assert_eq!(b.take(0), Some(0x31));
    assert_eq!(b.read(0, 0x350), 0xc031, "remote IRR");
    b.eoi(0);
    assert_eq!(b.take(0), Some(0x31), "still there");
    pin.set(false);
    b.eoi(0);
    assert_eq!((b.take(0), b.read(0, 0x350)), (None, 0x8031));
    b.write(0, 0x350, 0xa031);
    assert_eq!(b.take(0), Some(0x31), "active low");
    b.apic(0).lint_pin(1).set(true);
}

#[test]
fn init_clears_all_but_id_and_base() {
    let b = Board::new(1);
    b.fixed(0x44, true);
    b.write(0, 0x320, 0x30);
    b.write(0, 0x380, 5);
    b.apic(0).init();
    assert!(!b.raised(0, Signals::INTERRUPT));
    assert_eq!((b.read(0, 0xf0), b.read(0, 0x380), b.read(0, 0x1a0)), (0xff, 0, 0));
    assert_eq!(b.time.timers.next_deadline(), None);
}

#[test]
fn reset_is_power_on() {
    let b = Board::new(1);
    b.enter_x2apic(0);
    b.fixed(0x44, false);
    b.apic(0).reset();
    assert_eq!(b.apic(0).read_msr(0x1b), Some(0xfee0_0900));
    assert_eq!((b.take(0), b.read(0, 0xf0)), (None, 0xff));
}

#[test]
fn odd_accesses_are_safe_and_do_little() {
    let b = Board::new(1);
    b.write(0, 0xd0, 0x1200_0000);
    assert_eq!(b.mmio.read(0, 0xd3, 1), 0x12);
    assert_eq!(b.mmio.read(0, 0xd2, 2), 0x1200);
    assert_eq!(b.mmio.read(0, 0xd0, 8), 0x1200_0000);
    assert_eq!(b.mmio.read(0, 0xd4, 4), 0);
    b.mmio.write(0, 0xd0, 1, 0xff);
    b.mmio.write(0, 0xd4, 4, u64::MAX);
    assert_eq!(b.read(0, 0xd0), 0x1200_0000);
    b.mmio.write(0, 0xd0, 8, 0xffff_ffff_3400_0000);
    assert_eq!(b.read(0, 0xd0), 0x3400_0000);
    for offset in (0..0x1000).chain([u64::MAX, u64::MAX - 15]) {
        for size in [0, 1, 2, 3, 4, 8, 9] {
            b.mmio.read(0, offset, size);
            b.mmio.write(0, offset, size, 0xa5a5_a5a5_5a5a_5a5a);
        }
    }
    for msr in 0x800..=0x8ff {
        b.apic(0).write_msr(msr, u64::MAX);
    }
}

#[test]
fn interrupts_from_many_threads_all_arrive() {
    let b = Board::new(2);
    let taken = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for lane in 0..2_u8 {
            let (b, taken) = (&b, &taken);
            scope.spawn(move || {
                for round in 0..2000 {
                    let vector = 0x40 + lane * 0x40 + (round % 32) as u8;
                    b.ipi(usize::from(lane), u32::from(1 - lane), u32::from(vector));
                    for _ in b.drain(usize::from(lane)) {
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    for cpu in 0..2 {
        b.drain(cpu);
        assert!(!b.raised(cpu, Signals::INTERRUPT));
        for word in 0..8 {
            assert_eq!(b.read(cpu, 0x200 + 16 * word), 0);
            assert_eq!(b.read(cpu, 0x100 + 16 * word), 0);
        }
    }
    assert!(taken.load(Ordering::Relaxed) > 0);
}
