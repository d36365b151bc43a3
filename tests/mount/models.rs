//! Checkpoints of models: fetched whole, ahead of programs that read them in any order.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::common::{Mount, Scene, can_mount, eventually, is_root};

const MIB: u64 = 1 << 20;
const TENSOR: u64 = 2 * MIB;
const TENSORS: u64 = 32;

/// The length of a header of `safetensors`, and the header.
fn safetensors() -> Vec<u8> {
    safetensors_of(|number| (number * TENSOR, (number + 1) * TENSOR))
}

fn safetensors_of(offsets: impl Fn(u64) -> (u64, u64)) -> Vec<u8> {
    let tensors: Vec<_> = (0..TENSORS)
        .map(|number| {
            let (start, end) = offsets(number);
            let items = end.saturating_sub(start) / 2;
            format!(
                r#""t{number}":{{"dtype":"F16","shape":[{items}],"data_offsets":[{start},{end}]}}"#
            )
        })
        .collect();
    let json = format!("{{{}}}", tensors.join(","));
    [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat()
}

fn shard(number: u32) -> String {
    format!("m/model-{number:05}-of-00002.safetensors")
}

fn scene_of(heads: &[(&str, Vec<u8>)]) -> Scene {
    let scene = Scene::new();
    for (key, head) in heads {
        scene.bucket().put_headed(key, head.len() as u64 + TENSORS * TENSOR, head.clone());
    }
    scene
}

/// The bytes of an object that were asked for.
fn asked(mount: &Mount, key: &str) -> u64 {
    let log = mount.scene.server.log();
    let ranges =
        log.iter().filter(|request| request.key == key).filter_map(devserver::LoggedRequest::bytes);
    ranges.map(|range| range.end - range.start).sum()
}

fn read_tensor(mount: &Mount, file: &File, key: &str, number: u64) {
    let start = safetensors().len() as u64 + number * TENSOR;
    let mut bytes = vec![0; usize::try_from(TENSOR).unwrap()];
    file.read_exact_at(&mut bytes, start).unwrap();
    assert!(mount.bucket().bytes(key, start..start + TENSOR) == bytes, "{key}, tensor {number}");
}

/// An order that has nothing to do with the file's.
fn layers() -> impl Iterator<Item = u64> {
    (0..TENSORS).map(|layer| (layer * 13 + 20) % TENSORS)
}

/// R10
#[test]
fn a_checkpoint_is_fetched_whole_and_once_and_then_the_next_one() {
    if !can_mount() {
        return;
    }
    let keys = [shard(1), shard(2)];
    let size = safetensors().len() as u64 + TENSORS * TENSOR;
    let scene = scene_of(&[(&keys[0], safetensors()), (&keys[1], safetensors())]);
    let mount = scene.mount(&["--metadata-ttl=1h"]);
    assert_eq!(mount.names("m").len(), 2);
    let file = File::open(mount.path(&keys[0])).unwrap();
    let mut layers = layers();
    for number in layers.by_ref().take(6) {
        read_tensor(&mount, &file, &keys[0], number);
    }
    eventually("all of it is asked for", || asked(&mount, &keys[0]) >= size);
    assert_eq!(asked(&mount, &keys[1]), 0, "not before half of the first one was read");
    for number in layers {
        read_tensor(&mount, &file, &keys[0], number);
    }
    eventually("the next one is asked for", || asked(&mount, &keys[1]) >= 16 * MIB);
    let next = File::open(mount.path(&keys[1])).unwrap();
    for number in self::layers() {
        read_tensor(&mount, &next, &keys[1], number);
    }
    for key in &keys {
        let asked = asked(&mount, key);
        assert!((size..=size + size / 50).contains(&asked), "{asked} of {size} bytes of {key}");
    }
}

/// R10: what a header says of the order counts before the first byte of a tensor is read.
#[test]
fn the_next_checkpoint_is_fetched_in_the_order_of_its_names() {
    if !can_mount() {
        return;
    }
    let keys = [shard(1), shard(2)];
    let backwards = safetensors_of(|number| {
        let place = TENSORS - 1 - number;
        (place * TENSOR, (place + 1) * TENSOR)
    });
    let scene = scene_of(&[(&keys[0], safetensors()), (&keys[1], backwards)]);
    let mount = scene.mount(&["--metadata-ttl=1h", "--memory-budget=32MiB"]);
    assert_eq!(mount.names("m").len(), 2);
    let file = File::open(mount.path(&keys[0])).unwrap();
    for number in layers() {
        read_tensor(&mount, &file, &keys[0], number);
    }
    eventually("the next one is asked for", || asked(&mount, &keys[1]) >= 8 * MIB);
    let log = mount.scene.server.log();
    let gets = log.iter().filter(|request| request.key == keys[1]);
    let starts: Vec<_> = gets.filter_map(|get| Some(get.bytes()?.start)).collect();
    // There is room for its second half only, beside its header.
    let first_half = 2 * MIB..TENSORS * TENSOR / 2 - 2 * MIB;
    assert!(!starts.iter().any(|start| first_half.contains(start)), "{starts:?}");
}

/// R10: to open a file is to map it and look at its header, for which the kernel asks for 1 MiB.
#[test]
fn a_header_alone_costs_what_the_kernel_asks_for() {
    // Others cannot set the kernel's readahead.
    if !can_mount() || !is_root() {
        return;
    }
    let key = "one.safetensors";
    let mount = scene_of(&[(key, safetensors())]).mount(&["--metadata-ttl=1h"]);
    let file = File::open(mount.path(key)).unwrap();
    // One request, as that of a fault is.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut bytes = vec![0; usize::try_from(MIB).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(mount.bucket().bytes(key, 0..MIB) == bytes);
    let log = mount.scene.server.log();
    let gets = log.iter().filter(|request| request.key == key);
    assert_eq!(gets.filter_map(|get| Some(get.bytes()?.end)).max(), Some(MIB));
}

/// R10: what is fetched beyond a tensor is the kernel's own readahead, twice 1 MiB.
#[test]
fn one_tensor_costs_its_own_bytes_and_a_second_one_all() {
    if !can_mount() {
        return;
    }
    let key = "one.safetensors";
    // The first is the larger half of the file.
    let head = safetensors_of(|number| match number {
        0 => (0, 33 * TENSOR),
        _ => ((32 + number) * TENSOR, (33 + number) * TENSOR),
    });
    let size = head.len() as u64 + 64 * TENSOR;
    for first in [8 * MIB, 0] {
        let scene = Scene::new();
        scene.bucket().put_headed(key, size, head.clone());
        let mount = scene.mount(&["--metadata-ttl=1h"]);
        let file = File::open(mount.path(key)).unwrap();
        let mut bytes = vec![0; head.len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == head);
        let start = head.len() as u64 + first;
        let end = head.len() as u64 + 33 * TENSOR;
        let mut bytes = vec![0; usize::try_from(MIB).unwrap()];
        for at in (start..end).step_by(1 << 20) {
            let bytes = &mut bytes[..usize::try_from(MIB.min(end - at)).unwrap()];
            file.read_exact_at(bytes, at).unwrap();
        }
        let cost = asked(&mount, key);
        assert!(cost <= end - first + 3 * MIB, "{cost} bytes for {}", end - start);
        file.read_exact_at(&mut [0], size - 1).unwrap();
        eventually("more is asked for", || asked(&mount, key) >= cost + 16 * MIB);
    }
}

/// R10
#[test]
fn what_only_looks_like_a_checkpoint_is_read_as_any_other_file() {
    if !can_mount() {
        return;
    }
    let length = |bytes: u64| [&bytes.to_le_bytes(), b"{\"t\":".as_slice()].concat();
    let heads = [
        ("other", safetensors()),
        ("long.safetensors", length(100_000_001)),
        ("longer-than-the-file.safetensors", length(TENSORS * TENSOR)),
        ("nothing.safetensors", length(0)),
        ("most.safetensors", length(u64::MAX)),
        ("list.safetensors", [&600_u64.to_le_bytes(), b"[1, 2".as_slice()].concat()),
        ("overlaps.safetensors", safetensors_of(|number| (number, (number + 1) * TENSOR))),
        ("backwards.safetensors", safetensors_of(|number| ((number + 1) * TENSOR, number))),
        ("beyond.safetensors", safetensors_of(|number| (number << 40, (number + 1) << 40))),
        ("nonsense.safetensors", [&4_u64.to_le_bytes(), b"{{{{".as_slice()].concat()),
        ("other.gguf", safetensors()),
        ("pickle.bin", b"\x80\x02}q\x00".to_vec()),
        ("model-00001-of-99999.safetensors", length(0)),
    ];
    let scene = scene_of(&heads);
    let mount = scene.mount(&["--metadata-ttl=1h"]);
    mount.names("");
    for (key, head) in &heads {
        let file = File::open(mount.path(key)).unwrap();
        let mut read = 0;
        for number in layers().take(8) {
            let start = head.len() as u64 + number * TENSOR;
            let mut page = [0; 4096];
            file.read_exact_at(&mut page, start).unwrap();
            assert!(mount.bucket().bytes(key, start..start + 4096) == page[..], "{key}");
            read += MIB;
        }
        let asked = asked(&mount, key);
        assert!(asked <= read, "{asked} bytes of {key} for 8 pages");
    }
}
