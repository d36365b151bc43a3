//! What was found: a sentence each, the numbers, and the exit code that follows.

use std::fmt::Write as _;

use serde::Serialize;

use super::measured::Measured;
use crate::store::{Class, StoreError};

/// A store whose behaviour is wrong, by the exit code of an endpoint that is no S3 store.
const WRONG: u8 = 76;

/// How something was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, and will be slow, or lacks something.
    Slow,
    /// It does not work.
    Wrong,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What, in a word.
    pub topic: &'static str,
    /// How it was found to be.
    pub state: State,
    /// The same in a sentence.
    pub sentence: String,
}

/// All that was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// `s3://bucket/prefix`
    pub source: String,
    /// What was looked at, in order.
    pub findings: Vec<Finding>,
    /// Numbers; those that were not measured are absent.
    pub measured: Measured,
    /// The command that would mount it.
    pub command: Option<String>,
    /// 0 if the mount would work; the code with which it would fail to start; 76 if the store's
    /// behaviour is wrong.
    pub exit_code: u8,
}

impl Report {
    /// As it should be.
    pub(super) fn ok(&mut self, topic: &'static str, sentence: impl Into<String>) {
        self.add(topic, State::Ok, sentence);
    }

    /// It works, and will be slow, or lacks something.
    pub(super) fn slow(&mut self, topic: &'static str, sentence: impl Into<String>) {
        self.add(topic, State::Slow, sentence);
    }

    /// It does not work.
    pub(super) fn wrong(&mut self, topic: &'static str, sentence: impl Into<String>) {
        self.add(topic, State::Wrong, sentence);
    }

    /// The mount would not start, but end with this code. The first such code stays: what comes
    /// behind it may be its consequence.
    pub(super) fn fail(&mut self, topic: &'static str, code: u8, sentence: impl Into<String>) {
        self.wrong(topic, sentence);
        if matches!(self.exit_code, 0 | WRONG) {
            self.exit_code = code;
        }
    }

    pub(super) fn add(&mut self, topic: &'static str, state: State, sentence: impl Into<String>) {
        if state == State::Wrong && self.exit_code == 0 {
            self.exit_code = WRONG;
        }
        self.findings.push(Finding { topic, state, sentence: sentence.into() });
    }

    /// Whether the mount would work, slow or not.
    pub fn is_usable(&self) -> bool {
        self.exit_code == 0
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.source);
        for Finding { topic, state, sentence } in &self.findings {
            let mark = match state {
                State::Ok => "ok   ",
                State::Slow => "SLOW ",
                State::Wrong => "WRONG",
            };
            let _ = writeln!(text, "{mark}  {topic:<12}  {sentence}");
        }
        if let Some(expected) = self.measured.expected() {
            let _ = writeln!(text, "\nExpect {expected}.");
        }
        if let Some(command) = &self.command {
            let _ = writeln!(text, "Mount it with: {command}");
        }
        text
    }
}

/// What went wrong, why, and what to do about it.
pub(super) fn because(what: &str, error: &StoreError) -> String {
    let remedy = match error.class() {
        Class::Denied => "the credentials must allow s3:ListBucket and s3:GetObject",
        Class::Unsigned => "renew the credentials, and check this machine's clock",
        Class::Throttled => {
            "others use it too, or it limits requests: lower --max-connections, or ask its operator"
        }
        Class::Unavailable => "look into the store's log, and at the network to it",
        Class::TimedOut => {
            "the store hangs, or something on the way swallows what it sends: try another machine"
        }
        Class::Nonsense | Class::Unordered => {
            "a proxy or cache on the way, or the store itself, is not faithful to S3: give the store's \
             own address with --endpoint-url"
        }
        Class::NotFound | Class::Changed => "is the bucket being written? Try again",
        Class::Archived => "restore the object, or mount a prefix without it",
        Class::NoSuchBucket => "check its name and --endpoint-url",
        Class::WrongRegion => "give its region with --region",
    };
    format!("{what}: {error}; {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_that_of_the_first_thing_that_would_end_the_mount() {
        let code = |add: fn(&mut Report)| {
            let mut report = Report::default();
            add(&mut report);
            report.exit_code
        };
        for (add, want) in [
            ((|report| report.ok("a", "")) as fn(&mut Report), 0),
            (|report| report.slow("a", ""), 0),
            (|report| report.wrong("a", ""), WRONG),
            (|report| report.fail("a", 68, ""), 68),
            // A behaviour that is wrong does not keep the mount from starting: the other does.
            (
                |report| {
                    report.wrong("a", "");
                    report.fail("b", 71, "");
                    report.fail("c", 68, "");
                    report.wrong("d", "");
                },
                71,
            ),
        ] {
            assert_eq!(code(add), want);
        }
    }

    #[test]
    fn a_report_is_read_line_by_line() {
        let mut report = Report { source: "s3://b/".to_owned(), ..Report::default() };
        report.ok("kernel", "Linux");
        report.wrong("ranges", "no");
        assert_eq!(report.text(), "s3://b/\nok     kernel        Linux\nWRONG  ranges        no\n");
    }
}
