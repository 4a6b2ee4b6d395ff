//! Linear-address masking: which addresses carry metadata, and what is done about it.

use super::*;

const LAM_U48: u64 = 1 << 62;
const LAM_U57: u64 = 1 << 61;
const KERNEL: u64 = 0xffff_8000_0000_0000;

/// A user page and a supervisor page, with masking as CR3's bits and CR4.LAM_SUP say.
fn masking(cr3: u64, supervisor: bool) -> Mmu {
    let (mut tables, ..) = machine();
    tables.page(KERNEL, 0x20_0000, W);
    let mut mmu = tables.mmu();
    let registers = *mmu.registers();
    mmu.set_registers(PagingRegisters { cr4: registers.cr4.with_lam_supervisor(supervisor), ..registers });
    mmu.load_cr3(tables.root | cr3, false).expect("four levels");
    mmu
}

#[test]
fn metadata_is_allowed_where_the_control_registers_say_so() {
    // Metadata in bits 62:57, in bit 56, in bit 48; in bit 47, which never is metadata; and in bit 63.
    let bits = [0x7e << 56, 1 << 56, 1 << 48, 1 << 47, 1 << 63];
    for (cr3, supervisor, user_bits, kernel_bits) in [
        (0, false, [false; 5], [false; 5]),
        (LAM_U48, false, [true, true, true, false, false], [false; 5]),
        (LAM_U57, false, [true, false, false, false, false], [false; 5]),
        (LAM_U48 | LAM_U57, false, [true, false, false, false, false], [false; 5]),
        (0, true, [false; 5], [true, true, true, false, false]),
    ] {
        for (base, allowed) in [(HERE, user_bits), (KERNEL, kernel_bits)] {
            for (bit, allowed) in bits.into_iter().zip(allowed) {
                let mut mmu = masking(cr3, supervisor);
                let tagged = Gva(base ^ bit);
                let what = format!("cr3 {cr3:x}, supervisor {supervisor}, {tagged:x}");
                // Twice: once with nothing cached, once with the page's entry made.
                for _ in 0..2 {
                    assert_eq!(mmu.read::<u64>(BY, K, tagged).is_ok(), allowed, "{what}");
                    assert_eq!(mmu.read_fast::<u64>(tagged), None, "{what}");
                    assert!(!mmu.write_fast(tagged, 1u64), "{what}");
                    mmu.write(BY, K, Gva(base), 0x1234_5678u64).expect("no metadata");
                }
                if allowed {
                    assert_eq!(mmu.read::<u64>(BY, K, tagged), Ok(0x1234_5678), "{what}");
                    assert!(mmu.run(BY, tagged, true).expect("mapped").is_some(), "{what}");
                    assert_eq!(mmu.refill(BY, tagged, 8, false), None, "{what}");
                }
                assert_eq!(mmu.fetch_page(BY, tagged), Err(MemoryFault::NonCanonical), "{what}");
                let descriptor = Origin { descriptor: true, ..BY };
                assert_eq!(mmu.read::<u64>(descriptor, K, tagged), Err(MemoryFault::NonCanonical), "{what}");
            }
        }
    }
}

#[test]
fn metadata_crosses_pages_and_is_no_part_of_the_faulting_address() {
    let mut mmu = masking(LAM_U48, false);
    let tag = 0x2a << 48;
    mmu.write(BY, K, Gva(HERE + 0xffc), 0x1122_3344_5566_7788u64).expect("writable");
    assert_eq!(mmu.read::<u64>(BY, K, Gva((HERE + 0xffc) | tag)), Ok(0x1122_3344_5566_7788));
    assert_eq!(mmu.read::<u64>(BY, K, Gva(0x5000 | tag)), Err(fault(0x5000, 0)));
}
