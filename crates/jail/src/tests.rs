//! What a jailed thread can do no more, tried on threads of this process. Nothing else here may start a program.

use super::*;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::thread;

/// What a thread in `role` makes of it.
fn jailed<T: Send + 'static>(role: Role, act: impl FnOnce() -> T + Send + 'static) -> T {
    let run = move || {
        enter(role);
        act()
    };
    thread::spawn(run).join().expect("it only asks")
}

fn refused<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// One test, since the rules are made once a process.
#[test]
fn each_role_can_do_what_it_needs_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["kernel", "secret"] {
        fs::write(path(name), name).unwrap();
    }
    fs::create_dir(path("out")).unwrap();
    let mut before = File::create(path("log")).unwrap();
    let (tcp, unix) = (TcpListener::bind("127.0.0.1:0").unwrap(), UnixListener::bind(path("socket")).unwrap());
    let address = tcp.local_addr().unwrap();

    assert!(!entered());
    assert_eq!(jailed(Role::Vcpu, || 1), 1, "without rules nothing is refused");
    let files = Files { read: vec![path("kernel"), path("absent")], write: vec![path("out")] };
    if !prepare(&files).unwrap() {
        println!("this host has no Landlock: files are not tried");
        return;
    }
    assert!(entered());

    for role in [Role::Vcpu, Role::Io, Role::Control] {
        let (kernel, secret, out, log) = (path("kernel"), path("secret"), path("out/new"), path("log"));
        let mut log_before = before.try_clone().unwrap();
        jailed(role, move || {
            let files = role != Role::Vcpu;
            let reads = |path: &Path| fs::read(path).is_ok_and(|bytes| !bytes.is_empty());
            assert_eq!(reads(&kernel), files, "{role:?}");
            assert!(refused(File::open(&secret)) && refused(File::open("/etc/passwd")), "{role:?}");
            assert!(refused(File::create(&log)) && refused(File::create(&kernel)), "{role:?}");
            assert_eq!(fs::write(&out, "dump").is_ok(), files, "{role:?}");
            assert_eq!(fs::remove_file(&out).is_ok(), role == Role::Control, "{role:?}");
            // What was opened before goes on, and so do memory and time.
            log_before.write_all(b"line\n").unwrap();
            let large = vec![1u8; 8 << 20];
            thread::sleep(std::time::Duration::from_micros(10));
            assert_eq!(large.iter().map(|byte| usize::from(*byte)).sum::<usize>(), large.len());
            // A thread that it starts is jailed, too, and may enter again.
            let again = move || {
                enter(role);
                refused(File::open(&secret))
            };
            let inner = thread::Builder::new().spawn(again);
            assert!(inner.map_or(role == Role::Vcpu, |inner| inner.join().unwrap()), "{role:?}");
        });
    }
    for role in [Role::Vcpu, Role::Io, Role::Control] {
        jailed(role, move || {
            assert!(refused(Command::new("/bin/true").status()), "{role:?}");
            assert!(refused(TcpStream::connect(address)), "{role:?}");
            assert!(refused(TcpListener::bind("127.0.0.1:0")), "{role:?}");
            assert!(refused(UnixStream::pair().map(drop)) == (role != Role::Control), "{role:?}");
        });
    }

    // Whatever thread a signal's handler runs on, it can wake the one that waits.
    let (awaits, wakes) = UnixDatagram::pair().unwrap();
    for role in [Role::Vcpu, Role::Io, Role::Control] {
        let (wakes, elsewhere) = (wakes.try_clone().unwrap(), path("socket"));
        jailed(role, move || {
            assert_eq!(wakes.send(&[1]).unwrap(), 1, "{role:?}");
            assert!(refused(wakes.send_to(&[1], elsewhere)), "{role:?}");
        });
        assert_eq!(awaits.recv(&mut [0; 1]).unwrap(), 1);
    }

    // Clients are still served.
    let serve = thread::spawn(move || {
        enter(Role::Control);
        let mut text = String::new();
        unix.accept().unwrap().0.read_to_string(&mut text).unwrap();
        tcp.accept().unwrap().0.read_to_string(&mut text).unwrap();
        text
    });
    UnixStream::connect(path("socket")).unwrap().write_all(b"one ").unwrap();
    TcpStream::connect(address).unwrap().write_all(b"two").unwrap();
    assert_eq!(serve.join().unwrap(), "one two");

    before.write_all(b"end").unwrap();
    assert_eq!(fs::read_to_string(path("log")).unwrap(), "line\nline\nline\nend");
}

#[test]
fn address_space_is_bounded_on_top_of_what_there_is() {
    limit_address_space(1 << 40).unwrap();
    let most = getrlimit(Resource::As).maximum.unwrap();
    assert!((1 << 40..2 << 40).contains(&most), "{most:#x}");
    assert!(limit(Resource::As, u64::MAX).is_ok(), "a limit is never raised");
    assert_eq!(getrlimit(Resource::As).maximum, Some(most));
}
