use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;

use super::*;
use crate::names::known::Inodes;
use crate::store::{ObjectMeta, ObjectVersion};
use crate::testing::fuzz;

fn file(key: &str, etag: &str, second: u64) -> Inode {
    let version =
        ObjectVersion { key: key.to_owned(), etag: etag.to_owned(), size_bytes: second << 33 };
    let last_modified = UNIX_EPOCH + Duration::from_secs(second);
    Inode::File(Arc::new(ObjectMeta { version, last_modified, archived: second % 7 == 3 }))
}

fn inode(which: usize) -> Inode {
    // Of every length of a slot, and some too long for the rest of a page.
    let key = format!("{which}{}", "/long name".repeat(which % 40));
    match which % 5 {
        0 => Inode::Directory(format!("{key}/").into()),
        1 => Inode::Untold(key.into()),
        _ => file(&key, &format!("\"{which}\""), which as u64),
    }
}

/// What is known of each number, and how often.
fn shown(kept: &mut KeptNames) -> BTreeMap<Ino, (String, u64)> {
    kept.take()
        .into_iter()
        .map(|one| (one.ino, (format!("{:?}", one.inode), one.lookups)))
        .collect()
}

/// The file with a thousand inodes, of which every third is forgotten.
fn filled() -> (File, BTreeMap<Ino, (String, u64)>) {
    let table = tempfile::tempfile().unwrap();
    let mut kept = KeptNames::new(table.try_clone().unwrap()).unwrap();
    let mut want = BTreeMap::new();
    for which in 0..1000 {
        let (ino, inode) = (which as Ino + 2, inode(which));
        let slot = kept.add(ino, &inode).unwrap();
        kept.count_lookups(slot, ino, 7);
        if which % 10 == 0 {
            kept.flush();
        }
        if which % 3 == 0 {
            kept.remove(slot, ino, &inode);
        } else {
            want.insert(ino, (format!("{inode:?}"), 7));
        }
    }
    kept.flush();
    (table, want)
}

#[test]
fn what_was_written_is_read_by_the_next_and_by_the_one_after_it() {
    let (table, want) = filled();
    for _ in 0..2 {
        let mut kept = KeptNames::open(table.try_clone().unwrap()).unwrap();
        assert_eq!(kept.known(), want.len());
        assert_eq!(shown(&mut kept), want);
    }
}

#[test]
fn a_slot_that_is_forgotten_is_used_again_so_the_file_does_not_grow() {
    let table = tempfile::tempfile().unwrap();
    let mut kept = KeptNames::new(table.try_clone().unwrap()).unwrap();
    let mut sizes = Vec::new();
    for round in 0..10 {
        let slots: Vec<Slot> = (0..500).map(|which| kept.add(which, &inode(2)).unwrap()).collect();
        kept.flush();
        sizes.push(table.metadata().unwrap().len());
        for (which, slot) in slots.into_iter().enumerate() {
            kept.remove(slot, which as Ino, &inode(2));
        }
        assert_eq!(sizes[0], sizes[round]);
    }
}

#[test]
fn what_is_open_is_left_to_the_next_until_it_is_closed_or_forgotten() {
    let table = tempfile::tempfile().unwrap();
    let mut inodes = Inodes::new("");
    inodes.keep(KeptNames::new(table.try_clone().unwrap()).unwrap());
    let [one, other] = ["one", "other"].map(|key| {
        let ino = inodes.issue();
        inodes.remember(ino, &file(key, "e", 1));
        ino
    });
    inodes.kept.as_mut().unwrap().flush();
    let left = || {
        let mut left = KeptNames::open(table.try_clone().unwrap()).unwrap().opens();
        left.sort_unstable_by_key(|(ino, _)| *ino);
        left
    };
    let through = KeptOpen { opens: 2, backing: 70_000 };
    let by_daemon = KeptOpen { opens: 1, backing: 0 };
    inodes.keep_open(one, Some(through));
    inodes.keep_open(other, Some(by_daemon));
    // Its time has moved.
    let Some(Inode::File(meta)) = inodes.get(one).cloned() else { panic!("a file") };
    let last_modified = meta.last_modified + Duration::from_secs(9);
    let newer = ObjectMeta { last_modified, ..(*meta).clone() };
    inodes.remember(one, &Inode::File(Arc::new(newer)));
    assert_eq!(left(), [(one, through), (other, by_daemon)]);
    inodes.keep_open(other, None);
    assert_eq!(left(), [(one, through)]);
    inodes.forget(one, 2);
    assert_eq!(left(), []);
}

