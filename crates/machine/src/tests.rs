//! Tiny guests: machine code in a multiboot image, run to their end.

use super::*;
use cpu::cpuid::Model;
use devices::Sink;
use devices::sync::lock;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory::Gpa;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

mod dma;
mod sleep;

/// Where the image is loaded, header first.
const LOAD: u32 = 0x10_0000;
/// Where its code begins.
const CODE: u32 = LOAD + 32;
const EXIT: u16 = 0xf4;
/// RAM that no reset touches.
const KEPT: u32 = 0x20_0000;

const IDT: u32 = 0x21_0000;
const GDT: u32 = 0x22_0000;

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
fn a_bug_ends_the_machine_with_its_report() {
    let image = image(|a| a.hlt());
    let machine = Machine::new(config(&image)).unwrap();
    let control = machine.control.clone();
    let ended = std::thread::spawn(move || machine.run());
    wait_until("the machine ends", || {
        control.bug("wrong code".to_owned());
        ended.is_finished()
    });
    let error = ended.join().unwrap().unwrap_err().to_string();
    assert!(error.starts_with("wrong code\n"), "{error}");
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
    let executed = || (handle.stats().vcpus[0].instructions, handle.stats().time);
    let (stopped, stats) = (count(), executed());
    assert!(stats.0 > 0 && stats.1 > 0);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!((count(), executed()), (stopped, stats));
    handle.resume();
    wait_until("the guest goes on", || count() != stopped);
    handle.quit();
    assert_eq!(thread.join().unwrap(), Outcome::Quit);
}

