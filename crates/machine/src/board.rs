//! What is on the board and how it is wired.
//!
//! | ports | what | interrupt |
//! |---|---|---|
//! | 60h, 64h | keyboard controller | ISA 1 |
//! | 92h | fast A20 and reset | |
//! | B2h–B3h | SMI command and status | |
//! | 20h–21h, A0h–A1h, 4D0h–4D1h | 8259 interrupt controllers | |
//! | 40h–43h, 61h | 8254 timer | ISA 0, through the HPET |
//! | 70h–71h | CMOS clock | ISA 8, through the HPET |
//! | 2E8h, 2F8h, 3E8h, 3F8h (8 each) | serial ports | ISA 3 (COM2, COM4), ISA 4 (COM1, COM3) |
//! | 510h–511h, 514h–51Bh | fw_cfg | |
//! | 600h–60Bh | ACPI events, control, timer | ISA 9, level |
//! | 620h–623h | ACPI general-purpose events | ISA 9 |
//! | CF8h–CFFh | PCI configuration, reset register at CF9h | |
//!
//! | addresses | what | interrupt |
//! |---|---|---|
//! | FEC00000h | I/O APIC | |
//! | FED00000h | HPET | ISA 0 and 8, or I/O APIC inputs 16–23 |
//! | FEE00000h | local APICs | |
//!
//! ISA interrupts go to the 8259s and to the I/O APIC's input of the same number, but for ISA 0, which goes to input 2.

use crate::config::{Config, MachineError, Serial};
use crate::control::Control;
use crate::trace_port::TracePort;
use crate::wiring::share;
use crate::{BoardKind, Chip, MachineClock, firmware};
use boot::{BoardInfo, Com};
use cpu::cpuid::{Feature, Model};
use cpu::debugger::Stop;
use cpu::reset::Connections;
use cpu::{Cpu, Signals};
use devices::debug_exit::DebugExit;
use devices::debugcon::DebugCon;
use devices::fw_cfg::{self, FwCfg, Items, Key};
use devices::hpet::{Hpet, HpetLines};
use devices::i8042::{self, I8042};
use devices::ioapic::IoApic;
use devices::lapic::{ApicBus, ApicConfig, ApicMmio, ExtInt, LocalApic};
use devices::line::{Fanout, NoLine};
use devices::pci::{self, HostBridge, PciBus};
use devices::pic::Pic;
use devices::pit::Pit;
use devices::pm::{self, Pm, ResetControl};
use devices::port92::Port92;
use devices::rtc::{CmosConfig, Rtc};
use devices::testdev::{self, TestDevice, TestMemory};
use devices::timer::Timers;
use devices::uart::{self, Uart};
use devices::{A20, Pin, PortBus, PortDevice, PowerSwitch, Reset};
use lens::Lens;
use lens::touched::Book;
use memory::ram::{GuestRam, RamRegion};
use memory::{Dma, Gpa, Mmio, PhysicalMap};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// Everything that is soldered on.
pub(crate) struct Board {
    pub(crate) map: Arc<PhysicalMap>,
    pub(crate) clock: Arc<MachineClock>,
    pub(crate) timers: Arc<Timers>,
    pub(crate) pm: Arc<Pm>,
    pub(crate) ports: Arc<PortBus>,
    /// Which pages are touched.
    pub(crate) touched: Book,
    /// Held by whoever has instructions counted.
    pub(crate) measuring: Mutex<()>,
    /// What looks at memory accesses.
    pub(crate) lens: Arc<Lens>,
    /// What the ACPI tables are to say.
    pub(crate) info: BoardInfo,
    /// COM1 to COM4, as far as they are there.
    uarts: Vec<Option<Arc<Uart>>>,
    apics: Vec<Arc<LocalApic>>,
    pic: Arc<Pic>,
    ioapic: Arc<IoApic>,
    pit: Option<Arc<Pit>>,
    /// What a reset resets, in this order: devices, then the controllers that hear them.
    resets: Vec<Arc<dyn Reset + Send + Sync>>,
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("map", &self.map).field("info", &self.info).finish_non_exhaustive()
    }
}

