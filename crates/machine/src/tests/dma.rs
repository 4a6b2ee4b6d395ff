//! A guest that has a device write its memory, which is watched.

use super::*;
use cpu::debugger::Stop;
use jit::Config as JitConfig;
use lens::{Format, Lens, Watcher};

/// A request to fw_cfg, in memory.
const REQUEST: u32 = 0x30_0000;
/// Where it is to copy the size of RAM, across two pages.
const TO: u32 = 0x30_1ffe;

/// Has the size of RAM copied, increments a counter, and exits.
fn asks(a: &mut CodeAssembler) -> Result<(), IcedError> {
    // Select item 3, and read 8 bytes of it.
    for (n, word) in (0..).zip([3 << 16 | 8 | 2, 8, 0, TO]) {
        a.mov(dword_ptr(REQUEST + 4 * n), word.swap_bytes())?;
    }
    a.mov(dx, 0x518)?;
    a.mov(eax, REQUEST.swap_bytes())?;
    a.out(dx, eax)?;
    a.inc(dword_ptr(KEPT))?;
    a.mov(edx, u32::from(EXIT))?;
    a.out(dx, eax)
}

#[test]
fn a_watch_stops_the_machine_behind_the_instruction_that_began_it() {
    let image = image(asks);
    for accel in [Accel::Interp, Accel::Jit(JitConfig { threshold: 1, ..JitConfig::default() })] {
        let quiet = Watcher::new(Format::default(), Arc::default(), Box::new(std::io::sink()), |_| {});
        let lens = Arc::new(Lens::new(quiet, None));
        let machine = Machine::new(Config { accel, lens, ..config(&image) }).unwrap();
        let handle = machine.handle();
        handle.pause();
        let ended = std::thread::spawn(move || machine.run());
        assert!(handle.wait_paused());
        // 16 MiB: the first two of the bytes are zero. Nobody has written otherwise.
        let expressions =
            ["w:gpa:301ffc+8 then count", "w:gpa:301ffc+8 if value != 0 then stop", "r:gpa:300000+10 then count"];
        let watches = expressions.map(|expression| handle.watch(expression.parse().unwrap()).unwrap());
        handle.resume();
        wait_until("it stops", || handle.debug_stop().is_some() && handle.run_state() == RunState::Paused);
        assert_eq!(handle.debug_stop(), Some((0, Stop::Observer(watches[1]))));
        let code = CODE + 4 * 10 + 4 + 5 + 1;
        assert_eq!(handle.inspect(0, |vcpu| vcpu.cpu.rip()), Ok(code.into()), "behind OUT");
        let word = |gpa: u32| {
            let mut bytes = [0; 4];
            assert!(handle.read_memory(Gpa(gpa.into()), &mut bytes));
            u32::from_le_bytes(bytes)
        };
        assert_eq!([REQUEST, TO, KEPT].map(word), [0, 16 << 20, 0], "all has been done but what comes next");
        let hits: Vec<_> = handle.lens().watches().iter().map(|listed| listed.hits).collect();
        assert_eq!(hits, [2, 1, 1]);
        handle.resume();
        assert!(matches!(ended.join().unwrap().unwrap(), Outcome::DebugExit(_)));
    }
}
