//! Vector, x87 and XSAVE instructions on a whole vCPU: checks, memory operands, faults and partial progress.

use crate::state::{CodeSize, RAX, RCX, RDI, RDX, RIP};
use crate::testing::{Board, TABLES, board};
use x86::{Exception, Vector, Xcr0};

const AT: u64 = 0x10_0000;
/// A page that is present but cannot be written, and one that is not present, right behind `AT`'s.
const READ_ONLY: u64 = AT + 0x1000;
const ABSENT: u64 = AT + 0x2000;

const GP: Exception = Exception::GP0;
const UD: Exception = Exception::UNDEFINED;
const NM: Exception = Exception::NO_FPU;

/// 64-bit mode at CPL 3 with SSE and AVX enabled, 4 KiB pages, and the two special pages; RAX points to `AT`.
fn machine() -> Board {
    let mut board = board("max");
    board.long_mode(3);
    let table = TABLES + 0x3000;
    board.poke(TABLES + 0x2000, &[table | 7]);
    let entries: Vec<u64> = (0..512u64).map(|i| i << 12 | 7).collect();
    board.poke(table, &entries);
    board.poke(table + 8 * (READ_ONLY >> 12), &[READ_ONLY | 5]);
    board.poke(table + 8 * (ABSENT >> 12), &[0]);
    let cpu = &mut board.cpu;
    cpu.mmu.flush_all();
    cpu.cr4 = cpu.cr4.with_os_fxsr(true).with_os_simd_exceptions(true).with_os_xsave(true);
    cpu.xcr0 = Xcr0::from_bits(7);
    cpu.vector.init_x87();
    cpu.regs[RAX] = AT;
    board
}

fn peek<const N: usize>(board: &mut Board, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    board.cpu.load_bytes(crate::state::DS, at, &mut bytes).unwrap();
    bytes
}

fn is_page_fault(result: Result<crate::exec::Flow, Exception>) -> bool {
    result.is_err_and(|exception| exception.vector == Vector::PageFault)
}

const MOVUPS_LOAD: [u8; 3] = [0x0f, 0x10, 0x08];
const MOVAPS_STORE: [u8; 3] = [0x0f, 0x29, 0x08];
const PADDB_MEMORY: [u8; 4] = [0x66, 0x0f, 0xfc, 0x08];
const VADDPS_MEMORY: [u8; 4] = [0xc5, 0xf4, 0x58, 0x08];
const DIVSD: [u8; 4] = [0xf2, 0x0f, 0x5e, 0xca];

#[test]
fn loads_computes_and_stores() {
    let mut board = machine();
    board.poke(AT, &[0x0101_0101_0101_0101, 2]);
    board.execute(&MOVUPS_LOAD).unwrap();
    board.execute(&PADDB_MEMORY).unwrap();
    assert_eq!(board.cpu.vector.xmm(1), 4 << 64 | 0x0202_0202_0202_0202);
    board.cpu.regs[RAX] = AT + 32;
    board.execute(&MOVAPS_STORE).unwrap();
    assert_eq!(u128::from_le_bytes(peek(&mut board, AT + 32)), board.cpu.vector.xmm(1));
    // vaddps ymm1, ymm1, [rax] needs no alignment.
    board.cpu.regs[RAX] = AT + 1;
    board.execute(&VADDPS_MEMORY).unwrap();
}

#[test]
fn misaligned_operands_come_before_page_faults() {
    let mut board = machine();
    for at in [AT + 8, ABSENT + 8] {
        board.cpu.regs[RAX] = at;
        assert_eq!(board.execute(&MOVAPS_STORE), Err(GP));
        assert_eq!(board.execute(&PADDB_MEMORY), Err(GP));
    }
    board.cpu.regs[RAX] = ABSENT;
    assert!(is_page_fault(board.execute(&PADDB_MEMORY)));
    assert_eq!(board.cpu.fault_address, ABSENT);
}

