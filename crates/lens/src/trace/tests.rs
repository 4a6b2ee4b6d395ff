//! Traces read back with another reader than the writer, full disks, slow disks.

use super::feed::write;
use super::table::{Column, Dictionary, Encoder, Layout, Store, Table};
use super::*;
use memory::{AccessKind, Hva, Origin};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use std::fs::File;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, channel, sync_channel};

fn access(kind: AccessKind, gva: Option<u64>, gpa: u64, size: u8, value: u128) -> Access {
    let origin = Origin { cpu: 0, cpl: 3, descriptor: false, rip: 0xffff_ffff_8100_0000, instructions: 9 };
    let old = kind.is_write().then_some(!value >> (128 - 8 * u32::from(size)));
    let (gva, gpa, hva) = (gva.map(Gva), Gpa(gpa), Some(Hva(0x7f00_0000_0000 + gpa)));
    Access { kind, agent: Agent::Vcpu { origin, cr3: 0x1000 }, gva, gpa, hva, size, value, old }
}

fn spec(folder: &tempfile::TempDir, filters: &str) -> Spec {
    format!("{}{filters}", folder.path().join("t.parquet").display()).parse().expect("a spec")
}

fn open(folder: &tempfile::TempDir, part: &str) -> SerializedFileReader<File> {
    let file = File::open(folder.path().join(format!("t.{part}.parquet"))).expect("it is there");
    SerializedFileReader::new(file).expect("it is Parquet")
}

#[test]
fn accesses_come_back_with_their_pages() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = Trace::create(&spec(&folder, ""), 1, Arc::default(), |error| panic!("{error}")).expect("a trace");
    let high = 0xffff_8880_0000_0000u64;
    let made = [
        access(AccessKind::Read, Some(high + 0x1008), 0x5008, 4, 0xfeed_f00d),
        access(AccessKind::Write, Some(high + 0x1010), 0x5010, 16, u128::MAX - 5),
        access(AccessKind::WalkRead, None, 0x2ff8, 8, 0x63),
        // Fetches were not asked for.
        access(AccessKind::Fetch, Some(high + 0x1000), 0x5000, 4, 0x90),
        access(AccessKind::DescriptorWrite, Some(0x1000), 0x5000, 1, 0x93),
        access(AccessKind::Read, Some(high + 0x1fff), 0x5fff, 1, 0x42),
    ];
    made.iter().for_each(|access| trace.access(access));
    let summary = trace.finish().expect("a disk");
    assert_eq!((summary.records, summary.dropped), (5, 0));
    trace.access(&made[0]);
    assert_eq!(trace.finish().expect("once more").records, 0, "what comes later is not there");

    let mut pages = Vec::new();
    for row in open(&folder, "pages").get_row_iter(None).expect("rows") {
        let row = row.expect("a row");
        let gva = row.get_ulong(2).ok();
        pages.push((row.get_ulong(0).unwrap(), gva, row.get_ulong(3).unwrap(), row.get_ulong(4).unwrap()));
    }
    let hva = |gpa: u64| 0x7f00_0000_0000 + gpa;
    assert_eq!(
        pages,
        [
            (0, Some(high + 0x1000), 0x5000, hva(0x5000)),
            (1, None, 0x2000, hva(0x2000)),
            (2, Some(0x1000), 0x5000, hva(0x5000)),
        ]
    );
    let mut last = 0;
    let wanted = made.iter().filter(|access| access.kind != AccessKind::Fetch);
    let reader = open(&folder, "cpu0");
    let rows: Vec<_> = reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row")).collect();
    assert_eq!(rows.len(), 5);
    for ((seq, row), access) in (0..).zip(&rows).zip(wanted) {
        let long = |column| row.get_ulong(column).expect("a number");
        assert_eq!((long(0), long(2), long(5), long(6)), (seq, 9, 0x1000, 0xffff_ffff_8100_0000));
        assert!(long(1) >= last, "time goes on");
        last = long(1);
        assert_eq!((row.get_uint(3).unwrap(), row.get_ubyte(4).unwrap()), (0, 3));
        assert_eq!(row.get_ubyte(10).unwrap(), access.size);
        let kind = format!("{:?}", access.kind).to_lowercase();
        assert_eq!(row.get_string(7).unwrap().replace('_', ""), kind);
        assert_eq!(long(8), access.gva.map_or(access.gpa.0, |gva| gva.0));
        let page = pages[long(9) as usize];
        assert_eq!((page.2 + (long(8) & 0xfff), page.3 + (long(8) & 0xfff)), (access.gpa.0, access.hva.unwrap().0));
        let wide = |low: usize| {
            let high = row.get_ulong(low + 1).unwrap_or(0);
            row.get_ulong(low).ok().map(|low| u128::from(high) << 64 | u128::from(low))
        };
        assert_eq!((wide(11), wide(13)), (Some(access.value), access.old));
    }
}

