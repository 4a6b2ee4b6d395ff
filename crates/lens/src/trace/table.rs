//! A Parquet file that grows by row groups and is readable whatever happened to its disk.
//!
//! A row group is made in memory, by whatever thread, and then written whole; the footer comes at the end. Where a row
//! group cannot be written, the file is cut back to the last whole one, which makes room for the footer.

use super::encode;
use bytes::Bytes;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, FileMetaData, KeyValue, ParquetMetaData, ParquetMetaDataWriter};
use parquet::file::properties::WriterProperties;
use parquet::file::statistics::Statistics;
use parquet::file::writer::{SerializedFileWriter, SerializedPageWriter, TrackedWrite};
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::{ColumnDescPtr, SchemaDescriptor};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The version of the format that the footer names.
const VERSION: i32 = 2;
/// How much trouble zstd takes.
const LEVEL: i32 = 1;

/// Where a table is kept.
pub(super) trait Store: Send + 'static {
    /// Writes all of `bytes` at `offset`.
    fn put(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts off what is behind `len` bytes.
    fn cut(&mut self, len: u64) -> io::Result<()>;
}

impl Store for File {
    fn put(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }
    fn cut(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
}

/// A column of a row group.
pub(super) enum Column<'a> {
    /// Numbers that have to do with the one before.
    Related(&'a [u64]),
    /// Numbers that have not.
    Varied(&'a [u64]),
    /// For each row whether there is a number (1 or 0), and those that there are.
    Optional(&'a [u8], &'a [u64]),
    /// For each row which entry of a dictionary of at most 32.
    Few(&'a [u8], Dictionary<'a>),
}

/// The values of a column that has few.
#[derive(Clone, Copy)]
pub(super) enum Dictionary<'a> {
    /// Their numbers themselves, below this one.
    Numbers(u32),
    /// Words.
    Words(&'a [&'a str]),
}

/// What a table looks like.
pub(super) struct Layout {
    /// The columns, in Parquet's own notation.
    pub schema: &'static str,
    /// Columns whose values never fall: readers skip groups by their first and last ones.
    pub sorted: &'static [&'static str],
}

/// Makes row groups of columns.
pub(super) struct Encoder {
    schema: SchemaDescriptor,
    sorted: &'static [&'static str],
    compressor: zstd::bulk::Compressor<'static>,
    body: Vec<u8>,
}

/// A row group: its columns' bytes and what is known of them.
pub(super) struct Group(Vec<(Bytes, ColumnCloseResult)>);

impl Encoder {
    /// For tables of this layout.
    ///
    /// # Errors
    /// The layout is no layout, or zstd has no memory.
    pub fn new(layout: &Layout) -> Result<Self, ParquetError> {
        let schema = SchemaDescriptor::new(Arc::new(parse_message_type(layout.schema)?));
        let compressor = zstd::bulk::Compressor::new(LEVEL)?;
        Ok(Self { schema, sorted: layout.sorted, compressor, body: Vec::new() })
    }

