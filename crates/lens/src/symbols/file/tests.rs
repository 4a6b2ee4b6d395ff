//! Files made by hand, against guests made by hand.

use super::super::Kernel;
use super::super::kallsyms::tests as kallsyms;
use super::*;
use memory::ram::GuestRam;
use std::io::Write;
use std::sync::Arc;
use tempfile::NamedTempFile;

const TEXT: u64 = 0xffff_ffff_8100_0000;
const ENTRY_AT: u64 = TEXT + 0x40;
const BANNER_AT: u64 = TEXT + 0x1000;
const NOTES_AT: u64 = TEXT + 0x2000;
/// What the guest's kernel was moved by, and where it is in physical memory.
const MOVED: u64 = 0x1240_0000;
const GPA: u64 = 0x10_0000;
const WORDS: &str = "Linux version 6.1.0-test (somebody@somewhere) #1 SMP";

fn file(contents: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(contents).unwrap();
    file
}

fn open(contents: &[u8], at: Option<u64>) -> Result<File, FileError> {
    let file = file(contents);
    File::open(&Source { path: file.path().to_owned(), at: at.map(Gva) })
}

fn note(id: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x04\0\0\0\x01\0\0\0\x06\0\0\0Xen\0!\0\0\0".to_vec();
    bytes.extend(b"\x04\0\0\0\x04\0\0\0\x03\0\0\0GNU\0");
    bytes.extend(id);
    bytes
}

