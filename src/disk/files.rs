//! What lies in the directory: opened only if it is a file, whoever has put something else there.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nix::sys::statvfs::statvfs;

/// Opens a file. Anything else there, such as a pipe, a directory or a link, is not waited for or
/// followed: it is an error of the kind `InvalidData`.
pub(super) fn open(options: &OpenOptions, path: &Path) -> std::io::Result<File> {
    open_with(options, path, 0)
}

/// Not through the kernel's page cache, which holds what was read once already. Not every file
/// system can.
pub(super) fn open_directly(options: &OpenOptions, path: &Path) -> std::io::Result<File> {
    open_with(options, path, libc::O_DIRECT).or_else(|error| match error.kind() {
        ErrorKind::InvalidInput => open(options, path),
        _ => Err(error),
    })
}

/// The error, which names the file.
pub(super) fn of_file(path: &Path, error: &Error) -> Error {
    Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn open_with(options: &OpenOptions, path: &Path, flags: libc::c_int) -> std::io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | flags;
    let opened = options.clone().custom_flags(flags).open(path);
    let is_file = match &opened {
        Ok(file) => file.metadata()?.is_file(),
        Err(_) => path.symlink_metadata().map_or(true, |there| there.is_file()),
    };
    let opened =
        if is_file { opened } else { Err(Error::new(ErrorKind::InvalidData, "not a file")) };
    opened.map_err(|error| of_file(path, &error))
}

/// Opens a file to read and write it, and makes it if it is missing, or if something else is there.
pub(super) fn open_or_make(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    open(&options, path).or_else(|error| {
        if error.kind() != ErrorKind::InvalidData {
            return Err(error);
        }
        discard(path)?;
        open(&options, path)
    })
}

/// Removes whatever is there.
pub(super) fn discard(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == ErrorKind::IsADirectory => std::fs::remove_dir_all(path),
        removed => removed,
    }
}

/// This file is there under this name.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let there = path.symlink_metadata().map(|there| (there.dev(), there.ino()));
    let ours = file.metadata().map(|ours| (ours.dev(), ours.ino()));
    matches!((there, ours), (Ok(there), Ok(ours)) if there == ours)
}

pub(super) fn make_folder(path: &Path) -> std::io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

pub(super) fn free_bytes(path: &Path) -> std::io::Result<u64> {
    let found = statvfs(path)?;
    Ok(found.blocks_available() * found.fragment_size())
}

pub(super) fn disk_bytes(path: &Path) -> std::io::Result<u64> {
    let found = statvfs(path)?;
    Ok(found.blocks() * found.fragment_size())
}

/// Nobody but this user and root may be able to write to a directory; inside of ours, nobody else
/// may read either. Otherwise a sentence that says what to do.
pub(super) fn check_owner(path: &Path, there: &Metadata, inside: bool) -> Result<(), String> {
    let shown = path.display();
    let (user, owner) = (nix::unistd::geteuid().as_raw(), there.uid());
    if owner != user && (inside || owner != 0) {
        return Err(format!(
            "{shown} belongs to another user ({owner}); give a directory of your own"
        ));
    }
    let mode = there.mode();
    // In a directory with the sticky bit others cannot move what is ours.
    let open = if inside {
        0o077
    } else if mode & 0o1000 != 0 {
        0
    } else {
        0o022
    };
    if mode & open != 0 {
        let remedy = if inside { "go-rwx" } else { "go-w" };
        return Err(format!(
            "{shown} is open to other users; close it with `chmod {remedy} {shown}`"
        ));
    }
    Ok(())
}
