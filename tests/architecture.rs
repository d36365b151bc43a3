//! Guards for docs/ARCHITECTURE.md: the direction of imports, which room may use which crate, where
//! `unsafe` may stand, the length of files, one meaning for each type name. They read the source as
//! text, and production code only: no files of tests, no items under `#[cfg(test)]`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The rooms, lowest first. A room may use those before it. A module belongs to the room with the
/// longest name that is its own path or a folder above it.
const ROOMS: [&str; 17] = [
    "base",
    "stats",
    "store",
    "disk",
    "errno",
    "cache",
    "names/rules",
    "names/entries",
    "names/known",
    "names/asking",
    "names/scan",
    "names",
    "readahead",
    "fs",
    "fuse",
    "app",
    "main",
];

/// Crates, or prefixes of crates, that only these rooms may use. Other crates are free.
const ONLY: [(&str, &[&str]); 7] = [
    ("fuser", &["fuse"]),
    ("aws_", &["store/s3"]),
    ("rustls", &["store/s3", "store/wire"]),
    ("quick_xml", &["store/s3"]),
    ("clap", &["app"]),
    ("hyper", &["app", "store/wire/proxy"]),
    ("ratatui", &["app"]),
];

/// The files that may hold `unsafe`.
const UNSAFE: [&str; 2] = ["cache/arena.rs", "fuse/takeover.rs"];

const MOST_LINES: usize = 500;

/// A file of production code.
struct Source {
    /// Below `src/`.
    path: String,
    lines: Vec<String>,
}

impl Source {
    /// The lines without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.lines.iter().enumerate();
        let code = lines.map(|(at, line)| (at + 1, line.split("//").next().unwrap_or_default()));
        code.filter(|(_, line)| !line.trim().is_empty())
    }

    /// `names/known/walk.rs` is in the module `names/known/walk`.
    fn module(&self) -> &str {
        self.path.trim_end_matches(".rs")
    }
}

/// Production code below `folder`.
fn sources(folder: &Path) -> Vec<Source> {
    let mut files: Vec<PathBuf> = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if name != "testing" && name != "tests" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|ext| ext == "rs")
                && name != "tests.rs"
                && name != "testing.rs"
            {
                files.push(path);
            }
        }
    }
    files.sort();
    let source = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let below = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
        Source { path: below, lines: without_tests(&text) }
    };
    files.into_iter().map(source).collect()
}

/// Drops each item under `#[cfg(test)]`. The text is formatted by rustfmt, so an item ends on its
/// first line, or at the next closing bracket with the same indentation.
fn without_tests(text: &str) -> Vec<String> {
    let mut kept = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push(line.to_owned());
            continue;
        }
        let mut item = lines.by_ref().skip_while(|line| line.trim().starts_with("#["));
        let Some(first) = item.next() else { break };
        if first.ends_with([';', ',', '}']) {
            continue;
        }
        let depth = first.len() - first.trim_start().len();
        let ends = |line: &str| {
            let rest = line.trim_start();
            rest.starts_with(['}', ')']) && line.len() - rest.len() == depth
        };
        let _ = lines.by_ref().find(|line| ends(line));
    }
    kept
}

/// The index in [`ROOMS`] of the room that a module is in.
fn room(module: &str) -> Option<usize> {
    let is_in = |room: &str| module == room || module.starts_with(&format!("{room}/"));
    let rooms = ROOMS.iter().enumerate().filter(|(_, room)| is_in(room));
    rooms.max_by_key(|(_, room)| room.len()).map(|(at, _)| at)
}

/// Every path into this crate that a file contains, with its line, from the crate's root:
/// `use crate::a::{b, c::D}` gives `a/b` and `a/c/D`. `super::` starts at the file's own module.
fn named(source: &Source) -> BTreeSet<(usize, String)> {
    let mut found = BTreeSet::new();
    let code: Vec<(usize, &str)> = source.code().collect();
    for (at, &(line, text)) in code.iter().enumerate() {
        for start in ["crate::", "super::", "self::"] {
            for (offset, _) in text.match_indices(start) {
                let before = text[..offset].chars().next_back();
                if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                    continue;
                }
                // The rest of a `use` may stand on the lines below.
                let mut rest = text[offset..].to_owned();
                if text.trim_start().starts_with("use ") || text.trim_start().starts_with("pub") {
                    for (_, more) in &code[at + 1..] {
                        if rest.contains(';') {
                            break;
                        }
                        rest.push_str(more.trim());
                    }
                }
                let mut base: Vec<&str> = source.module().split('/').collect();
                let mut path = rest.as_str();
                if let Some(below) = path.strip_prefix("crate::") {
                    (base, path) = (Vec::new(), below);
                } else if let Some(below) = path.strip_prefix("self::") {
                    path = below;
                }
                while let Some(below) = path.strip_prefix("super::") {
                    base.pop();
                    path = below;
                }
                let mut all = Vec::new();
                leaves(path, &base.join("/"), &mut all);
                found.extend(all.into_iter().map(|path| (line, path)));
            }
        }
    }
    found
}

