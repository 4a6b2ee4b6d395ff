//! The experiment: the line of the lens for an access equals what the guest says of it.

use std::path::Path;

use guests::session::{Ended, Session, argument};
use guests::watch::{GuestView, Line, field};
use guests::{PATIENCE, find, initramfs, skipped};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");

/// Boots the seed kernel, which prints the addresses of its command line, with these further options.
fn boot(more: &[&str]) -> Option<Ended> {
    let Some(kernel) = find::seed_kernel() else {
        skipped("watch", "no seed-bzImage at hand");
        return None;
    };
    boot_kernel(&kernel, more)
}

fn boot_kernel(kernel: &Path, more: &[&str]) -> Option<Ended> {
    let Some(initrd) = initramfs::build(initramfs::INIT) else {
        skipped("watch", "no static busybox (package busybox-static)");
        return None;
    };
    let mut arguments = vec!["-kernel", argument(kernel), "-initrd", argument(initrd.path())];
    arguments.extend(["-append", "console=ttyS0", "-nographic", "-m", "256M"]);
    arguments.extend(more);
    let ended = Session::start(VITRINE, &arguments).end(PATIENCE);
    ended.no_panic();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    Some(ended)
}

fn learn() -> Option<GuestView> {
    let ended = boot(&[])?;
    assert!(Line::all(&ended.stderr).is_empty(), "no watch, no line: {ended:?}");
    let guest = GuestView::find(&ended.stdout).unwrap_or_else(|| panic!("the guest prints its view: {ended:?}"));
    assert_eq!(guest.value, u64::from(u32::from_le_bytes(*b"cons")));
    Some(guest)
}

/// The line for the four-byte read that the guest printed.
fn assert_seen(lines: &[Line], guest: GuestView, gva_is_known: bool) {
    let same = |line: &&Line| {
        line.access == "r4"
            && line.gpa == guest.gpa
            && line.value == guest.value
            && (line.gva == Some(guest.gva) || (!gva_is_known && line.gva.is_none()))
    };
    let seen: Vec<&Line> = lines.iter().filter(same).collect();
    assert!(!seen.is_empty(), "{guest:x?} is seen in {lines:x?}");
    for line in &seen {
        assert_ne!(line.hva, 0, "{line:x?}");
        assert_eq!(line.hva & 0xfff, guest.gpa & 0xfff, "pages keep their offsets: {line:x?}");
        assert!(line.hpa.is_none_or(|hpa| hpa & 0xfff == guest.gpa & 0xfff), "{line:x?}");
    }
    if let Some(function) = find::seed_symbol("cmdline_proc_show") {
        let inside = seen.iter().any(|line| function.contains(&line.rip));
        assert!(inside, "a read in cmdline_proc_show {function:x?}: {seen:x?}");
    }
}

#[test]
fn a_watched_address_shows_what_the_guest_sees() {
    let Some(guest) = learn() else { return };
    let watch = format!("r:{:x}", guest.gva);
    let Some(ended) = boot(&["-watch", &watch]) else { return };
    assert_eq!(GuestView::find(&ended.stdout), Some(guest), "watching changes nothing for the guest");
    assert_seen(&Line::all(&ended.stderr), guest, true);
}

#[test]
fn a_physical_address_can_be_watched_and_a_file_be_written() {
    let Some(guest) = learn() else { return };
    let log = initramfs::file_of(&[]);
    let watch = format!("r:gpa:{:x}+4", guest.gpa);
    let Some(ended) = boot(&["-watch", &watch, "-watch-log", argument(log.path())]) else { return };
    assert!(Line::all(&ended.stderr).is_empty(), "lines go to the file: {ended:?}");
    let text = std::fs::read_to_string(log.path()).unwrap_or_default();
    assert_seen(&Line::all(&text), guest, false);
}

#[test]
fn writes_are_told_from_reads() {
    let Some(guest) = learn() else { return };
    let watch = format!("w:{:x}", guest.gva);
    let Some(ended) = boot(&["-watch", &watch]) else { return };
    let lines = Line::all(&ended.stderr);
    assert!(!lines.is_empty(), "the kernel writes its command line: {ended:?}");
    assert!(lines.iter().all(|line| line.access.starts_with('w')), "{lines:x?}");
}

