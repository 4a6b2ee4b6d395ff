//! What a page in the browser looks at one by one: the way of an address, a page table, a page of guest memory.
//!
//! Addresses are hexadecimal texts, as in [`crate::figures`]. What a guest's tables make of a question is bounded.

use crate::arguments::Arguments;
use crate::explain;
use crate::monitor::{Monitor, MonitorError};
use crate::paging::{hpa, region_of};
use lens::{Hit, Listed, Watch, WatchError};
use memory::walk::Mode;
use memory::walk::spans::Alike;
use memory::{Access, Agent, Gpa, Gva};
use serde::{Deserialize, Serialize};
use x86::paging::TABLE_ADDRESS;
use x86::{PAGE_OFFSET, PAGE_SHIFT, PAGE_SIZE, Pte};

/// Runs of mappings that are searched for a page.
const SPANS_MAX: usize = 20_000;
/// Virtual addresses of a page that are named.
const NAMED_MAX: usize = 8;

/// The way of an address through all four.
#[derive(Clone, Debug, Serialize)]
pub struct Chain {
    /// The virtual address.
    pub gva: String,
    /// The symbol of the guest's kernel that it lies in.
    pub symbol: Option<String>,
    /// The physical address, if it is mapped.
    pub gpa: Option<String>,
    /// What answers there.
    pub region: Option<String>,
    /// The host's virtual address, if there is memory.
    pub hva: Option<String>,
    /// The host's physical address, or why it is not known.
    pub hpa: Option<String>,
    /// Up to 16 bytes that are there.
    pub bytes: Vec<u8>,
    /// What there is to say of it: the walk, rights, the TLB's entries.
    pub steps: Vec<(&'static str, String)>,
}

/// A page table.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Where it is.
    pub gpa: String,
    /// What it is called.
    pub name: &'static str,
    /// Its entries; those side by side that are alike are one.
    pub entries: Vec<Entry>,
}

/// An entry of a page table, or several.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Its number.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    /// The first virtual address that it translates.
    pub gva: String,
    /// What is in it.
    pub raw: String,
    /// Its bits, by name.
    pub bits: Vec<String>,
    /// The table that it points to, and that one's level.
    pub table: Option<(String, u32)>,
    /// The page that it maps, and its size in bytes.
    pub page: Option<(String, u64)>,
}

/// A page of guest physical memory.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// Its address.
    pub gpa: String,
    /// What it belongs to in the physical address space.
    pub region: Option<String>,
    /// Where it is in the host's address space.
    pub hva: Option<String>,
    /// The virtual addresses that the current page tables give it, with their rights and symbols.
    pub mapped: Vec<(String, String, Option<String>)>,
    /// Whether there may be more of them.
    pub more: bool,
}

/// What is watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watched {
    /// Each watch.
    pub watches: Vec<Watching>,
    /// The last access that was reported.
    pub last: Option<LastAccess>,
}

/// A watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watching {
    /// Its number.
    pub id: u32,
    /// Its expression.
    pub watch: String,
    /// The addresses that it watches now, or why there are none.
    pub place: Result<(String, String), String>,
    /// Accesses reported.
    pub hits: u64,
}

/// An access to what is watched, with all that was known of it when it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in memory::Access and lens::Hit")]
pub struct LastAccess {
    pub watch: u32,
    pub kind: String,
    pub size: u8,
    pub value: String,
    pub old: Option<String>,
    /// The device that made it; a vCPU, of which the next four tell, if it was none.
    pub device: Option<String>,
    pub cpu: Option<u32>,
    pub cpl: Option<u8>,
    pub cr3: Option<String>,
    pub rip: Option<String>,
    /// The function that made it.
    pub by: Option<String>,
    pub gva: Option<String>,
    /// The symbol that its address lies in.
    pub at: Option<String>,
    pub gpa: String,
    pub hva: Option<String>,
    pub hpa: Option<String>,
}

fn hex(number: u64) -> String {
    format!("{number:016x}")
}

impl From<Hit> for LastAccess {
    fn from(Hit { watch, access, hpa, by, at }: Hit) -> Self {
        let Access { kind, agent, gva, gpa, hva, size, value, old } = access;
        let device = if let Agent::Device(name) = agent { Some(name.to_owned()) } else { None };
        let origin = access.origin();
        let digits = |value: u128| format!("{value:0width$x}", width = 2 * usize::from(size));
        Self {
            watch,
            kind: lens::format::kind(kind).to_owned(),
            size,
            value: digits(value),
            old: old.map(digits),
            device,
            cpu: origin.map(|origin| origin.cpu),
            cpl: origin.map(|origin| origin.cpl),
            cr3: access.cr3().map(hex),
            rip: origin.map(|origin| hex(origin.rip)),
            by,
            gva: gva.map(|gva| hex(gva.0)),
            at,
            gpa: hex(gpa.0),
            hva: hva.map(|hva| hex(hva.0)),
            hpa: hpa.map(|hpa| hex(hpa.0)),
        }
    }
}

