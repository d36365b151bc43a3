//! Names that another process has told the kernel.

use std::fs::File;

use super::*;

/// The same names in another process, which goes on with what the first one has left.
fn next(mount: &Mount, table: &File) -> Mount {
    let faults = Arc::new(FaultyStore::new(mount.memory.clone()));
    let names = Names::new(faults.clone(), mount.names.config.clone());
    names.keep(KeptNames::open(table.try_clone().unwrap()).unwrap());
    Mount { memory: mount.memory.clone(), faults, names }
}

fn kept(keys: &[&str]) -> (Mount, File) {
    let (mount, table) = (mount(keys), tempfile::tempfile().unwrap());
    mount.names.keep(KeptNames::new(table.try_clone().unwrap()).unwrap());
    (mount, table)
}

/// A piece of a scan as the kernel gets it: at most `most` entries, `.` and `..` included.
async fn piece(mount: &Mount, ino: Ino, cookie: u64, most: usize) -> (Vec<String>, u64) {
    let scan = mount.names.read_directory(ino, cookie).await.unwrap();
    let entries: Vec<_> = scan.iter().take(most).collect();
    mount.names.told(&scan, entries.len());
    let last = entries.last().map_or(cookie, |entry| entry.cookie);
    let name = |entry: &ScanEntry<'_>| String::from_utf8(entry.name.to_vec()).unwrap();
    (entries.iter().map(name).filter(|name| !name.starts_with('.')).collect(), last)
}

#[tokio::test(start_paused = true)]
async fn a_number_names_the_same_version_in_the_next_process() {
    let (mount, table) = kept(&["d/a", "d/b", "other/x"]);
    let (directory, file) = (mount.ino("d").await, mount.ino("d/a").await);
    let object = mount.names.object(file).unwrap();
    mount.memory.put("d/a", "another");
    let next = next(&mount, &table);
    assert_eq!(next.names.object(file).unwrap(), object, "not the one that is there now");
    assert_eq!(next.requests(), mount.requests(), "nobody was asked");
    assert_eq!(next.ino("d").await, directory);
    let new = next.ino("d/a").await;
    assert!(new > file, "a number is not given out twice");
    next.names.forget(file, 1);
    assert_eq!(next.names.object(file).unwrap_err(), FsError::Stale);
}

#[tokio::test(start_paused = true)]
async fn numbers_that_were_only_listed_are_not_given_out_again() {
    let keys: Vec<String> = (0..50).map(|number| format!("{number:02}")).collect();
    let (mount, table) = kept(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let listed = mount.scan(ROOT, 0).await.unwrap();
    let highest = listed.iter().map(|entry| entry.1).max().unwrap();
    let next = next(&mount, &table);
    let lowest = next.scan(ROOT, 0).await.unwrap().iter().skip(2).map(|entry| entry.1).min();
    assert!(lowest.unwrap() > highest);
}

/// F6
#[tokio::test(start_paused = true)]
async fn a_scan_goes_on_in_the_next_process_without_loss_or_repetition() {
    let keys: Vec<String> = (0..100).map(|number| format!("d/{number:03}")).collect();
    let (mount, table) = kept(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let directory = mount.ino("d").await;
    for (first, second) in [(1, 0), (2, 0), (3, 0), (40, 0), (40, 30), (40, 3), (101, 0), (102, 0)]
    {
        let (mut names, mut cookie) = piece(&mount, directory, 0, first).await;
        if second > 0 {
            let (more, behind) = piece(&mount, directory, cookie, second).await;
            names.extend(more);
            cookie = behind;
        }
        // Before and behind its place something comes and goes.
        let next = next(&mount, &table);
        mount.memory.put("d/001x", "x");
        mount.memory.put("d/099x", "x");
        mount.memory.delete("d/000");
        let rest = next.scan(directory, cookie).await.unwrap();
        names.extend(rest.into_iter().map(|entry| entry.0).filter(|name| !name.starts_with('.')));
        let mut unchanged: Vec<&str> = names.iter().map(String::as_str).collect();
        unchanged.retain(|name| !["000", "001x", "099x"].contains(name));
        let want: Vec<String> = (1..100).map(|number| format!("{number:03}")).collect();
        assert_eq!(unchanged, want, "after {first} and {second}");
        mount.memory.put("d/000", "x");
        mount.memory.delete("d/001x");
        mount.memory.delete("d/099x");
    }
}

/// A program's buffer may be smaller than the answer that the kernel has.
#[tokio::test(start_paused = true)]
async fn a_scan_goes_on_in_the_middle_of_an_answer() {
    let keys: Vec<String> = (0..30).map(|number| format!("d/{number:03}")).collect();
    let (mount, table) = kept(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    let directory = mount.ino("d").await;
    let scan = mount.names.read_directory(directory, 0).await.unwrap();
    mount.names.told(&scan, scan.iter().count());
    let next = next(&mount, &table);
    for entry in scan.iter().skip(2) {
        let rest = next.scan(directory, entry.cookie).await.unwrap();
        let name = String::from_utf8(entry.name.to_vec()).unwrap();
        assert!(rest.iter().all(|(other, ..)| *other > name), "{name}");
        let number: usize = name.parse().unwrap();
        assert_eq!(rest.len(), 29 - number, "{name}");
    }
}

/// A4, F1: the kernel has pages from the first process, and the time of a directory has not moved.
#[tokio::test(start_paused = true)]
async fn directories_keep_their_time_and_their_pages_count_as_old() {
    let (mount, table) = kept(&["d/a"]);
    let directory = mount.ino("d").await;
    mount.list(directory).await.unwrap();
    mount.memory.put("d/b", "x");
    pass(TTL).await;
    mount.list(directory).await.unwrap();
    let time = mount.mtime(directory);
    assert!(time != mount.mtime(ROOT), "it has changed");
    let next = next(&mount, &table);
    assert!(next.pages_are_old(directory));
    assert!(!next.pages_are_old(directory), "they are dropped once");
    assert_eq!(next.mtime(directory), time);
    next.list(directory).await.unwrap();
    assert_eq!(next.mtime(directory), time, "the same content");
}

#[tokio::test(start_paused = true)]
async fn a_place_that_nobody_has_told_is_stale() {
    let (mount, table) = kept(&["d/a", "d/b"]);
    let directory = mount.ino("d").await;
    let (_, cookie) = piece(&mount, directory, 0, 3).await;
    let next = next(&mount, &table);
    for wrong in [cookie + 1, cookie + (1 << 32)] {
        assert_eq!(next.scan(directory, wrong).await.unwrap_err(), FsError::Stale, "{wrong}");
    }
}