impl Board {
    /// Resets every device. Memory keeps what is in it.
    pub(crate) fn reset(&self) {
        for device in &self.resets {
            device.reset();
        }
        firmware::set_up(&self.pic, self.pit.as_deref(), self.info.sci);
    }

    /// Puts the first vCPU's local APIC into the state in which firmware leaves it. To be called once the vCPU has been
    /// reset, which resets its APIC.
    pub(crate) fn hand_over(&self) {
        if let Some(apic) = self.apics.first() {
            apic.set_virtual_wire();
        }
    }

    /// An interrupt controller's registers as a text.
    pub(crate) fn describe(&self, chip: Chip) -> Option<String> {
        match chip {
            Chip::Pic => Some(self.pic.describe()),
            Chip::IoApic => Some(self.ioapic.describe()),
            Chip::LocalApic(index) => self.apics.get(index).map(|apic| apic.describe()),
        }
    }

    pub(crate) fn uart(&self, port: usize) -> Option<&Uart> {
        self.uarts.get(port)?.as_deref()
    }
}

/// A board with its vCPUs, not yet running.
pub(crate) struct Made {
    pub(crate) board: Arc<Board>,
    pub(crate) control: Arc<Control>,
    pub(crate) cpus: Vec<Cpu>,
}

/// Makes and wires everything that `config` asks for, but for what concerns loading.
pub(crate) fn make(config: Config) -> Result<Made, MachineError> {
    if config.serials.len() > uart::COM.len() {
        return Err(MachineError::Serials(config.serials.len()));
    }
    let signals: Vec<Arc<Signals>> = (0..config.cpus).map(|_| Arc::default()).collect();
    let control = Arc::new(Control::new(signals.clone()));
    let stops = control.clone();
    config.lens.on_stop(move |cpu, id| stops.debug_stop(cpu as usize, Stop::Observer(id)));
    let power: Arc<dyn PowerSwitch> = control.clone();
    let clock = Arc::new(MachineClock::default());
    let timers = Timers::new(clock.clone());
    let mut info = BoardInfo { coms: Vec::new(), ..BoardInfo::default() };

    let mut map = PhysicalMap::new(GuestRam::new(config.memory)?)?;
    let mut build = Builder { ports: PortBus::new(), resets: Vec::new() };
    let interrupts = Interrupts::make(&config.cpu_model, &signals, &timers, &mut map, &info)?;
    let irqs = interrupts.isa();
    let sci = irqs[usize::from(info.sci & 15)].clone();
    let pm = build.pm(&info, &timers, sci, &power)?;
    let irq0 = build.clocks(&interrupts, &irqs, &timers, &mut map, config.hpet.then_some(info.hpet), &pm)?;
    let pit = config.pit.then(|| build.pit(&timers, irq0)).transpose()?;
    if config.pc_testdev {
        build.test_device(&interrupts, &irqs, &mut map)?;
    }
    let map = Arc::new(map);

    let a20 = build.a20(&map, &control);
    build.keyboard(irqs[1].clone(), &a20, &power)?;
    build.pci(config.board, &power)?;
    let uarts = build.serials(config.serials, &irqs, &mut info)?;
    build.fw_cfg(&map, config.memory, config.cpus, config.fw_cfg)?;
    if let Some(console) = config.debugcon {
        build.ports.add(console.iobase, 1, 1, Arc::new(DebugCon::new(console.sink)))?;
    }
    if let Some(port) = config.trace_port {
        let device = TracePort { lens: config.lens.clone(), control: control.clone() };
        build.ports.add(port, 1, 4, Arc::new(device))?;
    }
    if let Some(exit) = config.isa_debug_exit {
        build.ports.add(exit.iobase, exit.iosize, 4, Arc::new(DebugExit::new(power)))?;
    }

    build.interrupts(&interrupts)?;
    let Builder { ports, resets } = build;
    let Interrupts { apics, pic, ioapic } = interrupts;
    if let Some(witness) = config.witness {
        map.witness().take(witness.clone());
        ports.witness().take(witness);
    }
    map.observe_dma(config.lens.observer());
    let ports = Arc::new(ports);
    let cpus = (0..).zip(signals).zip(&apics).map(|((id, signals), apic)| {
        let connections =
            Connections { map: map.clone(), signals, ports: ports.clone(), apic: apic.clone(), clock: clock.clone() };
        let mut cpu = Cpu::new(id, config.cpu_model.clone(), connections);
        cpu.mmu.set_observer(config.lens.observer());
        cpu
    });
    let cpus = cpus.collect();
    let (touched, measuring) = (Book::default(), Mutex::default());
    let board = Arc::new(Board {
        map,
        clock,
        timers,
        pm,
        lens: config.lens,
        ports,
        touched,
        measuring,
        info,
        uarts,
        resets,
        apics,
        pic,
        ioapic,
        pit,
    });
    Ok(Made { board, control, cpus })
}

