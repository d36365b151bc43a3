//! The commit that `--version` tells: what build.rs makes of a repository.

use std::path::Path;
use std::process::Command;

#[path = "../build.rs"]
#[allow(dead_code)] // its `main` is cargo's
mod build;

fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=a", "-c", "user.email=a@example.com"]);
    command.args(["-c", "init.defaultBranch=main"]).args(arguments).current_dir(folder);
    let said = command.output().unwrap();
    assert!(said.status.success(), "{arguments:?}: {said:?}");
    String::from_utf8(said.stdout).unwrap().trim_end().to_owned()
}

fn has_git() -> bool {
    let has = Command::new("git").arg("--version").output().is_ok();
    assert!(has || std::env::var_os("CI").is_none(), "CI must run every test, but there is no git");
    has
}

/// A repository with the inputs of a program, and a document.
fn repository(folder: &Path) {
    std::fs::create_dir_all(folder.join("src")).unwrap();
    for file in ["src/main.rs", "build.rs", "Cargo.toml", "Cargo.lock", "README.md"] {
        std::fs::write(folder.join(file), "").unwrap();
    }
    git(folder, &["init", "--quiet"]);
    git(folder, &["add", "."]);
    git(folder, &["commit", "--quiet", "--message=first"]);
}

#[test]
fn a_commit_is_told_and_dirty_only_if_the_program_differs_from_it() {
    if !has_git() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let top = &folder.path().join("top");
    repository(top);
    let hash = git(top, &["rev-parse", "--short=12", "HEAD"]);
    assert_eq!(hash.len(), 12);
    assert_eq!(build::commit(top), Some(hash.clone()));

    std::fs::write(top.join("README.md"), "words").unwrap();
    assert_eq!(build::commit(top), Some(hash.clone()), "a document is not in the program");
    std::fs::write(top.join("src/new.rs"), "").unwrap();
    assert_eq!(build::commit(top), Some(format!("{hash}-dirty")));

    // A worktree is at the top of itself, and clean.
    let worktree = &folder.path().join("worktree");
    git(top, &["worktree", "add", "--quiet", "-b", "other", worktree.to_str().unwrap()]);
    assert_eq!(build::commit(worktree), Some(hash));
}

#[test]
fn what_lies_in_no_repository_or_in_somebody_elses_has_no_commit() {
    if !has_git() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(build::commit(folder.path()), None);
    repository(folder.path());
    assert_eq!(build::commit(&folder.path().join("src")), None);
}

#[test]
fn a_commit_changes_a_file_that_is_watched() {
    if !has_git() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let top = &folder.path().join("top");
    repository(top);
    let worktree = &folder.path().join("worktree");
    git(top, &["worktree", "add", "--quiet", "-b", "other", worktree.to_str().unwrap()]);
    for checkout in [top, worktree] {
        for packed in [false, true] {
            if packed {
                git(checkout, &["pack-refs", "--all"]);
            }
            let watched = build::watched(checkout);
            assert!(watched.iter().all(|path| path.exists()), "{watched:?}");
            assert!(watched.contains(&checkout.join("src")), "{watched:?}");
            let read = || watched.iter().map(|path| std::fs::read(path).ok()).collect::<Vec<_>>();
            let before = read();
            git(checkout, &["commit", "--quiet", "--allow-empty", "--message=next"]);
            assert_ne!(read(), before, "{watched:?}");
        }
    }
}
