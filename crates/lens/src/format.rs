//! How a line of the watch looks.

use crate::symbols::Table;
use memory::{Access, AccessKind, Agent, Gva, Hpa};
use std::fmt::{self, Write};
use std::str::FromStr;

/// How a line of the watch looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `watch r4 cpu0 rip … gva … gpa … hva … hpa … val …`; for a device its name comes in place of `cpu0 rip …`.
    #[default]
    Vitrine,
    /// `helper_le_ldul_mmu eip: …, vaddr: …, haddr: …, Val: …`, named after what QEMU would have called for it.
    Qemu,
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "vitrine" => Ok(Self::Vitrine),
            "qemu" => Ok(Self::Qemu),
            _ => Err(format!("{text:?} is not a format of watch lines; vitrine or qemu would be right")),
        }
    }
}

/// What is known of a host physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// It is this.
    Known(Hpa),
    /// There is one, and it cannot be known.
    Unknown,
    /// There is none: a device answered.
    None,
}

/// A number in hexadecimal, or a dash where there is none.
struct OrDash(Option<u64>);

impl fmt::Display for OrDash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(number) => write!(f, "{number:x}"),
            None => f.write_str("-"),
        }
    }
}

impl Format {
    /// Appends the line for `access`, with its newline. What `symbols` know of the instruction's address and of the access's
    /// comes last.
    pub(crate) fn line(self, line: &mut String, access: &Access, host: Host, symbols: &Table) -> fmt::Result {
        let (gva, hva) = (OrDash(access.gva.map(|gva| gva.0)), OrDash(access.hva.map(|hva| hva.0)));
        let Access { kind, agent, gpa, size, value, .. } = access;
        let rip = access.origin().map(|origin| origin.rip);
        match self {
            Self::Vitrine => {
                write!(line, "watch {}{size} ", self::kind(*kind))?;
                match agent {
                    Agent::Vcpu { origin, .. } => write!(line, "cpu{} rip {:x}", origin.cpu, origin.rip)?,
                    Agent::Device(name) => line.push_str(name),
                }
                write!(line, " gva {gva} gpa {gpa:x} hva {hva} hpa ")?;
                match host {
                    Host::Known(hpa) => write!(line, "{hpa:x}")?,
                    Host::Unknown => line.push('?'),
                    Host::None => line.push('-'),
                }
                write!(line, " val {value:x}")?;
                let instruction = rip.and_then(|rip| symbols.at(Gva(rip)));
                for (word, named) in [("by", instruction), ("at", access.gva.and_then(|gva| symbols.at(gva)))] {
                    if let Some(named) = named {
                        write!(line, " {word} {named}")?;
                    }
                }
                line.push('\n');
                Ok(())
            }
            Self::Qemu => {
                let helper = helper(*kind, *size);
                let rip = OrDash(rip);
                writeln!(line, "{helper} eip: {rip}, vaddr: {gva}, haddr: {hva}, Val: {value:x}")
            }
        }
    }
}

/// The letters that say what was done.
#[must_use]
pub fn kind(kind: AccessKind) -> &'static str {
    match kind {
        AccessKind::Read => "r",
        AccessKind::Write => "w",
        AccessKind::Fetch => "x",
        AccessKind::WalkRead => "pr",
        AccessKind::WalkWrite => "pw",
        AccessKind::DescriptorRead => "dr",
        AccessKind::DescriptorWrite => "dw",
        AccessKind::DmaRead => "dmar",
        AccessKind::DmaWrite => "dmaw",
    }
}

