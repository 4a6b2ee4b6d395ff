//! The guest's program for the experiment, as a static Linux ELF file made here: no compiler or linker is needed.
//!
//! It maps a page at [`PAGE`], writes `cons` there, looks its own physical address up in `/proc/self/pagemap` and
//! prints `GVA: …, GPA: …, Val: …`. Then it reads the value again, with the instruction at [`Program::read_again`].
//! Exit status 0, or 1 if a system call failed or the second value differs. Where the kernel shows no frame numbers
//! (they are for root only), the line says `GPA: 0`.

use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, CodeLabel, al, byte_ptr, cl, dword_ptr, eax, ecx, edi, edx, esi, qword_ptr, r8, r9d, r10, r10d, r12,
    r13d, rax, rbx, rcx, rdi, rdx, rsi, rsp,
};
use zerocopy::{Immutable, IntoBytes};

/// Guest virtual address of the page: fixed, low in the address space, where Linux puts nothing by itself.
pub const PAGE: u64 = 0x10_0000_0000;
/// What is written there: `cons`, the beginning of `console=ttyS0`, which the original experiment read.
pub const VALUE: u32 = u32::from_le_bytes(*b"cons");

/// Where the file is loaded.
const BASE: u64 = 0x40_0000;
/// Bytes of the ELF header and its one program header; code follows.
const HEADERS: u64 = 64 + 56;
const CODE: u64 = BASE + HEADERS;

/// Linux x86-64 system calls (`arch/x86/entry/syscalls/syscall_64.tbl`).
mod call {
    pub const WRITE: u32 = 1;
    pub const OPEN: u32 = 2;
    pub const MMAP: u32 = 9;
    pub const PREAD64: u32 = 17;
    pub const EXIT: u32 = 60;
}

/// The program, ready to be put into an initramfs.
#[derive(Debug)]
pub struct Program {
    /// The ELF file.
    pub file: Vec<u8>,
    /// Guest virtual address of the instruction that reads the value the second time.
    pub read_again: u64,
}

impl Program {
    /// Assembles the program.
    ///
    /// # Errors
    /// Never on input: only if the instructions below could not be encoded.
    pub fn assemble() -> Result<Self, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let mut read_again = a.create_label();
        write_program(&mut a, &mut read_again)?;
        let block = a.assemble_options(CODE, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        let read_again = block.label_ip(&read_again)?;
        let code = block.inner.code_buffer;
        let mut file = headers(code.len() as u64);
        file.extend_from_slice(&code);
        Ok(Self { file, read_again })
    }
}

fn write_program(a: &mut CodeAssembler, read_again: &mut CodeLabel) -> Result<(), IcedError> {
    let mut fail = a.create_label();
    let mut hexadecimal = a.create_label();
    let mut pagemap = a.create_label();
    let mut text = [a.create_label(), a.create_label(), a.create_label(), a.create_label()];

    // mmap(PAGE, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0)
    a.mov(rdi, PAGE)?;
    a.mov(esi, 4096)?;
    a.mov(edx, 3)?;
    a.mov(r10d, 0x10_0022)?;
    a.mov(r8, -1_i64)?;
    a.xor(r9d, r9d)?;
    system_call(a, call::MMAP)?;
    a.mov(rbx, PAGE)?;
    a.cmp(rax, rbx)?;
    a.jne(fail)?;
    a.mov(dword_ptr(rbx), VALUE)?;

    // The frame number is in the low 55 bits of the page's entry (Linux, Documentation/admin-guide/mm/pagemap.rst).
    a.lea(rdi, qword_ptr(pagemap))?;
    a.xor(esi, esi)?;
    system_call(a, call::OPEN)?;
    a.test(eax, eax)?;
    a.js(fail)?;
    a.sub(rsp, 16)?;
    a.mov(edi, eax)?;
    a.mov(rsi, rsp)?;
    a.mov(edx, 8)?;
    a.mov(r10, (PAGE >> 12) * 8)?;
    system_call(a, call::PREAD64)?;
    a.cmp(rax, 8)?;
    a.jne(fail)?;
    a.mov(r12, qword_ptr(rsp))?;
    a.shl(r12, 9)?;
    a.shr(r12, 9)?;
    a.shl(r12, 12)?;

    // The line is built at RDI on the stack and written at once.
    a.mov(r13d, dword_ptr(rbx))?;
    a.sub(rsp, 128)?;
    a.mov(rdi, rsp)?;
    copy(a, text[0], TEXT[0])?;
    a.mov(rax, rbx)?;
    a.call(hexadecimal)?;
    copy(a, text[1], TEXT[1])?;
    a.mov(rax, r12)?;
    a.call(hexadecimal)?;
    copy(a, text[2], TEXT[2])?;
    a.mov(eax, r13d)?;
    a.call(hexadecimal)?;
    copy(a, text[3], TEXT[3])?;
    a.mov(rdx, rdi)?;
    a.sub(rdx, rsp)?;
    a.mov(edi, 1)?;
    a.mov(rsi, rsp)?;
    system_call(a, call::WRITE)?;
    a.test(rax, rax)?;
    a.js(fail)?;

    a.set_label(read_again)?;
    a.mov(eax, dword_ptr(rbx))?;
    a.xor(edi, edi)?;
    a.cmp(eax, r13d)?;
    let mut exit = a.create_label();
    a.je(exit)?;
    a.set_label(&mut fail)?;
    a.mov(edi, 1)?;
    a.set_label(&mut exit)?;
    system_call(a, call::EXIT)?;

    // Writes RAX at RDI in hexadecimal without leading zeros and moves RDI behind it. Clobbers RAX, RCX, RDX, R8, R9.
    let mut digit = a.create_label();
    let mut decimal = a.create_label();
    a.set_label(&mut hexadecimal)?;
    a.mov(rdx, rax)?;
    a.or(rax, 1)?;
    a.bsr(rcx, rax)?;
    a.and(ecx, !3)?;
    a.set_label(&mut digit)?;
    a.mov(rax, rdx)?;
    a.shr(rax, cl)?;
    a.and(eax, 15)?;
    a.add(al, i32::from(b'0'))?;
    a.cmp(al, i32::from(b'9'))?;
    a.jbe(decimal)?;
    a.add(al, i32::from(b'a' - b'0' - 10))?;
    a.set_label(&mut decimal)?;
    a.stosb()?;
    a.sub(ecx, 4)?;
    a.jns(digit)?;
    a.ret()?;

    a.set_label(&mut pagemap)?;
    a.db(b"/proc/self/pagemap\0")?;
    for (label, bytes) in text.iter_mut().zip(TEXT) {
        a.set_label(label)?;
        a.db(bytes)?;
    }
    Ok(())
}

