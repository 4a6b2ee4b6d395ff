//! Reads a trace back: all vCPUs' accesses in order, each with all its addresses.

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its number.
    pub seq: u64,
    /// Nanoseconds since the trace began.
    pub time: u64,
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
    /// `None` for the page walker.
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

    /// These columns of the next row group. `None`: there is none.
    fn columns<const N: usize>(&mut self, names: [&'static str; N]) -> Result<Option<Columns<N>>, ReadError> {
        if self.next >= self.reader.num_row_groups() {
            return Ok(None);
        }
        let mut columns = [const { Vec::new() }; N];
        for (column, name) in columns.iter_mut().zip(names) {
            let missing = || ReadError::Column { path: self.path.clone(), column: name };
            let read = self.column(name).map_err(|source| ReadError::Parquet { path: self.path.clone(), source })?;
            *column = read.ok_or_else(missing)?;
        }
        self.next += 1;
        let rows = columns.iter().map(Vec::len).max().unwrap_or_default();
        match columns.iter().position(|column| column.len() != rows) {
            Some(n) => Err(ReadError::Column { path: self.path.clone(), column: names[n] }),
            None => Ok(Some(columns)),
        }
    }

    /// `None`: there is no such column.
    fn column(&self, name: &str) -> Result<Option<Vec<Option<u64>>>, ParquetError> {
        let group = self.reader.get_row_group(self.next)?;
        let schema = self.reader.metadata().file_metadata().schema_descr();
        let Some(n) = schema.columns().iter().position(|column| column.name() == name) else { return Ok(None) };
        let rows = usize::try_from(group.metadata().num_rows()).unwrap_or_default();
        let optional = schema.column(n).max_def_level() > 0;
        let mut there = Vec::new();
        let levels = optional.then_some(&mut there);
        let values: Vec<u64> = match group.get_column_reader(n)? {
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

/// The accesses of a vCPU, a row group at a time.
struct Stream {
    table: Table,
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
        while let Some([page, gpa, hva, hpa]) = table.columns(["page", "gpa", "hva", "hpa"])? {
            for (((page, gpa), hva), hpa) in page.into_iter().zip(gpa).zip(hva).zip(hpa) {
                pages.insert(page.unwrap_or_default(), (Gpa(gpa.unwrap_or_default()), hva.map(Hva), hpa.map(Hpa)));
            }
        }
        let stream = |path| Ok(Stream { table: Table::open(path)?, rows: VecDeque::new() });
        Ok(Self { streams: paths.into_iter().map(stream).collect::<Result<_, ReadError>>()?, pages })
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
        const NAMES: [&str; 15] = [
            "seq",
            "time",
            "instructions",
            "cpu",
            "cpl",
            "cr3",
            "rip",
            "kind",
            "address",
            "page",
            "size",
            "value",
            "value_high",
            "old",
            "old_high",
        ];
        let Some(columns) = self.table.columns(NAMES)? else { return Ok(()) };
        let rows = columns[0].len();
        for n in 0..rows {
            let [seq, time, instructions, cpu, cpl, cr3, rip, kind, address, page, size, value, high, old, old_high] =
                std::array::from_fn(|column| columns[column].get(n).copied().flatten());
            let there = |number: Option<u64>| number.unwrap_or_default();
            let wide = |low: Option<u64>, high: Option<u64>| {
                low.map(|low| u128::from(low) | u128::from(high.unwrap_or_default()) << 64)
            };
            let kind = kind_of(there(kind))
                .ok_or_else(|| ReadError::Column { path: self.table.path.clone(), column: "kind" })?;
            let (gpa, hva, hpa) = pages.get(&there(page)).copied().unwrap_or_default();
            let (address, offset) = (there(address), there(address) & PAGE_OFFSET);
            self.rows.push_back(Row {
                seq: there(seq),
                time: there(time),
                instructions: there(instructions),
                cpu: there(cpu) as u32,
                cpl: there(cpl) as u8,
                cr3: there(cr3),
                rip: there(rip),
                kind,
                gva: (!matches!(kind, AccessKind::WalkRead | AccessKind::WalkWrite)).then_some(Gva(address)),
                gpa: gpa.wrapping_add(offset),
                hva: hva.map(|hva| hva.wrapping_add(offset)),
                hpa: hpa.map(|hpa| hpa.wrapping_add(offset)),
                size: there(size) as u8,
                value: wide(value, high).unwrap_or_default(),
                old: wide(old, old_high),
            });
        }
        Ok(())
    }
}

impl Iterator for Reader {
    type Item = Result<Row, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.row().transpose()
    }
}
