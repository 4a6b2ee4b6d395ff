//! The registers of one local APIC: what reads show, what writes do, what interrupts are taken.
//!
//! Nothing in here reaches another object. What a change asks of the outside (signals for the vCPU, an IPI, an EOI
//! for the IOAPIC) is noted or returned, and done by [`super::LocalApic`].

use cpu::{Clock, Signals};

use super::countdown::Countdown;
use super::spec::{
    ApicBase, DeliveryMode, Divide, FIRST_LEGAL_VECTOR, Icr, Lvt, Shorthand, Svr, TimerMode, VERSION, error, lvt, reg,
};
use super::vectors::Vectors;
use super::{APIC_BASE_ADDRESS, ApicConfig};

/// An access that x2APIC mode answers with #GP and xAPIC mode with a bit in ESR.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Illegal;

/// What is left to do after a write, without the lock.
#[derive(Debug)]
pub(super) enum After {
    Nothing,
    /// Send what the interrupt command register says.
    Send(Icr),
    /// Tell the IOAPICs of the end of this level triggered interrupt.
    Eoi(u8),
}

#[derive(Debug)]
pub(super) struct State {
    pub config: ApicConfig,
    pub base: ApicBase,
    xapic_id: u8,
    tpr: u8,
    /// Logical ID of xAPIC mode.
    ldr: u8,
    /// Destination format, bits 31–28: F flat, 0 cluster.
    flat: bool,
    svr: Svr,
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    /// Error status as last latched by a write, and what came since.
    esr: u32,
    errors: u32,
    icr: Icr,
    lvt: [Lvt; lvt::COUNT],
    countdown: Countdown,
    /// Levels of LINT0 and LINT1.
    lint: [bool; 2],
    /// An ExtINT message waits to be acknowledged.
    ext_int: bool,
    /// Signals to raise on the way out.
    pub raise: u32,
    /// The deadline that the timer queue was told.
    pub armed: Option<u64>,
}

impl State {
    pub fn new(config: ApicConfig) -> Self {
        let mut state = Self {
            config,
            base: ApicBase::new(),
            xapic_id: 0,
            tpr: 0,
            ldr: 0,
            flat: true,
            svr: Svr::new(),
            irr: Vectors::default(),
            isr: Vectors::default(),
            tmr: Vectors::default(),
            esr: 0,
            errors: 0,
            icr: Icr::new(),
            lvt: [Lvt::new(); lvt::COUNT],
            countdown: Countdown::default(),
            lint: [false; 2],
            ext_int: false,
            raise: 0,
            armed: None,
        };
        state.reset();
        state
    }

    /// Power-on.
    pub fn reset(&mut self) {
        self.base = ApicBase::from(APIC_BASE_ADDRESS).with_bsp(self.config.bsp).with_enabled(true);
        self.xapic_id = self.initial_xapic_id();
        self.init();
    }

    fn initial_xapic_id(&self) -> u8 {
        self.config.id.to_le_bytes()[0]
    }

    /// INIT: all registers but the ID and APIC_BASE.
    pub fn init(&mut self) {
        self.tpr = 0;
        self.ldr = 0;
        self.flat = true;
        self.svr = Svr::from(0xff);
        self.irr = Vectors::default();
        self.isr = Vectors::default();
        self.tmr = Vectors::default();
        self.esr = 0;
        self.errors = 0;
        self.icr = Icr::new();
        self.lvt = [Lvt::new().with_masked(true); lvt::COUNT];
        self.countdown = Countdown::default();
        self.ext_int = false;
    }

    /// As firmware leaves the boot processor: enabled, LINT0 passes the 8259's interrupts, LINT1 the NMI.
    pub fn virtual_wire(&mut self) {
        self.svr.set_enabled(true);
        self.lvt[lvt::LINT0] = Lvt::new().with_mode(DeliveryMode::ExtInt);
        self.lvt[lvt::LINT1] = Lvt::new().with_mode(DeliveryMode::Nmi);
    }

    fn x2apic(&self) -> bool {
        self.base.x2apic()
    }

    /// Whether the xAPIC page answers at `address`.
    pub fn answers_at(&self, address: u64) -> bool {
        self.base.enabled() && !self.x2apic() && self.base.page() << 12 == address
    }

