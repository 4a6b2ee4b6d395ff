//! How the text of an expression is understood.

use super::{Action, CR3_FLAGS, Code, CodeStart, Condition, Field, Kinds, Operand, Relation, Start, Watch, WatchError};
use memory::{Gpa, Gva};
use std::str::FromStr;

/// The highest bit that a physical address can have, plus one (APM vol. 2, 5.1).
const PHYSICAL_BITS: u32 = 52;
/// The most bits that a virtual address can have.
const VIRTUAL_BITS: u32 = 57;
/// The longest expression, in bytes.
const LONGEST: usize = 4096;
/// How much of a longer one an error shows, in characters.
const SHOWN: usize = 60;
/// The most conditions.
const CONDITIONS: usize = 16;
/// The longest name of a process (`TASK_COMM_LEN` without its NUL).
const COMM: usize = 15;

/// What is right behind the bytes.
const BEHIND: &str = "if CONDITION, count N or then ACTION would be right";
/// What a condition is.
const CONDITION: &str = "a condition is value, old, size, cpu, cr3 or rip compared (value & ff == 63), rip in CODE, process == NAME, user \
     or kernel";

/// An expression and how much of it has been read.
struct Parser<'a> {
    text: &'a str,
    /// Bytes read.
    at: usize,
    /// It is a trace's filter.
    filter: bool,
}

