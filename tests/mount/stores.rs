//! Stores that are not quite S3: exact about bytes, tolerant about everything else. One odd answer
//! costs its neighbours nothing, and what the mount has learnt of its store stands in the log once.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::process::Command;
use std::time::Duration;

use devserver::proxy::{Answer, Fault, RequestHead, Rule};
use devserver::{Kind, Server};

use crate::common::{Mount, Scene, can_mount, errno, eventually};
use crate::reads::open_directly;
use crate::xattrs::value;

const MIB: u64 = 1 << 20;

fn status(status: u16, code: &str) -> Fault {
    Fault::Status { status, code: code.to_owned() }
}

/// Writes each page anew.
fn pages(edit: impl Fn(String) -> String + Send + Sync + 'static) -> Rule {
    Rule::on_list(Fault::rewrite(move |_, answer| {
        let page = String::from_utf8(answer.body.clone()).unwrap();
        answer.with_body(edit(page)).to_bytes()
    }))
}

/// Changes the entry of this key on a page, if that has it.
fn entry(page: &str, key: &str, edit: impl Fn(&str) -> String) -> String {
    let Some(at) = page.find(&format!("<Key>{key}</Key>")) else { return page.to_owned() };
    let begin = page[..at].rfind("<Contents>").unwrap();
    let end = at + page[at..].find("</Contents>").unwrap();
    [&page[..begin], &edit(&page[begin..end]), &page[end..]].concat()
}

/// The entry with another text in this element, or without it.
fn element(entry: &str, name: &str, text: Option<&str>) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let begin = entry.find(&open).unwrap();
    let end = entry.find(&close).unwrap() + close.len();
    let new = text.map(|text| [&open, text, &close].concat()).unwrap_or_default();
    [&entry[..begin], &new, &entry[end..]].concat()
}

fn on(kind: Kind, key: &str, fault: Fault) -> Rule {
    let key = key.to_owned();
    Rule::new(move |request| request.kind() == kind && request.key() == key, fault)
}

fn with_header(name: &'static str, fault: Fault) -> Rule {
    Rule::new(move |request: &RequestHead| request.headers.contains_key(name), fault)
}

/// How many lines of the log so far say this.
fn lines(mount: &Mount, says: &str) -> usize {
    mount.daemon.log_so_far().lines().filter(|line| line.contains(says)).count()
}

fn logged_once(mount: &Mount, says: &str) {
    eventually(says, || lines(mount, says) > 0);
    assert_eq!(lines(mount, says), 1, "{}", mount.daemon.log_so_far());
}

/// E12
#[test]
fn a_header_that_the_store_refuses_is_left_out_from_then_on() {
    if !can_mount() {
        return;
    }
    for refusal in [status(501, "NotImplemented"), status(400, "InvalidArgument"), status(400, "")]
    {
        let scene = Scene::with_proxy();
        for number in 0..4 {
            scene.bucket().put(&format!("{number}"), format!("bytes {number}"));
        }
        scene.bucket().set_storage_class("3", "GLACIER");
        scene.bucket().restore("3");
        let checksums = scene.add(with_header("x-amz-checksum-mode", refusal.clone()));
        let restores = scene.add(with_header("x-amz-optional-object-attributes", refusal));
        let mount = scene.mount(&[]);
        assert_eq!(mount.names("").len(), 4);
        for number in 0..4 {
            let expected = format!("bytes {number}");
            assert_eq!(mount.read(&number.to_string()).unwrap(), expected.as_bytes());
        }
        assert_eq!(restores.hits(), 1);
        // Those that were under way when it was learnt.
        assert!((1..=3).contains(&checksums.hits()), "{}", checksums.hits());
        logged_once(&mount, "it refuses the header x-amz-checksum-mode");
        logged_once(&mount, "it refuses the header x-amz-optional-object-attributes");
    }
}

