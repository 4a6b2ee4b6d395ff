//! The guest's console: what is typed reaches it, Ctrl-A x works whatever the guest does, stopping gives the terminal
//! back. The guests are a few instructions, so that only the console is tested.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use guests::pty::Terminal;
use guests::session::{Session, argument};
use guests::{image, initramfs};
use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, dx};
use tempfile::NamedTempFile;

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const SOON: Duration = Duration::from_secs(30);
const EXIT_DEVICE: &str = "isa-debug-exit,iobase=0xf4,iosize=0x4";

/// A guest that polls COM1 and sends back what it gets, and exits with 5 at a `q`.
fn echo() -> NamedTempFile {
    fn code(a: &mut CodeAssembler) -> Result<(), IcedError> {
        let mut next = a.create_label();
        let mut quit = a.create_label();
        a.set_label(&mut next)?;
        a.mov(dx, 0x3fd)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.jz(next)?;
        a.mov(dx, 0x3f8)?;
        a.in_(al, dx)?;
        a.cmp(al, i32::from(b'q'))?;
        a.je(quit)?;
        a.out(dx, al)?;
        a.jmp(next)?;
        a.set_label(&mut quit)?;
        image::exit(a, 5)
    }
    initramfs::file_of(&image::protected_mode(code))
}

fn dots() -> NamedTempFile {
    initramfs::file_of(&image::writes_for_ever(u32::from(b'.')))
}

#[test]
fn what_is_typed_reaches_the_guest() {
    let kernel = echo();
    let mut session =
        Session::start(VITRINE, &["-kernel", argument(kernel.path()), "-nographic", "-device", EXIT_DEVICE]);
    // More than the port's FIFO, and than is offered to it at once.
    let text: String = (0..2000).map(|n| char::from(b'A' + (n % 16) as u8)).collect();
    session.send(&text);
    session.expect(&text, SOON);
    session.send("one\x01\x01two\x01a\n");
    session.expect("one\x01two\x01\n", SOON);
    session.send("q");
    assert_eq!(session.end(SOON).status.code(), Some(11));
}

#[test]
fn the_end_of_input_is_not_the_end_of_the_guest() {
    let kernel = dots();
    let mut command = Command::new(VITRINE);
    command.args(["-kernel", argument(kernel.path()), "-nographic"]).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().expect("it starts");
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().expect("it can be asked").is_none());
    child.kill().and_then(|()| child.wait()).expect("it can be ended");
}

/// Waits for a child's end.
fn end(child: &mut std::process::Child) -> Option<i32> {
    let end = Instant::now() + SOON;
    loop {
        if let Some(status) = child.try_wait().expect("it can be waited for") {
            return status.code();
        }
        if Instant::now() > end {
            let _ = child.kill();
            panic!("it does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn ctrl_a_x_quits_while_the_output_is_blocked() {
    use std::io::Write;
    let kernel = dots();
    let mut command = Command::new(VITRINE);
    command.args(["-kernel", argument(kernel.path()), "-nographic"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    // Nobody reads its standard output: the pipe fills, and the guest waits.
    let mut child = command.spawn().expect("it starts");
    std::thread::sleep(Duration::from_millis(500));
    child.stdin.as_mut().expect("piped").write_all(b"ignored\x01x").expect("it reads");
    assert_eq!(end(&mut child), Some(0));
}

/// Waits until the terminal's settings are other than at first, or as at first.
fn becomes(terminal: &Terminal, changed: bool) {
    let end = Instant::now() + SOON;
    while terminal.changed() != changed {
        assert!(Instant::now() < end, "the terminal's settings stay as they are");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the process `id` is stopped, as a shell does by waiting for it.
fn stops(id: &str) {
    let end = Instant::now() + SOON;
    // The state follows the name, which is in parentheses (proc_pid_stat(5)).
    let stopped = || std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| stat.contains(") T "));
    while !stopped() {
        assert!(Instant::now() < end, "it does not stop");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn without_the_multiplexer_ctrl_c_ends_vitrine_and_ctrl_a_is_the_guests() {
    let kernel = echo();
    let arguments = ["-kernel", argument(kernel.path()), "-display", "none", "-serial", "stdio"];
    let mut terminal = Terminal::start(VITRINE, &arguments);
    becomes(&terminal, true);
    terminal.type_keys("\x01x-");
    terminal.expect("\x01x-", SOON);
    terminal.type_keys("\x03");
    let status = terminal.end(SOON);
    assert!(status.signal().is_some(), "{status:?}");
    assert!(!terminal.changed());
}

#[test]
fn a_stopped_vitrine_gives_the_terminal_back_and_takes_it_again() {
    let kernel = echo();
    let mut terminal = Terminal::start(VITRINE, &["-kernel", argument(kernel.path()), "-nographic"]);
    let id = terminal.id().map(|id| id.to_string()).expect("it runs");
    let signal = |name: &str| {
        assert!(Command::new("kill").args(["-s", name, &id]).status().is_ok_and(|status| status.success()));
    };
    becomes(&terminal, true);
    signal("TSTP");
    becomes(&terminal, false);
    // The terminal is given back just before the process stops, and a CONT in between would be lost.
    stops(&id);
    signal("CONT");
    becomes(&terminal, true);
    terminal.type_keys("again");
    terminal.expect("again", SOON);
    terminal.type_keys("\x01x");
    assert!(terminal.end(SOON).success());
    assert!(!terminal.changed());
}

#[test]
fn ports_lead_where_the_flags_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("com1");
    let to = format!("file:{}", argument(&file));
    let kernel = dots();
    let arguments = ["-kernel", argument(kernel.path()), "-display", "none", "-serial", &to];
    let mut child = Command::new(VITRINE).args(arguments).stdout(Stdio::piped()).spawn().expect("it starts");
    let end = Instant::now() + SOON;
    while std::fs::metadata(&file).map_or(0, |file| file.len()) == 0 {
        assert!(Instant::now() < end, "nothing arrives in the file");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("it can be ended");
    let output = child.wait_with_output().expect("it ended");
    assert!(output.stdout.is_empty());
}
