//! The columns of a trace's two tables: accesses, and the pages that they were to.

use super::table::{Column, Layout};
use memory::{Access, AccessKind, Gpa, Gva, Hpa, Hva};
use parquet::data_type::ByteArray;

/// What is written at once.
pub(super) trait Rows: Default + Send + 'static {
    /// The table.
    const LAYOUT: Layout;
    /// How many rows there are.
    fn len(&self) -> usize;
    /// The columns, in the order of the schema.
    fn columns<'a>(&'a self, names: &'a [ByteArray]) -> Vec<Column<'a>>;
}

/// Numbers of which some rows have none.
#[derive(Default)]
struct Optional {
    values: Vec<i64>,
    there: Vec<i16>,
}

impl Optional {
    fn push(&mut self, value: Option<u64>) {
        self.there.push(value.is_some().into());
        self.values.extend(value.map(u64::cast_signed));
    }

    fn column(&self) -> Column<'_> {
        Column::Optional(&self.values, &self.there)
    }
}

/// What the kinds of access are called, in the order of [`number`].
const KINDS: [&str; 7] = ["read", "write", "fetch", "walk_read", "walk_write", "descriptor_read", "descriptor_write"];

fn number(kind: AccessKind) -> u8 {
    match kind {
        AccessKind::Read => 0,
        AccessKind::Write => 1,
        AccessKind::Fetch => 2,
        AccessKind::WalkRead => 3,
        AccessKind::WalkWrite => 4,
        AccessKind::DescriptorRead => 5,
        AccessKind::DescriptorWrite => 6,
    }
}

/// [`KINDS`] as Parquet has them.
pub(super) fn kinds() -> Vec<ByteArray> {
    KINDS.iter().map(|name| ByteArray::from(*name)).collect()
}

/// Accesses.
#[derive(Default)]
pub(super) struct Accesses {
    seq: Vec<i64>,
    time: Vec<i64>,
    instructions: Vec<i64>,
    cpu: Vec<i32>,
    cpl: Vec<i32>,
    cr3: Vec<i64>,
    rip: Vec<i64>,
    kind: Vec<u8>,
    address: Vec<i64>,
    page: Vec<i64>,
    size: Vec<i32>,
    value: Vec<i64>,
    value_high: Optional,
    old: Optional,
    old_high: Optional,
}

impl Accesses {
    /// Adds one. `time`: nanoseconds since the trace began; `page`: its row in the table of pages.
    pub fn push(&mut self, seq: u64, time: u64, access: &Access, page: u64) {
        let (value, old) = (halves(access.value), access.old.map(halves));
        let wide = access.size > 8;
        self.seq.push(seq.cast_signed());
        self.time.push(time.cast_signed());
        self.instructions.push(access.origin.instructions.cast_signed());
        self.cpu.push(access.origin.cpu.cast_signed());
        self.cpl.push(access.origin.cpl.into());
        self.cr3.push(access.cr3.cast_signed());
        self.rip.push(access.origin.rip.cast_signed());
        self.kind.push(number(access.kind));
        self.address.push(access.gva.map_or(access.gpa.0, |gva| gva.0).cast_signed());
        self.page.push(page.cast_signed());
        self.size.push(access.size.into());
        self.value.push(value.0.cast_signed());
        self.value_high.push(wide.then_some(value.1));
        self.old.push(old.map(|old| old.0));
        self.old_high.push(old.filter(|_| wide).map(|old| old.1));
    }
}

/// The lower and the upper half.
fn halves(value: u128) -> (u64, u64) {
    ((value & u128::from(u64::MAX)) as u64, (value >> 64) as u64)
}

impl Rows for Accesses {
    const LAYOUT: Layout = Layout {
        schema: "message access {
        REQUIRED INT64 seq (INTEGER(64,false));
        REQUIRED INT64 time (INTEGER(64,false));
        REQUIRED INT64 instructions (INTEGER(64,false));
        REQUIRED INT32 cpu (INTEGER(32,false));
        REQUIRED INT32 cpl (INTEGER(8,false));
        REQUIRED INT64 cr3 (INTEGER(64,false));
        REQUIRED INT64 rip (INTEGER(64,false));
        REQUIRED BYTE_ARRAY kind (STRING);
        REQUIRED INT64 address (INTEGER(64,false));
        REQUIRED INT64 page (INTEGER(64,false));
        REQUIRED INT32 size (INTEGER(8,false));
        REQUIRED INT64 value (INTEGER(64,false));
        OPTIONAL INT64 value_high (INTEGER(64,false));
        OPTIONAL INT64 old (INTEGER(64,false));
        OPTIONAL INT64 old_high (INTEGER(64,false));
    }",
        named: &["kind"],
        varied: &["address", "value", "value_high", "old", "old_high"],
        sorted: &["seq", "time", "instructions"],
    };

    fn len(&self) -> usize {
        self.seq.len()
    }

    fn columns<'a>(&'a self, names: &'a [ByteArray]) -> Vec<Column<'a>> {
        vec![
            Column::Long(&self.seq),
            Column::Long(&self.time),
            Column::Long(&self.instructions),
            Column::Int(&self.cpu),
            Column::Int(&self.cpl),
            Column::Long(&self.cr3),
            Column::Long(&self.rip),
            Column::Name(&self.kind, names),
            Column::Long(&self.address),
            Column::Long(&self.page),
            Column::Int(&self.size),
            Column::Long(&self.value),
            self.value_high.column(),
            self.old.column(),
            self.old_high.column(),
        ]
    }
}

/// Pages that were accessed: where each was at each level.
#[derive(Default)]
pub(super) struct Pages {
    page: Vec<i64>,
    seq: Vec<i64>,
    gva: Optional,
    gpa: Vec<i64>,
    hva: Optional,
    hpa: Optional,
}

impl Pages {
    /// Adds one, whose addresses are those of its first byte. `seq`: that of the first access to it.
    pub fn push(&mut self, page: u64, seq: u64, gva: Option<Gva>, gpa: Gpa, hva: Option<Hva>, hpa: Option<Hpa>) {
        self.page.push(page.cast_signed());
        self.seq.push(seq.cast_signed());
        self.gva.push(gva.map(|gva| gva.0));
        self.gpa.push(gpa.0.cast_signed());
        self.hva.push(hva.map(|hva| hva.0));
        self.hpa.push(hpa.map(|hpa| hpa.0));
    }
}

impl Rows for Pages {
    const LAYOUT: Layout = Layout {
        schema: "message page {
        REQUIRED INT64 page (INTEGER(64,false));
        REQUIRED INT64 seq (INTEGER(64,false));
        OPTIONAL INT64 gva (INTEGER(64,false));
        REQUIRED INT64 gpa (INTEGER(64,false));
        OPTIONAL INT64 hva (INTEGER(64,false));
        OPTIONAL INT64 hpa (INTEGER(64,false));
    }",
        named: &[],
        varied: &[],
        sorted: &["page"],
    };

    fn len(&self) -> usize {
        self.page.len()
    }

    fn columns<'a>(&'a self, _: &'a [ByteArray]) -> Vec<Column<'a>> {
        vec![
            Column::Long(&self.page),
            Column::Long(&self.seq),
            self.gva.column(),
            Column::Long(&self.gpa),
            self.hva.column(),
            self.hpa.column(),
        ]
    }
}
