//! The demo's view of the guest's serial console: first read for what it tells, then given to the user.

use std::fs::File;
use std::io::Write;
use std::mem;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use devices::Sink;

use super::initramfs::MARK;
use crate::session::Event;

/// Longer lines are cut: a guest may print without end.
const LINE: usize = 1024;

/// Something the guest has told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Any other line, as shown while it boots.
    Text(String),
    /// What the guest's program sees of its page.
    Sight(Sight),
    /// The experiment is over, with the program's exit status.
    Done(String),
}

/// The guest's own view of its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Guest virtual address.
    pub gva: u64,
    /// Guest physical address.
    pub gpa: u64,
    /// The value there.
    pub value: u64,
}

impl Mark {
    /// What a line tells. Kernel messages may have come in between, so what counts is looked for in all of it.
    fn of(line: &str) -> Self {
        if let Some((_, rest)) = line.split_once(MARK)
            && let Some(status) = rest.trim().strip_prefix("done ")
        {
            return Self::Done(status.to_owned());
        }
        Sight::of(line).map_or_else(|| Self::Text(line.to_owned()), Self::Sight)
    }
}

impl Sight {
    fn of(line: &str) -> Option<Self> {
        let rest = line.get(line.find("GVA: ")?..)?;
        let mut numbers = rest.splitn(3, ", ").zip(["GVA: ", "GPA: ", "Val: "]).map(|(field, name)| {
            let digits = field.strip_prefix(name)?;
            let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
            u64::from_str_radix(digits.get(..end)?, 16).ok()
        });
        let (gva, gpa, value) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(Self { gva, gpa, value })
    }
}

/// Where the guest's bytes go.
#[derive(Debug)]
enum Stage {
    /// Read as lines.
    Read,
    /// The experiment is over; kept for the user.
    Held(Vec<u8>),
    /// To the user.
    Open(Box<dyn Sink>),
}

/// The sink of the serial port; clones share it.
#[derive(Clone, Debug)]
pub struct Console(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    stage: Stage,
    line: Vec<u8>,
    /// What the guest prints, kept for a look when something went wrong.
    log: Option<File>,
    /// The last lines.
    events: Sender<Event>,
}

impl Console {
    /// A console that tells `events` and writes what it reads to `log`.
    pub fn new(events: Sender<Event>, log: Option<File>) -> Self {
        Self(Arc::new(Mutex::new(Inner { stage: Stage::Read, line: Vec::new(), log, events })))
    }

    /// From now on bytes go to `user`, beginning with those since the experiment's end.
    pub fn open(&self, mut user: Box<dyn Sink>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Stage::Held(bytes) = mem::replace(&mut inner.stage, Stage::Read) {
            user.write(&bytes);
        }
        inner.stage = Stage::Open(user);
    }
}

impl Sink for Console {
    fn write(&mut self, bytes: &[u8]) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = &mut inner.log {
            // Worth having, not worth failing for.
            let _ = log.write_all(bytes);
        }
        for (at, &byte) in bytes.iter().enumerate() {
            match &mut inner.stage {
                Stage::Read => inner.read(byte),
                Stage::Held(held) => held.push(byte),
                Stage::Open(user) => return user.write(bytes.get(at..).unwrap_or_default()),
            }
        }
    }
}

impl Inner {
    fn read(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                let line = mem::take(&mut self.line);
                let mark = Mark::of(&String::from_utf8_lossy(&line));
                if matches!(mark, Mark::Done(_)) {
                    self.stage = Stage::Held(Vec::new());
                }
                let _ = self.events.send(Event::Guest(mark));
            }
            b'\r' => {}
            _ if self.line.len() < LINE => self.line.push(byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Sink for Kept {
        fn write(&mut self, bytes: &[u8]) {
            self.0.lock().unwrap().extend_from_slice(bytes);
        }
    }

    fn marks(bytes: &str) -> Vec<Mark> {
        let (events, told) = channel();
        Console::new(events, None).write(bytes.as_bytes());
        told.iter()
            .map(|event| match event {
                Event::Guest(mark) => mark,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn lines_are_told_apart() {
        let sight = Mark::Sight(Sight { gva: 0x10_0000_0000, gpa: 0x5f_3000, value: 0x736e_6f63 });
        let text = |text: &str| Mark::Text(text.to_owned());
        assert_eq!(
            marks(
                "[    0.1] Linux\r\nGVA: 1000000000, GPA: 5f3000, Val: 736e6f63\r\n@vitrine done 0\r\n@vitrine done 1\n"
            ),
            [text("[    0.1] Linux"), sight.clone(), Mark::Done("0".to_owned())]
        );
        assert_eq!(marks("[ 1.2] noiseGVA: 1000000000, GPA: 5f3000, Val: 736e6f63[ 1.3] noise\n"), [sight]);
        assert_eq!(marks("GVA: 10, GPA: \nGVA: 1, GP"), [text("GVA: 10, GPA: ")]);
        assert_eq!(marks("[ 1.2] noise@vitrine done 2\n"), [Mark::Done("2".to_owned())]);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let marks = marks(&format!("{}\nnext\n", "x".repeat(LINE * 3)));
        assert_eq!(marks, [Mark::Text("x".repeat(LINE)), Mark::Text("next".to_owned())]);
    }

    #[test]
    fn the_user_gets_what_comes_after_the_experiment() {
        let (events, _told) = channel();
        let mut console = Console::new(events, None);
        console.write(b"boot\n@vitrine done 0\r\nguest:~# ");
        let kept = Kept::default();
        console.open(Box::new(kept.clone()));
        console.write(b"ls\r\n");
        assert_eq!(*kept.0.lock().unwrap(), b"guest:~# ls\r\n");
    }
}
