//! Answers that break on their way: the right bytes or names in the end, or the errno that says
//! why not. Never wrong or short data, never a missing name.

use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use devserver::Kind;
use devserver::proxy::{Fault, Rule};

use crate::common::{Mount, Scene, can_mount, errno};
use crate::reads::open_directly;

const MIB: u64 = 1 << 20;

fn status(status: u16, code: &str) -> Fault {
    Fault::Status { status, code: code.to_owned() }
}

/// Faults that a retry overcomes.
fn body_faults() -> Vec<(&'static str, Fault)> {
    vec![
        ("no answer", Fault::Hangup),
        ("reset before the body", Fault::Reset { after: 0 }),
        ("reset in the body", Fault::Reset { after: 100_000 }),
        ("reset before the last byte", Fault::Reset { after: 256 * 1024 - 1 }),
        ("a body cut off at once", Fault::Truncate { after: 0 }),
        ("a body cut off", Fault::Truncate { after: 200_001 }),
        ("a body that pauses", Fault::Stall { after: 1, pause: Some(Duration::from_millis(300)) }),
        ("a late answer", Fault::Delay(Duration::from_millis(300))),
        ("a body shorter than asked for", Fault::BodyLength(100_000)),
        ("a body longer than asked for", Fault::BodyLength(5_000_000)),
        ("a body shorter than its length", Fault::ContentLength(6_000_000)),
        ("a body longer than its length", Fault::ContentLength(1_000)),
        ("the bytes of another range", Fault::ContentRange("bytes 5-99/2621440".to_owned())),
        ("a range of another object", Fault::ContentRange("bytes 0-262143/262144".to_owned())),
        ("a range that is none", Fault::ContentRange("all of it".to_owned())),
        ("the whole object", Fault::IgnoreRange),
        ("no object at all", Fault::Garbage),
        ("503", Fault::slow_down()),
        ("503 of another kind", status(503, "ServiceUnavailable")),
        ("500", status(500, "InternalError")),
        ("429", status(429, "TooManyRequests")),
        ("a request that timed out", status(400, "RequestTimeout")),
    ]
}

/// E6, E7
#[test]
fn a_broken_body_is_asked_for_again() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    let size = 2_621_440; // ten parts
    let faults = body_faults();
    for (index, _) in faults.iter().enumerate() {
        scene.bucket().put_synthetic(&format!("whole/{index}"), size);
        scene.bucket().put_synthetic(&format!("range/{index}"), size);
    }
    let mount = scene.mount(&["--chunk-size=1MiB", "--part-size=256KiB"]);
    std::thread::scope(|threads| {
        for (index, (what, fault)) in faults.into_iter().enumerate() {
            let mount = &mount;
            threads.spawn(move || {
                let key = format!("whole/{index}");
                let broken = mount.add(Rule::on_get(&key, fault.clone()).times(3));
                let expected = mount.bucket().bytes(&key, 0..size);
                assert!(mount.read(&key).expect(what) == expected, "{what}");
                assert_eq!(broken.hits(), 3, "{what}");

                let key = format!("range/{index}");
                let broken = mount.add(Rule::on_get(&key, fault).times(2));
                let mut bytes = vec![0; 300_000];
                let file = open_directly(&mount.path(&key));
                file.read_exact_at(&mut bytes, 1_000_003).expect(what);
                assert!(mount.bucket().bytes(&key, 1_000_003..1_300_003) == bytes, "{what}");
                assert_eq!(broken.hits(), 2, "{what}");
            });
        }
    });
}

/// E6, E7
#[test]
fn small_objects_survive_the_same() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    let faults = body_faults();
    for (index, _) in faults.iter().enumerate() {
        scene.bucket().put_synthetic(&format!("d/{index}"), 150_000);
    }
    let mount = scene.mount(&[]);
    std::thread::scope(|threads| {
        for (index, (what, fault)) in faults.into_iter().enumerate() {
            let mount = &mount;
            threads.spawn(move || {
                let key = format!("d/{index}");
                mount.add(Rule::on_get(&key, fault).times(2));
                let expected = mount.bucket().bytes(&key, 0..150_000);
                assert!(mount.read(&key).expect(what) == expected, "{what}");
            });
        }
    });
}

/// E6, E7
#[test]
fn a_broken_listing_is_asked_for_again() {
    if !can_mount() {
        return;
    }
    for (what, fault) in [
        ("no answer", Fault::Hangup),
        ("reset", Fault::Reset { after: 1_000 }),
        ("cut off", Fault::Truncate { after: 1_000 }),
        ("cut off and admitted", Fault::BodyLength(1_000)),
        ("garbage", Fault::Garbage),
        ("a token that repeats", Fault::RepeatToken),
        ("a page that goes backwards", Fault::BackwardsPage),
        ("503", Fault::slow_down()),
        ("500", status(500, "InternalError")),
    ] {
        let scene = Scene::with_proxy();
        let expected: Vec<String> = (0..2_345).map(|index| format!("{index:04}")).collect();
        for name in &expected {
            scene.bucket().put(&format!("d/{name}"), "x");
        }
        let mount = scene.mount_as("data/d", &[]);
        // One page in three, from the second on; the first page cannot go backwards.
        let broken = mount.add(
            Rule::new(
                |request| {
                    request.kind() == Kind::List && request.query("continuation-token").is_some()
                },
                fault,
            )
            .times(3),
        );
        assert!(mount.names("") == expected, "{what}");
        assert_eq!(broken.hits(), 3, "{what}");
    }
}

