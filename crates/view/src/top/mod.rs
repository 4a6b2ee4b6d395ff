//! `vitrine top`: the figures of a running machine in the terminal.
//!
//! It asks by QEMU's machine protocol (`client`) and shows what has come (`screen`), twice a second. The machine is in
//! another process, which goes on whatever becomes of this one.

mod client;
mod screen;

pub use client::TopError;

use client::Client;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use rustix::stdio::{stdin, stdout};
use rustix::termios::isatty;
use screen::Screen;
use std::path::Path;
use std::time::{Duration, Instant};

/// From one look to the next.
const PERIOD: Duration = Duration::from_millis(500);

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Quit,
    /// Stop the machine, or let it go on.
    Toggle,
    Mark,
    Unmark,
}

/// Shows the machine whose QMP socket is at `path`, until the user has enough or the machine ends.
///
/// # Errors
/// There is no terminal, or no such machine.
pub fn run(path: &Path) -> Result<(), TopError> {
    if !isatty(stdin()) || !isatty(stdout()) {
        return Err(TopError::NoTerminal);
    }
    let mut client = Client::connect(path)?;
    let mut screen = Screen::new(client.figures()?);
    let mut terminal = ratatui::try_init().map_err(TopError::Terminal)?;
    let end = follow(&mut client, &mut screen, &mut terminal);
    ratatui::restore();
    end
}

fn follow(client: &mut Client, screen: &mut Screen, terminal: &mut ratatui::DefaultTerminal) -> Result<(), TopError> {
    let mut next = Instant::now() + PERIOD;
    loop {
        terminal.draw(|frame| screen.draw(frame)).map_err(TopError::Terminal)?;
        while event::poll(next.saturating_duration_since(Instant::now())).map_err(TopError::Terminal)? {
            let Event::Key(key) = event::read().map_err(TopError::Terminal)? else { break };
            match meaning(key) {
                Some(Key::Quit) => return Ok(()),
                Some(Key::Toggle) => client.tell(if screen.runs() { "stop" } else { "cont" })?,
                Some(Key::Mark) => client.say("info working-set mark")?,
                Some(Key::Unmark) => client.say("info working-set off")?,
                None => {}
            }
        }
        if Instant::now() >= next {
            screen.take(client.figures()?);
            next = Instant::now() + PERIOD;
        }
    }
}

fn meaning(key: KeyEvent) -> Option<Key> {
    if key.kind != KeyEventKind::Press {
        return None;
    }
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
        KeyCode::Char(' ') => Some(Key::Toggle),
        KeyCode::Char('m') => Some(Key::Mark),
        KeyCode::Char('u') => Some(Key::Unmark),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
