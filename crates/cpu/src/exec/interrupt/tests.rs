//! Delivery of exceptions and interrupts in each mode.

use super::*;
use crate::testing::*;
use x86::{Attributes, PageFaultCode};

/// Where handlers are, and the stacks.
const HANDLER: u64 = 0x9000;
const STACK: u64 = 0x2_0000;
const INNER: u64 = 0x3_0000;
/// P, and an interrupt or trap gate of 32 (64 in long mode) or 16 bits; for DPL 3.
const INTERRUPT: u64 = 0x8e;
const TRAP: u64 = 0x8f;
const INTERRUPT16: u64 = 0x86;
const TRAP3: u64 = 0xef;

const UD: u8 = Vector::InvalidOpcode as u8;
const GP: u8 = Vector::GeneralProtection as u8;

fn long(cpl: u8) -> Board {
    let mut board = board("max");
    board.long_mode(cpl);
    board.system_tables();
    let user = cpl == 3;
    board.cpu.seg[CS].selector = Selector::from_bits(if user { CODE3 } else { CODE0 });
    board.cpu.seg[SS].selector = Selector::from_bits(if user { DATA3 } else { DATA0 });
    board.cpu.regs[RSP] = STACK;
    board.poke(TSS + 4, &[INNER]);
    for ist in 1..8 {
        board.poke(TSS + 0x1c + ist * 8, &[INNER + ist * 0x1000]);
    }
    board
}

fn protected(cpl: u8) -> Board {
    let mut board = board("max");
    board.protected_mode();
    board.system_tables();
    let (code, data) = if cpl == 3 { (CODE3, DATA3) } else { (CODE0, DATA0) };
    board.cpu.seg = [flat(data, 3, cpl, false); 6];
    board.cpu.seg[CS] = flat(code, 11, cpl, false);
    board.cpu.regs[RSP] = STACK;
    board.cpu.update_mode();
    board.poke(TSS + 4, &[u64::from(DATA0) << 32 | INNER]);
    board
}

fn flags(board: &mut Board, bits: u64) {
    board.cpu.set_rflags(bits, u64::MAX);
}

#[test]
fn double_fault_table() {
    let pf = Exception::page_fault(PageFaultCode::new());
    let gp = Exception::GP0;
    let ud = Exception::UNDEFINED;
    let df = Exception::coded(Vector::DoubleFault, 0);
    assert_eq!(combine(ud, gp), gp);
    assert_eq!(combine(gp, pf), pf);
    assert_eq!(combine(gp, gp), df);
    assert_eq!(combine(pf, gp), df);
    assert_eq!(combine(pf, pf), df);
    assert_eq!(combine(pf, ud), ud);
}

#[test]
fn long_mode_frame_is_aligned_and_complete() {
    let mut board = long(0);
    board.gate(UD, CODE0, 0xffff_8000_0000_9000, INTERRUPT, 0);
    board.cpu.regs[RSP] = STACK - 3;
    flags(&mut board, 0x4747);
    board.cpu.deliver_exception(Exception::UNDEFINED).unwrap();
    let frame: [u64; 5] = board.words(STACK - 16 - 40, 8);
    assert_eq!(frame, [0x8000, CODE0.into(), 0x1_4747, STACK - 3, DATA0.into()], "RF is pushed as set");
    let cpu = &board.cpu;
    assert_eq!(cpu.regs[RSP], STACK - 16 - 40);
    assert_eq!(cpu.rip(), 0xffff_8000_0000_9000);
    assert_eq!(cpu.rflags().into_bits(), 0x447, "TF, IF, NT and RF are cleared");
    assert_eq!(cpu.seg[SS].selector.into_bits(), DATA0, "SS stays at the same level");
}

