//! The namespace against a model: the tree that the keys of a bucket make, worked out anew each
//! time by the rules of docs/semantics.md. The alphabet is tiny, so that keys collide, nest and
//! contradict each other all the time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use fasts3_mount::errno::FsError;
use fasts3_mount::names::{Ino, Inode, Names, NamesConfig, Node, ROOT};
use fasts3_mount::store::StoreError;
use fasts3_mount::testing::fault::{Fault, FaultyStore};
use fasts3_mount::testing::memory::MemoryStore;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const TTL_SECONDS: u64 = 10;

/// What a name is: a directory, or the version of an object by its `ETag`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Directory,
    File(String),
}

/// A bucket at one moment: keys and `ETag`s.
type Bucket = BTreeMap<String, String>;

/// A directory's entries by what they sort by, `name` or `name/`.
type Entries = BTreeMap<String, Kind>;

/// The rules, in the plainest way: looks at every key.
fn entries(bucket: &Bucket, prefix: &str) -> Entries {
    let mut entries = Entries::new();
    for (key, etag) in bucket {
        let Some(below) = key.strip_prefix(prefix) else { continue };
        let name = below.split('/').next().unwrap_or_default();
        if matches!(name, "" | "." | "..") {
            continue;
        }
        if below.contains('/') {
            entries.insert(format!("{name}/"), Kind::Directory);
        } else {
            entries.insert(name.to_owned(), Kind::File(etag.clone()));
        }
    }
    let shadowed: Vec<_> = entries.keys().filter_map(|name| name.strip_suffix('/')).collect();
    let shadowed: BTreeSet<_> = shadowed.into_iter().map(str::to_owned).collect();
    entries.retain(|name, _| !shadowed.contains(name));
    entries
}

fn named(entries: &Entries, name: &str) -> Option<Kind> {
    entries.get(name).or_else(|| entries.get(&format!("{name}/"))).cloned()
}

fn exists(bucket: &Bucket, prefix: &str) -> bool {
    prefix.is_empty() || bucket.keys().any(|key| key.starts_with(prefix))
}

