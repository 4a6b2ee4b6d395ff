//! The monitor against a small guest in 64-bit mode: its first 16 MiB are mapped one to one by large pages.

use crate::Monitor;
use cpu::cpuid::Model;
use guests::{image, initramfs};
use iced_x86::code_asm::{qword_ptr, rax, rbx, rcx};
use machine::{Accel, Config, Handle, Machine, MachineError, Outcome, RunState};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

mod look;
mod sockets;
mod tracing;
mod watches;
mod watchpoints;

const VALUE: u64 = 0x1122_3344_5566_7788;

/// A guest that runs for ever, with its monitor. It ends when dropped.
struct Guest {
    handle: Handle,
    monitor: Monitor,
    thread: Option<JoinHandle<Result<Outcome, MachineError>>>,
    /// Read again at each reset.
    _kernel: NamedTempFile,
}

impl Guest {
    /// One that has stored [`VALUE`] and a text, and now counts in RCX.
    fn running() -> Self {
        let guest = Self::standing();
        guest.handle.resume();
        let start = Instant::now();
        let counts =
            |vcpu: &mut machine::Vcpu| (1000..0xc000_0000).contains(&vcpu.cpu.regs[1]) && vcpu.cpu.regs[0] == VALUE;
        while !guest.handle.inspect(0, counts).unwrap() {
            assert!(start.elapsed() < Duration::from_secs(20), "the guest counts");
        }
        guest
    }

    /// The same before its first instruction.
    fn standing() -> Self {
        let image = image::long_mode(|a| {
            let mut again = a.create_label();
            a.mov(rax, VALUE)?;
            a.mov(qword_ptr(image::DATA), rax)?;
            a.mov(rbx, u64::from_le_bytes(*b"glass!\n\0"))?;
            a.mov(qword_ptr(image::DATA + 8), rbx)?;
            a.xor(rcx, rcx)?;
            a.set_label(&mut again)?;
            a.inc(rcx)?;
            a.jmp(again)
        });
        Self::of(&image, Accel::default())
    }

    /// Another one, before its first instruction.
    fn of(image: &[u8], accel: Accel) -> Self {
        Self::with(image, |config| config.accel = accel)
    }

    /// The same in another machine.
    fn with(image: &[u8], configure: impl FnOnce(&mut Config)) -> Self {
        let kernel = initramfs::file_of(image);
        let mut config =
            Config { memory: 16 << 20, kernel: Some(kernel.path().into()), ..Config::new(Arc::new(Model::max())) };
        configure(&mut config);
        let machine = Machine::new(config).unwrap();
        let handle = machine.handle();
        handle.pause();
        let thread = Some(std::thread::spawn(move || machine.run()));
        assert!(handle.wait_paused());
        Self { monitor: Monitor::new(handle.clone()), handle, thread, _kernel: kernel }
    }

