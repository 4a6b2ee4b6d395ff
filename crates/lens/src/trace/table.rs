//! A Parquet file that grows by row groups and is readable whatever happened to its disk.
//!
//! A row group is made in memory and then written whole; the footer comes at the end. Where a row group cannot be
//! written, the file is cut back to the last whole one, which makes room for the footer.

use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::metadata::{FileMetaData, KeyValue, ParquetMetaData, ParquetMetaDataWriter};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The version of the format that the footer names.
const VERSION: i32 = 2;

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
    Long(&'a [i64]),
    Int(&'a [i32]),
    /// The values that there are, and for each row whether there is one (1 or 0).
    Optional(&'a [i64], &'a [i16]),
    /// For each row which of the names.
    Name(&'a [u8], &'a [ByteArray]),
}

/// What a table looks like.
#[derive(Default)]
pub(super) struct Layout {
    /// The columns, in Parquet's own notation. They are kept as differences, but for:
    pub schema: &'static str,
    /// columns of few different values,
    pub named: &'static [&'static str],
    /// and numbers that have little to do with the one before.
    pub varied: &'static [&'static str],
    /// Columns whose values never fall.
    pub sorted: &'static [&'static str],
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
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
            // Readers skip groups by them where rows are sorted; elsewhere they cost time and tell nothing.
            .set_statistics_enabled(EnabledStatistics::None)
            .set_offset_index_disabled(true)
            .set_dictionary_enabled(false)
            .set_created_by(concat!("vitrine ", env!("CARGO_PKG_VERSION")).to_owned());
        let mut properties = properties.set_encoding(Encoding::DELTA_BINARY_PACKED);
        for name in layout.varied {
            properties = properties.set_column_encoding(ColumnPath::from(*name), Encoding::PLAIN);
        }
        for name in layout.named {
            let path = ColumnPath::from(*name);
            properties =
                properties.set_column_encoding(path.clone(), Encoding::PLAIN).set_column_dictionary_enabled(path, true);
        }
        for name in layout.sorted {
            let path = ColumnPath::from(*name);
            properties = properties.set_column_statistics_enabled(path, EnabledStatistics::Chunk);
        }
        let writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build()))?;
        Ok(Self { store, writer, good: 0, groups: 0 })
    }

    /// Adds a row group.
    ///
    /// # Errors
    /// It cannot be written: nothing more can be added, but [`Table::finish`] is still to be called.
    pub fn append(&mut self, columns: &[Column<'_>]) -> Result<(), ParquetError> {
        let mut group = self.writer.next_row_group()?;
        let mut columns = columns.iter();
        while let Some(mut writer) = group.next_column()? {
            match columns.next() {
                Some(Column::Long(values)) => writer.typed::<Int64Type>().write_batch(values, None, None)?,
                Some(Column::Int(values)) => writer.typed::<Int32Type>().write_batch(values, None, None)?,
                Some(Column::Optional(values, there)) => {
                    writer.typed::<Int64Type>().write_batch(values, Some(there), None)?
                }
                Some(Column::Name(which, names)) => {
                    let names: Vec<_> =
                        which.iter().filter_map(|which| names.get(usize::from(*which)).cloned()).collect();
                    writer.typed::<ByteArrayType>().write_batch(&names, None, None)?
                }
                None => return Err(ParquetError::General("a column is missing".to_owned())),
            };
            writer.close()?;
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