type Result<T> = std::result::Result<T, WatchError>;

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn error<T>(&self, what: impl Into<String>) -> Result<T> {
        let before = self.text.get(..self.at).unwrap_or(self.text);
        let mut expression: String = self.text.chars().take(LONGEST).collect();
        if self.text.len() > LONGEST {
            expression = self.text.chars().take(SHOWN).chain("…".chars()).collect();
        }
        Err(WatchError { expression, column: before.chars().count(), what: what.into() })
    }

    /// The same, at `place`.
    fn error_at<T>(&mut self, place: usize, what: impl Into<String>) -> Result<T> {
        self.at = place;
        self.error(what)
    }

    /// What is next, for a message.
    fn found(&self) -> String {
        self.rest().chars().next().map_or("nothing".to_owned(), |c| format!("{c:?}"))
    }

    /// Reads `token` if it is next.
    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    /// Reads white space; whether there is any.
    fn space(&mut self) -> bool {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
        rest.starts_with(char::is_whitespace)
    }

    /// The word that is next.
    fn peek(&self) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        rest.get(..end).unwrap_or_default()
    }

    /// Reads `word` if that is the next one, and the space behind it.
    fn word(&mut self, word: &str) -> bool {
        let found = self.peek() == word;
        if found {
            self.at += word.len();
            self.space();
        }
        found
    }

    /// Reads `rwx:` in any selection and order.
    fn kinds(&mut self) -> Result<Kinds> {
        let both = Kinds { read: true, write: true, fetch: false };
        // A colon further on is not that of the kinds.
        let first = self.rest().split(char::is_whitespace).next().unwrap_or_default();
        let Some((word, _)) = first.split_once(':') else { return Ok(both) };
        if word.eq_ignore_ascii_case("gpa") {
            return Ok(both);
        }
        if word.is_empty() {
            return self.error("r, w, x or several of them would be right before the colon");
        }
        let kinds = self.letters(word)?;
        self.at += 1;
        Ok(kinds)
    }

    /// Reads the letters of `word`, which is next.
    fn letters(&mut self, word: &str) -> Result<Kinds> {
        let mut kinds = Kinds::default();
        for letter in word.chars() {
            let kind = match letter {
                'r' => &mut kinds.read,
                'w' => &mut kinds.write,
                'x' => &mut kinds.fetch,
                _ => {
                    return self.error(format!(
                        "{letter:?} is not a kind of access; r, w, x or several of them would be right"
                    ));
                }
            };
            if std::mem::replace(kind, true) {
                return self.error(format!("{letter:?} is there twice"));
            }
            self.at += letter.len_utf8();
        }
        Ok(kinds)
    }

    /// Reads a symbol, if one is next.
    fn symbol(&mut self) -> Option<String> {
        let rest = self.rest();
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$'))).unwrap_or(rest.len());
        let name = rest.get(..end).filter(|name| name.contains(|c: char| !c.is_ascii_hexdigit()))?;
        let name = name.strip_prefix(|c: char| !c.is_ascii_digit()).map(|_| name.to_owned())?;
        self.at += end;
        Some(name)
    }

    /// Reads `+` and a length, if they are next.
    fn length(&mut self, first: u64) -> Result<Option<u64>> {
        if !self.take("+") {
            return Ok(None);
        }
        let place = self.at;
        let len = self.number("the length")?;
        if len == 0 {
            return self.error_at(place, "the length is to be at least 1");
        }
        if first.checked_add(len - 1).is_none() {
            return self.error_at(place, "the last byte would lie past the highest address");
        }
        Ok(Some(len))
    }

    /// Reads a hexadecimal number of at most 64 bits.
    fn number(&mut self, name: &str) -> Result<u64> {
        let place = self.at;
        let number = self.wide(name)?;
        u64::try_from(number).or_else(|_| self.error_at(place, format!("{name} has more than 64 bits")))
    }

    /// Reads a hexadecimal number of at most 128 bits.
    fn wide(&mut self, name: &str) -> Result<u128> {
        let _ = self.take("0x") || self.take("0X");
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len());
        let digits = rest.get(..end).unwrap_or_default();
        if digits.is_empty() {
            let found = self.found();
            return self.error(format!("{name} is to be hexadecimal digits, as in ffff888007edec80; there is {found}"));
        }
        match u128::from_str_radix(digits, 16) {
            Ok(number) => {
                self.at += end;
                Ok(number)
            }
            Err(_) => self.error(format!("{name} has more than 128 bits")),
        }
    }

    /// Reads a decimal number, or a hexadecimal one behind `0x`.
    fn count(&mut self, name: &str) -> Result<u64> {
        if self.rest().starts_with("0x") {
            return self.number(name);
        }
        let digits = self.peek();
        match digits.parse() {
            Ok(number) if !digits.is_empty() => {
                self.at += digits.len();
                Ok(number)
            }
            _ => {
                let found = if digits.is_empty() { self.found() } else { format!("{digits:?}") };
                self.error(format!("{name} is to be a decimal number; there is {found}"))
            }
        }
    }

    /// Reads a guest virtual address.
    fn gva(&mut self) -> Result<Gva> {
        let place = self.at;
        let address = self.number("the address")?;
        if !x86::is_canonical(address, VIRTUAL_BITS) {
            let what = "the address is not canonical, so no access can have it (for a physical address: gpa:)";
            return self.error_at(place, what);
        }
        Ok(Gva(address))
    }

    /// Reads the bytes.
    fn bytes(&mut self) -> Result<(Start, u64)> {
        let physical = self.take("gpa:") || self.take("GPA:");
        let place = self.at;
        let pointer = !physical && self.take("*");
        let (start, first) = if physical {
            let address = self.number("the address")?;
            if address >> PHYSICAL_BITS != 0 {
                return self.error_at(place, format!("a physical address has at most {PHYSICAL_BITS} bits"));
            }
            (Start::Physical(Gpa(address)), address)
        } else if let Some(name) = self.symbol() {
            (Start::Symbol { name, pointer }, 0)
        } else if pointer {
            return self.error("the name of a symbol would be right behind *");
        } else {
            let gva = self.gva()?;
            (Start::Virtual(gva), gva.0)
        };
        Ok((start, self.length(first)?.unwrap_or(1)))
    }

    /// Reads a relation and the space behind it.
    fn relation(&mut self) -> Result<Relation> {
        for (token, relation) in Relation::ALL {
            if self.take(token) {
                self.space();
                return Ok(relation);
            }
        }
        let found = self.found();
        self.error(format!("==, !=, <, <=, > or >= would be right; there is {found}"))
    }

    /// Reads a condition.
    fn condition(&mut self) -> Result<Condition> {
        for (token, user) in [("user", true), ("kernel", false)] {
            if self.word(token) {
                return Ok(Condition::User(user));
            }
        }
        if self.word("process") {
            return self.process();
        }
        let Some((name, field)) = Field::ALL.into_iter().find(|(name, _)| self.word(name)) else {
            return self.error(CONDITION);
        };
        if field == Field::Rip {
            let outside = self.word("not");
            if self.word("in") {
                return Ok(Condition::Rip { inside: !outside, code: self.code()? });
            }
            if outside {
                return self.error("in would be right behind not");
            }
        }
        let mask = if !self.rest().starts_with("&&") && self.take("&") {
            self.space();
            let mask = self.wide("the mask")?;
            self.space();
            Some(mask)
        } else {
            None
        };
        let relation = self.relation()?;
        let place = self.at;
        let with = match field {
            Field::Value if self.word("old") => Operand::Old,
            _ if field.decimal() => Operand::Number(self.count(name)?.into()),
            Field::Value | Field::Old => Operand::Number(self.wide(name)?),
            _ => Operand::Number(self.number(name)?.into()),
        };
        if let (Field::Cr3, Operand::Number(number)) = (field, with)
            && number & u128::from(CR3_FLAGS) != 0
        {
            return self.error_at(
                place,
                "cr3 is an address here, whose low 12 bits (flags, or the PCID) and flags on top are 0",
            );
        }
        Ok(Condition::Compare { field, mask, relation, with })
    }

    /// Reads what `rip` is to be in.
    fn code(&mut self) -> Result<Code> {
        let (start, first) = match self.symbol() {
            Some(name) => (CodeStart::Symbol(name), None),
            None => {
                let gva = self.gva()?;
                (CodeStart::Address(gva), Some(gva.0))
            }
        };
        let len = self.length(first.unwrap_or(0))?.or(first.map(|_| 1));
        Ok(Code { start, len })
    }

    /// Reads what `process` is to be.
    fn process(&mut self) -> Result<Condition> {
        let is = match self.relation()? {
            Relation::Equal => true,
            Relation::NotEqual => false,
            _ => return self.error("a process is == NAME or != NAME"),
        };
        let place = self.at;
        let rest = self.rest();
        let (name, len) = match rest.strip_prefix('"') {
            Some(quoted) => match quoted.split_once('"') {
                Some((name, _)) => (name, name.len() + 2),
                None => return self.error("the quote does not end"),
            },
            None => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                (rest.get(..end).unwrap_or_default(), end)
            }
        };
        if name.is_empty() || name.len() > COMM || name.contains('"') {
            let what = format!("the name of a process has 1 to {COMM} bytes and no quotes (as in /proc/PID/comm)");
            return self.error_at(place, what);
        }
        self.at += len;
        Ok(Condition::Process { is, name: name.to_owned() })
    }

    /// Reads what may stand behind the bytes, into `watch`.
    fn behind(&mut self, watch: &mut Watch) -> Result<()> {
        if !self.rest().is_empty() && !self.space() {
            let found = self.found();
            return self.error(format!(
                "{found} is too much; [r|w|x|rw:][gpa:]ADDRESS[+LENGTH], in hexadecimal, or \
                 [r|w|x|rw:][*]SYMBOL[+LENGTH] would be right"
            ));
        }
        if self.word("if") {
            loop {
                if watch.conditions.len() == CONDITIONS {
                    return self.error(format!("there are {CONDITIONS} conditions, which is as many as there can be"));
                }
                watch.conditions.push(self.condition()?);
                self.space();
                if !self.word("and") {
                    if !self.take("&&") {
                        break;
                    }
                    self.space();
                }
            }
        }
        if self.word("count") {
            let place = self.at;
            let limit = self.count("the count")?;
            if limit == 0 {
                return self.error_at(place, "the count is to be at least 1");
            }
            watch.limit = Some(limit);
            self.space();
        }
        if self.filter && self.peek() == "then" {
            return self.error("a trace writes what it is given: a filter has no action");
        }
        if self.word("then") {
            let names = Action::ALL;
            match names.into_iter().find(|(name, _)| self.word(name)) {
                Some((_, action)) => watch.action = action,
                None => {
                    let right = names.map(|(name, _)| name).join(", ");
                    return self.error(format!("an action is one of {right}"));
                }
            }
        }
        if self.rest().is_empty() {
            return Ok(());
        }
        let found = self.found();
        let what = match self.peek() {
            "" => format!("{found} is too much"),
            word => format!("{word:?} is not understood here"),
        };
        let right = match (watch.action, watch.limit, watch.conditions.is_empty()) {
            (Action::Print, None, true) => BEHIND,
            (Action::Print, None, false) => "and CONDITION, count N or then ACTION would be right",
            (Action::Print, Some(_), _) => "then ACTION would be right",
            _ => "nothing comes behind the action",
        };
        self.error(format!("{what}; {right}"))
    }
}

