//! Rules as text, for programs that control the proxy from outside.

use std::str::FromStr;
use std::time::Duration;

use super::{Fault, Rule};
use crate::counts::Kind;

/// `KIND KEY FAULT [times=N] [every=N]`: of the requests of a kind (`get`, `head`, `list` or `all`)
/// about a key (of listings, the prefix; `*` for any, `p*` for those that begin with `p`), these
/// meet the fault.
///
/// Faults: `hangup`, `reset@BYTES`, `truncate@BYTES`, `stall@BYTES`, `stall@BYTES+TIME`,
/// `delay+TIME`, `silent`, `range=FIRST-LAST/SIZE`, `length=BYTES`, `body=BYTES`, `corrupt@BYTE`,
/// `garbage`, `html`, `status=STATUS:CODE`, `retry-after=SECONDS`, `ignore-range`,
/// `ignore-if-match`, `ignore-start-after`, `ignore-encoding-type`, `repeat-token`, `backwards`.
impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let mut word = || words.next().ok_or("KIND KEY FAULT [times=N] [every=N]");
        let (kind, key, fault) = (kind(word()?)?, word()?.to_owned(), fault(word()?)?);
        let matches_key = move |got: &str| match key.strip_suffix('*') {
            Some(prefix) => got.starts_with(prefix),
            None => got == key,
        };
        let mut rule = Self::new(
            move |request| {
                let about = match request.kind() {
                    Kind::List => request.query("prefix").unwrap_or_default(),
                    _ => request.key(),
                };
                kind.is_none_or(|kind| kind == request.kind()) && matches_key(&about)
            },
            fault,
        );
        for word in words {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let value = number(value)?;
            rule = match name {
                "times" => rule.times(value),
                "every" => rule.every(value),
                _ => return Err(format!("{word:?} is neither times=N nor every=N")),
            };
        }
        Ok(rule)
    }
}

fn kind(word: &str) -> Result<Option<Kind>, String> {
    match word {
        "get" => Ok(Some(Kind::Get)),
        "head" => Ok(Some(Kind::Head)),
        "list" => Ok(Some(Kind::List)),
        "all" => Ok(None),
        _ => Err(format!("{word:?} is none of get, head, list, all")),
    }
}

fn fault(word: &str) -> Result<Fault, String> {
    let at = word.find(['@', '=', '+']).unwrap_or(word.len());
    let (name, value) = word.split_at(at);
    let value = value.get(1..).unwrap_or("");
    Ok(match name {
        "hangup" => Fault::Hangup,
        "reset" => Fault::Reset { after: number(value)? },
        "truncate" => Fault::Truncate { after: number(value)? },
        "stall" => match value.split_once('+') {
            Some((after, pause)) => {
                Fault::Stall { after: number(after)?, pause: Some(time(pause)?) }
            }
            None => Fault::Stall { after: number(value)?, pause: None },
        },
        "delay" => Fault::Delay(time(value)?),
        "silent" => Fault::Delay(Duration::MAX),
        "range" => Fault::ContentRange(format!("bytes {value}")),
        "length" => Fault::ContentLength(number(value)?),
        "body" => Fault::BodyLength(number(value)?),
        "corrupt" => Fault::Corrupt { at: number(value)? },
        "garbage" => Fault::Garbage,
        "html" => Fault::Html,
        "status" => {
            let (status, code) = value.split_once(':').ok_or("status=STATUS:CODE")?;
            let status = status.parse().map_err(|error| format!("{status:?}: {error}"))?;
            Fault::Status { status, code: code.to_owned() }
        }
        "retry-after" => Fault::RetryAfter(number(value)?),
        "ignore-range" => Fault::IgnoreRange,
        "ignore-if-match" => Fault::IgnoreIfMatch,
        "ignore-start-after" => Fault::IgnoreStartAfter,
        "ignore-encoding-type" => Fault::IgnoreEncodingType,
        "repeat-token" => Fault::RepeatToken,
        "backwards" => Fault::BackwardsPage,
        _ => return Err(format!("{word:?} is no fault")),
    })
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}

fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{text:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_its_words() {
        for (word, want) in [
            ("hangup", Fault::Hangup),
            ("reset@7", Fault::Reset { after: 7 }),
            ("stall@7", Fault::Stall { after: 7, pause: None }),
            ("stall@7+2s", Fault::Stall { after: 7, pause: Some(Duration::from_secs(2)) }),
            ("delay+2s", Fault::Delay(Duration::from_secs(2))),
            ("range=5-9/10", Fault::ContentRange("bytes 5-9/10".to_owned())),
            ("status=503:SlowDown", Fault::slow_down()),
            ("retry-after=2", Fault::RetryAfter(2)),
        ] {
            assert_eq!(fault(word), Ok(want), "{word}");
        }
        for wrong in ["", "get", "get * reset", "get * hangup twice=1", "put * hangup", "get * x"] {
            assert!(wrong.parse::<Rule>().is_err(), "{wrong}");
        }
    }
}
