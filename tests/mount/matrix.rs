//! The fault matrix: what docs/reliability.md promises, one row of its table each. Bytes or errno,
//! and how often the store was asked. How long each takes is measured by `benches/faults`; here a
//! time is only told from what it would be if the promise were broken.

use std::os::unix::fs::FileExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use devserver::Kind;
use devserver::proxy::{Fault, Rule};

use crate::common::{Mount, Scene, can_mount, errno, eventually, names};
use crate::reads::open_directly;

const MIB: u64 = 1 << 20;
/// Limit on a busy machine, below the 30 s of `--io-timeout` that a failed rescue would take.
const MARGIN: Duration = Duration::from_secs(20);

fn status(status: u16, code: &str) -> Fault {
    Fault::Status { status, code: code.to_owned() }
}

/// A mount of one object, looked up already.
fn mount_of(key: &str, size: u64, options: &[&str]) -> Mount {
    let scene = Scene::with_proxy();
    scene.bucket().put_synthetic(key, size);
    let mount = scene.mount(options);
    assert_eq!(mount.names(""), [key]);
    mount.forget_counts();
    mount
}

/// Reads all of it, which must be right. Returns the time it took.
fn read_right(mount: &Mount, key: &str) -> Duration {
    let start = Instant::now();
    let bytes = mount.read(key).unwrap();
    let took = start.elapsed();
    assert!(bytes == mount.bucket().bytes(key, 0..bytes.len() as u64), "{key}");
    took
}

/// E6
#[test]
fn a_503_three_times_costs_no_more_than_3_s() {
    if !can_mount() {
        return;
    }
    let mount = mount_of("object", 100_000, &[]);
    let refused = mount.add(Rule::on_get("object", Fault::slow_down()).times(3));
    assert!(read_right(&mount, "object") < Duration::from_secs(3) + MARGIN);
    assert_eq!((refused.hits(), mount.counts().get), (3, 1));
}

/// E6
#[test]
fn a_store_that_says_when_to_come_back_is_asked_then() {
    if !can_mount() {
        return;
    }
    let mount = mount_of("object", 100_000, &[]);
    let refused = mount.add(Rule::on_get("object", Fault::RetryAfter(2)).times(1));
    let took = read_right(&mount, "object");
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(2) + MARGIN, "{took:?}");
    assert_eq!(refused.hits(), 1);
}

/// E6: a lasting failure is EIO at the time limit, once for both requests of the kernel.
#[test]
fn what_fails_for_ever_is_an_error_at_the_time_limit() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    let faults = [
        ("throttled", Fault::slow_down(), libc::EIO),
        ("failing", status(500, "InternalError"), libc::EIO),
        ("reset", Fault::Reset { after: 0 }, libc::EIO),
        ("truncated", Fault::Truncate { after: 0 }, libc::EIO),
        ("gone", Fault::Hangup, libc::EIO),
        ("silent", Fault::Delay(Duration::MAX), libc::ETIMEDOUT),
    ];
    for (key, ..) in &faults {
        scene.bucket().put_synthetic(key, 100_000);
    }
    let mount = scene.mount(&["--io-timeout=4s"]);
    assert_eq!(mount.names("").len(), faults.len());
    // Before the first read: with the second, all of them are read ahead.
    let faults =
        faults.map(|(key, fault, expected)| (key, mount.add(Rule::on_get(key, fault)), expected));
    std::thread::scope(|threads| {
        for (key, hit, expected) in faults {
            let mount = &mount;
            threads.spawn(move || {
                let start = Instant::now();
                // With O_DIRECT the errno is the daemon's; the page cache makes EIO of all.
                let read = open_directly(&mount.path(key)).read_at(&mut [0; 4096], 0);
                assert_eq!(errno(read), Some(expected), "{key}");
                let took = start.elapsed();
                assert!(took < Duration::from_secs(5) + MARGIN, "{key}: {took:?}");
                assert!(hit.hits() < 20, "{key}: {} requests", hit.hits());
            });
        }
    });
}

