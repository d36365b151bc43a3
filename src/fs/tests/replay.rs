//! What programs ask for when they start, replayed over a store behind a network: waits in
//! milliseconds, requests, and bytes.

use std::collections::{HashMap, HashSet};

use tokio::time::Instant;

use super::*;
use crate::testing::fault::{FaultyStore, Operation};

const FIRST_BYTE: Duration = Duration::from_millis(15);
const PAGE: Duration = Duration::from_millis(40);

/// A mount and the kernel above it, which keeps names, directories and files.
struct Machine {
    store: Arc<MemoryStore>,
    fs: Arc<BucketFs>,
    names: HashMap<String, Option<Ino>>,
    listed: HashSet<String>,
    read: HashSet<Ino>,
    bytes_read: u64,
    began: Instant,
}

#[derive(Debug)]
struct Cost {
    millis: u128,
    lists: u64,
    heads: u64,
    gets: u64,
    /// Bytes fetched for a hundred that were read.
    fetched_percent: u64,
}

impl Machine {
    fn new(store: MemoryStore) -> Self {
        let store = Arc::new(store);
        let network = Arc::new(FaultyStore::new(store.clone()));
        network.delay(Operation::Head, FIRST_BYTE);
        network.delay(Operation::Get, FIRST_BYTE);
        network.delay(Operation::List, PAGE);
        Self {
            fs: file_system(network, 256 << 20, Some(Duration::from_mins(1))),
            store,
            names: HashMap::from([(String::new(), Some(ROOT))]),
            listed: HashSet::new(),
            read: HashSet::new(),
            bytes_read: 0,
            began: Instant::now(),
        }
    }

    /// Looks a path up, component by component.
    async fn stat(&mut self, path: &str) -> Option<Ino> {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        let mut parent = ROOT;
        for end in ends {
            let (path, name) = (&path[..end], path[..end].rsplit('/').next().unwrap_or_default());
            let ino = if let Some(known) = self.names.get(path) {
                *known
            } else {
                let found = self.fs.lookup(parent, name.as_bytes()).await;
                let found = found.ok().map(|found| found.ino);
                self.names.insert(path.to_owned(), found);
                found
            };
            parent = ino?;
        }
        Some(parent)
    }

    /// Opens a file and reads it whole.
    async fn open(&mut self, path: &str) {
        let ino = self.stat(path).await.expect("the file exists");
        if self.read.insert(ino) {
            let data = self.fs.read(ino, 0, 1 << 20, ReadKind::Buffered).await.expect("reads");
            self.bytes_read += data.len() as u64;
        }
    }

    async fn list(&mut self, path: &str) -> Vec<String> {
        let ino = if path.is_empty() { ROOT } else { self.stat(path).await.expect("it exists") };
        let (mut cookie, mut names) = (0, Vec::new());
        if !self.listed.insert(path.to_owned()) {
            return names;
        }
        loop {
            let (mut found, mut last) = (Vec::new(), cookie);
            let add = |entry: &ScanEntry<'_>, attributes: &Attributes| {
                last = entry.cookie;
                found.push((String::from_utf8_lossy(entry.name).into_owned(), attributes.ino));
                true
            };
            self.fs.read_directory_plus(ino, cookie, add).await.expect("lists");
            if found.is_empty() {
                return names;
            }
            cookie = last;
            for (name, ino) in found.into_iter().filter(|(name, _)| name != "." && name != "..") {
                let child = format!("{path}/{name}");
                self.names.insert(child.trim_start_matches('/').to_owned(), Some(ino));
                names.push(name);
            }
        }
    }

    async fn cost(&self) -> Cost {
        let millis = self.began.elapsed().as_millis();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let counts = self.store.counts();
        let fetched_percent = 100 * self.fs.stats.bytes_fetched.get() / self.bytes_read.max(1);
        let (lists, heads, gets) = (counts.lists, counts.heads, counts.gets);
        Cost { millis, lists, heads, gets, fetched_percent }
    }

    /// Finds a package as Python does: extension modules first, then its source, of which it opens
    /// the bytecode before it.
    async fn import(&mut self, package: &str) {
        let (parent, _) = package.rsplit_once('/').expect("is in a folder");
        self.list(parent).await;
        for kind in [".cpython-311-x86_64-linux-gnu.so", ".abi3.so", ".so"] {
            assert_eq!(self.stat(&format!("{package}/__init__{kind}")).await, None);
        }
        self.module(package, "__init__").await;
    }

    async fn module(&mut self, package: &str, name: &str) {
        self.list(package).await;
        self.stat(&format!("{package}/{name}.py")).await.expect("it exists");
        self.open(&format!("{package}/__pycache__/{name}.cpython-311.pyc")).await;
        // The store's time is not the one in the bytecode.
        self.open(&format!("{package}/{name}.py")).await;
    }
}

