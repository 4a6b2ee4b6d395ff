//! Stubs against an independent execution: every register loaded, the instruction itself executed with its own
//! registers and its own memory operand, every register stored.

mod reference;

use super::*;
use iced_x86::{Code, Mnemonic};
use reference::{Machine, Random, Reference, host_has, instance};
use std::collections::BTreeMap;

/// Every instruction for the host, in register and memory form, on random registers.
#[test]
fn agrees_with_plain_execution() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut engine = Engine::new();
    let mut reference = Reference::new();
    let mut tested: BTreeMap<Mnemonic, u32> = BTreeMap::new();
    for code in Code::values() {
        for memory in [false, true] {
            for _ in 0..6 {
                let Some(instruction) = instance(code, memory, &mut random) else { break };
                let random_result = matches!(instruction.mnemonic(), Mnemonic::Rdrand | Mnemonic::Rdseed);
                if !is_allowed(&instruction) || !host_has(&instruction) || random_result {
                    break;
                }
                let mut expected = Machine::random(&mut random);
                expected.general[13] = expected.memory.as_ptr().addr() as u64;
                let mut actual = expected.clone();
                let used_memory = expected.general[13];
                if !reference.run(&instruction, &mut expected) {
                    // High-byte registers with a REX prefix, and forms of other modes.
                    continue;
                }
                *tested.entry(instruction.mnemonic()).or_default() += 1;
                let stub = engine.prepare(&instruction).unwrap_or_else(|e| panic!("{code:?}: {e}"));
                let Machine { vector, memory: bytes, general, status, .. } = &mut *actual;
                assert_eq!(stub.size() != 0, memory, "{code:?}");
                engine.operand(used_memory)[..64].copy_from_slice(&bytes[..64]);
                engine.run(&stub, general, status, vector, used_memory).unwrap_or_else(|e| panic!("{code:?}: {e}"));
                if stub.needs().contains(Needs::WRITE) {
                    bytes[..stub.size()].copy_from_slice(&engine.operand(used_memory)[..stub.size()]);
                }
                assert_eq!(actual.compared(), expected.compared(), "{code:?} {instruction:?}");
                assert_host_is_sane();
            }
        }
    }
    // A spread of what must not have been skipped.
    for mnemonic in [
        Mnemonic::Addps,
        Mnemonic::Pshufb,
        Mnemonic::Pcmpestri,
        Mnemonic::Blendvps,
        Mnemonic::Cvtpi2ps,
        Mnemonic::Emms,
        Mnemonic::Vaddpd,
        Mnemonic::Vfmadd132ss,
        Mnemonic::Vperm2i128,
        Mnemonic::Vpinsrq,
        Mnemonic::Vcvtps2ph,
        Mnemonic::Mulx,
        Mnemonic::Adcx,
        Mnemonic::Bextr,
        Mnemonic::Crc32,
        Mnemonic::Movbe,
        Mnemonic::Comisd,
        Mnemonic::Fadd,
        Mnemonic::Fcomi,
        Mnemonic::Fbstp,
        Mnemonic::Fisttp,
        Mnemonic::Fsin,
        Mnemonic::Fcmovb,
    ] {
        assert!(tested.contains_key(&mnemonic), "{mnemonic:?}");
    }
    assert!(tested.len() > 700, "{} mnemonics", tested.len());
}

/// MXCSR, the x87 unit and DF as Rust expects them.
fn assert_host_is_sane() {
    let (mut mxcsr, mut control, mut status, flags): (u32, u16, u16, u64) = (0, 0, 0, 0);
    let mut rflags = flags;
    // SAFETY: stores to three live variables, and reads RFLAGS by the stack.
    unsafe {
        asm!("stmxcsr [{m}]", "fnstcw [{c}]", "fnstsw [{s}]", "pushfq", "pop {f}", m = in(reg) &raw mut mxcsr,
            c = in(reg) &raw mut control, s = in(reg) &raw mut status, f = inout(reg) rflags);
    }
    assert_eq!((mxcsr & 0xffc0, control, status & 0x3800), (0x1f80, 0x37f, 0));
    assert_eq!(rflags & (1 << 10 | 1 << 18), 0, "DF and AC are clear");
}

/// Assembles one instruction and runs it on `machine`, with `memory` as its operand at the guest address `address`.
fn execute(engine: &mut Engine, bytes: &[u8], bitness: u32, machine: &mut Machine, address: u64) -> Result<(), Fault> {
    let instruction = iced_x86::Decoder::new(bitness, bytes, 0).decode();
    let stub = engine.prepare(&instruction).unwrap();
    engine.operand(address).copy_from_slice(&machine.memory[..64]);
    let result = engine.run(&stub, &mut machine.general, &mut machine.status, &mut machine.vector, address);
    assert_host_is_sane();
    if result.is_ok() && stub.needs().contains(Needs::WRITE) {
        machine.memory[..64].copy_from_slice(engine.operand(address));
    }
    result
}

