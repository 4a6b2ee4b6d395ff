//! `-trace`: a guest's accesses as Parquet, which DuckDB reads.

use guests::session::{Session, argument};
use guests::watch::GuestView;
use guests::{PATIENCE, find, image, initramfs, skipped};
use iced_x86::code_asm::{dword_ptr, dx, eax, ecx};
use std::process::Command;

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");

/// Finds the read of four bytes at a guest physical address by what all four columns of the join say.
const QUERY: &str = "
import duckdb, sys
folder, gva, gpa, value = sys.argv[1], *map(int, sys.argv[2:])
print(duckdb.sql(f\"\"\"SELECT count(*) FROM '{folder}/t.cpu*.parquet' JOIN '{folder}/t.pages.parquet' p USING (page)
    WHERE kind = 'read' AND size = 4 AND value = {value} AND address = {gva} AND p.gpa + address % 4096 = {gpa}
    AND p.gva + address % 4096 = address AND p.hva IS NOT NULL\"\"\").fetchall()[0][0])
";

#[test]
fn a_whole_trace_comes_in_other_formats() {
    // A loop that stores, warm enough to be translated.
    let kernel = image::protected_mode(|a| {
        let mut again = a.create_label();
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(ecx * 4 + 0x20_0000), ecx)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        image::exit(a, 0)
    });
    let kernel = initramfs::file_of(&kernel);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("t.parquet");
    let converted = |what: &str, format: &str| {
        let trace = format!("{}{what}", file.display());
        let run = [
            "-kernel",
            argument(kernel.path()),
            "-display",
            "none",
            "-device",
            "isa-debug-exit,iobase=0xf4,iosize=0x4",
            "-trace",
            &trace,
        ];
        let ended = Session::start(VITRINE, &run).end(PATIENCE);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        let ended = Session::start(VITRINE, &["convert", "-trace-format", format, argument(&file)]).end(PATIENCE);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        ended.stdout
    };
    // In translated code they are records, with fetches they are not.
    for (what, format, first, line) in [
        ("", "lackey", "", " S 00200fa0,4"),
        (",rwx", "drmemtrace-text", "ifetch", "write        4 byte(s) @ 0x0000000000200fa0"),
    ] {
        let text = converted(what, format);
        assert!(text.contains(first) && text.contains(line), "{text}");
        let stores = (1..=1000).filter(|n| text.contains(&format!("{:x}", 0x20_0000 + 4 * n))).count();
        assert_eq!(stores, 1000, "{text}");
    }
    let whole = converted("", "csv");
    let stores: Vec<_> = whole.lines().filter(|line| line.contains(",write,0x200")).collect();
    assert_eq!(stores.len(), 1000);
    for (n, line) in (1..=1000u64).rev().zip(&stores) {
        let gva = 0x20_0000 + 4 * n;
        assert!(line.contains(&format!(",{gva:#x},{gva:#x},")) && line.ends_with(&format!(",4,{n:#x},0x0")), "{line}");
    }
}

#[test]
fn what_a_device_writes_is_traced_and_watched() {
    // fw_cfg is asked for the size of RAM (item 3), across two pages, and the guest reads the first half.
    let kernel = image::protected_mode(|a| {
        for (n, word) in (0..).zip([3 << 16 | 8 | 2, 8, 0, 0x20_1ffc_u32]) {
            a.mov(dword_ptr(0x20_0000 + 4 * n), word.swap_bytes())?;
        }
        a.mov(dx, 0x518)?;
        a.mov(eax, 0x20_0000_u32.swap_bytes())?;
        a.out(dx, eax)?;
        a.mov(ecx, dword_ptr(0x20_1ffc))?;
        image::exit(a, 0)
    });
    let (kernel, folder) = (initramfs::file_of(&kernel), tempfile::tempdir().expect("a folder"));
    let file = folder.path().join("t.parquet");
    let trace = format!("{},rw:gpa:200000+3000", file.display());
    let run = ["-kernel", argument(kernel.path()), "-display", "none", "-m", "64M", "-trace", &trace];
    let exit = ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-watch", "w:gpa:201ffd+1000"];
    let ended = Session::start(VITRINE, &[&run[..], &exit].concat()).end(PATIENCE);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    for (gpa, value) in [("201ffc", "4000000"), ("202000", "0")] {
        let told = |line: &str| {
            line.starts_with(&format!("watch dmaw4 fw_cfg gva - gpa {gpa} hva "))
                && line.ends_with(&format!(" val {value}"))
        };
        assert_eq!(ended.stderr.lines().filter(|line| told(line)).count(), 1, "{ended:?}");
    }
    let ended = Session::start(VITRINE, &["convert", argument(&file)]).end(PATIENCE);
    let seen = ended.stdout.lines().skip(1).map(|line| line.split(',').collect::<Vec<_>>());
    // Device, kind, guest physical address, size and value.
    let seen: Vec<_> = seen.map(|columns| [2, 8, 10, 13, 14].map(|n| columns[n])).collect();
    let request = "0xfc1f20000000000008000000".to_owned() + "0a000300";
    let wanted = [
        ["", "write", "0x200000", "4", "0xa000300"],
        ["", "write", "0x200004", "4", "0x8000000"],
        ["", "write", "0x200008", "4", "0x0"],
        ["", "write", "0x20000c", "4", "0xfc1f2000"],
        ["fw_cfg", "dma_read", "0x200000", "16", &request],
        ["fw_cfg", "dma_write", "0x201ffc", "4", "0x4000000"],
        ["fw_cfg", "dma_write", "0x202000", "4", "0x0"],
        ["fw_cfg", "dma_write", "0x200000", "4", "0x0"],
        ["", "read", "0x201ffc", "4", "0x4000000"],
    ];
    assert_eq!(seen, wanted, "{ended:?}");
}

#[test]
fn a_traced_address_shows_what_the_guest_sees() {
    let Some(kernel) = find::seed_kernel() else { return skipped("trace", "no seed-bzImage at hand") };
    let Some(initrd) = initramfs::build(initramfs::INIT) else {
        return skipped("trace", "no static busybox (package busybox-static)");
    };
    let mut arguments = vec!["-kernel", argument(&kernel), "-initrd", argument(initrd.path())];
    arguments.extend(["-append", "console=ttyS0", "-nographic", "-m", "128M"]);
    let learn = Session::start(VITRINE, &arguments).end(PATIENCE);
    let guest = GuestView::find(&learn.stdout).unwrap_or_else(|| panic!("the guest prints its view: {learn:?}"));

    let folder = tempfile::tempdir().expect("a folder");
    let trace = format!("{}/s.parquet,r:*saved_command_line+4", folder.path().display());
    let ended = Session::start(VITRINE, &[&arguments[..], &["-trace", &trace]].concat()).end(PATIENCE);
    assert!(ended.stderr.contains(" accesses in ") && !ended.stderr.contains("trace: 0 accesses"), "{ended:?}");

    let page = guest.gpa & !0xfff;
    let trace = format!("{}/t.parquet,gpa:{page:x}+1000,wait", folder.path().display());
    arguments.extend(["-trace", &trace]);
    let ended = Session::start(VITRINE, &arguments).end(PATIENCE);
    ended.no_panic();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert_eq!(GuestView::find(&ended.stdout), Some(guest), "tracing changes nothing for the guest");
    assert!(ended.stderr.contains(" accesses in ") && !ended.stderr.contains("lost"), "{ended:?}");

    let numbers = [guest.gva, guest.gpa, guest.value].map(|number| number.to_string());
    let query = Command::new("python3").args(["-c", QUERY, argument(folder.path())]).args(&numbers).output();
    let Ok(query) = query else { return skipped("trace", "no python3") };
    let said = String::from_utf8_lossy(&query.stderr);
    if said.contains("No module named 'duckdb'") {
        return skipped("trace", "no DuckDB (pip install duckdb)");
    }
    assert!(query.status.success(), "{said}");
    let found: u64 = String::from_utf8_lossy(&query.stdout).trim().parse().expect("a count");
    assert!(found > 0, "{guest:x?}");
}
