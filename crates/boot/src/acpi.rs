//! The ACPI tables (ACPI 6.5, chapter 5): RSDP, RSDT and XSDT, FADT, FACS, MADT, HPET and the DSDT of [`crate::dsdt`].
//!
//! `acpi_tables` gives the table header, the FADT, the FACS and AML. MADT and RSDP are laid out here, because its types
//! for them fix the PC-AT compatibility flag and the RSDT's address at 0. Left out: MCFG (there is only configuration
//! mechanism #1), SRAT, S1, S2 and S4.

use crate::board::BoardInfo;
use crate::layout::{ACPI_TABLES, RSDP};
use crate::ram::{Ram, to_u64};
use crate::{BootError, Config, dsdt};
use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;
use memory::Gpa;

/// OEM ID of every table.
pub(crate) const OEM_ID: [u8; 6] = *b"VITRIN";
/// OEM table ID of every table.
pub(crate) const OEM_TABLE_ID: [u8; 8] = *b"VITRINE ";
const OEM_REVISION: u32 = 1;

/// FADT `IAPC_BOOT_ARCH` (table 5.11): there are devices on the ISA bus.
const LEGACY_DEVICES: u16 = 1 << 0;
/// There is an 8042.
const HAS_8042: u16 = 1 << 1;
/// No VGA may be probed for.
const NO_VGA: u16 = 1 << 2;
/// A C2 or C3 latency that says: not there.
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// MADT flag: there are two 8259s as well.
const PCAT_COMPAT: u32 = 1;
/// Flag of a processor in the MADT: it may be used.
const ENABLED: u32 = 1;
/// All processors, in a local APIC NMI structure.
const ALL: u8 = 0xff;
const ALL_X2APIC: u32 = u32::MAX;

/// Where the FACS is.
const FACS_AT: Gpa = ACPI_TABLES;
/// The firmware waking vector in it (table 5.15).
pub(crate) const WAKING_VECTOR: Gpa = Gpa(FACS_AT.0 + 12);

/// Writes all tables, so that a guest finds the RSDP at [`RSDP`].
pub(crate) fn write(ram: &dyn Ram, config: &Config, board: &BoardInfo) -> Result<(), BootError> {
    let ids = apic_ids(config, board);
    let mut area = Area { at: ACPI_TABLES, end: RSDP };
    let facs = area.place(ram, &bytes(&FACS::new()))?;
    let dsdt = area.place(ram, &dsdt::table(config, board, &ids))?;
    let fadt = area.place(ram, &fadt(board, facs, dsdt))?;
    let mut tables = vec![fadt, area.place(ram, &madt(board, &ids))?];
    if config.hpet {
        tables.push(area.place(ram, &hpet(board))?);
    }

    let mut rsdt = sdt(*b"RSDT", 36, 1);
    let mut xsdt = sdt(*b"XSDT", 36, 1);
    for table in tables {
        rsdt.append_slice(&table.to_le_bytes());
        xsdt.append_slice(&u64::from(table).to_le_bytes());
    }
    let rsdt = area.place(ram, rsdt.as_slice())?;
    let xsdt = area.place(ram, xsdt.as_slice())?;
    ram.put("the ACPI tables", RSDP, &rsdp(rsdt, xsdt))
}

/// APIC IDs of the vCPUs.
fn apic_ids(config: &Config, board: &BoardInfo) -> Vec<u32> {
    if board.apic_ids.is_empty() { (0..config.cpus.max(1)).collect() } else { board.apic_ids.clone() }
}

/// Where tables go, one after the other.
struct Area {
    at: Gpa,
    end: Gpa,
}

impl Area {
    /// Puts a table at the next multiple of 64, which is what a FACS needs, and answers with its address.
    fn place(&mut self, ram: &dyn Ram, table: &[u8]) -> Result<u32, BootError> {
        let address = self.at;
        let next = address.0.saturating_add(to_u64(table.len())).next_multiple_of(64);
        if next > self.end.0 {
            return Err(BootError::TooLarge {
                what: "the ACPI tables' description of the vCPUs".into(),
                detail: format!("there is room for {} bytes; fewer vCPUs (-smp) would do", self.end.0 - ACPI_TABLES.0),
            });
        }
        ram.put("the ACPI tables", address, table)?;
        self.at = Gpa(next);
        Ok(u32::try_from(address.0).unwrap_or(0))
    }
}

