//! Command lines, good and bad, with what is made of them.

use cpu::cpuid::Feature;
use machine::{BoardKind, DebugExitPorts};
use smp::Processors;

use super::*;

fn arguments(line: &[&str]) -> Vec<OsString> {
    line.iter().map(OsString::from).collect()
}

fn flags(line: &[&str]) -> Flags {
    match parse(arguments(line)) {
        Ok(Request::Boot(flags)) => *flags,
        other => panic!("{line:?} gave {other:?}"),
    }
}

fn printed(line: &[&str]) -> String {
    match parse(arguments(line)) {
        Ok(Request::Print(text)) => text,
        other => panic!("{line:?} gave {other:?}"),
    }
}

#[test]
fn the_line_that_works_word_for_word() {
    for dash in ["-", "--"] {
        let line = ["kernel", "initrd", "append", "nographic", "m"].map(|name| format!("{dash}{name}"));
        let [kernel, initrd, append, nographic, m] = line.each_ref().map(String::as_str);
        let line = [kernel, "bzImage", initrd, "initramfs", append, "console=ttyS0", nographic, m, "128M"];
        let flags = flags(&line);
        assert_eq!(flags.kernel, Some("bzImage".into()));
        assert_eq!(flags.initrd.as_deref(), Some("initramfs"));
        assert_eq!(flags.append.as_deref(), Some("console=ttyS0"));
        assert!(flags.nographic);
        assert_eq!(flags.memory, Some(128 << 20));
    }
}

#[test]
fn a_value_may_begin_with_dashes_or_be_empty() {
    assert_eq!(flags(&["-append", "-nographic"]).append.as_deref(), Some("-nographic"));
    assert_eq!(flags(&["-append", "--x=y z"]).append.as_deref(), Some("--x=y z"));
    assert_eq!(flags(&["-append", ""]).append.as_deref(), Some(""));
    assert!(!flags(&["-append", "-nographic"]).nographic);
}

#[test]
fn the_last_of_a_flag_counts_and_lists_grow() {
    let flags = flags(&["-m", "64", "-m", "1G", "-serial", "null", "-serial", "file:x", "-no-reboot", "-no-reboot"]);
    assert_eq!(flags.memory, Some(1 << 30));
    assert_eq!(flags.serial, [Serial::Null, Serial::File("x".into())]);
    assert!(flags.no_reboot);
}

#[test]
fn sizes() {
    let good = [
        ("128", 128 << 20),
        ("size=128", 128 << 20),
        ("65536K", 64 << 20),
        ("64m", 64 << 20),
        ("1.5G", 3 << 29),
        ("64G", 64 << 30),
        ("1T", 1 << 40),
        ("33554433B", (32 << 20) + 8192),
    ];
    for (text, bytes) in good {
        assert_eq!(values::memory(text), Ok(bytes), "{text}");
    }
    let bad =
        ["", "lots", "M", "1.M5", ".5G", "-1", "1e3", "12Q", "128MB", "0", "1", "0G", "2T", "99999999999999999999T"];
    for text in bad {
        assert!(values::memory(text).is_err(), "{text}");
    }
}

#[test]
fn boards_processors_and_devices() {
    let board = flags(&["-M", "q35"]).machine.unwrap();
    assert_eq!(board.kind, Some(BoardKind::Q35));
    let board = flags(&["-machine", "type=pc,accel=interp,usb=off"]).machine.unwrap();
    assert_eq!((board.kind, board.accel), (Some(BoardKind::Pc), Some(Accel::Interp)));
    let board = flags(&["-machine", "hpet=on,pit=off"]).machine.unwrap();
    assert_eq!((board.kind, board.no_hpet, board.no_pit), (None, false, true));
    let cpu = flags(&["-cpu", "max,-avx2,hypervisor=off"]).cpu.unwrap();
    assert!(!cpu.has(Feature::AVX2) && !cpu.has(Feature::HYPERVISOR) && cpu.has(Feature::SSE2));
    let device = flags(&["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"]).device;
    assert_eq!(device, [Device::DebugExit(DebugExitPorts { iobase: 0xf4, iosize: 4 })]);
    assert_eq!(
        flags(&["-device", "isa-debug-exit"]).device,
        [Device::DebugExit(DebugExitPorts { iobase: 0x501, iosize: 2 })]
    );
    assert_eq!(flags(&["-d", "int,cpu_reset", "-D", "log"]).log, Some(LogItems(vec!["int", "cpu_reset"])));
}

