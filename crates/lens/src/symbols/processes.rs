//! The processes of a Linux guest, by its list of tasks in guest physical memory.
//!
//! The list begins at `init_task`; where its members are is told by the kernel's own description of its types
//! ([`Btf`]), between `__start_BTF` and `__stop_BTF`. Everything is read by physical address
//! ([`Memory`]). Left out: threads but the first of each process.
//!
//! A guest that runs changes the list meanwhile, and one may have written anything there: what is followed is bounded, and
//! what cannot be read ends the list.

use super::Table;
use super::btf::Btf;
use super::memory::{Memory, Places};
use memory::{Gpa, Gva, PhysicalMap};

/// Processes that are followed: as many as Linux has at most by default.
const MOST: usize = 1 << 15;
/// Bytes of types that are read; kernels have about 6 MiB.
const TYPES: u64 = 64 << 20;
/// Bytes of a task's name (`TASK_COMM_LEN`).
const NAME: usize = 16;
/// With page-table isolation, CR3 of a program has this bit set, and that of its kernel has not.
const USER_TABLES: u64 = 0x1000;
/// Bits of CR3 that are the table's address.
const TABLE: u64 = 0x000f_ffff_ffff_f000;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name, of at most 15 bytes.
    pub name: String,
    /// The physical address of its top page table; `None`: it has no memory of its own (a thread of the kernel).
    pub table: Option<Gpa>,
    /// Where its `task_struct` is.
    pub task: Gva,
}

impl Process {
    /// Whether it runs by page tables that are at `table`.
    fn has(&self, table: u64) -> bool {
        self.table == Some(Gpa(table))
    }
}

/// The process of `all` to which CR3 with this value belongs, whatever its PCID, and whether it is that of a program or
/// of its kernel. A thread of the kernel has that of the process before it.
#[must_use]
pub fn by_cr3(all: &[Process], cr3: u64) -> Option<&Process> {
    let table = cr3 & TABLE;
    let find = |table: u64| all.iter().find(|process| process.has(table));
    find(table).or_else(|| find(table & !USER_TABLES))
}

/// Why processes cannot be listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unlisted {
    /// No symbols.
    #[error("no symbols are found in the guest's kernel (yet): processes are found from its symbol init_task")]
    NoSymbols,
    /// It is not one of those that are needed.
    #[error("the guest's kernel has no symbol {0}, from which processes are found")]
    NoSymbol(&'static str),
    /// The types are not described.
    #[error(
        "the guest's kernel does not describe its types (CONFIG_DEBUG_INFO_BTF), so its list of processes cannot be read"
    )]
    NoTypes,
    /// The types are not as known.
    #[error("the guest's kernel describes no {0} as it is known")]
    Strange(&'static str),
}

/// Where members of the kernel's structures are, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    tasks: u64,
    pid: u64,
    comm: u64,
    mm: u64,
    pgd: u64,
}

impl Layout {
    fn of(btf: &Btf<'_>) -> Result<Self, Unlisted> {
        let task = btf.members("task_struct", ["tasks", "pid", "comm", "mm"]);
        let [tasks, pid, comm, mm] = task.ok_or(Unlisted::Strange("task_struct"))?;
        let [pgd] = btf.members("mm_struct", ["pgd"]).ok_or(Unlisted::Strange("mm_struct"))?;
        Ok(Self { tasks, pid, comm, mm, pgd })
    }
}

/// The kernel's description of its types.
pub(super) fn types(map: &PhysicalMap, symbols: &Table, places: Places) -> Option<Vec<u8>> {
    let (start, end) = (symbols.find("__start_BTF")?, symbols.find("__stop_BTF")?);
    let len = end.0.checked_sub(start.0).filter(|len| *len <= TYPES)?;
    let mut bytes = vec![0; usize::try_from(len).ok()?];
    places.look(map).read(start, &mut bytes)?;
    Some(bytes)
}

/// A kernel whose processes can be listed.
#[derive(Clone, Debug)]
pub struct Processes {
    places: Places,
    init: Gva,
    layout: Layout,
}

impl Processes {
    /// Those of the kernel with these symbols, the byte at `entry` of whose image is at `gpa`.
    ///
    /// # Errors
    /// The kernel lacks something that it takes.
    pub fn of(map: &PhysicalMap, symbols: &Table, entry: Gva, gpa: Gpa) -> Result<Self, Unlisted> {
        if symbols.is_empty() {
            return Err(Unlisted::NoSymbols);
        }
        let init = symbols.find("init_task").ok_or(Unlisted::NoSymbol("init_task"))?;
        let places = Places::of(symbols, entry, gpa);
        let bytes = types(map, symbols, places).ok_or(Unlisted::NoTypes)?;
        let layout = Layout::of(&Btf::parse(&bytes).ok_or(Unlisted::NoTypes)?)?;
        Ok(Self { places, init, layout })
    }

    /// All processes, in the kernel's order; the first is its idle task.
    #[must_use]
    pub fn list(&self, map: &PhysicalMap) -> Vec<Process> {
        let memory = self.places.look(map);
        let mut all = Vec::new();
        let mut task = self.init;
        while all.len() < MOST {
            let Some((process, next)) = self.task(&memory, task) else { break };
            all.push(process);
            task = next;
            if task == self.init {
                break;
            }
        }
        all
    }

    /// The process of the task of `process`, as it is now. `None`: it cannot be read.
    #[must_use]
    pub fn again(&self, map: &PhysicalMap, process: &Process) -> Option<Process> {
        self.task(&self.places.look(map), process.task).map(|(process, _)| process)
    }