/// A8, E7
#[test]
fn a_listed_object_without_size_etag_or_time_costs_its_neighbours_nothing() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    let odd: [(&str, &str, Option<&str>); 8] = [
        ("a-etag", "ETag", None),
        ("b-size", "Size", None),
        ("c-size", "Size", Some("unknown")),
        ("d-time", "LastModified", None),
        ("e-time", "LastModified", Some("some day")),
        ("f-year-1", "LastModified", Some("0001-01-01T00:00:00Z")),
        ("g-before", "LastModified", Some("1969-12-31T23:59:59.000Z")),
        ("h-mail", "LastModified", Some("Tue, 31 Dec 2024 23:59:59 +0000")),
    ];
    for (key, ..) in odd {
        scene.bucket().put(key, key);
        scene.bucket().put(&format!("{key}-plain"), "plain");
    }
    // A marker needs none of them.
    scene.bucket().put("dir/", "");
    scene.bucket().put("dir/file", "bytes");
    let info = |key: &str| scene.bucket().info(key).unwrap().last_modified;
    let seconds = |time: std::time::SystemTime| {
        i64::try_from(time.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()).unwrap()
    };
    let times: BTreeMap<_, _> = odd.iter().map(|(key, ..)| (*key, seconds(info(key)))).collect();
    scene.add(pages(move |mut page| {
        for (key, name, text) in odd {
            page = entry(&page, key, |entry| element(entry, name, text));
        }
        for name in ["ETag", "Size", "LastModified"] {
            page = entry(&page, "dir/", |entry| element(entry, name, None));
        }
        page
    }));
    let mount = scene.mount(&[]);
    let names = mount.names("");
    assert_eq!(names.len(), 17, "{names:?}");
    assert_eq!(mount.names("dir"), ["file"]);
    mount.forget_counts();
    for (key, ..) in odd {
        let meta = std::fs::metadata(mount.path(key)).unwrap();
        let time = match key {
            "f-year-1" | "g-before" => 0,
            "h-mail" => 1_735_689_599,
            _ => times[key],
        };
        assert_eq!((meta.size(), meta.mtime()), (key.len() as u64, time), "{key}");
        assert_eq!(mount.read(key).unwrap(), key.as_bytes());
        assert_eq!(mount.read(&format!("{key}-plain")).unwrap(), b"plain");
    }
    assert_eq!(mount.counts().head, 5, "one for each that lacks something");
    logged_once(&mount, "it lists objects without size, ETag or time");
    // `ls -l` of what is known by now asks for nothing.
    let listed = Command::new("ls").arg("-l").arg(mount.path("")).output().unwrap();
    assert!(listed.status.success());
    assert_eq!(mount.counts().head, 5);
}

/// N8, N13
#[test]
fn an_entry_whose_key_cannot_be_one_is_hidden_and_its_neighbours_are_not() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    scene.bucket().put("d/a", "bytes");
    scene.bucket().put("d/b", "bytes");
    let odd = |key: &str| {
        format!(
            "<Contents><Key>{key}</Key><Size>1</Size><ETag>e</ETag>\
             <LastModified>2024-01-01T00:00:00Z</LastModified></Contents>"
        )
    };
    let strays = [odd("elsewhere"), odd("d/x&#0;y"), odd("d/x\u{1}y")].concat();
    scene.add(pages(move |page| {
        let page = page.replace("<EncodingType>url</EncodingType>", "");
        page.replacen("<Contents>", &format!("{strays}<Contents>"), 1)
    }));
    let mount = scene.mount_as("data/d", &[]);
    assert_eq!(mount.names(""), ["a", "b"]);
    assert_eq!(mount.read("b").unwrap(), b"bytes");
    assert_eq!(value(&mount.path(""), "user.s3.hidden").unwrap(), "3");
    logged_once(&mount, "hidden keys: it is not UTF-8, or holds characters");
    logged_once(&mount, "hidden keys: it does not belong into this directory");
}

