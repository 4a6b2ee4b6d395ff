//! What the process gives up before its guest starts.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use guests::image;
use guests::session::{Session, argument};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const SOON: Duration = Duration::from_secs(30);

/// A machine that waits, with its monitor on standard input and output and all that has threads of its own.
fn machine(more: &[&str]) -> (Session, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    let kernel = path("kernel");
    fs::write(&kernel, image::waits()).expect("a file");
    let (qmp, trace, timeline) = (format!("unix:{}", path("qmp")), path("trace"), path("timeline"));
    let all = ["-kernel", &kernel, "-monitor", "stdio", "-view", ":0", "-qmp", &qmp];
    let all = [&all[..], &["-trace", &trace, "-perfetto", &timeline], more].concat();
    let mut session = Session::start(VITRINE, &all);
    session.send("info status\n");
    session.expect("VM status: running", SOON);
    (session, folder)
}

/// A field of the status of each thread.
fn status(session: &Session, field: &str) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", session.id())).expect("a process");
    let threads = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    let of = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    threads.map(|text| (of(&text, "Name"), of(&text, field))).collect()
}

#[test]
fn every_thread_is_jailed() {
    let (mut session, folder) = machine(&[]);
    for (field, value) in [("Seccomp", "2"), ("NoNewPrivs", "1")] {
        // Threads may still be starting.
        let deadline = Instant::now() + SOON;
        loop {
            let threads = status(&session, field);
            let complete = threads.iter().any(|(name, _)| name == "vcpu0") && threads.len() > 8;
            if complete && threads.iter().all(|(_, is)| is == value) {
                break;
            }
            assert!(Instant::now() < deadline, "{field}: {threads:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", session.id())).expect("limits");
    let limit = |name: &str| limits.lines().find(|line| line.starts_with(name)).expect("a limit").to_owned();
    assert!(!limit("Max address space").contains("unlimited"), "{limits}");
    assert!(limit("Max core file size").contains(" 0 "), "{limits}");

    // The monitor's files: in the folder for temporary ones, and not elsewhere.
    let dump = folder.path().join("dump");
    session.send(&format!("pmemsave 0 4096 {}\npmemsave 0 4096 /etc/vitrine-dump\n", argument(&dump)));
    session.expect("/etc/vitrine-dump cannot be written", SOON);
    assert_eq!(fs::metadata(&dump).expect("a file").len(), 4096);
    assert!(!fs::exists("/etc/vitrine-dump").expect("/etc can be looked at"));
    // What is booted is read again.
    session.send("system_reset\ninfo status\n");
    session.expect("VM status: running", SOON);
    session.send("quit\n");
    let ended = session.end(SOON);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
    assert!(!fs::exists(folder.path().join("qmp")).expect("a folder"), "the socket is removed");
}

#[test]
fn without_it_nothing_is_given_up() {
    let (mut session, _folder) = machine(&["-sandbox", "off"]);
    let threads = status(&session, "Seccomp");
    assert!(threads.iter().all(|(_, is)| *is == status_of_this_thread()), "{threads:?}");
    session.send("quit\n");
    let ended = session.end(SOON);
    assert_eq!(ended.status.code(), Some(0), "{}", ended.stderr);
}

/// This test itself may run in somebody's sandbox.
fn status_of_this_thread() -> String {
    let text = fs::read_to_string("/proc/thread-self/status").expect("a status");
    text.lines().find_map(|line| line.strip_prefix("Seccomp:")).unwrap_or_default().trim().to_owned()
}
