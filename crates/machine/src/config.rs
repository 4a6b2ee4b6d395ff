//! What a machine is made of, and why it cannot be made.

use boot::BootError;
use cpu::cpuid::Model;
use devices::Sink;
use devices::fw_cfg::FwCfgError;
use devices::pci::Bridge;
use devices::port_bus::PortBusError;
use devices::uart::COM;
use jit::perf::Perf;
use lens::Lens;
use memory::map::MapError;
use memory::ram::RamError;
use memory::witness::Witness;
use std::path::PathBuf;
use std::sync::Arc;

/// Which of the two PCs: they differ in the host bridge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BoardKind {
    /// The older: Intel 440FX.
    #[default]
    Pc,
    /// The newer: Intel Q35.
    Q35,
}

impl BoardKind {
    pub(crate) const fn bridge(self) -> Bridge {
        match self {
            Self::Pc => Bridge::I440fx,
            Self::Q35 => Bridge::Q35,
        }
    }
}

/// How guest code is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// By the interpreter alone.
    Interp,
    /// By the translator as soon as it is warm.
    Jit(jit::Config),
}

impl Accel {
    /// The least bytes of translated code that a vCPU has room for.
    const LEAST_CACHE: usize = 4 << 20;

    /// What each of so many vCPUs has of it: they share the room for translated code.
    #[must_use]
    pub fn shared(self, vcpus: usize) -> Self {
        match self {
            Self::Interp => Self::Interp,
            Self::Jit(config) => {
                let cache = (config.cache / vcpus.max(1)).max(config.cache.min(Self::LEAST_CACHE));
                Self::Jit(jit::Config { cache, ..config })
            }
        }
    }
}

impl Default for Accel {
    fn default() -> Self {
        Self::Jit(jit::Config::default())
    }
}

/// What is at the place of a serial port.
#[derive(Debug)]
pub enum Serial {
    /// No port.
    None,
    /// A port whose output goes here. Its input is given by [`Handle::receive`](crate::Handle::receive).
    Port(Box<dyn Sink>),
}

/// Ports of the debug exit device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebugExitPorts {
    /// First port.
    pub iobase: u16,
    /// How many.
    pub iosize: u16,
}

impl Default for DebugExitPorts {
    fn default() -> Self {
        Self { iobase: 0x501, iosize: 2 }
    }
}

/// The debug console.
#[derive(Debug)]
pub struct DebugConsole {
    /// Its port, usually E9h.
    pub iobase: u16,
    /// Where its output goes.
    pub sink: Box<dyn Sink>,
}

/// A machine as the user wants it.
pub struct Config {
    /// RAM in bytes.
    pub memory: u64,
    /// vCPUs, 1 to 255.
    pub cpus: u32,
    /// How guest code is executed.
    pub accel: Accel,
    /// Who is told where translated code is.
    pub perf: Option<Arc<Perf>>,
    /// What CPUID answers.
    pub cpu_model: Arc<Model>,
    /// Which board.
    pub board: BoardKind,
    /// The kernel to load (see [`boot::load`]). There is no firmware, so without one a machine cannot start.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk, or the modules of a multiboot kernel, as [`boot::Config::initrd`] takes it.
    pub initrd: Option<String>,
    /// The kernel's command line.
    pub append: String,
    /// COM1 to COM4, as many as there are.
    pub serials: Vec<Serial>,
    /// The debug console, if there is one.
    pub debugcon: Option<DebugConsole>,
    /// The debug exit device, if there is one.
    pub isa_debug_exit: Option<DebugExitPorts>,
    /// Whether there is QEMU's test device (`pc-testdev`).
    pub pc_testdev: bool,
    /// Whether there is an HPET.
    pub hpet: bool,
    /// Whether there is an interval timer (8254).
    pub pit: bool,
    /// Whether a reset ends the machine.
    pub no_reboot: bool,
    /// Whether power off pauses the machine rather than ends it.
    pub no_shutdown: bool,
    /// Sees accesses to memory that it is interested in.
    pub lens: Arc<Lens>,
    /// The port by which the guest turns the trace on and off, if there is one.
    pub trace_port: Option<u16>,
    /// Is told what happens beside accesses to memory.
    pub witness: Option<Arc<dyn Witness>>,
    /// Files for fw_cfg, by name.
    pub fw_cfg: Vec<(String, Vec<u8>)>,
}

impl Config {
    /// 128 MiB, one vCPU of `cpu_model`, and no kernel.
    #[must_use]
    pub fn new(cpu_model: Arc<Model>) -> Self {
        Self {
            memory: 128 << 20,
            cpus: 1,
            accel: Accel::default(),
            perf: None,
            cpu_model,
            board: BoardKind::default(),
            kernel: None,
            initrd: None,
            append: String::new(),
            serials: Vec::new(),
            debugcon: None,
            isa_debug_exit: None,
            pc_testdev: false,
            hpet: true,
            pit: true,
            no_reboot: false,
            no_shutdown: false,
            lens: Arc::default(),
            trace_port: None,
            witness: None,
            fw_cfg: Vec::new(),
        }
    }
}

/// Why a machine cannot be made, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// There is nothing to run.
    #[error("there is no firmware yet, so a kernel is needed: give one with -kernel")]
    NoKernel,
    /// Too few or too many vCPUs.
    #[error("a machine has 1 to {limit} vCPUs, not {0}", limit = crate::MAX_CPUS)]
    Cpus(u32),
    /// Too many serial ports.
    #[error("a PC has {limit} serial ports, not {0}", limit = COM.len())]
    Serials(usize),
    /// The host gives no memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The address space cannot be laid out.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Two devices want the same ports.
    #[error(transparent)]
    Ports(#[from] PortBusError),
    /// A fw_cfg file cannot be offered.
    #[error(transparent)]
    FwCfg(#[from] FwCfgError),
    /// The host gives the translator no memory.
    #[error(transparent)]
    Translator(#[from] jit::Error),
    /// There is no executable memory for instructions that run on the host as they are.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// The kernel cannot be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The host starts no thread.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// Vitrine cannot go on; a report of why.
    #[error("{0}\nplease report this, with what the guest was doing")]
    Bug(String),
}
