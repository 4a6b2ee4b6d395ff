//! Both views of one access, side by side, and whether they agree.

use std::fmt;
use std::io::{self, Write};
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Sight;

/// What the guest says and what Vitrine saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    guest: Sight,
    /// Vitrine's line for the read, and what it says.
    vitrine: Option<(String, Sight)>,
    /// Whatever else the watch had to say: why a host physical address is not known.
    notes: Vec<String>,
    read_again: u64,
}

impl Report {
    /// Finds among the watch's `lines` that of the instruction at `read_again`.
    pub fn new(guest: Sight, lines: &[String], read_again: u64) -> Self {
        let reads = lines.iter().filter(|line| field(line, "rip") == Some(read_again));
        let vitrine = reads.filter_map(|line| Some((line.clone(), sight(line)?))).next_back();
        let notes = lines.iter().filter(|line| line.starts_with("watch: ")).cloned().collect();
        Self { guest, vitrine, notes, read_again }
    }

    /// Whether both sides saw the same.
    pub fn agrees(&self) -> bool {
        self.vitrine.as_ref().is_some_and(|(_, seen)| *seen == self.guest)
    }
}

/// The number after `name` in a line of the watch.
fn field(line: &str, name: &str) -> Option<u64> {
    let mut words = line.split_whitespace();
    words.find(|word| *word == name)?;
    u64::from_str_radix(words.next()?, 16).ok()
}

fn sight(line: &str) -> Option<Sight> {
    Some(Sight { gva: field(line, "gva")?, gpa: field(line, "gpa")?, value: field(line, "val")? })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sight { gva, gpa, value } = self.guest;
        writeln!(f, "\nThe guest's program wrote \"cons\" to a page of its own, and sees it there:\n")?;
        writeln!(f, "    GVA: {gva:x}, GPA: {gpa:x}, Val: {value:x}\n")?;
        let Some((line, seen)) = &self.vitrine else {
            return writeln!(
                f,
                "Vitrine did not see the read at rip {:x}.\n\n    ✗ nothing to compare",
                self.read_again
            );
        };
        writeln!(f, "The program read it again, and Vitrine saw that through all four addresses:\n\n    {line}")?;
        for note in &self.notes {
            writeln!(f, "    ({note})")?;
        }
        writeln!(f, "\n             {:<18}Vitrine", "guest")?;
        let rows = [("GVA", gva, seen.gva), ("GPA", gpa, seen.gpa), ("value", value, seen.value)];
        for (name, guest, vitrine) in rows {
            let mark = if guest == vitrine { "✓" } else { "✗ differs" };
            writeln!(f, "    {name:<9}{guest:<18x}{vitrine:<18x}{mark}")?;
        }
        Ok(())
    }
}

/// The watch's lines: kept while the guest boots, then printed to standard error as they come. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Lines(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    text: String,
    printed: bool,
}

impl Lines {
    /// The lines so far.
    pub fn taken(&self) -> Vec<String> {
        mem::take(&mut self.inner().text).lines().map(str::to_owned).collect()
    }

    /// From now on lines are printed.
    pub fn to_stderr(&self) {
        self.inner().printed = true;
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.inner();
        if inner.printed {
            return io::stderr().write(bytes);
        }
        inner.text.push_str(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str = "watch r4 cpu0 rip 400100 gva 1000000000 gpa 5f3000 hva 7f0000005f3000 hpa 1000 val 736e6f63";
    const AGAIN: &str = "watch r4 cpu0 rip 40012a gva 1000000000 gpa 5f3000 hva 7f0000005f3000 hpa ? val 736e6f63";
    const SIGHT: Sight = Sight { gva: 0x10_0000_0000, gpa: 0x5f_3000, value: 0x736e_6f63 };

    fn report(guest: Sight, lines: &[&str]) -> Report {
        let lines: Vec<String> = lines.iter().map(|&line| line.to_owned()).collect();
        Report::new(guest, &lines, 0x40_012a)
    }

    #[test]
    fn only_the_second_read_counts() {
        let seen = report(SIGHT, &["watch: frames are hidden", FIRST, AGAIN]);
        assert!(seen.agrees());
        let text = seen.to_string();
        assert!(text.contains(AGAIN) && !text.contains(FIRST), "{text}");
        assert!(text.contains("(watch: frames are hidden)"), "{text}");
        assert_eq!(text.matches('✓').count(), 3, "{text}");
    }

    #[test]
    fn what_differs_is_marked() {
        let seen = report(Sight { gpa: 0x60_0000, ..SIGHT }, &[FIRST, AGAIN]);
        assert!(!seen.agrees());
        let text = seen.to_string();
        assert_eq!((text.matches('✓').count(), text.matches("✗ differs").count()), (2, 1), "{text}");
    }

    #[test]
    fn a_read_that_was_not_seen_is_no_agreement() {
        let seen = report(SIGHT, &[FIRST]);
        assert!(!seen.agrees());
        assert!(seen.to_string().contains("did not see the read at rip 40012a"));
    }

    #[test]
    fn lines_are_taken_once() {
        let mut lines = Lines::default();
        lines.write_all(b"one\ntwo\n").unwrap();
        assert_eq!(lines.taken(), ["one", "two"]);
        assert!(lines.taken().is_empty());
    }
}
