//! The Ctrl-A keys of the terminal, as QEMU's character multiplexer has them (`-nographic`, `mon:stdio`).
//!
//! Left out: Ctrl-A s (save disk snapshots) and Ctrl-A t (time stamps); like any unknown key they are swallowed.

/// Ctrl-A, which announces a key that is meant for Vitrine rather than for the guest.
const ESCAPE: u8 = 0x01;

/// What Ctrl-A h prints. Lines end in `\n`; raw mode leaves the terminal's output processing on.
pub const HELP: &str = "\n\
    Ctrl-A h    this help\n\
    Ctrl-A x    quit Vitrine\n\
    Ctrl-A b    send a break\n\
    Ctrl-A c    switch between console and monitor\n\
    Ctrl-A a    send Ctrl-A to the guest (so does Ctrl-A Ctrl-A)\n";

/// What the user asked for with the bytes typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Bytes for the guest.
    Input(Vec<u8>),
    /// Ctrl-A x: end the machine.
    Quit,
    /// Ctrl-A h: print [`HELP`].
    Help,
    /// Ctrl-A c: switch to the monitor.
    Monitor,
    /// Ctrl-A b: a break condition on the serial line.
    Break,
    /// Standard input has ended; the guest gets no more.
    End,
}

/// Splits what is typed into the guest's bytes and Vitrine's keys. The key may come in a later chunk than its Ctrl-A.
#[derive(Debug)]
pub struct Escape {
    enabled: bool,
    armed: bool,
}

impl Escape {
    /// `enabled`: whether Ctrl-A means anything; if not, every byte is the guest's.
    #[must_use]
    pub fn new(enabled: bool) -> Self {
        Self { enabled, armed: false }
    }

    /// The actions that `bytes` ask for, in order, neighbouring input joined.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut input = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            if !self.enabled {
                input.push(byte);
                continue;
            }
            if !self.armed {
                match byte {
                    ESCAPE => self.armed = true,
                    _ => input.push(byte),
                }
                continue;
            }
            self.armed = false;
            let action = match byte {
                ESCAPE | b'a' => {
                    input.push(ESCAPE);
                    continue;
                }
                b'x' => Action::Quit,
                b'h' | b'?' => Action::Help,
                b'c' => Action::Monitor,
                b'b' => Action::Break,
                _ => continue,
            };
            if !input.is_empty() {
                actions.push(Action::Input(std::mem::take(&mut input)));
            }
            actions.push(action);
        }
        if !input.is_empty() {
            actions.push(Action::Input(input));
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(text: &str) -> Action {
        Action::Input(text.as_bytes().to_vec())
    }

    #[test]
    fn keys_are_taken_out_of_the_input() {
        let mut escape = Escape::new(true);
        assert_eq!(escape.feed(b"ls\x01h -l\x01x"), [input("ls"), Action::Help, input(" -l"), Action::Quit]);
        assert_eq!(escape.feed(b"\x01c\x01b"), [Action::Monitor, Action::Break]);
    }

    #[test]
    fn ctrl_a_twice_or_with_a_sends_one_ctrl_a() {
        let mut escape = Escape::new(true);
        assert_eq!(escape.feed(b"1\x01\x012\x01a3"), [input("1\x012\x013")]);
    }

    #[test]
    fn the_key_may_come_later_than_its_ctrl_a() {
        let mut escape = Escape::new(true);
        assert_eq!(escape.feed(b"\x01"), []);
        assert_eq!(escape.feed(b""), []);
        assert_eq!(escape.feed(b"x"), [Action::Quit]);
        assert_eq!(escape.feed(b"x"), [input("x")]);
    }

    #[test]
    fn an_unknown_key_is_swallowed() {
        assert_eq!(Escape::new(true).feed(b"a\x01zb"), [input("ab")]);
    }

    #[test]
    fn without_the_multiplexer_every_byte_is_the_guests() {
        assert_eq!(Escape::new(false).feed(b"\x01x\x01\x01"), [input("\x01x\x01\x01")]);
    }
}