#[test]
fn trap_gates_leave_the_interrupt_flag() {
    for (kind, expected) in [(INTERRUPT, 2), (TRAP, 0x202)] {
        let mut board = long(0);
        board.gate(UD, CODE0, HANDLER, kind, 0);
        flags(&mut board, 0x202);
        board.cpu.deliver_exception(Exception::UNDEFINED).unwrap();
        assert_eq!(board.cpu.rflags().into_bits(), expected);
    }
}

#[test]
fn a_change_of_level_takes_the_stack_of_the_tss() {
    let mut board = long(3);
    board.gate(GP, CODE0, HANDLER, INTERRUPT, 0);
    board.cpu.deliver_exception(Exception::gp(0x1234)).unwrap();
    let frame: [u64; 6] = board.words(INNER - 48, 8);
    assert_eq!(frame, [0x1234, 0x8000, CODE3.into(), 0x1_0002, STACK, DATA3.into()]);
    let cpu = &board.cpu;
    assert_eq!((cpu.regs[RSP], cpu.cpl), (INNER - 48, 0));
    assert_eq!(cpu.seg[SS].selector.into_bits(), 0, "SS becomes null with the RPL of the level");
}

#[test]
fn an_interrupt_stack_is_taken_at_any_level() {
    for cpl in [0, 3] {
        let mut board = long(cpl);
        board.gate(0x40, CODE0, HANDLER, INTERRUPT, 5);
        board.cpu.deliver_interrupt(0x40).unwrap();
        assert_eq!(board.cpu.regs[RSP], INNER + 0x5000 - 40);
        assert_eq!(board.peek(INNER + 0x5000 - 16), STACK);
        assert_eq!(board.cpu.cpl, 0);
    }
}

#[test]
fn iretq_undoes_an_interrupt() {
    let mut board = long(3);
    board.gate(0x40, CODE0, HANDLER, INTERRUPT, 1);
    flags(&mut board, 0x0a97);
    let before = (board.cpu.regs, board.cpu.seg, board.cpu.rflags());
    board.cpu.deliver_interrupt(0x40).unwrap();
    assert_eq!(board.execute(&[0x48, 0xcf]), Ok(Flow::Jump));
    // The descriptors in memory are those of `flat`, but for the granularity of the limit, which is the same.
    assert_eq!((board.cpu.regs, board.cpu.rflags()), (before.0, before.2));
    assert_eq!(board.cpu.seg[CS].selector, before.1[CS].selector);
    assert_eq!(board.cpu.seg[SS].selector, before.1[SS].selector);
    assert_eq!(board.cpu.cpl, 3);
}

/// Delivers an interrupt with vector 40h that fails; gives the error code of the exception it becomes.
fn failing_interrupt(board: &mut Board, becomes: Vector) -> u16 {
    board.gate(becomes as u8, CODE0, HANDLER, INTERRUPT, 7);
    board.cpu.deliver_interrupt(0x40).unwrap();
    assert_eq!(board.cpu.rip(), HANDLER, "{becomes:?}");
    board.peek(board.cpu.regs[RSP]) as u16
}