fn put(store: &MemoryStore, path: &str, bytes: usize) {
    store.put(path, vec![b'x'; bytes]);
}

/// Eight packages of 20 modules, each with stubs and four packages in it, three of them of 12
/// modules, and tests that nobody reads: 4,000 files.
fn site_packages() -> MemoryStore {
    let store = MemoryStore::new();
    let module = |package: &str, name: &str| {
        put(&store, &format!("lib/{package}/{name}.py"), 8_000);
        put(&store, &format!("lib/{package}/{name}.pyi"), 2_000);
        put(&store, &format!("lib/{package}/__pycache__/{name}.cpython-311.pyc"), 9_000);
    };
    for package in 0..8 {
        let package = format!("package{package}");
        let parts = ["core", "lib", "linear"].map(|part| (format!("{package}/{part}"), 12));
        let tests = (format!("{package}/tests"), 100);
        for (package, modules) in [(package, 20), tests].into_iter().chain(parts) {
            module(&package, "__init__");
            for number in 0..modules {
                module(&package, &format!("m{number:03}"));
            }
        }
    }
    store
}

/// F2, R7: three round trips for each package, whatever it holds.
#[tokio::test(start_paused = true)]
async fn imports_wait_for_packages_and_not_for_files() {
    let mut machine = Machine::new(site_packages());
    let (mut packages, mut files) = (0, 0);
    for package in 0..4 {
        for (part, modules) in [("", 20), ("/core", 12), ("/lib", 12), ("/linear", 12)] {
            let package = format!("lib/package{package}{part}");
            machine.import(&package).await;
            packages += 1;
            files += 2;
            for number in 0..modules {
                machine.module(&package, &format!("m{number:03}")).await;
                files += 2;
            }
        }
    }
    let cost = machine.cost().await;
    assert_eq!((packages, files), (16, 480));
    // File by file these are 480 × 15 ms, and 40 ms for each name that is not there.
    assert!(cost.millis <= 16 * 15 + 13 * 40, "{cost:?}");
    assert!(cost.gets <= files * 3 / 2 + 10 && cost.lists + cost.heads <= 50, "{cost:?}");
    assert!(cost.fetched_percent <= 120, "{cost:?}");
}

/// R7: `git status` looks at each file, and reads three that are not sources.
#[tokio::test(start_paused = true)]
async fn who_looks_at_files_and_reads_none_has_none_fetched() {
    let store = MemoryStore::new();
    for name in ["HEAD", "config", "index", "packed-refs", "description"] {
        put(&store, &format!(".git/{name}"), 1_000);
    }
    for number in 0..3000 {
        put(&store, &format!("src{}/part{}/f{number}.c", number / 600, number / 20 % 30), 5_000);
    }
    let keys = store.keys();
    let mut machine = Machine::new(store);
    for name in ["HEAD", "config", "index"] {
        machine.open(&format!(".git/{name}")).await;
    }
    for key in keys.iter().filter(|key| key.starts_with("src")) {
        machine.stat(key).await.expect("it exists");
    }
    let cost = machine.cost().await;
    assert!(cost.gets <= 5 && cost.lists <= 60, "{cost:?}");
}