#[test]
fn the_line_of_the_article_can_be_had() {
    let Some(guest) = learn() else { return };
    let watch = format!("r:{:x}", guest.gva);
    let Some(ended) = boot(&["-watch", &watch, "-watch-format", "qemu"]) else { return };
    let same = |line: &&str| {
        line.starts_with("helper_le_ldul_mmu eip: ")
            && field(line, "vaddr:") == Some(guest.gva)
            && field(line, "haddr:").is_some_and(|haddr| haddr & 0xfff == guest.gpa & 0xfff)
            && field(line, "Val:") == Some(guest.value)
    };
    assert!(ended.stderr.lines().any(|line| same(&line)), "{ended:?}");
}

#[test]
fn the_translator_shows_what_the_interpreter_shows() {
    let Some(guest) = learn() else { return };
    let watch = format!("rw:gpa:{:x}+8", guest.gpa);
    let seen = ["interp", "jit"].map(|tier| {
        let ended = boot(&["-watch", &watch, "-accel", tier])?;
        let lines = Line::all(&ended.stderr).into_iter();
        // Where the host has the memory is each process's own.
        Some(lines.map(|line| (line.access, line.rip, line.gva, line.gpa, line.value)).collect::<Vec<_>>())
    });
    let [Some(interpreted), Some(translated)] = seen else { return };
    assert!(interpreted.len() > 1, "{interpreted:x?}");
    assert_eq!(interpreted, translated);
}

#[test]
fn the_command_line_is_watched_by_its_symbol() {
    let kernels: Vec<_> = find::debian_kernels().into_iter().chain(find::seed_kernel()).collect();
    if kernels.is_empty() {
        return skipped("watch by symbol", "no kernel at hand");
    }
    for kernel in kernels {
        // Where the kernel is nobody knows beforehand.
        let Some(ended) = boot_kernel(&kernel, &["-watch", "r:*saved_command_line"]) else { return };
        let lines = Line::all(&ended.stderr);
        let shown = |function: &str| {
            lines.iter().any(|line| line.function.as_ref().is_some_and(|name| name.starts_with(function)))
        };
        assert!(shown("strlen") || shown("cmdline_proc_show"), "{}: {lines:x?}", kernel.display());
        for line in &lines {
            let first = line.value as u8 == b'c' && line.access.starts_with('r') && line.gva == lines[0].gva;
            assert!(first && line.function.is_some() && line.hva != 0, "{}: {line:x?}", kernel.display());
        }
        if let Some(guest) = GuestView::find(&ended.stdout) {
            assert_eq!(lines[0].gva, Some(guest.gva));
        }
    }
}

#[test]
fn lines_may_go_to_the_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("log");
    let more = ["-D", log.to_str().expect("UTF-8"), "-watch", "r:*saved_command_line count 3 then log"];
    let Some(ended) = boot(&more) else { return };
    let logged = Line::all(&std::fs::read_to_string(&log).expect("a log"));
    assert_eq!(logged.len(), 3, "{logged:x?}");
    assert!(logged.iter().all(|line| line.access.starts_with('r') && line.value as u8 == b'c'), "{logged:x?}");
    assert!(Line::all(&ended.stderr).is_empty(), "{ended:?}");
}

#[test]
fn a_symbol_that_there_is_not_is_said_to_be_missing() {
    let Some(ended) = boot(&["-watch", "rw:no_such_thing+8"]) else { return };
    assert!(ended.stderr.contains("rw:no_such_thing+8: the guest's kernel has no symbol no_such_thing"), "{ended:?}");
    assert!(Line::all(&ended.stderr).is_empty(), "{ended:?}");
}

/// A Linux guest at its shell, whose terminal leads to the monitor and back.
struct Shell(Session);

impl Shell {
    /// What the monitor answers to `line`.
    fn ask(&mut self, line: &str) -> String {
        let before = self.0.stdout.text().len();
        self.0.send(&format!("\x01c{line}\nprint 6*7\n\x01c"));
        let answered = |text: &str| text.get(before..).is_some_and(|new| new.contains("0x2a\n"));
        self.0.expect_that(line, PATIENCE, answered);
        self.0.stdout.text()[before..].split("0x2a\n").next().unwrap_or_default().to_owned()
    }

    /// Has the guest do `command`.
    fn run(&mut self, command: &str) {
        let before = self.0.stdout.text().len();
        // The line that is typed is not what it prints.
        self.0.send(&format!("{command}; echo DO''NE\n"));
        self.0.expect_that(command, PATIENCE, |text| text.get(before..).is_some_and(|new| new.contains("DONE")));
    }
}