/// E11
#[test]
fn bytes_that_do_not_sum_up_to_what_the_store_tells_are_asked_for_again() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    let bytes: Vec<u8> = (0..200_000_u32).flat_map(u32::to_be_bytes).take(200_000).collect();
    // A directory for each, so that none is read ahead.
    for key in ["once/x", "always/x", "broken/x", "well/x"] {
        scene.bucket().put(key, bytes.clone());
    }
    let mount = scene.mount(&[]);
    assert_eq!(mount.names("").len(), 4);
    mount.forget_counts();
    let other = |key, at| Rule::on_get(key, Fault::Corrupt { at });
    let once = mount.add(other("once/x", 150_000).times(1));
    let always = mount.add(other("always/x", 199_999));
    assert!(mount.read("once/x").unwrap() == bytes);
    assert_eq!((once.hits(), mount.counts().get), (1, 2));
    // The first block is right, and yet it was not shown: the checksum is of the whole object.
    let first = open_directly(&mount.path("always/x")).read_at(&mut [0; 4096], 0);
    assert_eq!(errno(first), Some(libc::EIO));
    assert_eq!(always.hits(), 5);
    // A body that broke has no checksum: it continues from where it stopped.
    mount.forget_counts();
    let broken = mount.add(Rule::on_get("broken/x", Fault::Truncate { after: 150_000 }).times(1));
    assert!(mount.read("broken/x").unwrap() == bytes);
    assert_eq!((broken.hits(), mount.counts().get), (1, 2));
    assert!(mount.read("well/x").unwrap() == bytes);
}

/// E6
#[test]
fn a_first_byte_that_never_comes_is_asked_for_again_within_3_s() {
    if !can_mount() {
        return;
    }
    let mount = mount_of("object", 100_000, &[]);
    let silent = mount.add(Rule::on_get("object", Fault::Delay(Duration::MAX)).times(1));
    let took = read_right(&mount, "object");
    assert!(took < Duration::from_secs(3) + MARGIN, "{took:?}");
    assert_eq!((silent.hits(), mount.counts().get), (1, 2));
}

/// E6
#[test]
fn a_listing_that_never_comes_is_asked_for_again_within_3_s() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    scene.bucket().put("d/file", "");
    let mount = scene.mount(&[]);
    mount.add(Rule::on_list(Fault::Delay(Duration::MAX)).times(1));
    let start = Instant::now();
    assert_eq!(mount.names(""), ["d"]);
    assert!(start.elapsed() < Duration::from_secs(3) + MARGIN, "{:?}", start.elapsed());
}

/// E6
#[test]
fn a_stall_in_the_middle_is_resumed_within_6_s() {
    if !can_mount() {
        return;
    }
    let mount = mount_of("object", 3 * MIB, &["--part-size=4MiB"]);
    let stalled =
        mount.add(Rule::on_get("object", Fault::Stall { after: MIB, pause: None }).times(1));
    let took = read_right(&mount, "object");
    assert!(took < Duration::from_secs(6) + MARGIN, "{took:?}");
    assert_eq!(stalled.hits(), 1);
    // The second request is for what was missing, and no more.
    let again = mount.scene.server.log().pop().and_then(|request| request.bytes()).unwrap();
    assert_eq!((again.start, again.end), (MIB, 3 * MIB));
}

/// E6
#[test]
fn bodies_that_all_break_after_100_kb_are_put_together() {
    if !can_mount() {
        return;
    }
    let mount = mount_of("object", 16 * MIB, &["--io-timeout=5s"]);
    let broken = mount.add(Rule::on_get("object", Fault::Reset { after: 100_000 }));
    read_right(&mount, "object");
    assert!(broken.hits() >= 16 * MIB / 100_000, "{}", broken.hits());
}

