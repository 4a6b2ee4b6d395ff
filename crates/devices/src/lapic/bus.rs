//! The system bus as interrupts see it: messages find the local APICs that they are for, EOIs the IOAPICs.

use std::fmt::{self, Debug};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use memory::Mmio;

use super::LocalApic;
use super::spec::{DeliveryMode, MsiAddress, MsiData};
use crate::bytes::all_ones;
use crate::line::{IrqLine, Pin};

/// Where an ExtINT gets its vector: the 8259.
pub trait ExtInt: Send + Sync + Debug {
    /// The acknowledge cycles. Called with no local APIC's lock held.
    fn acknowledge(&self) -> u8;
}

/// Who wants to know of the end of level triggered interrupts: the IOAPICs.
pub trait EoiSink: Send + Sync + Debug {
    /// A processor has finished serving `vector`. Called with no local APIC's lock held.
    fn eoi(&self, vector: u8);
}

/// An interrupt message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Physical or logical ID; all ones (of its width) is everybody.
    pub destination: u32,
    /// The destination is a logical one.
    pub logical: bool,
    /// The destination has 32 bits (an IPI from x2APIC mode) and not 8.
    pub wide: bool,
    /// What to do.
    pub mode: DeliveryMode,
    /// The vector, or the start-up page.
    pub vector: u8,
    /// Level triggered: the receiver's EOI is broadcast.
    pub level: bool,
    /// One receiver only, the least busy of those addressed.
    pub one: bool,
}

/// All local APICs of the machine and what is between them.
#[derive(Default)]
pub struct ApicBus {
    /// Local APICs by vCPU. Written while the machine is built only.
    apics: RwLock<Vec<Arc<LocalApic>>>,
    sinks: RwLock<Vec<Weak<dyn EoiSink>>>,
    ext_int: OnceLock<Weak<dyn ExtInt>>,
    /// Where lowest priority delivery starts to look, so that equals take turns.
    turn: AtomicUsize,
}

impl ApicBus {
    /// A bus with nothing on it.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Adds the next vCPU's APIC.
    pub(super) fn add(&self, apic: Arc<LocalApic>) {
        self.apics.write().unwrap_or_else(PoisonError::into_inner).push(apic);
    }

    /// Adds a receiver of EOI broadcasts.
    pub fn add_eoi_sink(&self, sink: Weak<dyn EoiSink>) {
        self.sinks.write().unwrap_or_else(PoisonError::into_inner).push(sink);
    }

    /// Says where ExtINT gets its vectors. Only the first call counts.
    pub fn set_ext_int(&self, source: Weak<dyn ExtInt>) {
        let _ = self.ext_int.set(source);
    }

    fn apics(&self) -> impl std::ops::Deref<Target = Vec<Arc<LocalApic>>> + '_ {
        self.apics.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The APIC of vCPU `cpu`.
    #[must_use]
    pub fn apic(&self, cpu: usize) -> Option<Arc<LocalApic>> {
        self.apics().get(cpu).cloned()
    }

    /// Delivers a message. Whether anybody accepted it.
    pub fn deliver(&self, message: &Message) -> bool {
        tracing::debug!(target: "int", ?message, "interrupt message");
        let apics = self.apics();
        let addressed = apics.iter().filter(|apic| apic.is_addressed(message));
        if message.one || message.mode == DeliveryMode::LowestPriority {
            let start = self.turn.fetch_add(1, Ordering::Relaxed) % apics.len().max(1);
            let (before, from) = apics.split_at(start);
            let least_busy = from
                .iter()
                .chain(before)
                .filter(|apic| apic.is_addressed(message))
                .filter_map(|apic| Some((apic.busyness()?, apic)))
                .min_by_key(|&(busyness, _)| busyness);
            return least_busy.is_some_and(|(_, apic)| apic.accept(message));
        }
        addressed.fold(false, |accepted, apic| apic.accept(message) | accepted)
    }

