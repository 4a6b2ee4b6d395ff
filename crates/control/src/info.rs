//! The subjects of `info`.

use crate::arguments::Arguments;
use crate::command::{Command, lines};
use crate::figures::{WINDOW, process_of};
use crate::monitor::{Monitor, MonitorError, Outcome};
use crate::registers::Snapshot;
use crate::{paging, touched, tracing, watching};
use cpu::debugger::Stop;
use lens::symbols::{Process, by_cr3};
use machine::{Chip, RunState, Vcpu};
use memory::Gva;
use memory::tally::Share;
use memory::tlb::Stats;

/// All subjects.
pub(crate) const COMMANDS: &[Command] = &[
    Command { names: &["cpus"], arguments: "", help: "show infos for each CPU", run: cpus },
    Command { names: &["ioapic"], arguments: "", help: "show I/O APIC state", run: ioapic },
    Command { names: &["jit"], arguments: "", help: "show what the translator counted", run: jit },
    Command {
        names: &["lapic"],
        arguments: "[index]",
        help: "show local APIC state (default: of the current CPU)",
        run: lapic,
    },
    Command {
        names: &["mem"],
        arguments: "[first [last]]",
        help: "show the active virtual memory mappings, ranges with the same rights as one",
        run: paging::mem,
    },
    Command { names: &["mtree"], arguments: "[-f]", help: "show the physical address space", run: paging::mtree },
    Command { names: &["pic"], arguments: "", help: "show PIC and I/O APIC state", run: pic },
    Command {
        names: &["processes", "ps"],
        arguments: "",
        help: "show the processes of a Linux guest, and which of them the current CPU runs",
        run: processes,
    },
    Command {
        names: &["registers"],
        arguments: "[-a|vcpu]",
        help: "show the CPU registers (-a: of all CPUs; vcpu: of this one)",
        run: registers,
    },
    Command {
        names: &["stats"],
        arguments: "",
        help: "show instructions, TLB hits, walks, faults and flushes of each CPU",
        run: stats,
    },
    Command { names: &["status"], arguments: "", help: "show the current VM status (running|paused)", run: status },
    Command {
        names: &["symbol"],
        arguments: "addr",
        help: "show the symbol that 'addr' lies in, and its file and line if -symbols tells",
        run: symbol,
    },
    Command {
        names: &["tlb"],
        arguments: "[first [last]]",
        help: "show virtual to physical memory mappings, pages side by side as one line",
        run: paging::tlb,
    },
    Command {
        names: &["working-set"],
        arguments: "[mark|off]",
        help: "show which pages were touched since 'mark', by address space ('off': note none any more)",
        run: touched::working_set,
    },
    Command {
        names: &["trace"],
        arguments: "",
        help: "show whether the trace is on, and how much it has",
        run: tracing::info,
    },
    Command { names: &["version"], arguments: "", help: "show the version of Vitrine", run: version },
    Command {
        names: &["watch"],
        arguments: "",
        help: "show what is watched, where that is now, and how often it was accessed",
        run: watching::info,
    },
];

/// `info symbol`.
fn symbol(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let address = Gva(arguments.expression()?);
    arguments.end()?;
    let symbols = monitor.symbols(monitor.snapshot()?);
    let line = monitor.handle.lens().kernel().line(address).map(|line| format!(" at {line}")).unwrap_or_default();
    Ok(match symbols.at(address) {
        Some(named) => format!("{address:016x} is {named}{line}\n"),
        None if symbols.is_empty() => "no symbols are found in the guest's kernel (yet)\n".to_owned(),
        None => format!("{address:016x} lies in no symbol that is known\n"),
    })
}

/// `info processes`.
fn processes(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    let snapshot = monitor.snapshot()?;
    let all = monitor.processes(snapshot).map_err(|why| MonitorError::Other(why.to_string()))?;
    let current = by_cr3(&all, snapshot.registers.cr[2]);
    let line = |process: &Process| {
        let mark = if current == Some(process) { '*' } else { ' ' };
        let table = process.table.map_or_else(|| "-".to_owned(), |gpa| format!("{gpa:x}"));
        format!("{mark} {:>7}  {table:>12}  {:016x}  {}", process.pid, process.task, process.name)
    };
    let head = format!("  {:>7}  {:>12}  {:16}  name", "pid", "page table", "task_struct");
    Ok(lines(std::iter::once(head).chain(all.iter().map(line))))
}

/// What [`RunState`] is called.
pub(crate) fn state(state: RunState) -> &'static str {
    match state {
        RunState::Prelaunch => "prelaunch",
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::Suspended => "suspended",
        RunState::Shutdown => "shutdown",
    }
}

fn status(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    Ok(match monitor.handle.run_state() {
        now @ (RunState::Running | RunState::Paused) => {
            let why = match monitor.handle.debug_stop() {
                Some((_, Stop::Observer(id))) if now == RunState::Paused => format!(" (watch {id})"),
                _ => String::new(),
            };
            format!("VM status: {}{why}\n", state(now))
        }
        now => format!("VM status: paused ({})\n", state(now)),
    })
}

fn version(_: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    Ok(format!("Vitrine {}\n", env!("CARGO_PKG_VERSION")))
}