/// What is collected while the board is made.
struct Builder {
    ports: PortBus,
    resets: Vec<Arc<dyn Reset + Send + Sync>>,
}

/// The interrupt controllers.
struct Interrupts {
    apics: Vec<Arc<LocalApic>>,
    ioapic: Arc<IoApic>,
    pic: Arc<Pic>,
}

impl Interrupts {
    fn make(
        model: &Model,
        signals: &[Arc<Signals>],
        timers: &Arc<Timers>,
        map: &mut PhysicalMap,
        info: &BoardInfo,
    ) -> Result<Self, MachineError> {
        let bus = ApicBus::new();
        let pic = Pic::new(bus.intr_pin());
        let source: Arc<dyn ExtInt> = pic.clone();
        bus.set_ext_int(Arc::downgrade(&source));
        let apics = (0..).zip(signals).map(|(id, signals)| {
            let config = ApicConfig {
                id,
                bsp: id == 0,
                x2apic: model.has(Feature::X2APIC),
                tsc_deadline: model.has(Feature::TSC_DEADLINE),
                physical_bits: model.physical_bits(),
            };
            LocalApic::new(config, &bus, timers, signals.clone())
        });
        let apics = apics.collect();
        // The pages that are somewhere for certain lie on top of those that may be anywhere.
        let (window, pages) = (ApicMmio::WINDOW, ApicMmio::new(bus.clone(), ApicMmio::WINDOW.start));
        map.add_mmio(Gpa(window.start)..Gpa(window.end), Arc::new(pages))?;
        let ioapic = IoApic::new(&bus);
        add_mmio(map, info.ioapic, IoApic::SIZE, ioapic.clone())?;
        add_mmio(map, info.lapic, ApicMmio::SIZE, Arc::new(ApicMmio::new(bus, info.lapic.into())))?;
        Ok(Self { apics, ioapic, pic })
    }

    /// The 16 ISA interrupts, each at both controllers. ISA 0 goes to the I/O APIC's input 2, as the ACPI tables say.
    fn isa(&self) -> [Pin; 16] {
        std::array::from_fn(|n| {
            let pic = u8::try_from(n).map_or_else(|_| NoLine::pin(), |n| self.pic.pin(n));
            let ioapic = self.ioapic.pin(if n == 0 { 2 } else { n });
            if n == 2 { NoLine::pin() } else { Arc::new(Fanout(vec![pic, ioapic])) }
        })
    }
}

fn add_mmio(map: &mut PhysicalMap, base: u32, size: u64, device: Arc<dyn Mmio>) -> Result<(), MachineError> {
    let base = Gpa(base.into());
    Ok(map.add_mmio(base..base.wrapping_add(size), device)?)
}