    /// Delivers to all, or to all but one.
    pub(super) fn deliver_to_all(&self, message: &Message, except: Option<&LocalApic>) {
        for apic in self.apics().iter().filter(|apic| !except.is_some_and(|except| std::ptr::eq(except, &***apic))) {
            apic.accept(message);
        }
    }

    /// Delivers a message signalled interrupt: a write of `data` to `address` (FEExxxxxh). Whether anybody accepted it.
    pub fn deliver_msi(&self, address: u64, data: u32) -> bool {
        let (address, data) = (MsiAddress::from(address), MsiData::from(data));
        self.deliver(&Message {
            destination: address.destination().into(),
            logical: address.logical(),
            wide: false,
            mode: data.mode(),
            vector: data.vector(),
            level: data.level(),
            one: address.redirect() && data.mode() == DeliveryMode::Fixed,
        })
    }

    pub(super) fn eoi(&self, vector: u8) {
        let sinks = self.sinks.read().unwrap_or_else(PoisonError::into_inner);
        for sink in sinks.iter().filter_map(Weak::upgrade) {
            sink.eoi(vector);
        }
    }

    pub(super) fn ext_int(&self) -> Option<Arc<dyn ExtInt>> {
        self.ext_int.get()?.upgrade()
    }

    /// The wire from the 8259's INTR to LINT0 of every APIC.
    #[must_use]
    pub fn intr_pin(self: &Arc<Self>) -> Pin {
        Arc::new(AllLints { bus: Arc::downgrade(self), n: 0 })
    }

    /// The NMI wire, to LINT1 of every APIC.
    #[must_use]
    pub fn nmi_pin(self: &Arc<Self>) -> Pin {
        Arc::new(AllLints { bus: Arc::downgrade(self), n: 1 })
    }
}

impl Debug for ApicBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApicBus").field("apics", &self.apics().len()).finish_non_exhaustive()
    }
}

/// LINT0 or LINT1 of every APIC.
#[derive(Debug)]
struct AllLints {
    bus: Weak<ApicBus>,
    n: usize,
}

impl IrqLine for AllLints {
    fn set(&self, high: bool) {
        let Some(bus) = self.bus.upgrade() else { return };
        for apic in bus.apics().iter() {
            apic.set_lint(self.n, high);
        }
    }
}

/// Addresses at which xAPIC pages may be: each vCPU finds its own APIC where its APIC_BASE points, and nothing elsewhere.
#[derive(Debug)]
pub struct ApicMmio {
    bus: Arc<ApicBus>,
    address: u64,
}

impl ApicMmio {
    /// Bytes that a page takes.
    pub const SIZE: u64 = 0x1000;
    /// Guest physical addresses to which a guest can move a page: what the chipset has below the firmware. Elsewhere no
    /// access reaches it.
    pub const WINDOW: Range<u64> = 0xfec0_0000..0xff00_0000;

    /// Pages from `address` on (bytes, guest physical).
    #[must_use]
    pub fn new(bus: Arc<ApicBus>, address: u64) -> Self {
        Self { bus, address }
    }

    /// Which page an access is to, and where in it.
    fn place(&self, offset: u64) -> (u64, u64) {
        (self.address.wrapping_add(offset) & !(Self::SIZE - 1), offset & (Self::SIZE - 1))
    }
}

impl Mmio for ApicMmio {
    fn name(&self) -> &str {
        "lapic"
    }

    fn read(&self, cpu: usize, offset: u64, size: usize) -> u64 {
        let (page, offset) = self.place(offset);
        let value = self.bus.apic(cpu).and_then(|apic| apic.read_mmio(page, offset));
        value.unwrap_or(u64::MAX) & all_ones(size)
    }

    fn write(&self, cpu: usize, offset: u64, size: usize, value: u64) {
        let (page, offset) = self.place(offset);
        if let Some(apic) = self.bus.apic(cpu) {
            apic.write_mmio(page, offset, size, value);
        }
    }
}