/// Adds each path of a `use` tree to `all`, and returns the text after the tree.
fn leaves<'a>(text: &'a str, base: &str, all: &mut Vec<String>) -> &'a str {
    let mut base = base.to_owned();
    let mut text = text;
    loop {
        if let Some(mut inner) = text.strip_prefix('{') {
            loop {
                inner = inner.trim_start_matches([',', ' ']);
                if let Some(rest) = inner.strip_prefix('}') {
                    return rest;
                }
                if inner.is_empty() {
                    return inner;
                }
                let rest = leaves(inner, &base, all);
                inner = rest.trim_start_matches(|c| c != ',' && c != '}');
            }
        }
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        let (word, rest) = text.split_at(end);
        if word.is_empty() {
            return rest;
        }
        if word != "self" {
            base = if base.is_empty() { word.to_owned() } else { format!("{base}/{word}") };
        }
        let Some(below) = rest.strip_prefix("::") else {
            all.push(base);
            return rest;
        };
        text = below;
    }
}

/// The module that defines the end of a path: `a/b` for `a/b/Type`.
fn module_of<'a>(path: &'a str, modules: &BTreeSet<&str>) -> Option<&'a str> {
    let mut path = path;
    loop {
        if modules.contains(path) {
            return Some(path);
        }
        path = path.rsplit_once('/')?.0;
    }
}

/// Imports from a room above, and modules in no room.
fn wrong_arrows(sources: &[Source]) -> Vec<String> {
    let modules: BTreeSet<&str> = sources.iter().map(Source::module).collect();
    let mut wrong = Vec::new();
    for source in sources {
        let Some(from) = room(source.module()) else {
            if source.path != "lib.rs" {
                wrong.push(format!("{} is in no room", source.path));
            }
            continue;
        };
        for (line, path) in named(source) {
            let to = module_of(&path, &modules).and_then(room);
            if to.is_some_and(|to| to > from) {
                wrong.push(format!("{}:{line}: {path} is above", source.path));
            }
        }
    }
    wrong
}

/// Modules at or below `below` that use each other in a circle. A child that uses its parent, which
/// uses the child, is one.
fn circles(sources: &[Source], below: &str) -> Vec<String> {
    let modules: BTreeSet<&str> = sources.iter().map(Source::module).collect();
    let is_in = |module: &str| module == below || module.starts_with(&format!("{below}/"));
    let mut uses: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for source in sources.iter().filter(|source| is_in(source.module())) {
        let others = named(source).into_iter().filter_map(|(_, path)| {
            let module = module_of(&path, &modules)?;
            (is_in(module) && module != source.module()).then(|| module.to_owned())
        });
        uses.insert(source.module(), others.collect());
    }
    // Remove modules that use no remaining module, until only circles remain.
    loop {
        let free: Vec<&str> =
            uses.iter().filter(|(_, used)| used.is_empty()).map(|(module, _)| *module).collect();
        if free.is_empty() {
            break;
        }
        for module in free {
            uses.remove(module);
            for used in uses.values_mut() {
                used.remove(module);
            }
        }
    }
    uses.into_iter().map(|(module, used)| format!("{module} uses {used:?}")).collect()
}

/// Uses of a crate outside of the rooms that may use it, and `unsafe` outside of its files.
fn trespasses(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources {
        for (line, code) in source.code() {
            for (name, places) in ONLY {
                let mentioned = code.match_indices(name).any(|(at, _)| {
                    let before = code[..at].chars().next_back();
                    let rest = &code[at + name.len()..];
                    !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
                        && if name.ends_with('_') {
                            rest.contains("::")
                        } else {
                            rest.starts_with("::")
                                || rest.starts_with("_util::")
                                || rest.starts_with("_pki_types::")
                                || rest.starts_with("_native_certs::")
                        }
                });
                let module = source.module();
                let allowed =
                    |place: &str| module == place || module.starts_with(&format!("{place}/"));
                if mentioned && !places.iter().any(|place| allowed(place)) {
                    wrong.push(format!("{}:{line}: only {places:?} may use {name}", source.path));
                }
            }
            let is_unsafe = code.split_whitespace().any(|word| word == "unsafe");
            if is_unsafe && !UNSAFE.contains(&source.path.as_str()) {
                wrong.push(format!("{}:{line}: only {UNSAFE:?} may be unsafe", source.path));
            }
        }
    }
    wrong
}

