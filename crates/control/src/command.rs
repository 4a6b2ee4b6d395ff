//! The table of commands.

use crate::arguments::Arguments;
use crate::monitor::{Monitor, MonitorError, Outcome};
use crate::{core_file, dump, explain, info, paging, tracing, watching};
use machine::RunState;
use std::fmt::Write;

/// A command.
pub(crate) struct Command {
    /// Its name, and what else it is called.
    pub names: &'static [&'static str],
    /// Its arguments, as help shows them.
    pub arguments: &'static str,
    /// What it does.
    pub help: &'static str,
    /// Does it.
    pub run: fn(&mut Monitor, &mut Arguments<'_>) -> Outcome,
}

/// All but those of `info`.
const COMMANDS: &[Command] = &[
    Command { names: &["help", "?"], arguments: "[cmd]", help: "show the help", run: help },
    Command { names: &["info"], arguments: "[subcommand]", help: "show various information", run: info_help },
    Command {
        names: &["explain"],
        arguments: "addr",
        help: "follow virtual address 'addr' through page tables, TLB and memory map to the host",
        run: explain::explain,
    },
    Command {
        names: &["x"],
        arguments: "/fmt addr",
        help: "virtual memory dump starting at 'addr'",
        run: dump::virtually,
    },
    Command {
        names: &["xp"],
        arguments: "/fmt addr",
        help: "physical memory dump starting at 'addr'",
        run: dump::physically,
    },
    Command {
        names: &["print", "p"],
        arguments: "/fmt expr",
        help: "print expression value (use $reg for CPU register access)",
        run: dump::print,
    },
    Command {
        names: &["gva2gpa"],
        arguments: "addr",
        help: "print the guest physical address of guest virtual address 'addr'",
        run: paging::gva2gpa,
    },
    Command {
        names: &["gpa2hva"],
        arguments: "addr",
        help: "print the host virtual address of guest physical address 'addr'",
        run: paging::gpa2hva,
    },
    Command {
        names: &["gpa2hpa"],
        arguments: "addr",
        help: "print the host physical address of guest physical address 'addr'",
        run: paging::gpa2hpa,
    },
    Command {
        names: &["memsave"],
        arguments: "addr size file",
        help: "save to disk virtual memory dump starting at 'addr' of size 'size'",
        run: dump::memsave,
    },
    Command {
        names: &["pmemsave"],
        arguments: "addr size file",
        help: "save to disk physical memory dump starting at 'addr' of size 'size'",
        run: dump::pmemsave,
    },
    Command {
        names: &["dump-guest-memory"],
        arguments: "[-p] file",
        help: "save memory and registers as an ELF core file (-p: by virtual addresses)",
        run: core_file::dump,
    },
    Command {
        names: &["watch"],
        arguments: "[r|w|x|rw:][gpa:]addr[+len] [if ...] [count n] [then ...]",
        help: "watch accesses to these bytes from now on; for addr also [*]symbol (more: help watch)",
        run: watching::watch,
    },
    Command {
        names: &["unwatch"],
        arguments: "id|all",
        help: "end the watch 'id', or all of them",
        run: watching::unwatch,
    },
    Command {
        names: &["enable"],
        arguments: "id|all",
        help: "turn the watch 'id', or all of them, on again; what it counts to begins anew",
        run: watching::enable,
    },
    Command {
        names: &["disable"],
        arguments: "id|all",
        help: "turn the watch 'id', or all of them, off until enable",
        run: watching::disable,
    },
    Command { names: &["trace"], arguments: "on|off", help: "turn the trace of -trace on or off", run: tracing::trace },
    Command { names: &["cpu"], arguments: "index", help: "set the default CPU", run: cpu },
    Command { names: &["stop", "s"], arguments: "", help: "stop emulation", run: stop },
    Command { names: &["cont", "c"], arguments: "", help: "resume emulation", run: cont },
    Command { names: &["system_reset"], arguments: "", help: "reset the system", run: reset },
    Command { names: &["system_powerdown"], arguments: "", help: "press the power button", run: powerdown },
    Command { names: &["quit", "q"], arguments: "", help: "quit the emulator", run: quit },
];

