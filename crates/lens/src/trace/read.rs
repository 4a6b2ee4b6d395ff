//! Reads a trace back: all vCPUs' and devices' accesses in order, each with all its addresses.

use super::rows::{KINDS, kind_of};
use memory::{AccessKind, Gpa, Gva, Hpa, Hva};
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x86::PAGE_OFFSET;

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A file cannot be opened.
    #[error("{} cannot be read", .path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} cannot be read: {source}", .path.display())]
    Parquet {
        /// Which.
        path: PathBuf,
        /// Why.
        source: ParquetError,
    },
    /// A file is not one of a trace.
    #[error("{} is no file of a trace: it has no column {column:?} of the right type", .path.display())]
    Column {
        /// Which.
        path: PathBuf,
        /// What is missing.
        column: &'static str,
    },
    /// No file has the accesses of a vCPU.
    #[error(
        "there is no trace {}: the name that -trace was given is right, where {} begins a trace",
        .0.display(), super::part(.0, "cpu0").display()
    )]
    None(PathBuf),
}

/// An access, as the trace has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number.
    pub seq: u64,
    /// Nanoseconds since the trace began.
    pub time: u64,
    /// The device that made it. `None`: a vCPU did, of which the next five tell; they are 0 for a device.
    pub device: Option<Arc<str>>,
    /// Instructions that the vCPU had executed, as far as they had been counted.
    pub instructions: u64,
    /// Which vCPU.
    pub cpu: u32,
    /// Its current privilege level.
    pub cpl: u8,
    /// CR3.
    pub cr3: u64,
    /// Address of the instruction.
    pub rip: u64,
    /// What was done.
    pub kind: AccessKind,
    /// `None` for the page walker and devices.
    pub gva: Option<Gva>,
    /// Guest physical address.
    pub gpa: Gpa,
    /// `None`: no memory.
    pub hva: Option<Hva>,
    /// `None`: not known.
    pub hpa: Option<Hpa>,
    /// Bytes.
    pub size: u8,
    /// The bytes.
    pub value: u128,
    /// What was there before.
    pub old: Option<u128>,
}

/// A table's file.
struct Table {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    /// The next row group.
    next: usize,
}

/// The columns of a row group, as numbers; kinds are their number in [`KINDS`].
type Columns<const N: usize> = [Vec<Option<u64>>; N];

impl Table {
    fn open(path: PathBuf) -> Result<Self, ReadError> {
        let file = File::open(&path).map_err(|source| ReadError::Open { path: path.clone(), source })?;
        let reader = SerializedFileReader::new(file);
        let reader = reader.map_err(|source| ReadError::Parquet { path: path.clone(), source })?;
        Ok(Self { path, reader, next: 0 })
    }

    /// Whether there is another row group.
    fn more(&self) -> bool {
        self.next < self.reader.num_row_groups()
    }

    /// What `read` finds in column `name` of the next row group.
    fn find<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&Self, &str) -> Result<Option<T>, ParquetError>,
    ) -> Result<T, ReadError> {
        let path = || self.path.clone();
        let found = read(self, name).map_err(|source| ReadError::Parquet { path: path(), source })?;
        found.ok_or_else(|| ReadError::Column { path: path(), column: name })
    }

    /// These columns of the next row group.
    fn columns<const N: usize>(&self, names: [&'static str; N]) -> Result<Columns<N>, ReadError> {
        let mut columns = [const { Vec::new() }; N];
        for (column, name) in columns.iter_mut().zip(names) {
            *column = self.find(name, Self::column)?;
        }
        let rows = columns.iter().map(Vec::len).max().unwrap_or_default();
        match columns.iter().position(|column| column.len() != rows) {
            Some(n) => Err(ReadError::Column { path: self.path.clone(), column: names[n] }),
            None => Ok(columns),
        }
    }

    /// What reads a column of the next row group, how many rows that has, and whether some may have nothing there. `None`:
    /// there is no such column.
    fn reader(&self, name: &str) -> Result<Option<(ColumnReader, usize, bool)>, ParquetError> {
        let group = self.reader.get_row_group(self.next)?;
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let Some(n) = schema.columns().iter().position(|column| column.name() == name) else { return Ok(None) };
        let rows = usize::try_from(group.metadata().num_rows()).unwrap_or_default();
        Ok(Some((group.get_column_reader(n)?, rows, schema.column(n).max_def_level() > 0)))
    }

    /// The words of a column in which each row has one. `None`: there is no such column.
    fn words(&self, name: &str) -> Result<Option<Vec<Arc<str>>>, ParquetError> {
        let Some((ColumnReader::ByteArrayColumnReader(mut reader), rows, false)) = self.reader(name)? else {
            return Ok(None);
        };
        let mut values: Vec<ByteArray> = Vec::new();
        reader.read_records(rows, None, None, &mut values)?;
        let mut last = Arc::<str>::default();
        let word = |value: &ByteArray| {
            if last.as_bytes() != value.data() {
                last = String::from_utf8_lossy(value.data()).into();
            }
            Arc::clone(&last)
        };
        Ok(Some(values.iter().map(word).collect()))
    }

    /// The numbers of a column. `None`: there is no such column.
    fn column(&self, name: &str) -> Result<Option<Vec<Option<u64>>>, ParquetError> {
        let Some((reader, rows, optional)) = self.reader(name)? else { return Ok(None) };
        let mut there = Vec::new();
        let levels = optional.then_some(&mut there);
        let values: Vec<u64> = match reader {
            ColumnReader::Int64ColumnReader(mut reader) => {
                let mut values = Vec::new();
                reader.read_records(rows, levels, None, &mut values)?;
                values.into_iter().map(i64::cast_unsigned).collect()
            }
            ColumnReader::Int32ColumnReader(mut reader) => {
                let mut values = Vec::new();
                reader.read_records(rows, levels, None, &mut values)?;
                values.into_iter().map(|value| value.cast_unsigned().into()).collect()
            }
            ColumnReader::ByteArrayColumnReader(mut reader) => {
                let mut values: Vec<ByteArray> = Vec::new();
                reader.read_records(rows, levels, None, &mut values)?;
                let number = |value: &ByteArray| KINDS.iter().position(|kind| kind.as_bytes() == value.data());
                values.iter().map(|value| number(value).map_or(u64::MAX, |n| n as u64)).collect()
            }
            _ => return Ok(None),
        };
        if !optional {
            return Ok(Some(values.into_iter().map(Some).collect()));
        }
        let mut values = values.into_iter();
        Ok(Some(there.into_iter().map(|there| if there > 0 { values.next() } else { None }).collect()))
    }
}

