//! `LastModified` as stores write it: by the API reference, or in another way that can be read.
//! Pure.

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use time::format_description::well_known::{Iso8601, Rfc2822};
use time::{OffsetDateTime, PrimitiveDateTime};

/// To the second: listings have milliseconds and HEAD has not, and both must tell one time. A time
/// before 1970 is one that the store does not know (programs write the year 1 for that), and
/// becomes 1970.
pub(super) fn read(text: &str) -> Option<SystemTime> {
    let seconds = written_by_s3(text).or_else(|| {
        let upper = text.trim().to_ascii_uppercase();
        let seconds = internet(&upper).or_else(|| iso(&upper)).or_else(|| before(text))?;
        Some(u64::try_from(seconds).unwrap_or(0))
    })?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// As in HTTP and mail, `Thu, 1 Jan 1970 00:00:00 +0000` among them.
fn internet(text: &str) -> Option<i64> {
    let zoned = text.strip_suffix("UTC").map(|time| [time, "GMT"].concat());
    let parsed = OffsetDateTime::parse(zoned.as_deref().unwrap_or(text), &Rfc2822);
    parsed.ok().map(OffsetDateTime::unix_timestamp)
}

/// The same, of a year before 1900.
fn before(text: &str) -> Option<i64> {
    DateTime::from_str(text.trim(), Format::HttpDate).ok().map(|time| time.secs())
}

/// As in ISO 8601; without a zone it is UTC.
fn iso(text: &str) -> Option<i64> {
    let text = text.strip_suffix("UTC").unwrap_or(text).trim_end().replacen(' ', "T", 1);
    let zoned = OffsetDateTime::parse(&text, &Iso8601::PARSING).ok();
    let unzoned = || PrimitiveDateTime::parse(&text, &Iso8601::PARSING).ok();
    let time = zoned.or_else(|| unzoned().map(PrimitiveDateTime::assume_utc))?;
    Some(time.unix_timestamp())
}

/// `2024-01-31T23:59:59.000Z`. A listing has a thousand of them, and a parser that knows every way
/// costs as much as all else.
fn written_by_s3(text: &str) -> Option<u64> {
    let text = text.as_bytes();
    let number = |range: Range<usize>| {
        let digits = text.get(range)?;
        digits.iter().try_fold(0, |sum: u64, digit| {
            digit.is_ascii_digit().then(|| sum * 10 + u64::from(digit - b'0'))
        })
    };
    let sign = |at: usize, sign: u8| text.get(at) == Some(&sign);
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let signs = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let fraction = text.get(19..)?.strip_suffix(b"Z")?;
    let is_fraction = match fraction {
        [] => true,
        [b'.', digits @ ..] => {
            (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    };
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let longest = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u64::from(leap),
        _ => return None,
    };
    let is_time = (1..=longest).contains(&day) && hour < 24 && minute < 60 && second < 60;
    if year < 1970 || !is_time || !is_fraction || !signs.iter().all(|(at, is)| sign(*at, *is)) {
        return None;
    }
    // Years from March end with the leap day; from March of the year 0 to 1970 are 719,468 days.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_year = (153 * month + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + of_year - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The days of four hundred years are those of every other four hundred.
    #[test]
    fn every_day_is_as_the_sdk_counts_it() {
        for day in 0..400 * 366 {
            let time = DateTime::from_secs(day * 86_400 + day % 86_400);
            let text = time.fmt(Format::DateTime).unwrap();
            assert_eq!(written_by_s3(&text).map(u64::cast_signed), Some(time.secs()), "{text}");
        }
    }

    #[test]
    fn a_time_may_be_written_in_many_ways() {
        for (written, seconds) in [
            ("1970-01-01T00:00:00.000Z", 0),
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:34:56.789Z", 951_827_696),
            ("2024-12-31T23:59:59.999999999Z", 1_735_689_599),
            ("2024-12-31T23:59:59+00:00", 1_735_689_599),
            ("2025-01-01T00:59:59+01:00", 1_735_689_599),
            ("2025-01-01T00:59:59.5+0100", 1_735_689_599),
            ("2024-12-31 23:59:59", 1_735_689_599),
            ("2024-12-31 23:59:59 UTC", 1_735_689_599),
            ("2024-12-31t23:59:59z", 1_735_689_599),
            ("20241231T235959Z", 1_735_689_599),
            ("2024-12-31T23:59:59", 1_735_689_599),
            ("Tue, 31 Dec 2024 23:59:59 GMT", 1_735_689_599),
            ("Tue, 31 Dec 2024 23:59:59 +0000", 1_735_689_599),
            ("31 Dec 2024 23:59:59 UTC", 1_735_689_599),
            (" Wed, 1 Jan 2025 00:59:59 +0100 ", 1_735_689_599),
            ("9999-12-31T23:59:59.000Z", 253_402_300_799),
            // Nobody can tell it.
            ("1969-12-31T23:59:59Z", 0),
            ("0001-01-01T00:00:00Z", 0),
            ("Mon, 01 Jan 0001 00:00:00 GMT", 0),
        ] {
            assert_eq!(read(written), Some(UNIX_EPOCH + Duration::from_secs(seconds)), "{written}");
        }
        for odd in ["", "yesterday", "2024-02-30T00:00:00Z", "24-01-01", "0", "0000-00-00", "ä"] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }
}
