//! `vitrine top` on a terminal, next to the machine that it shows.

use std::time::Duration;

use guests::pty::Terminal;
use guests::session::{Session, argument};
use guests::{image, initramfs};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const SOON: Duration = Duration::from_secs(30);

#[test]
fn it_shows_a_machine_and_leaves_the_terminal_as_it_was() {
    let kernel = initramfs::file_of(&image::waits());
    let folder = tempfile::tempdir().unwrap();
    let address = format!("unix:{}", folder.path().join("qmp").display());
    let mut machine =
        Session::start(VITRINE, &["-kernel", argument(kernel.path()), "-monitor", "stdio", "-qmp", &address]);
    machine.send("info status\n");
    machine.expect("VM status: running", SOON);
    let mut terminal = Terminal::start(VITRINE, &["top", &address]);
    terminal.expect("Devices", SOON);
    terminal.expect("running", SOON);
    terminal.type_keys(" ");
    terminal.expect("paused", SOON);
    machine.send("info status\n");
    machine.expect("VM status: paused", SOON);
    terminal.type_keys("q");
    assert!(terminal.end(SOON).success(), "{}", terminal.screen.text());
    assert!(!terminal.changed(), "the terminal is as it was");
    machine.send("quit\n");
    assert_eq!(machine.end(SOON).status.code(), Some(0));
}

#[test]
fn what_is_wrong_is_said() {
    for (arguments, status, words) in [
        (&["top"][..], 2, "-qmp unix:PATH"),
        (&["top", "a", "b"], 2, "-qmp unix:PATH"),
        (&["top", "unix:/tmp/x"], 1, "top wants a terminal"),
    ] {
        let ended = Session::start(VITRINE, arguments).end(SOON);
        assert!(ended.refusal().contains(words), "{ended:?}");
        assert_eq!(ended.status.code(), Some(status), "{ended:?}");
    }
    let mut terminal = Terminal::start(VITRINE, &["top", "/nonexistent/qmp"]);
    terminal.expect("no machine is at /nonexistent/qmp", SOON);
    assert!(!terminal.end(SOON).success());
}