fn machine() -> Box<Machine> {
    Machine::random(&mut Random(99))
}

#[test]
fn stack_pointer_and_others_are_renamed() {
    let mut engine = Engine::new();
    let mut machine = machine();
    machine.general[4] = 0xff00;
    let before = machine.general;
    // popcnt rbx, rsp
    execute(&mut engine, &[0xf3, 0x48, 0x0f, 0xb8, 0xdc], 64, &mut machine, 0).unwrap();
    assert_eq!(machine.general[3], 8);
    // pdep rsp, rbp, r15
    execute(&mut engine, &[0xc4, 0xc2, 0xd3, 0xf5, 0xe7], 64, &mut machine, 0).unwrap();
    assert!(machine.general[4].count_ones() <= before[15].count_ones());
    // crc32 ebp, ah
    execute(&mut engine, &[0xf2, 0x0f, 0x38, 0xf0, 0xec], 64, &mut machine, 0).unwrap();
    assert_eq!(machine.general[5] >> 32, 0);
    for i in [0, 1, 2, 6, 7, 8, 15] {
        assert_eq!(machine.general[i], before[i], "register {i}");
    }
}

#[test]
fn code_of_all_sizes_is_encoded_for_64_bits() {
    let mut engine = Engine::new();
    for bitness in [16, 32, 64] {
        let mut machine = machine();
        machine.vector.set_xmm(1, 0x0102);
        machine.vector.set_xmm(2, 0x0304);
        // paddb xmm1, xmm2
        execute(&mut engine, &[0x66, 0x0f, 0xfc, 0xca], bitness, &mut machine, 0).unwrap();
        assert_eq!(machine.vector.xmm(1), 0x0406);
    }
    // One stub serves them all, and every memory address.
    assert_eq!(engine.stubs.len(), 1);
    for bytes in [[0x66, 0x0f, 0xfc, 0x0a].as_slice(), &[0x66, 0x0f, 0xfc, 0x4a, 0x10], &[0x64, 0x66, 0x0f, 0xfc, 0x08]]
    {
        execute(&mut engine, bytes, 64, &mut machine(), 0).unwrap();
    }
    assert_eq!(engine.stubs.len(), 2);
}

#[test]
fn legacy_encodings_keep_and_vex_encodings_clear_the_upper_half() {
    let mut engine = Engine::new();
    let mut machine = machine();
    let high = machine.vector.ymm_high(1);
    assert_ne!(high, 0);
    execute(&mut engine, &[0x66, 0x0f, 0xef, 0xca], 64, &mut machine, 0).unwrap();
    assert_eq!(machine.vector.ymm_high(1), high);
    // vpxor xmm1, xmm1, xmm2
    execute(&mut engine, &[0xc5, 0xf1, 0xef, 0xca], 64, &mut machine, 0).unwrap();
    assert_eq!(machine.vector.ymm_high(1), 0);
}

#[test]
fn unmasked_simd_exception_comes_back_with_its_flag() {
    let mut engine = Engine::new();
    let mut machine = machine();
    machine.vector.mxcsr = 0x1f80 & !(1 << 9);
    machine.vector.set_xmm(1, 1.0f64.to_bits().into());
    machine.vector.set_xmm(2, 0);
    let before = machine.clone();
    // divsd xmm1, xmm2
    assert_eq!(execute(&mut engine, &[0xf2, 0x0f, 0x5e, 0xca], 64, &mut machine, 0), Err(Fault::Simd));
    assert_eq!(machine.vector.mxcsr, before.vector.mxcsr | 4);
    assert_eq!((machine.vector.ymm, machine.general), (before.vector.ymm, before.general));
    // comisd xmm1, xmm3 with a signalling NaN and #IA unmasked: the flags stay.
    machine.vector.mxcsr = 0x1f00;
    machine.vector.set_xmm(3, 0x7ff0_0000_0000_0001);
    assert_eq!(execute(&mut engine, &[0x66, 0x0f, 0x2f, 0xcb], 64, &mut machine, 0), Err(Fault::Simd));
    assert_eq!(machine.status, before.status);
    // And the engine still works.
    execute(&mut engine, &[0xf2, 0x0f, 0x58, 0xca], 64, &mut machine, 0).unwrap();
}