/// A8, X2
#[test]
fn what_a_head_does_not_tell_a_listing_of_the_key_does() {
    if !can_mount() {
        return;
    }
    let latin = |answer: Answer| answer.with("x-amz-meta-name", b"caf\xe9");
    let edits: Vec<(&str, Fault)> = vec![
        ("latin", Fault::rewrite(move |_, answer| latin(answer).to_bytes())),
        (
            "twice",
            Fault::rewrite(|_, mut answer| {
                for name in ["etag", "last-modified", "content-length"] {
                    let value = answer.headers[name].clone();
                    answer.headers.append(name, value);
                }
                answer.to_bytes()
            }),
        ),
        (
            "date",
            Fault::rewrite(|_, answer| {
                answer.with("last-modified", "Wed, 1 Jan 2025 00:00:01 +0000").to_bytes()
            }),
        ),
        (
            "no-length",
            Fault::rewrite(|_, mut answer| {
                answer.headers.remove("content-length");
                answer.to_bytes()
            }),
        ),
        (
            "no-etag",
            Fault::rewrite(|_, mut answer| {
                answer.headers.remove("etag");
                answer.to_bytes()
            }),
        ),
        ("no-time", Fault::rewrite(|_, answer| answer.with("last-modified", "?").to_bytes())),
    ];
    let scene = Scene::with_proxy();
    for (key, fault) in &edits {
        scene.bucket().put(&format!("d/{key}"), *key);
        scene.add(on(Kind::Head, &format!("d/{key}"), fault.clone()));
    }
    let mount = scene.mount(&["--metadata-ttl=0s"]);
    for (key, _) in &edits {
        // Cold: the directory is not listed.
        let key_ = format!("d/{key}");
        assert_eq!(mount.read(&key_).expect(key), key.as_bytes());
        let listed = mount.bucket().info(&key_).unwrap().last_modified;
        let time = std::fs::metadata(mount.path(&key_)).unwrap().modified().unwrap();
        if *key == "date" {
            let new_year = std::time::UNIX_EPOCH + Duration::from_secs(1_735_689_601);
            assert_eq!(time, new_year);
        } else {
            assert_eq!(time, listed, "{key}");
        }
    }
    let metadata = value(&mount.path("d/latin"), "user.s3.metadata").unwrap();
    assert_eq!(metadata, "name: caf%E9\n");
    logged_once(&mount, "its answer to a HEAD lacks size, ETag or time");
}

/// X2
#[test]
fn an_object_may_have_eighty_entries_of_metadata() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    scene.bucket().put("d/file", "bytes");
    for number in 0..80 {
        scene.bucket().set_metadata("d/file", &format!("n{number:02}"), &"v".repeat(300));
    }
    let mount = scene.mount(&["--metadata-ttl=0s"]);
    assert_eq!(mount.read("d/file").unwrap(), b"bytes");
    let metadata = value(&mount.path("d/file"), "user.s3.metadata").unwrap();
    assert_eq!(metadata.lines().count(), 80);
}

/// A3
#[test]
fn a_restored_object_is_readable() {
    if !can_mount() {
        return;
    }
    let scene = Scene::new();
    for key in ["cold/glacier", "cold/deep", "listed/glacier", "listed/deep", "listed/frozen"] {
        let class = if key.ends_with("deep") { "DEEP_ARCHIVE" } else { "GLACIER" };
        scene.bucket().put(key, "bytes");
        scene.bucket().set_storage_class(key, class);
        if !key.ends_with("frozen") {
            scene.bucket().restore(key);
        }
    }
    let mount = scene.mount(&[]);
    for key in ["cold/glacier", "cold/deep"] {
        assert_eq!(mount.read(key).unwrap(), b"bytes", "{key}");
    }
    assert_eq!(mount.names("listed").len(), 3);
    mount.forget_counts();
    let mode = |key: &str| std::fs::metadata(mount.path(key)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("listed/glacier"), mode("listed/frozen")), (0o444, 0));
    for key in ["listed/glacier", "listed/deep"] {
        assert_eq!(mount.read(key).unwrap(), b"bytes", "{key}");
    }
    assert_eq!(errno(mount.read("listed/frozen")), Some(libc::EACCES));
    assert_eq!(mount.counts().head, 0, "the listing has told it");
    eventually("a line", || lines(&mount, "listed/frozen") > 0);
}

