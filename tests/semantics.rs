//! Every numbered rule of docs/semantics.md is quoted by a test: in the test's name (`n3_…`) or in
//! a comment on it (`F1`).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The text of all tests: all of `tests/`, and the parts of `src/` that are compiled for tests
/// only.
fn tests_below(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path).unwrap();
            let is_test = folder.iter().any(|part| part == "tests") || path.ends_with("tests.rs");
            let from = if is_test { Some(0) } else { source.find("#[cfg(test)]") };
            text.push_str(from.map_or("", |from| &source[from..]));
        }
    }
}

#[test]
fn every_rule_is_quoted_by_a_test() {
    let document = fs::read_to_string("docs/semantics.md").unwrap();
    let rules: BTreeSet<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("- **")?.split_once("**").map(|(rule, _)| rule))
        .collect();
    assert!(rules.len() > 30, "the rules are where this test looks for them: {rules:?}");

    let mut text = String::new();
    tests_below(Path::new("tests"), &mut text);
    tests_below(Path::new("src"), &mut text);
    let quoted: BTreeSet<String> = text
        .lines()
        .filter(|line| line.trim_start().starts_with("//") || line.contains("fn "))
        .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric()))
        .map(str::to_ascii_uppercase)
        .collect();
    let missing: Vec<_> = rules.iter().filter(|&&rule| !quoted.contains(rule)).collect();
    assert!(missing.is_empty(), "no test quotes {missing:?}");
}
