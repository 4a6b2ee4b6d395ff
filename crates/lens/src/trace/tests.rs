//! Traces read back with another reader than the writer, full disks, slow disks.

use super::table::{Column, Layout};
use super::*;
use memory::{AccessKind, Hva, Origin};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::RowAccessor;
use std::sync::atomic::AtomicUsize;

fn access(kind: AccessKind, gva: Option<u64>, gpa: u64, size: u8, value: u128) -> Access {
    let origin = Origin { cpu: 0, cpl: 3, descriptor: false, rip: 0xffff_ffff_8100_0000, instructions: 9 };
    let old = kind.is_write().then_some(!value >> (128 - 8 * u32::from(size)));
    let (gva, gpa, hva) = (gva.map(Gva), Gpa(gpa), Some(Hva(0x7f00_0000_0000 + gpa)));
    Access { kind, origin, cr3: 0x1000, gva, gpa, hva, size, value, old }
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
        assert_eq!((long(0), long(2), long(5), long(6)), (seq, 9, 0x1000, access.origin.rip));
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
    let values: Vec<i64> = (0..10_000u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(n as u32 & 63)).cast_signed())
        .collect();
    let layout = Layout { schema: "message t { REQUIRED INT64 a; }", ..Layout::default() };
    for (room, whole) in [(1000, 0), (100_000, 1), (200_000, 2)] {
        let path = tempfile::NamedTempFile::new().expect("a file");
        let disk = Disk { file: path.reopen().expect("a file"), room };
        let mut table = Table::new(disk, &layout).expect("a table");
        let added = (0..).find(|_| table.append(&[Column::Long(&values)]).is_err());
        assert_eq!(added, Some(whole), "{room}");
        let len = table.finish(&[("dropped", 10_000)]).expect("there is room for the footer");
        assert_eq!(path.as_file().metadata().expect("metadata").len(), len);
        let reader = SerializedFileReader::new(path.reopen().expect("a file")).expect("it is Parquet");
        let mut read = reader.get_row_iter(None).expect("rows").map(|row| row.expect("a row").get_long(0).unwrap());
        for _ in 0..whole {
            assert!(values.iter().all(|value| read.next() == Some(*value)));
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
    for part in ["cpu0", "pages"] {
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
    assert!(error.to_string().contains("/nowhere/t.cpu0.parquet"), "{error}");
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
        write(slow, &receiver, &lost).map_err(|source| TraceError::Write { path: PathBuf::new(), source })
    });
    let (rows, full) = (Accesses::default(), Full::Drop);
    let mut feed = Feed { rows, sender: Some(sender), full, dropped, writer: Some(writer) };
    for n in 0..GROUP as u64 * 6 {
        feed.rows.push(n, n, &access(AccessKind::Read, Some(n), n, 8, 0), 0);
        feed.pass();
    }
    drop(go);
    let summary = feed.finish().expect("a disk");
    assert_eq!(summary.records + summary.dropped, GROUP as u64 * 6);
    // One that is being written, one that waits; the writer may not have begun before the second came.
    assert!((4..=5).contains(&(summary.dropped / GROUP as u64)), "{summary:?}");
}
