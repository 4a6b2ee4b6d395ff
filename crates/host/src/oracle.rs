//! The host CPU as an oracle for tests: runs raw instruction bytes with every register set, and says what became of them.
//!
//! Unlike [`crate::native`] nothing is re-encoded: the very bytes run, with operands at the very addresses, so that what the
//! interpreter makes of them can be held against it. Only integer instructions that cannot fault are run, with their memory
//! operand in a page that is lent for it. For tests.

use crate::Error;
use crate::code::CodeBuffer;
use iced_x86::{
    ConditionCode, Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind, Register,
};
use std::arch::naked_asm;
use std::sync::{Mutex, PoisonError};

/// Registers before and after: RAX … R15 in encoding order (RSP is not loaded), RFLAGS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// General-purpose registers.
    pub gpr: [u64; 16],
    /// RFLAGS. Only the arithmetic flags and DF are loaded.
    pub flags: u64,
}

/// Flags that are loaded: CF, PF, AF, ZF, SF, DF, OF.
const LOADED: u64 = 0xcd5;

/// What the trampoline works on: its address is known to both ends without a register.
#[repr(C)]
struct Exchange {
    registers: Registers,
    host_rsp: u64,
    code: u64,
}

static mut EXCHANGE: Exchange = Exchange { registers: Registers { gpr: [0; 16], flags: 0 }, host_rsp: 0, code: 0 };

/// Serialises users of [`EXCHANGE`].
static TURN: Mutex<()> = Mutex::new(());

/// Loads the registers and jumps to the code.
#[unsafe(naked)]
unsafe extern "C" fn trampoline() {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov [rip + {x} + 136], rsp",
        "push [rip + {x} + 128]",
        "popfq",
        "mov rax, [rip + {x}]", "mov rcx, [rip + {x} + 8]", "mov rdx, [rip + {x} + 16]", "mov rbx, [rip + {x} + 24]",
        "mov rbp, [rip + {x} + 40]", "mov rsi, [rip + {x} + 48]", "mov rdi, [rip + {x} + 56]",
        "mov r8, [rip + {x} + 64]", "mov r9, [rip + {x} + 72]", "mov r10, [rip + {x} + 80]", "mov r11, [rip + {x} + 88]",
        "mov r12, [rip + {x} + 96]", "mov r13, [rip + {x} + 104]", "mov r14, [rip + {x} + 112]", "mov r15, [rip + {x} + 120]",
        "jmp [rip + {x} + 144]",
        x = sym EXCHANGE,
    );
}

/// Where the code under test jumps when it is done: on the trampoline's stack frame still.
#[unsafe(naked)]
unsafe extern "C" fn way_back() {
    naked_asm!(
        "mov [rip + {x}], rax", "mov [rip + {x} + 8], rcx", "mov [rip + {x} + 16], rdx", "mov [rip + {x} + 24], rbx",
        "mov [rip + {x} + 40], rbp", "mov [rip + {x} + 48], rsi", "mov [rip + {x} + 56], rdi",
        "mov [rip + {x} + 64], r8", "mov [rip + {x} + 72], r9", "mov [rip + {x} + 80], r10", "mov [rip + {x} + 88], r11",
        "mov [rip + {x} + 96], r12", "mov [rip + {x} + 104], r13", "mov [rip + {x} + 112], r14", "mov [rip + {x} + 120], r15",
        "pushfq",
        "pop [rip + {x} + 128]",
        "cld",
        "mov rsp, [rip + {x} + 136]",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        x = sym EXCHANGE,
    );
}

/// Memory for the code under test.
#[derive(Debug)]
pub struct Oracle {
    code: CodeBuffer,
}

impl Oracle {
    /// An oracle with a page of code memory.
    ///
    /// # Errors
    /// No executable memory.
    pub fn new() -> Result<Self, Error> {
        Ok(Self { code: CodeBuffer::new(4096)? })
    }

    /// Runs one instruction on `registers`. A memory operand must lie in `page`.
    ///
    /// # Errors
    /// [`Refused`] for bytes that are not one instruction that [can be run](can_run), and for operands elsewhere.
    pub fn run(&mut self, bytes: &[u8], page: &Page, registers: &mut Registers) -> Result<(), Refused> {
        let instruction = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
        if instruction.len() != bytes.len() || !can_run(&instruction) || !page.contains(&instruction, registers) {
            return Err(Refused);
        }
        // SAFETY: the instruction falls through its end, neither faults nor uses RSP, and its memory is the page, which is
        // mapped as long as `page` lives.
        unsafe { self.run_raw(bytes, registers) };
        Ok(())
    }

    /// Runs `bytes` on `registers`.
    ///
    /// # Safety
    /// The bytes must fall through their end, must neither fault nor use RSP, and may only touch memory that the caller
    /// owns.
    unsafe fn run_raw(&mut self, bytes: &[u8], registers: &mut Registers) {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        self.code.clear();
        // jmp [rip]: the address of the way back follows; no register is free for it.
        let mut code = bytes.to_vec();
        code.extend([0xff, 0x25, 0, 0, 0, 0]);
        code.extend((way_back as unsafe extern "C" fn() as usize).to_le_bytes());
        let Some(start) = self.code.append(&code) else { return };
        let entry = self.code.start().addr() as u64 + start as u64;
        // SAFETY: EXCHANGE is only touched here, under TURN; the trampoline saves and restores what the ABI wants, and the
        // caller vouches for the bytes.
        unsafe {
            EXCHANGE.registers = *registers;
            EXCHANGE.registers.flags = registers.flags & LOADED | 2;
            EXCHANGE.code = entry;
            trampoline();
            let sp = registers.gpr[4];
            *registers = EXCHANGE.registers;
            registers.gpr[4] = sp;
        }
    }
}

