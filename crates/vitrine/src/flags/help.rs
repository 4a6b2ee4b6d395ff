//! The table that `-help` prints, made from the flags themselves.

use std::fmt::Write as _;

use clap::Command;

use super::normalise::value_name;

const HEAD: &str = "\
Vitrine, an x86-64 machine under glass

    vitrine                                   the demo: Debian's kernel, and one access seen through four addresses
    vitrine view -kernel FILE …               a machine, and a page in the browser that shows it
    vitrine top unix:PATH                     the figures of a machine that runs with -qmp unix:PATH, in the terminal
    vitrine explain ADDR unix:PATH            the way of an address in a machine that runs, or (FILE) that was saved
    vitrine convert -trace-format csv boot.parquet
                                              a trace in the format of another tool
    vitrine -kernel FILE -initrd FILE -append \"console=ttyS0\" -nographic -m 128M

";

const FOOT: &str = "
Flags are QEMU's and may be written with one dash or two. Exit status: 0 when the guest powers off, that of
isa-debug-exit, 1 when something fails, 2 when the command line is wrong.
";

/// Column of the texts.
const COLUMN: usize = 22;
/// Width of the texts.
const WIDTH: usize = 120 - COLUMN;

/// The whole help.
pub fn text(command: &Command) -> String {
    let mut text = HEAD.to_owned();
    for flag in command.get_arguments() {
        let Some(long) = flag.get_long() else { continue };
        let mut names = format!("-{long}");
        for alias in flag.get_visible_aliases().unwrap_or_default() {
            let _ = write!(names, ", -{alias}");
        }
        if flag.get_action().takes_values() {
            let _ = write!(names, " {}", value_name(flag));
        }
        let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
        let mut lines = wrapped(&help).into_iter();
        let first = lines.next().unwrap_or_default();
        if names.chars().count() + 2 > COLUMN {
            let _ = write!(text, "{names}\n{:COLUMN$}{first}\n", "");
        } else {
            let _ = writeln!(text, "{names:COLUMN$}{first}");
        }
        for line in lines {
            let _ = writeln!(text, "{:COLUMN$}{line}", "");
        }
    }
    text + FOOT
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let wraps = lines.last().is_some_and(|line| !line.is_empty() && line.len() + 1 + word.len() > WIDTH);
        if wraps {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}
