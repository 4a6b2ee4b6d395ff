//! Faults of guest instructions that run on the host: from a signal to a value.
//!
//! A stub (see [`crate::native`]) keeps the address of its [`Frame`] in R11 from its first to its last instruction.
//! When the host raises SIGSEGV, SIGBUS, SIGFPE or SIGILL with the instruction pointer in a registered region, the
//! handler writes the host's exception vector to the frame and goes on at the frame's `resume` address, which is just
//! behind the guest's instruction: the registers are as that instruction left them, that is as they were, and the stub
//! stores them back. Everything the handler touches is the frame, the signal's own context and atomics, so it is
//! async-signal-safe and knows nothing of threads.
//!
//! Translated code has no register to spare: while it runs RSP is the address of a [`Landing`], or a little less in code
//! that it has called, and its faults are noted there with the place where they happened; the code at `resume` saves the
//! guest's registers, which the kernel restores as they were.
//!
//! Any other such signal goes to whoever handled it before, or kills the process as it would have done.
//! The handler runs on the alternate stack that the standard library gives every thread.

use crate::Error;
use std::ffi::{c_int, c_void};
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What a stub and its caller, and the signal handler, share.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Frame {
    /// Address of the memory operand.
    pub memory: *mut u8,
    /// Status flags in and out.
    pub flags: u64,
    /// Where to go on after a fault.
    pub resume: usize,
    /// Zero, or one more than the vector of the exception that the host raised.
    pub fault: u32,
    /// The MXCSR to leave behind.
    pub host_mxcsr: u32,
}

/// Where a fault in translated code is noted: at RSP, or the first page behind it.
#[derive(Debug)]
#[repr(C)]
pub struct Landing {
    /// Where to go on after a fault.
    pub resume: u64,
    /// The address of the instruction that faulted.
    pub pc: u64,
    /// The vector of the exception that the host raised, and above its eight bits the address of the last page fault:
    /// one word, since all that comes behind this is reached by displacements that are better short.
    pub fault: u64,
}

impl Landing {
    /// Landings are at multiples of this.
    pub const ALIGN: usize = 4096;

    /// The vector of the exception that the host raised.
    #[must_use]
    pub fn vector(&self) -> u8 {
        self.fault as u8
    }

    /// The address of the last page fault in this process.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.fault >> 8
    }
}

/// What runs in a region of executable memory, which tells what becomes of its faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Stubs: R11 is the address of their [`Frame`].
    Stubs,
    /// Translated code: RSP is the address of a [`Landing`].
    Translated,
}

/// As many vCPUs (and, in tests, threads) as can have executable memory at once.
const REGIONS: usize = 1024;

/// First and last-plus-one address of each region; a start of 0 is a free slot, 1 one that is being filled.
static STARTS: [AtomicUsize; REGIONS] = [const { AtomicUsize::new(0) }; REGIONS];
static ENDS: [AtomicUsize; REGIONS] = [const { AtomicUsize::new(0) }; REGIONS];
/// Whether a region holds translated code.
static TRANSLATED: [AtomicBool; REGIONS] = [const { AtomicBool::new(false) }; REGIONS];
/// No slot at or above this has ever been used.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Keeps a region of executable memory registered.
#[derive(Debug)]
pub(crate) struct Region(usize);

impl Region {
    /// Registers `len` bytes at `start`, and installs the handlers if this is the first region.
    pub fn new(start: usize, len: usize, kind: Kind) -> Result<Self, Error> {
        install()?;
        for (slot, ((first, end), translated)) in STARTS.iter().zip(&ENDS).zip(&TRANSLATED).enumerate() {
            if first.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                translated.store(kind == Kind::Translated, Ordering::Relaxed);
                end.store(start.saturating_add(len), Ordering::Relaxed);
                first.store(start, Ordering::Release);
                USED.fetch_max(slot + 1, Ordering::Release);
                return Ok(Self(slot));
            }
        }
        Err(Error::Regions(REGIONS))
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let (Some(first), Some(end)) = (STARTS.get(self.0), ENDS.get(self.0)) {
            end.store(0, Ordering::Relaxed);
            first.store(0, Ordering::Release);
        }
    }
}