#[test]
fn control_registers_are_checked() {
    let fld1 = [0xd9, 0xe8].as_slice();
    let paddb_mmx = [0x0f, 0xfc, 0xca].as_slice();
    let andn = [0xc4, 0xe2, 0x70, 0xf2, 0xc2].as_slice();
    let ldmxcsr = [0x0f, 0xae, 0x10].as_slice();
    let fxsave = [0x0f, 0xae, 0x00].as_slice();
    let xgetbv = [0x0f, 0x01, 0xd0].as_slice();
    let all = [&MOVUPS_LOAD[..], &DIVSD, &VADDPS_MEMORY, fld1, paddb_mmx, ldmxcsr, fxsave];
    for bytes in all {
        machine().execute(bytes).unwrap_or_else(|e| panic!("{bytes:x?}: {e:?}"));
        let mut board = machine();
        board.cpu.cr0 = board.cpu.cr0.with_task_switched(true);
        assert_eq!(board.execute(bytes), Err(NM), "TS {bytes:x?}");
    }
    let expect = |cpu: fn(&mut crate::Cpu), bytes: &[u8], expected: Result<(), Exception>| {
        let mut board = machine();
        cpu(&mut board.cpu);
        assert_eq!(board.execute(bytes).map(drop), expected, "{bytes:x?}");
    };
    let emulate: fn(&mut crate::Cpu) = |cpu| cpu.cr0 = cpu.cr0.with_emulation(true).with_task_switched(true);
    for (bytes, expected) in [
        (&MOVUPS_LOAD[..], Err(UD)),
        (&DIVSD, Err(UD)),
        (paddb_mmx, Err(UD)),
        (fld1, Err(NM)),
        (&VADDPS_MEMORY, Err(NM)),
    ] {
        expect(emulate, bytes, expected);
    }
    let no_fxsr: fn(&mut crate::Cpu) = |cpu| cpu.cr4 = cpu.cr4.with_os_fxsr(false);
    for (bytes, expected) in
        [(&MOVUPS_LOAD[..], Err(UD)), (paddb_mmx, Ok(())), (&VADDPS_MEMORY, Ok(())), (fxsave, Ok(()))]
    {
        expect(no_fxsr, bytes, expected);
    }
    let no_xsave: fn(&mut crate::Cpu) = |cpu| cpu.cr4 = cpu.cr4.with_os_xsave(false);
    for (bytes, expected) in [(&VADDPS_MEMORY[..], Err(UD)), (xgetbv, Err(UD)), (andn, Ok(())), (&DIVSD, Ok(()))] {
        expect(no_xsave, bytes, expected);
    }
    expect(|cpu| cpu.xcr0 = Xcr0::from_bits(3), &VADDPS_MEMORY, Err(UD));
    // FWAIT wants MP with TS.
    expect(|cpu| cpu.cr0 = cpu.cr0.with_task_switched(true).with_monitor(false), &[0x9b], Ok(()));
    expect(|cpu| cpu.cr0 = cpu.cr0.with_task_switched(true).with_monitor(true), &[0x9b], Err(NM));
}

#[test]
fn unmasked_simd_exceptions() {
    let mut board = machine();
    board.cpu.vector.mxcsr = 0x1f80 & !0x200;
    board.cpu.vector.set_xmm(1, 1.0f64.to_bits().into());
    assert_eq!(board.execute(&DIVSD), Err(Exception::plain(Vector::Simd)));
    assert_eq!(board.cpu.vector.mxcsr, 0x1d84);
    board.cpu.cr4 = board.cpu.cr4.with_os_simd_exceptions(false);
    assert_eq!(board.execute(&DIVSD), Err(UD));
    assert_eq!(board.cpu.vector.xmm(1), 1.0f64.to_bits().into());
}