/// E7
#[test]
fn answers_that_contradict_the_question_are_neither_believed_nor_asked_for_without_end() {
    if !can_mount() {
        return;
    }
    let size = 100_000;
    let scene = Scene::with_proxy();
    let faults = [
        ("another-range", Fault::ContentRange(format!("bytes 5-{}/{size}", size + 4))),
        ("another-total", Fault::ContentRange("bytes 0-99999/100001".to_owned())),
        ("half", Fault::BodyLength(size / 2)),
        ("too-long", Fault::BodyLength(2 * size)),
        ("length-too-short", Fault::ContentLength(size / 2)),
        ("length-too-long", Fault::ContentLength(2 * size)),
        ("garbage", Fault::Garbage),
        ("html", Fault::Html),
    ];
    for (key, _) in &faults {
        scene.bucket().put_synthetic(key, size);
    }
    let mount = scene.mount(&[]);
    assert_eq!(mount.names("").len(), faults.len());
    // Before the first read: with the second, all of them are read ahead.
    let faults = faults.map(|(key, fault)| (key, mount.add(Rule::on_get(key, fault))));
    std::thread::scope(|threads| {
        for (key, hit) in faults {
            let mount = &mount;
            threads.spawn(move || {
                let start = Instant::now();
                assert_eq!(errno(mount.read(key)), Some(libc::EIO), "{key}");
                assert!(hit.hits() <= 10, "{key}: {} requests", hit.hits());
                let took = start.elapsed();
                assert!(took < Duration::from_secs(5) + MARGIN, "{key}: {took:?}");
            });
        }
    });
}

/// E7: 200 with the whole object for a range in its middle.
#[test]
fn a_store_that_ignores_ranges_gives_no_wrong_bytes() {
    if !can_mount() {
        return;
    }
    let mount = mount_of("object", 3 * MIB, &["--part-size=4MiB"]);
    let hit = mount.add(Rule::on_get("object", Fault::IgnoreRange));
    let file = open_directly(&mount.path("object"));
    let mut bytes = vec![0; 100_000];
    match file.read_exact_at(&mut bytes, MIB) {
        Ok(()) => assert!(bytes == mount.bucket().bytes("object", MIB..MIB + 100_000)),
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO)),
    }
    assert!(hit.hits() <= 5, "{} requests", hit.hits());
}

/// E3
#[test]
fn a_403_is_told_at_once() {
    if !can_mount() {
        return;
    }
    let mount = mount_of("object", 100_000, &[]);
    let denied = mount.add(Rule::on_get("object", status(403, "AccessDenied")));
    let read = open_directly(&mount.path("object")).read_at(&mut [0; 4096], 0);
    assert_eq!((errno(read), denied.hits()), (Some(libc::EACCES), 1));
}

/// E9
#[test]
fn an_expired_token_and_a_wrong_clock_cost_one_more_request() {
    if !can_mount() {
        return;
    }
    for refusal in [status(400, "ExpiredToken"), status(403, "RequestTimeTooSkewed")] {
        let mount = mount_of("object", 100_000, &[]);
        let refused = mount.add(Rule::on_get("object", refusal.clone()).times(1));
        read_right(&mount, "object");
        assert_eq!((refused.hits(), mount.counts().get), (1, 1), "{refusal:?}");
        // If it lasts, it is a refusal like any other.
        let mount = mount_of("object", 100_000, &[]);
        let refused = mount.add(Rule::on_get("object", refusal.clone()));
        let read = open_directly(&mount.path("object")).read_at(&mut [0; 4096], 0);
        assert_eq!((errno(read), refused.hits()), (Some(libc::EACCES), 2), "{refusal:?}");
        // The same for listings.
        let scene = Scene::with_proxy();
        scene.bucket().put("file", "");
        let mount = scene.mount(&[]);
        let refused = mount.add(Rule::on_list(refusal.clone()).times(1));
        assert_eq!((mount.names(""), refused.hits()), (vec!["file".to_owned()], 1));
    }
}

/// E7, F8
#[test]
fn listings_without_sense_are_errors_within_5_s_and_10_requests() {
    if !can_mount() {
        return;
    }
    let faults = [
        ("garbage", Fault::Garbage),
        ("html", Fault::Html),
        ("cut", Fault::BodyLength(1_000)),
        ("empty", Fault::BodyLength(0)),
        ("repeated", Fault::RepeatToken),
        ("backwards", Fault::BackwardsPage),
    ];
    std::thread::scope(|threads| {
        for (what, fault) in faults {
            threads.spawn(move || {
                let scene = Scene::with_proxy();
                for index in 0..2_345 {
                    scene.bucket().put(&format!("d/{index:04}"), "");
                }
                let mount = scene.mount(&[]);
                assert_eq!(mount.names(""), ["d"]);
                mount.forget_counts();
                mount.add(Rule::on_list(fault));
                let start = Instant::now();
                assert_eq!(errno(names(&mount.path("d"))), Some(libc::EIO), "{what}");
                let took = start.elapsed();
                assert!(took < Duration::from_secs(5) + MARGIN, "{what}: {took:?}");
                assert!(mount.counts().list < 10, "{what}: {:?}", mount.counts());
            });
        }
    });
}