/// E7
#[test]
fn a_broken_first_page_is_no_empty_directory() {
    if !can_mount() {
        return;
    }
    for fault in [
        Fault::Garbage,
        Fault::BodyLength(0),
        Fault::BodyLength(60),
        Fault::slow_down(),
        Fault::Hangup,
        status(500, "InternalError"),
    ] {
        let scene = Scene::with_proxy();
        scene.bucket().put("d/file", "bytes");
        let mount = scene.mount(&[]);
        let broken = mount.add(Rule::on_list(fault.clone()).times(2));
        assert_eq!(mount.names("d"), ["file"], "{fault:?}");
        assert_eq!(broken.hits(), 2, "{fault:?}");
        mount.add(Rule::on_list(fault.clone()).times(2));
        assert_eq!(mount.names(""), ["d"], "{fault:?}");
    }
}

/// E6
#[test]
fn throttling_is_never_a_missing_name() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    for index in 0..10 {
        scene.bucket().put(&format!("{index}/file"), "bytes");
    }
    let mount = scene.mount(&["--metadata-ttl=0s", "--negative-ttl=0s"]);
    for index in 0..10 {
        mount.add(Rule::on_all(Fault::slow_down()).times(4));
        assert_eq!(mount.read(&format!("{index}/file")).unwrap(), b"bytes");
    }
}

/// E3, E4
#[test]
fn refusals_are_told_as_they_are() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    // Each in a directory of its own, so that none is read ahead.
    for key in ["denied/x", "changed/x", "gone/x", "fine", "secret/file", "head/denied"] {
        scene.bucket().put(key, "bytes");
    }
    let mount = scene.mount(&[]);
    assert_eq!(mount.names("").len(), 6);
    for (key, fault, expected) in [
        ("denied/x", status(403, "AccessDenied"), libc::EACCES),
        ("changed/x", status(412, "PreconditionFailed"), libc::ESTALE),
        ("gone/x", status(404, "NoSuchKey"), libc::ESTALE),
    ] {
        mount.add(Rule::on_get(key, fault));
        assert_eq!(errno(mount.read(key)), Some(expected), "{key}");
    }
    mount.add(Rule::new(
        |request| request.kind() == Kind::List && request.query("prefix") == Some("secret/".into()),
        status(403, "AccessDenied"),
    ));
    assert_eq!(
        errno(
            std::fs::read_dir(mount.path("secret"))
                .and_then(|mut entries| entries.next().transpose())
        ),
        Some(libc::EACCES)
    );
    mount.add(Rule::new(|request| request.kind() == Kind::Head, status(403, "AccessDenied")));
    assert_eq!(errno(mount.read("head/denied")), Some(libc::EACCES));
    assert_eq!(mount.read("fine").unwrap(), b"bytes");
}

/// E6, E7: faults that never end are EIO after the deadline of 30 s.
#[test]
fn what_stays_broken_is_an_error_and_never_less_data() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    let bodies = [
        ("short", Fault::BodyLength(10)),
        ("long", Fault::BodyLength(MIB)),
        ("range", Fault::ContentRange("bytes 0-9/10".to_owned())),
        ("garbage", Fault::Garbage),
        ("hangup", Fault::Hangup),
        ("throttled", Fault::slow_down()),
        ("failing", status(500, "InternalError")),
    ];
    let listings = [
        ("no-xml", Fault::Garbage),
        ("backwards", Fault::BackwardsPage),
        ("repeating", Fault::RepeatToken),
        ("refused", Fault::slow_down()),
    ];
    for (key, _) in &bodies {
        scene.bucket().put_synthetic(key, 100_000);
    }
    for (key, _) in &listings {
        for index in 0..1_100 {
            scene.bucket().put(&format!("{key}/{index}"), "");
        }
    }
    let mount = scene.mount(&["--metadata-ttl=1h"]);
    assert_eq!(mount.names("").len(), bodies.len() + listings.len());
    // Before the first read: with the second, all of them are read ahead.
    let bodies = bodies.map(|(key, fault)| {
        mount.add(Rule::on_get(key, fault));
        key
    });
    std::thread::scope(|threads| {
        for key in bodies {
            let mount = &mount;
            threads.spawn(move || {
                // Past the page cache, because the kernel repeats a failed read through it.
                let mut bytes = vec![0; 100_000];
                let read = open_directly(&mount.path(key)).read_at(&mut bytes, 0);
                assert_eq!(errno(read), Some(libc::EIO), "{key}");
            });
        }
        for (key, fault) in listings {
            let mount = &mount;
            threads.spawn(move || {
                let below = format!("{key}/");
                mount.add(Rule::new(
                    move |request| {
                        request.kind() == Kind::List
                            && request.query("prefix").as_ref() == Some(&below)
                    },
                    fault,
                ));
                assert_eq!(errno(listed(mount, key)), Some(libc::EIO), "{key}");
            });
        }
    });
}

fn listed(mount: &Mount, directory: &str) -> std::io::Result<Vec<String>> {
    crate::common::names(&mount.path(directory))
}
