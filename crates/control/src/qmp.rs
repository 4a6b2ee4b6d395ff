//! QEMU's machine protocol: JSON objects in, JSON objects out (QEMU's `docs/interop/qmp-spec`).
//!
//! Left out: out-of-band execution.

use crate::Monitor;
use crate::client::{Address, Outbox, Server, SocketError, Talk};
use crate::info;
use devices::sync::lock;
use machine::{Event, Handle, RunState};
use serde_json::{Map, Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

/// The longest command, in bytes.
const COMMAND_MAX: usize = 1 << 16;

type Arguments = Map<String, Value>;

/// Why a command failed: class and description.
#[derive(Debug, PartialEq, Eq)]
struct Failure(&'static str, String);

type Answer = Result<Value, Failure>;

fn failure(what: impl Into<String>) -> Failure {
    Failure("GenericError", what.into())
}

/// What an argument is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Number,
    Truth,
    /// An array of nothing that there is.
    Nothing,
}

/// An argument: its name, what it is, and whether it may be left out.
type Argument = (&'static str, Kind, bool);

/// A command: its name, its arguments, and what it does.
struct Command {
    name: &'static str,
    arguments: &'static [Argument],
    run: fn(&mut Session, &Arguments) -> Answer,
}

const COMMANDS: &[Command] = &[
    Command { name: "qmp_capabilities", arguments: &[("enable", Kind::Nothing, true)], run: capabilities },
    Command { name: "query-status", arguments: &[], run: query_status },
    Command { name: "query-version", arguments: &[], run: |_, _| Ok(version()) },
    Command { name: "query-commands", arguments: &[], run: query_commands },
    Command { name: "query-cpus-fast", arguments: &[], run: query_cpus },
    Command { name: "query-figures", arguments: &[MEASURE], run: figures },
    Command { name: "query-qmp-schema", arguments: &[], run: |_, _| Ok(schema::schema()) },
    Command { name: "human-monitor-command", arguments: HUMAN, run: human },
    Command { name: "stop", arguments: &[], run: |session, _| session.done(Handle::pause) },
    Command { name: "cont", arguments: &[], run: cont },
    Command { name: "system_reset", arguments: &[], run: |session, _| session.done(Handle::reset) },
    Command { name: "system_powerdown", arguments: &[], run: |session, _| session.done(Handle::press_power_button) },
    Command { name: "quit", arguments: &[], run: |session, _| session.done(Handle::quit) },
    Command { name: "x-vitrine-explain", arguments: &[own::ADDRESS, own::CPU], run: own::explain },
    Command { name: "x-vitrine-processes", arguments: &[own::CPU], run: own::processes },
    Command { name: "x-vitrine-read-memory", arguments: own::READ, run: own::read_memory },
    Command { name: "x-vitrine-stats", arguments: &[MEASURE], run: figures },
    Command { name: "x-vitrine-symbol", arguments: &[own::ADDRESS, own::CPU], run: own::symbol },
    Command { name: "x-vitrine-translate", arguments: &[own::ADDRESS, own::CPU], run: own::translate },
];
const MEASURE: Argument = ("measure", Kind::Truth, true);
const HUMAN: &[Argument] = &[("command-line", Kind::Text, false), own::CPU];

/// A conversation.
struct Session {
    handle: Handle,
    monitor: Monitor,
    negotiated: bool,
    client: Arc<Outbox>,
    /// Who is told of events.
    listening: Arc<Mutex<Weak<Outbox>>>,
    input: Vec<u8>,
    /// The rest of a command that was too long, or not JSON, is passed over.
    skipping: bool,
}

impl Session {
    fn done(&self, act: fn(&Handle)) -> Answer {
        act(&self.handle);
        Ok(json!({}))
    }
}

impl Talk for Session {
    fn hear(&mut self, bytes: &[u8], outbox: &Outbox) -> bool {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let ends = piece.ends_with(b"\n");
            let skipping = self.skipping;
            self.skipping &= !ends;
            if !skipping {
                self.input.extend(piece);
                if self.input.len() > COMMAND_MAX {
                    self.give_up(ends, outbox, &format!("a command of more than {COMMAND_MAX} bytes"));
                } else if ends || piece.contains(&b'}') {
                    self.execute_all(ends, outbox);
                }
            }
        }
        true
    }
}

impl Session {
    /// Passes over what there is of a command.
    fn give_up(&mut self, ends: bool, outbox: &Outbox, why: &str) {
        self.input.clear();
        self.skipping = !ends;
        outbox.send(line(&error(&failure(why), None)));
    }

    /// Carries out every command that is complete. `ends`: a line ends here.
    fn execute_all(&mut self, ends: bool, outbox: &Outbox) {
        let input = std::mem::take(&mut self.input);
        let mut values = serde_json::Deserializer::from_slice(&input).into_iter::<Value>();
        let mut done = 0;
        loop {
            match values.next() {
                Some(Ok(value)) => {
                    outbox.send(line(&self.execute(value)));
                    done = values.byte_offset();
                }
                None => return,
                Some(Err(error)) if error.is_eof() => break,
                Some(Err(error)) => {
                    self.give_up(ends, outbox, &format!("JSON parse error, {error}"));
                    return;
                }
            }
        }
        self.input = input.get(done..).unwrap_or_default().to_vec();
    }

    fn execute(&mut self, request: Value) -> Value {
        let Value::Object(mut request) = request else {
            return error(&failure("QMP input must be a JSON object"), None);
        };
        let id = request.remove("id");
        match self.answer(&mut request) {
            Ok(value) => with_id(json!({ "return": value }), id),
            Err(failure) => error(&failure, id),
        }
    }

    fn answer(&mut self, request: &mut Arguments) -> Answer {
        let name = match request.remove("execute") {
            Some(Value::String(name)) => name,
            Some(_) => return Err(failure("QMP input member 'execute' must be a string")),
            None => return Err(failure("QMP input lacks member 'execute'")),
        };
        let arguments = match request.remove("arguments") {
            Some(Value::Object(arguments)) => arguments,
            Some(_) => return Err(failure("QMP input member 'arguments' must be an object")),
            None => Map::new(),
        };
        if let Some(other) = request.keys().next() {
            return Err(failure(format!("QMP input member '{}' is unexpected", clipped(other))));
        }
        let unknown = |what: String| Failure("CommandNotFound", what);
        let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
            return Err(unknown(format!("The command {} has not been found", clipped(&name))));
        };
        if !self.negotiated && command.name != "qmp_capabilities" {
            return Err(unknown("Expecting capabilities negotiation with 'qmp_capabilities'".to_owned()));
        }
        if let Some(other) = arguments.keys().find(|key| command.arguments.iter().all(|(name, ..)| name != key)) {
            return Err(failure(format!("Parameter '{}' is unexpected", clipped(other))));
        }
        (command.run)(self, &arguments)
    }
}

