//! The figures of a running machine, for those who show them again and again: the page in the browser, `vitrine top`,
//! and whoever asks by QEMU's machine protocol (`query-figures`).
//!
//! All are counts since the machine was made; who wants rates subtracts. Addresses are hexadecimal texts, since JSON's
//! numbers hold 53 bits for many a reader.

use crate::info;
use crate::look::Watched;
use crate::monitor::{Monitor, MonitorError};
use crate::registers::Snapshot;
use lens::symbols::{Process, by_cr3};
use machine::{Bus, VcpuStats};
use memory::walk::Mode;
use memory::{Gpa, Gva};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long instructions are counted to know their rate.
pub(crate) const WINDOW: Duration = Duration::from_millis(40);
/// Processes that are listed.
const PROCESSES: usize = 256;
/// Address spaces of a working set.
const SPACES: usize = 8;

/// A machine's figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Nanoseconds that the machine has run.
    pub time: u64,
    /// `running`, `paused`, `prelaunch` or `shutdown`.
    pub status: String,
    /// Where guest physical memory ends, in bytes.
    pub memory: u64,
    /// Each vCPU.
    pub vcpus: Vec<Vcpu>,
    /// Each device.
    pub devices: Vec<Device>,
    /// What is watched.
    pub watched: Watched,
    /// The pages touched since the mark, if one is set.
    pub working_set: Option<WorkingSet>,
    /// Processes that have page tables, where they can be listed: names, and the roots of their tables.
    pub processes: Vec<(String, String)>,
}

/// The pages touched since a mark.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    /// When the mark was set, as [`Figures::time`].
    pub since: u64,
    /// Each page once, whoever touched it.
    pub total: Pages,
    /// The largest address spaces.
    pub spaces: Vec<Space>,
}

/// An address space's part of a working set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// The root of its page tables.
    pub root: String,
    /// Whose it is, where the guest's processes can be listed.
    pub process: Option<String>,
    /// What was touched in it.
    pub pages: Pages,
}

/// How many pages were touched, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in lens::touched::Pages")]
pub struct Pages {
    pub all: u64,
    pub read: u64,
    pub written: u64,
    pub fetched: u64,
}

impl From<lens::touched::Pages> for Pages {
    fn from(lens::touched::Pages { all, read, written, fetched }: lens::touched::Pages) -> Self {
        Self { all, read, written, fetched }
    }
}

/// A vCPU's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Vcpu {
    /// Instructions that it executes in a second, if that was to be measured.
    pub rate: Option<f64>,
    /// Where it is.
    pub rip: String,
    /// In which function of the guest's kernel that is.
    pub symbol: Option<String>,
    /// Current privilege level.
    pub cpl: u8,
    /// Whether it sleeps in HLT.
    pub halted: bool,
    /// CR3.
    pub cr3: String,
    /// The process whose that is.
    pub process: Option<String>,
    /// How it translates addresses.
    pub paging: String,
    /// The TLB's slow path.
    pub tlb: Tlb,
    /// Exceptions and interrupts that were delivered, by vector; none that was not.
    pub delivered: Vec<Delivered>,
    /// The translator, if there is one.
    pub translator: Option<Translator>,
    /// Registers, by name.
    pub registers: Vec<(String, String)>,
}

/// What the TLB's slow path found where. Hits of the fast path are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in memory::tlb::Stats")]
pub struct Tlb {
    pub hits: u64,
    pub victim_hits: u64,
    pub global_hits: u64,
    pub walks: u64,
    pub faults: u64,
    pub page_flushes: u64,
    pub context_flushes: u64,
    pub full_flushes: u64,
    pub grown: u64,
}

/// How often a vector was delivered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// The vector.
    pub vector: u8,
    /// What it is called.
    pub name: String,
    /// How often.
    pub count: u64,
}

/// The translator's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Translator {
    /// Regions translated.
    pub regions: u64,
    /// Guest instructions translated.
    pub instructions: u64,
    /// Bytes of host code made from them.
    pub code: u64,
    /// Times that translated code was entered.
    pub entered: u64,
    /// Accesses that needed nothing but an entry in the TLB.
    pub refilled: u64,
    /// Times that the oldest code was dropped for want of room.
    pub flushes: u64,
}

/// A device's figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What it is called.
    pub name: String,
    /// Whether by I/O ports; else by memory accesses.
    pub ports: bool,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

