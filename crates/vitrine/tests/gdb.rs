//! gdb itself drives the machine; and what no gdb would send does no harm.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use guests::session::{Session, argument};
use guests::{image, initramfs, skipped};
use iced_x86::code_asm::{dword_ptr, qword_ptr, rax, rbx, rcx};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const SOON: Duration = Duration::from_secs(30);

/// A guest in 64-bit mode that counts in memory for ever, and the addresses of its instructions: the first, the
/// round's first, the one that writes, the one that reads.
fn counter() -> (tempfile::NamedTempFile, [u64; 4]) {
    let image = image::long_mode(|a| {
        let mut again = a.create_label();
        a.mov(rbx, 0x1122_3344_5566_7788_u64)?; // 10 bytes
        a.set_label(&mut again)?;
        a.inc(rcx)?; // 3
        a.inc(dword_ptr(image::DATA))?; // 7
        a.nop()?; // 1
        a.mov(rax, qword_ptr(image::DATA + 8))?; // 10
        a.jmp(again)
    });
    // Behind four moves of 5 + 2 + 2 + 2 bytes and one of 7 (or 10).
    let start = 0x2000 + image[0x2000..].windows(2).position(|bytes| bytes == [0x48, 0xbb]).expect("mov rbx");
    let first = image::BASE + start as u64;
    (initramfs::file_of(&image), [first, first + 10, first + 13, first + 21])
}