/// Where a page was: guest physical, host virtual and host physical address of its first byte.
type Page = (Gpa, Option<Hva>, Option<Hpa>);

/// The accesses of a vCPU, or of all devices, a row group at a time.
struct Stream {
    table: Table,
    devices: bool,
    rows: VecDeque<Row>,
}

/// A trace.
pub struct Reader {
    streams: Vec<Stream>,
    pages: HashMap<u64, Page>,
}

impl Reader {
    /// Opens the trace that was given this name.
    ///
    /// # Errors
    /// Files are missing, or are no trace.
    pub fn open(file: &Path) -> Result<Self, ReadError> {
        let paths = (0..).map(|cpu| super::part(file, &format!("cpu{cpu}"))).take_while(|path| path.exists());
        let paths: Vec<_> = paths.collect();
        if paths.is_empty() {
            return Err(ReadError::None(file.to_owned()));
        }
        let mut table = Table::open(super::part(file, "pages"))?;
        let mut pages = HashMap::new();
        while table.more() {
            let [page, gpa, hva, hpa] = table.columns(["page", "gpa", "hva", "hpa"])?;
            table.next += 1;
            for (((page, gpa), hva), hpa) in page.into_iter().zip(gpa).zip(hva).zip(hpa) {
                pages.insert(page.unwrap_or_default(), (Gpa(gpa.unwrap_or_default()), hva.map(Hva), hpa.map(Hpa)));
            }
        }
        let stream = |path, devices| Ok(Stream { table: Table::open(path)?, devices, rows: VecDeque::new() });
        let streams = paths.into_iter().map(|path| stream(path, false));
        let streams = streams.chain([stream(super::part(file, "dma"), true)]).collect::<Result<_, ReadError>>()?;
        Ok(Self { streams, pages })
    }

    /// The next access.
    fn row(&mut self) -> Result<Option<Row>, ReadError> {
        for stream in self.streams.iter_mut().filter(|stream| stream.rows.is_empty()) {
            stream.fill(&self.pages)?;
        }
        let first = self.streams.iter_mut().filter(|stream| !stream.rows.is_empty());
        let first = first.min_by_key(|stream| stream.rows.front().map(|row| row.seq));
        Ok(first.and_then(|stream| stream.rows.pop_front()))
    }
}

impl Stream {
    fn fill(&mut self, pages: &HashMap<u64, Page>) -> Result<(), ReadError> {
        let Self { table, devices, rows } = self;
        if !table.more() {
            return Ok(());
        }
        let names = ["seq", "time", "kind", "address", "page", "size", "value", "value_high", "old", "old_high"];
        let columns = table.columns(names)?;
        let (mut vcpu, mut device) = (Columns::<5>::default(), Vec::new());
        if *devices {
            device = table.find("device", Table::words)?;
        } else {
            vcpu = table.columns(["instructions", "cpu", "cpl", "cr3", "rip"])?;
        }
        for n in 0..columns[0].len() {
            let [seq, time, kind, address, page, size, value, high, old, old_high] =
                std::array::from_fn(|column| columns[column].get(n).copied().flatten());
            let [instructions, cpu, cpl, cr3, rip] =
                std::array::from_fn(|column| vcpu[column].get(n).copied().flatten().unwrap_or_default());
            let there = |number: Option<u64>| number.unwrap_or_default();
            let wide = |low: Option<u64>, high: Option<u64>| {
                low.map(|low| u128::from(low) | u128::from(high.unwrap_or_default()) << 64)
            };
            let kind =
                kind_of(there(kind)).ok_or_else(|| ReadError::Column { path: table.path.clone(), column: "kind" })?;
            let (gpa, hva, hpa) = pages.get(&there(page)).copied().unwrap_or_default();
            let (address, offset) = (there(address), there(address) & PAGE_OFFSET);
            let physical = *devices || matches!(kind, AccessKind::WalkRead | AccessKind::WalkWrite);
            rows.push_back(Row {
                seq: there(seq),
                time: there(time),
                device: device.get(n).cloned(),
                instructions,
                cpu: cpu as u32,
                cpl: cpl as u8,
                cr3,
                rip,
                kind,
                gva: (!physical).then_some(Gva(address)),
                gpa: gpa.wrapping_add(offset),
                hva: hva.map(|hva| hva.wrapping_add(offset)),
                hpa: hpa.map(|hpa| hpa.wrapping_add(offset)),
                size: there(size) as u8,
                value: wide(value, high).unwrap_or_default(),
                old: wide(old, old_high),
            });
        }
        table.next += 1;
        Ok(())
    }
}

impl Iterator for Reader {
    type Item = Result<Row, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.row().transpose()
    }
}