#[test]
fn error_codes_name_the_gate_or_the_segment_with_ext() {
    let gate_code = 0x40 << 3 | 2 | 1;
    let mut board = long(0);
    assert_eq!(failing_interrupt(&mut board, Vector::GeneralProtection), gate_code, "no gate's type");
    let mut board = long(0);
    board.gate(0x40, CODE0, HANDLER, INTERRUPT & !0x80, 0);
    assert_eq!(failing_interrupt(&mut board, Vector::SegmentNotPresent), gate_code, "not present");
    let mut board = long(0);
    board.gate(0x40, CODE0, HANDLER, INTERRUPT, 0);
    board.cpu.idtr.limit = 0x40f - 1;
    assert_eq!(failing_interrupt(&mut board, Vector::GeneralProtection), gate_code, "beyond the limit");
    for (selector, vector, code) in [
        (3, Vector::GeneralProtection, 1),
        (DATA0, Vector::GeneralProtection, DATA0 | 1),
        (CODE16, Vector::GeneralProtection, CODE16 | 1),
        (ABSENT_CODE | 3, Vector::SegmentNotPresent, ABSENT_CODE | 1),
        (0x80, Vector::GeneralProtection, 0x81),
        (4, Vector::GeneralProtection, 5),
    ] {
        let mut board = long(0);
        board.cpu.ldtr.attributes = Attributes::new();
        board.gate(0x40, selector, HANDLER, INTERRUPT, 0);
        assert_eq!(failing_interrupt(&mut board, vector), code, "selector {selector:x}");
    }
    let mut board = long(0);
    board.gate(0x40, CODE0, 1 << 47, INTERRUPT, 0);
    assert_eq!(failing_interrupt(&mut board, Vector::GeneralProtection), 1, "target not canonical");
    let mut board = long(0);
    board.gate(0x40, CODE0, HANDLER, INTERRUPT, 1);
    board.poke(TSS + 0x24, &[1 << 47]);
    assert_eq!(failing_interrupt(&mut board, Vector::Stack), 1, "stack not canonical");
    let mut board = long(0);
    board.gate(0x40, CODE0, HANDLER, INTERRUPT, 1);
    board.cpu.tr.limit = 0x2a;
    board.gate(Vector::InvalidTss as u8, CODE0, HANDLER, INTERRUPT, 0);
    board.cpu.deliver_interrupt(0x40).unwrap();
    assert_eq!(board.peek(board.cpu.regs[RSP]), u64::from(TASK | 1), "TSS too short");
}

#[test]
fn software_interrupts_check_the_gate_and_leave_ext_clear() {
    let mut board = long(3);
    board.gate(0x40, CODE0, HANDLER, INTERRUPT, 0);
    assert_eq!(board.execute(&[0xcd, 0x40]), Err(Exception::gp(0x40 << 3 | 2)));
    assert_eq!(board.execute(&[0xcd, 0x41]), Err(Exception::gp(0x41 << 3 | 2)));
    board.gate(0x42, CODE0, HANDLER, TRAP3 & !0x80, 0);
    assert_eq!(board.execute(&[0xcd, 0x42]), Err(Exception::coded(Vector::SegmentNotPresent, 0x42 << 3 | 2)));
    board.gate(3, CODE0, HANDLER, TRAP3, 0);
    assert_eq!(board.execute(&[0xcc]), Ok(Flow::Jump));
    assert_eq!(board.peek(INNER - 40), 0x8001, "the next instruction is pushed");
    assert_eq!(board.peek(INNER - 24) & 1 << 16, 0, "without RF");
    // INT1 passes a gate for CPL 0, and its faults are from outside.
    let mut board = long(3);
    assert_eq!(board.execute(&[0xf1]), Err(Exception::gp(1 << 3 | 2 | 1)));
    board.gate(1, CODE0, HANDLER, INTERRUPT, 0);
    assert_eq!(board.execute(&[0xf1]), Ok(Flow::Jump));
    assert_eq!(board.cpu.dr[6] & 0xe00f, 0, "DR6 says nothing of it");
}

#[test]
fn a_page_fault_sets_cr2_on_delivery() {
    let mut board = long(0);
    board.gate(14, CODE0, HANDLER, INTERRUPT, 0);
    // mov al, [0x40000000]: not mapped.
    let fault = board.execute(&[0x8a, 0x04, 0x25, 0, 0, 0, 0x40]).unwrap_err();
    assert_eq!(fault, Exception::page_fault(PageFaultCode::new()));
    assert_eq!(board.cpu.cr2, 0);
    board.cpu.deliver_exception(fault).unwrap();
    assert_eq!(board.cpu.cr2, 0x4000_0000);
}