#[test]
fn tiers_and_what_is_seen_of_them() {
    let jit = |cache| Ok(Accel::Jit(jit::Config { cache, ..jit::Config::default() }));
    let default = jit::Config::default().cache;
    let good = [
        ("interp", Ok(Accel::Interp)),
        ("accel=interp", Ok(Accel::Interp)),
        ("jit", jit(default)),
        ("accel=jit", jit(default)),
        ("jit,cache=256M", jit(256 << 20)),
        ("jit,cache=4M", jit(4 << 20)),
        ("jit,cache=1G", jit(1 << 30)),
        ("jit,cache=8192K", jit(8 << 20)),
        ("jit,cache=64", jit(64 << 20)),
        ("accel=jit,cache=1.5M,cache=5M", Err("jit takes cache=SIZE, from 4M to 1G".to_owned())),
    ];
    for (text, accel) in good {
        assert_eq!(values::accel(text), accel, "{text}");
    }
    let bad = ["", "jit,", "jit,cache", "jit,cache=", "jit,cache=3M", "jit,cache=2G", "jit,cache=-1", "jit,size=8M"];
    for text in bad.into_iter().chain(["interp,cache=8M", "jit=on", "tcg", "kvm", "JIT"]) {
        assert!(values::accel(text).is_err(), "{text}");
    }
    let flags = flags(&["-M", "q35,accel=jit", "-perfmap", "-jitdump", "-d", "jit,out_asm"]);
    assert_eq!(flags.machine.unwrap().accel, jit(default).ok());
    assert!(flags.perfmap && flags.jitdump);
    assert_eq!(flags.log, Some(LogItems(vec!["jit", "out_asm"])));
}

#[test]
fn what_scripts_pass_and_is_true_here_is_accepted() {
    let line = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-vga",
        "none",
        "-vnc",
        "none",
        "-monitor",
        "none",
        "-nic",
        "none",
        "-net",
        "none",
        "-parallel",
        "none",
        "-smp",
        "cpus=1,sockets=1,cores=1,threads=1",
        "-accel",
        "interp",
        "-no-shutdown",
        "-debugcon",
        "stdio",
    ];
    let flags = flags(&line);
    assert!(flags.nodefaults && flags.no_shutdown);
    assert_eq!((flags.smp, flags.debugcon), (Some(Processors { cpus: 1, cores: 1 }), Some(DebugConsole::Stdio)));
}

/// Each wrong line with words that must be in its answer.
#[test]
fn wrong_lines_are_answered_with_one_line_that_helps() {
    let lines: &[(&[&str], &[&str])] = &[
        (&["-kernal", "x"], &["-kernal", "did you mean -kernel?"]),
        (&["--nographics"], &["did you mean -nographic?"]),
        (&["-frobnicate"], &["-frobnicate", "-help"]),
        (&["-"], &["-help"]),
        (&["--"], &["-help"]),
        (&["disk.img"], &["disk.img", "-kernel"]),
        (&["-m"], &["-m", "SIZE"]),
        (&["-m", "lots"], &["-m lots", "512", "2G"]),
        (&["-m", "0"], &["-m 0", "64"]),
        (&["-m", "1"], &["-m 1", "64"]),
        (&["-m", "4096T"], &["1T"]),
        (&["-m", "128M,slots=2"], &["slots"]),
        (&["-smp", "65"], &["-smp 65", "64"]),
        (&["-smp", "many"], &["many", "cores"]),
        (&["-cpu", "pentium"], &["max", "qemu64"]),
        (&["-cpu", "max,+avx22"], &["avx2"]),
        (&["-M", "microvm"], &["pc", "q35"]),
        (&["-machine", "pc,accel=tcg"], &["interp"]),
        (&["-accel", "kvm"], &["jit", "interp"]),
        (&["-accel", "jit,cache=1M"], &["cache=SIZE", "4M", "1G"]),
        (&["-accel", "interp,cache=8M"], &["no options"]),
        (&["-accel", "tcg"], &["interp"]),
        (&["-enable-kvm"], &["leave it out"]),
        (&["-drive", "file=x"], &["-drive", "-initrd"]),
        (&["-hda", "x"], &["-hda", "-initrd"]),
        (&["-display", "gtk"], &["none", "-nographic"]),
        (&["-serial", "tcp::1"], &["stdio", "file:PATH"]),
        (&["-serial", "file:"], &["file:PATH"]),
        (&["-debugcon", "pty"], &["stdio", "file:PATH"]),
        (&["-monitor", "vc"], &["stdio", "unix:PATH", "none"]),
        (&["-monitor", "unix:"], &["unix:PATH"]),
        (&["-gdb", "1234"], &["tcp:[HOST]:PORT", "unix:PATH"]),
        (&["-gdb", "tcp::70000"], &["65535"]),
        (&["-qmp", "tcp:localhost:4444"], &["unix:PATH"]),
        (&["-qmp", "unix:x,server=off"], &["server=off", "write unix:x"]),
        (&["-device", "e1000"], &["isa-debug-exit"]),
        (&["-device", "isa-debug-exit,iobase=70000"], &["0xffff"]),
        (&["-device", "isa-debug-exit,iosize=0"], &["1 to 8"]),
        (&["-d", "int,exec"], &["exec", "in_asm"]),
        (&["-nographic=yes"], &["-nographic", "no value"]),
        (&["-watch", "*1here"], &["-watch *1here", "name of a symbol"]),
        (&["-watch-format", "xml"], &["vitrine", "qemu"]),
        (&["-trace", "t.parquet,*"], &["-trace", "name of a symbol"]),
        (&["-trace", ",r"], &["-trace", "file"]),
    ];
    for (line, words) in lines {
        let message = match parse(arguments(line)) {
            Err(UsageError(message)) => message,
            other => panic!("{line:?} gave {other:?}"),
        };
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(message.len() <= 160, "{message}");
        for word in *words {
            assert!(message.contains(word), "{line:?}: '{message}' does not say {word}");
        }
    }
}

