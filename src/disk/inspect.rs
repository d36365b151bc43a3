//! What an operator asks of a directory, whether mounts use it or not. These calls block.

use std::fs::OpenOptions;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::buffers::Buffers;
use super::files;
use super::folder::{self, Folder, FolderError, Limits, NAME};
use super::format::{OWN_UNIT, UNIT_BYTES};
use super::state::read_blocks;

/// Takes a tenth of a second on a fast disk, and a second on a slow one.
const PROBE_UNITS: u64 = 128;
const PROBE_MIB: f64 = 128.0 * 1.048_576;
const PROBE_THREADS: usize = 4;

/// What lies in the directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DiskSurvey {
    pub segments: u64,
    pub bytes: u64,
    /// Runs of blocks that can be found.
    pub extents: u64,
    /// Their bytes.
    pub usable_bytes: u64,
    /// Extents that were not right, and were removed. None were looked for without `verify`.
    pub wrong: u64,
    pub free_bytes: u64,
}

/// Looks at all that is stored, and with `verify` compares all checksums; `progress` is told of the
/// usable bytes so far.
pub fn survey(
    path: &Path,
    verify: bool,
    mut progress: impl FnMut(u64),
) -> Result<DiskSurvey, Error> {
    let folder = open(path)?;
    let segments = folder::segments(&path.join(NAME))?;
    let mut survey = DiskSurvey {
        segments: segments.len() as u64,
        bytes: segments.values().sum(),
        free_bytes: files::free_bytes(path)?,
        ..DiskSurvey::default()
    };
    let buffers = Buffers::new(1);
    folder.index.each(|extent| {
        // What was given up since is as good as gone. Own segments are named without any bytes.
        if !segments.contains_key(&extent.segment) || extent.unit == OWN_UNIT {
            return Ok(true);
        }
        if verify {
            let mut buffer = buffers.try_take().ok_or(ErrorKind::OutOfMemory)?;
            match read_blocks(&folder, extent, &extent.object_range(), &mut buffer) {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(true),
                Err(error) if error.kind() == ErrorKind::InvalidData => {
                    survey.wrong += 1;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        survey.extents += 1;
        survey.usable_bytes += u64::from(extent.length);
        progress(survey.usable_bytes);
        Ok(true)
    })?;
    Ok(survey)
}

/// Removes all caches in the directory, those of other versions too, and returns their bytes.
/// Mounts that use it notice, and begin anew. That there is none is an error.
pub fn clear(path: &Path) -> Result<u64, Error> {
    let mut bytes = None;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let is_cache =
            entry.file_name().to_str().is_some_and(|name| name.starts_with("fasts3-cache-"));
        if is_cache && entry.file_type()?.is_dir() {
            *bytes.get_or_insert(0) +=
                folder::segments(&entry.path()).map_or(0, |found| found.values().sum());
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    bytes.ok_or_else(no_cache)
}

/// What a disk does with direct I/O of one unit at a time: bytes a second.
#[derive(Clone, Copy, Debug)]
pub struct DiskSpeed {
    pub write: f64,
    /// By several threads, as the cache reads.
    pub read: f64,
}

/// Writes and reads a file of [`PROBE_UNITS`] units in the directory, and removes it.
pub fn measure(path: &Path) -> Result<DiskSpeed, Error> {
    let name = path.join(format!("fasts3-probe-{}", std::process::id()));
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = files::open_directly(&options, &name)?;
    std::fs::remove_file(&name)?;
    let buffers = Buffers::new(PROBE_THREADS);
    let mut buffer = buffers.try_take().ok_or(ErrorKind::OutOfMemory)?;
    // Not zeros, which some disks store without writing them.
    for (at, byte) in buffer.bytes_mut().iter_mut().enumerate() {
        *byte = (at ^ (at >> 8)).to_le_bytes()[0];
    }
    let begun = Instant::now();
    for unit in 0..PROBE_UNITS {
        file.write_all_at(buffer.bytes(), unit * UNIT_BYTES)?;
    }
    file.sync_data()?;
    let wrote = begun.elapsed();
    drop(buffer);
    let begun = Instant::now();
    std::thread::scope(|threads| {
        let read = |thread: usize| -> Result<(), Error> {
            let mut buffer = buffers.try_take().ok_or(ErrorKind::OutOfMemory)?;
            for unit in (0..PROBE_UNITS).skip(thread).step_by(PROBE_THREADS) {
                file.read_exact_at(buffer.bytes_mut(), unit * UNIT_BYTES)?;
            }
            Ok(())
        };
        let threads: Vec<_> =
            (0..PROBE_THREADS).map(|thread| threads.spawn(move || read(thread))).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_panicked| Err(ErrorKind::Other.into()))
        })
    })?;
    let rate = |took: Duration| 1e6 * PROBE_MIB / took.as_secs_f64().max(1e-6);
    Ok(DiskSpeed { write: rate(wrote), read: rate(begun.elapsed()) })
}

fn no_cache() -> Error {
    Error::new(ErrorKind::NotFound, "there is no cache")
}

fn open(path: &Path) -> Result<Folder, Error> {
    path.metadata()?;
    if !path.join(NAME).is_dir() {
        return Err(no_cache());
    }
    // A command makes no index, and deletes nothing because of one.
    super::index::Index::existing(&path.join(NAME).join("index")).map_err(|error| {
        Error::new(error.kind(), format!("{error}; the next mount makes the index anew"))
    })?;
    let unlimited = Limits { size_bytes: u64::MAX, reserve_bytes: 0 };
    let mut wrong = None;
    let opened = Folder::open(path, |_| Ok(unlimited), |error| wrong = Some(error.to_string()));
    let folder = opened.map_err(|error| match error {
        FolderError::Io(error) => error,
        FolderError::Unsafe(sentence) => Error::new(ErrorKind::PermissionDenied, sentence),
    })?;
    match wrong {
        Some(_) => Err(Error::new(ErrorKind::InvalidData, "the index was not right: all is gone")),
        None => Ok(folder),
    }
}
