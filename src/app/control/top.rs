//! `fasts3-mount top`: what a mount is doing, look after look.
//!
//! A look is the difference of two [`Status`]es; the daemon keeps nothing for it. On a terminal it is
//! drawn, until q; anywhere else each look is printed.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Gauge, Paragraph, Row, Table};
use serde::Serialize;

use super::client;
use super::status::{Busy, Status};
use super::{Command, Reply};
use crate::app::command_error::CommandError;
use crate::base::proc;
use crate::base::text::{bytes, on_one_line, percent, seconds};
use crate::stats::Durations;

/// Of the busiest, so many are shown at the most.
const SHOWN: usize = 30;

/// What a mount did between two moments.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Look {
    /// `s3://bucket/prefix`
    pub(crate) source: String,
    /// Where it is mounted.
    pub(crate) mountpoint: String,
    /// For how long it has been mounted.
    pub(crate) uptime_seconds: f64,
    /// Between the two moments.
    pub(crate) seconds: f64,
    /// From the store.
    pub(crate) fetched_bytes_per_second: f64,
    /// To programs.
    pub(crate) served_bytes_per_second: f64,
    /// Reads that had to wait for nothing, 0 to 1; absent if nothing was read.
    pub(crate) hit_ratio: Option<f64>,
    /// Bytes fetched for each byte served; absent if nothing was served.
    pub(crate) amplification: Option<f64>,
    /// Object bytes that are held or awaited.
    pub(crate) memory_used_bytes: u64,
    /// The bound on them.
    pub(crate) memory_budget_bytes: u64,
    /// Requests to the store.
    pub(crate) requests: Vec<Rate>,
    /// The kernel's requests.
    pub(crate) operations: Vec<Rate>,
    /// From asking for a range to its first byte, the half of them, in seconds.
    pub(crate) first_byte_seconds: f64,
    /// Requests that did not end well, and errors that programs saw, by kind.
    pub(crate) trouble: Vec<Trouble>,
    /// Files that were read, the busiest first.
    pub(crate) files: Vec<Share>,
    /// Processes that read, the busiest first.
    pub(crate) processes: Vec<Share>,
}

/// Requests of one kind.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Rate {
    /// The kind.
    pub(crate) name: String,
    /// How many ended well.
    pub(crate) per_second: f64,
    /// Under way now.
    pub(crate) in_flight: u64,
    /// Half of them took no longer.
    pub(crate) median_seconds: f64,
    /// 99 of 100 took no longer.
    pub(crate) p99_seconds: f64,
}

/// Something that should not happen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Trouble {
    /// What.
    pub(crate) name: String,
    /// How often.
    pub(crate) count: u64,
}

/// Who read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Share {
    /// A path below the mountpoint, or a process's number and name.
    pub(crate) name: String,
    /// How much.
    pub(crate) bytes_per_second: f64,
}

impl Look {
    /// What happened from one moment to a later one.
    #[allow(clippy::cast_precision_loss)] // rates, shown with three digits
    pub(crate) fn between(before: &Status, now: &Status) -> Self {
        let took = (now.uptime_seconds - before.uptime_seconds).max(1e-3);
        let (was, is) = (&before.totals, &now.totals);
        let served = is.bytes_served.saturating_sub(was.bytes_served) as f64;
        let fetched = is.bytes_fetched.saturating_sub(was.bytes_fetched) as f64;
        let reads = is.reads.saturating_sub(was.reads) as f64;
        let waited = is.reads_waited.saturating_sub(was.reads_waited) as f64;
        let nothing = Durations::default();
        let rate =
            |name: &str, in_flight, took_now: &Durations, took_before: Option<&Durations>| {
                let added = took_now.since(took_before.unwrap_or(&nothing));
                Rate {
                    name: name.to_owned(),
                    per_second: added.count() as f64 / took,
                    in_flight,
                    median_seconds: added.quantile(0.5),
                    p99_seconds: added.quantile(0.99),
                }
            };
        let requests = now.requests.iter().map(|(name, requests)| {
            let before = before.requests.get(name).map(|requests| &requests.took);
            rate(name, requests.in_flight, &requests.took, before)
        });
        let operations = now.operations.iter().map(|(name, operation)| {
            let before = before.operations.get(name).map(|operation| &operation.took);
            rate(name, operation.in_flight, &operation.took, before)
        });
        Self {
            source: now.settings.source.clone(),
            mountpoint: now.settings.mountpoint.clone(),
            uptime_seconds: now.uptime_seconds,
            seconds: took,
            fetched_bytes_per_second: fetched / took,
            served_bytes_per_second: served / took,
            // A read that waits may be counted in another look than the one in which it ends.
            hit_ratio: (reads > 0.0).then(|| (1.0 - waited / reads).max(0.0)),
            amplification: (served > 0.0).then(|| fetched / served),
            memory_used_bytes: is.memory_used_bytes,
            memory_budget_bytes: now.settings.memory_budget_bytes,
            requests: requests.collect(),
            operations: operations.collect(),
            first_byte_seconds: now.first_byte.since(&before.first_byte).quantile(0.5),
            trouble: trouble(before, now),
            files: shares(&before.files, &now.files, took, str::to_owned),
            processes: shares(&before.threads, &now.threads, took, process),
        }
    }