/// What was not told to the kernel is not there: the numbers are written when they are flushed.
#[test]
fn what_was_not_flushed_was_never_told() {
    let (table, want) = filled();
    let mut kept = KeptNames::open(table.try_clone().unwrap()).unwrap();
    kept.take();
    // Written over a page's end, and killed before the count of pages.
    for which in 5000..5500 {
        kept.add(which, &file("k", "e", 1));
    }
    kept.slots.flush(&kept.file).unwrap();
    let mut next = KeptNames::open(table).unwrap();
    let read = shown(&mut next);
    assert!(want.iter().all(|(ino, was)| read.get(ino) == Some(was)), "none is lost");
    assert!(read.len() < want.len() + 500, "and not all of the others are there");
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let (table, want) = filled();
    let length = table.metadata().unwrap().len();
    let mut found = 0;
    for at in (COUNTERS_AT..COUNTERS_AT + 48).chain((SLOTS_AT..length).step_by(61)) {
        let mut byte = [0];
        table.read_exact_at(&mut byte, at).unwrap();
        table.write_all_at(&[byte[0] ^ 4], at).unwrap();
        match KeptNames::open(table.try_clone().unwrap()) {
            Err(damage) => {
                assert!([Damage::Checksum, Damage::Truncated].contains(&damage), "{damage}");
                found += 1;
            }
            // In a slot that was forgotten, or behind the last.
            Ok(mut kept) => assert_eq!(shown(&mut kept), want, "at {at}"),
        }
        table.write_all_at(&byte, at).unwrap();
    }
    assert!(found > 500, "{found}");
}

#[test]
fn a_file_that_was_cut_is_not_gone_on_with() {
    let (table, _) = filled();
    let length = table.metadata().unwrap().len();
    for cut in [0, 1, COUNTERS_AT, COUNTERS_AT + 20, SLOTS_AT, SLOTS_AT + 4096, length - 4097] {
        table.set_len(cut).unwrap();
        let damage = KeptNames::open(table.try_clone().unwrap()).err();
        assert!(matches!(damage, Some(Damage::Truncated | Damage::Checksum)), "{cut}: {damage:?}");
    }
}

/// Whatever is looked up and forgotten: at any moment the next process would know the same, and
/// give out no number twice.
#[test]
fn at_any_moment_the_next_process_knows_the_same() {
    let step = prop_oneof![
        3 => (0..30_usize).prop_map(|which| (which, 0)),
        2 => (0..30_usize, 1..3_u64),
    ];
    fuzz::each(proptest::collection::vec(step, 1..80), |steps| {
        let table = tempfile::tempfile().unwrap();
        let mut inodes = Inodes::new("");
        inodes.keep(KeptNames::new(table.try_clone().unwrap()).unwrap());
        let mut lookups: BTreeMap<Ino, (String, u64)> = BTreeMap::new();
        for (which, forget) in steps {
            let inode = inode(which);
            let ino = inodes.number(&inode);
            if forget > 0 {
                let Some(ino) = ino else { continue };
                let left = lookups[&ino].1.saturating_sub(forget);
                inodes.forget(ino, forget);
                if left == 0 {
                    lookups.remove(&ino);
                } else {
                    lookups.get_mut(&ino).unwrap().1 = left;
                }
            } else {
                let ino = ino.unwrap_or_else(|| inodes.issue());
                inodes.remember(ino, &inode);
                lookups.entry(ino).or_insert((format!("{inode:?}"), 0)).1 += 1;
                inodes.kept.as_mut().unwrap().flush();
            }
            let mut next = KeptNames::open(table.try_clone().unwrap()).unwrap();
            prop_assert!(lookups.keys().all(|ino| *ino < next.first_unused().0));
            prop_assert_eq!(shown(&mut next), lookups.clone());
        }
        Ok(())
    });
}