impl Watch {
    /// As a trace's filter: kinds alone are such accesses to any address, and there is nothing to be done.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn filter(text: &str) -> Result<Self> {
        Self::parse(text, true)
    }

    fn parse(text: &str, filter: bool) -> Result<Self> {
        let mut parser = Parser { text, at: 0, filter };
        if text.len() > LONGEST {
            return parser.error(format!("an expression of {} bytes: {LONGEST} at most", text.len()));
        }
        let first = text.split(char::is_whitespace).next().unwrap_or_default();
        let kinds_alone = filter && !first.is_empty() && first.chars().all(|c| matches!(c, 'r' | 'w' | 'x'));
        let mut watch = if kinds_alone {
            let kinds = parser.letters(first)?;
            Self::everywhere(kinds)
        } else {
            let kinds = parser.kinds()?;
            let (start, len) = parser.bytes()?;
            Self::new(kinds, start, len)
        };
        parser.behind(&mut watch)?;
        Ok(watch)
    }

    /// All accesses of these kinds.
    pub(crate) fn everywhere(kinds: Kinds) -> Self {
        Self::new(kinds, Start::Physical(Gpa(0)), 1 << PHYSICAL_BITS)
    }
}

impl FromStr for Watch {
    type Err = WatchError;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text, false)
    }
}
