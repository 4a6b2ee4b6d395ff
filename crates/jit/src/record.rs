//! The records that translated code makes of its accesses, where somebody wants to see all of them (`Mode::records`).
//!
//! Each access appends a [`Record`] where the frame says, without looking whether there is room: before code is entered,
//! its budget of instructions is cut to what there is room for. What was appended is handed over whenever translated code
//! has been left, so that it comes before whatever the interpreter accesses then. If that executes an instruction from its
//! start which was executed in part, its records are taken back.

use crate::frame::Frame;
use crate::sites::Site;
use cpu::Cpu;
use memory::Origin;
use memory::observe::Record;

/// Records that there is room for: they stay in the host's second-level cache.
const ROOM: usize = 4096;
/// The most that an instruction makes: CMPXCHG16B reads and writes two times eight bytes, a VEX move four.
const MOST: usize = 4;

/// The records of a vCPU that are not handed over yet.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    /// [`ROOM`] of them, or none before they are needed. Their address does not change.
    records: Vec<Record>,
    /// How many instructions the vCPU had executed when its budget was 0.
    stop: u64,
}

impl Recorder {
    /// Prepares `frame`, whose vCPU has executed so many `instructions`. Gives after how many it is to stop.
    pub fn prepare(&mut self, frame: &mut Frame, instructions: u64, stop_at: Option<u64>) -> u64 {
        self.records.resize(ROOM, Record::default());
        frame.records = self.records.as_mut_ptr().addr() as u64;
        let room = instructions.wrapping_add((ROOM / MOST) as u64);
        self.stop = stop_at.map_or(room, |stop| stop.min(room));
        self.stop
    }

    /// Hands over what was recorded, but for what the instruction of `anew` did, which will be executed anew. Gives whether
    /// it had done anything.
    pub fn settle(&mut self, cpu: &Cpu, frame: &mut Frame, anew: Option<&Site>) -> bool {
        let start = self.records.as_mut_ptr().addr() as u64;
        let count = frame.records.saturating_sub(start) as usize / size_of::<Record>();
        frame.records = start;
        let all = self.records.get(..count).unwrap_or_default();
        // Budget and what is left of the block tell what was executed from whatever came before it.
        let same = |record: &&Record, site: &Site| {
            record.budget == frame.budget as u32
                && (record.what.offset(), record.what.left()) == (site.offset, site.left)
        };
        let undone = anew.map_or(0, |site| all.iter().rev().take_while(|record| same(record, site)).count());
        let records = all.get(..count - undone).unwrap_or_default();
        if !records.is_empty() {
            cpu.mmu.recorded(Origin { instructions: self.stop, ..cpu.origin() }, records);
        }
        undone != 0
    }
}
