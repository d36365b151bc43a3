//! Lines for systemd's journal, with their fields, by its native protocol
//! (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).
//!
//! `MESSAGE` holds the fields too, because that is all that `journalctl` shows unless asked.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::line::Line;

pub(super) struct Journal(UnixDatagram);

impl Journal {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(Self(socket))
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = Line::of(event);
        let level = *event.metadata().level();
        let sent = self.0.send(&datagram(&line, level));
        if sent.is_err() {
            // Too long for a datagram, or the journal is being restarted: its stream still works.
            eprintln!("{level} {}", line.text());
        }
    }
}

fn datagram(line: &Line, level: Level) -> Vec<u8> {
    // By `syslog(3)`: err, warning, info, debug.
    let priority = match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "6",
        Level::DEBUG | Level::TRACE => "7",
    };
    let mut bytes = Vec::new();
    add(&mut bytes, "MESSAGE", &line.text());
    add(&mut bytes, "PRIORITY", priority);
    add(&mut bytes, "SYSLOG_IDENTIFIER", "fasts3-mount");
    for (name, value) in &line.fields {
        // Names are ours: words with underscores.
        add(&mut bytes, &format!("FASTS3_{}", name.to_uppercase().replace('.', "_")), value);
    }
    bytes
}

/// `NAME=value`, or with its length if the value has several lines.
fn add(bytes: &mut Vec<u8>, name: &str, value: &str) {
    bytes.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        bytes.push(b'\n');
        bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        bytes.push(b'=');
    }
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(b'\n');
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::prelude::*;

    use super::*;

    #[test]
    fn a_line_reaches_the_journal_with_its_fields() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let subscriber = tracing_subscriber::registry().with(Journal::open(&path).unwrap());
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(key = "a/b", attempts = 3, "gave up");
            tracing::info!(text = "two\nlines", "said");
        });
        let mut buffer = [0; 4096];
        let length = journal.recv(&mut buffer).unwrap();
        assert_eq!(
            std::str::from_utf8(&buffer[..length]).unwrap(),
            "MESSAGE=gave up key=a/b attempts=3\nPRIORITY=4\nSYSLOG_IDENTIFIER=fasts3-mount\n\
             FASTS3_KEY=a/b\nFASTS3_ATTEMPTS=3\n"
        );
        let length = journal.recv(&mut buffer).unwrap();
        let two = b"FASTS3_TEXT\n\x09\0\0\0\0\0\0\0two\nlines\n";
        assert!(buffer[..length].ends_with(two), "{:?}", &buffer[..length]);
    }

    #[test]
    fn without_a_journal_there_is_none() {
        assert!(Journal::open(Path::new("/nowhere/at/all")).is_err());
    }
}
