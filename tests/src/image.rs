//! Tiny guests, assembled on the spot: multiboot 1 images which the command and QEMU both load by `-kernel`.
//!
//! An image is an ELF32 file with one segment at 1 MiB: headers, a GDT, 32-bit entry code and, for [`long_mode`],
//! page tables that map the first 16 MiB one to one and code that runs in 64-bit mode with a stack. Multiboot
//! specification 0.6.96; the mode switch follows APM volume 2, 14.8.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, dword_ptr, eax, ebx, ecx, edx, r8, r9, rax, rbx, rcx, rdi, rdx, rsi, rsp};

/// Physical address of the image's first byte.
pub const BASE: u64 = 0x10_0000;
/// Where the 32-bit code starts: the ELF entry.
pub const ENTRY: u64 = BASE + 0x1000;
/// Where the 64-bit code of a [`long_mode`] image starts.
pub const CODE64: u64 = BASE + 0x2000;
/// Four pages of zeroed memory that code may use.
pub const DATA: u64 = BASE + 0x1_0000;
/// The I/O port at which tests put `isa-debug-exit`.
pub const EXIT_PORT: u32 = 0xf4;

const HEADER: usize = 0x60;
const GDT: usize = 0x80;
const GDT_POINTER: usize = 0xa0;
const PML4: u64 = 0x3000;
const PDPT: u64 = 0x4000;
const PD: u64 = 0x5000;
const END: u64 = 0x6000;
const STACK_TOP: u64 = BASE + 0x2_0000;

struct Bytes(Vec<u8>);

impl Bytes {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[at..end].copy_from_slice(bytes);
    }

    fn put16(&mut self, at: usize, value: u16) {
        self.put(at, &value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self.put(at, &value.to_le_bytes());
    }

    fn put64(&mut self, at: usize, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
}

/// The low half of an address below 4 GiB.
fn low(address: u64) -> u32 {
    u32::try_from(address).expect("an address of the image")
}

fn offset(address: u64) -> usize {
    usize::try_from(address).expect("an offset in the image")
}

fn skeleton() -> Bytes {
    let mut image = Bytes(vec![0; offset(END)]);
    // ELF header and one program header (System V ABI): 32-bit, little-endian, EXEC, i386.
    image.put(0, b"\x7fELF\x01\x01\x01");
    image.put16(16, 2);
    image.put16(18, 3);
    image.put32(20, 1);
    image.put32(24, low(ENTRY));
    image.put32(28, 52);
    image.put16(40, 52);
    image.put16(42, 32);
    image.put16(44, 1);
    image.put32(52, 1); // PT_LOAD
    image.put32(60, low(BASE));
    image.put32(64, low(BASE));
    image.put32(68, low(END));
    image.put32(72, low(STACK_TOP - BASE));
    image.put32(76, 7);
    image.put32(80, 0x1000);
    // Multiboot header: magic, flags, checksum.
    image.put32(HEADER, 0x1bad_b002);
    image.put32(HEADER + 8, 0x1bad_b002_u32.wrapping_neg());
    // Null, 64-bit code, data.
    image.put64(GDT + 8, 0x00af_9b00_0000_ffff);
    image.put64(GDT + 16, 0x00cf_9300_0000_ffff);
    image.put16(GDT_POINTER, 23);
    image.put32(GDT_POINTER + 2, low(BASE) + u32::try_from(GDT).expect("small"));
    image
}

fn assemble(
    bits: u32,
    at: u64,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Vec<u8>, IcedError> {
    let mut assembler = CodeAssembler::new(bits)?;
    code(&mut assembler)?;
    assembler.assemble(at)
}

/// An image whose code runs as the loader leaves the machine: flat 32-bit protected mode, no paging, no IDT.
///
/// # Panics
/// If the code cannot be assembled.
#[must_use]
pub fn protected_mode(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut image = skeleton();
    image.put(offset(ENTRY - BASE), &assemble(32, ENTRY, code).expect("32-bit code assembles"));
    image.0
}

/// An image whose code runs in 64-bit mode with a stack, one-to-one pages and [`DATA`] zeroed.
///
/// # Panics
/// If the code cannot be assembled.
#[must_use]
pub fn long_mode(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut image = skeleton();
    for (table, value) in [(PML4, BASE + PDPT + 3), (PDPT, BASE + PD + 3)] {
        image.put64(offset(table), value);
    }
    for large in 0..8 {
        image.put64(offset(PD + 8 * large), (large << 21) | 0x83);
    }
    let enter = assemble(32, ENTRY, |a| {
        use iced_x86::code_asm::{cr0, cr3, cr4};
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?; // PAE
        a.mov(cr4, eax)?;
        a.mov(eax, low(BASE + PML4))?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080_u32)?; // EFER
        a.rdmsr()?;
        a.or(eax, 0x100)?; // LME
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000_u32)?; // PG
        a.mov(cr0, eax)?;
        a.lgdt(dword_ptr(low(BASE) + u32::try_from(GDT_POINTER).expect("small")))?;
        let mut far_jump = vec![0xea];
        far_jump.extend_from_slice(&low(CODE64).to_le_bytes());
        far_jump.extend_from_slice(&[8, 0]);
        a.db(&far_jump)
    });
    image.put(offset(ENTRY - BASE), &enter.expect("the mode switch assembles"));
    let body = assemble(64, CODE64, |a| {
        use iced_x86::code_asm::{ds, es, ss};
        a.mov(eax, 0x10)?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(ss, eax)?;
        a.mov(rsp, STACK_TOP)?;
        code(a)
    });
    image.put(offset(CODE64 - BASE), &body.expect("64-bit code assembles"));
    image.0
}

