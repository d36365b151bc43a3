//! `fasts3-mount warm`: reads files before programs want them.
//!
//! It reads through the mount, as a program does, so what it reads is where a program finds it: in
//! the kernel's page cache, and small files in the daemon's memory too. Another way, to have the
//! daemon fetch without a reader, would fill its memory only, which is smaller and the second place
//! where a read looks.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ratatui::crossterm::terminal;
use serde::Serialize;

use super::client::{mount_of, mounts};
use crate::app::command_error::CommandError;
use crate::base::proc::machine_memory_bytes;
use crate::base::text::{bytes, on_one_line, seconds};

/// The kernel's largest request.
const READ_BYTES: usize = 1 << 20;
/// Files that are found and not yet read.
const WAITING: usize = 4096;
/// Errors that are shown one by one; the rest are counted.
const SHOWN: u64 = 20;
/// The beginning of the line, with nothing on it.
const ERASED: &str = "\r\x1b[K";
/// A terminal that does not tell its width.
const COLUMNS: u16 = 80;
/// How often the progress is shown anew.
const TICK: Duration = Duration::from_millis(200);

/// What was read.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// Files that were read whole.
    pub(super) files: u64,
    /// Bytes that were read.
    pub(super) bytes: u64,
    /// Files and directories that could not be read.
    pub(super) errors: u64,
    /// The first of these, with the reason.
    pub(super) first_error: Option<String>,
    /// How long it took.
    pub(super) seconds: f64,
    /// More was read than the machine has memory for, so the first of it is gone again.
    pub(super) more_than_memory: bool,
}

impl Report {
    /// 74, `EX_IOERR`, when anything could not be read.
    pub(super) fn code(&self) -> u8 {
        if self.errors == 0 { 0 } else { 74 }
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let errors = match self.errors {
            0 => String::new(),
            errors => format!("; {errors} could not be read"),
        };
        let memory = if self.more_than_memory {
            "; that is more than the machine has memory for, so what came first is gone again"
        } else {
            ""
        };
        format!(
            "read {} files, {} in {}, {}/s{errors}{memory}",
            self.files,
            bytes(self.bytes),
            seconds(self.seconds),
            bytes(rate(self.bytes, self.seconds)),
        )
    }
}

/// Everything that the threads share.
#[derive(Default)]
struct Shared {
    found_files: AtomicU64,
    found_bytes: AtomicU64,
    files: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    first_error: Mutex<Option<String>>,
    /// Everything was found.
    walked: AtomicBool,
    /// There is a line of progress, over which errors are written.
    shows: bool,
}

impl Shared {
    fn failed(&self, path: &Path, error: &std::io::Error) {
        let text = format!("{}: {error}", on_one_line(&path.to_string_lossy()));
        if self.errors.fetch_add(1, Relaxed) < SHOWN {
            eprintln!("{}{text}", if self.shows { ERASED } else { "" });
        }
        self.first_error.lock().get_or_insert(text);
    }
}

/// Reads what is named, `jobs` files at a time.
pub(super) fn run(paths: Vec<PathBuf>, jobs: usize, json: bool) -> Result<Report, CommandError> {
    let paths = named(paths)?;
    let mounts = mounts();
    if let Some(path) = paths.iter().find(|path| !is_inside(path, &mounts)) {
        let shown = on_one_line(&path.to_string_lossy());
        return Err(CommandError::no_mount(format!("{shown} is not inside a fasts3-mount")));
    }
    let begun = Instant::now();
    let shows = !json && std::io::stderr().is_terminal();
    let shared = Arc::new(Shared { shows, ..Shared::default() });
    let (send, receive) = sync_channel(WAITING);
    let receive = Arc::new(Mutex::new(receive));
    let walker = {
        let shared = shared.clone();
        std::thread::spawn(move || {
            for path in &paths {
                walk(path, &send, &shared);
            }
            shared.walked.store(true, Relaxed);
        })
    };
    let readers: Vec<_> = (0..jobs.max(1))
        .map(|_| {
            let (shared, receive) = (shared.clone(), receive.clone());
            std::thread::spawn(move || read_all(&receive, &shared))
        })
        .collect();
    while readers.iter().any(|reader| !reader.is_finished()) {
        std::thread::sleep(TICK.min(begun.elapsed() / 4 + Duration::from_millis(1)));
        if shows {
            let columns = terminal::size().map_or(COLUMNS, |(columns, _)| columns);
            // A line that breaks could not be erased.
            let line = progress(&shared, begun.elapsed());
            let line: String = line.chars().take(usize::from(columns.saturating_sub(1))).collect();
            eprint!("{ERASED}{line}");
            let _ = std::io::stderr().flush();
        }
    }
    // A panic was printed by the thread itself; what it has not read is missing from the count.
    let _ = walker.join();
    for reader in readers {
        let _ = reader.join();
    }
    if shows {
        eprint!("{ERASED}");
    }
    let errors = shared.errors.load(Relaxed);
    if errors > SHOWN {
        eprintln!("and {} more", errors - SHOWN);
    }
    let read = shared.bytes.load(Relaxed);
    let first_error = shared.first_error.lock().take();
    Ok(Report {
        files: shared.files.load(Relaxed),
        bytes: read,
        errors,
        first_error,
        seconds: begun.elapsed().as_secs_f64(),
        more_than_memory: machine_memory_bytes().is_some_and(|memory| read > memory),
    })
}

