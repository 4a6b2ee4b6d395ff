//! Single step and breakpoints, on the run loop's careful path.

use super::*;
use crate::run::Interpreter;
use crate::state::{RCX, RDI, RDX, RIP, RSP};
use crate::testing::{Board, CODE0, board};

const HANDLER: u64 = 0x9000;
const STACK: u64 = 0x2_0000;
const DATA: u64 = 0x3_0000;
const TF: u64 = 1 << 8;
const RF: u64 = 1 << 16;

/// Long mode at CPL 0, a #DB handler of NOPs, and code at 8000h.
struct Machine {
    board: Board,
    interpreter: Interpreter,
}

impl Machine {
    fn new(code: &[u8]) -> Self {
        Self::on("max", code)
    }

    fn on(model: &str, code: &[u8]) -> Self {
        let mut board = board(model);
        board.long_mode(0);
        board.system_tables();
        for vector in [1, 2, 6, 13] {
            board.gate(vector, CODE0, HANDLER + u64::from(vector) * 0x100, 0x8e, 0);
        }
        board.poke_bytes(HANDLER, &[0x90; 0x1000]);
        board.poke_bytes(0x8000, code);
        board.cpu.regs[RSP] = STACK;
        Self { board, interpreter: Interpreter::default() }
    }

    fn flags(mut self, bits: u64) -> Self {
        self.board.cpu.set_rflags(bits, u64::MAX);
        self
    }

    /// DR0 with a condition and a length as in DR7.
    fn breakpoint(mut self, address: u64, condition: u64, len: u64) -> Self {
        self.board.cpu.set_debug_register(0, address);
        self.board.cpu.set_debug_register(7, 2 | condition << 16 | len << 18);
        self
    }

    fn step(&mut self) -> u64 {
        self.board.cpu.single_step(&mut self.interpreter).unwrap();
        self.board.cpu.rip()
    }

    /// Steps into the #DB handler; gives RIP and the flags that were pushed, and DR6 without its fixed bits.
    fn trapped(&mut self) -> (u64, u64, u64) {
        assert_eq!(self.step(), HANDLER + 0x100, "in the handler of #DB");
        let [rip, _, flags] = self.board.words(self.board.cpu.regs[RSP], 8);
        (rip, flags, self.board.cpu.dr[6] & 0xe00f)
    }
}

#[test]
fn single_step_traps_after_each_instruction() {
    let mut machine = Machine::new(&[0x90, 0x90]).flags(TF);
    assert_eq!(machine.trapped(), (0x8001, TF | 2, DR6_BS));
    assert_eq!(machine.board.cpu.rflags().into_bits() & TF, 0);
    assert_eq!(machine.step(), HANDLER + 0x101, "the handler itself runs freely");
}

#[test]
fn popf_is_stepped_by_the_flags_before_it() {
    // popfq; nop
    let mut machine = Machine::new(&[0x9d, 0x90]);
    machine.board.poke(STACK, &[TF]);
    assert_eq!(machine.step(), 0x8001, "TF was clear when POPF began");
    assert_eq!(machine.trapped().0, 0x8002);
    let mut machine = Machine::new(&[0x9d, 0x90]).flags(TF);
    machine.board.poke(STACK, &[0]);
    assert_eq!(machine.trapped(), (0x8001, 2, DR6_BS), "TF was set when POPF began");
}

#[test]
fn a_faulting_instruction_is_not_stepped() {
    let mut machine = Machine::new(&[0x0f, 0x0b]).flags(TF);
    assert_eq!(machine.step(), HANDLER + 0x600);
    let [rip, _, flags] = machine.board.words(machine.board.cpu.regs[RSP], 8);
    assert_eq!((rip, flags), (0x8000, TF | RF | 2));
    assert_eq!(machine.board.cpu.dr[6], DR6_ONES);
    assert_eq!(machine.step(), HANDLER + 0x601);
}

#[test]
fn software_interrupts_are_not_stepped_into() {
    let mut machine = Machine::new(&[0xcd, 13]).flags(TF);
    assert_eq!(machine.step(), HANDLER + 0xd00);
    assert_eq!(machine.step(), HANDLER + 0xd01, "no trap");
}