/// Calls `look` on every vCPU's thread.
fn each<R: Send + 'static>(monitor: &Monitor, look: fn(&mut Vcpu) -> R) -> Result<Vec<R>, MonitorError> {
    let vcpus = 0..monitor.handle.vcpus();
    vcpus.map(|index| monitor.handle.inspect(index, look).map_err(MonitorError::from)).collect()
}

fn cpus(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    let all = each(monitor, |vcpu| {
        let halted = if vcpu.cpu.sleeps() { " (halted)" } else { "" };
        format!("thread_id={}{halted}", rustix::thread::gettid().as_raw_nonzero())
    })?;
    let mark = |index: usize| if index == monitor.cpu { '*' } else { ' ' };
    Ok(lines(all.iter().enumerate().map(|(index, cpu)| format!("{} CPU #{index}: {cpu}", mark(index)))))
}

fn registers(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    if arguments.flag('a') {
        arguments.end()?;
        let all = each(monitor, Snapshot::take)?;
        return Ok(all.iter().map(|snapshot| format!("\n{snapshot}{}", named(monitor, snapshot))).collect());
    }
    let index = arguments.optional()?.map_or(monitor.cpu, |index| usize::try_from(index).unwrap_or(usize::MAX));
    arguments.end()?;
    let snapshot = monitor.handle.inspect(index, Snapshot::take)?;
    Ok(format!("\n{snapshot}{}", named(monitor, &snapshot)))
}

/// A line for each register that holds the address of a symbol, or of something in it.
fn named(monitor: &Monitor, snapshot: &Snapshot) -> String {
    let symbols = monitor.symbols(snapshot);
    let name =
        |(register, value): (&str, u64)| Some(format!("{:<3} is {}", register.to_uppercase(), symbols.at(Gva(value))?));
    lines(snapshot.addresses().filter_map(name))
}

fn chip(monitor: &Monitor, chip: Chip) -> Outcome {
    monitor.handle.describe(chip).ok_or_else(|| MonitorError::Other("there is no such interrupt controller".to_owned()))
}

fn pic(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    Ok(chip(monitor, Chip::IoApic)? + &chip(monitor, Chip::Pic)?)
}

fn ioapic(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    chip(monitor, Chip::IoApic)
}

fn lapic(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let index = arguments.optional()?.map_or(monitor.cpu, |index| usize::try_from(index).unwrap_or(usize::MAX));
    arguments.end()?;
    chip(monitor, Chip::LocalApic(index))
}

fn jit(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    let all = each(monitor, |vcpu| vcpu.stats().jit)?;
    let translator = |(index, stats): (usize, &Option<jit::stats::Stats>)| match stats {
        Some(stats) => format!("CPU #{index}:\n{stats}"),
        None => format!("CPU #{index} has no translator (-accel interp)"),
    };
    Ok(lines(all.iter().enumerate().map(translator)))
}

fn stats(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    let rates = monitor.handle.measure(WINDOW)?;
    let all = each(monitor, |vcpu| vcpu.stats())?;
    let processes = monitor.processes(monitor.snapshot()?).unwrap_or_default();
    let seconds = monitor.handle.stats().time as f64 / 1e9;
    let mut text = format!("time: {seconds:.3} s\n");
    for (index, vcpu) in all.iter().enumerate() {
        let tlb = vcpu.tlb;
        // Translated code does not count its instructions but while it is measured.
        let what = if vcpu.jit.is_some() { "interpreted" } else { "instructions" };
        let mips = rates.get(index).map_or(0.0, |rate| rate / 1e6);
        text += &format!("CPU #{index}:\n  {:<18} {mips:.1}\n  {what:<18} {}\n", "MIPS", vcpu.instructions);
        text += &lines(
            [
                ("TLB slow-path hits", tlb.hits),
                ("TLB victim hits", tlb.victim_hits),
                ("TLB global hits", tlb.global_hits),
                ("page walks", tlb.walks),
                ("page faults", tlb.faults),
                ("page flushes", tlb.page_flushes),
                ("context flushes", tlb.context_flushes),
                ("full flushes", tlb.full_flushes),
                ("TLB growth", tlb.grown),
            ]
            .map(|(name, count)| format!("  {name:<18} {count}")),
        );
        text += "  exceptions and interrupts by vector:\n";
        let delivered = (0..=u8::MAX).zip(&vcpu.delivered).filter(|(_, count)| **count > 0);
        text += &lines(
            delivered.map(|(vector, count)| format!("    {vector:02x} {:<13} {count}", x86::vector_name(vector))),
        );
        text += "  page tables at        loads  slow hits  victim hits      walks  faults  flushes\n";
        text += &lines(vcpu.spaces.iter().map(|share| space(share, &processes)));
    }
    Ok(text)
}

/// A line of what happened in an address space.
fn space(share: &Share, processes: &[Process]) -> String {
    let Stats { hits, victim_hits, walks, faults, page_flushes, context_flushes, full_flushes, .. } = share.stats;
    let flushes = page_flushes + context_flushes + full_flushes;
    let root = share.root.map_or("others".to_owned(), |root| format!("{root:016x}"));
    let process = share.root.and_then(|root| process_of(processes, root.0)).unwrap_or_default();
    let line = format!(
        "  {root:<16} {loads:>10} {hits:>10} {victim_hits:>12} {walks:>10} {faults:>7} {flushes:>8}  {process}",
        loads = share.loads,
    );
    line.trim_end().to_owned()
}
