//! A question to a machine of another process, at its monitor's socket or that of its machine protocol.

use crate::PROMPT;
use crate::monitor::LINE_MAX;
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take to begin, or to go on.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer, in bytes.
const ANSWER_MAX: u64 = 16 << 20;

/// Has the monitor of the machine at the Unix socket `path` carry out a line, and gives what it says.
///
/// # Errors
/// Nobody is there, or answers as a monitor or by the machine protocol.
pub fn ask(path: &Path, line: &str) -> io::Result<String> {
    if line.len() > LINE_MAX || line.contains(['\n', '\r']) {
        return Err(io::Error::other(format!("not one line of at most {LINE_MAX} bytes")));
    }
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut to = stream.try_clone()?;
    let mut from = BufReader::new(stream.take(ANSWER_MAX));
    let protocol = from.fill_buf()?.first() == Some(&b'{');
    if !protocol {
        until_prompt(&mut from)?;
        writeln!(to, "{line}")?;
        return until_prompt(&mut from);
    }
    object(&mut from, "QMP")?;
    writeln!(to, "{}", json!({ "execute": "qmp_capabilities" }))?;
    object(&mut from, "return")?;
    let command = json!({ "execute": "human-monitor-command", "arguments": { "command-line": line } });
    writeln!(to, "{command}")?;
    match object(&mut from, "return")? {
        Value::String(text) => Ok(text),
        other => Err(io::Error::other(format!("an answer that is no text: {other}"))),
    }
}

/// All up to and without the next prompt.
fn until_prompt(from: &mut impl BufRead) -> io::Result<String> {
    let mut text = Vec::new();
    while !text.ends_with(PROMPT.as_bytes()) {
        if from.read_until(b' ', &mut text)? == 0 {
            return Err(io::Error::other("no monitor of Vitrine's answers there"));
        }
    }
    text.truncate(text.len() - PROMPT.len());
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What the next object has under `name`; those that tell of events are passed over.
fn object(from: &mut impl BufRead, name: &str) -> io::Result<Value> {
    loop {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let mut object: Value = serde_json::from_str(&line)?;
        if let Some(error) = object.get("error") {
            return Err(io::Error::other(format!("the machine answers {error}")));
        }
        if let Some(value) = object.get_mut(name) {
            return Ok(value.take());
        }
    }
}
