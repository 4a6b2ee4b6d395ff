//! What this process may still ask of the host once a guest runs: files by Landlock, system calls by seccomp; no new
//! privileges, no core dump, a bounded address space.
//!
//! Both kinds of rule are those of a thread and of the threads that it starts, so each enters the jail at its beginning, in
//! the role that it has ([`enter`]). Threads share their memory all the same: the jail stands between the process and the
//! host, not between threads.
//!
//! Sources: `landlock(7)`, `seccomp(2)`, `setrlimit(2)`.

mod calls;
#[cfg(test)]
mod tests;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::set_no_new_privs;
use seccompiler::BpfProgram;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;

/// The newest rules of Landlock that are known here. Kernels that know fewer keep those.
const NEWEST: ABI = ABI::V6;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs the guest's code: memory, time, and writing to what is open.
    Vcpu,
    /// Does the guest's input and output, or writes what the lens has seen: opens files, too, and starts threads.
    Io,
    /// Talks with a person or a program: accepts connections and sets up terminals, too.
    Control,
}

/// The files that may still be opened by name.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Files that may be read. Those that are not there are left out.
    pub read: Vec<PathBuf>,
    /// Folders in which and below which files may be made, written and removed.
    pub write: Vec<PathBuf>,
}

/// Why there is no jail.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A right could not be given up, or a limit not be set.
    #[error("{0}: {1}")]
    Limit(&'static str, #[source] io::Error),
    /// Landlock does not take the rules.
    #[error("Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// A filter of system calls cannot be made, or the host does not take it.
    #[error("seccomp: {0}")]
    Filter(String),
    /// No thread could be started to try the rules.
    #[error("a thread cannot be started: {0}")]
    Thread(#[source] io::Error),
}

/// The rules by which threads enter.
struct Rules {
    files: RulesetCreated,
    vcpu: BpfProgram,
    io: BpfProgram,
    control: BpfProgram,
}

static RULES: OnceLock<Rules> = OnceLock::new();

/// Makes the rules, and tries them on a thread. To be called once, before there are other threads: those that are started
/// from then on are jailed as soon as they [`enter`], and none can gain privileges or leave a core dump any more.
///
/// Gives whether files are kept from it: a host without Landlock does not do that.
///
/// # Errors
/// The host refuses, or has no seccomp.
pub fn prepare(files: &Files) -> Result<bool, JailError> {
    set_no_new_privs(true).map_err(|error| JailError::Limit("privileges cannot be given up", error.into()))?;
    limit(Resource::Core, 0).map_err(|error| JailError::Limit("core dumps cannot be turned off", error))?;
    let filter = |role| calls::filter(role).map_err(|error| JailError::Filter(error.to_string()));
    let (vcpu, io, control) = (filter(Role::Vcpu)?, filter(Role::Io)?, filter(Role::Control)?);
    let rules = RULES.get_or_init({
        let files = landlocked(files)?;
        || Rules { files, vcpu, io, control }
    });
    let try_it = || rules.apply(Role::Vcpu);
    let tried = thread::Builder::new().name("jail".into()).spawn(try_it).map_err(JailError::Thread)?;
    tried.join().unwrap_or_else(|_| Err(JailError::Filter("the trial ended in a panic".to_owned())))
}

/// Has the calling thread, and those that it starts, do no more than what `role` says. Nothing is changed without
/// [`prepare`].
///
/// # Panics
/// The host refuses, though it did not before.
pub fn enter(role: Role) {
    if let Some(rules) = RULES.get()
        && let Err(error) = rules.apply(role)
    {
        panic!("a thread cannot be jailed: {error}");
    }
}

/// Whether threads are jailed: whether [`prepare`] has made rules.
#[must_use]
pub fn entered() -> bool {
    RULES.get().is_some()
}

/// Bounds the process's address space to `headroom` bytes more than it has.
///
/// # Errors
/// The limit cannot be read or set.
pub fn limit_address_space(headroom: u64) -> Result<(), JailError> {
    let used = || -> io::Result<u64> {
        let text = std::fs::read_to_string("/proc/self/statm")?;
        let pages = text.split(' ').next().and_then(|pages| pages.parse::<u64>().ok());
        Ok(pages.ok_or(io::ErrorKind::InvalidData)?.saturating_mul(rustix::param::page_size() as u64))
    };
    used()
        .and_then(|used| limit(Resource::As, used.saturating_add(headroom)))
        .map_err(|error| JailError::Limit("address space cannot be bounded", error))
}

/// Lowers a limit, for good.
fn limit(resource: Resource, most: u64) -> io::Result<()> {
    let allowed = getrlimit(resource).maximum.map_or(most, |allowed| allowed.min(most));
    Ok(setrlimit(resource, Rlimit { current: Some(allowed), maximum: Some(allowed) })?)
}

/// Files as they may be used, and no new connections. Signals are left to the filters: kernels before 6.13 take threads of one
/// process for strangers.
fn landlocked(files: &Files) -> Result<RulesetCreated, JailError> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?;
    let read = path_beneath_rules(&files.read, AccessFs::ReadFile | AccessFs::ReadDir);
    let write = path_beneath_rules(&files.write, AccessFs::from_all(NEWEST) & !AccessFs::Execute);
    Ok(ruleset.add_rules(read)?.add_rules(write)?)
}

impl Rules {
    /// Gives whether files are kept.
    fn apply(&self, role: Role) -> Result<bool, JailError> {
        let files = self.files.try_clone().map_err(|error| JailError::Limit("the rules for files are gone", error))?;
        let kept = files.restrict_self()?.ruleset != RulesetStatus::NotEnforced;
        let filter = match role {
            Role::Vcpu => &self.vcpu,
            Role::Io => &self.io,
            Role::Control => &self.control,
        };
        seccompiler::apply_filter(filter).map_err(|error| JailError::Filter(error.to_string()))?;
        Ok(kept)
    }
}
