//! The columns of a trace's tables: accesses of vCPUs, those of devices, and the pages that they were to.

use super::lot::Moment;
use super::table::{Column, Dictionary, Layout};
use memory::observe::{Batch, Record};
use memory::{Access, AccessKind, Gpa, Gva, Hpa, Hva, Origin};
use std::iter::repeat_n;

/// What is written at once.
pub(super) trait Rows: Default + Send + 'static {
    /// The table.
    const LAYOUT: Layout;
    /// How many rows there are.
    fn len(&self) -> usize;
    /// The columns, in the order of the schema.
    fn columns(&self) -> Vec<Column<'_>>;
    /// Drops all rows and keeps their memory.
    fn clear(&mut self);
}

/// Numbers of which some rows have none.
#[derive(Default)]
struct Optional {
    values: Vec<u64>,
    there: Vec<u8>,
}

impl Optional {
    fn push(&mut self, value: Option<u64>) {
        self.there.push(value.is_some().into());
        self.values.extend(value);
    }

    fn column(&self) -> Column<'_> {
        Column::Optional(&self.there, &self.values)
    }

    fn clear(&mut self) {
        self.values.clear();
        self.there.clear();
    }
}

/// What the kinds of access are called, in the order of [`number`].
pub(super) const KINDS: [&str; 9] = [
    "read",
    "write",
    "fetch",
    "walk_read",
    "walk_write",
    "descriptor_read",
    "descriptor_write",
    "dma_read",
    "dma_write",
];

/// The kind of this number in [`KINDS`].
pub(super) fn kind_of(number: u64) -> Option<AccessKind> {
    use AccessKind::*;
    let all = [Read, Write, Fetch, WalkRead, WalkWrite, DescriptorRead, DescriptorWrite, DmaRead, DmaWrite];
    all.into_iter().find(|kind| u64::from(self::number(*kind)) == number)
}

/// What a kind of access is called.
pub(super) fn name(kind: AccessKind) -> &'static str {
    KINDS.get(usize::from(number(kind))).copied().unwrap_or_default()
}

fn number(kind: AccessKind) -> u8 {
    match kind {
        AccessKind::Read => 0,
        AccessKind::Write => 1,
        AccessKind::Fetch => 2,
        AccessKind::WalkRead => 3,
        AccessKind::WalkWrite => 4,
        AccessKind::DescriptorRead => 5,
        AccessKind::DescriptorWrite => 6,
        AccessKind::DmaRead => 7,
        AccessKind::DmaWrite => 8,
    }
}

/// What there is of each access, whoever made it.
#[derive(Default)]
struct Common {
    seq: Vec<u64>,
    time: Vec<u64>,
    kind: Vec<u8>,
    address: Vec<u64>,
    page: Vec<u64>,
    size: Vec<u8>,
    value: Vec<u64>,
    value_high: Optional,
    old: Optional,
    old_high: Optional,
}

impl Common {
    /// Adds one, but for its page.
    #[inline]
    fn push(&mut self, Moment { seq, time }: Moment, access: &Access) {
        let (value, old) = (halves(access.value), access.old.map(halves));
        let wide = access.size > 8;
        self.seq.push(seq);
        self.time.push(time);
        self.kind.push(number(access.kind));
        self.address.push(access.gva.map_or(access.gpa.0, |gva| gva.0));
        self.size.push(access.size.min(LARGEST));
        self.value.push(value.0);
        self.value_high.push(wide.then_some(value.1));
        self.old.push(old.map(|old| old.0));
        self.old_high.push(old.filter(|_| wide).map(|old| old.1));
    }

    /// The number of the access and the time; and the others, in their order.
    fn columns(&self) -> ([Column<'_>; 2], [Column<'_>; 8]) {
        (
            [Column::Related(&self.seq), Column::Related(&self.time)],
            [
                Column::Few(&self.kind, Dictionary::Words(&KINDS)),
                Column::Related(&self.address),
                Column::Related(&self.page),
                Column::Few(&self.size, Dictionary::Numbers(LARGEST as u32 + 1)),
                Column::Varied(&self.value),
                self.value_high.column(),
                self.old.column(),
                self.old_high.column(),
            ],
        )
    }

    fn clear(&mut self) {
        [&mut self.seq, &mut self.time, &mut self.address, &mut self.page, &mut self.value]
            .into_iter()
            .for_each(Vec::clear);
        [&mut self.kind, &mut self.size].into_iter().for_each(Vec::clear);
        [&mut self.value_high, &mut self.old, &mut self.old_high].into_iter().for_each(Optional::clear);
    }
}

/// Accesses of a vCPU.
#[derive(Default)]
pub(super) struct Accesses {
    common: Common,
    instructions: Vec<u64>,
    cpu: Vec<u8>,
    cpl: Vec<u8>,
    cr3: Vec<u64>,
    rip: Vec<u64>,
}

impl Accesses {
    /// Adds the row in the table of pages of what is added to the rest next.
    #[inline]
    pub fn push_page(&mut self, page: u64) {
        self.common.page.push(page);
    }

    /// Adds one.
    #[inline]
    pub fn push(&mut self, moment: Moment, access: &Access, origin: &Origin, cr3: u64) {
        self.common.push(moment, access);
        self.instructions.push(origin.instructions);
        self.cpu.push(origin.cpu.min(CPUS - 1) as u8);
        self.cpl.push(origin.cpl & 3);
        self.cr3.push(cr3);
        self.rip.push(origin.rip);
    }

