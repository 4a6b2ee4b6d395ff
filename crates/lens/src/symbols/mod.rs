//! Names for the guest's addresses, from its own memory or from files, and what else its kernel says of itself: its
//! processes.

pub mod btf;
pub mod file;
pub mod kallsyms;
mod memory;
mod modules;
pub mod processes;
mod table;

pub use file::{File, FileError, Source};
pub use processes::{Process, Processes, Unlisted, by_cr3};
pub use table::{Named, Table};

use self::memory::Places;
use ::memory::{Gpa, Gva, PhysicalMap};
use btf::Btf;
use file::Image;
use modules::{Module, Modules};
use processes::types;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The most that a kernel tells of itself (`VMCOREINFO_BYTES` is a page).
const CORE_INFO_MAX: usize = 1 << 16;

/// Whether a kernel may have a module there.
pub(crate) fn in_modules(gva: Gva) -> bool {
    gva.0 >= memory::MODULES
}

/// How long a list of modules is taken for that of now: a guest may change it with every access that is told.
const PATIENCE: Duration = Duration::from_millis(200);

/// What is known of a kernel.
#[derive(Debug)]
struct Known {
    /// Where its system calls enter, and where that is in guest physical memory.
    entry: (Gva, Gpa),
    symbols: Arc<Table>,
    /// The file that they are from, and how far the kernel is from where that has it.
    file: Option<(usize, u64)>,
    /// `None`: not asked for yet.
    processes: Option<Result<Arc<Processes>, Unlisted>>,
    /// How modules are listed, if they can be; the outer `None`: not asked for yet.
    modules: Option<Option<Modules>>,
    /// The modules that there were when they were looked for last, and all symbols with theirs.
    with_modules: (Vec<Module>, Arc<Table>),
    /// When that was.
    looked: Option<Instant>,
}

impl Known {
    /// All symbols as they are now.
    fn all(&mut self, map: &PhysicalMap) -> Arc<Table> {
        let Self { entry: (entry, gpa), symbols, modules, .. } = self;
        let find = || {
            let places = Places::of(symbols, *entry, *gpa);
            Modules::of(symbols, places, &Btf::parse(&types(map, symbols, places)?)?)
        };
        let Some(modules) = modules.get_or_insert_with(find) else { return self.symbols.clone() };
        if self.looked.is_some_and(|looked| looked.elapsed() < PATIENCE) {
            return self.with_modules.1.clone();
        }
        self.looked = Some(Instant::now());
        let now = modules.list(map);
        if self.with_modules.0 != now {
            let theirs = modules.symbols(map, &now);
            let theirs = theirs.iter().map(|(gva, name)| (*gva, name.as_str()));
            // The kernel's last symbol is not as long as modules are far.
            let end = symbols.iter().last().map(|(last, _)| (last.wrapping_add(1), ""));
            self.with_modules = (now, Arc::new(Table::new(symbols.iter().chain(end).chain(theirs))));
        }
        self.with_modules.1.clone()
    }
}

