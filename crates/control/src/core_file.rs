//! `dump-guest-memory`: RAM and registers as an ELF core file, which gdb, crash and drgn read.
//!
//! The notes are Linux's `NT_PRSTATUS` of each vCPU QEMU's own of its system registers (`target/i386/arch_dump.c`),
//! and Vitrine's of what that leaves out.
//! Segments are by physical address; with `-p` by the virtual ones of the current vCPU's page tables. Pages of zeros
//! become holes in the file. A Linux kernel's own `VMCOREINFO` is
//! added where it is found by its symbol. Left out: compressed forms.

use crate::arguments::Arguments;
use crate::dump::cannot_be_written;
use crate::monitor::{Monitor, MonitorError, Outcome};
use crate::registers::Snapshot;
use machine::{Registers, RunState};
use memory::map::RegionKind;
use memory::walk::Mode;
use memory::walk::spans::Alike;
use memory::{Gpa, Gva};
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use x86::Segment;

/// Segments that a core file may have: program headers are counted in 16 bits, and one is for the notes.
const SEGMENTS_MAX: usize = 0xfff0;
/// The name of Vitrine's own note: see [`more_registers`].
pub(crate) const MORE: &str = "VITRINE";
/// Bytes of the ELF header, and of a program header.
const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
/// Bytes that are copied at once.
const CHUNK: usize = 1 << 16;

/// A piece of RAM, and where it is in the file.
struct Piece {
    gpa: u64,
    len: u64,
    offset: u64,
}

/// A segment: virtual and physical address, length.
struct Load {
    vaddr: u64,
    gpa: u64,
    len: u64,
}

/// `dump-guest-memory`.
pub(crate) fn dump(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let paging = arguments.flag('p');
    let name = arguments.word()?;
    arguments.end()?;
    let running = monitor.handle.run_state() == RunState::Running;
    monitor.handle.pause();
    let result = if monitor.handle.wait_paused() { write(monitor, paging, &name) } else { Ok(()) };
    if running {
        monitor.handle.resume();
    }
    result.map(|()| String::new())
}

fn write(monitor: &Monitor, paging: bool, name: &str) -> Result<(), MonitorError> {
    let all = 0..monitor.handle.vcpus();
    let vcpus: Result<Vec<Snapshot>, _> = all.map(|index| monitor.handle.inspect(index, Snapshot::take)).collect();
    let vcpus = vcpus?;
    let regions = monitor.handle.map().regions().into_iter();
    let ram = regions.filter(|region| matches!(region.kind, RegionKind::Ram(_)));
    let ram: Vec<(u64, u64)> = ram.map(|region| (region.range.start.0, region.range.end.0)).collect();
    let loads = if paging { virtually(monitor, &ram)? } else { physically(&ram) };
    let mut notes = notes(&vcpus);
    notes.extend(core_info(monitor)?);
    let headers = HEADER + PROGRAM_HEADER * (loads.len() as u64 + 1);
    let mut offset = (headers + notes.len() as u64).next_multiple_of(x86::PAGE_SIZE);
    let mut pieces = Vec::new();
    for (start, end) in ram {
        pieces.push(Piece { gpa: start, len: end - start, offset });
        offset += end - start;
    }
    let failed = |error| cannot_be_written(name, &error);
    let mut file = File::create(name).map_err(failed)?;
    let mut head = header(loads.len() + 1);
    head.extend(program_header(4, 0, headers, 0, 0, notes.len() as u64));
    for load in &loads {
        let piece = pieces.iter().find(|piece| (piece.gpa..piece.gpa + piece.len).contains(&load.gpa));
        let offset = piece.map_or(0, |piece| piece.offset + (load.gpa - piece.gpa));
        head.extend(program_header(1, 7, offset, load.vaddr, load.gpa, load.len));
    }
    head.extend(notes);
    file.write_all(&head).map_err(failed)?;
    for piece in &pieces {
        copy(monitor, piece, &mut file).map_err(failed)?;
    }
    file.set_len(offset).map_err(failed)
}

fn physically(ram: &[(u64, u64)]) -> Vec<Load> {
    ram.iter().map(|&(start, end)| Load { vaddr: start, gpa: start, len: end - start }).collect()
}

/// What of RAM the page tables of the current vCPU map.
fn virtually(monitor: &Monitor, ram: &[(u64, u64)]) -> Result<Vec<Load>, MonitorError> {
    let space = &monitor.snapshot()?.space;
    if space.paging().mode() == Mode::Off {
        return Ok(physically(ram));
    }
    let found = space.spans(Alike::Pages, Gva(0), Gva(u64::MAX), SEGMENTS_MAX);
    if found.rest.is_some() {
        let what = "the page tables map more pieces than a core file can have segments: leave out -p";
        return Err(MonitorError::Other(what.to_owned()));
    }
    let mut loads: Vec<Load> = Vec::new();
    for span in found.spans {
        for (start, end) in ram {
            let (first, last) = (span.gpa.0.max(*start), (span.gpa.0 + span.len).min(*end));
            if first >= last {
                continue;
            }
            let load = Load { vaddr: span.gva.0 + (first - span.gpa.0), gpa: first, len: last - first };
            match loads.last_mut() {
                // Only flags differ.
                Some(last) if last.vaddr + last.len == load.vaddr && last.gpa + last.len == load.gpa => {
                    last.len += load.len;
                }
                _ => loads.push(load),
            }
        }
    }
    Ok(loads)
}

