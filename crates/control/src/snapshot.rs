//! A machine that once was, as `dump-guest-memory` has it in a file: what its first vCPU makes of an address.
//!
//! What is read are the segments, by physical address, and the notes of `core_file`. The notes of QEMU's own core files do
//! not have EFER, PKRU and PKRS: there, long mode is taken from where the IDT is, no-execute for enabled, and protection
//! keys allow everything. The guest's kernel is found by its handler of page faults, and its symbols in its own memory.
//! Left out: all vCPUs but the first, and compressed files.
//!
//! A file may have anything in it: what does not fit is refused, and memory is taken only for what is not zero.

use crate::core_file::MORE;
use crate::explain::{View, drawn};
use crate::expression::{self, ExpressionError};
use lens::symbols::{Kernel, by_cr3};
use memory::map::MapError;
use memory::mmu::PagingRegisters;
use memory::ram::{GuestRam, HOLE_END, HOLE_START, RamError};
use memory::{Gpa, Gva, Mmu, PhysicalMap};
use object::elf::{FileHeader64, PT_LOAD, PT_NOTE};
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{LittleEndian, ReadCacheOps, ReadRef};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use x86::{Cr0, Cr4, Efer};

/// General registers in the order of QEMU's note, which continues with these.
const REGISTERS: [&str; 18] = [
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
    "rip", "rflags",
];
/// Where that note has what, in bytes: CS, the base of the IDT, and CR0.
const CS: usize = 8 + 8 * REGISTERS.len();
const IDT_BASE: usize = CS + 24 * 9 + 16;
const CR0: usize = CS + 24 * 10;
/// Bytes that are read at once.
const CHUNK: u64 = 1 << 20;
/// The vector of page faults, whose handler is in every kernel.
const PAGE_FAULT: u64 = 14;
const NO_EXECUTE: u64 = 1 << 11;
const LONG_MODE: u64 = 1 << 10 | 1 << 8;

/// Why a file does not tell of a machine.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It is something else, or not whole.
    #[error("{0}; a file that dump-guest-memory wrote would be right")]
    Strange(&'static str),
    /// Its memory is more than the host has room for.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The same.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The address is none.
    #[error("{0}")]
    Address(String),
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// What the notes say of the first vCPU.
struct Notes {
    system: Vec<u8>,
    /// EFER, PKRU, PKRS.
    more: Option<[u64; 3]>,
}

impl Notes {
    fn register(&self, name: &str) -> Option<u64> {
        let control = ["cr0", "cr1", "cr2", "cr3", "cr4"].iter().position(|register| *register == name);
        let general = REGISTERS.iter().position(|register| *register == name);
        let place = control.map(|n| CR0 + 8 * n).or_else(|| general.map(|n| 8 + 8 * n))?;
        word(&self.system, place)
    }

    fn paging(&self) -> PagingRegisters {
        let value = |name: &str| self.register(name).unwrap_or(0);
        let (cr0, idt) = (Cr0::from_bits(value("cr0")), word(&self.system, IDT_BASE).unwrap_or(0));
        let long = cr0.paging() && idt >> 32 != 0;
        let [efer, pkru, pkrs] = self.more.unwrap_or([NO_EXECUTE | if long { LONG_MODE } else { 0 }, 0, 0]);
        let low = |word: u64| (word & u64::from(u32::MAX)) as u32;
        PagingRegisters {
            cr0,
            cr3: value("cr3"),
            cr4: Cr4::from_bits(value("cr4")),
            efer: Efer::from_bits(efer),
            pkru: low(pkru),
            pkrs: low(pkrs),
        }
    }
}

/// A piece of memory: where it was, where it is in the file, and how long it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Piece {
    gpa: u64,
    offset: u64,
    len: u64,
}

fn read(path: &Path) -> Result<(Notes, PhysicalMap), SnapshotError> {
    let cache = ReadCache::new(File::open(path)?);
    let strange = |what| move |_| SnapshotError::Strange(what);
    let header = FileHeader64::<LittleEndian>::parse(&cache).map_err(strange("not an ELF file of 64 bits"))?;
    let endian = header.endian().map_err(strange("not a little-endian ELF file"))?;
    let headers = header.program_headers(endian, &cache).map_err(strange("an ELF file without program headers"))?;
    let (mut pieces, mut system, mut more) = (Vec::new(), None, None);
    for header in headers {
        if header.p_type(endian) == PT_LOAD {
            let (offset, len) = header.file_range(endian);
            pieces.push(Piece { gpa: header.p_paddr(endian), offset, len });
        }
        if header.p_type(endian) != PT_NOTE {
            continue;
        }
        let notes = header.notes(endian, &cache).map_err(strange("a core file whose notes are cut off"))?;
        let mut notes = notes.ok_or(SnapshotError::Strange("a core file without notes"))?;
        while let Ok(Some(note)) = notes.next() {
            match note.name() {
                b"QEMU" => system = system.or(Some(note.desc().to_vec())),
                name if name == MORE.as_bytes() && more.is_none() => {
                    let words = [0, 8, 16].map(|at| word(note.desc(), at));
                    more = if let [Some(a), Some(b), Some(c)] = words { Some([a, b, c]) } else { None };
                }
                _ => {}
            }
        }
    }
    let system = system.filter(|system| system.len() >= CR0 + 40);
    let system = system.ok_or(SnapshotError::Strange("a core file without the registers of a vCPU"))?;
    pieces.sort_unstable();
    Ok((Notes { system, more }, memory(&cache, &pieces)?))
}

