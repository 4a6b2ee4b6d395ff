//! The monitor and QEMU's machine protocol on their sockets.

use super::Guest;
use crate::{PROMPT, serve_monitor, serve_qmp};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

struct Client(BufReader<UnixStream>);

impl Client {
    fn new(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(BufReader::new(stream))
    }

    fn send(&mut self, text: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(text.as_ref()).unwrap();
    }

    /// All up to and without the next prompt.
    fn answer(&mut self) -> String {
        let mut text = Vec::new();
        while !text.ends_with(PROMPT.as_bytes()) {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        text.truncate(text.len() - PROMPT.len());
        String::from_utf8(text).unwrap()
    }

    fn json(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    /// Asks, and gives the answer, which must come before any event.
    fn ask(&mut self, request: &Value) -> Value {
        self.send(format!("{request}\r\n"));
        self.json()
    }

    /// Has a command carried out and waits for its event, which may come before the answer.
    fn done_and_told(&mut self, command: &str, event: &str) {
        self.send(execute(command).to_string());
        let (mut done, mut told) = (false, false);
        while !(done && told) {
            let message = self.json();
            done |= message == json!({ "return": {} });
            told |= message["event"] == event && message["data"].is_null();
        }
    }

    /// The next event of this name; others are passed over.
    fn event(&mut self, name: &str) -> Value {
        loop {
            let told = self.json();
            if told["event"] == name {
                return told;
            }
        }
    }
}

fn execute(name: &str) -> Value {
    json!({ "execute": name })
}

fn is_error(answer: &Value, class: &str, part: &str) -> bool {
    answer["error"]["class"] == class && answer["error"]["desc"].as_str().is_some_and(|what| what.contains(part))
}

#[test]
fn the_monitor_answers_on_its_socket() {
    let guest = Guest::running();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("monitor");
    // A socket that somebody left behind is no obstacle; a file, and a socket in use, are.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = serve_monitor(&path, guest.handle.clone()).unwrap();
    assert!(serve_monitor(&path, guest.handle.clone()).unwrap_err().to_string().contains("no socket can be made"));
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(serve_monitor(&file, guest.handle.clone()).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");

    let mut client = Client::new(&path);
    assert!(client.answer().starts_with("Vitrine "));
    client.send("xp/gx 0x110000\r\ninfo status\n");
    assert_eq!(client.answer(), "0000000000110000: 0x1122334455667788\n");
    assert_eq!(client.answer(), "VM status: running\n");
    client.send(vec![b'x'; 1 << 20]);
    client.send("\n\x00\x01\u{ff}\n");
    assert_eq!(client.answer(), "a line of 1048576 bytes: 4096 at most\n");
    assert!(client.answer().starts_with("unknown command: "));
    // The next one waits until this one has gone.
    let mut next = Client::new(&path);
    drop(client);
    assert!(next.answer().starts_with("Vitrine "));
    drop(server);
    assert!(!path.exists());
}

/// As many answers as fill every buffer on the way.
#[test]
fn who_does_not_read_holds_up_nobody_else() {
    let guest = Guest::running();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("monitor");
    let _server = serve_monitor(&path, guest.handle.clone()).unwrap();
    let mut deaf = Client::new(&path);
    for _ in 0..20 {
        deaf.send("x/262144xb 0\n");
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(guest.handle.inspect(0, |_| ()).is_ok());
    deaf.0.get_ref().shutdown(Shutdown::Both).unwrap();
    assert!(Client::new(&path).answer().starts_with("Vitrine "));
}

/// A client of the machine's protocol that may give commands, and what has to stay for it.
fn negotiated(guest: &Guest) -> (Client, (TempDir, crate::Server)) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("qmp");
    let server = serve_qmp(&path, guest.handle.clone()).unwrap();
    let mut client = Client::new(&path);
    client.json();
    client.ask(&execute("qmp_capabilities"));
    (client, (folder, server))
}

#[test]
fn the_machine_protocol_is_spoken() {
    let guest = Guest::running();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("qmp");
    let _server = serve_qmp(&path, guest.handle.clone()).unwrap();
    let mut client = Client::new(&path);
    assert_eq!(client.json()["QMP"]["capabilities"], json!([]));
    assert!(is_error(&client.ask(&execute("query-status")), "CommandNotFound", "capabilities negotiation"));
    assert_eq!(client.ask(&execute("qmp_capabilities")), json!({ "return": {} }));
    assert_eq!(
        client.ask(&json!({ "execute": "query-status", "id": [1, "a"] })),
        json!({ "return": { "running": true, "status": "running" }, "id": [1, "a"] })
    );
    client.done_and_told("stop", "STOP");
    assert_eq!(client.ask(&execute("query-status"))["return"]["status"], "paused");
    client.done_and_told("cont", "RESUME");
    let ask = json!({ "execute": "human-monitor-command", "arguments": { "command-line": "xp/gx 0x110000" } });
    assert_eq!(client.ask(&ask)["return"], "0000000000110000: 0x1122334455667788\n");
    assert!(client.ask(&execute("query-commands"))["return"].as_array().unwrap().contains(&json!({ "name": "quit" })));
    assert_eq!(client.ask(&execute("query-cpus-fast"))["return"][0]["cpu-index"], 0);
    assert!(client.ask(&execute("query-version"))["return"]["package"].as_str().unwrap().starts_with("Vitrine"));
    client.send(format!("{}\n", execute("system_reset")));
    assert_eq!(client.event("RESET")["data"]["guest"], false);
    client.send(format!("{}\n", execute("quit")));
    assert_eq!(client.event("SHUTDOWN")["data"], json!({ "guest": false, "reason": "host-qmp-quit" }));
}

#[test]
fn a_watch_set_by_the_machine_protocol_stops_the_machine() {
    let guest = Guest::running();
    let (mut client, _place) = negotiated(&guest);
    let say = |line: &str| json!({ "execute": "human-monitor-command", "arguments": { "command-line": line } });
    assert_eq!(client.ask(&say("watch w:110000+8 then stop"))["return"], "1: w:110000+8 then stop, 0 hits\n");
    let wrong = client.ask(&say("watch w:110000+8 then sleep"));
    assert!(wrong["return"].as_str().unwrap().contains("column 17: "), "{wrong}");
    // The guest begins anew, and writes there.
    client.send(format!("{}\n", execute("system_reset")));
    client.event("STOP");
    assert_eq!(client.ask(&say("info status"))["return"], "VM status: paused (watch 1)\n");
    assert!(client.ask(&say("info watch"))["return"].as_str().unwrap().contains(", 1 hits, last w8 rip "));
}

#[test]
fn what_is_not_the_protocol_is_refused_and_the_conversation_goes_on() {
    let guest = Guest::running();
    let (mut client, _place) = negotiated(&guest);
    let long = format!("{{\"execute\": \"{}\"}}\n", "x".repeat(1 << 20));
    let deep = format!("{}\n", "[".repeat(10_000));
    for (text, class, part) in [
        ("hello\n", "GenericError", "JSON parse error"),
        ("{\"execute\": }\n", "GenericError", "JSON parse error"),
        ("\"text\"\n", "GenericError", "must be a JSON object"),
        ("{}\n", "GenericError", "lacks member 'execute'"),
        ("{\"execute\": 1}\n", "GenericError", "must be a string"),
        ("{\"execute\": \"stop\", \"arguments\": []}\n", "GenericError", "must be an object"),
        ("{\"execute\": \"stop\", \"arguments\": {\"now\": 1}}\n", "GenericError", "'now' is unexpected"),
        ("{\"execute\": \"stop\", \"what\": 1}\n", "GenericError", "'what' is unexpected"),
        ("{\"execute\": \"nonsense\"}\n", "CommandNotFound", "nonsense has not been found"),
        ("{\"execute\": \"qmp_capabilities\"}\n", "CommandNotFound", "already complete"),
        ("{\"execute\": \"human-monitor-command\"}\n", "GenericError", "'command-line' is missing"),
        (&long, "GenericError", "more than 65536 bytes"),
        (&deep, "GenericError", "JSON parse error"),
    ] {
        client.send(text);
        let answer = client.json();
        assert!(is_error(&answer, class, part), "{}: {answer}", &text[..text.len().min(60)]);
        assert_eq!(client.ask(&execute("query-status"))["return"]["running"], true);
    }
    client.send([0xff, 0xfe, b'\n']);
    assert!(is_error(&client.json(), "GenericError", "JSON parse error"));
    // Two at once, one in pieces.
    client.send("{\"execute\": \"query-status\"} {\"execute\": \"query-status\"}{\"execute\"");
    assert_eq!(
        (client.json()["return"]["running"].clone(), client.json()["return"]["running"].clone()),
        (json!(true), json!(true))
    );
    client.send(":\n \"query-status\"}");
    assert_eq!(client.json()["return"]["running"], true);
}

#[test]
fn programs_ask_what_people_ask_the_monitor() {
    let guest = Guest::running();
    let (mut client, _place) = negotiated(&guest);
    let mut own = |name: &str, arguments: Value| {
        client.ask(&json!({ "execute": format!("x-vitrine-{name}"), "arguments": arguments }))
    };
    let translated = own("translate", json!({ "address": "0x110000" }))["return"].take();
    assert_eq!((&translated["gva"], &translated["gpa"]), (&json!("0000000000110000"), &json!("0000000000110000")));
    let hva = guest.handle.map().hva_of(memory::Gpa(0x11_0000)).unwrap();
    assert_eq!(translated["hva"], json!(format!("{hva:016x}")));
    assert!(own("translate", json!({ "address": "0xffff800000000000" }))["return"]["gpa"].is_null());
    for physical in [false, true] {
        let read = own("read-memory", json!({ "address": "0x110000", "size": 8, "physical": physical }));
        assert_eq!(read["return"]["bytes"], "8877665544332211");
    }
    let steps = own("explain", json!({ "address": "$rip" }))["return"]["steps"].take();
    assert!(steps.as_array().is_some_and(|steps| steps.iter().any(|step| step[0] == "CR3")), "{steps}");
    assert_eq!(own("symbol", json!({ "address": "0x110000" }))["return"]["symbol"], Value::Null);
    assert!(own("stats", json!({}))["return"]["vcpus"][0]["rip"].is_string());
    let wrong = [
        ("processes", json!({}), "no symbols"),
        ("read-memory", json!({ "address": "0x110000" }), "'size' is missing"),
        ("read-memory", json!({ "address": "0x110000", "size": 1 << 30 }), "too large"),
        ("read-memory", json!({ "address": "0xfee00000", "size": 4 }), "not all of 4 bytes"),
        ("read-memory", json!({ "address": "0", "size": 4, "physical": 1 }), "expected: boolean"),
        ("translate", json!({}), "'address' is missing"),
        ("translate", json!({ "address": 1 }), "expected: string"),
        ("translate", json!({ "address": "$foo" }), "unknown register"),
        ("translate", json!({ "address": "1 2" }), "extraneous"),
        ("explain", json!({ "address": "$rip", "cpu-index": 9 }), "CPU #9"),
        ("symbol", json!({ "gva": "1" }), "'gva' is unexpected"),
    ];
    for (name, arguments, part) in wrong {
        let answer = own(name, arguments);
        assert!(is_error(&answer, "GenericError", part), "{name}: {answer}");
    }
}

#[test]
fn the_schema_has_every_command_and_type() {
    let guest = Guest::running();
    let (mut client, _place) = negotiated(&guest);
    let schema = client.ask(&execute("query-qmp-schema"))["return"].take();
    let schema = schema.as_array().unwrap();
    let find = |name: &Value| schema.iter().find(|it| it["name"] == *name).unwrap_or_else(|| panic!("no {name}"));
    for command in client.ask(&execute("query-commands"))["return"].as_array().unwrap() {
        let told = find(&command["name"]);
        assert_eq!(told["meta-type"], "command");
        for member in find(&told["arg-type"])["members"].as_array().unwrap() {
            find(&member["type"]);
        }
        find(&told["ret-type"]);
    }
    let read = find(&json!("x-vitrine-read-memory-arg"));
    assert_eq!(read["members"][1], json!({ "name": "size", "type": "int" }));
    assert_eq!(read["members"][2], json!({ "name": "physical", "type": "bool", "default": null }));
}
