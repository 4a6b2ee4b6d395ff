//! What translated code reaches through RSP: one mapping a vCPU.
//!
//! While translated code runs RSP is the address of a [`Frame`]. Below it lies a small stack (calls of thunks, and
//! signal handlers that do not ask for the alternate one); behind it, at fixed distances, the jump cache and the
//! slots in which memory accesses remember their TLB entry. So all of it is reached by a displacement, and takes no
//! register.
//!
//! Status flags are kept in the form that LAHF and SETO make and SAHF takes: see `host::alu`.

use crate::legacy::Bounds;
use crate::stats::Inline;
use crate::thunks::Crossing;
use cpu::hooks::Kick;
use host::signal::Landing;
use memory::tlb::View;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of stack below the frame.
const STACK: usize = 64 << 10;
/// Entries of the jump cache: a power of two. GCC's `cc1` alone goes to some 40,000 places.
const JUMPS: usize = 1 << 17;
/// What [`Frame::jump_mask`] holds to find them: the entry for an address is eight times its masked bits away.
const JUMP_MASK: u64 = (JUMPS as u64 - 1) << 1;
/// What [`Frame::poll`] holds to make the next poll fault: no canonical address.
const KICKED: u64 = 1 << 63;

/// See the module. All addresses that translated code uses are offsets in here; what it uses most comes first, since
/// small displacements make short instructions.
#[derive(Debug)]
#[repr(C)]
pub struct Frame {
    /// Where the signal handler notes faults. First: its address is RSP.
    pub landing: Landing,
    /// Guest registers that have no host register: see `regs`.
    pub homes: [u64; 3],
    /// Guest virtual address of the first byte of the page whose code is running.
    pub base: u64,
    /// Status flags, as LAHF and SETO leave them in AX.
    pub flags: u64,
    /// Polls load from this address. Written by other threads.
    pub poll: AtomicU64,
    /// Selects the jump cache's entry by an address, see [`TAGS`]. Other threads set it to 0, so that every look-up
    /// misses.
    pub jump_mask: AtomicU64,
    /// The MMU's fetch stamp: what an address is combined with to make the tag of a jump cache entry.
    pub stamp: u64,
    /// The site that left translated code.
    pub site: u32,
    /// Which recipe makes the flags where several ways meet: its number, or 0 if they are in `flags`.
    pub recipe: u32,
    /// What a register holds at the end of a run: see `translate::runs`.
    pub bound: u64,
    /// Addends of groups of accesses: see `translate::groups`.
    pub addends: [u64; crate::translate::groups::KEPT],
    /// Base of FS.
    pub fs: u64,
    /// Base of GS.
    pub gs: u64,
    /// Mask of the current TLB table, see `memory::tlb::View`.
    pub tlb_mask: u64,
    /// An address: of the access that missed, or the tag with which code is entered.
    pub address: u64,
    /// Why translated code was left.
    pub reason: u32,
    /// For alignment.
    pub reserved: u32,
    /// The vCPU's general registers.
    pub registers: u64,
    /// The vCPU's requests, see `cpu::hooks::Signals`.
    pub requests: u64,
    /// The vCPU's vector state.
    pub vector: u64,
    /// A byte that is not zero when code was overwritten, see `memory::Mmu::code_modified`.
    pub overwritten: u64,
    /// `extern "sysv64" fn(*const Cpu) -> u64`: the time-stamp counter.
    pub time: u64,
    /// The TLB's tables for a supervisor with AC clear, and with it set.
    pub tables: [View; 2],
    /// Where SYSCALL and SYSRET lead.
    pub crossings: [Crossing; 2],
    /// RSP of the caller.
    pub host_rsp: u64,
    /// Where to enter.
    pub target: u64,
    /// For the length of one instruction.
    pub scratch: u64,
    /// For the length of a thunk.
    pub saved: u64,
    /// General registers during a call into Rust.
    pub kept: [u64; 5],
    /// How many elements of a string are left.
    pub left: u64,
    /// Where to go on behind a site.
    pub behind: u64,
    /// Status flags at a fault that the host raised.
    pub fault_flags: u64,
    /// What translated code counts, if it does.
    pub inline: Inline,
    /// How many instructions may be executed after the running block, where they are counted.
    pub budget: u64,
    /// Where the next record goes: see `record`.
    pub records: u64,
    /// Guest virtual address of the access of which one is made.
    pub accessed: u64,
    /// Not zero: SYSCALL or SYSRET has been executed.
    pub crossed: u32,
    /// Not zero: the vector registers and MXCSR are the guest's.
    pub vector_live: u32,
    /// Not zero: the x87 registers are the guest's.
    pub x87_live: u32,
    /// The host's MXCSR.
    pub host_mxcsr: u32,
    /// What `poll` points to when nothing is wanted.
    pub quiet: u32,
    /// Not zero: not in 64-bit mode.
    pub legacy: u32,
    /// What the translator knows of the access of which a record is made.
    pub what: u32,
    /// For alignment.
    pub reserved_too: u32,
    /// ES, CS, SS, DS, FS and GS, for who is not in 64-bit mode.
    pub segments: [Bounds; 6],
}

