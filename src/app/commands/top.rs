//! `fasts3-mount top`: the rates of a mount, updated continuously.
//!
//! Rates are differences of two [`Status`]es; the daemon keeps nothing for them. They are drawn on
//! a terminal until q, and printed as lines anywhere else.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};

use super::client::status;
use crate::app::command_error::CommandError;
use crate::app::control::status::Status;

mod draw;
mod rates;

use draw::draw;
use rates::Rates;

/// The longest wait for the first picture, which has little to show yet.
const FIRST_PICTURE: Duration = Duration::from_millis(200);

/// Shows rates every `interval`: until q, `count` times, or until the mount has ended.
pub(super) fn run(
    mountpoint: &Path,
    json: bool,
    interval: Duration,
    count: Option<u64>,
) -> Result<(), CommandError> {
    let mut watched = Watched { mountpoint, last: status(mountpoint)? };
    let count = count.unwrap_or(u64::MAX);
    if json || !can_draw() {
        watched.print(json, interval, count)
    } else {
        watched.draw(interval, count)
    }
}

struct Watched<'a> {
    mountpoint: &'a Path,
    last: Status,
}

impl Watched<'_> {
    /// The rates since the last status.
    fn rates(&mut self) -> Result<Rates, CommandError> {
        // It was mounted when this program began.
        let ended = format!("the mount on {} has ended", self.mountpoint.display());
        let ended = CommandError::no_mount(ended);
        let now = status(self.mountpoint)
            .map_err(|error| if error.exit == ended.exit { ended } else { error })?;
        let rates = Rates::between(&self.last, &now);
        self.last = now;
        Ok(rates)
    }

    fn print(&mut self, json: bool, interval: Duration, count: u64) -> Result<(), CommandError> {
        for _ in 0..count {
            std::thread::sleep(interval);
            let rates = self.rates()?;
            let text = if json { serde_json::to_string(&rates).ok() } else { None };
            let text = text.unwrap_or_else(|| rates.text());
            // The reader of the pipe may have seen enough.
            if writeln!(std::io::stdout(), "{text}").is_err() {
                break;
            }
        }
        Ok(())
    }

    fn draw(&mut self, interval: Duration, count: u64) -> Result<(), CommandError> {
        let mut terminal = ratatui::try_init().map_err(|error| {
            CommandError::failed(format!("this terminal cannot be drawn on: {error}"))
        })?;
        let failed = |error| CommandError::failed(format!("the terminal: {error}"));
        let mut draw_all = || {
            let mut wait = FIRST_PICTURE.min(interval);
            let mut drawn = None;
            for _ in 0..count {
                let due = Instant::now() + wait;
                while let Some(event) = next_event(due).map_err(failed)? {
                    if is_end(&event) {
                        return Ok(());
                    }
                    // The size may have changed.
                    if let Some(rates) = &drawn {
                        let _ = terminal.draw(|frame| draw(frame, rates));
                    }
                }
                let rates = self.rates()?;
                terminal.draw(|frame| draw(frame, &rates)).map_err(failed)?;
                (drawn, wait) = (Some(rates), interval);
            }
            Ok(())
        };
        let outcome = draw_all();
        // A terminal that has become larger may keep parts of the picture otherwise.
        let _ = terminal.clear();
        ratatui::restore();
        outcome
    }
}

/// An event of the terminal, if one comes in time.
fn next_event(due: Instant) -> std::io::Result<Option<Event>> {
    let left = due.saturating_duration_since(Instant::now());
    if event::poll(left)? { event::read().map(Some) } else { Ok(None) }
}

/// q, Esc or Ctrl-C.
fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let is_end = match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    };
    key.kind == KeyEventKind::Press && is_end
}

/// The terminal understands more than lines.
fn can_draw() -> bool {
    std::io::stdout().is_terminal()
        && std::io::stdin().is_terminal()
        && std::env::var_os("TERM").is_some_and(|kind| !kind.is_empty() && kind != "dumb")
}
