//! The symbols of a Linux guest's modules, by its list of them.
//!
//! The list begins at `modules`; where its members are is told by the kernel's own description of its types ([`Btf`]). A
//! module's symbols are an ELF symbol table with absolute addresses (`struct mod_kallsyms`, Linux 4.5 and later). Modules come
//! and go: who asks again gets those that are there then.
//!
//! Everything is read by the kernel's page tables, and bounded: a guest may have written anything there.

use super::Table;
use super::btf::Btf;
use super::memory::{MODULES, Memory, Places};
use memory::{Gva, PhysicalMap};
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Modules that are followed.
const MOST: usize = 1 << 10;
/// Symbols that are read of each of them.
const SYMBOLS: u32 = 1 << 16;
/// Symbols that are read of all of them.
const ALL: usize = 1 << 18;
/// Bytes of a module's name (`MODULE_NAME_LEN` is 56 on machines of 64 bits).
const NAME: usize = 56;
/// Bytes of a symbol's name that are read.
const SYMBOL: usize = 128;

/// A symbol as ELF has it (`Elf64_Sym`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Entry {
    name: u32,
    info: u8,
    other: u8,
    section: u16,
    value: u64,
    size: u64,
}

/// Where members of the kernel's structures are, in bytes.
#[derive(Clone, Copy, Debug)]
struct Layout {
    list: u64,
    name: u64,
    kallsyms: u64,
    symtab: u64,
    count: u64,
    strtab: u64,
}

/// A kernel whose modules can be listed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Modules {
    places: Places,
    head: Gva,
    layout: Layout,
}

/// A module, and where its symbols are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Module {
    name: String,
    symtab: Gva,
    count: u32,
    strtab: Gva,
}

impl Modules {
    /// Those of the kernel with these symbols and types. `None`: it has none, or not as they are known.
    pub fn of(symbols: &Table, places: Places, btf: &Btf<'_>) -> Option<Self> {
        let head = symbols.find("modules")?;
        let [list, name, kallsyms] = btf.members("module", ["list", "name", "kallsyms"])?;
        let [symtab, count, strtab] = btf.members("mod_kallsyms", ["symtab", "num_symtab", "strtab"])?;
        Some(Self { places, head, layout: Layout { list, name, kallsyms, symtab, count, strtab } })
    }

    /// The modules that are there now.
    pub fn list(&self, map: &PhysicalMap) -> Vec<Module> {
        let memory = self.places.look(map);
        let mut all = Vec::new();
        let mut next = memory.word(self.head).map(Gva);
        // Links are counted, not modules: a ring of links whose modules cannot be read must end, too.
        for _ in 0..MOST {
            let Some(link) = next.filter(|link| *link != self.head) else { break };
            all.extend(self.module(&memory, Gva(link.0.wrapping_sub(self.layout.list))));
            next = memory.word(link).map(Gva);
        }
        all
    }

    fn module(&self, memory: &Memory<'_>, at: Gva) -> Option<Module> {
        let Layout { name, kallsyms, symtab, count, strtab, .. } = self.layout;
        let name = text(&memory.bytes::<NAME>(at.wrapping_add(name))?);
        let table = Gva(memory.word(at.wrapping_add(kallsyms))?);
        Some(Module {
            name,
            symtab: Gva(memory.word(table.wrapping_add(symtab))?),
            count: u32::from_le_bytes(memory.bytes(table.wrapping_add(count))?).min(SYMBOLS),
            strtab: Gva(memory.word(table.wrapping_add(strtab))?),
        })
    }