/// An ELF file of this type with sections (name, type, address, contents) and symbols. One segment is at `first`.
fn elf(kind: u16, first: u64, sections: &[(&str, u32, u64, &[u8])], symbols: &[(&str, u64)]) -> Vec<u8> {
    let (mut names, mut strings, mut table) = (vec![0], vec![0], vec![0; 24]);
    for (name, address) in symbols {
        table.extend((strings.len() as u32).to_le_bytes());
        // Global, a function, absolute.
        table.extend([0x12, 0, 0xf1, 0xff]);
        table.extend([address.to_le_bytes(), [0; 8]].concat());
        strings.extend([name.as_bytes(), b"\0"].concat());
    }
    let count = sections.len() as u32;
    let mut all = sections.to_vec();
    all.extend([(".symtab", 2, 0, &table[..]), (".strtab", 3, 0, &strings), (".shstrtab", 3, 0, &[])]);
    let mut heads = vec![0; 64];
    let mut bytes = vec![0; 120];
    for (name, _, _, _) in &all {
        names.extend([name.as_bytes(), b"\0"].concat());
    }
    let mut place = 1_u32;
    for (name, section, address, contents) in &all {
        let contents = if *name == ".shstrtab" { &names } else { *contents };
        let symtab = *section == 2;
        heads.extend([place, *section].iter().flat_map(|word| word.to_le_bytes()));
        let words = [2, *address, bytes.len() as u64, contents.len() as u64];
        heads.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        heads
            .extend([if symtab { count + 2 } else { 0 }, u32::from(symtab)].iter().flat_map(|word| word.to_le_bytes()));
        heads.extend([1, if symtab { 24 } else { 0_u64 }].iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend(contents);
        place += name.len() as u32 + 1;
    }
    let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    head.extend([kind, 62].iter().flat_map(|half| half.to_le_bytes()));
    head.extend(1_u32.to_le_bytes());
    head.extend([first, 64, bytes.len() as u64].iter().flat_map(|word| word.to_le_bytes()));
    head.extend(0_u32.to_le_bytes());
    head.extend([64, 56, 1, 64, all.len() as u16 + 1, all.len() as u16].iter().flat_map(|half| half.to_le_bytes()));
    head.extend([1, 5_u32].iter().flat_map(|word| word.to_le_bytes()));
    head.extend([0, first, first, 120, 0x1000, 0x1000].iter().flat_map(|word: &u64| word.to_le_bytes()));
    bytes.splice(..120, head);
    bytes.extend(heads);
    bytes
}

fn vmlinux(banner: &str, id: &[u8]) -> Vec<u8> {
    let banner = [banner.as_bytes(), b"\n\0"].concat();
    let notes = note(id);
    let symbols = [
        ("_text", TEXT),
        (ENTRY, ENTRY_AT),
        (BANNER, BANNER_AT),
        ("__start_notes", NOTES_AT),
        ("__stop_notes", NOTES_AT + notes.len() as u64),
        ("__per_cpu_start", 0x1000),
    ];
    elf(2, TEXT, &[(".rodata", 1, BANNER_AT, &banner), (".notes", 7, NOTES_AT, &notes)], &symbols)
}

fn map(banner: u64) -> String {
    format!("0000000000001000 A cpu_debug_store\n{TEXT:x} T _text\n{ENTRY_AT:x} T {ENTRY}\n{banner:x} D {BANNER}\n")
}

/// A guest with a kernel that has no symbols of its own.
fn guest() -> PhysicalMap {
    let map = PhysicalMap::new(GuestRam::new(4 << 20).unwrap()).unwrap();
    let put = |gva: u64, bytes: &[u8]| map.write(Gpa(GPA + (gva - TEXT)), bytes).unwrap();
    put(BANNER_AT, &[WORDS.as_bytes(), b"\n\0"].concat());
    put(NOTES_AT, &note(b"1234"));
    map
}

/// Asks for symbols with this file, and for what is told of it.
fn symbols(contents: &[u8]) -> (Arc<Table>, String) {
    let told = Arc::new(Mutex::new(String::new()));
    let to = told.clone();
    let kernel = Kernel::new(vec![open(contents, None).unwrap()], move |what| *to.lock().unwrap() += &what.to_string());
    let (guest, entry) = (guest(), Gva(ENTRY_AT + MOVED));
    let table = kernel.symbols(&guest, entry, Gpa(GPA + 0x40));
    kernel.symbols(&guest, entry, Gpa(GPA + 0x40));
    let told = told.lock().unwrap().clone();
    (table, told)
}

#[test]
fn a_file_of_the_guests_kernel_is_moved_to_where_that_is() {
    for contents in [vmlinux(WORDS, b"1234"), map(BANNER_AT).into_bytes()] {
        let (table, told) = symbols(&contents);
        assert_eq!(told, "");
        assert_eq!(table.find("_text"), Some(Gva(TEXT + MOVED)));
        assert_eq!(table.at(Gva(BANNER_AT + MOVED)).unwrap().to_string(), BANNER);
        assert_eq!(table.find("__per_cpu_start"), None, "a processor's own data is nowhere");
    }
}

#[test]
fn a_file_of_another_kernel_is_refused() {
    let other = WORDS.replace("#1", "#2");
    let cases = [
        (vmlinux(WORDS, b"1235"), WORDS),
        (vmlinux(&other, b"1234"), &*other),
        (map(BANNER_AT + 0x20).into_bytes(), "of another kernel"),
        (map(BANNER_AT).replace("40 T entry", "41 T entry").into_bytes(), "of another kernel"),
    ];
    for (contents, word) in cases {
        let (table, told) = symbols(&contents);
        assert!(table.is_empty(), "{told}");
        assert!(told.contains(word) && told.contains("of another kernel"), "{told}");
        assert_eq!(told.matches("-symbols").count(), 1, "it is told once: {told}");
    }
}

#[test]
fn a_list_of_symbols_is_held_against_the_kernels_own() {
    let guest = kallsyms::kernel();
    let own = super::super::kallsyms::read(&guest, Gpa(0)).unwrap();
    let entry = kallsyms::BASE + 0x40;
    // A banner behind the kernel's tables.
    let (banner, gpa) = (kallsyms::BASE + 0x20_0000, Gpa(0x8_0040));
    guest.write(Gpa(0x8_0000 + 0x20_0000), WORDS.as_bytes()).unwrap();
    let list = |step: u64| {
        let names = own.iter().map(|(gva, name)| format!("{:x} T {name}\n", gva.0 + step * u64::from(gva.0 > entry)));
        format!("{}{entry:x} T {ENTRY}\n{banner:x} D {BANNER}\n", names.collect::<String>())
    };
    let image = Image { map: &guest, entry: Gva(entry), gpa };
    assert_eq!(open(list(0).as_bytes(), None).unwrap().fit(image, Some(&own)), Ok(0));
    let why = open(list(16).as_bytes(), None).unwrap().fit(image, Some(&own)).unwrap_err();
    assert!(why.contains(WORDS), "{why}");
}

#[test]
fn what_is_no_file_of_symbols_is_refused() {
    let mut compressed = vec![0; 0x400];
    compressed[0x202..0x206].copy_from_slice(b"HdrS");
    let program = elf(3, 0, &[], &[("main", 0x1000)]);
    let cases: [(&[u8], Option<u64>, &str); 9] = [
        (b"", None, "neither"),
        (b"hello world", None, "neither"),
        (b"ffffffff81000000 T", None, "neither"),
        (b"\xff\xfe", None, "neither"),
        (b"ffffffff81000000 T _text\n", None, "entry_SYSCALL_64"),
        (&compressed, None, "System.map or vmlinux"),
        (&elf(2, 0x40_0000, &[], &[]), None, "stripped"),
        (&program, None, "ADDRESS@FILE"),
        (&vmlinux(WORDS, b"1234"), Some(0x1000), "without ADDRESS@"),
    ];
    for (contents, at, word) in cases {
        let error = open(contents, at).expect_err(word).to_string();
        assert!(error.contains(word), "{error}");
    }
    assert!(File::open(&"/no/such/file".parse().unwrap()).is_err());
    for len in 0..program.len() {
        assert!(open(&program[..len], Some(0x1000)).is_err() || len > 120);
    }
}

#[test]
fn programs_are_where_they_were_linked_to_be_or_where_it_is_said() {
    for (kind, first, at, main) in
        [(2, 0x40_0000, None, 0x40_0100), (3, 0, Some(0x5555_0000), 0x5555_0100), (2, 0x40_0000, Some(0x1000), 0x1100)]
    {
        let file = open(&elf(kind, first, &[], &[("main", first + 0x100)]), at).unwrap();
        let kernel = Kernel::new(vec![file], |_| ());
        let at = |gva: u64| kernel.programs().at(Gva(gva)).map(|named| named.to_string());
        assert_eq!(at(main + 4).as_deref(), Some("main+0x4"), "{kernel:?}");
        assert_eq!(at(main + 0x1000), None, "nothing behind its end is named after it");
    }
}

#[test]
fn sources_have_an_address_if_they_say_so() {
    let of = |text: &str| text.parse::<Source>().map(|source| (source.at.map(|at| at.0), source.path));
    assert_eq!(of("0x1000@a@b"), Ok((Some(0x1000), "a@b".into())));
    assert_eq!(of("me@home"), Ok((None, "me@home".into())));
    assert!(of("").is_err() && of("1000@").is_err());
}