#[test]
fn a_trace_is_read_back_as_it_was_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = Trace::create(&spec(&folder, ""), 2, Arc::default(), |error| panic!("{error}")).expect("a trace");
    let mut made = Vec::new();
    for n in 0..1000u64 {
        use AccessKind::*;
        let kind = [Read, Write, WalkRead, DescriptorWrite, DmaRead, DmaWrite][n as usize % 6];
        let physical = matches!(kind, WalkRead | DmaRead | DmaWrite);
        let gva = (!physical).then_some((n % 9) << 12 | 0xff0);
        let mut access = access(kind, gva, (n % 5) << 12 | 0xff0, if n % 3 == 0 { 16 } else { 4 }, n.into());
        match &mut access.agent {
            agent if matches!(kind, DmaRead | DmaWrite) => {
                *agent = Agent::Device(["disk", "network"][n as usize / 6 % 2]);
            }
            Agent::Vcpu { origin, .. } => origin.cpu = u32::from(n % 7 == 0),
            Agent::Device(_) => {}
        }
        trace.access(&access);
        made.push(access);
    }
    trace.finish().expect("a disk");
    let file = folder.path().join("t.parquet");
    let read: Vec<_> = read::Reader::open(&file).expect("a trace").map(|row| row.expect("a row")).collect();
    assert_eq!(read.len(), made.len());
    for ((seq, row), access) in (0..).zip(&read).zip(&made) {
        let Access { kind, agent, gva, gpa, hva, size, value, old } = *access;
        let (origin, cr3, device) = match agent {
            Agent::Vcpu { origin, cr3 } => (origin, cr3, None),
            Agent::Device(device) => (Origin::default(), 0, Some(device)),
        };
        assert_eq!((row.seq, row.instructions, row.cpu, row.cpl), (seq, origin.instructions, origin.cpu, origin.cpl));
        assert_eq!((row.cr3, row.rip, row.kind, row.size), (cr3, origin.rip, kind, size));
        assert_eq!(row.device.as_deref(), device);
        assert_eq!((row.gva, row.gpa, row.hva, row.value, row.old), (gva, gpa, hva, value, old));
    }
    let Err(error) = read::Reader::open(&folder.path().join("u.parquet")) else { panic!("there is none") };
    assert!(error.to_string().contains("u.cpu0.parquet"), "{error}");
    for part in ["cpu0", "dma", "pages"] {
        let copy = folder.path().join(format!("v.{part}.parquet"));
        std::fs::copy(folder.path().join("t.pages.parquet"), copy).expect("a copy");
    }
    let mut wrong = read::Reader::open(&folder.path().join("v.parquet")).expect("files");
    let error = wrong.next().expect("an error").expect_err("pages are no accesses");
    assert!(error.to_string().contains("no column \"time\""), "{error}");
    std::fs::write(folder.path().join("v.cpu0.parquet"), "PAR1 is not enough").expect("a file");
    assert!(read::Reader::open(&folder.path().join("v.parquet")).is_err());
}

