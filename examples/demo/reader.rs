//! The program that reads the mount: `python3`, or this one where there is none.
//!
//! It is a process of its own, so that it can be ended whatever it waits for. It is given one step
//! at a time and answers with what it has measured; in between the store can be set otherwise and
//! its requests counted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Barrier, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const PYTHON: &str = include_str!("reader.py");
/// The first argument that makes this program the reader.
pub(crate) const AS_READER: &str = "--as-reader";
/// Killing it takes effect at once, unless the machine is in trouble.
const LIMIT: Duration = Duration::from_secs(5);

/// Something to read and to measure. Paths are relative to the reader's working directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Step {
    /// Find and stat every file below a folder.
    Walk { root: String, files: Vec<Expected> },
    /// Read whole files, each in one `read()`.
    Read { threads: usize, files: Vec<Expected> },
    /// Read the footer of a table and then these columns; their names stand for paths.
    Columns { path: String, columns: Vec<Expected> },
}

/// The expected content of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Expected {
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) crc32: u32,
}

/// The cost of a step whose bytes were right.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// A running reader; dropping it kills it.
pub(crate) struct Reader {
    /// Name of the reading program, to be shown.
    pub(crate) name: String,
    child: Child,
    steps: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Reader {
    /// Starts a reader of the files below a folder.
    pub(crate) async fn start(folder: &Path) -> io::Result<Self> {
        let mut python = Command::new("python3");
        // Isolated from the user's variables and packages.
        python.args(["-I", "-c", PYTHON]);
        // A python3 that cannot run this is none.
        if let Ok(reader) = Self::greeted(python, folder).await {
            return Ok(reader);
        }
        let mut own = Command::new(std::env::current_exe()?);
        own.arg(AS_READER);
        Self::greeted(own, folder).await
    }

    async fn greeted(mut command: Command, folder: &Path) -> io::Result<Self> {
        let mut child = command
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            // Ctrl-C is for us; we end our children.
            .process_group(0)
            .spawn()?;
        let steps = child.stdin.take().expect("piped");
        let answers = child.stdout.take().expect("piped");
        let mut answers = BufReader::new(answers).lines();
        let name = answers.next_line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let name = serde_json::from_str(&name)?;
        Ok(Self { name, child, steps, answers })
    }

    /// Has one step done. An error is a sentence.
    pub(crate) async fn run(&mut self, step: &Step) -> Result<Measured, String> {
        let broken = |error: io::Error| format!("the reading program ended: {error}");
        let mut line = serde_json::to_vec(step).expect("plain data");
        line.push(b'\n');
        self.steps.write_all(&line).await.map_err(broken)?;
        let answer = self.answers.next_line().await.map_err(broken)?;
        let answer = answer.ok_or_else(|| broken(io::ErrorKind::UnexpectedEof.into()))?;
        serde_json::from_str(&answer).map_err(|error| broken(error.into()))?
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Its open files and its working directory are in the mount: it goes before that does.
        let _ = self.child.start_kill();
        ended_within(&mut self.child, LIMIT);
    }
}

/// Waits for the end of a child, in code that is not async; whether it came.
pub(crate) fn ended_within(child: &mut Child, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            waited => return !matches!(waited, Ok(None)),
        }
    }
}

/// The program that reads, in this language.
pub(crate) fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: reading failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{}", serde_json::json!("Rust's std::fs, as there is no python3"))?;
    for line in io::stdin().lock().lines() {
        let done = match serde_json::from_str(&line?)? {
            Step::Walk { root, files } => walk(root.into(), &files),
            Step::Read { threads, files } => read(threads, &files),
            Step::Columns { path, columns } => self::columns(path.as_ref(), &columns),
        };
        let answer = done.map_err(|error| error.to_string());
        writeln!(out, "{}", serde_json::to_string(&answer)?)?;
    }
    Ok(())
}

fn walk(root: PathBuf, files: &[Expected]) -> io::Result<Measured> {
    let start = Instant::now();
    let mut found = BTreeMap::new();
    let mut folders = vec![root];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                found.insert(entry.path(), entry.metadata()?.len());
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    if found != files.iter().map(|file| (file.path.as_str().into(), file.size)).collect() {
        return Err(io::Error::other("other names or sizes than were stored"));
    }
    Ok(Measured { seconds, files: found.len() as u64, bytes: 0 })
}

fn read(threads: usize, files: &[Expected]) -> io::Result<Measured> {
    let contents: Vec<_> = files.iter().map(|_| Mutex::new(Ok(Vec::new()))).collect();
    let next = AtomicUsize::new(0);
    // The threads are there before the clock starts.
    let ready = Barrier::new(threads + 1);
    let work = || {
        ready.wait();
        loop {
            let index = next.fetch_add(1, Relaxed);
            let Some(file) = files.get(index) else { break };
            *contents[index].lock().expect("no panic while it is held") = fs::read(&file.path);
        }
    };
    let start = std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
        ready.wait();
        Instant::now()
    });
    let seconds = start.elapsed().as_secs_f64();
    let mut bytes = 0;
    for (file, content) in files.iter().zip(contents) {
        let content = content.into_inner().expect("no panic while it is held")?;
        check(file, &content)?;
        bytes += content.len() as u64;
    }
    Ok(Measured { seconds, files: files.len() as u64, bytes })
}

fn columns(path: &Path, columns: &[Expected]) -> io::Result<Measured> {
    #[derive(Deserialize)]
    struct Place {
        offset: u64,
        size: usize,
    }

    let start = Instant::now();
    let mut file = File::open(path)?;
    let mut at = |from, bytes: usize| {
        file.seek(from)?;
        let mut content = vec![0; bytes];
        file.read_exact(&mut content).map(|()| content)
    };
    let tail = at(SeekFrom::End(-8), 8)?;
    let (footer_bytes, magic) = tail.split_first_chunk::<4>().expect("8 bytes were read");
    if magic != b"PAR1" {
        return Err(io::Error::other("the table does not end as it should"));
    }
    let footer_bytes = u32::from_le_bytes(*footer_bytes);
    let footer = at(SeekFrom::End(-8 - i64::from(footer_bytes)), footer_bytes as usize)?;
    let footer: BTreeMap<String, Place> = serde_json::from_slice(&footer)?;
    let mut contents = Vec::new();
    for column in columns {
        let place = footer.get(&column.path).ok_or(io::ErrorKind::InvalidData)?;
        contents.push(at(SeekFrom::Start(place.offset), place.size)?);
    }
    let seconds = start.elapsed().as_secs_f64();
    for (column, content) in columns.iter().zip(&contents) {
        check(column, content)?;
    }
    let bytes = contents.iter().map(|content| content.len() as u64).sum();
    Ok(Measured { seconds, files: 1, bytes })
}

fn check(file: &Expected, content: &[u8]) -> io::Result<()> {
    let Expected { path, size, crc32 } = file;
    if content.len() as u64 != *size {
        let found = content.len();
        return Err(io::Error::other(format!("{path} has {found} bytes instead of {size}")));
    }
    if crc32fast::hash(content) != *crc32 {
        return Err(io::Error::other(format!("{path} has wrong bytes")));
    }
    Ok(())
}
