//! Interrupts, halting and stopping, as the run loop sees them.

use super::*;
use crate::hooks::{LocalApic, PortIo};
use crate::state::{RBX, RSP};
use crate::testing::{Board, CODE0, board};
use memory::observe::{Access, AccessKind, Interest, Observer};
use memory::{Dma, Gpa, Gva};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

const HANDLER: u64 = 0x9000;
const DEBUG_HANDLER: u64 = 0xa000;
const STACK: u64 = 0x2_0000;
/// Where a device writes.
const WRITTEN: u64 = 0x1f_0000;

/// Any port write stops the vCPU; interrupts with vector 40h, of which the first few have been withdrawn when they are
/// to be acknowledged. A device writes memory then.
#[derive(Debug)]
struct Outside {
    signals: Arc<Signals>,
    withdrawn: AtomicU32,
    dma: Dma,
}

impl PortIo for Outside {
    fn read(&self, _: u16, _: usize) -> u32 {
        0
    }
    fn write(&self, _: u16, _: usize, _: u32) {
        self.signals.raise(Signals::STOP);
    }
}

impl LocalApic for Outside {
    fn acknowledge(&self) -> Option<u8> {
        if self.withdrawn.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1)).is_ok() {
            self.dma.write(Gpa(WRITTEN), &[1]).unwrap();
            return None;
        }
        self.signals.lower(Signals::INTERRUPT);
        Some(0x40)
    }
    fn task_priority(&self) -> u8 {
        0
    }
    fn set_task_priority(&self, _: u8) {}
    fn read_msr(&self, _: u32) -> Option<u64> {
        None
    }
    fn write_msr(&self, _: u32, _: u64) -> Option<()> {
        None
    }
    fn set_deadline(&self, _: Option<u64>) {}
    fn deadline(&self) -> Option<u64> {
        None
    }
    fn init(&self) {}
}

/// Runs `code` at 8000h with an interrupt pending until it writes to a port. All handlers do.
fn run(code: &[u8], withdrawn: u32, signals: u32) -> Board {
    run_from(code, withdrawn, signals, |_| {})
}

/// The same, from a state that `prepare` makes.
fn run_from(code: &[u8], withdrawn: u32, signals: u32, prepare: impl FnOnce(&mut Cpu)) -> Board {
    let mut board = board("max");
    board.long_mode(0);
    board.system_tables();
    for vector in [2, 0x40] {
        board.gate(vector, CODE0, HANDLER, 0x8e, 0);
    }
    board.gate(1, CODE0, DEBUG_HANDLER, 0x8e, 0);
    board.poke_bytes(HANDLER, &[0xe6, 0]);
    board.poke_bytes(0x8000, code);
    let cpu = &mut board.cpu;
    let dma = Dma::new(cpu.mmu.map().clone(), "disk");
    let outside = Arc::new(Outside { signals: cpu.signals.clone(), withdrawn: withdrawn.into(), dma });
    cpu.ports = outside.clone();
    cpu.apic = outside;
    cpu.regs[RSP] = STACK;
    cpu.regs[RBX] = 0;
    cpu.signals.raise(signals);
    prepare(cpu);
    let exit = cpu.run(&mut Interpreter::default());
    assert!(matches!(exit, Exit::Stopped), "{exit:?}");
    board
}

/// RIP that the handler would return to.
fn interrupted(board: &Board) -> u64 {
    assert_eq!(board.cpu.rip(), HANDLER + 2);
    board.peek(board.cpu.regs[RSP])
}

#[test]
fn a_withdrawn_interrupt_leaves_the_processor_halted() {
    // sti; hlt; inc ebx; out 0, al
    let board = run(&[0xfb, 0xf4, 0xff, 0xc3, 0xe6, 0], 3, Signals::INTERRUPT);
    assert_eq!(interrupted(&board), 0x8002);
    assert_eq!(board.cpu.regs[RBX], 0, "what follows HLT has not run");
}

#[test]
fn interrupts_wait_for_the_flag_and_the_shadow_behind_it() {
    // inc ebx; sti; inc ebx; inc ebx; out 0, al
    let board = run(&[0xff, 0xc3, 0xfb, 0xff, 0xc3, 0xff, 0xc3, 0xe6, 0], 0, Signals::INTERRUPT);
    assert_eq!((interrupted(&board), board.cpu.regs[RBX]), (0x8005, 2));
    // inc ebx; mov ss, ecx; inc ebx; inc ebx: IF is set, so the interrupt comes first.
    let board = run(&[0xfb, 0x8e, 0xd1, 0xff, 0xc3, 0xff, 0xc3, 0xe6, 0], 0, Signals::INTERRUPT);
    assert_eq!((interrupted(&board), board.cpu.regs[RBX]), (0x8005, 1), "MOV SS in the shadow of STI casts its own");
}