    /// # Errors
    /// There are not as many columns as the layout says, or zstd fails.
    pub fn group(&mut self, columns: &[Column<'_>]) -> Result<Group, ParquetError> {
        let descriptions = self.schema.columns().to_vec();
        if descriptions.len() != columns.len() {
            return Err(ParquetError::General("a column is missing".to_owned()));
        }
        let columns = descriptions.into_iter().zip(columns);
        columns.map(|(description, column)| self.column(description, column)).collect::<Result<_, _>>().map(Group)
    }

    fn column(
        &mut self,
        description: ColumnDescPtr,
        column: &Column<'_>,
    ) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
        let mut sink = TrackedWrite::new(Vec::new());
        let mut pages = SerializedPageWriter::new(&mut sink);
        let (mut written, mut whole, mut dictionary) = (0, 0, None);
        let mut put = |page: Page, uncompressed: usize| -> Result<i64, ParquetError> {
            let spec = pages.write_page(CompressedPage::new(page, uncompressed))?;
            written += spec.compressed_size;
            whole += spec.uncompressed_size;
            Ok(spec.offset as i64)
        };
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        let (encoding, rows) = match column {
            Column::Related(values) => {
                encode::deltas(values, &mut body);
                (Encoding::DELTA_BINARY_PACKED, values.len())
            }
            Column::Varied(values) => {
                encode::plain(values, &mut body);
                (Encoding::PLAIN, values.len())
            }
            Column::Optional(there, values) => {
                let mut levels = Vec::new();
                encode::few(there, 1, &mut levels);
                body.extend_from_slice(&(levels.len() as u32).to_le_bytes());
                body.append(&mut levels);
                encode::plain(values, &mut body);
                (Encoding::PLAIN, there.len())
            }
            Column::Few(which, values) => {
                let (count, entries) = values.entries();
                let buf = self.compressor.compress(&entries)?.into();
                let page = Page::DictionaryPage { buf, num_values: count, encoding: Encoding::PLAIN, is_sorted: false };
                dictionary = Some(put(page, entries.len())?);
                let width = (count.next_power_of_two().trailing_zeros()).max(1);
                body.push(width as u8);
                encode::few(which, width, &mut body);
                (Encoding::RLE_DICTIONARY, which.len())
            }
        };
        let page = Page::DataPage {
            buf: self.compressor.compress(&body)?.into(),
            num_values: rows as u32,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let data = put(page, body.len())?;
        self.body = body;
        let bytes = Bytes::from(sink.into_inner()?);
        let mut metadata = ColumnChunkMetaData::builder(Arc::clone(&description))
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_encodings(vec![encoding, Encoding::PLAIN, Encoding::RLE])
            .set_total_compressed_size(written as i64)
            .set_total_uncompressed_size(whole as i64)
            .set_num_values(rows as i64)
            .set_data_page_offset(data)
            .set_dictionary_page_offset(dictionary);
        if let (true, Column::Related([first, .., last])) = (self.sorted.contains(&description.name()), column) {
            let limit = |value: &u64| Some(value.cast_signed());
            metadata = metadata.set_statistics(Statistics::int64(limit(first), limit(last), None, Some(0), false));
        }
        let close = ColumnCloseResult {
            bytes_written: bytes.len() as u64,
            rows_written: rows as u64,
            metadata: metadata.build()?,
            bloom_filter: None,
            column_index: None,
            offset_index: None,
        };
        Ok((bytes, close))
    }
}

impl Dictionary<'_> {
    /// How many there are, and what they are as PLAIN has them.
    fn entries(self) -> (u32, Vec<u8>) {
        match self {
            Self::Numbers(end) => (end, (0..end).flat_map(u32::to_le_bytes).collect()),
            Self::Words(words) => {
                let word = |word: &&str| [&(word.len() as u32).to_le_bytes(), word.as_bytes()].concat();
                (words.len() as u32, words.iter().flat_map(word).collect())
            }
        }
    }
}

/// The file.
pub(super) struct Table<S> {
    store: S,
    /// Writes to memory, from where whole row groups are taken.
    writer: SerializedFileWriter<Vec<u8>>,
    /// How far the store is good, and how many row groups that are.
    good: u64,
    groups: usize,
}

impl<S: Store> Table<S> {
    /// A table without rows.
    ///
    /// # Errors
    /// The layout is no layout.
    pub fn new(store: S, layout: &Layout) -> Result<Self, ParquetError> {
        let schema = Arc::new(parse_message_type(layout.schema)?);
        let properties = WriterProperties::builder()
            .set_created_by(concat!("vitrine ", env!("CARGO_PKG_VERSION")).to_owned())
            .set_offset_index_disabled(true);
        let writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build()))?;
        Ok(Self { store, writer, good: 0, groups: 0 })
    }

    /// Adds a row group.
    ///
    /// # Errors
    /// It cannot be written: nothing more can be added, but [`Table::finish`] is still to be called.
    pub fn append(&mut self, columns: Group) -> Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        for (bytes, close) in columns.0 {
            group.append_column(&bytes, close)?;
        }
        group.close()?;
        self.writer.flush()?;
        let bytes = std::mem::take(self.writer.inner_mut());
        self.store.put(&bytes, self.good)?;
        self.good += bytes.len() as u64;
        self.groups += 1;
        Ok(())
    }

    /// Ends the file behind the last whole row group, with `facts` in its footer. Gives its length in bytes.
    ///
    /// # Errors
    /// Not even that could be written.
    pub fn finish(mut self, facts: &[(&str, u64)]) -> Result<u64, ParquetError> {
        self.writer.flush()?;
        if self.groups == 0 {
            // Nothing has been taken out of the writer but what could not be written: only the magic number is needed.
            self.store.put(b"PAR1", 0)?;
            self.good = 4;
        }
        let groups = self.writer.flushed_row_groups().get(..self.groups).unwrap_or_default().to_vec();
        let facts = facts.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), value.to_string())).collect();
        let metadata = FileMetaData::new(
            VERSION,
            groups.iter().map(|group| group.num_rows()).sum(),
            Some(self.writer.properties().created_by().to_owned()),
            Some(facts),
            Arc::new(self.writer.schema_descr().clone()),
            None,
        );
        let mut footer = Vec::new();
        ParquetMetaDataWriter::new(&mut footer, &ParquetMetaData::new(metadata, groups)).finish()?;
        self.store.cut(self.good)?;
        self.store.put(&footer, self.good)?;
        Ok(self.good + footer.len() as u64)
    }
}