/// Whether the oracle runs it: integer work without faults, privilege, control flow, segment prefix or RSP.
#[must_use]
pub fn can_run(i: &Instruction) -> bool {
    use Mnemonic as M;
    let listed = matches!(
        i.mnemonic(),
        M::Add
            | M::Or
            | M::Adc
            | M::Sbb
            | M::And
            | M::Sub
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Neg
            | M::Not
            | M::Rol
            | M::Ror
            | M::Rcl
            | M::Rcr
            | M::Shl
            | M::Sal
            | M::Shr
            | M::Sar
            | M::Shld
            | M::Shrd
            | M::Mov
            | M::Movzx
            | M::Movsx
            | M::Movsxd
            | M::Lea
            | M::Xchg
            | M::Xadd
            | M::Cmpxchg
            | M::Cmpxchg8b
            | M::Bswap
            | M::Movbe
            | M::Cbw
            | M::Cwde
            | M::Cdqe
            | M::Cwd
            | M::Cdq
            | M::Cqo
            | M::Bt
            | M::Bts
            | M::Btr
            | M::Btc
            | M::Bsf
            | M::Bsr
            | M::Tzcnt
            | M::Lzcnt
            | M::Popcnt
            | M::Clc
            | M::Stc
            | M::Cmc
            | M::Cld
            | M::Std
            | M::Lahf
            | M::Sahf
            | M::Mul
            | M::Imul
    ) || i.condition_code() != ConditionCode::None
        && i.flow_control() == FlowControl::Next
        && i.encoding() == EncodingKind::Legacy;
    let plain = |register: Register| {
        register == Register::None || register.is_gpr() && register.full_register() != Register::RSP
    };
    let operands = (0..i.op_count()).all(|n| i.op_kind(n) != OpKind::Register || plain(i.op_register(n)));
    // BSWAP of 16 bits is undefined, and not what the host must decide.
    let undefined = i.mnemonic() == M::Bswap && i.op0_register().size() == 2;
    let segment = matches!(i.segment_prefix(), Register::None);
    listed && operands && segment && !undefined && !i.is_invalid() && plain(i.memory_base()) && plain(i.memory_index())
}

/// Not an instruction that the oracle runs, or its operand is not in the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// A page of the process at a chosen address, for operands that guest and host see at the same place.
#[derive(Debug)]
pub struct Page(std::ptr::NonNull<u8>);

impl Page {
    /// Maps a page at `address`; `None` if something is there already.
    #[must_use]
    pub fn at(address: u64) -> Option<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let flags = MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE;
        let wanted = std::ptr::without_provenance_mut(usize::try_from(address).ok()?);
        // SAFETY: FIXED_NOREPLACE replaces no mapping.
        let page = unsafe { mmap_anonymous(wanted, 4096, ProtFlags::READ | ProtFlags::WRITE, flags) };
        std::ptr::NonNull::new(page.ok()?.cast()).map(Self)
    }

    /// Whether the instruction's memory operand, if it has one, lies in the page.
    fn contains(&self, i: &Instruction, registers: &Registers) -> bool {
        let has_operand = (0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) && i.mnemonic() != Mnemonic::Lea;
        if !has_operand {
            return true;
        }
        let value = |register: Register| match register {
            Register::None => 0,
            register if register.size() == 4 => registers.gpr[register.number()] & 0xffff_ffff,
            register => registers.gpr[register.number()],
        };
        let scaled = value(i.memory_index()).wrapping_mul(u64::from(i.memory_index_scale()));
        let mut address = value(i.memory_base()).wrapping_add(scaled).wrapping_add(i.memory_displacement64());
        if i.memory_base().size() == 4 || i.memory_index().size() == 4 {
            address &= 0xffff_ffff;
        }
        // A bit string named by a register reaches on in both directions.
        let strings = matches!(i.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
        if strings && i.op1_kind() == OpKind::Register {
            let bits = i.op1_register().size() as u32 * 8;
            let number = (registers.gpr[i.op1_register().number()] << (64 - bits)).cast_signed() >> (64 - bits);
            let element = (number >> bits.trailing_zeros()) * i64::from(bits / 8);
            address = address.wrapping_add(element.cast_unsigned());
        }
        let start = self.0.as_ptr().addr() as u64;
        address >= start && address.wrapping_add(i.memory_size().size() as u64) <= start + 4096
    }

    /// Fills the page.
    pub fn write(&self, bytes: &[u8]) {
        let len = bytes.len().min(4096);
        // SAFETY: the page is mapped as long as `self` lives, and code under test does not run now.
        unsafe { self.0.copy_from_nonoverlapping(std::ptr::NonNull::from(bytes).cast(), len) };
    }

    /// Reads the page.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        // SAFETY: as for `write`.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), 4096) }.to_vec()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `at` and is not used any more.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), 4096) };
    }
}