/// A node that holds the same objects and wants no signature.
fn node(keys: &[(&str, u64)]) -> Server {
    let node = Server::builder().start_blocking().unwrap();
    let bucket = node.bucket("data");
    for (key, size) in keys {
        bucket.put_synthetic(key, *size);
    }
    bucket.set_public(true);
    node
}

fn to_node(node: &Server, status: u16) -> Fault {
    let url = node.endpoint_url();
    Fault::rewrite(move |request, _| {
        assert!(request.headers.contains_key("authorization"));
        let place = format!("{url}{}", request.uri);
        Answer::new(status).with("location", place).to_bytes()
    })
}

/// E13
#[test]
fn a_redirect_to_a_storage_node_is_followed() {
    if !can_mount() {
        return;
    }
    for code in [301, 302, 303, 307, 308] {
        let keys = [("small", 1000), ("large", 3 * MIB)];
        let (scene, node) = (Scene::with_proxy(), node(&keys));
        for (key, size) in keys {
            scene.bucket().put_synthetic(key, size);
        }
        let of_objects = |request: &RequestHead| !request.key().is_empty();
        scene.add(Rule::new(of_objects, to_node(&node, code)));
        let mount = scene.mount(&[]);
        for (key, size) in keys {
            assert!(mount.read(key).unwrap() == mount.bucket().bytes(key, 0..size), "{code} {key}");
        }
        assert!(node.counts().get > 0 && node.counts().head > 0, "{code}");
        logged_once(&mount, "it redirects requests");
    }
}

/// E13
#[test]
fn at_the_start_a_redirect_is_told_from_another_region() {
    if !can_mount() {
        return;
    }
    for code in [301, 307] {
        let keys = [("d/file", 1000)];
        let (scene, node) = (Scene::with_proxy(), node(&keys));
        scene.bucket().put_synthetic("d/file", 1000);
        scene.add(Rule::on_all(to_node(&node, code)));
        let mount = scene.mount(&[]);
        assert_eq!(mount.names("d"), ["file"]);
        assert!(mount.read("d/file").unwrap() == mount.bucket().bytes("d/file", 0..1000));

        let scene = Scene::with_proxy();
        let again = move |_: &RequestHead, _| Answer::new(code).with("location", "/").to_bytes();
        scene.add(Rule::on_all(Fault::rewrite(again)));
        let mut command = scene.program();
        let ended = command.arg("data").arg(scene.mountpoint()).output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(76), "{said}");
        let says = "does not answer like an S3 store: more than 3 redirects of one request";
        assert!(said.contains(says), "{said}");
    }
}

/// E6: the first attempt waits for 10 s, the second one longer.
#[test]
fn a_store_whose_first_byte_takes_12_s_is_waited_for() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    scene.bucket().put_synthetic("file", 1000);
    let mount = scene.mount(&[]);
    assert_eq!(mount.names(""), ["file"]);
    let late = mount.add(Rule::on_get("file", Fault::Delay(Duration::from_secs(12))));
    assert!(mount.read("file").unwrap() == mount.bucket().bytes("file", 0..1000));
    // Two attempts, and their second requests.
    assert!((2..=4).contains(&late.hits()), "{}", late.hits());
}