mod own;
mod schema;

/// As much of a client's word as an answer repeats.
fn clipped(text: &str) -> String {
    text.chars().take(40).collect()
}

fn line(value: &Value) -> String {
    format!("{value}\r\n")
}

fn with_id(mut answer: Value, id: Option<Value>) -> Value {
    if let (Value::Object(answer), Some(id)) = (&mut answer, id) {
        answer.insert("id".to_owned(), id);
    }
    answer
}

fn error(Failure(class, what): &Failure, id: Option<Value>) -> Value {
    with_id(json!({ "error": { "class": class, "desc": what } }), id)
}

/// The member is QEMU's, which clients look for; the number is Vitrine's.
fn version() -> Value {
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    json!({
        "qemu": {
            "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
            "micro": number(env!("CARGO_PKG_VERSION_PATCH")),
        },
        "package": concat!("Vitrine ", env!("CARGO_PKG_VERSION")),
    })
}

fn capabilities(session: &mut Session, arguments: &Arguments) -> Answer {
    if session.negotiated {
        let what = "Capabilities negotiation is already complete, command ignored";
        return Err(Failure("CommandNotFound", what.to_owned()));
    }
    match arguments.get("enable") {
        None => {}
        Some(Value::Array(wanted)) if wanted.is_empty() => {}
        Some(_) => return Err(failure("Parameter 'enable' must be an empty array: there are no capabilities")),
    }
    session.negotiated = true;
    *lock(&session.listening) = Arc::downgrade(&session.client);
    Ok(json!({}))
}

