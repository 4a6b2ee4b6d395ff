//! Debian's programs and their own tests in a guest with two processors: each ends well, and has the output that it has
//! on the host. `tests/guest/make-programs` makes the guest's files, `tests/guest/programs/jobs` lists what is run.
//!
//! What takes long runs when `VITRINE_PROGRAMS` is `all`: every job by both tiers, a minute of stress-ng among them.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use guests::session::{Session, argument};
use guests::{find, skipped};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");
const QUICK: &str = "signs,float,hashlib,zlib,sqlite,zstd,gcc,stress";

/// The checksum of each job's output, by its name.
///
/// # Panics
/// A job failed, which is shown.
fn checksums(output: &str) -> BTreeMap<String, String> {
    assert!(!output.contains("FAILED"), "{output}");
    let words = |line: &str| line.trim().strip_prefix("END ")?.split_once(' ').map(|(a, b)| (a.into(), b.into()));
    output.lines().filter_map(words).collect()
}

#[test]
fn debians_programs_do_in_the_guest_what_they_do_on_the_host() {
    let test = "Debian's programs";
    let folder = find::workspace().join(".cache/guest-programs");
    let (tree, initrd) = (folder.join("tree"), folder.join("initramfs"));
    if !initrd.is_file() {
        return skipped(test, "not made (tests/guest/make-programs makes them of packages)");
    }
    let Some(kernel) = find::debian_kernels().into_iter().next() else {
        return skipped(test, "no kernel of Debian's in .cache (cargo run fetches one)");
    };
    let all = std::env::var("VITRINE_PROGRAMS").is_ok_and(|programs| programs == "all");
    let (jobs, seconds, patience) = if all { ("", 60, 7200) } else { (QUICK, 2, 600) };

    let stress = format!("STRESS={seconds}");
    let mut host = Command::new("unshare");
    host.args(["--map-root-user", "--root", argument(&tree)]).args(["/data/jobs", jobs]);
    let host = host.env("STRESS", seconds.to_string()).stdin(Stdio::null()).output();
    let expected = match host {
        Ok(host) if host.status.success() => checksums(&String::from_utf8_lossy(&host.stdout)),
        other => return skipped(test, &format!("the host does not run them (unshare, of util-linux): {other:?}")),
    };
    assert!(expected.len() >= QUICK.split(',').count(), "{expected:?}");

    let append = format!("console=ttyS0 quiet JOBS={jobs} {stress}");
    for tier in if all { &["jit", "interp"][..] } else { &["jit"] } {
        let mut arguments = vec!["-kernel", argument(&kernel), "-initrd", argument(&initrd), "-append", &append];
        arguments.extend(["-nographic", "-m", "2G", "-smp", "2", "-accel", tier]);
        let ended = Session::start(VITRINE, &arguments).end(Duration::from_secs(patience));
        ended.no_panic();
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        assert_eq!(checksums(&ended.stdout), expected, "-accel {tier}");
    }
}