#[test]
fn each_iteration_of_a_repeated_instruction_is_stepped() {
    // rep stosb; nop
    let mut machine = Machine::new(&[0xf3, 0xaa, 0x90]).flags(TF);
    machine.board.cpu.regs[RCX] = 2;
    machine.board.cpu.regs[RDI] = DATA;
    assert_eq!(machine.trapped().0, 0x8000);
    assert_eq!(machine.board.cpu.regs[RCX], 1);
    machine.board.cpu.regs[RIP] = 0x8000;
    machine.board.cpu.set_rflags(TF, TF);
    assert_eq!(machine.trapped().0, 0x8002);
    assert_eq!((machine.board.cpu.regs[RCX], machine.board.cpu.regs[RDI]), (0, DATA + 2));
}

#[test]
fn instruction_breakpoints_fault_before_and_rf_passes_them() {
    let mut machine = Machine::new(&[0x90, 0x90]).breakpoint(0x8001, 0, 0);
    assert_eq!(machine.step(), 0x8001);
    assert_eq!(machine.trapped(), (0x8001, 2, 1), "RF is left to the handler");
    let mut machine = Machine::new(&[0x90, 0x90]).breakpoint(0x8000, 0, 0).flags(RF);
    assert_eq!(machine.step(), 0x8001);
    assert_eq!(machine.board.cpu.rflags().into_bits(), 2, "RF covers one instruction");
    // IRETQ brings RF back.
    let mut machine = Machine::new(&[0x90]).breakpoint(0x8000, 0, 0);
    machine.trapped();
    let at = machine.board.cpu.regs[RSP] + 16;
    machine.board.poke(at, &[RF | 2]);
    machine.board.poke_bytes(HANDLER + 0x100, &[0x48, 0xcf]);
    assert_eq!(machine.step(), 0x8000);
    assert_eq!(machine.step(), 0x8001);
}

#[test]
fn data_breakpoints_trap_after_the_access() {
    // mov [DATA+4], eax; mov eax, [DATA+4]
    let store: &[u8] = &[0x89, 0x04, 0x25, 4, 0, 3, 0];
    let load: &[u8] = &[0x8b, 0x04, 0x25, 4, 0, 3, 0];
    const WRITE: u64 = 1;
    const BOTH: u64 = 3;
    for (code, address, condition, len, hit) in [
        (store, DATA + 4, WRITE, 3, true),
        (store, DATA + 4, BOTH, 3, true),
        (store, DATA + 7, WRITE, 0, true),
        (store, DATA + 8, WRITE, 0, false),
        (store, DATA + 3, WRITE, 0, false),
        (store, DATA + 3, WRITE, 1, false),
        (store, DATA + 6, WRITE, 1, true),
        (store, DATA, WRITE, 2, true),
        (store, DATA + 8, WRITE, 2, false),
        (load, DATA + 4, WRITE, 3, false),
        (load, DATA + 4, BOTH, 3, true),
        (load, DATA + 5, BOTH, 0, true),
    ] {
        let mut machine = Machine::new(code).breakpoint(address, condition, len);
        if hit {
            assert_eq!(machine.trapped(), (0x8007, 2, 1), "{address:x} {condition} {len}");
        } else {
            assert_eq!(machine.step(), 0x8007, "{address:x} {condition} {len}");
            assert_eq!(machine.board.cpu.dr[6], DR6_ONES);
        }
    }
    // A faulting instruction has not accessed anything.
    let mut machine = Machine::new(&[0x89, 0x04, 0x25, 0, 0, 0, 0x40]).breakpoint(0x4000_0000, WRITE, 3);
    machine.board.gate(14, CODE0, HANDLER, 0x8e, 0);
    assert_eq!(machine.step(), HANDLER);
    assert_eq!((machine.step(), machine.board.cpu.dr[6]), (HANDLER + 1, DR6_ONES));
}

