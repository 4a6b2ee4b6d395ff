//! A debugger's breakpoints and watchpoints, on code in long mode at 8000h.

use super::*;
use crate::run::{Exit, Interpreter};
use crate::state::{RAX, RIP, RSP};
use crate::testing::{Board, CODE0, board};

const CODE: u64 = 0x8000;
const HANDLER: u64 = 0x9000;
const DATA: u64 = 0x3_0000;

/// `mov [30000h], rax; mov rax, [30008h]; add [30010h], al; push rax; nop; jmp to itself`.
const ACCESSES: &[u8] = &[
    0x48, 0x89, 0x04, 0x25, 0, 0, 3, 0, 0x48, 0x8b, 0x04, 0x25, 8, 0, 3, 0, 0x00, 0x04, 0x25, 0x10, 0, 3, 0, 0x50,
    0x90, 0xeb, 0xfe,
];

fn ready(code: &[u8]) -> (Board, Interpreter) {
    let mut board = board("max");
    board.long_mode(0);
    board.system_tables();
    board.gate(14, CODE0, HANDLER, 0x8e, 0);
    board.poke_bytes(HANDLER, &[0x90; 16]);
    board.poke_bytes(CODE, code);
    board.cpu.regs[RIP] = CODE;
    board.cpu.regs[RSP] = 0x2_0000;
    board.cpu.regs[RAX] = 5;
    (board, Interpreter::default())
}

fn watch(gva: u64, len: u64, what: WatchFor) -> Watchpoint {
    Watchpoint { gva: Gva(gva), len, what }
}

/// Runs until a debugger is to know of something: of what, and where.
fn run(board: &mut Board, interpreter: &mut Interpreter) -> (Stop, u64) {
    match board.cpu.run(interpreter) {
        Exit::Stopped => (board.cpu.take_stop().unwrap(), board.cpu.rip() - CODE),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_breakpoint_stops_before_its_instruction() {
    let (mut board, mut interpreter) = ready(ACCESSES);
    board.cpu.set_debugger(|debugger| debugger.breakpoints = [Gva(CODE + 16), Gva(CODE + 9)].into());
    assert_eq!(run(&mut board, &mut interpreter), (Stop::Breakpoint, 16), "not within an instruction");
    assert_eq!(run(&mut board, &mut interpreter), (Stop::Breakpoint, 16), "again if asked again");
    board.cpu.single_step(&mut interpreter).unwrap();
    assert_eq!((board.cpu.rip() - CODE, board.cpu.take_stop()), (23, None), "a step goes on");
    board.cpu.set_debugger(|debugger| debugger.breakpoints = [Gva(CODE + 25)].into());
    assert_eq!(run(&mut board, &mut interpreter), (Stop::Breakpoint, 25));
    board.cpu.set_debugger(|debugger| debugger.breakpoints.clear());
    assert!(!board.cpu.careful, "nothing is left of it");
}

#[test]
fn a_watchpoint_stops_behind_the_access_it_is_for() {
    use WatchFor::{Access, Read, Write};
    for (watchpoint, stops) in [
        (watch(DATA, 8, Write), Some(8)),
        (watch(DATA, 8, Access), Some(8)),
        (watch(DATA + 7, 1, Write), Some(8)),
        (watch(DATA - 4, 5, Write), Some(8)),
        (watch(DATA, 8, Read), None),
        (watch(DATA + 8, 8, Read), Some(16)),
        (watch(DATA + 8, 8, Write), None),
        (watch(DATA + 15, 8, Access), Some(16)),
        (watch(DATA + 16, 1, Write), Some(23)),
        (watch(DATA + 16, 1, Read), Some(23)),
        (watch(DATA + 17, 8, Access), None),
        (watch(0x2_0000 - 8, 1, Write), Some(24)),
        (watch(u64::MAX - 1, u64::MAX, Access), None),
        (watch(0, DATA, Read), None),
    ] {
        let (mut board, mut interpreter) = ready(ACCESSES);
        board.cpu.set_debugger(|debugger| {
            debugger.watchpoints = [watchpoint].into();
            debugger.breakpoints = [Gva(CODE + 24)].into();
        });
        let stop = run(&mut board, &mut interpreter);
        let want = stops.map_or((Stop::Breakpoint, 24), |at| (Stop::Watchpoint(watchpoint), at));
        assert_eq!(stop, want, "{watchpoint:?}");
        assert_eq!(board.cpu.dr[6] & 0xf, 0, "the guest does not know");
    }
}

#[test]
fn an_access_that_faults_is_none() {
    // mov [rax], eax to a page that is not mapped.
    let (mut board, mut interpreter) = ready(&[0x89, 0x00]);
    let nowhere = 0x40_0000_0000;
    board.cpu.regs[RAX] = nowhere;
    board.cpu.set_debugger(|debugger| {
        debugger.watchpoints = [watch(nowhere, 4, WatchFor::Write)].into();
        debugger.breakpoints = [Gva(HANDLER + 1)].into();
    });
    assert_eq!(run(&mut board, &mut interpreter), (Stop::Breakpoint, HANDLER + 1 - CODE));
}
