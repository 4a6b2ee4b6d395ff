//! What the protocol has, in its own terms (QEMU's `qapi/introspect.json`): `query-qmp-schema`.
//!
//! Arguments are described in full; what comes back, and what an event brings, is told as any value.

use super::{COMMANDS, Command, Kind};
use serde_json::{Value, json};

/// Events, as QEMU names them.
const EVENTS: [&str; 4] = ["STOP", "RESUME", "RESET", "SHUTDOWN"];

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Text => "str",
        Kind::Number => "int",
        Kind::Truth => "bool",
        Kind::Nothing => "[any]",
    }
}

/// A command, and the object that its arguments are.
fn command(command: &Command) -> [Value; 2] {
    let of = format!("{}-arg", command.name);
    let member = |(member, kind, optional): &(&str, Kind, bool)| {
        let mut told = json!({ "name": member, "type": name(*kind) });
        if let (Value::Object(told), true) = (&mut told, *optional) {
            told.insert("default".to_owned(), Value::Null);
        }
        told
    };
    let members: Vec<Value> = command.arguments.iter().map(member).collect();
    [
        json!({ "meta-type": "command", "name": command.name, "arg-type": of, "ret-type": "any" }),
        json!({ "meta-type": "object", "name": of, "members": members }),
    ]
}

/// All of it.
pub(super) fn schema() -> Value {
    let builtin = |(name, json): (&str, &str)| json!({ "meta-type": "builtin", "name": name, "json-type": json });
    let types = [("str", "string"), ("int", "int"), ("bool", "boolean"), ("any", "value")].map(builtin);
    let list = json!({ "meta-type": "array", "name": "[any]", "element-type": "any" });
    let event = |name| json!({ "meta-type": "event", "name": name, "arg-type": "any" });
    types.into_iter().chain([list]).chain(EVENTS.map(event)).chain(COMMANDS.iter().flat_map(command)).collect()
}