#[test]
fn faults_while_delivering_become_double_and_triple_faults() {
    // #GP whose gate is not present: #NP, which is contributory too.
    let mut board = long(0);
    board.gate(8, CODE0, HANDLER, INTERRUPT, 0);
    board.cpu.deliver_exception(Exception::GP0).unwrap();
    assert_eq!(board.words::<2>(board.cpu.regs[RSP], 8), [0, 0x8000], "the code is zero, RIP that of the fault");
    // #UD is benign: the #GP of its missing gate is delivered as such.
    let mut board = long(0);
    board.gate(GP, CODE0, HANDLER, INTERRUPT, 0);
    board.cpu.deliver_exception(Exception::UNDEFINED).unwrap();
    assert_eq!(board.peek(board.cpu.regs[RSP]), u64::from(UD) << 3 | 3);
    // A page fault that cannot push its frame.
    let mut board = long(0);
    board.gate(14, CODE0, HANDLER, INTERRUPT, 0);
    board.gate(8, CODE0, HANDLER, INTERRUPT, 1);
    board.cpu.regs[RSP] = 0x4000_0000;
    board.cpu.fault_address = 0x1234;
    board.cpu.deliver_exception(Exception::page_fault(PageFaultCode::new())).unwrap();
    assert_eq!(board.cpu.regs[RSP], INNER + 0x1000 - 48);
    assert_eq!(board.cpu.cr2, 0x1234, "the first fault's address: the second was never delivered");
    // Nothing to deliver with.
    let mut board = long(0);
    board.cpu.idtr.limit = 0;
    let shut_down = board.cpu.deliver_exception(Exception::DIVIDE).unwrap_err();
    assert_eq!((shut_down.first, shut_down.rip, shut_down.cs), (Exception::DIVIDE, 0x8000, CODE0));
}

#[test]
fn an_nmi_blocks_others_until_iret() {
    let mut board = long(0);
    board.gate(2, CODE0, HANDLER, INTERRUPT, 0);
    board.cpu.deliver_nmi().unwrap();
    assert!(board.cpu.nmi_blocked);
    assert_eq!(board.execute(&[0x48, 0xcf]), Ok(Flow::Jump));
    assert!(!board.cpu.nmi_blocked);
}

#[test]
fn protected_mode_frames_are_as_wide_as_the_gate() {
    let mut board = protected(0);
    board.gate(GP, CODE0, HANDLER, INTERRUPT, 0);
    board.cpu.deliver_exception(Exception::gp(0x56)).unwrap();
    assert_eq!(board.words(STACK - 16, 4), [0x56, 0x8000, CODE0.into(), 0x1_0002]);
    assert_eq!(board.cpu.regs[RSP], STACK - 16);
    let mut board = protected(0);
    board.gate(GP, CODE0, 0xdead_9000, INTERRUPT16, 0);
    board.cpu.deliver_exception(Exception::gp(0x56)).unwrap();
    assert_eq!(board.words(STACK - 8, 2), [0x56, 0x8000, CODE0.into(), 2]);
    assert_eq!((board.cpu.rip(), board.cpu.regs[RSP]), (HANDLER, STACK - 8), "16 bits of the offset");
}

#[test]
fn protected_mode_changes_stacks_with_the_level() {
    let mut board = protected(3);
    board.gate(0x80, CODE0, HANDLER, TRAP3, 0);
    flags(&mut board, 0x202);
    assert_eq!(board.execute(&[0xcd, 0x80]), Ok(Flow::Jump));
    assert_eq!(board.words(INNER - 20, 4), [0x8002, CODE3.into(), 0x202, STACK, DATA3.into()]);
    assert_eq!((board.cpu.cpl, board.cpu.seg[SS].selector.into_bits()), (0, DATA0));
    assert_eq!(board.execute(&[0xcf]), Ok(Flow::Jump));
    let cpu = &board.cpu;
    assert_eq!((cpu.cpl, cpu.rip(), cpu.regs[RSP]), (3, 0x8002, STACK));
    assert_eq!(cpu.rflags().into_bits(), 0x202);
    // A conforming handler runs at the level of what it interrupts.
    let mut board = protected(3);
    board.gate(0x80, CONFORMING, HANDLER, TRAP3, 0);
    assert_eq!(board.execute(&[0xcd, 0x80]), Ok(Flow::Jump));
    assert_eq!((board.cpu.cpl, board.cpu.regs[RSP]), (3, STACK - 12));
    assert_eq!(board.cpu.seg[CS].selector.into_bits(), CONFORMING | 3);
}

