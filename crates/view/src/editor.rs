//! A line editor for the monitor on the terminal, whose keys come as the bytes that raw mode gives.
//!
//! The usual keys of Emacs and of the arrow block, a history, and completion by Tab. (Libraries for this want the
//! terminal for themselves; here it is the guest's as well, and Ctrl-A announces a key of Vitrine's.) A line that is
//! wider than the terminal moves sideways. Every character counts as one column wide.

use std::collections::VecDeque;

/// Characters of a line.
const LINE_MAX: usize = 4096;
/// Lines that are remembered.
const HISTORY_MAX: usize = 200;

/// Where the bytes of a key have got to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Key {
    /// None is on its way.
    #[default]
    Start,
    /// After ESC.
    Escape,
    /// After ESC [ or ESC O: what came behind, digits only.
    Sequence(String),
    /// Bytes of a UTF-8 character.
    Character(Vec<u8>),
}

/// What is being typed.
#[derive(Debug)]
pub struct Editor {
    prompt: &'static str,
    line: Vec<char>,
    /// Where the cursor is, 0 to the line's length.
    at: usize,
    history: VecDeque<String>,
    /// Which line of the history is shown; its length: the new one.
    place: usize,
    /// The new line, while one of the history is shown.
    new: Vec<char>,
    key: Key,
}

/// What came of the bytes typed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// What the terminal is to show.
    pub shown: String,
    /// The lines that were entered.
    pub lines: Vec<String>,
}

impl Editor {
    /// An empty line behind `prompt`.
    #[must_use]
    pub fn new(prompt: &'static str) -> Self {
        let (line, new, history) = (Vec::new(), Vec::new(), VecDeque::new());
        Self { prompt, line, at: 0, history, place: 0, new, key: Key::Start }
    }

    /// What shows prompt and line, on a terminal of `width` columns with its cursor anywhere in that line.
    #[must_use]
    pub fn redrawn(&self, width: usize) -> String {
        let room = width.saturating_sub(self.prompt.len() + 1).max(8);
        let first = self.at.saturating_sub(room);
        let text: String = self.line.iter().skip(first).take(room).collect();
        let behind = self.line.len().min(first + room) - self.at;
        let back = if behind > 0 { format!("\x1b[{behind}D") } else { String::new() };
        format!("\r{}{text}\x1b[K{back}", self.prompt)
    }

    /// Takes what was typed. `complete` gives what the word at the end of a line may be.
    pub fn feed(&mut self, bytes: &[u8], width: usize, complete: impl Fn(&str) -> Vec<String>) -> Typed {
        let mut typed = Typed::default();
        for &byte in bytes {
            match std::mem::take(&mut self.key) {
                Key::Start => self.start(byte, &mut typed, &complete),
                Key::Escape if matches!(byte, b'[' | b'O') => self.key = Key::Sequence(String::new()),
                Key::Escape => {}
                Key::Sequence(mut digits) if (byte.is_ascii_digit() || byte == b';') && digits.len() < 8 => {
                    digits.push(byte.into());
                    self.key = Key::Sequence(digits);
                }
                Key::Sequence(digits) => self.move_by(byte, &digits),
                Key::Character(mut bytes) => {
                    bytes.push(byte);
                    match std::str::from_utf8(&bytes) {
                        Ok(text) => text.chars().for_each(|c| self.insert(c)),
                        Err(error) if error.error_len().is_none() => self.key = Key::Character(bytes),
                        Err(_) => {}
                    }
                }
            }
        }
        typed.shown += &self.redrawn(width);
        typed
    }

