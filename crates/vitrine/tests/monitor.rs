//! The monitor where people and programs find it: behind Ctrl-A c, on standard input, on sockets.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use guests::pty::Terminal;
use guests::session::{Session, argument};
use guests::{find, image, initramfs, skipped};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const SOON: Duration = Duration::from_secs(30);

#[test]
fn ctrl_a_c_switches_and_the_keys_work() {
    let kernel = initramfs::file_of(&image::waits());
    let mut terminal = Terminal::start(VITRINE, &["-kernel", argument(kernel.path()), "-nographic"]);
    std::thread::sleep(Duration::from_millis(300));
    terminal.type_keys("\x01c");
    terminal.expect("(vitrine) ", SOON);
    terminal.type_keys("info stat\t");
    terminal.expect("stats status", SOON);
    terminal.type_keys("us\r");
    terminal.expect("VM status: running", SOON);
    terminal.type_keys("stop\rinfo status\r");
    terminal.expect("VM status: paused", SOON);
    terminal.type_keys("cont\r\x1b[A\x1b[A\x1b[A\r");
    terminal.type_keys("\x01c\x01cquit\r");
    assert!(terminal.end(SOON).success(), "{}", terminal.screen.text());
    assert!(!terminal.changed(), "the terminal is as it was");
}

#[test]
fn a_script_drives_it_through_a_pipe() {
    let kernel = initramfs::file_of(&image::waits());
    let mut session = Session::start(VITRINE, &["-kernel", argument(kernel.path()), "-monitor", "stdio"]);
    session.send("info status\nprint 6*7\nno such\n");
    session.expect("VM status: running\n0x2a\nunknown command: 'no'\n", SOON);
    session.send("quit\n");
    let ended = session.end(SOON);
    assert_eq!((ended.status.code(), ended.stderr.as_str()), (Some(0), ""));
}

#[test]
fn symbols_of_the_guests_kernel_are_addresses() {
    let Some(kernel) = find::seed_kernel() else { return skipped("symbols", "no seed-bzImage at hand") };
    let mut session = Session::start(VITRINE, &["-kernel", argument(&kernel), "-monitor", "stdio"]);
    // It stays when it comes to its panic, there being no root.
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(250));
        session.send("info symbol panic+4\n");
    }
    session.expect(" is panic+0x4\n", SOON);
    session.send("quit\n");
    assert_eq!(session.end(SOON).status.code(), Some(0));
}

