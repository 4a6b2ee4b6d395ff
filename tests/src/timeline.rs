//! Reads a timeline back as Perfetto does: packets, tracks, names that are referred to by number.

use std::collections::HashMap;

/// A field of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Field<'a> {
    /// A number.
    Number(u64),
    /// Eight bytes.
    Fixed(u64),
    /// Bytes: a text, or a message.
    Bytes(&'a [u8]),
}

/// The fields of a message; `None`: it is cut, or no message.
#[must_use]
pub fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    fn varint(bytes: &mut &[u8]) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = bytes.split_first()?;
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let field = match key & 7 {
            0 => Field::Number(varint(&mut bytes)?),
            1 => {
                let (value, rest) = bytes.split_first_chunk::<8>()?;
                bytes = rest;
                Field::Fixed(u64::from_le_bytes(*value))
            }
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).ok()?;
                let (inner, rest) = bytes.split_at_checked(len)?;
                bytes = rest;
                Field::Bytes(inner)
            }
            _ => return None,
        };
        all.push((key >> 3, field));
    }
    Some(all)
}

/// An event with the names of all that belongs to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// Nanoseconds.
    pub time: u64,
    /// The tracks from the outermost to its own, joined by slashes.
    pub track: String,
    /// `TrackEvent.Type`.
    pub kind: u64,
    /// Its name; empty if it has none.
    pub name: String,
    /// What belongs to it: names and values, numbers in hexadecimal.
    pub values: Vec<(String, String)>,
    /// A counter's value.
    pub counter: Option<f64>,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("texts are UTF-8")
}

/// All events of a timeline, and how many of its bytes are whole packets.
///
/// # Panics
/// If it is none: something refers to what is not there, or time goes back.
#[must_use]
pub fn read(mut bytes: &[u8]) -> (Vec<Event>, usize) {
    let whole = bytes.len();
    let mut tracks: HashMap<u64, String> = HashMap::new();
    let mut names: HashMap<(u64, u64), String> = HashMap::new();
    let (mut events, mut first, mut last) = (Vec::new(), true, 0);
    loop {
        // Each packet is field 1 of the trace.
        let Some((packet, len)) = packet(bytes) else { return (events, whole - bytes.len()) };
        bytes = &bytes[len..];
        let packet = fields(packet).expect("a packet");
        let mut event = None;
        let mut time = None;
        for (field, value) in &packet {
            match (field, value) {
                (8, Field::Number(value)) => time = Some(*value),
                (10, value) => assert_eq!(*value, Field::Number(1), "one sequence"),
                (11, Field::Bytes(inner)) => event = Some(self::event(inner, &tracks, &names)),
                (12, Field::Bytes(inner)) => {
                    for (kind, entry) in fields(inner).expect("interned data") {
                        let Field::Bytes(entry) = entry else { panic!("entries are messages") };
                        match &fields(entry).expect("an entry")[..] {
                            [(1, Field::Number(number)), (2, Field::Bytes(name))] => {
                                let before = names.insert((kind, *number), text(name));
                                assert_eq!(before, None, "a name is given once");
                            }
                            other => panic!("an entry is a number and a name: {other:?}"),
                        }
                    }
                }
                (13, Field::Number(flags)) => assert_eq!(flags & 1 != 0, first, "cleared once, at first"),
                (60, Field::Bytes(inner)) => track(inner, &mut tracks),
                other => panic!("an unknown field of a packet: {other:?}"),
            }
        }
        first = false;
        if let Some(mut event) = event {
            event.time = time.expect("events have times");
            assert!(event.time >= last, "time goes on");
            last = event.time;
            events.push(event);
        }
    }
}

fn packet(bytes: &[u8]) -> Option<(&[u8], usize)> {
    // At most ten bytes say how long it is.
    for head in 2..=11.min(bytes.len()) {
        if bytes[head - 1] & 0x80 == 0 {
            assert_eq!(bytes[0], 0x0a, "a packet");
            let len = bytes[1..head].iter().rev().fold(0, |len, byte| len << 7 | usize::from(byte & 0x7f));
            return Some((bytes.get(head..head + len)?, head + len));
        }
    }
    None
}

fn track(bytes: &[u8], tracks: &mut HashMap<u64, String>) {
    let (mut uuid, mut name, mut parent) = (0, String::new(), None);
    for (field, value) in fields(bytes).expect("a track") {
        match (field, value) {
            (1, Field::Number(value)) => uuid = value,
            (2, Field::Bytes(value)) => name = text(value),
            (3, Field::Bytes(process)) => match &fields(process).expect("a process")[..] {
                [(1, Field::Number(_)), (6, Field::Bytes(value))] => name = text(value),
                other => panic!("a process has a number and a name: {other:?}"),
            },
            (5, Field::Number(value)) => parent = Some(value),
            (8, Field::Bytes(counter)) => assert!(fields(counter).is_some(), "a counter"),
            other => panic!("an unknown field of a track: {other:?}"),
        }
    }
    let path = parent.map_or(String::new(), |parent| format!("{}/", tracks[&parent])) + &name;
    assert_eq!(tracks.insert(uuid, path), None, "a track is described once");
}

fn event(bytes: &[u8], tracks: &HashMap<u64, String>, names: &HashMap<(u64, u64), String>) -> Event {
    let mut event = Event::default();
    for (field, value) in fields(bytes).expect("an event") {
        match (field, value) {
            (4, Field::Bytes(annotation)) => match &fields(annotation).expect("an annotation")[..] {
                [(1, Field::Number(name)), (kind @ (3 | 6 | 7), value)] => {
                    let value = match (kind, value) {
                        (6, Field::Bytes(value)) => text(value),
                        (_, Field::Number(value)) => format!("{value:x}"),
                        other => panic!("an unknown value: {other:?}"),
                    };
                    event.values.push((names[&(3, *name)].clone(), value));
                }
                other => panic!("an annotation is a name and a value: {other:?}"),
            },
            (9, Field::Number(value)) => event.kind = value,
            (10, Field::Number(value)) => event.name = names[&(2, value)].clone(),
            (11, Field::Number(value)) => event.track = tracks[&value].clone(),
            (23, Field::Bytes(value)) => event.name = text(value),
            (44, Field::Fixed(value)) => event.counter = Some(f64::from_bits(value)),
            other => panic!("an unknown field of an event: {other:?}"),
        }
    }
    event
}
