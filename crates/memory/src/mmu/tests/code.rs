//! Stores that overwrite decoded code.

use super::*;

#[test]
fn only_a_store_that_changes_decoded_code_is_noted() {
    let (tables, mut mmu, _) = machine();
    let gva = Gva(HERE + 0x100);
    mmu.write(BY, K, gva, 0x90u8).expect("writable");
    assert!(mmu.write_fast(gva, 0x90u8));
    let page = hva(&mmu, 0x20_0000);
    mmu.protect_code(page.wrapping_add(0x100), 5);
    assert!(!mmu.write_fast(gva, 0x90u8), "the comparator changed under a cached entry");
    assert_eq!(mmu.read_fast::<u8>(gva), Some(0x90), "reads stay fast");
    assert!(mmu.run(BY, gva, true).expect("mapped").is_none());
    // The same value; another chunk; both ways of writing.
    mmu.write(BY, K, gva, 0x90u8).expect("writable");
    mmu.write(BY, K, Gva(HERE + 0x140), 1u64).expect("writable");
    mmu.write_bytes(BY, K, Gva(HERE + 0xe0), &[7; 32]).expect("writable");
    assert_eq!(mmu.modify(gva, true, |old: u8| (old, old)), Ok(0x90));
    assert!(!mmu.code_modified());
    mmu.write(BY, K, gva, 0xccu8).expect("writable");
    assert!(mmu.code_modified());
    assert_eq!(mmu.take_modified_code(), [page]);
    assert!(!mmu.code_modified());
    assert!(mmu.write_fast(gva, 0x90u8), "no code is left in the page");
    assert_eq!(tables.map.code().bitmap(Gpa(0x20_0000)), 0);
}

#[test]
fn every_way_of_writing_is_noticed() {
    let (tables, mut mmu, _) = machine();
    let map = Arc::clone(&tables.map);
    let page = hva(&mmu, 0x20_0000);
    let mut check = |what: &str, write: &mut dyn FnMut(&mut Mmu)| {
        mmu.protect_code(page.wrapping_add(0xff0), 0x10);
        write(&mut mmu);
        assert_eq!(mmu.take_modified_code(), [page], "{what}");
    };
    check("scalar", &mut |mmu| mmu.write(BY, K, Gva(HERE + 0xff8), 1u64).expect("writable"));
    check("crossing", &mut |mmu| mmu.write(BY, K, Gva(HERE + 0xffc), u64::MAX).expect("writable"));
    check("bytes", &mut |mmu| mmu.write_bytes(BY, K, Gva(HERE + 0xf00), &[3; 0x100]).expect("writable"));
    check("update", &mut |mmu| mmu.modify(Gva(HERE + 0xff0), false, |old: u32| (!old, ())).expect("writable"));
    check("locked", &mut |mmu| mmu.modify(Gva(HERE + 0xff0), true, |old: u128| (!old, ())).expect("writable"));
    check("crossing update", &mut |mmu| {
        mmu.modify(Gva(HERE + 0xfff), true, |old: u16| (!old, ())).expect("writable");
    });
    check("device", &mut |_| map.write(Gpa(0x20_0ff0), &[9]).expect("ram"));
}

#[test]
fn the_walkers_marks_count_as_writes() {
    let (mut tables, mut mmu, _) = machine();
    let slot = tables.slot(HERE, 12);
    let table = hva(&mmu, slot);
    mmu.protect_code(table, 8);
    mmu.read::<u8>(BY, K, Gva(HERE)).expect("readable");
    assert_eq!(mmu.take_modified_code(), [table.page()], "accessed");
    mmu.protect_code(table, 8);
    mmu.write(BY, K, Gva(HERE), 1u8).expect("writable");
    assert_eq!(mmu.take_modified_code(), [table.page()], "dirty");
}

#[test]
fn aliases_of_a_page_are_all_protected() {
    let (mut tables, mut mmu, _) = machine();
    tables.page(HERE + 0x10_0000, 0x20_0000, W | U);
    for (gva, space) in [(HERE, K), (HERE + 0x10_0000, K), (HERE, Space::User)] {
        mmu.write(BY, space, Gva(gva), 1u8).expect("writable");
    }
    let page = hva(&mmu, 0x20_0000);
    mmu.protect_code(page, 1);
    for (gva, space) in [(HERE, K), (HERE + 0x10_0000, K), (HERE, Space::User)] {
        mmu.set_space(space);
        assert!(!mmu.write_fast(Gva(gva), 1u8), "{gva:x} {space:?}");
    }
    // A new entry made after the marking is slow as well.
    mmu.flush_all();
    mmu.write(BY, Space::User, Gva(HERE), 1u8).expect("writable");
    assert!(!mmu.write_fast(Gva(HERE), 1u8));
    // Code that goes away through one alias lets the others go, each at its next write.
    mmu.write(BY, K, Gva(HERE + 0x10_0000), 2u8).expect("writable");
    mmu.write(BY, Space::User, Gva(HERE), 3u8).expect("writable");
    assert!(mmu.write_fast(Gva(HERE), 1u8));
    // Marked again, the entry that was let go is found again.
    mmu.protect_code(page, 1);
    assert!(!mmu.write_fast(Gva(HERE), 1u8));
}

#[test]
fn one_vcpus_store_is_another_vcpus_notice() {
    let (tables, mut one, _) = machine();
    let mut two = tables.mmu();
    let page = hva(&one, 0x20_0000);
    one.protect_code(page, 64);
    two.write(BY, K, Gva(HERE), 0xccu8).expect("writable");
    assert!(one.code_modified() && two.code_modified());
    assert_eq!(one.take_modified_code(), two.take_modified_code());
    two.protect_code(Hva(0x1000), 64);
}

#[test]
fn a_store_before_another_vcpus_code_is_known_makes_the_code_suspect() {
    let (tables, mut one, _) = machine();
    let mut two = tables.mmu();
    let page = hva(&one, 0x20_0000);
    // Nothing is suspect where nobody else has written.
    one.protect_code(page, 64);
    assert!(two.take_modified_code().is_empty() && !one.code_modified());
    one.write(BY, K, Gva(HERE), 1u8).expect("writable");
    two.write(BY, K, Gva(HERE), 1u8).expect("writable");
    assert_eq!((one.take_modified_code(), two.take_modified_code()), (vec![page], vec![page]));
    // The other vCPU has not heard yet, and stores by the entry that it has.
    for flush in [false, true] {
        assert!(two.write_fast(Gva(HERE), 2u8));
        one.protect_code(page, 64);
        assert!(two.write_fast(Gva(HERE), 3u8), "an entry of before");
        if flush {
            two.flush_all();
        }
        assert!(two.take_modified_code().is_empty() && !two.write_fast(Gva(HERE), 4u8));
        assert_eq!(one.take_modified_code(), [page], "flush: {flush}");
        one.protect_code(page, 64);
        assert!(!two.code_modified() && !one.code_modified(), "nobody is told twice");
        two.write(BY, K, Gva(HERE), 5u8).expect("writable");
        assert_eq!((one.take_modified_code(), two.take_modified_code()), (vec![page], vec![page]));
    }
}