    /// A task, and the one behind it.
    fn task(&self, memory: &Memory<'_>, task: Gva) -> Option<(Process, Gva)> {
        let Layout { tasks, pid, comm, mm, pgd } = self.layout;
        let next = memory.word(task.wrapping_add(tasks))?.wrapping_sub(tasks);
        let pid = u32::from_le_bytes(memory.bytes(task.wrapping_add(pid))?);
        let name: [u8; NAME] = memory.bytes(task.wrapping_add(comm))?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        let table = match memory.word(task.wrapping_add(mm))? {
            0 => None,
            mm => Some(memory.physical(Gva(memory.word(Gva(mm.wrapping_add(pgd)))?))?),
        };
        let name = String::from_utf8_lossy(name).into_owned();
        Some((Process { pid, name, table, task }, Gva(next)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::btf::tests::Maker;
    use super::*;
    use memory::ram::GuestRam;

    const BASE: u64 = 0xffff_ffff_a100_0000;
    const AT: u64 = 0x10_0000;
    const DIRECT_NOW: u64 = 0xffff_9c40_0000_0000;
    const INIT: u64 = BASE + 0x1000;
    const TYPES_AT: u64 = BASE + 0x2000;

    fn put(map: &PhysicalMap, gpa: u64, bytes: &[u8]) {
        map.write(Gpa(gpa), bytes).unwrap();
    }

    /// A task at `gpa`, which is followed by that at `next`.
    fn task(map: &PhysicalMap, gpa: u64, next: u64, pid: u32, name: &str, mm: u64) {
        put(map, gpa + 0x40, &(next + 0x40).to_le_bytes());
        put(map, gpa + 0x80, &pid.to_le_bytes());
        put(map, gpa + 0x90, name.as_bytes());
        put(map, gpa + 0xa0, &mm.to_le_bytes());
    }

    fn guest() -> (PhysicalMap, Table) {
        let map = PhysicalMap::new(GuestRam::new(4 << 20).unwrap()).unwrap();
        let mut types = Maker::default();
        let integer = types.integer();
        let members =
            [("tasks", integer, 0x40), ("pid", integer, 0x80), ("comm", integer, 0x90), ("mm", integer, 0xa0)];
        types.structure("task_struct", &members);
        types.structure("mm_struct", &[("pgd", integer, 8)]);
        let types = types.bytes();
        put(&map, AT + 0x2000, &types);
        put(&map, AT + 0x500, &DIRECT_NOW.to_le_bytes());
        // The idle task, a thread of the kernel, and a program.
        task(&map, AT + 0x1000, DIRECT_NOW + 0x8000, 0, "swapper/0", 0);
        task(&map, 0x8000, DIRECT_NOW + 0x9000, 2, "kthreadd", 0);
        task(&map, 0x9000, INIT, 71, "sh", DIRECT_NOW + 0xa000);
        put(&map, 0xa008, &(DIRECT_NOW + 0x3_4000).to_le_bytes());
        let symbols = [
            ("_text", BASE),
            ("page_offset_base", BASE + 0x500),
            ("init_task", INIT),
            ("__start_BTF", TYPES_AT),
            ("__stop_BTF", TYPES_AT + types.len() as u64),
        ];
        (map, Table::new(symbols.map(|(name, address)| (Gva(address), name))))
    }

    fn processes(map: &PhysicalMap, symbols: &Table) -> Result<Vec<Process>, Unlisted> {
        Ok(Processes::of(map, symbols, Gva(BASE + 0x80), Gpa(AT + 0x80))?.list(map))
    }

    #[test]
    fn the_list_of_tasks_is_followed() {
        let (map, symbols) = guest();
        let all = processes(&map, &symbols).unwrap();
        let of = |process: &Process| (process.pid, process.name.clone(), process.table);
        let want = [(0, "swapper/0", None), (2, "kthreadd", None), (71, "sh", Some(Gpa(0x3_4000)))];
        assert_eq!(all.iter().map(of).collect::<Vec<_>>(), want.map(|(pid, name, gpa)| (pid, name.to_owned(), gpa)));
        assert_eq!(all[2].task, Gva(DIRECT_NOW + 0x9000));
        for (cr3, pid) in [(0x3_4000, Some(71)), (0x3_4005, Some(71)), (0x3_5806, Some(71)), (0x3_6000, None)] {
            assert_eq!(by_cr3(&all, cr3).map(|process| process.pid), pid, "{cr3:x}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let (map, symbols) = guest();
        let some = |names: &[&'static str]| Table::new(names.iter().map(|name| (symbols.find(name).unwrap(), *name)));
        assert_eq!(processes(&map, &Table::default()), Err(Unlisted::NoSymbols));
        assert_eq!(processes(&map, &some(&["_text"])), Err(Unlisted::NoSymbol("init_task")));
        assert_eq!(processes(&map, &some(&["init_task"])), Err(Unlisted::NoTypes));
        put(&map, AT + 0x2000, &[0]);
        assert_eq!(processes(&map, &symbols), Err(Unlisted::NoTypes));
    }

    #[test]
    fn a_list_that_leads_astray_ends() {
        let (map, symbols) = guest();
        // Its second task is its own successor.
        put(&map, 0x8040, &(DIRECT_NOW + 0x8040).to_le_bytes());
        assert_eq!(processes(&map, &symbols).unwrap().len(), MOST);
        put(&map, 0x8040, &0_u64.to_le_bytes());
        assert_eq!(processes(&map, &symbols).unwrap().len(), 2);
    }
}