impl Monitor {
    /// What is watched now.
    #[must_use]
    pub fn watched(&self) -> Watched {
        let lens = self.handle.lens();
        let watching = |Listed { id, watch, place, hits, .. }: Listed| Watching {
            id,
            watch: watch.to_string(),
            place: place.map(|(first, last)| (hex(first), hex(last))),
            hits,
        };
        Watched {
            watches: lens.watches().into_iter().map(watching).collect(),
            last: lens.last_hit().map(LastAccess::from),
        }
    }

    /// Watches what an expression says, from now on.
    ///
    /// # Errors
    /// It is wrong, or there are as many watches as can be.
    pub fn watch(&mut self, expression: &str) -> Result<u32, MonitorError> {
        let watch: Watch =
            expression.trim().parse().map_err(|error: WatchError| MonitorError::Watch(error.to_string()))?;
        self.handle.watch(watch).map_err(|error| MonitorError::Other(error.to_string()))
    }

    /// Ends a watch, if there is one of that number.
    ///
    /// # Errors
    /// A vCPU cannot be looked at.
    pub fn unwatch(&mut self, id: u32) -> Result<bool, MonitorError> {
        Ok(self.handle.unwatch(id)?)
    }

    /// Follows the address that an expression names, such as `$rsp` or `jiffies+4`.
    ///
    /// # Errors
    /// It is no expression, or the vCPU cannot be looked at.
    pub fn chain(&mut self, expression: &str) -> Result<Chain, MonitorError> {
        self.answer(expression, |monitor, arguments| {
            let gva = Gva(arguments.expression()?);
            arguments.end()?;
            let steps = explain::branches(monitor, gva)?;
            let snapshot = monitor.snapshot()?;
            let gpa = snapshot.space.translate(gva);
            let hva = gpa.and_then(|gpa| monitor.handle.map().hva_of(gpa));
            let mut bytes = vec![0; (PAGE_SIZE - gva.offset()).min(16) as usize];
            if snapshot.space.read(gva, &mut bytes).is_err() {
                bytes.clear();
            }
            Ok(Chain {
                gva: hex(gva.0),
                symbol: monitor.symbols(snapshot).at(gva).map(|named| named.to_string()),
                gpa: gpa.map(|gpa| hex(gpa.0)),
                region: gpa.and_then(|gpa| region_of(monitor.handle.map(), gpa)).map(|region| region.name),
                hva: hva.map(|hva| hex(hva.0)),
                hpa: hva.map(|hva| hpa(monitor.pagemap.as_deref(), hva).unwrap_or_else(|why| why)),
                bytes,
                steps,
            })
        })
    }

    /// The entries of a page table. `at`: the address of the table, its level (0: pages of 4 KiB; the highest is the
    /// root's), and the first virtual address that it translates, in hexadecimal. Nothing: the root in CR3.
    ///
    /// # Errors
    /// Paging is off or 32-bit, the numbers are none, the table is not in memory, or the vCPU cannot be looked at.
    pub fn table(&mut self, at: &str) -> Result<Table, MonitorError> {
        self.answer("", |monitor, _| {
            let snapshot = monitor.snapshot()?;
            let levels = match snapshot.space.paging().mode() {
                Mode::Off => return Err(MonitorError::Other("paging is off: there are no page tables".to_owned())),
                Mode::Legacy => {
                    return Err(MonitorError::Other("32-bit page tables are not shown as a tree".to_owned()));
                }
                Mode::Pae => 3,
                Mode::Level4 => 4,
                Mode::Level5 => 5,
            };
            let (gpa, level, base) = place(at, snapshot.registers.cr[2], levels)?;
            let wide = levels == 3 && level == 2;
            let count = if wide { 4 } else { 512 };
            let gpa = Gpa(if wide { gpa & !0x1f } else { gpa & TABLE_ADDRESS });
            let mut bytes = vec![0; 8 * count];
            if !monitor.handle.read_memory(gpa, &mut bytes) {
                return Err(MonitorError::Other(format!("there is no memory at gpa {gpa:x}, where a table should be")));
            }
            let raw = bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
            let shift = PAGE_SHIFT + 9 * level;
            let top = level + 1 == levels;
            let mut entries: Vec<Entry> = Vec::new();
            let mut last: Option<u64> = None;
            for (index, raw) in raw.enumerate() {
                let pte = Pte::from_bits(raw);
                let maps = pte.present() && (level == 0 || (pte.large() && !top && level <= 2));
                // Alike: nothing there, or pages that follow each other.
                let step = if maps { 1 << shift } else { 0 };
                let follows =
                    last.is_some_and(
                        |last| if maps { last.wrapping_add(step) == raw } else { last == raw && !pte.present() },
                    );
                last = Some(raw);
                if follows && let Some(entry) = entries.last_mut() {
                    entry.count += 1;
                    continue;
                }
                let gva = extended(base | (index as u64) << shift, levels);
                let to = raw & TABLE_ADDRESS;
                entries.push(Entry {
                    index,
                    count: 1,
                    gva: hex(gva),
                    raw: hex(raw),
                    bits: explain::bits(raw, shift, maps, false),
                    table: (pte.present() && !maps && level > 0).then(|| (hex(to), level - 1)),
                    page: maps.then(|| (hex(to & !((1 << shift) - 1)), 1 << shift)),
                });
            }
            let name = ["PT", "PD", "PDPT", "PML4", "PML5"].get(level as usize).copied().unwrap_or_default();
            Ok(Table { gpa: hex(gpa.0), name, entries })
        })
    }

