//! When a fetch stamp stays and when it is renewed.

use super::*;
use crate::mmu::{Invpcid, Mmu, PagingRegisters, Space};
use crate::observe::Interest;
use crate::testing::*;
use std::collections::HashSet;
use std::sync::Arc;

const USER: u64 = 0x40_0000;
const KERNEL: u64 = 0xffff_8000_0000_0000;

/// Eight pages of user code, and as many of the kernel's with `bits`.
fn machine(bits: u64, pcid: bool) -> (Builder, Mmu) {
    let (map, _) = map();
    let mut tables = Builder::new(&map);
    for page in 0..8 {
        tables.page(USER + page * 0x1000, 0x20_0000 + page * 0x1000, U);
        tables.page(KERNEL + page * 0x1000, 0x30_0000 + page * 0x1000, bits);
    }
    let mut mmu = tables.mmu();
    let registers = *mmu.registers();
    mmu.set_registers(PagingRegisters { cr4: registers.cr4.with_pcid(pcid), ..registers });
    (tables, mmu)
}

fn rely(mmu: &mut Mmu, space: Space, gva: u64) -> u64 {
    mmu.set_space(space);
    mmu.fetch_page(BY, Gva(gva)).expect("executable");
    let stamp = mmu.rely_on_fetch(Gva(gva)).expect("plain memory");
    assert_eq!(stamp, mmu.fetch_stamp());
    stamp
}

fn stamp(mmu: &mut Mmu, space: Space) -> u64 {
    mmu.set_space(space);
    mmu.fetch_stamp()
}

/// Which stamps, the user's and the supervisor's, `action` renews when there is reliance on both.
fn renewed(mmu: &mut Mmu, action: impl FnOnce(&mut Mmu)) -> (bool, bool) {
    let before = (rely(mmu, Space::User, USER), rely(mmu, Space::Kernel, KERNEL));
    action(mmu);
    (stamp(mmu, Space::User) != before.0, stamp(mmu, Space::Kernel) != before.1)
}

#[test]
fn no_stamp_comes_twice() {
    let mut names = Names::new();
    let some: HashSet<_> = (0..10_000).map(|_| names.next()).collect();
    assert_eq!(some.len(), 10_000);
    assert_ne!(Names::new().next(), Names::new().next());
}

#[test]
fn invlpg_renews_only_where_somebody_relies_on_the_page() {
    let (_, mut mmu) = machine(G, false);
    assert_eq!(renewed(&mut mmu, |mmu| (1..8).for_each(|page| mmu.invlpg(Gva(USER + page * 0x1000)))), (false, false));
    assert_eq!(
        renewed(&mut mmu, |mmu| (1..8).for_each(|page| mmu.invlpg(Gva(KERNEL + page * 0x1000)))),
        (false, false)
    );
    assert_eq!(renewed(&mut mmu, |mmu| mmu.invlpg(Gva(USER + 0xfff))), (true, false));
    assert_eq!(renewed(&mut mmu, |mmu| mmu.invlpg(Gva(KERNEL + 0xfff))), (false, true));
    // Nobody relies on the new one yet.
    mmu.invlpg(Gva(USER));
    let before = stamp(&mut mmu, Space::User);
    mmu.invlpg(Gva(USER));
    assert_eq!(stamp(&mut mmu, Space::User), before);
}

#[test]
fn invlpg_of_any_part_of_a_large_page_renews() {
    for (shift, gva) in [(21, KERNEL + (1 << 21)), (30, KERNEL + (1 << 30))] {
        let (map, _) = map();
        let mut tables = Builder::new(&map);
        let slot = tables.slot(gva, shift);
        poke(&map, slot, P | PS | G);
        let mut mmu = tables.mmu();
        let before = rely(&mut mmu, Space::Kernel, gva + 0x5000);
        for outside in [gva - 1, gva + (1 << shift)] {
            mmu.invlpg(Gva(outside));
            assert_eq!(mmu.fetch_stamp(), before, "{outside:x}");
        }
        mmu.invlpg(Gva(gva + (1 << shift) - 1));
        assert_ne!(mmu.fetch_stamp(), before);
    }
}

#[test]
fn global_pages_outlast_a_cr3_load_and_others_do_not() {
    let (tables, mut mmu) = machine(G, false);
    let load = |mmu: &mut Mmu| mmu.load_cr3(tables.root, false).expect("no PAE");
    assert_eq!(renewed(&mut mmu, load), (true, false));
    let (tables, mut mmu) = machine(0, false);
    let load = |mmu: &mut Mmu| mmu.load_cr3(tables.root, false).expect("no PAE");
    assert_eq!(renewed(&mut mmu, load), (true, true));
    // With paging off, nothing is global.
    let mut mmu = Mmu::new(Arc::clone(&tables.map), 0);
    let before = rely(&mut mmu, Space::Kernel, 0x5000);
    assert_eq!(rely(&mut mmu, Space::Kernel, 0x6000), before);
    mmu.load_cr3(0, false).expect("no PAE");
    assert_ne!(mmu.fetch_stamp(), before);
}