impl Builder {
    /// The controllers themselves: the last to be reset, when every line is at rest.
    fn interrupts(&mut self, interrupts: &Interrupts) -> Result<(), MachineError> {
        self.byte_ports(&Pic::PORTS, &interrupts.pic)?;
        self.resets.push(interrupts.ioapic.clone());
        self.resets.push(interrupts.pic.clone());
        for apic in &interrupts.apics {
            self.resets.push(apic.clone());
        }
        Ok(())
    }

    fn byte_ports<D: PortDevice + 'static>(&mut self, ports: &[u16], device: &Arc<D>) -> Result<(), MachineError> {
        for port in ports {
            self.ports.add(*port, 1, 1, device.clone())?;
        }
        Ok(())
    }

    /// CMOS clock and, if there is one, the HPET at `hpet`, which its interrupt then goes through, and the interval timer's;
    /// the clock's is a power event as well. Where the interval timer's interrupt is to go.
    fn clocks(
        &mut self,
        interrupts: &Interrupts,
        isa: &[Pin; 16],
        timers: &Arc<Timers>,
        map: &mut PhysicalMap,
        hpet: Option<u32>,
        pm: &Arc<Pm>,
    ) -> Result<Pin, MachineError> {
        let (irq0, irq8) = (isa[0].clone(), isa[8].clone());
        let (irq0, irq8) = match hpet {
            None => (irq0, irq8),
            Some(base) => {
                let gsi16 = std::array::from_fn(|n| interrupts.ioapic.pin(16 + n));
                let hpet = Hpet::new(timers, HpetLines { irq0, irq8, gsi16 });
                add_mmio(map, base, Hpet::SIZE, hpet.clone())?;
                self.resets.push(hpet.clone());
                (hpet.pit_input(), hpet.rtc_input())
            }
        };
        let ram = |from: u64, to: u64| -> u64 {
            let within = |region: &RamRegion| (from..to).contains(&region.gpa.0);
            map.ram().regions().iter().filter(|region| within(region)).map(|region| region.len).sum()
        };
        let config = CmosConfig { ram_below_4g: ram(0, 1 << 32), ram_above_4g: ram(1 << 32, u64::MAX) };
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let rtc = Rtc::new(timers, Arc::new(Fanout(vec![irq8, pm.clock_line()])), now, &config);
        self.resets.push(rtc.clone());
        self.byte_ports(&Rtc::PORTS, &rtc)?;
        Ok(irq0)
    }

    fn pit(&mut self, timers: &Arc<Timers>, irq0: Pin) -> Result<Arc<Pit>, MachineError> {
        let pit = Pit::new(timers, irq0);
        self.resets.push(pit.clone());
        self.byte_ports(&Pit::PORTS, &pit)?;
        Ok(pit)
    }

    /// Has `device` reset with the machine.
    fn resets<D: Reset + Send + Sync + 'static>(&mut self, device: D) -> Arc<D> {
        let device = Arc::new(device);
        self.resets.push(device.clone());
        device
    }

    /// The test device, whose lines 0 to 15 are the ISA interrupts and the others the I/O APIC's further inputs.
    fn test_device(
        &mut self,
        interrupts: &Interrupts,
        isa: &[Pin; 16],
        map: &mut PhysicalMap,
    ) -> Result<(), MachineError> {
        let further = (isa.len()..testdev::LINE_COUNT.into()).map(|n| interrupts.ioapic.pin(n));
        let device = self.resets(TestDevice::new(isa.iter().cloned().chain(further).collect()));
        self.ports.add(testdev::LATCH, testdev::LATCH_PORTS, 4, device.clone())?;
        self.ports.add(testdev::BYTES, testdev::BYTE_PORTS, 1, device.clone())?;
        self.ports.add(testdev::LINES, testdev::LINE_COUNT, 4, device)?;
        let (start, end) = (Gpa(testdev::MEMORY), Gpa(testdev::MEMORY + testdev::MEMORY_SIZE as u64));
        Ok(map.add_mmio(start..end, TestMemory::new())?)
    }

    fn a20(&mut self, map: &Arc<PhysicalMap>, control: &Arc<Control>) -> Arc<A20> {
        let (map, control) = (map.clone(), control.clone());
        self.resets(A20::new(move |open| {
            if map.set_a20(open) {
                control.flush_all();
            }
        }))
    }

    fn pm(
        &mut self,
        info: &BoardInfo,
        timers: &Arc<Timers>,
        sci: Pin,
        power: &Arc<dyn PowerSwitch>,
    ) -> Result<Arc<Pm>, MachineError> {
        let layout = pm::Layout { s3: info.s3, s5: info.s5, timer_32: info.pm_timer_32 };
        let pm = Pm::new(layout, timers, sci, power.clone());
        self.resets.push(pm.clone());
        self.ports.add(pm::BASE, pm::PORTS, 4, pm.clone())?;
        self.ports.add(pm::GPE0, pm::GPE0_PORTS, 4, pm.clone())?;
        self.ports.add(pm::SMI, pm::SMI_PORTS, 1, pm.clone())?;
        Ok(pm)
    }

    fn keyboard(&mut self, irq: Pin, a20: &Arc<A20>, power: &Arc<dyn PowerSwitch>) -> Result<(), MachineError> {
        let keyboard = self.resets(I8042::new(irq, a20.clone(), power.clone()));
        self.ports.add(i8042::DATA, 1, 1, keyboard.clone())?;
        self.ports.add(i8042::COMMAND, 1, 1, keyboard)?;
        let port92 = self.resets(Port92::new(a20.clone(), power.clone()));
        self.ports.add(Port92::PORT, 1, 1, port92)?;
        Ok(())
    }

    fn pci(&mut self, board: BoardKind, power: &Arc<dyn PowerSwitch>) -> Result<(), MachineError> {
        let reset = self.resets(ResetControl::new(power.clone()));
        let bus = self.resets(PciBus::new(Arc::new(HostBridge::new(board.bridge())), reset));
        self.ports.add(pci::ADDRESS, pci::PORTS, 4, bus)?;
        Ok(())
    }

    /// The serial ports, two of which share each interrupt.
    fn serials(
        &mut self,
        serials: Vec<Serial>,
        irqs: &[Pin; 16],
        info: &mut BoardInfo,
    ) -> Result<Vec<Option<Arc<Uart>>>, MachineError> {
        let [com1, com3] = share(irqs[4].clone());
        let [com2, com4] = share(irqs[3].clone());
        let mut uarts = Vec::new();
        for ((serial, (port, irq)), line) in serials.into_iter().zip(uart::COM).zip([com1, com2, com3, com4]) {
            uarts.push(match serial {
                Serial::None => None,
                Serial::Port(sink) => {
                    let uart = self.resets(Uart::new(port, line, sink));
                    self.ports.add(port, uart::PORTS, 1, uart.clone())?;
                    info.coms.push(Com { port, irq });
                    Some(uart)
                }
            });
        }
        Ok(uarts)
    }

    fn fw_cfg(
        &mut self,
        map: &Arc<PhysicalMap>,
        memory: u64,
        cpus: u32,
        files: Vec<(String, Vec<u8>)>,
    ) -> Result<(), MachineError> {
        let mut items = Items::new();
        let [low, high, ..] = cpus.to_le_bytes();
        items.add_entry(Key::Uuid, vec![0; 16]);
        items.add_entry(Key::RamSize, memory.to_le_bytes().to_vec());
        items.add_entry(Key::NoGraphic, 1u16.to_le_bytes().to_vec());
        items.add_entry(Key::Cpus, vec![low, high]);
        items.add_entry(Key::MaxCpus, vec![low, high]);
        for (name, bytes) in files {
            items.add_file(&name, bytes)?;
        }
        let device = self.resets(FwCfg::new(items, Dma::new(map.clone(), fw_cfg::NAME)));
        self.ports.add(fw_cfg::SELECTOR, 2, 2, device.clone())?;
        self.ports.add(fw_cfg::DMA, fw_cfg::DMA_PORTS, 4, device)?;
        Ok(())
    }
}