/// E14
#[test]
fn a_body_without_its_length_is_read_if_it_ends_where_it_should() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    for key in ["small", "large", "long", "short", "encoded", "stored"] {
        scene.bucket().put_synthetic(key, if key == "large" { 3 * MIB } else { 50_000 });
    }
    let chunked = |edit: fn(Answer) -> Answer| {
        Fault::rewrite(move |_, answer| edit(answer).in_chunks(10_000))
    };
    scene.add(Rule::on_get("small", chunked(|answer| answer)));
    scene.add(Rule::on_get("large", chunked(|answer| answer)));
    scene.add(Rule::on_get(
        "long",
        chunked(|mut answer| {
            answer.body.push(0);
            answer
        }),
    ));
    scene.add(Rule::on_get(
        "short",
        chunked(|mut answer| {
            answer.body.pop();
            answer
        }),
    ));
    scene.add(Rule::on_get("encoded", chunked(|answer| answer.with("content-encoding", "gzip"))));
    let stored =
        |_: &RequestHead, answer: Answer| answer.with("content-encoding", "gzip").to_bytes();
    scene.add(Rule::on_get("stored", Fault::rewrite(stored)));
    let asks = |request: &RequestHead| {
        request.headers.get("accept-encoding").is_none_or(|value| value != "identity")
    };
    let unasked = scene.add(Rule::new(asks, status(500, "")));
    let mount = scene.mount(&[]);
    assert_eq!(mount.names("").len(), 6);
    for key in ["small", "large", "stored"] {
        let bytes = mount.read(key).unwrap();
        assert!(bytes == mount.bucket().bytes(key, 0..bytes.len() as u64), "{key}");
    }
    let mut part = vec![0; 100_000];
    open_directly(&mount.path("large")).read_exact_at(&mut part, MIB).unwrap();
    assert!(part == mount.bucket().bytes("large", MIB..MIB + 100_000));
    for key in ["long", "short", "encoded"] {
        assert_eq!(errno(mount.read(key)), Some(libc::EIO), "{key}");
    }
    eventually("why it is refused", || lines(&mount, "encoded (gzip)") > 0);
    logged_once(&mount, "it sends objects without their length");
    assert_eq!(unasked.hits(), 0);
}

/// E4, E15
#[test]
fn a_store_whose_if_match_never_matches_is_read_by_the_etags_of_its_answers() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    // What changes is in a directory of its own, so that it is not read ahead.
    for key in ["a", "b", "c/changed"] {
        scene.bucket().put(key, format!("bytes of {key}"));
    }
    let refused = scene.add(with_header("if-match", status(412, "PreconditionFailed")));
    let mount = scene.mount(&[]);
    assert_eq!(mount.names("").len(), 3);
    assert_eq!(mount.read("a").unwrap(), b"bytes of a");
    logged_once(&mount, "its If-Match does not work");
    let hits = refused.hits();
    assert!((2..=4).contains(&hits), "{hits}");
    assert_eq!(mount.read("b").unwrap(), b"bytes of b");
    assert_eq!(refused.hits(), hits);
    // And still no version is taken for another.
    let file = open_directly(&mount.path("c/changed"));
    mount.bucket().put("c/changed", "others of changed");
    assert_eq!(errno(file.read_at(&mut [0; 4096], 0)), Some(libc::ESTALE));
    assert_eq!(mount.read("c/changed").unwrap(), b"others of changed");
}

/// E3
#[test]
fn objects_that_are_encrypted_with_the_clients_key_are_denied_at_once() {
    if !can_mount() {
        return;
    }
    let body = "<Error><Code>InvalidRequest</Code><Message>The object was stored using a form of \
                Server Side Encryption. The correct parameters must be provided to retrieve the \
                object.</Message></Error>";
    let refusal = move |request: &RequestHead, _| {
        let is_head = request.method == "HEAD";
        let answer = Answer::new(400);
        if is_head { answer } else { answer.with_body(body) }.to_bytes()
    };
    let scene = Scene::with_proxy();
    for key in ["cold-secret", "listed/secret"] {
        scene.bucket().put(key, "bytes");
    }
    let secret = |request: &RequestHead| request.key().ends_with("secret");
    let refused = scene.add(Rule::new(secret, Fault::rewrite(refusal)));
    let mount = scene.mount(&[]);
    assert_eq!(errno(mount.read("cold-secret")), Some(libc::EACCES));
    assert_eq!(refused.hits(), 2, "a HEAD, and a GET to learn why");
    logged_once(&mount, "cold-secret");
    assert_eq!(mount.names("listed"), ["secret"]);
    assert_eq!(errno(mount.read("listed/secret")), Some(libc::EACCES));
    logged_once(&mount, "listed/secret");
    for says in ["access is denied", "400 InvalidRequest: The object was stored using"] {
        assert_eq!(lines(&mount, says), 2, "{}", mount.daemon.log_so_far());
    }
}

