//! Suspend to RAM, and what wakes a machine from it.

use super::*;

/// Where the guest wants to be woken: real-mode code that ends with the upper byte of PM1 status.
const WAKING: u32 = 0x1000;
const WAKING_CODE: [u8; 12] = [
    0xba, 0x00, 0x06, 0xed, // mov dx, 600h; in ax, dx
    0x88, 0xe0, // mov al, ah
    0xba, 0xf4, 0x00, 0xee, // mov dx, 0f4h; out dx, al
    0xf4, 0xf4, // hlt
];
/// The FACS's firmware waking vector.
const VECTOR: u32 = 0xe_000c;

/// Suspends, with the clock's alarm each second if it is enabled in PM1 by `enable`; going on is a failure.
fn suspend(a: &mut CodeAssembler, vector: u32, enable: u32) -> Result<(), IcedError> {
    let alarm = if enable == 0 { 2 } else { 0x22 };
    for (at, word) in (WAKING..).step_by(4).zip(WAKING_CODE.chunks(4)) {
        a.mov(dword_ptr(at), i32::from_le_bytes(word.try_into().unwrap()))?;
    }
    a.mov(dword_ptr(VECTOR), vector.cast_signed())?;
    for (index, value) in [(1, 0xc0), (3, 0xc0), (5, 0xc0), (11, alarm)] {
        outb(a, 0x70, index)?;
        outb(a, 0x71, value)?;
    }
    a.mov(dx, 0x602)?;
    a.mov(ax, enable.cast_signed())?;
    a.out(dx, ax)?;
    a.mov(dx, 0x604)?;
    a.mov(ax, (1 << 13) | (1 << 10))?;
    a.out(dx, ax)?;
    outb(a, EXIT, 0x7f)
}

#[test]
fn the_clock_wakes_a_suspended_guest_where_it_has_asked_for() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let image = image(|a| suspend(a, WAKING, 0x400));
    let machine = Machine::new(config(&image)).unwrap();
    let events = told.clone();
    machine.handle().on_event(move |event| lock(&events).push(*event));
    // WAK and RTC.
    assert_eq!(machine.run().unwrap(), Outcome::DebugExit(2 * 0x84 + 1));
    assert_eq!(lock(&told)[..2], [Event::Suspend, Event::Wakeup]);
}

#[test]
fn without_another_event_the_power_button_wakes() {
    let image = image(|a| suspend(a, WAKING, 0));
    let machine = Machine::new(config(&image)).unwrap();
    let handle = machine.handle();
    let ended = std::thread::spawn(move || machine.run().unwrap());
    wait_until("it sleeps", || handle.run_state() == RunState::Suspended);
    handle.pause();
    assert!(handle.wait_paused());
    assert_eq!(handle.run_state(), RunState::Paused);
    handle.resume();
    wait_until("it sleeps on", || handle.run_state() == RunState::Suspended);
    handle.press_power_button();
    assert_eq!(ended.join().unwrap(), Outcome::DebugExit(2 * 0x81 + 1), "WAK and the button");
}

#[test]
fn a_guest_without_a_waking_vector_starts_anew() {
    let image = image(|a| {
        let mut again = a.create_label();
        a.inc(dword_ptr(KEPT))?;
        a.cmp(dword_ptr(KEPT), 2)?;
        a.je(again)?;
        suspend(a, 0x10_0000, 0x400)?;
        a.set_label(&mut again)?;
        outb(a, EXIT, 1)
    });
    assert_eq!(Machine::new(config(&image)).unwrap().run().unwrap(), Outcome::DebugExit(3));
}
