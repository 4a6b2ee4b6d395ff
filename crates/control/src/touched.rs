//! `info working-set`: the pages that were touched since a mark.

use crate::arguments::Arguments;
use crate::command::lines;
use crate::figures::process_of;
use crate::monitor::{Monitor, MonitorError, Outcome};
use lens::symbols::Process;
use lens::touched::{Pages, WorkingSet};

/// Address spaces that are shown.
const SPACES_MAX: usize = 64;

/// `info working-set`.
pub(crate) fn working_set(monitor: &mut Monitor, arguments: &mut Arguments<'_>) -> Outcome {
    let word = arguments.word().ok();
    arguments.end()?;
    match word.as_deref() {
        Some("mark") => {
            monitor.handle.mark_working_set()?;
            Ok("marked: 'info working-set' shows what is touched from now on\n".to_owned())
        }
        Some("off") => {
            monitor.handle.forget_working_set()?;
            Ok(String::new())
        }
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            Err(MonitorError::Other(format!(
                "'{other}' is not 'mark' or 'off', or nothing, which shows the working set"
            )))
        }
        None => match monitor.handle.working_set()? {
            Some(set) => {
                // Where they cannot be listed, the roots have to do.
                let processes = monitor.processes(monitor.snapshot()?).unwrap_or_default();
                Ok(shown(&set, &processes, monitor.handle.stats().time))
            }
            None => Ok("no mark is set: 'info working-set mark' sets one\n".to_owned()),
        },
    }
}

fn shown(set: &WorkingSet, processes: &[Process], now: u64) -> String {
    let seconds = now.saturating_sub(set.since) as f64 / 1e9;
    let row = |name: &str, Pages { all, read, written, fetched }: Pages| {
        format!("{name:<18} {all:>8} {:>7} MiB {read:>8} {written:>8} {fetched:>8}", all.div_ceil(256))
    };
    let head =
        format!("{:<18} {:>8} {:>11} {:>8} {:>8} {:>8}", "page tables at", "pages", "", "read", "written", "fetched");
    let spaces = set.spaces.iter().take(SPACES_MAX).map(|(root, pages)| {
        let process = process_of(processes, root.0).map(|process| format!("  {process}")).unwrap_or_default();
        row(&format!("{root:016x}"), *pages) + &process
    });
    let mut text = format!("touched in {seconds:.3} s since the mark:\n{}", lines([head]));
    text += &lines(spaces);
    if let Some(more) = set.spaces.len().checked_sub(SPACES_MAX).filter(|more| *more > 0) {
        text += &format!("... and {more} more address spaces\n");
    }
    text += &lines([row("all, each once", set.total)]);
    if set.lost > 0 {
        text += "there were more pages than are kept: the figures are too low\n";
    }
    text
}