#[test]
fn groups_are_sorted_and_their_pages_are_known_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = Trace::create(&spec(&folder, ",r"), 1, Arc::default(), |error| panic!("{error}")).expect("a trace");
    let rows = GROUP as u64 * 2 + 5;
    for n in 0..rows {
        trace.access(&access(AccessKind::Read, Some((n % 7) << 12), (n % 7) << 12, 8, n.into()));
        trace.access(&access(AccessKind::Write, Some(0), 0, 8, 0));
    }
    let summary = trace.finish().expect("a disk");
    assert_eq!(summary.records, rows);
    assert!(summary.bytes < rows * 8, "{summary:?}");
    let reader = open(&folder, "cpu0");
    let groups: Vec<_> = reader.metadata().row_groups().iter().map(|group| group.num_rows()).collect();
    assert_eq!(groups, [GROUP as i64, GROUP as i64, 5]);
    let iter = reader.get_row_iter(None).expect("rows");
    assert!((0..rows).zip(iter).all(|(seq, row)| row.expect("a row").get_ulong(0).unwrap() == seq));
    assert_eq!(open(&folder, "pages").metadata().file_metadata().num_rows(), 7);
}

/// A disk with room for so many bytes.
struct Disk {
    file: File,
    room: u64,
}

impl Store for Disk {
    fn put(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let left = self.room.saturating_sub(offset) as usize;
        self.file.put(&bytes[..bytes.len().min(left)], offset)?;
        if bytes.len() > left { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.file.cut(len)
    }
}

#[test]
fn a_full_disk_leaves_the_groups_that_are_whole() {
    let values: Vec<u64> =
        (0..10_000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(n as u32 & 63)).collect();
    let layout = Layout { schema: "message t { REQUIRED INT64 a; }", sorted: &[] };
    let mut encoder = Encoder::new(&layout).expect("an encoder");
    for (room, whole) in [(1000, 0), (100_000, 1), (200_000, 2)] {
        let path = tempfile::NamedTempFile::new().expect("a file");
        let disk = Disk { file: path.reopen().expect("a file"), room };
        let mut table = Table::new(disk, &layout).expect("a table");
        let mut add = || table.append(encoder.group(&[Column::Related(&values)]).expect("a group"));
        let added = (0..).find(|_| add().is_err());
        assert_eq!(added, Some(whole), "{room}");
        let len = table.finish(&[("dropped", 10_000)]).expect("there is room for the footer");
        assert_eq!(path.as_file().metadata().expect("metadata").len(), len);
        let reader = SerializedFileReader::new(path.reopen().expect("a file")).expect("it is Parquet");
        let mut read = reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row").get_long(0).unwrap());
        for _ in 0..whole {
            assert!(values.iter().all(|value| read.next() == Some(value.cast_signed())));
        }
        assert_eq!(read.next(), None);
        let facts = reader.metadata().file_metadata().key_value_metadata().cloned().expect("facts");
        assert_eq!((facts[0].key.as_str(), facts[0].value.as_deref()), ("dropped", Some("10000")));
    }
}

#[test]
fn a_file_that_cannot_be_written_is_said_once_and_ends_the_trace() {
    let said = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&said);
    let folder = tempfile::tempdir().expect("a folder");
    for part in ["cpu0", "dma", "pages"] {
        std::os::unix::fs::symlink("/dev/full", folder.path().join(format!("t.{part}.parquet"))).expect("a link");
    }
    let trace = Trace::create(&spec(&folder, ""), 1, Arc::default(), move |error| {
        assert!(error.to_string().contains("t."), "{error}");
        count.fetch_add(1, Ordering::Relaxed);
    });
    let trace = trace.expect("a trace");
    for n in 0..GROUP as u64 * 5 {
        trace.access(&access(AccessKind::Read, Some(n << 12), n << 12, 8, 0));
    }
    assert!(trace.finish().is_err());
    assert_eq!(said.load(Ordering::Relaxed), 1);
    let missing = Spec { file: "/nowhere/t.parquet".into(), ..spec(&folder, "") };
    let error = Trace::create(&missing, 1, Arc::default(), |_| ()).expect_err("there is no such folder");
    assert!(error.to_string().contains("/nowhere/t.pages.parquet"), "{error}");
}

/// Takes nothing before it is told to.
struct Slow(File, Receiver<()>);

impl Store for Slow {
    fn put(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let _ = self.1.recv();
        self.0.put(bytes, offset)
    }
    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.0.cut(len)
    }
}

