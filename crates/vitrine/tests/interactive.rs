//! A session at a terminal: the guest has the keyboard, Ctrl-A is ours, and the terminal is as it was afterwards.

use std::process::Command;
use std::time::Duration;

use guests::pty::Terminal;
use guests::session::argument;
use guests::{PATIENCE, find, image, initramfs, skipped};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const SOON: Duration = Duration::from_secs(20);
const CTRL_A_X: &str = "\x01x";

/// A guest that writes dots for ever, on a terminal.
fn dots() -> (Terminal, tempfile::NamedTempFile) {
    let kernel = initramfs::file_of(&image::writes_for_ever(u32::from(b'.')));
    let terminal = Terminal::start(VITRINE, &["-kernel", argument(kernel.path()), "-nographic"]);
    terminal.expect("....", SOON);
    (terminal, kernel)
}

#[test]
fn a_shell_answers_and_ctrl_a_x_quits() {
    let Some(kernel) = find::seed_kernel() else { return skipped("interactive", "no seed-bzImage at hand") };
    let Some(initrd) = initramfs::build(initramfs::INIT) else { return skipped("interactive", "no static busybox") };
    let arguments = ["-kernel", argument(&kernel), "-initrd", argument(initrd.path()), "-m", "128M", "-nographic"];
    let arguments = [&arguments[..], &["-append", "console=ttyS0 interactive"]].concat();
    let mut terminal = Terminal::start(VITRINE, &arguments);
    terminal.expect("GUEST-READY", PATIENCE);
    terminal.expect("# ", PATIENCE);
    assert!(terminal.changed(), "the terminal is raw while the guest has it");
    terminal.type_keys("echo answer=$((6*7))\r");
    terminal.expect("answer=42", PATIENCE);
    // Ctrl-C reaches the guest, not the command.
    terminal.type_keys("sleep 1000\r");
    std::thread::sleep(Duration::from_millis(500));
    terminal.type_keys("\x03echo still=$((40+2))\r");
    terminal.expect("still=42", PATIENCE);
    terminal.type_keys(CTRL_A_X);
    assert!(terminal.end(SOON).success(), "{}", terminal.screen.text());
    assert!(!terminal.changed(), "the terminal is as it was");
}

#[test]
fn ctrl_a_h_helps_and_ctrl_a_x_quits() {
    let (mut terminal, _kernel) = dots();
    terminal.type_keys("\x01h");
    terminal.expect("Ctrl-A x", SOON);
    terminal.type_keys(CTRL_A_X);
    assert!(terminal.end(SOON).success());
    assert!(!terminal.changed(), "the terminal is as it was");
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    for signal in ["TERM", "INT", "HUP"] {
        let (mut terminal, _kernel) = dots();
        assert!(terminal.changed(), "the terminal is raw while the guest has it");
        let id = terminal.id().map(|id| id.to_string()).unwrap_or_default();
        let sent = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill works");
        terminal.end(SOON);
        assert!(!terminal.changed(), "the terminal is as it was after SIG{signal}");
    }
}

#[test]
fn a_guests_end_leaves_the_terminal_as_it_was() {
    let kernel = initramfs::file_of(&image::exits(3));
    let device = "isa-debug-exit,iobase=0xf4,iosize=0x4";
    let arguments = ["-kernel", argument(kernel.path()), "-nographic", "-device", device];
    let mut terminal = Terminal::start(VITRINE, &arguments);
    assert_eq!(terminal.end(SOON).exit_code(), 7);
    assert!(!terminal.changed(), "the terminal is as it was");
}
