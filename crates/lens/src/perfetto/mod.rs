//! A trace of what happens to a machine that <https://ui.perfetto.dev> opens: exceptions and interrupts, accesses to
//! devices, page tables, and counters over time. Single accesses to memory are the other trace's.
//!
//! The file is a sequence of packets (Perfetto's `trace.proto`, `track_event.proto`); it is written packet by packet, so
//! that what there is of it is a trace whenever a run is cut. Names are written once and referred to by number. Times are
//! the host's, in nanoseconds since the file was begun: a guest that is stopped shows as a gap. A guest waits for a slow
//! disk. At a size that is told the trace ends; a browser opens some gigabytes at most.
//!
//! Left out: durations of interrupts (a handler may never return, and IRET says not to which it belongs).

mod proto;

use crate::symbols::Table;
use memory::witness::{Delivery, DeviceAccess, Place, Witness};
use memory::{Gpa, Gva};
use proto::Message;
use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Bytes that wait to be written.
const BUFFER: usize = 1 << 16;
/// The only sequence of packets there is.
const SEQUENCE: u64 = 1;
/// The process that the guest is shown as.
const PROCESS: u64 = 1;

/// Field numbers of Perfetto's messages that are used.
mod field {
    pub const PACKET: u32 = 1;
    /// Of `TracePacket`.
    pub mod packet {
        pub const TIMESTAMP: u32 = 8;
        pub const SEQUENCE: u32 = 10;
        pub const TRACK_EVENT: u32 = 11;
        pub const INTERNED: u32 = 12;
        pub const FLAGS: u32 = 13;
        pub const TRACK: u32 = 60;
    }
    /// Of `TrackDescriptor`, and the messages in it.
    pub mod track {
        pub const UUID: u32 = 1;
        pub const NAME: u32 = 2;
        pub const PROCESS: u32 = 3;
        pub const PARENT: u32 = 5;
        pub const COUNTER: u32 = 8;
        pub const PROCESS_ID: u32 = 1;
        pub const PROCESS_NAME: u32 = 6;
        pub const UNIT_NAME: u32 = 6;
    }
    /// Of `TrackEvent`.
    pub mod event {
        pub const ANNOTATION: u32 = 4;
        pub const TYPE: u32 = 9;
        pub const NAME: u32 = 10;
        pub const TRACK: u32 = 11;
        pub const NAME_TEXT: u32 = 23;
        pub const DOUBLE: u32 = 44;
    }
    /// Of `DebugAnnotation`.
    pub mod annotation {
        pub const NAME: u32 = 1;
        pub const UINT: u32 = 3;
        pub const TEXT: u32 = 6;
        pub const POINTER: u32 = 7;
    }
    /// Of `InternedData`, and the messages in it.
    pub mod interned {
        pub const EVENT: u32 = 2;
        pub const ANNOTATION: u32 = 3;
        pub const NUMBER: u32 = 1;
        pub const NAME: u32 = 2;
    }
}

/// `TrackEvent.Type`.
#[derive(Clone, Copy)]
enum Type {
    Begin = 1,
    End = 2,
    Instant = 3,
    Counter = 4,
}

/// `TracePacket.SequenceFlags`: what was interned before is forgotten; what was interned is referred to.
const CLEARED: u64 = 1;
const REFERS: u64 = 2;

/// Why a trace ends before the guest does.
#[derive(Debug, thiserror::Error)]
pub enum PerfettoError {
    /// The file cannot be made.
    #[error("the trace {} cannot be made: {source}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// It cannot be written any further.
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the host says.
        source: io::Error,
    },
    /// It is as large as it may be.
    #[error("{} has {limit} bytes, which is all that it may have; size=… allows more", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// What it may have.
        limit: u64,
    },
}

/// A value that belongs to an event.
enum Value<'a> {
    Number(u64),
    Address(u64),
    Text(&'a str),
}

