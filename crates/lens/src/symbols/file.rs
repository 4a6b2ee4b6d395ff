//! Symbols from files: `System.map` and `vmlinux` of the guest's kernel, and programs.
//!
//! A kernel's file tells where the kernel was linked to be; where it is follows from its entry for system calls, of which
//! the processor is told. The file is taken only if it is that kernel's: `vmlinux` by its build id and its banner
//! (`Linux version …`), which must be in the guest's memory where the file has them; `System.map`, which has neither, by a
//! banner being where it says, and by the kernel's own table of symbols if that has one. A program's file is taken as it is.
//!
//! Left out: modules, and the symbols that shared libraries have for the dynamic linker alone.

use super::Table;
use addr2line::Loader;
use memory::{Gpa, Gva, PhysicalMap};
use object::read::ReadCache;
use object::{Object, ObjectKind, ObjectSection, ObjectSegment, ObjectSymbol, SymbolKind};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

/// Where x86-64 kernels are linked to be.
const KERNEL: u64 = 0xffff_ffff_8000_0000;
/// What a kernel is moved by is a multiple of this (the least `CONFIG_PHYSICAL_ALIGN`).
const ALIGN: u64 = 2 << 20;
/// Where system calls enter.
const ENTRY: &str = "entry_SYSCALL_64";
const BANNER: &str = "linux_banner";
/// How a banner begins.
const VERSION: &[u8] = b"Linux version ";
/// Bytes of a banner that are compared and shown.
const BANNER_MAX: usize = 512;
/// Bytes of a text file that are read; kernels' have up to 15 MiB.
const TEXT_MAX: u64 = 256 << 20;
/// Kinds of notes: `NT_GNU_BUILD_ID`.
const BUILD_ID: u32 = 3;
/// One in so many of a kernel's own symbols may be elsewhere, or not at all, in its `System.map`.
const STRAY: usize = 100;

/// A file of symbols, and where it was loaded if it is a program: `[ADDRESS@]FILE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub path: PathBuf,
    /// Where the first byte of its first segment is, by guest virtual address; `None`: where it was linked to be.
    pub at: Option<Gva>,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok();
        let split = text.split_once('@').and_then(|(at, path)| Some((Gva(number(at)?), path)));
        let (at, path) = split.map_or((None, text), |(at, path)| (Some(at), path));
        if path.is_empty() {
            return Err("a file is to be named: System.map, vmlinux, or [ADDRESS@]PROGRAM".to_owned());
        }
        Ok(Self { path: path.into(), at })
    }
}

/// Why a file is no file of symbols.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct FileError {
    path: PathBuf,
    what: String,
}

/// What a file is.
#[derive(Debug)]
enum Kind {
    /// A list of a kernel's symbols.
    Map,
    /// A kernel.
    Kernel { build_id: Option<Vec<u8>>, banner: Option<Vec<u8>> },
    /// Something else, which is this far from where it was linked to be.
    Program { moved: u64 },
}

/// A file of symbols.
pub struct File {
    path: PathBuf,
    kind: Kind,
    /// By the addresses of the file.
    table: Table,
    /// Its lines of source; the outer `None`: not looked for yet.
    lines: Mutex<Option<Option<Loader>>>,
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("path", &self.path).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Where the kernel is: its entry for system calls, by virtual and by physical address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image<'a> {
    pub map: &'a PhysicalMap,
    pub entry: Gva,
    pub gpa: Gpa,
}

impl Image<'_> {
    /// Reads the kernel's image, which is in one piece.
    pub fn read(&self, gva: Gva, bytes: &mut [u8]) -> bool {
        self.map.read(self.gpa.wrapping_add(gva.0.wrapping_sub(self.entry.0)), bytes).is_ok()
    }

    /// The banner at `gva`, if one is there.
    pub fn banner(&self, gva: Gva) -> Option<String> {
        let mut bytes = [0; BANNER_MAX];
        let text = self.read(gva, &mut bytes).then(|| line(&bytes))?;
        text.starts_with(VERSION).then(|| String::from_utf8_lossy(text).into_owned())
    }
}

/// What comes before the first control character.
fn line(bytes: &[u8]) -> &[u8] {
    bytes.split(u8::is_ascii_control).next().unwrap_or_default()
}