    fn start(&mut self, byte: u8, typed: &mut Typed, complete: &impl Fn(&str) -> Vec<String>) {
        match byte {
            b'\r' | b'\n' => self.enter(typed),
            b'\t' => self.complete(typed, complete),
            0x1b => self.key = Key::Escape,
            0x01 => self.at = 0,                                // Ctrl-A
            0x05 => self.at = self.line.len(),                  // Ctrl-E
            0x02 => self.at = self.at.saturating_sub(1),        // Ctrl-B
            0x06 => self.at = self.line.len().min(self.at + 1), // Ctrl-F
            0x04 => self.delete(self.at, self.at + 1),          // Ctrl-D
            0x08 | 0x7f => self.delete(self.at.saturating_sub(1), self.at),
            0x0b => self.delete(self.at, self.line.len()),       // Ctrl-K
            0x15 => self.delete(0, self.at),                     // Ctrl-U
            0x17 => self.delete(self.word_before(), self.at),    // Ctrl-W
            0x0e => self.remember(self.place.saturating_add(1)), // Ctrl-N
            0x10 => self.remember(self.place.wrapping_sub(1)),   // Ctrl-P
            0x0c => typed.shown += "\x1b[H\x1b[2J",              // Ctrl-L
            0x03 => {
                typed.shown += "^C\r\n";
                self.delete(0, self.line.len());
            }
            0x00..=0x1f => {}
            0x20..=0x7e => self.insert(byte.into()),
            _ => self.key = Key::Character(vec![byte]),
        }
    }

    fn move_by(&mut self, last: u8, digits: &str) {
        match (last, digits) {
            (b'A', _) => self.remember(self.place.wrapping_sub(1)),
            (b'B', _) => self.remember(self.place.saturating_add(1)),
            (b'C', _) => self.at = self.line.len().min(self.at + 1),
            (b'D', _) => self.at = self.at.saturating_sub(1),
            (b'H', _) | (b'~', "1" | "7") => self.at = 0,
            (b'F', _) | (b'~', "4" | "8") => self.at = self.line.len(),
            (b'~', "3") => self.delete(self.at, self.at + 1),
            _ => {}
        }
    }

    fn insert(&mut self, character: char) {
        if self.line.len() < LINE_MAX && !character.is_control() {
            self.line.insert(self.at, character);
            self.at += 1;
        }
    }

    /// Deletes characters `from` to `to` (exclusive), as far as they are there.
    fn delete(&mut self, from: usize, to: usize) {
        let to = to.min(self.line.len());
        if from < to {
            self.line.drain(from..to);
            self.at = from;
        }
    }

    fn word_before(&self) -> usize {
        let before = self.line.iter().take(self.at).collect::<Vec<_>>();
        let word_end = before.iter().rposition(|c| !c.is_whitespace()).map_or(0, |at| at + 1);
        before.iter().take(word_end).rposition(|c| c.is_whitespace()).map_or(0, |at| at + 1)
    }

    fn enter(&mut self, typed: &mut Typed) {
        let line: String = self.line.drain(..).collect();
        typed.shown += &format!("\r{}{line}\x1b[K\r\n", self.prompt);
        if !line.trim().is_empty() && self.history.back() != Some(&line) {
            if self.history.len() == HISTORY_MAX {
                self.history.pop_front();
            }
            self.history.push_back(line.clone());
        }
        (self.at, self.place) = (0, self.history.len());
        self.new.clear();
        typed.lines.push(line);
    }

    /// Shows line `place` of the history.
    fn remember(&mut self, place: usize) {
        if place > self.history.len() || place == self.place {
            return;
        }
        if self.place == self.history.len() {
            self.new = std::mem::take(&mut self.line);
        }
        self.line =
            self.history.get(place).map_or_else(|| std::mem::take(&mut self.new), |line| line.chars().collect());
        (self.at, self.place) = (self.line.len(), place);
    }