    /// Their symbols, as `name [module]`, and where something ends behind which there is none an empty one.
    pub fn symbols(&self, map: &PhysicalMap, modules: &[Module]) -> Vec<(Gva, String)> {
        let memory = self.places.look(map);
        let mut all = Vec::new();
        for module in modules {
            let mut of_module = Vec::new();
            for n in 0..u64::from(module.count) {
                if all.len() + of_module.len() >= ALL {
                    break;
                }
                let Some(bytes) = memory.bytes::<{ size_of::<Entry>() }>(module.symtab.wrapping_add(n * 24)) else {
                    break;
                };
                let Ok(entry) = Entry::read_from_bytes(&bytes) else { break };
                // Neither undefined ones, nor those of each processor, which are elsewhere.
                if entry.section == 0 || entry.value < MODULES {
                    continue;
                }
                let mut name = [0; SYMBOL];
                if memory.read_some(module.strtab.wrapping_add(entry.name.into()), &mut name) == 0 {
                    continue;
                }
                let name = text(&name);
                if !name.is_empty() {
                    of_module.push((entry.value, entry.size, name));
                }
            }
            of_module.sort_by_key(|(value, ..)| *value);
            let nexts: Vec<u64> = of_module.iter().skip(1).map(|(value, ..)| *value).chain([u64::MAX]).collect();
            for ((value, size, name), next) in of_module.into_iter().zip(nexts) {
                all.push((Gva(value), format!("{name} [{}]", module.name)));
                let end = value.saturating_add(size.max(1));
                // Functions are aligned, so that what little lies between two is the former's.
                if next.saturating_sub(end) > 64 {
                    all.push((Gva(end), String::new()));
                }
            }
        }
        all
    }
}