/// Memory with these pieces, which are in ascending order and may overlap.
fn memory<R: ReadCacheOps>(file: &ReadCache<R>, pieces: &[Piece]) -> Result<PhysicalMap, SnapshotError> {
    let end = pieces.iter().map(|piece| piece.gpa.saturating_add(piece.len)).max().unwrap_or(0);
    let size = if end > HOLE_END { end - (HOLE_END - HOLE_START) } else { end.min(HOLE_START) };
    let size = size.checked_next_multiple_of(x86::PAGE_SIZE).ok_or(SnapshotError::Strange("memory without end"))?;
    let map = PhysicalMap::new(GuestRam::new(size)?)?;
    let mut done = 0_u64;
    for Piece { gpa, offset, len } in pieces.iter().copied() {
        let mut from = done.saturating_sub(gpa).min(len);
        while from < len {
            let chunk = CHUNK.min(len - from);
            let bytes = file.read_bytes_at(offset.saturating_add(from), chunk);
            let bytes = bytes.map_err(|()| SnapshotError::Strange("a core file whose memory is cut off"))?;
            if bytes.iter().any(|byte| *byte != 0) {
                // What lies in the hole for devices is no memory of theirs.
                let _ = map.write(Gpa(gpa + from), bytes);
            }
            from += chunk;
        }
        done = done.max(gpa.saturating_add(len));
    }
    Ok(map)
}

/// What `explain` says of the address that an expression names, such as `$rip` or `jiffies+4`, by the machine whose
/// memory and registers are in the file at `path`.
///
/// # Errors
/// The file cannot be read or is something else, or the expression is none.
pub fn explain_snapshot(path: &Path, mut expression: &str) -> Result<String, SnapshotError> {
    let (notes, map) = read(path)?;
    let map = Arc::new(map);
    let mut mmu = Mmu::new(map.clone(), 0);
    // Whatever the processor had: a file does not say.
    mmu.set_physical_bits(52);
    mmu.set_registers(notes.paging());
    let space = mmu.address_space();
    let kernel = Kernel::default();
    let image = handler(&notes, &mmu).and_then(|entry| Some((entry, mmu.translate(entry)?)));
    let (symbols, processes) = match image {
        Some((entry, gpa)) => {
            let processes = kernel.processes(&map, entry, gpa).map(|processes| processes.list(&map));
            (kernel.symbols(&map, entry, gpa), processes.unwrap_or_default())
        }
        None => (Arc::default(), Vec::new()),
    };
    let values = |name: &str| {
        Ok(match name.strip_prefix('$') {
            Some(register) => notes.register(register),
            None => symbols.find(name).map(|gva| gva.0),
        })
    };
    let wrong = |error: ExpressionError| SnapshotError::Address(error.to_string());
    let gva = Gva(expression::take(&mut expression, &values).map_err(wrong)?);
    if !expression.is_empty() {
        return Err(SnapshotError::Address(format!("extraneous characters behind the address: '{expression}'")));
    }
    let cr3 = notes.paging().cr3;
    let process = by_cr3(&processes, cr3).cloned();
    let cpl = notes.system.get(CS).map_or(0, |selector| selector & 3);
    let view = View { space, cpu: 0, cpl, cr3, process, symbols: symbols.clone(), pagemap: None };
    Ok(drawn(&view, gva, &["not in a file".to_owned()]))
}

/// Where the kernel handles page faults, by its IDT (APM vol. 2, 4.8.4).
fn handler(notes: &Notes, mmu: &Mmu) -> Option<Gva> {
    let mut gate = [0; 16];
    let at = Gva(word(&notes.system, IDT_BASE)?.wrapping_add(16 * PAGE_FAULT));
    mmu.address_space().read(at, &mut gate).ok()?;
    let (low, high) = (word(&gate, 0)?, word(&gate, 8)?);
    Some(Gva(low & 0xffff | low >> 32 & 0xffff_0000 | high << 32))
}
