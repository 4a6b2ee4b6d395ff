//! What the ACPI tables say about the board: addresses, ports and interrupt lines.

/// An ISA interrupt that does not arrive at the I/O APIC input of the same number, edge-triggered and active high
/// (ACPI 6.5, 5.2.12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The ISA interrupt.
    pub irq: u8,
    /// The global system interrupt: with one I/O APIC, its input.
    pub gsi: u32,
    /// Level-triggered.
    pub level: bool,
    /// Active low.
    pub low: bool,
}

/// A serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Com {
    /// The first of its eight I/O ports.
    pub port: u16,
    /// Its ISA interrupt.
    pub irq: u8,
}

/// The board as its ACPI tables describe it. The default is the usual PC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoardInfo {
    /// Guest physical address of the local APICs' registers.
    pub lapic: u32,
    /// Guest physical address of the I/O APIC's registers.
    pub ioapic: u32,
    /// The I/O APIC's ID.
    pub ioapic_id: u8,
    /// ISA interrupts that are not wired one to one.
    pub overrides: Vec<Override>,
    /// Guest physical address of the HPET's registers.
    pub hpet: u32,
    /// The HPET's General Capabilities and ID register, low half, which the ACPI table repeats.
    pub hpet_id: u32,
    /// APIC ID of each vCPU, the first vCPU first. Empty: 0 up to `Config::cpus` - 1.
    pub apic_ids: Vec<u32>,
    /// First port of PM1a's status and enable registers (4 bytes).
    pub pm1a_event: u16,
    /// Port of PM1a's control register (2 bytes).
    pub pm1a_control: u16,
    /// Port of the PM timer (4 bytes).
    pub pm_timer: u16,
    /// Whether the PM timer counts 32 bits rather than 24.
    pub pm_timer_32: bool,
    /// First port and length in bytes of the general-purpose event block 0 (half status, half enable), if there is one.
    pub gpe0: Option<(u16, u8)>,
    /// SLP_TYP of PM1a's control register that means S3 (suspend to RAM).
    pub s3: u8,
    /// SLP_TYP of PM1a's control register that means S5 (soft off).
    pub s5: u8,
    /// Port and value that reset the machine.
    pub reset: (u16, u8),
    /// The ISA interrupt that carries the SCI.
    pub sci: u8,
    /// CMOS index of the century byte.
    pub century: u8,
    /// Whether there is an 8042 keyboard controller.
    pub i8042: bool,
    /// Whether there is a VGA adapter that a guest may probe for.
    pub vga: bool,
    /// The serial ports.
    pub coms: Vec<Com>,
}

impl Default for BoardInfo {
    fn default() -> Self {
        Self {
            lapic: 0xfee0_0000,
            ioapic: 0xfec0_0000,
            ioapic_id: 0,
            overrides: vec![
                Override { irq: 0, gsi: 2, level: false, low: false },
                Override { irq: 9, gsi: 9, level: true, low: false },
            ],
            hpet: 0xfed0_0000,
            hpet_id: 0x8086_a201,
            apic_ids: Vec::new(),
            pm1a_event: 0x600,
            pm1a_control: 0x604,
            pm_timer: 0x608,
            pm_timer_32: true,
            gpe0: Some((0x620, 4)),
            s3: 1,
            s5: 5,
            reset: (0xcf9, 0x06),
            sci: 9,
            century: 0x32,
            i8042: true,
            vga: false,
            coms: vec![
                Com { port: 0x3f8, irq: 4 },
                Com { port: 0x2f8, irq: 3 },
                Com { port: 0x3e8, irq: 4 },
                Com { port: 0x2e8, irq: 3 },
            ],
        }
    }
}
