//! Code that changes under the decoder's feet.

use crate::hooks::{PortIo, Signals};
use crate::run::{Exit, Interpreter};
use crate::state::{RAX, RBX, RCX, RDI, RIP};
use crate::testing::{Board, TABLES, board};
use std::sync::Arc;

/// Distance of a second mapping of the same memory.
const ALIAS: u64 = 0x20_0000;
const CODE: u64 = 0x1_0000;
/// `out 0, al`: ends a run.
const END: [u8; 2] = [0xe6, 0];

/// Any port write stops the vCPU.
#[derive(Debug)]
struct Stop(Arc<Signals>);

impl PortIo for Stop {
    fn read(&self, _: u16, _: usize) -> u32 {
        0
    }
    fn write(&self, _: u16, _: usize, _: u32) {
        self.0.raise(Signals::STOP);
    }
}

struct Machine {
    board: Board,
    interpreter: Interpreter,
}

impl Machine {
    fn new() -> Self {
        let mut board = board("max");
        board.long_mode(0);
        board.poke(TABLES + 0x2008, &[0x87]);
        board.cpu.ports = Arc::new(Stop(board.cpu.signals.clone()));
        Self { board, interpreter: Interpreter::default() }
    }

    fn code(&mut self, at: u64, parts: &[&[u8]]) {
        self.board.poke_bytes(at, &parts.concat());
    }

    /// Runs from `at` to the next OUT; gives RAX.
    fn run(&mut self, at: u64) -> u64 {
        let cpu = &mut self.board.cpu;
        cpu.signals.lower(Signals::STOP);
        cpu.regs[RIP] = at;
        let exit = cpu.run(&mut self.interpreter);
        assert!(matches!(exit, Exit::Stopped), "{exit:?}");
        cpu.regs[RAX]
    }
}

/// `mov byte [address], value`
fn store(address: u64, value: u8) -> Vec<u8> {
    [&[0xc6, 0x04, 0x25][..], &(address as u32).to_le_bytes(), &[value]].concat()
}

#[test]
fn a_store_into_the_running_block_is_seen_at_once() {
    for alias in [0, ALIAS] {
        let mut machine = Machine::new();
        // mov eax, 1 becomes mov eax, 2 right before it runs.
        let store = store(alias + CODE + 9, 2);
        machine.code(CODE, &[&store, &[0xb8, 1, 0, 0, 0], &END]);
        assert_eq!(machine.run(CODE), 2, "alias {alias:x}");
    }
}

#[test]
fn each_change_is_seen_again_and_again() {
    let mut machine = Machine::new();
    // mov [CODE+100h+1], cl; jmp to mov eax, imm32.
    machine.code(CODE, &[&[0x88, 0x0c, 0x25], &(CODE as u32 + 0x101).to_le_bytes(), &[0xe9, 0xf4, 0, 0, 0]]);
    machine.code(CODE + 0x100, &[&[0xb8, 0, 0, 0, 0], &END]);
    for n in 0..300 {
        machine.board.cpu.regs[RCX] = n & 0x7f;
        assert_eq!(machine.run(CODE), n & 0x7f);
    }
}

#[test]
fn both_halves_of_a_page_crossing_instruction_are_watched() {
    let mut machine = Machine::new();
    let at = CODE + 0x1000 - 3;
    machine.code(at, &[&[0xb8, 1, 2, 3, 4], &END]);
    assert_eq!(machine.run(at), 0x0403_0201);
    for (offset, expected) in [(1, 0x0403_0255), (4, 0x5503_0255), (2, 0x5503_5555)] {
        let store = store(ALIAS + at + offset, 0x55);
        machine.code(0x3_0000, &[&store, &END]);
        machine.run(0x3_0000);
        assert_eq!(machine.run(at), expected, "byte {offset}");
        assert_eq!(machine.run(at + ALIAS), expected, "the other mapping");
    }
}