/// The build id among the notes in `bytes`.
fn build_id(bytes: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let mut at = 0;
    loop {
        let (name_len, len, kind) = (word(at)? as usize, word(at + 4)? as usize, word(at + 8)?);
        let name = bytes.get(at + 12..)?.get(..name_len)?;
        let start = at + 12 + name_len.next_multiple_of(4);
        let contents = bytes.get(start..)?.get(..len)?;
        if name == b"GNU\0" && kind == BUILD_ID {
            return Some(contents);
        }
        at = start + len.next_multiple_of(4);
    }
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is no file of symbols.
    pub fn open(source: &Source) -> Result<Self, FileError> {
        let failed = |what: String| FileError { path: source.path.clone(), what };
        let mut file = std::fs::File::open(&source.path).map_err(|error| failed(error.to_string()))?;
        let mut start = Vec::new();
        let read = Read::by_ref(&mut file).take(0x206).read_to_end(&mut start);
        read.map_err(|error| failed(error.to_string()))?;
        let (kind, table) = if start.starts_with(b"\x7fELF") {
            elf(file, source.at).map_err(failed)?
        } else if start.get(0x202..0x206) == Some(b"HdrS") {
            return Err(failed("a compressed kernel; its System.map or vmlinux would be right".to_owned()));
        } else {
            let mut text = start;
            file.take(TEXT_MAX).read_to_end(&mut text).map_err(|error| failed(error.to_string()))?;
            (Kind::Map, list(&text).map_err(failed)?)
        };
        if source.at.is_some() && !matches!(kind, Kind::Program { .. }) {
            return Err(failed("a kernel's place is found by itself: give the file without ADDRESS@".to_owned()));
        }
        Ok(Self { path: source.path.clone(), kind, table, lines: Mutex::default() })
    }

    /// Which file it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a kernel's; else a program's.
    #[must_use]
    pub fn is_kernel(&self) -> bool {
        !matches!(self.kind, Kind::Program { .. })
    }

    /// How far a program is from where it was linked to be.
    pub(super) fn moved(&self) -> Option<u64> {
        match self.kind {
            Kind::Program { moved } => Some(moved),
            _ => None,
        }
    }

    /// The symbols, moved by so many bytes.
    pub(super) fn symbols(&self, moved: u64) -> impl Iterator<Item = (Gva, &str)> {
        self.table.iter().map(move |(gva, name)| (gva.wrapping_add(moved), name))
    }

    /// How far the guest's kernel is from where this one was linked to be, or why it is not that one. `own` are the
    /// symbols that it has itself.
    pub(super) fn fit(&self, image: Image<'_>, own: Option<&Table>) -> Result<u64, String> {
        let banner = |gva: Option<Gva>| gva.and_then(|gva| image.banner(gva));
        let entry = self.table.find(ENTRY).ok_or_else(|| format!("it has no symbol {ENTRY}"))?;
        let moved = image.entry.0.wrapping_sub(entry.0);
        let expected = self.table.find(BANNER).map(|gva| gva.wrapping_add(moved));
        let found = banner(expected).filter(|_| moved.is_multiple_of(ALIGN));
        let guest =
            || found.clone().or_else(|| banner(own?.find(BANNER))).map(|it| format!(" ({it})")).unwrap_or_default();
        let other = |of: &str| Err(format!("it is of another kernel{of} than the guest's{}", guest()));
        let fits = match &self.kind {
            Kind::Kernel { build_id: Some(id), .. } if !self.has_build_id(image, moved, id) => false,
            Kind::Kernel { banner: Some(wanted), .. } => found.as_ref().is_some_and(|it| it.as_bytes() == wanted),
            Kind::Kernel { .. } => found.is_some(),
            _ => found.is_some() && own.is_none_or(|own| self.has_all(own, moved)),
        };
        match &self.kind {
            _ if fits => Ok(moved),
            Kind::Kernel { banner: Some(banner), .. } => other(&format!(" ({})", String::from_utf8_lossy(banner))),
            _ => other(""),
        }
    }

    /// Whether this build id is in the guest's memory where the file has it. Where that is not known, it is taken for so.
    fn has_build_id(&self, image: Image<'_>, moved: u64, wanted: &[u8]) -> bool {
        let (Some(start), Some(end)) = (self.table.find("__start_notes"), self.table.find("__stop_notes")) else {
            return true;
        };
        let mut bytes = vec![0; usize::try_from(end.0.wrapping_sub(start.0)).unwrap_or(0).min(1 << 16)];
        image.read(start.wrapping_add(moved), &mut bytes) && build_id(&bytes) == Some(wanted)
    }

    /// Whether the symbols of `own` are at the same places here, but for a few.
    fn has_all(&self, own: &Table, moved: u64) -> bool {
        let strays = own.iter().filter(|(gva, name)| !self.table.has(Gva(gva.0.wrapping_sub(moved)), name));
        strays.count() <= own.len() / STRAY
    }

    /// File and line of the source of the instruction at `address`, by the addresses of the file.
    pub(super) fn line(&self, address: u64) -> Option<String> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(self.kind, Kind::Map) {
            return None;
        }
        let loader = lines.get_or_insert_with(|| Loader::new(&self.path).ok()).as_ref()?;
        let location = loader.find_location(address).ok()??;
        Some(format!("{}:{}", location.file?, location.line?))
    }
}

