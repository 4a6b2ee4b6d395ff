//! Which parts of guest RAM hold decoded or translated code, and who wants to know when it is overwritten. The same way
//! vCPUs are told that observers want to see other accesses than before.
//!
//! Each 4 KiB page has a word of 64 bits, one a chunk of 64 bytes. The words live in zero-fill memory that comes on
//! demand (2 MiB of RAM share a host page of them), so RAM that holds no code costs nothing.
//!
//! How a write is noticed:
//! - a vCPU's store goes through its TLB, where the write comparator of a page with marked chunks carries the
//!   [`CODE`](crate::tlb::CODE) flag and so takes the slow path, which asks here;
//! - the page walker (accessed and dirty bits), loaders, debuggers and devices
//!   ([`PhysicalMap::write`](crate::PhysicalMap::write)) ask here directly.
//!
//! When a marked chunk is overwritten, the page's word is cleared and every vCPU is told the page's host address.
//! ROM needs none of this: the guest cannot write it.
//!
//! Marking a page changes the comparators of the vCPU that marks it. Another one may hold a plainly writable entry for
//! the page, through which it would store unnoticed. So a marking that finds the word zero is announced to the others.
//! Nobody waits for them. The vCPU that marks compares the bytes that it has decoded with those that are there after the
//! announcement, and so has what was stored before. Another vCPU that hears of the page protects it, and if it may have
//! stored there until then, says that the page's code is suspect, as if it had been overwritten. What it may have
//! stored through is known since the last time that it heard all announcements, also after entries were evicted.

use crate::ram::RamRegion;
use crate::{Gpa, Hva};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

/// log2 of the bytes in a chunk.
const CHUNK_SHIFT: u64 = 6;

/// What one vCPU has not yet heard of.
#[derive(Default)]
pub struct Notices {
    pending: AtomicBool,
    news: Mutex<News>,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices").field("pending", &self.pending).field("news", &self.news).finish_non_exhaustive()
    }
}

/// What a vCPU is told.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Host addresses of pages whose decoded code was overwritten, or may have been, each at least once.
    pub pages: Vec<Hva>,
    /// Host addresses of pages in which other vCPUs have found code, where there was none before.
    pub marked: BTreeSet<Hva>,
    /// Observers want to see other accesses than before.
    pub interest: bool,
}

impl Notices {
    /// Whether there is anything: a plain load.
    #[inline(always)]
    #[must_use]
    pub fn pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed)
    }

    /// What says so.
    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.pending
    }

    /// Takes all of it.
    #[must_use]
    pub fn take(&self) -> News {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        // Cleared under the lock, so that what is added later sets it again.
        self.pending.store(false, Ordering::Relaxed);
        std::mem::take(&mut news)
    }

    /// Takes the announcements alone. None that was made before a store of this vCPU's that another has not seen is
    /// missed.
    pub(crate) fn take_marked(&self) -> BTreeSet<Hva> {
        // Stores before this are seen by whoever announces something after the look at `pending`.
        fence(Ordering::SeqCst);
        if !self.pending() {
            return BTreeSet::new();
        }
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        let marked = std::mem::take(&mut news.marked);
        self.pending.store(*news != News::default(), Ordering::Relaxed);
        marked
    }

    /// Has `wake` called whenever there is something new, on the thread that says it. Once.
    pub(crate) fn set_wake(&self, wake: Box<dyn Fn() + Send + Sync>) {
        let _ = self.wake.set(wake);
    }

    fn add(&self, add: impl FnOnce(&mut News)) {
        let mut news = self.news.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut news);
        self.pending.store(true, Ordering::Release);
    }

    fn add_page(&self, page: Hva) {
        self.add(|News { pages, .. }| {
            // Stores in a row to one page are the common case.
            if pages.last() == Some(&page) {
                return;
            }
            // One that sleeps for long hears of each page more than once, but not without bound.
            if pages.len() == pages.capacity() && !pages.is_empty() {
                pages.sort_unstable();
                pages.dedup();
                pages.reserve(pages.len());
            }
            pages.push(page);
        });
    }
}

/// The bitmaps of one RAM region.
#[derive(Debug)]
struct Area {
    hva: Hva,
    gpa: Gpa,
    pages: u64,
    words: *mut AtomicU64,
}

// SAFETY: `words` points to atomics in a mapping that this value owns.
unsafe impl Send for Area {}
// SAFETY: as above; all access is atomic.
unsafe impl Sync for Area {}