#[test]
fn a_page_crossing_instruction_depends_on_both_translations() {
    let mut machine = Machine::new();
    // 4 KiB pages for the first 2 MiB; the page after CODE's is first itself, then another.
    let table = TABLES + 0x3000;
    let identity: Vec<u64> = (0..512).map(|n| n << 12 | 7).collect();
    machine.board.poke(table, &identity);
    machine.board.poke(TABLES + 0x2000, &[table | 7]);
    machine.board.cpu.set_cr3(TABLES).unwrap();
    let at = CODE + 0x1000 - 3;
    machine.code(at, &[&[0xb8, 1, 2, 3, 4], &END]);
    machine.code(0x5_0000, &[&[7, 8], &END]);
    assert_eq!(machine.run(at), 0x0403_0201);
    let next = (CODE + 0x1000) >> 12;
    machine.board.poke(table + next * 8, &[0x5_0007]);
    machine.board.cpu.set_cr3(TABLES).unwrap();
    assert_eq!(machine.run(at), 0x0807_0201);
    machine.board.poke(table + next * 8, &[CODE + 0x1007]);
    machine.board.cpu.set_cr3(TABLES).unwrap();
    assert_eq!(machine.run(at), 0x0403_0201);
}

#[test]
fn a_string_instruction_may_overwrite_itself_and_what_follows() {
    let mut machine = Machine::new();
    // rep stosb over the 5 bytes after it: inc ebx (2 bytes) and what remains of mov eax.
    machine.code(CODE, &[&[0xf3, 0xaa], &[0xb8, 1, 0, 0, 0], &END]);
    machine.board.cpu.regs[RAX] = 0x90;
    machine.board.cpu.regs[RCX] = 5;
    machine.board.cpu.regs[RDI] = CODE + 2;
    assert_eq!(machine.run(CODE), 0x90, "the MOV has become NOPs");
}

#[test]
fn every_kind_of_store_is_seen_by_what_follows() {
    // Each writes the immediate of MOV EAX, which comes right after it, through RDI or RSP.
    let stores: [(&str, &[u8]); 22] = [
        ("mov [rdi], cl", &[0x88, 0x0f]),
        ("mov [rdi], ecx", &[0x89, 0x0f]),
        ("add [rdi], cl", &[0x00, 0x0f]),
        ("lock add [rdi], cl", &[0xf0, 0x00, 0x0f]),
        ("inc byte [rdi]", &[0xfe, 0x07]),
        ("not byte [rdi]", &[0xf6, 0x17]),
        ("shl byte [rdi], 1", &[0xd0, 0x27]),
        ("xchg [rdi], cl", &[0x86, 0x0f]),
        ("xadd [rdi], cl", &[0x0f, 0xc0, 0x0f]),
        ("bts dword [rdi], 5", &[0x0f, 0xba, 0x2f, 5]),
        ("sete [rdi]", &[0x0f, 0x94, 0x07]),
        ("shld [rdi], ecx, 3", &[0x0f, 0xa4, 0x0f, 3]),
        ("movbe [rdi], cx", &[0x66, 0x0f, 0x38, 0xf1, 0x0f]),
        ("movnti [rdi], ecx", &[0x0f, 0xc3, 0x0f]),
        ("cmpxchg [rdi], cl", &[0x0f, 0xb0, 0x0f]),
        ("movd [rdi], xmm0", &[0x66, 0x0f, 0x7e, 0x07]),
        ("fstp dword [rdi]", &[0xd9, 0x1f]),
        ("stosb", &[0xaa]),
        ("movsb", &[0xa4]),
        ("push cx", &[0x66, 0x51]),
        ("pop word [rdi]", &[0x66, 0x8f, 0x07]),
        ("str [rdi]", &[0x0f, 0x00, 0x0f]),
    ];
    for (what, store) in stores {
        let mut machine = Machine::new();
        let at = CODE + store.len() as u64 + 1;
        machine.board.cpu.set_cr4(0x620).unwrap();
        machine.code(CODE, &[store, &[0xb8, 0x11, 0x11, 0x11, 0x11], &END]);
        // The same block again, so that it comes from the cache.
        for _ in 0..2 {
            machine.board.poke_bytes(at, &[0x11; 4]);
            let cpu = &mut machine.board.cpu;
            cpu.regs[RAX] = if what == "stosb" { 0x55 } else { 0x11 };
            cpu.regs[RCX] = 0x2b2b;
            cpu.regs[RDI] = at;
            cpu.regs[crate::state::RSI] = 0x2_0000;
            cpu.regs[crate::state::RSP] = if what.starts_with("push") { at + 2 } else { 0x2_0000 };
            cpu.set_rflags(2, u64::MAX);
            cpu.tr.selector = x86::Selector::from_bits(0x50);
            let seen = machine.run(CODE);
            let written = machine.board.peek(at) & 0xffff_ffff;
            assert_eq!(seen, written, "{what}");
            assert_ne!(seen, 0x1111_1111, "{what}");
        }
    }
}

