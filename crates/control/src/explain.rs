//! `explain`: the way of one virtual address, as a tree.

use crate::arguments::Arguments;
use crate::command::lines;
use crate::figures::paging;
use crate::monitor::{Monitor, MonitorError, Outcome};
use crate::paging::{hpa, region, region_of, size};
use crate::registers::Snapshot;
use lens::symbols::{Process, Table, by_cr3};
use memory::tlb::{self, Cached, Place};
use memory::walk::{Inspection, Mode, Step, Translation, Want};
use memory::{AddressSpace, Gpa, Gva, Pagemap, Space};
use std::sync::Arc;
use x86::Pte;

/// `explain`.
pub(crate) fn explain(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let gva = Gva(arguments.expression()?);
    arguments.end()?;
    let (view, cached) = look(monitor, gva)?;
    Ok(drawn(&view, gva, &entries(&cached)))
}

/// What the current vCPU makes of `gva`.
fn look(monitor: &Monitor, gva: Gva) -> Result<(View, Vec<Cached>), MonitorError> {
    let (snapshot, cached) = monitor.inspect(move |vcpu| (Snapshot::take(vcpu), vcpu.cpu.mmu.cached(gva)))?;
    let processes = monitor.processes(&snapshot).unwrap_or_default();
    let view = View {
        cpu: snapshot.registers.cpu,
        cpl: snapshot.registers.cpl,
        cr3: snapshot.registers.cr[2],
        process: by_cr3(&processes, snapshot.registers.cr[2]).cloned(),
        symbols: monitor.symbols(&snapshot),
        pagemap: Some(monitor.pagemap.clone()),
        space: snapshot.space,
    };
    Ok((view, cached))
}

/// The tree for `gva`, with these lines on the TLB.
pub(crate) fn drawn(view: &View, gva: Gva, cached: &[String]) -> String {
    let tree = Tree { view, gva };
    let branches = tree.branches(cached);
    let last = branches.len().saturating_sub(1);
    let branch = |(i, (name, text)): (usize, (&str, String))| {
        format!("{} {name:<9} {text}", if i == last { "└─" } else { "├─" })
    };
    tree.head() + &lines(branches.into_iter().enumerate().map(branch))
}

/// What there is to say of `gva`, from CR3 to the host.
pub(crate) fn branches(monitor: &Monitor, gva: Gva) -> Result<Vec<Branch>, MonitorError> {
    let (view, cached) = look(monitor, gva)?;
    Ok(Tree { view: &view, gva }.branches(&entries(&cached)))
}

/// A line for each entry of the TLB.
fn entries(cached: &[Cached]) -> Vec<String> {
    if cached.is_empty() { vec!["no entry".to_owned()] } else { cached.iter().map(entry).collect() }
}

/// An address space and what is known around it: of a vCPU, or of one that once was.
pub(crate) struct View {
    pub space: AddressSpace,
    /// The vCPU's number, its privilege level, and CR3.
    pub cpu: u32,
    pub cpl: u8,
    pub cr3: u64,
    /// Whose address space it is.
    pub process: Option<Process>,
    pub symbols: Arc<Table>,
    /// How host physical addresses are found, if the memory is a machine's; the inner `None`: not at all.
    pub pagemap: Option<Option<Arc<Pagemap>>>,
}

struct Tree<'a> {
    view: &'a View,
    gva: Gva,
}

