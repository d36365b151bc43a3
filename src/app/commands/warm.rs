//! `fasts3-mount warm`: reads files before programs want them.
//!
//! It reads through the mount, as a program does, so the bytes are where a program finds them: in
//! the kernel's page cache, and small files in the daemon's memory too. A daemon that fetched
//! without a reader would fill its memory only, which is smaller and the second place where a read
//! looks. With `--to-disk` it reads past the page cache, and the daemon lets it wait for the disk.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Error, IsTerminal as _, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use parking_lot::Mutex;
use ratatui::crossterm::terminal;
use serde::Serialize;

use super::client::{ask, mount_of, mounts, status};
use crate::app::command_error::CommandError;
use crate::app::control::{Command, PATIENCE};
use crate::base::proc::machine_memory_bytes;
use crate::base::text::{bytes, on_one_line, seconds};
use crate::stats::Counter;

/// The kernel's largest request.
const READ_BYTES: usize = 1 << 20;
/// Files that are found and not yet read, at most.
const WAITING: usize = 4096;
/// Errors that are shown one by one; the rest are counted.
const SHOWN: u64 = 20;
/// Returns to the beginning of the line and erases it.
const ERASE: &str = "\r\x1b[K";
/// The width of a terminal that does not tell it.
const COLUMNS: u16 = 80;
/// The longest time between two updates of the progress line.
const TICK: Duration = Duration::from_millis(200);

/// The result.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Warmed {
    /// Files that were read to their ends.
    files: u64,
    bytes: u64,
    /// Files and directories that could not be read.
    errors: u64,
    first_error: Option<String>,
    seconds: f64,
    /// More than the machine has memory for, so the first of the bytes are gone again.
    more_than_memory: bool,
    /// With `--to-disk`: bytes that the disk did not take.
    not_on_disk: Option<u64>,
}

impl Warmed {
    /// 74, `EX_IOERR`, if there were errors.
    pub(super) fn code(&self) -> u8 {
        if self.errors == 0 && self.not_on_disk.unwrap_or_default() == 0 { 0 } else { 74 }
    }

    pub(super) fn text(&self) -> String {
        let errors = match self.errors {
            0 => String::new(),
            errors => format!("; {errors} could not be read"),
        };
        let disk = match self.not_on_disk {
            None | Some(0) => String::new(),
            Some(left) => format!("; the disk did not take {}", bytes(left)),
        };
        let memory = if self.more_than_memory && self.not_on_disk.is_none() {
            "; that is more than the machine has memory for, so what came first is gone again"
        } else {
            ""
        };
        format!(
            "read {} files, {} in {}, {}/s{errors}{disk}{memory}",
            self.files,
            bytes(self.bytes),
            seconds(self.seconds),
            bytes(rate(self.bytes, self.seconds)),
        )
    }
}

/// Shared by all threads.
#[derive(Default)]
struct Tally {
    found_files: Counter,
    found_bytes: Counter,
    files: Counter,
    bytes: Counter,
    errors: Counter,
    first_error: Mutex<Option<String>>,
    /// All files have been found.
    walked: AtomicBool,
    /// It is shown on a line of the terminal, over which errors are written.
    shown: bool,
    to_disk: bool,
}