#[test]
fn x87_pointers_exceptions_and_environment() {
    let mut board = machine();
    board.poke(AT, &[0x3ff8_0000_0000_0000]);
    // fld qword [rax]; fchs; fstp dword [rax+8]
    let start = board.cpu.regs[RIP];
    board.execute(&[0xdd, 0x00]).unwrap();
    assert_eq!(board.cpu.vector.x87_pointers(), (0x500, start, AT));
    board.execute(&[0xd9, 0xe0]).unwrap();
    assert_eq!(board.cpu.vector.x87_pointers(), (0x1e0, start + 2, AT));
    board.execute(&[0xd9, 0x58, 0x08]).unwrap();
    assert_eq!(board.cpu.vector.x87_pointers(), (0x158, start + 4, AT + 8));
    assert_eq!(peek(&mut board, AT + 8), (-1.5f32).to_le_bytes());
    // fldcw [rax]: control, the pointers stay; unmasks the division by zero.
    board.poke(AT, &[0x37b]);
    board.execute(&[0xd9, 0x28]).unwrap();
    assert_eq!((board.cpu.vector.fcw(), board.cpu.vector.fop()), (0x37b, 0x158));
    // fld1; fldz; fdivp st1, st0; then any waiting instruction raises #MF, and the FN… forms do not.
    for bytes in [[0xd9, 0xe8], [0xd9, 0xee], [0xde, 0xf9]] {
        board.execute(&bytes).unwrap();
    }
    let mf = Err(Exception::plain(Vector::X87));
    let fault = board.cpu.vector.x87_pointers();
    for bytes in [&[0xd9, 0xe8][..], &[0x9b], &[0x0f, 0xfc, 0xca], &[0xd9, 0x20]] {
        assert_eq!(board.execute(bytes), mf, "{bytes:x?}");
    }
    assert_eq!(board.cpu.vector.x87_pointers(), fault);
    // fnstsw ax; fnstenv [rax]: the exceptions are masked afterwards.
    board.execute(&[0xdf, 0xe0]).unwrap();
    assert_eq!(board.cpu.regs[RAX] & 0xffff, 0xb084);
    board.cpu.regs[RAX] = AT;
    board.execute(&[0xd9, 0x30]).unwrap();
    let environment: [u8; 28] = peek(&mut board, AT);
    assert_eq!(environment[..4], [0x7b, 0x03, 0xff, 0xff]);
    assert_eq!(environment[12..16], (fault.1 as u32).to_le_bytes());
    assert_eq!(u16::from_le_bytes([environment[18], environment[19]]), 0x6f9);
    board.execute(&[0x9b]).unwrap();
    // fldenv [rax]: pending again; fnclex ends it.
    board.execute(&[0xd9, 0x20]).unwrap();
    assert_eq!(board.execute(&[0x9b]), mf);
    board.execute(&[0xdb, 0xe2]).unwrap();
    board.execute(&[0x9b]).unwrap();
}

#[test]
fn x87_state_is_saved_and_restored_by_all_means() {
    let mut board = machine();
    for bytes in [[0xd9, 0xe8], [0xd9, 0xeb], [0xd9, 0xec]] {
        board.execute(&bytes).unwrap();
    }
    let before = board.cpu.vector.clone();
    // fnsave [rax] empties the unit; frstor [rax].
    board.execute(&[0xdd, 0x30]).unwrap();
    assert_eq!((board.cpu.vector.ftw(), board.cpu.vector.fcw()), (0, 0x37f));
    board.execute(&[0xdd, 0x20]).unwrap();
    assert_eq!(board.cpu.vector.x87[32..160], before.x87[32..160]);
    assert_eq!((board.cpu.vector.fsw(), board.cpu.vector.ftw()), (before.fsw(), before.ftw()));
    // fxsave64; fninit; fxrstor64.
    board.cpu.vector.set_xmm(15, 77);
    board.execute(&[0x48, 0x0f, 0xae, 0x00]).unwrap();
    board.execute(&[0xdb, 0xe3]).unwrap();
    board.cpu.vector.set_xmm(15, 0);
    board.execute(&[0x48, 0x0f, 0xae, 0x08]).unwrap();
    assert_eq!(board.cpu.vector.x87[..24][..5], before.x87[..24][..5]);
    assert_eq!(board.cpu.vector.xmm(15), 77);
    let mask: [u8; 4] = peek(&mut board, AT + 28);
    assert_eq!(u32::from_le_bytes(mask), host::vector::mxcsr_mask());
    // Misaligned, and reserved bits in MXCSR.
    board.cpu.regs[RAX] = AT + 8;
    assert_eq!(board.execute(&[0x0f, 0xae, 0x00]), Err(GP));
    board.cpu.regs[RAX] = AT;
    board.poke(AT + 24, &[0x8000_0000]);
    assert_eq!(board.execute(&[0x0f, 0xae, 0x08]), Err(GP));
    assert_eq!(board.execute(&[0x0f, 0xae, 0x50, 0x18]), Err(GP), "ldmxcsr");
}

#[test]
fn fxsave_in_32_bit_code_has_eight_registers_and_selectors() {
    let mut board = machine();
    board.protected_mode();
    board.cpu.cr4 = board.cpu.cr4.with_os_fxsr(true);
    board.cpu.vector.init_x87();
    board.cpu.regs[RAX] = AT;
    assert_eq!(board.cpu.code_size, CodeSize::Bits32);
    board.poke(AT, &[u64::MAX; 64]);
    for i in 0..16 {
        board.cpu.vector.set_xmm(i, 3);
    }
    // fld dword [eax+4]; fxsave [eax]
    let eip = board.cpu.regs[RIP];
    board.execute(&[0xd9, 0x40, 0x04]).unwrap();
    board.execute(&[0x0f, 0xae, 0x00]).unwrap();
    let image: [u8; 512] = peek(&mut board, AT);
    assert_eq!(image[8..16], (8 << 32 | eip).to_le_bytes());
    assert_eq!(image[16..24], (0x10 << 32 | (AT + 4)).to_le_bytes());
    assert_eq!((image[160 + 7 * 16], image[160 + 8 * 16]), (3, 0xff));
}