/// The line's parts around its three numbers.
const TEXT: [&[u8]; 4] = [b"GVA: ", b", GPA: ", b", Val: ", b"\n"];

/// System call `number`; its arguments are in the registers already.
fn system_call(a: &mut CodeAssembler, number: u32) -> Result<(), IcedError> {
    a.mov(eax, number)?;
    a.syscall()
}

/// Copies `bytes`, which are at `from`, to RDI and moves RDI behind them.
fn copy(a: &mut CodeAssembler, from: CodeLabel, bytes: &[u8]) -> Result<(), IcedError> {
    a.lea(rsi, byte_ptr(from))?;
    a.mov(ecx, u32::try_from(bytes.len()).unwrap_or_default())?;
    a.rep().movsb()
}

/// ELF-64 header and program header in one (System V ABI, "Object Files"), for a file of one segment.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Headers {
    ident: [u8; 16],
    kind: u16,
    machine: u16,
    version: u32,
    entry: u64,
    program_headers: u64,
    section_headers: u64,
    flags: u32,
    header_size: u16,
    program_header_size: u16,
    program_header_count: u16,
    section_header_size: u16,
    section_header_count: u16,
    section_names: u16,
    segment_kind: u32,
    segment_flags: u32,
    segment_offset: u64,
    segment_address: u64,
    segment_physical: u64,
    segment_file_size: u64,
    segment_memory_size: u64,
    segment_align: u64,
}

fn headers(code: u64) -> Vec<u8> {
    let headers = Headers {
        // 64-bit, little endian, version 1, System V.
        ident: *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0",
        // ET_EXEC for EM_X86_64.
        kind: 2,
        machine: 62,
        version: 1,
        entry: CODE,
        program_headers: 64,
        section_headers: 0,
        flags: 0,
        header_size: 64,
        program_header_size: 56,
        program_header_count: 1,
        section_header_size: 64,
        section_header_count: 0,
        section_names: 0,
        // PT_LOAD, readable and executable.
        segment_kind: 1,
        segment_flags: 5,
        segment_offset: 0,
        segment_address: BASE,
        segment_physical: BASE,
        segment_file_size: HEADERS + code,
        segment_memory_size: HEADERS + code,
        segment_align: 4096,
    };
    headers.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use iced_x86::{Code, Decoder, DecoderOptions, Register};

    use super::*;

    #[test]
    fn the_headers_have_the_size_the_code_counts_on() {
        assert_eq!(headers(0).len() as u64, HEADERS);
    }

    /// It is a Linux program, so the host can run it.
    #[test]
    fn it_runs_and_prints_what_it_sees() {
        let program = Program::assemble().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("peek");
        std::fs::write(&path, &program.file).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let output = Command::new(&path).output().unwrap();
        let line = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{:?} {line}", output.status);
        let gpa = line.strip_prefix("GVA: 1000000000, GPA: ").unwrap();
        let gpa = gpa.strip_suffix(", Val: 736e6f63\n").unwrap();
        assert_eq!(u64::from_str_radix(gpa, 16).unwrap() & 0xfff, 0);
        assert!(gpa == "0" || !gpa.starts_with('0'));
    }

    #[test]
    fn the_second_read_is_where_it_is_said_to_be() {
        let program = Program::assemble().unwrap();
        let offset = usize::try_from(program.read_again - BASE).unwrap();
        let mut decoder = Decoder::with_ip(64, &program.file[offset..], program.read_again, DecoderOptions::NONE);
        let instruction = decoder.decode();
        assert_eq!((instruction.code(), instruction.memory_base()), (Code::Mov_r32_rm32, Register::RBX));
    }
}