/// What stands before a zero.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::btf::tests::Maker;
    use super::*;
    use memory::Gpa;
    use memory::ram::GuestRam;

    const BASE: u64 = 0xffff_ffff_a100_0000;
    const AT: u64 = 0x10_0000;
    /// Two pages of modules, which are not side by side in physical memory.
    const FIRST: u64 = MODULES + 0x5000;
    const PAGES: [u64; 2] = [0x20_0000, 0x28_0000];

    fn put(map: &PhysicalMap, gpa: u64, bytes: &[u8]) {
        map.write(Gpa(gpa), bytes).unwrap();
    }

    /// Writes where modules are.
    fn put_there(map: &PhysicalMap, gva: u64, bytes: &[u8]) {
        for (n, byte) in bytes.iter().enumerate() {
            let at = gva + n as u64 - FIRST;
            put(map, PAGES[(at >> 12) as usize] + (at & 0xfff), &[*byte]);
        }
    }

    fn symbol(name: u32, section: u16, value: u64, size: u64) -> Vec<u8> {
        [&name.to_le_bytes()[..], &[2, 0], &section.to_le_bytes(), &value.to_le_bytes(), &size.to_le_bytes()].concat()
    }

    fn guest(five: bool) -> (PhysicalMap, Table, Vec<u8>) {
        let map = PhysicalMap::new(GuestRam::new(4 << 20).unwrap()).unwrap();
        let mut types = Maker::default();
        let integer = types.integer();
        types.structure("module", &[("list", integer, 8), ("name", integer, 24), ("kallsyms", integer, 0x60)]);
        let members = [("symtab", integer, 0), ("num_symtab", integer, 8), ("strtab", integer, 16)];
        types.structure("mod_kallsyms", &members);
        // The kernel's tables: with five levels there is another one on top.
        put(&map, AT + 0x500, &u32::from(five).to_le_bytes());
        let mut tables = vec![AT + 0x1000, 0x1000, 0x2000, 0x3000];
        if five {
            tables.insert(1, 0x4000);
        }
        for (n, table) in tables.iter().enumerate() {
            let shift = 12 + 9 * (tables.len() - 1 - n);
            let entries: Vec<u64> = match tables.get(n + 1) {
                Some(next) => vec![*next],
                None => PAGES.to_vec(),
            };
            for (entry, to) in (FIRST >> shift & 0x1ff..).zip(entries) {
                put(&map, table + 8 * entry, &(to | 0x63).to_le_bytes());
            }
        }
        // Two modules, the second across both pages.
        let (one, two, tables) = (FIRST + 0x100, FIRST + 0xfc0, FIRST + 0x200);
        let links = [(BASE + 0x600, one + 8), (one + 8, two + 8), (two + 8, BASE + 0x600)];
        put(&map, AT + 0x600, &links[0].1.to_le_bytes());
        for ((at, next), name) in links.into_iter().skip(1).zip(["one", "two"]) {
            put_there(&map, at, &next.to_le_bytes());
            put_there(&map, at + 16, name.as_bytes());
        }
        put_there(&map, one + 0x60, &tables.to_le_bytes());
        // The other one has no symbols.
        put_there(&map, two + 0x60, &0u64.to_le_bytes());
        put_there(
            &map,
            tables,
            &[&(FIRST + 0x300).to_le_bytes()[..], &5u64.to_le_bytes(), &(FIRST + 0x400).to_le_bytes()].concat(),
        );
        let code = FIRST + 0x800;
        let entries = [
            symbol(0, 0, 0, 0),
            symbol(1, 1, code + 0x40, 0x20),
            symbol(6, 1, code, 0x38),
            symbol(11, 9, 0x1_8000, 8),
            symbol(15, 4, code + 0x400, 4),
        ];
        put_there(&map, FIRST + 0x300, &entries.concat());
        put_there(&map, FIRST + 0x400, b"\0stop\0init\0cpu\0flag\0");
        let symbols =
            [("init_top_pgt", BASE + 0x1000), ("__pgtable_l5_enabled", BASE + 0x500), ("modules", BASE + 0x600)];
        (map, Table::new(symbols.map(|(name, address)| (Gva(address), name))), types.bytes())
    }

    fn modules(symbols: &Table, types: &[u8]) -> Modules {
        let places = Places::of(symbols, Gva(BASE + 0x80), Gpa(AT + 0x80));
        Modules::of(symbols, places, &Btf::parse(types).unwrap()).unwrap()
    }

    #[test]
    fn symbols_of_modules_are_known_with_their_ends() {
        for five in [false, true] {
            let (map, symbols, types) = guest(five);
            let modules = modules(&symbols, &types);
            let list = modules.list(&map);
            assert_eq!(list.iter().map(|module| module.name.as_str()).collect::<Vec<_>>(), ["one"], "{five}");
            let all = modules.symbols(&map, &list);
            let table = Table::new(all.iter().map(|(gva, name)| (*gva, name.as_str())));
            let code = FIRST + 0x800;
            for (at, named) in [
                (code - 1, ""),
                (code, "init [one]"),
                (code + 0x3f, "init+0x3f [one]"),
                (code + 0x44, "stop+0x4 [one]"),
                (code + 0x60, ""),
                (code + 0x403, "flag+0x3 [one]"),
                (code + 0x404, ""),
            ] {
                let found = table.at(Gva(at)).map(|named| named.to_string());
                assert_eq!(found.unwrap_or_default(), named, "{at:x} {five}");
            }
            assert_eq!((table.find("stop"), table.find("sto")), (Some(Gva(code + 0x40)), None));
        }
    }

    #[test]
    fn a_list_that_leads_astray_ends() {
        let (map, symbols, types) = guest(false);
        let modules = modules(&symbols, &types);
        // The first module is its own successor; then it leads nowhere.
        put_there(&map, FIRST + 0x108, &(FIRST + 0x108).to_le_bytes());
        assert_eq!(modules.list(&map).len(), MOST);
        put_there(&map, FIRST + 0x108, &0x1234u64.to_le_bytes());
        assert_eq!(modules.list(&map).len(), 1);
        // A module that cannot be read is its own successor.
        put_there(&map, FIRST + 0x108, &(FIRST + 0xfc8).to_le_bytes());
        put_there(&map, FIRST + 0xfc8, &(FIRST + 0xfc8).to_le_bytes());
        assert_eq!(modules.list(&map).len(), 1);
        // A table that is longer than memory, or nowhere.
        put_there(&map, FIRST + 0x208, &u64::MAX.to_le_bytes());
        let list = modules.list(&map);
        assert_eq!(list[0].count, SYMBOLS);
        assert!(modules.symbols(&map, &list).len() < 1000);
        put_there(&map, FIRST + 0x200, &u64::MAX.to_le_bytes());
        assert!(modules.symbols(&map, &modules.list(&map)).is_empty());
    }
}