/// What is told of files that are not taken.
type Tell = dyn Fn(fmt::Arguments<'_>) + Send + Sync;

#[derive(Debug, Default)]
struct State {
    known: Option<Known>,
    /// The kernel for which it has been told what is wrong with the files.
    told: Option<(Gva, Gpa)>,
}

/// The symbols of the guest's kernel, kept from one question to the next, and those of programs.
///
/// They are the kernel's own, which are in its memory, unless a file has been given that is of that kernel. Symbols of
/// programs are the same whatever process runs.
#[derive(Default)]
pub struct Kernel {
    files: Vec<File>,
    /// Symbols of programs alone.
    programs: Arc<Table>,
    tell: Option<Box<Tell>>,
    state: Mutex<State>,
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel").field("files", &self.files).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Kernel {
    /// With symbols from files. `tell` is told, once for each kernel, which of them are not its own.
    #[must_use]
    pub fn new(files: Vec<File>, tell: impl Fn(fmt::Arguments<'_>) + Send + Sync + 'static) -> Self {
        let programs = files.iter().filter_map(|file| Some(file.symbols(file.moved()?))).flatten();
        let programs = Arc::new(Table::new(programs));
        Self { files, programs, tell: Some(Box::new(tell)), state: Mutex::default() }
    }

    /// Whether there are files that a kernel is to be held against.
    #[must_use]
    pub fn has_files(&self) -> bool {
        self.files.iter().any(File::is_kernel)
    }

    /// The symbols of programs, where no kernel is known.
    #[must_use]
    pub fn programs(&self) -> &Arc<Table> {
        &self.programs
    }

    /// The symbols of the kernel whose system calls enter at `entry`, which is at `gpa`, those of the modules that it has
    /// now, and those of programs. The kernel is asked for its own once.
    pub fn symbols(&self, map: &PhysicalMap, entry: Gva, gpa: Gpa) -> Arc<Table> {
        self.with(map, entry, gpa, |known| known.all(map)).unwrap_or_else(|| self.programs.clone())
    }

    /// How the processes of that kernel are listed.
    ///
    /// # Errors
    /// It lacks something that it takes.
    pub fn processes(&self, map: &PhysicalMap, entry: Gva, gpa: Gpa) -> Result<Arc<Processes>, Unlisted> {
        let processes = self.with(map, entry, gpa, |known| {
            let Known { symbols, processes, .. } = known;
            processes.get_or_insert_with(|| Processes::of(map, symbols, entry, gpa).map(Arc::new)).clone()
        });
        processes.unwrap_or(Err(Unlisted::NoSymbols))
    }

    /// What that kernel tells those who read a dump of its memory (`VMCOREINFO`): its release, offsets, symbols.
    pub fn core_info(&self, map: &PhysicalMap, entry: Gva, gpa: Gpa) -> Option<Vec<u8>> {
        let symbols = self.symbols(map, entry, gpa);
        let memory = Places::of(&symbols, entry, gpa).look(map);
        let len = memory.word(symbols.find("vmcoreinfo_size")?)?;
        let mut bytes = vec![0; usize::try_from(len).ok().filter(|len| (1..=CORE_INFO_MAX).contains(len))?];
        memory.read(Gva(memory.word(symbols.find("vmcoreinfo_data")?)?), &mut bytes)?;
        Some(bytes)
    }

    /// File and line of the source of the instruction at `gva`, if a file tells.
    pub fn line(&self, gva: Gva) -> Option<String> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = state.known.as_ref().and_then(|known| known.file);
        drop(state);
        let kernel = kernel.and_then(|(index, moved)| Some((self.files.get(index)?, moved)));
        let programs = self.files.iter().filter_map(|file| Some((file, file.moved()?)));
        kernel.into_iter().chain(programs).find_map(|(file, moved)| file.line(gva.0.wrapping_sub(moved)))
    }

    /// Asks what is known of that kernel, if it has symbols.
    fn with<R>(&self, map: &PhysicalMap, entry: Gva, gpa: Gpa, ask: impl FnOnce(&mut Known) -> R) -> Option<R> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { known, told } = &mut *state;
        if known.as_ref().is_none_or(|known| known.entry != (entry, gpa)) {
            *known = self.read(Image { map, entry, gpa }, told);
        }
        known.as_mut().map(ask)
    }

    /// Finds the symbols of a kernel.
    fn read(&self, image: Image<'_>, told: &mut Option<(Gva, Gpa)>) -> Option<Known> {
        let Image { map, entry, gpa } = image;
        let own = kallsyms::read(map, gpa);
        let mut chosen = None;
        for (index, file) in self.files.iter().enumerate().filter(|(_, file)| file.is_kernel()) {
            match file.fit(image, own.as_ref()) {
                Ok(moved) => chosen = chosen.or(Some((index, moved))),
                Err(why) if *told != Some((entry, gpa)) => {
                    let instead = if own.is_some() { "its own symbols are used" } else { "it has none of its own" };
                    if let Some(tell) = &self.tell {
                        tell(format_args!("-symbols {}: {why}; {instead}", file.path().display()));
                    }
                }
                Err(_) => {}
            }
        }
        *told = Some((entry, gpa));
        let from_file = chosen.and_then(|(index, moved)| Some(Table::new(self.files.get(index)?.symbols(moved))));
        let kernel = from_file.or(own)?;
        let symbols =
            if self.programs.is_empty() { kernel } else { Table::new(self.programs.iter().chain(kernel.iter())) };
        let symbols = Arc::new(symbols);
        let with_modules = (Vec::new(), symbols.clone());
        Some(Known {
            entry: (entry, gpa),
            symbols,
            file: chosen,
            processes: None,
            modules: None,
            with_modules,
            looked: None,
        })
    }
}
