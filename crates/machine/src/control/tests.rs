//! Stopping, resetting and ending from other threads.

use super::*;
use std::thread;

fn entry() -> Entry {
    let tables = x86::TableRegister::default();
    Entry {
        regs: [0; 16],
        rip: 0x1234,
        rflags: x86::Rflags::new(),
        seg: [x86::Segment::default(); 6],
        ldtr: x86::Segment::default(),
        tr: x86::Segment::default(),
        gdtr: tables,
        idtr: tables,
        cr0: x86::Cr0::new(),
        cr3: 0,
        cr4: x86::Cr4::new(),
        efer: x86::Efer::new(),
    }
}

fn control(vcpus: usize) -> Control {
    Control::new((0..vcpus).map(|_| Arc::default()).collect())
}

/// Visits the gate as a vCPU's thread would, and says what came of it: `None` for the end, else whether there was a reset.
fn visit(control: &Control, index: usize, seen: &mut Seen) -> Option<bool> {
    let mut reset = false;
    loop {
        match control.gate(index, seen, |_| {}) {
            Pass::Reset(_) => reset = true,
            Pass::Go { .. } => return Some(reset),
            Pass::End => return None,
        }
    }
}

#[test]
fn nothing_runs_before_the_start() {
    let control = control(1);
    thread::scope(|s| {
        let vcpu = s.spawn(|| visit(&control, 0, &mut Seen::default()));
        thread::yield_now();
        assert!(!vcpu.is_finished());
        control.start(entry());
        assert_eq!(vcpu.join().unwrap(), Some(true));
    });
}

#[test]
fn the_first_request_counts() {
    let control = control(1);
    control.start(entry());
    let mut seen = Seen::default();
    assert_eq!(visit(&control, 0, &mut seen), Some(true));
    assert_eq!(visit(&control, 0, &mut seen), Some(false), "reset once");
    assert_eq!(control.signals[0].raised() & Signals::STOP, 0);
    control.request(PowerRequest::DebugExit(3));
    control.request(PowerRequest::PowerOff);
    assert_eq!(control.signals[0].raised() & Signals::STOP, Signals::STOP);
    thread::scope(|s| {
        let vcpu = s.spawn(|| visit(&control, 0, &mut seen));
        assert!(matches!(control.next(), Task::Act(Request::Power(PowerRequest::DebugExit(3)))));
        control.end();
        assert_eq!(vcpu.join().unwrap(), None);
    });
}

#[test]
fn a_pause_holds_every_vcpu() {
    let control = control(2);
    control.start(entry());
    control.set_pause(true);
    thread::scope(|s| {
        let vcpus = [0, 1].map(|i| {
            let control = &control;
            s.spawn(move || visit(control, i, &mut Seen::default()))
        });
        assert!(matches!(control.next(), Task::Pause));
        control.set_paused(true);
        assert!(control.wait_paused());
        control.set_pause(false);
        assert!(matches!(control.next(), Task::Resume));
        assert!(vcpus.iter().all(|vcpu| !vcpu.is_finished()), "until the clock runs");
        control.set_paused(false);
        for vcpu in vcpus {
            assert_eq!(vcpu.join().unwrap(), Some(true));
        }
    });
}

#[test]
fn a_machine_that_is_off_goes_on_only_by_a_reset() {
    let control = control(0);
    control.start(entry());
    control.request(PowerRequest::PowerOff);
    assert!(matches!(control.next(), Task::Act(Request::Power(PowerRequest::PowerOff))));
    control.keep_off();
    assert!(matches!(control.next(), Task::Pause));
    control.set_paused(true);
    control.set_pause(false);
    control.request(PowerRequest::Reset);
    assert!(matches!(control.next(), Task::Act(Request::Power(PowerRequest::Reset))), "no resume before");
    control.start(entry());
    assert!(matches!(control.next(), Task::Resume));
}

#[test]
fn a_flush_passes_the_gate_once() {
    let control = control(1);
    control.start(entry());
    let mut seen = Seen::default();
    visit(&control, 0, &mut seen);
    control.flush_all();
    assert_eq!(control.signals[0].raised() & Signals::STOP, Signals::STOP);
    assert!(matches!(control.gate(0, &mut seen, |_| {}), Pass::Go { flush: true }));
    assert!(matches!(control.gate(0, &mut seen, |_| {}), Pass::Go { flush: false }));
}

#[test]
fn quit_needs_nobody() {
    let control = control(4);
    control.quit();
    assert!(matches!(control.next(), Task::Quit));
}

#[test]
fn a_pause_comes_to_pass_however_short() {
    let control = control(1);
    control.start(entry());
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    control.events.listen(Arc::new(move |event| lock(&tell).push(*event)));
    control.set_pause(true);
    assert_eq!(control.run_state(), RunState::Prelaunch);
    control.set_pause(false);
    assert_eq!(control.run_state(), RunState::Running);
    thread::scope(|s| {
        let vcpu = s.spawn(|| visit(&control, 0, &mut Seen::default()));
        assert!(matches!(control.next(), Task::Pause));
        control.set_paused(true);
        assert!(matches!(control.next(), Task::Resume));
        control.set_paused(false);
        assert_eq!(vcpu.join().unwrap(), Some(true));
    });
    assert_eq!(*lock(&told), [Event::Stop, Event::Resume]);
}
