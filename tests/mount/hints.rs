//! Hints: what programs said that they will read is there before they do, and nothing else changes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::xattrs::value;
use crate::common::{Mount, Scene, can_mount, eventually};

/// `d` with 200 files of 50 kB, and `other`.
fn filled() -> Scene {
    let scene = Scene::new();
    for number in 0..200 {
        scene.bucket().put_synthetic(&format!("d/{number:03}"), 50_000);
    }
    scene.bucket().put_synthetic("other", 50_000);
    scene
}

/// Exit code, standard output and standard error of a subcommand.
fn said(mount: &Mount, arguments: &[&str], input: &[u8]) -> (Option<i32>, String, String) {
    let mut command = mount.scene.program();
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have read enough.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn json(mount: &Mount, arguments: &[&str], input: &[u8]) -> Value {
    let (code, out, error) = said(mount, arguments, input);
    assert_eq!(code, Some(0), "{out}{error}");
    serde_json::from_str(&out).unwrap()
}

fn gets(mount: &Mount, wanted: u64) {
    eventually("the hinted files", || mount.counts().get == wanted);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(mount.counts().get, wanted);
}

/// X5, H1
#[test]
fn asking_for_an_attribute_fetches_a_file_or_the_files_of_a_directory() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    let told = value(&mount.path("d/007"), "user.s3.prefetch").unwrap();
    let told: Vec<u64> = told.split_whitespace().map(|part| part.parse().unwrap()).collect();
    assert!(told == [1, 50_000] || told == [0, 0], "{told:?}");
    gets(&mount, 1);
    assert_eq!(mount.read("d/007").unwrap().len(), 50_000);
    value(&mount.path("d"), "user.s3.prefetch").unwrap();
    gets(&mount, 200);
    for number in (0..200).rev() {
        assert_eq!(mount.read(&format!("d/{number:03}")).unwrap().len(), 50_000);
    }
    gets(&mount, 200);
    // The root's only file.
    value(&mount.path(""), "user.s3.prefetch").unwrap();
    gets(&mount, 201);
}

/// X1, X5: copies of attributes, by `cp -a`, `rsync -X` or `tar --xattrs`, fetch nothing.
#[test]
fn the_list_of_attributes_does_not_hint() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    let mut names = [0; 1000];
    for path in ["d", "d/007"] {
        let length = rustix::fs::listxattr(mount.path(path), names.as_mut_slice()).unwrap();
        assert!(!String::from_utf8_lossy(&names[..length]).contains("prefetch"));
    }
    assert_eq!(mount.counts().get, 0);
    assert_eq!(value(&mount.path("d/007"), "user.s3.prefetch2"), Err(Some(libc::ENODATA)));
}

/// H1: long lists, in the order in which they are given.
#[test]
fn a_list_is_queued_and_what_is_not_there_is_counted() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    let paths: Vec<_> = (0..150).map(|number| mount.path(&format!("d/{number:03}"))).collect();
    let missing = ["d/none", "none/x"].map(|path| mount.path(path));
    let list: Vec<_> = paths.iter().chain(&missing).map(|path| path.to_str().unwrap()).collect();
    let (code, told, error) =
        said(&mount, &["warm", "--queue", "--json"], list.join("\n").as_bytes());
    assert_eq!(code, Some(74), "two lead to nothing: {told}{error}");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&told["files"], &told["missing"], &told["refused"]),
        (&150.into(), &2.into(), &0.into()),
        "{told}"
    );
    gets(&mount, 150);
    for path in &paths {
        assert_eq!(std::fs::read(path).unwrap().len(), 50_000);
    }
    gets(&mount, 150);
    let (code, _, error) = said(&mount, &["warm", "--queue", "/"], b"");
    assert_eq!(code, Some(66), "{error}");
    // Paths that are in no mount cost the others nothing.
    let list = format!("/\n{}\n/etc\n", mount.path("other").display());
    let (code, told, error) = said(&mount, &["warm", "--queue"], list.as_bytes());
    assert_eq!(code, Some(74), "{told}{error}");
    let both = "queued 1 files and 0 directories; 2 paths lead to nothing that can be read\n";
    assert_eq!(told, both);
    let foreign = ["/", "/etc"].map(|path| format!("{path}: not inside a fasts3-mount"));
    assert_eq!(error.lines().collect::<Vec<_>>(), foreign);
    gets(&mount, 151);
    let status = json(&mount, &["status", mount.path("").to_str().unwrap(), "--json"], b"");
    let counters = &status["totals"];
    assert_eq!((&counters["hints_queued"], &counters["hints_missing"]), (&151.into(), &2.into()));
    let (code, _, error) = said(&mount, &["warm", "--queue", paths[0].to_str().unwrap()], b"");
    assert_eq!(code, Some(0), "{error}");
}