/// A line: what it is about, and what is said of it.
pub(crate) type Branch = (&'static str, String);

impl Tree<'_> {
    /// All that is to be said, with these lines on the TLB.
    fn branches(&self, cached: &[String]) -> Vec<Branch> {
        let mut branches = self.walk();
        branches.extend(cached.iter().map(|text| ("TLB", text.clone())));
        branches.extend(self.memory());
        branches
    }

    fn inspection(&self) -> Inspection {
        self.view.space.inspect(self.gva)
    }

    fn mode(&self) -> Mode {
        self.view.space.paging().mode()
    }

    fn head(&self) -> String {
        let mode = paging(self.mode());
        let View { cpu, cpl, symbols, .. } = self.view;
        let named = symbols.at(self.gva).map(|named| format!(" ({named})")).unwrap_or_default();
        format!("gva {:016x}{named} on CPU #{cpu}: {mode}, CPL {cpl}\n", self.gva)
    }

    /// The walk from CR3 down, and what is allowed, or where and why it ends.
    fn walk(&self) -> Vec<Branch> {
        let Inspection { steps, translation } = self.inspection();
        let mut branches = Vec::new();
        if self.mode() != Mode::Off {
            let View { cr3, process, .. } = self.view;
            let pcid = self.view.space.paging().registers().cr4.pcid();
            let pcid = if pcid { format!(", PCID {}", cr3 & 0xfff) } else { String::new() };
            let of = process.as_ref().map(|process| format!(": {} (pid {})", process.name, process.pid));
            branches.push(("CR3", format!("{cr3:016x}{pcid}{}", of.unwrap_or_default())));
        }
        for (i, step) in steps.iter().enumerate() {
            let leaf = i + 1 == steps.len();
            branches.push((self.name(step), self.step(step, leaf, translation.as_ref())));
        }
        match &translation {
            Some(translation) => branches.extend(self.rights(translation)),
            None => branches.push(("fault", self.fault(steps.last()))),
        }
        branches
    }

    /// What the table is called that an entry is in.
    fn name(&self, step: &Step) -> &'static str {
        match step.shift {
            48 => "PML5",
            39 => "PML4",
            30 => "PDPT",
            21 | 22 => "PD",
            _ => "PT",
        }
    }

    fn index(&self, step: &Step) -> u64 {
        let bits = match (self.mode(), step.shift) {
            (Mode::Legacy, _) => 10,
            (Mode::Pae, 30) => 2,
            _ => 9,
        };
        self.gva.0 >> step.shift & ((1 << bits) - 1)
    }

    fn step(&self, step: &Step, leaf: bool, translation: Option<&Translation>) -> String {
        let legacy = self.mode() == Mode::Legacy;
        let maps = leaf && translation.is_some();
        let bits = bits(step.entry, step.shift, maps, legacy);
        let bits = if bits.is_empty() { "no bit set".to_owned() } else { bits.join(" ") };
        let to = match translation {
            Some(translation) if leaf => {
                let base = translation.gpa.0 & !((1 << translation.shift) - 1);
                format!(" -> {} page at gpa {base:x}", size(1 << translation.shift))
            }
            _ if leaf => String::new(),
            _ => {
                format!(" -> table at gpa {:x}", step.entry & if legacy { 0xffff_f000 } else { 0x000f_ffff_ffff_f000 })
            }
        };
        let (index, gpa, entry) = (self.index(step), step.gpa, step.entry);
        format!("[{index}] at gpa {gpa:x} = {entry:016x}  {bits}{to}")
    }

    /// What is allowed, and the rule against each access that is not.
    fn rights(&self, translation: &Translation) -> Vec<Branch> {
        let paging = self.view.space.paging();
        let wants = [(Want::Read, 'r', "read"), (Want::Write, 'w', "write"), (Want::Execute, 'x', "fetch")];
        let mut branches = Vec::new();
        for (name, space) in [("kernel", Space::Kernel), ("user", Space::User)] {
            let denial = |want| paging.denial(translation.rights, space, want);
            let letters: String =
                wants.map(|(want, letter, _)| denial(want).map_or(letter, |_| '-')).into_iter().collect();
            let denied = wants.iter().filter_map(|(want, _, what)| Some(format!("{what}: {}", denial(*want)?)));
            let denied: Vec<String> = denied.collect();
            let why = match denial(Want::Read) {
                // One rule against everything.
                Some(rule) if wants.iter().all(|(want, ..)| denial(*want) == Some(rule)) => format!("  {rule}"),
                _ if denied.is_empty() => String::new(),
                _ => format!("  no {}", denied.join("; no ")),
            };
            branches.push((name, format!("{letters}{why}")));
        }
        branches
    }

    /// Why there is no translation.
    fn fault(&self, last: Option<&Step>) -> String {
        let paging = self.view.space.paging();
        if !paging.canonical(self.gva) {
            let highest = paging.virtual_bits() - 1;
            return format!("bits 63 to {highest} of the address differ: #GP(0), or #SS(0) for a stack access");
        }
        let Some(step) = last else { return "no table was read".to_owned() };
        let place = format!("{}[{}]", self.name(step), self.index(step));
        let reserved = paging.reserved_bits(step);
        if reserved == 0 {
            return format!("P of {place} is clear: #PF, page not present");
        }
        let bits: Vec<String> = (0..64).filter(|n| reserved >> n & 1 != 0).map(|n| n.to_string()).collect();
        format!("reserved bits of {place} are set ({}): #PF with RSV", bits.join(", "))
    }

    /// From the physical address to the host.
    fn memory(&self) -> Vec<Branch> {
        let Some(gpa) = self.view.space.translate(self.gva) else { return Vec::new() };
        let mut branches = vec![("gpa", format!("{gpa:x}{}", self.gate(gpa)))];
        let map = self.view.space.map();
        let Some(pagemap) = &self.view.pagemap else {
            let there = map.hva_of(gpa).is_some();
            branches
                .push(("region", if there { "memory" } else { "not in the file: a device, or nothing" }.to_owned()));
            return branches;
        };
        branches.push(match region_of(map, gpa) {
            Some(found) => ("region", region(&found)),
            None => ("region", "nothing answers: reads give all ones, writes are ignored".to_owned()),
        });
        if let Some(hva) = map.hva_of(gpa) {
            branches.push(("hva", format!("{hva:x}")));
            branches.push(("hpa", hpa(pagemap.as_deref(), hva).unwrap_or_else(|why| why)));
        }
        branches
    }

    fn gate(&self, gpa: Gpa) -> &'static str {
        let tables = self.inspection().translation.map(|translation| translation.gpa);
        if tables == Some(gpa) { "" } else { "  (the A20 gate is closed: bit 20 is clear)" }
    }
}