fn set_mask(board: &mut Board, mask: u64) {
    board.cpu.regs[RDX] = mask >> 32;
    let low = mask & 0xffff_ffff;
    // The XSAVE instructions take their mask in EDX:EAX, so the area is addressed by RDI.
    board.cpu.regs[RAX] = low;
    board.cpu.regs[RDI] = AT;
}

const XSAVE: [u8; 4] = [0x48, 0x0f, 0xae, 0x27];
const XRSTOR: [u8; 4] = [0x48, 0x0f, 0xae, 0x2f];
const XSAVEC: [u8; 4] = [0x48, 0x0f, 0xc7, 0x27];
const XSAVEOPT: [u8; 4] = [0x48, 0x0f, 0xae, 0x37];

#[test]
fn xsave_and_xrstor_in_both_formats() {
    for save in [XSAVE, XSAVEC, XSAVEOPT] {
        let mut board = machine();
        board.execute(&[0xd9, 0xeb]).unwrap();
        board.cpu.vector.mxcsr = 0x1fa0;
        for i in 0..16 {
            board.cpu.vector.ymm[i] = [i as u64 + 1, 2, 3, 4 + i as u64];
        }
        let before = board.cpu.vector.clone();
        set_mask(&mut board, 7);
        board.execute(&save).unwrap();
        let header: [u8; 16] = peek(&mut board, AT + 512);
        assert_eq!(header[0], 7);
        assert_eq!(header[8..], if save == XSAVEC { (1u64 << 63 | 7).to_le_bytes() } else { [0; 8] });
        // Restoring nothing but what is absent initialises; restoring the rest brings it back.
        let cpu = &mut board.cpu;
        cpu.vector.init_x87();
        cpu.vector.ymm = [[9; 4]; 16];
        cpu.vector.mxcsr = 0x1f80;
        board.execute(&XRSTOR).unwrap();
        assert_eq!(board.cpu.vector.ymm, before.ymm);
        assert_eq!(board.cpu.vector.mxcsr, 0x1fa0);
        assert_eq!(board.cpu.vector.x87[32..48], before.x87[32..48]);
        assert_eq!(board.cpu.vector.x87_pointers(), before.x87_pointers());
    }
}

#[test]
fn xrstor_initialises_what_is_not_present() {
    let mut board = machine();
    set_mask(&mut board, 7);
    board.cpu.vector.ymm = [[9; 4]; 16];
    board.execute(&[0xd9, 0xeb]).unwrap();
    // An empty header, standard format: MXCSR is loaded all the same.
    board.poke(AT + 24, &[0x1f00]);
    board.execute(&XRSTOR).unwrap();
    assert_eq!(board.cpu.vector.ymm, [[0; 4]; 16]);
    assert_eq!((board.cpu.vector.mxcsr, board.cpu.vector.fcw(), board.cpu.vector.ftw()), (0x1f00, 0x37f, 0));
    // Nothing is in use: XGETBV with ECX = 1 says so, and XSAVEOPT writes no component.
    board.cpu.regs[RCX] = 1;
    board.execute(&[0x0f, 0x01, 0xd0]).unwrap();
    assert_eq!(board.cpu.regs[RAX], 0);
    set_mask(&mut board, 7);
    board.poke(AT + 160, &[5]);
    board.execute(&XSAVEOPT).unwrap();
    assert_eq!(peek(&mut board, AT + 160), 5u64.to_le_bytes());
    board.execute(&XSAVE).unwrap();
    assert_eq!(peek(&mut board, AT + 160), 0u64.to_le_bytes());
    // A bad header.
    board.poke(AT + 512, &[8]);
    assert_eq!(board.execute(&XRSTOR), Err(GP));
}

#[test]
fn pkru_travels_with_xsave_and_reaches_the_mmu() {
    let mut board = machine();
    board.cpu.xcr0 = Xcr0::from_bits(0x207);
    board.cpu.pkru = 0x5500;
    set_mask(&mut board, 0x200);
    board.execute(&XSAVE).unwrap();
    assert_eq!(peek(&mut board, AT + 2688), 0x5500u64.to_le_bytes());
    board.cpu.pkru = 0;
    board.execute(&XRSTOR).unwrap();
    assert_eq!((board.cpu.pkru, board.cpu.mmu.registers().pkru), (0x5500, 0x5500));
}