impl Monitor {
    /// The machine's figures now. With `measure`, instructions are counted for a moment first.
    ///
    /// # Errors
    /// A vCPU cannot be looked at.
    pub fn figures(&mut self, measure: bool) -> Result<Figures, MonitorError> {
        let rates = if measure { self.handle.measure(WINDOW)? } else { Vec::new() };
        let look = |vcpu: &mut machine::Vcpu| (Snapshot::take(vcpu), vcpu.stats());
        let mut processes = Vec::new();
        let vcpus = (0..self.handle.vcpus()).map(|index| {
            let (snapshot, stats) = self.handle.inspect(index, look)?;
            // One kernel runs on all of them.
            if index == 0 {
                processes = self.processes(&snapshot).unwrap_or_default();
            }
            Ok(Vcpu { rate: rates.get(index).copied(), ..self.vcpu(&snapshot, &stats, &processes) })
        });
        let vcpus = vcpus.collect::<Result<_, MonitorError>>()?;
        let device = |device: machine::DeviceCount| Device {
            name: device.name,
            ports: device.bus == Bus::Port,
            reads: device.reads,
            writes: device.writes,
        };
        Ok(Figures {
            time: self.handle.stats().time,
            status: info::state(self.handle.run_state()).to_owned(),
            memory: lens::touched::extent(self.handle.map()).0,
            vcpus,
            devices: self.handle.device_counts().into_iter().map(device).collect(),
            watched: self.watched(),
            working_set: self.working_set(&processes)?,
            processes: listed(&processes),
        })
    }

    fn working_set(&self, processes: &[Process]) -> Result<Option<WorkingSet>, MonitorError> {
        let space = |root: Gpa, pages: lens::touched::Pages| Space {
            root: format!("{root:016x}"),
            process: process_of(processes, root.0),
            pages: pages.into(),
        };
        let shown = |set: lens::touched::WorkingSet| WorkingSet {
            since: set.since,
            total: set.total.into(),
            spaces: set.spaces.iter().take(SPACES).map(|(root, pages)| space(*root, *pages)).collect(),
        };
        Ok(self.handle.working_set()?.map(shown))
    }

    fn vcpu(&self, snapshot: &Snapshot, stats: &VcpuStats, processes: &[Process]) -> Vcpu {
        let memory::tlb::Stats {
            hits,
            victim_hits,
            global_hits,
            walks,
            faults,
            page_flushes,
            context_flushes,
            full_flushes,
            grown,
        } = stats.tlb;
        let registers = &snapshot.registers;
        let delivered = (0..=u8::MAX).zip(&stats.delivered).filter(|(_, count)| **count > 0);
        Vcpu {
            rate: None,
            rip: format!("{:016x}", registers.rip),
            symbol: self.symbols(snapshot).at(Gva(registers.rip)).map(|named| named.to_string()),
            cpl: registers.cpl,
            halted: registers.halted,
            cr3: format!("{:016x}", registers.cr[2]),
            process: process_of(processes, registers.cr[2]),
            paging: paging(snapshot.space.paging().mode()).to_owned(),
            tlb: Tlb {
                hits,
                victim_hits,
                global_hits,
                walks,
                faults,
                page_flushes,
                context_flushes,
                full_flushes,
                grown,
            },
            delivered: delivered
                .map(|(vector, count)| Delivered { vector, name: x86::vector_name(vector).to_owned(), count: *count })
                .collect(),
            translator: stats.jit.as_ref().map(|jit| Translator {
                regions: jit.regions,
                instructions: jit.instructions,
                code: jit.code + jit.cold_code,
                entered: jit.entered,
                refilled: jit.refilled,
                flushes: jit.flushes,
            }),
            registers: snapshot.listed(),
        }
    }
}

/// Whose page tables CR3 with this value names.
pub(crate) fn process_of(processes: &[Process], cr3: u64) -> Option<String> {
    by_cr3(processes, cr3).map(named)
}

fn named(process: &Process) -> String {
    format!("{} ({})", process.name, process.pid)
}

fn listed(processes: &[Process]) -> Vec<(String, String)> {
    let with_tables = processes.iter().filter_map(|process| Some((named(process), format!("{:016x}", process.table?))));
    with_tables.take(PROCESSES).collect()
}

/// What a paging mode is called.
pub(crate) fn paging(mode: Mode) -> &'static str {
    match mode {
        Mode::Off => "no paging",
        Mode::Legacy => "32-bit paging",
        Mode::Pae => "PAE paging",
        Mode::Level4 => "4-level paging",
        Mode::Level5 => "5-level paging",
    }
}
