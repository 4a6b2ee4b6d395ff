//! `top` on a screen that is only remembered, and against a socket that misbehaves.

use super::client::{Client, TopError};
use super::screen::Screen;
use super::{Key, meaning};
use control::figures::{Delivered, Device, Figures, Pages, Space, Tlb, Vcpu, WorkingSet};
use control::look::{LastAccess, Watched, Watching};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use tempfile::tempdir;

/// Figures after so many seconds of work.
fn figures(seconds: u64) -> Figures {
    let vcpu = Vcpu {
        rate: Some(250e6),
        rip: "ffffffff81000123".to_owned(),
        symbol: Some("schedule+0x12".to_owned()),
        paging: "4-level paging".to_owned(),
        cr3: "0000000001234000".to_owned(),
        tlb: Tlb { walks: seconds * 2_500_000, faults: 7, ..Tlb::default() },
        delivered: vec![
            Delivered { vector: 14, name: "#PF page fault".to_owned(), count: 40 * seconds },
            Delivered { vector: 0xec, name: "interrupt".to_owned(), count: 250 * seconds },
        ],
        ..Vcpu::default()
    };
    let watching = |place| Watching { id: 3, watch: "r:*saved_command_line".to_owned(), place, hits: 12 };
    Figures {
        time: seconds * 1_000_000_000,
        status: "running".to_owned(),
        memory: 128 << 20,
        vcpus: vec![vcpu],
        devices: vec![
            Device { name: "serial".to_owned(), ports: true, reads: 100, writes: 400 * seconds },
            Device { name: "hpet".to_owned(), ports: false, reads: 0, writes: 0 },
        ],
        watched: Watched {
            watches: vec![watching(Err("no symbols are found".to_owned()))],
            last: Some(LastAccess {
                watch: 3,
                kind: "r".to_owned(),
                size: 4,
                value: "736e6f63".to_owned(),
                old: None,
                device: None,
                cpu: Some(0),
                cpl: Some(0),
                cr3: Some("1000".to_owned()),
                rip: Some("ffffffff8116a8cc".to_owned()),
                by: Some("strlen+0x4".to_owned()),
                gva: Some("ffff888007edec80".to_owned()),
                at: None,
                gpa: "0000000007edec80".to_owned(),
                hva: Some("00007f084311ec80".to_owned()),
                hpa: None,
            }),
        },
        processes: vec![],
        working_set: Some(WorkingSet {
            since: 0,
            total: Pages { all: 5120, read: 4000, written: 2000, fetched: 300 },
            spaces: vec![
                Space {
                    root: "0000000001234000".to_owned(),
                    process: None,
                    pages: Pages { all: 512, read: 1, written: 2, fetched: 3 },
                },
                Space { process: Some("md5sum (77)".to_owned()), ..Space::default() },
            ],
        }),
    }
}

fn shown(screen: &Screen, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| line(y).trim_end().to_owned() + "\n").collect()
}

fn has(text: &str, words: &[&str]) -> bool {
    text.lines().any(|line| {
        let mut rest = line;
        words.iter().all(|word| match rest.split_once(word) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    })
}

#[test]
fn figures_and_rates_are_on_the_screen() {
    let mut screen = Screen::new(figures(2));
    screen.take(figures(4));
    assert!(screen.runs());
    for width in [120, 80] {
        let text = shown(&screen, width, 50);
        for words in [
            &["Vitrine", "running", "4.0 s", "128 MiB"][..],
            &["cpu0 schedule+0x12, CPL 0, 4-level paging, CR3 1234000"],
            &["250 million instructions a second"],
            &["page walks", "10.0M", "2.5M"],
            &["that faulted", "7", "0"],
            &["interrupt ech", "1000", "250"],
            &["#PF page fault", "160", "40"],
            &["serial (ports)", "1700", "400"],
            &["12 3: r:*saved_command_line", "no symbols are found"],
            &["last: r4 by strlen+0x4"],
            &["all, 4 s", "20 MiB"],
            &["CR3 1234000", "2 MiB"],
            &["md5sum (77)", "0 MiB"],
            &["q quit", "space stop"],
        ] {
            assert!(has(&text, words), "{words:?} at width {width}:\n{text}");
        }
        assert!(!text.contains("hpet"), "what nobody has accessed is left out:\n{text}");
    }
}

#[test]
fn a_machine_that_stands_has_no_rates() {
    let mut screen = Screen::new(figures(2));
    let mut paused = Figures { status: "paused".to_owned(), ..figures(2) };
    paused.vcpus[0].rate = Some(0.0);
    screen.take(paused);
    let text = shown(&screen, 120, 40);
    assert!(has(&text, &["Vitrine", "paused"]) && has(&text, &["0 million"]), "{text}");
    assert!(has(&text, &["page walks", "5.0M", "0"]) && has(&text, &["space continue"]), "{text}");
}

#[test]
fn no_terminal_is_too_small_and_nothing_to_show_is_shown() {
    let full = Screen::new(figures(2));
    let empty = Screen::new(Figures::default());
    for (width, height) in [(1, 1), (2, 3), (20, 6), (40, 12), (300, 100)] {
        shown(&full, width, height);
        shown(&empty, width, height);
    }
    assert!(has(&shown(&empty, 120, 40), &["nothing is watched", "m sets a mark"]));
}

#[test]
fn keys_have_their_meanings() {
    let key = |code, modifiers| meaning(KeyEvent::new(code, modifiers));
    assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Some(Key::Quit));
    assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Quit));
    assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
    assert_eq!(key(KeyCode::Char(' '), KeyModifiers::NONE), Some(Key::Toggle));
    assert_eq!(key(KeyCode::Char('m'), KeyModifiers::NONE), Some(Key::Mark));
    assert_eq!(key(KeyCode::Char('u'), KeyModifiers::NONE), Some(Key::Unmark));
}

/// What a client makes of a socket that says this.
fn against(path: &Path, says: &'static str) -> TopError {
    let listener = UnixListener::bind(path).unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(says.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // The client may still say something.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let error = Client::connect(path).and_then(|mut client| client.figures().map(drop)).unwrap_err();
    server.join().unwrap();
    error
}

#[test]
fn a_socket_without_a_machine_is_told_from_one() {
    let folder = tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let nobody = Client::connect(&path("nobody")).unwrap_err().to_string();
    assert!(nobody.contains("no machine is at") && nobody.contains("-qmp unix:"), "{nobody}");
    assert!(matches!(against(&path("mute"), ""), TopError::Ended));
    assert!(matches!(against(&path("http"), "HTTP/1.1 400 Bad Request\r\n"), TopError::Strange(_)));
    assert!(matches!(against(&path("other"), "{\"hello\":1}\n"), TopError::Strange(_)));
    let greeting =
        "{\"QMP\":{}}\n{\"return\":{}}\n{\"error\":{\"desc\":\"The command query-figures has not been found\"}}\n";
    let error = against(&path("qemu"), greeting).to_string();
    assert!(error.contains("query-figures has not been found"), "{error}");
}