/// The paths of the command line, or those of standard input: one a line, or, if there is any NUL,
/// one before each, for names with line breaks (`find -print0`).
fn named(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, CommandError> {
    if !paths.is_empty() && paths != [Path::new("-")] {
        return Ok(paths);
    }
    let input = std::io::stdin();
    if input.is_terminal() {
        return Err(CommandError::usage("warm needs paths, as arguments or on standard input"));
    }
    let mut list = Vec::new();
    input
        .lock()
        .read_to_end(&mut list)
        .map_err(|error| CommandError::usage(format!("standard input cannot be read: {error}")))?;
    Ok(listed(&list))
}

fn listed(list: &[u8]) -> Vec<PathBuf> {
    let end = if list.contains(&0) { 0 } else { b'\n' };
    let paths = list.split(|byte| *byte == end).filter(|path| !path.is_empty());
    paths.map(|path| PathBuf::from(OsStr::from_bytes(path))).collect()
}

/// Whether a path is in a mount; of one that does not exist, the directory it would be in.
fn is_inside(path: &Path, mounts: &[PathBuf]) -> bool {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let known = absolute.ancestors().find_map(|path| path.canonicalize().ok());
    known.is_some_and(|path| mount_of(&path, mounts).is_some())
}

/// Hands out the files of a path.
fn walk(path: &Path, found: &SyncSender<PathBuf>, shared: &Shared) {
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) => {
                shared.failed(&path, &error);
                continue;
            }
        };
        if metadata.is_file() {
            shared.found_files.fetch_add(1, Relaxed);
            shared.found_bytes.fetch_add(metadata.len(), Relaxed);
            if found.send(path).is_err() {
                return;
            }
        } else if metadata.is_dir() {
            match std::fs::read_dir(&path).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
                // The first name is to be popped first: names in order are read ahead.
                Ok(entries) => waiting.extend(entries.iter().rev().map(std::fs::DirEntry::path)),
                Err(error) => shared.failed(&path, &error),
            }
        }
    }
}

fn read_all(files: &Mutex<Receiver<PathBuf>>, shared: &Shared) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let next = files.lock().recv();
        let Ok(path) = next else { return };
        match read(&path, &mut buffer, shared) {
            Ok(()) => _ = shared.files.fetch_add(1, Relaxed),
            Err(error) => shared.failed(&path, &error),
        }
    }
}

fn read(path: &Path, buffer: &mut [u8], shared: &Shared) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    loop {
        match file.read(buffer)? {
            0 => return Ok(()),
            length => _ = shared.bytes.fetch_add(length as u64, Relaxed),
        }
    }
}

fn progress(shared: &Shared, elapsed: Duration) -> String {
    let (files, read) = (shared.files.load(Relaxed), shared.bytes.load(Relaxed));
    let (found_files, found) = (shared.found_files.load(Relaxed), shared.found_bytes.load(Relaxed));
    let speed = rate(read, elapsed.as_secs_f64());
    let walked = shared.walked.load(Relaxed);
    let left = match found.saturating_sub(read).checked_div(speed) {
        Some(seconds) if walked => {
            format!("{} left", humantime::format_duration(Duration::from_secs(seconds)))
        }
        _ => "looking for files".to_owned(),
    };
    let filled = usize::try_from((read * 20).checked_div(found).unwrap_or(0)).unwrap_or(0).min(20);
    let bar = format!("{}{}", "#".repeat(filled), ".".repeat(20 - filled));
    let errors = match shared.errors.load(Relaxed) {
        0 => String::new(),
        errors => format!(", {errors} errors"),
    };
    format!(
        "[{bar}] {left}{errors}, {files} of {found_files} files, {} of {}, {}/s",
        bytes(read),
        bytes(found),
        bytes(speed),
    )
}

#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn rate(bytes: u64, seconds: f64) -> u64 {
    if seconds > 0.0 { (bytes as f64 / seconds) as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_does_not_exist_is_where_it_would_be() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap();
        let mounts = [real.join("mnt")];
        std::fs::create_dir(&mounts[0]).unwrap();
        std::fs::write(mounts[0].join("file"), "").unwrap();
        std::os::unix::fs::symlink(&mounts[0], real.join("link")).unwrap();
        for (path, inside) in [
            ("mnt", true),
            ("mnt/file", true),
            ("mnt/none/x", true),
            ("link/file", true),
            ("", false),
        ] {
            assert_eq!(is_inside(&real.join(path), &mounts), inside, "{path}");
        }
        assert!(!is_inside(&mounts[0].join("../other"), &mounts));
    }

    #[test]
    fn the_progress_has_an_estimate_once_everything_was_found() {
        let shared = Shared::default();
        shared.found_files.store(4, Relaxed);
        shared.found_bytes.store(40_000_000, Relaxed);
        shared.files.store(1, Relaxed);
        shared.bytes.store(10_000_000, Relaxed);
        let half = progress(&shared, Duration::from_secs(2));
        assert!(
            half.ends_with("looking for files, 1 of 4 files, 10.0 MB of 40.0 MB, 5.0 MB/s"),
            "{half}"
        );
        shared.walked.store(true, Relaxed);
        shared.errors.store(2, Relaxed);
        let half = progress(&shared, Duration::from_secs(2));
        assert!(half.starts_with("[#####...............] 6s left, 2 errors, 1 of 4"), "{half}");
    }

    #[test]
    fn a_list_is_of_lines_or_of_what_ends_with_nul() {
        let paths = |list: &[u8]| -> Vec<Vec<u8>> {
            listed(list)
                .into_iter()
                .map(|path| path.into_os_string().into_encoded_bytes())
                .collect()
        };
        assert_eq!(paths(b"a\n\nb c\n\xff"), [&b"a"[..], b"b c", b"\xff"]);
        assert_eq!(paths(b"a\nb\0c\0\0"), [&b"a\nb"[..], b"c"]);
        assert_eq!(paths(b""), Vec::<Vec<u8>>::new());
    }
}