/// Distance of the jump cache from the frame. An entry is a tag and a host address, so that one cache line has both.
pub const TAGS: usize = 4096;
/// Distance of the first entry's host address.
pub const HOSTS: usize = TAGS + 8;
/// Distance of the table for what was pushed out of the jump cache, which is asked second: the entry for the same address
/// is as far behind its beginning.
pub const VICTIMS: usize = TAGS + JUMPS * 16;
/// Distance of the sites' slots from the frame: four bytes each.
pub const SLOTS: usize = VICTIMS + JUMPS * 16;

const _: () = assert!(size_of::<Frame>() <= TAGS && STACK.is_multiple_of(Landing::ALIGN));

/// A tag that no look-up finds: entry 0 is never used, and this is not an address whose entry is another.
const NO_TAG: u64 = 0;

/// Owns the mapping. Shared with whoever interrupts the vCPU.
#[derive(Debug)]
pub struct FrameMemory {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory. What other threads touch of it is atomic.
unsafe impl Send for FrameMemory {}
// SAFETY: as above; everything else is reached only by the thread of the vCPU.
unsafe impl Sync for FrameMemory {}

impl FrameMemory {
    /// A frame with room for `sites` slots.
    ///
    /// # Errors
    /// No memory.
    pub fn new(sites: usize) -> Result<Arc<Self>, host::Error> {
        let len = (STACK + SLOTS + sites * 4).next_multiple_of(4096);
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing object.
        let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, flags) };
        let start = start.ok().and_then(|start| NonNull::new(start.cast()));
        let start = start.ok_or(host::Error::CodeMemory(rustix::io::Errno::NOMEM.into()))?;
        Ok(Arc::new(Self { start, len }))
    }

    /// The frame's address: RSP of translated code.
    #[inline(always)]
    #[must_use]
    pub fn frame(&self) -> *mut Frame {
        // SAFETY: the mapping is longer than the stack.
        unsafe { self.start.as_ptr().add(STACK).cast() }
    }

    /// The entries for `address`, of the jump cache and of what was pushed out of it: a tag, and behind that the host
    /// address.
    #[inline(always)]
    fn jumps(&self, address: u64) -> [*mut [u64; 2]; 2] {
        // SAFETY: the tables lie in the mapping, and the mask keeps the entry within them.
        [TAGS, VICTIMS]
            .map(|table| unsafe { self.frame().cast::<u8>().add(table + 8 * (address & JUMP_MASK) as usize).cast() })
    }

    /// The host address of the code for `address` under `stamp`, if the jump cache knows.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, address: u64, stamp: u64) -> Option<u64> {
        // SAFETY: the entries are in the mapping; only this thread uses them.
        let [first, second] = self.jumps(address).map(|entry| unsafe { &mut *entry });
        if second[0] == address ^ stamp {
            // Not all code asks a second time.
            std::mem::swap(first, second);
        }
        (first[0] == address ^ stamp && address & JUMP_MASK != 0).then_some(first[1])
    }

    /// Puts code into the jump cache. Nothing goes to entry 0: that is where all look-ups go that are to miss.
    pub fn insert(&self, address: u64, stamp: u64, host: u64) {
        if address & JUMP_MASK != 0 {
            // SAFETY: as above.
            let [first, second] = self.jumps(address).map(|entry| unsafe { &mut *entry });
            if first[0] != address ^ stamp {
                *second = *first;
            }
            *first = [address ^ stamp, host];
        }
    }

    /// Takes the entries for `address` out of the jump cache.
    pub fn forget(&self, address: u64) {
        for entry in self.jumps(address) {
            // SAFETY: as above.
            unsafe { (*entry)[0] = NO_TAG };
        }
    }

    /// Empties the jump cache.
    pub fn forget_jumps(&self) {
        self.forget_jumps_to(0..u64::MAX);
    }

    /// Takes out of the jump cache what leads to code at `hosts`.
    pub fn forget_jumps_to(&self, hosts: Range<u64>) {
        for entry in (0..JUMPS as u64).flat_map(|i| self.jumps(i << 1)) {
            // SAFETY: as above.
            let [tag, host] = unsafe { &mut *entry };
            if *tag != NO_TAG && hosts.contains(host) {
                *tag = NO_TAG;
            }
        }
    }

    /// Lets the site remember the TLB entry at `offset` bytes into its table.
    pub fn remember(&self, site: u32, offset: u32) {
        let at = STACK + SLOTS + site as usize * 4;
        if at + 4 <= self.len {
            // SAFETY: the slot is in the mapping; only this thread uses it.
            unsafe { *self.start.as_ptr().add(at).cast::<u32>() = offset };
        }
    }

    /// Takes back what [`Kick::kick`] did; whether it did anything. What it was done for is to be looked at afterwards.
    #[inline]
    pub fn calm(&self) -> bool {
        // SAFETY: the field lies in the mapping and is only ever reached as an atomic.
        let kicked = unsafe { (*self.frame()).poll.load(Ordering::Relaxed) } == KICKED;
        if kicked {
            self.start();
        }
        kicked
    }

    /// Lets polls and look-ups find what they usually do.
    pub fn start(&self) {
        let frame = self.frame();
        // SAFETY: the fields lie in the mapping and are only ever reached as atomics.
        let (poll, mask) = unsafe { (&(*frame).poll, &(*frame).jump_mask) };
        // SAFETY: only the address is taken.
        let quiet = unsafe { &raw const (*frame).quiet };
        poll.store(quiet.addr() as u64, Ordering::SeqCst);
        mask.store(JUMP_MASK, Ordering::SeqCst);
    }
}