/// Reads files and directories, `jobs` files at a time.
pub(super) fn run(
    paths: Vec<PathBuf>,
    jobs: usize,
    to_disk: bool,
    json: bool,
) -> Result<Warmed, CommandError> {
    let mounts = mounts();
    let with_mount = |path: &Path| Some((path.to_owned(), inside(path, &mounts)?));
    let (found, foreign) = in_mounts(named(paths)?, with_mount)?;
    let (paths, of): (Vec<_>, _) = found.into_iter().unzip();
    let disks = if to_disk { disks(of)? } else { Vec::new() };
    let dropped_before = dropped(&disks)?;
    let begun = Instant::now();
    let shown = !json && std::io::stderr().is_terminal();
    let tally = &Tally { shown, to_disk, ..Tally::default() };
    let (send, receive) = sync_channel(WAITING);
    let receive = Arc::new(Mutex::new(receive));
    std::thread::scope(|scope| {
        let walker = scope.spawn(move || {
            for path in &paths {
                walk(path, &send, tally);
            }
            tally.walked.store(true, Relaxed);
        });
        let reader = |_| {
            let receive = receive.clone();
            scope.spawn(move || read_all(&receive, tally))
        };
        let readers: Vec<_> = (0..jobs.max(1)).map(reader).collect();
        drop(receive);
        let mut asked = begun;
        while readers.iter().any(|reader| !reader.is_finished()) {
            std::thread::sleep(TICK.min(begun.elapsed() / 4 + Duration::from_millis(1)));
            tally.show(begun.elapsed());
            if asked.elapsed() > PATIENCE / 2 {
                // A daemon that is gone is an error of the files.
                let _ = disks.iter().try_for_each(|mount| ask(mount, Command::ToDisk).map(drop));
                asked = Instant::now();
            }
        }
        // A panic was printed by its thread; the bytes that it did not read are not counted.
        for thread in readers.into_iter().chain([walker]) {
            let _ = thread.join();
        }
    });
    // Answered when what has come is on the disk.
    disks.iter().try_for_each(|mount| ask(mount, Command::ToDisk).map(drop))?;
    if shown {
        eprint!("{ERASE}");
    }
    let (read, errors) = (tally.bytes.get(), tally.errors.get());
    if errors > SHOWN {
        eprintln!("and {} more", errors - SHOWN);
    }
    Ok(Warmed {
        files: tally.files.get(),
        bytes: read,
        errors: errors + foreign.len() as u64,
        first_error: foreign.into_iter().next().or(tally.first_error.lock().take()),
        seconds: begun.elapsed().as_secs_f64(),
        not_on_disk: if to_disk { Some(dropped(&disks)? - dropped_before) } else { None },
        more_than_memory: machine_memory_bytes().is_some_and(|memory| read > memory),
    })
}

/// The mounts, each once, which have disk caches and now wait for them.
fn disks(mut mounts: Vec<PathBuf>) -> Result<Vec<PathBuf>, CommandError> {
    mounts.sort();
    mounts.dedup();
    mounts.iter().try_for_each(|mount| ask(mount, Command::ToDisk).map(drop))?;
    Ok(mounts)
}

/// Bytes that the disks of these mounts did not take.
fn dropped(mounts: &[PathBuf]) -> Result<u64, CommandError> {
    let of = |mount: &PathBuf| Ok(status(mount)?.totals.counters.disk_dropped_bytes);
    mounts.iter().map(of).sum()
}

/// The paths of the command line, or those of standard input: one a line, or each ended by a NUL if
/// there is any, for names with line breaks (`find -print0`).
pub(super) fn named(paths: Vec<PathBuf>) -> Result<Vec<PathBuf>, CommandError> {
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

/// What is found of the paths, and a sentence about each that is in no mount, told on standard
/// error. It is an error if all are.
pub(super) fn in_mounts<Found>(
    paths: Vec<PathBuf>,
    find: impl Fn(&Path) -> Option<Found>,
) -> Result<(Vec<Found>, Vec<String>), CommandError> {
    let (mut found, mut foreign) = (Vec::new(), Vec::new());
    for path in paths {
        if let Some(one) = find(&path) {
            found.push(one);
            continue;
        }
        let looped = |error: &Error| error.raw_os_error() == Some(libc::ELOOP);
        let error = path.canonicalize().err().filter(looped);
        let why = error.map_or("not inside a fasts3-mount".into(), |error| error.to_string());
        foreign.push(format!("{}: {why}", on_one_line(&path.to_string_lossy())));
    }
    if let (true, Some(first)) = (found.is_empty(), foreign.first()) {
        return Err(CommandError::no_mount(first));
    }
    for (sentence, _) in foreign.iter().zip(0..SHOWN) {
        eprintln!("{sentence}");
    }
    Ok((found, foreign))
}

/// The mount that the path is in, or would be if it existed.
fn inside(path: &Path, mounts: &[PathBuf]) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let known = absolute.ancestors().find_map(|path| path.canonicalize().ok());
    known.and_then(|path| mount_of(&path, mounts))
}

