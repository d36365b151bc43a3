//! Tells the program the commit that it is built from, if that is known.
//!
//! `FASTS3_MOUNT_COMMIT` says it where there is no git, as in an archive or a container's build.
//! Otherwise git is asked, for optimised builds only: a developer builds the same code before and
//! after a commit, and must not wait for it twice. Without an answer the version stands alone.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The inputs of the program. A change elsewhere does not change it.
const MADE_OF: [&str; 4] = ["src", "build.rs", "Cargo.toml", "Cargo.lock"];

fn main() {
    let folder = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let version = std::env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    println!("cargo::rerun-if-env-changed=FASTS3_MOUNT_COMMIT");
    println!("cargo::rerun-if-changed=build.rs");
    let given = std::env::var("FASTS3_MOUNT_COMMIT").unwrap_or_default();
    let commit = match given.trim() {
        "" if std::env::var("PROFILE").is_ok_and(|profile| profile == "release") => {
            for path in watched(&folder) {
                println!("cargo::rerun-if-changed={}", path.display());
            }
            commit(&folder)
        }
        "" => None,
        given => Some(given.to_owned()),
    };
    let shown = commit.map_or_else(|| version.clone(), |commit| format!("{version} ({commit})"));
    println!("cargo::rustc-env=FASTS3_MOUNT_VERSION={shown}");
}

/// The commit in short, with `-dirty` if the program's inputs differ from it. None if the
/// folder is not the top of a repository: it may lie inside another one.
pub(crate) fn commit(folder: &Path) -> Option<String> {
    let top = PathBuf::from(git(folder, &["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != folder.canonicalize().ok()? {
        return None;
    }
    let hash = git(folder, &["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(folder, &[&["status", "--porcelain", "--"][..], &MADE_OF].concat())?;
    Some(if changes.is_empty() { hash } else { format!("{hash}-dirty") })
}

/// Files that change when [`commit`] does, if they exist: cargo takes a missing file for changed.
pub(crate) fn watched(folder: &Path) -> Vec<PathBuf> {
    let branch = git(folder, &["rev-parse", "--symbolic-full-name", "HEAD"]).unwrap_or_default();
    // In a worktree HEAD lies elsewhere than branches do; git knows where.
    let of_git = ["HEAD", "logs/HEAD", "packed-refs", &branch]
        .into_iter()
        .filter(|name| !name.is_empty())
        .filter_map(|name| git(folder, &["rev-parse", "--git-path", name]));
    let paths = of_git.chain(MADE_OF.map(str::to_owned)).map(|path| folder.join(path));
    paths.filter(|path| path.exists()).collect()
}

/// The output of git without the end of the line; none if it fails or is missing.
fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    let said = Command::new("git")
        .arg("--no-optional-locks")
        .args(arguments)
        .current_dir(folder)
        .output()
        .ok()
        .filter(|said| said.status.success())?;
    Some(String::from_utf8(said.stdout).ok()?.trim_end().to_owned())
}