    /// Completes the last word up to where the possibilities differ; lists them if it cannot.
    fn complete(&mut self, typed: &mut Typed, complete: &impl Fn(&str) -> Vec<String>) {
        if self.at != self.line.len() {
            return;
        }
        let line: String = self.line.iter().collect();
        let possible = complete(&line);
        let typed_part = line.rsplit(char::is_whitespace).next().unwrap_or_default().chars().count();
        let Some(first) = possible.first() else { return };
        let common = first
            .chars()
            .enumerate()
            .take_while(|(i, c)| possible.iter().all(|other| other.chars().nth(*i) == Some(*c)))
            .count();
        if possible.len() > 1 && common <= typed_part {
            typed.shown += &format!("\r\n{}\r\n", possible.join(" "));
            return;
        }
        first.chars().take(common).skip(typed_part).for_each(|c| self.insert(c));
        if possible.len() == 1 {
            self.insert(' ');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that come of these keys.
    fn lines(keys: &str) -> Vec<String> {
        let names = |start: &str| {
            let word = start.rsplit(' ').next().unwrap_or_default();
            ["quit", "stop", "step"].iter().filter(|name| name.starts_with(word)).map(|name| (*name).into()).collect()
        };
        Editor::new("> ").feed(keys.as_bytes(), 80, names).lines
    }

    #[test]
    fn keys_edit_the_line() {
        for (keys, want) in [
            ("stop\r", "stop"),
            ("sop\x1b[D\x1b[Dt\r", "stop"),
            ("stopp\x7f\r", "stop"),
            ("top\x01s\r", "stop"),
            ("top\x1b[Hs\x1b[F!\r", "stop!"),
            ("xstop\x1b[1~\x1b[3~\r", "stop"),
            ("info mem\x17tlb\r", "info tlb"),
            ("x  \x17y\r", "y"),
            ("rubbish\x15stop\r", "stop"),
            ("stop it\x02\x02\x02\x0b\r", "stop"),
            ("rubbish\x03stop\r", "stop"),
            ("ä€\u{1f600}\x7f\r", "ä€"),
            ("st\x1b[15;2Aop\x1bZ\x02\x06\x07\r", "stop"),
            ("q\t\r", "quit "),
            ("s\tep\r", "step"),
            ("zz\t\r", "zz"),
            ("\x7f\x1b[D\x1b[A\x1b[B\x04\x17\r", ""),
        ] {
            assert_eq!(lines(keys), [want], "{keys:?}");
        }
    }

    #[test]
    fn the_history_goes_both_ways_and_keeps_what_was_being_typed() {
        assert_eq!(lines("a\rb\rb\rne\x1b[A\x10\x10\x10w\rx\x1b[A\x1b[Bw\r"), ["a", "b", "b", "aw", "xw"]);
        let many: String = (0..300).map(|i| format!("{i}\r")).collect();
        assert_eq!(lines(&format!("{many}{}\r", "\x10".repeat(500))).last().unwrap(), "100");
    }

    #[test]
    fn what_is_shown_fits_and_has_the_cursor_in_place() {
        let mut editor = Editor::new("> ");
        let none = |_: &str| Vec::new();
        assert_eq!(editor.feed(b"ab\x1b[D", 80, none).shown, "\r> ab\x1b[K\x1b[1D");
        let long = editor.feed(&[b'x'; 2 * LINE_MAX], 20, none).shown;
        assert_eq!(long, format!("\r> {}\x1b[K", "x".repeat(17)), "what is behind the cursor is out of sight");
        assert_eq!(editor.feed(b"\r", 20, none).lines[0].len(), LINE_MAX);
        let list = editor.feed(b"s\t", 80, |_| vec!["stop".into(), "sum".into()]);
        assert_eq!(list.shown, "\r\nstop sum\r\n\r> s\x1b[K");
    }

    #[test]
    fn no_bytes_break_it() {
        let mut editor = Editor::new("> ");
        let mut random = 1_u32;
        for _ in 0..100_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let byte = random.to_le_bytes()[3];
            let key = if byte < 0x40 { &[0x1b, b'[', byte][..] } else { &[byte][..] };
            let _ = editor.feed(key, usize::from(byte % 40), |_| vec!["abc".into(), "abd".into()]);
            assert!(editor.at <= editor.line.len());
        }
    }
}