    /// Adds those of `batch`, none of which is larger than eight bytes.
    pub fn extend(&mut self, Moment { seq, time }: Moment, batch: &Batch<'_>) {
        let Batch { origin, cr3, records, .. } = batch;
        let count = records.len();
        let user = origin.cpl & 3 | if origin.cpl == 0 { 3 } else { 0 };
        let write = |record: &Record| u8::from(record.what.write());
        self.instructions.extend(records.iter().map(|record| batch.instructions(record)));
        self.cpu.extend(repeat_n(origin.cpu.min(CPUS - 1) as u8, count));
        self.cpl.extend(records.iter().map(|record| if record.what.user() { user } else { 0 }));
        self.cr3.extend(repeat_n(*cr3, count));
        self.rip.extend(records.iter().map(Record::rip));
        let common = &mut self.common;
        common.seq.extend(seq..seq + count as u64);
        common.time.extend(repeat_n(time, count));
        // As in `number`.
        common.kind.extend(records.iter().map(write));
        common.address.extend(records.iter().map(|record| record.gva));
        common.size.extend(records.iter().map(|record| record.what.size()));
        let value = |record: &Record| if record.what.write() { record.after } else { record.before };
        common.value.extend(records.iter().map(value));
        common.value_high.there.extend(repeat_n(0, count));
        common.old.there.extend(records.iter().map(write));
        common.old.values.extend(records.iter().filter(|record| record.what.write()).map(|record| record.before));
        common.old_high.there.extend(repeat_n(0, count));
    }
}

/// The lower and the upper half.
fn halves(value: u128) -> (u64, u64) {
    ((value & u128::from(u64::MAX)) as u64, (value >> 64) as u64)
}

/// The largest access.
const LARGEST: u8 = 16;
/// The most vCPUs.
const CPUS: u32 = 256;

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
        sorted: &["seq", "time", "instructions"],
    };

    fn len(&self) -> usize {
        self.common.seq.len()
    }

    fn columns(&self) -> Vec<Column<'_>> {
        let (first, last) = self.common.columns();
        let own = [
            Column::Related(&self.instructions),
            Column::Few(&self.cpu, Dictionary::Numbers(CPUS)),
            Column::Few(&self.cpl, Dictionary::Numbers(4)),
            Column::Related(&self.cr3),
            Column::Related(&self.rip),
        ];
        first.into_iter().chain(own).chain(last).collect()
    }

    fn clear(&mut self) {
        self.common.clear();
        [&mut self.instructions, &mut self.cr3, &mut self.rip].into_iter().for_each(Vec::clear);
        [&mut self.cpu, &mut self.cpl].into_iter().for_each(Vec::clear);
    }
}

/// Accesses of devices.
#[derive(Default)]
pub(super) struct Transfers {
    common: Common,
    /// The devices' names, and of each access which it is.
    devices: Vec<&'static str>,
    device: Vec<u8>,
}

impl Transfers {
    /// Adds one by `device`, to what has this row in the table of pages. There are never more than 256 devices' names.
    pub fn push(&mut self, moment: Moment, access: &Access, device: &'static str, page: u64) {
        self.common.push(moment, access);
        self.common.page.push(page);
        let known = self.devices.iter().position(|name| *name == device);
        let number = known.unwrap_or_else(|| {
            self.devices.push(device);
            self.devices.len() - 1
        });
        self.device.push(number as u8);
    }
}

impl Rows for Transfers {
    const LAYOUT: Layout = Layout {
        schema: "message transfer {
        REQUIRED INT64 seq (INTEGER(64,false));
        REQUIRED INT64 time (INTEGER(64,false));
        REQUIRED BYTE_ARRAY device (STRING);
        REQUIRED BYTE_ARRAY kind (STRING);
        REQUIRED INT64 address (INTEGER(64,false));
        REQUIRED INT64 page (INTEGER(64,false));
        REQUIRED INT32 size (INTEGER(8,false));
        REQUIRED INT64 value (INTEGER(64,false));
        OPTIONAL INT64 value_high (INTEGER(64,false));
        OPTIONAL INT64 old (INTEGER(64,false));
        OPTIONAL INT64 old_high (INTEGER(64,false));
    }",
        sorted: &["seq", "time"],
    };

    fn len(&self) -> usize {
        self.common.seq.len()
    }

    fn columns(&self) -> Vec<Column<'_>> {
        let (first, last) = self.common.columns();
        let device = Column::Few(&self.device, Dictionary::Words(&self.devices));
        first.into_iter().chain([device]).chain(last).collect()
    }

    fn clear(&mut self) {
        self.common.clear();
        self.devices.clear();
        self.device.clear();
    }
}

/// Pages that were accessed: where each was at each level.
#[derive(Default)]
pub(super) struct Pages {
    page: Vec<u64>,
    seq: Vec<u64>,
    gva: Optional,
    gpa: Vec<u64>,
    hva: Optional,
    hpa: Optional,
}

impl Pages {
    /// Adds one, whose addresses are those of its first byte. `seq`: that of the first access to it.
    pub fn push(&mut self, page: u64, seq: u64, gva: Option<Gva>, gpa: Gpa, hva: Option<Hva>, hpa: Option<Hpa>) {
        self.page.push(page);
        self.seq.push(seq);
        self.gva.push(gva.map(|gva| gva.0));
        self.gpa.push(gpa.0);
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
        sorted: &["page"],
    };

    fn len(&self) -> usize {
        self.page.len()
    }

    fn columns(&self) -> Vec<Column<'_>> {
        vec![
            Column::Related(&self.page),
            Column::Related(&self.seq),
            self.gva.column(),
            Column::Related(&self.gpa),
            self.hva.column(),
            self.hpa.column(),
        ]
    }

    fn clear(&mut self) {
        [&mut self.page, &mut self.seq, &mut self.gpa].into_iter().for_each(Vec::clear);
        [&mut self.gva, &mut self.hva, &mut self.hpa].into_iter().for_each(Optional::clear);
    }
}
