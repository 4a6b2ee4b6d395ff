//! Chromium without a window, driven by its DevTools protocol: JSON messages over two pipes, each ended by a zero byte.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// How long Chromium may take to answer: its first start is slow on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A Chromium with one page. It ends when dropped.
#[derive(Debug)]
pub struct Browser {
    process: Child,
    to: File,
    messages: Receiver<Value>,
    number: u64,
    session: String,
    /// What the page's scripts complained of.
    complaints: Vec<String>,
    _folder: TempDir,
}

/// Chromium, or what goes for it.
#[must_use]
pub fn find() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
    let path = std::env::var_os("PATH")?;
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let all = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    all.into_iter().find(|path| path.is_file())
}

impl Browser {
    /// Starts `chromium`.
    ///
    /// # Panics
    /// If it does not start, or does not answer.
    #[must_use]
    pub fn start(chromium: &Path) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let [to, from] = ["to", "from"].map(|name| folder.path().join(name));
        let made = Command::new("mkfifo").args([&to, &from]).status().expect("mkfifo runs");
        assert!(made.success(), "pipes can be made");
        // The shell puts the pipes where Chromium looks for them.
        let process = Command::new("sh")
            .args(["-c", r#"exec 3<"$1" 4>"$2"; shift 2; exec "$@""#, "sh"])
            .args([&to, &from])
            .arg(chromium)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"])
            .args(["--remote-debugging-pipe", "--no-first-run", "--disable-extensions", "about:blank"])
            .arg(format!("--user-data-dir={}", folder.path().join("profile").display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell runs");
        let to = OpenOptions::new().write(true).open(to).expect("the pipe opens");
        let from = BufReader::new(File::open(from).expect("the pipe opens"));
        let (sender, messages) = channel();
        thread::spawn(move || {
            for message in from.split(0) {
                let Ok(Ok(message)) = message.map(|bytes| serde_json::from_slice(&bytes)) else { return };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let (complaints, session) = (Vec::new(), String::new());
        let mut browser = Self { process, to, messages, number: 0, session, complaints, _folder: folder };
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }));
        let target = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", &target);
        browser.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.number += 1;
        let mut message = json!({ "id": self.number, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        write!(self.to, "{message}\0").expect("Chromium listens");
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let told = self.messages.recv_timeout(left).unwrap_or_else(|_| panic!("Chromium does not answer {method}"));
            let complaint = match told["method"].as_str() {
                Some("Runtime.exceptionThrown") => Some(&told["params"]["exceptionDetails"]),
                Some("Log.entryAdded") if told["params"]["entry"]["level"] == "error" => Some(&told["params"]["entry"]),
                _ => None,
            };
            self.complaints.extend(complaint.map(Value::to_string));
            if told["id"] == self.number {
                assert!(told["error"].is_null(), "{method}: {}", told["error"]);
                return told["result"].clone();
            }
        }
    }

    /// Shows `url` in a window of this size, in CSS pixels; as on a phone if `phone`.
    pub fn open(&mut self, url: &str, (width, height): (u32, u32), phone: bool, dark: bool) {
        let scale = if phone { 2 } else { 1 };
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone });
        self.call("Emulation.setDeviceMetricsOverride", &size);
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", &media);
        self.call("Page.navigate", &json!({ "url": url }));
    }

    /// The value of a JavaScript expression; a promise is waited for.
    ///
    /// # Panics
    /// If it throws.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let result = self.call("Runtime.evaluate", &parameters);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    /// Waits until a JavaScript expression is true.
    ///
    /// # Panics
    /// If it is not within `patience`.
    pub fn wait(&mut self, expression: &str, patience: Duration) {
        let start = Instant::now();
        while self.evaluate(&format!("Boolean({expression})")) != json!(true) {
            let text = || "document.body?.innerText.slice(0, 2000)";
            assert!(start.elapsed() < patience, "never true: {expression}\n{}", self.evaluate(text()));
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Writes a picture of the whole page to `path`, as PNG.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn picture(&mut self, path: &Path) {
        self.evaluate("scrollTo(0, 0)");
        let shot = self.call("Page.captureScreenshot", &json!({ "captureBeyondViewport": true }));
        let bytes = decoded(shot["data"].as_str().expect("a picture"));
        assert!(bytes.starts_with(b"\x89PNG"), "a PNG");
        fs::create_dir_all(path.parent().expect("a folder")).expect("the folder can be made");
        fs::write(path, bytes).expect("the picture can be written");
    }

    /// What the page's scripts and requests have gone wrong with so far.
    #[must_use]
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Base64 (RFC 4648), which Chromium sends without mistakes.
fn decoded(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => u32::from(c - b'A'),
        b'a'..=b'z' => u32::from(c - b'a') + 26,
        b'0'..=b'9' => u32::from(c - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|c| *c != b'=').collect();
    let group = |group: &[u8]| {
        let bits = group.iter().fold(0, |bits, c| bits << 6 | value(*c)) << (6 * (4 - group.len()));
        bits.to_be_bytes().into_iter().skip(1).take(group.len() * 6 / 8).collect::<Vec<u8>>()
    };
    digits.chunks(4).flat_map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::decoded;

    #[test]
    fn base64_is_read() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")] {
            assert_eq!(decoded(text), bytes.as_bytes());
        }
        assert_eq!(decoded("+/+/"), [0xfb, 0xff, 0xbf]);
    }
}
