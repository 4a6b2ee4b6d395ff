//! Which system calls each role may make. All others fail with EPERM: a library that tries something it can do without goes
//! on, and what must not be does not happen.
//!
//! Left out: which thread `clone3` starts and with which rights, which its arguments do not show. Nothing new can be executed
//! all the same.

use crate::Role;
use libc::*;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

#[rustfmt::skip]
/// Memory, time, threads that wait for each other, signals, and reading and writing what is open.
const ALL: &[c_long] = &[
    SYS_arch_prctl, SYS_brk, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_close, SYS_exit,
    SYS_exit_group, SYS_fallocate, SYS_fdatasync, SYS_fstat, SYS_fsync, SYS_ftruncate, SYS_futex, SYS_futex_waitv,
    SYS_getcpu, SYS_getpid, SYS_getrandom, SYS_getrusage, SYS_gettid, SYS_gettimeofday, SYS_lseek, SYS_madvise,
    SYS_membarrier, SYS_mincore, SYS_mremap, SYS_munmap, SYS_nanosleep, SYS_poll, SYS_ppoll, SYS_pread64, SYS_preadv,
    SYS_pwrite64, SYS_pwritev, SYS_read, SYS_readv, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction,
    SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigtimedwait, SYS_sched_getaffinity, SYS_sched_yield,
    SYS_set_robust_list, SYS_sigaltstack, SYS_uname, SYS_write, SYS_writev,
];

#[rustfmt::skip]
/// Files, and threads, which enter by themselves.
const IO: &[c_long] = &[
    SYS_access, SYS_clone, SYS_clone3, SYS_dup, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_epoll_pwait2,
    SYS_epoll_wait, SYS_eventfd2, SYS_faccessat2, SYS_fcntl, SYS_getdents64, SYS_landlock_restrict_self, SYS_memfd_create, SYS_newfstatat,
    SYS_openat, SYS_pipe2, SYS_recvfrom, SYS_recvmsg, SYS_seccomp, SYS_sendmsg, SYS_shutdown, SYS_statx,
];

#[rustfmt::skip]
/// Clients, terminals, and cleaning up.
const CONTROL: &[c_long] = &[
    SYS_accept4, SYS_getcwd, SYS_geteuid, SYS_getpgid, SYS_getpgrp, SYS_getpeername, SYS_getsockname, SYS_getsockopt, SYS_getuid, SYS_mkdir,
    SYS_mkdirat, SYS_pselect6, SYS_readlink, SYS_readlinkat, SYS_rename, SYS_renameat2, SYS_rmdir, SYS_setsockopt,
    SYS_socketpair, SYS_unlink, SYS_unlinkat,
];

/// What is asked of terminals: their mode and size, and how much there is to read.
const TERMINAL: &[u64] = &[
    TCGETS, TCSETS, TCSETSW, TCSETSF, TCGETS2, TCSETS2, TCSETSW2, TCSETSF2, TIOCGWINSZ, FIONREAD, FIONBIO, FIOCLEX,
    TIOCGPGRP,
];

/// Allows the calls of `role`.
pub(crate) fn filter(role: Role) -> Result<BpfProgram, BackendError> {
    let calls: &[&[c_long]] = match role {
        Role::Vcpu => &[ALL],
        Role::Io => &[ALL, IO],
        Role::Control => &[ALL, IO, CONTROL],
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        calls.concat().into_iter().map(|call| (call, Vec::new())).collect();
    let own = u64::from(std::process::id());
    // Nothing becomes executable that is not already.
    let plain = |call| Ok::<_, BackendError>((call, vec![when(2, SeccompCmpOp::MaskedEq(PROT_EXEC as u64), 0)?]));
    rules.extend([plain(SYS_mmap)?, plain(SYS_mprotect)?]);
    // Of a thread's own, its name, those of its memory, how late it may be, and giving up privileges; signals to this
    // process alone.
    let own_options = [PR_SET_NAME, PR_SET_VMA, PR_SET_TIMERSLACK, PR_SET_NO_NEW_PRIVS]
        .map(|option| when(0, SeccompCmpOp::Eq, option as u64));
    rules.insert(SYS_prctl, own_options.into_iter().collect::<Result<_, _>>()?);
    rules.insert(SYS_tgkill, vec![when(0, SeccompCmpOp::Eq, own)?]);
    // To who is connected already: a signal's handler, which runs on any thread, tells the one that waits for it so.
    let nobody = SeccompCondition::new(4, Qword, SeccompCmpOp::Eq, 0)?;
    rules.insert(SYS_sendto, vec![SeccompRule::new(vec![nobody])?]);
    if role != Role::Vcpu {
        let terminal = TERMINAL.iter().map(|request| when(1, SeccompCmpOp::Eq, *request));
        rules.insert(SYS_ioctl, terminal.collect::<Result<_, _>>()?);
        rules.insert(SYS_kill, vec![when(0, SeccompCmpOp::Eq, own)?]);
    }
    let refuse = SeccompAction::Errno(EPERM as u32);
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, TargetArch::x86_64)?.try_into()
}

/// Where argument `number` compares so with `value`.
fn when(number: u8, compare: SeccompCmpOp, value: u64) -> Result<SeccompRule, BackendError> {
    let length = if value > u64::from(u32::MAX) { Qword } else { Dword };
    SeccompRule::new(vec![SeccompCondition::new(number, length, compare, value)?])
}