#[test]
fn processes_and_addresses_are_known_inside_and_outside() {
    let Some(kernel) = find::debian_kernels().pop() else { return skipped("processes", "no Debian kernel at hand") };
    let Some(initrd) = initramfs::build(initramfs::INIT) else { return skipped("processes", "no static busybox") };
    let folder = tempfile::tempdir().unwrap();
    let (core, other) = (folder.path().join("core"), folder.path().join("System.map"));
    std::fs::write(&other, "ffffffff81000040 T entry_SYSCALL_64\nffffffff81800000 D linux_banner\n").unwrap();
    let qmp = format!("unix:{}", folder.path().join("qmp").display());
    let arguments = ["-kernel", argument(&kernel), "-initrd", argument(initrd.path()), "-append", "interactive"];
    let more = ["-m", "256M", "-display", "none", "-monitor", "stdio", "-qmp", &qmp, "-symbols", argument(&other)];
    let mut session = Session::start(VITRINE, &[&arguments[..], &more].concat());
    let start = Instant::now();
    while !session.stdout.text().contains("  sh\n") {
        assert!(start.elapsed() < guests::PATIENCE, "{}", session.stdout.text());
        session.send("info processes\n");
        std::thread::sleep(Duration::from_millis(250));
    }
    assert!(session.stdout.text().contains("  kthreadd\n"), "{}", session.stdout.text());
    session.send(&format!("stop\ndump-guest-memory {}\ninfo status\n", core.display()));
    session.expect("VM status: paused\n", SOON);
    let explain = |address: &str, of: &str| {
        let output = std::process::Command::new(VITRINE).args(["explain", address, of]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    // From the machine and from the file, the walk is the same.
    let walks = [&qmp, argument(&core)].map(|of| {
        let (status, text, errors) = explain("saved_command_line", of);
        assert_eq!((status, errors.as_str()), (Some(0), ""), "{text}");
        assert!(text.contains("(saved_command_line) on CPU #0"), "{text}");
        text.lines().take_while(|line| !line.contains("TLB")).map(str::to_owned).collect::<Vec<_>>()
    });
    assert!(walks[0].len() > 5, "{walks:?}");
    assert_eq!(walks[0], walks[1]);
    for (address, of, part) in [
        ("0", argument(&other), "dump-guest-memory"),
        ("0", "/no/such/file", "No such file"),
        ("0", "unix:/no/such/socket", "No such file"),
        ("nothing", argument(&core), "unknown symbol 'nothing'"),
        ("0 1", argument(&core), "extraneous"),
    ] {
        let (status, text, errors) = explain(address, of);
        assert_eq!((status, text.as_str()), (Some(1), ""), "{errors}");
        assert!(errors.contains(part), "{errors}");
    }
    session.send("quit\n");
    let ended = session.end(SOON);
    assert!(ended.stderr.contains("it is of another kernel than the guest's (Linux version "), "{ended:?}");
}

/// Even while the guest waits for somebody to read what it writes.
#[test]
fn quit_works_whatever_the_guest_does() {
    let kernel = initramfs::file_of(&image::writes_for_ever(u32::from(b'.')));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("monitor");
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    // Nobody reads.
    let _reader = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let serial = format!("file:{}", pipe.display());
    let monitor = format!("unix:{}", path.display());
    let arguments = ["-kernel", argument(kernel.path()), "-display", "none", "-serial", &serial, "-monitor", &monitor];
    let session = Session::start(VITRINE, &arguments);
    let mut client = connect(&path);
    std::thread::sleep(Duration::from_millis(300));
    client.write_all(b"quit\n").unwrap();
    assert_eq!(session.end(SOON).status.code(), Some(0));
    assert!(!path.exists(), "the socket is removed");
}

#[test]
fn sockets_are_there_before_the_first_instruction() {
    let kernel = initramfs::file_of(&image::waits());
    let folder = tempfile::tempdir().unwrap();
    let (monitor, qmp) = (folder.path().join("monitor"), folder.path().join("qmp"));
    let (monitor_flag, qmp_flag) =
        (format!("unix:{},server,nowait", monitor.display()), format!("unix:{},server=on,wait=off", qmp.display()));
    let arguments = ["-kernel", argument(kernel.path()), "-display", "none", "-S"];
    let arguments = [&arguments[..], &["-monitor", &monitor_flag, "-qmp", &qmp_flag]].concat();
    let session = Session::start(VITRINE, &arguments);
    let (mut human, mut machine) = (connect(&monitor), connect(&qmp));
    human.write_all(b"info status\n").unwrap();
    expect(&mut human, "VM status: paused (prelaunch)\n");
    machine.write_all(b"{\"execute\": \"qmp_capabilities\"}{\"execute\": \"cont\"}").unwrap();
    expect(&mut machine, "\"RESUME\"");
    human.write_all(b"info status\n").unwrap();
    expect(&mut human, "VM status: running\n");
    machine.write_all(b"{\"execute\": \"quit\"}").unwrap();
    expect(&mut machine, "\"SHUTDOWN\"");
    assert_eq!(session.end(SOON).status.code(), Some(0));
    assert!(!monitor.exists() && !qmp.exists(), "the sockets are removed");
}

/// Connects as soon as somebody listens.
fn connect(path: &Path) -> UnixStream {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(SOON)).unwrap();
                return stream;
            }
            Err(error) => assert!(start.elapsed() < SOON, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Reads until `pattern` has come.
fn expect(stream: &mut UnixStream, pattern: &str) {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.contains(pattern) {
        let count = stream.read(&mut buffer).unwrap_or(0);
        assert!(count > 0, "no {pattern:?} in {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
}