#[test]
fn misaligned_operands_fault_where_the_encoding_asks_for_alignment() {
    let mut engine = Engine::new();
    let mut machine = machine();
    let before = machine.clone();
    for (bytes, alignment, fault) in [
        // paddb xmm1, [rdx]; movaps xmm1, [rdx]; movaps [rdx], xmm1
        ([0x66, 0x0f, 0xfc, 0x0a].as_slice(), 16, true),
        (&[0x0f, 0x28, 0x0a], 16, true),
        (&[0x0f, 0x29, 0x0a], 16, true),
        // vmovaps ymm1, [rdx]
        (&[0xc5, 0xfc, 0x28, 0x0a], 32, true),
        // movups xmm1, [rdx]; vpaddb ymm1, ymm1, [rdx]; pcmpistri xmm1, [rdx], 0; paddb mm1, [rdx]
        (&[0x0f, 0x10, 0x0a], 0, false),
        (&[0xc5, 0xf5, 0xfc, 0x0a], 0, false),
        (&[0x66, 0x0f, 0x3a, 0x63, 0x0a, 0x00], 0, false),
        (&[0x0f, 0xfc, 0x0a], 0, false),
    ] {
        let stub = engine.prepare(&iced_x86::Decoder::new(64, bytes, 0).decode()).unwrap();
        assert_eq!(stub.alignment(), alignment, "{bytes:x?}");
        let result = execute(&mut engine, bytes, 64, &mut machine, 0x1008);
        assert_eq!(result, if fault { Err(Fault::Protection) } else { Ok(()) }, "{bytes:x?}");
        if fault {
            assert_eq!(machine.compared(), before.compared());
            execute(&mut engine, bytes, 64, &mut machine, 0x1020).unwrap();
            machine = before.clone();
        }
    }
}

#[test]
fn alignments_are_those_that_the_host_checks() {
    let mut random = Random(7);
    let mut engine = Engine::new();
    for code in Code::values() {
        let Some(instruction) = instance(code, true, &mut random) else { continue };
        if !is_allowed(&instruction) || !host_has(&instruction) || Encoder::new(64).encode(&instruction, 0).is_err() {
            continue;
        }
        let Ok(stub) = engine.prepare(&instruction) else { continue };
        let mut machine = Machine::random(&mut random);
        let Machine { vector, general, status, .. } = &mut *machine;
        let result = engine.run(&stub, general, status, vector, 1);
        let expected = if stub.alignment() == 0 { Ok(()) } else { Err(Fault::Protection) };
        // The SHA instructions check alignment on some processors only.
        if instruction.cpuid_features().contains(&iced_x86::CpuidFeature::SHA) {
            continue;
        }
        assert_eq!(result, expected, "{code:?}");
        if stub.alignment() != 0 {
            assert_eq!(engine.run(&stub, general, status, vector, stub.alignment()), Ok(()), "{code:?}");
        }
    }
}

#[test]
fn x87_exception_is_pending_for_the_next_instruction() {
    let mut engine = Engine::new();
    let mut machine = machine();
    machine.vector.init_x87();
    machine.vector.set_fcw(0x37f & !4);
    // fld1; fldz; fdivp st1, st0: division by zero, unmasked.
    execute(&mut engine, &[0xd9, 0xe8], 64, &mut machine, 0).unwrap();
    execute(&mut engine, &[0xd9, 0xee], 64, &mut machine, 0).unwrap();
    execute(&mut engine, &[0xde, 0xf9], 64, &mut machine, 0).unwrap();
    assert!(machine.vector.x87_pending());
    assert_eq!(machine.vector.fsw() & 0x8084, 0x8084);
    let before = machine.clone();
    assert_eq!(execute(&mut engine, &[0xd9, 0xe8], 64, &mut machine, 0), Err(Fault::X87));
    assert_eq!(machine.compared(), before.compared());
}

#[test]
fn x87_computes_with_all_its_bits() {
    let mut engine = Engine::new();
    let mut machine = machine();
    machine.vector.init_x87();
    // fldpi; fstp tbyte [rdx]
    execute(&mut engine, &[0xd9, 0xeb], 64, &mut machine, 0).unwrap();
    execute(&mut engine, &[0xdb, 0x3a], 32, &mut machine, 3).unwrap();
    assert_eq!(machine.memory[..10], [0x35, 0xc2, 0x68, 0x21, 0xa2, 0xda, 0x0f, 0xc9, 0x00, 0x40]);
    assert_eq!(machine.vector.ftw(), 0);
}

#[test]
fn x87_pointers_are_not_the_stubs() {
    let mut engine = Engine::new();
    let mut machine = machine();
    machine.vector.set_x87_pointers((0x123, 0x1_0000_0001, 0x2_0000_0002));
    // fld dword [rdx]; paddb mm1, mm2
    execute(&mut engine, &[0xd9, 0x02], 64, &mut machine, 0).unwrap();
    execute(&mut engine, &[0x0f, 0xfc, 0xca], 64, &mut machine, 0).unwrap();
    assert_eq!(machine.vector.x87_pointers(), (0x123, 0x1_0000_0001, 0x2_0000_0002));
}

