//! Flags of QEMU's that Vitrine does not have yet, so that a script's author learns what to do instead of guessing.

/// What to say about QEMU's flag `name`, if it is one that people use.
pub fn hint(name: &str) -> Option<&'static str> {
    let hint = match name {
        "hda" | "hdb" | "hdc" | "hdd" | "drive" | "blockdev" | "cdrom" | "fda" | "fdb" | "sd" | "pflash"
        | "mtdblock" | "snapshot" => "no disks; put files into an initramfs and give it by -initrd",
        "netdev" => "no network; leave it out, or say -nic none",
        "bios" | "L" | "boot" | "option-rom" => "no firmware; a kernel is booted directly by -kernel",
        "enable-kvm" => "Vitrine needs no KVM; leave it out",
        "qmp-pretty" | "mon" | "chardev" => "the monitor is given by -monitor or -qmp, the serial port by -serial",
        "sdl" | "gtk" | "spice" | "curses" | "full-screen" => "no display; use -nographic",
        "icount" => "guest time is the host's; leave it out",
        "rtc" => "the clock is the host's in UTC; leave it out",
        "usb" | "usbdevice" | "audio" | "audiodev" | "object" | "fsdev" | "virtfs" | "tpmdev" | "smbios" | "fw_cfg"
        | "acpitable" | "numa" | "loadvm" | "incoming" | "plugin" | "daemonize" | "pidfile" | "global" | "name"
        | "sandbox" | "overcommit" | "mem-path" | "mem-prealloc" | "action" | "runas" | "readconfig"
        | "writeconfig" | "echr" | "watchdog-action" | "rtc-td-hack" | "cpu-pm" => {
            "leave it out; -help lists what there is"
        }
        _ => return None,
    };
    Some(hint)
}