fn long_files(sources: &[Source]) -> Vec<String> {
    let long = sources.iter().filter(|source| source.lines.len() > MOST_LINES);
    long.map(|source| format!("{} has {} lines", source.path, source.lines.len())).collect()
}

/// Names of types that are defined in more than one file.
fn shared_type_names(sources: &[Source]) -> Vec<String> {
    let mut places: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for source in sources {
        for (_, code) in source.code() {
            let code = code.trim_start();
            let code = code
                .strip_prefix("pub")
                .map_or(code, |code| code.trim_start_matches(|c| c != ' ').trim_start());
            let defined = ["struct ", "enum ", "trait ", "union "]
                .iter()
                .find_map(|word| code.strip_prefix(word));
            if let Some(rest) = defined {
                let end = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
                places.entry(&rest[..end]).or_default().insert(&source.path);
            }
        }
    }
    let shared = places.into_iter().filter(|(_, places)| places.len() > 1);
    shared.map(|(name, places)| format!("{name}: {places:?}")).collect()
}

fn all() -> Vec<Source> {
    let all = sources(Path::new("src"));
    assert!(all.len() > 60, "the source is where this test looks for it");
    all
}

#[test]
fn arrows_point_downwards() {
    let wrong = wrong_arrows(&all());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn names_go_in_no_circle() {
    let wrong = circles(&all(), "names");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn libraries_are_named_where_they_belong_and_nowhere_else() {
    let wrong = trespasses(&all());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_file_is_too_long_to_be_read_in_one_sitting() {
    let wrong = long_files(&all());
    assert!(wrong.is_empty(), "more than {MOST_LINES}: {wrong:#?}");
}

#[test]
fn no_type_name_has_two_meanings() {
    let wrong = shared_type_names(&all());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Each guard finds the offence that it is there for.
#[test]
fn the_guards_see_what_they_guard_against() {
    let source =
        |path: &str, text: &str| Source { path: path.to_owned(), lines: without_tests(text) };
    let up = "use crate::{\n    base::layout,\n    fs::BucketFs,\n};\n";
    let rooms = [source("cache.rs", up), source("fs.rs", ""), source("base/layout.rs", "")];
    assert_eq!(wrong_arrows(&rooms), ["cache.rs:1: fs/BucketFs is above"]);
    let tests_only = format!("#[cfg(test)]\nmod tests {{\n    {}\n}}\n", up.replace('\n', ""));
    let rooms = [source("cache.rs", &tests_only), source("fs.rs", "")];
    assert_eq!(wrong_arrows(&rooms), [""; 0]);
    assert_eq!(wrong_arrows(&[source("attic.rs", "")]), ["attic.rs is in no room"]);

    let child = source("names/known/walk.rs", "use super::directory::Directory;\n");
    let parent = source("names/known/directory.rs", "use super::walk::Walk;\n");
    assert_eq!(circles(&[child, parent], "names").len(), 2);
    let child = source("names/scan.rs", "fn f() -> super::Names {}\n");
    let parent = source("names.rs", "use self::scan::Scan;\n");
    assert_eq!(circles(&[child, parent], "names").len(), 2);

    let calls =
        source("fs.rs", "fn f() { fuser::mount() }\nuse aws_sdk_s3::Client;\n// fuser::x\n");
    assert_eq!(trespasses(&[calls]).len(), 2);
    assert_eq!(trespasses(&[source("fs.rs", "let x = unsafe { y() };\n")]).len(), 1);
    assert_eq!(trespasses(&[source("cache/arena.rs", "unsafe fn f() {}\n")]).len(), 0);

    let long = "x\n".repeat(MOST_LINES + 1);
    assert_eq!(long_files(&[source("fs.rs", &long)]).len(), 1);
    assert_eq!(long_files(&[source("fs.rs", &long[2..])]).len(), 0);

    let one = source("fs.rs", "pub(crate) struct Plan {}\n");
    let other = source("fuse.rs", "enum Plan {}\n");
    assert_eq!(shared_type_names(&[one, other]).len(), 1);
}