/// H2: whoever sends nonsense at the control socket is refused, and the mount goes on.
#[test]
fn nonsense_and_endless_lists_are_refused() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    let name = mount.scene.folder.path().join("home/run");
    let socket = std::fs::read_dir(name).unwrap().next().unwrap().unwrap().path();
    let ask = |lines: &[u8], times: usize| {
        let mut connection = std::os::unix::net::UnixStream::connect(&socket).unwrap();
        connection.write_all(b"{\"command\":\"prefetch\"}\n").unwrap();
        // It may be refused before the end.
        for _ in 0..times {
            if connection.write_all(lines).is_err() {
                break;
            }
        }
        let _ = connection.shutdown(std::net::Shutdown::Write);
        let mut reply = String::new();
        let _ = BufReader::new(connection).read_line(&mut reply);
        reply
    };
    for wrong in [
        b"whole ../../etc/passwd\n".as_slice(),
        b"whole /etc/passwd\n",
        b"whole d/%00\n",
        b"\xff\n",
        &vec![b'x'; 100_000],
        b"whole d/000",
        b"rm d\n",
    ] {
        let reply = ask(wrong, 1);
        let is_good = wrong == b"whole d/000";
        assert_eq!(reply.contains("refused\":\""), !is_good, "{reply}");
    }
    let reply = ask(&b"whole d/nothing-of-this-name\nwhole d/001\n".repeat(1000), 100);
    assert!(reply.contains("\"files\":100000,") && reply.contains("\"missing\":100000"), "{reply}");
    gets(&mount, 2);
    assert_eq!(mount.read("d/001").unwrap().len(), 50_000);
}

/// H4
#[test]
fn a_recorded_start_is_there_before_the_next_one() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for directory in ["app", "lib/a", "lib/b/deep"] {
        for number in 0..20 {
            scene.bucket().put_synthetic(&format!("{directory}/{number:02}.py"), 10_000);
        }
    }
    let mount = scene.mount(&[]);
    let root = mount.path("");
    let root = root.to_str().unwrap().trim_end_matches('/');
    let profile = mount.scene.folder.path().join("profile");
    let profile = profile.to_str().unwrap();
    let program = format!(
        "cd {root} && cat app/03.py lib/a/1*.py lib/b/deep/07.py >/dev/null; ls lib/b/none; exit 7"
    );
    let arguments = ["record", root, "-o", profile, "--", "sh", "-c", &program];
    let (code, out, error) = said(&mount, &arguments, b"");
    assert_eq!(code, Some(7), "the program's own: {out}{error}");
    let text = std::fs::read_to_string(profile).unwrap();
    assert!(text.starts_with("fasts3-mount profile 1\nnames"), "{text}");
    for line in ["bytes 0 10000 app/03.py", "bytes 0 10000 lib/a/19.py", "names lib/b/deep"] {
        assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("app/04"), "{text}");

    said(&mount, &["drop", root], b"");
    mount.forget_counts();
    let (code, out, error) = said(&mount, &["warm", "--profile", profile, root], b"");
    assert_eq!(code, Some(0), "{error}");
    assert!(out.starts_with("queued 12 files"), "{out}");
    gets(&mount, 12);
    let before = mount.counts();
    let status = Command::new("sh").args(["-c", &program]).stderr(Stdio::null()).status().unwrap();
    assert_eq!(status.code(), Some(7));
    assert_eq!(mount.counts(), before, "everything was there, and what is missing was known");

    let wrong = |text: &str| {
        std::fs::write(profile, text).unwrap();
        let (code, _, error) = said(&mount, &["warm", "--profile", profile, root], b"");
        assert_eq!(code, Some(64), "{error}");
        error
    };
    assert!(wrong("whole app/03.py\n").contains("first line"));
    assert!(wrong("fasts3-mount profile 1\nwhole ../x\n").contains("line 2"));
    let (code, _, error) = said(&mount, &["warm", "--profile", "/nowhere", root], b"");
    assert_eq!(code, Some(64), "{error}");
}

