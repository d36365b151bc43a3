//! The picture on a terminal.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Gauge, Paragraph, Row, Table};

use super::rates::{ByteRate, CallRate, Rates, speed};
use crate::base::text::{bytes, on_one_line, percent, seconds, uptime};

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

pub(super) fn draw(frame: &mut Frame<'_>, rates: &Rates) {
    let [head, totals, memory, tables, busy, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(3),
        Constraint::Length(1),
        Constraint::Length(10),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let title = format!("{} on {}", rates.source, rates.mountpoint);
    let uptime = format!("   up {}   q ends", uptime(rates.uptime_seconds));
    frame.render_widget(Line::from(vec![Span::styled(title, BOLD), Span::raw(uptime)]), head);
    frame.render_widget(totals_of(rates), totals);
    #[allow(clippy::cast_precision_loss)] // a bar of some hundred cells
    let filled = rates.memory_used_bytes as f64 / rates.memory_budget_bytes.max(1) as f64;
    let (used, budget) = (rates.memory_used_bytes, rates.memory_budget_bytes);
    let share = percent(used, budget);
    let label = format!("memory {} of {} ({share})", bytes(used), bytes(budget));
    frame.render_widget(Gauge::default().ratio(filled.clamp(0.0, 1.0)).label(label), memory);
    let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).areas(tables);
    frame.render_widget(calls("requests to the store", &rates.requests), left);
    frame.render_widget(calls("requests of the kernel", &rates.operations), right);
    let [left, right] = Layout::horizontal([Constraint::Fill(2), Constraint::Fill(1)]).areas(busy);
    frame.render_widget(busiest("files", &rates.files), left);
    frame.render_widget(busiest("processes", &rates.processes), right);
    frame.render_widget(Line::from(format!("each look {:.1} s", rates.seconds)), foot);
}

fn totals_of(rates: &Rates) -> Paragraph<'static> {
    let rate = |rate| Span::styled(format!("{:<12}", speed(rate)), BOLD);
    Paragraph::new(vec![
        Line::from(vec![
            Span::raw("from the store "),
            rate(rates.fetched_bytes_per_second),
            Span::raw("to programs "),
            rate(rates.served_bytes_per_second),
            Span::raw(format!("amplification {}", rates.amplified())),
        ]),
        Line::from(format!(
            "hits {:<7} first byte {:<11}waiting: {}",
            rates.hits(),
            time(rates.first_byte_seconds),
            rates.waiting(),
        )),
        Line::from(format!("trouble: {}", rates.troubles())),
    ])
}

/// `-` if nothing was measured.
fn time(value: f64) -> String {
    if value > 0.0 { seconds(value) } else { "-".to_owned() }
}

fn calls<'a>(title: &'a str, calls: &'a [CallRate]) -> Table<'a> {
    let right = |text: String| Cell::from(Line::from(text).right_aligned());
    let rows = calls.iter().map(|call| {
        Row::new([
            Cell::from(call.name.as_str()),
            right(format!("{:.0}", call.per_second)),
            right(call.in_flight.to_string()),
            right(time(call.median_seconds)),
            right(time(call.p99_seconds)),
        ])
    });
    let head = ["", "per s", "now", "median", "99 %"].map(|text| right(text.to_owned()));
    // `readdirplus`, then 99,999, 1,024, and 99.9 ms twice: 38 together, half of 80 columns.
    let widths = [11, 6, 5, 8, 8].map(Constraint::Length);
    let table = Table::new(rows, widths).header(Row::new(head).style(BOLD));
    table.column_spacing(0).block(Block::bordered().title(title))
}

fn busiest<'a>(title: &'a str, rates: &'a [ByteRate]) -> Table<'a> {
    let rows = rates.iter().map(|rate| {
        let speed = Line::from(speed(rate.bytes_per_second)).right_aligned();
        Row::new([Cell::from(speed), Cell::from(on_one_line(&rate.name))])
    });
    let widths = [Constraint::Length(11), Constraint::Fill(1)];
    Table::new(rows, widths).block(Block::bordered().title(title))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::rates::tests::look;
    use super::*;

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
}