#[test]
fn a_16_bit_tss_has_its_own_layout() {
    let mut board = protected(3);
    board.cpu.tr.attributes.set_kind(3);
    board.cpu.tr.limit = 0x2b;
    board.poke(TSS, &[u64::from(DATA0) << 32 | 0x4000 << 16]);
    board.gate(0x80, CODE0, HANDLER, TRAP3, 0);
    assert_eq!(board.execute(&[0xcd, 0x80]), Ok(Flow::Jump));
    assert_eq!(board.cpu.regs[RSP], 0x4000 - 20);
}

#[test]
fn bad_stacks_in_the_tss_are_invalid_tss_or_stack_faults() {
    let mut board = protected(3);
    board.gate(0x80, CODE0, HANDLER, TRAP3, 0);
    for (stack, vector, code) in [
        (0, Vector::InvalidTss, 0),
        (DATA3, Vector::InvalidTss, DATA3 & !3),
        (DATA0 | 1, Vector::InvalidTss, DATA0),
        (CODE0, Vector::InvalidTss, CODE0),
        (0x80, Vector::InvalidTss, 0x80),
        (ABSENT_DATA, Vector::Stack, ABSENT_DATA),
    ] {
        board.poke(TSS + 4, &[u64::from(stack) << 32 | INNER]);
        assert_eq!(board.execute(&[0xcd, 0x80]), Err(Exception::coded(vector, code)), "{stack:x}");
    }
    board.cpu.tr.limit = 10;
    assert_eq!(board.execute(&[0xcd, 0x80]), Err(Exception::coded(Vector::InvalidTss, TASK)));
    // The new stack is too small for the frame: #SS with its selector.
    let mut board = protected(3);
    board.gate(0x80, CODE0, HANDLER, TRAP3, 0);
    board.poke(GDT + u64::from(FREE), &[descriptor(0, 0xfff, 0x93, 4)]);
    board.poke(TSS + 4, &[u64::from(FREE) << 32 | 0x1008]);
    assert_eq!(board.execute(&[0xcd, 0x80]), Err(Exception::coded(Vector::Stack, FREE)));
    assert_eq!((board.cpu.cpl, board.cpu.regs[RSP]), (3, STACK), "nothing has changed");
}

#[test]
fn real_mode_uses_the_vector_table() {
    let mut board = board("max");
    board.cpu.reset();
    board.cpu.seg = [Segment::real_mode(0x100); 6];
    board.cpu.regs[RSP] = 0xdead_0002;
    board.cpu.regs[RIP] = 0x50;
    board.cpu.update_mode();
    board.cpu.set_rflags(0x4_0302, u64::MAX);
    board.poke(0x21 * 4, &[0x2000_0123]);
    assert_eq!(board.execute(&[0xcd, 0x21]), Ok(Flow::Jump));
    let cpu = &board.cpu;
    assert_eq!((cpu.seg[CS].selector.into_bits(), cpu.seg[CS].base, cpu.rip()), (0x2000, 0x2_0000, 0x123));
    assert_eq!(cpu.regs[RSP], 0xdead_fffc, "SP wraps, the rest of RSP stays");
    assert_eq!(cpu.rflags().into_bits(), 2, "IF, TF, AC and RF are cleared");
    assert_eq!(board.peek(0x1000) & 0xffff, 0x302);
    assert_eq!(board.words(0x1_0ffc, 2), [0x52, 0x100]);
    assert_eq!(board.execute(&[0xcf]), Ok(Flow::Jump));
    assert_eq!((board.cpu.seg[CS].base, board.cpu.rip(), board.cpu.regs[RSP]), (0x1000, 0x52, 0xdead_0002));
    assert_eq!(board.cpu.rflags().into_bits(), 0x302);
    // Beyond the table's limit.
    board.cpu.idtr.limit = 0x83;
    board.poke(13 * 4, &[0x3000_0456]);
    board.cpu.regs[RSP] = 0x100;
    board.cpu.deliver_interrupt(0x21).unwrap();
    assert_eq!((board.cpu.rip(), board.cpu.regs[RSP]), (0x456, 0xfa), "#GP, without an error code");
}