/// The symbols of an ELF file, and what it is.
fn elf(file: std::fs::File, at: Option<Gva>) -> Result<(Kind, Table), String> {
    let cache = ReadCache::new(file);
    let elf = object::File::parse(&cache).map_err(|error| format!("not an ELF file that is understood: {error}"))?;
    if elf.architecture() != object::Architecture::X86_64 && elf.architecture() != object::Architecture::I386 {
        return Err(format!("an ELF file for {:?}; one for x86-64 would be right", elf.architecture()));
    }
    let kept = |symbol: &object::Symbol<'_, '_, _>| {
        let named =
            matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Data | SymbolKind::Label | SymbolKind::Unknown);
        named && !symbol.is_undefined() && symbol.address() != 0
    };
    let all = elf.symbols().filter(kept).filter_map(|symbol| Some((Gva(symbol.address()), symbol.name().ok()?)));
    let named = all.filter(|(_, name)| !name.is_empty() && !name.starts_with(['$', '.']));
    let table = Table::new(named);
    if table.is_empty() {
        return Err(
            "an ELF file without symbols (stripped); System.map, or a file with symbols would be right".to_owned()
        );
    }
    if table.find(BANNER).is_some_and(|gva| gva.0 >= KERNEL) {
        let inside = Table::new(table.iter().filter(|(gva, _)| gva.0 >= KERNEL));
        let sections = || elf.sections().filter(|section| section.kind() == object::SectionKind::Note);
        let build_id = sections().find_map(|section| Some(build_id(section.data().ok()?)?.to_owned()));
        let banner = inside.find(BANNER).and_then(|gva| {
            let holds = |section: &object::Section<'_, '_, _>| {
                (section.address()..section.address().saturating_add(section.size())).contains(&gva.0)
            };
            let section = elf.sections().find(holds)?;
            let left = (section.address() + section.size() - gva.0).min(BANNER_MAX as u64);
            let text = line(section.data_range(gva.0, left).ok()??).to_owned();
            text.starts_with(VERSION).then_some(text)
        });
        return Ok((Kind::Kernel { build_id, banner }, inside));
    }
    let first = elf.segments().map(|segment| segment.address()).min().unwrap_or(0);
    let end = elf.segments().map(|segment| segment.address().saturating_add(segment.size())).max().unwrap_or(0);
    if elf.kind() == ObjectKind::Dynamic && at.is_none() {
        let what =
            "a program that may be loaded anywhere; ADDRESS@FILE would be right, with the address of its first byte";
        return Err(what.to_owned());
    }
    let moved = at.map_or(0, |at| at.0.wrapping_sub(first & !x86::PAGE_OFFSET));
    // Nothing behind its end is named after its last symbol.
    let table = Table::new(table.iter().chain([(Gva(end), "")]));
    Ok((Kind::Program { moved }, table))
}

/// The symbols of a `System.map`.
fn list(text: &[u8]) -> Result<Table, String> {
    let wrong = || "neither a System.map (lines such as \"ffffffff81000000 T _text\") nor an ELF file".to_owned();
    let text = std::str::from_utf8(text).map_err(|_| wrong())?;
    let mut symbols = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(address), Some(kind), Some(name), None) = (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(wrong());
        };
        let address = u64::from_str_radix(address, 16).map_err(|_| wrong())?;
        if kind.chars().count() != 1 {
            return Err(wrong());
        }
        if address >= KERNEL {
            symbols.push((Gva(address), name));
        }
    }
    let table = Table::new(symbols);
    match (table.is_empty(), table.find(ENTRY)) {
        (true, _) => Err(wrong()),
        (false, None) => Err(format!("a list of symbols, but of no x86-64 kernel: {ENTRY} is not there")),
        (false, Some(_)) => Ok(table),
    }
}

#[cfg(test)]
mod tests;