    /// What is being waited for, in words.
    pub(crate) fn waiting(&self) -> String {
        let waiting = self.operations.iter().filter(|operation| operation.in_flight > 0);
        let waiting: Vec<_> = waiting
            .map(|operation| format!("{} {}", operation.in_flight, operation.name))
            .collect();
        let on_the_way = self.requests.iter().filter(|request| request.in_flight > 0);
        let on_the_way: Vec<_> =
            on_the_way.map(|request| format!("{} {}", request.in_flight, request.name)).collect();
        match (waiting.is_empty(), on_the_way.is_empty()) {
            (true, true) => "nothing".to_owned(),
            (true, false) => format!("nobody; {} under way", on_the_way.join(", ")),
            (false, true) => {
                format!("{}, for nothing that the store was asked", waiting.join(", "))
            }
            (false, false) => format!("{} on {}", waiting.join(", "), on_the_way.join(", ")),
        }
    }
}

fn trouble(before: &Status, now: &Status) -> Vec<Trouble> {
    let mut trouble = Vec::new();
    let mut note = |name: String, now: u64, before: u64| {
        if now > before {
            trouble.push(Trouble { name, count: now - before });
        }
    };
    for (kind, requests) in &now.requests {
        for (outcome, &count) in requests.outcomes.iter().filter(|(name, _)| *name != "ok") {
            let before = before.requests.get(kind).and_then(|known| known.outcomes.get(outcome));
            note(format!("{kind} {outcome}"), count, before.copied().unwrap_or(0));
        }
    }
    for (errno, &count) in &now.errors {
        note(errno.clone(), count, before.errors.get(errno).copied().unwrap_or(0));
    }
    let (was, is) = (&before.totals, &now.totals);
    note("retries".to_owned(), is.retries, was.retries);
    note("hedges".to_owned(), is.hedges, was.hedges);
    note("throttled".to_owned(), is.throttled, was.throttled);
    trouble
}

#[allow(clippy::cast_precision_loss)] // as above
fn shares(before: &[Busy], now: &[Busy], took: f64, name: impl Fn(&str) -> String) -> Vec<Share> {
    // By the name that is shown, which threads of one process share.
    let mut added: BTreeMap<String, u64> = BTreeMap::new();
    for Busy { name: id, bytes } in now {
        // Who had lost the place and came again has less than before: all of it is new.
        let was = before.iter().find(|other| other.name == *id).map_or(0, |other| other.bytes);
        let bytes = bytes.checked_sub(was).unwrap_or(*bytes);
        if bytes > 0 {
            *added.entry(name(id)).or_default() += bytes;
        }
    }
    let mut shares: Vec<_> = added.into_iter().collect();
    shares.sort_by_key(|&(_, bytes)| std::cmp::Reverse(bytes));
    let shares = shares.into_iter().take(SHOWN);
    shares.map(|(name, bytes)| Share { name, bytes_per_second: bytes as f64 / took }).collect()
}

/// The number and the name of a thread's process, if it is still there (`proc_pid_status(5)`).
fn process(thread: &str) -> String {
    let name = || {
        let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
        let process = proc::field(&status, "Tgid")?;
        let name = std::fs::read_to_string(format!("/proc/{process}/comm")).ok()?;
        Some(format!("{process} {}", name.trim_end()))
    };
    // Programs that live for one file are many; together they may be the busiest.
    name().unwrap_or_else(|| "(ended)".to_owned())
}