/// Sends the files of a path.
fn walk(path: &Path, found: &SyncSender<PathBuf>, tally: &Tally) {
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        let entries = match std::fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                tally.found_files.add(1);
                tally.found_bytes.add(metadata.len());
                if found.send(path).is_err() {
                    return;
                }
                continue;
            }
            Ok(metadata) if metadata.is_dir() => std::fs::read_dir(&path),
            Ok(_) => continue,
            Err(error) => Err(error),
        };
        match entries.and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            // The first name is popped first: names in order are read ahead.
            Ok(entries) => waiting.extend(entries.iter().rev().map(std::fs::DirEntry::path)),
            Err(error) => tally.failed(&path, &error),
        }
    }
}

fn read_all(files: &Mutex<Receiver<PathBuf>>, tally: &Tally) {
    // Aligned, as direct I/O of a file that is passed through wants it.
    let mut buffer = match MmapMut::map_anon(READ_BYTES) {
        Ok(buffer) => buffer,
        Err(error) => return tally.failed(Path::new("no memory"), &error),
    };
    loop {
        let next = files.lock().recv();
        let Ok(path) = next else { return };
        match read(&path, &mut buffer, tally) {
            Ok(()) => tally.files.add(1),
            Err(error) => tally.failed(&path, &error),
        }
    }
}

fn read(path: &Path, buffer: &mut [u8], tally: &Tally) -> std::io::Result<()> {
    let flags = if tally.to_disk { libc::O_DIRECT } else { 0 };
    let mut file = File::options().read(true).custom_flags(flags).open(path)?;
    loop {
        match file.read(buffer)? {
            0 => return Ok(()),
            length => tally.bytes.add(length as u64),
        }
    }
}

impl Tally {
    fn failed(&self, path: &Path, error: &std::io::Error) {
        let text = format!("{}: {error}", on_one_line(&path.to_string_lossy()));
        let mut first = self.first_error.lock();
        if self.errors.get() < SHOWN {
            eprintln!("{}{text}", if self.shown { ERASE } else { "" });
        }
        self.errors.add(1);
        first.get_or_insert(text);
    }

    fn show(&self, elapsed: Duration) {
        if self.shown {
            let columns = terminal::size().map_or(COLUMNS, |(columns, _)| columns);
            // A line that wraps could not be erased.
            let width = usize::from(columns.saturating_sub(1));
            let line: String = self.text(elapsed).chars().take(width).collect();
            eprint!("{ERASE}{line}");
            let _ = std::io::stderr().flush();
        }
    }

    fn text(&self, elapsed: Duration) -> String {
        let (read, found) = (self.bytes.get(), self.found_bytes.get());
        let speed = rate(read, elapsed.as_secs_f64());
        let left = match found.saturating_sub(read).checked_div(speed) {
            Some(seconds) if self.walked.load(Relaxed) => {
                format!("{} left", humantime::format_duration(Duration::from_secs(seconds)))
            }
            _ => "looking for files".to_owned(),
        };
        let filled = (read * 20).checked_div(found).unwrap_or(0).min(20);
        let bar: String = (0..20).map(|cell| if cell < filled { '#' } else { '.' }).collect();
        let errors = match self.errors.get() {
            0 => String::new(),
            errors => format!(", {errors} errors"),
        };
        format!(
            "[{bar}] {left}{errors}, {} of {} files, {} of {}, {}/s",
            self.files.get(),
            self.found_files.get(),
            bytes(read),
            bytes(found),
            bytes(speed),
        )
    }
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
        for (path, is_inside) in [
            ("mnt", true),
            ("mnt/file", true),
            ("mnt/none/x", true),
            ("link/file", true),
            ("", false),
        ] {
            assert_eq!(inside(&real.join(path), &mounts).is_some(), is_inside, "{path}");
        }
        assert_eq!(inside(&mounts[0].join("../other"), &mounts), None);
    }

    #[test]
    fn the_progress_has_an_estimate_once_everything_was_found() {
        let tally = Tally::default();
        tally.found_files.add(4);
        tally.found_bytes.add(40_000_000);
        tally.files.add(1);
        tally.bytes.add(10_000_000);
        let half = tally.text(Duration::from_secs(2));
        assert!(
            half.ends_with("looking for files, 1 of 4 files, 10.0 MB of 40.0 MB, 5.0 MB/s"),
            "{half}"
        );
        tally.walked.store(true, Relaxed);
        tally.errors.add(2);
        let half = tally.text(Duration::from_secs(2));
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