    /// Says `line` and gives the answer.
    fn say(&mut self, line: &str) -> String {
        self.monitor.execute(line)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.handle.quit();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn memory_is_shown_in_qemus_formats() {
    let mut guest = Guest::running();
    let at = image::DATA;
    for (line, want) in [
        ("xp/gx 0x110000", "0000000000110000: 0x1122334455667788\n"),
        ("x/2gx 0x110000", "0000000000110000: 0x1122334455667788 0x000a217373616c67\n"),
        ("x/3xb 0x110000", "0000000000110000: 0x88 0x77 0x66\n"),
        ("x/xh 0x110000 + 2 * 3", "0000000000110006: 0x1122\n"),
        ("x/dw 0x110000", "0000000000110000: 1432778632\n"),
        ("x/7c 0x110008", "0000000000110008: 'g' 'l' 'a' 's' 's' '!' '\\n'\n"),
        ("x/s 0x110008", "0000000000110008: \"glass!\\n\"\n"),
        ("p 10", "0xa\n"),
        ("p/d -1", "-1\n"),
        ("p/x $rax", "0x1122334455667788\n"),
        ("p/x $eax", "0x55667788\n"),
        ("print $cs", "0x8\n"),
    ] {
        assert_eq!(guest.say(line), want, "{line}");
    }
    assert_eq!(guest.say("x/9xb 0x110000").lines().count(), 2);
    let code = guest.say(&format!("x/3i {:#x}", image::CODE64));
    assert!(code.starts_with("0x00102000:  b8 10 00 00 00           mov eax,10h\n"), "{code}");
    assert_eq!(code.lines().count(), 3);
    assert_eq!(guest.say("gva2gpa 0x110000"), "gpa: 0x110000\n");
    let hva = guest.handle.map().hva_of(memory::Gpa(at)).unwrap();
    assert_eq!(guest.say("gpa2hva 0x110000"), format!("Host virtual address for 0x110000 (ram) is {hva:#x}\n"));
}

#[test]
fn no_address_is_too_strange() {
    let mut guest = Guest::running();
    for at in [
        "0x1000000",          // not mapped
        "0xfee00000",         // a device
        "0x800000000000",     // not canonical
        "0x7fffffffffff",     // the last one below
        "0xffff800000000000", // the first one above
        "0xffffffffffffffff",
        "-8",
        "0x8000000000000000",
        "0xffffff",
        "0",
    ] {
        for command in [
            "x/2gx", "x/2i", "x/2s", "xp/2gx", "xp/i", "xp/s", "gva2gpa", "gpa2hva", "gpa2hpa", "explain", "info tlb",
            "info mem",
        ] {
            let text = guest.say(&format!("{command} {at}"));
            let ends = text.ends_with('\n') || (text.is_empty() && command.starts_with("info"));
            assert!(ends && text.len() < 4096, "{command} {at}: {text}");
        }
        for command in ["memsave", "pmemsave"] {
            let text = guest.say(&format!("{command} {at} 0xffffffffffffffff \"/nonexistent/file\""));
            assert!(text.contains("no memory at 0x") || text.contains("/nonexistent/file cannot be written"), "{text}");
        }
    }
    assert_eq!(guest.say("x/x 0x1000000"), "0000000001000000: Cannot access memory\n");
    assert_eq!(guest.say("gpa2hva 0xfee00000"), "Memory at address 0xfee00000 is not RAM\n");
    assert_eq!(guest.say("gpa2hva 0x900000000"), "No memory is mapped at address 0x900000000\n");
    assert_eq!(guest.say("gva2gpa 0x1000000"), "Unmapped\n");
}

#[test]
fn what_is_wrong_is_said_and_nothing_breaks() {
    let mut guest = Guest::running();
    let help = |name: &str| format!("Try \"help {name}\" for more information\n");
    for (line, want) in [
        ("foo", "unknown command: 'foo'\n".to_owned()),
        ("info foo", "unknown command: 'info foo'\n".to_owned()),
        ("x", format!("unexpected end of expression\n{}", help("x"))),
        ("p (1", format!("')' expected\n{}", help("p"))),
        ("cpu 1", "there is no CPU #1: the last one is #0\n".to_owned()),
        ("stop now", format!("extraneous characters at the end of line: 'now'\n{}", help("stop"))),
        (
            "x no_such",
            format!(
                "unknown symbol 'no_such': it is none of the guest's kernel, or that has no symbols (yet)\n{}",
                help("x")
            ),
        ),
        ("info symbol 0x1000", "no symbols are found in the guest's kernel (yet)\n".to_owned()),
        ("   ", String::new()),
    ] {
        assert_eq!(guest.say(line), want, "{line}");
    }
    let mebibyte = guest.say(&"x".repeat(1 << 20));
    assert_eq!(mebibyte, "a line of 1048576 bytes: 4096 at most\n");
    assert!(guest.say("x/0xffffffffffffffffgx 0").contains("invalid char"), "a count is decimal");
    assert!(guest.say("x/99999999999999999999gx 0").contains("too many to show"));
    assert!(guest.say("x/99999999999i 0").contains("too many to show"));
    for c in 0..=255_u8 {
        let _ = guest.say(&format!("{0} {0}/{0} {0}", char::from(c)));
        let _ = guest.say(&format!("x{}", char::from(c)));
    }
}

#[test]
fn the_machine_obeys() {
    let mut guest = Guest::standing();
    assert_eq!(guest.say("info status"), "VM status: paused (prelaunch)\n");
    assert_eq!(guest.say("p $rip"), format!("{:#x}\n", image::ENTRY), "where it will start");
    assert_eq!(guest.say("cont"), "");
    assert_eq!(guest.say("info status"), "VM status: running\n");
    assert_eq!(guest.say("stop"), "");
    assert_eq!(guest.say("info status"), "VM status: paused\n");
    let registers = guest.say("info registers");
    assert_eq!(guest.say("info registers"), registers, "it stands");
    assert_eq!(guest.say("system_reset") + &guest.say("c"), "");
    assert_eq!(guest.say("quit"), "");
    assert_eq!(guest.thread.take().unwrap().join().unwrap().unwrap(), Outcome::Quit);
    assert_eq!(guest.say("p $rip"), "the machine has ended\n");
    assert_eq!(guest.handle.run_state(), RunState::Shutdown);
}

#[test]
fn registers_are_qemus() {
    let mut guest = Guest::running();
    let text = guest.say("info registers");
    for part in [
        "\nCPU#0\nRAX=1122334455667788 RBX=000a217373616c67 RCX=",
        " CPL=0 II=0 A20=1 SMM=0 HLT=0\nES =0010 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]\n\
         CS =0008 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\n",
        "\nGDT=     0000000000100080 00000017\n",
        "CR3=0000000000103000 CR4=00000020\n",
        "\nEFER=0000000000000500\n",
        "\nFCW=0040 FSW=0000 [ST=0] FTW=ff MXCSR=00001f80\n",
        "XMM15=",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn all_that_is_mapped_is_one_range() {
    let mut guest = Guest::running();
    assert_eq!(guest.say("info mem"), "0000000000000000-0000000001000000 0000000001000000 -rwx\n");
    let tlb = guest.say("info tlb 0x200000 0x3fffff");
    assert_eq!(tlb, "0000000000200000: 0000000000200000 --P-----W 1 x 2 MiB\n");
    // The guest has touched its first two large pages, and written the first.
    let pages: Vec<String> = guest.say("info tlb").lines().map(str::to_owned).collect();
    assert_eq!(pages.len(), 2, "{pages:?}");
    assert!(guest.say("info mem 1 0").contains("a range goes from its first"));
}

#[test]
fn an_address_is_explained() {
    let mut guest = Guest::running();
    let text = guest.say("explain 0x110123");
    for part in [
        "gva 0000000000110123 on CPU #0: 4-level paging, CPL 0\n",
        "├─ CR3       0000000000103000\n",
        "├─ PML4      [0] at gpa 103000 = 0000000000104023  P RW A -> table at gpa 104000\n",
        "├─ PD        [0] at gpa 105000 = 00000000000000e3  P RW A D PS -> 2 MiB page at gpa 0\n",
        "├─ kernel    rwx\n",
        "├─ user      ---  U/S is clear: the page is the supervisor's\n",
        "├─ TLB       main table, kernel: read fast, write fast, fetch fast; addend ",
        "├─ gpa       110123\n",
        "└─ hpa ",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(
        text.contains("├─ region    0000000000100000-") || text.contains("├─ region    0000000000000000-"),
        "{text}"
    );
    let unmapped = guest.say("explain 0x1000000");
    assert!(unmapped.contains("fault     P of PD[8] is clear: #PF, page not present\n"), "{unmapped}");
    let strange = guest.say("explain 0x800000000000");
    assert!(strange.contains("fault     bits 63 to 47 of the address differ: #GP(0)"), "{strange}");
}

#[test]
fn everything_can_be_asked() {
    let mut guest = Guest::running();
    for (line, part) in [
        ("info version", "Vitrine "),
        ("info cpus", "* CPU #0: thread_id="),
        ("info pic", "pic0: irr="),
        ("info pic", "  pin 23 0x0000000000010000 dest=0 vec=0   active-hi edge  masked fixed  physical\n"),
        ("info ioapic", "ioapic0: ver=0x20 id=0x00"),
        ("info lapic", "LVT0\t 0x00000700 active-hi edge                              ExtINT\n"),
        ("info lapic 9", "no such"),
        ("info mtree", "00000000fee00000-00000000fee00fff (prio 0, i/o): lapic\n"),
        ("info stats", "  page walks         "),
        ("info stats", "CPU #0:\n  MIPS               "),
        ("info stats", "  page tables at        loads  slow hits  victim hits      walks  faults  flushes\n"),
        ("info jit", "CPU #0:\n"),
        ("info", "info version -- show the version"),
        ("help", "x/fmt addr -- virtual memory dump"),
        ("help x", "x/fmt addr -- virtual memory dump starting at 'addr'\n"),
        ("help watch", "\n            watch w:jiffies+8 if rip not in tick_do_update_jiffies64 then stop\n"),
        ("help info tlb", "info tlb [first [last]] -- "),
        ("info registers -a", "\nCPU#0\n"),
    ] {
        let text = guest.say(line);
        assert!(text.contains(part), "{part:?} in {line}: {text}");
    }
    assert_eq!(Monitor::complete("info re"), ["registers"]);
    assert_eq!(Monitor::complete("sys"), ["system_reset", "system_powerdown"]);
    assert_eq!(Monitor::complete("x 0"), [""; 0]);
}

#[test]
fn memory_is_saved_to_files() {
    let mut guest = Guest::running();
    let folder = tempfile::tempdir().unwrap();
    for (command, name) in [("memsave", "virtual file"), ("pmemsave", "physical")] {
        let path = folder.path().join(name);
        assert_eq!(guest.say(&format!("{command} 0x110004 8 \"{}\"", path.display())), "");
        assert_eq!(std::fs::read(&path).unwrap(), *b"\x44\x33\x22\x11glas");
        let some = guest.say(&format!("{command} 0xfff000 0x2000 \"{}\"", path.display()));
        assert_eq!(some, "no memory at 0x1000000; 4096 bytes before it were saved\n");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
        let none = guest.say(&format!("{command} 0x1000000 0x2000 \"{}\"", path.display()));
        assert_eq!(none, "no memory at 0x1000000\n");
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096, "kept");
    }
}

/// Read as whoever reads core files does.
#[test]
fn a_core_file_has_memory_and_registers() {
    use object::read::elf::{ElfFile64, ProgramHeader};
    let mut guest = Guest::running();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("core");
    for flag in ["", "-p "] {
        assert_eq!(guest.say(&format!("dump-guest-memory {flag}\"{}\"", path.display())), "");
        assert_eq!(guest.handle.run_state(), RunState::Running, "it goes on");
        let bytes = std::fs::read(&path).unwrap();
        let file = ElfFile64::<object::Endianness>::parse(&*bytes).unwrap();
        let endian = file.endian();
        let headers = file.elf_program_headers();
        assert_eq!(headers.len(), 2, "notes, and RAM, which is mapped one to one");
        assert_eq!(headers[1].p_filesz(endian), 16 << 20);
        let ram = headers[1].data(endian, &*bytes).unwrap();
        let at = usize::try_from(image::DATA).unwrap();
        assert_eq!(ram[at..at + 8], VALUE.to_le_bytes());
        let notes: Vec<_> = headers[0].notes(endian, &*bytes).unwrap().unwrap().map(Result::unwrap).collect();
        assert_eq!(notes.iter().map(|note| note.name()).collect::<Vec<_>>(), [&b"CORE"[..], b"QEMU", b"VITRINE"]);
        assert_eq!((notes[0].desc().len(), notes[1].desc().len()), (336, 440));
        // RAX of the one, and CR3 of the other.
        assert_eq!(notes[0].desc()[112 + 80..][..8], VALUE.to_le_bytes());
        assert_eq!(notes[1].desc()[440 - 24..][..8], 0x10_3000_u64.to_le_bytes());
    }
    assert!(guest.say("dump-guest-memory \"/nonexistent/x\"").contains("cannot be written"));
}
