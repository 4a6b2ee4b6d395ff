//! `watch`, `unwatch` and `info watch`: what is watched, changed while the guest runs.

use crate::arguments::Arguments;
use crate::command::lines;
use crate::monitor::{Monitor, MonitorError, Outcome};
use lens::Listed;
use lens::watch::Start;
use memory::Agent;

/// What `help watch` says besides.
pub(crate) const LANGUAGE: &str = "\
  [KINDS:][gpa:]ADDRESS[+LENGTH] [if CONDITION [and CONDITION]...] [count N] [then ACTION]
  [KINDS:][*]SYMBOL[+LENGTH]     ...
kinds:      r, w, x or several of them (rw); addresses, lengths and values are hexadecimal
conditions: value, old, size, cpu, cr3, rip compared (value & ff == 63, value != old, size == 8)
            rip in FUNCTION|ADDRESS[+LENGTH], rip not in ..., process == NAME, user, kernel
count N:    it is over after N accesses
actions:    print (default), log, count, stop
examples:   watch r:*saved_command_line
            watch w:jiffies+8 if rip not in tick_do_update_jiffies64 then stop
            watch rw:gpa:7edec80+4 if value & ff == 63 and user count 10
";

/// `watch`: without an expression, what there is.
pub(crate) fn watch(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let text = arguments.text();
    if text.is_empty() {
        return Ok(list(monitor));
    }
    let id = monitor.watch(text)?;
    let watches = monitor.handle.lens().watches();
    Ok(lines(watches.iter().filter(|listed| listed.id == id).map(line)))
}

/// `unwatch`.
pub(crate) fn unwatch(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    for id in chosen(monitor, arguments)? {
        monitor.handle.unwatch(id)?;
    }
    Ok(String::new())
}

/// `enable`.
pub(crate) fn enable(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    turn(monitor, arguments, true)
}

/// `disable`.
pub(crate) fn disable(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    turn(monitor, arguments, false)
}

fn turn(monitor: &Monitor, arguments: &mut Arguments<'_>, on: bool) -> Outcome {
    for id in chosen(monitor, arguments)? {
        monitor.handle.enable_watch(id, on)?;
    }
    Ok(String::new())
}

/// The watches that a number, or `all`, chooses.
fn chosen(monitor: &Monitor, arguments: &mut Arguments<'_>) -> Result<Vec<u32>, MonitorError> {
    let word = arguments.word()?;
    arguments.end()?;
    let there: Vec<u32> = monitor.handle.lens().watches().iter().map(|listed| listed.id).collect();
    if word == "all" {
        return Ok(there);
    }
    let id = word.parse().ok().filter(|id| there.contains(id));
    id.map(|id| vec![id]).ok_or_else(|| {
        let shown: String = word.chars().take(40).collect();
        MonitorError::Other(format!("there is no watch '{shown}'; info watch has their numbers, and all means each"))
    })
}

/// `info watch`.
pub(crate) fn info(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    arguments.end()?;
    Ok(list(monitor))
}

fn list(monitor: &Monitor) -> String {
    let watches = monitor.handle.lens().watches();
    if watches.is_empty() {
        return "nothing is watched\n".to_owned();
    }
    lines(watches.iter().map(line))
}

fn line(listed: &Listed) -> String {
    let Listed { id, watch, place, enabled, left, hits, last } = listed;
    let state = match left {
        _ if !enabled => ", off",
        Some(0) => ", over",
        _ => "",
    };
    let place = match place {
        // By address, its expression says it all.
        Ok(_) if !matches!(watch.start, Start::Symbol { .. }) => String::new(),
        Ok((first, last)) if first == last => format!(" at {first:x}"),
        Ok((first, last)) => format!(" at {first:x}-{last:x}"),
        Err(why) => format!(" nowhere: {why}"),
    };
    let last = last.map_or(String::new(), |access| {
        let (kind, value) = (lens::format::kind(access.kind), access.value);
        let agent = match access.agent {
            Agent::Vcpu { origin, .. } => format!("rip {:x}", origin.rip),
            Agent::Device(name) => name.to_owned(),
        };
        format!(", last {kind}{} {agent} val {value:x}", access.size)
    });
    format!("{id}: {watch}{place}{state}, {hits} hits{last}")
}