/// E6: 2 % of all requests fail, each in one of four ways.
#[test]
fn one_request_in_fifty_fails_and_nobody_hears_of_it() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    scene.bucket().put_synthetic("large", 128 * MIB);
    let expected: Vec<String> = (0..400).map(|index| format!("{index:04}")).collect();
    for name in &expected {
        scene.bucket().put_synthetic(&format!("d/{name}"), 20_000);
    }
    let mount = scene.mount(&[]);
    let rules: Vec<_> = [
        Fault::slow_down(),
        Fault::Reset { after: 10_000 },
        Fault::Truncate { after: 5_000 },
        Fault::Stall { after: 3_000, pause: None },
    ]
    .into_iter()
    .enumerate()
    .map(|(index, fault)| mount.add(Rule::on_all(fault).every(191 + 4 * index as u64)))
    .collect();
    std::thread::scope(|threads| {
        let mount = &mount;
        threads.spawn(move || read_right(mount, "large"));
        for reader in 0..4 {
            let expected = &expected;
            threads.spawn(move || {
                assert!(mount.names("d") == *expected);
                for name in expected.iter().skip(reader).step_by(4) {
                    read_right(mount, &format!("d/{name}"));
                }
            });
        }
    });
    assert!(rules.iter().map(devserver::proxy::Applied::hits).sum::<u64>() > 4);
}

/// E6
#[test]
fn a_store_that_is_away_for_20_s_is_waited_for() {
    if !can_mount() {
        return;
    }
    let mount = mount_of("object", 64 * MIB, &[]);
    // Slow enough that the store goes away in the middle, with any number of connections.
    mount.scene.server.set_bandwidth_per_connection(Some(1_000_000));
    std::thread::scope(|threads| {
        let reader = threads.spawn(|| read_right(&mount, "object"));
        eventually("the first bytes", || mount.counts().body_bytes > MIB);
        let away = mount.add(Rule::on_all(Fault::Hangup));
        mount.cut();
        // Two thirds of the time limit.
        std::thread::sleep(Duration::from_secs(20));
        assert!(!reader.is_finished() && away.hits() > 0);
        mount.heal();
        reader.join().unwrap();
    });
}

/// Stalled readers hold neither a thread nor a connection that others need.
#[test]
fn sixty_four_stalled_readers_are_in_nobodys_way() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    for index in 0..64 {
        scene.bucket().put_synthetic(&format!("stalled/{index}"), 8 * MIB);
    }
    for index in 0..20 {
        scene.bucket().put_synthetic(&format!("well/{index}"), 2 * MIB);
    }
    let mount = scene.mount(&["--io-timeout=10m"]);
    assert_eq!(mount.names("stalled").len(), 64);
    let stalled = mount.add(Rule::new(
        |request| request.kind() == Kind::Get && request.key().starts_with("stalled/"),
        Fault::Delay(Duration::MAX),
    ));
    let mut readers: Vec<_> = (0..64)
        .map(|index| {
            let path = mount.path(&format!("stalled/{index}"));
            Command::new("cat").arg(path).stdout(std::process::Stdio::null()).spawn().unwrap()
        })
        .collect();
    // Each at least once, and the overdue ones again.
    eventually("all to wait", || stalled.hits() > 64);
    let start = Instant::now();
    assert_eq!(mount.names("well").len(), 20);
    for index in 0..20 {
        read_right(&mount, &format!("well/{index}"));
    }
    // The healthy ones had their turn while the others still wait for theirs.
    assert!(start.elapsed() < Duration::from_mins(2), "{:?}", start.elapsed());
    assert!(readers.iter_mut().all(|reader| reader.try_wait().unwrap().is_none()));
    // Killed, they are gone, though the store still does not answer.
    for reader in &mut readers {
        reader.kill().unwrap();
    }
    for reader in &mut readers {
        eventually("the end of a killed reader", || reader.try_wait().unwrap().is_some());
    }
}
