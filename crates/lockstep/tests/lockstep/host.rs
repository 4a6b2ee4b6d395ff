//! The tiers against the host CPU: random integer instructions with random operands, in registers and in memory,
//! compared to the last bit — registers, all arithmetic flags, DF, and memory.
//!
//! The guest's page tables map the address that the host process uses, so the very same bytes run on both sides.
//! Left out here: instructions that fault, and those whose results depend on the machine (tested where they live).

use host::oracle::{Oracle, Page, Registers};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use lockstep::case::{Assembler, Case, Piece};
use lockstep::lane::{Lane, Outcome};
use lockstep::layout::{DATA, DATA_GPA, PAGE};
use lockstep::log::Entry;
use lockstep::random::Random;
use lockstep::session::{Make, Settings};
use lockstep::start::Start;
use lockstep::watchdog::Watchdog;
use std::time::Duration;
use x86::Rflags;

use crate::{interpreted, translated};

/// Flags that are compared: the arithmetic ones and DF.
const FLAGS: u64 = Rflags::STATUS | 0x400;

/// Bytes that are an instruction more often than not.
fn bytes(random: &mut Random) -> [u8; 16] {
    let mut bytes: [u8; 16] = std::array::from_fn(|_| random.bits() as u8);
    let mut at = 0;
    for (prefix, one_in) in [(0x66, 4), (0xf0, 12), (0xf3, 8), (0xf2, 12), (0x67, 8)] {
        if random.one_in(one_in) {
            bytes[at] = prefix;
            at += 1;
        }
    }
    if random.one_in(2) {
        bytes[at] = 0x40 | random.below(16) as u8;
        at += 1;
    }
    match random.below(4) {
        0 => bytes[at] = 0x0f,
        1 => bytes[at..at + 2].copy_from_slice(&[0x0f, if random.one_in(2) { 0x38 } else { 0xba }]),
        _ => {}
    }
    bytes
}

/// Sets the base register so that the operand lies in the scratch page. `false` if that cannot be.
fn aim(i: &Instruction, registers: &mut [u64; 16], random: &mut Random) -> bool {
    if !(0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) || i.mnemonic() == Mnemonic::Lea {
        return true;
    }
    let (base, index) = (i.memory_base(), i.memory_index());
    if base == Register::None || base == index || base == Register::RIP || base == Register::EIP {
        return false;
    }
    // A bit string reaches 2^N bits in either direction.
    let bits = matches!(i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    if bits && i.op1_kind() == OpKind::Register {
        let number = i.op1_register().full_register();
        if number == base.full_register() || number == index.full_register() {
            return false;
        }
        registers[number.number()] = random.below(8192).wrapping_sub(4096);
    }
    let mut address = DATA + 1024 + random.below(2048);
    address = address.wrapping_sub(i.memory_displacement64());
    if index != Register::None {
        address = address.wrapping_sub(registers[index.number()].wrapping_mul(u64::from(i.memory_index_scale())));
    }
    // With 32-bit addresses the upper half of the register is ignored.
    let keep = if base.size() == 4 { !0xffff_ffff } else { 0 };
    registers[base.number()] = registers[base.number()] & keep | address & !keep;
    true
}

/// The flags that the oracle's answer says something about. Of those that the manuals leave undefined all are as the host
/// makes them, but for instructions before which the tiers set flags that the host, without them, leaves as they were.
fn defined(instruction: &Instruction) -> u64 {
    use Mnemonic as M;
    let sets = matches!(instruction.mnemonic(), M::Mul | M::Imul | M::Lzcnt | M::Tzcnt);
    let undefined = if sets { instruction.rflags_undefined() } else { 0 };
    let bit = |(n, flag): (u32, u64)| if undefined >> n & 1 != 0 { flag } else { 0 };
    // In the order of iced's bits: OF, SF, ZF, AF, CF, PF.
    let undefined: u64 = (0..).zip([0x800, 0x80, 0x40, 0x10, 0x1, 0x4]).map(bit).sum();
    FLAGS & !undefined
}

/// Compares a tier with the host.
fn check(make: Make, page: &Page, oracle: &mut Oracle) {
    let settings = Settings::from_environment(0x5eed_0001, 50_000);
    println!("VITRINE_SEED={:#x}", settings.seed);
    let mut lane = Lane::new(std::sync::Arc::default());
    let (mut tier, mut assembler) = (make(), Assembler::default());
    let watchdog = Watchdog::new(Duration::from_secs(5));
    let mut memory = [0; PAGE as usize];
    let mut done = 0;
    for seed in (0..).map(|n| settings.seed.wrapping_add(n)) {
        if settings.cases != 0 && done == settings.cases {
            break;
        }
        let random = &mut Random::new(seed);
        let bytes = bytes(random);
        let instruction = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE).decode();
        let mut gpr: [u64; 16] = std::array::from_fn(|_| random.value());
        if !host::oracle::can_run(&instruction) || !aim(&instruction, &mut gpr, random) {
            continue;
        }
        let code = &bytes[..instruction.len()];
        let flags = random.bits() & FLAGS;
        memory.fill_with(|| random.bits() as u8);

        let mut expected = Registers { gpr, flags };
        page.write(&memory);
        oracle.run(code, page, &mut expected).expect("it can be run");

        let start = Start { gpr, flags: flags | 2, ..Start::plain(64) };
        let pieces = vec![Piece::bytes(code)];
        let program = assembler.assemble(&Case { seed, offset: 0, start: start.clone(), pieces }).expect("it is short");
        lane.poke(DATA_GPA, &memory);
        lane.load(&program, &start);
        let outcome = lane.run(&mut *tier, &watchdog);
        lane.peek(DATA_GPA, &mut memory);
        let mask = defined(&instruction);
        let mut actual = Registers { flags: lane.cpu.rflags().into_bits() & mask, ..Registers::default() };
        actual.gpr.copy_from_slice(&lane.cpu.regs[..16]);
        expected.flags &= mask;
        let describe = format!("VITRINE_SEED={seed:#x}: {instruction} ({code:02x?})\nbefore {gpr:x?} flags {flags:x}");
        assert!(outcome == Outcome::Ended && Entry::count(&lane) == 0, "{describe}: {outcome:?}");
        assert_eq!(actual, expected, "{describe}");
        assert_eq!(memory[..], page.read(), "memory: {describe}");
        done += 1;
    }
}

#[test]
fn integer_instructions_match_the_host() {
    let page = Page::at(DATA).expect("the address is free in this process");
    let mut oracle = Oracle::new().expect("the host has memory");
    check(interpreted, &page, &mut oracle);
    check(translated, &page, &mut oracle);
}