/// What `table` looks like in memory.
pub(crate) fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table with a header and zeros.
pub(crate) fn sdt(signature: [u8; 4], length: u32, revision: u8) -> Sdt {
    Sdt::new(signature, length, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

/// Root System Description Pointer (5.2.5.3), with both roots: old guests know only the RSDT.
fn rsdp(rsdt: u32, xsdt: u32) -> Vec<u8> {
    let mut rsdp = b"RSD PTR ".to_vec();
    rsdp.push(0);
    rsdp.extend_from_slice(&OEM_ID);
    rsdp.push(2);
    rsdp.extend_from_slice(&rsdt.to_le_bytes());
    let first = checksum(&rsdp);
    if let Some(place) = rsdp.get_mut(8) {
        *place = first;
    }
    rsdp.extend_from_slice(&36u32.to_le_bytes());
    rsdp.extend_from_slice(&u64::from(xsdt).to_le_bytes());
    rsdp.push(checksum(&rsdp));
    rsdp.extend_from_slice(&[0; 3]);
    rsdp
}

/// A register block in I/O space.
fn ports(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
}

/// Fixed ACPI Description Table (5.2.9). ACPI is on from the start: there is no SMI command port.
fn fadt(board: &BoardInfo, facs: u32, dsdt: u32) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Desktop)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    if board.pm_timer_32 {
        fadt = fadt.flag(Flags::TmrValExt);
    }
    fadt.firmware_ctrl = facs.into();
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = u16::from(board.sci).into();

    fadt.pm1a_evt_blk = u32::from(board.pm1a_event).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = ports(board.pm1a_event, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(board.pm1a_control).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = ports(board.pm1a_control, 16, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(board.pm_timer).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = ports(board.pm_timer, 32, AccessSize::DwordAccess);
    if let Some((port, length)) = board.gpe0 {
        fadt.gpe0_blk = u32::from(port).into();
        fadt.gpe0_blk_len = length;
        fadt.x_gpe0_blk = ports(port, length.saturating_mul(8), AccessSize::ByteAccess);
    }

    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.century = board.century;
    let keyboard = if board.i8042 { HAS_8042 } else { 0 };
    let vga = if board.vga { 0 } else { NO_VGA };
    fadt.iapc_boot_arch = (LEGACY_DEVICES | keyboard | vga).into();
    let (port, value) = board.reset;
    fadt.reset_reg = ports(port, 8, AccessSize::ByteAccess);
    fadt.reset_value = value;
    bytes(&fadt.finalize())
}

/// Multiple APIC Description Table (5.2.12).
fn madt(board: &BoardInfo, ids: &[u32]) -> Vec<u8> {
    let mut madt = sdt(*b"APIC", 36, 4);
    madt.append_slice(&board.lapic.to_le_bytes());
    madt.append_slice(&PCAT_COMPAT.to_le_bytes());
    let mut x2apic = false;
    for (uid, id) in (0u32..).zip(ids) {
        match (u8::try_from(uid), u8::try_from(*id)) {
            // Processor local APIC.
            (Ok(uid), Ok(id)) if id != ALL && uid != ALL => {
                let [a, b, c, d] = ENABLED.to_le_bytes();
                madt.append_slice(&[0, 8, uid, id, a, b, c, d]);
            }
            // Processor local x2APIC.
            _ => {
                x2apic = true;
                madt.append_slice(&[9, 16, 0, 0]);
                madt.append_slice(&id.to_le_bytes());
                madt.append_slice(&ENABLED.to_le_bytes());
                madt.append_slice(&uid.to_le_bytes());
            }
        }
    }
    // I/O APIC, its inputs being global system interrupts from 0.
    madt.append_slice(&[1, 12, board.ioapic_id, 0]);
    madt.append_slice(&board.ioapic.to_le_bytes());
    madt.append_slice(&0u32.to_le_bytes());
    // Interrupt source overrides, bus 0 = ISA; flags: polarity in bits 0 and 1, trigger mode in 2 and 3, 0 = as the bus
    // has it (edge, active high).
    for entry in &board.overrides {
        let polarity: u16 = if entry.low {
            3
        } else if entry.level {
            1
        } else {
            0
        };
        let trigger: u16 = if entry.level { 3 } else { 0 };
        madt.append_slice(&[2, 10, 0, entry.irq]);
        madt.append_slice(&entry.gsi.to_le_bytes());
        madt.append_slice(&(polarity | trigger << 2).to_le_bytes());
    }
    // NMI at LINT1 of every local APIC.
    madt.append_slice(&[4, 6, ALL, 0, 0, 1]);
    if x2apic {
        madt.append_slice(&[10, 12, 0, 0]);
        madt.append_slice(&ALL_X2APIC.to_le_bytes());
        madt.append_slice(&[1, 0, 0, 0]);
    }
    madt.as_slice().to_vec()
}

/// HPET description (IA-PC HPET Specification 1.0a, 3.2.4).
fn hpet(board: &BoardInfo) -> Vec<u8> {
    let mut hpet = sdt(*b"HPET", 36, 1);
    hpet.append_slice(&board.hpet_id.to_le_bytes());
    let base = GAS::new(AddressSpace::SystemMemory, 64, 0, AccessSize::Undefined, board.hpet.into());
    hpet.append_slice(&bytes(&base));
    // HPET number 0, no minimum tick in periodic mode, no page protection.
    hpet.append_slice(&[0, 0, 0, 0]);
    hpet.as_slice().to_vec()
}

#[cfg(test)]
mod tests;