#[test]
fn implicit_accesses_hit_data_breakpoints() {
    // push rax; ret; rep movsb; vector stores
    let mut machine = Machine::new(&[0x50]).breakpoint(STACK - 8, 1, 2);
    assert_eq!(machine.trapped(), (0x8001, 2, 1));
    let mut machine = Machine::new(&[0xc3]).breakpoint(STACK, 3, 2);
    machine.board.poke(STACK, &[0x8800]);
    assert_eq!(machine.trapped(), (0x8800, 2, 1));
    let mut machine = Machine::new(&[0xf3, 0xaa]).breakpoint(DATA + 1, 1, 0);
    machine.board.cpu.regs[RCX] = 3;
    machine.board.cpu.regs[RDI] = DATA;
    assert_eq!(machine.step(), 0x8000);
    assert_eq!(machine.trapped(), (0x8000, 2, 1));
    assert_eq!(machine.board.cpu.regs[RCX], 1);
    // movups [DATA], xmm0
    let mut machine = Machine::new(&[0x0f, 0x11, 0x04, 0x25, 0, 0, 3, 0]).breakpoint(DATA + 15, 1, 0);
    machine.board.cpu.set_cr4(0x620).unwrap();
    assert_eq!(machine.trapped(), (0x8008, 2, 1));
    // add [DATA], al: a read-modify-write
    let mut machine = Machine::new(&[0x00, 0x04, 0x25, 0, 0, 3, 0]).breakpoint(DATA, 1, 0);
    let (rip, _, hits) = machine.trapped();
    assert_eq!((rip, hits), (0x8007, 1));
}

#[test]
fn port_breakpoints_need_the_debugging_extensions() {
    // in eax, dx
    for (extensions, hit) in [(false, false), (true, true)] {
        let mut machine = Machine::new(&[0xed]);
        let cr4 = machine.board.cpu.cr4.with_debugging_extensions(extensions);
        machine.board.cpu.set_cr4(cr4.into_bits()).unwrap();
        let mut machine = machine.breakpoint(0x63, 2, 0);
        machine.board.cpu.regs[RDX] = 0x60;
        if hit {
            assert_eq!(machine.trapped(), (0x8001, 2, 1));
        } else {
            assert_eq!(machine.step(), 0x8001);
        }
    }
}

#[test]
fn loading_ss_holds_off_traps_for_one_instruction() {
    // mov ss, eax; nop; nop
    let mut machine = Machine::new(&[0x8e, 0xd0, 0x90, 0x90]).flags(TF);
    machine.board.cpu.regs[0] = 0x10;
    assert_eq!(machine.step(), 0x8002, "not after the load of SS");
    assert_eq!(machine.trapped(), (0x8003, TF | 2, DR6_BS));
    // mov ss, [DATA]; nop: the data breakpoint is reported after the NOP.
    let mut machine = Machine::new(&[0x8e, 0x14, 0x25, 0, 0, 3, 0, 0x90]).breakpoint(DATA, 3, 1);
    machine.board.poke(DATA, &[0x10]);
    assert_eq!(machine.step(), 0x8007);
    assert_eq!(machine.trapped(), (0x8008, 2, 1));
    // On Intel's processors, neither does an instruction breakpoint on the next instruction fault.
    let mut machine = Machine::on("max,vendor=GenuineIntel", &[0x8e, 0xd0, 0x90, 0x90]).breakpoint(0x8002, 0, 0);
    machine.board.cpu.regs[0] = 0x10;
    assert_eq!((machine.step(), machine.step()), (0x8002, 0x8003));
}

#[test]
fn general_detect_guards_the_debug_registers() {
    // mov rax, dr0
    let mut machine = Machine::new(&[0x0f, 0x21, 0xc0]);
    machine.board.cpu.set_debug_register(7, DR7_GD);
    assert_eq!(machine.trapped(), (0x8000, RF | 2, DR6_BD));
    assert_eq!(machine.board.cpu.dr[7], DR7_ONES, "GD is cleared for the handler");
}

#[test]
fn breakpoints_that_are_not_enabled_do_nothing() {
    let mut machine = Machine::new(&[0x50, 0x90]);
    machine.board.cpu.set_debug_register(0, 0x8000);
    machine.board.cpu.set_debug_register(1, STACK - 8);
    machine.board.cpu.set_debug_register(7, 3 << 20);
    assert!(!machine.board.cpu.careful);
    assert_eq!((machine.step(), machine.step()), (0x8001, 0x8002));
}