/// R7: a compiler looks for 200 headers along ten folders, and reads them.
#[tokio::test(start_paused = true)]
async fn an_include_search_waits_for_folders() {
    let store = MemoryStore::new();
    for number in 0..500 {
        put(&store, &format!("usr/include/d{}/h{number}.h", number % 10), 6_000);
    }
    let mut machine = Machine::new(store);
    for number in (0..500).step_by(5).chain((1..500).step_by(5)) {
        for folder in 0..=number % 10 {
            machine.stat(&format!("usr/include/d{folder}/h{number}.h")).await;
        }
        machine.open(&format!("usr/include/d{}/h{number}.h", number % 10)).await;
    }
    let cost = machine.cost().await;
    assert!(cost.millis <= 40 + 10 * 30 && cost.lists <= 12, "{cost:?}");
    assert!(cost.gets <= 300, "{cost:?}");
}

/// F9, R7: `ls -R` reads no file; and an `ImageFolder`, of which a program samples a file of each
/// class, or two, loses what may be lost and no more.
#[tokio::test(start_paused = true)]
async fn a_sample_of_many_small_folders_costs_what_it_reads() {
    let store = MemoryStore::new();
    for number in 0..40_000 {
        put(&store, &format!("train/n{:04}/{number}.jpg", number % 1000), 1_000);
    }
    let mut machine = Machine::new(store);
    let classes = machine.list("train").await;
    let mut files = Vec::new();
    for class in &classes {
        let names = machine.list(&format!("train/{class}")).await;
        files.extend(names.into_iter().map(|name| format!("train/{class}/{name}")));
    }
    assert_eq!((files.len(), machine.store.counts().gets), (40_000, 0));
    let lists = machine.store.counts().lists;
    for file in files.iter().step_by(40) {
        machine.open(file).await;
    }
    assert_eq!(machine.cost().await.gets, 1000);
    for file in files.iter().skip(7).step_by(40) {
        machine.open(file).await;
    }
    let cost = machine.cost().await;
    assert!(cost.gets <= 2000 + 128 + 2000 / 64 && cost.lists == lists, "{cost:?}");
}

/// F2: a name in each of many folders that only their parent's listing has shown.
#[tokio::test(start_paused = true)]
async fn a_name_in_each_of_many_folders_has_few_of_them_asked_for() {
    let store = MemoryStore::new();
    for number in 0..4000 {
        put(&store, &format!("train/n{:03}/{number}.jpg", number % 400), 1_000);
    }
    let mut machine = Machine::new(store);
    machine.list("").await;
    machine.list("train").await;
    let before = machine.cost().await;
    for number in 0..400 {
        machine.stat(&format!("train/n{number:03}/{number}.jpg")).await.expect("it exists");
    }
    let cost = machine.cost().await;
    let asked = cost.heads - before.heads - 400;
    assert_eq!(cost.lists - before.lists, 2 * (400 + asked));
    assert!((32..=32 + 400 / 32).contains(&asked), "{asked} folders: {cost:?}");
}

/// R10: the dynamic linker reads a library at its beginning, at its end, and then all over.
#[tokio::test(start_paused = true)]
async fn a_small_library_is_fetched_whole_at_its_first_place() {
    for (name, is_whole) in [("libblas.so.3", true), ("table.dat", false)] {
        let store = MemoryStore::new();
        let mut bytes = vec![b'x'; 24 << 20];
        bytes[..4].copy_from_slice(b"\x7fELF");
        store.put(name, bytes);
        let mut machine = Machine::new(store);
        let ino = machine.stat(name).await.expect("it exists");
        for offset in [0, 22 << 20] {
            machine.fs.read(ino, offset, 1 << 20, ReadKind::Buffered).await.expect("reads");
        }
        let cost = machine.cost().await;
        let fetched = machine.fs.stats.bytes_fetched.get();
        assert_eq!(fetched == 24 << 20, is_whole, "{name}: {fetched} bytes, {cost:?}");
        assert!(fetched <= 24 << 20);
    }
}
