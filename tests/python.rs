//! Real Python programs read a real mount. The scripts are in `tests/python`: one fills a folder,
//! which becomes the bucket; the other reads the mount, in one way for each case, and compares.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use devserver::{Counts, Family};

use common::{Mount, Scene, can_mount, skipped, skipped_but_not_in_ci};

mod common;

fn python(script: &str) -> Command {
    let mut command = Command::new("python3");
    command.arg("-B").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script));
    command
}

fn has_python() -> bool {
    Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success())
        || skipped_but_not_in_ci("there is no python3")
}

/// Puts every file below a folder into the bucket, under its path.
fn put_all(scene: &Scene, folder: &Path, below: &Path) {
    for entry in std::fs::read_dir(below).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            put_all(scene, folder, &path);
        } else {
            let key = path.strip_prefix(folder).unwrap().to_str().unwrap();
            scene.bucket().put(key, std::fs::read(&path).unwrap());
        }
    }
}

fn check(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Mounts the data set in small chunks, so that its files have several; and where it is locally.
fn mounted() -> Option<(Mount, PathBuf)> {
    if !can_mount() || !has_python() {
        return None;
    }
    let scene = Scene::new();
    let folder = scene.folder.path().join("local");
    check(&python("fill.py").arg(&folder).output().unwrap());
    put_all(&scene, &folder, &folder);
    Some((scene.mount(&["--chunk-size=1MiB", "--part-size=256KiB"]), folder))
}

/// Runs a case on the mounted data set.
fn run(case: &str) {
    let Some((mount, folder)) = mounted() else { return };
    let mut command = python("read.py");
    let said = check(&command.arg(case).arg(mount.path("")).arg(&folder).output().unwrap());
    if let Some(reason) = said.trim().strip_prefix("SKIPPED: ") {
        skipped(reason);
    }
}

/// A test for each case of `read.py`.
macro_rules! cases {
    ($($case:ident)*) => { $(#[test] fn $case() { run(stringify!($case)); })* };
}

cases! {
    open_and_read
    seek_and_read
    map_into_memory
    scan_and_stat
    walk
    extended_attributes
    glob_recursively
    archives
    numpy
    read_in_processes
}

/// F2: the extension modules that an import looks for in vain, its source, packages in packages.
#[test]
fn an_import_asks_once_for_a_package_and_what_is_below_it() {
    if !can_mount() || !has_python() {
        return;
    }
    let scene = Scene::new();
    // Of these a lookup of `lib` shows the first thousand, and nothing of the package.
    let others =
        Family { prefix: "lib/other/".to_owned(), count: 1200, size: 10, suffix: ".py".to_owned() };
    scene.bucket().put_family(others);
    let sources = [
        ("__init__.py", "from . import part"),
        ("part/__init__.py", "from . import deep"),
        ("part/deep/__init__.py", "from . import module"),
        ("part/deep/module.py", "found = 7"),
    ];
    for (name, source) in sources {
        scene.bucket().put(&format!("lib/package/{name}"), source);
    }
    // Long enough that a page that is late is waited for, however busy the machine is.
    scene.server.set_list_latency(Duration::from_millis(300));
    let mount = scene.mount(&[]);
    mount.forget_counts();
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", mount.path("lib")).args(["-S", "-B", "-c"]);
    python.arg("import package; print(package.part.deep.module.found)");
    assert_eq!(check(&python.output().unwrap()).trim(), "7");
    let Counts { list, head, get, .. } = mount.counts();
    assert_eq!((list, head, get), (6, 3, 4), "of `lib`, the package, and one name in it");
}

/// X5: the package in `python/`, on the mount and beside it.
#[test]
fn the_package_hints() {
    let Some((mount, folder)) = mounted() else { return };
    let mut command = python("package.py");
    command.env("PYTHONPATH", Path::new(env!("CARGO_MANIFEST_DIR")).join("python"));
    let output = command.arg(mount.scene.mountpoint()).arg(folder).output().unwrap();
    check(&output);
    // A file of a directory, each by its own hint, by that of the directory, and read.
    assert_eq!(mount.counts().get, 20);
}