#[test]
fn stamps_come_back_with_their_space() {
    let (_, mut mmu) = machine(G, false);
    let registers = *mmu.registers();
    mmu.set_registers(PagingRegisters { cr4: registers.cr4.with_smap(true), ..registers });
    let (user, kernel) = (rely(&mut mmu, Space::User, USER), rely(&mut mmu, Space::Kernel, KERNEL));
    assert_ne!(user, kernel);
    assert_eq!(rely(&mut mmu, Space::KernelAc, KERNEL), kernel);
    assert_eq!((stamp(&mut mmu, Space::User), stamp(&mut mmu, Space::Kernel)), (user, kernel));
}

#[test]
fn stamps_come_back_with_their_pcid_unless_it_was_flushed() {
    let (tables, mut mmu) = machine(G, true);
    let load = |mmu: &mut Mmu, pcid: u64, keep: bool| mmu.load_cr3(tables.root | pcid, keep).expect("no PAE");
    let mut users = Vec::new();
    let kernel = rely(&mut mmu, Space::Kernel, KERNEL);
    for pcid in 0..4 {
        load(&mut mmu, pcid, false);
        users.push(rely(&mut mmu, Space::User, USER));
    }
    assert_eq!(users.iter().collect::<HashSet<_>>().len(), 4);
    for pcid in 0..4 {
        load(&mut mmu, pcid, true);
        assert_eq!(stamp(&mut mmu, Space::User), users[pcid as usize], "{pcid}");
        assert_eq!(stamp(&mut mmu, Space::Kernel), kernel, "{pcid}");
    }
    // One is flushed as it comes back, one by INVPCID, one loses the page, one another page.
    load(&mut mmu, 0, false);
    assert_ne!(stamp(&mut mmu, Space::User), users[0]);
    mmu.invpcid(Invpcid::SingleContext { pcid: 1 });
    mmu.invpcid(Invpcid::Address { pcid: 2, gva: Gva(USER) });
    mmu.invpcid(Invpcid::Address { pcid: 3, gva: Gva(USER + 0x1000) });
    for (pcid, kept) in [(1, false), (2, false), (3, true)] {
        load(&mut mmu, pcid, true);
        assert_eq!(stamp(&mut mmu, Space::User) == users[pcid as usize], kept, "{pcid}");
    }
    // INVLPG drops the page from all.
    load(&mut mmu, 0, true);
    mmu.invlpg(Gva(USER));
    load(&mut mmu, 3, true);
    assert_ne!(stamp(&mut mmu, Space::User), users[3]);
    // More PCIDs than are kept: the first has lost its place, and comes back with nothing.
    let last = rely(&mut mmu, Space::User, USER);
    for pcid in 10..30 {
        load(&mut mmu, pcid, true);
        assert_ne!(rely(&mut mmu, Space::User, USER), last);
    }
    load(&mut mmu, 3, true);
    assert_ne!(stamp(&mut mmu, Space::User), last);
    assert_eq!(stamp(&mut mmu, Space::Kernel), kernel, "through all this");
}

#[test]
fn supervisor_pages_that_are_not_global_give_each_pcid_its_stamp() {
    let (mut tables, mut mmu) = machine(G, true);
    tables.page(KERNEL + 0x8000, 0x38_0000, 0);
    let load = |mmu: &mut Mmu, pcid: u64, keep: bool| mmu.load_cr3(tables.root | pcid, keep).expect("no PAE");
    let one = rely(&mut mmu, Space::Kernel, KERNEL);
    assert_eq!(rely(&mut mmu, Space::Kernel, KERNEL + 0x8000), one, "what was relied on is still named so");
    load(&mut mmu, 5, false);
    let two = rely(&mut mmu, Space::Kernel, KERNEL);
    assert_ne!(two, one);
    load(&mut mmu, 0, true);
    assert_eq!(stamp(&mut mmu, Space::Kernel), one);
    mmu.invpcid(Invpcid::Address { pcid: 5, gva: Gva(KERNEL) });
    mmu.invlpg(Gva(KERNEL + 0x7000));
    assert_eq!(stamp(&mut mmu, Space::Kernel), one);
    load(&mut mmu, 5, true);
    assert_ne!(stamp(&mut mmu, Space::Kernel), two);
    load(&mut mmu, 0, false);
    assert_ne!(stamp(&mut mmu, Space::Kernel), one);
    // All stamps are new, and the supervisors have one together again.
    mmu.flush_all();
    let shared = rely(&mut mmu, Space::Kernel, KERNEL);
    load(&mut mmu, 5, false);
    assert_eq!(stamp(&mut mmu, Space::Kernel), shared);
    assert!(![one, two].contains(&shared));
}

