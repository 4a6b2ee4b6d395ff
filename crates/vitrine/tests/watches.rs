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
fn a_symbol_that_there_is_not_is_said_to_be_missing() {
    let Some(ended) = boot(&["-watch", "rw:no_such_thing+8"]) else { return };
    assert!(ended.stderr.contains("rw:no_such_thing+8: the guest's kernel has no symbol no_such_thing"), "{ended:?}");
    assert!(Line::all(&ended.stderr).is_empty(), "{ended:?}");
}