#[test]
fn xsetbv_is_checked() {
    let xsetbv = [0x0f, 0x01, 0xd1];
    let mut board = machine();
    board.cpu.regs[RAX] = 7;
    assert_eq!(board.execute(&xsetbv), Err(GP), "CPL 3");
    board.long_mode(0);
    board.cpu.cr4 = board.cpu.cr4.with_os_xsave(true);
    for (value, ok) in [(7, true), (3, true), (1, true), (5, false), (6, false), (8 | 7, false)] {
        (board.cpu.regs[RAX], board.cpu.regs[RDX], board.cpu.regs[RCX]) = (value, 0, 0);
        assert_eq!(board.execute(&xsetbv).is_ok(), ok, "{value:x}");
    }
    assert_eq!(board.cpu.xcr0.into_bits(), 1);
    board.cpu.regs[RCX] = 1;
    assert_eq!(board.execute(&xsetbv), Err(GP));
}

#[test]
fn stores_that_cannot_be_made_change_nothing() {
    let mut board = machine();
    board.cpu.regs[RAX] = READ_ONLY;
    // fstp dword [rax]: the stack stays. vcvtps2ph [rax], xmm1, 0: so does MXCSR.
    board.execute(&[0xd9, 0xeb]).unwrap();
    board.cpu.vector.set_xmm(1, 0x3f80_0001);
    let before = board.cpu.vector.clone();
    assert!(is_page_fault(board.execute(&[0xd9, 0x18])));
    assert!(is_page_fault(board.execute(&[0xc4, 0xe3, 0x79, 0x1d, 0x08, 0x00])));
    assert_eq!((board.cpu.vector.ftw(), board.cpu.vector.fsw()), (before.ftw(), before.fsw()));
    assert_eq!(board.cpu.vector.mxcsr, before.mxcsr);
    // An unmasked invalid operation (an empty stack) stores nothing and does not pop.
    board.cpu.regs[RAX] = AT;
    board.poke(AT, &[0x1234]);
    board.cpu.vector.init_x87();
    board.cpu.vector.set_fcw(0x37e);
    board.execute(&[0xd9, 0x18]).unwrap();
    assert!(board.cpu.vector.x87_pending());
    assert_eq!(peek(&mut board, AT), 0x1234u64.to_le_bytes());
    // Masked, it stores the default NaN.
    board.cpu.vector.init_x87();
    board.execute(&[0xd9, 0x18]).unwrap();
    assert_eq!(peek(&mut board, AT), [0, 0, 0xc0, 0xff]);
}