/// The bits of a table's entry that are set, by name. `shift`: log2 of what it translates; `maps`: it maps a page.
pub(crate) fn bits(entry: u64, shift: u32, maps: bool, legacy: bool) -> Vec<String> {
    let pte = Pte::from_bits(entry);
    let named = [
        (pte.present(), "P"),
        (pte.writable(), "RW"),
        (pte.user(), "US"),
        (pte.write_through(), "PWT"),
        (pte.cache_disable(), "PCD"),
        (pte.accessed(), "A"),
        (pte.dirty(), "D"),
        (pte.large(), if shift == x86::PAGE_SHIFT { "PAT" } else { "PS" }),
        (pte.global(), "G"),
        (maps && shift > x86::PAGE_SHIFT && entry >> 12 & 1 != 0, "PAT"),
        (pte.no_execute() && !legacy, "NX"),
    ];
    let mut bits: Vec<String> = named.iter().filter(|(set, _)| *set).map(|(_, name)| (*name).to_owned()).collect();
    let mut number = |name: &str, value: u8| {
        if value != 0 {
            bits.push(format!("{name}={value:#x}"));
        }
    };
    number("AVL", pte.available());
    if !legacy {
        number("AVL2", pte.available_high());
        number("KEY", pte.key());
    }
    bits
}

/// What the TLB remembers.
fn entry(cached: &Cached) -> String {
    let space = |space: Space| match space {
        Space::Kernel => "kernel",
        Space::KernelAc => "kernel with AC set",
        Space::User => "user",
    };
    let place = match cached.place {
        Place::Main(of) => format!("main table, {}", space(of)),
        Place::Victim(of) => format!("victim table, {}", space(of)),
        Place::Global => return format!("global pages: gpa {:x}, {} page", cached.gpa, size(1 << cached.shift)),
    };
    let flags = |flags: Option<u64>| {
        let Some(flags) = flags else { return "no".to_owned() };
        let names = [(tlb::IO, "I/O"), (tlb::ROM, "ROM"), (tlb::CODE, "code"), (tlb::WATCH, "watched")];
        let names: Vec<&str> = names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
        if names.is_empty() { "fast".to_owned() } else { format!("slow ({})", names.join(", ")) }
    };
    let [read, write, fetch] = cached.flags.map(flags);
    format!("{place}: read {read}, write {write}, fetch {fetch}; addend {:x}", cached.addend)
}
