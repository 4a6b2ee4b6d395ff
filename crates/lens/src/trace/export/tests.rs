//! A small trace in all formats. What it should be is written down here.

use super::*;
use memory::{Gpa, Gva, Hpa, Hva};

fn row(rip: u64, instructions: u64, kind: AccessKind, gva: u64, size: u8, value: u128) -> Row {
    let old = (kind == AccessKind::Write).then_some(0x55);
    Row {
        seq: instructions,
        time: 1000,
        device: None,
        instructions,
        cpu: 0,
        cpl: 3,
        cr3: 0x1000,
        rip,
        kind,
        gva: (!matches!(kind, AccessKind::WalkRead | AccessKind::DmaWrite)).then_some(Gva(gva)),
        gpa: Gpa(gva & 0xffff),
        hva: Some(Hva(0x7f00_0000_0000 + gva)),
        hpa: (kind == AccessKind::Read).then_some(Hpa(0x12_3000)),
        size,
        value,
        old,
    }
}

/// `mov rax, [rbx]`; `add [rbx], rax`, whose bytes lie in two pages; `jne` back; what the page walker
/// and a device did; and an instruction that was not fetched.
fn rows() -> Vec<Row> {
    use AccessKind::*;
    let dma = Row { device: Some("disk".into()), ..row(0, 0, DmaWrite, 0x2000, 16, 0x63) };
    vec![
        row(0x400ff9, 0, Fetch, 0x400ff9, 3, 0x03_8b48),
        row(0x400ff9, 0, WalkRead, 0x2000, 8, 0x63),
        row(0x400ff9, 0, Read, 0x60_0000, 8, 0x1234),
        dma,
        row(0x400ffc, 1, Fetch, 0x400ffc, 2, 0x0148),
        row(0x400ffc, 1, Fetch, 0x400ffe, 1, 0x03),
        row(0x400ffc, 1, Read, 0x60_0000, 8, 0x1234),
        row(0x400ffc, 1, Write, 0x60_0000, 8, 0x2468),
        row(0x400fff, 2, Fetch, 0x400fff, 2, 0xf875),
        row(0x400ff9, 3, Write, 0x60_0008, 4, 1),
    ]
}

fn exported(format: Format) -> Vec<u8> {
    let mut bytes = Vec::new();
    export(rows().into_iter().map(Ok), format, &mut bytes).expect("all is well");
    bytes
}

fn text(format: Format) -> String {
    String::from_utf8(exported(format)).expect("text")
}

#[test]
fn csv_has_all_addresses() {
    let text = text(Format::Csv);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 11);
    assert_eq!(lines[0], "seq,time,device,instructions,cpu,cpl,cr3,rip,kind,gva,gpa,hva,hpa,size,value,old");
    assert_eq!(lines[2], "0,1000,,0,0,3,0x1000,0x400ff9,walk_read,,0x2000,0x7f0000002000,,8,0x63,");
    assert_eq!(lines[3], "0,1000,,0,0,3,0x1000,0x400ff9,read,0x600000,0x0,0x7f0000600000,0x123000,8,0x1234,");
    assert_eq!(lines[4], "0,1000,disk,,,,,,dma_write,,0x2000,0x7f0000002000,,16,0x63,");
    assert_eq!(lines[8], "1,1000,,1,0,3,0x1000,0x400ffc,write,0x600000,0x0,0x7f0000600000,,8,0x2468,0x55");
}

#[test]
fn lackey_tells_a_modification_from_a_load_and_a_store() {
    let wanted = "I  00400ff9,3\n L 00600000,8\nI  00400ffc,3\n M 00600000,8\nI  00400fff,2\n S 00600008,4\n";
    assert_eq!(text(Format::Lackey), wanted);
}

#[test]
fn drmemtrace_has_instructions_and_their_numbers() {
    let wanted = "           1           1:           0 ifetch       3 byte(s) @ 0x0000000000400ff9 48 8b 03                mov rax,[rbx]
           2           1:           0 read         8 byte(s) @ 0x0000000000600000 by PC 0x0000000000400ff9
           3           2:           0 ifetch       3 byte(s) @ 0x0000000000400ffc 48 01 03                add [rbx],rax
           4           2:           0 read         8 byte(s) @ 0x0000000000600000 by PC 0x0000000000400ffc
           5           2:           0 write        8 byte(s) @ 0x0000000000600000 by PC 0x0000000000400ffc
           6           3:           0 ifetch       2 byte(s) @ 0x0000000000400fff 75 f8                   jne short 0000000000400FF9h
           7           4:           0 write        4 byte(s) @ 0x0000000000600008 by PC 0x0000000000400ff9
";
    assert_eq!(text(Format::DrmemtraceText), wanted);
}

#[test]
fn champsim_has_registers_branches_and_addresses() {
    let bytes = exported(Format::Champsim);
    let (instructions, rest) = bytes.as_chunks::<64>();
    assert_eq!((instructions.len(), rest.len()), (4, 0));
    let address = |n: usize, at: usize| u64::from_le_bytes(instructions[n][at..at + 8].try_into().expect("eight"));
    // RAX is written, RBX read.
    assert_eq!((address(0, 0), &instructions[0][8..16]), (0x400ff9, &[0, 0, 7, 0, 10, 0, 0, 0][..]));
    assert_eq!([16, 24, 32, 40].map(|at| address(0, at)), [0, 0, 0x60_0000, 0]);
    // The sum goes to memory, the flags change.
    assert_eq!(&instructions[1][8..12], [0, 0, FLAGS, 0]);
    assert_eq!([16, 24, 32, 40].map(|at| address(1, at)), [0x60_0000, 0, 0x60_0000, 0]);
    // A conditional branch that is taken: it reads IP and flags, and writes IP.
    assert_eq!(&instructions[2][8..16], [1, 1, IP, 0, IP, FLAGS, 0, 0]);
    // Nothing is known but the access.
    assert_eq!((&instructions[3][8..16], address(3, 16)), (&[0; 8][..], 0x60_0008));
}

#[test]
fn formats_have_names() {
    for (name, format) in Format::NAMES {
        assert_eq!(name.parse(), Ok(format));
    }
    let error = "Csv".parse::<Format>().expect_err("names are small");
    assert!(error.contains("csv, lackey, drmemtrace-text, champsim"), "{error}");
}