#[test]
fn a_trap_of_the_instruction_before_comes_first() {
    let trap = |cpu: &mut Cpu| {
        // As SYSRET leaves it that sets TF.
        cpu.set_rflags(0x100, 0x100);
        cpu.debug_pending = crate::debug::DR6_BS;
    };
    let board = run_from(&[0x90], 0, Signals::NMI, trap);
    assert_eq!(interrupted(&board), DEBUG_HANDLER);
    let [rip, _, flags] = board.words(STACK - 5 * 8, 8);
    assert_eq!((rip, flags), (0x8000, 0x102));
}

#[test]
fn a_processor_that_nobody_has_started_executes_nothing() {
    let waits = |cpu: &mut Cpu| {
        cpu.waiting_for_sipi = true;
        let signals = cpu.signals.clone();
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            signals.raise(Signals::STOP);
        });
    };
    // inc ebx; jmp $ - 2
    let board = run_from(&[0xff, 0xc3, 0xeb, 0xfc], 0, 0, waits);
    assert_eq!((board.cpu.rip(), board.cpu.regs[RBX]), (0x8000, 0));
}

#[test]
fn nmis_need_no_flag_and_wake_a_halted_processor() {
    let board = run(&[0xff, 0xc3, 0xe6, 0], 0, Signals::NMI);
    assert_eq!((interrupted(&board), board.cpu.regs[RBX]), (0x8000, 0));
    assert!(board.cpu.nmi_blocked);
    assert_eq!(board.cpu.signals.raised() & Signals::NMI, 0);
}

#[test]
fn of_nmis_that_come_before_the_processor_looks_one_is_latched() {
    // Raised before it runs, and while the first one's handler does, which has counted once then.
    for (before, during, served) in [(1, 0, 1), (2, 0, 2), (5, 0, 2), (1, 1, 2), (1, 5, 2), (2, 5, 2)] {
        let handler = |cpu: &mut Cpu| {
            // inc ebx; iretq
            cpu.mmu.map().write(Gpa(HANDLER), &[0xff, 0xc3, 0x48, 0xcf]).unwrap();
            (1..before).for_each(|_| cpu.signals.raise(Signals::NMI));
            let mut interpreter = Interpreter::default();
            if during != 0 {
                let signals = cpu.signals.clone();
                assert!(cpu.deliver_nmi().is_ok());
                signals.take_nmi();
                (0..during).for_each(|_| signals.raise(Signals::NMI));
                // What runs the loop looks at requests between blocks.
                assert!(cpu.single_step(&mut interpreter).is_ok());
            }
        };
        // out 0, al
        let board = run_from(&[0xe6, 0], 0, Signals::NMI, handler);
        assert_eq!((board.cpu.regs[RBX], board.cpu.rip()), (served, 0x8002), "{before} and {during}");
        assert_eq!(board.cpu.signals.raised() & (Signals::NMI | Signals::NMI_LATCHED), 0);
    }
}

/// Watches the stack's page from when a device has written.
#[derive(Default)]
struct Later {
    written: AtomicBool,
    changed: AtomicBool,
    pushes: AtomicU32,
}

impl Observer for Later {
    fn interest(&self, _: Gva, gpa: Gpa) -> Interest {
        let stack = gpa.0 == STACK - 0x1000 && self.written.load(SeqCst);
        Interest { write: stack, ..Interest::default() }
    }
    fn wants_walks(&self, _: Gpa) -> bool {
        false
    }
    fn wants_dma(&self, _: Gpa) -> bool {
        true
    }
    fn access(&self, access: &Access) {
        if access.kind == AccessKind::DmaWrite {
            self.written.store(true, SeqCst);
            self.changed.store(true, SeqCst);
        } else {
            self.pushes.fetch_add(1, SeqCst);
        }
    }
    fn interest_changed(&self) -> bool {
        self.changed.swap(false, SeqCst)
    }
}

#[test]
fn what_is_watched_while_the_processor_sleeps_is_seen_when_it_wakes() {
    let later = Arc::new(Later::default());
    let watch = |cpu: &mut Cpu| {
        cpu.mmu.set_observer(Some(later.clone()));
        cpu.mmu.map().observe_dma(Some(later.clone()));
    };
    // push rax; pop rax; sti; hlt
    let board = run_from(&[0x50, 0x58, 0xfb, 0xf4], 1, Signals::INTERRUPT, watch);
    assert_eq!(interrupted(&board), 0x8004);
    assert_eq!(later.pushes.load(SeqCst), 5);
}