    // --- Identity ---

    /// Whether a message that names `destination` is for this APIC. `wide`: the destination is one of 32 bits.
    pub fn is_addressed(&self, destination: u32, logical: bool, wide: bool) -> bool {
        if !self.base.enabled() {
            return false;
        }
        if destination == if wide { u32::MAX } else { 0xff } {
            return true;
        }
        match (logical, self.x2apic()) {
            (false, true) => destination == self.config.id,
            (false, false) => destination == u32::from(self.xapic_id),
            (true, true) => {
                let id = self.logical_x2apic_id();
                id >> 16 == destination >> 16 && id & destination & 0xffff != 0
            }
            (true, false) if destination > 0xff => false,
            (true, false) if self.flat => u32::from(self.ldr) & destination != 0,
            (true, false) => {
                let id = u32::from(self.ldr);
                id >> 4 == destination >> 4 && id & destination & 0xf != 0
            }
        }
    }

    fn logical_x2apic_id(&self) -> u32 {
        self.config.id >> 4 << 16 | 1 << (self.config.id & 0xf)
    }

    // --- Taking and serving interrupts ---

    /// Takes a vector from a message or a local source. The bits of [`Signals`] it raises are noted.
    pub fn accept(&mut self, mode: DeliveryMode, vector: u8, level: bool) -> bool {
        if !self.base.enabled() {
            return false;
        }
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if !self.svr.enabled() {
                    return false;
                }
                if vector < FIRST_LEGAL_VECTOR {
                    self.error(error::RECEIVE_ILLEGAL_VECTOR);
                    return false;
                }
                self.irr.set(vector, true);
                self.tmr.set(vector, level);
            }
            DeliveryMode::Nmi => self.raise |= Signals::NMI,
            DeliveryMode::Init => self.raise |= Signals::INIT,
            DeliveryMode::ExtInt => self.ext_int = true,
            DeliveryMode::Smi | DeliveryMode::StartUp | DeliveryMode::Reserved => return false,
        }
        true
    }

    /// Whether a start-up IPI, which carries a page for the vCPU, gets through.
    pub fn accepts_start_up(&self) -> bool {
        self.base.enabled()
    }

    /// How busy the processor is, for lowest priority delivery; `None` when it takes no vectors.
    pub fn busyness(&self) -> Option<u8> {
        self.svr.enabled().then(|| self.ppr())
    }

    fn ppr(&self) -> u8 {
        match self.isr.highest() {
            Some(serving) if serving >> 4 > self.tpr >> 4 => serving & 0xf0,
            _ => self.tpr,
        }
    }

    /// The vector that could be served now.
    fn deliverable(&self) -> Option<u8> {
        self.irr.highest().filter(|vector| self.base.enabled() && vector >> 4 > self.ppr() >> 4)
    }

    /// Whether the 8259 asks through this APIC.
    fn ext_int(&self) -> bool {
        let entry = self.lvt[lvt::LINT0];
        if !self.base.enabled() {
            // Hardware disabled: LINT0 is the INTR pin of a processor without APIC.
            self.lint[0]
        } else {
            self.ext_int || entry.mode() == DeliveryMode::ExtInt && !entry.masked() && self.pin(0)
        }
    }

    /// Whether the vCPU has a maskable interrupt to take.
    pub fn wants_interrupt(&self) -> bool {
        self.ext_int() || self.deliverable().is_some()
    }

    /// An ExtINT goes first. `true`: the caller fetches the vector from the 8259.
    pub fn take_ext_int(&mut self) -> bool {
        let taken = self.ext_int();
        self.ext_int = false;
        taken
    }

    /// Moves the deliverable vector from requested to in service.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.irr.set(vector, false);
        self.isr.set(vector, true);
        Some(vector)
    }

    fn eoi(&mut self) -> After {
        let Some(vector) = self.isr.highest() else { return After::Nothing };
        self.isr.set(vector, false);
        for n in 0..2 {
            let entry = &mut self.lvt[lvt::LINT0 + n];
            if entry.remote_irr() && entry.vector() == vector {
                entry.set_remote_irr(false);
                self.check_lint_level(n);
            }
        }
        if self.tmr.has(vector) { After::Eoi(vector) } else { After::Nothing }
    }

    /// TPR bits 7–4.
    pub fn task_priority(&self) -> u8 {
        self.tpr >> 4
    }

    pub fn set_task_priority(&mut self, class: u8) {
        self.tpr = class << 4;
    }

    // --- Local sources ---

    fn fire(&mut self, index: usize) {
        let entry = self.lvt[index];
        if !entry.masked() {
            // Entries without a delivery mode have zeros there: fixed.
            self.accept(entry.mode(), entry.vector(), false);
        }
    }

    fn error(&mut self, bits: u32) {
        tracing::debug!(target: "guest_errors", apic = self.config.id, bits, "local APIC error");
        self.errors |= bits;
        // The error entry's own vector may be illegal; that is not worth another interrupt.
        if self.lvt[lvt::ERROR].vector() >= FIRST_LEGAL_VECTOR {
            self.fire(lvt::ERROR);
        }
    }

    /// Whether pin LINT`n` is asserted.
    fn pin(&self, n: usize) -> bool {
        self.lint[n] != self.lvt[lvt::LINT0 + n].active_low()
    }

    pub fn set_lint(&mut self, n: usize, high: bool) {
        if self.lint[n] == high {
            return;
        }
        self.lint[n] = high;
        let entry = self.lvt[lvt::LINT0 + n];
        if !self.base.enabled() {
            if n == 1 && high {
                self.raise |= Signals::NMI;
            }
        } else if entry.level() && entry.mode() == DeliveryMode::Fixed {
            self.check_lint_level(n);
        } else if self.pin(n) && entry.mode() != DeliveryMode::ExtInt {
            self.fire(lvt::LINT0 + n);
        }
    }

    fn check_lint_level(&mut self, n: usize) {
        let entry = self.lvt[lvt::LINT0 + n];
        let asks = entry.level() && entry.mode() == DeliveryMode::Fixed && !entry.masked() && !entry.remote_irr();
        if asks && self.pin(n) && self.accept(DeliveryMode::Fixed, entry.vector(), false) {
            self.lvt[lvt::LINT0 + n].set_remote_irr(true);
        }
    }

    // --- Timer ---

    fn timer_mode(&self) -> TimerMode {
        self.lvt[lvt::TIMER].timer()
    }

    /// Brings the timer to `now` and requests its interrupt if it ran out.
    pub fn advance_timer(&mut self, now: u64) {
        if self.countdown.advance(self.timer_mode(), now) {
            self.fire(lvt::TIMER);
        }
    }

    /// When the timer's interrupt is due. A masked timer runs on, but wakes nobody.
    pub fn next_expiry(&self) -> Option<u64> {
        self.countdown.next(self.timer_mode()).filter(|_| !self.lvt[lvt::TIMER].masked())
    }

    pub fn set_deadline(&mut self, deadline: Option<u64>, now: u64) {
        if self.timer_mode() == TimerMode::TscDeadline {
            self.countdown.deadline = deadline;
            self.advance_timer(now);
        }
    }

    pub fn deadline(&mut self, now: u64) -> Option<u64> {
        self.advance_timer(now);
        self.countdown.deadline
    }

    // --- Registers ---

    /// Writes APIC_BASE. The modes form a ring (SDM figure "Local x2APIC State Transitions"): disabled → xAPIC →
    /// x2APIC → disabled, and xAPIC → disabled; all else is #GP.
    pub fn write_base(&mut self, value: u64) -> Result<(), Illegal> {
        let (old, new) = (self.base, ApicBase::from(value));
        let reserved = new.reserved() != 0
            || new.reserved9()
            || value.checked_shr(self.config.physical_bits).is_some_and(|high| high != 0)
            || new.x2apic() && !self.config.x2apic;
        let illegal = matches!(
            ((old.enabled(), old.x2apic()), (new.enabled(), new.x2apic())),
            (_, (false, true)) | ((true, true), (true, false)) | ((false, _), (true, true))
        );
        if reserved || illegal {
            return Err(Illegal);
        }
        if old.enabled() && !new.enabled() {
            // It comes back as after power-on. CR8 is the processor's and works without an APIC.
            let tpr = self.tpr;
            self.init();
            self.tpr = tpr;
            self.xapic_id = self.initial_xapic_id();
        }
        self.base = new;
        Ok(())
    }

    /// Reads the register at `offset` (a multiple of 16) of the xAPIC page.
    pub fn read(&mut self, offset: u32, clock: &dyn Clock) -> Result<u32, Illegal> {
        Ok(match offset {
            reg::ID if self.x2apic() => self.config.id,
            reg::ID => u32::from(self.xapic_id) << 24,
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.into(),
            reg::PPR | reg::APR => self.ppr().into(),
            reg::EOI | reg::REMOTE_READ => 0,
            reg::LDR if self.x2apic() => self.logical_x2apic_id(),
            reg::LDR => u32::from(self.ldr) << 24,
            reg::DFR => {
                if self.flat {
                    u32::MAX
                } else {
                    0x0fff_ffff
                }
            }
            reg::SVR => self.svr.into(),
            reg::ISR..=reg::ISR_LAST => self.isr.word((offset - reg::ISR) >> 4),
            reg::TMR..=reg::TMR_LAST => self.tmr.word((offset - reg::TMR) >> 4),
            reg::IRR..=reg::IRR_LAST => self.irr.word((offset - reg::IRR) >> 4),
            reg::ESR => self.esr,
            reg::ICR_LOW => (u64::from(self.icr) & 0xffff_ffff) as u32,
            reg::ICR_HIGH => self.icr.destination(),
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[lvt_index(offset)].into(),
            reg::TIMER_INITIAL => self.countdown.initial(),
            reg::TIMER_CURRENT => {
                let now = clock.now();
                self.advance_timer(now);
                self.countdown.current(self.timer_mode(), now)
            }
            reg::TIMER_DIVIDE => self.countdown.divide(),
            _ => return Err(Illegal),
        })
    }

    /// Writes the register at `offset` (a multiple of 16) of the xAPIC page. Read-only ones ignore it.
    pub fn write(&mut self, offset: u32, value: u32, clock: &dyn Clock) -> Result<After, Illegal> {
        match offset {
            reg::ID => self.xapic_id = value.to_le_bytes()[3],
            reg::TPR => self.tpr = value.to_le_bytes()[0],
            reg::EOI => return Ok(self.eoi()),
            reg::LDR => self.ldr = value.to_le_bytes()[3],
            reg::DFR => self.flat = value >> 28 == 0xf,
            reg::SVR => self.write_svr(Svr::from(value & SVR_BITS)),
            reg::ESR => self.esr = std::mem::take(&mut self.errors),
            reg::ICR_LOW => {
                let high = u64::from(self.icr) >> 32 << 32;
                return Ok(self.write_icr(Icr::from(high | u64::from(value))));
            }
            reg::ICR_HIGH => self.icr.set_destination(value & 0xff00_0000),
            reg::LVT_TIMER..=reg::LVT_ERROR => self.write_lvt(lvt_index(offset), value, clock),
            reg::TIMER_INITIAL => {
                let now = clock.now();
                self.advance_timer(now);
                self.countdown.start(self.timer_mode(), value, now);
            }
            reg::TIMER_DIVIDE => {
                let now = clock.now();
                self.advance_timer(now);
                self.countdown.set_divide(Divide::from(value & DIVIDE_BITS), now);
            }
            reg::VERSION | reg::APR | reg::PPR | reg::REMOTE_READ | reg::TIMER_CURRENT => {}
            reg::ISR..=reg::IRR_LAST => {}
            _ => return Err(Illegal),
        }
        Ok(After::Nothing)
    }

    /// An illegal access in xAPIC mode.
    pub fn illegal_register(&mut self) {
        self.error(error::ILLEGAL_REGISTER);
    }

    /// Reads x2APIC register `offset / 16`.
    pub fn read_x2apic(&mut self, offset: u32, clock: &dyn Clock) -> Result<u64, Illegal> {
        match offset {
            _ if !self.x2apic() => Err(Illegal),
            reg::ICR_LOW => Ok(self.icr.into()),
            reg::APR | reg::EOI | reg::REMOTE_READ | reg::DFR | reg::ICR_HIGH => Err(Illegal),
            _ => self.read(offset, clock).map(u64::from),
        }
    }

    /// Writes x2APIC register `offset / 16`.
    pub fn write_x2apic(&mut self, offset: u32, value: u64, clock: &dyn Clock) -> Result<After, Illegal> {
        if !self.x2apic() {
            return Err(Illegal);
        }
        if offset == reg::ICR_LOW {
            let icr = Icr::from(value);
            let reserved = icr.reserved13() || icr.reserved16() != 0 || icr.reserved20() != 0;
            return if reserved { Err(Illegal) } else { Ok(self.write_icr(icr)) };
        }
        let bits = match offset {
            reg::TPR | reg::SELF_IPI => 0xff,
            reg::EOI | reg::ESR => 0,
            reg::SVR => SVR_BITS,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt_bits(lvt_index(offset)) | LVT_READ_ONLY,
            reg::TIMER_INITIAL => u32::MAX,
            reg::TIMER_DIVIDE => DIVIDE_BITS,
            _ => return Err(Illegal),
        };
        let value = u32::try_from(value).ok().filter(|value| value & !bits == 0).ok_or(Illegal)?;
        if offset == reg::SELF_IPI {
            let icr = Icr::new().with_vector(value.to_le_bytes()[0]).with_shorthand(Shorthand::Oneself);
            return Ok(self.checked_send(icr));
        }
        self.write(offset, value, clock)
    }

    fn write_svr(&mut self, svr: Svr) {
        self.svr = svr;
        if !svr.enabled() {
            for entry in &mut self.lvt {
                entry.set_masked(true);
            }
        }
    }

    fn lvt_bits(&self, index: usize) -> u32 {
        let source = Lvt::new().with_vector(0xff).with_masked(true);
        let mode = DeliveryMode::ExtInt;
        let bits = match index {
            lvt::TIMER if self.config.tsc_deadline => source.with_timer(TimerMode::Reserved),
            lvt::TIMER => source.with_timer(TimerMode::Periodic),
            lvt::LINT0 | lvt::LINT1 => source.with_mode(mode).with_active_low(true).with_level(true),
            lvt::ERROR => source,
            _ => source.with_mode(mode),
        };
        bits.into()
    }

    fn write_lvt(&mut self, index: usize, value: u32, clock: &dyn Clock) {
        let old = self.lvt[index];
        let mut new = Lvt::from(value & self.lvt_bits(index));
        if !self.svr.enabled() {
            new.set_masked(true);
        }
        match index {
            lvt::TIMER => {
                // What ran out before this write did so under the old entry.
                self.advance_timer(clock.now());
                self.countdown.change_mode(old.timer(), new.timer());
                self.lvt[index] = new;
            }
            lvt::LINT0 | lvt::LINT1 => {
                new.set_remote_irr(old.remote_irr() && new.level());
                self.lvt[index] = new;
                self.check_lint_level(index - lvt::LINT0);
            }
            _ => self.lvt[index] = new,
        }
    }

    fn write_icr(&mut self, icr: Icr) -> After {
        self.icr = icr.with_delivery_status(false);
        // The deassertion that ended INIT on the serial APIC bus means nothing any more.
        if icr.mode() == DeliveryMode::Init && icr.level() && !icr.assert() {
            return After::Nothing;
        }
        let destination = if self.x2apic() { icr.destination() } else { icr.destination() >> 24 };
        self.checked_send(icr.with_destination(destination))
    }

    fn checked_send(&mut self, icr: Icr) -> After {
        let vectored = matches!(icr.mode(), DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if vectored && icr.vector() < FIRST_LEGAL_VECTOR {
            self.error(error::SEND_ILLEGAL_VECTOR);
            return After::Nothing;
        }
        After::Send(icr)
    }
}

const SVR_BITS: u32 = 0x3ff;
const DIVIDE_BITS: u32 = 0b1011;
/// Delivery status and remote IRR: writes ignore them.
const LVT_READ_ONLY: u32 = 1 << 12 | 1 << 14;

/// The index of an LVT register, 320h–370h.
fn lvt_index(offset: u32) -> usize {
    ((offset.saturating_sub(reg::LVT_TIMER) >> 4) as usize).min(lvt::COUNT - 1)
}