#[test]
fn help_lists_every_flag() {
    let help = printed(&["-help"]);
    assert_eq!(help, printed(&["--help"]));
    assert_eq!(help, printed(&["-h"]));
    for flag in Flags::command().get_arguments() {
        let name = format!("\n-{}", flag.get_long().unwrap());
        assert!(help.contains(&name), "{name}");
        assert!(flag.get_help().is_some(), "{name} has no text");
    }
    assert!(help.lines().all(|line| line.chars().count() <= 120), "{help}");
}

#[test]
fn the_readme_knows_every_flag() {
    let readme = include_str!("../../../../README.md");
    for flag in Flags::command().get_arguments() {
        let name = flag.get_long().unwrap();
        let known = ["`", " "].iter().any(|end| readme.contains(&format!("`-{name}{end}")));
        assert!(known, "-{name} is missing in README.md");
    }
}

#[test]
fn version_and_lists() {
    assert_eq!(printed(&["-version"]), printed(&["--version"]));
    assert!(printed(&["-version"]).starts_with("Vitrine 0."));
    for item in values::LOG_ITEMS {
        assert!(printed(&["-d", "help"]).contains(item.0));
    }
    assert!(printed(&["-M", "help"]).contains("q35"));
    assert!(printed(&["-cpu", "help"]).contains("qemu64"));
    // A word of the guest's, not a question.
    assert_eq!(flags(&["-append", "help"]).append.as_deref(), Some("help"));
}

#[test]
fn the_page_has_an_address() {
    let page = |host: &str, port| Some(Page { host: host.to_owned(), port });
    assert_eq!(flags(&[]).view, None);
    assert_eq!(flags(&["-view", ":80"]).view, page("127.0.0.1", Some(80)));
    assert_eq!(flags(&["-view", "0.0.0.0:0"]).view, page("0.0.0.0", Some(0)));
    assert_eq!(flags(&["-view", "[::1]:8086"]).view, page("::1", Some(8086)));
    assert_eq!(flags(&["view", "-nographic"]).view, page("127.0.0.1", None));
    assert_eq!(flags(&["view", "-view", "desk:9"]).view, page("desk", Some(9)), "the flag says where");
    assert_eq!(flags(&["-append", "view"]).view, None);
    assert!(parse(arguments(&["-nographic", "view"])).is_err(), "the word comes first");
}

#[test]
fn a_timeline_has_a_file_and_a_limit() {
    let limits = [("t", 512 << 20), ("t,size=2G", 2 << 30), ("t,size=64k", 64 << 10)];
    for (value, limit) in limits {
        assert_eq!(flags(&["-perfetto", value]).perfetto, Some(Timeline { file: "t".into(), limit }), "{value}");
    }
    assert_eq!(flags(&["-perfetto", "a,b"]).perfetto.map(|timeline| timeline.file), Some("a,b".into()));
}

/// Values are pieces of what flags take, and of what they must not take, in any order.
#[test]
fn whatever_a_flag_is_given_is_taken_or_refused_in_one_line() {
    const PIECES: &str = "= , ,, : + - . * & [ ] ( \" é 0 1 64 65 0x 0xffffffffffffffff 99999999999999999999 8E K M T \
        size= cpus= sockets= cores= threads= maxcpus= type= accel= hpet= pit= on off cache= jit interp max pc \
        isa-debug-exit iobase= iosize= file: unix: tcp: mon: stdio none r: gpa: == count drop";
    let pieces: Vec<_> = PIECES.split_whitespace().chain(["", " ", "\n", "\0", "\u{1b}"]).collect();
    let mut state = 1_u64;
    // Knuth's generator; its upper half is random enough.
    let mut below = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % limit
    };
    for flag in Flags::command().get_arguments().filter_map(|flag| flag.get_long()) {
        for _ in 0..100 {
            let value: String = (0..=below(6)).map(|_| pieces[below(pieces.len())]).collect();
            if let Err(UsageError(line)) = parse(arguments(&[&format!("-{flag}"), &value])) {
                assert!(!line.chars().any(char::is_control), "-{flag} {value:?}: {line:?}");
            }
        }
    }
}