fn copy(monitor: &Monitor, piece: &Piece, file: &mut File) -> io::Result<()> {
    let mut bytes = vec![0; CHUNK];
    let mut done = 0;
    while done < piece.len {
        let chunk = usize::try_from(piece.len - done).unwrap_or(CHUNK).min(CHUNK);
        let Some(chunk) = bytes.get_mut(..chunk) else { break };
        let read = monitor.handle.map().read(Gpa(piece.gpa + done), chunk).is_ok();
        if read && chunk.iter().any(|byte| *byte != 0) {
            file.seek(SeekFrom::Start(piece.offset + done))?;
            file.write_all(chunk)?;
        }
        done += chunk.len() as u64;
    }
    Ok(())
}

/// The ELF header of a core file for x86-64 with this many program headers.
fn header(count: usize) -> Vec<u8> {
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for half in [4_u16, 62] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend(1_u32.to_le_bytes());
    for word in [0, HEADER, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0_u32.to_le_bytes());
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    for half in [HEADER as u16, PROGRAM_HEADER as u16, count, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    bytes
}

fn program_header(kind: u32, flags: u32, offset: u64, vaddr: u64, gpa: u64, len: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = [kind, flags].iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend([offset, vaddr, gpa, len, len, 0].iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

fn notes(vcpus: &[Snapshot]) -> Vec<u8> {
    let status = vcpus.iter().flat_map(|vcpu| note("CORE", 1, &process_status(&vcpu.registers)));
    let system = vcpus.iter().flat_map(|vcpu| note("QEMU", 0, &system_registers(vcpu)));
    let more = vcpus.iter().flat_map(|vcpu| note(MORE, 0, &more_registers(vcpu)));
    status.chain(system).chain(more).collect()
}

/// What the guest's kernel tells of itself, which drgn and crash look for, and makedumpfile.
fn core_info(monitor: &Monitor) -> Result<Vec<u8>, MonitorError> {
    let Some((entry, gpa)) = monitor.snapshot()?.entry else { return Ok(Vec::new()) };
    let info = monitor.handle.lens().kernel().core_info(monitor.handle.map(), entry, gpa);
    Ok(info.map(|info| note("VMCOREINFO", 0, &info)).unwrap_or_default())
}

fn note(name: &str, kind: u32, contents: &[u8]) -> Vec<u8> {
    let lengths = [name.len() as u32 + 1, contents.len() as u32, kind];
    let mut bytes: Vec<u8> = lengths.iter().flat_map(|word| word.to_le_bytes()).collect();
    for part in [&[name.as_bytes(), b"\0"].concat(), contents] {
        bytes.extend(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Linux's `struct elf_prstatus`: the process's number, and registers as ptrace has them.
fn process_status(registers: &Registers) -> Vec<u8> {
    let Registers { cpu, regs, rip, rflags, seg, .. } = registers;
    let [es, cs, ss, ds, fs, gs] = seg.each_ref().map(|segment| u64::from(segment.selector.into_bits()));
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = *regs;
    let values = [
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r11,
        r10,
        r9,
        r8,
        rax,
        rcx,
        rdx,
        rsi,
        rdi,
        u64::MAX,
        *rip,
        cs,
        *rflags,
        rsp,
        ss,
        seg[4].base,
        seg[5].base,
        ds,
        es,
        fs,
        gs,
    ];
    let mut bytes = vec![0; 32];
    bytes.extend((cpu + 1).to_le_bytes());
    bytes.resize(112, 0);
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes.resize(336, 0);
    bytes
}

/// What that leaves out of how addresses are translated: EFER, PKRU and PKRS.
fn more_registers(vcpu: &Snapshot) -> Vec<u8> {
    let registers = vcpu.space.paging().registers();
    let words = [vcpu.registers.efer, registers.pkru.into(), registers.pkrs.into()];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// QEMU's `struct QEMUCPUState`, version 1.
fn system_registers(vcpu: &Snapshot) -> Vec<u8> {
    let Registers { regs, rip, rflags, seg, ldtr, tr, gdtr, idtr, cr, .. } = &vcpu.registers;
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, rest @ ..] = *regs;
    let mut words = vec![rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp];
    words.extend(rest);
    words.extend([*rip, *rflags]);
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let table = |base, limit| Segment { base, limit: u32::from(limit), ..Segment::default() };
    let [es, cs, ss, ds, fs, gs] = *seg;
    let tables = [table(gdtr.base, gdtr.limit), table(idtr.base, idtr.limit)];
    for segment in [cs, ds, es, fs, gs, ss, *ldtr, *tr].into_iter().chain(tables) {
        let attributes = u32::from(segment.attributes.into_bits());
        let flags = (attributes & 0xff) << 8 | (attributes >> 8 & 0xf) << 20;
        for word in [segment.selector.into_bits().into(), segment.limit, flags, 0] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(segment.base.to_le_bytes());
    }
    let [cr0, cr2, cr3, cr4] = *cr;
    let last = [cr0, 0, cr2, cr3, cr4, vcpu.value("k_gs_base").unwrap_or(0)];
    bytes.extend(last.iter().flat_map(|word| word.to_le_bytes()));
    let size = bytes.len() as u32 + 8;
    [&1_u32.to_le_bytes()[..], &size.to_le_bytes(), &bytes].concat()
}