/// Runs gdb with these commands on a machine with these flags; gives what gdb said.
fn debug(test: &str, kernel: &Path, flags: &[&str], commands: &[String]) -> Option<String> {
    if Command::new("gdb").arg("--version").output().is_err() {
        skipped(test, "no gdb (package gdb)");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("gdb");
    let flag = format!("unix:{}", socket.display());
    let arguments = [&["-kernel", argument(kernel), "-display", "none", "-gdb", &flag], flags].concat();
    let session = Session::start(VITRINE, &arguments);
    let start = Instant::now();
    while !socket.exists() {
        assert!(start.elapsed() < SOON, "the socket is there");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut gdb = Command::new("timeout");
    gdb.args(["60", "gdb", "-nx", "-batch", "-ex", "set pagination off", "-ex", "set confirm off"]);
    gdb.args(["-ex", "set architecture i386:x86-64", "-ex", &format!("target remote {}", socket.display())]);
    gdb.args(commands.iter().flat_map(|command| ["-ex", command]));
    let said = gdb.output().expect("gdb runs");
    let said = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
    drop(session);
    Some(said)
}

/// Asserts that each part is in the text, behind the one before.
fn in_order(text: &str, parts: &[String]) {
    let mut rest = text;
    for part in parts {
        let at = rest.find(part.as_str()).unwrap_or_else(|| panic!("no {part:?} (in its place) in:\n{text}"));
        rest = &rest[at + part.len()..];
    }
}

fn texts(parts: &[&str]) -> Vec<String> {
    parts.iter().map(|part| (*part).to_owned()).collect()
}

#[test]
fn gdb_breaks_steps_and_watches() {
    let (kernel, [first, round, write, read]) = counter();
    let data = image::DATA;
    let commands = [
        "printf \"starts at %lx\\n\", $rip".into(),
        format!("hbreak *{first:#x}"),
        "continue".into(),
        "stepi".into(),
        "printf \"rbx is %lx\\n\", $rbx".into(),
        "delete".into(),
        format!("break *{read:#x}"),
        "continue".into(),
        "continue".into(),
        format!("printf \"counted %d, rcx is %ld\\n\", *(int*){data:#x}, $rcx"),
        "delete".into(),
        format!("watch *(int*){data:#x}"),
        "continue".into(),
        "printf \"pc behind the write: %lx\\n\", $pc".into(),
        "delete".into(),
        format!("rwatch *(long*){:#x}", data + 8),
        "continue".into(),
        "printf \"pc behind the read: %lx\\n\", $pc".into(),
        "delete".into(),
        format!("set var *(int*){data:#x} = 1000"),
        format!("tbreak *{round:#x}"),
        "continue".into(),
        format!("printf \"now %d\\n\", *(int*){data:#x}"),
        "detach".into(),
    ];
    let Some(said) = debug("gdb", kernel.path(), &["-S"], &commands) else { return };
    in_order(
        &said,
        &[
            format!("starts at {:x}\n", image::ENTRY),
            format!("Breakpoint 1, {first:#018x} in"),
            format!("{:#018x} in", first + 10),
            "rbx is 1122334455667788\n".into(),
            format!("Breakpoint 2, {read:#018x} in"),
            format!("Breakpoint 2, {read:#018x} in"),
            "counted 2, rcx is".into(),
            format!("Hardware watchpoint 3: *(int*){data:#x}"),
            "Old value = 2\nNew value = 3\n".into(),
            format!("pc behind the write: {:x}\n", write + 7),
            "Hardware read watchpoint 4".into(),
            "Value = 0\n".into(),
            format!("pc behind the read: {:x}\n", read + 10),
            format!("breakpoint 5, {round:#018x} in"),
            "now 1000\n".into(),
            "detached".into(),
        ],
    );
}

#[test]
fn a_watch_that_stops_the_machine_stops_in_gdb() {
    let (kernel, [_, _, write, _]) = counter();
    let data = image::DATA;
    let commands = [
        format!("monitor watch w:{data:x}+4 if value == 1234 then stop"),
        "continue".into(),
        format!("printf \"counted %x, pc %lx\\n\", *(int*){data:#x}, $pc"),
        "monitor info status".into(),
        "monitor unwatch all".into(),
        "stepi".into(),
        "detach".into(),
    ];
    let Some(said) = debug("gdb and a watch", kernel.path(), &["-S"], &commands) else { return };
    let parts = [
        "received signal SIGTRAP".into(),
        format!("counted 1234, pc {:x}\n", write + 7),
        format!("{:#018x} in", write + 8),
        "detached".into(),
    ];
    in_order(&said, &parts);
    // On standard error, where gdb shows what it is given.
    in_order(&said, &texts(&["watch 1 stops the machine\n", "VM status: paused (watch 1)\n"]));
}

#[test]
fn gdb_sees_registers_threads_and_both_memories() {
    let (kernel, [_, round, ..]) = counter();
    let commands = texts(&[
        &format!("hbreak *{round:#x}"),
        "continue",
        "info threads",
        "info registers cr0 cr3 efer",
        "set $rax = 0x1234",
        "printf \"rax is %lx\\n\", $rax",
        "set $xmm3.uint128 = 5",
        "printf \"xmm3 is %d\\n\", $xmm3.v4_int32[0]",
        "set $st0 = 2.5",
        "printf \"st0 is %g\\n\", $st0",
        "set $cr2 = 0x1234",
        "set $fs_base = 0x5678",
        "set $cr4 = $cr4 | 0x80",
        "printf \"cr2 is %lx, fs_base is %lx, cr4 is %lx\\n\", $cr2, $fs_base, $cr4",
        "set $cr4 = 0x10000000000",
        "set $cs = 0x1234",
        "printf \"cr4 is still %lx\\n\", $cr4",
        "x/xw 0x7fffffff0000",
        "x/xw 0xfee00030",
        "maint packet qqemu.PhyMemMode",
        "maint packet Qqemu.PhyMemMode:1",
        "maint packet qqemu.PhyMemMode",
        "x/xb 0x100000",
        "monitor info status",
        "monitor xp/xb 0x100000",
        "kill",
    ]);
    let Some(said) = debug("gdb", kernel.path(), &["-S"], &commands) else { return };
    in_order(
        &said,
        &texts(&[
            "CPU#0 [running]",
            "cr0            0x80000011",
            "cr3            0x103000",
            "efer           0x500",
            "rax is 1234\n",
            "xmm3 is 5\n",
            "st0 is 2.5\n",
            "cr2 is 1234, fs_base is 5678, cr4 is a0\n",
            "cr4 is still a0\n",
            "received: \"0\"",
            "received: \"OK\"",
            "received: \"1\"",
            "0x100000:\t0x7f\n",
            "killed",
        ]),
    );
    // What goes to standard error.
    for part in [
        "Could not write register", // CR4 and CS
        "Cannot access memory at address 0x7fffffff0000",
        "Cannot access memory at address 0xfee00030",
        "VM status: paused\n",
        "0000000000100000: 0x7f\n",
    ] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
}

/// The guest has long been translated when gdb comes.
#[test]
fn gdb_stops_what_runs_translated_and_interpreted() {
    let (kernel, [_, round, write, _]) = counter();
    for accel in ["jit", "interp"] {
        let commands = [
            format!("tbreak *{round:#x}"),
            "continue".into(),
            "stepi".into(),
            format!("hbreak *{write:#x} if $rcx % 100 == 0"),
            "continue".into(),
            "printf \"rcx ends in %ld\\n\", $rcx % 100".into(),
            "detach".into(),
        ];
        let flags = ["-accel", accel];
        let Some(said) = debug("gdb, running", kernel.path(), &flags, &commands) else { return };
        in_order(
            &said,
            &[
                format!("breakpoint 1, {round:#018x} in"),
                format!("{write:#018x} in"),
                format!("Breakpoint 2, {write:#018x} in"),
                "rcx ends in 0\n".into(),
                "detached".into(),
            ],
        );
    }
}

/// A client on a TCP port.
struct Client(TcpStream);

impl Client {
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    fn packet(&mut self, inside: &str) {
        let sum = inside.bytes().fold(0_u8, u8::wrapping_add);
        self.send(format!("${inside}#{sum:02x}").as_bytes());
    }

    fn expect(&mut self, pattern: &str) -> String {
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        while !text.contains(pattern) {
            let count = self.0.read(&mut buffer).unwrap_or(0);
            assert!(count > 0, "no {pattern:?} in {text:?}");
            text.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        text
    }
}

#[test]
fn what_is_no_packet_does_no_harm() {
    let (kernel, _) = counter();
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let flag = format!("tcp::{port}");
    let arguments = ["-kernel", argument(kernel.path()), "-display", "none", "-gdb", &flag, "-monitor", "stdio"];
    let mut session = Session::start(VITRINE, &arguments);
    let start = Instant::now();
    let stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(error) => assert!(start.elapsed() < SOON, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    stream.set_read_timeout(Some(SOON)).unwrap();
    let mut client = Client(stream);
    client.send(b"$qC#00");
    client.expect("-");
    client.send(b"rubbish\x00\xff$g#zz");
    client.expect("-");
    client.send(&[&b"$m0,"[..], &[b'f'; 1 << 20], b"#00"].concat());
    client.expect("-");
    // Nobody knows this one.
    client.packet("vWhatever");
    client.expect("$#00");
    client.packet("qSupported:multiprocess+;swbreak+;hwbreak+");
    client.expect("PacketSize=");
    client.packet("mffffffffffffffff,ffff");
    client.expect("$E");
    client.packet("?");
    client.expect("#");
    client.send(b"+");
    // It runs until it is interrupted.
    client.packet("vCont;c");
    client.expect("+");
    std::thread::sleep(Duration::from_millis(50));
    client.send(&[0x03]);
    client.expect("$T02");
    drop(client);
    // It goes on without.
    let start = Instant::now();
    loop {
        session.send("info status\n");
        std::thread::sleep(Duration::from_millis(20));
        if session.stdout.text().contains("VM status: running") {
            break;
        }
        assert!(start.elapsed() < SOON, "{}", session.stdout.text());
    }
    session.send("quit\n");
    assert_eq!(session.end(SOON).status.code(), Some(0));
}
