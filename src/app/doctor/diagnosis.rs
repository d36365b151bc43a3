//! The findings: a sentence for each topic, the numbers, and the exit code that follows.

use std::fmt::Write as _;

use serde::Serialize;

use super::measurements::Measurements;
use crate::app::command_error::CommandError;
use crate::app::exit::Exit;
use crate::store::{Class, StoreError};

/// The store's behaviour is wrong: the exit code of an endpoint that is not an S3 store.
const WRONG: u8 = Exit::Protocol.code();

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Severity {
    Ok,
    /// It works, but is slow or lacks something.
    Slow,
    Wrong,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    pub(super) topic: &'static str,
    #[serde(rename = "state")]
    pub(super) severity: Severity,
    pub(super) sentence: String,
}

/// Serialised, it is the output of `--json`.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Diagnosis {
    /// `s3://bucket/prefix`
    pub(super) source: String,
    /// In the order of the examination.
    pub(super) findings: Vec<Finding>,
    pub(super) measured: Measurements,
    /// The command that mounts the bucket, if it can be mounted.
    pub(super) command: Option<String>,
    /// 0 if a mount would work; the code with which it would fail to start; 76 if the store's
    /// behaviour is wrong.
    pub(crate) exit_code: u8,
}

impl Severity {
    pub(super) fn slow_if(is_slow: bool) -> Self {
        if is_slow { Self::Slow } else { Self::Ok }
    }
}

impl Diagnosis {
    pub(super) fn ok(&mut self, topic: &'static str, sentence: impl Into<String>) {
        self.add(topic, Severity::Ok, sentence);
    }

    pub(super) fn slow(&mut self, topic: &'static str, sentence: impl Into<String>) {
        self.add(topic, Severity::Slow, sentence);
    }

    pub(super) fn wrong(&mut self, topic: &'static str, sentence: impl Into<String>) {
        self.add(topic, Severity::Wrong, sentence);
    }

    /// A mount would not start, but end with this code. The first such code is kept: later ones may
    /// be consequences of it.
    pub(super) fn fail(&mut self, topic: &'static str, error: &CommandError) {
        self.wrong(topic, &error.sentence);
        if matches!(self.exit_code, 0 | WRONG) {
            self.exit_code = error.exit.code();
        }
    }

    pub(super) fn add(&mut self, topic: &'static str, severity: Severity, what: impl Into<String>) {
        if severity == Severity::Wrong && self.exit_code == 0 {
            self.exit_code = WRONG;
        }
        self.findings.push(Finding { topic, severity, sentence: what.into() });
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!("{}\n", self.source);
        for Finding { topic, severity, sentence } in &self.findings {
            let mark = match severity {
                Severity::Ok => "ok   ",
                Severity::Slow => "SLOW ",
                Severity::Wrong => "WRONG",
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

/// The failure, its cause, and the remedy.
pub(super) fn because(what: &str, error: &StoreError) -> String {
    let remedy = match error.class() {
        Class::Denied => "the credentials must allow s3:ListBucket and s3:GetObject",
        Class::Unsigned => "renew the credentials, and check this machine's clock",
        Class::Throttled => {
            "it limits requests, or others use it too: lower --max-connections, or ask its operator"
        }
        Class::Unavailable => "look into the store's log, and at the network to it",
        Class::TimedOut => {
            "the store hangs, or something on the way drops packets: try another machine"
        }
        Class::Nonsense | Class::Unordered => {
            "a proxy or cache on the way, or the store itself, does not follow the S3 protocol: \
             give the store's own address with --endpoint-url"
        }
        Class::NotFound | Class::Changed => "is the bucket being written to? Try again",
        Class::Archived => "restore the object, or mount a prefix without it",
        Class::NoSuchBucket => "check its name and --endpoint-url",
        Class::WrongRegion => "give its region with --region",
    };
    format!("{what}: {error}; {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(diagnosis: &mut Diagnosis, exit: Exit) {
        diagnosis.fail("b", &CommandError::new(exit, ""));
    }

    #[test]
    fn the_exit_code_is_that_of_the_first_thing_that_would_end_the_mount() {
        let code = |add: fn(&mut Diagnosis)| {
            let mut diagnosis = Diagnosis::default();
            add(&mut diagnosis);
            diagnosis.exit_code
        };
        for (add, want) in [
            ((|diagnosis| diagnosis.ok("a", "")) as fn(&mut Diagnosis), 0),
            (|diagnosis| diagnosis.slow("a", ""), 0),
            (|diagnosis| diagnosis.wrong("a", ""), WRONG),
            (|diagnosis| fail(diagnosis, Exit::NoHost), 68),
            // A behaviour that is wrong does not keep the mount from starting: the other does.
            (
                |diagnosis| {
                    diagnosis.wrong("a", "");
                    fail(diagnosis, Exit::OsErr);
                    fail(diagnosis, Exit::NoHost);
                    diagnosis.wrong("d", "");
                },
                71,
            ),
        ] {
            assert_eq!(code(add), want);
        }
    }

    #[test]
    fn a_diagnosis_is_read_line_by_line() {
        let mut diagnosis = Diagnosis { source: "s3://b/".to_owned(), ..Diagnosis::default() };
        diagnosis.ok("kernel", "Linux");
        diagnosis.wrong("ranges", "no");
        assert_eq!(
            diagnosis.text(),
            "s3://b/\nok     kernel        Linux\nWRONG  ranges        no\n"
        );
    }
}
