//! What the demo's guest is made of: busybox, the program of the experiment, and an init script that runs it.
//!
//! The script talks to the host by lines that begin with [`MARK`], in `console`'s words.

use std::io;

use super::cpio::Archive;

/// Begins the lines that are meant for the host. The kernel prints nothing like it.
pub const MARK: &str = "@vitrine";

const INIT: &str = "\
#!/bin/sh
export PATH=/bin HOME=/root TERM=xterm ENV=/etc/shell PS1='guest# '
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
echo 1 >/proc/sys/kernel/printk
peek
echo \"@vitrine done $?\"
";

const SHELL: &str = "\
echo 4 >/proc/sys/kernel/printk
cd /root
setsid cttyhack sh
";

const OFF: &str = "poweroff -f\n";

/// Without `-f` these ask the init process, which here is a script that does not listen.
const ALIASES: &str = "\
alias poweroff='poweroff -f'
alias halt='poweroff -f'
alias reboot='reboot -f'
";

/// The initramfs, compressed. `shell`: whether the guest ends in a shell, or powers off.
///
/// # Errors
/// When a file is too large for the format.
pub fn pack(busybox: &[u8], peek: &[u8], shell: bool) -> io::Result<Vec<u8>> {
    let mut archive = Archive::gzip();
    for folder in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        archive.directory(folder)?;
    }
    archive.character_device("dev/console", 5, 1)?;
    archive.program("bin/busybox", busybox)?;
    archive.link("bin/sh", "busybox")?;
    archive.program("bin/peek", peek)?;
    archive.program("etc/shell", ALIASES.as_bytes())?;
    let init = [INIT, if shell { SHELL } else { "" }, OFF].concat();
    archive.program("init", init.as_bytes())?;
    archive.finish()?.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    fn unpacked(shell: bool) -> String {
        let packed = pack(b"busybox's bytes", b"peek's bytes", shell).unwrap();
        let mut bytes = Vec::new();
        GzDecoder::new(&*packed).read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn everything_is_in_it() {
        let text = unpacked(true);
        for part in ["busybox's bytes", "peek's bytes", "#!/bin/sh\nexport PATH", "dev/console\0", "cttyhack"] {
            assert!(text.contains(part), "{part}");
        }
        assert!(INIT.contains(MARK));
        assert!(!unpacked(false).contains("cttyhack"));
    }
}
