//! The interpreter against the host CPU: random integer instructions with random operands, in registers and in memory,
//! compared to the last bit — registers, all arithmetic flags, DF, and memory.
//!
//! The guest's page tables map the addresses that the host process uses, so the very same bytes run on both sides.
//! Left out here: instructions that fault, and those whose results depend on the machine (tested where they live).

use crate::run::Interpreter;
use crate::state::RIP;
use crate::testing::board;
use host::oracle::{Oracle, Registers};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use memory::Gpa;
use x86::Rflags;

/// Where operands live, in both address spaces: a page of the process and a page of the guest.
const SCRATCH: u64 = 0x10_0000;
const SCRATCH_LEN: usize = 4096;
/// What a multiplication leaves defined: CF, OF, and DF, which it does not touch.
const CF_OF_DF: u64 = 0xc01;
/// Where the instruction under test is placed in the guest.
const CODE: u64 = 0x1f_0000;

/// A small generator with a seed that can be printed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A value that is often at an edge.
    fn value(&mut self) -> u64 {
        let edges = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 63];
        match self.below(4) {
            0 => edges[self.below(edges.len() as u64) as usize],
            1 => edges[self.below(edges.len() as u64) as usize].wrapping_neg(),
            _ => self.next(),
        }
    }

    /// Bytes that are an instruction more often than not.
    fn bytes(&mut self) -> [u8; 16] {
        let mut bytes: [u8; 16] = std::array::from_fn(|_| self.next() as u8);
        let mut at = 0;
        for (prefix, one_in) in [(0x66, 4), (0xf0, 12), (0xf3, 8), (0xf2, 12), (0x67, 8)] {
            if self.below(one_in) == 0 {
                bytes[at] = prefix;
                at += 1;
            }
        }
        if self.below(2) == 0 {
            bytes[at] = 0x40 | self.below(16) as u8;
            at += 1;
        }
        match self.below(4) {
            0 => bytes[at] = 0x0f,
            1 => bytes[at..at + 2].copy_from_slice(&[0x0f, if self.below(2) == 0 { 0x38 } else { 0xba }]),
            _ => {}
        }
        bytes
    }
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
    let offset = 1024 + random.below(2048);
    let mut address = SCRATCH + offset;
    address = address.wrapping_sub(i.memory_displacement64());
    if index != Register::None {
        address = address.wrapping_sub(registers[index.number()].wrapping_mul(u64::from(i.memory_index_scale())));
    }
    // With 32-bit addresses the upper half of the register is ignored.
    let keep = if base.size() == 4 { !0xffff_ffff } else { 0 };
    registers[base.number()] = registers[base.number()] & keep | address & !keep;
    true
}

#[test]
fn integer_instructions_match_the_host() {
    let page = host::oracle::Page::at(SCRATCH).expect("the scratch page's address is free in this process");
    let mut oracle = Oracle::new().unwrap();
    let mut board = board("max");
    board.long_mode(0);
    let mut interpreter = Interpreter::default();
    let seed = std::env::var("VITRINE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(0x5eed_0001_u64);
    let cases: u64 = std::env::var("VITRINE_CASES").ok().and_then(|s| s.parse().ok()).unwrap_or(300_000);
    let mut random = Random(seed);
    let trace = std::env::var_os("VITRINE_TRACE").is_some();
    let mut done = 0;
    while done < cases {
        let bytes = random.bytes();
        let mut decoder = Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE);
        let instruction = decoder.decode();
        if !host::oracle::can_run(&instruction) {
            continue;
        }
        let mut gpr: [u64; 16] = std::array::from_fn(|_| random.value());
        if !aim(&instruction, &mut gpr, &mut random) {
            continue;
        }
        let flags = random.next() & (Rflags::STATUS | 0x400);
        let memory: Vec<u8> =
            std::iter::repeat_with(|| random.next().to_le_bytes()).flatten().take(SCRATCH_LEN).collect();
        let code = &bytes[..instruction.len()];

        if trace {
            eprintln!("{instruction} {code:02x?} {gpr:x?}");
        }
        let mut expected = Registers { gpr, flags };
        page.write(&memory);
        oracle.run(code, &page, &mut expected).unwrap();
        let expected_memory = page.read();

        let cpu = &mut board.cpu;
        cpu.mmu.map().write(Gpa(SCRATCH), &memory).unwrap();
        cpu.mmu.map().write(Gpa(CODE), code).unwrap();
        cpu.regs[..16].copy_from_slice(&gpr);
        cpu.regs[RIP] = CODE;
        cpu.set_rflags(flags, Rflags::STATUS | 0x400);
        let outcome = cpu.single_step(&mut interpreter);
        let mut actual_memory = vec![0; SCRATCH_LEN];
        cpu.mmu.map().read(Gpa(SCRATCH), &mut actual_memory).unwrap();
        let mut actual = Registers::default();
        actual.gpr.copy_from_slice(&cpu.regs[..16]);
        // The host leaves the undefined flags of a multiplication as they were; `host::alu` makes them depend on the
        // operands alone.
        let multiplies = matches!(instruction.mnemonic(), Mnemonic::Mul | Mnemonic::Imul);
        let mask = if multiplies { CF_OF_DF } else { Rflags::STATUS | 0x400 };
        actual.flags = cpu.rflags().into_bits() & mask;
        expected.flags &= mask;
        let describe =
            || format!("seed {seed:#x}, case {done}: {instruction} ({code:02x?})\nbefore {gpr:x?} flags {flags:x}");
        assert!(outcome.is_ok(), "{}: {outcome:?}", describe());
        assert_eq!(cpu.regs[RIP], CODE + instruction.len() as u64, "{}", describe());
        assert_eq!(actual, expected, "{}", describe());
        assert_eq!(actual_memory, expected_memory, "memory: {}", describe());
        done += 1;
    }
}