#[test]
fn virtual_8086_mode_goes_to_a_handler_and_back() {
    let mut board = protected(0);
    board.gate(GP, CODE0, HANDLER, INTERRUPT, 0);
    // IRETD with VM set: EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS.
    let image = [0x10u32, 0x800, 0x2_0202, 0xfff0, 0x900, 0xa00, 0xb00, 0xc00, 0xd00];
    let bytes: Vec<u8> = image.iter().flat_map(|word| word.to_le_bytes()).collect();
    board.poke_bytes(STACK - 36, &bytes);
    board.cpu.regs[RSP] = STACK - 36;
    assert_eq!(board.execute(&[0xcf]), Ok(Flow::Jump));
    let cpu = &board.cpu;
    assert_eq!((cpu.cpl, cpu.rip(), cpu.regs[RSP], cpu.code_size), (3, 0x10, 0xfff0, crate::state::CodeSize::Bits16));
    let bases: Vec<u64> = cpu.seg.iter().map(|segment| segment.base).collect();
    assert_eq!(bases, [0xa000, 0x8000, 0x9000, 0xb000, 0xc000, 0xd000]);
    assert!(cpu.seg.iter().all(|segment| segment.limit == 0xffff && segment.attributes.dpl() == 3));
    // INT n with IOPL 0 is #GP(0) …
    assert_eq!(board.execute(&[0xcd, 0x21]), Err(Exception::GP0));
    board.cpu.deliver_exception(Exception::GP0).unwrap();
    assert_eq!(
        board.words(INNER - 40, 4),
        [0, 0x10, 0x800, 0x3_0202, 0xfff0, 0x900, 0xa00, 0xb00, 0xc00, 0xd00],
        "with RF set"
    );
    let cpu = &board.cpu;
    assert!(!cpu.system_flags.virtual_8086());
    assert_eq!((cpu.cpl, cpu.regs[RSP], cpu.rip()), (0, INNER - 40, HANDLER));
    assert!([ES, DS, FS, GS].iter().all(|&register| cpu.seg[register] == Segment::default()), "null in the handler");
    // … and the handler may return after removing the error code.
    board.cpu.regs[RSP] += 4;
    assert_eq!(board.execute(&[0xcf]), Ok(Flow::Jump));
    assert_eq!((board.cpu.cpl, board.cpu.rip(), board.cpu.seg[GS].base), (3, 0x10, 0xd000));
    assert!(board.cpu.system_flags.resume());
}

#[test]
fn virtual_8086_mode_needs_a_handler_at_level_0() {
    let mut board = protected(3);
    flags(&mut board, 0x2_3002);
    board.cpu.seg =
        [Segment { attributes: flat(0, 3, 3, false).attributes.with_big(false), ..Segment::real_mode(0) }; 6];
    board.cpu.update_mode();
    board.gate(0x30, CONFORMING, HANDLER, TRAP3, 0);
    assert_eq!(board.execute(&[0xcd, 0x30]), Err(Exception::gp(CONFORMING)));
    board.gate(0x30, CODE0, HANDLER, INTERRUPT, 0);
    assert_eq!(board.execute(&[0xcd, 0x30]), Err(Exception::gp(0x30 << 3 | 2)), "the gate's DPL");
    board.gate(0x30, CODE0, HANDLER, TRAP3, 0);
    assert_eq!(board.execute(&[0xcd, 0x30]), Ok(Flow::Jump));
}