impl Area {
    fn new(region: &RamRegion) -> Result<Self, rustix::io::Errno> {
        let pages = region.len >> x86::PAGE_SHIFT;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing object.
        let words = unsafe { mmap_anonymous(std::ptr::null_mut(), pages as usize * 8, prot, flags) }?;
        Ok(Self { hva: region.hva, gpa: region.gpa, pages, words: words.cast() })
    }

    fn word(&self, page: u64) -> Option<&AtomicU64> {
        // SAFETY: the index is below the number of words in the mapping, zero is a valid value, and the mapping
        // lives as long as `self`.
        (page < self.pages).then(|| unsafe { &*self.words.add(page as usize) })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and no reference into it outlives `self`.
        let _ = unsafe { munmap(self.words.cast(), self.pages as usize * 8) };
    }
}

/// The map of decoded code, shared by all vCPUs and devices.
#[derive(Debug)]
pub struct CodePages {
    areas: Vec<Area>,
    vcpus: RwLock<Vec<Weak<Notices>>>,
}

impl CodePages {
    pub(crate) fn new(regions: &[RamRegion]) -> Result<Self, rustix::io::Errno> {
        let areas = regions.iter().map(Area::new).collect::<Result<_, _>>()?;
        Ok(Self { areas, vcpus: RwLock::default() })
    }

    /// Registers a vCPU: from now on it hears of every page whose decoded code was overwritten, by whomever, and whenever
    /// observers want something else.
    #[must_use]
    pub fn subscribe(&self) -> Arc<Notices> {
        let notices = Arc::new(Notices::default());
        let mut vcpus = self.vcpus.write().unwrap_or_else(PoisonError::into_inner);
        vcpus.retain(|vcpu| vcpu.strong_count() > 0);
        vcpus.push(Arc::downgrade(&notices));
        notices
    }

    fn word(&self, hva: Hva) -> Option<&AtomicU64> {
        self.areas.iter().find_map(|area| area.word(hva.0.wrapping_sub(area.hva.0) >> x86::PAGE_SHIFT))
    }

    /// Whether the page of `hva` holds decoded code.
    #[must_use]
    pub fn marked(&self, hva: Hva) -> bool {
        self.word(hva).is_some_and(|word| word.load(Ordering::Acquire) != 0)
    }

    /// Whether any of `len` bytes at `hva`, within one page, lie in a chunk that holds decoded code.
    #[must_use]
    pub fn touches(&self, hva: Hva, len: u64) -> bool {
        self.word(hva).is_some_and(|word| word.load(Ordering::Acquire) & chunks(hva, len) != 0)
    }

    /// Marks the chunks of `len` bytes at `hva`, within one page. Whether the page held no code before, so that
    /// write comparators for it must change; false also where `hva` is not RAM.
    pub fn mark(&self, hva: Hva, len: u64) -> bool {
        self.word(hva).is_some_and(|word| word.fetch_or(chunks(hva, len), Ordering::AcqRel) == 0)
    }

    /// To be called after `len` bytes at `hva`, within one page, have changed. If they touch decoded code, the
    /// page's marks are cleared and all vCPUs are told. Whether that was so.
    pub fn written(&self, hva: Hva, len: u64) -> bool {
        let Some(word) = self.word(hva) else { return false };
        if word.load(Ordering::Acquire) & chunks(hva, len) == 0 {
            return false;
        }
        word.store(0, Ordering::Release);
        self.tell(|notices| notices.add_page(hva.page()));
        true
    }

    /// Whether there are several vCPUs.
    pub(crate) fn shared(&self) -> bool {
        self.vcpus.read().unwrap_or_else(PoisonError::into_inner).len() > 1
    }

    fn tell(&self, tell: impl Fn(&Notices)) {
        let vcpus = self.vcpus.read().unwrap_or_else(PoisonError::into_inner);
        for notices in vcpus.iter().filter_map(Weak::upgrade) {
            tell(&notices);
            // One that is alone is the one that says it.
            if let Some(wake) = notices.wake.get().filter(|_| vcpus.len() > 1) {
                wake();
            }
        }
    }

    fn tell_others(&self, but: &Notices, tell: impl Fn(&Notices)) {
        self.tell(|notices| {
            if !std::ptr::eq(notices, but) {
                tell(notices);
            }
        });
    }