/// A line of the timeline.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Track {
    Guest,
    Cpu(u32),
    Faults(u32),
    Interrupts(u32),
    Spaces(u32),
    Counter(u32, &'static str),
    Devices,
    Device(String),
}

impl Track {
    fn parent(&self) -> Option<Self> {
        match self {
            Self::Guest => None,
            Self::Cpu(_) | Self::Devices => Some(Self::Guest),
            Self::Faults(cpu) | Self::Interrupts(cpu) | Self::Spaces(cpu) | Self::Counter(cpu, _) => {
                Some(Self::Cpu(*cpu))
            }
            Self::Device(_) => Some(Self::Devices),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Guest => "guest".to_owned(),
            Self::Cpu(cpu) => format!("cpu{cpu}"),
            Self::Faults(cpu) => format!("cpu{cpu} exceptions"),
            Self::Interrupts(cpu) => format!("cpu{cpu} interrupts"),
            Self::Spaces(cpu) => format!("cpu{cpu} page tables"),
            Self::Counter(cpu, name) => format!("cpu{cpu} {name}"),
            Self::Devices => "devices".to_owned(),
            Self::Device(name) => name.clone(),
        }
    }
}

/// What is told when the trace ends early.
type Broken = Box<dyn FnOnce(&PerfettoError) + Send>;

struct State {
    file: File,
    /// Whole packets.
    buffer: Vec<u8>,
    written: u64,
    events: u64,
    begun: bool,
    tracks: HashMap<Track, u64>,
    /// Names of events, and of what belongs to them, with their numbers.
    names: HashMap<String, u64>,
    annotations: HashMap<&'static str, u64>,
    /// The page tables that each vCPU has.
    roots: HashMap<u32, Gpa>,
    /// No more packets.
    ended: bool,
    failed: Option<PerfettoError>,
    broken: Option<Broken>,
}

/// What a trace came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Events.
    pub events: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// A trace that is being written.
pub struct Perfetto {
    path: PathBuf,
    limit: u64,
    start: Instant,
    symbols: Mutex<Arc<Table>>,
    state: Mutex<State>,
}