#[test]
fn writes_by_devices_are_seen() {
    let mut machine = Machine::new();
    machine.code(CODE, &[&[0xb8, 1, 0, 0, 0], &END]);
    assert_eq!(machine.run(CODE), 1);
    machine.board.poke_bytes(CODE + 1, &[9]);
    assert_eq!(machine.run(CODE), 9);
}

#[test]
fn the_same_bytes_are_other_code_in_another_mode() {
    let mut machine = Machine::new();
    // 48: a REX prefix in 64-bit mode, dec eax in 32-bit mode. dec rax / dec eax, dec eax... ; inc ebx
    machine.code(CODE, &[&[0x48, 0xff, 0xc3], &END]);
    machine.board.cpu.regs[RAX] = 5;
    machine.board.cpu.regs[RBX] = 0xffff_ffff;
    assert_eq!(machine.run(CODE), 5);
    assert_eq!(machine.board.cpu.regs[RBX], 0x1_0000_0000);
    machine.board.cpu.seg[crate::state::CS].attributes.set_long(false);
    machine.board.cpu.seg[crate::state::CS].attributes.set_big(true);
    machine.board.cpu.update_mode();
    machine.board.cpu.regs[RBX] = 0xffff_ffff;
    assert_eq!(machine.run(CODE), 4, "dec eax");
    assert_eq!(machine.board.cpu.regs[RBX], 0, "inc ebx");
}

#[test]
fn an_instruction_across_the_limit_of_its_segment_faults() {
    let mut board = board("max");
    board.protected_mode();
    board.system_tables();
    board.gate(13, crate::testing::CODE0, 0x9000, 0x8e, 0);
    board.cpu.regs[crate::state::RSP] = 0x2_0000;
    let mut interpreter = Interpreter::default();
    for (limit, rip) in [(0x8004, 0x8005), (0x8003, 0x9000), (0x8000, 0x9000), (0x7fff, 0x9000)] {
        board.poke_bytes(0x8000, &[0xb8, 1, 0, 0, 0, 0x90]);
        board.cpu.seg[crate::state::CS].limit = limit;
        board.cpu.regs[RIP] = 0x8000;
        board.cpu.single_step(&mut interpreter).unwrap();
        assert_eq!(board.cpu.rip(), rip, "limit {limit:x}");
    }
}

#[test]
fn fifteen_prefixes_at_address_zero_are_too_long() {
    let mut board = board("max");
    board.cpu.reset();
    board.cpu.seg = [x86::Segment::real_mode(0x1000); 6];
    board.cpu.regs[RIP] = 0;
    board.cpu.update_mode();
    board.poke_bytes(0x1_0000, &[0x66; 32]);
    board.poke(6 * 4, &[0x2000_0020]);
    board.poke(13 * 4, &[0x2000_0010]);
    board.poke_bytes(0x2_0010, &END);
    board.poke_bytes(0x2_0020, &END);
    board.cpu.ports = Arc::new(Stop(board.cpu.signals.clone()));
    let exit = board.cpu.run(&mut Interpreter::default());
    assert!(matches!(exit, Exit::Stopped), "{exit:?}");
    assert_eq!(board.cpu.rip(), 0x12);
}