#[test]
fn watches_change_while_linux_runs() {
    let kernels: Vec<_> = find::debian_kernels().into_iter().chain(find::seed_kernel()).collect();
    let Some(initrd) = initramfs::build(initramfs::INIT) else {
        return skipped("watch", "no static busybox (package busybox-static)");
    };
    if kernels.is_empty() {
        return skipped("watches that change", "no kernel at hand");
    }
    for kernel in kernels {
        let mut arguments = vec!["-kernel", argument(&kernel), "-initrd", argument(initrd.path())];
        arguments.extend(["-append", "console=ttyS0 interactive", "-nographic", "-m", "256M"]);
        let mut shell = Shell(Session::start(VITRINE, &arguments));
        shell.0.expect("GUEST-READY", PATIENCE);
        shell.run("true");
        assert!(shell.ask("info watch").contains("nothing is watched\n"));
        // "cons", and what is not there.
        let counted = shell.ask("watch r:*saved_command_line if value & ff == 63 and kernel then count");
        assert!(counted.contains("1: r:*saved_command_line+1 if ") && counted.contains(" at ff"), "{counted}");
        let wrong = shell.ask("watch r:*saved_command_line if value & ff != 63 or kernel");
        assert!(wrong.contains("column 43: \"or\" is not understood here; and CONDITION"), "{wrong}");
        shell.ask("watch r:*saved_command_line if value & ff != 63 then count");
        shell.run("cat /proc/cmdline");
        let listed = shell.ask("info watch");
        let hits = |listed: &str| -> Vec<u64> {
            let counts = listed.lines().filter_map(|line| line.split(" hits").next()?.rsplit(' ').next()?.parse().ok());
            counts.collect()
        };
        let counts = hits(&listed);
        assert!(counts.len() == 2 && counts[0] > 0 && counts[1] == 0, "{listed}");
        assert!(Line::all(&shell.0.stderr.text()).is_empty(), "they are counted only: {}", shell.0.stderr.text());

        // By the process, where the kernel tells how its list of them is laid out.
        let processes = ["== cat", "== sh", "!= cat", "== nobody"]
            .map(|which| shell.ask(&format!("watch r:*saved_command_line if process {which} then count")));
        shell.ask("watch r:*saved_command_line then count");
        shell.run("cat /proc/cmdline");
        let counts = hits(&shell.ask("info watch"));
        let [.., cat, sh, not_cat, nobody, all] = counts[..] else { panic!("{counts:?}") };
        if processes[0].contains("does not describe its types") {
            assert_eq!((cat, sh, not_cat, nobody), (0, 0, 0, 0));
        } else {
            // Busybox may do it without another process.
            assert_eq!((cat + sh, cat + not_cat, nobody), (all, all, 0), "{processes:?}");
        }
        assert!(all > 0);
        shell.ask("unwatch all");
        shell.ask("watch r:*saved_command_line if value & ff == 63 and kernel then count");

        // The next one stops the machine, and only that.
        shell.ask("watch r:*saved_command_line count 1 then stop");
        shell.0.send("cat /proc/cmdline; echo DO''NE\n");
        let stops = "9 stops the machine: r:*saved_command_line+1 count 1 then stop\n";
        assert!(shell.0.stderr.wait(PATIENCE, |text| text.contains(stops)), "{}", shell.0.stderr.text());
        let status = shell.ask("info status");
        assert!(status.contains("VM status: paused (watch 9)\n"), "{status}");
        let line = Line::all(&shell.0.stderr.text()).pop().expect("a line");
        // It stands behind the instruction.
        let said = shell.ask("print $rip");
        let rip = said.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("0x")?, 16).ok());
        let rip = rip.unwrap_or_else(|| panic!("{said}"));
        assert!((1..16).contains(&rip.wrapping_sub(line.rip)), "{rip:x} {line:x?}");
        assert!(line.access.starts_with('r') && line.hva != 0, "{line:x?}");
        shell.ask("cont");
        shell.run("cat /proc/cmdline");
        assert_eq!(Line::all(&shell.0.stderr.text()).len(), 1, "it is over: {}", shell.0.stderr.text());
        assert!(hits(&shell.ask("info watch"))[0] > 0);
        shell.ask("unwatch all");
        shell.run("cat /proc/cmdline");
        assert!(shell.ask("info watch").contains("nothing is watched\n"));
        shell.0.send("poweroff -f\n");
        let ended = shell.0.end(PATIENCE);
        ended.no_panic();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
}