impl fmt::Debug for Perfetto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Perfetto").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Perfetto {
    /// Begins a trace of at most `limit` bytes. `broken` is called, at most once, when it ends early.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(
        path: &Path,
        limit: u64,
        broken: impl FnOnce(&PerfettoError) + Send + 'static,
    ) -> Result<Self, PerfettoError> {
        let file = File::create(path).map_err(|source| PerfettoError::Create { path: path.to_owned(), source })?;
        let state = State {
            file,
            buffer: Vec::with_capacity(BUFFER),
            written: 0,
            events: 0,
            begun: false,
            tracks: HashMap::new(),
            names: HashMap::new(),
            annotations: HashMap::new(),
            roots: HashMap::new(),
            ended: false,
            failed: None,
            broken: Some(Box::new(broken)),
        };
        let (start, symbols) = (Instant::now(), Mutex::default());
        Ok(Self { path: path.to_owned(), limit, start, symbols, state: Mutex::new(state) })
    }

    /// Names addresses by `symbols` from now on.
    pub fn name_by(&self, symbols: Arc<Table>) {
        *self.symbols.lock().unwrap_or_else(PoisonError::into_inner) = symbols;
    }

    fn symbol(&self, gva: Gva) -> Option<String> {
        let symbols = self.symbols.lock().unwrap_or_else(PoisonError::into_inner).clone();
        symbols.at(gva).map(|named| named.to_string())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a vCPU's counters as they are now.
    pub fn counters(&self, cpu: u32, counters: &[(&'static str, f64)]) {
        let mut state = self.state();
        for (name, value) in counters {
            let track = self.track(&mut state, &Track::Counter(cpu, name));
            self.event(&mut state, track, Type::Counter, |event| {
                event.double(field::event::DOUBLE, *value);
            });
        }
    }

    /// Writes out what waits, so that a run that is cut loses little.
    pub fn flush(&self) {
        self.write(&mut self.state());
    }

    /// Ends the trace.
    ///
    /// # Errors
    /// Why it has ended before; that has been told, too.
    pub fn finish(&self) -> Result<Written, PerfettoError> {
        let mut state = self.state();
        self.write(&mut state);
        state.ended = true;
        match state.failed.take() {
            Some(error) => Err(error),
            None => Ok(Written { events: state.events, bytes: state.written }),
        }
    }

    /// Writes out the buffer.
    fn write(&self, state: &mut State) {
        if state.ended || state.buffer.is_empty() {
            return;
        }
        let buffer = std::mem::take(&mut state.buffer);
        let fits = state.written + buffer.len() as u64 <= self.limit;
        let error = if !fits {
            PerfettoError::Full { path: self.path.clone(), limit: self.limit }
        } else {
            match state.file.write_all(&buffer) {
                Ok(()) => {
                    state.written += buffer.len() as u64;
                    state.buffer = buffer;
                    state.buffer.clear();
                    return;
                }
                Err(source) => PerfettoError::Write { path: self.path.clone(), source },
            }
        };
        // Not to leave half a packet; what cannot be cut off is read as far as it goes.
        let _ = state.file.set_len(state.written);
        state.ended = true;
        if let Some(broken) = state.broken.take() {
            broken(&error);
        }
        state.failed = Some(error);
    }

    fn packet(&self, state: &mut State, fill: impl FnOnce(&mut Message)) {
        if state.ended {
            return;
        }
        let mut packet = Message::default();
        packet.message(field::PACKET, |packet| {
            fill(packet);
            packet.number(field::packet::SEQUENCE, SEQUENCE);
            let cleared = if std::mem::replace(&mut state.begun, true) { 0 } else { CLEARED };
            packet.number(field::packet::FLAGS, REFERS | cleared);
        });
        state.buffer.extend(packet.into_bytes());
        if state.buffer.len() >= BUFFER {
            self.write(state);
        }
    }

    /// The number of a track, which is described when it is first used.
    fn track(&self, state: &mut State, track: &Track) -> u64 {
        if let Some(uuid) = state.tracks.get(track) {
            return *uuid;
        }
        let parent = track.parent().map(|parent| self.track(state, &parent));
        let uuid = state.tracks.len() as u64 + 1;
        state.tracks.insert(track.clone(), uuid);
        self.packet(state, |packet| {
            packet.message(field::packet::TRACK, |descriptor| {
                descriptor.number(field::track::UUID, uuid);
                if let Some(parent) = parent {
                    descriptor.number(field::track::PARENT, parent);
                }
                match track {
                    Track::Guest => {
                        descriptor.message(field::track::PROCESS, |process| {
                            process.number(field::track::PROCESS_ID, PROCESS);
                            process.text(field::track::PROCESS_NAME, &track.name());
                        });
                    }
                    Track::Counter(..) => {
                        descriptor.text(field::track::NAME, &track.name());
                        descriptor.message(field::track::COUNTER, |counter| {
                            counter.text(field::track::UNIT_NAME, "/s");
                        });
                    }
                    _ => {
                        descriptor.text(field::track::NAME, &track.name());
                    }
                }
            });
        });
        uuid
    }

    /// The number of an event's name.
    fn name(&self, state: &mut State, name: &str) -> u64 {
        if let Some(number) = state.names.get(name) {
            return *number;
        }
        let number = state.names.len() as u64 + 1;
        state.names.insert(name.to_owned(), number);
        self.intern(state, field::interned::EVENT, number, name);
        number
    }

    fn annotation(&self, state: &mut State, name: &'static str) -> u64 {
        if let Some(number) = state.annotations.get(name) {
            return *number;
        }
        let number = state.annotations.len() as u64 + 1;
        state.annotations.insert(name, number);
        self.intern(state, field::interned::ANNOTATION, number, name);
        number
    }

    fn intern(&self, state: &mut State, kind: u32, number: u64, name: &str) {
        self.packet(state, |packet| {
            packet.message(field::packet::INTERNED, |interned| {
                interned.message(kind, |entry| {
                    entry.number(field::interned::NUMBER, number);
                    entry.text(field::interned::NAME, name);
                });
            });
        });
    }

    fn event(&self, state: &mut State, track: u64, kind: Type, fill: impl FnOnce(&mut Message)) {
        // Within the lock, so that times never go back.
        let now = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        state.events += u64::from(!state.ended);
        self.packet(state, |packet| {
            packet.number(field::packet::TIMESTAMP, now);
            packet.message(field::packet::TRACK_EVENT, |event| {
                event.number(field::event::TYPE, kind as u64);
                event.number(field::event::TRACK, track);
                fill(event);
            });
        });
    }

    /// An event with a name and what belongs to it.
    fn named(&self, track: &Track, name: &str, values: &[(&'static str, Value<'_>)]) {
        let state = &mut *self.state();
        if state.ended {
            return;
        }
        let (track, name) = (self.track(state, track), self.name(state, name));
        let numbers: Vec<u64> = values.iter().map(|(name, _)| self.annotation(state, name)).collect();
        self.event(state, track, Type::Instant, |event| {
            event.number(field::event::NAME, name);
            for ((_, value), number) in values.iter().zip(numbers) {
                event.message(field::event::ANNOTATION, |annotation| {
                    annotation.number(field::annotation::NAME, number);
                    match value {
                        Value::Number(value) => annotation.number(field::annotation::UINT, *value),
                        Value::Address(value) => annotation.number(field::annotation::POINTER, *value),
                        Value::Text(text) => annotation.text(field::annotation::TEXT, text),
                    };
                });
            }
        });
    }
}

impl Witness for Perfetto {
    fn device(&self, access: &DeviceAccess<'_>) {
        let DeviceAccess { device, place, size, value, write } = *access;
        let (kind, address) = match place {
            Place::Memory(gpa) => ("memory", gpa.0),
            Place::Port(port) => ("ports", port.into()),
        };
        let track = Track::Device(format!("{device} ({kind})"));
        let values = [
            ("address", Value::Address(address)),
            ("value", Value::Address(value)),
            ("size", Value::Number(size as u64)),
        ];
        self.named(&track, if write { "write" } else { "read" }, &values);
    }

    fn delivered(&self, delivery: &Delivery) {
        let Delivery { cpu, vector, code, rip, cpl, address } = *delivery;
        // The first 32 are the processor's own.
        let track = if vector < 32 { Track::Faults(cpu) } else { Track::Interrupts(cpu) };
        let name = if vector < 32 { x86::vector_name(vector).to_owned() } else { format!("interrupt {vector:x}h") };
        let by = self.symbol(rip);
        let mut values = vec![("rip", Value::Address(rip.0)), ("cpl", Value::Number(cpl.into()))];
        values.extend(by.as_deref().map(|by| ("by", Value::Text(by))));
        values.extend(code.map(|code| ("error code", Value::Address(code.into()))));
        values.extend(address.map(|address| ("address", Value::Address(address.0))));
        self.named(&track, &name, &values);
    }

    fn switched(&self, cpu: u32, root: Gpa) {
        let mut state = self.state();
        let before = state.roots.insert(cpu, root);
        if before == Some(root) {
            return;
        }
        let track = Track::Spaces(cpu);
        if before.is_some() {
            let number = self.track(&mut state, &track);
            self.event(&mut state, number, Type::End, |_| {});
        }
        let number = self.track(&mut state, &track);
        // A guest can have as many page tables as it likes: their names are not kept.
        self.event(&mut state, number, Type::Begin, |event| {
            event.text(field::event::NAME_TEXT, &format!("CR3 {root:x}"));
        });
    }
}

#[cfg(test)]
mod tests;