#[derive(Clone, Debug)]
enum Step {
    Put(String),
    Delete(String),
    Wait(u64),
    DropNames,
    /// Looks the name up in the directory that was found so many lookups ago.
    Lookup(usize, String),
    /// Reads the same kind of directory in pieces of so many entries.
    Read(usize, usize),
    /// Reads a directory and all below it in order, as `find` does.
    Walk(usize),
    /// Forgets what was found so many lookups ago.
    Forget(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let key = "[a./-]{1,4}";
    let name = "[a.-]{1,2}";
    prop_oneof![
        4 => key.prop_map(Step::Put),
        3 => key.prop_map(Step::Delete),
        2 => (1..TTL_SECONDS).prop_map(Step::Wait),
        1 => Just(Step::DropNames),
        8 => (0..4_usize, name).prop_map(|(back, name)| Step::Lookup(back, name)),
        4 => (0..4_usize, 1..4_usize).prop_map(|(back, piece)| Step::Read(back, piece)),
        2 => (0..4_usize).prop_map(Step::Walk),
        1 => (0..4_usize).prop_map(Step::Forget),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let keys = proptest::collection::vec("[a./-]{1,4}".prop_map(Step::Put), 0..6);
    let steps = proptest::collection::vec(step(), 1..40);
    (keys, steps).prop_map(|(keys, steps)| keys.into_iter().chain(steps).collect())
}

/// The world: a bucket, its past, and the kernel's side of the namespace.
struct World {
    store: Arc<MemoryStore>,
    faults: Arc<FaultyStore>,
    names: Arc<Names>,
    bucket: Bucket,
    /// The bucket from each moment on.
    past: Vec<(tokio::time::Instant, Bucket)>,
    /// What the kernel knows, in the order of its lookups.
    known: Vec<(Ino, String, Kind)>,
    /// What every number ever named.
    ever: HashMap<Ino, (String, Kind)>,
    ttl: Duration,
}

impl World {
    fn new(ttl: Duration, page_keys: u16) -> Self {
        Self::over(MemoryStore::new(), ttl, page_keys)
    }

    fn in_no_order(ttl: Duration) -> Self {
        let store = MemoryStore::new();
        store.list_in_no_order();
        Self::over(store, ttl, 1000)
    }

    fn over(store: MemoryStore, ttl: Duration, page_keys: u16) -> Self {
        let store = Arc::new(store);
        let faults = Arc::new(FaultyStore::new(store.clone()));
        let config = NamesConfig {
            root_prefix: String::new(),
            metadata_ttl: Some(ttl),
            negative_ttl: ttl / 2,
            listings_bytes: usize::MAX,
            page_keys,
            pages_at_once: 4,
            is_unordered: false,
        };
        Self {
            names: Names::new(faults.clone(), config),
            store,
            faults,
            bucket: Bucket::new(),
            past: vec![(tokio::time::Instant::now(), Bucket::new())],
            known: Vec::new(),
            ever: HashMap::from([(ROOT, (String::new(), Kind::Directory))]),
            ttl,
        }
    }

    fn put(&mut self, key: &str) {
        let meta = self.store.put(key, "x");
        self.bucket.insert(key.to_owned(), meta.version.etag);
        self.past.push((tokio::time::Instant::now(), self.bucket.clone()));
    }

    fn delete(&mut self, key: &str) {
        self.store.delete(key);
        self.bucket.remove(key);
        self.past.push((tokio::time::Instant::now(), self.bucket.clone()));
    }

    /// Every state of the bucket that an answer may still be true of.
    fn believable(&self) -> Vec<&Bucket> {
        let now = tokio::time::Instant::now();
        let until = self.past.iter().map(|(from, _)| *from).skip(1).chain([now]);
        let states = self.past.iter().zip(until);
        let mut states: Vec<_> = states
            .filter(|(_, until)| *until + self.ttl > now)
            .map(|((_, bucket), _)| bucket)
            .collect();
        states.push(&self.bucket);
        states
    }

    /// A directory that the kernel knows, by how long ago it was found; the root else.
    fn directory(&self, back: usize) -> (Ino, String) {
        let mut directories = self.known.iter().rev().filter(|known| known.2 == Kind::Directory);
        let root = || (ROOT, String::new());
        directories.nth(back).map_or_else(root, |(ino, key, _)| (*ino, key.clone()))
    }

    /// A number names one thing, and what the kernel knows has one number.
    fn names_one_thing(&mut self, ino: Ino, key: &str, kind: &Kind) {
        let named = self.ever.entry(ino).or_insert_with(|| (key.to_owned(), kind.clone()));
        assert_eq!(named, &(key.to_owned(), kind.clone()), "number {ino}");
        for (other, other_key, other_kind) in &self.known {
            let same = other_key == key && other_kind == kind;
            assert!(!same || *other == ino, "{key:?} is {ino} and {other}");
        }
    }

    async fn lookup(&mut self, parent: Ino, prefix: &str, name: &str) -> Result<(), FsError> {
        let answer = match self.names.lookup(parent, name.as_bytes()).await {
            Ok(node) => {
                let kind = kind(&node);
                let slash = if kind == Kind::Directory { "/" } else { "" };
                let key = format!("{prefix}{name}{slash}");
                self.names_one_thing(node.ino, &key, &kind);
                self.known.push((node.ino, key, kind.clone()));
                assert!(node.name_ttl <= self.ttl);
                Some(kind)
            }
            Err(FsError::NotFound { .. }) => None,
            Err(error @ FsError::Io) => return Err(error),
            Err(error) => panic!("{prefix:?} {name:?}: {error:?}"),
        };
        let believable = self.believable();
        let possible: Vec<_> =
            believable.iter().map(|bucket| named(&entries(bucket, prefix), name)).collect();
        // A listing whose pages come before and after a change can miss a name that was a file on
        // the one side and a directory on the other: they stand in different places.
        let stable = possible.iter().all(|kind| *kind == possible[0]);
        let true_once = possible.contains(&answer) || (answer.is_none() && !stable);
        assert!(true_once, "{prefix}{name}: {answer:?}, but {possible:?}");
        Ok(())
    }

    /// Gives the names of the directories in it.
    async fn read(&mut self, ino: Ino, prefix: &str, piece: usize) -> Result<Vec<String>, FsError> {
        let mut read = Vec::new();
        let mut cookie = 0;
        loop {
            let scan = match self.names.read_directory(ino, cookie).await {
                Ok(scan) => scan,
                Err(FsError::NotFound { .. }) => {
                    let gone = self.believable().iter().any(|bucket| !exists(bucket, prefix));
                    assert!(gone && cookie == 0, "{prefix:?} exists");
                    return Ok(Vec::new());
                }
                Err(error @ FsError::Io) => return Err(error),
                Err(error) => panic!("{prefix:?}: {error:?}"),
            };
            let before = read.len();
            for entry in scan.iter().take(piece) {
                let name = String::from_utf8(entry.name.to_vec()).expect("UTF-8");
                if name != "." && name != ".." {
                    let kind = kind(&self.names.node(&entry));
                    let sorted_by = name + if entry.is_directory { "/" } else { "" };
                    self.names_one_thing(entry.ino, &format!("{prefix}{sorted_by}"), &kind);
                    read.push((sorted_by, kind));
                } else {
                    read.push((String::new(), Kind::Directory));
                }
                cookie = entry.cookie;
            }
            if read.len() == before {
                break;
            }
        }
        let read: Vec<_> = read.split_off(2);
        // A listing's pages come one after the other, and the bucket may change between them: each
        // entry was true at some moment, and what was true all the time is there.
        let states: Vec<_> =
            self.believable().iter().map(|bucket| entries(bucket, prefix)).collect();
        for (name, kind) in &read {
            let true_once = states.iter().any(|state| state.get(name) == Some(kind));
            assert!(true_once, "{prefix}{name}: {kind:?}, but {states:?}");
        }
        for (name, kind) in &states[0] {
            let stable = states.iter().all(|state| state.get(name) == Some(kind));
            let times = read.iter().filter(|read| read.0 == *name).count();
            assert!(!stable || times == 1, "{prefix}{name} {times} times");
        }
        assert!(read.is_sorted(), "{prefix:?}: {read:?}");
        let directories = read.iter().filter_map(|(name, _)| name.strip_suffix('/'));
        Ok(directories.map(str::to_owned).collect())
    }

    async fn step(&mut self, step: Step) -> Result<(), FsError> {
        match step {
            Step::Put(key) => self.put(&key),
            Step::Delete(key) => self.delete(&key),
            Step::Wait(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
            Step::DropNames => self.drop_names(),
            Step::Lookup(back, name) => {
                let (parent, prefix) = self.directory(back);
                self.lookup(parent, &prefix, &name).await?;
            }
            Step::Read(back, piece) => {
                let (ino, prefix) = self.directory(back);
                self.read(ino, &prefix, piece).await?;
            }
            Step::Walk(back) => {
                let mut open = vec![self.directory(back)];
                while let Some((ino, prefix)) = open.pop() {
                    for name in self.read(ino, &prefix, 3).await?.into_iter().rev() {
                        let known = self.known.len();
                        self.lookup(ino, &prefix, &name).await?;
                        if let Some((ino, key, Kind::Directory)) = self.known.get(known) {
                            open.push((*ino, key.clone()));
                        }
                    }
                }
            }
            Step::Forget(back) => {
                if let Some(at) = self.known.len().checked_sub(1 + back) {
                    let (ino, ..) = self.known.remove(at);
                    self.names.forget(ino, 1);
                    let still_known = self.known.iter().any(|known| known.0 == ino);
                    assert_eq!(self.names.attributes(ino).is_ok(), still_known);
                }
            }
        }
        Ok(())
    }

    /// From here on only the present is true.
    fn drop_names(&mut self) {
        self.names.drop_names();
        self.past = vec![(tokio::time::Instant::now(), self.bucket.clone())];
    }

    /// Walks the whole tree and looks up every name there might be.
    async fn check_everything(&mut self) {
        let mut directories = vec![(ROOT, String::new())];
        while let Some((ino, prefix)) = directories.pop() {
            self.read(ino, &prefix, 2).await.expect("nothing fails");
            for name in ["a", "-", "...", "aa", "a-", "-a", "a.", ".a"] {
                let known = self.known.len();
                self.lookup(ino, &prefix, name).await.expect("nothing fails");
                if let Some((ino, key, Kind::Directory)) = self.known.get(known) {
                    directories.push((*ino, key.clone()));
                }
            }
        }
    }
}

fn kind(node: &Node) -> Kind {
    match &node.inode {
        Inode::Directory(_) => Kind::Directory,
        Inode::File(meta) => Kind::File(meta.version.etag.clone()),
        Inode::Untold(key) => panic!("{key} is told"),
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(test);
}

/// The same cases in every run.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        rng_seed: RngSeed::Fixed(3),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(256))]

    /// With or without a TTL, an answer was true at a moment no longer ago than the TTL, and a
    /// number names one thing.
    #[test]
    fn answers_are_true_or_were_within_the_ttl(
        steps in steps(),
        ttl in prop_oneof![Just(0), Just(TTL_SECONDS)],
        page_keys in 1..8_u16,
    ) {
        run(async move {
            let mut world = World::new(Duration::from_secs(ttl), page_keys);
            for step in steps {
                world.step(step).await.expect("nothing fails");
            }
            world.drop_names();
            world.check_everything().await;
        });
    }

    /// F12: the same of a store that lists in no order, which turns out somewhere on the way.
    #[test]
    fn answers_from_a_listing_in_no_order_are_as_true(
        steps in steps(),
        ttl in prop_oneof![Just(0), Just(TTL_SECONDS)],
    ) {
        run(async move {
            let mut world = World::in_no_order(Duration::from_secs(ttl));
            for step in steps {
                world.step(step).await.expect("nothing fails");
            }
            world.drop_names();
            world.check_everything().await;
        });
    }

    /// A store that fails makes errors, never an answer that is not true.
    #[test]
    fn failures_are_errors_and_never_answers(
        steps in steps(),
        ttl in prop_oneof![Just(0), Just(TTL_SECONDS)],
        fail_every in 2..5_u64,
        page_keys in 1..8_u16,
    ) {
        run(async move {
            let mut world = World::new(Duration::from_secs(ttl), page_keys);
            world.faults.hook(move |call| {
                if call.number % fail_every == 0 {
                    Fault::Fail(StoreError::Throttled { retry_after: None })
                } else {
                    Fault::None
                }
            });
            for step in steps {
                if let Err(error) = world.step(step).await {
                    assert_eq!(error, FsError::Io);
                }
            }
            world.faults.hook(|_| Fault::None);
            world.drop_names();
            world.check_everything().await;
        });
    }

    /// A scan shows what stays as it is exactly once, and what never is not at all, whatever else
    /// happens to the bucket and to what is believed of it.
    #[test]
    fn a_scan_never_repeats_or_skips_what_is_stable(
        keys in proptest::collection::vec("[a./-]{1,3}", 0..10),
        pieces in proptest::collection::vec((1..3_usize, step()), 0..20),
        ttl in prop_oneof![Just(0), Just(TTL_SECONDS)],
        page_keys in 1..8_u16,
    ) {
        run(async move {
            let mut world = World::new(Duration::from_secs(ttl), page_keys);
            for key in &keys {
                world.put(key);
            }
            world.drop_names();
            let mut seen: Vec<(String, Kind)> = Vec::new();
            let mut cookie = 0;
            let mut states = vec![entries(&world.bucket, "")];
            let mut pieces = pieces.into_iter();
            loop {
                let (take, step) = pieces.next().unwrap_or((10, Step::Wait(1)));
                let scan = world.names.read_directory(ROOT, cookie).await.expect("a scan");
                let piece: Vec<_> = scan.iter().take(take).collect();
                let Some(last) = piece.last() else { break };
                cookie = last.cookie;
                for entry in piece.iter().filter(|entry| !entry.name.starts_with(b".")) {
                    let name = String::from_utf8(entry.name.to_vec()).expect("UTF-8");
                    let slash = if entry.is_directory { "/" } else { "" };
                    seen.push((name + slash, kind(&world.names.node(entry))));
                }
                world.step(step).await.expect("nothing fails");
                states.push(entries(&world.bucket, ""));
            }
            let all: BTreeSet<_> = states.iter().flatten().collect();
            for (name, kind) in all {
                let times = seen.iter().filter(|seen| (&seen.0, &seen.1) == (name, kind)).count();
                let stable = states.iter().all(|state| state.get(name) == Some(kind));
                let dot = name.starts_with('.');
                assert!(dot || times == 1 || (!stable && times < 2), "{name:?} {times} times");
            }
            for (name, kind) in &seen {
                assert!(states.iter().any(|state| state.get(name) == Some(kind)), "{name:?}");
            }
            assert!(seen.is_sorted(), "{seen:?}");
        });
    }
}

proptest! {
    // Each of them looks at hundreds of names.
    #![proptest_config(config(48))]

    /// Several walks at once, in trees that are wide enough to be listed ahead, of which pages fail
    /// and which change meanwhile: what each directory shows was true, and what does not change is
    /// there.
    #[test]
    fn walks_see_what_there_is(
        keys in proptest::collection::vec("[a-e-]{1,2}/[a-c.-]{1,2}(/[ab-]{1,2})?/?", 0..60),
        changes in proptest::collection::vec("[a-e-]{1,2}/[a-c.-]{1,2}(/[ab-]{1,2})?", 0..4),
        page_keys in 1..40_u16,
        fail_every in prop_oneof![Just(0), 3..9_u64],
        delays in proptest::collection::vec(0..3_u64, 1..8),
    ) {
        run(async move {
            let mut world = World::new(Duration::from_secs(TTL_SECONDS), page_keys);
            for key in &keys {
                world.put(key);
            }
            let walk = async |world: &mut World| {
                let walked = world.step(Step::Walk(usize::MAX)).await;
                assert!(walked.is_ok() || fail_every > 0);
            };
            for change in changes {
                world.faults.hook({
                    let delays = delays.clone();
                    move |call| match usize::try_from(call.number).expect("few") {
                        number if fail_every > 0 && call.number % fail_every == 0 => {
                            Fault::Fail(StoreError::Unavailable(number.to_string()))
                        }
                        number => Fault::Delay(Duration::from_secs(delays[number % delays.len()])),
                    }
                });
                // Somebody else walks, too.
                let names = world.names.clone();
                let other = tokio::spawn(async move {
                    let mut open = vec![ROOT];
                    while let Some(ino) = open.pop() {
                        let Ok(scan) = names.read_directory(ino, 0).await else { continue };
                        let entries: Vec<_> = scan.iter().skip(2).collect();
                        for entry in entries.iter().rev().filter(|entry| entry.is_directory) {
                            if let Ok(node) = names.lookup(ino, entry.name).await {
                                open.push(node.ino);
                            }
                        }
                    }
                });
                walk(&mut world).await;
                if world.bucket.contains_key(&change) {
                    world.delete(&change);
                } else {
                    world.put(&change);
                }
                walk(&mut world).await;
                other.await.expect("no panic");
            }
            world.faults.hook(|_| Fault::None);
            walk(&mut world).await;
            world.drop_names();
            world.step(Step::Walk(usize::MAX)).await.expect("nothing fails");
        });
    }
}
