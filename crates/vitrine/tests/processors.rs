//! Several vCPUs at once, seen from programs in the guest.

use guests::session::{Session, argument};
use guests::{PATIENCE, find, initramfs, skipped};

const VITRINE: &str = env!("CARGO_BIN_EXE_vitrine");

/// Runs the program on as many threads as there are processors.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t devtmpfs dev /dev
rounds=$(sed -n 's/.*rounds=\\([0-9]*\\).*/\\1/p' /proc/cmdline)
echo PROCESSORS: $(nproc)
program $(nproc) $rounds
poweroff -f
";

#[test]
fn threads_on_several_processors_see_what_the_architecture_promises() {
    let test = "threads";
    let Some(kernel) = find::debian_kernels().into_iter().next() else {
        return skipped(test, "no kernel of Debian's in .cache (cargo run fetches one)");
    };
    let Some(initrd) = initramfs::with_program(INIT, "threads.c") else {
        return skipped(test, "no static busybox (package busybox-static) or no C compiler");
    };
    for (cpus, accel, rounds) in [("2", "jit", 4000), ("4", "jit", 1000), ("3", "interp", 400)] {
        let append = format!("console=ttyS0 quiet rounds={rounds}");
        let mut arguments = vec!["-kernel", argument(&kernel), "-initrd", argument(initrd.path()), "-nographic"];
        arguments.extend(["-append", &append, "-m", "256M", "-smp", cpus, "-accel", accel]);
        let ended = Session::start(VITRINE, &arguments).end(PATIENCE);
        ended.no_panic();
        assert!(ended.stdout.contains(&format!("PROCESSORS: {cpus}")), "{ended:?}");
        assert!(ended.stdout.contains("\n0 failures"), "-smp {cpus} -accel {accel}: {ended:?}");
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
}
