//! Bytes as symbols: files (`System.map`, ELF), types (BTF), and a kernel's own table (kallsyms) in guest memory. The first
//! byte says which.
#![no_main]

use lens::symbols::btf::Btf;
use lens::symbols::{File, Source, kallsyms};
use libfuzzer_sys::fuzz_target;
use memory::{Gpa, GuestRam, Gva, PhysicalMap};
use std::cell::RefCell;

/// Where the bytes lie in guest memory: behind what is read before the texts of a table.
const AT: Gpa = Gpa(3 << 20);
const RAM: u64 = 4 << 20;

thread_local! {
    static MAP: RefCell<Option<PhysicalMap>> =
        RefCell::new(GuestRam::new(RAM).ok().and_then(|ram| PhysicalMap::new(ram).ok()));
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, bytes)) = data.split_first() else { return };
    match kind % 4 {
        0 | 1 => {
            let Ok(file) = fuzz::file(bytes) else { return };
            let at = (kind % 4 == 1).then_some(Gva(0x5555_5555_4000));
            match File::open(&Source { path: file.path().into(), at }) {
                Ok(file) => drop(file.is_kernel()),
                Err(error) => assert_eq!(error.to_string().lines().count(), 1, "an error is one line: {error}"),
            }
        }
        2 => {
            if let Some(btf) = Btf::parse(bytes) {
                let _ = btf.members("task_struct", ["tasks", "pid", "comm", "mm"]);
                let _ = btf.members("list_head", ["next"]);
            }
        }
        _ => MAP.with_borrow(|map| {
            let Some(map) = map else { return };
            let bytes = &bytes[..bytes.len().min(512 << 10)];
            map.write(AT, bytes).expect("it is RAM");
            if let Some(table) = kallsyms::read(map, AT) {
                table.iter().take(1000).for_each(|(gva, _)| drop(table.at(gva).map(|named| named.to_string())));
            }
            map.write(AT, &vec![0; bytes.len()]).expect("it is RAM");
        }),
    }
});