fn query_status(session: &mut Session, _: &Arguments) -> Answer {
    let now = session.handle.run_state();
    Ok(json!({ "running": now == RunState::Running, "status": info::state(now) }))
}

fn query_commands(_: &mut Session, _: &Arguments) -> Answer {
    Ok(COMMANDS.iter().map(|command| json!({ "name": command.name })).collect())
}

fn query_cpus(session: &mut Session, _: &Arguments) -> Answer {
    let vcpu = |index| {
        let thread = session.handle.inspect(index, |_| rustix::thread::gettid().as_raw_nonzero().get());
        thread.map(|id| json!({ "cpu-index": index, "thread-id": id, "target": "x86_64" }))
    };
    let all: Result<Vec<Value>, _> = (0..session.handle.vcpus()).map(vcpu).collect();
    all.map(Value::Array).map_err(|error| failure(error.to_string()))
}

/// Vitrine's own: see [`crate::figures::Figures`].
/// With `measure`, instructions are counted for a moment first.
fn figures(session: &mut Session, arguments: &Arguments) -> Answer {
    let measure = match arguments.get("measure") {
        None => false,
        Some(Value::Bool(measure)) => *measure,
        Some(_) => return Err(failure("Invalid parameter type for 'measure', expected: boolean")),
    };
    let figures = session.monitor.figures(measure).map_err(|error| failure(error.to_string()))?;
    serde_json::to_value(figures).map_err(|error| failure(error.to_string()))
}

fn cont(session: &mut Session, _: &Arguments) -> Answer {
    if session.handle.run_state() == RunState::Shutdown {
        return Err(failure("Resetting the Virtual Machine is required"));
    }
    session.done(Handle::resume)
}

fn human(session: &mut Session, arguments: &Arguments) -> Answer {
    let line = own::text(arguments, "command-line")?;
    own::choose(session, arguments)?;
    Ok(Value::String(session.monitor.execute(line)))
}

/// An event as clients are told of it.
fn told(event: &Event) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (name, data) = match event {
        Event::Stop => ("STOP", None),
        Event::Resume => ("RESUME", None),
        Event::Suspend => ("SUSPEND", None),
        Event::Wakeup => ("WAKEUP", None),
        Event::Reset { guest: true } => ("RESET", Some(json!({ "guest": true, "reason": "guest-reset" }))),
        Event::Reset { guest: false } => ("RESET", Some(json!({ "guest": false, "reason": "host-qmp-system-reset" }))),
        Event::Shutdown { guest: true } => ("SHUTDOWN", Some(json!({ "guest": true, "reason": "guest-shutdown" }))),
        Event::Shutdown { guest: false } => ("SHUTDOWN", Some(json!({ "guest": false, "reason": "host-qmp-quit" }))),
    };
    let mut told = json!({
        "timestamp": { "seconds": now.as_secs(), "microseconds": now.subsec_micros() },
        "event": name,
    });
    if let (Value::Object(told), Some(data)) = (&mut told, data) {
        told.insert("data".to_owned(), data);
    }
    told
}

/// Serves the protocol at the Unix socket `path`.
///
/// # Errors
/// The socket cannot be made.
pub fn serve_qmp(path: &Path, handle: Handle) -> Result<Server, SocketError> {
    // One listener for all clients: each in turn is whom it tells.
    let listening = Arc::new(Mutex::new(Weak::<Outbox>::new()));
    let listener = listening.clone();
    handle.on_event(move |event| {
        let client = lock(&listener).upgrade();
        if let Some(outbox) = client {
            outbox.offer(line(&told(event)));
        }
    });
    Server::start(&Address::Unix(path.to_path_buf()), move |outbox| {
        outbox.send(line(&json!({ "QMP": { "version": version(), "capabilities": [] } })));
        Session {
            monitor: Monitor::new(handle.clone()),
            handle: handle.clone(),
            negotiated: false,
            client: Arc::new(outbox.clone()),
            listening: listening.clone(),
            input: Vec::new(),
            skipping: false,
        }
    })
}