    /// To be called by the vCPU that `by` belongs to after [`CodePages::mark`] has said true: from the return on, no store
    /// to the page of `hva` by another vCPU stays unnoticed, but for those that can be read by then.
    pub(crate) fn announce(&self, hva: Hva, by: &Notices) {
        self.tell_others(by, |notices| {
            notices.add(|news| {
                news.marked.insert(hva.page());
            });
        });
        fence(Ordering::SeqCst);
    }

    /// Tells all vCPUs but the one that `by` belongs to that this may have overwritten code in the page of `hva`.
    pub(crate) fn suspect(&self, hva: Hva, by: &Notices) {
        self.tell_others(by, |notices| notices.add_page(hva.page()));
    }

    /// Has every vCPU ask its observer anew what it wants to see, before its next instruction.
    pub(crate) fn interest_changed(&self) {
        self.tell(|notices| notices.add(|news| news.interest = true));
    }

    /// As [`CodePages::written`] for any number of bytes, which may cross pages but not regions.
    pub(crate) fn written_range(&self, hva: Hva, len: u64) {
        let mut done = 0;
        while done < len {
            let at = hva.wrapping_add(done);
            let piece = (x86::PAGE_SIZE - at.offset()).min(len - done);
            self.written(at, piece);
            done += piece;
        }
    }

    /// The marked chunks of the page at `gpa`, bit 0 being the lowest 64 bytes: for inspection.
    #[must_use]
    pub fn bitmap(&self, gpa: Gpa) -> u64 {
        let word = |area: &Area| {
            area.word(gpa.0.wrapping_sub(area.gpa.0) >> x86::PAGE_SHIFT).map(|word| word.load(Ordering::Acquire))
        };
        self.areas.iter().find_map(word).unwrap_or(0)
    }
}

/// The bits of the chunks that `len` bytes at `hva` touch; what lies beyond the page is left out.
fn chunks(hva: Hva, len: u64) -> u64 {
    if len == 0 {
        return 0;
    }
    let first = hva.offset() >> CHUNK_SHIFT;
    let last = (hva.offset() + (len - 1)).min(x86::PAGE_OFFSET) >> CHUNK_SHIFT;
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> (CodePages, Hva) {
        let hva = Hva(0x7000_0000_0000);
        let region = RamRegion { gpa: Gpa(0), len: 64 << 30, hva };
        (CodePages::new(&[region]).expect("bitmaps"), hva)
    }

    #[test]
    fn chunk_masks() {
        assert_eq!(chunks(Hva(0x1000), 0), 0);
        assert_eq!(chunks(Hva(0x1000), 1), 1);
        assert_eq!(chunks(Hva(0x103f), 2), 3);
        assert_eq!(chunks(Hva(0x1fff), 1), 1 << 63);
        assert_eq!(chunks(Hva(0x1fff), 2), 1 << 63);
        assert_eq!(chunks(Hva(0x1000), 4096), u64::MAX);
    }

    #[test]
    fn only_writes_to_marked_chunks_count() {
        let (code, hva) = pages();
        let notices = code.subscribe();
        assert!(code.mark(hva.wrapping_add(0x5040), 3));
        assert!(!code.mark(hva.wrapping_add(0x50c0), 3), "the page was marked already");
        assert!(!code.written(hva.wrapping_add(0x5000), 64));
        assert!(!code.written(hva.wrapping_add(0x4000), 4096));
        assert!(!notices.pending());
        assert!(code.written(hva.wrapping_add(0x507f), 1));
        assert!(notices.pending() && !code.marked(hva.wrapping_add(0x5000)));
        assert_eq!(notices.take().pages, [hva.wrapping_add(0x5000)]);
        assert!(!notices.pending() && notices.take() == News::default());
    }

    #[test]
    fn what_is_not_ram_is_ignored() {
        let (code, hva) = pages();
        assert!(!code.mark(hva.wrapping_add(64 << 30), 1));
        assert!(!code.mark(Hva(hva.0 - 1), 1));
        assert!(!code.written(Hva(0x1234), 1));
    }

    #[test]
    fn every_vcpu_hears() {
        let (code, hva) = pages();
        let (a, b) = (code.subscribe(), code.subscribe());
        code.mark(hva.wrapping_add((64 << 30) - 1), 1);
        code.written_range(hva.wrapping_add((64 << 30) - 8192), 8192);
        assert_eq!(a.take(), b.take());
        code.interest_changed();
        let news = News { interest: true, ..News::default() };
        assert!(a.pending() && a.take() == news && b.take() == news);
        drop(a);
        code.mark(hva, 1);
        code.written_range(hva, 8);
        assert_eq!(b.take().pages, [hva]);
    }
}