/// Looks until q, or so many times, or until the mount has ended.
pub(crate) fn run(
    mountpoint: &Path,
    json: bool,
    interval: Duration,
    count: Option<u64>,
) -> Result<(), CommandError> {
    let mut before = status(mountpoint)?;
    // From here on it was mounted.
    let status = |mountpoint: &Path| {
        let ended =
            CommandError::no_mount(format!("the mount on {} has ended", mountpoint.display()));
        status(mountpoint).map_err(|error| if error.code == ended.code { ended } else { error })
    };
    if json || !can_draw() {
        for _ in 0..count.unwrap_or(u64::MAX) {
            std::thread::sleep(interval);
            let now = status(mountpoint)?;
            let look = Look::between(&before, &now);
            let text = if json { serde_json::to_string(&look).ok() } else { None };
            let text = text.unwrap_or_else(|| text_of(&look));
            if writeln!(std::io::stdout(), "{text}").is_err() {
                // Whoever closed the pipe has seen enough.
                return Ok(());
            }
            before = now;
        }
        return Ok(());
    }
    let mut terminal = ratatui::try_init().map_err(|error| {
        CommandError::failed(format!("this terminal cannot be drawn on: {error}"))
    })?;
    let outcome = (|| {
        let mut drawn = 0;
        // A first look at once, at what little there is.
        let mut wait = Duration::from_millis(200).min(interval);
        let mut look: Option<Look> = None;
        while count.is_none_or(|count| drawn < count) {
            let due = Instant::now() + wait;
            loop {
                let left = due.saturating_duration_since(Instant::now());
                match event::poll(left).and_then(|some| some.then(event::read).transpose()) {
                    Ok(Some(Event::Key(key))) if key.kind == KeyEventKind::Press => {
                        let control = key.modifiers.contains(KeyModifiers::CONTROL);
                        match key.code {
                            KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                            KeyCode::Char('c') if control => return Ok(()),
                            _ => {}
                        }
                    }
                    Ok(Some(_)) => {
                        if let Some(look) = &look {
                            let _ = terminal.draw(|frame| draw(frame, look));
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        return Err(CommandError::failed(format!("the terminal: {error}")));
                    }
                }
            }
            let now = status(mountpoint)?;
            let new = Look::between(&before, &now);
            terminal
                .draw(|frame| draw(frame, &new))
                .map_err(|error| CommandError::failed(format!("the terminal: {error}")))?;
            (before, look, wait, drawn) = (now, Some(new), interval, drawn + 1);
        }
        Ok(())
    })();
    // Some terminals that have become larger meanwhile would show the rest of it for ever.
    let _ = terminal.clear();
    ratatui::restore();
    outcome
}

/// Whether this is a terminal that understands more than lines.
fn can_draw() -> bool {
    let kind = std::env::var_os("TERM").unwrap_or_default();
    std::io::stdout().is_terminal()
        && std::io::stdin().is_terminal()
        && !kind.is_empty()
        && kind != "dumb"
}

fn status(mountpoint: &Path) -> Result<Status, CommandError> {
    match client::ask(mountpoint, Command::Status)? {
        Reply::Status(status) => Ok(*status),
        _ => Err(CommandError::failed("the daemon answers another question")),
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a rate, never negative
fn speed(per_second: f64) -> String {
    format!("{}/s", bytes(per_second as u64))
}

fn share(ratio: Option<f64>) -> String {
    ratio.map_or("-".to_owned(), |ratio| format!("{:.0} %", ratio * 100.0))
}

/// One look in one line.
fn text_of(look: &Look) -> String {
    let requests: Vec<_> = look
        .requests
        .iter()
        .filter(|request| request.per_second > 0.0)
        .map(|request| {
            let median = seconds(request.median_seconds);
            format!("{:.0} {}/s of {median}", request.per_second, request.name)
        })
        .collect();
    let trouble: Vec<_> =
        look.trouble.iter().map(|trouble| format!("{} {}", trouble.count, trouble.name)).collect();
    format!(
        "store {}, programs {}, hits {}, amplification {}, {}; waiting: {}; trouble: {}",
        speed(look.fetched_bytes_per_second),
        speed(look.served_bytes_per_second),
        share(look.hit_ratio),
        look.amplification.map_or("-".to_owned(), |amplification| format!("{amplification:.2}")),
        if requests.is_empty() { "no requests".to_owned() } else { requests.join(", ") },
        look.waiting(),
        if trouble.is_empty() { "none".to_owned() } else { trouble.join(", ") },
    )
}

fn draw(frame: &mut Frame<'_>, look: &Look) {
    let [head, rates, memory, tables, busy, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(3),
        Constraint::Length(1),
        Constraint::Length(9),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let bold = Style::new().add_modifier(Modifier::BOLD);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a time that was counted
    let uptime = Duration::from_secs(look.uptime_seconds.max(0.0) as u64);
    let uptime = format!("up {}", humantime::format_duration(uptime));
    frame.render_widget(
        Line::from(vec![
            Span::styled(format!("{} on {}", look.source, look.mountpoint), bold),
            Span::raw(format!("   {uptime}   q ends")),
        ]),
        head,
    );
    let trouble: Vec<_> =
        look.trouble.iter().map(|trouble| format!("{} {}", trouble.count, trouble.name)).collect();
    frame.render_widget(
        Paragraph::new(vec![
            Line::from(vec![
                Span::raw("from the store "),
                Span::styled(format!("{:<12}", speed(look.fetched_bytes_per_second)), bold),
                Span::raw("to programs "),
                Span::styled(format!("{:<12}", speed(look.served_bytes_per_second)), bold),
                Span::raw(format!(
                    "amplification {}",
                    look.amplification.map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
                )),
            ]),
            Line::from(format!(
                "hits {:<8}first byte {:<11}waiting: {}",
                share(look.hit_ratio),
                if look.first_byte_seconds > 0.0 {
                    seconds(look.first_byte_seconds)
                } else {
                    "-".to_owned()
                },
                look.waiting(),
            )),
            Line::from(format!(
                "trouble: {}",
                if trouble.is_empty() { "none".to_owned() } else { trouble.join(", ") }
            )),
        ]),
        rates,
    );
    #[allow(clippy::cast_precision_loss)] // a bar of some hundred cells
    let filled = look.memory_used_bytes as f64 / look.memory_budget_bytes.max(1) as f64;
    frame.render_widget(
        Gauge::default().ratio(filled.clamp(0.0, 1.0)).label(format!(
            "memory {} of {} ({})",
            bytes(look.memory_used_bytes),
            bytes(look.memory_budget_bytes),
            percent(look.memory_used_bytes, look.memory_budget_bytes),
        )),
        memory,
    );
    let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).areas(tables);
    frame.render_widget(rates_of("requests to the store", &look.requests), left);
    frame.render_widget(rates_of("requests of the kernel", &look.operations), right);
    let [left, right] = Layout::horizontal([Constraint::Fill(2), Constraint::Fill(1)]).areas(busy);
    frame.render_widget(busiest("files", &look.files), left);
    frame.render_widget(busiest("processes", &look.processes), right);
    frame.render_widget(Line::from(format!("each look {:.1} s", look.seconds)), foot);
}

fn rates_of<'a>(title: &'a str, rates: &'a [Rate]) -> Table<'a> {
    let rows = rates.iter().map(|rate| {
        let time = |value: f64| if value > 0.0 { seconds(value) } else { "-".to_owned() };
        let right = |text: String| Cell::from(Line::from(text).right_aligned());
        Row::new([
            Cell::from(rate.name.as_str()),
            right(format!("{:.0}", rate.per_second)),
            right(rate.in_flight.to_string()),
            right(time(rate.median_seconds)),
            right(time(rate.p99_seconds)),
        ])
    });
    let head = ["", "per s", "now", "median", "99 %"].map(|text| Line::from(text).right_aligned());
    // `readdirplus`, then 99,999, 1,024, and 99.9 ms twice: 38 together, half of a terminal of 80 columns.
    let widths = [11, 6, 5, 8, 8].map(Constraint::Length);
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let table = Table::new(rows, widths).header(Row::new(head.map(Cell::from)).style(bold));
    table.column_spacing(0).block(Block::bordered().title(title))
}

fn busiest<'a>(title: &'a str, shares: &'a [Share]) -> Table<'a> {
    let rows = shares.iter().map(|share| {
        let rate = Line::from(speed(share.bytes_per_second)).right_aligned();
        Row::new([Cell::from(rate), Cell::from(on_one_line(&share.name))])
    });
    let widths = [Constraint::Length(11), Constraint::Fill(1)];
    Table::new(rows, widths).block(Block::bordered().title(title))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn busy(name: &str, bytes: u64) -> Busy {
        Busy { name: name.to_owned(), bytes }
    }

    #[test]
    fn the_busiest_are_those_who_were_busy_between_the_looks() {
        let before = [busy("old", 1000), busy("steady", 500), busy("lost", 900)];
        let now = [busy("old", 1000), busy("steady", 700), busy("lost", 60), busy("new", 300)];
        let names: Vec<_> = shares(&before, &now, 2.0, str::to_owned)
            .into_iter()
            .map(|share| (share.name, share.bytes_per_second))
            .collect();
        let want = [("new", 150.0), ("steady", 100.0), ("lost", 30.0)];
        assert_eq!(names, want.map(|(name, rate)| (name.to_owned(), rate)));
        let together = shares(&before, &now, 2.0, |_| "one process".to_owned());
        assert_eq!((together.len(), together[0].bytes_per_second), (1, 280.0));
    }

    fn look() -> Look {
        let rate = |name: &str, in_flight| Rate {
            name: name.to_owned(),
            per_second: 120.0,
            in_flight,
            median_seconds: 0.0152,
            p99_seconds: 0.2,
        };
        Look {
            source: "s3://data/".to_owned(),
            mountpoint: "/mnt/data".to_owned(),
            uptime_seconds: 61.0,
            seconds: 1.0,
            fetched_bytes_per_second: 1.2e9,
            served_bytes_per_second: 0.6e9,
            hit_ratio: Some(0.25),
            amplification: Some(2.0),
            memory_used_bytes: 1 << 30,
            memory_budget_bytes: 4 << 30,
            requests: vec![rate("GET", 17)],
            operations: vec![rate("read", 3), rate("readdirplus", 3)],
            first_byte_seconds: 0.015,
            trouble: vec![Trouble { name: "GET throttled".to_owned(), count: 4 }],
            files: vec![Share { name: "train/0\n.tar".to_owned(), bytes_per_second: 5e8 }],
            processes: vec![Share { name: "4711 python3".to_owned(), bytes_per_second: 6e8 }],
        }
    }

    #[test]
    fn the_picture_shows_what_happens_at_any_size_of_the_terminal() {
        let look = look();
        let mut terminal = Terminal::new(TestBackend::new(120, 30)).unwrap();
        terminal.draw(|frame| draw(frame, &look)).unwrap();
        let buffer = terminal.backend().buffer();
        let cells: String = buffer.content().iter().map(ratatui::buffer::Cell::symbol).collect();
        for text in [
            "s3://data/ on /mnt/data",
            "1.2 GB/s",
            "600.0 MB/s",
            "hits 25 %",
            "amplification 2.00",
            "waiting: 3 read, 3 readdirplus on 17 GET",
            "trouble: 4 GET throttled",
            "memory 1.1 GB of 4.3 GB (25 %)",
            "15.2 ms",
            "train/0\\n.tar",
            "4711 python3",
        ] {
            assert!(cells.contains(text), "{text} in {cells}");
        }
        // At the size that every terminal has, nothing of the numbers is cut off.
        let mut small = Terminal::new(TestBackend::new(80, 24)).unwrap();
        small.draw(|frame| draw(frame, &look)).unwrap();
        let cells = small.backend().buffer().content();
        let lines: Vec<String> = cells
            .chunks(80)
            .map(|line| line.iter().map(ratatui::buffer::Cell::symbol).collect())
            .collect();
        let text = lines.join("\n");
        for says in [
            "from the store 1.2 GB/s    to programs 600.0 MB/s  amplification 2.00",
            "hits 25 %    first byte 15.0 ms    waiting: 3 read, 3 readdirplus on 17 GET",
            "│            per s  now  median    99 %│",
            "│GET           120   17 15.2 ms  200 ms│",
            "│readdirplus   120    3 15.2 ms  200 ms│",
            " 500.0 MB/s train/0\\n.tar",
        ] {
            assert!(text.contains(says), "{says}\n{text}");
        }
        for (width, height) in [(1, 1), (20, 5), (80, 24), (300, 3)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw(frame, &look)).unwrap();
        }
    }

    #[test]
    fn a_look_in_a_line_says_the_same() {
        let text = text_of(&look());
        let want = "store 1.2 GB/s, programs 600.0 MB/s, hits 25 %, amplification 2.00, 120 GET/s of \
                    15.2 ms; waiting: 3 read, 3 readdirplus on 17 GET; trouble: 4 GET throttled";
        assert_eq!(text, want);
    }
}