#[test]
fn masked_moves_touch_selected_elements_only() {
    let mut board = machine();
    // All but the first eight bytes of the operand are on a page that cannot be written.
    let low = READ_ONLY - 8;
    board.cpu.regs[RAX] = low;
    board.poke(low, &[0x2222_2222_1111_1111]);
    board.cpu.vector.ymm[1] = [1 << 31 | 1 << 63, 0, 0, 0];
    // vmaskmovps ymm2, ymm1, [rax]
    board.execute(&[0xc4, 0xe2, 0x75, 0x2c, 0x10]).unwrap();
    assert_eq!(board.cpu.vector.ymm[2], [0x2222_2222_1111_1111, 0, 0, 0]);
    // vmaskmovps [rax], ymm1, ymm3: the selected elements are writable, the others lie on the read-only page.
    board.cpu.vector.ymm[3] = [0x4444_4444_3333_3333, 5, 6, 7];
    board.cpu.vector.ymm[1] = [1 << 63, 0, 0, 0];
    board.execute(&[0xc4, 0xe2, 0x75, 0x2e, 0x18]).unwrap();
    assert_eq!(peek(&mut board, low), 0x4444_4444_1111_1111u64.to_le_bytes());
    board.cpu.vector.ymm[1] = [1 << 63, 1 << 31, 0, 0];
    board.cpu.vector.ymm[3] = [0x9999_9999_3333_3333, 5, 6, 7];
    assert!(is_page_fault(board.execute(&[0xc4, 0xe2, 0x75, 0x2e, 0x18])));
    assert_eq!(peek(&mut board, low), 0x4444_4444_1111_1111u64.to_le_bytes(), "nothing of a store that faults");
    // maskmovdqu xmm3, xmm1
    board.cpu.regs[RDI] = low;
    board.cpu.vector.set_xmm(1, 0x80 << 8);
    board.execute(&[0x66, 0x0f, 0xf7, 0xd9]).unwrap();
    assert_eq!(peek(&mut board, low), 0x4444_4444_1111_3311u64.to_le_bytes());
    // maskmovq mm1, mm2 makes all x87 registers valid.
    board.cpu.vector.set_st(1, &[0xaa; 10]);
    board.cpu.vector.set_st(2, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    board.execute(&[0x0f, 0xf7, 0xca]).unwrap();
    assert_eq!(peek(&mut board, low), 0x4444_4444_1111_33aau64.to_le_bytes());
    assert_eq!(board.cpu.vector.ftw(), 0xff);
}

#[test]
fn gathers_keep_what_they_have_when_they_fault() {
    let mut board = machine();
    board.poke(AT, &[0x0000_0002_0000_0001, 0x0000_0004_0000_0003]);
    // vpgatherdd xmm1, [rax+xmm2*4], xmm3: the third element is on the absent page.
    let gather = [0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x90];
    let far = ((ABSENT - AT) / 4) as u128;
    board.cpu.vector.set_xmm(2, far << 64 | 3 << 32 | 1);
    board.cpu.vector.ymm[1] = [u64::MAX; 4];
    board.cpu.vector.ymm[3] = [u64::MAX, u64::MAX >> 32 << 31, 7, 7];
    assert!(is_page_fault(board.execute(&gather)));
    assert_eq!(board.cpu.fault_address, ABSENT);
    assert_eq!(board.cpu.vector.ymm[1], [4 << 32 | 2, u64::MAX, u64::MAX, u64::MAX]);
    assert_eq!(board.cpu.vector.ymm[3][0], 0);
    // The index repaired, it goes on with the rest; the fourth was never selected.
    board.cpu.vector.set_xmm(2, 0);
    board.execute(&gather).unwrap();
    assert_eq!(board.cpu.vector.ymm[1], [4 << 32 | 2, 0xffff_ffff_0000_0001, 0, 0]);
    assert_eq!(board.cpu.vector.ymm[3], [0; 4]);
    // The same register twice.
    assert_eq!(board.execute(&[0xc4, 0xe2, 0x71, 0x90, 0x0c, 0x90]), Err(UD));
}

#[test]
fn vector_registers_of_32_bit_code() {
    let mut board = machine();
    let all = [[1u64; 4]; 16];
    board.cpu.vector.ymm = all;
    // vzeroupper in 64-bit code, then vzeroall in 32-bit code, which has eight registers.
    board.execute(&[0xc5, 0xf8, 0x77]).unwrap();
    assert_eq!(board.cpu.vector.ymm, [[1, 1, 0, 0]; 16]);
    board.cpu.seg[crate::state::CS] = crate::testing::flat(0x23, 11, 3, false);
    board.cpu.update_mode();
    board.cpu.vector.ymm = all;
    board.execute(&[0xc5, 0xfc, 0x77]).unwrap();
    assert_eq!((board.cpu.vector.ymm[7], board.cpu.vector.ymm[8]), ([0; 4], [1; 4]));
}

#[test]
fn flags_and_general_registers() {
    let mut board = machine();
    board.cpu.status = x86::Rflags::STATUS;
    board.cpu.vector.set_xmm(1, 1.0f64.to_bits().into());
    // comisd xmm1, xmm2: greater.
    board.execute(&[0x66, 0x0f, 0x2f, 0xca]).unwrap();
    assert_eq!(board.cpu.status & x86::Rflags::STATUS, 0);
    // fld1; fldz; fcomi st0, st1: less.
    board.execute(&[0xd9, 0xe8]).unwrap();
    board.execute(&[0xd9, 0xee]).unwrap();
    board.execute(&[0xdb, 0xf1]).unwrap();
    assert_eq!(board.cpu.status & x86::Rflags::STATUS, 1);
    // pmovmskb esp, xmm1; crc32 rax, qword [rax]; rdrand ecx
    board.cpu.vector.set_xmm(1, u128::MAX);
    board.execute(&[0x66, 0x0f, 0xd7, 0xe1]).unwrap();
    assert_eq!(board.cpu.regs[4], 0xffff);
    board.cpu.regs[RAX] = AT;
    board.execute(&[0xf2, 0x48, 0x0f, 0x38, 0xf1, 0x00]).unwrap();
    assert_eq!(board.cpu.regs[RAX] >> 32, 0);
    board.execute(&[0x0f, 0xc7, 0xf1]).unwrap();
}