/// Says `>` and then echoes COM1 until it reads `q`.
#[test]
fn serial_input_arrives_whole_and_in_order() {
    let image = image(|a| {
        outb(a, 0x3fa, 1)?;
        outb(a, 0x3f8, b'>')?;
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
    // What is typed before the guest switches the FIFO on is lost, as on a real machine.
    wait_until("the guest is ready", || *lock(&serial.0) == b">");
    wait_until("the guest reads all of it", || {
        let taken = handle.receive(0, rest);
        rest = &rest[taken..];
        rest.is_empty()
    });
    assert_eq!(thread.join().unwrap(), Outcome::DebugExit(1));
    assert!(lock(&serial.0).strip_prefix(b">") == Some(&text[..]));
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

/// Makes vector `vector` of a table at [`IDT`] an interrupt gate to `handler`, loads the table, and sets up a stack.
fn gate(a: &mut CodeAssembler, vector: u32, handler: Assemble) -> Result<(), IcedError> {
    a.mov(esp, 0x30_0000)?;
    // The call leaves the handler's address on the stack.
    let mut after = a.create_label();
    a.call(after)?;
    handler(a)?;
    a.set_label(&mut after)?;
    a.pop(eax)?;
    a.mov(word_ptr(IDT + 8 * vector), ax)?;
    a.mov(dword_ptr(IDT + 8 * vector + 2), 0x8e00_0008u32.cast_signed())?;
    a.shr(eax, 16)?;
    a.mov(word_ptr(IDT + 8 * vector + 6), ax)?;
    a.mov(word_ptr(IDT - 8), 0x7ff)?;
    a.mov(dword_ptr(IDT - 6), i32::try_from(IDT).unwrap())?;
    a.lidt(ptr(IDT - 8))?;
    // A GDT whose selector 8 is what CS already is.
    a.mov(dword_ptr(GDT + 8), 0x0000_ffff)?;
    a.mov(dword_ptr(GDT + 12), 0x00cf_9b00)?;
    a.mov(word_ptr(GDT - 8), 0xf)?;
    a.mov(dword_ptr(GDT - 6), i32::try_from(GDT).unwrap())?;
    a.lgdt(ptr(GDT - 8))
}

/// The timer as firmware leaves it: 8254 → 8259 → LINT0 → vector 8, while the guest sleeps.
#[test]
fn a_timer_interrupt_wakes_the_guest() {
    let outcome = run(|a| {
        gate(a, 8, |a| {
            outb(a, 0x20, 0x20)?;
            a.iretd()
        })?;
        a.sti()?;
        a.hlt()?;
        outb(a, EXIT, 2)?;
        a.hlt()
    });
    assert_eq!(outcome, Outcome::DebugExit(5));
}

/// The same timer through the I/O APIC's input 2, as the ACPI tables have it, to vector 40h.
#[test]
fn a_board_may_have_no_interval_timer() {
    // Counter 0, or nothing that answers.
    let count = |pit| {
        let image = image(|a| {
            a.in_(al, 0x40)?;
            a.in_(al, 0x61)?;
            a.mov(dx, i32::from(EXIT))?;
            a.out(dx, al)?;
            a.hlt()
        });
        let config = Config { pit, ..config(&image) };
        Machine::new(config).unwrap().run().unwrap()
    };
    assert_eq!(count(false), Outcome::DebugExit(2 * 0xff + 1));
    assert_ne!(count(true), Outcome::DebugExit(2 * 0xff + 1));
}

#[test]
fn the_timer_reaches_the_ioapic() {
    let outcome = run(|a| {
        gate(a, 0x40, |a| {
            a.mov(dword_ptr(0xfee0_00b0u32), 0)?;
            a.iretd()
        })?;
        outb(a, 0x21, 0xff)?;
        a.mov(ebx, 0xfec0_0000u32)?;
        a.mov(dword_ptr(ebx), 0x10 + 2 * 2)?;
        a.mov(dword_ptr(ebx + 0x10), 0x40)?;
        a.sti()?;
        a.hlt()?;
        outb(a, EXIT, 3)?;
        a.hlt()
    });
    assert_eq!(outcome, Outcome::DebugExit(7));
}

/// The ACPI interrupt is level-triggered and arrives at input 9 when somebody presses the power button.
#[test]
fn the_power_button_interrupts() {
    let image = image(|a| {
        gate(a, 0x41, |a| {
            a.mov(dx, 0x604)?;
            a.mov(ax, (1 << 13) | (5 << 10))?;
            a.out(dx, ax)
        })?;
        outb(a, 0x21, 0xff)?;
        a.mov(ebx, 0xfec0_0000u32)?;
        a.mov(dword_ptr(ebx), 0x10 + 2 * 9)?;
        a.mov(dword_ptr(ebx + 0x10), 0x8041)?;
        a.mov(dx, 0x602)?;
        a.mov(ax, 1 << 8)?;
        a.out(dx, ax)?;
        a.sti()?;
        let mut sleep = a.create_label();
        a.set_label(&mut sleep)?;
        a.mov(dword_ptr(KEPT), 1)?;
        a.hlt()?;
        a.jmp(sleep)
    });
    let machine = Machine::new(config(&image)).unwrap();
    let handle = machine.handle();
    let thread = std::thread::spawn(move || machine.run().unwrap());
    let mut bytes = [0; 4];
    wait_until("the guest is ready", || handle.read_memory(Gpa(KEPT.into()), &mut bytes) && bytes[0] == 1);
    handle.press_power_button();
    assert_eq!(thread.join().unwrap(), Outcome::PowerOff);
}

/// INIT and start-up IPIs bring the second vCPU up in real mode at 8000h, where it ends the machine.
#[test]
fn a_second_vcpu_starts() {
    let image = image(|a| {
        // mov dx, 0f4h; mov al, 8; out dx, al; hlt
        a.mov(dword_ptr(0x8000), 0xb000_f4bau32.cast_signed())?;
        a.mov(dword_ptr(0x8004), 0x00f4_ee08)?;
        a.mov(dword_ptr(0xfee0_0310u32), 0x0100_0000)?;
        a.mov(dword_ptr(0xfee0_0300u32), 0x4500)?;
        a.mov(dword_ptr(0xfee0_0300u32), 0x4608)?;
        a.cli()?;
        a.hlt()
    });
    let config = Config { cpus: 2, ..config(&image) };
    assert_eq!(Machine::new(config).unwrap().run().unwrap(), Outcome::DebugExit(0x11));
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

/// Counts in memory for ever.
fn counts(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut forever = a.create_label();
    a.mov(ebx, 0x1234_5678)?;
    a.set_label(&mut forever)?;
    a.inc(dword_ptr(KEPT))?;
    a.jmp(forever)
}

#[test]
fn a_vcpu_is_inspected_while_it_runs_and_while_it_stands() {
    let image = image(counts);
    let machine = Machine::new(config(&image)).unwrap();
    let handle = machine.handle();
    assert_eq!(handle.inspect(1, |_| ()), Err(InspectError::NoVcpu { index: 1, vcpus: 1 }));
    handle.pause();
    let ended = std::thread::spawn(move || machine.run());
    assert!(handle.wait_paused());
    assert_eq!(handle.run_state(), RunState::Prelaunch);
    assert_eq!(handle.inspect(0, |vcpu| vcpu.cpu.rip()), Ok(u64::from(CODE)), "reset before it runs");

    // Step by step: MOV, INC, JMP, INC.
    for rip in [CODE + 5, CODE + 11, CODE + 5, CODE + 11] {
        handle.step(0).unwrap();
        assert_eq!(handle.inspect(0, |vcpu| vcpu.cpu.rip()), Ok(rip.into()));
    }
    let counted = || {
        let mut bytes = [0; 4];
        assert!(handle.read_memory(Gpa(KEPT.into()), &mut bytes));
        u32::from_le_bytes(bytes)
    };
    assert_eq!(counted(), 2);

    handle.resume();
    wait_until("it runs", || counted() > 1000);
    assert_eq!(handle.run_state(), RunState::Running);
    for _ in 0..100 {
        let (thread, value) = handle
            .inspect(0, |vcpu| (std::thread::current().name().map(str::to_owned), vcpu.cpu.regs[cpu::state::RBX]))
            .unwrap();
        assert_eq!((thread.as_deref(), value), (Some("vcpu0"), 0x1234_5678));
    }
    let before = counted();
    wait_until("it goes on", || counted() != before);

    handle.pause();
    assert!(handle.wait_paused());
    let stands = counted();
    let rip = handle.inspect(0, |vcpu| vcpu.cpu.rip()).unwrap();
    assert!([CODE + 5, CODE + 11].contains(&u32::try_from(rip).unwrap()), "{rip:x}");
    assert_eq!((counted(), handle.run_state()), (stands, RunState::Paused));
    handle.quit();
    assert_eq!(ended.join().unwrap().unwrap(), Outcome::Quit);
    assert_eq!(handle.inspect(0, |_| ()), Err(InspectError::Ended));
}

#[test]
fn what_happens_is_told() {
    let image = image(counts);
    let machine = Machine::new(Config { no_reboot: false, ..config(&image) }).unwrap();
    let handle = machine.handle();
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    handle.on_event(move |event| lock(&tell).push(*event));
    let ended = std::thread::spawn(move || machine.run());
    wait_until("it runs", || handle.run_state() == RunState::Running);
    handle.pause();
    assert!(handle.wait_paused());
    handle.resume();
    wait_until("it runs again", || handle.run_state() == RunState::Running && lock(&told).len() == 2);
    handle.reset();
    wait_until("it is reset", || lock(&told).len() == 3);
    handle.quit();
    assert_eq!(ended.join().unwrap().unwrap(), Outcome::Quit);
    assert_eq!(
        *lock(&told),
        [Event::Stop, Event::Resume, Event::Reset { guest: false }, Event::Shutdown { guest: false }]
    );
}

#[test]
fn a_step_into_a_triple_fault_ends_as_running_into_it_does() {
    let image = image(|a| a.ud2());
    let machine = Machine::new(config(&image)).unwrap();
    let handle = machine.handle();
    handle.pause();
    let ended = std::thread::spawn(move || machine.run());
    assert!(handle.wait_paused());
    handle.step(0).unwrap();
    assert!(matches!(ended.join().unwrap().unwrap(), Outcome::TripleFault(_)));
}