/// H4: a start that looks for a file in each of many directories, as botocore does.
#[test]
fn a_profile_of_many_directories_costs_few_requests() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for number in 0..200 {
        for file in ["2014-01-01/service.json", "2020-02-02/paginators.json"] {
            scene.bucket().put_synthetic(&format!("data/{number:03}/{file}"), 100);
        }
    }
    let mount = scene.mount(&["--metadata-ttl=1h"]);
    let root = mount.path("");
    let root = root.to_str().unwrap().trim_end_matches('/');
    let profile = mount.scene.folder.path().join("profile");
    let profile = profile.to_str().unwrap();
    let program = format!(
        "ls {root} >/dev/null; cd {root}/data; for d in *; do test -e $d/2014-01-01/service.json || exit 1; done"
    );
    let program = ["sh", "-c", &program];
    // A directory of which a name was found before all of it was listed is left out.
    eventually("a profile of all directories", || {
        let arguments = [&["record", root, "-o", profile, "--"], &program[..]].concat();
        let (code, _, error) = said(&mount, &arguments, b"");
        assert_eq!(code, Some(0), "{error}");
        let text = std::fs::read_to_string(profile).unwrap();
        text.lines().filter(|line| line.starts_with("names data/")).count() >= 400
    });

    said(&mount, &["drop", root], b"");
    mount.forget_counts();
    let (code, out, error) = said(&mount, &["warm", "--profile", profile, root], b"");
    assert!(code == Some(0) && out.contains("402 directories"), "{out}{error}");
    let counts = mount.counts();
    assert!(counts.list <= 8, "{counts:?}");
    assert!(Command::new(program[0]).args(&program[1..]).status().unwrap().success());
    assert_eq!(mount.counts(), counts);
}

/// H4: without a program, until Ctrl-C; one recording at a time.
#[test]
fn a_recording_ends_with_ctrl_c() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    let root = mount.path("");
    let profile = mount.scene.folder.path().join("profile");
    let record = |file: &Path| {
        let mut command = mount.scene.program();
        command.arg("record").arg(&root).arg("-o").arg(file).stderr(Stdio::piped());
        command.stdout(Stdio::piped());
        command.spawn().unwrap()
    };
    let child = record(&profile);
    // The last that it does before it waits.
    eventually("a recording", || mount.daemon.log_so_far().contains("forgot all names"));
    let second = record(Path::new("/none")).wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(70), "{}", String::from_utf8_lossy(&second.stderr));
    mount.read("d/005").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(&profile).unwrap();
    assert!(text.contains("\nbytes 0 50000 d/005\n"), "{text}");
}

/// H5
#[test]
fn willneed_brings_a_small_file_into_the_page_cache() {
    if !can_mount() {
        return;
    }
    let mount = filled().mount(&[]);
    let file = std::fs::File::open(mount.path("d/003")).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::WillNeed).unwrap();
    gets(&mount, 1);
    let root = mount.path("");
    let served = || {
        let status = json(&mount, &["status", root.to_str().unwrap(), "--json"], b"");
        status["totals"]["bytes_served"].as_u64().unwrap()
    };
    eventually("the page cache to have it", || served() == 50_000);
    assert_eq!(mount.read("d/003").unwrap().len(), 50_000);
    assert_eq!((served(), mount.counts().get), (50_000, 1));
}
