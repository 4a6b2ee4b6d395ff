//! What a vCPU hands over: accesses in order, those that translated code recorded as they are; and what makes rows of
//! them, elsewhere. The same for devices.

use super::feed::Lot;
use super::rows::{Accesses, Pages, Transfers};
use super::{Known, lock};
use crate::watch::Kinds;
use memory::observe::{Batch, Record};
use memory::{Access, Agent, Gpa, Gva, Hva, Origin, PhysicalMap};
use std::sync::{Arc, Mutex};

/// Pages whose rows are found without asking for the lock: those of which the lowest bits of the number differ.
const NEAR: usize = 1 << 12;

/// When something was done: the number of the access, and nanoseconds since the trace began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub seq: u64,
    pub time: u64,
}

/// What was done.
enum Done {
    /// An access.
    One(Access),
    /// Those of the next so many records that are of these kinds; on whose behalf, and with which CR3.
    Recorded(Origin, u64, Kinds, usize),
}

/// Accesses of a vCPU.
#[derive(Default)]
pub(super) struct Deeds {
    done: Vec<(Moment, Done)>,
    records: Vec<Record>,
    map: Option<Arc<PhysicalMap>>,
    rows: usize,
}

impl Deeds {
    /// Adds one.
    pub fn one(&mut self, moment: Moment, access: &Access) {
        self.done.push((moment, Done::One(*access)));
        self.rows += 1;
    }

    /// Adds those of `batch` that are of these `kinds`, which are so many rows.
    pub fn batch(&mut self, moment: Moment, batch: &Batch<'_>, kinds: Kinds, rows: usize) {
        self.done.push((moment, Done::Recorded(batch.origin, batch.cr3, kinds, batch.records.len())));
        self.records.extend_from_slice(batch.records);
        self.map.get_or_insert_with(|| Arc::clone(batch.map));
        self.rows += rows;
    }
}

impl Lot for Deeds {
    type Rows = Accesses;

    fn len(&self) -> usize {
        self.rows
    }

    fn clear(&mut self) {
        self.done.clear();
        self.records.clear();
        self.rows = 0;
    }
}

/// The row of a page: whose guest virtual address, and whose other one.
type Near<T> = Vec<Option<((Option<Gva>, T), u64)>>;

/// Knows the pages of a vCPU's accesses.
pub(super) struct Expander {
    known: Arc<Mutex<Known>>,
    /// By guest physical address.
    near: Near<Gpa>,
    /// By host address.
    near_host: Near<Hva>,
}

/// The row in `near` of the pages of `pair`, or what `find` says.
#[inline]
fn near<T: Copy + PartialEq>(near: &mut Near<T>, pair: (Option<Gva>, T), find: impl FnOnce() -> u64) -> u64 {
    let slot = (pair.0.map_or(0, |gva| gva.0) >> x86::PAGE_SHIFT) as usize % NEAR;
    match near.get_mut(slot) {
        Some(Some((known, row))) if *known == pair => *row,
        Some(slot) => slot.insert((pair, find())).1,
        None => find(),
    }
}

impl Expander {
    pub fn new(known: Arc<Mutex<Known>>) -> Self {
        Self { known, near: vec![None; NEAR], near_host: vec![None; NEAR] }
    }

    /// Makes rows of `deeds`.
    pub fn expand(&mut self, deeds: &Deeds, rows: &mut Accesses) {
        let mut records = deeds.records.as_slice();
        for (moment, done) in &deeds.done {
            match (done, &deeds.map) {
                (Done::One(access), _) => self.push(*moment, access, rows),
                (Done::Recorded(origin, cr3, kinds, count), Some(map)) => {
                    let (these, rest) = records.split_at_checked(*count).unwrap_or_default();
                    let batch = Batch { origin: *origin, cr3: *cr3, records: these, map };
                    self.batch(*moment, &batch, *kinds, rows);
                    records = rest;
                }
                (Done::Recorded(..), None) => {}
            }
        }
    }

    fn batch(&mut self, moment: Moment, batch: &Batch<'_>, kinds: Kinds, rows: &mut Accesses) {
        let all = kinds.read && kinds.write;
        if all && batch.records.iter().all(|record| record.what.size() <= 8) {
            // Each record is a row.
            for (seq, record) in (moment.seq..).zip(batch.records) {
                let (gva, hva) = (Gva(record.gva).page(), Hva(record.hva));
                let page = near(&mut self.near_host, (Some(gva), hva.page()), || {
                    let gpa = batch.map.gpa_of(hva.page()).unwrap_or_default();
                    lock(&self.known).row((Some(gva), gpa), seq, Some(hva))
                });
                rows.push_page(page);
            }
            return rows.extend(moment, batch);
        }
        let wanted = batch.accesses().filter(|access| super::wanted(kinds, access.kind.is_write()));
        for (seq, access) in (moment.seq..).zip(wanted) {
            self.push(Moment { seq, ..moment }, &access, rows);
        }
    }

    #[inline]
    fn push(&mut self, moment: Moment, access: &Access, rows: &mut Accesses) {
        // Those of devices are in a file of their own.
        let Agent::Vcpu { origin, cr3 } = &access.agent else { return };
        let pair = (access.gva.map(Gva::page), access.gpa.page());
        let page = near(&mut self.near, pair, || lock(&self.known).row(pair, moment.seq, access.hva));
        rows.push_page(page);
        rows.push(moment, access, origin, *cr3);
    }
}

/// Accesses of devices.
#[derive(Default)]
pub(super) struct DeviceDeeds(Vec<(Moment, &'static str, Access)>);

impl DeviceDeeds {
    /// Adds one by `device`.
    pub fn one(&mut self, moment: Moment, device: &'static str, access: &Access) {
        self.0.push((moment, device, *access));
    }

    /// Makes rows of them.
    pub fn expand(&self, known: &Mutex<Known>, rows: &mut Transfers) {
        for (moment, device, access) in &self.0 {
            let page = lock(known).row((None, access.gpa.page()), moment.seq, access.hva);
            rows.push(*moment, access, device, page);
        }
    }
}

impl Lot for DeviceDeeds {
    type Rows = Transfers;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }
}

/// Rows that are there already.
impl Lot for Pages {
    type Rows = Self;

    fn len(&self) -> usize {
        super::rows::Rows::len(self)
    }

    fn clear(&mut self) {
        super::rows::Rows::clear(self);
    }
}
