//! The page's server against a machine that runs: what it answers, whom it refuses, what it bears.

use super::{Server, guard, serve};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use cpu::cpuid::Model;
use guests::{image, initramfs};
use iced_x86::code_asm::{qword_ptr, rcx};
use machine::{Config, Handle, Machine, RunState};
use serde_json::Value;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tempfile::NamedTempFile;

const SOON: Duration = Duration::from_secs(30);

/// A guest that counts in RCX and in memory, with its page.
struct Guest {
    handle: Handle,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
    _kernel: NamedTempFile,
}

impl Guest {
    fn start() -> Self {
        let image = image::long_mode(|a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.inc(rcx)?;
            a.mov(qword_ptr(image::DATA), rcx)?;
            a.jmp(again)
        });
        let kernel = initramfs::file_of(&image);
        let config =
            Config { memory: 16 << 20, kernel: Some(kernel.path().into()), ..Config::new(Arc::new(Model::max())) };
        let machine = Machine::new(config).unwrap();
        let handle = machine.handle();
        let server = serve("127.0.0.1", 0, &handle).unwrap();
        let address = server.url().strip_prefix("http://").unwrap().trim_end_matches('/').parse().unwrap();
        let thread = Some(thread::spawn(move || drop(machine.run())));
        Self { handle, address, thread, _kernel: kernel }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// Sends a request as it is; gives status and body.
    fn ask(&self, request: impl AsRef<[u8]>) -> (u16, String) {
        let mut stream = self.connect();
        // The server may refuse it before it has all come.
        let _ = stream.write_all(request.as_ref());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&*answer, ""));
        let status = head.split_whitespace().nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, body.to_owned())
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask(format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address))
    }

    fn post(&self, path: &str, body: &str) -> (u16, String) {
        let (host, length) = (self.address, body.len());
        self.ask(format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        ))
    }

    /// That the guest goes on.
    fn runs(&self) {
        let count = |vcpu: &mut machine::Vcpu| vcpu.cpu.regs[1];
        let (before, start) = (self.handle.inspect(0, count).unwrap(), Instant::now());
        while self.handle.inspect(0, count).unwrap() == before {
            assert!(start.elapsed() < SOON, "the guest goes on");
        }
    }

    fn wait(&self, what: &str, condition: impl Fn(&Handle) -> bool) {
        let start = Instant::now();
        while !condition(&self.handle) {
            assert!(start.elapsed() < SOON, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.handle.quit();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Whether the machine's vCPU notes the pages that it touches, which it does for the page. Takes what it has noted.
fn is_looked_at(handle: &Handle) -> bool {
    let notes = |vcpu: &mut machine::Vcpu| !vcpu.cpu.mmu.take_touched(true).pages.is_empty();
    // It may not have come far since the last look.
    (0..5).any(|_| handle.inspect(0, notes).unwrap())
}

/// The next look on a stream of events.
fn look(events: &mut impl BufRead) -> Value {
    loop {
        let mut line = String::new();
        assert!(events.read_line(&mut line).unwrap() > 0, "the stream goes on");
        if let Some(data) = line.strip_prefix("data:") {
            return serde_json::from_str(data).unwrap();
        }
    }
}

#[test]
fn looks_come_while_somebody_looks() {
    let guest = Guest::start();
    guest.runs();
    assert!(!is_looked_at(&guest.handle), "nobody looks: the guest runs as ever");
    let mut stream = guest.connect();
    write!(stream, "GET /api/live HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut events = BufReader::new(stream);
    look(&mut events);
    let shown = look(&mut events);
    let figures = &shown["figures"];
    assert_eq!(figures["status"], "running");
    assert!(figures["vcpus"][0]["rate"].as_f64().unwrap() > 0.0);
    let runs = shown["heat"]["runs"].as_array().unwrap();
    assert!(runs.contains(&serde_json::json!([image::DATA >> 12, 1, 2])), "the page that is written: {runs:?}");
    guest.wait("it is looked at", is_looked_at);
    drop(events);
    guest.wait("nobody looks any more", |handle| !is_looked_at(handle));
    guest.runs();
    assert!(!is_looked_at(&guest.handle));
}

#[test]
fn questions_are_answered() {
    let guest = Guest::start();
    guest.runs();
    for (path, word) in [("/", "<title>Vitrine</title>"), ("/style.css", "--accent"), ("/main.js", "EventSource")] {
        let (status, body) = guest.get(path);
        assert!(status == 200 && body.contains(word), "{path}: {status}");
    }
    let (status, chain) = guest.get(&format!("/api/chain?at=0x{:x}", image::DATA));
    assert_eq!(status, 200, "{chain}");
    assert_eq!(serde_json::from_str::<Value>(&chain).unwrap()["gpa"], format!("{:016x}", image::DATA));
    let (status, page) = guest.get(&format!("/api/page?at={:x}", image::DATA));
    assert!(status == 200 && page.contains(r#""region":"ram""#), "{page}");
    let (status, table) = guest.get("/api/table");
    assert!(status == 200 && table.contains(r#""name":"PML4""#), "{table}");
    let (status, error) = guest.get("/api/chain?at=no%20such");
    assert!(status == 400 && error.contains("no"), "{status} {error}");
    assert_eq!(guest.get("/no/such").0, 404);
    let (status, text) = guest.post("/api/monitor", r#"{"line":"info status"}"#);
    assert_eq!((status, text.as_str()), (200, r#""VM status: running\n""#));
}

#[test]
fn buttons_stop_the_machine_and_let_it_go_on() {
    let guest = Guest::start();
    guest.runs();
    assert_eq!(guest.post("/api/run", r#"{"action":"stop"}"#).0, 204);
    assert!(guest.handle.wait_paused());
    assert_eq!(guest.post("/api/run", r#"{"action":"cont"}"#).0, 204);
    guest.wait("it runs again", |handle| handle.run_state() == RunState::Running);
    for wrong in ["", "{", "[]", r#"{"action":"explode"}"#, r#"{"action":7}"#] {
        assert!((400..500).contains(&guest.post("/api/run", wrong).0), "{wrong:?}");
    }
    guest.runs();
}

#[test]
fn other_pages_are_kept_out() {
    let headers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    };
    let refused = |pairs: &[(&'static str, &'static str)]| guard::refusal(&headers(pairs), "desk.lan").is_some();
    for ours in
        ["localhost", "localhost:8086", "127.0.0.1:1", "[::1]:8086", "192.168.1.9:80", "desk.lan:9", "LOCALHOST"]
    {
        assert!(!refused(&[("host", ours)]), "{ours}");
    }
    for theirs in
        ["evil.example", "evil.example:8086", "localhost.evil.example", "127.0.0.1.nip.io", "", "[::1", "desk.lan.evil"]
    {
        assert!(refused(&[("host", theirs)]), "{theirs:?}");
    }
    let host = ("host", "localhost:8086");
    assert!(!refused(&[host, ("origin", "http://localhost:8086"), ("sec-fetch-site", "same-origin")]));
    assert!(!refused(&[host, ("sec-fetch-site", "none")]));
    assert!(!refused(&[host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]), "a link");
    for origin in ["http://localhost:8087", "http://evil.example", "https://localhost:8086", "null", ""] {
        assert!(refused(&[host, ("origin", origin)]), "{origin:?}");
    }
    for site in ["cross-site", "same-site", "?"] {
        assert!(refused(&[host, ("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")]), "{site:?}");
    }
    assert!(refused(&[]), "no host at all");

    let guest = Guest::start();
    let request = |host: &str, origin: &str| {
        let body = r#"{"action":"stop"}"#;
        guest.ask(format!(
            "POST /api/run HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        ))
    };
    assert_eq!(request("evil.example", "http://evil.example").0, 403);
    assert_eq!(request("localhost", "http://evil.example").0, 403);
    // A form of another page can send no JSON, even where a browser tells nothing of it.
    let form = "POST /api/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 17\r\n\
                Connection: close\r\n\r\n{\"action\":\"stop\"}";
    assert_eq!(guest.ask(form).0, 415);
    assert_eq!(guest.handle.run_state(), RunState::Running);
}

#[test]
fn whatever_clients_do_the_guest_goes_on() {
    let guest = Guest::start();
    for garbage in [&b"\0\0\0\0"[..], b"GET", b"\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[0xff; 70_000]] {
        let mut stream = guest.connect();
        let _ = stream.write_all(garbage);
    }
    let long = format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(100_000));
    assert!((400..500).contains(&guest.ask(long).0));
    assert_eq!(guest.post("/api/monitor", &format!(r#"{{"line":"{}"}}"#, "x".repeat(100_000))).0, 413);
    let (status, text) = guest.post("/api/monitor", &format!(r#"{{"line":"{}"}}"#, "x".repeat(5000)));
    assert!(status == 200 && text.contains("a line of 5000 bytes"), "{text}");
    // Clients that subscribe and never read, and more of them than there are places for.
    let idle: Vec<TcpStream> = (0..80)
        .map(|_| {
            let mut stream = guest.connect();
            write!(stream, "GET /api/live HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
            stream
        })
        .collect();
    guest.wait("it is looked at", is_looked_at);
    guest.runs();
    drop(idle);
    assert_eq!(guest.get("/").0, 200, "there is room again");
    guest.runs();
}

#[test]
fn a_port_that_is_taken_is_named_with_a_way_out() {
    let guest = Guest::start();
    let error = serve("127.0.0.1", guest.address.port(), &guest.handle).unwrap_err().to_string();
    assert!(error.contains(&guest.address.to_string()) && error.contains("-view :PORT"), "{error}");
    let error = serve("192.0.2.1", 0, &guest.handle).unwrap_err().to_string();
    assert!(error.contains("none of this host's addresses"), "{error}");
    assert!(serve("no.such.host.invalid", 0, &guest.handle).is_err());
    let elsewhere: Server =
        serve("::1", 0, &guest.handle).unwrap_or_else(|_| serve("127.0.0.1", 0, &guest.handle).unwrap());
    assert!(elsewhere.url().starts_with("http://"));
}

#[test]
fn a_client_that_stays_silent_does_not_stop_others() {
    let guest = Guest::start();
    let mut silent = guest.connect();
    silent.write_all(b"GET / HT").unwrap();
    assert_eq!(guest.get("/").0, 200);
    silent.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let kind = silent.read(&mut [0; 8]).unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut));
}