impl Kick for FrameMemory {
    /// Makes translated code leave at its next poll or look-up.
    fn kick(&self) {
        let frame = self.frame();
        // SAFETY: the fields lie in the mapping and are only ever reached as atomics.
        let (poll, mask) = unsafe { (&(*frame).poll, &(*frame).jump_mask) };
        poll.store(KICKED, Ordering::SeqCst);
        mask.store(0, Ordering::SeqCst);
    }
}

impl Drop for FrameMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and whoever reaches into it holds the `Arc`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_found_under_their_stamp_only() {
        let frame = FrameMemory::new(16).unwrap();
        frame.insert(0x1234, 7 << 40, 99);
        assert_eq!(frame.find(0x1234, 7 << 40), Some(99));
        assert_eq!(frame.find(0x1234, 8 << 40), None);
        assert_eq!(frame.find(0x1234 + 2 * JUMPS as u64, 7 << 40), None);
        assert_eq!(frame.find(0x1235, 7 << 40), None, "neighbours share an entry");
        frame.insert(2 * JUMPS as u64, 0, 1);
        assert_eq!(frame.find(2 * JUMPS as u64, 0), None, "entry 0 stays empty");
        frame.insert(0x1236, 7 << 40, 100);
        frame.forget_jumps_to(99..100);
        assert_eq!([0x1234, 0x1236].map(|address| frame.find(address, 7 << 40)), [None, Some(100)]);
        frame.forget_jumps();
        assert_eq!(frame.find(0x1236, 7 << 40), None);
    }

    #[test]
    fn a_jump_that_was_pushed_out_is_found_until_the_next_one() {
        let frame = FrameMemory::new(16).unwrap();
        let addresses = [0, 1, 2].map(|n| 0x1234 + n * 2 * JUMPS as u64);
        let found = || addresses.map(|address| frame.find(address, 0));
        for (n, address) in addresses.into_iter().enumerate() {
            frame.insert(address, 0, n as u64);
            frame.insert(address, 0, n as u64);
        }
        assert_eq!(found(), [None, Some(1), Some(2)]);
        frame.insert(addresses[2], 0, 3);
        assert_eq!(found(), [None, Some(1), Some(3)]);
        frame.forget(addresses[0]);
        assert_eq!(found(), [None; 3]);
    }

    #[test]
    fn a_kick_is_seen_and_taken_back() {
        let frame = FrameMemory::new(16).unwrap();
        frame.start();
        // SAFETY: the mapping is alive.
        let poll = || unsafe { (*frame.frame()).poll.load(Ordering::SeqCst) };
        let quiet = poll();
        frame.kick();
        assert_eq!(poll(), KICKED);
        assert!(frame.calm() && !frame.calm());
        assert_eq!(poll(), quiet);
    }
}
