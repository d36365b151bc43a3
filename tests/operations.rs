//! Operators search docs/operations.md for a line of the log: its table is compared with the lines
//! in the source.

use std::collections::BTreeSet;
use std::path::Path;

/// The text of every line that is logged at info or above, with `…` for each placeholder.
fn logged(folder: &Path, lines: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_test = path.ends_with("tests") || path.ends_with("tests.rs");
        if path.is_dir() && !is_test {
            logged(&path, lines);
        } else if path.is_file() && !is_test {
            let source = std::fs::read_to_string(&path).unwrap();
            let program = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for macro_name in ["tracing::info!(", "tracing::warn!(", "tracing::error!("] {
                let calls = program.split(macro_name).skip(1);
                lines.extend(calls.filter_map(message));
            }
        }
    }
}

/// The first string among the arguments of a call, which ends at its own parenthesis.
fn message(call: &str) -> Option<String> {
    let (mut depth, mut characters) = (1, call.chars());
    let mut text = String::new();
    loop {
        match characters.next()? {
            '(' => depth += 1,
            ')' if depth == 1 => return None,
            ')' => depth -= 1,
            // A string of another macro among the arguments.
            '"' if depth > 1 => while characters.next()? != '"' {},
            '"' => break,
            _ => {}
        }
    }
    let mut in_place = false;
    loop {
        match characters.next()? {
            '"' => return Some(text),
            '\\' if characters.next()? == '\n' => {
                let rest = characters.as_str().trim_start();
                characters = rest.chars();
            }
            '{' => {
                in_place = true;
                text.push('…');
            }
            '}' => in_place = false,
            character if !in_place => text.push(character),
            _ => {}
        }
    }
}

/// The first column of the table under "Log", row by row.
fn documented() -> Vec<String> {
    let text = std::fs::read_to_string("docs/operations.md").unwrap();
    let section = text.split("\n## Log\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| row.trim_start_matches("| `").split("` |").next().unwrap().to_owned()).collect()
}

/// A row may omit the end of a long line.
fn is_about(row: &str, line: &str) -> bool {
    row == line || row.strip_suffix('…').is_some_and(|start| line.starts_with(start))
}

#[test]
fn every_log_line_of_the_program_is_in_the_table_and_no_other() {
    let mut lines = BTreeSet::new();
    logged(Path::new("src"), &mut lines);
    // The sums of repeated lines.
    assert!(lines.remove("…"));
    lines.insert("… more like: …".to_owned());
    assert!(lines.len() > 25, "{lines:#?}");
    let rows = documented();
    let distinct: BTreeSet<_> = rows.iter().collect();
    assert_eq!(distinct.len(), rows.len(), "a row is there twice: {rows:#?}");
    let missing: Vec<_> =
        lines.iter().filter(|line| !rows.iter().any(|row| is_about(row, line))).collect();
    assert!(missing.is_empty(), "not in docs/operations.md: {missing:#?}");
    let gone: Vec<_> =
        rows.iter().filter(|row| !lines.iter().any(|line| is_about(row, line))).collect();
    assert!(gone.is_empty(), "in docs/operations.md, and not logged: {gone:#?}");
}