/// What `pc` belongs to.
fn kind(pc: usize) -> Option<Kind> {
    let used = USED.load(Ordering::Acquire);
    let mut regions = STARTS.iter().zip(&ENDS).zip(&TRANSLATED).take(used);
    let (_, translated) =
        regions.find(|((start, end), _)| start.load(Ordering::Acquire) <= pc && pc < end.load(Ordering::Relaxed))?;
    Some(if translated.load(Ordering::Relaxed) { Kind::Translated } else { Kind::Stubs })
}

/// The signals that a guest's instruction can raise, and who handled them before.
static PREVIOUS: [(c_int, OnceLock<libc::sigaction>); 4] = [
    (libc::SIGSEGV, OnceLock::new()),
    (libc::SIGBUS, OnceLock::new()),
    (libc::SIGFPE, OnceLock::new()),
    (libc::SIGILL, OnceLock::new()),
];

/// Installs the handlers, once.
fn install() -> Result<(), Error> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        for (signal, previous) in &PREVIOUS {
            // SAFETY: an all-zero sigaction is a valid one.
            let (mut old, mut new): (libc::sigaction, libc::sigaction) =
                unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
            new.sa_sigaction = handle as *const () as usize;
            new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            let failed = || io::Error::last_os_error().raw_os_error().unwrap_or(0);
            // SAFETY: both pointers are to live sigactions. The old one is stored before the handler can run.
            unsafe {
                if libc::sigaction(*signal, std::ptr::null(), &raw mut old) != 0 {
                    return Err(failed());
                }
                let _ = previous.set(old);
                if libc::sigaction(*signal, &raw const new, std::ptr::null_mut()) != 0 {
                    return Err(failed());
                }
            }
        }
        Ok(())
    });
    done.map_err(|code| Error::Signal(io::Error::from_raw_os_error(code)))
}

/// The handler.
extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a ucontext to a handler that was installed with SA_SIGINFO.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let pc = registers[libc::REG_RIP as usize] as usize;
    let region = kind(pc);
    if region == Some(Kind::Translated) {
        let stack = registers[libc::REG_RSP as usize] as usize;
        let at = stack.next_multiple_of(Landing::ALIGN);
        // SAFETY: in translated code RSP is the address of its landing, which lives as long as the code, or less than a
        // page below.
        let landing = unsafe { &mut *(at as *mut Landing) };
        landing.pc = pc as u64;
        let (vector, address) = (registers[libc::REG_TRAPNO as usize], registers[libc::REG_CR2 as usize]);
        landing.fault = (vector & 0xff | address << 8).cast_unsigned();
        registers[libc::REG_RSP as usize] = at as i64;
        registers[libc::REG_RIP as usize] = landing.resume.cast_signed();
        return;
    }
    if region == Some(Kind::Stubs) {
        let frame = registers[libc::REG_R11 as usize] as usize as *mut Frame;
        // SAFETY: in a stub R11 is the address of its frame, which its caller keeps alive; the caller reads it only
        // after the stub has returned.
        let frame = unsafe { &mut *frame };
        // A fault behind the guest's instruction would be a bug here: let it be seen and not loop.
        if pc < frame.resume {
            frame.fault = u32::try_from(registers[libc::REG_TRAPNO as usize]).unwrap_or(0).wrapping_add(1);
            registers[libc::REG_RIP as usize] = frame.resume as i64;
            return;
        }
    }
    chain(signal, info, context);
}

/// Hands a signal on to whoever handled it before.
fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let previous = PREVIOUS.iter().find(|(number, _)| *number == signal).and_then(|(_, previous)| previous.get());
    match previous {
        Some(old) if old.sa_sigaction != libc::SIG_DFL && old.sa_sigaction != libc::SIG_IGN => {
            if old.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: with SA_SIGINFO the field is a function of this type.
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                    unsafe { std::mem::transmute(old.sa_sigaction) };
                handler(signal, info, context);
            } else {
                // SAFETY: without SA_SIGINFO the field is a function of this type.
                let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(old.sa_sigaction) };
                handler(signal);
            }
        }
        // The default action, by running into the same fault without a handler. (Ignoring a fault is not possible.)
        _ => {
            // SAFETY: an all-zero sigaction is valid and means SIG_DFL; sigaction is async-signal-safe.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
            }
        }
    }
}