#[test]
fn opcodes_for_the_last_instruction_pointer() {
    let mut engine = Engine::new();
    for (bytes, fop) in [
        ([0xd8, 0xc3].as_slice(), 0x0c3),
        (&[0xd9, 0xe8], 0x1e8),
        (&[0xdd, 0xd1], 0x5d1),
        (&[0xda, 0xe9], 0x2e9),
        // Memory: mod and rm are left to the caller.
        (&[0xdc, 0x32], 0x430),
        (&[0xdb, 0x2d, 0, 0, 0, 0], 0x328),
    ] {
        let stub = engine.prepare(&iced_x86::Decoder::new(64, bytes, 0).decode()).unwrap();
        assert_eq!(stub.x87_opcode(), fop, "{bytes:x?}");
    }
}

#[test]
fn only_listed_instructions_run() {
    let mut engine = Engine::new();
    for bytes in [
        // cpuid; syscall; ret; push rax; wrfsbase eax; ldmxcsr [rax]; fxsave [rax]; fnsave [rax]; fldenv [rax];
        // rep movsb; rdtsc; hlt; mov rax, cr0; int3; jmp; popfq; clflush [rax]; vgatherdps; mov fs, eax; vzeroall
        [0x0f, 0xa2].as_slice(),
        &[0x0f, 0x05],
        &[0xc3],
        &[0x50],
        &[0xf3, 0x0f, 0xae, 0xd0],
        &[0x0f, 0xae, 0x10],
        &[0x0f, 0xae, 0x00],
        &[0xdd, 0x30],
        &[0xd9, 0x20],
        &[0xf3, 0xa4],
        &[0x0f, 0x31],
        &[0xf4],
        &[0x0f, 0x20, 0xc0],
        &[0xcc],
        &[0xeb, 0xfe],
        &[0x9d],
        &[0x0f, 0xae, 0x38],
        &[0xc4, 0xe2, 0x71, 0x92, 0x04, 0x10],
        &[0x8e, 0xe0],
        &[0xc5, 0xfc, 0x77],
        // An EVEX encoding, an undefined one, and MASKMOVDQU.
        &[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1],
        &[0x0f, 0x0b],
        &[0x66, 0x0f, 0xf7, 0xc1],
    ] {
        let instruction = iced_x86::Decoder::new(64, bytes, 0).decode();
        assert!(engine.prepare(&instruction).is_err(), "{bytes:x?}");
    }
}

#[test]
fn stubs_of_another_engine_are_stale() {
    let (mut one, mut other) = (Engine::new(), Engine::new());
    let instruction = iced_x86::Decoder::new(64, &[0x66, 0x0f, 0xfc, 0xca], 0).decode();
    let stub = one.prepare(&instruction).unwrap();
    other.prepare(&instruction).unwrap();
    let mut machine = machine();
    let Machine { vector, general, status, .. } = &mut *machine;
    assert_eq!(other.run(&stub, general, status, vector, 0), Err(Fault::Stale));
    assert_eq!(one.run(&stub, general, status, vector, 0), Ok(()));
    for engine in [&mut one, &mut Engine::new()] {
        assert!(!engine.is_current(&Stub::default()));
        assert_eq!(engine.run(&Stub::default(), general, status, vector, 0), Err(Fault::Stale));
    }
}

#[test]
fn a_full_engine_starts_again() {
    let mut engine = Engine::new();
    let mut random = Random(3);
    let first = iced_x86::Decoder::new(64, &[0x66, 0x0f, 0xfc, 0xca], 0).decode();
    let stub = engine.prepare(&first).unwrap();
    let mut count = 0u32;
    while engine.is_current(&stub) {
        // vshufps with any registers and immediate: more than fit.
        let mut other = instance(Code::VEX_Vshufps_xmm_xmm_xmmm128_imm8, false, &mut random).unwrap();
        other.set_immediate8(count as u8);
        engine.prepare(&other).unwrap();
        count += 1;
        assert!(count < 1_000_000);
    }
    assert!(engine.stubs.len() < 10);
    let again = engine.prepare(&first).unwrap();
    assert_ne!(again, stub);
    execute(&mut engine, &[0x66, 0x0f, 0xfc, 0xca], 64, &mut machine(), 0).unwrap();
}

#[test]
fn faults_on_several_threads_do_not_mix() {
    let threads: Vec<_> = (0..4)
        .map(|i| {
            std::thread::spawn(move || {
                let mut engine = Engine::new();
                let mut machine = machine();
                for round in 0..200 {
                    let aligned = (round + i) % 2 == 0;
                    let address = if aligned { 16 } else { 8 };
                    let result = execute(&mut engine, &[0x66, 0x0f, 0xfc, 0x0a], 64, &mut machine, address);
                    assert_eq!(result.is_ok(), aligned);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