#[test]
fn what_a_slow_disk_loses_is_counted() {
    let (go, told) = sync_channel::<()>(0);
    let slow = Slow(tempfile::tempfile().expect("a file"), told);
    let (sender, receiver) = sync_channel(1);
    let dropped = Arc::<AtomicU64>::default();
    let lost = Arc::clone(&dropped);
    let writer = thread::spawn(move || {
        let expand = Box::new(|pages: &mut Pages, rows: &mut Pages| std::mem::swap(pages, rows));
        write(slow, &receiver, |_| (), expand, 1, &lost)
            .map_err(|source| TraceError::Write { path: PathBuf::new(), source })
    });
    let (lot, spare, full) = (Pages::default(), channel().1, Full::Drop);
    let mut feed = Feed { lot, sender: Some(sender), spare, full, dropped, writer: Some(writer) };
    for n in 0..GROUP as u64 * 12 {
        feed.lot.push(n, n, None, Gpa(n), None, None);
        feed.pass(GROUP);
    }
    drop(go);
    let summary = feed.finish().expect("a disk");
    assert_eq!(summary.records + summary.dropped, GROUP as u64 * 12);
    // What is being written, packed, made rows, and waits is not lost; the threads may not have begun before the next came.
    assert!((7..=11).contains(&(summary.dropped / GROUP as u64)), "{summary:?}");
}

#[test]
fn columns_of_all_kinds_come_back() {
    let layout = Layout {
        schema: "message t { REQUIRED INT64 a; REQUIRED INT64 b; OPTIONAL INT64 c; REQUIRED INT32 d; \
                 REQUIRED BYTE_ARRAY e (STRING); }",
        sorted: &["a"],
    };
    const WORDS: &[&str] = &["all", "of", "them"];
    let mut state = 7u64;
    let mut random = move || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        state.rotate_left(17) ^ state >> 29
    };
    let mut encoder = Encoder::new(&layout).expect("an encoder");
    for rows in (0..70).chain([127, 128, 129, 160, 161, 1000, 4097]) {
        let mut column = |run: u64| -> Vec<u64> {
            let (mut values, mut last) = (Vec::new(), 0u64);
            while values.len() < rows {
                let bits = random() % 64;
                last = if random() & 1 == 0 { last.wrapping_add(random() >> bits) } else { random() >> bits };
                values.extend(std::iter::repeat_n(last, (random() % run + 1) as usize));
            }
            values.truncate(rows);
            values
        };
        for run in [1, 3, 20, 100] {
            let (a, b, c) = (column(run), column(run), column(run));
            let bytes = |numbers: Vec<u64>, end: u64| -> Vec<u8> { numbers.iter().map(|n| (n % end) as u8).collect() };
            let (there, d, e) = (bytes(column(run), 2), bytes(column(run), 17), bytes(column(run), 3));
            let values: Vec<u64> = c.iter().zip(&there).filter(|(_, there)| **there == 1).map(|(c, _)| *c).collect();
            let group = encoder.group(&[
                Column::Related(&a),
                Column::Varied(&b),
                Column::Optional(&there, &values),
                Column::Few(&d, Dictionary::Numbers(17)),
                Column::Few(&e, Dictionary::Words(WORDS)),
            ]);
            let file = tempfile::tempfile().expect("a file");
            let mut table = Table::new(file.try_clone().expect("a file"), &layout).expect("a table");
            table.append(group.expect("a group")).expect("a disk");
            table.finish(&[]).expect("a disk");
            let reader = SerializedFileReader::new(file).expect("it is Parquet");
            let mut read = 0;
            for (n, row) in reader.get_row_iter(None).expect("rows").enumerate() {
                let row = row.expect("a row");
                let long = |column| row.get_long(column).ok().map(i64::cast_unsigned);
                assert_eq!((long(0), long(1)), (Some(a[n]), Some(b[n])), "{rows} {run} {n}");
                assert_eq!(long(2), (there[n] == 1).then_some(c[n]), "{rows} {run} {n}");
                assert_eq!(row.get_int(3).expect("a number"), i32::from(d[n]), "{rows} {run} {n}");
                assert_eq!(row.get_string(4).expect("a word"), WORDS[usize::from(e[n])], "{rows} {run} {n}");
                read += 1;
            }
            assert_eq!(read, rows);
        }
    }
}
