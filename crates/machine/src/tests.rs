//! Tiny guests: machine code in a multiboot image, run to their end.

use super::*;
use cpu::cpuid::Model;
use devices::Sink;
use devices::sync::lock;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

/// Where the image is loaded, header first.
const LOAD: u32 = 0x10_0000;
/// Where its code begins.
const CODE: u32 = LOAD + 32;
const EXIT: u16 = 0xf4;
/// RAM that no reset touches.
const KEPT: u32 = 0x20_0000;

type Assemble = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// A multiboot image of this 32-bit code.
fn image(code: Assemble) -> NamedTempFile {
    let mut asm = CodeAssembler::new(32).unwrap();
    code(&mut asm).unwrap();
    let code = asm.assemble(CODE.into()).unwrap();
    let (magic, flags) = (0x1bad_b002u32, 1 << 16);
    let header = [magic, flags, 0u32.wrapping_sub(magic + flags), LOAD, LOAD, 0, 0, CODE];
    let mut file = NamedTempFile::new().unwrap();
    for word in header {
        file.write_all(&word.to_le_bytes()).unwrap();
    }
    file.write_all(&code).unwrap();
    file
}

#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Sink for Kept {
    fn write(&mut self, bytes: &[u8]) {
        lock(&self.0).extend_from_slice(bytes);
    }
}

fn config(image: &NamedTempFile) -> Config {
    Config {
        memory: 16 << 20,
        kernel: Some(image.path().into()),
        isa_debug_exit: Some(DebugExitPorts { iobase: EXIT, iosize: 4 }),
        no_reboot: true,
        ..Config::new(Arc::new(Model::max()))
    }
}

fn run(code: Assemble) -> Outcome {
    Machine::new(config(&image(code))).unwrap().run().unwrap()
}

/// Writes `value` to a port.
fn outb(a: &mut CodeAssembler, port: u16, value: u8) -> Result<(), IcedError> {
    a.mov(dx, i32::from(port))?;
    a.mov(al, i32::from(value))?;
    a.out(dx, al)
}

/// Waits until `done`, or fails.
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_debug_exit_ends_with_its_status() {
    let outcome = run(|a| {
        a.mov(edx, u32::from(EXIT))?;
        a.mov(eax, 0x10)?;
        a.out(dx, eax)?;
        let mut forever = a.create_label();
        a.set_label(&mut forever)?;
        a.jmp(forever)
    });
    assert_eq!(outcome, Outcome::DebugExit(0x21));
}

#[test]
fn hello_and_power_off() {
    let image = image(|a| {
        for byte in *b"ok\n" {
            outb(a, 0x3f8, byte)?;
        }
        outb(a, 0xe9, b'!')?;
        a.mov(dx, 0x604)?;
        a.mov(ax, (1 << 13) | (5 << 10))?;
        a.out(dx, ax)?;
        a.hlt()
    });
    let (serial, console) = (Kept::default(), Kept::default());
    let config = Config {
        serials: vec![Serial::Port(Box::new(serial.clone()))],
        debugcon: Some(DebugConsole { iobase: 0xe9, sink: Box::new(console.clone()) }),
        ..config(&image)
    };
    assert_eq!(Machine::new(config).unwrap().run().unwrap(), Outcome::PowerOff);
    assert_eq!(*lock(&serial.0), b"ok\n");
    assert_eq!(*lock(&console.0), b"!");
}

#[test]
fn a_triple_fault_names_its_instruction() {
    let outcome = run(|a| {
        a.nop()?;
        a.ud2()
    });
    let Outcome::TripleFault(crash) = outcome else { panic!("{outcome:?}") };
    assert_eq!(crash.registers.rip, u64::from(CODE) + 1);
    assert!(crash.registers.to_string().contains(&format!("RIP={:016x}", CODE + 1)));
}

/// Counts its boots in memory, and resets another way each time.
#[test]
fn every_way_to_reset_reloads_and_goes_on() {
    let image = image(|a| {
        let mut own = a.create_label();
        // The image must come back as it was: the first instruction's operand is changed below.
        a.set_label(&mut own)?;
        a.mov(ebx, 0x1111)?;
        a.mov(byte_ptr(CODE + 1), 0x22)?;
        a.cmp(ebx, 0x1111)?;
        let mut bad = a.create_label();
        a.jne(bad)?;
        a.inc(dword_ptr(KEPT))?;
        let ways: [(u16, u8); 3] = [(0x64, 0xfe), (0xcf9, 0x06), (0x92, 0x03)];
        for (count, (port, value)) in (1..).zip(ways) {
            let mut next = a.create_label();
            a.cmp(dword_ptr(KEPT), count)?;
            a.jne(next)?;
            outb(a, port, value)?;
            a.hlt()?;
            a.set_label(&mut next)?;
            a.nop()?;
        }
        let mut done = a.create_label();
        a.cmp(dword_ptr(KEPT), 5)?;
        a.je(done)?;
        a.ud2()?;
        a.set_label(&mut bad)?;
        a.mov(dword_ptr(KEPT), 0x70)?;
        a.set_label(&mut done)?;
        a.mov(eax, dword_ptr(KEPT))?;
        a.mov(edx, u32::from(EXIT))?;
        a.out(dx, eax)?;
        a.hlt()
    });
    let config = Config { no_reboot: false, ..config(&image) };
    assert_eq!(Machine::new(config).unwrap().run().unwrap(), Outcome::DebugExit(5 << 1 | 1));
    let outcome = run(|a| {
        outb(a, 0xcf9, 6)?;
        a.hlt()
    });
    assert_eq!(outcome, Outcome::Reset);
}

