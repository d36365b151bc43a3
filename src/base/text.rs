//! Pure: numbers, names and errors as text for people.

use std::error::Error;
use std::time::Duration;

pub(crate) fn seconds(seconds: f64) -> String {
    if seconds >= 1.0 {
        format!("{seconds:.1} s")
    } else if seconds >= 0.0995 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds >= 0.001 {
        format!("{:.1} ms", seconds * 1e3)
    } else {
        format!("{:.0} µs", seconds * 1e6)
    }
}

#[allow(clippy::cast_precision_loss)] // shown with three digits
pub(crate) fn bytes(bytes: u64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let bytes = bytes as f64;
    let unit = units.iter().find(|&&(unit, _)| bytes >= unit);
    unit.map_or_else(|| format!("{bytes} B"), |(unit, name)| format!("{:.1} {name}", bytes / unit))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // never negative
pub(crate) fn uptime(seconds: f64) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(seconds.max(0.0) as u64))
}

#[allow(clippy::cast_precision_loss)] // shown with two digits
pub(crate) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "none".to_owned();
    }
    format!("{:.0} %", 100.0 * part as f64 / whole as f64)
}

/// The same text with its control characters escaped, so that it takes one line.
pub(crate) fn on_one_line(text: &str) -> String {
    let one = |c: char| if c.is_control() { c.escape_debug().collect() } else { String::from(c) };
    text.chars().map(one).collect()
}

/// The deepest known cause of an error.
pub(crate) fn innermost(mut error: &(dyn Error + 'static)) -> String {
    loop {
        // An io::Error hides the error it wraps: its `source` is that error's source.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let wrapped = wrapped.map(|inner| inner as &(dyn Error + 'static));
        match wrapped.or_else(|| error.source()) {
            Some(cause) => error = cause,
            None => return error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_times_and_shares_are_written_for_people() {
        for (size, want) in [(0, "0 B"), (999, "999 B"), (1_500_000, "1.5 MB"), (1 << 40, "1.1 TB")]
        {
            assert_eq!(bytes(size), want);
        }
        for (time, want) in
            [(2.0, "2.0 s"), (0.1982, "198 ms"), (0.0153, "15.3 ms"), (0.000_012, "12 µs")]
        {
            assert_eq!(seconds(time), want);
        }
        assert_eq!(on_one_line("a \n\u{1b}[2Jä"), "a \\n\\u{1b}[2Jä");
        assert_eq!(percent(1, 3), "33 %");
        assert_eq!(percent(0, 0), "none");
    }
}