/// Ends the guest with `isa-debug-exit`: the command's status is `(code << 1) | 1`.
///
/// # Errors
/// If it cannot be assembled.
pub fn exit(a: &mut CodeAssembler, code: u32) -> Result<(), IcedError> {
    a.mov(eax, code)?;
    a.out(EXIT_PORT, eax)?;
    a.hlt()
}

/// A guest that only ends, with this code.
#[must_use]
pub fn exits(code: u32) -> Vec<u8> {
    protected_mode(|a| exit(a, code))
}

/// A guest that waits for ever with interrupts off.
#[must_use]
pub fn waits() -> Vec<u8> {
    protected_mode(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.hlt()?;
        a.jmp(again)
    })
}

/// A guest that writes `byte` to the first serial port for ever.
#[must_use]
pub fn writes_for_ever(byte: u32) -> Vec<u8> {
    protected_mode(|a| {
        use iced_x86::code_asm::{al, dx};
        let mut again = a.create_label();
        a.mov(edx, 0x3f8)?;
        a.set_label(&mut again)?;
        a.mov(eax, byte)?;
        a.out(dx, al)?;
        a.jmp(again)
    })
}

/// A guest whose first instruction is undefined while there is no IDT: exception, double fault, triple fault.
#[must_use]
pub fn triple_faults() -> Vec<u8> {
    protected_mode(|a| {
        a.lidt(dword_ptr(low(DATA)))?; // limit zero
        a.ud2()
    })
}

/// Instructions that a round of [`integer_loop`] executes.
pub const LOOP_INSTRUCTIONS: u64 = 18;

/// A guest of integer work in 64-bit mode: `rounds` rounds of [`LOOP_INSTRUCTIONS`] each, with loads, a
/// read-modify-write, a call and two branches; it exits with a checksum of its work, [`integer_loop_status`].
#[must_use]
pub fn integer_loop(rounds: u32) -> Vec<u8> {
    long_mode(|a| {
        let (mut again, mut odd, mut work) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(rsi, DATA)?;
        a.mov(rbx, SEED)?;
        a.xor(r8, r8)?;
        a.mov(ecx, rounds)?;
        a.jmp(again)?;
        a.set_label(&mut work)?;
        a.add(r8, r9)?;
        a.ret()?;
        a.set_label(&mut again)?;
        a.mov(rax, rbx)?; // xorshift
        a.shl(rax, 13)?;
        a.xor(rbx, rax)?;
        a.mov(rax, rbx)?;
        a.shr(rax, 7)?;
        a.xor(rbx, rax)?;
        a.mov(edx, ebx)?;
        a.and(edx, 0xff8)?;
        a.add(iced_x86::code_asm::qword_ptr(rsi + rdx), rbx)?;
        a.mov(rdi, iced_x86::code_asm::qword_ptr(rsi + rdx + 8))?;
        a.lea(r9, rdi + rax * 2 + 1)?;
        a.test(ebx, 0x100)?;
        a.jnz(odd)?;
        a.set_label(&mut odd)?;
        a.call(work)?;
        a.dec(rcx)?;
        a.jnz(again)?;
        a.mov(rax, r8)?;
        a.shr(rax, 32)?;
        a.xor(rax, r8)?;
        a.and(eax, 0x3f)?;
        a.out(EXIT_PORT, eax)?;
        a.hlt()
    })
}

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// The command's exit status after [`integer_loop`], by the same work done here.
#[must_use]
pub fn integer_loop_status(rounds: u32) -> i32 {
    let (mut table, mut x, mut sum) = ([0_u64; 513], SEED, 0_u64);
    for _ in 0..rounds {
        x ^= x << 13;
        let shifted = x >> 7;
        x ^= shifted;
        let at = usize::try_from((x & 0xff8) / 8).unwrap_or_default();
        table[at] = table[at].wrapping_add(x);
        let read = table[at + 1];
        sum = sum.wrapping_add(read.wrapping_add(shifted.wrapping_mul(2)).wrapping_add(1));
    }
    let code = ((sum >> 32) ^ sum) & 0x3f;
    i32::try_from((code << 1) | 1).unwrap_or_default()
}
