//! The arguments of a monitor command, taken one after the other.

use crate::expression::{self, Lookup};
use crate::monitor::MonitorError;

/// How values are shown: what stands behind a slash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// How many.
    pub count: u64,
    /// How: `x`, `d`, `u`, `o`, `c`, `i` or `s`.
    pub kind: char,
    /// Bytes of each: 1, 2, 4 or 8.
    pub size: usize,
}

impl Default for Format {
    fn default() -> Self {
        Self { count: 1, kind: 'x', size: 4 }
    }
}

/// What is left of a command's line.
pub(crate) struct Arguments<'a> {
    rest: &'a str,
    values: Lookup<'a>,
}

impl<'a> Arguments<'a> {
    pub fn new(rest: &'a str, values: Lookup<'a>) -> Self {
        Self { rest: rest.trim(), values }
    }

    /// The value of the expression that is next.
    pub fn expression(&mut self) -> Result<u64, MonitorError> {
        Ok(expression::take(&mut self.rest, self.values)?)
    }

    /// The value of the expression that is next, behind which a file is named: a slash with space before it and none behind
    /// it begins a path and divides nothing.
    pub fn expression_before_file(&mut self) -> Result<u64, MonitorError> {
        let path =
            |at: usize| self.rest.get(at + 2..).is_some_and(|rest| rest.starts_with(|c: char| !c.is_whitespace()));
        let end = self.rest.match_indices(" /").map(|(at, _)| at).find(|at| path(*at)).unwrap_or(self.rest.len());
        let (mut expression, path) = self.rest.split_at(end);
        let value = expression::take(&mut expression, self.values)?;
        let left = expression.len() + path.len();
        self.rest = self.rest.get(self.rest.len() - left..).unwrap_or_default().trim_start();
        Ok(value)
    }

    /// As [`Arguments::expression`], if anything is next.
    pub fn optional(&mut self) -> Result<Option<u64>, MonitorError> {
        if self.rest.is_empty() { Ok(None) } else { self.expression().map(Some) }
    }

    /// The next word, or what stands in double quotes. There, a backslash takes the next character as it is.
    pub fn word(&mut self) -> Result<String, MonitorError> {
        let Some(quoted) = self.rest.strip_prefix('"') else {
            let len = self.rest.find(char::is_whitespace).unwrap_or(self.rest.len());
            let (word, rest) = self.rest.split_at(len);
            self.rest = rest.trim_start();
            return if word.is_empty() { Err(MonitorError::Missing) } else { Ok(word.to_owned()) };
        };
        let mut word = String::new();
        let mut characters = quoted.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.rest = quoted.get(at + 1..).unwrap_or_default().trim_start();
                    return Ok(word);
                }
                '\\' => word.extend(characters.next().map(|(_, character)| character)),
                _ => word.push(character),
            }
        }
        Err(MonitorError::Quote)
    }

    /// All that is left, as it is.
    pub fn text(&mut self) -> &'a str {
        std::mem::take(&mut self.rest)
    }

    /// Takes `-letter`, if it is next.
    pub fn flag(&mut self, letter: char) -> bool {
        let flag = self.rest.strip_prefix('-').and_then(|rest| rest.strip_prefix(letter));
        match flag.filter(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    /// Takes a format behind a slash, if that is next; what it does not say is as in `last`.
    pub fn format(&mut self, last: Format) -> Result<Format, MonitorError> {
        let mut format = Format { count: 1, ..last };
        let Some(rest) = self.rest.strip_prefix('/') else { return Ok(format) };
        let len = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let (text, rest) = rest.split_at(len);
        self.rest = rest.trim_start();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (count, letters) = text.split_at(digits);
        if !count.is_empty() {
            format.count = count.parse().unwrap_or(u64::MAX);
        }
        for letter in letters.chars() {
            match letter {
                'x' | 'd' | 'u' | 'o' | 'c' | 'i' | 's' => format.kind = letter,
                'b' => format.size = 1,
                'h' => format.size = 2,
                'w' => format.size = 4,
                'g' => format.size = 8,
                _ => return Err(MonitorError::Format(letter)),
            }
        }
        Ok(format)
    }

    /// Nothing must be left.
    pub fn end(&self) -> Result<(), MonitorError> {
        match self.rest.chars().next() {
            None => Ok(()),
            Some(_) => Err(MonitorError::Extraneous(self.rest.chars().take(40).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str) -> Arguments<'_> {
        Arguments::new(text, &|_| Ok(None))
    }

    #[test]
    fn formats() {
        let last = Format { count: 9, kind: 'd', size: 2 };
        for (text, count, kind, size) in [
            ("", 1, 'd', 2),
            ("/x", 1, 'x', 2),
            ("/10gx", 10, 'x', 8),
            ("/4", 4, 'd', 2),
            ("/99999999999999999999999c", u64::MAX, 'c', 2),
            ("/wo", 1, 'o', 4),
        ] {
            assert_eq!(arguments(text).format(last), Ok(Format { count, kind, size }), "{text}");
        }
        assert_eq!(arguments("/q 0").format(last), Err(MonitorError::Format('q')));
    }

    #[test]
    fn a_path_is_no_quotient() {
        for (text, value, name) in [
            ("8 /tmp/a b", 8, "/tmp/a"),
            ("8/2 /tmp/a", 4, "/tmp/a"),
            ("8 / 2 /tmp/a", 4, "/tmp/a"),
            ("8 \"/tmp/a b\"", 8, "/tmp/a b"),
            ("8 a/b", 8, "a/b"),
        ] {
            let mut all = arguments(text);
            assert_eq!((all.expression_before_file(), all.word()), (Ok(value), Ok(name.into())), "{text}");
        }
        assert!(arguments("/tmp/a").expression_before_file().is_err());
        assert!(arguments("").expression_before_file().is_err());
    }

    #[test]
    fn words_flags_and_the_end() {
        let mut all = arguments("-a  one \"t w\\\"o\" 3");
        assert!(!all.flag('b') && all.flag('a'));
        assert_eq!((all.word(), all.word()), (Ok("one".into()), Ok("t w\"o".into())));
        assert!(all.end().is_err());
        assert_eq!((all.optional(), all.optional()), (Ok(Some(3)), Ok(None)));
        assert_eq!(all.end(), Ok(()));
        assert_eq!((all.word(), arguments("\"a").word()), (Err(MonitorError::Missing), Err(MonitorError::Quote)));
    }
}