/// A bucket of one file, on a server that knows it by a name that S3 does not allow.
#[test]
fn a_bucket_of_a_tenant_can_be_mounted() {
    if !can_mount() {
        return;
    }
    let answers = |request: &RequestHead, _| {
        let ours = request.uri.path().starts_with("/tenant%3Adata");
        assert!(ours && request.headers.contains_key("authorization"), "{}", request.uri);
        let object = Answer::new(200).with("etag", "\"e\"").with_body("bytes");
        match (request.method.as_str(), request.uri.path().ends_with("/file")) {
            ("HEAD", true) => Answer { body: Vec::new(), ..object }.to_bytes(),
            (_, true) => object.to_bytes(),
            _ => {
                let time = "<LastModified>2024-01-01T00:00:00Z</LastModified>";
                let file = format!("<Key>file</Key><ETag>e</ETag><Size>5</Size>{time}");
                let page = format!(
                    "<ListBucketResult><IsTruncated>false</IsTruncated><Contents>{file}</Contents>\
                     </ListBucketResult>"
                );
                Answer::new(200).with_body(page).to_bytes()
            }
        }
    };
    let scene = Scene::with_proxy();
    scene.add(Rule::on_all(Fault::rewrite(answers)));
    let mount = scene.mount_as("tenant:data", &[]);
    assert_eq!(mount.names(""), ["file"]);
    assert_eq!(mount.read("file").unwrap(), b"bytes");
}

/// E16
#[test]
fn each_read_that_is_refused_leaves_a_line_with_key_status_and_code() {
    if !can_mount() {
        return;
    }
    let scene = Scene::with_proxy();
    // A directory for each, so that none is read ahead.
    let refusals = [
        ("denied/x", status(403, "AccessDenied"), "403 AccessDenied"),
        ("changed/x", status(412, "PreconditionFailed"), "412 PreconditionFailed"),
        ("gone/x", status(404, "NoSuchKey"), "404 NoSuchKey"),
        ("cold/x", status(403, "InvalidObjectState"), "403 InvalidObjectState"),
        ("redirected/x", status(301, "PermanentRedirect"), "301 PermanentRedirect"),
        ("odd/x", status(409, "OperationAborted"), "409 OperationAborted"),
        ("failing/x", status(500, "InternalError"), "500 InternalError"),
        ("throttled/x", status(503, "SlowDown"), "503 SlowDown"),
    ];
    for (key, ..) in &refusals {
        scene.bucket().put(key, "bytes");
    }
    let mount = scene.mount(&["--io-timeout=2s"]);
    assert_eq!(mount.names("").len(), refusals.len());
    for (key, fault, says) in refusals {
        mount.add(Rule::on_get(key, fault));
        mount.path(key).metadata().unwrap();
        // A HEAD shows that it has changed indeed.
        if key == "changed/x" {
            mount.bucket().put(key, "other");
        }
        let refused = open_directly(&mount.path(key)).read_at(&mut [0; 4096], 0);
        assert!(refused.is_err(), "{key}");
        let of_key = format!("key=\"{key}\"");
        logged_once(&mount, &of_key);
        let log = mount.daemon.log_so_far();
        let line = log.lines().find(|line| line.contains(&of_key)).unwrap();
        assert!(line.contains(says), "{line}");
    }
}