    /// What is known of the page at guest physical address `at`, in hexadecimal.
    ///
    /// # Errors
    /// That is no number, or the vCPU cannot be looked at.
    pub fn page(&mut self, at: &str) -> Result<Page, MonitorError> {
        let gpa = Gpa(number(at)? & !PAGE_OFFSET);
        self.answer("", |monitor, _| {
            let snapshot = monitor.snapshot()?;
            let symbols = monitor.symbols(snapshot);
            let (mut mapped, mut more) = (Vec::new(), false);
            if snapshot.space.paging().mode() != Mode::Off {
                let spans = snapshot.space.spans(Alike::Pages, Gva(0), Gva(u64::MAX), SPANS_MAX);
                more = spans.rest.is_some();
                for span in spans.spans.iter().filter(|span| gpa.0.wrapping_sub(span.gpa.0) < span.len) {
                    let gva = span.gva.wrapping_add(gpa.0.wrapping_sub(span.gpa.0));
                    let flag = |set: bool, letter: char| if set { letter } else { '-' };
                    let rights = span.rights;
                    let rights = format!(
                        "{}r{}{}",
                        flag(rights.user, 'u'),
                        flag(rights.writable, 'w'),
                        flag(!rights.no_execute, 'x')
                    );
                    more |= mapped.len() == NAMED_MAX;
                    if mapped.len() < NAMED_MAX {
                        mapped.push((hex(gva.0), rights, symbols.at(gva).map(|named| named.to_string())));
                    }
                }
            }
            Ok(Page {
                gpa: hex(gpa.0),
                region: region_of(monitor.handle.map(), gpa).map(|region| region.name),
                hva: monitor.handle.map().hva_of(gpa).map(|hva| hex(hva.0)),
                mapped,
                more,
            })
        })
    }
}

fn number(text: &str) -> Result<u64, MonitorError> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|_| {
        let text: String = text.chars().take(40).collect();
        MonitorError::Other(format!("'{text}' is no hexadecimal number"))
    })
}

/// Which table is meant: its address, its level, and the first virtual address that it translates.
fn place(at: &str, cr3: u64, levels: u32) -> Result<(u64, u32, u64), MonitorError> {
    let words: Vec<&str> = at.split_whitespace().collect();
    match words.as_slice() {
        [] => Ok((cr3, levels - 1, 0)),
        [root] => Ok((number(root)?, levels - 1, 0)),
        [table, level, base] => {
            let level = number(level)?;
            let fits = u32::try_from(level).ok().filter(|level| *level < levels);
            let level = fits.ok_or_else(|| MonitorError::Other(format!("there are no tables of level {level:x}")))?;
            Ok((number(table)?, level, number(base)?))
        }
        _ => Err(MonitorError::Other("a table is named by its address, its level and its first address".to_owned())),
    }
}

/// The canonical form of an address that tables of so many levels translate.
fn extended(gva: u64, levels: u32) -> u64 {
    let unused = match levels {
        4 | 5 => 64 - (PAGE_SHIFT + 9 * levels),
        _ => return gva,
    };
    ((gva << unused).cast_signed() >> unused).cast_unsigned()
}

impl Monitor {
    /// Calls `act` with what stands in `rest`.
    fn answer<R>(
        &mut self,
        rest: &str,
        act: impl FnOnce(&mut Self, &mut Arguments<'_>) -> Result<R, MonitorError>,
    ) -> Result<R, MonitorError> {
        let result = self.with(rest, act);
        self.forget();
        result
    }
}
