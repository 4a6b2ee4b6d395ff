//! A board for tests: RAM at zero, ports that remember writes, a clock that is set by hand, a local APIC of a few fields.

use crate::cpuid::Model;
use crate::hooks::{Clock, LocalApic, PortIo, Signals};
use crate::msr::{APIC_BASE_BSP, APIC_BASE_ENABLE};
use crate::reset::Connections;
use crate::state::Cpu;
use memory::PhysicalMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use x86::msr;

/// A clock that a test moves.
#[derive(Debug, Default)]
pub struct TestClock(pub AtomicU64);

impl Clock for TestClock {
    fn now(&self) -> u64 {
        self.0.load(SeqCst)
    }
}

/// Every port reads as its own number; writes are kept.
#[derive(Debug, Default)]
pub struct TestPorts(pub Mutex<Vec<(u16, usize, u32)>>);

impl PortIo for TestPorts {
    fn read(&self, port: u16, _: usize) -> u32 {
        port.into()
    }

    fn write(&self, port: u16, size: usize, value: u32) {
        self.0.lock().unwrap().push((port, size, value));
    }
}

/// APIC_BASE, TPR and the deadline.
#[derive(Debug, Default)]
pub struct TestApic {
    /// TPR bits 7–4.
    pub priority: AtomicU8,
    /// Armed deadline, zero: none.
    pub deadline: AtomicU64,
}

impl LocalApic for TestApic {
    fn acknowledge(&self) -> Option<u8> {
        None
    }
    fn task_priority(&self) -> u8 {
        self.priority.load(SeqCst)
    }
    fn set_task_priority(&self, class: u8) {
        self.priority.store(class, SeqCst);
    }
    fn read_msr(&self, number: u32) -> Option<u64> {
        (number == msr::APIC_BASE).then_some(0xfee0_0000 | APIC_BASE_ENABLE | APIC_BASE_BSP)
    }
    fn write_msr(&self, number: u32, _: u64) -> Option<()> {
        (number == msr::APIC_BASE).then_some(())
    }
    fn set_deadline(&self, deadline: Option<u64>) {
        self.deadline.store(deadline.unwrap_or(0), SeqCst);
    }
    fn deadline(&self) -> Option<u64> {
        Some(self.deadline.load(SeqCst)).filter(|&deadline| deadline != 0)
    }
    fn init(&self) {}
}

/// A vCPU and what it is connected to.
pub struct Board {
    /// The vCPU, as reset leaves it.
    pub cpu: Cpu,
    /// Its clock.
    pub clock: Arc<TestClock>,
    /// Its ports.
    pub ports: Arc<TestPorts>,
    /// Its local APIC.
    pub apic: Arc<TestApic>,
}

/// A board with the given CPU model (as `-cpu` takes it) and RAM from address zero.
pub fn board(model: &str, map: Arc<PhysicalMap>) -> Board {
    let (clock, ports, apic) = <(Arc<TestClock>, Arc<TestPorts>, Arc<TestApic>)>::default();
    let connections = Connections {
        map,
        signals: Arc::new(Signals::default()),
        ports: ports.clone(),
        apic: apic.clone(),
        clock: clock.clone(),
    };
    let model = Arc::new(Model::parse(model).unwrap());
    Board { cpu: Cpu::new(0, model, connections), clock, ports, apic }
}
