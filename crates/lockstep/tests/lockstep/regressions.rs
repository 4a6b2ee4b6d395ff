//! Cases on which interpreter and translator once differed.

use crate::{interpreted, translated};
use cpu::state::{RAX, RCX, RDI};
use lockstep::case::{Case, Piece};
use lockstep::differences::Options;
use lockstep::layout::DATA;
use lockstep::mode::Mode;
use lockstep::sequence::Generator;
use lockstep::session::Session;
use lockstep::start::Start;

/// Runs 64-bit code on both.
fn agree(start: Start, code: &[&[u8]]) {
    let pieces = code.iter().map(|code| Piece::bytes(code)).collect();
    let case = Case { seed: 0, offset: 0, start, pieces };
    let mut session = Session::new([interpreted, translated], Generator::new(Options::default()));
    let differences = session.run(&case).expect("it can be compared");
    assert!(differences.0.is_empty(), "{differences:?}");
}

#[test]
fn a_pending_exception_comes_before_the_access() {
    let mut start = Start { cold: u32::MAX, ..Start::plain(Mode::Long) };
    start.vector.set_fcw(0x340);
    start.vector.set_fsw(1);
    start.vector.update_x87_summary();
    // punpckldq mm0, [100000h]
    agree(start, &[&[0x0f, 0x62, 0x04, 0x25, 0, 0, 0x10, 0]]);
}

#[test]
fn a_scan_that_faults_half_way_leaves_its_flags() {
    let mut start = Start::plain(Mode::Long);
    for register in [RAX, RCX, RDI] {
        start.gpr[register] = DATA;
    }
    // mov ebx, 0; repne scasd; cmp rbx, 3; jl to the scan
    let code: [&[u8]; 4] =
        [&[0xbb, 0, 0, 0, 0], &[0xf2, 0xaf], &[0x48, 0x81, 0xfb, 3, 0, 0, 0], &[0x0f, 0x8c, 0xf1, 0xff, 0xff, 0xff]];
    agree(start, &code);
}

#[test]
fn a_loop_has_the_instructions_of_its_own_blocks() {
    let mut start = Start::plain(Mode::Long);
    start.gpr[14] = DATA;
    // mov r11, 1ff740h; mov rdx, [r14+1dh]; jp out; add r14, 100; nop; jne; dec rbx; jne
    let code: [&[u8]; 10] = [
        &[0x90; 5],
        &[0x49, 0xbb, 0x40, 0xf7, 0x1f, 0, 0, 0, 0, 0],
        &[0x49, 0x8b, 0x56, 0x1d],
        &[0x0f, 0x8a, 0x1b, 0, 0, 0],
        &[0x49, 0x83, 0xc6, 0x64],
        &[0x90; 15],
        &[0x90; 2],
        &[0x0f, 0x85, 0xdb, 0xff, 0xff, 0xff],
        &[0x48, 0xff, 0xcb],
        &[0x0f, 0x85, 0xc8, 0xff, 0xff, 0xff],
    ];
    agree(start, &code);
}