/// Finds a line's command: it, its full name, and what stands behind.
pub(crate) fn find(line: &str) -> Result<(&'static Command, String, &str), MonitorError> {
    let (name, rest) = word(line);
    if name == "info" {
        let (subject, behind) = word(rest);
        if !subject.is_empty() {
            let command = by_name(info::COMMANDS, subject)
                .ok_or_else(|| MonitorError::Unknown(format!("info {}", clipped(subject))))?;
            return Ok((command, format!("info {subject}"), behind));
        }
    }
    let command = by_name(COMMANDS, name).ok_or_else(|| MonitorError::Unknown(clipped(name)))?;
    Ok((command, name.to_owned(), rest))
}

fn by_name(commands: &'static [Command], name: &str) -> Option<&'static Command> {
    commands.iter().find(|command| command.names.contains(&name))
}

/// The first word, which a `/` ends as well as a space does, and the rest.
fn word(line: &str) -> (&str, &str) {
    let line = line.trim_start();
    let ends = |(at, c): (usize, char)| (c.is_whitespace() || (c == '/' && at > 0)).then_some(at);
    let (name, rest) = line.split_at(line.char_indices().find_map(ends).unwrap_or(line.len()));
    (name, rest.trim_start())
}

fn clipped(name: &str) -> String {
    name.chars().take(40).collect()
}

/// See [`Monitor::complete`].
pub(crate) fn complete(start: &str) -> Vec<String> {
    let names = |commands: &'static [Command]| commands.iter().filter_map(|command| command.names.first());
    match start.trim_start().split_once(char::is_whitespace) {
        None => names(COMMANDS).filter(|name| name.starts_with(start.trim_start())).map(|&name| name.into()).collect(),
        Some(("info" | "help" | "?", rest)) if !rest.contains(char::is_whitespace) => {
            let of = if start.trim_start().starts_with("info") { info::COMMANDS } else { COMMANDS };
            names(of).filter(|name| name.starts_with(rest)).map(|&name| name.into()).collect()
        }
        Some(_) => Vec::new(),
    }
}

fn line(command: &Command, prefix: &str) -> String {
    let (names, arguments) = (command.names.join("|"), command.arguments);
    // `x/fmt` is written as one word.
    let space = if arguments.is_empty() || arguments.starts_with('/') { "" } else { " " };
    format!("{prefix}{names}{space}{arguments} -- {}\n", command.help)
}

fn help(_: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let Ok(name) = arguments.word() else {
        return Ok(COMMANDS.iter().map(|command| line(command, "")).collect());
    };
    match (name.as_str(), arguments.word()) {
        ("info", Ok(subject)) => by_name(info::COMMANDS, &subject)
            .map(|command| line(command, "info "))
            .ok_or_else(|| MonitorError::Unknown(format!("info {}", clipped(&subject)))),
        ("info", Err(_)) => Ok(all_infos()),
        (name, _) => {
            let command = by_name(COMMANDS, name).ok_or_else(|| MonitorError::Unknown(clipped(name)))?;
            let more = if command.names.contains(&"watch") { watching::LANGUAGE } else { "" };
            Ok(line(command, "") + more)
        }
    }
}

fn all_infos() -> String {
    info::COMMANDS.iter().map(|command| line(command, "info ")).collect()
}

fn info_help(_: &mut Monitor, _: &mut Arguments<'_>) -> Outcome {
    Ok(all_infos())
}

fn cpu(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let index = usize::try_from(arguments.expression()?).unwrap_or(usize::MAX);
    arguments.end()?;
    monitor.set_cpu(index)?;
    Ok(String::new())
}

fn stop(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    monitor.handle.pause();
    Ok(String::new())
}

fn cont(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    if monitor.handle.run_state() == RunState::Shutdown {
        return Err(MonitorError::Other("the guest has powered off: system_reset starts it again".to_owned()));
    }
    monitor.handle.resume();
    Ok(String::new())
}

fn reset(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    monitor.handle.reset();
    Ok(String::new())
}

fn powerdown(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    monitor.handle.press_power_button();
    Ok(String::new())
}

fn quit(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    monitor.handle.quit();
    Ok(String::new())
}

/// Joins lines, each ended.
pub(crate) fn lines(all: impl IntoIterator<Item = String>) -> String {
    all.into_iter().fold(String::new(), |mut text, line| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
        text
    })
}