#[test]
fn whatever_may_change_what_is_executed_renews_all() {
    let toggles: [fn(&mut PagingRegisters); 6] = [
        |r| r.cr4.set_smep(!r.cr4.smep()),
        |r| r.efer.set_no_execute(!r.efer.no_execute()),
        |r| r.cr4.set_global_pages(!r.cr4.global_pages()),
        |r| r.cr4.set_pcid(!r.cr4.pcid()),
        |r| r.cr4.set_la57(!r.cr4.la57()),
        |r| r.cr0.set_paging(!r.cr0.paging()),
    ];
    for toggle in toggles {
        let (_, mut mmu) = machine(G, false);
        let mut registers = *mmu.registers();
        toggle(&mut registers);
        assert_eq!(renewed(&mut mmu, |mmu| mmu.set_registers(registers)), (true, true), "{registers:?}");
    }
    let (tables, mut mmu) = machine(G, false);
    assert_eq!(renewed(&mut mmu, |mmu| mmu.set_observer(None)), (true, true));
    assert_eq!(renewed(&mut mmu, |mmu| mmu.set_physical_bits(36)), (true, true));
    assert_eq!(renewed(&mut mmu, |mmu| mmu.invpcid(Invpcid::AllContexts)), (true, true));
    assert_eq!(renewed(&mut mmu, |mmu| mmu.invpcid(Invpcid::AllContextsGlobal)), (true, true));
    assert!(tables.map.set_a20(false));
    assert_eq!(renewed(&mut mmu, Mmu::flush_all), (true, true));
    // Keys are for data.
    let registers = *mmu.registers();
    mmu.set_registers(PagingRegisters { cr4: registers.cr4.with_protection_keys(true), ..registers });
    let registers = PagingRegisters { pkru: u32::MAX, ..*mmu.registers() };
    assert_eq!(renewed(&mut mmu, |mmu| mmu.set_registers(registers)), (false, false));
}

#[test]
fn a_page_fault_renews_where_somebody_relies_on_the_page() {
    let (_, mut mmu) = machine(G, false);
    let write =
        |gva: u64| move |mmu: &mut Mmu| assert!(mmu.write(BY, Space::User, Gva(gva), 1u8).is_err(), "read-only");
    assert_eq!(renewed(&mut mmu, write(USER + 0x1000)), (false, false));
    assert_eq!(renewed(&mut mmu, write(USER)), (true, false));
    assert_eq!(renewed(&mut mmu, write(KERNEL)), (false, true));
    let before = rely(&mut mmu, Space::User, USER);
    write(USER)(&mut mmu);
    assert_ne!(mmu.fetch_stamp(), before, "at once");
}

#[test]
fn stamps_outlast_the_tables_entries() {
    let (map, _) = map();
    let mut mmu = Mmu::new(map, 0);
    let before = rely(&mut mmu, Space::Kernel, 0x5000);
    for page in 0..8192 {
        mmu.read::<u8>(BY, Space::Kernel, Gva(page * 0x1000)).expect("ram");
    }
    assert_eq!(mmu.fetch_stamp(), before);
}

#[test]
fn nobody_relies_on_what_is_not_plainly_cached() {
    let (mut tables, mut mmu) = machine(G, false);
    tables.page(USER + 0x8000, DEVICE.0, U);
    mmu.set_space(Space::User);
    assert_eq!(mmu.rely_on_fetch(Gva(USER)), None, "not fetched yet");
    mmu.read::<u8>(BY, Space::User, Gva(USER + 0x8000)).expect("readable");
    assert_eq!(mmu.rely_on_fetch(Gva(USER + 0x8000)), None, "a device");
    let fetch = Interest { read: false, write: false, fetch: true };
    mmu.set_observer(Some(Arc::new(Watcher { pages: vec![(0x20_0000, fetch)], ..Watcher::default() })));
    for (page, plain) in [(USER, false), (USER + 0x1000, true)] {
        mmu.fetch_page(BY, Gva(page)).expect("executable");
        assert_eq!(mmu.rely_on_fetch(Gva(page)).is_some(), plain, "watched");
    }
}
