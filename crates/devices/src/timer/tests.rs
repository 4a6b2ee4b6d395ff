//! The queue of deadlines on a clock moved by hand, and its thread on the host's.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::Instant;

use super::*;
use crate::testing::Time;

/// Counts its expiries and takes the next deadlines from a list.
struct Device {
    timer: Timer,
    fired: Mutex<Vec<u64>>,
    again: AtomicU64,
}

impl Device {
    fn new(timers: &Arc<Timers>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            timer: timers.register(this.clone()),
            fired: Mutex::default(),
            again: AtomicU64::new(0),
        })
    }

    fn fired(&self) -> Vec<u64> {
        std::mem::take(&mut *lock(&self.fired))
    }
}

impl Expire for Device {
    fn expire(&self, now: u64) {
        lock(&self.fired).push(now);
        let again = self.again.load(Ordering::SeqCst);
        if again != 0 {
            self.timer.arm(now + again);
        }
    }
}

#[test]
fn deadlines_fire_in_order_and_once() {
    let time = Time::new();
    let [a, b] = [(); 2].map(|()| Device::new(&time.timers));
    a.timer.arm(100);
    b.timer.arm(50);
    assert_eq!(time.timers.next_deadline(), Some(50));
    time.timers.fire_due(49);
    assert_eq!((a.fired(), b.fired()), (vec![], vec![]));
    time.run_to(200);
    assert_eq!((a.fired(), b.fired()), (vec![100], vec![50]));
    assert_eq!(time.timers.next_deadline(), None);
}

#[test]
fn arming_replaces_disarming_removes_dropping_frees() {
    let time = Time::new();
    let a = Device::new(&time.timers);
    a.timer.arm(100);
    a.timer.arm(300);
    a.timer.arm(300);
    assert_eq!(time.timers.next_deadline(), Some(300));
    a.timer.disarm();
    a.timer.disarm();
    time.run_to(1000);
    assert_eq!(a.fired(), [] as [u64; 0]);
    a.timer.arm(2000);
    drop(a);
    assert_eq!(time.timers.next_deadline(), None);
    let b = Device::new(&time.timers);
    b.timer.arm(1500);
    time.run_to(2500);
    assert_eq!(b.fired(), [1500]);
}

#[test]
fn a_device_may_arm_itself_while_it_expires() {
    let time = Time::new();
    let a = Device::new(&time.timers);
    a.again.store(10, Ordering::SeqCst);
    a.timer.arm(10);
    time.run_to(45);
    assert_eq!(a.fired(), [10, 20, 30, 40]);
    // Always due again: one expiry a call, not a loop without end.
    a.again.store(0, Ordering::SeqCst);
    time.timers.fire_due(1000);
    assert_eq!(a.fired(), [1000]);
}

#[derive(Debug)]
struct HostClock(Instant);

impl Clock for HostClock {
    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

struct Count(AtomicUsize, Mutex<Option<Timer>>, u64);

impl Expire for Count {
    fn expire(&self, now: u64) {
        self.0.fetch_add(1, Ordering::SeqCst);
        if let Some(timer) = &*lock(&self.1) {
            timer.arm(now + self.2);
        }
    }
}

/// How late is the host's affair; that it is not early, nor lost, nor stuck, is ours.
#[test]
fn the_thread_fires_and_stops() {
    let clock = Arc::new(HostClock(Instant::now()));
    let timers = Timers::new(clock.clone());
    let device = Arc::new(Count(AtomicUsize::new(0), Mutex::default(), 200_000));
    let weak: Weak<Count> = Arc::downgrade(&device);
    *lock(&device.1) = Some(timers.register(weak));
    thread::scope(|scope| {
        scope.spawn(|| timers.run());
        if let Some(timer) = &*lock(&device.1) {
            timer.arm(clock.now() + 1_000_000_000_000);
            timer.arm(clock.now() + 1_000_000);
        }
        while device.0.load(Ordering::SeqCst) < 20 {
            thread::sleep(Duration::from_millis(1));
        }
        assert!(clock.now() >= 1_000_000 + 19 * 200_000);
        timers.set_paused(true);
        thread::sleep(Duration::from_millis(2));
        let paused = device.0.load(Ordering::SeqCst);
        thread::sleep(Duration::from_millis(5));
        assert_eq!(device.0.load(Ordering::SeqCst), paused);
        timers.set_paused(false);
        while device.0.load(Ordering::SeqCst) < paused + 5 {
            thread::sleep(Duration::from_millis(1));
        }
        timers.stop();
    });
    timers.run();
}
