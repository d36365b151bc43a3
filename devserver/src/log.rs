//! A log of answers with their times, for those who look for what a client waits for.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use percent_encoding::{CONTROLS, utf8_percent_encode};

use crate::counts::{Kind, LoggedRequest};

const HEAD: &str = "connection\tkind\tarrived\tfirst\tlast\tsent\trange\tkey\n";

/// A file of lines with tabs, the first of them their head. A line is written when the next request
/// comes on the same connection, or the connection ends.
#[derive(Debug)]
pub(crate) struct Log {
    file: Mutex<File>,
    connections: AtomicU64,
}

/// The answers of one connection, one after the other.
#[derive(Debug)]
pub(crate) struct Answers {
    log: Arc<Log>,
    connection: u64,
    current: Mutex<Option<Answer>>,
}

/// Times are since 1970, as other programs tell them.
#[derive(Debug)]
struct Answer {
    request: LoggedRequest,
    arrived: Duration,
    first_written: Duration,
    last_written: Duration,
    /// Bytes written: the head's and, over TLS, the session's too.
    sent: u64,
}

impl Log {
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut file = File::create(path)?;
        file.write_all(HEAD.as_bytes())?;
        Ok(Self { file: Mutex::new(file), connections: AtomicU64::new(0) })
    }

    pub(crate) fn connection(self: Arc<Self>) -> Arc<Answers> {
        let connection = self.connections.fetch_add(1, Relaxed);
        Arc::new(Answers { log: self, connection, current: Mutex::new(None) })
    }
}

impl Answers {
    pub(crate) fn begin(&self, request: LoggedRequest) {
        let arrived = now();
        let (first_written, last_written) = (Duration::ZERO, arrived);
        let answer = Answer { request, arrived, first_written, last_written, sent: 0 };
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(current.replace(answer));
    }

    pub(crate) fn wrote(&self, bytes: usize) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // What is written before the first request is the handshake of TLS.
        let Some(answer) = &mut *current else { return };
        answer.last_written = now();
        if answer.sent == 0 {
            answer.first_written = answer.last_written;
        }
        answer.sent += bytes as u64;
    }

    fn write(&self, answer: Option<Answer>) {
        let Some(answer) = answer else { return };
        let Answer { request, arrived, first_written, last_written, sent } = answer;
        let kind = match request.kind {
            Kind::List => "list",
            Kind::Head => "head",
            Kind::Get => "get",
            Kind::Other => "other",
        };
        let [arrived, first, last] =
            [arrived, first_written, last_written].map(|time| time.as_secs_f64());
        let range = request.range.as_deref().unwrap_or_default();
        let (connection, key) = (self.connection, utf8_percent_encode(&request.key, CONTROLS));
        let line = format!(
            "{connection}\t{kind}\t{arrived:.6}\t{first:.6}\t{last:.6}\t{sent}\t{range}\t{key}\n"
        );
        let mut file = self.log.file.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody can be told, and the answers are what the server is for.
        let _ = file.write_all(line.as_bytes());
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        let current = self.current.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        self.write(current);
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