#[test]
fn quit_ends_a_guest_that_sleeps_for_ever() {
    let image = image(|a| {
        a.cli()?;
        a.hlt()
    });
    let machine = Machine::new(config(&image)).unwrap();
    let handle = machine.handle();
    let thread = std::thread::spawn(move || machine.run().unwrap());
    std::thread::sleep(Duration::from_millis(10));
    handle.quit();
    assert_eq!(thread.join().unwrap(), Outcome::Quit);
}

#[test]
fn a_pause_stops_guest_and_clock() {
    let image = image(|a| {
        let mut forever = a.create_label();
        a.set_label(&mut forever)?;
        a.inc(dword_ptr(KEPT))?;
        a.jmp(forever)
    });
    let machine = Machine::new(config(&image)).unwrap();
    let handle = machine.handle();
    let thread = std::thread::spawn(move || machine.run().unwrap());
    let count = || {
        let mut bytes = [0; 4];
        assert!(handle.read_memory(Gpa(KEPT.into()), &mut bytes));
        u32::from_le_bytes(bytes)
    };
    wait_until("the guest runs", || count() > 0);
    handle.pause();
    assert!(handle.wait_paused());
    let (stopped, stats) = (count(), handle.stats());
    assert!(stats.instructions[0] > 0 && stats.time > 0);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!((count(), handle.stats()), (stopped, stats));
    handle.resume();
    wait_until("the guest goes on", || count() != stopped);
    handle.quit();
    assert_eq!(thread.join().unwrap(), Outcome::Quit);
}

/// Echoes COM1 until it reads `q`.
#[test]
fn serial_input_arrives_whole_and_in_order() {
    let image = image(|a| {
        outb(a, 0x3fa, 1)?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.mov(dx, 0x3fd)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.je(wait)?;
        a.mov(dx, 0x3f8)?;
        a.in_(al, dx)?;
        a.out(dx, al)?;
        a.cmp(al, i32::from(b'q'))?;
        a.jne(wait)?;
        outb(a, EXIT, 0)
    });
    let serial = Kept::default();
    let config = Config { serials: vec![Serial::Port(Box::new(serial.clone()))], ..config(&image) };
    let machine = Machine::new(config).unwrap();
    let handle = machine.handle();
    let thread = std::thread::spawn(move || machine.run().unwrap());
    let text: Vec<u8> = (0..1000u32).map(|i| b'A' + u8::try_from(i % 26).unwrap()).chain(*b"q").collect();
    let mut rest = &text[..];
    let ready = Arc::new((Mutex::new(()), std::sync::Condvar::new()));
    let told = ready.clone();
    handle.on_ready(0, move || told.1.notify_all());
    wait_until("the guest reads all of it", || {
        let taken = handle.receive(0, rest);
        rest = &rest[taken..];
        rest.is_empty()
    });
    assert_eq!(thread.join().unwrap(), Outcome::DebugExit(1));
    assert_eq!(*lock(&serial.0), text);
    assert_eq!(handle.receive(1, b"x"), 0, "no such port");
}

#[test]
fn power_off_can_leave_the_machine_standing() {
    let image = image(|a| {
        a.inc(dword_ptr(KEPT))?;
        a.mov(dx, 0x604)?;
        a.mov(ax, (1 << 13) | (5 << 10))?;
        a.out(dx, ax)?;
        let mut forever = a.create_label();
        a.set_label(&mut forever)?;
        a.jmp(forever)
    });
    let machine = Machine::new(Config { no_shutdown: true, no_reboot: false, ..config(&image) }).unwrap();
    let handle = machine.handle();
    let thread = std::thread::spawn(move || machine.run().unwrap());
    assert!(handle.wait_paused());
    handle.resume();
    let mut bytes = [0; 4];
    assert!(handle.read_memory(Gpa(KEPT.into()), &mut bytes) && bytes == [1, 0, 0, 0], "it stays off");
    handle.reset();
    wait_until("a reset starts it again", || handle.read_memory(Gpa(KEPT.into()), &mut bytes) && bytes[0] == 2);
    handle.quit();
    assert_eq!(thread.join().unwrap(), Outcome::Quit);
}

#[test]
fn impossible_machines_are_refused() {
    let image = image(|a| a.hlt());
    let refused = |change: fn(&mut Config)| {
        let mut config = config(&image);
        change(&mut config);
        Machine::new(config).unwrap_err()
    };
    assert!(matches!(refused(|c| c.kernel = None), MachineError::NoKernel));
    assert!(matches!(refused(|c| c.cpus = 0), MachineError::Cpus(0)));
    assert!(matches!(refused(|c| c.cpus = 256), MachineError::Cpus(256)));
    assert!(matches!(refused(|c| c.memory = 0), MachineError::Ram(_)));
    assert!(matches!(refused(|c| c.memory = 4096), MachineError::Boot(_)));
    assert!(matches!(refused(|c| c.kernel = Some("/nonexistent".into())), MachineError::Boot(_)));
    let five = |c: &mut Config| c.serials = (0..5).map(|_| Serial::None).collect();
    assert!(matches!(refused(five), MachineError::Serials(5)));
    let taken = |c: &mut Config| c.isa_debug_exit = Some(DebugExitPorts { iobase: 0x60, iosize: 4 });
    assert!(matches!(refused(taken), MachineError::Ports(_)));
}