/// The helper that QEMU's TCG calls for such an access (QEMU 5, accel/tcg/cputlb.c; walks: target/i386; devices:
/// include/sysemu/dma.h). It knows powers of two only: others (instructions, parts of accesses that cross a page) get the
/// next one's.
fn helper(kind: AccessKind, size: u8) -> &'static str {
    let names = match kind {
        AccessKind::Read | AccessKind::DescriptorRead => {
            ["helper_ret_ldub_mmu", "helper_le_lduw_mmu", "helper_le_ldul_mmu", "helper_le_ldq_mmu", "helper_ld16_mmu"]
        }
        AccessKind::Write | AccessKind::DescriptorWrite => {
            ["helper_ret_stb_mmu", "helper_le_stw_mmu", "helper_le_stl_mmu", "helper_le_stq_mmu", "helper_st16_mmu"]
        }
        AccessKind::Fetch => [
            "helper_ret_ldb_cmmu",
            "helper_le_ldw_cmmu",
            "helper_le_ldl_cmmu",
            "helper_le_ldq_cmmu",
            "helper_le_ldq_cmmu",
        ],
        AccessKind::WalkRead => ["x86_ldub_phys", "x86_lduw_phys", "x86_ldl_phys", "x86_ldq_phys", "x86_ldq_phys"],
        AccessKind::WalkWrite => ["x86_stb_phys", "x86_stw_phys", "x86_stl_phys", "x86_stq_phys", "x86_stq_phys"],
        AccessKind::DmaRead => ["dma_memory_read"; 5],
        AccessKind::DmaWrite => ["dma_memory_write"; 5],
    };
    let [one, two, four, eight, more] = names;
    match size {
        0..=1 => one,
        2 => two,
        3..=4 => four,
        5..=8 => eight,
        _ => more,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memory::{Gpa, Gva, Hva, Origin};

    fn access() -> Access {
        Access {
            kind: AccessKind::Read,
            agent: Agent::Vcpu { origin: Origin { rip: 0xffff_ffff_8116_a8cc, ..Origin::default() }, cr3: 0x1000 },
            gva: Some(Gva(0xffff_8880_07ed_ec80)),
            gpa: Gpa(0x7ed_ec80),
            hva: Some(Hva(0x7f08_4311_ec80)),
            size: 4,
            value: 0x736e_6f63,
            old: None,
        }
    }

    fn line(format: Format, access: &Access, host: Host) -> String {
        let mut line = String::new();
        format.line(&mut line, access, host, &Table::default()).unwrap();
        line
    }

    #[test]
    fn addresses_have_their_symbols() {
        let symbols = Table::new([
            (Gva(0xffff_ffff_8116_a8b0), "cmdline_proc_show"),
            (Gva(0xffff_ffff_8200_0000), "jiffies"),
            (Gva(0xffff_ffff_8300_0000), "_end"),
        ]);
        let mut line = String::new();
        let jiffies = Access { gva: Some(Gva(0xffff_ffff_8200_0000)), ..access() };
        Format::Vitrine.line(&mut line, &jiffies, Host::None, &symbols).unwrap();
        assert!(line.ends_with(" val 736e6f63 by cmdline_proc_show+0x1c at jiffies\n"), "{line}");
    }

    #[test]
    fn a_line_has_all_four_addresses() {
        assert_eq!(
            line(Format::Vitrine, &access(), Host::Known(Hpa(0x1_c2f7_ec80))),
            "watch r4 cpu0 rip ffffffff8116a8cc gva ffff888007edec80 gpa 7edec80 \
             hva 7f084311ec80 hpa 1c2f7ec80 val 736e6f63\n"
        );
    }

    #[test]
    fn what_is_not_there_is_a_dash_and_what_is_hidden_a_question_mark() {
        let walk = Access { kind: AccessKind::WalkWrite, gva: None, size: 8, value: 0x63, ..access() };
        assert_eq!(
            line(Format::Vitrine, &walk, Host::Unknown),
            "watch pw8 cpu0 rip ffffffff8116a8cc gva - gpa 7edec80 hva 7f084311ec80 hpa ? val 63\n"
        );
        let device = Access { kind: AccessKind::Write, hva: None, size: 1, value: 0, ..access() };
        assert_eq!(
            line(Format::Vitrine, &device, Host::None),
            "watch w1 cpu0 rip ffffffff8116a8cc gva ffff888007edec80 gpa 7edec80 hva - hpa - val 0\n"
        );
    }

    #[test]
    fn a_device_stands_where_the_instruction_would() {
        let (kind, agent) = (AccessKind::DmaWrite, Agent::Device("fw_cfg"));
        let dma = Access { kind, agent, gva: None, size: 16, value: 0x1_0000_0000_0000_0000, ..access() };
        assert_eq!(
            line(Format::Vitrine, &dma, Host::Known(Hpa(0x1_c2f7_ec80))),
            "watch dmaw16 fw_cfg gva - gpa 7edec80 hva 7f084311ec80 hpa 1c2f7ec80 val 10000000000000000\n"
        );
        assert_eq!(
            line(Format::Qemu, &Access { kind: AccessKind::DmaRead, value: 5, ..dma }, Host::Unknown),
            "dma_memory_read eip: -, vaddr: -, haddr: 7f084311ec80, Val: 5\n"
        );
    }

    #[test]
    fn the_other_format_is_that_of_a_patched_qemu() {
        assert_eq!(
            line(Format::Qemu, &access(), Host::Unknown),
            "helper_le_ldul_mmu eip: ffffffff8116a8cc, vaddr: ffff888007edec80, haddr: 7f084311ec80, Val: 736e6f63\n"
        );
        let names =
            [(1, "helper_ret_stb_mmu"), (2, "helper_le_stw_mmu"), (8, "helper_le_stq_mmu"), (16, "helper_st16_mmu")];
        for (size, name) in names {
            assert_eq!(helper(AccessKind::Write, size), name);
        }
        assert_eq!(helper(AccessKind::Read, 1), "helper_ret_ldub_mmu");
        assert_eq!(helper(AccessKind::Read, 3), "helper_le_ldul_mmu");
    }

    #[test]
    fn formats_have_names() {
        assert_eq!("qemu".parse(), Ok(Format::Qemu));
        assert_eq!("vitrine".parse(), Ok(Format::Vitrine));
        assert!("json".parse::<Format>().unwrap_err().contains("vitrine or qemu"));
    }
}
